"""The tests: python -m pytest -q. Two minutes on two cores; needs pytest besides the four packages.

Correct means equal to something independent: stored librosa numbers, torch.stft, closed forms, a plain formula written
here. Where a property could hold by accident, the test also shows that a broken variant does not have it.
"""
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
import soundfile
import torch
import torch.nn as nn
import torch.nn.functional as F

import fastsag
import prep
import sample
import train
from fastsag import Config, FastSAG, PRESETS, UserError

torch.set_num_threads(min(2, os.cpu_count()))
CFG, TINY = Config(), PRESETS["tiny"]
RATE = CFG.sample_rate


def close(actual, expected, atol, what=""):
    """All within atol; otherwise show how far off, and where most."""
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    off = (actual - expected).abs()
    assert off.max() <= atol, f"{what}: max difference {off.max():.3g}, mean {off.mean():.3g}, allowed {atol:g}"


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sine(hz, seconds=1.0, rate=RATE, amplitude=0.5, phase=0.0):
    return (amplitude * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * rate)).double() / rate + phase)).float()


def music(length, hop=8192):
    """A deterministic tune of decaying tones in a little noise, (length,) samples."""
    n = torch.arange(length)
    pitch = torch.tensor([0, 7, 4, 12, 5, 9, 2, 7])[(n // hop) % 8]
    phase = torch.cumsum(440 * 2 ** (pitch.double() / 12) / RATE, 0) * 2 * math.pi
    return (0.2 * phase.sin() * torch.exp(-5 * (n % hop) / RATE)).float() + 0.002 * noise(length)


def random_model(cfg=TINY, seed=0):
    """Layers that start at zero would hide what lies behind them: give every weight some noise."""
    torch.manual_seed(seed)
    model = FastSAG(cfg).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    return model


def corr(a, b):
    return np.corrcoef(np.asarray(a, float), np.asarray(b, float))[0, 1]


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """Eight made songs of 8 s, two of them for validation."""
    out = tmp_path_factory.mktemp("data") / "set"
    assert prep.main(["--songs", "8", "--seconds", "8", "--workers", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def trained(tiny_set, tmp_path_factory):
    """The folder of a run of six steps, with the checkpoint of step 3 kept aside."""
    out = tmp_path_factory.mktemp("run")
    save = train.save_atomically

    def save_and_keep(checkpoint, path):
        save(checkpoint, path)
        shutil.copy(path, f"{path}.{checkpoint['step']}")

    train.save_atomically = save_and_keep
    try:
        assert train.main(train_args(tiny_set, out, "--steps", "6", "--every", "3")) == 0
    finally:
        train.save_atomically = save
    return out


def train_args(data, out, *more):
    return ["--data", str(data), "--out", str(out), "--preset", "tiny", "--batch-size", "2", "--crop", "2.05", *more]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    random_model().save(path)
    return path


# ----------------------------------------------------------------------------------------------------------------------
# Audio

# f = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=100), librosa 0.11.0; for row r: nz = numpy.flatnonzero(f[r]);
# (r, nz[0], nz[-1], f[r].argmax(), f[r].max(), f[r].sum(), f[r][nz[0]])
LIBROSA_ROWS = [
    (0, 1, 2, 1, 0.0205665473, 0.0386789087, 0.0205665473), (1, 2, 4, 3, 0.0271685421, 0.0452809031, 0.0115103666),
    (14, 21, 23, 22, 0.0214996058, 0.0396119665, 0.0171793027), (33, 48, 51, 50, 0.0203190614, 0.0414235927, 0.0001446040),
    (50, 87, 92, 90, 0.0128076775, 0.0424453272, 0.0011888323), (77, 223, 238, 230, 0.0052593146, 0.0426226388, 0.0006597944),
    (99, 478, 511, 494, 0.0024073846, 0.0426487352, 0.0000639257)]


def test_mel_filterbank_equals_librosa():
    filters = fastsag.mel_filterbank(24000, 1024, 100).double()
    close(filters.sum(), 4.264108163, 1e-5, "sum of everything")           # f.sum(dtype="float64")
    for row, first, last, peak, *values in LIBROSA_ROWS:
        nonzero = filters[row].nonzero()[:, 0]
        assert (nonzero[0], nonzero[-1], filters[row].argmax()) == (first, last, peak), f"row {row}"
        close(torch.stack([filters[row].max(), filters[row].sum(), filters[row, first]]), values, 1e-6, f"row {row}")


def test_log_mel_equals_librosa():
    # With wave as below in numpy float64 and f from above:
    # s = librosa.stft(numpy.pad(wave, 384, mode="reflect"), n_fft=1024, hop_length=256, center=False)
    # numpy.log(numpy.maximum(f @ numpy.sqrt(s.real ** 2 + s.imag ** 2 + 1e-9), 1e-5))[bin, frame]
    stored = {(0, 0): 0.57743, (0, 95): -3.45546, (9, 10): -4.79855, (10, 50): -5.48351, (20, 10): 0.35458,
              (48, 5): -11.51293, (58, 48): -1.73544, (58, 95): -2.01949, (70, 40): -11.51293, (99, 0): -6.12367,
              (99, 60): -11.51293, (99, 95): -6.02101}
    t = torch.arange(24576).double() / 24000
    chirp = 0.5 * torch.exp(-3 * t) * torch.sin(2 * math.pi * (100 * t + 2500 * t ** 2))
    wave = 0.3 * torch.sin(2 * math.pi * 220 * t) + 0.2 * torch.sin(2 * math.pi * 3000 * t + 1) + chirp
    mel = fastsag.log_mel(wave.float()[None], CFG)[0]
    assert mel.shape == (100, 96)
    close(torch.stack([mel[place] for place in stored]), list(stored.values()), 1e-4, "log-mel")


@pytest.mark.parametrize("n_fft, hop", [(1024, 256), (2048, 256)])
def test_stft_equals_torch_and_istft_inverts_it(n_fft, hop):
    wav, pad = noise(2, 40 * hop), (n_fft - hop) // 2
    spec = fastsag.stft(wav, n_fft, hop)
    padded = F.pad(wav[:, None], (pad, pad), mode="reflect")[:, 0]
    theirs = torch.stft(padded, n_fft, hop, window=torch.hann_window(n_fft), center=False, return_complex=True)
    close(torch.view_as_real(spec), torch.view_as_real(theirs), 1e-4, "stft")
    close(fastsag.istft(spec, n_fft, hop), wav, 1e-5, "istft")


@pytest.mark.parametrize("rate_in, rate_out, hz, atol", [
    (48000, 24000, 9000, 1e-3), (44100, 24000, 10000, 1e-3), (24000, 44100, 10000, 1e-3), (8000, 24000, 3000, 1e-3),
    (22050, 24000, 440, 1e-3), (44101, 24000, 440, 1e-2), (24000, 44101, 440, 1e-2)])     # odd rates may drift by 1e-6
def test_resampling_keeps_a_sine(rate_in, rate_out, hz, atol):
    y = fastsag.resample(sine(hz, rate=rate_in, phase=0.3), rate_in, rate_out)
    assert y.shape == (rate_out,)
    close(y[500:-500], sine(hz, rate=rate_out, phase=0.3)[500:-500], atol, f"{hz} Hz")


@pytest.mark.parametrize("rate_in, hz", [(48000, 15000), (44100, 13000), (44101, 13000), (96000, 40000)])
def test_resampling_keeps_aliases_under_60_db(rate_in, hz):
    y = fastsag.resample(sine(hz, rate=rate_in), rate_in, 24000)[500:-500]
    assert y.abs().max() < 0.5e-3, f"alias at {20 * math.log10(y.abs().max() / 0.5):.1f} dB"


def test_resampled_lengths_are_rounded_up_and_equal_rates_change_nothing():
    for length, rate_in, rate_out in ((1, 48000, 24000), (4801, 48000, 24000), (1000, 44101, 24000), (7, 8000, 44100)):
        shape = fastsag.resample(noise(2, length), rate_in, rate_out).shape
        assert shape == (2, -(-length * rate_out // rate_in)), (length, rate_in, rate_out, shape)
    assert torch.equal(fastsag.resample(noise(100), 24000, 24000), noise(100))


@pytest.mark.parametrize("amplitude", [0.9, 0.01])
def test_active_level_of_a_sine_ignores_silence(amplitude):
    wav = sine(440, 2, amplitude=amplitude)
    for name, wave in dict(sine=wav, half_silent=torch.cat([0 * wav, wav])).items():
        close(fastsag.active_dbfs(wave, RATE), 20 * math.log10(amplitude / math.sqrt(2)), 0.01, name)
    assert fastsag.active_dbfs(0 * wav, RATE) == -math.inf


def features_of(wav):
    wav = wav[None, : len(wav) // 4096 * 4096]
    return fastsag.music_features(wav, fastsag.log_mel(wav, CFG), CFG)[0]


@pytest.mark.parametrize("hz, rows, pitch_class", [(440, slice(12, 24), 9), (110, slice(0, 12), 9), (261.63, slice(12, 24), 0),
                                                   (82.41, slice(0, 12), 4), (1108.7, slice(12, 24), 1)])
def test_chroma_peaks_at_the_note_that_sounds(hz, rows, pitch_class):
    chroma = fastsag.chroma_of(features_of(sine(hz, 3))[None])[0, :, 10:-10]
    other = slice(0, 12) if rows.start else slice(12, 24)
    assert (chroma[rows].argmax(0) == pitch_class).all(), chroma[rows].mean(1)
    assert chroma[rows].amax(0).min() > 0.8 > 0.2 > chroma[other].max() or hz < 175, (chroma[rows].amax(0).min(), chroma[other].max())


def test_chroma_forgets_loudness_and_silence_has_none():
    wav = music(3 * RATE)
    loud, soft, silent = (fastsag.chroma_of(features_of(gain * wav)[None]) for gain in (1, 0.3, 0))
    close(loud, soft, 0.2, "chroma at -10 dB")
    assert (loud - soft).abs().mean() < 0.05 < loud.mean(), (loud - soft).abs().mean()
    close(silent, 0 * silent, 1e-5, "chroma of silence")


def test_onset_rows_rise_at_the_clicks_only():
    clicks = torch.tensor([20, 35, 50, 62])                                # feature frames of 1024 samples
    wav = torch.zeros(80 * 1024)
    for at in clicks * 1024 + 512:
        wav[at: at + 200] = 0.5 * noise(200)
    onsets = features_of(wav)[24:27]
    near = (torch.arange(80)[:, None] - clicks).abs().amin(1) <= 1
    for name, row in zip(("low", "middle", "high"), onsets):
        assert row[~near].max() < -0.9, (name, row[~near].max())           # -1 is "nothing begins"
        assert all(row[at - 1: at + 2].max() > 0 for at in clicks), (name, row[clicks])


# ----------------------------------------------------------------------------------------------------------------------
# Network


@pytest.mark.parametrize("T", [5, 8, 16, 37])
def test_local_attention_equals_plain_masked_attention(T, radius=8, heads=2, head=32):
    torch.manual_seed(0)
    layer, x = fastsag.LocalAttention(48, heads * head, radius).requires_grad_(False), noise(2, 48, T)
    normed = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    q, k, v = torch.einsum("oi,bit->bto", layer.qkv.weight[..., 0], normed).add(layer.qkv.bias).chunk(3, -1)
    result = torch.zeros(2, T, heads * head)
    turn = [10000 ** -(i / (head // 2 - 1)) for i in range(head // 2)]
    for h in range(heads):
        part = slice(h * head, (h + 1) * head)
        as_complex = lambda z: torch.complex(z[..., part][..., : head // 2], z[..., part][..., head // 2:])
        angle = torch.arange(T)[:, None] * torch.tensor(turn)
        q_turned, k_turned = (as_complex(z) * torch.polar(torch.ones_like(angle), angle) for z in (q, k))
        score = torch.einsum("bic,bjc->bij", q_turned, k_turned.conj()).real / math.sqrt(head)
        far = (torch.arange(T)[:, None] - torch.arange(T)).abs() > radius
        result[..., part] = score.masked_fill(far, -math.inf).softmax(-1) @ v[..., part]
    expected = x + (result @ layer.out.weight[..., 0].T + layer.out.bias).transpose(1, 2)
    close(layer(x), expected, 1e-5, f"T = {T}")


def test_local_attention_ignores_frames_beyond_its_radius():
    layer, x = fastsag.LocalAttention(32, 32, radius=6).requires_grad_(False), noise(1, 32, 40)
    changed = x.clone()
    changed[..., 20] += 5
    moved = (layer(changed) - layer(x)).abs().amax((0, 1)) > 1e-6
    assert moved.nonzero()[:, 0].tolist() == list(range(14, 27))


def inputs(frames, seed=0):
    """x, mu (1, M, T) and expected features (1, S, T/4)."""
    return (noise(1, 100, frames, seed=seed), 0.5 * noise(1, 100, frames, seed=seed + 1),
            noise(1, fastsag.N_FEATURES, frames // 4, seed=seed + 2))


def test_windowed_guided_equals_one_whole_pass():
    model, (x, mu, expected), sigma = random_model(), inputs(1568), torch.tensor(0.7)
    whole = model.guided(x, sigma, mu, expected, 1.5, window=4096)
    close(model.guided(x, sigma, mu, expected, 1.5, window=256), whole, 1e-4, "windows with the real halo")
    seam = (model.guided(x, sigma, mu, expected, 1.5, window=256, halo=0) - whole).abs().max()
    assert seam > 1e-2, f"without a halo the difference is only {seam:.3g}: this test could not fail"


def test_guidance_extrapolates_from_the_unconditional_result():
    model, (x, mu, expected), sigma = random_model(), inputs(64), torch.tensor([0.7])
    cond, uncond = model.denoise(x, sigma, mu, expected), model.denoise(x, sigma, 0 * mu, 0 * expected)
    assert (cond - uncond).abs().max() > 1e-2
    for guidance, expected_result in ((1, cond), (0, uncond), (3, uncond + 3 * (cond - uncond))):
        close(model.guided(x, sigma[0], mu, expected, guidance), expected_result, 1e-5, f"guidance {guidance}")


def test_condition_moves_with_the_vocals_and_does_not_know_how_long_the_clip_is():
    # Tiny preset, in feature frames: attention 2 x 32, convolutions 2 + 4 + 2 + 4, chroma frames and resampling 5.
    model, wav, frame = random_model(), music(320 * 1024)[None], 1024
    whole, (begin, end), sees = model.condition(wav), (48, 48 + 4 * 60), 2 * 32 * 1 + 12 * 2 + 6
    part = model.condition(wav[:, begin * frame: end * frame])             # the same sound, 48 frames earlier
    for name, a, b, rate in zip(("expected", "mu"), whole, part, (1, 4)):
        inner = slice((begin + sees) * rate, (end - sees) * rate)
        close(b[..., sees * rate: -sees * rate], a[..., inner], 1e-4, name)
        edge = (b - a[..., begin * rate: end * rate]).abs().max()
        assert edge > 1e-2, f"{name}: even the edges differ by only {edge:.3g}: this test could not fail"


# ----------------------------------------------------------------------------------------------------------------------
# Diffusion


class Recorder(nn.Module):
    """Stands where the network is: keeps what it is given, answers with a fixed F_x."""

    def forward(self, x, mu, expected, c_noise):
        self.x, self.c_noise, self.F_x = x, c_noise, noise(*x.shape, seed=9)
        return self.F_x


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 3.0, 80.0])
def test_preconditioning_equals_edm_table_1(sigma, sd=0.5):
    model, (_, mu, expected) = FastSAG(TINY), inputs(256)
    model.unet = Recorder()
    x = sd * noise(1, 100, 256, seed=5) + sigma * noise(1, 100, 256, seed=6)
    D_x = model.denoise(x, torch.tensor([sigma]), mu, expected)
    c_skip, c_out = sd ** 2 / (sigma ** 2 + sd ** 2), sigma * sd / math.sqrt(sigma ** 2 + sd ** 2)
    close(D_x, c_skip * x.double() + c_out * model.unet.F_x.double(), 1e-5, "D_x")
    close(model.unet.c_noise, [math.log(sigma) / 4], 1e-6, "c_noise")
    close(model.unet.x.std(), 1.0, 0.02, "standard deviation of the network's input")


def test_denoiser_limits():
    x, mu, expected = inputs(64)
    close(random_model().denoise(x, torch.tensor([1e-5]), mu, expected), x, 1e-3, "sigma -> 0 returns x")
    model = FastSAG(TINY).requires_grad_(False)
    model.unet.out[-1].bias.zero_()
    for sigma in (0.01, 1.0, 50.0):
        close(model.denoise(x, torch.tensor([sigma]), mu, expected), x * 0.25 / (0.25 + sigma ** 2), 1e-6, "before training")


def test_noise_levels_follow_edm_equation_5():
    sigmas = fastsag.sigma_steps(9, CFG)
    assert sigmas.shape == (10,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    middle = (0.5 * 80 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7
    close(sigmas[[0, 4, 8]], [80, middle, 0.002], 1e-4, "first, middle, last but one")


def ends(steps, s=0.5):
    """Error at the end for Gaussian data N(0, s^2), whose ODE has a closed form: of solve(), and of Euler's method."""
    sigmas, start = fastsag.sigma_steps(steps, CFG).double(), torch.tensor([1.0, -0.3], dtype=torch.float64)
    ideal = lambda x, sigma: x * s ** 2 / (s ** 2 + sigma ** 2)
    true, euler = start * 80 * s / math.sqrt(s ** 2 + 80 ** 2), start * 80
    for sigma, following in zip(sigmas, sigmas[1:]):
        euler = euler + (following - sigma) * (euler - ideal(euler, sigma)) / sigma
    return [(x - true).abs().max().item() for x in (fastsag.solve(ideal, start, sigmas), euler)]


def test_solver_is_second_order_and_beats_euler():
    errors, euler = zip(*(ends(steps) for steps in (32, 64, 128)))
    assert errors[-1] < 1e-3 and all(mine < theirs / 3 for mine, theirs in zip(errors, euler)), (errors, euler)
    for coarse, fine in zip(errors, errors[1:]):
        assert 3.5 < coarse / fine < 5, errors                             # half the step, a quarter of the error
    assert 1.8 < euler[0] / euler[1] < 2.2, euler                          # and the yardstick itself is first order


def test_samples_of_two_point_data_land_on_the_points():
    points = noise(2, 100, 16)

    def ideal(x, sigma):
        distance = (x[:, None] - points).square().sum((2, 3))
        return torch.einsum("bp,pmt->bmt", (-distance / (2 * sigma ** 2)).softmax(1), points)

    ends = fastsag.solve(ideal, noise(32, 100, 16, seed=1), fastsag.sigma_steps(16, CFG))
    off = (ends[:, None] - points).abs().amax((2, 3))                      # (32, 2)
    assert off.amin(1).max() < 1e-3, off.amin(1)
    assert set(off.argmin(1).tolist()) == {0, 1}, "all samples fell on the same point"

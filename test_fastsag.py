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

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or min(2, os.cpu_count()))
CFG, TINY = Config(), PRESETS["tiny"]
EDM = replace(CFG, sigma_min=0.002, sigma_max=80.0)                        # the paper's own range
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
    if hz > 200:                                                           # below, the window of 341 ms reaches the next band
        assert chroma[rows].amax(0).min() > 0.8 > 0.2 > chroma[other].max(), (chroma[rows].amax(0).min(), chroma[other].max())


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
    # Tiny preset, in feature frames: attention 2 x 32, convolutions 2 + 4 + 2 + 4, chroma frames and resampling 5,
    # pulses 24 + 2 x 128.
    model, wav, frame = random_model(), music(1000 * 1024)[None], 1024
    whole, (begin, end), sees = model.condition(wav), (48, 48 + 4 * 220), 2 * 32 * 1 + 12 * 2 + 6 + 24 + 2 * 128
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
    sigmas = fastsag.sigma_steps(9, EDM)
    assert sigmas.shape == (10,) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    middle = (0.5 * 80 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7
    close(sigmas[[0, 4, 8]], [80, middle, 0.002], 1e-4, "first, middle, last but one")


def ends(steps, s=0.5):
    """Error at the end for Gaussian data N(0, s^2), whose ODE has a closed form: of solve(), and of Euler's method."""
    sigmas, start = fastsag.sigma_steps(steps, EDM).double(), torch.tensor([1.0, -0.3], dtype=torch.float64)
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

    ends = fastsag.solve(ideal, noise(32, 100, 16, seed=1), fastsag.sigma_steps(16, EDM))
    off = (ends[:, None] - points).abs().amax((2, 3))                      # (32, 2)
    assert off.amin(1).max() < 1e-3, off.amin(1)
    assert set(off.argmin(1).tolist()) == {0, 1}, "all samples fell on the same point"


def test_one_pair_can_be_learnt_by_heart():
    torch.manual_seed(0)
    model = FastSAG(replace(TINY, channels=(48, 32, 32), cond_drop=0.0))
    frames = 64
    vocals = music(frames * 256)[None]
    accomp = (music(frames * 256, 4096).roll(2000) + sine(110, frames * 256 / RATE, amplitude=0.1))[None]
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=4e-3), torch.Generator().manual_seed(0)
    probe = model.draw(16, frames, torch.Generator().manual_seed(7))       # the same noise before and after

    def losses(draw):
        count = len(draw["sigma"])
        result = model(vocals.expand(count, -1), accomp.expand(count, -1), draw)
        return torch.stack([result[name].mean() for name in ("semantic", "prior", "diffusion")])

    before = losses(probe).detach()
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 120)
        optimizer.zero_grad()
        losses(model.draw(4, frames, generator)).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for name, old, new, share in zip(("semantic", "prior", "diffusion"), before, losses(probe).detach(), (0.1, 0.1, 0.85)):
        assert new < share * old, f"{name}: {old:.3f} -> {new:.3f}"
    with torch.no_grad():
        true, (expected, mu) = model.analyse(accomp)[0], model.condition(vocals)
        noisy, sigma = true + 5 * noise(*mu.shape), torch.tensor([5.0])    # the mel is buried in noise
        guess, other = model.denoise(noisy, sigma, mu, expected), model.denoise(noisy, sigma, mu.flip(2), expected.flip(2))
    error, wrong = ((x - true).square().mean().sqrt() for x in (guess, other))
    assert error < 0.55 * true.std() and error < 0.8 * wrong, (error, wrong, true.std())


# ----------------------------------------------------------------------------------------------------------------------
# Sound


def test_griffin_lim_rebuilds_a_mel_far_better_than_random_phases_do():
    wav = sum(sine(hz, 2.0, amplitude=0.1) for hz in (220, 277.2, 329.6))[: 180 * 256]
    for click in range(3000, len(wav) - 300, 9000):
        wav[click: click + 200] += 0.3 * noise(200)
    mel = fastsag.log_mel(wav[None], CFG)
    off = [(fastsag.log_mel(fastsag.griffin_lim(mel, CFG, iterations=n), CFG) - mel).abs().mean() for n in (0, 32)]
    assert off[1] < 0.55 and off[1] < 0.6 * off[0], f"log-mel L1: {off[0]:.3f} with random phases, {off[1]:.3f} after 32 rounds"


def test_vocode_joins_its_pieces_without_a_seam():
    wav = (music(600 * 256, 6000) + sine(220, 600 * 256 / RATE, amplitude=0.1))[None]
    mel = fastsag.log_mel(wav, CFG)
    joined = fastsag.vocode(mel, CFG, piece=256, overlap=96)
    assert joined.shape == wav.shape and torch.equal(fastsag.vocode(mel[..., :256], CFG), fastsag.griffin_lim(mel[..., :256], CFG))
    off = (fastsag.log_mel(joined, CFG) - mel)[0].abs().mean(0)
    bend = joined[0].diff(n=2).square()
    for begin in (160, 320, 480):                                          # frames where a new piece fades in
        end = min(begin + 96, 600)
        assert off[begin:end].mean() < 1.25 * off.mean(), (begin, off[begin:end].mean(), off.mean())
        for edge in (begin, end):
            jump = bend[edge * 256 - 8: edge * 256 + 8].mean() / bend.mean()
            assert jump < 5, f"frame {edge}: second difference {jump:.1f} times as strong as on average"


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints and the library call


def test_half_precision_weights_keep_their_bits_when_saved_again(tmp_path, checkpoint):
    first = FastSAG.load(checkpoint, "cpu")
    first.save(tmp_path / "again.pt")
    second = FastSAG.load(tmp_path / "again.pt", "cpu")
    assert first.cfg == second.cfg == TINY
    original = random_model().state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        close(value, original[name], 2e-3, name)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_accompaniment_has_the_length_of_the_vocals_and_depends_on_the_seed_alone(rate, checkpoint):
    model = FastSAG.load(checkpoint, "cpu")
    vocals = sine(330, 1, rate, 0.2) * torch.linspace(0, 1, rate)
    one, again, other = (model.accompany(vocals, rate, steps=2, seed=seed) for seed in (3, 3, 4))
    assert one.shape == (rate,) and one.dtype == np.float32 and np.isfinite(one).all()
    assert (one == again).all() and np.abs(one - other).max() > 1e-3
    close(fastsag.active_dbfs(one, rate), fastsag.active_dbfs(vocals, rate), 3.0, "level")     # at 16 kHz the highs are lost


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["FASTSAG_TRAP"],)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "random bytes", "truncated", "foreign", "no weights",
                                  "wrong shapes", "no levels", "evil"])
def test_load_refuses_what_is_not_a_checkpoint_in_one_line(kind, tmp_path, checkpoint, monkeypatch):
    path, good = tmp_path / "some.pt", torch.load(checkpoint, weights_only=True)
    monkeypatch.setenv("FASTSAG_TRAP", str(tmp_path / "trap"))
    {"missing": lambda: None, "folder": path.mkdir, "empty": path.touch,
     "random bytes": lambda: path.write_bytes(np.random.default_rng(0).bytes(5000)),
     "truncated": lambda: path.write_bytes(checkpoint.read_bytes()[:-2000]),
     "foreign": lambda: torch.save({"state_dict": good["ema"]}, path),
     "no weights": lambda: torch.save({"config": good["config"], "ema": {}}, path),
     "wrong shapes": lambda: torch.save({**good, "config": asdict(replace(TINY, dim=64))}, path),
     "no levels": lambda: torch.save({**good, "config": asdict(replace(TINY, channels=()))}, path),
     "evil": lambda: path.write_bytes(pickle.dumps(Evil()))}[kind]()
    with pytest.raises(UserError) as error:
        FastSAG.load(path, "cpu")
    assert "\n" not in str(error.value) and "some.pt" in str(error.value)
    assert not (tmp_path / "trap").exists(), "loading a checkpoint ran its code"


# ----------------------------------------------------------------------------------------------------------------------
# prep.py


def read_set(folder):
    meta = json.loads((folder / "meta.json").read_text())
    bins = {split: np.fromfile(folder / f"{split}.bin", np.int16).reshape(-1, 2) for split in ("train", "val")}
    return [(song, bins[song["split"]][song["start"]: song["start"] + song["length"]] / 32768) for song in meta["songs"]]


def test_demo_songs_are_the_same_bytes_whatever_the_workers(tiny_set, tmp_path):
    assert prep.main(["--songs", "8", "--seconds", "8", "--workers", "1", "--out", str(tmp_path / "set")]) == 0
    for name in prep.Dataset.FILES:
        assert (tiny_set / name).read_bytes() == (tmp_path / "set" / name).read_bytes(), name


def test_demo_songs_keep_their_promises(tiny_set):
    songs = read_set(tiny_set)
    cast = {split: [{song[key] for song, _ in songs if song["split"] == split} for key in ("voice", "band")]
            for split in ("train", "val")}
    assert all(cast["val"]) and not cast["train"][0] & cast["val"][0] and not cast["train"][1] & cast["val"][1], cast
    for song, pair in songs:
        assert len(pair) == 8 * RATE and np.abs(pair).max() < 1, song["name"]
        hiss = np.diff(pair, 4, axis=0).T                                  # what remains is mostly noise
        for lag in (0, 1, 2, 100):
            assert abs(corr(hiss[0][lag:], hiss[1][: len(hiss[1]) - lag])) < 0.1, (song["name"], lag)
        for name, column in zip(("vocals", "accomp"), pair.T):
            close(song[f"{name}_dbfs"], fastsag.active_dbfs(column, RATE), 0.02, name)
    first = [song["beats"][0] * song["tempo"] / 60 for song, _ in songs]   # in beats: anywhere from 0 to 1
    assert max(first) - min(first) > 0.4, first


def recordings(seconds=6, seed=0):
    """A voice and three players, (L,) at 24 kHz, that resemble each other in nothing."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    return {name: 0.1 * np.sin(2 * np.pi * hz * t + 30 * np.sin(rng.uniform(1, 3) * t)) * (1.2 + np.sin(5 * t + i))
            for i, (name, hz) in enumerate(dict(vocals=440, drums=1500, bass=90, other=700).items())}


def write(path, wav, rate=RATE, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = torch.as_tensor(np.asarray(wav, np.float32))
    soundfile.write(path, fastsag.resample(wav, RATE, rate).numpy().T, rate, **more)


def layout_musdb(root, v, d, b, o):
    for name, wav, rate in (("vocals", v, 44100), ("drums", d, 44100), ("bass", b, 48000), ("other", o, 22050), ("mixture", 0 * v, 44100)):
        write(root / f"song/{name}.wav", np.stack([wav, wav]), rate)


LAYOUTS = {
    "musdb18": layout_musdb,
    "mixture": lambda root, v, d, b, o: (write(root / "song/vocals.wav", v, 48000), write(root / "song/mixture.wav", v + d + b + o, 48000)),
    "demucs": lambda root, v, d, b, o: (write(root / "song/vocals.flac", v, 44100), write(root / "song/no_vocals.flac", d + b + o, 44100)),
    "pairs": lambda root, v, d, b, o: (write(root / "My_vocals.wav", v, 16000), write(root / "My_accompaniment.wav", d + b + o, 44100)),
    "mir-1k": lambda root, v, d, b, o: write(root / "singer_1_01.wav", np.stack([d + b + o, v]), 16000)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stems_of_each_layout_end_up_in_their_columns(layout, tmp_path):
    stems = recordings()
    LAYOUTS[layout](tmp_path / "in", *stems.values())
    assert prep.main([str(tmp_path / "in"), "--out", str(tmp_path / "set")]) == 0
    songs = read_set(tmp_path / "set")                                     # one song: its last 3 s are for validation
    assert [song["split"] for song, _ in songs] == ["train", "val"]
    vocals, accomp = np.concatenate([pair for _, pair in songs]).T
    band = stems["drums"] + stems["bass"] + stems["other"]
    n = min(len(vocals), len(band))
    assert n > 5.9 * RATE and corr(vocals[:n], stems["vocals"][:n]) > 0.99 and corr(accomp[:n], band[:n]) > 0.99
    gains = accomp[:n].std() / band[:n].std(), vocals[:n].std() / stems["vocals"][:n].std()
    assert abs(gains[0] / gains[1] - 1) < 0.02, f"voice and band must keep their balance: {gains}"


def test_corrupt_stems_are_skipped_and_counted(tmp_path, capsys):
    for i in range(3):
        layout_musdb(tmp_path / f"in/{i}", *recordings(seed=i).values())
    (tmp_path / "in/1/song/bass.wav").write_bytes(b"RIFF but no more")
    assert prep.main([str(tmp_path / "in"), "--out", str(tmp_path / "set")]) == 0
    out, err = capsys.readouterr()
    assert "skipped: 1" in out and "bass.wav" in err
    assert sorted(song["split"] for song, _ in read_set(tmp_path / "set")) == ["train", "val"]


def test_levels_stay_finite_where_the_held_out_end_has_no_singing(tmp_path):
    stems = recordings(12)
    stems["vocals"][-int(3.5 * RATE):] = 0                                 # a rest of 3.5 s is not cut out
    layout_musdb(tmp_path / "in", *stems.values())
    assert prep.main([str(tmp_path / "in"), "--out", str(tmp_path / "set")]) == 0
    assert all(math.isfinite(song["vocals_dbfs"]) for song, _ in read_set(tmp_path / "set"))


@pytest.mark.parametrize("kind", ["nothing there", "empty folder", "lone vocals", "silent band"])
def test_prep_leaves_nothing_behind_when_nothing_is_usable(kind, tmp_path, capsys):
    (tmp_path / "in").mkdir(exist_ok=True)
    stems = recordings()
    if kind in ("lone vocals", "silent band"):
        write(tmp_path / "in/vocals.wav", stems["vocals"])
    if kind == "silent band":
        write(tmp_path / "in/no_vocals.wav", 0 * stems["other"])
    path = tmp_path / ("in" if kind != "nothing there" else "out")
    assert prep.main([str(path), "--out", str(tmp_path / "set")]) == 2
    assert "Traceback" not in capsys.readouterr().err and os.listdir(tmp_path) == ["in"]


# ----------------------------------------------------------------------------------------------------------------------
# train.py


def test_a_resumed_run_ends_with_the_same_bits(tiny_set, trained, tmp_path):
    shutil.copy(trained / "checkpoint.pt.3", tmp_path / "checkpoint.pt")
    start = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert train.main(train_args(tiny_set, tmp_path, "--steps", "6", "--every", "3", "--resume")) == 0
    whole, resumed = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (trained, tmp_path))
    assert start["step"] == 3 and whole["step"] == resumed["step"] == 6
    for part in ("model", "ema"):
        assert any(not torch.equal(start[part][name], whole[part][name]) for name in whole[part]), "nothing was learnt"
        for name, value in whole[part].items():
            close(resumed[part][name], value, 0, f"{part} {name}")
    assert FastSAG.load(trained / "checkpoint.pt", "cpu").cfg == TINY
    assert soundfile.info(trained / "sample.wav").channels == 2


def test_resuming_with_other_settings_is_refused(tiny_set, trained, capsys):
    assert train.main(train_args(tiny_set, trained, "--steps", "6", "--resume", "--seed", "1")) == 2
    assert "'seed': 0" in capsys.readouterr().err


def test_training_stops_at_nan_and_names_the_step(tiny_set, tmp_path, capsys):
    assert train.main(train_args(tiny_set, tmp_path, "--steps", "4", "--every", "4", "--lr", "1e38")) == 2
    assert "at step 2" in capsys.readouterr().err                          # step 1 still saw healthy weights
    assert not (tmp_path / "checkpoint.pt").exists()


def test_two_processes_train_as_one_would(tiny_set, tmp_path):
    lines, weights = [], []
    for count in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if count == 2 else []
        command = [sys.executable, *launch, train.__file__, *train_args(tiny_set, tmp_path / str(count), "--device", "cpu")]
        result = subprocess.run([*command, "--steps", "3", "--every", "1", "--lr", "0.03"], capture_output=True, text=True,
                                env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr
        lines.append([line.split("  norm")[0] for line in result.stdout.splitlines() if "  norm" in line])
        weights.append(torch.load(tmp_path / str(count) / "checkpoint.pt", weights_only=True)["model"])
    numbers = [torch.tensor([[float(word.strip("(),")) for word in line.split() if "." in word] for line in some]) for some in lines]
    assert numbers[0].shape == (3, 4), lines
    close(numbers[1], numbers[0], 3e-4, "printed losses, 3 steps x (sum, semantic, prior, diffusion)")
    for name, value in weights[0].items():
        assert (weights[1][name] - value).abs().mean() < 1e-4, f"{name}: {(weights[1][name] - value).abs().mean():.3g}"


def break_meta(change):
    def apply(folder):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(change(meta)))
    return apply


BROKEN_SETS = {
    "missing folder": lambda folder: shutil.rmtree(folder),
    "short train.bin": lambda folder: os.truncate(folder / "train.bin", 4000),
    "odd val.bin": lambda folder: os.truncate(folder / "val.bin", 4001),
    "empty val.bin": lambda folder: os.truncate(folder / "val.bin", 0),
    "no val.bin": lambda folder: os.remove(folder / "val.bin"),
    "half a meta.json": lambda folder: os.truncate(folder / "meta.json", 100),
    "binary meta.json": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe\x00"),
    "a list": break_meta(lambda meta: [meta]),
    "no songs": break_meta(lambda meta: {key: value for key, value in meta.items() if key != "songs"}),
    "no levels": break_meta(lambda meta: {**meta, "songs": [{k: s[k] for k in ("split", "start", "length")} for s in meta["songs"]]}),
}


@pytest.mark.parametrize("kind", BROKEN_SETS)
def test_a_broken_data_set_is_one_sentence(kind, tiny_set, tmp_path, capsys):
    shutil.copytree(tiny_set, tmp_path / "set")
    BROKEN_SETS[kind](tmp_path / "set")
    assert train.main(train_args(tmp_path / "set", tmp_path / "run", "--steps", "1")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path / "set") in err and not (tmp_path / "run").exists(), err


# ----------------------------------------------------------------------------------------------------------------------
# sample.py


def singing(seconds=1.5, rate=16000, amplitude=0.2):
    return sine(330, seconds, rate, amplitude) * (1 + sine(3, seconds, rate, 0.5)) / 1.5


def run_sample(tmp_path, checkpoint, *paths):
    return sample.main([*map(str, paths), "--out", str(tmp_path / "out"), "--checkpoint", str(checkpoint), "--steps", "2", "--device", "cpu"])


def read_png(path):
    """An 8-bit RGB PNG without filters -> (height, width, 3); checks every chunk's sum."""
    data, at, chunks = path.read_bytes(), 8, {}
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at: at + 8])
        assert struct.unpack(">I", data[at + 8 + size: at + 12 + size])[0] == zlib.crc32(data[at + 4: at + 8 + size]), kind
        chunks[kind], at = data[at + 8: at + 8 + size], at + 12 + size
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 2, 0, 0, 0] and b"IEND" in chunks
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


@pytest.mark.parametrize("amplitude", [0.2, 0.95])
def test_sample_writes_accompaniment_mix_and_picture(amplitude, tmp_path, checkpoint, capsys):
    vocals = singing(amplitude=amplitude)
    soundfile.write(tmp_path / "Die schöne Müllerin 1.wav", vocals, 16000)
    assert run_sample(tmp_path, checkpoint, tmp_path / "Die schöne Müllerin 1.wav") == 0
    assert "RTF" in capsys.readouterr().out.splitlines()[-1]
    folder = tmp_path / "out" / "Die schöne Müllerin 1"
    assert sorted(os.listdir(folder)) == ["accompaniment.wav", "mel.png", "mix.wav"]
    (accomp, rate), (mix, _) = (soundfile.read(folder / f"{name}.wav") for name in ("accompaniment", "mix"))
    sung = fastsag.resample(vocals, 16000, rate).numpy()
    assert rate == RATE and len(accomp) == len(mix) == len(sung) and 0.1 < np.abs(mix).max() < 0.995
    factors, *_ = np.linalg.lstsq(np.stack([sung, accomp], 1), mix, rcond=None)
    close(np.stack([sung, accomp], 1) @ factors, mix, 1e-3, "mix as a weighted sum")
    assert np.abs(accomp).max() > 0.98 or abs(factors[0] - factors[1]) < 0.01, factors
    picture = read_png(folder / "mel.png")
    assert picture.shape[1] > 600 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("seconds", [0.5, 9.99, 240, 7200])
def test_picture_of_any_length_has_its_labels(seconds, tmp_path):
    sample.draw(tmp_path / "some.png", [("title", torch.rand(12, 300), 0, 1, [(0, "C"), (11, "12K")])], seconds)
    picture = read_png(tmp_path / "some.png")
    assert (picture[-20:] == 210).any() and (picture[:26] == 210).any()    # seconds below, title above


BAD_INPUTS = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("la la la\n" * 50),
    "no samples": lambda path: soundfile.write(path, np.zeros(0), 16000),
    "silent": lambda path: soundfile.write(path, np.zeros(16000), 16000),
    "only an offset": lambda path: soundfile.write(path, np.full(16000, 0.3), 16000),
    "0.3 s": lambda path: soundfile.write(path, singing(0.3), 16000),
    "NaN": lambda path: soundfile.write(path, np.append(singing(), np.nan), 16000, subtype="FLOAT"),
    "overflow": lambda path: soundfile.write(path, 1e30 * singing(), 16000, subtype="FLOAT"),
    "5 Hz": lambda path: soundfile.write(path, singing(), 5),
    "half a header": lambda path: (soundfile.write(path, singing(), 16000), os.truncate(path, 30))}


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_a_bad_song_is_one_line_and_writes_nothing(kind, tmp_path, checkpoint, capsys):
    path = tmp_path / "song.wav"
    BAD_INPUTS[kind](path)
    before = sorted(os.listdir(tmp_path))
    assert run_sample(tmp_path, checkpoint, path) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(path) in err, err
    assert sorted(os.listdir(tmp_path)) == before


def test_good_songs_beside_bad_ones_and_songs_of_one_name_are_all_played(tmp_path, checkpoint, capsys):
    paths = [tmp_path / name for name in ("song-3.wav", "a/song.wav", "b/song.wav", "bad.wav")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text("no") if path.stem == "bad" else soundfile.write(path, singing(0.6), 16000)
    assert run_sample(tmp_path, checkpoint, *paths) == 2
    assert len(os.listdir(tmp_path / "out")) == 3 and "bad.wav" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--steps", "0"], ["--takes", "0"], ["--guidance", "nan"], ["--seed", "-1"],
                                    ["--device", "toaster"], ["--evaluate", "nowhere"]])
def test_bad_options_are_one_line(option, tmp_path, checkpoint, capsys):
    soundfile.write(tmp_path / "song.wav", singing(), 16000)
    vocals = [] if "--evaluate" in option else [str(tmp_path / "song.wav")]
    assert sample.main([*vocals, "--out", str(tmp_path / "out"), "--checkpoint", str(checkpoint), *option]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_evaluation_prints_its_table_with_the_ceiling_above_the_floor(tiny_set, checkpoint, capsys):
    assert sample.main(["--evaluate", str(tiny_set), "--checkpoint", str(checkpoint), "--steps", "2", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    rows = {line[:28].strip(): line[28:].split("±")[0] for line in out.splitlines() if "±" in line}
    assert "generated" in rows and float(rows["true band"]) == pytest.approx(1, abs=0.002)
    assert float(rows["true band"]) > float(rows["true, Griffin-Lim"]) > float(rows["mismatched (another song's)"]), out

"""The tests: python -m pytest -q. Three minutes on two cores, two with -m "not slow"; needs pytest besides the packages.

Correct means equal to something independent: stored librosa numbers, torch.stft, closed forms, a plain formula written
here. Where a property could hold by accident, the test also shows that a broken variant does not have it.
"""
import base64
import io
import json
import math
import multiprocessing
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn as nn

import fastsag
import prep
import sample
import train
from fastsag import Config, FastSAG, PRESETS, UserError

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or min(2, os.cpu_count()))
CFG, TINY = Config(), PRESETS["tiny"]
RATE = CFG.sample_rate
with warnings.catch_warnings():                                            # no configuration file to register the mark in
    warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
    slow = pytest.mark.slow

def close(actual, expected, atol, what=""):
    """All within atol; otherwise show how far off, and where most."""
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    off = (actual - expected).abs()
    assert off.max() <= atol, f"{what}: max difference {off.max():.3g}, mean {off.mean():.3g}, allowed {atol:g}"

noise = lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
corr = lambda a, b: np.corrcoef(np.asarray(a, float), np.asarray(b, float))[0, 1]

def sine(hz, seconds=1.0, rate=RATE, amplitude=0.5, phase=0.0):
    return (amplitude * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * rate)).double() / rate + phase)).float()

def singing(seconds=1.5, rate=16000, amplitude=0.2):
    return (sine(330, seconds, rate, amplitude) * (1 + sine(3, seconds, rate, 0.5)) / 1.5).numpy()

def music(length, hop=8192):
    """A deterministic tune of decaying tones in a little noise, (length,) samples."""
    n = torch.arange(length)
    pitch = torch.tensor([0, 7, 4, 12, 5, 9, 2, 7])[(n // hop) % 8]
    phase = torch.cumsum(440 * 2 ** (pitch.double() / 12) / RATE, 0) * 2 * math.pi
    return (0.2 * phase.sin() * torch.exp(-5 * (n % hop) / RATE)).float() + 0.002 * noise(length)

def random_model():
    """Layers that start at zero would hide what lies behind them: give every weight some noise."""
    torch.manual_seed(0)
    model = FastSAG(TINY).eval()
    model.vocoder = fastsag.Vocoder(TINY)
    model.requires_grad_(False)
    for weight in model.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    return model

# Arguments of the three scripts for something small
prep_args = lambda out, workers="2": ["--songs", "8", "--seconds", "8", "--workers", workers, "--out", str(out)]
train_args = lambda data, out, *more: ["--data", str(data), "--out", str(out), "--preset", "tiny", "--batch-size", "2",
                                       "--crop", "2.05", *more]
sample_args = lambda checkpoint, out, *more: [*map(str, more), "--out", str(out), "--checkpoint", str(checkpoint),
                                              "--steps", "2", "--device", "cpu"]

@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    random_model().save(path)
    return path

@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """Eight made songs of 8 s, two of them for validation."""
    out = tmp_path_factory.mktemp("data") / "set"
    assert prep.main(prep_args(out)) == 0
    return out

# Audio

# f = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=100), librosa 0.11.0; for row r: nz = numpy.flatnonzero(f[r]);
# (r, nz[0], nz[-1], f[r].argmax()): (f[r].max(), f[r].sum(), f[r][nz[0]])
LIBROSA_ROWS = {
    (0, 1, 2, 1): (0.0205665473, 0.0386789087, 0.0205665473), (14, 21, 23, 22): (0.0214996058, 0.0396119665, 0.0171793027),
    (50, 87, 92, 90): (0.0128076775, 0.0424453272, 0.0011888323), (99, 478, 511, 494): (0.00240738, 0.0426487, 0.0000639)}
# With wave as below in numpy float64: s = librosa.stft(numpy.pad(wave, 384, mode="reflect"), n_fft=1024, hop_length=256,
# center=False); numpy.log(numpy.maximum(f @ numpy.sqrt(s.real ** 2 + s.imag ** 2 + 1e-9), 1e-5))[bin, frame]
LIBROSA_LOG_MEL = {(0, 0): 0.57743, (0, 95): -3.45546, (10, 50): -5.48351, (20, 10): 0.35458, (48, 5): -11.51293,
                   (58, 48): -1.73544, (58, 95): -2.01949, (99, 0): -6.12367, (99, 95): -6.02101}

def test_mel_equals_librosa():
    filters = fastsag.mel_filterbank(24000, 1024, 100).double()
    close(filters.sum(), 4.264108163, 1e-5, "sum of everything")           # f.sum(dtype="float64")
    for (row, first, last, peak), values in LIBROSA_ROWS.items():
        assert filters[row].nonzero()[[0, -1], 0].tolist() == [first, last] and filters[row].argmax() == peak, f"row {row}"
        close(torch.stack([filters[row].max(), filters[row].sum(), filters[row, first]]), values, 1e-6, f"row {row}")
    t = torch.arange(24576).double() / 24000
    chirp = 0.5 * torch.exp(-3 * t) * torch.sin(2 * math.pi * (100 * t + 2500 * t ** 2))
    wave = 0.3 * torch.sin(2 * math.pi * 220 * t) + 0.2 * torch.sin(2 * math.pi * 3000 * t + 1) + chirp
    mel = fastsag.log_mel(wave.float()[None], CFG)[0]
    assert mel.shape == (100, 96)
    close(torch.stack([mel[place] for place in LIBROSA_LOG_MEL]), list(LIBROSA_LOG_MEL.values()), 1e-4, "log-mel")

@pytest.mark.parametrize("n_fft, hop", [(1024, 256), (2048, 256)])
def test_istft_inverts_stft_which_equals_torchs(n_fft, hop):
    wav, pad = noise(2, 40 * hop), (n_fft - hop) // 2
    spec, padded = fastsag.stft(wav, n_fft, hop), nn.functional.pad(wav[:, None], (pad, pad), mode="reflect")[:, 0]
    theirs = torch.stft(padded, n_fft, hop, window=torch.hann_window(n_fft), center=False, return_complex=True)
    close(torch.view_as_real(spec), torch.view_as_real(theirs), 1e-4, "stft")
    close(fastsag.istft(spec, n_fft, hop), wav, 1e-5, "istft")

@pytest.mark.parametrize("rate_in, rate_out, hz, atol", [
    (48000, 24000, 9000, 1e-3), (44100, 24000, 10000, 1e-3), (24000, 44100, 10000, 1e-3), (8000, 24000, 3000, 1e-3),
    (24000, 24000, 440, 0), (44101, 24000, 440, 1e-2), (24000, 44101, 440, 1e-2),         # odd rates may drift by 1e-6
    (48000, 24000, 15000, 5e-4), (44100, 24000, 13000, 5e-4), (44101, 24000, 13000, 5e-4), (96000, 24000, 40000, 5e-4)])
def test_resampling_keeps_a_sine_and_aliases_stay_under_60_db(rate_in, rate_out, hz, atol):
    y = fastsag.resample(sine(hz, rate=rate_in, phase=0.3)[:-7], rate_in, rate_out)
    assert y.shape == (-(-(rate_in - 7) * rate_out // rate_in),), "lengths are rounded up"
    expected = sine(hz, rate=rate_out, phase=0.3) * (hz < rate_out / 2)
    close(y[500:-500], expected[500: len(y) - 500], atol, f"{hz} Hz")

def test_active_level_ignores_silence():
    for amplitude in (0.9, 0.01):
        wav = torch.cat([torch.zeros(RATE), sine(440, amplitude=amplitude)])
        close(fastsag.active_dbfs(wav, RATE), 20 * math.log10(amplitude / math.sqrt(2)), 0.01, amplitude)
    assert fastsag.active_dbfs(0 * wav, RATE) == -math.inf

def features_of(wav):
    wav = wav[None, : len(wav) // 4096 * 4096]
    return fastsag.music_features(wav, fastsag.log_mel(wav, CFG), CFG)

@pytest.mark.parametrize("hz, part, pitch_class", [(440, 1, 9), (110, 0, 9), (261.63, 1, 0), (82.41, 0, 4), (1108.7, 1, 1)])
def test_chroma_peaks_at_the_note_that_sounds(hz, part, pitch_class):
    chroma = fastsag.chroma_of(features_of(sine(hz, 3)))[0, :, 10:-10].unflatten(0, (2, 12))             # bass, middle
    assert (chroma[part].argmax(0) == pitch_class).all(), chroma[part].mean(1)
    if part == 1:                                                          # in the bass, 341 ms reach the next band
        assert chroma[1].amax(0).min() > 0.8 > 0.2 > chroma[0].max(), (chroma[1].amax(0).min(), chroma[0].max())

def test_chroma_forgets_loudness_and_onsets_rise_at_the_clicks_only():
    loud, soft, silent = (fastsag.chroma_of(features_of(gain * music(3 * RATE))) for gain in (1, 0.3, 0))
    assert (loud - soft).abs().max() < 0.2 and (loud - soft).abs().mean() < 0.05 < loud.mean(), (loud - soft).abs().mean()
    close(silent, 0 * silent, 1e-5, "chroma of silence")
    clicks, wav = torch.tensor([20, 35, 50, 62]), torch.zeros(80 * 1024)   # clicks in feature frames of 1024 samples
    for at in clicks * 1024 + 512:
        wav[at: at + 200] = 0.5 * noise(200)
    near = (torch.arange(80)[:, None] - clicks).abs().amin(1) <= 1
    for name, row in zip(("low", "middle", "high"), features_of(wav)[0, 24:27]):
        assert row[~near].max() < -0.9, (name, row[~near].max())           # -1 is "nothing begins"
        assert all(row[at - 1: at + 2].max() > 0 for at in clicks), (name, row[clicks])

# Network

@pytest.mark.parametrize("T", [5, 8, 16, 37])
def test_local_attention_equals_plain_masked_attention(T, radius=8, heads=2, head=32):
    torch.manual_seed(0)
    layer, x = fastsag.LocalAttention(48, heads * head, radius).requires_grad_(False), noise(2, 48, T)
    normed = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    qkv = torch.einsum("oi,bit->bto", layer.qkv.weight[..., 0], normed) + layer.qkv.bias
    q, k, v = qkv.unflatten(2, (3, heads, head)).unbind(2)                 # (B, T, heads, head)
    speed = torch.tensor([10000 ** -(i / (head // 2 - 1)) for i in range(head // 2)])
    turn = torch.exp(1j * torch.arange(T)[:, None, None] * speed)          # rotary: pairs of channels are complex numbers
    q, k = (torch.complex(*z.chunk(2, -1)) * turn for z in (q, k))
    score = torch.einsum("bihc,bjhc->bhij", q, k.conj()).real / math.sqrt(head)
    far = (torch.arange(T)[:, None] - torch.arange(T)).abs() > radius
    result = torch.einsum("bhij,bjhc->bihc", score.masked_fill(far, -math.inf).softmax(-1), v).flatten(2)
    close(layer(x), x + (result @ layer.out.weight[..., 0].T + layer.out.bias).transpose(1, 2), 1e-5, f"T = {T}")

def inputs(frames):
    """x, mu (1, M, T) and expected features (1, S, T/4)."""
    return noise(1, 100, frames), 0.5 * noise(1, 100, frames, seed=1), noise(1, fastsag.N_FEATURES, frames // 4, seed=2)

def test_guidance_extrapolates_and_windows_equal_one_whole_pass():
    model, (x, mu, expected), sigma = random_model(), inputs(64), torch.tensor(0.7)
    cond, uncond = (model.denoise(x, sigma[None], keep * mu, keep * expected) for keep in (1, 0))
    assert (cond - uncond).abs().max() > 1e-2
    for guidance, result in ((1, cond), (0, uncond), (3, uncond + 3 * (cond - uncond))):
        close(model.guided(x, sigma, mu, expected, guidance), result, 1e-5, f"guidance {guidance}")
    x, mu, expected = inputs(1568)
    whole = model.guided(x, sigma, mu, expected, 1.5, window=4096)
    close(model.guided(x, sigma, mu, expected, 1.5, window=256), whole, 1e-4, "windows with the real halo")
    seam = (model.guided(x, sigma, mu, expected, 1.5, window=256, halo=0) - whole).abs().max()
    assert seam > 1e-2, f"without a halo the difference is only {seam:.3g}: this test could not fail"

def test_half_of_eight_steps_are_guided_and_none_without_guidance():
    model, passes = FastSAG(TINY).requires_grad_(False), []
    model.unet.register_forward_hook(lambda *_: passes.append(1))
    for guidance, expected in ((4, 12), (1, 8)):
        passes.clear()
        model.sample(*inputs(16)[1:], steps=8, guidance=guidance)
        assert len(passes) == expected, (guidance, len(passes))

def test_condition_moves_with_the_vocals_and_does_not_know_how_long_the_clip_is():
    # Tiny preset, in feature frames: attention 2 x 32, convolutions 2 + 4 + 2 + 4, chroma frames and resampling 5,
    # pulses 24 + 256 + 512.
    model, wav, frame = random_model(), music(2100 * 1024)[None], 1024
    whole, (begin, end), sees = model.condition(wav), (48, 48 + 4 * 500), 2 * 32 * 1 + 12 * 2 + 6 + 24 + 256 + 512
    part = model.condition(wav[:, begin * frame: end * frame])             # the same sound, 48 frames earlier
    for name, a, b, rate in zip(("expected", "mu"), whole, part, (1, 4)):
        inner = slice((begin + sees) * rate, (end - sees) * rate)
        close(b[..., sees * rate: -sees * rate], a[..., inner], 1e-4, name)
        edge = (b - a[..., begin * rate: end * rate]).abs().max()
        assert edge > 1e-2, f"{name}: even the edges differ by only {edge:.3g}: this test could not fail"

# Diffusion

@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 3.0, 80.0])
def test_preconditioning_equals_edm_table_1(sigma, sd=0.5):
    model, (_, mu, expected), seen = FastSAG(TINY).requires_grad_(False), inputs(256), []
    x, F_x = (scale * noise(1, 100, 256, seed=seed) for scale, seed in ((math.sqrt(sd ** 2 + sigma ** 2), 5), (1, 6)))
    c_skip, c_out = sd ** 2 / (sigma ** 2 + sd ** 2), sigma * sd / math.sqrt(sigma ** 2 + sd ** 2)
    model.unet.out[-1].bias.zero_()
    close(model.denoise(x, torch.tensor([sigma]), mu, expected), c_skip * x, 1e-5, "before training, F_x is 0")
    model.unet.forward = lambda *args: seen.extend(args) or F_x
    D_x = model.denoise(x, torch.tensor([sigma]), mu, expected)
    close(D_x, c_skip * x.double() + c_out * F_x.double(), 1e-5, "D_x")
    close(seen[3], [math.log(sigma) / 4], 1e-6, "c_noise")
    close(seen[0].std(), 1.0, 0.02, "standard deviation of the network's input")

def test_solver_follows_edms_noise_levels_is_second_order_and_beats_euler(s=0.5):
    """Gaussian data N(0, s^2), whose ODE has a closed form; over the paper's own range of noise levels."""
    errors, start = [], torch.tensor([1.0, -0.3], dtype=torch.float64)
    ideal = lambda x, sigma: x * s ** 2 / (s ** 2 + sigma ** 2)
    for steps in (9, 33, 65, 129):
        sigmas = fastsag.sigma_steps(steps, replace(CFG, sigma_min=0.002, sigma_max=80.0)).double()
        middle = (0.5 * 80 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7       # eq. 5
        close(sigmas[[0, steps // 2, -2, -1]], [80, middle, 0.002, 0], 1e-4, "first, middle, last two")
        true, euler = start * 80 * s / math.sqrt(s ** 2 + 80 ** 2), start * 80
        for sigma, following in zip(sigmas, sigmas[1:]):
            euler = euler + (following - sigma) * (euler - ideal(euler, sigma)) / sigma
        errors.append([(x - true).abs().max().item() for x in (fastsag.solve(ideal, 80 * start, sigmas), euler)])
    mine, eulers = zip(*errors[1:])
    assert mine[-1] < 1e-3 and all(a < b / 3 for a, b in zip(mine, eulers)), errors
    assert all(3.5 < coarse / fine < 5 for coarse, fine in zip(mine, mine[1:])), errors        # half the step, a quarter
    assert 1.8 < eulers[0] / eulers[1] < 2.2, errors                       # and the yardstick itself is first order

def test_samples_of_two_point_data_land_on_the_points():
    points = noise(2, 100, 16)

    def ideal(x, sigma):
        distance = (x[:, None] - points).square().sum((2, 3))
        return torch.einsum("bp,pmt->bmt", (-distance / (2 * sigma ** 2)).softmax(1), points)

    sigmas = fastsag.sigma_steps(16, replace(CFG, sigma_max=80.0))
    samples = fastsag.solve(ideal, 80 * noise(32, 100, 16, seed=1), sigmas)
    off = (samples[:, None] - points).abs().amax((2, 3))                   # (32, 2)
    assert off.amin(1).max() < 1e-3 and set(off.argmin(1).tolist()) == {0, 1}, off

def test_one_pair_can_be_learnt_by_heart(frames=64):
    torch.manual_seed(0)
    model = FastSAG(replace(TINY, channels=(48, 32, 32), cond_drop=0.0, input_drop=0.0))
    vocals = music(frames * 256)[None]
    accomp = (music(frames * 256, 4096).roll(2000) + sine(110, frames * 256 / RATE, amplitude=0.1))[None]
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=4e-3), torch.Generator().manual_seed(0)
    probe = model.draw(16, frames, torch.Generator().manual_seed(7))       # the same noise before and after

    def losses(draw):
        result = model(*(wav.expand(len(draw["sigma"]), -1) for wav in (vocals, accomp)), draw)
        return torch.stack([result[name].mean() for name in ("semantic", "prior", "diffusion")])

    before = losses(probe).detach()
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 120)
        optimizer.zero_grad()
        losses(model.draw(4, frames, generator)).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        share = losses(probe) / before
        assert (share < torch.tensor([0.1, 0.1, 0.85])).all(), f"what is left of semantic, prior, diffusion: {share}"
        true, (expected, mu) = model.analyse(accomp)[0], model.condition(vocals)
        noisy, sigma = true + 5 * noise(*mu.shape), torch.tensor([5.0])    # the mel is buried in noise
        error, wrong = ((model.denoise(noisy, sigma, *condition) - true).square().mean().sqrt()
                        for condition in ((mu, expected), (mu.flip(2), expected.flip(2))))
    assert error < 0.55 * true.std() and error < 0.8 * wrong, (error, wrong, true.std())

# Sound

def test_griffin_lim_rebuilds_a_mel_and_the_vocoder_works_in_pieces_without_a_seam():
    mel = fastsag.log_mel((music(600 * 256, 6000) + sine(220, 600 * 256 / RATE, amplitude=0.1))[None], CFG)
    off = [(fastsag.log_mel(fastsag.griffin_lim(mel, CFG, iterations=n), CFG) - mel).abs().mean() for n in (0, 32)]
    assert off[1] < 0.55 and off[1] < 0.6 * off[0], f"log-mel L1: {off[0]:.3f} with random phases, then {off[1]:.3f}"
    vocoder = random_model().vocoder
    close(vocoder.long(mel, piece=256), vocoder(mel), 1e-4, "pieces")
    seam = (vocoder.long(mel, piece=256, halo=0) - vocoder(mel)).abs().max()
    assert seam > 1e-2, f"without a halo the difference is only {seam:.3g}: this test could not fail"

def test_match_mel_keeps_what_is_right_and_corrects_what_is_wrong():
    wav = music(100 * 256)[None]
    mel, spec = fastsag.log_mel(wav, CFG), fastsag.stft(wav, CFG.n_fft, CFG.hop_length)
    kept = torch.view_as_real(fastsag.match_mel(spec, mel, CFG) - spec)[:, 1:512]              # no band sees bins 0 and 512
    close(kept, 0 * kept, 1e-2, "what was right already")
    wrong = spec * torch.exp(noise(1, 513, 1))                             # each bin too loud or too soft
    off = lambda x: ((fastsag.mel_filterbank(24000, 1024, 100) @ x.abs()).clamp(min=1e-5).log() - mel).abs().mean()
    assert off(fastsag.match_mel(wrong, mel, CFG)) < 0.3 * off(wrong)
    close(fastsag.stft_distance(100 * wav, 200 * wav), torch.full((3,), math.log(2)), 0.05, "distance of a louder copy")

@pytest.mark.parametrize("rate", [16000, 44100])
def test_loaded_weights_play_what_the_seed_says_as_long_and_as_loud_as_the_voice(rate, checkpoint, tmp_path):
    model, vocals = FastSAG.load(checkpoint, "cpu"), singing(1, rate)
    one, again, other = (model.accompany(vocals, rate, steps=2, seed=seed) for seed in (3, 3, 4))
    assert one.shape == (rate,) and one.dtype == np.float32 and np.isfinite(one).all()
    assert (one == again).all() and np.abs(one - other).max() > 1e-3
    close(fastsag.active_dbfs(one, rate), fastsag.active_dbfs(vocals, rate), 3.0, "level")     # at 16 kHz the highs are lost
    model.save(tmp_path / "again.pt")
    again, original = FastSAG.load(tmp_path / "again.pt", "cpu"), random_model().state_dict()
    for name, value in model.state_dict().items():                         # half precision, rounded once only
        close(again.state_dict()[name], value, 0, name)
        close(original[name], value, 2e-3, name)

# Checkpoints

class Evil:
    __reduce__ = lambda self: (os.mkdir, ("trap",))

def test_a_bad_checkpoint_is_one_sentence_and_runs_no_code(tmp_path, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good, bad = torch.load(checkpoint, weights_only=True), Path("some.pt")
    for sentence, content in (
            ("cannot be read", b""), ("cannot be read", checkpoint.read_bytes()[:-2000]), ("cannot be read", b"\x80\x02ab"),
            ("cannot be read", pickle.dumps(Evil(), 2)), ("cannot be read", {**good, "config": Evil()}),
            ('no "config"', {"state_dict": good["ema"]}), ("Missing key", {**good, "ema": {}}),
            ("size mismatch", {**good, "config": asdict(replace(TINY, dim=64))}),
            ("argument 'wings'", {**good, "config": {**good["config"], "wings": 2}}),
            ("another version", {**good, "config": {**good["config"], "channels": ()}})):
        bad.write_bytes(content) if isinstance(content, bytes) else torch.save(content, bad)
        with pytest.raises(UserError, match=f"^.*some.pt.*{sentence}.*(give|train) .*$"):
            FastSAG.load(bad, "cpu")
        assert not os.path.exists("trap"), "loading a checkpoint ran its code"
    with pytest.raises(UserError, match="elsewhere.pt does not exist; give"):
        FastSAG.load("elsewhere.pt")

# prep.py

def read_set(folder):
    meta = json.loads((folder / "meta.json").read_text())
    bins = {split: np.fromfile(folder / f"{split}.bin", np.int16).reshape(-1, 2) for split in ("train", "val")}
    return [(song, bins[song["split"]][song["start"]: song["start"] + song["length"]] / 32768) for song in meta["songs"]]

def test_demo_songs_keep_their_promises(tiny_set):
    songs = read_set(tiny_set)
    for key in ("voice", "band"):
        cast = {split: {song[key] for song, _ in songs if song["split"] == split} for split in ("train", "val")}
        assert all(cast.values()) and not cast["train"] & cast["val"], (key, cast)
    for song, pair in songs:
        assert len(pair) == 8 * RATE and np.abs(pair).max() < 1, song["name"]
        hiss = np.diff(pair, 4, axis=0).T                                  # what remains is mostly noise
        for lag in (0, 1, 2, 100):
            assert abs(corr(hiss[0][lag:], hiss[1][: len(hiss[1]) - lag])) < 0.1, (song["name"], lag)
        for name, column in zip(("vocals", "accomp"), pair.T):
            close(song[f"{name}_dbfs"], fastsag.active_dbfs(column, RATE), 0.02, name)
    first = [song["beats"][0] * song["tempo"] / 60 for song, _ in songs]   # in beats: anywhere from 0 to 1
    assert max(first) - min(first) > 0.4, first

STEMS = {                                                                  # file: its channels; "-" is silence
    "musdb18": {"a/vocals.wav": "v v", "a/drums.wav": "d d", "a/bass.wav": "b", "a/other.wav": "o o", "a/mixture.wav": "- -"},
    "mixture": {"a/vocals.wav": "v", "a/mixture.wav": "vdbo"},
    "demucs": {"a/vocals.flac": "v", "a/no_vocals.flac": "dbo", "b/vocals.wav": "v", "b/no_vocals.wav": ""},
    "pairs": {"My_vocals.wav": "v", "My_accompaniment.wav": "dbo"},
    "mir-1k": {"singer_1_01.wav": "dbo v"},
    "no files": {}, "lone vocals": {"vocals.wav": "v"}, "silent band": {"vocals.wav": "v", "no_vocals.wav": "-"}}

@pytest.mark.parametrize("kind", STEMS)
def test_stems_end_up_in_their_columns_or_nothing_is_left_behind(kind, tmp_path, capsys):
    t = np.arange(12 * RATE) / RATE                                        # a voice and players who have nothing in common
    stems = {part: 0.1 * np.sin(2 * np.pi * hz * t + 30 * np.sin((1 + i / 3) * t)) * (1.2 + np.sin(5 * t + i))
             for i, (part, hz) in enumerate(dict(v=440, d=1500, b=90, o=700).items())}
    stems["v"][-int(3.5 * RATE):] = 0                                      # a rest that is too short to be cut out
    (tmp_path / "in").mkdir()
    for (name, channels), rate in zip(STEMS[kind].items(), (44100, 16000, 48000, 22050, 24000)):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        wav = [sum(stems.get(part, 0 * t) for part in parts) for parts in channels.split()] or [0 * t[:1]]
        wav = fastsag.resample(torch.tensor(np.array(wav)), RATE, rate).T
        soundfile.write(tmp_path / "in" / name, wav, rate if channels else 5)            # a rate that is no audio
    status = prep.main([str(tmp_path / "in"), "--out", str(tmp_path / "set")])
    out, err = capsys.readouterr()
    if kind in ("no files", "lone vocals", "silent band"):
        assert status == 2 and "Traceback" not in err and os.listdir(tmp_path) == ["in"]
        return
    assert status == 0 and ("skipped: 1" in out and "b/no_vocals.wav" in err) == (kind == "demucs"), (out, err)
    songs = read_set(tmp_path / "set")                                     # one song: its last 3 s are for validation
    assert [song["split"] for song, _ in songs] == ["train", "val"] and math.isfinite(songs[1][0]["vocals_dbfs"])
    vocals, accomp = np.concatenate([pair for _, pair in songs]).T
    n, band = min(len(t), len(vocals)), stems["d"] + stems["b"] + stems["o"]
    assert n > 11.9 * RATE and corr(vocals[:n], stems["v"][:n]) > 0.99 and corr(accomp[:n], band[:n]) > 0.99
    gains = accomp[:n].std() / band[:n].std(), vocals[:n].std() / stems["v"][:n].std()
    assert abs(gains[0] / gains[1] - 1) < 0.02, f"voice and band must keep their balance: {gains}"

@pytest.mark.parametrize("file, change", [                                 # None: take it away
    ("train.bin", lambda data: data[:4000]), ("val.bin", lambda data: data[:4001]), ("val.bin", lambda data: b""),
    ("val.bin", None), ("meta.json", None), ("meta.json", lambda data: data[:100]), ("meta.json", lambda data: b"\xff\xfe\0"),
    ("meta.json", lambda data: b"[1]"), ("meta.json", lambda data: data.replace(b'"songs"', b'"sings"')),
    ("meta.json", lambda data: data.replace(b'"format": ', b'"format": 99')),
    ("meta.json", lambda data: data.replace(b'"vocals_dbfs"', b'"vocals"')),
    ("meta.json", lambda data: data.replace(b'"accomp_dbfs": ', b'"accomp_dbfs": -Infinity, "": ')),
    ("meta.json", lambda data: data.replace(b'"length": ', b'"length": 9'))])
def test_a_broken_data_set_is_one_sentence_before_the_first_step(file, change, tiny_set, tmp_path, capsys):
    shutil.copytree(tiny_set, tmp_path / "set")
    data = (tmp_path / "set" / file).read_bytes()
    (tmp_path / "set" / file).write_bytes(change(data)) if change else (tmp_path / "set" / file).unlink()
    assert train.main(train_args(tmp_path / "set", tmp_path / "run", "--steps", "1")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path / "set") in err and not (tmp_path / "run").exists(), err

# train.py

def test_training_stops_at_nan_and_resumes_only_what_it_can(tiny_set, tmp_path, capsys):
    args, path = train_args(tiny_set, tmp_path, "--steps", "4", "--every", "4"), tmp_path / "checkpoint.pt"
    assert train.main([*args, "--lr", "1e38"]) == 2
    assert "at step 2" in capsys.readouterr().err and not path.exists()    # step 1 still saw healthy weights
    assert train.main(args) == 0
    assert FastSAG.load(path, "cpu").cfg == TINY and soundfile.info(tmp_path / "sample.wav").channels == 2
    good = fastsag.load_checkpoint(path)
    for sentence, more, change in (("'seed': 0", ["--seed", "1"], {}), ("Missing key", [], dict(ema={})),
                                   ("another version", [], dict(optimizer={}))):
        fastsag.save_checkpoint({**good, **change}, path)
        assert train.main([*args, "--resume", *more]) == 2
        err = capsys.readouterr().err
        assert sentence in err and err.count("\n") == 1, err

def test_a_vocoder_learns_on_top_of_a_model_and_resumes_with_the_same_bits(tiny_set, checkpoint, tmp_path, monkeypatch):
    save, path, copy = train.save_checkpoint, tmp_path / "checkpoint.pt", tmp_path / "step4.pt"

    def save_and_keep(state, path):
        save(state, path)
        if state["step"] == 4:                                             # from here on with judges
            shutil.copy(path, copy)

    monkeypatch.setattr(train, "save_checkpoint", save_and_keep)
    args = train_args(tiny_set, tmp_path, "--vocoder", "--steps", "6", "--every", "2", "--accumulate", "2", "--crop", "0.68")
    assert train.main([*args, "--start", str(checkpoint)]) == 0
    before, whole = FastSAG.load(checkpoint, "cpu").state_dict(), FastSAG.load(path, "cpu").state_dict()
    shutil.copy(copy, path)
    assert train.main([*args, "--resume"]) == 0
    resumed = FastSAG.load(path, "cpu").state_dict()
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
        assert torch.equal(weight, before[name]) != name.startswith("vocoder."), name

def test_bent_crops_move_voice_and_band_by_the_same_interval():
    songs = train.Songs.__new__(train.Songs)
    pair = torch.stack([sine(440, 4), sine(880, 4)], 1).numpy()
    songs.songs, songs.share = [(None, np.int16(pair * 32767), np.float32([1 / 32767] * 2))], np.ones(1)
    peak = lambda wavs: torch.fft.rfft(wavs * torch.hann_window(wavs.shape[1])).abs().argmax(1) * RATE / wavs.shape[1]
    voice, band = (peak(wavs) for wavs in songs.crops(np.random.default_rng(0), 8, 49152, bend=0.06))
    close(band / voice, torch.full((8,), 2.0), 0.005, "an octave stays an octave")
    assert 410 < voice.min() < 430 and 450 < voice.max() < 470, voice
    close(peak(songs.crops(np.random.default_rng(0), 8, 49152)[0]), torch.full((8,), 440.0), 0.5, "without bending")

def test_two_processes_train_as_one_would(tiny_set, tmp_path):
    numbers, weights = [], []
    for count, launch in ((1, []), (2, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"])):
        command = [sys.executable, *launch, train.__file__, *train_args(tiny_set, tmp_path / str(count), "--device", "cpu")]
        result = subprocess.run([*command, "--steps", "20", "--every", "4"], capture_output=True, text=True,
                                env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr
        lines = [line.split("  norm")[0] for line in result.stdout.splitlines() if "  norm" in line]
        numbers.append(torch.tensor([[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines]))
        weights.append(torch.load(tmp_path / str(count) / "checkpoint.pt", weights_only=True)["model"])
    assert numbers[0].shape == (5, 4), numbers
    close(numbers[1], numbers[0], 1.01e-4, "printed losses, 3 steps x (sum, semantic, prior, diffusion)")
    for name, value in weights[0].items():
        assert (weights[1][name] - value).abs().mean() < 1e-4, f"{name}: {(weights[1][name] - value).abs().mean():.3g}"

# Kills, Ctrl-C, full disks

def in_child(main, args, log, disk):
    """A script in this process: prints to `log`, no file may outgrow `disk` bytes, a save takes long enough to be hit."""
    def save_slowly(checkpoint, file):
        save(checkpoint, whole := io.BytesIO())
        for part in (whole.getvalue()[:99999], whole.getvalue()[99999:]):
            file.write(part)
            file.flush()
            time.sleep(0.1)

    sys.stdout = sys.stderr = open(log, "a", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)               # ignored where tests run in the background
    resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
    torch.set_num_threads(1)
    save, torch.save = torch.save, save_slowly
    train.validate, train.listen = lambda *_: {}, lambda *_: np.zeros((9, 2))
    sys.exit(main(args))

def start(main, args, log, condition=lambda: True, disk=10 ** 9):
    """A child that runs main(args), once the condition holds. The fork server imports torch once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_fastsag"])
    log.touch()
    child, end = context.Process(target=in_child, args=(main, args, log, disk)), time.time() + 120
    child.start()
    while child.is_alive() and not condition():
        assert time.time() < end, log.read_text()
        time.sleep(0.002)
    return child

def printed(log):
    """The steps that a training run has printed so far: [(step, losses)]."""
    return re.findall(r"step +(\d+)  loss (.*?)  norm", log.read_text())

@slow
def test_twenty_kills_lose_at_most_one_save_interval_and_change_no_bit(tiny_set, tmp_path, steps=40):
    rng, (whole, killed) = np.random.default_rng(0), (tmp_path / "whole", tmp_path / "killed")
    args = {out: train_args(tiny_set, out, "--steps", str(steps), "--every", "1") for out in (whole, killed)}
    logs, path = {out: out.with_suffix(".txt") for out in args}, killed / "checkpoint.pt"
    logs[killed].touch()
    for _ in range(20):
        lines = len(printed(logs[killed])) + rng.integers(0, 3)
        resume = ["--resume"] * path.exists()
        child = start(train.main, args[killed] + resume, logs[killed], lambda: len(printed(logs[killed])) >= lines)
        time.sleep(rng.uniform(0, 0.4))
        child.kill()
        child.join()
        seen = max((int(step) for step, _ in printed(logs[killed])), default=0)    # a step is printed, then saved
        saved = fastsag.load_checkpoint(path)["step"] if path.exists() else 0
        assert saved >= seen - 1, f"{saved} steps are saved, {seen} were printed"
    assert 5 < saved < steps, "the kills came too early or too late to mean anything"
    for out, more in ((whole, []), (killed, ["--resume"])):
        child = start(train.main, args[out] + more, logs[out])
        child.join()
        assert child.exitcode == 0, logs[out].read_text()
    assert len(printed(logs[whole])) == steps and set(printed(logs[whole])) == set(printed(logs[killed]))
    one, other = (fastsag.load_checkpoint(out / "checkpoint.pt") for out in args)
    for part, name in ((part, name) for part in ("model", "ema") for name in one[part]):
        close(other[part][name], one[part][name], 0, f"{part} {name}")

@pytest.mark.parametrize("script, how", [("prep", "INT"), ("prep", "KILL"), ("prep", "full disk"), ("train", "INT"),
                                         ("train", "full disk"), ("sample", "INT"), ("sample", "full disk")])
def test_an_interrupted_script_says_so_and_leaves_nothing_half_written(script, how, tiny_set, checkpoint, tmp_path):
    out, song, log = tmp_path / "out", tmp_path / "song.wav", tmp_path / "log.txt"
    soundfile.write(song, singing(), 16000)
    main, args, sign = {                                                   # sign: a file that shows that it is at work
        "prep": (prep.main, prep_args(out, "1"), tmp_path / "out.partial"),
        "train": (train.main, train_args(tiny_set, out, "--steps", "99", "--every", "1"), out / "checkpoint.pt"),
        "sample": (sample.main, sample_args(checkpoint, out, song, "--takes", 99), out / "song/mel.png")}[script]
    if how == "full disk":
        child, status, last = start(main, args, log, disk=30000), 2, f"{script}.py: .* cannot be written .*"
    else:
        child, status, last = start(main, args, log, sign.exists), 130, f"{script}.py: stopped.*"
        time.sleep(0.1)
        os.kill(child.pid, signal.Signals[f"SIG{how}"])
    child.join()
    left = [path.name for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".partial")]
    assert how == "KILL" or child.exitcode == status and re.fullmatch(last, log.read_text().splitlines()[-1]) and not left
    assert how != "full disk" or not [path for path in out.rglob("*") if path.is_file()]
    if how == "KILL":                                                      # and the next time the same bytes come out
        assert not out.exists() and main(args) == 0
        for name in prep.Dataset.FILES:                                    # by one worker; tiny_set was made by two
            assert (out / name).read_bytes() == (tiny_set / name).read_bytes(), name

# sample.py

VOICES = {                                                                 # rate, channels, subtype, what is done to it
    "telephone.wav": (8000, 1, "PCM_U8", lambda wav: wav), "eight.wav": (96000, 8, "DOUBLE", lambda wav: wav),
    "studio.wav": (192000, 2, "PCM_32", lambda wav: wav), "-Süße 🎤 x.flac": (44100, 2, "PCM_24", lambda wav: wav),
    "a.aiff": (22050, 1, "PCM_S8", lambda wav: wav), "b.ogg": (48000, 2, "VORBIS", lambda wav: wav),
    "c.mp3": (44100, 1, "MPEG_LAYER_III", lambda wav: wav), "clipped.wav": (16000, 1, "PCM_16", lambda wav: 6 * wav),
    "offset.wav": (16000, 1, "PCM_16", lambda wav: wav + 0.5), "loud.wav": (16000, 1, "FLOAT", lambda wav: 1e5 * wav),
    "inaudible.wav": (16000, 1, "FLOAT", lambda wav: 1e-5 * wav)}
BAD_SONGS = {                                                              # the sentence, and how to get there
    "missing": ("cannot be opened", lambda path: None), "folder": ("cannot be opened", lambda path: path.mkdir()),
    "text": ("cannot be read as audio", lambda path: path.write_text("la la la\n" * 50)),
    "no samples": ("no samples", lambda path: soundfile.write(path, np.zeros(0), 16000)),
    "silent": ("is silent", lambda path: soundfile.write(path, np.zeros(16000), 16000)),
    "only an offset": ("is silent", lambda path: soundfile.write(path, np.full(16000, 0.3), 16000)),
    "0.1 s": ("0.10 s long", lambda path: soundfile.write(path, singing(0.1), 16000)),
    "5 hours": ("longer than 4 hours", lambda path: soundfile.write(path, np.zeros(18000000), 1000, format="FLAC")),
    "NaN": ("1 samples", lambda path: soundfile.write(path, np.append(singing(), np.nan), 16000, subtype="FLOAT")),
    "infinity": ("beyond 1e10", lambda path: soundfile.write(path, 1e30 * singing(), 16000, subtype="FLOAT")),
    "5 Hz": ("between 1 and 768 kHz", lambda path: soundfile.write(path, singing(), 5))}

@pytest.mark.parametrize("name", VOICES)
def test_a_voice_is_heard_whatever_the_file(name, tmp_path, capsys):
    rate, channels, subtype, change = VOICES[name]
    soundfile.write(tmp_path / name, np.stack([change(singing(1, rate))] * channels, 1), rate, subtype=subtype)
    wav, rate_read = sample.read_vocals(str(tmp_path / name))
    assert rate_read == rate and wav.shape == (rate,) and abs(wav.mean()) < 1e-3 * wav.abs().max()
    assert corr(wav, singing(1, rate)) > (0.9 if name == "clipped.wav" else 0.98)
    said = capsys.readouterr().out
    assert ("gained up" in said) == (name == "inaudible.wav") and (not said or fastsag.active_dbfs(wav, rate) > -20.1)

@pytest.mark.parametrize("kind", BAD_SONGS)
def test_a_bad_song_is_one_line_and_writes_nothing(kind, tmp_path, checkpoint, capsys):
    path, (sentence, spoil) = tmp_path / "song.wav", BAD_SONGS[kind]
    spoil(path)
    assert sample.main(sample_args(checkpoint, tmp_path / "out", path)) == 2
    assert re.fullmatch(f"sample.py: .*song.wav.*{sentence}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()

def test_damaged_files_are_heard_or_refused_in_one_line(tmp_path):
    rng, refused, kinds = np.random.default_rng(0), 0, ("wav", "flac", "ogg", "mp3", "aiff")
    for kind in kinds:
        soundfile.write(tmp_path / f"whole.{kind}", singing(1), 16000)
        whole, path = (tmp_path / f"whole.{kind}").read_bytes(), tmp_path / f"damaged.{kind}"
        for trial in range(60):
            data = bytearray(whole[: rng.integers(len(whole))] if trial < 30 else whole)
            for place in rng.integers(min(200, len(data) + 1), size=20 * (trial >= 30)):
                data[place] = rng.integers(256)
            path.write_bytes(data if trial < 50 else whole[:rng.integers(40)] + rng.bytes(2000))
            try:
                assert torch.isfinite(sample.read_vocals(path)[0]).all()
            except UserError as problem:
                refused += "\n" not in str(problem)
    assert 60 < refused < 60 * len(kinds)

def read_png(path):
    """An 8-bit RGB PNG of one data chunk and without filters -> (height, width, 3)."""
    data = Path(path).read_bytes()
    width, height, *kind = struct.unpack(">IIBBBBB", data[16:29])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and kind == [8, 2, 0, 0, 0] and data[-8:-4] == b"IEND"
    for begin, end in ((12, 29), (37, len(data) - 16)):                    # the sums of IHDR and IDAT
        assert struct.unpack(">I", data[end: end + 4])[0] == zlib.crc32(data[begin:end])
    rows = np.frombuffer(zlib.decompress(data[41:-16]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)

def test_every_good_song_is_played_and_each_take_tells_how_to_make_it_again(tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(checkpoint, "tiny.pt")
    Path("a").mkdir()
    songs = {"song.wav": (16000, 0.2, "song"), "bad.wav": None, "a/song.wav": (48000, 0.95, "song-2")}
    for path, song in songs.items():
        soundfile.write(path, singing(1.5, *song[:2]) if song else [], 16000 if not song else song[0])
    assert sample.main(sample_args("tiny.pt", "out", *songs, "--takes", 2, "--seed", 5, "--page")) == 2
    out, err = capsys.readouterr()
    assert "RTF" in out.splitlines()[-1] and re.fullmatch("sample.py: bad.wav.*\n", err)
    Path("2 h.png").write_bytes(sample.draw([("title", torch.rand(12, 300), 0, 1, [(0, "C"), (11, "12K")])], 7200))
    assert (read_png("2 h.png")[-20:] == 210).any() and (read_png("2 h.png")[:26] == 210).any()         # seconds, title
    sounds = re.findall('"data:audio/flac;base64,(.*?)"', Path("out/index.html").read_text())
    assert sorted(os.listdir("out")) == ["index.html", "song", "song-2"] and len(sounds) == 4
    for (rate, amplitude, folder), sound in zip((song for song in songs.values() if song), sounds[1::2]):
        (accomp, rate_out), (mix, _) = (soundfile.read(f"out/{folder}/{part}-2.wav") for part in ("accompaniment", "mix"))
        sung = fastsag.resample(torch.from_numpy(singing(1.5, rate, amplitude)), rate, rate_out).numpy()
        assert rate_out == max(rate, RATE) and len(accomp) == len(mix) == len(sung) and 0.1 < np.abs(mix).max() < 0.995
        factors, *_ = np.linalg.lstsq(np.stack([sung, accomp], 1), mix, rcond=None)
        close(np.stack([sung, accomp], 1) @ factors, mix, 1e-3, "mix as a weighted sum")
        assert np.abs(accomp).max() > 0.98 or abs(factors[0] - factors[1]) < 0.01, factors
        picture = read_png(f"out/{folder}/mel-2.png")
        assert picture.shape[1] > 600 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
        pair, rate_page = soundfile.read(io.BytesIO(base64.b64decode(sound)))
        assert rate_page == RATE and corr(pair.sum(1), mix[:: rate_out // RATE]) > 0.99
    with soundfile.SoundFile("out/song/mix-2.wav") as file:
        command = shlex.split(file.comment)
    assert command[:2] == ["python", "sample.py"] and sample.main([*command[2:], "--out", "again", "--device", "cpu"]) == 0
    for name in ("accompaniment.wav", "mix.wav", "mel.png"):
        assert Path("again/song", name).read_bytes() == Path("out/song", name.replace(".", "-2.")).read_bytes(), name
    page = Path("out/index.html").read_bytes()
    assert sample.main(sample_args("tiny.pt", "out", *songs, "--takes", 2, "--seed", 5, "--page")) == 2
    assert page == Path("out/index.html").read_bytes() and not re.search(rb'(src|href)="(?!data:)|https?:', page)

@pytest.mark.parametrize("main, options", [
    (sample.main, ["--steps", "0"]), (sample.main, ["--takes", "0"]), (sample.main, ["--guidance", "nan"]),
    (sample.main, ["--seed", "-1"]), (sample.main, ["--device", "toaster"]), (sample.main, ["--evaluate", "nowhere"]),
    (sample.main, ["--out", "song.wav"]), (prep.main, ["--songs", "1000000000"]), (train.main, ["--data", "."])])
def test_what_cannot_be_done_is_one_line(main, options, tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("song.wav", singing(), 16000)
    args = sample_args(checkpoint, "out", "song.wav") if main is sample.main and "--evaluate" not in options else []
    assert main([*args, *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and os.listdir() == ["song.wav"]

def test_evaluation_prints_its_table_with_the_ceiling_above_the_floor(tiny_set, checkpoint, capsys):
    assert sample.main(sample_args(checkpoint, "out", "--evaluate", tiny_set)) == 0
    out = capsys.readouterr().out
    rows = {line[:28].strip(): line[28:].split("±")[0] for line in out.splitlines() if "±" in line}
    assert "generated" in rows and float(rows["true band"]) == pytest.approx(1, abs=0.002)
    assert float(rows["true band"]) > float(rows["true band's mel"]) > float(rows["mismatched (another song's)"]), out

def test_a_script_starts_without_standard_input_or_umlauts_on_the_terminal(tmp_path, checkpoint):
    soundfile.write(tmp_path / "-ü 🎤.wav", singing(), 16000)              # nor is this file an option
    command = shlex.join([sys.executable, sample.__file__, *sample_args(checkpoint, "out", "-ü 🎤.wav")])
    result = subprocess.run(f"{command} <&-", shell=True, cwd=tmp_path, capture_output=True, text=True,
                            env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "") and len(os.listdir(tmp_path / "out/-ü 🎤")) == 3

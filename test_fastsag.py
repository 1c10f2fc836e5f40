"""The tests: python -m pytest -q. Three minutes on two cores, two with -m "not slow"; needs pytest besides the packages.
Correct means equal to something independent: stored librosa numbers, torch.stft, closed forms, a plain formula written
here. Where a property could hold by accident, the test also shows that a broken variant is `apart`.
"""
import base64
import io
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
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

import fastsag
import prep
import sample
import train
from fastsag import Config, FastSAG, PRESETS, UserError

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or min(2, os.cpu_count()))
warnings.filterwarnings("ignore", "Unknown pytest.mark.slow")             # no configuration file to register the mark in
CFG, TINY, RATE = Config(), PRESETS["tiny"], Config.sample_rate

def close(actual, expected, atol, what=""):
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")

def apart(broken, right):                                                  # so that `close` could have failed
    assert (broken - right).abs().max() > 1e-2

def refusal(main, args, capsys):
    """What a script says, in one line, when it cannot do what it is asked for."""
    status, said = main(args), capsys.readouterr().err
    assert status == 2 and re.fullmatch(r"\w+\.py: .+\n", said), said
    return said

noise = lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
corr = lambda a, b: np.corrcoef(np.asarray(a, float), np.asarray(b, float))[0, 1]
printed = lambda text: re.findall(r"step +(\d+)  loss (.*?)  norm", text)    # by a training run: [(step, losses)]
weights = lambda path: torch.cat([weight.flatten() for weights in fastsag.load_checkpoint(path).values()
                                  if isinstance(weights, dict) for weight in weights.values() if torch.is_tensor(weight)])
# Arguments of the three scripts for something small
prep_args = lambda out, workers=2: f"--songs 8 --seconds 8 --out {out} --workers {workers}".split()       # 2 to validate
train_args = lambda files, out, more: (
    f"--preset tiny --batch-size 2 --crop 2.05 --data {files}/set --out {out} {more}".split())
sample_args = lambda files, *more: [*f"--steps 2 --device cpu --checkpoint {files}/tiny.pt".split(), *map(str, more)]

sine = lambda hz, seconds=1.0, rate=RATE, amplitude=0.5, phase=0.0: (
    amplitude * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * rate)).double() / rate + phase)).float()
singing = lambda seconds=1.5, rate=16000: sine(330, seconds, rate, 0.2) * (1 + sine(3, seconds, rate)) / 1.5
inputs = lambda frames: (noise(1, 100, frames), 0.5 * noise(1, 100, frames, seed=1),           # x and mu (1, M, T),
                         noise(1, fastsag.N_FEATURES, frames // 4, seed=2))                    # what to play (1, S, T/4)

def music(length, hop=8192):
    """A deterministic tune of decaying tones in a little noise, (length,) samples."""
    n = torch.arange(length)
    phase = 2 * math.pi * torch.cumsum(440 * 2 ** (n // hop * 7 % 12 / 12).double() / RATE, 0)
    return (0.2 * phase.sin() * torch.exp(-5 * (n % hop) / RATE)).float() + 0.002 * noise(length)

def random_model():
    """Layers that start at zero would hide what lies behind them: give every weight some noise."""
    torch.manual_seed(0)
    model = FastSAG(TINY).eval()
    model.vocoder = fastsag.Vocoder(TINY)
    for weight in model.requires_grad_(False).parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    return model

@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with weights, a song and a data set, to read or to copy."""
    folder = tmp_path_factory.mktemp("files")
    random_model().save(folder / "tiny.pt")
    soundfile.write(folder / "song.wav", singing(), 16000)
    assert prep.main(prep_args(folder / "set")) == 0
    return folder

# librosa 0.11.0, wave as below in numpy float64: f = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=100); s =
# librosa.stft(numpy.pad(wave, 384, mode="reflect"), n_fft=1024, hop_length=256, center=False); numpy.log(numpy.maximum(
# f @ numpy.sqrt(s.real ** 2 + s.imag ** 2 + 1e-9), 1e-5))[band, frame]; the sum is f.sum(dtype="float64")
LIBROSA = {(0, 0): 0.82809, (1, 0): 0.51166, (10, 2): 0.76694, (20, 5): 0.67889, (35, 9): 0.45932, (48, 0): -5.11448,
           (48, 15): 0.31723, (58, 22): 0.04596, (70, 33): -0.44076, (85, 57): -1.33664, (99, 93): -2.80287,
           (10, 95): -3.50275, (99, 95): -3.60655, (90, 3): -11.51293}

def test_mel_equals_librosa_and_istft_inverts_stft(wav=noise(2, 40 * 256)):
    close(fastsag.mel_filterbank(24000, 1024, 100).double().sum(), 4.264108163, 1e-5, "sum of all filters")
    t = torch.arange(24576).double() / 24000
    sweep = 0.5 * torch.exp(-3 * t) * torch.sin(2 * math.pi * (30 * t + 5800 * t ** 2))
    mel = fastsag.log_mel((0.3 * torch.sin(2 * math.pi * 220 * t) + sweep).float()[None], CFG)[0]
    assert mel.shape == (100, 96)
    close(torch.stack([mel[place] for place in LIBROSA]), list(LIBROSA.values()), 3e-5, "log-mel")
    close(fastsag.istft(fastsag.stft(wav, 1024, 256), 1024, 256), wav, 1e-5, "istft")

@pytest.mark.parametrize("rate_in, rate_out, hz, atol", [                  # a rate like 44101 may drift by 1e-6
    (44100, 24000, 10000, 1e-3), (24000, 44101, 440, 1e-2), (44101, 24000, 13000, 5e-4), (96000, 24000, 40000, 5e-4)])
def test_resampling_keeps_a_sine_and_aliases_stay_under_60_db(rate_in, rate_out, hz, atol):
    y = fastsag.resample(sine(hz, rate=rate_in, phase=0.3)[:-7], rate_in, rate_out)
    assert y.shape == (-(-(rate_in - 7) * rate_out // rate_in),), "lengths are rounded up"
    close(y[500:-500], sine(hz, rate=rate_out, phase=0.3)[500: len(y) - 500] * (hz < rate_out / 2), atol, f"{hz} Hz")

def test_chroma_peaks_at_the_note_that_sounds_and_onsets_rise_at_the_clicks_only():
    features_of = lambda wav: fastsag.music_features(wav[None], fastsag.log_mel(wav[None], CFG), CFG)
    for hz, part, pitch_class in ((440, 1, 9), (110, 0, 9), (261.63, 1, 0), (82.41, 0, 4), (1108.7, 1, 1)):
        chroma = fastsag.chroma_of(features_of(sine(hz, 2.56)))[0, :, 10:-10].unflatten(0, (2, 12))      # bass, middle
        assert (chroma[part].argmax(0) == pitch_class).all(), chroma[part].mean(1)
        if part == 1:                                                      # in the bass, 341 ms reach the next band
            assert chroma[1].amax(0).min() > 0.8 > 0.2 > chroma[0].max(), (chroma[1].amax(0).min(), chroma[0].max())
    clicks, wav = torch.tensor([20, 35, 50, 62]), torch.zeros(80, 1024)    # clicks in feature frames of 1024 samples
    wav[clicks, 512:712] = 0.5 * noise(200)
    near = (torch.arange(80)[:, None] - clicks).abs().amin(1) <= 1
    for row in features_of(wav.flatten())[0, 24:27]:                       # low, middle, high
        assert row[~near].max() < -0.9 and all(row[at - 1: at + 2].max() > 0 for at in clicks), row      # -1: nothing begins

@pytest.mark.parametrize("per_minute, found", [(80, 80), (66.7, 66.7), (150, 75), (200, 100)])
def test_beat_is_found_and_the_bar_is_folded_onto_it(per_minute, found, beats=4, N=1200):
    frame_rate, time = RATE / 1024, torch.arange(N)
    strike = lambda every, late=0: torch.exp(-(((time - late + every / 2) % every - every / 2) / 0.7).square())
    beat = 60 * frame_rate / per_minute                                    # frames
    onsets = strike(beat, 5) + 0.4 * strike(beat, 5 + beat / 2) + 0.05 * noise(N).abs()
    period = fastsag.find_beat(torch.stack([onsets, onsets.flip(0)]), CFG)
    close(60 * frame_rate / period, torch.full((2, N), found), 0.003 * found, "beats per minute")
    tracks, at = torch.stack([onsets, strike(beats * beat, 9)])[None], 600                  # beats, downbeats
    away = torch.arange(beats * 8) / 8 - beats / 2
    rows = fastsag.fold(tracks, torch.full((1, N), beat), beats, away)[0, :, :, at]
    for row, track in zip(rows, tracks[0]):                                # plainly, one place after the other
        for share, value in zip(away[3::7], row[3::7]):
            places = at + beat * (share + beats * torch.arange(-30, 31)).numpy()
            hann = np.where(abs(places - at) < 512, np.cos(np.pi / 2 * (places - at) / 512) ** 2, 0)
            mean = (np.interp(places, time, track) * hann).sum() / hann.sum()
            close(value, mean, 2e-3, f"{share:.3f} beats away")
    assert rows[1].max() > 20 * rows[1].median().clamp(min=1e-3), rows[1]

@pytest.mark.parametrize("T", [5, 8, 16, 37])
def test_local_attention_equals_plain_masked_attention(T, radius=8, heads=2, head=32):
    torch.manual_seed(0)
    layer, x = fastsag.LocalAttention(48, heads * head, radius).requires_grad_(False), noise(2, 48, T)
    normed = x / (x.square().mean(1, keepdim=True).sqrt() + 1e-3)
    qkv = torch.einsum("oi,bit->bto", layer.qkv.weight[..., 0], normed) + layer.qkv.bias
    q, k, v = qkv.unflatten(2, (3, heads, head)).unbind(2)                 # (B, T, heads, head)
    speed = torch.tensor([10000 ** -(i / (head // 2 - 1)) for i in range(head // 2)])
    turn = torch.exp(1j * torch.arange(T)[:, None, None] * speed)          # rotary: pairs of channels are complex numbers
    q, k = (torch.complex(*z.chunk(2, -1)) * turn for z in (q, k))
    score = torch.einsum("bihc,bjhc->bhij", q, k.conj()).real / math.sqrt(head)
    far = (torch.arange(T)[:, None] - torch.arange(T)).abs() > radius
    result = torch.einsum("bhij,bjhc->bihc", score.masked_fill(far, -math.inf).softmax(-1), v).flatten(2)
    close(layer(x), x + (result @ layer.out.weight[..., 0].T + layer.out.bias).transpose(1, 2), 1e-5, f"T = {T}")

def test_guidance_extrapolates_on_half_of_the_steps_and_windows_equal_one_whole_pass():
    model, (x, mu, expected), sigma, passes = random_model(), inputs(1568), torch.tensor(0.7), []
    guided = lambda guidance=1.5, **how: model.guided(x, sigma, mu, expected, guidance, **how)
    cond, uncond = (model.denoise(x, sigma[None], keep * mu, keep * expected) for keep in (1, 0))
    apart(cond, uncond)
    for guidance, result in ((1, cond), (0, uncond), (3, uncond + 3 * (cond - uncond))):
        close(guided(guidance), result, 1e-5, f"guidance {guidance}")
    close(guided(window=256), guided(), 1e-4, "windows of the U-Net")
    apart(guided(window=256, halo=0), guided())
    model.unet.register_forward_hook(lambda *_: passes.append(1))
    model.sample(mu, expected, steps=8, guidance=4)
    assert len(passes) == 8 + 4

def test_condition_does_not_know_how_long_the_clip_is(begin=64, frames=2400):
    # Feature frames that the tiny preset sees: attention, convolutions, chroma and resampling, beat
    model, wav, sees = random_model(), music(2500 * 1024)[None], 32 + 2 * (2 + 4 + 2 + 4) + 6 + 24 + 512 + 15 * 32 + 32
    part = model.condition(wav[:, begin * 1024: (begin + frames) * 1024])  # the same sound, 64 frames earlier
    for name, a, b, rate in zip(("expected", "mu"), model.condition(wav), part, (1, 4)):
        a, inner = a[..., begin * rate: (begin + frames) * rate], slice(sees * rate, -sees * rate)
        close(b[..., inner], a[..., inner], 1e-4, name)
        apart(b, a)                                                        # at the edges

@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_preconditioning_equals_edm_table_1(sigma, sd=0.5):
    model, (_, mu, expected), seen = FastSAG(TINY).requires_grad_(False), inputs(256), []
    x, F_x = math.sqrt(sd ** 2 + sigma ** 2) * noise(1, 100, 256, seed=5), noise(1, 100, 256, seed=6)
    c_skip, c_out = sd ** 2 / (sigma ** 2 + sd ** 2), sigma * sd / math.sqrt(sigma ** 2 + sd ** 2)
    close(model.denoise(x, torch.tensor([sigma]), mu, expected), c_skip * x, 1e-5, "before training, F_x is 0")
    model.unet.forward = lambda *args: seen.extend(args) or F_x
    close(model.denoise(x, torch.tensor([sigma]), mu, expected), c_skip * x.double() + c_out * F_x.double(), 1e-5, "D_x")
    close(seen[3], [math.log(sigma) / 4], 1e-6, "c_noise")
    close(seen[0].std(), 1.0, 0.02, "standard deviation of the network's input")

def test_solver_follows_edms_noise_levels_and_is_second_order(s=0.5):
    """Gaussian data N(0, s^2), whose ODE has a closed form; over the paper's own range of noise levels."""
    errors, start = [], torch.tensor([80.0, -24.0], dtype=torch.float64)
    for steps in (33, 65, 129):
        sigmas = fastsag.sigma_steps(steps, replace(CFG, sigma_min=0.002, sigma_max=80.0)).double()
        middle = (0.5 * 80 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7       # eq. 5
        close(sigmas[[0, steps // 2, -2, -1]], [80, middle, 0.002, 0], 1e-4, "first, middle, last two")
        x = fastsag.solve(lambda x, sigma: x * s ** 2 / (s ** 2 + sigma ** 2), start, sigmas)
        errors.append((x - start * s / math.sqrt(s ** 2 + 80 ** 2)).abs().max().item())
    assert errors[-1] < 1e-3, errors
    assert all(3.5 < coarse / fine < 5 for coarse, fine in zip(errors, errors[1:])), errors    # half the step, a quarter

def test_one_pair_can_be_learnt_by_heart(frames=64):
    torch.manual_seed(0)
    model = FastSAG(replace(TINY, channels=(48, 32, 32), cond_drop=0.0, input_drop=0.0))
    vocals = music(frames * 256)[None]
    accomp = music(frames * 256, 3000).roll(2000)[None] + sine(110, frames * 256 / RATE, amplitude=0.1)
    clips, generator = (vocals.expand(4, -1), accomp.expand(4, -1)), torch.Generator().manual_seed(0)
    losses = lambda: torch.stack([loss.mean() for loss in model(*clips, model.draw(4, frames, generator)).values()])
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 120)
        optimizer.zero_grad()
        losses().sum().backward()
        optimizer.step()
    left = torch.stack([losses().detach() for _ in range(4)]).mean(0)      # of about 1.7, 1.7, 0.8 before training
    assert (left < torch.tensor([0.17, 0.16, 0.66])).all(), left
    true, (expected, mu) = fastsag.normalise(fastsag.log_mel(accomp, TINY), TINY), model.condition(vocals)
    noisy, sigma = true + 5 * noise(*mu.shape), torch.tensor([5.0])        # the mel is buried in noise
    error, wrong = ((model.denoise(noisy, sigma, *condition) - true).square().mean().sqrt()
                    for condition in ((mu, expected), (mu.flip(2), expected.flip(2))))
    assert error < 0.55 * true.std() and error < 0.8 * wrong, (error, wrong, true.std())

def test_griffin_lim_rebuilds_a_mel_match_mel_corrects_one_and_vocoder_pieces_have_no_seam():
    wav, vocoder = (music(600 * 256, 6000) + sine(220, 6.4, amplitude=0.1))[None], random_model().vocoder
    mel, spec = fastsag.log_mel(wav, CFG), fastsag.stft(wav, CFG.n_fft, CFG.hop_length)
    off = [(fastsag.log_mel(fastsag.griffin_lim(mel, CFG, iterations=n), CFG) - mel).abs().mean() for n in (0, 32)]
    assert off[1] < 0.55 and off[1] < 0.6 * off[0], f"log-mel L1: {off[0]:.3f} with random phases, then {off[1]:.3f}"
    kept = torch.view_as_real(fastsag.match_mel(spec, mel, CFG) - spec)[:, 1:512]              # no band sees bins 0 and 512
    close(kept, 0 * kept, 1e-2, "what was right already")
    wrong = spec * torch.exp(noise(1, 513, 1))                             # each bin too loud or too soft
    off = lambda x: ((fastsag.mel_filterbank(24000, 1024, 100) @ x.abs()).clamp(min=1e-5).log() - mel).abs().mean()
    assert off(fastsag.match_mel(wrong, mel, CFG)) < 0.3 * off(wrong)
    close(vocoder.long(mel, piece=256), vocoder(mel), 1e-4, "pieces")
    apart(vocoder.long(mel, piece=256, halo=0), vocoder(mel))

@pytest.mark.parametrize("rate", [16000, 44100])
def test_loaded_weights_play_what_the_seed_says_as_long_and_as_loud_as_the_voice(rate, files, tmp_path):
    model, vocals = FastSAG.load(files / "tiny.pt", "cpu"), torch.cat([torch.zeros(rate), singing(1, rate)])
    one, again, other = (torch.from_numpy(model.accompany(vocals, rate, steps=2, seed=seed)) for seed in (3, 3, 4))
    close(one, again, 0, "the same seed")
    apart(one, other)
    assert one.shape == vocals.shape and one.dtype == torch.float32
    close(fastsag.active_dbfs(vocals, rate), 10 * math.log10(vocals[rate:].square().mean()), 0.01, "active")
    close(fastsag.active_dbfs(one, rate), fastsag.active_dbfs(vocals, rate), 3.0, "level")     # at 16 kHz the highs are lost
    model.save(tmp_path / "again.pt")
    close(weights(tmp_path / "again.pt"), weights(files / "tiny.pt"), 0, "half precision, rounded once only")
    for name, value in random_model().state_dict().items():
        close(model.state_dict()[name], value, 2e-3, name)

def test_demo_songs_keep_their_promises(files):
    known, new = (prep.read_set(files / "set", split) for split in ("train", "val"))
    for key in ("voice", "band"):
        cast = [{song[key] for song, *_ in songs} for songs in (known, new)]
        assert all(cast) and not cast[0] & cast[1], (key, cast)
    for song, pair, _ in known + new:
        pair = pair / 32768
        assert len(pair) == 8 * RATE and np.abs(pair).max() < 1, song["name"]
        hiss = np.diff(pair, 4, axis=0).T                                  # what remains is mostly noise
        for lag in (0, 1, 2, 100):
            assert abs(corr(hiss[0][lag:], hiss[1][: len(hiss[1]) - lag])) < 0.1, (song["name"], lag)
        for name, column in zip(("vocals", "accomp"), pair.T):
            close(song[f"{name}_dbfs"], fastsag.active_dbfs(column, RATE), 0.02, name)
    assert np.ptp([song["beats"][0] * song["tempo"] / 60 for song, *_ in known + new]) > 0.4, "first beats, from 0 to 1"

@pytest.mark.parametrize("wavs, skipped", [                                # file: its channels; "-" is silence
    ({"a/vocals.wav": "v v", "a/drums.wav": "d d", "a/bass.wav": "b", "a/other.wav": "o o", "a/mixture.wav": "-"}, ""),
    ({"a/vocals.wav": "v", "a/mixture.wav": "vdbo"}, ""), ({"singer_1_01.wav": "dbo v"}, ""),
    ({"a/vocals.flac": "v", "a/no_vocals.flac": "dbo", "b/vocals.wav": "v", "b/no_vocals.wav": "-"}, "b/vocals.wav: no 3 s"),
    ({"My_vocals.wav": "v", "My_accompaniment.wav": "dbo", "Your_vocals.wav": "v"}, "Your_vocals.wav: no accompaniment")])
def test_stems_end_up_in_their_columns_and_useless_ones_are_skipped(wavs, skipped, tmp_path, capsys):
    t = torch.arange(12 * RATE) / RATE                                     # a voice and players who have nothing in common
    stems = {part: 0.1 * torch.sin(2 * math.pi * hz * t + 30 * torch.sin((1 + i / 3) * t)) * (1.2 + torch.sin(5 * t + i))
             for i, (part, hz) in enumerate(dict(v=440, d=1500, b=90, o=700).items())} | {"-": 0 * t}
    stems["v"][-int(3.5 * RATE):] = 0                                      # a rest that is too short to be cut out
    wavs = {**wavs, "z/vocals.wav": "v", "z/no_vocals.wav": "dbo"}         # one song more, for one is for validation
    for (name, channels), rate in zip(wavs.items(), (44100, 16000, 48000, 22050, 24000, 44100, 32000)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        wav = torch.stack([sum(stems[part] for part in parts) for parts in channels.split()])
        soundfile.write(tmp_path / "in" / name, fastsag.resample(wav, RATE, rate).T, rate)
    assert prep.main([str(tmp_path / "in"), "--out", str(tmp_path / "set")]) == 0
    err = capsys.readouterr().err
    assert skipped in err and err.count("skipped") == bool(skipped), err
    expected = torch.stack([stems["v"], stems["d"] + stems["b"] + stems["o"]], 1).numpy()
    songs = [song for split in ("train", "val") for song in prep.read_set(tmp_path / "set", split)]
    assert len(songs) == 2
    for song, pair, _ in songs:                                            # one gain for both columns
        error = (pair / pair.std() - expected[: len(pair)] / expected.std()).std(0) / (expected.std(0) / expected.std())
        assert len(pair) > 11.9 * RATE and (error < 0.02).all(), f"{song['name']}: voice and band are off by {error}"

def test_training_stops_at_nan_and_resumes_only_what_it_can(files, tmp_path, capsys):
    args, path = train_args(files, tmp_path, "--steps 4 --every 4"), tmp_path / "checkpoint.pt"
    assert "at step 2" in refusal(train.main, [*args, "--lr", "1e38"], capsys) and not path.exists()     # step 1 was healthy
    assert train.main(args) == 0 and FastSAG.load(path, "cpu").cfg == TINY and soundfile.info(tmp_path / "sample.wav")
    assert "'seed': 0" in refusal(train.main, [*args, "--resume", "--seed", "1"], capsys)
    fastsag.save_checkpoint(fastsag.load_checkpoint(path) | {"optimizer": {}}, path)
    assert "another version" in refusal(train.main, [*args, "--resume"], capsys)

def test_a_vocoder_learns_on_top_of_a_model_and_resumes_with_the_same_bits(files, tmp_path, monkeypatch):
    save, path = fastsag.save_checkpoint, tmp_path / "checkpoint.pt"       # here every save stays
    monkeypatch.setattr(train, "save_checkpoint", lambda state, at: save(state, f"{at}{state['step']}") or save(state, at))
    args = train_args(files, tmp_path, "--vocoder --steps 6 --every 2 --accumulate 2 --crop 0.68")
    assert train.main([*args, "--start", f"{files}/tiny.pt"]) == 0
    before, whole = FastSAG.load(files / "tiny.pt", "cpu").state_dict(), weights(path)
    for name, weight in FastSAG.load(path, "cpu").state_dict().items():
        assert torch.equal(weight, before[name]) != name.startswith("vocoder."), name
    os.replace(f"{path}4", path)                                           # from step 4 on with judges
    assert train.main([*args, "--resume"]) == 0
    close(weights(path), whole, 0, "weights of vocoder and judges")

def test_bent_crops_move_voice_and_band_by_the_same_interval():
    songs = [(None, torch.stack([sine(440, 4), sine(880, 4)], 1).numpy(), 1)]
    peak = lambda wavs: torch.fft.rfft(wavs * torch.hann_window(wavs.shape[1])).abs().argmax(1) * RATE / wavs.shape[1]
    voice, band = (peak(wavs) for wavs in train.random_crops(songs, np.random.default_rng(0), 8, 49152, bend=0.06))
    close(band / voice, torch.full((8,), 2.0), 0.005, "an octave stays an octave")
    assert 410 < voice.min() < 430 and 450 < voice.max() < 470, voice
    straight, _ = train.random_crops(songs, np.random.default_rng(0), 8, 49152)
    close(peak(straight), torch.full((8,), 440.0), 0.5, "without bending")

def test_two_processes_train_as_one_would(files, tmp_path):
    numbers, outs = [], (tmp_path / "one", tmp_path / "two")               # an address: no name to look up may fail
    for out, launch in zip(outs, ("", "-m torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node=2")):
        args = train_args(files, out, "--device cpu --float32 --steps 20 --every 4")
        result = subprocess.run([sys.executable, *launch.split(), train.__file__, *args], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        numbers.append(torch.tensor([float(number) for number in re.findall(r"\d+\.\d+", str(printed(result.stdout)))]))
    assert len(numbers[0]) == 5 * 4, numbers                               # steps x (sum, semantic, prior, diffusion)
    close(numbers[1], numbers[0], 1.01e-4, "printed losses")
    close(*(weights(out / "checkpoint.pt") for out in outs), 1e-4, "weights")

def in_child(main, args, log, disk):
    """A script in this process: prints to `log`, no file may outgrow `disk` bytes, training does nothing but train."""
    sys.stdout = sys.stderr = open(log, "a", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)               # ignored where tests run in the background
    resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
    torch.set_num_threads(1)
    train.validate, train.listen = lambda *_: {}, lambda *_: np.zeros((9, 2))
    sys.exit(main(args))

def run(main, args, log, hit=None, when=None, disk=10 ** 9):
    """main(args) in a child, hit by a signal when it is time -> exit status. The fork server imports torch once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_fastsag"])
    child = context.Process(target=in_child, args=(main, args, log, disk))
    child.start()
    while hit and child.is_alive() and not when():
        time.sleep(0.001)
    if hit and child.is_alive():
        os.kill(child.pid, hit)
    child.join()
    return child.exitcode

@pytest.mark.slow
def test_twenty_kills_lose_at_most_one_save_interval_and_change_no_bit(files, tmp_path, steps=40):
    rng, log, (whole, killed) = np.random.default_rng(0), tmp_path / "log.txt", (tmp_path / "whole", tmp_path / "killed")
    path, args = killed / "checkpoint.pt", lambda out: train_args(files, out, f"--float32 --steps {steps} --every 1")
    seen = lambda: [int(step) for step, _ in printed(log.read_text())] if log.exists() else []
    for number in range(20):                                               # half of the kills hit while a file is written
        enough = len(seen()) + rng.integers(0, 3)
        when = lambda: len(seen()) >= enough and (any(killed.glob("*.tmp")) if number % 2 else rng.random() < 0.01)
        run(train.main, args(killed) + ["--resume"] * path.exists(), log, signal.SIGKILL, when)
        saved = fastsag.load_checkpoint(path)["step"] if path.exists() else 0
        assert saved >= max(seen(), default=0) - 1, "a step is printed, then saved"
    assert 5 < saved < steps, "the kills came too early or too late to mean anything"
    assert run(train.main, args(whole), log) == run(train.main, args(killed) + ["--resume"], log) == 0, log.read_text()
    close(weights(path), weights(whole / "checkpoint.pt"), 0, "weights")

@pytest.mark.parametrize("script, hit", [                                  # None: by a full disk
    ("prep", signal.SIGINT), ("prep", signal.SIGKILL), ("prep", None), ("train", signal.SIGINT), ("train", None),
    ("sample", signal.SIGINT), ("sample", None)])
def test_an_interrupted_script_says_so_and_leaves_nothing_half_written(script, hit, files, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.txt"
    main, args, sign = {                                                   # sign: a file that shows that it is at work
        "prep": (prep.main, prep_args(out, 1), tmp_path / "out.partial"),
        "train": (train.main, train_args(files, out, "--steps 99 --every 1"), out / "checkpoint.pt"),
        "sample": (sample.main, sample_args(files, f"{files}/song.wav", "--takes", 99, "--out", out), out / "song/mel.png")
    }[script]
    status = run(main, args, log, hit, lambda: sign.exists() and not time.sleep(0.1), 10 ** 9 if hit else 30000)
    left = [path for path in out.rglob("*") if path.is_file()]
    if hit == signal.SIGKILL:                                              # the next time the same bytes come out, from one
        assert not left and main(args) == 0                                # worker; the set in `files` was made by two
        assert all((out / name).read_bytes() == (files / "set" / name).read_bytes() for name in prep.FILES)
    else:
        sentence = f"{script}.py: stopped.*" if hit else f"{script}.py: .* cannot be written .*"
        assert status == (130 if hit else 2) and re.fullmatch(sentence, log.read_text().splitlines()[-1]), log.read_text()
        assert (hit or not left) and not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".partial")]

@pytest.mark.parametrize("name, rate, channels, subtype, gain, offset", [
    ("telephone.wav", 8000, 1, "PCM_U8", 1, 0), ("eight.wav", 96000, 8, "DOUBLE", 1, 0),
    ("studio.wav", 192000, 2, "PCM_32", 1, 0), ("-Süße 🎤 x.flac", 44100, 2, "PCM_24", 1, 0),
    ("a.aiff", 22050, 1, "PCM_S8", 1, 0), ("b.ogg", 48000, 2, "VORBIS", 1, 0), ("c.mp3", 44100, 1, "MPEG_LAYER_III", 1, 0),
    ("clipped.wav", 16000, 1, "PCM_16", 6, 0), ("offset.wav", 16000, 1, "PCM_16", 1, 0.5),
    ("loud.wav", 16000, 1, "FLOAT", 1e5, 0), ("inaudible.wav", 16000, 1, "FLOAT", 1e-5, 0)])
def test_a_voice_is_heard_whatever_the_file(name, rate, channels, subtype, gain, offset, tmp_path, capsys):
    soundfile.write(tmp_path / name, np.stack([gain * singing(1, rate) + offset] * channels, 1), rate, subtype=subtype)
    wav, rate_read = sample.read_vocals(str(tmp_path / name))
    assert rate_read == rate and wav.shape == (rate,) and abs(wav.mean()) < 1e-3 * wav.abs().max()
    assert corr(wav, singing(1, rate)) > (0.9 if name == "clipped.wav" else 0.98)
    said = capsys.readouterr().out
    assert ("gained up" in said) == (name == "inaudible.wav") and (not said or fastsag.active_dbfs(wav, rate) > -20.1)

song = lambda wav, rate=16000: lambda: soundfile.write("song.wav", wav, rate, subtype="FLOAT")
cut = lambda path, size: lambda: os.truncate(path, size)
meta = lambda old, new: lambda: Path("set/meta.json").write_text(Path("set/meta.json").read_text().replace(old, new))
model = lambda **change: lambda: torch.save({**torch.load("tiny.pt", weights_only=True), **change}, "tiny.pt")
config = lambda **change: model(config=asdict(TINY) | change)
evil = type("Evil", (), dict(__reduce__=lambda self: (os.mkdir, ("trap",))))()             # what it makes when it is loaded

@pytest.mark.parametrize("command, sentence, spoil", [("sample song.wav", *row) for row in (
    ("no samples", song([])), ("is silent", song(np.zeros(16000))), ("is silent", song(np.full(16000, 0.3))),
    ("0.10 s long", song(singing(0.1))), ("1 samples", song([math.nan] + [0.1] * 9000)), ("1e10", song(1e30 * singing())),
    ("768 kHz", song(singing(), 5)), ("4 hours", song(np.zeros(15000000), 1000)), ("read as audio", cut("song.wav", 20)),
    ("cannot be read", cut("tiny.pt", 0)), ("cannot be read", cut("tiny.pt", 9999)), ("cannot be read", config(dim=evil)),
    ("Missing key", model(ema={})), ('no "config"', lambda: torch.save({}, "tiny.pt")), ("size mismatch", config(dim=64)),
    ("argument 'wings'", config(wings=2)), ("another version", config(channels=()))
)] + [("train --data set", "not a whole data set", spoil) for spoil in (
    cut("set/train.bin", 4000), cut("set/val.bin", 4001), cut("set/val.bin", 0), cut("set/meta.json", 100),
    meta('"songs"', '"sings"'), meta('"songs": [', '"songs": 7, "": ['), meta('"format": ', '"format": 99'),
    meta('"accomp_dbfs": ', '"accomp_dbfs": -Infinity, "": '), meta('"length": ', '"length": 9')
)] + [(command, "", lambda: None) for command in (
    "sample song.wav --steps 0", "sample song.wav --takes 0", "sample song.wav --guidance nan", "sample song.wav --seed -1",
    "sample song.wav --device toaster", "sample song.wav --out song.wav", "sample song.wav --checkpoint missing.pt",
    "sample missing.wav", "sample --evaluate nowhere", "prep --songs 1000000000", "prep set --out new",
    "train --data .")])
def test_a_refusal_is_one_line(command, sentence, spoil, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(shutil.copytree(files, tmp_path, dirs_exist_ok=True))
    spoil()
    script, *options = command.split()
    args = sample_args(".", *options) if script == "sample" else options
    assert sentence in refusal(dict(sample=sample, prep=prep, train=train)[script].main, args, capsys)
    assert sorted(os.listdir()) == ["set", "song.wav", "tiny.pt"]

def test_damaged_files_are_heard_or_refused_in_one_line(tmp_path):
    rng, refused, kinds = np.random.default_rng(0), 0, ("wav", "flac", "ogg", "mp3", "aiff")
    for kind in 20 * kinds:
        path = tmp_path / f"song.{kind}"
        soundfile.write(path, singing(1), 16000)
        whole = path.read_bytes()
        header = bytes(byte if rng.random() < 0.9 else rng.integers(256) for byte in whole[:200])
        for data in (whole[: rng.integers(len(whole))], header + whole[200:], whole[: rng.integers(40)] + rng.bytes(2000)):
            path.write_bytes(data)
            try:
                assert torch.isfinite(sample.read_vocals(path)[0]).all()
            except UserError as problem:
                refused += "\n" not in str(problem)
    assert 60 < refused < 60 * len(kinds)

def test_every_good_song_is_played_and_each_take_tells_how_to_make_it_again(files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(shutil.copytree(files, tmp_path, dirs_exist_ok=True))
    Path("a").mkdir()
    songs = {"song.wav": (16000, 1, "song"), "a/song.wav": (48000, 4.7, "song-2")}
    for path, (rate, gain, _) in songs.items():
        soundfile.write(path, gain * singing(1.5, rate), rate)
    assert sample.main(sample_args(".", "missing.wav", *songs, "--takes", 2, "--seed", 5, "--page")) == 2
    out, err = capsys.readouterr()
    assert "RTF" in out.splitlines()[-1] and re.fullmatch("sample.py: missing.wav.*\n", err)
    page = Path("out/index.html").read_text()
    assert not re.search('(src|href)="(?!data:)|https?:', page), "the page needs something from elsewhere"
    sounds = re.findall('"data:audio/flac;base64,(.*?)"', page)
    assert sorted(os.listdir("out")) == ["index.html", "song", "song-2"] and len(sounds) == 4
    for (rate, gain, folder), sound in zip(songs.values(), sounds[1::2]):
        (accomp, rate_out), (mix, _) = (soundfile.read(f"out/{folder}/{part}-2.wav") for part in ("accompaniment", "mix"))
        sung = fastsag.resample(gain * singing(1.5, rate), rate, rate_out).numpy()
        assert rate_out == max(rate, RATE) and len(accomp) == len(mix) == len(sung) and 0.1 < np.abs(mix).max() < 0.995
        factors, *_ = np.linalg.lstsq(np.stack([sung, accomp], 1), mix, rcond=None)
        close(np.stack([sung, accomp], 1) @ factors, mix, 1e-3, "mix as a weighted sum")
        assert np.abs(accomp).max() > 0.98 or abs(factors[0] - factors[1]) < 0.01, factors
        png, number = Path(f"out/{folder}/mel-2.png").read_bytes(), lambda at: int.from_bytes(png[at: at + 4], "big")
        assert png[:4] == b"\x89PNG" and len(zlib.decompress(png[41:-16])) == number(20) * (1 + 3 * number(16))
        assert all(zlib.crc32(png[a:b]) == number(b) for a, b in ((12, 29), (37, len(png) - 16))), "checksums"
        pair, rate_page = soundfile.read(io.BytesIO(base64.b64decode(sound)))
        assert rate_page == RATE and corr(pair.sum(1), mix[:: rate_out // RATE]) > 0.99
    command = soundfile.SoundFile("out/song/mix-2.wav").comment.split()
    assert command[:2] == ["python", "sample.py"] and sample.main([*command[2:], "--out", "again", "--device", "cpu"]) == 0
    for name in ("accompaniment.wav", "mix.wav", "mel.png"):
        assert Path("again/song", name).read_bytes() == Path("out/song", name.replace(".", "-2.")).read_bytes(), name

def test_evaluation_prints_its_table_with_the_ceiling_above_the_floor(files, capsys):
    assert sample.main(sample_args(files, "--evaluate", files / "set")) == 0
    out = capsys.readouterr().out
    rows = {line[:28].strip(): line[28:].split("±")[0] for line in out.splitlines() if "±" in line}
    assert "generated" in rows and float(rows["true band"]) == pytest.approx(1, abs=0.002)
    assert float(rows["true band"]) > float(rows["true band's mel"]) > float(rows["mismatched (another song's)"]), out

def test_a_script_starts_without_standard_input_or_umlauts_on_the_terminal(files, tmp_path):
    soundfile.write(tmp_path / "-ü 🎤.wav", singing(), 16000)              # nor is this file an option
    command = ["env", "PYTHONIOENCODING=ascii", sys.executable, sample.__file__, *sample_args(files, "-ü 🎤.wav")]
    result = subprocess.run(command, cwd=tmp_path, preexec_fn=lambda: os.close(0), capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"") and len(os.listdir(tmp_path / "out/-ü 🎤")) == 3

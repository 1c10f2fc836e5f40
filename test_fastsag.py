"""The tests: python -m pytest -q. A minute or two on two cores, less with -m "not slow"; needs pytest besides the packages.
Right is what equals something independent: stored librosa numbers, torch, closed forms, a plain formula in here."""
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
import urllib.request
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
warnings.filterwarnings("ignore", "Unknown pytest.mark.slow")             # no configuration file to register it in
CFG, TINY, RATE = Config(), PRESETS["tiny"], Config.sample_rate

def close(actual, expected, atol, what=""):
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")

noise = lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
corr = lambda a, b: np.corrcoef(np.asarray(a, float), np.asarray(b, float))[0, 1]
weights = lambda path: torch.cat([weight.flatten() for part in fastsag.load_checkpoint(path).values()
                                  if isinstance(part, dict) for weight in part.values() if torch.is_tensor(weight)])
prep_args = lambda out, workers=2: f"--songs 8 --seconds 8 --out {out} --workers {workers}".split()
train_args = lambda files, out, more="--device cpu --float32 --steps 20 --every 20": (
    f"--preset tiny --batch-size 2 --crop 2.05 --data {files}/set --out {out} {more}".split())
sample_args = lambda files, *more: [*f"--steps 2 --device cpu --checkpoint {files}/tiny.pt".split(), *map(str, more)]

sine = lambda hz, seconds=1.0, rate=RATE, amplitude=0.5, phase=0.0: (
    amplitude * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * rate)).double() / rate + phase)).float()
singing = lambda seconds=1.5, rate=16000: sine(330, seconds, rate, 0.2) * (1 + sine(3, seconds, rate)) / 1.5
inputs = lambda frames: (noise(1, 100, frames), noise(1, 100, frames, seed=1) / 2, noise(1, 28, frames // 4, seed=2))

def music(length, hop=8192, hz=440):
    """A tune of tones a fifth apart (in one octave) that begin suddenly and die away, (length,) samples."""
    n = torch.arange(length)
    phase = 2 * math.pi * torch.cumsum(hz * 2 ** (n // hop * 7 % 12 / 12).double() / RATE, 0)
    return (0.2 * phase.sin() * torch.exp(-5 * (n % hop) / RATE)).float()

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
    """A folder with weights, a song, a data set and a training run, to read or to copy."""
    folder = tmp_path_factory.mktemp("files")
    random_model().save(folder / "tiny.pt")
    soundfile.write(folder / "song.wav", singing(), 16000)
    assert prep.main(prep_args(folder / "set")) == train.main(train_args(folder, folder / "run")) == 0
    return folder

# librosa 0.11.0, wave as below in numpy float64: f = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=100); s =
# librosa.stft(numpy.pad(wave, 384, mode="reflect"), n_fft=1024, hop_length=256, center=False); numpy.log(numpy.maximum(
# f @ numpy.sqrt(s.real ** 2 + s.imag ** 2 + 1e-9), 1e-5))[band, frame]
LIBROSA = {(0, 0): 0.82809, (10, 2): 0.76694, (20, 5): 0.67889, (48, 15): 0.31723, (58, 22): 0.04596,
           (90, 3): -11.51293, (70, 33): -0.44076, (10, 95): -3.50275, (99, 95): -3.60655, (99, 93): -2.80287}

def test_mel_equals_librosa_and_istft_inverts_stft(wav=noise(2, 40 * 256)):
    t = torch.arange(24576).double() / 24000
    sweep = 0.5 * torch.exp(-3 * t) * torch.sin(2 * math.pi * (30 * t + 5800 * t ** 2))
    mel = fastsag.log_mel((0.3 * torch.sin(2 * math.pi * 220 * t) + sweep).float()[None], CFG)[0]
    close(torch.stack([mel[place] for place in LIBROSA]), list(LIBROSA.values()), 3e-5, "log-mel")
    close(fastsag.istft(fastsag.stft(wav, 1024, 256), 1024, 256), wav, 1e-5, "istft")

@pytest.mark.parametrize("rate_in, rate_out, hz, atol", [                  # a rate like 44101 may drift by 1e-6
    (44100, 24000, 10000, 1e-3), (24000, 44101, 440, 1e-2), (44101, 24000, 13000, 5e-4), (96000, 24000, 40000, 5e-4)])
def test_resampling_keeps_a_sine_and_aliases_stay_under_60_db(rate_in, rate_out, hz, atol):
    y = fastsag.resample(sine(hz, rate=rate_in, phase=0.3)[:-7], rate_in, rate_out)
    assert y.shape == (-(-(rate_in - 7) * rate_out // rate_in),), "lengths are rounded up"
    close(y[500:-500], sine(hz, rate=rate_out, phase=0.3)[500: len(y) - 500] * (hz < rate_out / 2), atol, f"{hz} Hz")

def test_chroma_shows_the_note_that_sounds_and_onsets_rise_where_one_begins(frames=24):
    for hz, part, pitch_class in ((82.41, 0, 4), (440, 1, 9)):             # twelve notes in the bass and in the middle
        wav = music(12 * frames * 1024, frames * 1024, hz)[None]
        features = fastsag.music_features(wav, fastsag.log_mel(wav, CFG), CFG)
        chroma = fastsag.chroma_of(features)[0].unflatten(0, (2, 12)).unflatten(2, (12, frames))[..., 5:-5]
        assert (chroma[part].argmax(0) == ((pitch_class + 7 * torch.arange(12)) % 12)[:, None]).all(), chroma
        assert chroma[part].amax(0).min() > 0.5 > 0.1 > chroma[1 - part].max()
    rows = features[0, 24:27].unflatten(1, (12, frames))                   # low, middle, high; a note dies away
    assert rows[:, :-1, -1].min() > 0 > rows[:, 1:, :-1].max(), rows       # its last frame sees the next one begin

@pytest.mark.parametrize("per_minute, tempo_found", [(80, 1), (66.7, 1), (150, 1 / 2), (200, 1 / 2)])
def test_beat_is_found_and_the_bar_is_folded_onto_it(per_minute, tempo_found, beats=4, N=1200):
    time, beat = torch.arange(N), 60 * RATE / 1024 / per_minute            # frames
    strike = lambda every, late=0: torch.exp(-(((time - late + every / 2) % every - every / 2) / 0.7).square())
    onsets = strike(beat, 5) + 0.4 * strike(beat, 5 + beat / 2) + 0.05 * noise(N).abs()
    period = fastsag.find_beat(torch.stack([onsets, onsets.flip(0)]), CFG)
    close(period / beat * tempo_found, torch.ones(2, N), 0.003, "frames per beat")
    tracks, at = torch.stack([onsets, strike(beats * beat, 9)])[None], 600                  # beats, downbeats
    away = torch.arange(beats * 8) / 8 - beats / 2
    rows = fastsag.fold(tracks, torch.full((1, N), beat), beats, away)[0, :, :, at]
    for share, values in zip(away[3::7], rows.T[3::7]):                    # plainly, one place after the other
        places = at + beat * (share + beats * torch.arange(-30, 31)).numpy()
        hann = np.where(abs(places - at) < 512, np.cos(np.pi / 2 * (places - at) / 512) ** 2, 0)
        means = [np.average(np.interp(places, time, track), weights=hann) for track in tracks[0]]
        close(values, means, 2e-3, f"{share:.3f} beats away")

@pytest.mark.parametrize("T", [5, 8, 16, 37])
def test_local_attention_equals_plain_masked_attention(T, radius=8, head=32):
    layer, x = fastsag.LocalAttention(48, 2 * head, radius).requires_grad_(False), noise(2, 48, T)
    normed = x / (x.square().mean(1, keepdim=True).sqrt() + 1e-3)
    q, k, v = layer.qkv(normed).transpose(1, 2).unflatten(2, (3, 2, head)).permute(2, 0, 3, 1, 4)  # (B, heads, T, head)
    turn = torch.exp(1j * torch.arange(T)[:, None] * 10000 ** -(torch.arange(head // 2) / (head // 2 - 1)))
    q, k = (torch.view_as_real(torch.complex(*z.chunk(2, -1)) * turn).flatten(3) for z in (q, k))    # rotary
    near = (torch.arange(T)[:, None] - torch.arange(T)).abs() <= radius
    result = torch.nn.functional.scaled_dot_product_attention(q, k, v, near).permute(0, 1, 3, 2).flatten(1, 2)
    close(layer(x), x + layer.out(result), 1e-5, f"T = {T}")

def test_guidance_extrapolates_on_half_of_the_steps_and_windows_have_no_seam():
    model, (x, mu, expected), sigma, passes = random_model(), inputs(1568), torch.tensor([0.7]), []
    guided = lambda guidance, *how: model.guided(x, sigma, mu, expected, guidance, *how)
    cond, uncond = (model.denoise(x, sigma, keep * mu, keep * expected) for keep in (1, 0))
    for guidance in (1, 3):
        close(guided(guidance), uncond + guidance * (cond - uncond), 1e-5, f"guidance {guidance}")
    for run in (lambda *how: guided(1.5, *how), lambda *how: model.vocoder.long(mu, *how)):
        close(run(256), run(), 1e-4, "windows")
        assert (run(256, 0) - run()).abs().max() > 1e-2                    # with nothing around them
    model.unet.register_forward_hook(lambda *_: passes.append(1))
    model.sample(mu, expected, steps=8, guidance=4)
    assert len(passes) == 8 + 4

def test_condition_does_not_know_how_long_the_clip_is(begin=64, frames=2400):
    # Feature frames that the tiny preset sees: attention, convolutions, chroma and resampling, beat
    model, wav, sees = random_model(), music(2500 * 1024)[None], 32 + 2 * (2 + 4 + 2 + 4) + 6 + 24 + 512 + 15 * 32 + 32
    whole = model.condition(wav)[1][..., begin * 4: (begin + frames) * 4]
    part = model.condition(wav[:, begin * 1024: (begin + frames) * 1024])[1]                   # 64 frames earlier
    close(part[..., 4 * sees: -4 * sees], whole[..., 4 * sees: -4 * sees], 1e-4, "mu")
    assert (part - whole).abs().max() > 1e-2                               # at the edges

@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_preconditioning_equals_edm_table_1(sigma, sd=0.5):
    model, (unit, mu, expected), F_x, seen = FastSAG(TINY), inputs(64), noise(1, 100, 64, seed=6), []
    model.unet.forward = lambda *args: seen.extend(args) or F_x
    total = math.hypot(sd, sigma)                                          # of data and noise
    D_x = model.denoise(total * unit, torch.tensor([sigma]), mu, expected)
    close(D_x, sd ** 2 / total * unit + sigma * sd / total * F_x, 1e-5, "c_skip, c_out")
    close(seen[0], unit, 1e-5, "c_in")
    close(seen[3], [math.log(sigma) / 4], 1e-6, "c_noise")

def test_solver_follows_edms_noise_levels_and_is_second_order(s=0.5):
    errors, start = [], torch.tensor([80.0, -24.0], dtype=torch.float64)   # Gaussian data N(0, s^2) has a closed form
    for steps in (33, 65, 129):
        sigmas = fastsag.sigma_steps(steps, replace(CFG, sigma_min=0.002, sigma_max=80.0)).double()
        middle = (0.5 * 80 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7       # eq. 5
        close(sigmas[[0, steps // 2, -2, -1]], [80, middle, 0.002, 0], 1e-4, "first, middle, last two")
        x = fastsag.solve(lambda x, sigma: x * s ** 2 / (s ** 2 + sigma ** 2), start, sigmas)
        errors.append((x - start * s / math.hypot(s, 80)).abs().max().item())
    assert all(3.5 < coarse / fine < 5 for coarse, fine in zip(errors, errors[1:])), errors   # half the step, a quarter

def test_one_pair_can_be_learnt_by_heart(frames=64):
    torch.manual_seed(0)
    model = FastSAG(replace(TINY, channels=(48, 32, 32), cond_drop=0.0, input_drop=0.0))
    vocals = music(frames * 256).expand(4, -1)
    accomp = (music(frames * 256, 3000).roll(2000) + sine(110, frames * 256 / RATE, amplitude=0.1)).expand(4, -1)
    losses = lambda: model(vocals, accomp, model.draw(4, frames, torch.default_generator))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(120):
        optimizer.zero_grad()
        sum(loss.mean() for loss in losses().values()).backward()
        optimizer.step()
    mel, (expected, mu) = fastsag.log_mel(accomp, TINY), model.condition(vocals)
    true, features = fastsag.normalise(mel, TINY), fastsag.music_features(accomp, mel, TINY)
    D_x = model.denoise(true + 5 * noise(*mu.shape), torch.tensor([5.0]), mu, expected)        # buried in noise
    assert all((a - b).square().mean() < 0.15 * b.var() for a, b in ((expected, features), (mu, true), (D_x, true)))

def test_griffin_lim_rebuilds_a_mel_and_match_mel_corrects_a_spectrum():
    wav = (music(600 * 256, 6000) + sine(220, 6.4, amplitude=0.1))[None]
    mel, spec = fastsag.log_mel(wav, CFG), fastsag.stft(wav, CFG.n_fft, CFG.hop_length)
    assert (fastsag.log_mel(fastsag.griffin_lim(mel, CFG), CFG) - mel).abs().mean() < 0.3      # random phases: 0.69
    wrong = spec * torch.exp(noise(1, 513, 1))                             # each bin too loud or too soft
    off = lambda x: ((fastsag.mel_filterbank(24000, 1024, 100) @ x.abs()).clamp(min=1e-5).log() - mel).abs().mean()
    assert off(fastsag.match_mel(wrong, mel, CFG)) < 0.5 * off(wrong)

def test_demo_songs_keep_their_promises(files):
    known, new = (prep.read_set(files / "set", split) for split in ("train", "val"))
    for songs, held_out in ((known, False), (new, True)):                  # every 8th voice and band
        assert {song[key] % 8 == 0 for song, *_ in songs for key in ("voice", "band")} == {held_out}
    for song, pair, _ in known + new:
        pair = pair / 32768
        assert len(pair) == 8 * RATE and np.abs(pair).max() < 1, song["name"]
        hiss = np.diff(pair, 4, axis=0).T                                  # what remains is mostly noise
        spectra = np.fft.rfft(hiss / np.linalg.norm(hiss, axis=1, keepdims=True))
        assert np.abs(np.fft.irfft(spectra[0] * spectra[1].conj())).max() < 0.05, song["name"]       # at any lag
        for name, column in zip(("vocals", "accomp"), pair.T):
            close(song[f"{name}_dbfs"], fastsag.active_dbfs(column, RATE), 0.02, name)
    assert np.ptp([song["beats"][0] * song["tempo"] / 60 for song, *_ in known + new]) > 0.4, "first beats, from 0 to 1"

def test_stems_end_up_in_their_columns_and_useless_ones_are_skipped(tmp_path, capsys):
    stems = dict(zip("vdbo", fastsag.resample(noise(4, 12 * 8000) / 20, 8000, RATE))) | {"-": torch.zeros(12 * RATE)}
    stems["v"][-int(3.5 * RATE):] = 0                                      # a rest that is too short to be cut out
    stems["w"], stems["x"] = stems["v"] * (late := torch.arange(12 * RATE) > 3.5 * RATE), stems["o"] * ~late       # in turns
    wavs = {"a/vocals.wav": "v v", "a/drums.wav": "d d", "a/bass.wav": "b", "a/other.wav": "o o", "a/mixture.wav": "-",
            "b/vocals.wav": "v", "b/mixture.wav": "vdbo", "c/singer_1_01.wav": "dbo v", "d/vocals.flac": "v",
            "d/no_vocals.flac": "dbo", "e/vocals.wav": "w", "e/no_vocals.wav": "x", "f/My_vocals.wav": "v",
            "f/My_accompaniment.wav": "dbo", "f/Your_vocals.wav": "v"}     # file: its channels; "-" is silence
    for (name, channels), rate in zip(wavs.items(), 3 * (44100, 16000, 48000, 22050, 32000)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        wav = torch.stack([sum(stems[part] for part in parts) for parts in channels.split()])
        soundfile.write(tmp_path / "in" / name, fastsag.resample(wav, RATE, rate).T, rate)
    clip = tmp_path / "in/c/singer_1_01.wav"                               # MIR-1K cuts a recording into clips
    wav, rate = soundfile.read(clip)
    for number, part in {"01": wav[: 5 * rate], "02": wav[5 * rate:], "04": wav}.items():
        soundfile.write(clip.with_stem(f"singer_1_{number}"), part, rate)
    assert prep.main([str(tmp_path / "in"), "--out", str(tmp_path / "set")]) == 0
    err = capsys.readouterr().err
    assert err.count("skipped") == 2 and "e/vocals.wav: no 5 s" in err and "Your_vocals.wav: no acc" in err, err
    expected = torch.stack([stems["v"], stems["d"] + stems["b"] + stems["o"]], 1).numpy()
    known, new = (prep.read_set(tmp_path / "set", split) for split in ("train", "val"))
    assert (len(known), len(new)) == (4, 2), "both stretches of the singer are for validation"
    for song, pair, _ in known + new:
        close(pair[999: 11 * RATE] / pair.std(), expected[999: 11 * RATE] / expected.std(), 0.05, song["name"])

def test_a_vocoder_learns_on_top_of_a_model_and_resumes_with_the_same_bits(files, tmp_path, monkeypatch):
    save, path = fastsag.save_checkpoint, tmp_path / "checkpoint.pt"       # here every save stays
    monkeypatch.setattr("train.save_checkpoint", lambda data, at: save(data, f"{at}{data['step']}") or save(data, at))
    args = train_args(files, tmp_path, "--vocoder --steps 6 --every 2 --crop 0.68")
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

def test_two_processes_train_as_one_would(files, tmp_path):                # an address: no name to look up may fail
    launch = "-m torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node=2".split()
    command = [sys.executable, *launch, train.__file__, *train_args(files, tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    close(weights(tmp_path / "checkpoint.pt"), weights(files / "run/checkpoint.pt"), 1e-4, "weights")

def in_child(main, args, log):                                             # training does nothing but train
    sys.stdout = sys.stderr = open(log, "a", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)               # ignored where tests run in the background
    torch.set_num_threads(1)
    train.validate, train.listen = lambda *_: {}, lambda *_: np.zeros((9, 2))
    sys.exit(main(args))

def run(main, args, log, hit=None, when=None):
    """main(args) in a child, hit by a signal when it is time -> exit status. A fork server imports torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_fastsag"])
    child = context.Process(target=in_child, args=(main, args, log))
    child.start()
    while hit and child.is_alive() and not when():
        time.sleep(0.001)
    if hit and child.is_alive():
        os.kill(child.pid, hit)
    child.join()
    return child.exitcode

@pytest.mark.slow
def test_twenty_kills_lose_at_most_one_save_interval_and_change_no_bit(files, tmp_path, steps=40):
    rng, log, whole, killed = np.random.default_rng(0), tmp_path / "log.txt", tmp_path / "whole", tmp_path / "killed"
    path, args = killed / "checkpoint.pt", lambda out: train_args(files, out, f"--float32 --steps {steps} --every 1")
    seen = lambda: [int(step) for step in re.findall(r"step +(\d+)  loss", log.read_text())] if log.exists() else []
    for number in range(20):                                               # half of them hit while a file is written
        enough = len(seen()) + rng.integers(0, 3)
        when = lambda: len(seen()) >= enough and (any(killed.glob("*.tmp")) if number % 2 else rng.random() < 0.01)
        run(train.main, args(killed) + ["--resume"] * path.exists(), log, signal.SIGKILL, when)
        saved = fastsag.load_checkpoint(path)["step"] if path.exists() else 0
        assert saved >= max(seen(), default=0) - 1, "a step is printed, then saved"
    assert 5 < saved < steps, "the kills came too early or too late to mean anything"
    assert run(train.main, args(whole), log) == run(train.main, args(killed) + ["--resume"], log) == 0, log.read_text()
    close(weights(path), weights(whole / "checkpoint.pt"), 0, "weights")

@pytest.mark.parametrize("script, kill", [("prep", True), ("prep", False), ("train", False), ("sample", False)])
def test_an_interrupted_script_says_so_and_leaves_nothing_half_written(script, kill, files, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.txt"
    args = dict(prep=prep_args(out, 1), train=train_args(files, out, "--steps 99 --every 1"),
                sample=sample_args(files, f"{files}/song.wav", "--takes", 99, "--out", out))[script]
    main, begun = sys.modules[script].main, lambda: any(tmp_path.glob("out*/*")) and not time.sleep(0.1)
    status = run(main, args, log, signal.SIGKILL if kill else signal.SIGINT, begun)
    if kill:                                                               # the next time the same bytes come out, of
        assert not out.exists() and main(args) == 0                        # one worker; the set in `files` is by two
        assert all((out / name).read_bytes() == (files / "set" / name).read_bytes() for name in prep.FILES)
    else:
        assert status == 130 and log.read_text().splitlines()[-1].startswith(f"{script}.py: stopped"), log.read_text()
        assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".partial")]

@pytest.mark.parametrize("name, rate, channels, subtype, gain, offset", [
    ("telephone.wav", 8000, 1, "PCM_U8", 1, 0), ("eight.wav", 96000, 8, "DOUBLE", 1, 0),
    ("studio.wav", 192000, 2, "PCM_32", 1, 0), ("-Süße 🎤 x.flac", 44100, 2, "PCM_24", 1, 0),
    ("a.aiff", 22050, 1, "PCM_S8", 1, 0), ("b.ogg", 48000, 2, "VORBIS", 1, 0),
    ("clipped.wav", 16000, 1, "PCM_16", 6, 0), ("c.mp3", 44100, 1, "MPEG_LAYER_III", 1, 0),
    ("offset.wav", 16000, 1, "PCM_16", 1, 0.5), ("loud.wav", 16000, 1, "FLOAT", 1e5, 0),
    ("inaudible.wav", 16000, 1, "FLOAT", 1e-5, 0)])
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
model = lambda path="tiny.pt", **parts: lambda: torch.save(torch.load(path, weights_only=True) | parts, path)
config = lambda **change: model(config=asdict(TINY) | change)
evil = type("Evil", (), dict(__reduce__=lambda self: (open, ("trap", "w"))))()         # makes it when it is loaded
nothing, full = lambda: None, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9999, -1))

@pytest.mark.parametrize("command, sentence, spoil", [("sample song.wav", *row) for row in (
    ("no samples", song([])), ("is silent", song(np.full(16000, 0.3))), ("0.10 s long", song(singing(0.1))),
    ("1 samples", song([math.nan] + [0.1] * 9000)), ("1e10", song(1e30 * singing())), ("768 kHz", song(singing(), 5)),
    ("4 hours", song(np.zeros(15000000), 1000)), ("read as audio", cut("song.wav", 20)),
    ("cannot be read", cut("tiny.pt", 9999)), ("cannot be read", config(dim=evil)), ("cannot be written", full),
    ('no "config"', lambda: torch.save({}, "tiny.pt")), ("argument 'wings'", config(wings=2)),
    ("size mismatch", config(dim=64)), ("another version", config(channels=())), ("Missing key", model(ema={}))
)] + [("train", "not a whole data set", spoil) for spoil in (
    cut("set/train.bin", 4000), cut("set/val.bin", 4001), cut("set/val.bin", 0), cut("set/meta.json", 100),
    meta('"songs"', '"sings"'), meta('"songs": [', '"songs": 7, "": ['), meta('"format": ', '"format": 99'),
    meta('"accomp_dbfs": ', '"accomp_dbfs": -Infinity, "": '), meta('"length": ', '"length": 9')
)] + [("train --lr 1e38 --out new", "at step 2", nothing), ("train --resume --seed 1", "'seed': 0", nothing),
      ("train --resume", "another version", model("run/checkpoint.pt", optimizer={})),
      ("train --out new", "cannot be written", full), ("prep --seconds 8 --out new", "cannot be written", full)
] + [(command, "", nothing) for command in (
    "sample song.wav --steps 0", "sample song.wav --seed -1", "sample song.wav --guidance nan", "train", "train --seed -1",
    "sample song.wav --device toaster", "sample song.wav --out song.wav", "sample song.wav --checkpoint missing.pt",
    "sample missing.wav", "sample --evaluate nowhere", "prep --songs 9999999", "prep set --out new", "train --data .")])
def test_a_refusal_is_one_line_and_writes_nothing(command, sentence, spoil, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(shutil.copytree(files, tmp_path, dirs_exist_ok=True))
    there = lambda: {path for path in Path().rglob("*") if path.is_file()}
    limit, before = resource.getrlimit(resource.RLIMIT_FSIZE), there()
    spoil()
    script, *options = command.split()
    args = dict(sample=sample_args(".", *options), train=train_args(".", "run") + options, prep=options)[script]
    status, said = sys.modules[script].main(args), capsys.readouterr().err
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert status == 2 and re.fullmatch(rf"{script}\.py: .*\n", said) and sentence in said, said
    assert there() == before

def test_damaged_files_are_heard_or_refused_in_one_line(tmp_path):
    rng, refused, path = np.random.default_rng(0), 0, tmp_path / "song"
    for kind in 60 * ("wav", "flac", "ogg", "mp3", "aiff"):
        soundfile.write(path, singing(1), 16000, format=kind)
        data = np.fromfile(path, np.uint8)[: rng.choice([10 ** 9, rng.integers(20000)])]       # whole or cut off
        data[:200][rng.random(len(data[:200])) < rng.choice([0, 0.02, 0.1])] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert torch.isfinite(sample.read_vocals(path)[0]).all()
        except UserError as problem:
            refused += "\n" not in str(problem)
    assert 60 < refused < 240, refused

def test_every_good_song_is_played_and_each_take_tells_how_to_make_it_again(files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(shutil.copytree(files, tmp_path, dirs_exist_ok=True))
    songs = {"-ü🎤.wav": (16000, 0.5, "-ü🎤"), "run/-ü🎤.wav": (48000, 4.7, "-ü🎤-2")}          # neither is an option
    for path, (rate, gain, _) in songs.items():
        soundfile.write(path, gain * singing(1.5, rate), rate)
    assert sample.main(sample_args(".", "missing.wav", *songs, "--takes", 2, "--seed", 5, "--page")) == 2
    out, err = capsys.readouterr()
    assert "RTF" in out.splitlines()[-1] and re.fullmatch("sample.py: missing.wav.*\n", err)
    model, page = FastSAG.load("tiny.pt", "cpu"), Path("out/index.html").read_text()
    for weight, saved in zip(model.parameters(), random_model().parameters(), strict=True):
        close(weight, saved.half(), 0, "half precision")
    assert not re.search('(src|href)="(?!data:)|https?:', page), "the page needs something from elsewhere"
    sounds = re.findall('"(data:audio/flac;.*?)"', page)
    assert sorted(os.listdir("out")) == ["-ü🎤", "-ü🎤-2", "index.html"] and len(sounds) == 4
    for (path, (rate, gain, folder)), sound in zip(songs.items(), sounds[1::2]):
        (accomp, rate_out), (mix, _) = (soundfile.read(f"out/{folder}/{wav}-2.wav") for wav in ("accompaniment", "mix"))
        sung = fastsag.resample(sample.read_vocals(path)[0], rate, rate_out)
        assert rate_out == max(rate, RATE) and len(accomp) == len(mix) == len(sung) and 0.1 < np.abs(mix).max() < 0.995
        if gain < 1:                                                       # too loud a mix is turned down
            close(mix, sung.numpy() + accomp, 1e-3, "mix")
            close(accomp, model.accompany(sung, rate_out, steps=2, seed=6), 1e-3, "take 2")
            for wav in (accomp, torch.cat([0 * sung, sung])):              # silence does not count
                close(fastsag.active_dbfs(wav, RATE), 10 * sung.square().mean().log10(), 0.1, "active level")
        assert Path(f"out/{folder}/mix.wav").read_bytes() != Path(f"out/{folder}/mix-2.wav").read_bytes()
        png, number = Path(f"out/{folder}/mel-2.png").read_bytes(), lambda at: int.from_bytes(png[at: at + 4], "big")
        assert png[:4] == b"\x89PNG" and len(zlib.decompress(png[41:-16])) == number(20) * (1 + 3 * number(16))
        assert all(zlib.crc32(png[a:b]) == number(b) for a, b in ((12, 29), (37, len(png) - 16))), "checksums"
        pair, rate_page = soundfile.read(urllib.request.urlopen(sound))
        assert rate_page == RATE and corr(pair.sum(1), mix[:: rate_out // RATE]) > 0.99
    command = soundfile.SoundFile("out/-ü🎤-2/mix-2.wav").comment.replace("python sample.py", (
        f"PYTHONIOENCODING=ascii OMP_NUM_THREADS={torch.get_num_threads()} {sys.executable} {sample.__file__}"))
    result = subprocess.run(f"{command} --out again --device cpu <&-", shell=True, capture_output=True)     # no stdin
    assert (result.returncode, result.stderr) == (0, b""), result
    for name in ("accompaniment.wav", "mix.wav", "mel.png"):
        assert Path("again/-ü🎤", name).read_bytes() == Path("out/-ü🎤-2", name.replace(".", "-2.")).read_bytes(), name

def test_a_delay_is_forgiven_by_the_second_measure_of_rhythm_only(wav=music(96 * 1024)):
    rows = [sample.measure(wav.roll(256 * late), wav, CFG, {})[0] for late in (5, -5, 13, -13)]
    strict, free = ([row[name] for row in rows] for name in ("rhythm", "rhythm +-64 ms"))
    assert max(strict) < 0.5 < 0.95 < min(free[:2]) and max(free[2:]) < 0.5, rows

def test_evaluation_prints_its_table_with_the_ceiling_above_the_floor(files, capsys):
    assert sample.main(sample_args(files, "--evaluate", files / "set")) == 0
    out = capsys.readouterr().out                                          # the harmony of each row
    true, copy, generated, *_, floor = [float(line[28:].split("±")[0]) for line in out.splitlines() if "±" in line]
    assert abs(true - 1) < 0.002 and true > copy > floor and generated > 0, out
    close(sample.frechet(a := np.random.default_rng(0).standard_normal((500, 50)), a + 0.3), 50 * 0.3 ** 2, 1e-6)

"""The tests: python -m pytest -q

Three minutes on two cores, one with -m "not slow". pytest is needed besides the packages.
What is right is known from elsewhere: librosa's numbers, torch, closed forms, plain formulas here.
The order is that of the code: fastsag.py from top to bottom, demo/, prep.py, train.py, sample.py.
"""
import argparse
import contextlib
import copy
import functools
import io
import json
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

import fastsag
import prep
import sample
import train
from baselines import singsong
from demo.band import NUM_BANDS, draw_band, play
from demo.lead_sheet import arrange_sheet, read_lead_sheets
from demo.song import deal
from fastsag import PRESETS, Config, FastSAG, UserError, load_checkpoint

# The models are tiny. One thread is as fast as two, and much faster on a machine that is not idle.
torch.set_num_threads(1)

# There is no configuration file to register the marker in.
warnings.filterwarnings("ignore", "Unknown pytest.mark.slow")

CFG = Config()
TINY = PRESETS["tiny"]
RATE = CFG.sample_rate
META = torch.device("meta")  # tensors with a shape, but without values

# How a recording of a phone begins
M4A = b"\x00\x00\x00\x20ftypM4A \x00\x00\x00\x00M4A mp42isom" + bytes(4000)


# --------------------------------------------------------------------------------------------------
# Helpers: numbers and sounds


def close(actual, expected, atol, what=""):
    """Asserts that no value of two arrays, tensors or lists differs by more than atol."""

    def explain(text):
        return f"{what}: {text}"

    actual = torch.as_tensor(actual).double()
    expected = torch.as_tensor(expected).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, msg=explain)


def noise(*shape, seed=0):
    """Gaussian noise of variance 1, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlation(a, b):
    """Correlation coefficient of two signals (L,)."""
    return np.corrcoef(np.asarray(a, float), np.asarray(b, float))[0, 1]


def sine(hz, seconds=1.0, rate=RATE, amplitude=0.5, phase=0.0):
    """A sine, (L,) float32."""
    time = torch.arange(int(seconds * rate)).double() / rate
    return (amplitude * torch.sin(2 * math.pi * hz * time + phase)).float()


def singing(seconds=1.5, rate=16000):
    """A tone that swells three times a second, (L,)."""
    return sine(330, seconds, rate, 0.2) * (1 + sine(3, seconds, rate)) / 1.5


def music(length, hop=8192, hz=440):
    """Tones a fifth apart (in one octave) that begin suddenly and die away, (length,) samples."""
    n = torch.arange(length)
    semitones = n // hop * 7 % 12
    phase = 2 * math.pi * torch.cumsum(hz * 2 ** (semitones / 12).double() / RATE, 0)
    return (0.2 * phase.sin() * torch.exp(-5 * (n % hop) / RATE)).float()


def songs_in_memory(count, length):
    """Songs of noise, as read_set() gives them: [(facts, int16 (length, 2), float32 (2,))]."""
    rng = np.random.default_rng(0)
    songs = []
    for _ in range(count):
        pairs = rng.integers(-32768, 32767, (length, 2), np.int16)
        seconds = range(length // RATE)
        chords = [[second, second + 1, [second % 12, (second + 4) % 12]] for second in seconds]
        facts = {"chords": chords, "beats": [second / 2 for second in range(2 * length // RATE)]}
        songs.append((facts, pairs, rng.uniform(1e-5, 1e-4, 2).astype(np.float32)))
    return songs


# --------------------------------------------------------------------------------------------------
# Helpers: models, folders and command lines


def model_inputs(frames):
    """Noise in the shapes of x, mu and expected features, for a clip of so many mel frames."""
    x = noise(1, 100, frames)
    mu = noise(1, 100, frames, seed=1) / 2
    expected = noise(1, fastsag.N_EXPECTED, frames // 4, seed=2)
    return x, mu, expected


def random_model():
    """A tiny model with a vocoder and noise on every weight.

    Layers that start at zero would hide what lies behind them.
    """
    torch.manual_seed(0)
    model = FastSAG(TINY).eval()
    model.vocoder = fastsag.Vocoder(TINY)
    for weight in model.requires_grad_(False).parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    return model


def weights(path):
    """All weights in a training checkpoint, averaged and in training, as one vector."""
    checkpoint = load_checkpoint(path)
    tensors = [*checkpoint["ema"].values(), *checkpoint["model"].values()]
    return torch.cat([weight.flatten() for weight in tensors])


def prep_args(out, workers=2):
    """Options for a set of eight short demo songs."""
    return f"--songs 8 --seconds 8 --out {out} --workers {workers}".split()


def train_args(files, out, more="--steps 20 --every 20"):
    """Options for a run of seconds on the set in `files`."""
    options = f"--preset tiny --batch-size 2 --crop 2.05 --device cpu --float32 {more}"
    return f"--data {files}/set --out {out} {options}".split()


def sample_args(files, *more):
    """Options for playing along with the tiny weights in `files`."""
    options = f"--steps 2 --device cpu --checkpoint {files}/tiny.pt"
    return [*options.split(), *map(str, more)]


def train_options(out, more=""):
    """The options of train_args as train.py parses them."""
    return train.parse_args(argparse.ArgumentParser(), train_args("unused", out, more))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with weights, a song, a data set and a training run, to read or to copy."""
    folder = tmp_path_factory.mktemp("files")
    random_model().save(folder / "tiny.pt")
    soundfile.write(folder / "song.wav", singing(), 16000)
    prep.main(prep_args(folder / "set"))
    train.main(train_args(folder, folder / "run"))
    return folder


@pytest.fixture
def workplace(files, tmp_path, monkeypatch):
    """A copy of `files` that may be spoilt; it is the current folder."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def full_disk():
    """No file may grow beyond 9999 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9999, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checksums():
    """{path: checksum} of all files below the current folder."""
    paths = [path for path in Path().rglob("*") if path.is_file()]
    return {path: zlib.crc32(path.read_bytes()) for path in paths}


def refusal(script, args, capsys, usage=True, may_write=()):
    """Runs a script that must refuse its input -> the sentence that it says.

    Refusing is: exit status 2, one line of usage (not after a single song's error, since the other
    songs go on), one line with the sentence, and no file written, except those in may_write.
    """
    before = checksums()

    with pytest.raises(SystemExit) as exit_info:
        script.main(args)

    err = capsys.readouterr().err
    script_path = f"{script.__name__.replace('.', '/')}.py"
    name = os.path.basename(script_path)
    lines = err.removesuffix("\n").split("\n")
    assert exit_info.value.code == 2
    assert err.endswith("\n")
    assert len(lines) == (2 if usage else 1), err
    if usage:
        assert lines[0].startswith(f"usage: python {script_path} ")
    assert lines[-1].startswith(f"{name}: error: ")
    after = checksums()
    assert {path: after[path] for path in after if str(path) not in may_write} == before
    return lines[-1].removeprefix(f"{name}: error: ")


def cut(path, size):
    """Keeps the first `size` bytes of a file."""
    assert os.path.getsize(path) > size
    os.truncate(path, size)


def change_checkpoint(path, parts):
    """Puts other values in place of some of a checkpoint's parts."""
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | parts, path)


# --------------------------------------------------------------------------------------------------
# Helpers: scripts in a process of their own, to be hit by signals


def in_child(main, args, log):
    """What the child does: main(args), with all that it says in a file. Training only trains."""
    sys.stdout = open(log, "a", buffering=1)  # noqa: SIM115
    sys.stderr = sys.stdout
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if tests run in background

    def no_validation(*args):
        return {}

    def no_example(*args):
        return np.zeros((9, 2))

    train.validate = no_validation
    train.example = no_example
    sys.exit(main(args))


def run_in_child(main, args, log, hit=None, is_time=None):
    """main(args) in a child, hit by a signal when it is time -> exit status."""
    context = multiprocessing.get_context("forkserver")  # imports torch once
    context.set_forkserver_preload(["test_fastsag"])
    child = context.Process(target=in_child, args=(main, args, log))
    child.start()

    if hit:
        while child.is_alive() and not is_time():
            time.sleep(0.001)
        if child.is_alive():
            os.kill(child.pid, hit)

    child.join()
    return child.exitcode


# --------------------------------------------------------------------------------------------------
# fastsag.py: mel

# librosa 0.11.0, `wave` as in the test below, in numpy float64:
#   filters = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=100)
#   padded = numpy.pad(wave, 384, mode="reflect")
#   s = librosa.stft(padded, n_fft=1024, hop_length=256, center=False)
#   magnitude = numpy.sqrt(s.real ** 2 + s.imag ** 2 + 1e-9)
#   numpy.log(numpy.maximum(filters @ magnitude, 1e-5))[band, frame]
LIBROSA = {
    (0, 0): 0.82809,
    (10, 2): 0.76694,
    (20, 5): 0.67889,
    (48, 15): 0.31723,
    (58, 22): 0.04596,
    (90, 3): -11.51293,
    (70, 33): -0.44076,
    (10, 95): -3.50275,
    (99, 95): -3.60655,
    (99, 93): -2.80287,
}


def test_log_mel_equals_librosa():
    time = torch.arange(24576).double() / 24000
    tone = 0.3 * torch.sin(2 * math.pi * 220 * time)
    sweep = torch.exp(-3 * time) * torch.sin(2 * math.pi * (30 * time + 5800 * time**2))
    wave = (tone + 0.5 * sweep).float()

    mel = fastsag.log_mel(wave[None], CFG)[0]

    values = torch.stack([mel[place] for place in LIBROSA])
    close(values, list(LIBROSA.values()), 3e-5, "log-mel")


def test_istft_inverts_stft():
    wav = noise(2, 40 * 256)

    spec = fastsag.stft(wav, 1024, 256)

    close(fastsag.istft(spec, 1024, 256), wav, 1e-5, "istft")


# --------------------------------------------------------------------------------------------------
# fastsag.py: music features

NOTE_FRAMES = 24  # feature frames per note: about a second


def features_of_twelve_notes(hz):
    """Features (1, 28, 288) of music with one note after the other, from hz on."""
    wav = music(12 * NOTE_FRAMES * 1024, NOTE_FRAMES * 1024, hz)[None]
    return fastsag.music_features(wav, fastsag.log_mel(wav, CFG), CFG)


def test_silence_has_no_pitch_at_all():
    silence = torch.zeros(1, 24 * CFG.hop_length)

    assert not fastsag.chroma(silence, CFG).any()


@pytest.mark.parametrize(
    "hz, register, pitch_class",
    [
        pytest.param(82.41, 0, 4, id="bass, from E on"),
        pytest.param(440, 1, 9, id="middle, from A on"),
    ],
)
def test_chroma_shows_the_note_that_sounds(hz, register, pitch_class):
    notes = (pitch_class + 7 * torch.arange(12)) % 12

    chroma = fastsag.chroma_of(features_of_twelve_notes(hz))[0]

    chroma = chroma.view(2, 12, 12, NOTE_FRAMES)  # registers, pitch classes, notes, frames
    chroma = chroma[..., 5:-5]  # neighbouring notes reach into the first and last frames
    here = chroma[register]
    there = chroma[1 - register]
    assert (here.argmax(0) == notes[:, None]).all(), chroma
    assert here.amax(0).min() > 0.5
    assert there.max() < 0.1


def test_onsets_rise_where_a_note_begins():
    features = features_of_twelve_notes(440)

    onsets = features[0, 24:27].unflatten(1, (12, NOTE_FRAMES))  # low, middle, high bands

    # A note dies away. Its last frame sees the next one begin.
    assert onsets[:, :-1, -1].min() > 0, onsets
    assert onsets[:, 1:, :-1].max() < 0, onsets


# --------------------------------------------------------------------------------------------------
# fastsag.py: beat and bar profile

BEAT_FRAMES = torch.arange(1200)  # feature frames of the made onsets, 51 s


def frames_per_beat(per_minute):
    """Feature frames from beat to beat."""
    return 60 * RATE / 1024 / per_minute


def strikes(every, late=0):
    """Onset strength of a strike every so many frames."""
    away = (BEAT_FRAMES - late + every / 2) % every - every / 2
    return torch.exp(-(away / 0.7).square())


def onsets_of_beats(beat):
    """Strikes on the beats, weaker ones between them, and noise."""
    clean = strikes(beat, 5) + 0.4 * strikes(beat, 5 + beat / 2)
    return clean + 0.05 * noise(len(BEAT_FRAMES)).abs()


each_tempo = pytest.mark.parametrize(
    "per_minute, found",
    [
        pytest.param(80, 80, id="80"),
        pytest.param(66.7, 66.7, id="66.7"),
        pytest.param(150, 75, id="150 at half its tempo"),
        pytest.param(200, 100, id="200 at half its tempo"),
    ],
)


@each_tempo
def test_the_beat_is_found(per_minute, found):
    onsets = onsets_of_beats(frames_per_beat(per_minute))

    period = fastsag.find_beat(torch.stack([onsets, onsets.flip(0)]), CFG)

    close(period / frames_per_beat(found), torch.ones(2, 1200), 0.003, "frames per beat")


@pytest.mark.parametrize("at", [0, 600, 1190])  # the frame to look at
@pytest.mark.parametrize("per_minute", [66.7, 80, 107])
@pytest.mark.parametrize(
    "step, lengths",
    [
        pytest.param(1 / 8, [32, 24], id="bars of four and of three"),
        pytest.param(4, [2, 4, 3], id="loops"),
    ],
)
def test_bars_are_folded_onto_the_beat(step, lengths, per_minute, at):
    beat = frames_per_beat(per_minute)
    onsets = onsets_of_beats(beat)
    downbeats = strikes(4 * beat, 9)
    tracks = torch.stack([onsets, downbeats])
    period = torch.full((1, len(BEAT_FRAMES)), beat)

    folded = fastsag.fold(tracks[None], period, step, lengths, CFG)

    # Plainly, for each place: the mean of all bars, weighted by a Hann window
    bars = torch.arange(-60, 61)
    for length, rows in zip(lengths, folded, strict=True):
        assert rows.shape == (1, 2, length, len(BEAT_FRAMES))
        for place in range(length):
            distance = (beat * step * (place + length * bars)).numpy()
            time = at + distance
            hann = np.cos(np.pi / 2 * distance / 512) ** 2
            hann[(np.abs(distance) >= 512) | (time < 0) | (time >= len(BEAT_FRAMES))] = 0
            total = max(hann.sum(), 1e-3)  # where all bars are outside, the mean is 0
            for track, value in zip(tracks, rows[0, :, place, at], strict=True):
                mean = (hann * np.interp(time, BEAT_FRAMES, track)).sum() / total
                close(value, mean, 2e-3, f"place {place} of {length}")


def test_a_single_strike_and_a_note_come_in_their_rows_of_the_bar_profile():
    at = 600
    mel = torch.full((1, 100, 4 * len(BEAT_FRAMES)), math.log(1e-5))
    mel[..., 4 * at : 4 * at + 4] = 0
    onsets = fastsag.onset_envelope(fastsag.compress(mel)).mean(1)
    beat = fastsag.find_beat(onsets, CFG)[0, at]
    chroma = torch.zeros(1, 24, len(BEAT_FRAMES))
    chroma[:, 9, round(at + 8 * beat.item()) + torch.arange(-2, 3)] = 1  # an A, 8 beats later

    rows = fastsag.bar_profile(mel, chroma, CFG)[0, :, at]

    onsets_of_four, onsets_of_three, loud_of_four, loud_of_three = rows[:112].split([32, 24] * 2)
    for four, three in ((onsets_of_four, onsets_of_three), (loud_of_four, loud_of_three)):
        close(four.mean(), 0, 1e-5, "the mean over a bar of four")
        assert four.argmax() == 16 and three.argmax() == 12, "the frame is in the middle"
    loops = rows[112:].view(3, 12)  # of 8, 16, 12 beats
    assert loops[0].argmax() == 9 and loops[0, 9] > 0.1
    close(loops[0, :9], torch.zeros(9), 1e-6, "other notes")
    close(loops[1:], torch.zeros(2, 12), 1e-6, "other loops")


# --------------------------------------------------------------------------------------------------
# fastsag.py: the chart

FRAME = 1024 / RATE  # seconds per feature frame
A_MINOR_OVER_C = [0, 9, 4]  # the lowest note first


def rows_of(notes):
    """Pitch classes -> (12,), 1 at each of them."""
    return torch.isin(torch.arange(12), torch.tensor(notes)).float()


def test_a_chart_tells_bass_and_tones_of_the_chord_that_sounds_in_the_middle_of_a_frame():
    chords = [(2.4 * FRAME, 5.6 * FRAME, A_MINOR_OVER_C)]

    chart = fastsag.chart_features(chords, [], 8, CFG)

    sounds = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0.0])
    close(chart[:12], rows_of([0])[:, None] * sounds, 0.05, "bass")
    close(chart[12:24], rows_of([0, 4, 9])[:, None] * sounds, 0.05, "tones")
    close(chart[fastsag.CHART_CHORD_TOLD], sounds, 0, "told")


def test_no_chord_is_told_apart_from_nothing_told():
    chart = fastsag.chart_features([(0, 3 * FRAME, [])], [], 6, CFG)

    close(chart[:24], torch.zeros(24, 6), 0, "notes")
    close(chart[fastsag.CHART_CHORD_TOLD], [1, 1, 1, 0, 0, 0], 0, "told")


def test_an_empty_chart_is_zero():
    close(fastsag.chart_features([], [], 6, CFG), torch.zeros(27, 6), 0, "chart")


@pytest.mark.parametrize("semitones", [-1, 1, 13])
def test_a_chart_moves_with_the_pitch_of_its_clip(semitones):
    chords = [(0, 1, A_MINOR_OVER_C)]
    chart = fastsag.chart_features(chords, [], 6, CFG)

    moved = fastsag.chart_features(chords, [], 6, CFG, shift=semitones)

    close(moved[:12], chart[:12].roll(semitones, 0), 1e-5, "bass")
    close(moved[12:24], chart[12:24].roll(semitones, 0), 1e-5, "tones")


def test_half_a_semitone_lies_between_two_pitch_classes():
    chart = fastsag.chart_features([(0, 1, [0])], [], 1, CFG, shift=0.5)

    bass = chart[:12, 0]
    close(bass[0], bass[1], 1e-6, "C and C#")
    assert bass[0] > 3 * bass[2:].max()


def test_a_pulse_is_a_triangle_around_each_beat():
    beats = [0.2, 0.7, 1.21]
    centres = (np.arange(40) + 0.5) * FRAME

    pulses = fastsag.beat_pulses(beats, 40, CFG)

    plain = [max(max(0, 1 - abs(centre - beat) / 0.064) for beat in beats) for centre in centres]
    close(pulses, plain, 1e-4, "pulses")


def test_training_tells_half_of_the_clips_nothing_and_the_rest_all_kinds_of_things():
    options = {"generator": torch.Generator().manual_seed(0), "device": "cpu"}

    mask = fastsag.draw_chart_mask(4000, 64, options)

    chords = mask[:, 0].amax(1)
    beats = mask[:, fastsag.CHART_BEAT_TOLD].amax(1)
    assert set(mask.unique().tolist()) == {0, 1}
    assert (mask[:, :25] == mask[:, :1]).all(), "bass, tones and their flag together"
    assert (mask[:, 25:] == mask[:, 25:26]).all(), "pulses and their flag together"
    close(((1 - chords) * (1 - beats)).mean(), 0.5, 0.03, "nothing")
    close((chords * (1 - beats)).mean(), 0.1, 0.03, "chords only")
    close(((1 - chords) * beats).mean(), 0.15, 0.03, "beats only")
    close((chords * beats).mean(), 0.25, 0.04, "both")


def test_a_beat_that_is_not_known_costs_nothing():
    """And the loss of two clips is the mean of their own losses: processes may share them."""
    known = fastsag.chart_features([], [0.1, 0.4], 16, CFG)
    charts = torch.stack([known, torch.zeros_like(known)])
    target = 4 * known[fastsag.CHART_PULSE] - 0.5
    expected_beat = torch.stack([target + 0.5, torch.full((16,), 99.0)])

    loss = fastsag.beat_loss(expected_beat, charts)

    close(loss, fastsag.BEAT_WEIGHT * 0.25 / 2, 1e-6, "loss")
    alone = [fastsag.beat_loss(expected_beat[[i]], charts[[i]]) for i in range(2)]
    close(sum(alone) / 2, loss, 1e-6, "one clip at a time")


# --------------------------------------------------------------------------------------------------
# fastsag.py: blocks


def turned(x):
    """Rotary positions by complex numbers: x (B, heads, T, head)."""
    T, head = x.shape[2:]
    freqs = 10000 ** -(torch.arange(head // 2) / (head // 2 - 1))
    turn = torch.exp(1j * torch.arange(T)[:, None] * freqs)
    real, imaginary = x.chunk(2, -1)
    return torch.view_as_real(torch.complex(real, imaginary) * turn).flatten(3)


@pytest.mark.parametrize("shape", [(2, 48, 7), (2, 48, 5, 7)])
def test_rms_norm_equals_that_of_torch(shape):
    norm = fastsag.RMSNorm(48)
    norm.gain.data = 1 + 0.3 * noise(48)
    x = noise(*shape)

    y = norm(x)
    y_bfloat16 = norm(x.bfloat16())

    plain = F.rms_norm(x.movedim(1, -1), (48,), norm.gain, eps=1e-6).movedim(-1, 1)
    close(y, plain, 1e-5, "float32")
    assert y_bfloat16.dtype == torch.bfloat16
    close(y_bfloat16.float(), plain, 0.05, "bfloat16")


@pytest.mark.parametrize("T", [5, 8, 16, 37])
def test_local_attention_equals_plain_masked_attention(T):
    radius = 8
    head = 32
    layer = fastsag.LocalAttention(48, 2 * head, radius).requires_grad_(False)
    x = noise(2, 48, T)

    y = layer(x)

    normed = F.rms_norm(x.mT, (48,), eps=1e-6).mT
    qkv = layer.qkv(normed).transpose(1, 2).unflatten(2, (3, 2, head))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, T, head) each
    near = (torch.arange(T)[:, None] - torch.arange(T)).abs() <= radius
    heads = F.scaled_dot_product_attention(turned(q), turned(k), v, near)
    plain = heads.permute(0, 1, 3, 2).flatten(1, 2)  # (B, heads * head, T)
    close(y, x + layer.out(plain), 1e-5, f"T = {T}")


# --------------------------------------------------------------------------------------------------
# fastsag.py: diffusion


def test_the_last_step_ends_at_the_denoised_mel():
    x, denoised = noise(2, 1, 100, 16)

    end = fastsag.euler_solver(lambda *args: denoised, x, torch.tensor([2.0, 0.0]))

    close(end, denoised, 1e-6, "from sigma 2 to 0")


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_preconditioning_equals_edm_table_1(sigma, monkeypatch):
    sigma_data = 0.5
    total = math.hypot(sigma_data, sigma)  # standard deviation of data and noise
    unit, mu, expected = model_inputs(64)
    F_x = noise(1, 100, 64, seed=6)
    seen = []

    def fake_unet(*args):
        seen.extend(args)
        return F_x

    denoiser = fastsag.Denoiser(TINY)
    monkeypatch.setattr(denoiser.unet, "forward", fake_unet)

    D_x = denoiser(total * unit, torch.tensor([sigma]), mu, expected)

    c_skip = sigma_data**2 / total**2
    c_out = sigma * sigma_data / total
    close(D_x, c_skip * total * unit + c_out * F_x, 1e-5, "c_skip, c_out")
    close(seen[0], unit, 1e-5, "c_in")
    close(seen[3], [math.log(sigma) / 4], 1e-6, "c_noise")


@pytest.mark.parametrize("num_steps", [33, 65, 129])
def test_noise_levels_are_those_of_edm(num_steps):
    middle = (0.5 * 80 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7  # eq. 5
    cfg = replace(CFG, sigma_min=0.002, sigma_max=80.0)

    sigmas = fastsag.noise_levels(num_steps, cfg)

    some = sigmas[[0, num_steps // 2, -2, -1]]
    close(some, [80, middle, 0.002, 0], 1e-4, "first, middle, last two")


def test_the_error_of_the_solver_halves_with_its_steps():
    s = 0.5
    cfg = replace(CFG, sigma_min=0.002, sigma_max=80.0)
    start = torch.tensor([80.0, -24.0], dtype=torch.float64)
    exact = start * s / math.hypot(s, 80)  # for Gaussian data N(0, s^2), in closed form

    def denoise(x, sigma):
        return x * s**2 / (s**2 + sigma**2)

    errors = []
    for num_steps in (33, 65, 129):
        sigmas = fastsag.noise_levels(num_steps, cfg).double()
        x = fastsag.euler_solver(denoise, start, sigmas)
        errors.append((x - exact).abs().max().item())

    assert 1.8 < errors[0] / errors[1] < 2.2, errors
    assert 1.8 < errors[1] / errors[2] < 2.2, errors


# --------------------------------------------------------------------------------------------------
# fastsag.py: the model


@pytest.mark.parametrize("scale", [1, 3])
def test_guidance_extrapolates_from_no_condition_to_the_condition(scale):
    model = random_model()
    x, mu, expected = model_inputs(1568)
    sigma = torch.tensor([0.7])
    cond = model.denoiser(x, sigma, mu, expected)
    uncond = model.denoiser(x, sigma, 0 * mu, 0 * expected)

    guided = model.denoise_song(x, 0.7, mu, expected, scale)

    close(guided, uncond + scale * (cond - uncond), 1e-5, f"scale {scale}")


@pytest.mark.parametrize("num_steps", [4, 8])
def test_guidance_takes_a_second_evaluation_in_half_of_the_steps(num_steps):
    model = random_model()
    _, mu, expected = model_inputs(64)
    evaluations = []

    def count(*args):
        evaluations.append(1)

    model.denoiser.unet.register_forward_hook(count)
    model.sample(mu, expected, num_steps, guidance_scale=4)

    assert len(evaluations) == num_steps + num_steps // 2


def test_timbres_have_a_level_and_a_slope_of_their_own():
    timbres = fastsag.draw_timbre(4000, TINY, torch.Generator().manual_seed(0))[:, :, 0]

    levels = timbres.mean(1)
    slopes = timbres[:, -1] - timbres[:, 0]
    bends = timbres.diff(dim=1).diff(dim=1)

    assert abs(levels.std() / TINY.timbre_std - 1) < 0.05
    assert abs(slopes.std() / (2 * 3**0.5 * TINY.timbre_std) - 1) < 0.05
    assert abs(torch.corrcoef(torch.stack([levels, slopes]))[0, 1]) < 0.05
    assert bends.abs().max() < 1e-5


@pytest.mark.parametrize("seed", [0, 1])
def test_sampling_starts_at_mu_with_a_timbre_of_the_song(seed):
    cfg = replace(TINY, timbre_std=0.5)
    model = fastsag.FastSAG(cfg)
    model.denoise_song = lambda x, *rest: x  # so the sample is what it started with
    _, mu, expected = model_inputs(32768)

    start = model.sample(mu, expected, num_steps=2, seed=seed)

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(mu.shape, generator=generator)
    timbre = fastsag.draw_timbre(len(mu), cfg, generator)
    found = start - mu - noise * cfg.sigma_max / cfg.temperature
    close(found, timbre.expand_as(mu), 1e-4, "timbre")


def test_windows_of_the_unet_have_no_seam():
    model = random_model()
    x, mu, expected = model_inputs(1568)

    whole = model.denoise_song(x, 0.7, mu, expected, 1.5)
    windows = model.denoise_song(x, 0.7, mu, expected, 1.5, window=256)
    without_halo = model.denoise_song(x, 0.7, mu, expected, 1.5, window=256, halo=0)

    close(windows, whole, 1e-4, "windows")
    assert (without_halo - whole).abs().max() > 1e-2


def test_condition_does_not_depend_on_the_length_of_the_clip():
    begin = 64  # feature frames
    frames = 2400
    wav = music(2500 * 1024)[None]
    model = random_model()

    # Feature frames that the tiny preset sees to either side
    attention = 32
    convolutions = 2 * (2 + 4 + 2 + 4)
    chroma_and_resampling = 6 + 24
    beat = 512 + 15 * 32 + 32
    sees = 4 * (attention + convolutions + chroma_and_resampling + beat)  # mel frames

    _, whole = model.condition(wav)
    _, part = model.condition(wav[:, begin * 1024 : (begin + frames) * 1024])

    whole = whole[..., begin * 4 : (begin + frames) * 4]
    close(part[..., sees:-sees], whole[..., sees:-sees], 1e-4, "mu")
    assert (part - whole).abs().max() > 1e-2, "at the edges"


def test_one_pair_can_be_learnt_by_heart():
    frames = 64
    torch.manual_seed(0)
    cfg = replace(TINY, channels=(48, 32, 32), cond_dropout=0.0, input_dropout=0.0)
    model = FastSAG(cfg)
    bass = sine(110, frames * 256 / RATE, amplitude=0.1)
    vocals = music(frames * 256).expand(4, -1)
    accomp = (music(frames * 256, 3000).roll(2000) + bass).expand(4, -1)

    chart = fastsag.chart_features([], [0.1, 0.4], frames // 4, TINY)

    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(120):
        randomness = model.draw_randomness(4, frames, torch.default_generator)
        losses = model(vocals, accomp, chart.expand(4, -1, -1), randomness)
        optimizer.zero_grad()
        sum(loss.mean() for loss in losses.values()).backward()
        optimizer.step()

    log_mel = fastsag.log_mel(accomp, TINY)
    features = fastsag.music_features(accomp, log_mel, TINY)
    mel = fastsag.normalise(log_mel, TINY)
    expected, mu = model.condition(vocals)
    buried = mel + 5 * noise(*mel.shape)
    D_x = model.denoiser(buried, torch.tensor([5.0]), mu, expected)
    pulse_error = fastsag.expected_pulse(expected) - chart[fastsag.CHART_PULSE]
    assert (expected[:, :28] - features).square().mean() < 0.15 * features.var()
    assert pulse_error.square().mean() < 0.15 * chart[fastsag.CHART_PULSE].var()
    assert (mu - mel).square().mean() < 0.15 * mel.var()
    assert (D_x - mel).square().mean() < 0.15 * mel.var()


def model_without(idea):
    """The random model, one idea of which is left out."""
    model = random_model()
    model.cfg = replace(model.cfg, without=idea)
    return model


@pytest.mark.parametrize("idea", ["", *fastsag.IDEAS])
def test_an_idea_can_be_left_out(idea):
    frames = 64
    model = model_without(idea)
    vocals = music(frames * 256)[None]
    accomp = music(frames * 256, 3000)[None]
    chart = fastsag.chart_features([], [0.1, 0.4], frames // 4, TINY)[None]
    randomness = model.draw_randomness(1, frames, torch.Generator().manual_seed(0))

    losses = model(vocals, accomp, chart, randomness)
    expected, mu = model.condition(vocals)
    mel = model.sample(mu, expected, num_steps=2)

    zeros = {name for name, loss in losses.items() if loss.mean() == 0}
    left_out = {"semantic-loss": {"semantic", "beat"}, "prior-loss": {"prior"}}
    left_out["diffusion"] = {"diffusion"}
    assert zeros == left_out.get(idea, set())
    assert (expected == 0).all() == (idea == "semantic")
    assert (mu == 0).all() == (idea == "prior")
    assert torch.equal(mel, mu) == (idea == "diffusion")


def test_a_run_from_weights_without_an_idea_leaves_it_out_too(tmp_path):
    model_without("prior").save(tmp_path / "weights.pt")
    options = train_options(tmp_path / "run", f"--start {tmp_path}/weights.pt")

    run = train.Run(options, torch.device("cpu"))

    assert run.model.cfg.without == "prior"


def test_without_the_bar_profile_it_has_no_effect(monkeypatch):
    model = model_without("bar-profile")
    vocals = music(64 * 256)[None]
    expected, _ = model.condition(vocals)

    monkeypatch.setattr(fastsag, "bar_profile", lambda mel, chroma, cfg: noise(1, 148, 16))

    close(model.condition(vocals)[0], expected, 0, "expected")


def test_saved_weights_come_back_in_half_precision(files):
    model = FastSAG.load(files / "tiny.pt", "cpu")

    for weight, saved in zip(model.parameters(), random_model().parameters(), strict=True):
        close(weight, saved.half(), 0, "half precision")


# --------------------------------------------------------------------------------------------------
# fastsag.py: vocoder


def test_griffin_lim_rebuilds_a_mel():
    wav = (music(600 * 256, 6000) + sine(220, 6.4, amplitude=0.1))[None]
    mel = fastsag.log_mel(wav, CFG)

    rebuilt = fastsag.log_mel(fastsag.griffin_lim(mel, CFG), CFG)

    assert (rebuilt - mel).abs().mean() < 0.3  # random phases give 0.69


def test_match_mel_corrects_a_spectrum():
    wav = (music(600 * 256, 6000) + sine(220, 6.4, amplitude=0.1))[None]
    mel = fastsag.log_mel(wav, CFG)
    filters = fastsag.mel_filterbank(24000, 1024, 100)
    wrong = fastsag.stft(wav, 1024, 256) * torch.exp(noise(1, 513, 1))  # bins too loud or soft

    def distance(spec):
        """Mean distance of a spectrum's log-mel from mel."""
        return ((filters @ spec.abs()).clamp(min=1e-5).log() - mel).abs().mean()

    matched = fastsag.match_mel(wrong, mel, CFG)

    assert distance(matched) < 0.5 * distance(wrong)


def test_pieces_of_the_vocoder_have_no_seam():
    vocoder = random_model().vocoder
    _, mel, _ = model_inputs(1568)

    whole = vocoder.vocode_song(mel)
    pieces = vocoder.vocode_song(mel, piece=256)
    without_halo = vocoder.vocode_song(mel, piece=256, halo=0)

    close(pieces, whole, 1e-4, "pieces")
    assert (without_halo - whole).abs().max() > 1e-2


# --------------------------------------------------------------------------------------------------
# fastsag.py: the chart as text


@pytest.mark.parametrize(
    "label, notes",
    [
        pytest.param("C", [0, 4, 7]),
        pytest.param("Am", [9, 0, 4]),
        pytest.param("F#m7", [6, 9, 1, 4]),
        pytest.param("Bb", [10, 2, 5]),
        pytest.param("G7", [7, 11, 2, 5]),
        pytest.param("Dsus4", [2, 7, 9]),
        pytest.param("Edim", [4, 7, 10]),
        pytest.param("C/E", [4, 0, 7]),
        pytest.param("Am7/G", [7, 9, 0, 4]),
        pytest.param("C/Bb", [10, 0, 4, 7], id="C/Bb, a bass beside the chord"),
        pytest.param("Cb", [11, 3, 6]),
        pytest.param("Ebmaj7", [3, 7, 10, 2]),
        pytest.param("Bm7b5", [11, 2, 5, 9]),
        pytest.param("Caug", [0, 4, 8]),
        pytest.param("Asus2", [9, 11, 4]),
        pytest.param("D6", [2, 6, 9, 11]),
        pytest.param("Dm6", [2, 5, 9, 11]),
        pytest.param("G9", [7, 11, 2, 5, 9]),
        pytest.param("N", []),
        pytest.param("C:maj", [0, 4, 7]),
        pytest.param("A:min7", [9, 0, 4, 7]),
        pytest.param("C:maj/3", [4, 0, 7]),
        pytest.param("D:7/b7", [0, 2, 6, 9]),
    ],
)
def test_labels_name_notes_the_lowest_first(label, notes):
    assert fastsag.parse_chord(label) == notes


@pytest.mark.parametrize(
    "label",
    ["", "H", "c", "Cmoll", "Am/", "C/H", "C/8", "/E", "C//E", "N/C", "C##", "7", "#", "🎤"],
)
def test_what_is_no_label_is_refused(label):
    with pytest.raises(UserError, match="is not known; C, Am"):
        fastsag.parse_chord(label)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0.000000\t1.500000\tC\n1.5\t2\tF#m7\n", id="Audacity"),
        pytest.param("0 1.5 C\n1.5 2 F#m7", id="MIREX"),
        pytest.param("\ufeff0 1.5 C\r\n\r\n  1.5   2 F#m7  \r\n", id="Windows, blank lines"),
        pytest.param("0 1.5 C\n\\\t100.0\t200.0\n1.5 2 F#m7", id="Audacity with frequencies"),
    ],
)
def test_a_chart_is_read(text, tmp_path):
    path = tmp_path / "chart.txt"
    path.write_bytes(text.encode())

    assert sample.read_chart(path) == [(0, 1.5, "C"), (1.5, 2, "F#m7")]


def test_a_chart_that_is_written_is_read_again(tmp_path):
    chart = [(0.0, 1.234, "C"), (1.234, 2.5, "F#m7/E"), (2.5, 3.0, "N")]
    path = tmp_path / "chart.txt"

    path.write_text(sample.format_chart(chart))

    assert sample.read_chart(path) == chart


def test_chords_are_sorted_and_an_unknown_one_is_left_out():
    chart = [(2, 3, "G"), (0, 1, "C"), (1, 2, "X")]

    assert fastsag.parse_chart(chart, 3) == [(0, 1, [0, 4, 7]), (2, 3, [7, 11, 2])]


@pytest.mark.parametrize(
    "bpm, told",
    [(96, 96), (30, 60), (40, 80), (50, 50), (180, 180), (200, 100), (300, 150)],
)
def test_slow_and_fast_tempos_are_told_in_octaves_that_the_model_knows(bpm, told):
    assert fastsag.told_tempo(bpm) == told


def test_beats_go_on_to_both_ends_of_the_song():
    close(fastsag.regular_beats(120, 1.2, 3), [0.2, 0.7, 1.2, 1.7, 2.2, 2.7], 1e-9, "beats")


def noisy_pulses(bpm, first_beat, seconds):
    """Expected pulses of a model that is not sure, and the true beats."""
    beats = fastsag.regular_beats(bpm, first_beat, seconds)
    pulses = fastsag.beat_pulses(beats, int(seconds / FRAME), CFG)
    return 0.6 * pulses + 0.2 * noise(len(pulses)), np.array(beats)


@pytest.mark.parametrize("bpm", [58, 72, 90, 110, 133])
def test_beats_are_tracked(bpm):
    pulses, beats = noisy_pulses(bpm, 0.37, 40)

    tracked = np.array(sample.track_beats(pulses.numpy(), CFG))

    distance = np.abs(tracked[:, None] - beats).min(1)
    assert len(tracked) > 0.95 * len(beats)
    assert (distance < 0.05).mean() > 0.95


def test_a_tempo_that_was_told_is_not_halved():
    beats = fastsag.regular_beats(170, 0.3, 40)
    pulses = fastsag.beat_pulses(beats, int(40 / FRAME), CFG).numpy()

    tracked = sample.track_beats(pulses, CFG, period=round(60 / 170 / FRAME))

    assert len(tracked) > 0.95 * len(beats)


def test_without_any_pulse_the_likely_tempo_is_taken():
    tracked = sample.track_beats(np.zeros(400), CFG)

    close(np.diff(tracked), 0.6 * torch.ones(len(tracked) - 1), 0.03, "seconds per beat")


@pytest.mark.parametrize("num_frames", [1, 12, 30])
def test_a_short_song_has_few_beats_or_none(num_frames):
    beats = sample.track_beats(np.ones(num_frames), CFG)

    assert all(0 < beat < num_frames * FRAME for beat in beats)


@pytest.mark.parametrize("bpm, first_beat", [(60, 0.1), (96, 0.55), (170, 0.3)])
def test_the_first_beat_is_found(bpm, first_beat):
    pulses, beats = noisy_pulses(bpm, first_beat, 40)

    found = fastsag.find_first_beat(pulses, bpm, CFG)

    assert np.abs(beats - found).min() < 0.03


def chroma_of_chart(chart):
    """(2, 12, frames) as a band would have it that plays these chords, with a little of all."""
    seconds = chart[-1][1]
    rows = fastsag.chart_features(
        fastsag.parse_chart(chart, seconds), [], round(seconds / FRAME), CFG
    )
    rows = rows[:24].unflatten(0, (2, 12)) + 0.1 * noise(2, 12, rows.shape[1]).abs()
    return rows / rows.norm(dim=1, keepdim=True)


def test_chords_are_recognised_on_beats():
    labels = ["C", "Am", "F", "G7", "Bdim", "Em/G", "Dsus4", "F#m7", "A/C#", "C/E"]
    chart = [(float(i), i + 1.0, label) for i, label in enumerate(labels)]
    beats = np.arange(20) / 2

    found = sample.recognise_chords(chroma_of_chart(chart), beats, 10, CFG)

    assert found == chart


def test_chords_are_named_with_flats_in_flat_keys():
    assert sample.name_chords([(5, "", 5), (10, "", 10), (7, "m7", 10)]) == ["F", "Bb", "Gm7/Bb"]
    assert sample.name_chords([(9, "", 1), (2, "", 2), (6, "m", 6)]) == ["A/C#", "D", "F#m"]


def test_silence_is_no_chord():
    chroma = chroma_of_chart([(0, 4, "C")])
    chroma[:, :, len(chroma[0, 0]) // 2 :] = 0

    found = sample.recognise_chords(chroma, [1, 2, 3], 4, CFG)

    assert found == [(0, 2, "C"), (2, 4, "N")]


def test_a_bass_alone_is_heard():
    chroma = chroma_of_chart([(0, 4, "A")])
    chroma[1] = 0

    ((begin, end, label),) = sample.recognise_chords(chroma, [1, 2, 3], 4, CFG)

    assert (begin, end) == (0, 4)
    assert fastsag.parse_chord(label)[0] == 9


def told_of(**told):
    """The chart of a song of 4 s that is told so: (27, 94)."""
    model = random_model()
    wav = music(94 * 1024)[None]
    return model.tell(wav, 4.0, **told)[0]


def test_the_first_chord_begins_on_a_beat():
    chart = told_of(chart=[(0.7, 2.7, "C")], bpm=60)

    close(chart[fastsag.CHART_PULSE], fastsag.beat_pulses([0.7, 1.7, 2.7, 3.7], 94, CFG), 1e-4)
    close(chart[fastsag.CHART_BEAT_TOLD].mean(), 1, 0, "beats are told")
    close(chart[fastsag.CHART_CHORD_TOLD].sum() * FRAME, 2.0, 0.05, "seconds of chords")


def test_a_chord_that_begins_with_the_file_tells_no_beat():
    chart = told_of(chart=[(0, 0.7, "N"), (0.7, 2.7, "C")], bpm=60)

    close(chart[fastsag.CHART_PULSE], fastsag.beat_pulses([0.7, 1.7, 2.7, 3.7], 94, CFG), 1e-4)


def test_a_first_beat_goes_before_the_chords():
    chart = told_of(chart=[(0.7, 2.7, "C")], bpm=60, first_beat=0.2)

    close(chart[fastsag.CHART_PULSE], fastsag.beat_pulses([0.2, 1.2, 2.2, 3.2], 94, CFG), 1e-4)


def test_a_tempo_alone_gets_its_first_beat_from_the_model():
    pulses = told_of(bpm=60)[fastsag.CHART_PULSE]

    beats = (np.flatnonzero(pulses > 0.6) + 0.5) * FRAME
    close(np.diff(beats)[np.diff(beats) > 0.1], torch.ones(3), 0.06, "seconds between beats")


def test_nothing_told_is_the_same_as_no_chart():
    model = random_model()
    wav = music(96 * 1024)[None]

    assert model.tell(wav, 4.0) is None
    assert model.tell(wav, 4.0, chart=[]) is None
    with pytest.raises(UserError, match="needs a tempo"):
        model.tell(wav, 4.0, first_beat=1.0)
    expected, _ = model.condition(wav)
    expected_of_zeros, _ = model.condition(wav, torch.zeros(1, 27, 96))
    close(expected, expected_of_zeros, 0, "expected")


def test_what_is_told_changes_what_is_expected():
    model = random_model()
    wav = music(96 * 1024)[None]
    expected, _ = model.condition(wav)

    for told in ({"chart": [(0, 4, "C")]}, {"chart": [(0, 4, "C/E")]}, {"bpm": 96}):
        changed, _ = model.condition(wav, model.tell(wav, 4.1, **told))
        assert (changed - expected).abs().max() > 1e-3, told


def test_accompany_takes_a_chart():
    model = random_model()
    vocals = music(4 * RATE).numpy()

    plain = model.accompany(vocals, RATE, num_steps=2)
    told = model.accompany(vocals, RATE, num_steps=2, chart=[(0, 4, "C")], bpm=96, first_beat=0.1)

    assert plain.shape == told.shape
    assert np.abs(plain - told).max() > 1e-3


# --------------------------------------------------------------------------------------------------
# fastsag.py: resampling

CUT = 7  # samples less than a second: no whole number of steps


@pytest.mark.parametrize(
    "rate_in, rate_out, hz, atol",
    [
        pytest.param(44100, 24000, 10000, 1e-3, id="44100 to 24000"),
        pytest.param(24000, 44101, 440, 1e-2, id="24000 to 44101, which may drift"),
    ],
)
def test_resampling_keeps_a_sine(rate_in, rate_out, hz, atol):
    wav = sine(hz, rate=rate_in, phase=0.3)[:-CUT]

    resampled = fastsag.resample(wav, rate_in, rate_out)

    expected = sine(hz, rate=rate_out, phase=0.3)[: len(resampled)]
    close(resampled[500:-500], expected[500:-500], atol, f"{hz} Hz")


@pytest.mark.parametrize(
    "rate_in, hz",
    [
        pytest.param(44101, 13000, id="13 kHz at 44101"),
        pytest.param(96000, 40000, id="40 kHz at 96000"),
    ],
)
def test_resampling_keeps_aliases_under_60_db(rate_in, hz):
    wav = sine(hz, rate=rate_in, phase=0.3)[:-CUT]

    resampled = fastsag.resample(wav, rate_in, 24000)

    silence = torch.zeros(len(resampled))
    close(resampled[500:-500], silence[500:-500], 5e-4, f"{hz} Hz")


@pytest.mark.parametrize(
    "rate_in, rate_out",
    [
        pytest.param(44100, 24000, id="44100 to 24000"),
        pytest.param(24000, 44101, id="24000 to 44101"),
        pytest.param(44101, 24000, id="44101 to 24000"),
        pytest.param(96000, 24000, id="96000 to 24000"),
    ],
)
def test_resampling_rounds_lengths_up(rate_in, rate_out):
    length = rate_in - CUT

    resampled = fastsag.resample(torch.zeros(length), rate_in, rate_out)

    assert len(resampled) == math.ceil(length * rate_out / rate_in)


# --------------------------------------------------------------------------------------------------
# Training on a GPU, on machines without one.
#
# A tensor on the meta device has a shape and no values. What would make a GPU slow or fail raises
# an error here: a tensor made on another device, and a value that the host reads back.


@pytest.fixture
def without_autocast(monkeypatch):
    """torch.autocast refuses the meta device; without values, precision does not matter."""

    def no_autocast(*args, **kwargs):
        return contextlib.nullcontext()

    monkeypatch.setattr(torch, "autocast", no_autocast)


def on_meta(randomness):
    """What draw_randomness() gave, moved to the meta device."""
    return {name: value.to(META) for name, value in randomness.items()}


def meta_batch(length):
    """Two clips of another speed from the reader, on the meta device: vocals, accomp, chart."""
    songs = songs_in_memory(1, 10 * RATE)
    clips = train.read_clips(songs, np.random.default_rng(0), 2, length, speed_range=0.06)
    vocals, accomp = train.to_waveforms(clips, length, META)
    vocals = train.augment(vocals, None, 2)
    return vocals, accomp, clips.charts.to(META)


class NoOptimizer(torch.optim.Optimizer):
    """Leaves the weights alone: the fused optimizer refuses the meta device."""

    def __init__(self, trained, **options):
        super().__init__(trained, options)

    def step(self):
        pass


def test_a_training_step_of_the_model_stays_on_its_device(
    without_autocast, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.optim, "AdamW", NoOptimizer)
    run = train.Run(train_options(tmp_path), META)
    log = train.Log(world=1, reader=SimpleNamespace())
    frames = 256
    vocals, accomp, chart = meta_batch(frames * 256)
    randomness = on_meta(run.task.draw_randomness(2, frames, torch.default_generator))

    losses = run.task(vocals, accomp, chart, randomness)
    norm, _ = run.update(losses, share=0.5)
    log.add(norm, losses, audio=1.0)

    assert losses.keys() == {"semantic", "beat", "prior", "diffusion"}
    assert log.rows[0].device == META
    assert run.step == 1


@pytest.mark.parametrize("discriminator", [None, 0, 1, 2])
def test_a_training_step_of_the_vocoder_stays_on_its_device(discriminator, without_autocast):
    model = FastSAG(TINY)
    model.vocoder = fastsag.Vocoder(TINY)
    task = train.VocoderTask(model).to(META)
    frames = 64
    vocals, accomp, chart = meta_batch(frames * 256)
    randomness = on_meta(task.draw_randomness(2, frames, torch.default_generator))

    losses = task(vocals, accomp, chart, randomness, discriminator)
    sum(loss.mean() for loss in losses.values()).backward()

    assert ("adversarial" in losses) == (discriminator is not None)
    assert all(weight.grad is not None for weight in model.vocoder.parameters())


@pytest.mark.parametrize("vocoder", ["neural", "griffinlim"])
def test_playing_along_stays_on_its_device(vocoder, without_autocast):
    model = random_model().to(META)
    frames = 256
    vocals = torch.zeros(1, frames * 256, device=META)

    expected, mu = model.condition(vocals)
    mel = model.sample(mu, expected, num_steps=4)
    accomp = model.vocode(fastsag.denormalise(mel, TINY), vocoder)

    assert accomp.shape == vocals.shape
    assert accomp.device == META


def losses_and_gradient(model, frames):
    """The four losses (4,) on clips of noise, and the gradient of their sum as one vector."""
    vocals = 0.1 * noise(2, frames * 256)
    accomp = 0.1 * noise(2, frames * 256, seed=1)
    chart = noise(2, fastsag.N_CHART, frames // 4, seed=2).abs()
    randomness = model.draw_randomness(2, frames, torch.Generator().manual_seed(2))

    model.zero_grad()
    losses = model(vocals, accomp, chart, randomness)
    means = torch.stack([loss.mean() for loss in losses.values()])
    means.sum().backward()
    gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    return means.detach(), gradient


@pytest.fixture
def fresh_compiler():
    """torch's compiler without any compiled code, before and after; yields its statistics."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # Code without vector instructions: it takes two thirds of the time to compile.
    with torch._inductor.config.patch({"cpp.simdlen": 1}):
        yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_compiled_networks_give_the_same_losses_and_gradients(fresh_compiler):
    torch.manual_seed(0)
    eager = FastSAG(replace(TINY, channels=(16, 32)))  # a level less: faster to compile
    for weight in eager.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    compiled = copy.deepcopy(eager)

    # As train.compile_networks does. The prior has no layer that the semantic projection has not.
    compiled.semantic.compile(dynamic=False)
    compiled.denoiser.unet.compile(dynamic=False)

    for frames in (4 * 256, 4 * 1024):  # short and long clips
        expected_losses, expected_gradient = losses_and_gradient(eager, frames)
        losses, gradient = losses_and_gradient(compiled, frames)

        close(losses / expected_losses, torch.ones(4), 1e-4, "losses")
        assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()

    # In one graph each: the projection for two lengths of clips, the U-Net for its segment
    assert fresh_compiler["unique_graphs"] == 2 + 1


# --------------------------------------------------------------------------------------------------
# demo/


def demo_songs(files):
    """All songs of the set in `files`: [(facts, pair, gains)]."""
    return prep.read_set(files / "set", "train") + prep.read_set(files / "set", "val")


@pytest.mark.parametrize(
    "split, held_out",
    [
        pytest.param("train", False, id="train"),
        pytest.param("val", True, id="val"),
    ],
)
def test_every_8th_voice_and_band_is_for_validation_only(split, held_out, files):
    for facts, _, _ in prep.read_set(files / "set", split):
        assert (facts["voice"] % 8 == 0) == held_out
        assert (facts["band"] % 8 == 0) == held_out


def test_demo_songs_are_as_long_as_asked_for_and_do_not_clip(files):
    for facts, pair, _ in demo_songs(files):
        assert len(pair) == 8 * RATE, facts["name"]
        assert np.abs(pair / 32768).max() < 1, facts["name"]


def test_voice_and_band_share_no_noise(files):
    for facts, pair, _ in demo_songs(files):
        hiss = np.diff(pair / 32768, 4, axis=0).T  # what remains is mostly noise
        spectra = np.fft.rfft(hiss / np.linalg.norm(hiss, axis=1, keepdims=True))

        correlation_at_any_lag = np.fft.irfft(spectra[0] * spectra[1].conj())

        assert np.abs(correlation_at_any_lag).max() < 0.05, facts["name"]


def test_the_levels_in_a_set_are_right(files):
    for facts, pair, _ in demo_songs(files):
        vocals, accomp = (pair / 32768).T
        close(facts["vocals_dbfs"], fastsag.active_dbfs(vocals, RATE), 0.02, facts["name"])
        close(facts["accomp_dbfs"], fastsag.active_dbfs(accomp, RATE), 0.02, facts["name"])


def test_demo_songs_begin_anywhere_in_a_beat(files):
    first_beats = []
    for facts, _, _ in demo_songs(files):
        first_beats.append(facts["beats"][0] * facts["tempo"] / 60)

    assert np.ptp(first_beats) > 0.4, "from 0 to 1"


# --------------------------------------------------------------------------------------------------
# demo/: lead sheets

# Three bars. Bar 1: C, then G on the third beat. Bar 2: G, nobody sings. Bar 3: no chord.
TUNE = {
    "name": "tune",
    "tempo": 100,
    "meter": 4,
    "first_bar": 0,
    "notes": [
        [0, 0.75, 60],
        [1, 0.5, 64],
        [2, 1.0, 67],
        [8, 2.0, 60],
    ],
    "chords": [
        [0, [0, 4, 7]],
        [2, [7, 11, 2]],
        [8, []],
        [12, []],
    ],
}


def write_lines(path, *lines):
    """A file of these lines: dicts become JSON, texts stay as they are."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def tune_as_score(folder, seed, **changes):
    """The tune, arranged for a singer from F (65) to C (72)."""
    path = write_lines(folder / "tune.jsonl", TUNE | changes)
    [sheet], skipped = read_lead_sheets(path)
    assert not skipped
    return arrange_sheet(np.random.default_rng(seed), sheet, low=65, high=72, seconds=12)


@pytest.mark.parametrize("seed", range(6))
def test_a_lead_sheet_is_transposed_and_its_notes_are_held(seed, tmp_path):
    score = tune_as_score(tmp_path, seed)

    # The melody, C to G, fits in only one key: five semitones higher, from F to C.
    f_major = [5, 9, 0]
    c_major = [0, 4, 7]
    bars = [
        [f_major, f_major, c_major, c_major],
        [c_major, c_major, c_major, c_major],
        [[], [], [], []],
    ]
    number = bars.index(score.bars[0].chords)  # of the bar in which the stretch begins
    for bar in score.bars:
        assert bar.chords == bars[number % 3]
        assert (bar.section in ("intro", "gap")) == (number % 3 == 1)
        number += 1

    # The first note is held over a quarter of a beat. The second is not: the rest is half a beat.
    first_beat = 4 * bars.index(score.bars[0].chords)
    sung = {((first_beat + note.beat) % 12, note.beats, note.midi) for note in score.notes}
    assert sung == {(0, 1, 65), (1, 0.5, 69), (2, 1, 72), (8, 2, 65)}
    assert all(note.begins_phrase == ((first_beat + note.beat) % 12 != 1) for note in score.notes)


def test_a_lead_sheet_keeps_its_tempo_and_fills_the_recording(tmp_path):
    for seed in range(20):
        score = tune_as_score(tmp_path, seed)

        assert 90 <= score.tempo <= 110
        assert score.meter == score.style.meter == 4
        assert score.seconds(0) <= 0
        assert score.seconds(4 * len(score.bars)) >= 12


def test_two_bars_of_two_beats_are_one_of_four(tmp_path):
    score = tune_as_score(tmp_path, 0, meter=2)

    assert score.meter == score.style.meter == 4


def test_an_upbeat_stands_before_the_first_bar_line(tmp_path):
    score = tune_as_score(tmp_path, 0, first_bar=1)

    # With three empty beats before it, the tune is four bars long; its low notes are on beat 4.
    for note in score.notes:
        if note.midi == 65:
            assert note.beat % 4 == 3
    assert [] in [bar.chords[0] for bar in score.bars]


@pytest.mark.parametrize("seed", range(12))
def test_the_band_follows_the_chords_within_a_bar(seed, tmp_path):
    score = tune_as_score(tmp_path, seed)
    band = draw_band(seed * NUM_BANDS // 12)
    chords = [chord for bar in score.bars for chord in bar.chords]

    events = list(play(np.random.default_rng(seed), band, score))

    harmony = [event for event in events if event.player != "drums"]
    for event in harmony:
        chord = chords[int(event.beat)]
        assert event.sound % 12 in chord, "no chord has no tones"

        # What is held ends with its chord. Short and picked tones have lengths of their own.
        if event.player in ("bass", "pad"):
            until = event.beat + event.beats
            assert all(chords[i] == chord for i in range(int(event.beat), int(np.ceil(until))))

    bass = {event.beat: event.sound % 12 for event in events if event.player == "bass"}
    for beat in range(1, len(chords)):
        if chords[beat] and chords[beat] != chords[beat - 1]:
            assert bass[beat] == chords[beat][0], "the root of the new chord"


# A whole line, or what is changed in the tune -> a part of the reason
BROKEN = [
    ('{"name": "tune", "tempo": 100', "not JSON"),
    ("[" * 100000, "not JSON"),
    ("[1, 2]", "not a JSON object"),
    ('{"name": "tune"}', "tempo is missing"),
    ({"name": 7}, "name is 7"),
    ({"tempo": 19}, "tempo is 19"),
    ({"tempo": float("nan")}, "tempo is nan"),
    ({"tempo": "fast"}, "tempo is 'fast'"),
    ({"meter": 3.5}, "meter is 3.5"),
    ({"meter": True}, "meter is True"),
    ({"meter": 10**30}, "meter is 1000"),
    ({"first_bar": 4}, "first_bar is 4"),
    ({"notes": []}, "at least one note"),
    ({"notes": [[0, 1]]}, "note 1 is [0, 1]"),
    ({"notes": [[-1, 1, 60]]}, "note 1 begins at -1"),
    ({"notes": [[0, 0, 60]]}, "note 1 has the length 0"),
    ({"notes": [[0, 1, 128]]}, "note 1 has the pitch 128"),
    ({"notes": [[0, 1, 60.5]]}, "note 1 has the pitch 60.5"),
    ({"notes": [[0, 2, 60], [1, 1, 62]]}, "note 2 begins at 1, before the end of note 1"),
    ({"notes": [[4, 1, 60], [2, 1, 62]]}, "note 2 begins at 2, before the end of note 1"),
    ({"notes": [[12, 1, 60]]}, "the song ends at 12"),
    ({"notes": [[8, 1, 60]]}, "no chord sounds together with the melody"),
    ({"chords": []}, "chords must be a list"),
    ({"chords": [[0, [0, 4, 7]], 12]}, "chord 2 is 12"),
    ({"chords": [[0, [0, 4, 7]], [0, []]]}, "chord 2 begins at 0"),
    ({"chords": [[0, [0, 4, 7]], [1.5, []]]}, "chord 2 begins at 1.5"),
    ({"chords": [[4, [0, 4, 7]], [12, []]]}, "the first chord begins at 4"),
    ({"chords": [[0, [0, 4, 12]], [12, []]]}, "chord 1 is [0, 4, 12]"),
    ({"chords": [[0, [0, 7]], [12, []]]}, "chord 1 is [0, 7]"),
    ({"chords": [[0, [0, 4, 7]], [12, [0, 4, 7]]]}, "the last chord must be []"),
]


@pytest.mark.parametrize("line, reason", BROKEN)
def test_a_broken_line_is_named_and_skipped(line, reason, tmp_path, capsys):
    if isinstance(line, dict):
        line = TUNE | line
    path = write_lines(tmp_path / "tunes.jsonl", TUNE, "", line, TUNE | {"meter": 5})

    sheets = prep.load_sheets([path])

    out, err = capsys.readouterr()
    named, other_meter = err.splitlines()
    assert len(sheets) == 1
    assert named.startswith(f"prep.py: skipped: {path}, line 3: ") and reason in named
    assert other_meter.endswith("a meter that no style of the band has: 1")
    assert out == "lead sheets: 1, skipped: 2\n"


REFUSED = [
    ("broken.jsonl", "no usable lead sheet"),
    ("binary.jsonl", "is not text"),
    ("latin.jsonl", "is not text in UTF-8"),
    ("missing.jsonl", "No such file"),
    (".", "Is a directory"),
    ("/dev/zero", "is not text"),
]


@pytest.mark.parametrize("name, sentence", REFUSED)
def test_a_file_without_lead_sheets_is_refused(name, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "broken.jsonl", "{", TUNE | {"tempo": 0})
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)))
    (tmp_path / "latin.jsonl").write_bytes("Für Elise".encode("latin-1"))

    with pytest.raises(SystemExit) as exit_info:
        prep.main(["--scores", name, "--out", "set"])

    last_line = capsys.readouterr().err.splitlines()[-1]
    assert exit_info.value.code == 2
    assert last_line.startswith("prep.py: error: ") and sentence in last_line
    assert not (tmp_path / "set").exists()


def test_lead_sheets_and_stems_exclude_each_other(tmp_path, capsys):
    path = write_lines(tmp_path / "tune.jsonl", TUNE)

    with pytest.raises(SystemExit) as exit_info:
        prep.main([str(tmp_path), "--scores", path])

    assert exit_info.value.code == 2
    assert "lead sheets or stems" in capsys.readouterr().err


def test_every_sheet_is_used_before_one_is_used_again():
    splits = ["val"] * 3 + ["train"] * 20

    dealt = deal(list("abcdefghijkl"), seed=1, splits=splits)

    known = dealt[3:]
    assert len(set(dealt[:3])) == 3 and len(set(known[:9])) == 9
    assert not set(dealt[:3]) & set(known)
    assert known[9:18] == known[:9]
    assert deal(["a"], seed=1, splits=["val", "train", "train"]) == ["a", "a", "a"]


def test_songs_from_lead_sheets_do_not_depend_on_the_number_of_workers(tmp_path):
    lines = [TUNE | {"name": f"tune {number}"} for number in range(4)]
    path = write_lines(tmp_path / "tunes.jsonl", *lines)
    options = ["--scores", path, "--songs", "4", "--seconds", "8"]

    prep.main([*options, "--workers", "1", "--out", str(tmp_path / "one")])
    prep.main([*options, "--workers", "2", "--out", str(tmp_path / "two")])

    for name in prep.FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    songs = prep.read_set(tmp_path / "one", "train") + prep.read_set(tmp_path / "one", "val")
    assert {facts["name"] for facts, *_ in songs} == {f"tune {number}" for number in range(4)}
    for facts, pair, _ in songs:
        assert np.abs(pair).max(0).min() > 1000, "both columns sound"
        assert {len(chord) for *_, chord in facts["chords"]} == {0, 3}, "triads, and none"


# --------------------------------------------------------------------------------------------------
# prep.py: stems

VOCALS = ["vocals"]
BAND = ["drums", "bass", "other"]

# file, sample rate, the stems that are heard in each channel
STEM_FILES = [
    ("a/vocals.wav", 44100, [VOCALS, VOCALS]),
    ("a/drums.wav", 16000, [["drums"], ["drums"]]),
    ("a/bass.wav", 48000, [["bass"]]),
    ("a/other.wav", 22050, [["other"], ["other"]]),
    ("a/mixture.wav", 32000, [["silence"]]),
    ("b/vocals.wav", 44100, [VOCALS]),
    ("b/mixture.wav", 16000, [VOCALS + BAND]),
    ("c/singer_1_01.wav", 48000, [BAND, VOCALS]),
    ("d/vocals.flac", 22050, [VOCALS]),
    ("d/no_vocals.flac", 32000, [BAND]),
    ("e/vocals.wav", 44100, [["late vocals"]]),
    ("e/no_vocals.wav", 16000, [["early band"]]),
    ("f/My_vocals.wav", 48000, [VOCALS]),
    ("f/My_accompaniment.wav", 22050, [BAND]),
    ("f/Your_vocals.wav", 32000, [VOCALS]),
]


def make_stems():
    """{name: (L,)}: twelve seconds of noise below 4 kHz for each stem."""
    sounds = fastsag.resample(noise(4, 12 * 8000) / 20, 8000, RATE)
    stems = dict(zip(VOCALS + BAND, sounds, strict=True))
    stems["silence"] = torch.zeros(12 * RATE)
    stems["vocals"][-int(3.5 * RATE) :] = 0  # a rest that is too short to be cut out

    # In turns: there is no stretch in which both sound.
    is_late = torch.arange(12 * RATE) > 3.5 * RATE
    stems["late vocals"] = stems["vocals"] * is_late
    stems["early band"] = stems["other"] * ~is_late
    return stems


def cut_into_clips(path):
    """Makes clips 1, 2 and 4 of clip 1, as MIR-1K cuts a recording; 1 and 2 belong together."""
    wav, rate = soundfile.read(path)
    soundfile.write(path, wav[: 5 * rate], rate)
    soundfile.write(path.with_stem("singer_1_02"), wav[5 * rate :], rate)
    soundfile.write(path.with_stem("singer_1_04"), wav, rate)


@dataclass
class StemSet:
    """A set that was made of STEM_FILES."""

    path: Path
    vocals_and_band: torch.Tensor  # (L, 2): what each song should hold
    err: str  # what prep.py said on stderr


@pytest.fixture(scope="module")
def stem_set(tmp_path_factory):
    """STEM_FILES, written and made into a StemSet."""
    folder = tmp_path_factory.mktemp("stems")
    stems = make_stems()
    for name, rate, channels in STEM_FILES:
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wav = torch.stack([sum(stems[stem] for stem in heard) for heard in channels])
        soundfile.write(path, fastsag.resample(wav, RATE, rate).T, rate)
    cut_into_clips(folder / "in/c/singer_1_01.wav")

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        prep.main([str(folder / "in"), "--out", str(folder / "set")])

    band = sum(stems[stem] for stem in BAND)
    pair = torch.stack([stems["vocals"], band], dim=1)
    return StemSet(folder / "set", pair, err.getvalue())


def test_stems_end_up_in_their_columns(stem_set):
    expected = stem_set.vocals_and_band.numpy()[999 : 11 * RATE]
    scale = stem_set.vocals_and_band.numpy().std()

    for split in ("train", "val"):
        for facts, pair, _ in prep.read_set(stem_set.path, split):
            close(pair[999 : 11 * RATE] / pair.std(), expected / scale, 0.05, facts["name"])


def test_all_stretches_of_a_singer_are_in_one_split(stem_set):
    known = prep.read_set(stem_set.path, "train")
    new = prep.read_set(stem_set.path, "val")

    assert (len(known), len(new)) == (4, 2), "the singer's two are for validation"


def test_useless_stems_are_skipped_with_a_reason(stem_set):
    assert stem_set.err.count("skipped") == 2, stem_set.err
    assert "e/vocals.wav: no 5 s" in stem_set.err
    assert "Your_vocals.wav: no acc" in stem_set.err


def test_stems_that_only_ffmpeg_reads_are_skipped_with_its_command(workplace, capsys):
    os.mkdir("stems")
    Path("stems/vocals.m4a").write_bytes(M4A)

    with pytest.raises(SystemExit):
        prep.main(["stems", "--out", "new"])

    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("prep.py: skipped: stems/vocals.m4a cannot be read as audio")
    assert "ffmpeg -i stems/vocals.m4a stems/vocals.wav" in lines[0]


# --------------------------------------------------------------------------------------------------
# prep.py: refusals and interruptions


@pytest.mark.parametrize(
    "options, sentence",
    [
        pytest.param("--songs 9999999", "MB are free", id="more than the disk holds"),
        pytest.param("set --out new", "no usable song found", id="no stems"),
        pytest.param("nowhere --out new", "nowhere not found", id="no folder"),
        pytest.param("--songs 8 --seconds 8 --out run", "not made by prep.py", id="other files"),
        pytest.param("--songs 1", "--songs 1: must be at least 2", id="one song"),
        pytest.param("--seconds nan", "--seconds nan: must be at least 8", id="no length"),
        pytest.param("--val-songs 0", "--val-songs 0: must be at least 1", id="no validation"),
        pytest.param("--workers 0", "--workers 0: must be at least 1", id="no workers"),
        pytest.param("--seed -1", "--seed -1: must be at least 0", id="negative seed"),
        pytest.param("--val 1", "--val 1: must lie between 0 and 1", id="no training"),
    ],
)
def test_prep_refuses_options(options, sentence, workplace, capsys):
    assert sentence in refusal(prep, options.split(), capsys)


def test_prep_refuses_a_full_disk(workplace, capsys, full_disk):
    args = ["--seconds", "8", "--out", "new"]

    assert "cannot be written" in refusal(prep, args, capsys)


@dataclass
class Script:
    """A script and options that keep it busy."""

    main: object
    args: list


def long_work(script, files, out):
    """A Script that writes to `out` and takes its time."""
    if script == "prep":
        return Script(prep.main, prep_args(out, workers=1))
    if script == "train":
        return Script(train.main, train_args(files, out, "--steps 99 --every 1"))
    args = sample_args(files, f"{files}/song.wav", "--takes", 99, "--out", out)
    return Script(sample.main, args)


def has_begun(folder):
    """Whether something is written in the folder out, or out.partial; then waits a little."""
    if any(folder.glob("out*/*")):
        time.sleep(0.1)
        return True
    return False


@pytest.mark.parametrize("script", ["prep", "train", "sample"])
def test_an_interrupted_script_says_so_and_leaves_nothing_half_written(script, files, tmp_path):
    log = tmp_path / "log.txt"
    work = long_work(script, files, tmp_path / "out")
    is_time = functools.partial(has_begun, tmp_path)

    status = run_in_child(work.main, work.args, log, signal.SIGINT, is_time)

    last_line = log.read_text().splitlines()[-1]
    left = [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".partial")]
    assert status == 130
    assert last_line.startswith(f"{script}.py: stopped"), log.read_text()
    assert left == []


def test_after_a_kill_prep_makes_the_same_bytes(files, tmp_path):
    out = tmp_path / "out"
    args = prep_args(out, workers=1)  # the set in `files` is by two
    is_time = functools.partial(has_begun, tmp_path)

    run_in_child(prep.main, args, tmp_path / "log.txt", signal.SIGKILL, is_time)
    assert not out.exists()
    prep.main(args)

    for name in prep.FILES:
        assert (out / name).read_bytes() == (files / "set" / name).read_bytes(), name


# --------------------------------------------------------------------------------------------------
# train.py: data


def plain_clips(songs, count, length, speed_range):
    """Clips by the plain formula, one at a time: (2, count, length), vocals and accompaniment."""
    rng = np.random.default_rng(0)
    song_lengths = np.array([len(pairs) for _, pairs, _ in songs], float)
    picks = rng.choice(len(songs), count, p=song_lengths / song_lengths.sum())
    places = rng.random(count)
    speeds = 1 + speed_range * rng.uniform(-1, 1, count)

    clips = []
    for pick, place, speed in zip(picks, places, speeds, strict=True):
        _, pairs, gains = songs[pick]
        n = length // 128 * round(128 * speed)
        start = int(place * max(0, len(pairs) - n + 1))
        clip = torch.from_numpy((pairs[start : start + n] * gains).T)
        clip = F.pad(clip, (0, n - clip.shape[1]))
        if n != length:
            spectrum = torch.fft.rfft(clip)[:, : length // 2 + 1]
            clip = torch.fft.irfft(spectrum, n=length) * (length / n)
        clips.append(clip)
    return torch.stack(clips, dim=1)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(slice(None), id="one process"),
        pytest.param(slice(0, None, 2), id="first of two"),
        pytest.param(slice(1, None, 2), id="second of two"),
    ],
)
@pytest.mark.parametrize("speed_range", [0.0, 0.06])
def test_clips_are_the_same_bits_as_by_a_plain_formula(speed_range, rows):
    length = 49152
    songs = songs_in_memory(2, 200_000) + songs_in_memory(1, 40_000)  # the last one is too short

    rng = np.random.default_rng(0)
    clips = train.read_clips(songs, rng, 12, length, rows, speed_range)
    vocals, accomp = train.to_waveforms(clips, length, "cpu")

    plain = plain_clips(songs, 12, length, speed_range)[:, rows]
    assert torch.equal(torch.stack([vocals, accomp]), plain)


def test_a_change_of_speed_moves_voice_and_band_by_the_same_interval():
    length = 49152
    pair = torch.stack([sine(440, 4), sine(880, 4)], dim=1)
    gains = np.full(2, 1 / 32768, np.float32)
    songs = [({}, (32767 * pair).short().numpy(), gains)]

    def peak(wavs):
        """The strongest frequency of each wave (B, L) in Hz, (B,)."""
        spectrum = torch.fft.rfft(wavs * torch.hann_window(length)).abs()
        return spectrum.argmax(1) * RATE / length

    clips = train.read_clips(songs, np.random.default_rng(0), 8, length, speed_range=0.06)
    vocals, accomp = train.to_waveforms(clips, length, "cpu")

    voice = peak(vocals)
    close(peak(accomp) / voice, torch.full((8,), 2.0), 0.005, "an octave stays an octave")
    assert 410 < voice.min() < 430
    assert 450 < voice.max() < 470


@pytest.mark.slow
def test_one_thread_reads_300_clips_a_second():
    num_batches = 5
    songs = songs_in_memory(4, 60 * RATE)
    length = 2**20  # 44 s
    rng = np.random.default_rng(0)

    rates = []
    for _ in range(4):
        began = time.thread_time()  # does not count the time of other programs
        for _ in range(num_batches):
            train.read_clips(songs, rng, 16, length, speed_range=train.SPEED_RANGE)
        rates.append(16 * num_batches / (time.thread_time() - began))

    print(f"\nread {max(rates):.0f} clips of 44 s a second (of four trials, the best)")
    assert max(rates) >= 300, rates


@pytest.mark.parametrize("speed", [0.95, 1.0, 1.05])
def test_a_clip_has_the_chart_of_its_place_in_the_song(speed):
    num_frames = 100
    start = 2.0  # seconds
    facts = {"chords": [[0, 3, [0, 4, 7]], [3, 9, [7, 11, 2]]], "beats": [2.5, 3.5, 4.5]}
    there = start + (np.arange(num_frames) + 0.5) * FRAME * speed  # seconds in the song

    chart = train.chart_of_clip(facts, round(start * RATE), speed, num_frames)

    shift = 12 * math.log2(speed)
    c_major = fastsag.chart_features([(0, 1, [0, 4, 7])], [], 1, CFG, shift)[:25]
    g_major = fastsag.chart_features([(0, 1, [7, 11, 2])], [], 1, CFG, shift)[:25]
    chords = torch.where(torch.from_numpy(there) < 3, c_major, g_major)
    distance = np.abs(there[:, None] - facts["beats"]).min(1) / speed
    close(chart[:25], chords, 1e-5, "chords")
    close(chart[fastsag.CHART_PULSE], np.maximum(0, 1 - distance / 0.064), 1e-3, "pulses")
    close(chart[fastsag.CHART_BEAT_TOLD], torch.ones(num_frames), 0, "beats are known")


def test_a_song_of_stems_has_an_empty_chart():
    close(train.chart_of_clip({}, 0, 1.0, 10), torch.zeros(27, 10), 0, "chart")


# --------------------------------------------------------------------------------------------------
# train.py: steps


def sum_of_weights(run):
    """A loss with a gradient of 1 for every weight."""
    return sum(weight.sum() for weight in run.trained)


def state_of(run):
    """All weights, and the optimizer's two averages and step of each, as one vector."""
    tensors = list(run.trained)
    for averages in run.optimizer.state.values():
        tensors += averages.values()
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_without_a_finite_gradient_changes_nothing(bad, tmp_path):
    run = train.Run(train_options(tmp_path), torch.device("cpu"))
    run.update({"loss": sum_of_weights(run)}, share=0)
    before = state_of(run)

    run.update({"loss": bad * sum_of_weights(run)}, share=0)

    assert torch.equal(state_of(run), before)


def test_the_step_after_a_skipped_one_moves_every_weight(tmp_path):
    run = train.Run(train_options(tmp_path), torch.device("cpu"))
    run.update({"loss": sum_of_weights(run)}, share=0)
    run.update({"loss": math.nan * sum_of_weights(run)}, share=0)
    before = [weight.detach().clone() for weight in run.trained]

    run.update({"loss": sum_of_weights(run)}, share=0)

    for old, new in zip(before, run.trained, strict=True):
        assert (new < old).all()


def log_of(losses):
    """A Log to which steps with these losses were added."""
    log = train.Log(world=1, reader=SimpleNamespace())
    add_steps(log, losses)
    return log


def add_steps(log, losses):
    """Adds a step to the log for each of these losses."""
    for loss in losses:
        log.add(torch.tensor(1.0), {"loss": torch.tensor(loss)}, audio=1.0)


def test_the_log_leaves_out_skipped_steps_and_counts_them():
    log = log_of([2.0, math.nan, 4.0])

    line = log.line(3, 0.1, ["loss"], lr=1e-3)

    assert "loss 3.0000 " in line
    assert "skipped 1 step(s)" in line


def test_ten_bad_steps_in_a_row_end_a_run():
    log = log_of([1.0] + 5 * [math.nan])
    log.line(6, 0.1, ["loss"], lr=1e-3)  # five are not yet enough
    add_steps(log, 5 * [math.inf])

    with pytest.raises(UserError, match="from step 2 on"):
        log.line(11, 0.1, ["loss"], lr=1e-3)


def test_nine_bad_steps_in_a_row_do_not_end_a_run():
    log = log_of(9 * [math.nan] + [1.0] + 9 * [math.nan] + [1.0])

    line = log.line(20, 0.1, ["loss"], lr=1e-3)

    assert "skipped 18 step(s)" in line


# --------------------------------------------------------------------------------------------------
# train.py: runs


def weights_of(state_dict):
    """The weights of a state dict as one vector."""
    return torch.cat([weight.flatten() for weight in state_dict.values()])


def script_validation(monkeypatch, scores):
    """Lets validation find these scores, one after the other -> list that gets the EMA weights."""
    remaining = list(scores)
    validated = []

    def validate(model, *args):
        validated.append(copy.deepcopy(model.state_dict()))
        return {"loss": remaining.pop(0)}

    def example(*args):
        return np.zeros((9, 2))

    monkeypatch.setattr(train, "validate", validate)
    monkeypatch.setattr(train, "example", example)
    return validated


def test_best_pt_holds_the_weights_with_the_lowest_validation_score(
    files, tmp_path, monkeypatch, capsys
):
    validated = script_validation(monkeypatch, [3.0, 1.0, 2.0, 1.5])

    train.main(train_args(files, tmp_path, "--lr 0.1 --warmup 1 --steps 4 --every 1"))

    best = FastSAG.load(tmp_path / "best.pt", "cpu").state_dict()
    for name, weight in best.items():
        assert torch.equal(weight, validated[1][name].half().float()), name
    assert not torch.equal(weights_of(validated[1]), weights_of(validated[3]))
    use, listen = capsys.readouterr().out.splitlines()[-2:]
    assert f"Use {tmp_path}/best.pt: its validation loss of 1.0000 at step 2 " in use
    assert listen.endswith(f"--checkpoint {tmp_path}/best.pt")


@pytest.mark.parametrize(
    "scores, best_step",
    [
        pytest.param([1.5, 1.1], 1, id="higher scores"),
        pytest.param([1.5, 0.9], 4, id="a lower score"),
    ],
)
def test_a_resumed_run_knows_the_best_score_so_far(
    scores, best_step, files, tmp_path, monkeypatch, capsys
):
    script_validation(monkeypatch, [1.0, 2.0])
    train.main(train_args(files, tmp_path, "--steps 2 --every 1"))
    before = (tmp_path / "best.pt").read_bytes()

    script_validation(monkeypatch, scores)
    train.main(train_args(files, tmp_path, "--steps 4 --every 1 --resume"))

    after = (tmp_path / "best.pt").read_bytes()
    assert (after == before) == (best_step == 1)
    assert f"at step {best_step} is the lowest" in capsys.readouterr().out


def test_a_run_that_is_stopped_in_its_last_validation_validates_when_it_is_resumed(
    files, tmp_path, monkeypatch, capsys
):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "validate", stop)
    with pytest.raises(SystemExit):
        train.main(train_args(files, tmp_path, "--steps 1"))
    assert not (tmp_path / "best.pt").exists()

    script_validation(monkeypatch, [1.5])
    train.main(train_args(files, tmp_path, "--steps 1 --resume"))

    assert load_checkpoint(tmp_path / "best.pt")
    assert "validation loss of 1.5000 at step 1 is the lowest" in capsys.readouterr().out


def test_a_run_without_a_working_compiler_goes_on_and_says_so(
    files, tmp_path, monkeypatch, capsys
):
    def broken_compile(*args, **kwargs):
        raise RuntimeError("no compiler here\nand many more lines")

    monkeypatch.setattr(torch, "compile", broken_compile)
    script_validation(monkeypatch, [1.0])

    train.main(train_args(files, tmp_path, "--compile --steps 1 --every 1"))

    lines = capsys.readouterr().out.splitlines()
    about_compiling = [line for line in lines if "compile" in line]
    reason = "not compiled (RuntimeError: no compiler here)"
    assert about_compiling == [f"{reason}; --no-compile skips the attempt"]
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1


@pytest.fixture
def keep_every_save(monkeypatch):
    """Training keeps its save of step N as checkpoint.ptN, too."""

    def save_twice(checkpoint, path):
        fastsag.save_checkpoint(checkpoint, f"{path}{checkpoint['step']}")
        fastsag.save_checkpoint(checkpoint, path)

    monkeypatch.setattr(train, "save_checkpoint", save_twice)


VOCODER_RUN = "--vocoder --steps 6 --every 2 --crop 0.68"  # discriminators from step 5 on


def test_training_a_vocoder_changes_nothing_else(files, tmp_path):
    args = train_args(files, tmp_path, VOCODER_RUN)

    train.main([*args, "--start", f"{files}/tiny.pt"])

    before = FastSAG.load(files / "tiny.pt", "cpu").state_dict()
    after = FastSAG.load(tmp_path / "checkpoint.pt", "cpu").state_dict()
    assert after.keys() == before.keys()
    for name, weight in after.items():
        is_same = torch.equal(weight, before[name])
        assert is_same != name.startswith("vocoder."), name


def test_a_resumed_vocoder_run_ends_with_the_same_bits(files, tmp_path, keep_every_save):
    path = tmp_path / "checkpoint.pt"
    args = train_args(files, tmp_path, VOCODER_RUN)
    train.main([*args, "--start", f"{files}/tiny.pt"])
    whole = weights(path)

    os.replace(f"{path}4", path)
    train.main([*args, "--resume"])

    close(weights(path), whole, 0, "weights of vocoder and discriminators")


def train_in_two_processes(args):
    # An address: no name to look up may fail. "--": --start is meant for train.py.
    launch = "-m torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node=2 --"
    command = [sys.executable, *launch.split(), train.__file__, *args]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_two_processes_start_with_weights_and_may_leave_a_projection_out(files, tmp_path):
    args = train_args(files, tmp_path, "--without prior --steps 2")

    train_in_two_processes([*args, "--start", f"{files}/tiny.pt"])

    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2


def test_two_processes_train_as_one_would(files, tmp_path):
    train_in_two_processes(train_args(files, tmp_path))

    one = weights(files / "run/checkpoint.pt")
    close(weights(tmp_path / "checkpoint.pt"), one, 1e-4, "weights")


def steps_printed(log):
    """The steps of which a log file tells the loss."""
    if not log.exists():
        return []
    return [int(step) for step in re.findall(r"step +(\d+)  loss", log.read_text())]


def is_time_to_kill(log, folder, num_steps, rng, during_a_write):
    """Whether so many steps are printed, and a file is just written, or chance says so."""
    if len(steps_printed(log)) < num_steps:
        return False
    if during_a_write:
        return any(folder.glob("*.tmp"))
    return rng.random() < 0.01


@pytest.mark.slow
def test_twenty_kills_lose_at_most_one_save_interval_and_change_no_bit(files, tmp_path):
    steps = 40
    rng = np.random.default_rng(0)
    log = tmp_path / "log.txt"
    killed = tmp_path / "killed"
    path = killed / "checkpoint.pt"
    killed_args = train_args(files, killed, f"--steps {steps} --every 1")
    whole_args = train_args(files, tmp_path / "whole", f"--steps {steps} --every 1")

    for number in range(20):
        enough = len(steps_printed(log)) + rng.integers(0, 3)
        during_a_write = number % 2 == 1
        is_time = functools.partial(is_time_to_kill, log, killed, enough, rng, during_a_write)
        resume = ["--resume"] if path.exists() else []
        run_in_child(train.main, killed_args + resume, log, signal.SIGKILL, is_time)

        saved = load_checkpoint(path)["step"] if path.exists() else 0
        last_printed = max(steps_printed(log), default=0)
        assert saved >= last_printed - 1, "a step is printed, then saved"
    assert 5 < saved < steps, "the kills came too early or too late to mean anything"

    assert run_in_child(train.main, killed_args + ["--resume"], log) == 0, log.read_text()
    assert run_in_child(train.main, whole_args, log) == 0, log.read_text()

    close(weights(path), weights(tmp_path / "whole/checkpoint.pt"), 0, "weights")


# --------------------------------------------------------------------------------------------------
# train.py: refusals


@pytest.mark.parametrize(
    "name, size",
    [
        pytest.param("train.bin", 4000, id="train.bin too short"),
        pytest.param("val.bin", 4001, id="val.bin with half a sample"),
        pytest.param("val.bin", 0, id="val.bin empty"),
        pytest.param("meta.json", 100, id="meta.json too short"),
    ],
)
def test_train_refuses_a_set_that_is_cut_off(name, size, workplace, capsys):
    cut(f"set/{name}", size)

    sentence = refusal(train, train_args(".", "run"), capsys)

    assert "not a whole data set" in sentence


@pytest.mark.parametrize(
    "old, new",
    [
        pytest.param('"songs"', '"sings"', id="no songs"),
        pytest.param('"songs": [', '"songs": 7, "": [', id="songs is a number"),
        pytest.param('"format": ', '"format": 99', id="another format"),
        pytest.param('"accomp_dbfs": ', '"accomp_dbfs": -Infinity, "": ', id="silent band"),
        pytest.param('"length": ', '"length": 9', id="beyond the file"),
    ],
)
def test_train_refuses_a_set_with_wrong_facts(old, new, workplace, capsys):
    meta = Path("set/meta.json")
    facts = meta.read_text()
    assert old in facts
    meta.write_text(facts.replace(old, new))

    sentence = refusal(train, train_args(".", "run"), capsys)

    assert "not a whole data set" in sentence


@pytest.mark.parametrize(
    "options, sentence",
    [
        pytest.param("", "is there already", id="a run is there"),
        pytest.param("--seed -1", "--seed -1: must be at least 0", id="negative seed"),
        pytest.param("--data .", "not a whole data set", id="no set"),
        pytest.param("--resume --seed 1", "--seed 0, not 1", id="another seed"),
        pytest.param("--resume --out new", "cannot be read", id="nothing to resume"),
        pytest.param("--lr nan", "--lr nan: must be at least", id="no learning rate"),
        pytest.param("--batch-size 0", "--batch-size 0: must be at least 1", id="no clips"),
        pytest.param("--warmup 0", "--warmup 0: must be at least 1", id="no warm-up"),
        pytest.param("--crop 0.1", "--crop 0.1: must be at least 0.5", id="short clips"),
        pytest.param("--minutes 0", "--minutes 0.0: must be at least 0.01", id="no time"),
        pytest.param("--adversarial 2", "must lie between 0 and 1", id="share above 1"),
        pytest.param("--vocoder", "--vocoder needs --start", id="vocoder of no model"),
        pytest.param("--without wings", "invalid choice: 'wings'", id="no idea"),
        pytest.param("--resume --without prior", "--without , not prior", id="another idea"),
        pytest.param("--resume --data set set", "--data set, not set set", id="another set"),
        pytest.param("--resume --adversarial 0", "--adversarial 0.33, not 0.0", id="less to fool"),
        pytest.param("--resume --start tiny.pt", "leave --start away", id="two beginnings"),
        pytest.param(f"--seed {2**62}", "must be below 2^62", id="huge seed"),
        pytest.param("--vocoder --start tiny.pt --without prior", "--without", id="no such idea"),
    ],
)
def test_train_refuses_options(options, sentence, workplace, capsys):
    args = train_args(".", "run") + options.split()

    assert sentence in refusal(train, args, capsys)


def test_train_ends_when_losses_are_nan(workplace, capsys):
    args = train_args(".", "new", "--lr 1e38 --steps 20 --every 20")

    sentence = refusal(train, args, capsys)

    assert "from step 2 on" in sentence


def test_train_ends_when_validation_is_nan(workplace, monkeypatch, capsys):
    script_validation(monkeypatch, [math.nan])
    args = train_args(".", "new", "--steps 1")

    sentence = refusal(train, args, capsys, may_write={"new/checkpoint.pt"})

    assert "validation loss is nan at step 1" in sentence


def test_train_refuses_to_resume_from_another_version(workplace, capsys):
    change_checkpoint("run/checkpoint.pt", {"optimizer": {}})
    args = train_args(".", "run", "--resume")

    assert "another version" in refusal(train, args, capsys)


def test_train_refuses_to_resume_weights_for_sampling(workplace, capsys):
    shutil.copy("tiny.pt", "run/checkpoint.pt")
    args = train_args(".", "run", "--resume")

    assert "is for sampling only" in refusal(train, args, capsys)


def test_train_refuses_a_full_disk(workplace, capsys, full_disk):
    args = train_args(".", "new")

    assert "cannot be written" in refusal(train, args, capsys)


# --------------------------------------------------------------------------------------------------
# sample.py: reading


@pytest.mark.parametrize(
    "name, rate, channels, subtype",
    [
        pytest.param("telephone.wav", 8000, 1, "PCM_U8", id="telephone"),
        pytest.param("eight.wav", 96000, 8, "DOUBLE", id="eight channels"),
        pytest.param("studio.wav", 192000, 2, "PCM_32", id="studio"),
        pytest.param("-Süße 🎤 x.flac", 44100, 2, "PCM_24", id="flac with a strange name"),
        pytest.param("a.aiff", 22050, 1, "PCM_S8", id="aiff"),
        pytest.param("b.ogg", 48000, 2, "VORBIS", id="ogg"),
        pytest.param("c.mp3", 44100, 1, "MPEG_LAYER_III", id="mp3"),
    ],
)
def test_a_voice_is_heard_whatever_the_file(name, rate, channels, subtype, tmp_path, capsys):
    written = np.stack([singing(1, rate)] * channels, axis=1)
    soundfile.write(tmp_path / name, written, rate, subtype=subtype)

    wav, rate_read = sample.read_vocals(str(tmp_path / name))

    assert rate_read == rate
    assert wav.shape == (rate,)
    assert abs(wav.mean()) < 1e-3 * wav.abs().max()
    assert correlation(wav, singing(1, rate)) > 0.98
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "gain, offset, subtype, least_correlation",
    [
        pytest.param(6, 0, "PCM_16", 0.9, id="clipped"),
        pytest.param(1, 0.5, "PCM_16", 0.98, id="offset"),
        pytest.param(1e5, 0, "FLOAT", 0.98, id="far too loud"),
        pytest.param(1e-5, 0, "FLOAT", 0.98, id="inaudible"),
    ],
)
def test_a_voice_is_heard_whatever_its_level(
    gain, offset, subtype, least_correlation, tmp_path, capsys
):
    path = str(tmp_path / "voice.wav")
    soundfile.write(path, gain * singing(1) + offset, 16000, subtype=subtype)

    wav, rate_read = sample.read_vocals(path)

    is_gained_up = "gained up" in capsys.readouterr().out
    assert rate_read == 16000
    assert wav.shape == (16000,)
    assert abs(wav.mean()) < 1e-3 * wav.abs().max()
    assert correlation(wav, singing(1)) > least_correlation
    assert is_gained_up == (gain < 1)
    if is_gained_up:
        assert fastsag.active_dbfs(wav, 16000) > -20.1


def test_damaged_files_are_heard_or_refused_in_one_line(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "song"
    refused = 0

    for kind in 60 * ("wav", "flac", "ogg", "mp3", "aiff"):
        soundfile.write(path, singing(1), 16000, format=kind)
        data = np.fromfile(path, np.uint8)
        if rng.random() < 0.5:
            data = data[: rng.integers(20000)]  # cut off
        header = data[:200]
        is_damaged = rng.random(len(header)) < rng.choice([0, 0.02, 0.1])
        header[is_damaged] = rng.integers(256)
        path.write_bytes(data)

        try:
            assert torch.isfinite(sample.read_vocals(path)[0]).all()
        except UserError as problem:
            assert "\n" not in str(problem)
            refused += 1

    assert 60 < refused < 240


# --------------------------------------------------------------------------------------------------
# sample.py: refusals


@pytest.mark.parametrize(
    "wav, rate, sentence",
    [
        pytest.param([], 16000, "no samples", id="empty"),
        pytest.param(np.full(16000, 0.3), 16000, "is silent", id="constant"),
        pytest.param(singing(0.1), 16000, "0.10 s long", id="too short"),
        pytest.param([math.nan] + [0.1] * 9000, 16000, "1 samples", id="NaN"),
        pytest.param(1e30 * singing(), 16000, "1e10", id="beyond loudness"),
        pytest.param(singing(), 5, "768 kHz", id="rate of 5 Hz"),
        pytest.param(np.zeros(15_000_000), 1000, "4 hours", id="longer than 4 hours"),
    ],
)
def test_sample_refuses_a_sound(wav, rate, sentence, workplace, capsys):
    soundfile.write("song.wav", wav, rate, subtype="FLOAT")
    args = sample_args(".", "song.wav")

    assert sentence in refusal(sample, args, capsys, usage=False)


def test_sample_refuses_a_file_that_is_cut_off(workplace, capsys):
    cut("song.wav", 20)
    args = sample_args(".", "song.wav")

    assert "read as audio" in refusal(sample, args, capsys, usage=False)


def test_sample_refuses_a_missing_file(workplace, capsys):
    args = sample_args(".", "missing.wav")

    assert "missing.wav cannot be read" in refusal(sample, args, capsys, usage=False)


def test_sample_tells_how_to_convert_a_recording_of_a_phone(workplace, capsys):
    Path("my song.m4a").write_bytes(M4A)
    args = sample_args(".", "my song.m4a")

    sentence = refusal(sample, args, capsys, usage=False)

    assert sentence.startswith("my song.m4a cannot be read as audio (a .m4a file)")
    assert sentence.endswith("ffmpeg -i 'my song.m4a' 'my song.wav'")


def test_sample_refuses_a_file_in_place_of_its_folder(workplace, capsys):
    args = sample_args(".", "song.wav", "--out", "song.wav")

    assert "cannot be written" in refusal(sample, args, capsys, usage=False)


def test_sample_refuses_a_full_disk(workplace, capsys, full_disk):
    args = sample_args(".", "song.wav")

    assert "cannot be written" in refusal(sample, args, capsys, usage=False)


@pytest.mark.parametrize(
    "parts, sentence",
    [
        pytest.param(
            {"config": asdict(TINY) | {"wings": 2}}, "argument 'wings'", id="unknown field"
        ),
        pytest.param({"config": asdict(TINY) | {"dim": 64}}, "size mismatch", id="other size"),
        pytest.param(
            {"config": asdict(TINY) | {"channels": ()}}, "another version", id="no channels"
        ),
        pytest.param({"ema": {}}, "Missing key", id="no weights"),
    ],
)
def test_sample_refuses_a_checkpoint_that_does_not_fit(parts, sentence, workplace, capsys):
    change_checkpoint("tiny.pt", parts)
    args = sample_args(".", "song.wav")

    assert sentence in refusal(sample, args, capsys)


def test_sample_refuses_a_checkpoint_that_is_cut_off(workplace, capsys):
    cut("tiny.pt", 9999)
    args = sample_args(".", "song.wav")

    assert "cannot be read" in refusal(sample, args, capsys)


def test_sample_refuses_a_file_that_is_no_checkpoint(workplace, capsys):
    torch.save({}, "tiny.pt")
    args = sample_args(".", "song.wav")

    assert 'no "config"' in refusal(sample, args, capsys)


class MakesATrap:
    """Makes a file when it is loaded by pickle, as a stranger's checkpoint might."""

    def __reduce__(self):
        return open, ("trap", "w")


def test_a_checkpoint_cannot_run_code(workplace, capsys):
    change_checkpoint("tiny.pt", {"config": asdict(TINY) | {"dim": MakesATrap()}})
    args = sample_args(".", "song.wav")

    assert "cannot be read" in refusal(sample, args, capsys)
    assert not Path("trap").exists()


@pytest.mark.parametrize(
    "options, sentence",
    [
        pytest.param("song.wav --steps 0", "--steps 0: must be at least 1", id="no steps"),
        pytest.param("song.wav --takes 0", "--takes 0: must be at least 1", id="no takes"),
        pytest.param("--evaluate set --takes 2", "not for --evaluate", id="takes of a set"),
        pytest.param(f"song.wav --seed {2**62}", "must be below 2^62", id="huge seed"),
        pytest.param("song.wav --seed -1", "--seed -1: must be at least 0", id="negative seed"),
        pytest.param("song.wav --guidance nan", "between 0 and 20", id="no guidance"),
        pytest.param("song.wav --device toaster", "toaster is not available", id="no device"),
        pytest.param("song.wav --checkpoint no.pt", "no.pt cannot be read", id="no weights"),
        pytest.param("--evaluate nowhere", "not a whole data set", id="no set"),
        pytest.param("song.wav --evaluate set", "give audio files", id="songs and a set"),
        pytest.param("", "give audio files", id="no songs"),
        pytest.param("song.wav --bpm 29", "--bpm 29: must lie between 30 and 300", id="slow"),
        pytest.param("song.wav --bpm 301", "--bpm 301: must lie between 30 and 300", id="fast"),
        pytest.param("song.wav --bpm nan", "--bpm nan: must lie between", id="no tempo"),
        pytest.param("song.wav --first-beat 1", "needs a tempo", id="first beat, no tempo"),
        pytest.param("a b --bpm 90 --first-beat 1", "for one song", id="first beat, two songs"),
        pytest.param("a b --chart c.txt", "for one song", id="a chart, two songs"),
        pytest.param("--evaluate set --chart c.txt", "for one song", id="a chart and a set"),
        pytest.param("--evaluate set --bpm 90", "not for --evaluate", id="a tempo and a set"),
    ],
)
def test_sample_refuses_options(options, sentence, workplace, capsys):
    args = sample_args(".", *options.split())

    assert sentence in refusal(sample, args, capsys)


@pytest.mark.parametrize(
    "chart, sentence",
    [
        pytest.param("0 1 H", "chord 'H' is not known; C, Am", id="bad label"),
        pytest.param("0 1 C\n0.5 1.5 F", "F from 0.5 to 1.5 s: the chord before", id="overlap"),
        pytest.param("0 9 C", "must end within the song, which lasts 1.50 s", id="beyond"),
        pytest.param("-1 1 C", "must begin at 0 s or later", id="before"),
        pytest.param("1 1 C", "and end after that", id="no length"),
        pytest.param("0 nan C", "and end after that", id="NaN"),
        pytest.param("\n", "chart.txt holds no chord", id="empty"),
        pytest.param("0 1 C\n1 C", "chart.txt, line 2: '1 C' is not a begin", id="no end"),
        pytest.param("0,0 1,5 C", "line 1: '0,0 1,5 C' is not a begin", id="decimal commas"),
        pytest.param("0 1 C major", "is not a begin and an end", id="four words"),
        pytest.param("0 1 \0", "is not known", id="not a letter"),
        pytest.param(b"\xff\xfe0", "is not text in UTF-8", id="UTF-16"),
        pytest.param(None, "chart.txt cannot be read", id="missing"),
    ],
)
def test_sample_refuses_a_chart(chart, sentence, workplace, capsys):
    if chart is not None:
        Path("chart.txt").write_bytes(chart if isinstance(chart, bytes) else chart.encode())
    args = sample_args(".", "song.wav", "--chart", "chart.txt")

    assert sentence in refusal(sample, args, capsys, usage=False)


def test_sample_refuses_a_first_beat_after_the_song(workplace, capsys):
    args = sample_args(".", "song.wav", "--bpm", 90, "--first-beat", 2)

    assert "which lasts 1.50 s" in refusal(sample, args, capsys, usage=False)


def random_chart(rng):
    """Lines that are often nearly a chart."""
    words = ["0", "0.5", "1", "1.5", "-1", "1e9", "nan", "inf", "C", "N", "X", "F#m7", "H", ""]
    labels = ["C", "Am/G", "N", "X"]
    lines = []
    for _ in range(rng.integers(0, 4)):
        begin = rng.choice([0, 0.2, 0.5, 1])
        line = [f"{begin}", f"{begin + rng.choice([0.2, 0.5])}", rng.choice(labels)]
        for place in range(3):
            if rng.random() < 0.15:
                line[place] = rng.choice(words)
        lines.append(rng.choice([" ", "\t"]).join(line))
    return "\n".join(lines)


def test_every_chart_is_used_or_refused_in_one_sentence(workplace, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(FastSAG, "load", lambda *args: random_model_of_files)
    random_model_of_files = random_model()
    outcomes = {True: 0, False: 0}

    for number in range(60):
        Path("chart.txt").write_text(random_chart(rng))
        args = sample_args(".", "song.wav", "--steps", 1, "--chart", "chart.txt", "--out", number)
        try:
            sample.main(args)
            refused = False
        except SystemExit as end:
            refused = True
            assert end.code == 2
        err = capsys.readouterr().err
        outcomes[refused] += 1

        assert err.count("\n") == refused, err
        assert Path(f"{number}/song/mix.wav").exists() == (not refused)
    assert min(outcomes.values()) > 10, outcomes


def test_the_chart_that_was_written_can_be_handed_back(workplace, capsys):
    sample.main(sample_args(".", "song.wav"))
    written = Path("out/song/chart.txt")
    chart = sample.read_chart(written)

    sample.main(sample_args(".", "song.wav", "--chart", written, "--out", "again"))

    assert chart[0][0] == 0
    assert chart[-1][1] == 1.5
    assert all(before[1] == after[0] for before, after in zip(chart[:-1], chart[1:], strict=True))
    comment = soundfile.SoundFile("again/song/mix.wav").comment
    assert comment.endswith("--chart out/song/chart.txt --checkpoint ./tiny.pt")
    assert Path("again/song/mix.wav").read_bytes() != Path("out/song/mix.wav").read_bytes()


# --------------------------------------------------------------------------------------------------
# sample.py: two songs of the same name, two takes each, with a page; and a song that is missing


@dataclass
class PlayedSong:
    """A song and where its accompaniments must be."""

    path: str  # neither name is an option
    rate: int
    gain: float
    folder: str
    sound: int  # number of its second take on the page


QUIET = PlayedSong("-ü🎤.wav", 16000, 0.5, "-ü🎤", sound=1)
LOUD = PlayedSong("run/-ü🎤.wav", 48000, 4.7, "-ü🎤-2", sound=3)
both_songs = pytest.mark.parametrize(
    "song",
    [
        pytest.param(QUIET, id="quiet"),
        pytest.param(LOUD, id="loud"),
    ],
)


@dataclass
class Session:
    """What sample.py made of the songs."""

    root: Path
    status: int
    out: str
    err: str

    def read(self, song, name):
        """A sound file of a song -> wave (L,), rate."""
        return soundfile.read(self.root / "out" / song.folder / name)

    def bytes_of(self, song, name):
        """The bytes of one of a song's files."""
        return (self.root / "out" / song.folder / name).read_bytes()

    def sung(self, song):
        """The voice at the rate of the accompaniment, (L,)."""
        wav, rate = sample.read_vocals(str(self.root / song.path))
        return fastsag.resample(wav, rate, max(rate, RATE))

    def page(self):
        """The page's text."""
        return (self.root / "out/index.html").read_text()

    def sounds(self):
        """The sounds in the page, as links."""
        return re.findall('"(data:audio/flac;.*?)"', self.page())


@pytest.fixture(scope="module")
def played(files, tmp_path_factory):
    """The Session; its seeds are 5 for the first takes and 6 for the second ones."""
    root = tmp_path_factory.mktemp("played")
    shutil.copytree(files, root, dirs_exist_ok=True)
    for song in (QUIET, LOUD):
        soundfile.write(root / song.path, song.gain * singing(1.5, song.rate), song.rate)
    paths = ["missing.wav", QUIET.path, LOUD.path]
    args = sample_args(".", *paths, "--takes", 2, "--seed", 5, "--page")

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exit_info,
    ):
        patch.chdir(root)
        sample.main(args)

    said = out.buffer.getvalue().decode()
    return Session(root, exit_info.value.code, said, err.getvalue())


def test_a_bad_song_is_reported_and_the_others_are_played(played):
    assert played.status == 2
    assert re.fullmatch("sample.py: error: missing.wav.*\n", played.err)
    assert "RTF" in played.out.splitlines()[-1]


def test_songs_of_the_same_name_get_folders_of_their_own(played):
    names = sorted(os.listdir(played.root / "out"))

    assert names == [QUIET.folder, LOUD.folder, "index.html"]


@both_songs
def test_files_have_rate_and_length_of_the_song_and_do_not_clip(song, played):
    accomp, rate = played.read(song, "accompaniment-2.wav")
    mix, _ = played.read(song, "mix-2.wav")

    assert rate == max(song.rate, RATE)
    assert len(accomp) == len(mix) == len(played.sung(song))
    assert 0.1 < np.abs(mix).max() < 0.995


def test_the_mix_is_voice_plus_accompaniment(played):
    accomp, _ = played.read(QUIET, "accompaniment-2.wav")
    mix, _ = played.read(QUIET, "mix-2.wav")

    close(mix, played.sung(QUIET).numpy() + accomp, 1e-3, "mix")


def test_the_second_take_is_what_the_next_seed_plays(played):
    model = FastSAG.load(played.root / "tiny.pt", "cpu")
    accomp, rate = played.read(QUIET, "accompaniment-2.wav")

    expected = model.accompany(played.sung(QUIET), rate, num_steps=2, seed=6)

    close(accomp, expected, 1e-3, "take 2")


def test_the_accompaniment_is_as_loud_as_the_voice(played):
    accomp, _ = played.read(QUIET, "accompaniment-2.wav")
    sung = played.sung(QUIET)
    level = 10 * sung.square().mean().log10()

    close(fastsag.active_dbfs(accomp, RATE), level, 0.1, "active level")


def test_silence_does_not_count_in_the_active_level(played):
    sung = played.sung(QUIET)
    level = 10 * sung.square().mean().log10()

    half_silent = torch.cat([0 * sung, sung])

    close(fastsag.active_dbfs(half_silent, RATE), level, 0.1, "active level")


@both_songs
def test_takes_differ(song, played):
    first, _ = played.read(song, "accompaniment.wav")
    second, _ = played.read(song, "accompaniment-2.wav")

    assert played.bytes_of(song, "mix.wav") != played.bytes_of(song, "mix-2.wav")
    assert np.abs(first - second).max() > 1e-3, "not only the comment in the file differs"


@both_songs
def test_the_picture_is_a_whole_png_file(song, played):
    png = played.bytes_of(song, "mel-2.png")

    def number(at):
        return int.from_bytes(png[at : at + 4], "big")

    width = number(16)
    height = number(20)
    end = len(png) - 16  # of the pixels: their checksum and an empty chunk follow
    pixels = zlib.decompress(png[41:end])
    assert png[:4] == b"\x89PNG"
    assert len(pixels) == height * (1 + 3 * width)
    assert zlib.crc32(png[12:29]) == number(29), "checksum of the header"
    assert zlib.crc32(png[37:end]) == number(end), "checksum of the pixels"


def test_the_page_needs_nothing_from_elsewhere(played):
    assert not re.search('(src|href)="(?!data:)|https?:', played.page())


@both_songs
def test_the_page_plays_the_mix(song, played):
    mix, rate = played.read(song, "mix-2.wav")
    sounds = played.sounds()

    pair, page_rate = soundfile.read(urllib.request.urlopen(sounds[song.sound]))

    assert len(sounds) == 4
    assert page_rate == RATE
    assert correlation(pair.sum(1), mix[:: rate // RATE]) > 0.99


def test_a_take_tells_how_to_make_it_again(played):
    comment = soundfile.SoundFile(played.root / "out" / LOUD.folder / "mix-2.wav").comment
    environment = f"PYTHONIOENCODING=ascii OMP_NUM_THREADS={torch.get_num_threads()}"
    python = f"{environment} {sys.executable} {sample.__file__}"
    command = comment.replace("python sample.py", python)

    result = subprocess.run(
        f"{command} --out again --device cpu <&-",  # no stdin
        shell=True,
        cwd=played.root,
        capture_output=True,
    )

    assert (result.returncode, result.stderr) == (0, b""), result
    again = played.root / "again" / QUIET.folder
    for name, second in (
        ("accompaniment.wav", "accompaniment-2.wav"),
        ("mix.wav", "mix-2.wav"),
        ("mel.png", "mel-2.png"),
        ("chart.txt", "chart-2.txt"),
    ):
        assert (again / name).read_bytes() == played.bytes_of(LOUD, second), name


# --------------------------------------------------------------------------------------------------
# sample.py: measures


@pytest.mark.parametrize("delay", [5, -5, 13, -13])
def test_a_delay_is_forgiven_by_the_second_measure_of_rhythm_only(delay):
    wav = music(96 * 1024)

    values, _ = sample.measure(wav.roll(256 * delay), wav, CFG, {})

    assert values["rhythm"] < 0.5
    if abs(delay) <= 6:  # 64 ms
        assert values["rhythm +-64 ms"] > 0.95
    else:
        assert values["rhythm +-64 ms"] < 0.5


def test_the_table_has_the_ceiling_above_the_floor(files, capsys):
    # With --seed 0 two rows of these tiny weights agree to three digits, by chance.
    sample.main(sample_args(files, "--evaluate", files / "set", "--seed", 1))

    out = capsys.readouterr().out
    rows = [line[28:] for line in out.splitlines() if "±" in line]
    harmony = [float(row.split("±")[0]) for row in rows]
    true, ceiling, generated, _, _ = harmony[:5]  # without a chart; then with chords, with beats
    floor = harmony[-1]
    assert abs(true - 1) < 0.002, out
    assert true > ceiling > floor, out
    assert generated > 0, out
    assert len(rows) == 8, out
    assert len(set(harmony)) == 8, "each row is another sound"


@pytest.mark.parametrize("late, in_phase", [(0, 1), (0.03, 1), (0.25, 0)])
def test_a_band_is_in_phase_if_it_plays_on_the_beats(late, in_phase):
    beats = [0.5, 1.0, 1.5, 2.0]
    onsets = fastsag.beat_pulses([beat + late for beat in beats], 60, CFG)
    times = (torch.arange(60) + 0.5) * FRAME

    assert sample.in_phase(onsets, beats, times) == in_phase


def test_the_frechet_distance_of_a_shift_is_its_square():
    vectors = np.random.default_rng(0).standard_normal((500, 50))

    distance = sample.frechet(vectors, vectors + 0.3)

    close(distance, 50 * 0.3**2, 1e-6, "Frechet distance")


# --------------------------------------------------------------------------------------------------
# baselines/: SingSong's way

SMALL_TOKENS = singsong.TokenConfig(
    semantic_codes=8,
    acoustic_codes=16,
    dim=24,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    context=16,
)


def test_k_means_finds_separate_clusters():
    centres = 10 * noise(6, 4)
    x = centres.repeat(50, 1) + 0.1 * noise(300, 4, seed=1)
    quantiser = singsong.VectorQuantiser(30, 4)

    quantiser.fit(x)

    quantised = quantiser.decode(quantiser.encode(x))
    close(quantised, centres.repeat(50, 1), 0.4, "codes are in the clusters")


def test_the_codec_keeps_a_mel_made_of_its_codes():
    torch.manual_seed(0)
    codec = singsong.MelCodec(SMALL_TOKENS)
    first_codes, _ = codec.levels
    for quantiser in first_codes:
        quantiser.codebook.normal_()  # of the second codes, all stay zero
    tokens = torch.randint(16, (2, 10, 8))
    tokens[:, :, 4:] = 0

    mel = codec.decode(tokens)

    assert mel.shape == (2, 100, 40)
    close(codec.encode(mel), tokens, 0, "tokens")


def test_second_codes_bring_the_codec_closer():
    mel = fastsag.normalise(fastsag.log_mel(music(40 * 1024)[None], CFG), CFG)
    codec = singsong.MelCodec(SMALL_TOKENS)

    tokens = codec.encode(mel, fit=True)

    both = codec.decode(tokens)
    for quantiser in codec.levels[1]:
        quantiser.codebook.zero_()
    first_only = codec.decode(tokens)
    assert (both - mel).square().mean() < 0.7 * (first_only - mel).square().mean()


@pytest.mark.parametrize("per_frame", [1, 8])
def test_decoding_with_a_cache_equals_decoding_at_once(per_frame):
    torch.manual_seed(0)
    stage = singsong.Stage(SMALL_TOKENS, 8, 16, per_frame)
    count = 16 * per_frame
    encoded = noise(1, 16, 24)
    before = torch.randint(16 * per_frame + 1, (1, count))

    at_once = stage.run_decoder(encoded, before)
    caches = [singsong.Cache(count) for _ in stage.decoder]
    prompt = stage.run_decoder(encoded, before[:, : count // 2], 0, caches)
    one_by_one = [prompt]
    for j in range(count // 2, count):
        one_by_one.append(stage.run_decoder(encoded, before[:, j : j + 1], j, caches))

    close(torch.cat(one_by_one, dim=1), at_once, 1e-5, "hidden")


def test_the_likeliest_tokens_are_those_that_the_loss_teaches():
    torch.manual_seed(0)
    stage = singsong.Stage(SMALL_TOKENS, 8, 16, 2)
    said = torch.randint(8, (4, 40))
    condition = F.one_hot(said, 8).float()
    target = torch.stack([said, said + 8], dim=2)  # says twice what it is told
    optimizer = torch.optim.AdamW(stage.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        stage.loss(condition[:, :16], target[:, :16]).backward()
        optimizer.step()

    drawn = stage.generate_song(condition, lambda logits: logits.argmax(1, keepdim=True))

    assert drawn.shape == target.shape, "longer than the context of 16 frames"
    assert (drawn == target).float().mean() > 0.95


@pytest.mark.parametrize(
    "command, sentence",
    [
        pytest.param("train --data .", "not a whole data set", id="no set"),
        pytest.param("train --minutes -1", "--minutes -1.0: must be at least", id="no time"),
        pytest.param("train --minutes nan", "--minutes nan: must be at least", id="NaN"),
        pytest.param("train --batch-size 0", "--batch-size 0: must be at least 1", id="no clips"),
        pytest.param("sample song.wav", "python baselines/singsong.py train", id="no weights"),
        pytest.param("evaluate set --temperature 0", "must be at least 0.01", id="too cold"),
        pytest.param("sample song.wav --checkpoint tiny.pt", "another version", id="other weights"),
    ],
)
def test_singsong_refuses(command, sentence, workplace, capsys):
    assert sentence in refusal(singsong, command.split(), capsys)


def test_singsong_trains_plays_and_is_evaluated(workplace, monkeypatch, capsys):
    monkeypatch.setattr(singsong, "TokenConfig", lambda **fields: SMALL_TOKENS)
    monkeypatch.setattr(singsong, "CLIPS_FOR_CODES", 2)
    weights_file = "--checkpoint ss/singsong.pt --fastsag tiny.pt"

    for command in (
        "train --data set --out ss --minutes 0.02 --batch-size 2",
        f"sample song.wav --out out {weights_file}",
        f"evaluate set {weights_file}",
    ):
        singsong.main(command.split())

    wav, rate = soundfile.read("out/song/singsong.wav")
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if "±" in line]
    assert (len(wav), rate) == (36000, 24000)
    assert np.abs(wav).max() > 0.01
    assert [row[:28].strip() for row in rows] == [
        sample.TRUE,
        sample.CEILING,
        singsong.CODEC,
        singsong.STAGE2,
        singsong.SINGSONG,
        singsong.FASTSAG,
        sample.VOCALS,
        sample.FLOOR,
    ]
    assert "with 625, as in SingSong, this small model's RTF would be at least" in out

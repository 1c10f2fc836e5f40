"""Play along: solo singing in, accompaniment out.

    python sample.py vocals.wav         writes accompaniment.wav, mix.wav, mel.png and chart.txt,
                                        the chords that are played, to out/vocals
    python sample.py a.wav --bpm 96 --chart chart.txt       play this tempo and these chords
    python sample.py a.wav b.flac       several songs, each into a folder of its own
    python sample.py a.wav --takes 3    three different accompaniments
    python sample.py a.wav --page       also writes out/index.html: listen, mix voice and band
    python sample.py --evaluate data/demo     a table of quality over a set's validation songs

The accompaniment is as loud as the voice and has the voice's sample rate, but at least 24 kHz. The
comment field of each sound file holds the command that makes it again. The last line tells where
the time went, and the real-time factor: seconds of computing per second of music. Loading the
weights is included; it counts as reading.
"""

import argparse
import base64
import json
import math
import os
import shlex
import sys
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from fastsag import (
    CHART_PULSE,
    FASTEST_TOLD,
    PATCH,
    SLOWEST_TOLD,
    SPELLINGS,
    Config,
    FastSAG,
    UserError,
    active_dbfs,
    bfloat16_pays,
    chart_features,
    check_told,
    chroma,
    chroma_of,
    compress,
    denormalise,
    expected_pulse,
    frame_rate,
    log_mel,
    mel_filterbank,
    music_features,
    normalise,
    onset_envelope,
    resample,
    stft_distance,
    told_tempo,
    write_file,
)
from prep import audio_bytes, check_least, check_seed, read_audio, read_set

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

ASSETS = Path(__file__).resolve().parent / "assets"
DEFAULT_CHECKPOINT = str(ASSETS / "demo.pt")


# --------------------------------------------------------------------------------------------------
# One song: read, condition, sample, vocode, write.

HARDLY_AUDIBLE = -50  # dBFS: quieter vocals are gained up
PEAK = 0.99  # of full scale: no file that we write is louder


@torch.no_grad()
def play_along(model, path, folder, args, stopwatch, page_takes):
    """Reads one song and writes its accompaniments to `folder`.

    With --page, appends a description of each take to the list `page_takes`. Returns the length of
    the song in seconds. Raises UserError if the song cannot be used or a file cannot be written.
    """
    # Read. At least the model's rate: a telephone recording, too, gets the whole band.
    vocals, sample_rate = read_vocals(path)
    chart = read_chart(args.chart) if args.chart is not None else None
    rate = max(sample_rate, model.cfg.sample_rate)
    vocals = resample(vocals, sample_rate, rate)
    stopwatch.lap("read")

    # Condition: the features and the mean mel to expect of the accompaniment. wav is the vocals at
    # the model's rate and level; render() takes the gain back.
    wav, gain = model.prepare(vocals, rate)
    told = model.tell(wav, len(vocals) / rate, chart, args.bpm, args.first_beat)
    expected, mu = model.condition(wav, told)
    stopwatch.lap("condition")

    for take in range(args.takes):
        # Sample: every seed gives another accompaniment for the same condition.
        seed = args.seed + take
        mel = model.sample(mu, expected, args.steps, args.guidance, seed, progress=True)
        stopwatch.lap("diffusion")

        # Vocode.
        accomp = model.render(mel, gain, rate, len(vocals), args.vocoder)
        stopwatch.lap("vocoder")

        # Write. The mix and the accompaniment are each turned down if they would clip.
        pair = np.stack([vocals.numpy(), accomp], axis=1)  # (L, 2)
        pair *= min(gain_to_fit(pair.sum(axis=1)), gain_to_fit(pair))  # the page plays both sides
        accomp *= gain_to_fit(accomp)
        played = transcribe(accomp, rate, expected, told, args.bpm, model.cfg)
        picture = draw_stages(wav, expected, mu, mel, played, model.cfg)
        command = command_to_repeat(path, seed, args)
        suffix = f"-{take + 1}" if take > 0 else ""
        write_file(f"{folder}/accompaniment{suffix}.wav", audio_bytes(accomp, rate, command))
        write_file(f"{folder}/mix{suffix}.wav", audio_bytes(pair.sum(axis=1), rate, command))
        write_file(f"{folder}/mel{suffix}.png", picture)
        write_file(f"{folder}/chart{suffix}.txt", format_chart(played).encode())
        if args.page:
            title = f"{printable(os.path.basename(path))} {take + 1}/{args.takes}"
            page_takes.append(describe_take(title, command, pair, rate, picture))
        stopwatch.lap("write")

    return len(vocals) / rate


def read_vocals(path):
    """Audio file -> mono tensor (L,) without DC offset, and its sample rate in Hz.

    Raises UserError for what cannot be accompanied: no audio, too short, silent.
    """
    channels, sample_rate = read_audio(path, mono=True)
    wav = channels[0]
    seconds = len(wav) / sample_rate
    if seconds < 0.5:
        raise UserError(f"{path} is {seconds:.2f} s long; at least 0.5 s of singing is needed")

    # The mean is taken in double precision, so that a constant signal becomes exact silence.
    wav = torch.from_numpy(wav - float(wav.mean(dtype=float)))
    level = active_dbfs(wav, sample_rate)
    if level == -math.inf:
        raise UserError(
            f"{path} is silent in the mean of its channels; "
            "give a recording in which somebody sings"
        )

    if level < HARDLY_AUDIBLE:
        boost = Config.level_dbfs - level
        print(
            f"{path} is hardly audible ({level:.0f} dBFS); "
            f"gained up by {boost:.0f} dB, also in the mix"
        )
        wav = wav * 10 ** (boost / 20)
    return wav, sample_rate


def gain_to_fit(wav):
    """The factor, at most 1, that keeps every sample of wav within PEAK."""
    return PEAK / max(PEAK, np.abs(wav).max())


def printable(path):
    """The path as plain text: bytes of it that are not text are spelled out, as in \\udcff."""
    return path.encode(errors="backslashreplace").decode()


def command_to_repeat(path, seed, args):
    """The command whose first take is this one. It is kept in the comment of each sound file."""
    command = (
        f"python sample.py {shlex.quote(printable(path))} --seed {seed} --steps {args.steps} "
        f"--guidance {args.guidance:.10g} --vocoder {args.vocoder}"
    )
    if args.chart is not None:
        command += f" --chart {shlex.quote(printable(args.chart))}"
    if args.bpm is not None:
        command += f" --bpm {args.bpm:.10g}"
    if args.first_beat is not None:
        command += f" --first-beat {args.first_beat:.10g}"
    if args.checkpoint != DEFAULT_CHECKPOINT:
        command += f" --checkpoint {shlex.quote(printable(args.checkpoint))}"
    return command


# --------------------------------------------------------------------------------------------------
# All songs, and where the time went.


class Stopwatch:
    """Adds up the seconds that each kind of work takes, in `seconds`: {name: float}."""

    def __init__(self):
        self.seconds = {}
        self.last = time.perf_counter()

    def lap(self, name):
        """Count the time since the last lap (the first time: since the start) under `name`."""
        # A GPU works in the background: wait until it has done what was asked of it.
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        elif torch.backends.mps.is_available():
            torch.mps.synchronize()

        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def play_all(model, args, stopwatch):
    """Plays along with every song. Returns True if all went well.

    A song that cannot be used is reported on stderr; the others are played all the same.
    """
    music = 0.0  # seconds
    folders = []
    page_takes = []
    all_well = True
    for path in args.vocals:
        folder = choose_folder(path, args.out, folders)
        folders.append(folder)
        try:
            music += play_along(model, path, folder, args, stopwatch, page_takes)
            print(f"{folder}/: accompaniment, mix, picture, chart")
        except UserError as problem:
            print(f"sample.py: error: {problem}", file=sys.stderr)
            all_well = False
        except (MemoryError, RuntimeError) as problem:
            if not is_out_of_memory(problem):
                raise
            print(
                f"sample.py: error: {path} needs more memory than there is; cut it",
                file=sys.stderr,
            )
            all_well = False

    if page_takes:
        page = os.path.join(args.out, "index.html")
        write_file(page, fill_page(page_takes))
        print(f"{page}: open it in a browser")
    if music > 0:
        print_timing(stopwatch, music, model.device)
    return all_well


def choose_folder(path, out, taken):
    """OUT/NAME for NAME.wav; OUT/NAME-2, OUT/NAME-3, ... if other songs have that name."""
    name = os.path.splitext(os.path.basename(path))[0]
    folder = os.path.join(out, name)
    number = 1
    while folder in taken:
        number += 1
        folder = os.path.join(out, f"{name}-{number}")
    return folder


def is_out_of_memory(problem):
    """True if an exception says that memory ran out. torch raises a plain RuntimeError on a CPU."""
    signs = ("out of memory", "allocate memory", "not enough memory")
    return isinstance(problem, MemoryError) or any(sign in str(problem) for sign in signs)


def print_timing(stopwatch, music, device):
    """The last line: seconds by kind of work, precision, threads, memory, real-time factor."""
    work = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in stopwatch.seconds.items())
    precision = "bfloat16" if bfloat16_pays(device) else "float32"
    total = sum(stopwatch.seconds.values())
    print(
        f"{work}; {precision} on {device}, {torch.get_num_threads()} threads; "
        f"peak memory {peak_memory():.0f} MB; "
        f"{music:.1f} s of music in {total:.2f} s: RTF {total / music:.3f}"
    )


def peak_memory():
    """The most main memory that this program has held, in MB; 0 where that is not known."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # macOS: bytes, Linux: kB


# --------------------------------------------------------------------------------------------------
# The chart: chords as (begin, end, label), in seconds. What the model has played is written down,
# on the beats that it was told or expected. Read it, change it, hand it back.


def read_chart(path):
    """A text file with a chord in each line -> [(begin, end, label)]. Raises UserError.

    "0.00 2.35 Am", in seconds: Audacity's label tracks and MIREX .lab files are written so.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"chart {path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"chart {path} is not text in UTF-8; write begin, end, chord") from None

    chart = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0] == "\\":  # Audacity: frequencies of the label above
            continue
        try:
            begin, end, label = fields
            chart.append((float(begin), float(end), label))
        except ValueError:
            raise UserError(
                f"{path}, line {number}: {line.strip()!r:.60} is not a begin and an end in seconds "
                f"and a chord, as in: 0.00 2.35 Am"
            ) from None
    if not chart:
        raise UserError(f"chart {path} holds no chord; write lines like: 0.00 2.35 Am")
    return chart


def format_chart(chart):
    """[(begin, end, label)] -> text, a chord in each line, as read_chart() reads it."""
    return "".join(f"{begin:.3f}\t{end:.3f}\t{label}\n" for begin, end, label in chart)


# Written down by a beat tracker and a chord finder, each as short as it can be.

SHARP_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
FLAT_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
LIKELY_TEMPO = 100  # beats per minute
STEADINESS = 20  # a beat that comes 10 % late costs a fifth of a sure pulse
HEARD_KINDS = ("", "m", "7", "m7", "maj7", "dim", "sus4")  # others are not told apart
CHANGE_COST = 0.1  # a new chord must fit better by this much, summed over its beats
RARE_COST = 0.06  # per beat, of a kind other than major and minor, and of a bass beside the root
SILENT = 0.35  # norm of a beat's chroma, 1 at most, below which nothing sounds


def transcribe(accomp, sample_rate, expected, told, bpm, cfg):
    """What was played -> [(begin, end, label)] in seconds, chords on beats.

    accomp (L,) numpy; expected and told: what it was made from. bpm, if told, gives the beats;
    otherwise the model's expectation does.
    """
    if bpm is None:
        pulse = expected_pulse(expected)[0]
        period = None
    else:
        pulse = told[0, CHART_PULSE]
        period = round(frame_rate(cfg) * 60 / told_tempo(bpm))
    beats = track_beats(pulse.float().cpu().numpy(), cfg, period)

    # Chroma asks for the level that the model works at: below it lies silence.
    wav = resample(torch.from_numpy(accomp), sample_rate, cfg.sample_rate)
    wav = wav * 10 ** ((cfg.level_dbfs - active_dbfs(wav, cfg.sample_rate)) / 20)
    wav = F.pad(wav, (0, -len(wav) % (cfg.hop_length * PATCH)))
    both = chroma(wav[None], cfg)[0]  # bass and middle: (2, 12, T/4)
    return recognise_chords(both, beats, len(accomp) / sample_rate, cfg)


def find_period(pulse, cfg):
    """Pulses (T/4,) numpy -> frames per beat, or None for less than a beat.

    The lag of the highest autocorrelation, weighted by a Gaussian of one octave: likely tempos are
    preferred.
    """
    frames_per_minute = frame_rate(cfg) * 60
    shortest = round(frames_per_minute / FASTEST_TOLD)
    longest = min(round(frames_per_minute / SLOWEST_TOLD), len(pulse) - 1)
    lags = np.arange(shortest, longest + 1)
    if len(lags) == 0:
        return None

    strength = np.array([np.mean(pulse[lag:] * pulse[:-lag]) for lag in lags])
    octaves = np.log2(frames_per_minute / lags / LIKELY_TEMPO)
    return lags[np.argmax((strength + 1e-6) * np.exp(-0.5 * octaves**2))]


def track_beats(pulse, cfg, period=None):
    """Pulses (T/4,) numpy -> times of beats in seconds (Ellis 2007); period: frames per beat.

    By dynamic programming: a beat is good where the pulse is strong, and where it comes a period
    after the one before.
    """
    rate = frame_rate(cfg)
    pulse = pulse.clip(min=0)
    N = len(pulse)
    if period is None:
        period = find_period(pulse, cfg)
    if period is None:
        return []

    # The best sum of pulses up to each frame, and which beat came before. In front of `best` lie
    # zeros for the time before the song: any beat may be the first one.
    margin = 2 * period
    steps = np.arange(period // 2, margin + 1)
    penalty = STEADINESS * np.log(steps / period) ** 2
    best = np.zeros(margin + N)
    previous = np.zeros(N, int)
    for frame in range(N):
        candidates = best[frame + margin - steps] - penalty
        choice = candidates.argmax()
        best[frame + margin] = pulse[frame] + candidates[choice]
        previous[frame] = frame - steps[choice]

    beats = []
    frame = N - period + best[-period:].argmax()
    while frame >= 0:
        beats.append((frame + 0.5) / rate)
        frame = previous[frame]
    return [float(beat) for beat in reversed(beats)]


def chord_templates():
    """All chords that may be heard -> [(root, kind, bass)], chroma (chords, 24), cost (chords,)."""
    chords = []
    templates = []
    costs = []
    for kind in HEARD_KINDS:
        for root in range(12):
            notes = [(root + tone) % 12 for tone in SPELLINGS[kind]]
            for bass in notes[:3]:
                template = np.zeros(24)
                template[bass] = 0.5  # the chord counts twice as much as its bass
                template[[12 + note for note in notes]] = len(notes) ** -0.5
                chords.append((root, kind, bass))
                templates.append(template)
                costs.append(RARE_COST * (kind not in ("", "m")) + RARE_COST * (bass != root))
    return chords, np.array(templates), np.array(costs)


def name_chords(chords):
    """[(root, kind, bass)] of a song -> [label], with sharps or with flats."""
    roots = [root for root, _, _ in chords]
    on_the_flat_side = sum(root in (5, 10, 3, 8) for root in roots)  # F, Bb, Eb, Ab
    on_the_sharp_side = sum(root in (2, 9, 4, 11) for root in roots)  # D, A, E, B
    names = FLAT_NAMES if on_the_flat_side > on_the_sharp_side else SHARP_NAMES

    labels = []
    for root, kind, bass in chords:
        slash = "" if bass == root else "/" + names[bass]
        labels.append(names[root] + kind + slash)
    return labels


def best_path(fit):
    """fit (beats, chords) -> the chord of each beat: the highest sum, less CHANGE_COST per change.

    The algorithm of Viterbi. Going from any chord to any other costs the same, so for each chord
    there are two ways only: it was there before, or the best of all was.
    """
    total = fit[0]
    came_from = []
    for row in fit[1:]:
        best = total.argmax()
        stays = total >= total[best] - CHANGE_COST
        came_from.append(np.where(stays, np.arange(len(row)), best))
        total = np.where(stays, total, total[best] - CHANGE_COST) + row

    path = [total.argmax()]
    for before in reversed(came_from):
        path.append(before[path[-1]])
    return path[::-1]


def recognise_chords(both, beats, seconds, cfg):
    """Chroma (2, 12, T/4) of a band, times of beats -> [(begin, end, label)] from 0 to `seconds`.

    Chords change on beats.
    """
    edges = [0.0, *[beat for beat in beats if 0.1 < beat < seconds - 0.1], seconds]
    frames = (np.array(edges) * frame_rate(cfg)).astype(int)

    # Mean chroma of each beat, brought to length 1 in bass and middle; 0 where nothing sounds
    heard = []
    for first, last in pairwise(frames):
        first = min(first, both.shape[-1] - 1)
        heard.append(both[:, :, first : max(first + 1, last)].mean(-1))
    heard = torch.stack(heard)  # (beats, 2, 12)
    sounds = heard.norm(dim=2, keepdim=True) > SILENT
    heard = (F.normalize(heard, dim=2) * sounds).flatten(1).numpy()
    sounds = sounds.any(dim=1)

    chords, templates, costs = chord_templates()
    path = best_path(heard @ templates.T - costs)
    labels = name_chords([chords[number] for number in path])

    # Beats with the same chord become one line.
    chart = []
    for (begin, end), label, is_heard in zip(pairwise(edges), labels, sounds, strict=True):
        if not is_heard:
            label = "N"
        if chart and chart[-1][2] == label:
            begin, _, _ = chart.pop()
        chart.append((begin, end, label))
    return chart


# --------------------------------------------------------------------------------------------------
# The picture: four panels with axes, one for each stage of the signal path, as a PNG file. All by
# hand, so that no plotting package is needed; this part may be skipped.

# Sizes in pixels, and brightness from 0 to 255
PANEL_WIDTH = 1200
PANEL_HEIGHT = 210
LEFT = 60  # margin for the labels
RIGHT = 40
GAP = 26  # above each panel for its title, and below the last for the time axis
CHART_ROW = 18  # below the time axis, for the chords that are played
TICK = 5  # length of the marks on the axes
BACKGROUND = 24  # dark grey
FOREGROUND = 210  # light grey

# Colours for values from 0 to 1 in equal steps: red, green, blue
COLOURS = np.array(
    [(0, 0, 10), (60, 15, 110), (170, 45, 110), (245, 125, 60), (255, 250, 180)], dtype=float
)

# What the vertical axes show: the frequency of a mel row in Hz, the note of a chroma row
FREQUENCY_LABELS = {"200": 200, "500": 500, "1K": 1000, "2K": 2000, "4K": 4000, "8K": 8000}
NOTE_LABELS = [("C", 0), ("E", 4), ("G", 7), ("C", 12), ("E", 16), ("G", 19)]
TIME_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)  # seconds between time labels
MOST_TIME_STEPS = 12

# Letters of 3 x 5 dots, with a column between them. Small ones occur in names of chords only.
FONT = {
    "0123456789": (
        "### .#. ### ### #.# ### ### ### ### ###",
        "#.# ##. ..# ..# #.# #.. #.. ..# #.# #.#",
        "#.# .#. ### .## ### ### ### ..# ### ###",
        "#.# .#. #.. ..# ..# ..# #.# .#. #.# ..#",
        "### ### ### ### ..# ### ### .#. ### ###",
    ),
    "ABCDEFGHIJKLM": (
        ".#. ##. .## ##. ### ### .## #.# ### ..# #.# #.. #.#",
        "#.# #.# #.. #.# #.. #.. #.. #.# .#. ..# #.# #.. ###",
        "### ##. #.. #.# ##. ##. #.# ### .#. ..# ##. #.. ###",
        "#.# #.# #.. #.# #.. #.. #.# #.# .#. #.# #.# #.. #.#",
        "#.# ##. .## ##. ### #.. .## #.# ### .#. #.# ### #.#",
    ),
    "NOPQRSTUVWXYZ": (
        "##. .#. ##. .#. ##. .## ### #.# #.# #.# #.# #.# ###",
        "#.# #.# #.# #.# #.# #.. .#. #.# #.# #.# #.# #.# ..#",
        "#.# #.# ##. #.# ##. .#. .#. #.# #.# ### .#. .#. .#.",
        "#.# #.# #.. ### #.# ..# .#. #.# #.# ### #.# .#. #..",
        "#.# .#. #.. .## #.# ##. .#. ### .#. #.# #.# .#. ###",
    ),
    "abdijmsu#/": (
        "... #.. ..# .#. ..# ... ... ... #.# ..#",
        ".## #.. ..# ... ... ### .## #.# ### ..#",
        "#.# ##. .## .#. ..# ### #.. #.# #.# .#.",
        "#.# #.# #.# .#. #.# #.# .## #.# ### #..",
        ".## ##. .## .#. .#. #.# ##. .## #.# #..",
    ),
}
DOT = 2  # a dot of a letter is a square of 2 x 2 pixels
LETTER_WIDTH = 3 * DOT
LETTER_HEIGHT = 5 * DOT
LETTER_STEP = 4 * DOT  # from one letter to the next


@dataclass
class Panel:
    title: str
    values: torch.Tensor  # (1, rows, frames): 0 is dark, 1 bright; the first row is at the bottom
    labels: list  # of (text, row)


def draw_stages(vocals, expected, mu, mel, chart, cfg):
    """The four stages of one song, and the chords that are played -> the bytes of a PNG file.

    vocals (1, L) at the model's rate; expected features (1, N_EXPECTED, T/4); mu and mel (1, M, T),
    normalised; chart [(begin, end, label)].
    """
    mel_vocals = normalise(log_mel(vocals, cfg), cfg)
    expected_chroma = chroma_of(expected) / 0.7  # two equally strong notes have 0.7 each
    frequencies = frequency_labels(cfg)
    panels = [
        Panel("VOCALS IN HZ", mel_brightness(mel_vocals), frequencies),
        Panel("EXPECTED HARMONY  BASS BELOW  MIDDLE ABOVE", expected_chroma, NOTE_LABELS),
        Panel("PRIOR MU IN HZ", mel_brightness(mu), frequencies),
        Panel("ACCOMPANIMENT IN HZ", mel_brightness(mel), frequencies),
    ]

    height = (PANEL_HEIGHT + GAP) * len(panels) + GAP + CHART_ROW
    picture = np.full((height, LEFT + PANEL_WIDTH + RIGHT, 3), BACKGROUND, np.uint8)
    for i, panel in enumerate(panels):
        draw_panel(picture, GAP + i * (PANEL_HEIGHT + GAP), panel)
    bottom = GAP + len(panels) * (PANEL_HEIGHT + GAP) - GAP  # of the last panel
    draw_time_axis(picture, bottom, vocals.shape[-1] / cfg.sample_rate)
    draw_chart(picture, bottom + GAP, chart, vocals.shape[-1] / cfg.sample_rate)
    return encode_png(picture)


def mel_brightness(mel):
    """Normalised mel -> brightness: -1, which is close to silence, becomes 0, and 1.3 becomes 1."""
    return (mel + 1) / 2.3


def frequency_labels(cfg):
    """The labels of a mel axis: [(text, row)]. Row 0 is the lowest band."""
    filters = mel_filterbank(cfg.sample_rate, cfg.n_fft, cfg.n_mels)
    centres = filters.argmax(1) * cfg.sample_rate / cfg.n_fft  # of the bands, in Hz
    rows = np.interp(list(FREQUENCY_LABELS.values()), centres, np.arange(cfg.n_mels))
    return list(zip(FREQUENCY_LABELS, rows.tolist(), strict=True))


def draw_panel(picture, top, panel):
    """Draws title, values and labels of a panel into picture, its upper edge at row `top`."""
    write_text(picture, LEFT, top - 14, panel.title)

    # Time is averaged to the width of the panel; of the rows, the nearest one is shown.
    values = F.interpolate(panel.values.cpu().float(), PANEL_WIDTH, mode="area")[0].numpy()
    rows = len(values)
    row_of_line = np.arange(PANEL_HEIGHT)[::-1] * rows // PANEL_HEIGHT  # the first line is on top
    values = values[row_of_line]  # (PANEL_HEIGHT, PANEL_WIDTH)

    steps = np.linspace(0, 1, len(COLOURS))
    for channel in range(3):
        colour = np.interp(values, steps, COLOURS[:, channel])
        picture[top : top + PANEL_HEIGHT, LEFT : LEFT + PANEL_WIDTH, channel] = colour

    for text, row in panel.labels:
        y = top + PANEL_HEIGHT - 1 - int((row + 0.5) * PANEL_HEIGHT / rows)
        picture[y, LEFT - TICK : LEFT] = FOREGROUND
        text_width = LETTER_STEP * len(text)
        write_text(picture, LEFT - 8 - text_width, max(top, y - LETTER_HEIGHT // 2), text)


def draw_chart(picture, top, chart, seconds):
    """Writes the names of chords where they begin, as far as there is room, from row `top` on."""
    write_text(picture, 4, top, "CHORDS")
    free = 0
    for begin, _, label in chart:
        x = LEFT + int(begin / seconds * (PANEL_WIDTH - 1))
        if x >= free:
            write_text(picture, x, top, label)
            free = x + LETTER_STEP * (len(label) + 1)


def draw_time_axis(picture, bottom, seconds):
    """Marks the time below the last panel, which ends at row `bottom` and is `seconds` long."""
    fitting = [step for step in TIME_STEPS if seconds / step <= MOST_TIME_STEPS]
    step = fitting[0] if fitting else TIME_STEPS[-1]

    for second in range(0, int(seconds) + 1, step):
        x = LEFT + int(second / seconds * (PANEL_WIDTH - 1))
        picture[bottom : bottom + TICK, x] = FOREGROUND
        write_text(picture, x - 4, bottom + 9, f"{second} S")


def write_text(picture, x, y, text):
    """Writes text, in letters that FONT has, into picture, its upper left corner at x, y.

    What lies beyond the right edge is cut off.
    """
    for letter in text:
        if letter != " ":
            spot = picture[y : y + LETTER_HEIGHT, x : x + LETTER_WIDTH]
            dots = glyph(letter).repeat(DOT, axis=0).repeat(DOT, axis=1)
            spot[dots[:, : spot.shape[1]]] = FOREGROUND
        x += LETTER_STEP


def glyph(letter):
    """A letter, digit or sign -> (5, 3) array, True where FONT has a dot."""
    alphabet = next(letters for letters in FONT if letter in letters)
    column = 4 * alphabet.index(letter)
    rows = [list(row[column : column + 3]) for row in FONT[alphabet]]
    return np.array(rows) == "#"


def encode_png(picture):
    """(height, width, 3) uint8 -> the bytes of an RGB PNG file (ISO/IEC 15948)."""
    height, width, _ = picture.shape
    signature = b"\x89PNG\r\n\x1a\n"

    # 8 bits per channel, colour type 2 (RGB), compression 0, filter method 0, not interlaced
    header = png_number(width) + png_number(height) + bytes([8, 2, 0, 0, 0])

    # Each row of pixels begins with the number of its filter; 0 is none.
    rows = np.pad(picture.reshape(height, 3 * width), ((0, 0), (1, 0)))
    pixels = zlib.compress(rows.tobytes(), level=6)

    chunks = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    return signature + b"".join(chunks)


def png_number(number):
    """Numbers in a PNG file have four bytes, the highest first."""
    return number.to_bytes(4, "big")


def png_chunk(kind, data):
    """A part of a PNG file: length, kind (four letters), data, checksum of kind and data."""
    return png_number(len(data)) + kind + data + png_number(zlib.crc32(kind + data))


# --------------------------------------------------------------------------------------------------
# The page: assets/page.html with the takes filled in. Sounds and pictures are part of it, so it is
# one file that plays anywhere. A take is one stereo sound, voice left and band right: the two are
# always in step, and the page mixes them.


def describe_take(title, command, pair, sample_rate, picture):
    """One take as a dict of texts, for the page.

    pair: (L, 2), voice and band. picture: the bytes of a PNG file.
    """
    # The sound is FLAC (browsers play it, and it is smaller than WAV) at 24 kHz at most. The band
    # has nothing above 12 kHz. If the voice has, only mix.wav keeps it.
    rate = min(sample_rate, Config.sample_rate)
    sound = resample(torch.from_numpy(pair.T), sample_rate, rate).T.numpy()
    return {
        "title": title,
        "command": command,
        "sound": data_uri("audio/flac", audio_bytes(sound, rate, command, "FLAC")),
        "picture": data_uri("image/png", picture),
    }


def data_uri(media_type, data):
    """Bytes -> a link that holds them itself (RFC 2397)."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def fill_page(takes):
    """Dicts of describe_take -> the bytes of the page."""
    template = (ASSETS / "page.html").read_text(encoding="utf-8")
    # A title with "</script>" in it must not end the script: "<" is written as \u003c.
    takes_json = json.dumps(takes).replace("<", "\\u003c")
    return template.replace("TAKES", takes_json).encode("utf-8")


# --------------------------------------------------------------------------------------------------
# Measures. Each compares what stands in the band's place with the true band, at feature frames
# (43 ms).

ON_BEAT = 0.043  # seconds: an onset this close to a beat is on it
PLAYING = 0.5  # norm of a chroma frame, 0 in silence and 1.4 at most: above it, the band plays


def measure(wav, true, cfg, facts):
    """All measures of wav against the true band.

    wav, true: (L,) at the model's rate and level. facts: what the prepared set tells of the song;
    chords and beats are known for demo songs only.

    Returns {name: value}, and the patch statistics of wav for the Frechet distance.
    """
    length = min(len(wav), len(true))
    pair = torch.stack([wav[:length], true[:length]]).cpu()
    mels = log_mel(pair, cfg)  # (2, M, T)
    both = chroma_of(music_features(pair, mels, cfg)).clamp(min=0)  # (2, 24, T/4); 0, not -1e-8
    chroma, true_chroma = both
    compressed = compress(mels)
    onsets, true_onsets = onset_envelope(compressed).mean(1)  # (T/4,) each
    playing = true_chroma.norm(dim=0) > PLAYING

    result = {
        "harmony": harmony(chroma[:, playing], true_chroma[:, playing]),
        "rhythm": rhythm(onsets, true_onsets),
        "rhythm +-64 ms": rhythm_within_64_ms(compressed[0], true_onsets),
    }
    if "chords" in facts:
        frames = torch.arange(len(onsets))
        times = (frames + 0.5) * PATCH * cfg.hop_length / cfg.sample_rate  # seconds
        middle = chroma[12:, playing]
        result["on chord"] = on_chord(middle, chord_tones(facts["chords"], times[playing]))
        result["on beat"] = on_beat(onsets, facts["beats"], times)
        result["in phase"] = in_phase(onsets, facts["beats"], times)
    return result, patch_statistics(mels[0])


def harmony(chroma, true_chroma):
    """Do the same notes sound? Mean cosine between the columns of two chromas (24, frames)."""
    return F.cosine_similarity(chroma, true_chroma, dim=0).mean().item()


def rhythm(onsets, true_onsets):
    """Do notes begin at the same time? Correlation of two onset envelopes (frames,)."""
    correlation = torch.corrcoef(torch.stack([onsets, true_onsets]))[0, 1]
    return correlation.nan_to_num().item()  # an envelope without any onset: 0


def rhythm_within_64_ms(compressed, true_onsets):
    """The highest rhythm that a mel reaches when it is moved by -6 to 6 frames.

    compressed (M, T): compress(log-mel). A mel frame lasts 10.7 ms. An accompaniment that is early
    or late by a constant time, as some singers are, reaches as much as one in time.
    """
    best = -1.0
    for shift in range(-6, 7):
        moved = compressed.roll(shift, dims=-1)  # what leaves at one end comes in at the other
        best = max(best, rhythm(onset_envelope(moved[None])[0].mean(0), true_onsets))
    return best


def chord_tones(chords, times):
    """[(begin, end, pitch classes)] in seconds -> (12, frames), True for the chord's tones."""
    tones = torch.zeros(12, len(times), dtype=torch.bool)
    for begin, end, pitch_classes in chords:
        during = (times >= begin) & (times < end)
        for pitch_class in pitch_classes:
            tones[pitch_class] |= during
    return tones


def on_chord(chroma, tones):
    """The share of the energy in chroma (12, frames) that lies on the chord's tones.

    tones: (12, frames) of chord_tones. Frames without a chord are left out.
    """
    energy = chroma.square()
    share = (energy * tones).sum(0) / energy.sum(0).clamp(min=1e-9)
    has_chord = tones.any(0)
    return share[has_chord].mean().item()


def on_beat(onsets, beats, times):
    """Mean onset strength at the true beats, divided by the mean elsewhere.

    onsets (frames,); beats: seconds; times (frames,): seconds of the frames.
    """
    distance = (times[:, None] - torch.tensor(beats)).abs().amin(1)  # to the nearest beat
    near = distance < ON_BEAT
    return (onsets[near].mean() / onsets[~near].mean()).item()


def in_phase(onsets, beats, times):
    """1.0 if onsets are stronger on the beats than half a beat after them, else 0.0.

    The mean over songs is the share of songs in which the band has the beat where it is.
    """
    beats = np.array(beats)
    halves = (beats[:-1] + beats[1:]) / 2
    return float(on_beat(onsets, beats.tolist(), times) > on_beat(onsets, halves.tolist(), times))


def patch_statistics(mel):
    """log-mel (M, T) -> (patches, 50): mean and standard deviation of 25 bands over 171 ms."""
    bands = F.avg_pool2d(mel[None], (4, 1))[0]  # (25, T)
    patches = bands.unfold(-1, 16, 16)  # (25, patches, 16)
    return torch.cat([patches.mean(-1), patches.std(-1)]).T.numpy()


def frechet(a, b):
    """Frechet distance between two sets of vectors (n, d), each taken as a Gaussian.

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), as in FID (Heusel et al.
    2017). The trace of the root is the sum of the roots of the eigenvalues.
    """
    cov_a = np.cov(a.T)
    cov_b = np.cov(b.T)
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).astype(complex)
    trace_of_root = np.sqrt(eigenvalues).real.sum()

    between_means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return between_means + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_of_root


def copy_distances(copy, true, cfg):
    """What a vocoder loses when it makes the true band (1, L) again out of its mel.

    Returns {name: value}: distance of the log spectra, distance of the log-mels, and how sharp
    onsets still are: the mean of the strongest hundredth in the copy over that in the original.
    """
    mels = log_mel(torch.cat([copy, true]), cfg)
    onsets = onset_envelope(compress(mels)).mean(1)  # (2, T/4)
    strongest = max(1, onsets.shape[-1] // 100)
    copy_peak, true_peak = onsets.topk(strongest).values.mean(-1)
    return {
        "log-STFT distance": stft_distance(copy, true).mean().item(),
        "log-mel L1": F.l1_loss(mels[0], mels[1]).item(),
        "onset sharpness": (copy_peak / true_peak).item(),
    }


# --------------------------------------------------------------------------------------------------
# Evaluation: a table over the validation songs of a prepared set. Each row puts something else in
# the band's place. Another song's band is the floor: it has nothing to do with this song. The true
# band's mel through the vocoder is the ceiling: a perfect mel reaches that.

LONGEST = 30  # seconds of each song
TRUE = "true band"
CEILING = "true band's mel"
GENERATED = "generated"
TOLD_CHART = "generated, chart told"
TOLD_BEATS = "generated, beats told"
MU = "prior mu alone"
VOCALS = "the vocals themselves"
FLOOR = "mismatched (another song's)"


def lists():
    """A dict of lists that begin empty."""
    return defaultdict(list)


@dataclass
class Results:
    """What was measured so far."""

    vocoder: str  # the one that the rows of the table were made with
    songs: int
    music: float = 0.0  # seconds
    measures: dict = field(default_factory=lists)  # row -> [{measure: value} of each song]
    patches: dict = field(default_factory=lists)  # row -> [array (patches, 50) of each song]
    distances: dict = field(default_factory=lists)  # vocoder -> [{distance: value} of each song]

    def add(self, rows, true, cfg, facts):
        """Measures what stands in a song's band's place, {row: (L,)}, against the true band."""
        for row, wav in rows.items():
            values, patches = measure(wav, true, cfg, facts)
            self.measures[row].append(values)
            self.patches[row].append(patches)


def read_val_songs(folder, level_dbfs=Config.level_dbfs):
    """The validation songs of a set, at least two. Raises UserError."""
    songs = read_set(folder, "val", level_dbfs)
    if len(songs) < 2:
        raise UserError(
            f"{folder} has one validation song; "
            "a floor needs another song's band, so at least 2"
        )
    return songs


def other_song(songs, i):
    """Another song than number i, half the set away: neighbours may have the same singer."""
    return songs[(i + len(songs) // 2) % len(songs)]


@torch.no_grad()
def evaluate(model, args, stopwatch):
    """Measures on the validation songs of the set args.evaluate -> Results. Raises UserError."""
    cfg = model.cfg
    songs = read_val_songs(args.evaluate, cfg.level_dbfs)
    vocoders = ["griffinlim"] if model.vocoder is None else ["neural", "griffinlim"]
    vocoder = args.vocoder if args.vocoder in vocoders else "griffinlim"

    results = Results(vocoder, len(songs))
    for i, song in enumerate(tqdm(songs, unit="song", disable=None)):
        facts = song[0]
        vocals, true = load_excerpt(song, model)
        _, other = load_excerpt(other_song(songs, i), model)
        results.music += len(true) / cfg.sample_rate
        true_mel = log_mel(true[None], cfg)
        stopwatch.lap("load")

        seed = args.seed + i  # a band of its own for each song
        generated, mu = generate(model, vocals, args, vocoder, seed)
        stopwatch.lap("generated")

        copies = {}
        for name in vocoders:
            copies[name] = model.vocode(true_mel, name)
            stopwatch.lap(name)
            results.distances[name].append(copy_distances(copies[name], true[None], cfg))
            stopwatch.lap("measure")

        rows = {
            TRUE: true,
            CEILING: copies[vocoder][0],
            GENERATED: generated,
            **generate_told(model, vocals, facts, args, vocoder, seed),
            MU: model.vocode(denormalise(mu, cfg), vocoder)[0],
            VOCALS: vocals,
            FLOOR: other,
        }
        results.add(rows, true, cfg, facts)
        stopwatch.lap("measure")
    return results


def generate(model, vocals, args, vocoder, seed, told=None):
    """vocals (L,) of load_excerpt -> accompaniment (L,), mu (1, M, T)."""
    expected, mu = model.condition(vocals[None], told)
    mel = model.sample(mu, expected, args.steps, args.guidance, seed)
    return model.vocode(denormalise(mel, model.cfg), vocoder)[0], mu


def generate_told(model, vocals, facts, args, vocoder, seed):
    """Rows of a song whose chords and beats are known: the model is told both, or the beats."""
    if "chords" not in facts:
        return {}
    num_frames = len(vocals) // (model.cfg.hop_length * PATCH)
    rows = {}
    for row, chords in ((TOLD_CHART, facts["chords"]), (TOLD_BEATS, [])):
        told = chart_features(chords, facts["beats"], num_frames, model.cfg)
        told = told[None].to(model.device)
        rows[row], _ = generate(model, vocals, args, vocoder, seed, told)
    return rows


def load_excerpt(song, model):
    """A song of read_set -> the beginning of its vocals and of its band, (L,) each, as float."""
    _, pairs, gains = song
    length = min(len(pairs), LONGEST * model.cfg.sample_rate)
    length = length // model.frame_length * model.frame_length
    vocals_and_band = torch.from_numpy(pairs[:length] * gains).T
    return vocals_and_band.to(model.device)


def print_results(results, args, stopwatch, device):
    """The table, and a line for each vocoder."""
    print(
        f"{args.evaluate}: {results.songs} songs, {results.music / 60:.1f} minutes; "
        f"{args.steps} steps, guidance {args.guidance:g}, {results.vocoder}; "
        "mean and 95 % interval over songs"
    )
    print_table(results)

    for vocoder, distances in results.distances.items():
        averages = []
        for name in distances[0]:
            mean = np.mean([song[name] for song in distances])
            averages.append(f"{name} {mean:.3f}")
        speed = results.music / stopwatch.seconds[vocoder]
        print(
            f"true bands' mels through {vocoder}: {', '.join(averages)}, "
            f"{speed:.0f} times real time"
        )

    factor = stopwatch.seconds["generated"] / results.music
    print(f"RTF {factor:.3f} ({device}, condition, diffusion and vocoder)")


def print_table(results):
    """Mean and interval of each row, and how much of the gap from floor to ceiling rows close."""
    names = list(results.measures[TRUE][0])
    print(f"{'':28s}" + "".join(f"{name:>16s}" for name in names) + f"{'Frechet':>10s}")

    means = {}
    true_patches = np.concatenate(results.patches[TRUE])
    for row, measures in results.measures.items():
        values = np.array([list(song.values()) for song in measures])  # (songs, measures)
        means[row] = values.mean(axis=0)
        interval = 1.96 * values.std(axis=0, ddof=1) / math.sqrt(results.songs)
        distance = frechet(np.concatenate(results.patches[row]), true_patches)
        cells = [f"{m:9.3f} ±{half:5.3f}" for m, half in zip(means[row], interval, strict=True)]
        print(f"{row:28s}" + "".join(cells) + f"{distance:10.2f}")

    for row in means:
        if row in (TRUE, CEILING, FLOOR):
            continue
        closed = 100 * (means[row] - means[FLOOR]) / (means[CEILING] - means[FLOOR])
        shares = [f"{name} {share:.0f} %" for name, share in zip(names, closed, strict=True)]
        print(f"gap closed by {row}: " + ", ".join(shares))


# --------------------------------------------------------------------------------------------------
# The command line


def make_parser():
    """The options and their defaults."""
    parser = argparse.ArgumentParser(
        prog="sample.py",
        usage="python sample.py (VOCALS ... | --evaluate DATA) [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "vocals",
        nargs="*",
        metavar="VOCALS",
        help="audio files with solo singing: from 0.5 s on, any rate and channel count",
    )
    add("--out", default="out", help="folder to write to (default: out)")
    add("--checkpoint", default=DEFAULT_CHECKPOINT, help="weights (default: assets/demo.pt)")
    add("--steps", type=int, default=8, help="steps of the diffusion (default: 8)")
    add(
        "--guidance",
        type=float,
        default=5.0,
        help="0 to 20. 1: none; more: closer to the voice, less varied (default: 5)",
    )
    add("--takes", type=int, default=1, help="different accompaniments per song (default: 1)")
    add("--seed", type=int, default=0, help="of the first take; later takes count on (default: 0)")
    add(
        "--vocoder",
        choices=["neural", "griffinlim"],
        default="neural",
        help="neural (default): if the weights hold one, else griffinlim",
    )
    add("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    add(
        "--chart",
        metavar="FILE",
        help="chords to play, one a line: begin and end in seconds, chord; as chart.txt is written",
    )
    add("--bpm", type=float, help="tempo that was sung to, 30 to 300 beats per minute")
    add("--first-beat", type=float, help="with --bpm: time of a beat in seconds, if known")
    add("--page", action="store_true", help="also write OUT/index.html: listen to all takes, mix")
    add("--evaluate", metavar="DATA", help="measure on a prepared set's validation songs instead")

    return parser


def parse_arguments(parser, argv):
    """The command line -> options; exits with a sentence if one is out of range."""
    # A file called -x.wav is not an option: as ./-x.wav it is the same file.
    if argv is None:
        argv = sys.argv[1:]
    words = []
    for word in argv:
        if word.startswith("-") and os.path.isfile(word):
            word = os.path.join(".", word)
        words.append(word)
    args = parser.parse_args(words)

    if bool(args.vocals) == bool(args.evaluate):
        parser.error("give audio files with singing, or --evaluate DATA")
    check_told_options(parser, args)
    if not 0 <= args.guidance <= 20:
        parser.error(f"--guidance {args.guidance:g}: must lie between 0 and 20")
    check_least(parser, args, {"steps": 1, "takes": 1, "seed": 0})
    check_seed(parser, args)
    if args.evaluate and (args.takes != 1 or args.page):
        parser.error("--takes and --page are for songs, not for --evaluate")
    return args


def check_told_options(parser, args):
    """Exits with a sentence if --chart, --bpm or --first-beat cannot be."""
    if args.chart is not None and len(args.vocals) != 1:
        parser.error("--chart is for one song; give one audio file")
    if args.first_beat is not None and len(args.vocals) != 1:
        parser.error("--first-beat is for one song; give one audio file")
    if args.bpm is not None and args.evaluate:
        parser.error("--bpm is for songs, not for --evaluate")
    try:
        check_told(args.bpm, args.first_beat, math.inf)
    except UserError as problem:
        parser.error(f"--{problem}")


def main(argv=None):
    """Runs the script. Raises SystemExit with status 2 after a user's error, 130 after Ctrl-C."""
    stopwatch = Stopwatch()
    parser = make_parser()
    args = parse_arguments(parser, argv)
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without emoji

    all_well = True
    try:
        model = FastSAG.load(args.checkpoint, args.device)
        if args.evaluate:
            results = evaluate(model, args, stopwatch)
            print_results(results, args, stopwatch, model.device)
        else:
            all_well = play_all(model, args, stopwatch)
    except UserError as problem:
        parser.error(str(problem))
    except KeyboardInterrupt:
        parser.exit(130, "sample.py: stopped; the files written so far are whole\n")
    if not all_well:
        parser.exit(2)


if __name__ == "__main__":
    main()

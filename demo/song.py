"""From a number to a song, and from many numbers to many songs, on several cores."""
import signal
from dataclasses import dataclass
from multiprocessing import Pool

import numpy as np
import torch
from tqdm import tqdm

from .band import NUM_BANDS, draw_band, record_band
from .compose import compose
from .score import STYLES
from .singer import NUM_VOICES, draw_voice, record_vocals, sing
from .sound import at_level

HELD_OUT = 8  # every 8th band, and of each height one voice, are for validation only


@dataclass(frozen=True)
class Job:
    """Which song to make."""

    seed: int
    index: int  # number of the song
    seconds: float
    split: str  # train or val


def cast(rng, count, split):
    """The number of a voice or band, from 0 to count - 1, that is meant for this split."""
    if split == "val":
        numbers = range(0, count, HELD_OUT)
    else:
        numbers = [number for number in range(count) if number % HELD_OUT != 0]
    return int(rng.choice(numbers))


def annotate(score, seconds):
    """The truth about a song, for evaluation: its beats and chords in seconds, within the file."""

    def times(beats):
        return score.seconds(beats).clip(0, seconds).round(4).tolist()

    num_bars = len(score.bars)
    beats = times(np.arange(-4, num_bars * score.meter))  # some lie before the first bar line
    bar_lines = times(np.arange(num_bars + 1) * score.meter)

    chords = []
    for bar, begin, end in zip(score.bars, bar_lines[:-1], bar_lines[1:], strict=True):
        if begin < end:
            chords.append((begin, end, bar.chord))
    return {
        "tempo": round(float(score.tempo), 3),
        "beats": [beat for beat in beats if 0 < beat < seconds],
        "chords": chords,
    }


def make_song(job):
    """Job -> vocals (L,), accompaniment (L,), float32 below 1, and a dict of facts.

    A job always gives the same song. Casting, composer, singer and band have random generators of
    their own, so that the two recordings have nothing in common but the score.
    """
    casting, composing, singing, playing = [
        np.random.default_rng([job.seed, job.index, stream]) for stream in range(4)
    ]

    voice_number = cast(casting, NUM_VOICES, job.split)
    band_number = cast(casting, NUM_BANDS, job.split)
    voice = draw_voice(voice_number)
    band = draw_band(band_number)
    style = STYLES[job.index % len(STYLES)]

    score = compose(composing, style, voice.low, voice.high, job.seconds)
    vocals = record_vocals(singing, sing(singing, voice, score, job.seconds))
    accomp = record_band(playing, band, score, job.seconds)

    band_level = -20 + np.clip(casting.normal(0, 2), -4, 4)  # dBFS; the singer's is -20
    accomp = at_level(accomp, band_level)
    gain = 0.9 / max(np.abs(vocals).max(), np.abs(accomp).max())  # one for both: the balance stays

    facts = {"name": f"demo-{job.index:05d}", "split": job.split}
    facts |= annotate(score, job.seconds)
    facts |= {"style": style.name, "voice": voice_number, "band": band_number}
    return vocals * gain, accomp * gain, facts


def start_worker():
    """Leaves Ctrl-C to the main process. One thread each, for songs are made in parallel."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def make_songs(seed, num_songs, num_val, seconds, workers):
    """A generator of so many songs, those for validation first; num_val is at most a quarter."""
    num_val = min(num_val, max(1, num_songs // 4))
    jobs = []
    for index in range(num_songs):
        split = "val" if index < num_val else "train"
        jobs.append(Job(seed, index, seconds, split))

    with Pool(min(workers, num_songs), initializer=start_worker) as pool:
        yield from tqdm(pool.imap(make_song, jobs), total=num_songs, unit="song", disable=None)

"""From a number to a song, and from many numbers to many songs, on several cores."""
import signal
from dataclasses import dataclass
from multiprocessing import Pool

import numpy as np
import torch
from tqdm import tqdm

from .band import NUM_BANDS, draw_band, record_band
from .compose import compose
from .lead_sheet import LeadSheet, arrange_sheet
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
    sheet: LeadSheet = None  # None: the song is composed


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

    chords = []
    for i, bar in enumerate(score.bars):
        for span in bar.spans():
            first_beat = i * score.meter + span.beat
            begin, end = times(np.array([first_beat, first_beat + span.beats]))
            if begin < end:
                chords.append((begin, end, span.chord))
    return {
        "tempo": round(float(score.tempo), 3),
        "beats": [beat for beat in beats if 0 < beat < seconds],
        "chords": chords,
    }


def make_song(job):
    """Job -> vocals (L,), accompaniment (L,), float32 below 1, and a dict of facts.

    A job always gives the same song. Casting, composer (or arranger), singer and band have random
    generators of their own, so that the two recordings have nothing in common but the score.
    """
    casting, composing, singing, playing = [
        np.random.default_rng([job.seed, job.index, stream]) for stream in range(4)
    ]

    voice_number = cast(casting, NUM_VOICES, job.split)
    band_number = cast(casting, NUM_BANDS, job.split)
    voice = draw_voice(voice_number)
    band = draw_band(band_number)

    if job.sheet:
        name = job.sheet.name
        score = arrange_sheet(composing, job.sheet, voice.low, voice.high, job.seconds)
    else:
        name = f"demo-{job.index:05d}"
        style = STYLES[job.index % len(STYLES)]
        score = compose(composing, style, voice.low, voice.high, job.seconds)

    vocals = record_vocals(singing, sing(singing, voice, score, job.seconds))
    accomp = record_band(playing, band, score, job.seconds)

    band_level = -20 + np.clip(casting.normal(0, 2), -4, 4)  # dBFS; the singer's is -20
    accomp = at_level(accomp, band_level)
    gain = 0.9 / max(np.abs(vocals).max(), np.abs(accomp).max())  # one for both: the balance stays

    facts = {"name": name, "split": job.split}
    facts |= annotate(score, job.seconds)
    facts |= {"style": score.style.name, "voice": voice_number, "band": band_number}
    return vocals * gain, accomp * gain, facts


def start_worker():
    """Leaves Ctrl-C to the main process. One thread each, for songs are made in parallel."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def deal(sheets, seed, splits):
    """The lead sheet of each song, in random order, for songs of these splits.

    A sheet serves either for validation, at most a quarter of them, or for training; a single one
    serves for both. Every sheet is used before one is used again.
    """
    order = np.random.default_rng(seed).permutation(len(sheets))
    num_val = min(splits.count("val"), max(1, len(sheets) // 4))
    decks = {"val": order[:num_val], "train": order[num_val:]}
    if len(sheets) == 1:
        decks["train"] = order

    dealt = []
    num_dealt = {"val": 0, "train": 0}
    for split in splits:
        deck = decks[split]
        dealt.append(sheets[deck[num_dealt[split] % len(deck)]])
        num_dealt[split] += 1
    return dealt


def make_songs(seed, num_songs, num_val, seconds, workers, sheets=None):
    """A generator of so many songs, those for validation first; num_val is at most a quarter.

    sheets: [LeadSheet], from which the songs are made. Without them, the songs are composed.
    """
    num_val = min(num_val, max(1, num_songs // 4))
    splits = ["val"] * num_val + ["train"] * (num_songs - num_val)
    dealt = deal(sheets, seed, splits) if sheets else [None] * num_songs

    jobs = []
    for index, (split, sheet) in enumerate(zip(splits, dealt, strict=True)):
        jobs.append(Job(seed, index, seconds, split, sheet))

    with Pool(min(workers, num_songs), initializer=start_worker) as pool:
        yield from tqdm(pool.imap(make_song, jobs), total=num_songs, unit="song", disable=None)

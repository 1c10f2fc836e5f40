"""Make the training set: pairs of (solo singing, the band that fits it), 24 kHz mono, in two flat files.

    python prep.py                                    demo songs, composed and synthesised here by numpy -> data/demo
    python prep.py --songs 8 --seed 1 --out data/tiny a handful, to try things out
    python prep.py PATH ... --out data/mine           your own stems: MUSDB18-HQ, Demucs output, MIR-1K, or
                                                      NAME_vocals.* beside NAME_accompaniment.*

OUT/train.bin, OUT/val.bin   int16 (samples, 2): column 0 vocals, column 1 accompaniment, songs end to end
OUT/meta.json                where each song lies in them, its levels and, for demo songs, its beats and chords
One minute of music takes 5.8 MB. Read the first part as a lesson: a song is a score, a score is notes, and a voice or
an instrument is a few numbers. Only the *relation* between singing and band has to be true; that is what is learnt.
"""
import argparse
import json
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from tqdm import tqdm

from fastsag import Config, UserError, active_dbfs, demand, read_audio, resample, writing

SAMPLE_RATE = Config.sample_rate
FORMAT = 1                                     # of a prepared set; another number for another layout
N_VOICES, N_BANDS, HELD_OUT = 480, 240, 8      # every 8th voice and every 8th band is heard in validation songs only


# ---------------------------------------------------------------------------------------------------------------------
# The score. Time is counted in beats, pitch in MIDI notes (69 = 440 Hz), harmony in degrees of a scale.

MODES = dict(major=(0, 2, 4, 5, 7, 9, 11), minor=(0, 2, 3, 5, 7, 8, 10),
             mixolydian=(0, 2, 4, 5, 7, 9, 10), dorian=(0, 2, 3, 5, 7, 9, 10))
LOOPS = dict(major=("1564", "6415", "1645", "4156", "2511", "1415", "1625", "1345", "15634145", "111144115415"),
             minor=("1637", "1415", "1675", "1765", "6715", "1473", "1646", "14736251"),
             mixolydian=("1741", "1714", "1547", "1177"), dorian=("1414", "1434", "1747", "1144"))

STRONG = {3: (0,), 4: (0, 2)}                                               # the strong beats of a bar


@dataclass(frozen=True)
class Style:
    """How a band plays a bar. Patterns are a character per sixteenth note; '|' separates alternatives.

    drums: X accent, x normal, o soft. bass: R root, 3 third, 5 fifth, 8 octave.
    harmony: X a chord held until the next sign, x a short chord, 0-3 single chord tones that ring (arpeggio)."""
    tempo: tuple                             # slowest, fastest, in beats per minute
    kick: str
    snare: str
    hat: str
    bass: str
    harmony: str
    meter: int = 4                           # beats per bar
    swing: float = 0.5                       # where the off-beat eighth falls within its beat; 2/3 is a triplet shuffle


STYLES = dict(
    ballad=Style((65, 92), kick="X.........x.....|X......xx.......", snare="....X.......X...",
        hat="x.o.x.o.x.o.x.o.", bass="R.........5.....|R.......R.....5.",
        harmony="X...X...X...X...|0.1.2.3.2.1.2.1.|X.......X......."),
    rock=Style((100, 160), kick="X.......X.x.....|X.x.....x.X.....", snare="....X.......X...",
        hat="X.x.X.x.X.x.X.x.", bass="R.R.R.R.R.R.R.R.|R...R.R.R...R.5.",
        harmony="X.x.x.x.X.x.x.x.|X...x.x.X...x.x.|X.....X.....X..."),
    waltz=Style((85, 160), kick="X...........", snare="....o...o...|....x...x...",
        hat="x...o...o...|............", bass="R...........|R.......5...",
        harmony="....x...x...|0.1.2.3.2.1.|X...x...x...", meter=3),
    disco=Style((108, 132), kick="X...X...X...X...", snare="....X.......X...",
        hat="x.X.x.X.x.X.x.X.|..X...X...X...X.", bass="R.8.R.8.R.8.R.8.|R..8..R.R..8..R.",
        harmony="..x...x...x...x.|x..x..x...x..x..|X.......x.x.x..."),
    bossa=Style((95, 150), kick="X.....x.X.....x.", snare="x..x..x...x..x..|o..o..o...o..o..",
        hat="o.o.o.o.o.o.o.o.", bass="R.....5.5.....R.|R.....5.R.....5.",
        harmony="x..x..x...x..x..|X..x..X...x..X..|..x...x.x...x..."),
    reggae=Style((65, 95), kick="........X.......|X.......X.......", snare="........X.......",
        hat="x.x.x.x.x.x.x.x.", bass="R..R..5...3.R...|R.....3.5.......",
        harmony="....x.......x...|..x...x...x...x."),
    hiphop=Style((68, 100), kick="X..x......x.....|X.....x...xx....", snare="........X.......|....X.......X...",
        hat="x.x.x.x.x.x.x.xx|xxxxxxxxxxxxxxxx", bass="R..R......5.....|R.........R.....",
        harmony="X.......X.....x.|X..x..x.........|0...2...1...3...", swing=0.56),
    picking=Style((70, 125), kick="................|X.......x.......", snare="................|....o.......o...",
        hat="................|o.x.o.x.o.x.o.x.", bass="R.......5.......|R.......R.....5.",
        harmony="0.2.1.3.0.2.1.3.|0.1.2.1.3.2.1.2.|0.231.230.231.23"),
    shuffle=Style((80, 140), kick="X.......X.......|X.....x.X.....x.", snare="....X.......X...",
        hat="X.x.X.x.X.x.X.x.", bass="R...3...5...3...|R.R.5.5.R.R.5.5.",
        harmony="..x...x...x...x.|X.....x.X.....x.|X...x...X...x...", swing=0.66),
    polka=Style((85, 140), kick="X.......X.......", snare="....x.......x...|..x...x...x...x.",
        hat="..o...o...o...o.|................", bass="R.......5.......|R...5...R...5...",
        harmony="....x.......x...|..x...x...x...x.|X...x...X...x..."),
    anthem=Style((90, 150), kick="X...X...X...X...|X.......X.......", snare="....X.......X...",
        hat="o.x.o.x.o.x.o.x.|xoxoxoxoxoxoxoxo", bass="R.R.R.R.R.R.R.R.|R.......R.......",
        harmony="X..x..x.X..x..x.|X...............|x.xx.xx.x.xx.xx."),
)


@dataclass
class Note:
    beat: float          # where it starts
    beats: float         # how long it lasts
    midi: int
    strong: bool         # on a strong beat (or anticipating one)
    begins: bool         # first of its phrase
    loudness: float      # dB


@dataclass
class Score:
    tempo: float
    start: float         # seconds of beat 0; negative when the recording begins within a bar
    style: Style
    groove: str          # how its chords are struck in verse and chorus
    sections: list       # (kind, first beat, beats); kinds: intro, verse, chorus, bridge, gap
    chords: list         # (first beat, end beat, pitch classes, root first)
    notes: list

    def seconds(self, beat):
        whole, part = np.floor(beat), np.mod(beat, 1)
        swing = self.style.swing
        part = np.where(part < 0.5, part * 2 * swing, swing + (part - 0.5) * 2 * (1 - swing))
        return self.start + (whole + part) * 60 / self.tempo


def write_rhythm(rng, beats, meter, groove, density, sixteenths, syncopation):
    """A phrase as [(onset, duration, anchor)] in beats: moving notes, one long note near the end, then a breath.
    The anchor is the beat that a note belongs to; a syncopated note comes half a beat before its anchor. Singers lean on
    the groove, a bar of the accompaniment's chords in sixteenths: where it strikes, between the beats, so do they."""
    last = beats - rng.choice([meter, meter, meter, meter - 1, 2, 1])
    end = beats - min(rng.choice([0.25, 0.5, 1, 1, 1.5]), (beats - last) / 2)
    anchors = []
    for at in np.arange(-rng.choice([0, 0, 0.5, 1, 1.5]), last, 0.25 if sixteenths else 0.5):
        if at % meter in STRONG[meter]:
            chance = 0.9
        elif at % 1 == 0:
            chance = 0.45 + 0.4 * density
        else:
            chance = (0.1 + 0.55 * density) if at % 0.5 == 0 else 0.4 * density
            chance *= 0.6 if groove[int(at % meter * 4)] == "." else 1.5
        if at < 0 or rng.random() < chance:
            anchors.append(at)
    anchors = np.array(anchors + [last])
    early = (anchors % 1 == 0) & (rng.random(len(anchors)) < syncopation) & (np.diff(anchors, prepend=-9) > 0.5)
    onsets = anchors - 0.5 * early
    lengths = np.diff(onsets, append=end) * np.where(rng.random(len(onsets)) < 0.15, 0.6, 1)
    return list(zip(onsets, lengths, anchors))


def write_melody(rng, chord_at, scale, low, high, bars, meter, groove, **rhythm):
    """A melody of `bars` bars out of two to four motifs. A motif that returns keeps its rhythm and contour, but is led
    anew over the chords of its place: on strong beats mostly a chord tone, between them steps of the scale."""
    ladder = np.array([m for m in range(low, high + 1) if m % 12 in scale])
    span = 4 if bars % 4 == 0 and rng.random() < 0.35 else 2
    plan, motifs, notes = rng.choice(["abac", "aaba", "abab", "aaab", "aabc"]), {}, []
    for phrase in range(bars // span):
        name = plan[phrase % 4]
        if name not in motifs:
            beats = write_rhythm(rng, span * meter, meter, groove, **rhythm)
            moves = np.round(rng.standard_t(4, len(beats)) * 1.2).astype(int)     # steps, sometimes a leap
            motifs[name] = beats, moves, rng.integers(len(ladder))
        beats, moves, place = motifs[name]
        if phrase % 4 == 3:                                                 # variation: the last one ends differently
            moves = np.where(np.arange(len(moves)) < len(moves) // 2, moves, -moves)
        for i, (onset, length, anchor) in enumerate(beats):
            place = abs(place + moves[i]) % (2 * len(ladder) - 2)           # reflect at the ends of the singer's range
            place = min(place, 2 * len(ladder) - 2 - place)
            pitch = ladder[place]
            at = anchor + phrase * span * meter
            strong, final = anchor % meter in STRONG[meter], i == len(beats) - 1
            if (strong and rng.random() < 0.7) or final:                    # 0.7, and chance makes it about 0.85
                tones = [m for m in range(low, high + 1) if m % 12 in chord_at(at)]
                pitch = min(tones, key=lambda m: abs(m - pitch))
                place = int(np.abs(ladder - pitch).argmin())
            notes.append(Note(onset + phrase * span * meter, length, int(pitch), strong, i == 0, 2.0 * strong))
    return notes


def compose(rng, style, low, high, seconds):
    """A song of at least `seconds` in a random key for a singer with the range low..high (MIDI)."""
    tempo, meter = rng.uniform(*style.tempo), style.meter
    bar = meter * 60 / tempo                                                # seconds
    tonic, mode = rng.integers(12), rng.choice(list(MODES), p=[0.5, 0.32, 0.1, 0.08])
    scale = [(tonic + step) % 12 for step in MODES[mode]]
    start = rng.uniform(-1, 0.6) * bar                                      # bar lines have no fixed place in the file
    total = int(np.ceil((seconds - start) / bar)) + 1
    syncopation, sixteenths = rng.choice([0, 0.1, 0.3]), tempo < 84
    sevenths = rng.choice([0, 0.1, 0.6], p=[0.5, 0.3, 0.2])
    length = 4 if bar > 2.4 else 8                                          # bars of a section
    groove = str(rng.choice(style.harmony.split("|")))

    def new_material(kind):
        """Chords [(beat, end, tones)] and melody of a section, from its own beat 0."""
        loop = rng.choice(LOOPS[mode])
        step = meter / 2 if meter == 4 and len(loop) < 12 and rng.random() < 0.15 else meter
        chords = []
        for degree in loop:
            tones = [scale[(int(degree) - 1 + 2 * third) % 7] for third in range(3 + (rng.random() < sevenths))]
            if mode == "minor" and degree == "5":
                tones[1] = (tones[1] + 1) % 12                              # the leading note: V is major in minor keys
            chords.append(tones)
        bars = length if len(loop) != 12 else 12
        chord_at = lambda beat: chords[int(beat // step) % len(chords)]
        floor = dict(verse=0, chorus=0.3, bridge=0.15)[kind] * (high - low)
        top = dict(verse=0.7, chorus=1, bridge=0.85)[kind] * (high - low)
        density = rng.uniform(0.25, 0.95) if kind == "verse" else rng.uniform(0.1, 0.75)
        melody = write_melody(rng, chord_at, scale, int(low + floor), int(low + top), bars, meter, groove,
                              density=density, sixteenths=sixteenths, syncopation=syncopation)
        return bars, [(i * step, (i + 1) * step, chord_at(i * step)) for i in range(int(bars * meter / step))], melody

    loudness = dict(verse=-2, chorus=1)                                     # dB
    material = {kind: new_material(kind) for kind in ("verse", "chorus", "bridge")}
    order = ["verse", "chorus", "gap", "verse", "chorus", "bridge", "chorus", "gap"]
    turn, at, sections, chords, notes = rng.choice([0, 1, 3, 4, 5]), 0, [], [], []
    intro = min(rng.choice([0, 1, 2, 4]), total // 4)
    while at < total * meter:
        kind = "intro" if intro and not sections else order[turn % len(order)]
        turn += bool(sections) or not intro
        bars, loop, melody = material[kind if kind in material else "verse"]
        if kind not in material:
            bars, melody = intro if kind == "intro" else rng.choice([1, 2, 4]), []
        sections.append((kind, at, bars * meter))
        chords += [(at + a, at + b, tones) for a, b, tones in loop if a < bars * meter]
        notes += [replace(n, beat=at + n.beat, loudness=n.loudness + loudness.get(kind, 0)) for n in melody]
        at += bars * meter
    notes.sort(key=lambda note: note.beat)
    for note, following in zip(notes, notes[1:]):                           # an upbeat ends the phrase before it
        note.beats = min(note.beats, following.beat - note.beat - 0.25 * following.begins)
    notes = [note for note in notes if note.beats > 0.1]
    return Score(tempo, start, style, groove, sections, chords, notes)


# ---------------------------------------------------------------------------------------------------------------------
# Sound in general

def smooth(track, width):
    """Running mean with a Hann window of `width` values along the last axis; constant ends."""
    window = np.hanning(max(int(width), 1) + 2)[1:-1]
    padded = np.pad(track, (len(window) // 2, len(window) - 1 - len(window) // 2), "edge")
    return np.convolve(padded, window / window.sum(), "valid").astype(np.float32)


def decibels(db):
    return 10 ** (np.asarray(db) / 20)


def filter_and_room(rng, wave, wet, echo, tilt, bumps, low_cut, high_cut):
    """Everything linear between a sound and the tape, in one FFT: EQ and room.

    wet: share of reverberation; echo: seconds until it has fallen by 60 dB; tilt: dB per octave around 1 kHz;
    bumps: number of random resonances or notches; low_cut, high_cut: Hz."""
    tail = rng.standard_normal(int(echo * SAMPLE_RATE), dtype=np.float32)
    tail *= np.exp(-6.9 * np.arange(len(tail), dtype=np.float32) / len(tail))
    size = -(-(len(wave) + len(tail)) // 32768) * 32768                     # a length that the FFT likes
    freqs = np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32) + 1
    octaves = np.log2(freqs / 1000)
    gain = tilt * octaves
    for _ in range(bumps):
        gain += rng.uniform(-6, 6) * np.exp(-((octaves - rng.uniform(-2.5, 3)) / rng.uniform(0.3, 1)) ** 2)
    gain = decibels(gain) / np.sqrt((1 + (low_cut / freqs) ** 4) * (1 + (freqs / high_cut) ** 16))
    room = np.fft.rfft(tail / np.sqrt(np.sum(tail ** 2)), size) / (1 + freqs / 4000)   # walls swallow the highs
    return np.fft.irfft(np.fft.rfft(wave, size) * gain * (1 - wet + wet * room), size)[:len(wave)]


# ---------------------------------------------------------------------------------------------------------------------
# The singer: a source (glottal pulses, noise) through a filter (formants) that changes every 5 ms

HOP, WINDOW = 128, 512                                                      # samples; 24000 / 128 = 187.5 frames/s
FRAME_RATE = SAMPLE_RATE / HOP
VOWELS = np.array([(280, 2250, 2900, 3500, 4600), (400, 2050, 2600, 3500, 4600), (600, 1800, 2500, 3500, 4600),
                   (780, 1250, 2600, 3400, 4500), (560, 880, 2500, 3300, 4500), (400, 760, 2500, 3300, 4500),
                   (310, 680, 2300, 3300, 4500), (500, 1450, 2500, 3400, 4500), (290, 1750, 2200, 3300, 4500)])
NASAL, LIQUID = (260, 1050, 2100, 3000, 4200), (340, 1300, 2300, 3000, 4200)
CONSONANTS = [                               # each a chain of (seconds, voicing, noise, its centre in Hz, formants)
    [(0.11, 0, 0.5, 6500, None)], [(0.10, 0, 0.5, 3300, None)], [(0.08, 0, 0.2, 7500, None)],               # s sh f
    [(0.06, 0.05, 0.1, 1500, None)], [(0.07, 0.3, 0.2, 6000, None)],                                        # h z
    [(0.05, 0, 0, 900, None), (0.02, 0, 0.4, 900, None)],                                                   # p
    [(0.05, 0, 0, 4500, None), (0.025, 0, 0.6, 4500, None)],                                                # t
    [(0.05, 0, 0, 2000, None), (0.03, 0, 0.5, 2000, None)],                                                 # k
    [(0.05, 0.12, 0, 900, NASAL), (0.01, 0.2, 0.2, 2500, None)],                                            # d
    [(0.08, 0.4, 0, 900, NASAL)], [(0.06, 0.3, 0, 900, NASAL)], [(0.07, 0.5, 0, 900, LIQUID)]]              # m n l


class Voice:
    """A singer, drawn from its number: from bass men (0) to children (479), eight of each height."""

    def __init__(self, number):
        rng = np.random.default_rng([1, number])
        height = (number // HELD_OUT + rng.random()) / (N_VOICES // HELD_OUT)
        self.low = int(39 + 21 * height ** 1.3)                             # lowest note, MIDI
        self.high = self.low + rng.integers(12, 18)
        self.formant_scale = np.clip(0.84 + 0.38 * height + rng.normal(0, 0.04), 0.82, 1.25)
        self.bandwidth = rng.uniform(0.8, 1.6)
        self.formant_gain = decibels(-rng.uniform((0, 2, 6, 8, 12), (1, 12, 22, 26, 32)))
        self.darkness = rng.uniform(1.5, 5)                                 # dB per kHz lost by the source
        self.tilt = rng.uniform(0.2, 1.6)                                   # and this power of the frequency: the glottis
        self.breath = decibels(rng.uniform(-44, -18))                       # noise in the tone
        self.vibrato = max(0, rng.uniform(-0.4, 0.8))                       # semitones; a third of all sing without
        self.vibrato_rate, self.vibrato_delay = rng.uniform(4.5, 6.5), rng.uniform(0.15, 0.5)       # Hz, seconds
        self.shimmer = rng.uniform(0.3, 1.5)                                # dB
        self.drift = rng.uniform(0.02, 0.2)                                 # semitones
        self.glide = rng.uniform(0.03, 0.14)                                # seconds from note to note
        self.scoop = rng.uniform(0, 3)                                      # semitones below the note at its start
        self.mistuning = rng.uniform(0.02, 0.2)                             # semitones
        self.timing = 0.004 + min(rng.exponential(0.02), 0.08), rng.normal(0.01, 0.015)    # seconds: scatter, lag
        self.articulation = rng.uniform(0.55, 0.95)                         # share of notes with their own syllable
        self.consonants = decibels(rng.uniform(-12, 2))


def perform(rng, voice, score, seconds):
    """The score as a person sings it, as curves of one value per frame: f0 (Hz), loudness, noise, the noise's
    centre (Hz) and formants (5, T) (Hz). Each note writes its stretch; smoothing makes the glides."""
    T = int(seconds * FRAME_RATE) + 4
    pitch, loud, swell = np.full(T, 60.0), np.zeros(T), np.zeros(T)         # MIDI, amplitude, share of the vibrato
    noise, noise_hz, formants = np.zeros(T), np.full(T, 2000.0), np.repeat(VOWELS[7][:, None], T, axis=1)
    frame = lambda time: int(np.clip(time * FRAME_RATE, 0, T))
    scatter, lag = voice.timing
    notes = [note for note in score.notes if 0.1 < score.seconds(note.beat) < seconds - 0.3]
    late = lambda beats: score.seconds(np.array(beats)) + lag + rng.normal(0, scatter, len(notes))
    onsets = np.maximum.accumulate(late([note.beat for note in notes]))
    following = np.append(onsets[1:], seconds)
    legato = np.append([a.beat + a.beats > b.beat - 0.01 for a, b in zip(notes, notes[1:])], False)
    ends = np.clip(late([note.beat + note.beats for note in notes]), onsets + 0.09, following)
    ends = np.where(legato, following, ends)
    for i, (note, onset, end) in enumerate(zip(notes, onsets, ends)):
        level = decibels(note.loudness + 0.35 * (note.midi - voice.low - 7) + rng.normal(0, 1.5))
        since = np.arange(frame(end) - frame(onset)) / FRAME_RATE           # seconds
        share = since / max(end - onset, 0.3)
        begin, silence = onset, onset - (ends[i - 1] if i else 0)
        if note.begins or rng.random() < voice.articulation:                # a syllable: the vowel falls on the beat,
            chain = CONSONANTS[rng.integers(len(CONSONANTS))] if rng.random() < 0.85 else []    # consonants precede it
            space = max(silence, 0.5 * (onset - onsets[i - 1]) if i else 0)
            stretch = min(rng.uniform(0.7, 1.4), space / (sum(part[0] for part in chain) + 0.001))
            at = begin = onset - stretch * sum(part[0] for part in chain)
            vowel, to = VOWELS[rng.integers(len(VOWELS), size=2)] * rng.normal(1, 0.04, 5)
            formants[:, frame(begin):] = vowel[:, None]
            if rng.random() < 0.3:                                          # a diphthong moves on to a second vowel
                formants[:, frame(onset + rng.uniform(0.3, 0.8) * (end - onset)):] = to[:, None]
            for duration, voicing, hiss, centre, place in chain:
                here = slice(frame(at), max(frame(at + stretch * duration), frame(at) + 1))
                loud[here], noise[here], noise_hz[here] = voicing * level, hiss * level * voice.consonants, centre
                if place:
                    formants[:, here] = np.array(place)[:, None]
                at += stretch * duration
        if silence > 0.5:                                                   # breathing in
            here = slice(frame(begin - rng.uniform(0.25, 0.45)), frame(begin - 0.08))
            noise[here], noise_hz[here] = rng.uniform(0, 0.08), rng.uniform(1200, 2500)
        pitch[frame(begin):] = note.midi + rng.normal(0, voice.mistuning)
        here = slice(frame(onset), frame(end))
        pitch[here] -= rng.choice([0, 1]) * voice.scoop * rng.random() * np.exp(-since / rng.uniform(0.03, 0.1))
        swell[here] = np.clip((since - voice.vibrato_delay) / 0.3, 0, 1) * rng.uniform(0.3, 1.2)
        loud[here] = level * (1 + rng.uniform(-0.6, 0.3) * share) * np.minimum(1, 0.5 + since / 0.05)

    wander = lambda width: smooth(rng.standard_normal(T), width) * np.sqrt(width)                   # about -1 .. 1
    vibrato = np.sin(2 * np.pi * np.cumsum(voice.vibrato_rate + 0.4 * wander(80)) / FRAME_RATE)
    pitch = smooth(pitch, voice.glide * FRAME_RATE) + rng.uniform(-0.25, 0.25)
    pitch += voice.vibrato * smooth(swell, 20) * vibrato
    pitch += voice.drift * (wander(200) + 0.6 * wander(30)) + 0.02 * wander(4)                      # jitter comes last
    formants = np.stack([smooth(track, 14) for track in formants]) * voice.formant_scale
    f0 = 440 * 2 ** ((pitch - 69) / 12)
    formants[0] = np.maximum(formants[0], f0)                               # high singers open the mouth: F1 follows f0
    return f0, smooth(loud, 9) * decibels(voice.shimmer * wander(6)), smooth(noise, 3), noise_hz, formants


def sing(rng, voice, score, seconds):
    """The melody as a dry voice, (L,)."""
    f0, loud, noise, noise_hz, formants = (np.float32(curve) for curve in perform(rng, voice, score, seconds))
    T = len(f0)
    # Source: all overtones at once, by the geometric series sum_k r^k cos(k phase) = Re 1 / (1 - r e^(i phase)) - 1.
    # r^k is a loss of so many dB per kHz at any pitch: a dull voice or a bright one, and no audible aliases.
    f0_samples = np.interp(np.arange(T * HOP) / HOP, np.arange(T), f0)
    cosine = np.cos(2 * np.pi * (np.cumsum(f0_samples / SAMPLE_RATE) % 1)).astype(np.float32)
    r = decibels(-voice.darkness * f0_samples / 1000).astype(np.float32)
    pulses = (r * cosine - r * r) / (1 - 2 * r * cosine + r * r)
    # Filter: multiply each frame of a short-time Fourier transform by the resonances of its vowel.
    window = np.sqrt(np.hanning(WINDOW + 1)[:-1]).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(pulses, (WINDOW // 2, WINDOW)), WINDOW)[:T * HOP:HOP]
    spectrum = np.fft.rfft(frames * window)                                                         # (T, bins)
    freqs = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE).astype(np.float32)
    resonance = np.full(spectrum.shape, 0.004, np.float32)
    for centre, width, gain in zip(formants, (90, 110, 160, 220, 300), voice.formant_gain):
        width, squares = np.float32(width * voice.bandwidth), (centre * centre)[:, None] - freqs * freqs
        resonance += np.float32(gain) * width * centre[:, None] / np.sqrt(squares * squares + (width * freqs) ** 2)
    resonance *= (1 + freqs / 300) ** np.float32(-voice.tilt)
    away = (freqs / noise_hz[:, None] - 1) * 3
    hiss = (rng.standard_normal((*spectrum.shape, 2), dtype=np.float32) * 6).view(np.complex64)[..., 0]
    breath = np.float32(voice.breath) * (resonance + 0.1 * freqs / 12000)
    spectrum *= resonance * loud[:, None]
    spectrum += hiss * (breath * loud[:, None] + noise[:, None] / (1 + away * away))
    frames = np.fft.irfft(spectrum) * window
    wave = np.zeros((T + 3) * HOP, np.float32)
    for quarter in range(WINDOW // HOP):                                    # overlap-add, all frames at once
        wave[quarter * HOP:(quarter + T) * HOP] += frames[:, quarter * HOP:(quarter + 1) * HOP].ravel()
    return wave[WINDOW // 2:][:int(seconds * SAMPLE_RATE)]


def record_vocals(rng, wave):
    """What lies between a singer and a karaoke recording: compressor, microphone, room, noise."""
    block = SAMPLE_RATE // 100
    blocks = np.pad(wave, (0, -len(wave) % block)).reshape(-1, block)
    level = np.sqrt(smooth((blocks ** 2).mean(1), 8))
    gain = (level / level.max() + 0.03) ** -rng.uniform(0, 0.6)             # 0.6: 10 dB in are 4 dB out
    wave = wave * np.interp(np.arange(len(wave)), np.arange(len(gain)) * block + block / 2, gain)
    wave = filter_and_room(rng, wave.astype(np.float32), wet=rng.choice([0, 1, 1, 1]) * rng.uniform(0, 0.35),
                           echo=rng.uniform(0.2, 1.8), tilt=rng.uniform(-3, 2), bumps=3, low_cut=rng.uniform(30, 120),
                           high_cut=rng.choice([7600, 11500]))              # many karaoke recordings end at 8 kHz
    wave *= decibels(-20 - active_dbfs(wave, SAMPLE_RATE))
    floor = rng.standard_normal(len(wave), dtype=np.float32)
    if rng.random() < 0.5:                                                  # pink rather than white
        floor = np.fft.irfft(np.fft.rfft(floor) / np.sqrt(np.arange(len(floor) // 2 + 1) + 100), len(floor))
    mains = 2 * np.pi * rng.choice([50, 60]) * np.arange(len(wave), dtype=np.float32) / SAMPLE_RATE
    floor = floor / floor.std() + rng.choice([0, 1]) * rng.uniform(0, 1.5) * (np.sin(mains) + 0.5 * np.sin(3 * mains))
    return (wave + floor * decibels(-20 + rng.uniform(-65, -28))).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The band: every instrument is a list of overtones and how they fade

@dataclass
class Instrument:
    overtones: np.ndarray        # amplitude of overtone 1, 2, ... (complex: with a phase)
    decay: float = 0.0           # 1/s, the whole tone
    dark: float = 0.0            # 1/s, once more for each overtone: bright tones grow dull
    attack: float = 0.005        # s
    release: float = 0.06        # s
    detune: tuple = (0.0,)       # cents, one string or oscillator each
    vibrato: float = 0.0         # cents
    puff: float = 0.0            # noise at the start: hammer, pick, breath


def make_instrument(rng, family):
    """A player's instrument: the family gives the law of its overtones, the dice the rest."""
    k, between = np.arange(1, 25), rng.uniform
    phase = np.exp(2j * np.pi * rng.random(len(k)))
    if family == "plucked":                  # a string plucked at a part of its length lacks that part's overtones
        return Instrument(phase * np.sin(np.pi * k * between(0.1, 0.4)) / k ** between(0.8, 1.4), attack=0.003,
                          decay=between(0.8, 2.5), dark=between(0.2, 1.2), release=0.08, puff=between(0, 0.3))
    if family == "piano":                    # two strings a note, hardly out of tune
        return Instrument(phase / k ** between(1.1, 1.7), decay=between(0.5, 1.5), dark=between(0.1, 0.5), release=0.1,
                          detune=(-1.2, 1), puff=between(0, 0.2))
    if family == "epiano":
        return Instrument(phase * (k < 5) * between(0.05, 0.5, len(k)) + (k == 1), decay=between(0.6, 1.5),
                          dark=between(0.5, 2), vibrato=between(0, 6))
    if family == "organ":                    # drawbars
        return Instrument(phase * np.isin(k, (1, 2, 3, 4, 6, 8)) * between(0, 1, len(k)) + (k == 1), attack=0.01,
                          vibrato=between(0, 8))
    if family == "strings":
        return Instrument(phase / k ** between(1, 1.6), attack=between(0.06, 0.3), release=0.25,
                          detune=(-between(3, 10), between(3, 10)), vibrato=between(0, 10))
    if family == "blown":                    # even overtones are weak in a pipe closed at one end
        return Instrument(phase * np.where(k % 2, 1, between(0.05, 1)) / k ** between(1.5, 2.5), attack=0.06,
                          release=0.1, vibrato=between(5, 20), puff=between(0.05, 0.2))
    if family == "synth":                    # saw or square
        return Instrument(phase * np.where(k % 2, 1, rng.choice([0, 1])) / k * 0.9 ** k, decay=between(0, 2),
                          dark=between(0, 0.5), attack=0.008, detune=(-between(2, 9), between(2, 9)))
    if family == "bass":
        return Instrument(phase / k ** between(0.9, 2), decay=between(0.3, 2), dark=between(0.2, 1.5), puff=0.05)


def tone(rng, instrument, midi, seconds):
    """One note, (L,). With z = e^(i phase - dark t), overtone k is z^k: Horner's rule sums them without a sine each."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    freq = 440 * 2 ** ((midi - 69) / 12)
    overtones = instrument.overtones[:int(11000 / freq)].astype(np.complex64)
    wave = 0
    for cents in instrument.detune:
        cycles = freq * 2 ** (cents / 1200) * t + rng.random()
        if instrument.vibrato:
            cycles += freq * instrument.vibrato / 1731 / 33 * np.sin(33 * t)        # 33 rad/s = 5.3 Hz
        z = np.exp((2j * np.pi * (cycles % 1) - instrument.dark * t).astype(np.complex64))
        total = np.zeros_like(z)
        for amplitude in overtones[::-1]:
            total += amplitude
            total *= z
        wave = wave + total.imag
    wave *= np.exp(-instrument.decay * (freq / 260) ** 0.4 * t) * np.minimum(t / instrument.attack, 1)
    if instrument.puff:
        wave += instrument.puff * np.exp(-60 * t) * np.minimum(t / 0.002, 1) * rng.standard_normal(len(t))
    power = np.sum(np.abs(overtones) ** 2) * len(instrument.detune)
    return (wave * (freq / 260) ** -0.2 / np.sqrt(power)).astype(np.float32)


def make_drums(rng):
    """One sound for each drum: {name: (L,)}, peak 1."""
    t = np.arange(int(1.6 * SAMPLE_RATE)) / SAMPLE_RATE
    noise = rng.standard_normal(len(t))
    bright = np.diff(noise, 2, prepend=[0, 0])                              # a second difference is a high-pass filter
    fade = lambda seconds: np.exp(-6.9 * t / seconds)
    sweep = lambda low, high, speed: np.sin(2 * np.pi * (low * t + (high - low) / speed * (1 - np.exp(-speed * t))))
    body = rng.uniform(150, 230)
    boom = sweep(rng.uniform(42, 62), rng.uniform(120, 300), rng.uniform(25, 60))
    ring = sum(np.sin(2 * np.pi * f * t) for f in rng.uniform(2500, 7000, 6))
    kit = dict(
        kick=boom * fade(rng.uniform(0.15, 0.5)) + 0.05 * noise * fade(0.02),
        snare=sweep(body, 1.6 * body, 60) * fade(0.15) + rng.uniform(0.2, 0.6) * noise * fade(rng.uniform(0.12, 0.35)),
        rim=np.sin(2 * np.pi * rng.uniform(700, 1700) * t) * fade(0.06) + 0.2 * noise * fade(0.03),
        clap=np.diff(noise, prepend=0) * (fade(0.25) + np.exp(-((t - 0.012) / 0.003) ** 2)),
        tom=sweep(rng.uniform(80, 130), rng.uniform(150, 220), 30) * fade(0.35) + 0.05 * noise * fade(0.05),
        hat=bright * fade(rng.uniform(0.04, 0.12)), open=bright * fade(rng.uniform(0.3, 0.6)),
        shaker=bright * fade(0.12) * np.minimum(t / 0.03, 1), ride=0.3 * bright * fade(0.7) + 0.2 * ring * fade(0.8),
        crash=bright * fade(1.5) + 0.3 * noise * fade(1.2))
    return {name: (wave / np.abs(wave).max()).astype(np.float32) for name, wave in kit.items()}


class Band:
    """Three players and a drum kit, drawn from the band's number."""

    def __init__(self, number):
        rng = np.random.default_rng([2, number])
        some = lambda *families: make_instrument(rng, rng.choice(families))
        self.comping = some("plucked", "plucked", "plucked", "piano", "piano", "epiano", "organ", "synth")
        self.pad = some("strings", "strings", "strings", "blown", "organ", "synth")
        self.bass = make_instrument(rng, "bass")
        self.drums = make_drums(rng)
        self.kick, self.snare = "kick", rng.choice(["snare", "snare", "clap", "rim"])
        self.hat = rng.choice(["hat", "hat", "shaker", "ride"])
        self.register = dict(comping=rng.integers(55, 65), pad=rng.integers(60, 70)) # MIDI, of the chords' middle
        self.room = rng.uniform(0, 0.2), rng.uniform(0.3, 1.5), rng.uniform(-1.5, 1)       # wet, echo, tilt
        self.balance = dict(comping=0, pad=rng.uniform(-7, -1), bass=rng.uniform(-7, -2), drums=rng.uniform(-7, 0))
        self.tightness = rng.uniform(0.001, 0.008)                          # seconds of scatter


def voice_chord(tones, middle, last):
    """MIDI notes of a chord near `middle`, moving as little as possible from the `last` chord."""
    choices = [sorted(low + (tone - low) % 12 for tone in tones) for low in range(middle - 9, middle + 2)]
    distance = lambda chord: sum(min(abs(a - b) for b in last) for a in chord) if last else abs(np.mean(chord) - middle)
    return min(choices, key=distance)


class Tape:
    """A track for each player; places sounds on it in the band's own time."""

    def __init__(self, rng, band, score, seconds):
        self.rng, self.band, self.score, self.length = rng, band, score, int(seconds * SAMPLE_RATE)
        self.tracks = {player: np.zeros(self.length, np.float32) for player in ("comping", "pad", "bass", "drums")}
        self.tones = {}                                                     # every note is computed once, then copied

    def hit(self, player, wave, beat, gain):
        time = self.score.seconds(beat) + abs(self.rng.normal(0, self.band.tightness))
        at = int(time * SAMPLE_RATE)
        wave = wave[max(-at, 0):max(self.length - at, 0)]                   # what began before the file is cut
        self.tracks[player][max(at, 0):max(at, 0) + len(wave)] += np.float32(gain) * wave

    def note(self, player, midi, beat, beats, gain):
        instrument = getattr(self.band, player)
        if (player, midi) not in self.tones:
            longest = 2.5 if instrument.decay else min(240 / self.score.tempo + 0.3, 4)
            self.tones[player, midi] = tone(self.rng, instrument, midi, longest)
        held = self.score.seconds(beat + beats) - self.score.seconds(beat) + instrument.release
        wave = self.tones[player, midi][:int(held * SAMPLE_RATE)].copy()
        fade = min(int(instrument.release * SAMPLE_RATE), len(wave))
        wave[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        self.hit(player, wave, beat, gain)

    def mix(self):
        mix = np.zeros(self.length, np.float32)
        for player, wave in self.tracks.items():
            if wave.any():
                mix += wave * np.float32(decibels(self.band.balance[player] - 20 - active_dbfs(wave, SAMPLE_RATE)))
        wet, echo, tilt = self.band.room
        mix = filter_and_room(self.rng, mix, wet, echo, tilt, bumps=2, low_cut=30, high_cut=11500)
        mix = np.tanh(2 * mix)                                              # mastering: loud peaks give way
        mix[:480] *= np.linspace(0, 1, 480)                                 # 20 ms: the file may begin in a note
        return mix.astype(np.float32)


def steps_of(pattern, meter, first, begin, end):
    """Each (beat, sign, beats until the next sign) of a pattern from `begin` to `end`; its bars count from `first`."""
    for beat in np.arange(begin, end, 0.25):
        step = int(round((beat - first) * 4)) % (meter * 4)
        rest = pattern[step + 1:]
        yield beat, pattern[step], 0.25 * (1 + len(rest) - len(rest.lstrip(".")))


def play_chord(tape, pattern, bass, chord, voicing, first, begin, end, force):
    """Comping and bass of one chord."""
    meter, rng = tape.score.style.meter, tape.rng
    accent = lambda beat: force * rng.uniform(0.8, 1) * (1 if beat % 2 == 0 else 0.8)
    for beat, sign, length in steps_of(pattern, meter, first, begin, end):
        if sign in "Xx":
            held = min(length, end - beat) if sign == "X" else 0.3
            for i, midi in enumerate(voicing):                              # a slight strum, low to high
                tape.note("comping", midi, beat + 0.015 * i, held, accent(beat))
        elif sign in "0123":
            midi = [*voicing, voicing[0] + 12][int(sign)]
            tape.note("comping", midi, beat, min(1.5, end - beat + 0.2), 1.3 * accent(beat))
    root = 29 + (chord[0] - 29) % 12                                        # F1 to E2
    above = lambda tone: root + (tone - chord[0]) % 12
    pitches = {"R": root, "3": above(chord[1]), "5": above(chord[2]), "8": root + 12}
    for beat, sign, length in steps_of(bass, meter, first, begin, end):
        sign = "R" if beat == begin else sign                               # a new chord shows its root at once
        if sign in pitches:
            tape.note("bass", pitches[sign], beat, min(0.9 * length, end - beat), accent(beat))


def play_drums(tape, lines, first, beats, force, busy):
    """The drum lines of one section {drum: (pattern, gain)}, a fill before its end and a crash where it begins."""
    rng, loud, drums = tape.rng, dict(X=1.0, x=0.75, o=0.4), tape.band.drums
    fill = first + beats - (2 if busy else 1)
    for drum, (pattern, gain) in lines.items():
        for beat, sign, _ in steps_of(pattern, tape.score.style.meter, first, first, fill):
            if sign in loud:
                sound = "open" if busy and drum == "hat" and beat % 1 == 0.5 else getattr(tape.band, drum)
                tape.hit("drums", drums[sound], beat, force * gain * loud[sign] * rng.uniform(0.8, 1))
            elif drum == "kick" and rng.random() < 0.02:
                tape.hit("drums", drums["kick"], beat, 0.5 * force)         # nobody plays like a machine
    for beat in np.arange(fill, first + beats, 0.25):
        if rng.random() < 0.7:
            tape.hit("drums", drums[rng.choice(["snare", "tom"])], beat, force * rng.uniform(0.4, 0.8))
    if busy:
        tape.hit("drums", drums["crash"], first, 0.5 * force)


def play(rng, band, score, seconds):
    """The accompaniment, (L,). The players know the form and the chords, but not one note that is sung."""
    tape, style = Tape(rng, band, score, seconds), score.style
    pick = lambda patterns: str(rng.choice(patterns.split("|")))
    lines = {drum: (pick(pattern), gain) for drum, pattern, gain in
             (("kick", style.kick, 1), ("snare", style.snare, 0.8), ("hat", style.hat, 0.35))}
    lines = {drum: line for drum, line in lines.items() if line[0].strip(".")}
    bass, comping = pick(style.bass), dict(chorus=score.groove, verse=score.groove, bridge=pick(style.harmony))
    plans = dict(intro=(0.75, 0.5, 0.5), verse=(0.8, 0.9, 0.3), chorus=(1, 1, 0.8),              # force; chance of drums,
                 bridge=(0.85, 0.9, 1), gap=(0.9, 0.9, 0.5))                                        # chance of a pad
    plans = {kind: (force, rng.random() < drums, rng.random() < pad) for kind, (force, drums, pad) in plans.items()}
    voicing = {}
    for kind, first, beats in score.sections:
        force, drums_play, pad_plays = plans[kind]
        for begin, end, chord in score.chords:
            if first <= begin < first + beats:
                voicing = {player: voice_chord(chord, middle, voicing.get(player))
                           for player, middle in band.register.items()}
                pattern = comping.get(kind, comping["verse"])
                play_chord(tape, pattern, bass, chord, voicing["comping"], first, begin, end, force)
                for midi in voicing["pad"] if pad_plays else []:
                    tape.note("pad", midi, begin, end - begin, force)
        if drums_play and lines:
            play_drums(tape, lines, first, beats, force, busy=kind in ("chorus", "gap"))
    return tape.mix()


def make_song(seed, index, seconds, split):
    """Song number `index`: vocals (L,), accompaniment (L,), facts. The same for the same arguments on any machine load.

    Score, singer and band have random streams of their own, so that nothing but the score is common to both columns."""
    casting, writing, singing, playing = (np.random.default_rng([seed, index, stream]) for stream in range(4))
    allowed = lambda count: [n for n in range(count) if (n % HELD_OUT == 0) == (split == "val")]
    voice_number, band_number = int(casting.choice(allowed(N_VOICES))), int(casting.choice(allowed(N_BANDS)))
    style = list(STYLES)[index % len(STYLES)]
    voice = Voice(voice_number)
    score = compose(writing, STYLES[style], voice.low, voice.high, seconds)
    vocals = record_vocals(singing, sing(singing, voice, score, seconds))
    accomp = play(playing, Band(band_number), score, seconds)
    balance = np.clip(casting.normal(0, 2), -4, 4)                          # dB, vocals over band
    accomp *= decibels(active_dbfs(vocals, SAMPLE_RATE) - balance - active_dbfs(accomp, SAMPLE_RATE))
    gain = 0.9 / max(np.abs(vocals).max(), np.abs(accomp).max())
    end = score.chords[-1][1]
    beats = [round(float(t), 4) for t in score.seconds(np.arange(-8, end)) if 0 <= t < seconds]
    clock = lambda beat: round(float(np.clip(score.seconds(beat), 0, seconds)), 4)
    chords = [[clock(a), clock(b), [int(p) for p in tones]] for a, b, tones in score.chords if clock(a) < clock(b)]
    info = dict(name=f"demo-{index:05d}", split=split, tempo=round(float(score.tempo), 3), beats=beats, chords=chords,
                style=style, voice=voice_number, band=band_number)
    return (vocals * gain).astype(np.float32), (accomp * gain).astype(np.float32), info


# ---------------------------------------------------------------------------------------------------------------------
# Your own stems

@dataclass
class Stems:
    """The files of one song. A group of songs (by one singer) goes to training or to validation, never to both."""
    name: str
    group: str
    vocals: Path
    band: list               # files whose sum is the accompaniment; a full mixture if `minus`; none if `stereo`
    minus: bool = False      # accompaniment = mixture - vocals
    stereo: bool = False     # MIR-1K: accompaniment left, vocals right, one file


AUDIO = {f".{kind.lower()}" for kind in sf.available_formats()} - {".raw"} | {".aif", ".oga", ".opus"}
WHOLE_BANDS, BAND_PARTS = ("no_vocals", "accompaniment", "instrumental"), ("drums", "bass", "other", "guitar", "piano")


def find_stems(paths):
    """Everything under `paths` that looks like a song: (songs, [why something was skipped])."""
    songs, skipped = {}, []                                                 # by file: a song given twice counts once
    for root in map(Path, paths):
        if not root.exists():
            raise UserError(f"{root} not found; give folders of stems, or no path at all for the demo songs")
        files = [root] if root.is_file() else sorted(root.rglob("*"))
        folders = {}
        for file in files:
            if file.suffix.lower() in AUDIO and file.is_file() and not file.name.startswith("."):
                folders.setdefault(file.parent, {}).setdefault(file.stem.lower(), file)
        for folder, stems in folders.items():
            found = []
            title = folder.name if folder in (root, root.parent) else str(folder.relative_to(root))
            pairs = [stem.removesuffix("_vocals") for stem in stems if stem.endswith("_vocals") and stem != "no_vocals"]
            if "vocals" in stems:
                whole = [stems[stem] for stem in WHOLE_BANDS if stem in stems][:1]
                parts = [stems[stem] for stem in BAND_PARTS if stem in stems]
                mixture = [stems["mixture"]] if "mixture" in stems else []
                complete = all(stem in stems for stem in BAND_PARTS[:3])
                band = whole or (parts if complete else mixture or parts)
                found.append(Stems(title, title, stems["vocals"], band, minus=bool(band) and band == mixture))
            for name in pairs:
                band = [stems[f"{name}_{whole}"] for whole in WHOLE_BANDS if f"{name}_{whole}" in stems][:1]
                title_here = stems[f"{name}_vocals"].stem[:len(name)]
                found.append(Stems(title_here, f"{title}/{name}", stems[f"{name}_vocals"], band))
            if not found:
                for stem, file in stems.items():
                    if match := re.fullmatch(r"([a-z][a-z0-9]*)_(\d+)_(\d+)", stem):
                        found.append(Stems(file.stem, match[1], file, [], stereo=True))
            if not found:
                skipped.append(f"{folder}: its {len(stems)} audio files are in no known layout")
            for song in found:
                if song.band or song.stereo:
                    songs.setdefault(song.vocals.resolve(), song)
                else:
                    skipped.append(f"{song.vocals}: no accompaniment beside it")
    return sorted(songs.values(), key=lambda song: (song.group, song.name)), skipped


def load_stems(song):
    """(vocals, accompaniment), each (L,) at 24 kHz, with one gain for both. Raises UserError if they cannot be used."""
    def load(path):
        wave, rate = read_audio(path)
        wave = wave if song.stereo else wave.mean(0, keepdims=True)
        return resample(torch.from_numpy(wave), rate, SAMPLE_RATE).numpy()

    vocals = load(song.vocals)
    if song.stereo:
        if len(vocals) != 2:
            raise UserError(f"{song.vocals} is named like a MIR-1K clip, but is not stereo")
        accomp, vocals = vocals
    else:
        waves = [vocals[0]] + [load(path)[0] for path in song.band]
        lengths = [len(wave) / SAMPLE_RATE for wave in waves]
        if max(lengths) - min(lengths) > 1:
            raise UserError(f"{song.vocals}: the stems of this song last {min(lengths):.1f} to {max(lengths):.1f} s")
        vocals, *others = [wave[:min(map(len, waves))] for wave in waves]
        accomp = others[0] - vocals if song.minus else sum(others)
    gain = 0.9 / max(np.abs(vocals).max(), np.abs(accomp).max(), 1e-6)
    return vocals * gain, accomp * gain


def useful_stretches(vocals, accomp, quiet=-50, longest=4, shortest=3):
    """[(begin, end)] in samples: cut out where either voice or band stays below `quiet` dBFS (20 log10 of the RMS
    over 100 ms) for more than `longest` seconds; what remains must last `shortest` seconds."""
    block = SAMPLE_RATE // 10
    keep = np.ones(-(-len(vocals) // block), bool)
    for wave in (vocals, accomp):
        power = (np.pad(wave, (0, -len(wave) % block)).reshape(-1, block) ** 2).mean(1)
        for begin, end in runs(power < 10 ** (quiet / 10)):
            if end - begin > longest * 10:
                keep[begin:end] = False
    stretches = [(begin * block, min(end * block, len(vocals))) for begin, end in runs(keep)]
    return [(begin, end) for begin, end in stretches if end - begin >= shortest * SAMPLE_RATE]


def runs(mask):
    """[(begin, end)] of the stretches where `mask` is true."""
    return np.flatnonzero(np.diff(np.pad(mask.astype(int), 1))).reshape(-1, 2)


def write_stems(dataset, songs, val, seed, skipped):
    """Add the songs group by group in a shuffled order: the first usable group for training, the next for validation
    until it has its share, the rest for training again."""
    groups = {}
    for song in songs:
        groups.setdefault(song.group, []).append(song)
    order = np.random.default_rng(seed).permutation(sorted(groups))
    wanted, usable = min(max(1, round(val * len(groups))), len(groups) - 1), 0
    with tqdm(total=len(songs), unit="song", disable=None) as bar:
        for group in order:
            split = "val" if 1 <= usable <= wanted else "train"
            written = 0
            for song in groups[group]:
                bar.update()
                try:
                    vocals, accomp = load_stems(song)
                except UserError as problem:
                    skipped.append(str(problem))
                    continue
                stretches = useful_stretches(vocals, accomp)
                if not stretches:
                    skipped.append(f"{song.vocals}: no 3 s in which both singing and band are above -50 dBFS")
                for number, (begin, end) in enumerate(stretches, 1):
                    name = song.name if number == 1 else f"{song.name}#{number}"
                    dataset.add(as_int16(vocals[begin:end], accomp[begin:end]), dict(name=name, split=split))
                    written += 1
            usable += written > 0
    if usable == 1:
        dataset.hold_out_tail()


# ---------------------------------------------------------------------------------------------------------------------
# Files

def as_int16(vocals, accomp):
    return np.round(np.stack([vocals, accomp], axis=1) * 32767).astype(np.int16)                    # (L, 2)


def levels(pair):
    """The active levels of a stored song, in dBFS."""
    vocals, accomp = (round(active_dbfs(column / np.float32(32768), SAMPLE_RATE), 2) for column in pair.T)
    return dict(vocals_dbfs=vocals, accomp_dbfs=accomp)


def read_set(folder, split, level_dbfs=Config.level_dbfs):
    """The songs of one split of a prepared set -> [(facts, int16 (L, 2) memory map, the two gains that bring voice and
    band from int16 to float at `level_dbfs`)]. Raises UserError for anything that is not such a set, whole."""
    try:
        meta = json.loads((Path(folder) / "meta.json").read_text())
        pairs = np.memmap(Path(folder) / f"{split}.bin", np.int16, "r").reshape(-1, 2)
        if len(pairs) != meta[f"{split}_samples"]:
            raise ValueError(f"{split}.bin holds {len(pairs)} samples, meta.json says {meta[f'{split}_samples']}")
        if (meta["format"], meta["sample_rate"]) != (FORMAT, SAMPLE_RATE):
            raise ValueError(f"format {meta['format']} at {meta['sample_rate']} Hz, not {FORMAT} at {SAMPLE_RATE} Hz")
        songs = []
        for song in meta["songs"]:
            if song["split"] == split:
                decibels_up = level_dbfs - np.array([song["vocals_dbfs"], song["accomp_dbfs"]])
                gains = np.float32(decibels(decibels_up) / 32768)
                begin, end = song["start"], song["start"] + song["length"]
                if not (0 <= begin < end <= len(pairs) and np.isfinite(gains).all()):
                    raise ValueError(f"{song['name']} lies beyond {split}.bin or has no level")
                songs.append((song, pairs[begin:end], gains))
        if not songs:
            raise ValueError(f"no songs in {split}.bin")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{folder} is not a whole data set ({problem!r}); make it with prep.py") from None
    return songs


class Dataset:
    """Writes OUT.partial/ and renames it to OUT when all is well; leaves nothing behind when it is not."""

    FILES = "train.bin", "val.bin", "meta.json"

    def __init__(self, out, seconds):
        self.out, self.partial, self.songs = Path(out), Path(f"{Path(out)}.partial"), []
        self.samples = dict(train=0, val=0)
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {out} is a file; give a folder")
        if self.out.exists() and not (self.out / "meta.json").exists() and set(os.listdir(self.out)) - set(self.FILES):
            raise UserError(f"--out {out} holds other files, but no meta.json of prep.py; give another name")
        if self.partial.exists() and set(os.listdir(self.partial)) - set(self.FILES):
            raise UserError(f"{self.partial} is in the way; remove it")
        here = next(folder for folder in self.out.absolute().parents if folder.exists())
        need, free = seconds * SAMPLE_RATE * 4 / 1e6, shutil.disk_usage(here).free / 1e6
        if need > free:
            raise UserError(f"{need:.0f} MB are needed in {here}, {free:.0f} MB are free")

    def __enter__(self):
        shutil.rmtree(self.partial, ignore_errors=True)
        with writing(self.partial):
            self.partial.mkdir(parents=True)
        self.bins = {split: open(self.partial / f"{split}.bin", "w+b") for split in self.samples}
        return self

    def add(self, pair, info):
        """Append a song, int16 (L, 2); info holds at least its name and its split, and may hold its levels."""
        with writing(self.partial):
            self.bins[info["split"]].write(pair.tobytes())
        self.songs.append(dict(levels(pair) | info, start=self.samples[info["split"]], length=len(pair)))
        self.samples[info["split"]] += len(pair)

    def hold_out_tail(self):
        """Songs of one group only: what can be kept apart for validation is the end, its last 10 % but at least 3 s."""
        self.bins["train"].flush()
        everything, songs = np.fromfile(self.partial / "train.bin", np.int16).reshape(-1, 2), self.songs
        total = len(everything)
        cut = total - min(max(total // 10, 3 * SAMPLE_RATE), total // 2)
        self.bins["train"].seek(0)
        self.bins["train"].truncate()
        self.songs, self.samples = [], dict(train=0, val=0)
        for song in songs:
            begin, end = song["start"], song["start"] + song["length"]
            for split, a, b in (("train", begin, min(end, cut)), ("val", max(begin, cut), end)):
                if a < b:
                    self.add(everything[a:b], dict(song, split=split))      # levels are the whole song's, in both parts

    def __exit__(self, error, *_):
        try:
            with writing(self.partial):
                for file in self.bins.values():
                    file.close()
                if error is None:
                    self.publish()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def publish(self):
        """meta.json goes first and comes last: whenever this is interrupted, no half set is taken for a whole one."""
        totals = {f"{split}_samples": count for split, count in self.samples.items()}
        meta = dict(format=FORMAT, sample_rate=SAMPLE_RATE, **totals, songs=self.songs)
        (self.partial / "meta.json").write_text(json.dumps(meta))
        self.out.mkdir(exist_ok=True)
        (self.out / "meta.json").unlink(missing_ok=True)
        for name in self.FILES:                                             # whatever else lies in OUT stays
            os.replace(self.partial / name, self.out / name)


def start_worker():
    torch.set_num_threads(1)                                                # the songs are what runs in parallel
    signal.signal(signal.SIGINT, signal.SIG_IGN)                            # Ctrl-C is the main process's business


def make_pair(job):
    vocals, accomp, info = make_song(*job)
    return as_int16(vocals, accomp), info


def write_demo(dataset, count, val_count, seconds, seed, workers):
    jobs = [(seed, index, seconds, "val" if index < val_count else "train") for index in range(count)]
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    with Pool(min(workers, count), start_worker) as pool:
        for pair, info in tqdm(pool.imap(make_pair, jobs), total=count, unit="song", disable=None):
            dataset.add(pair, info)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="folders (or files) of stems; none: make demo songs")
    add("--out", help="folder to make (default: data/demo, or data/mine for stems)")
    add("--seed", type=int, default=0, help="another seed: other songs, or other stems for validation (default: 0)")
    add("--val", type=float, default=0.06, help="stems: share of the singers or songs for validation (default: 0.06)")
    add("--songs", type=int, default=240, help="demo: number of songs, validation included (default: 240)")
    add("--val-songs", type=int, default=20, help="demo: how many for validation, at most a quarter (default: 20)")
    add("--seconds", type=float, default=45, help="demo: length of a song in seconds (default: 45)")
    add("--workers", type=int, default=os.cpu_count(), help="demo: processes (default: all cores)")
    args = parser.parse_args(argv)
    try:
        run(args)
    except UserError as problem:
        print(f"prep.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prep.py: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def run(args):
    demand((args.songs >= 2, f"--songs {args.songs}: at least 2 are needed, one of them for validation"),
           (args.seconds >= 8, f"--seconds {args.seconds:g}: a song must last at least 8 seconds"),
           (args.val_songs >= 1, f"--val-songs {args.val_songs}: at least 1 is needed"),
           (args.workers >= 1, f"--workers {args.workers}: at least 1 is needed"),
           (args.seed >= 0, f"--seed {args.seed}: must not be negative"),
           (0 < args.val < 1, f"--val {args.val:g}: must lie between 0 and 1"))
    out = args.out or ("data/mine" if args.paths else "data/demo")
    skipped = []
    if args.paths:
        songs, skipped = find_stems(args.paths)
        with Dataset(out, sum(duration(song.vocals) for song in songs)) as dataset:
            write_stems(dataset, songs, args.val, args.seed, skipped)
            for reason in skipped:
                print(f"prep.py: skipped: {reason}", file=sys.stderr)
            if not dataset.songs:
                raise UserError(f"no usable song in {', '.join(args.paths)}; known layouts: vocals.* beside drums, bass, other.*, "
                                "no_vocals.* or mixture.*; NAME_vocals.* beside NAME_accompaniment.*; MIR-1K")
    else:
        with Dataset(out, args.songs * args.seconds) as dataset:
            val_songs = min(args.val_songs, max(1, args.songs // 4))
            write_demo(dataset, args.songs, val_songs, args.seconds, args.seed, args.workers)
    for split, samples in dataset.samples.items():
        count = sum(song["split"] == split for song in dataset.songs)
        minutes, megabytes = samples / SAMPLE_RATE / 60, samples * 4 / 1e6
        print(f"{split:5} {count:5} songs {minutes:7.1f} min {megabytes:8.1f} MB  {dataset.out / split}.bin")
    if skipped:
        print(f"skipped: {len(skipped)}")


def duration(path):
    """Seconds of a sound file by its header; 0 if it has none."""
    try:
        return sf.info(path).duration
    except sf.LibsndfileError:
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""Make the training set: pairs of (solo singing, the band that fits it), 24 kHz mono, in two flat files.

    python prep.py                                     demo songs, composed and synthesised here by numpy -> data/demo
    python prep.py --songs 8 --seed 1 --out data/tiny  a handful, to try things out
    python prep.py PATH ... --out data/mine            stems: MUSDB18-HQ, Demucs, MIR-1K, NAME_vocals + NAME_accompaniment

OUT/train.bin, val.bin: int16 (samples, 2): column 0 vocals, column 1 accompaniment, songs end to end, 5.8 MB a minute.
OUT/meta.json: where each song lies in them, its levels and, for demo songs, beats and chords. The first part is a lesson: a
song is a score, a score is notes, a voice is a few numbers; only the *relation* between singing and band has to be true.
"""
import argparse
import io
import json
import os
import re
import shutil
import signal
import sys
from collections import namedtuple
from contextlib import suppress
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from fastsag import Config, UserError, active_dbfs, demand, resample, writing

SAMPLE_RATE = Config.sample_rate                                            # Hz
FORMAT, FILES = 1, ("train.bin", "val.bin", "meta.json")                    # of a prepared set
N_VOICES, N_BANDS, HELD_OUT = 480, 240, 8                                   # every 8th voice and band: validation only
decibels = lambda db: 10 ** (np.asarray(db) / 20)                           # to a factor of amplitude


# ---------------------------------------------------------------------------------------------------------------------
# The score. Time is counted in beats, pitch in MIDI notes (69 = 440 Hz), harmony in degrees of a scale.

MODES = dict(major=((0, 2, 4, 5, 7, 9, 11), "1564 6415 1645 4156 2511 1415 1625 1345 15634145 111144115415"),
             minor=((0, 2, 3, 5, 7, 8, 10), "1637 1415 1675 1765 6715 1473 1646 14736251"),
             mixolydian=((0, 2, 4, 5, 7, 9, 10), "1741 1714 1547 1177"),    # scale in semitones, loops of chords
             dorian=((0, 2, 3, 5, 7, 9, 10), "1414 1434 1747 1144"))
STRONG = {3: (0,), 4: (0, 2)}                                               # the strong beats of a bar of 3 or 4
# The sections: the singer's range and density (shares, from .. to) and dB; the band's force, chance of drums and of a pad
SUNG = dict(verse=(0, 0.7, 0.25, 0.95, -2), chorus=(0.3, 1, 0.1, 0.75, 1), bridge=(0.15, 0.85, 0.1, 0.75, 0))
PLAYED = dict(intro=(0.75, 0.5, 0.5), verse=(0.8, 0.9, 0.3), chorus=(1, 1, 0.8), bridge=(0.85, 0.9, 1), gap=(0.9, 0.9, 0.5))

# A band's style: tempo from .. to (beats per minute), beats per bar, place of the off-beat eighth (2/3: shuffle), then
# patterns of a sign per sixteenth, '|' between alternatives. Kick, snare, hat: X accent, x normal, o soft. Below, bass: R
# root, 3 third, 5 fifth, 8 octave; harmony: X a chord held until the next sign, x a short one, 0-3 single tones that ring.
Style = namedtuple("Style", "name slowest fastest meter swing kick snare hat bass harmony")
STYLES = """
ballad    65  92 4 .5  X.........x.....|X......xx....... ....X.......X...                  x.o.x.o.x.o.x.o.
                       R.........5.....|R.......R.....5. X...X...X...X...|0.1.2.3.2.1.2.1.|X.......X.......
rock     100 160 4 .5  X.......X.x.....|X.x.....x.X..... ....X.......X...                  X.x.X.x.X.x.X.x.
                       R.R.R.R.R.R.R.R.|R...R.R.R...R.5. X.x.x.x.X.x.x.x.|X...x.x.X...x.x.|X.....X.....X...
waltz     85 160 3 .5  X...........                      ....o...o...|....x...x...         x...o...o...|............
                       R...........|R.......5...         ....x...x...|0.1.2.3.2.1.|X...x...x...
disco    108 132 4 .5  X...X...X...X...                  ....X.......X...                  x.X.x.X.x.X.x.X.|..X...X...X...X.
                       R.8.R.8.R.8.R.8.|R..8..R.R..8..R. ..x...x...x...x.|x..x..x...x..x..|X.......x.x.x...
bossa     95 150 4 .5  X.....x.X.....x.                  x..x..x...x..x..|o..o..o...o..o.. o.o.o.o.o.o.o.o.
                       R.....5.5.....R.|R.....5.R.....5. x..x..x...x..x..|X..x..X...x..X..|..x...x.x...x...
reggae    65  95 4 .5  ........X.......|X.......X....... ........X.......                  x.x.x.x.x.x.x.x.
                       R..R..5...3.R...|R.....3.5....... ....x.......x...|..x...x...x...x.
hiphop    68 100 4 .56 X..x......x.....|X.....x...xx.... ........X.......|....X.......X... x.x.x.x.x.x.x.xx|xxxxxxxxxxxxxxxx
                       R..R......5.....|R.........R..... X.......X.....x.|X..x..x.........|0...2...1...3...
picking   70 125 4 .5  ................|X.......x....... ................|....o.......o... ................|o.x.o.x.o.x.o.x.
                       R.......5.......|R.......R.....5. 0.2.1.3.0.2.1.3.|0.1.2.1.3.2.1.2.|0.231.230.231.23
shuffle   80 140 4 .66 X.......X.......|X.....x.X.....x. ....X.......X...                  X.x.X.x.X.x.X.x.
                       R...3...5...3...|R.R.5.5.R.R.5.5. ..x...x...x...x.|X.....x.X.....x.|X...x...X...x...
polka     85 140 4 .5  X.......X.......                  ....x.......x...|..x...x...x...x. ..o...o...o...o.|................
                       R.......5.......|R...5...R...5... ....x.......x...|..x...x...x...x.|X...x...X...x...
anthem    90 150 4 .5  X...X...X...X...|X.......X....... ....X.......X...                  o.x.o.x.o.x.o.x.|xoxoxoxoxoxoxoxo
                       R.R.R.R.R.R.R.R.|R.......R....... X..x..x.X..x..x.|X...............|x.xx.xx.x.xx.xx.
""".split()
STYLES = [Style(row[0], *map(float, row[1:5]), *row[5:]) for row in np.reshape(STYLES, (-1, 10)).tolist()]
# seconds: beat -> seconds; groove: the pattern of the chords; sections: [(kind, first beat, beats)]; chords: [(first beat,
# end beat, pitch classes, root first)]; notes: [Note] that are sung: start, length, MIDI, dB, is it the first of its phrase?
Score = namedtuple("Score", "tempo seconds style groove sections chords notes")
Note = namedtuple("Note", "beat beats midi loudness begins")


def write_rhythm(rng, beats, meter, groove, density, sixteenths, syncopation):
    """A phrase as [(onset, duration, anchor)] in beats: moving notes, one long note near the end, then a breath.
    The anchor is the beat that a note belongs to; a syncopated note comes half a beat before its anchor."""
    last = beats - rng.choice([meter, meter, meter, meter - 1, 2, 1])
    end = beats - min(rng.choice([0.25, 0.5, 1, 1, 1.5]), (beats - last) / 2)
    at = np.arange(-rng.choice([0, 0, 0.5, 1, 1.5]), last, 0.25 if sixteenths else 0.5)
    strikes = np.array(list(groove))[(at % meter * 4).astype(int)] != "."   # singers lean on the band's chords
    off_beat = np.where(at % 0.5 == 0, 0.1 + 0.55 * density, 0.4 * density) * np.where(strikes, 1.5, 0.6)
    chance = np.select([np.isin(at % meter, STRONG[meter]), at % 1 == 0], [0.9, 0.45 + 0.4 * density], off_beat)
    dice = np.append(np.zeros(sum(at < 0)), rng.random(sum(at >= 0)))       # an upbeat is sung for sure
    anchors = np.append(at[dice < chance], last)
    early = (anchors % 1 == 0) & (rng.random(len(anchors)) < syncopation) & (np.diff(anchors, prepend=-9) > 0.5)
    onsets = anchors - 0.5 * early
    lengths = np.diff(onsets, append=end) * np.where(rng.random(len(onsets)) < 0.15, 0.6, 1)
    return list(zip(onsets, lengths, anchors))


def write_melody(rng, chord_at, scale, low, high, bars, meter, loudness, **rhythm):
    """A melody of `bars` bars out of two to four motifs. A motif that returns keeps its rhythm and contour, but is led
    anew over the chords of its place: on strong beats mostly a chord tone, between them steps of the scale."""
    ladder = np.array([midi for midi in range(low, high + 1) if midi % 12 in scale])
    span = 4 if bars % 4 == 0 and rng.random() < 0.35 else 2                # bars of a phrase
    plan, motifs, notes = rng.choice(["abac", "aaba", "abab", "aaab", "aabc"]), {}, []
    for phrase in range(bars // span):
        name, start = plan[phrase % 4], phrase * span * meter
        if name not in motifs:
            beats = write_rhythm(rng, span * meter, meter, **rhythm)
            moves = np.round(rng.standard_t(4, len(beats)) * 1.2).astype(int)    # steps, sometimes a leap
            motifs[name] = beats, moves, rng.integers(len(ladder))
        beats, moves, place = motifs[name]
        if phrase % 4 == 3:                                                 # variation: the last one ends differently
            moves = np.where(np.arange(len(moves)) < len(moves) // 2, moves, -moves)
        for i, ((onset, length, anchor), move) in enumerate(zip(beats, moves)):
            place = abs(place + move) % (2 * len(ladder) - 2)               # reflect at the ends of the singer's range
            place = min(place, 2 * len(ladder) - 2 - place)
            midi, strong = ladder[place], anchor % meter in STRONG[meter]
            if (strong and rng.random() < 0.7) or i == len(beats) - 1:      # 0.7, and chance makes it about 0.85
                tones = [tone for tone in range(low, high + 1) if tone % 12 in chord_at(start + anchor)]
                midi = min(tones, key=lambda tone: abs(tone - midi))
                place = int(np.abs(ladder - midi).argmin())
            notes.append(Note(start + onset, length, int(midi), 2.0 * strong + loudness, begins=i == 0))
    return notes


def compose(rng, style, low, high, seconds):
    """A song of at least `seconds` in a random key for a singer with the range low..high (MIDI)."""
    tempo, tonic, meter = rng.uniform(style.slowest, style.fastest), rng.integers(12), style.meter
    mode = rng.choice(list(MODES), p=[0.5, 0.32, 0.1, 0.08])
    steps, loops = MODES[mode]
    scale = [(tonic + step) % 12 for step in steps]
    bar = meter * 60 / tempo                                                # seconds
    start = rng.uniform(-1, 0.6) * bar                                      # bar lines have no fixed place in the file
    total = int(np.ceil((seconds - start) / bar)) + 1                       # bars
    syncopation, sevenths = rng.choice([0, 0.1, 0.3]), rng.choice([0, 0.1, 0.6], p=[0.5, 0.3, 0.2])
    groove, material = str(rng.choice(style.harmony.split("|"))), {}        # bars, chords and melody of each section
    for kind, (floor, top, sparse, dense, loudness) in SUNG.items():
        loop = rng.choice(loops.split())
        step = meter / 2 if meter == 4 and len(loop) < 12 and rng.random() < 0.15 else meter    # beats of a chord
        chords = [[(scale[(int(degree) - 1 + 2 * third) % 7] + (third == 1 and mode + degree == "minor5")) % 12
                   for third in range(3 + (rng.random() < sevenths))] for degree in loop]    # V is major in minor keys
        bars = 12 if len(loop) == 12 else 4 if bar > 2.4 else 8
        chord_at = lambda beat: chords[int(beat // step) % len(chords)]
        lowest, highest = (int(low + share * (high - low)) for share in (floor, top))
        melody = write_melody(rng, chord_at, scale, lowest, highest, bars, meter, loudness, groove=groove,
                              density=rng.uniform(sparse, dense), sixteenths=tempo < 84, syncopation=syncopation)
        material[kind] = bars, [(at, at + step, chord_at(at)) for at in np.arange(0, bars * meter, step)], melody
    form = "verse chorus gap verse chorus bridge chorus gap".split()
    turn, intro = rng.choice([0, 1, 3, 4, 5]), min(rng.choice([0, 1, 2, 4]), total // 4)
    form = ["intro"][:intro] + (form[turn:] + form[:turn]) * total
    material["intro"] = intro, material["verse"][1], []                     # the chords of the verse, nobody sings
    at, sections, chords, notes = 0, [], [], []
    while at < total * meter:
        kind = form.pop(0)
        bars, loop, melody = material.get(kind) or (rng.choice([1, 2, 4]), material["verse"][1], [])      # a gap: the same
        sections.append((kind, at, bars * meter))
        chords += [(at + begin, at + end, tones) for begin, end, tones in loop if begin < bars * meter]
        notes += [note._replace(beat=at + note.beat) for note in melody]
        at += bars * meter
    notes.sort(key=lambda note: note.beat)
    limits = [after.beat - 0.25 * after.begins for after in notes[1:]] + [np.inf]    # an upbeat ends the phrase before it
    notes = [note._replace(beats=min(note.beats, limit - note.beat)) for note, limit in zip(notes, limits)]
    clock = lambda beat: start + (np.floor(beat) + np.interp(np.mod(beat, 1), (0, 0.5, 1), (0, style.swing, 1))) * 60 / tempo
    return Score(tempo, clock, style, groove, sections, chords, [note for note in notes if note.beats > 0.1])


# ---------------------------------------------------------------------------------------------------------------------
# The singer: a source (glottal pulses, noise) through a filter (formants) that changes every 5 ms

HOP, WINDOW, FRAME_RATE = 128, 512, SAMPLE_RATE / 128                       # samples, samples, 187.5 frames/s
VOWELS = np.array([(280, 2250, 2900, 3500, 4600), (400, 2050, 2600, 3500, 4600), (600, 1800, 2500, 3500, 4600),
                   (780, 1250, 2600, 3400, 4500), (560, 880, 2500, 3300, 4500), (400, 760, 2500, 3300, 4500),
                   (310, 680, 2300, 3300, 4500), (500, 1450, 2500, 3400, 4500), (290, 1750, 2200, 3300, 4500)])
NASAL, LIQUID = (260, 1050, 2100, 3000, 4200), (340, 1300, 2300, 3000, 4200)
CONSONANTS = dict(                           # each a chain of (seconds, voicing, noise, its centre in Hz, formants if any)
    s=[(0.11, 0, 0.5, 6500)], sh=[(0.10, 0, 0.5, 3300)], f=[(0.08, 0, 0.2, 7500)], h=[(0.06, 0.05, 0.1, 1500)],
    z=[(0.07, 0.3, 0.2, 6000)], p=[(0.05, 0, 0, 900), (0.02, 0, 0.4, 900)], t=[(0.05, 0, 0, 4500), (0.025, 0, 0.6, 4500)],
    k=[(0.05, 0, 0, 2000), (0.03, 0, 0.5, 2000)], d=[(0.05, 0.12, 0, 900, *NASAL), (0.01, 0.2, 0.2, 2500)],
    m=[(0.08, 0.4, 0, 900, *NASAL)], n=[(0.06, 0.3, 0, 900, *NASAL)], l=[(0.07, 0.5, 0, 900, *LIQUID)])
TIMBRE = dict(                               # what makes a voice: drawn from .. to
    bandwidth=(0.8, 1.6), formant_loss=((0, 2, 6, 8, 12), (1, 12, 22, 26, 32)),    # of the five formants: factor, dB
    darkness=(1.5, 5), tilt=(0.2, 1.6), breath=(-44, -18),                  # lost by the source: dB per kHz, power of Hz; dB
    vibrato=(-0.4, 0.8), vibrato_rate=(4.5, 6.5), vibrato_delay=(0.15, 0.5),    # semitones (a third sing without), Hz, s
    shimmer=(0.3, 1.5), drift=(0.02, 0.2), glide=(0.03, 0.14),              # dB, semitones, seconds from note to note
    scoop=(0, 3), mistuning=(0.02, 0.2))                                    # semitones, where a note begins and throughout


def smooth(track, width):
    """Running mean with a Hann window of `width` values; constant ends."""
    window = np.hanning(max(int(width), 1) + 2)[1:-1]
    padded = np.pad(track, (len(window) // 2, len(window) - 1 - len(window) // 2), "edge")
    return np.convolve(padded, window / window.sum(), "valid").astype(np.float32)


class Voice:
    """A singer, drawn from its number: from bass men (0) to children (479), eight of each height."""

    def __init__(self, number):
        rng = np.random.default_rng([1, number])
        height = (number // HELD_OUT + rng.random()) / (N_VOICES // HELD_OUT)
        self.low = int(39 + 21 * height ** 1.3)                             # lowest and highest note, MIDI
        self.high = self.low + rng.integers(12, 18)
        self.formant_scale = np.clip(0.84 + 0.38 * height + rng.normal(0, 0.04), 0.82, 1.25)
        vars(self).update({name: rng.uniform(*between) for name, between in TIMBRE.items()})
        self.scatter, self.lag = 0.004 + min(rng.exponential(0.02), 0.08), rng.normal(0.01, 0.015)  # seconds
        self.articulation = rng.uniform(0.55, 0.95)                         # share of notes with their own syllable
        self.consonants = decibels(rng.uniform(-12, 2))

    def perform(self, rng, score, seconds):
        """The score as a person sings it, as curves of one value per frame: f0 (Hz), loudness, noise, the noise's
        centre (Hz) and formants (5, T) (Hz). Each note writes its stretch; smoothing makes the glides."""
        T = int(seconds * FRAME_RATE) + 4
        pitch, loud, swell, noise = np.full(T, 60.0), *np.zeros((3, T))     # MIDI, amplitude, share of the vibrato
        noise_hz, formants = np.full(T, 2000.0), np.tile(VOWELS[7], (T, 1))
        frame = lambda time: int(np.clip(time * FRAME_RATE, 0, T))
        notes = [note for note in score.notes if 0.1 < score.seconds(note.beat) < seconds - 0.3]
        late = lambda beats: score.seconds(np.array(beats)) + self.lag + rng.normal(0, self.scatter, len(notes))
        onsets = np.maximum.accumulate(late([note.beat for note in notes]))
        following = np.append(onsets[1:], seconds)
        legato = np.append([a.beat + a.beats > b.beat - 0.01 for a, b in zip(notes, notes[1:])], False)
        ends = np.clip(late([note.beat + note.beats for note in notes]), onsets + 0.09, following)
        ends = np.where(legato, following, ends)
        for i, (note, onset, end) in enumerate(zip(notes, onsets, ends)):
            level = decibels(note.loudness + 0.35 * (note.midi - self.low - 7) + rng.normal(0, 1.5))
            begin, silence = onset, onset - (ends[i - 1] if i else 0)
            if note.begins or rng.random() < self.articulation:             # a syllable: the vowel falls on the beat,
                chain = CONSONANTS[rng.choice(list(CONSONANTS))] if rng.random() < 0.85 else []     # consonants precede it
                length, space = sum(part[0] for part in chain), max(silence, 0.5 * (onset - onsets[i - 1]) if i else 0)
                stretch = min(rng.uniform(0.7, 1.4), space / (length + 0.001))
                at = begin = onset - stretch * length
                vowel, to = VOWELS[rng.integers(len(VOWELS), size=2)] * rng.normal(1, 0.04, 5)
                formants[frame(begin):] = vowel
                if rng.random() < 0.3:                                      # a diphthong moves on to a second vowel
                    formants[frame(onset + rng.uniform(0.3, 0.8) * (end - onset)):] = to
                for duration, voicing, hiss, centre, *place in chain:
                    here = slice(frame(at), max(frame(at + stretch * duration), frame(at) + 1))
                    loud[here], noise[here], noise_hz[here] = voicing * level, hiss * level * self.consonants, centre
                    formants[here] = place or formants[here]
                    at += stretch * duration
            if silence > 0.5:                                               # breathing in
                here = slice(frame(begin - rng.uniform(0.25, 0.45)), frame(begin - 0.08))
                noise[here], noise_hz[here] = rng.uniform(0, 0.08), rng.uniform(1200, 2500)
            here = slice(frame(onset), frame(end))
            since = np.arange(frame(end) - frame(onset)) / FRAME_RATE       # seconds
            pitch[frame(begin):] = note.midi + rng.normal(0, self.mistuning)
            pitch[here] -= rng.choice([0, 1]) * self.scoop * rng.random() * np.exp(-since / rng.uniform(0.03, 0.1))
            swell[here] = np.clip((since - self.vibrato_delay) / 0.3, 0, 1) * rng.uniform(0.3, 1.2)
            fade = 1 + rng.uniform(-0.6, 0.3) * (since / max(end - onset, 0.3))
            loud[here] = level * fade * np.minimum(1, 0.5 + since / 0.05)

        wander = lambda width: smooth(rng.standard_normal(T), width) * np.sqrt(width)               # about -1 .. 1
        vibrato = np.sin(2 * np.pi * np.cumsum(self.vibrato_rate + 0.4 * wander(80)) / FRAME_RATE)
        pitch = smooth(pitch, self.glide * FRAME_RATE) + rng.uniform(-0.25, 0.25)
        pitch += max(0, self.vibrato) * smooth(swell, 20) * vibrato
        pitch += self.drift * (wander(200) + 0.6 * wander(30)) + 0.02 * wander(4)                   # jitter comes last
        formants = np.stack([smooth(track, 14) for track in formants.T]) * self.formant_scale
        f0 = 440 * 2 ** ((pitch - 69) / 12)
        formants[0] = np.maximum(formants[0], f0)                           # high singers open the mouth: F1 follows f0
        return f0, smooth(loud, 9) * decibels(self.shimmer * wander(6)), smooth(noise, 3), noise_hz, formants

    def sing(self, rng, score, seconds):
        """The melody as a dry voice, (L,)."""
        f0, loud, noise, noise_hz, formants = (np.float32(curve) for curve in self.perform(rng, score, seconds))
        T = len(f0)
        # Source: all overtones at once, by the geometric series sum_k r^k cos(k phase) = Re 1 / (1 - r e^(i phase)) - 1.
        # r^k is a loss of so many dB per kHz at any pitch: a dull voice or a bright one, and no audible aliases.
        f0_samples = np.interp(np.arange(T * HOP) / HOP, np.arange(T), f0)
        cosine = np.cos(2 * np.pi * (np.cumsum(f0_samples / SAMPLE_RATE) % 1)).astype(np.float32)
        r = decibels(-self.darkness * f0_samples / 1000).astype(np.float32)
        pulses = (r * cosine - r * r) / (1 - 2 * r * cosine + r * r)
        # Filter: multiply each frame of a short-time Fourier transform by the resonances of its vowel.
        window = np.sqrt(np.hanning(WINDOW + 1)[:-1]).astype(np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(pulses, (WINDOW // 2, WINDOW)), WINDOW)[:T * HOP:HOP]
        spectrum = np.fft.rfft(frames * window)                                                     # (T, bins)
        freqs = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE).astype(np.float32)
        resonance = np.full(spectrum.shape, 0.004, np.float32)
        for centre, width, gain in zip(formants[:, :, None], (90, 110, 160, 220, 300), decibels(-self.formant_loss)):
            width, squares = np.float32(width * self.bandwidth), centre * centre - freqs * freqs
            resonance += np.float32(gain) * width * centre / np.sqrt(squares * squares + (width * freqs) ** 2)
        resonance *= (1 + freqs / 300) ** np.float32(-self.tilt)
        # Noise: breath takes the vowel's colour, a consonant is a band of noise.
        hiss = (rng.standard_normal((*spectrum.shape, 2), dtype=np.float32) * 6).view(np.complex64)[..., 0]
        breath = np.float32(decibels(self.breath)) * (resonance + 0.1 * freqs / 12000)
        away = (freqs / noise_hz[:, None] - 1) * 3
        spectrum *= resonance * loud[:, None]
        spectrum += hiss * (breath * loud[:, None] + noise[:, None] / (1 + away * away))
        frames = np.fft.irfft(spectrum) * window
        wave = np.zeros((T + 3) * HOP, np.float32)
        for start in range(0, WINDOW, HOP):                                 # overlap-add, all frames at once
            wave[start:start + T * HOP] += frames[:, start:start + HOP].ravel()
        return wave[WINDOW // 2:][:int(seconds * SAMPLE_RATE)]


def filter_and_room(rng, wave, wet, echo, tilt, bumps, low_cut, high_cut):
    """Everything linear between a sound and the tape, in one FFT. wet: share of reverberation; echo: seconds until it has
    fallen by 60 dB; tilt: dB per octave around 1 kHz; bumps: number of random resonances or notches; cuts: Hz."""
    tail = rng.standard_normal(int(echo * SAMPLE_RATE), dtype=np.float32)
    tail *= np.exp(-6.9 * np.arange(len(tail), dtype=np.float32) / len(tail))
    size = -(-(len(wave) + len(tail)) // 32768) * 32768                     # a length that the FFT likes
    freqs = np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32) + 1
    octaves = np.log2(freqs / 1000)
    gain = tilt * octaves
    for _ in range(bumps):
        gain += rng.uniform(-6, 6) * np.exp(-((octaves - rng.uniform(-2.5, 3)) / rng.uniform(0.3, 1)) ** 2)
    gain = decibels(gain) / np.sqrt((1 + (low_cut / freqs) ** 4) * (1 + (freqs / high_cut) ** 16))
    room = np.fft.rfft(tail / np.sqrt(np.sum(tail ** 2)), size) / (1 + freqs / 4000)    # walls swallow the highs
    return np.fft.irfft(np.fft.rfft(wave, size) * gain * (1 - wet + wet * room), size)[:len(wave)]


def record_vocals(rng, wave):
    """What lies between a singer and a karaoke recording: compressor, microphone, room, noise."""
    block = SAMPLE_RATE // 100
    level = np.sqrt(smooth((np.pad(wave, (0, -len(wave) % block)).reshape(-1, block) ** 2).mean(1), 8))
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

# Overtone k has the amplitude k ** -slope. Attack, release: s; decay of the tone, dark once more for each overtone: 1/s;
# flat, sharp (two strings or oscillators), vibrato: cents; puff: noise of hammer, pick, breath. Pairs: drawn from .. to.
Instrument = namedtuple("Instrument", "overtones attack decay dark release flat sharp vibrato puff")
INSTRUMENTS = dict(
    #        slope       attack       decay       dark        release flat   sharp    vibrato  puff
    plucked=((0.8, 1.4), 0.003,       (0.8, 2.5), (0.2, 1.2), 0.08,   0,       0,       0,       (0, 0.3)),
    piano=((1.1, 1.7),   0.005,       (0.5, 1.5), (0.1, 0.5), 0.10,   1.2,     1,       0,       (0, 0.2)),
    epiano=(0,           0.005,       (0.6, 1.5), (0.5, 2),   0.06,   0,       0,       (0, 6),  0),
    organ=(0,            0.010,       0,          0,          0.06,   0,       0,       (0, 8),  0),
    strings=((1, 1.6),   (0.06, 0.3), 0,          0,          0.25,   (3, 10), (3, 10), (0, 10), 0),
    blown=((1.5, 2.5),   0.060,       0,          0,          0.10,   0,       0,       (5, 20), (0.05, 0.2)),
    synth=(1,            0.008,       (0, 2),     (0, 0.5),   0.06,   (2, 9),  (2, 9),  0,       0),
    bass=((0.9, 2),      0.005,       (0.3, 2),   (0.2, 1.5), 0.06,   0,       0,       0,       0.05))
EXCEPT = dict(                               # what else is particular about the overtones; z: their random phases
    plucked=lambda z, k, rng: z * np.sin(np.pi * k * rng.uniform(0.1, 0.4)),    # none with a node where it is plucked
    epiano=lambda z, k, rng: z * (k < 5) * rng.uniform(0.05, 0.5, len(k)) + (k == 1),
    organ=lambda z, k, rng: z * np.isin(k, (1, 2, 3, 4, 6, 8)) * rng.uniform(0, 1, len(k)) + (k == 1),    # drawbars
    blown=lambda z, k, rng: z * np.where(k % 2, 1, rng.uniform(0.05, 1)),       # a pipe closed at one end: odd
    synth=lambda z, k, rng: z * np.where(k % 2, 1, rng.choice([0, 1])) * 0.9 ** k)    # saw or square


def tone(rng, instrument, midi, seconds):
    """One note, (L,). With z = e^(i phase - dark t), overtone k is z^k: a polynomial instead of a sine each."""
    t, freq = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE, 440 * 2 ** ((midi - 69) / 12)
    overtones, wave = instrument.overtones[:int(11000 / freq)], np.zeros(len(t), np.float32)
    detune = (-instrument.flat, instrument.sharp) if instrument.flat else (0,)
    for cents in detune:
        cycles = freq * 2 ** (cents / 1200) * t + rng.random()
        cycles += freq * instrument.vibrato / 1731 / 33 * np.sin(33 * t)    # 33 rad/s = 5.3 Hz
        z = np.exp((2j * np.pi * (cycles % 1) - instrument.dark * t).astype(np.complex64))
        wave += (np.polyval(overtones[::-1], z) * z).imag
    wave *= np.exp(-instrument.decay * (freq / 260) ** 0.4 * t) * np.minimum(t / instrument.attack, 1)
    if instrument.puff:
        wave += instrument.puff * np.exp(-60 * t) * np.minimum(t / 0.002, 1) * rng.standard_normal(len(t))
    power = np.sum(np.abs(overtones) ** 2) * len(detune)
    return (wave * (freq / 260) ** -0.2 / np.sqrt(power)).astype(np.float32)


class Band:
    """Three players and a drum kit, drawn from the band's number."""

    def __init__(self, number):
        rng = np.random.default_rng([2, number])
        k, self.instruments = np.arange(1, 25), {}
        for player, families in dict(comping=["plucked"] * 3 + ["piano"] * 2 + ["epiano", "organ", "synth"],
                                     pad=["strings"] * 3 + ["blown", "organ", "synth"], bass=["bass"]).items():
            family = rng.choice(families)
            z = EXCEPT.get(family, lambda z, *_: z)(np.exp(2j * np.pi * rng.random(len(k))), k, rng)
            slope, *rest = (rng.uniform(*value) if isinstance(value, tuple) else value for value in INSTRUMENTS[family])
            self.instruments[player] = Instrument((z / k ** slope).astype(np.complex64), *rest)
        t = np.arange(int(1.6 * SAMPLE_RATE)) / SAMPLE_RATE
        noise = rng.standard_normal(len(t))
        bright = np.diff(noise, 2, prepend=[0, 0])                          # a second difference is a high-pass filter
        fade = lambda seconds: np.exp(-6.9 * t / seconds)
        sine = lambda hz: np.sin(2 * np.pi * hz * t)
        sweep = lambda low, high, speed: np.sin(2 * np.pi * (low * t + (high - low) / speed * (1 - np.exp(-speed * t))))
        body = rng.uniform(150, 230)
        boom = sweep(rng.uniform(42, 62), rng.uniform(120, 300), rng.uniform(25, 60))
        ring = sum(sine(hz) for hz in rng.uniform(2500, 7000, 6))
        kit = dict(
            kick=boom * fade(rng.uniform(0.15, 0.5)) + 0.05 * noise * fade(0.02),
            snare=sweep(body, 1.6 * body, 60) * fade(0.15) + rng.uniform(0.2, 0.6) * noise * fade(rng.uniform(0.12, 0.35)),
            rim=sine(rng.uniform(700, 1700)) * fade(0.06) + 0.2 * noise * fade(0.03),
            clap=np.diff(noise, prepend=0) * (fade(0.25) + np.exp(-((t - 0.012) / 0.003) ** 2)),
            tom=sweep(rng.uniform(80, 130), rng.uniform(150, 220), 30) * fade(0.35) + 0.05 * noise * fade(0.05),
            hat=bright * fade(rng.uniform(0.04, 0.12)), open=bright * fade(rng.uniform(0.3, 0.6)),
            shaker=bright * fade(0.12) * np.minimum(t / 0.03, 1), ride=0.3 * bright * fade(0.7) + 0.2 * ring * fade(0.8),
            crash=bright * fade(1.5) + 0.3 * noise * fade(1.2))
        self.drums = {name: (wave / np.abs(wave).max()).astype(np.float32) for name, wave in kit.items()}
        self.drums["backbeat"] = self.drums[rng.choice(["snare", "snare", "clap", "rim"])]
        self.drums["pulse"] = self.drums[rng.choice(["hat", "hat", "shaker", "ride"])]
        self.register = dict(comping=rng.integers(55, 65), pad=rng.integers(60, 70))                # middle of the chords
        self.room = dict(wet=rng.uniform(0, 0.2), echo=rng.uniform(0.3, 1.5), tilt=rng.uniform(-1.5, 1))
        self.balance = dict(comping=0, pad=rng.uniform(-7, -1), bass=rng.uniform(-7, -2), drums=rng.uniform(-7, 0))  # dB
        self.tightness = rng.uniform(0.001, 0.008)                          # seconds of scatter

    def play(self, rng, score):
        """What the players do, event by event: (player, MIDI note or drum, beat, beats, gain). They know the form and the
        chords, but not one note that is sung."""
        style, pick, voicing = score.style, lambda patterns: str(rng.choice(patterns.split("|"))), {}
        lines = [("kick", pick(style.kick), 1), ("backbeat", pick(style.snare), 0.8), ("pulse", pick(style.hat), 0.35)]
        lines = [line for line in lines if line[1].strip(".")]
        bass, bridge = pick(style.bass), pick(style.harmony)
        plans = {kind: (force, rng.random() < drums, rng.random() < pad) for kind, (force, drums, pad) in PLAYED.items()}

        def voiced(tones, middle, last):
            """MIDI notes of a chord near `middle`, moving as little as possible from the `last` chord."""
            choices = [sorted(low + (tone - low) % 12 for tone in tones) for low in range(middle - 9, middle + 2)]
            move = lambda chord: sum(min(abs(a - b) for b in last) for a in chord) if last else abs(np.mean(chord) - middle)
            return min(choices, key=move)

        def steps(pattern, begin, end):
            """Each (beat, sign, beats until the next sign); the bars of a pattern count from the section's first beat."""
            for beat in np.arange(begin, end, 0.25):
                sign, *rest = pattern[int((beat - first) * 4) % len(pattern):]
                yield beat, sign, 0.25 * (1 + len(rest) - len("".join(rest).lstrip(".")))

        for kind, first, beats in score.sections:
            force, drums_play, pad_plays = plans[kind]
            accent = lambda beat: force * rng.uniform(0.8, 1) * (1 if beat % 2 == 0 else 0.8)
            for begin, end, chord in [chord for chord in score.chords if first <= chord[0] < first + beats]:
                voicing = {who: voiced(chord, middle, voicing.get(who)) for who, middle in self.register.items()}
                tones = voicing["comping"]
                for beat, sign, length in steps(bridge if kind == "bridge" else score.groove, begin, end):
                    if sign in "0123":
                        midi = [*tones, tones[0] + 12][int(sign)]
                        yield "comping", midi, beat, min(1.5, end - beat + 0.2), 1.3 * accent(beat)
                    held = min(length, end - beat) if sign == "X" else 0.3
                    for i, midi in enumerate(tones if sign in "Xx" else []):                        # a strum, low to high
                        yield "comping", midi, beat + 0.015 * i, held, accent(beat)
                root = 29 + (chord[0] - 29) % 12                            # F1 to E2
                pitches = {sign: root + (tone - chord[0]) % 12 for sign, tone in zip("R35", chord)} | {"8": root + 12}
                for beat, sign, length in steps(bass, begin, end):
                    sign = "R" if beat == begin else sign                   # a new chord shows its root at once
                    if sign in pitches:
                        yield "bass", pitches[sign], beat, min(0.9 * length, end - beat), accent(beat)
                yield from (("pad", midi, begin, end - begin, force) for midi in voicing["pad"] if pad_plays)
            if drums_play and lines:
                busy = kind in ("chorus", "gap")
                fill = first + beats - (2 if busy else 1)
                for drum, pattern, gain in lines:
                    for beat, sign, _ in steps(pattern, first, fill):
                        if sign != ".":
                            hit = "open" if busy and drum == "pulse" and beat % 1 == 0.5 else drum
                            yield "drums", hit, beat, 0, force * gain * dict(X=1, x=0.75, o=0.4)[sign] * rng.uniform(0.8, 1)
                        elif drum == "kick" and rng.random() < 0.02:        # nobody plays like a machine
                            yield "drums", "kick", beat, 0, 0.5 * force
                for beat in np.arange(fill, first + beats, 0.25):
                    if rng.random() < 0.7:
                        yield "drums", rng.choice(["snare", "tom"]), beat, 0, force * rng.uniform(0.4, 0.8)
                if busy:
                    yield "drums", "crash", first, 0, 0.5 * force

    def record(self, rng, score, seconds):
        """The accompaniment, (L,): every event placed on its player's track in the band's own time, then mixed."""
        length, tones = int(seconds * SAMPLE_RATE), {}                      # every note is computed once, then copied
        tracks = {player: np.zeros(length, np.float32) for player in self.balance}
        for player, sound, beat, beats, gain in self.play(rng, score):
            if player == "drums":
                wave = self.drums[sound]
            else:
                instrument = self.instruments[player]
                if (player, sound) not in tones:
                    longest = 2.5 if instrument.decay else min(240 / score.tempo + 0.3, 4)
                    tones[player, sound] = tone(rng, instrument, sound, longest)
                held = score.seconds(beat + beats) - score.seconds(beat) + instrument.release
                wave = tones[player, sound][:int(held * SAMPLE_RATE)].copy()
                fade = min(int(instrument.release * SAMPLE_RATE), len(wave))
                wave[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
            at = int((score.seconds(beat) + abs(rng.normal(0, self.tightness))) * SAMPLE_RATE)
            wave = wave[max(-at, 0):max(length - at, 0)]                    # what began before the file is cut
            tracks[player][max(at, 0):max(at, 0) + len(wave)] += np.float32(gain) * wave
        mix = sum((wave * np.float32(decibels(self.balance[player] - 20 - active_dbfs(wave, SAMPLE_RATE)))
                   for player, wave in tracks.items() if wave.any()), np.zeros(length, np.float32))
        mix = np.tanh(2 * filter_and_room(rng, mix, **self.room, bumps=2, low_cut=30, high_cut=11500))  # loud peaks give way
        mix[:480] *= np.linspace(0, 1, 480)                                 # 20 ms: the file may begin in a note
        return mix.astype(np.float32)


def make_song(job):
    """(seed, number of the song, seconds, split) -> vocals (L,), accompaniment (L,), facts: the same wherever it is made.
    Score, singer and band have random streams of their own, so that nothing but the score is common to both columns."""
    seed, index, seconds, split = job
    torch.set_num_threads(1)                                                # the songs are what runs in parallel
    casting, writing, singing, playing = (np.random.default_rng([seed, index, stream]) for stream in range(4))
    voice, band = (int(casting.choice([number for number in range(count) if (number % HELD_OUT == 0) == (split == "val")]))
                   for count in (N_VOICES, N_BANDS))
    singer, style = Voice(voice), STYLES[index % len(STYLES)]
    score = compose(writing, style, singer.low, singer.high, seconds)
    vocals = record_vocals(singing, singer.sing(singing, score, seconds))
    accomp = Band(band).record(playing, score, seconds)
    balance = np.clip(casting.normal(0, 2), -4, 4)                          # dB, vocals over band
    accomp *= decibels(active_dbfs(vocals, SAMPLE_RATE) - balance - active_dbfs(accomp, SAMPLE_RATE))
    gain = 0.9 / max(np.abs(vocals).max(), np.abs(accomp).max())
    clock = lambda beat: round(float(np.clip(score.seconds(beat), 0, seconds)), 4)
    beats = [clock(beat) for beat in np.arange(-8, score.chords[-1][1]) if 0 <= score.seconds(beat) < seconds]
    chords = [(clock(a), clock(b), list(map(int, tones))) for a, b, tones in score.chords if clock(a) < clock(b)]
    return vocals * gain, accomp * gain, dict(name=f"demo-{index:05d}", split=split, tempo=round(float(score.tempo), 3),
                                              beats=beats, chords=chords, style=style.name, voice=voice, band=band)


# ---------------------------------------------------------------------------------------------------------------------
# Files: your own stems in, prepared sets out and in

def read_audio(path, mono=False, longest=4):
    """Any file that soundfile reads -> ((channels, L) float32 array, sample rate in Hz); mono: the mean of its channels.
    Goes block by block: a header may claim what is not there. Raises UserError, also beyond `longest` hours."""
    blocks, size = [], 1 << 20
    try:
        with open(path, "rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            rate = sound.samplerate
            demand((1000 <= rate <= 768000, f"{path} claims a rate of {rate} Hz; between 1 and 768 kHz is audio"))
            while len(block := sound.read(size, dtype="float32", always_2d=True)):
                blocks.append(block.mean(1, keepdims=True) if mono else block)
                demand((len(blocks) * size < longest * 3600 * rate, f"{path} is longer than {longest} hours; cut it"))
    except OSError as e:
        raise UserError(f"{path} cannot be opened ({e.strerror}); give the path of an audio file") from None
    except soundfile.LibsndfileError as e:
        raise UserError(f"{path} cannot be read as audio ({e.error_string.rstrip('.')}); "
                        "give a whole WAV, FLAC, OGG, MP3 or AIFF file") from None
    demand((blocks, f"{path} holds no samples; give a file with sound in it"))
    wav = np.concatenate(blocks).T
    bad = wav.size - np.count_nonzero(np.abs(wav) < 1e10)                  # NaN is not below anything
    demand((not bad, f"{path} holds {bad} samples that are NaN, infinite or beyond 1e10; export it again"))
    return wav, rate


def audio_bytes(wav, sample_rate, comment="", kind="WAV"):
    """(L,) or (L, channels) from -1 to 1 -> the bytes of a 16-bit file, the same for the same arguments."""
    buffer = io.BytesIO()
    channels = wav.shape[1] if wav.ndim == 2 else 1
    with soundfile.SoundFile(buffer, "w", sample_rate, channels, "PCM_16", format=kind) as file:
        if comment:
            file.comment = comment
        file.write(wav)
    return buffer.getvalue()


AUDIO = {f".{kind.lower()}" for kind in soundfile.available_formats()} - {".raw"} | {".aif", ".oga", ".opus"}
BANDS = ("no_vocals", "accompaniment", "instrumental"), ("drums", "bass", "other", "guitar", "piano"), ("mixture",)
# A group (a singer, where known) goes to training or to validation, never to both. band: the files whose sum is the
# accompaniment, or a mixture to take the vocals from, or (MIR-1K) none: accompaniment left, vocals right in one file.
Stems = namedtuple("Stems", "group name vocals band is_mixture")


def find_stems(paths):
    """Everything under `paths` that looks like a song: ([Stems], [why something was skipped])."""
    folders, songs, skipped = {}, [], []
    for root in map(Path, paths):
        demand((root.exists(), f"{root} not found; give folders of stems, or no path at all for the demo songs"))
        for file in [root] if root.is_file() else sorted(root.rglob("*")):
            if file.suffix.lower() in AUDIO and file.is_file() and not file.name.startswith("."):
                folder = file.parent
                title = folder.name if folder in (root, root.parent) else str(folder.relative_to(root))
                folders.setdefault(folder.resolve(), (title, {}))[1].setdefault(file.stem.lower(), file)
    for folder, (title, files) in folders.items():
        found = []
        for stem, file in files.items():
            if match := re.fullmatch(r"(|.+_)(?<!no_)vocals", stem):        # vocals, NAME_vocals
                prefix = match[1]
                whole, parts, mixture = ([files[prefix + name] for name in kind if prefix + name in files] for kind in BANDS)
                complete = all(prefix + name in files for name in ("drums", "bass", "other"))
                band = whole[:1] or (parts if complete else mixture or parts)
                group, name = (f"{title}/{prefix[:-1]}", file.stem[:len(prefix) - 1]) if prefix else (title, title)
                found.append(Stems(group, name, file, band, band == mixture))
        found = found or [Stems(match[1], file.stem, file, None, False) for stem, file in files.items()
                          if (match := re.fullmatch(r"([a-z][a-z0-9]*)_\d+_\d+", stem))]    # MIR-1K: SINGER_SONG_CLIP
        if not found:
            skipped.append(f"{folder}: its {len(files)} audio files are in no known layout")
        skipped += [f"{song.vocals}: no accompaniment beside it" for song in found if song.band == []]
        songs += [song for song in found if song.band != []]
    return sorted(songs), skipped


def load_stems(song, quiet=-50, longest=4, shortest=3):
    """The useful stretches of a song -> [float32 (vocals and accompaniment, L) at 24 kHz], one gain for all: `shortest` s or
    more, without pauses of over `longest` s below `quiet` dBFS (20 log10 of the RMS over 100 ms) in either; or UserError."""
    files = [read_audio(path, mono=bool(song.band)) for path in [song.vocals, *(song.band or [])]]
    waves = [wave for channels, rate in files for wave in resample(torch.from_numpy(channels), rate, SAMPLE_RATE).numpy()]
    if not song.band:
        demand((len(waves) == 2, f"{song.vocals} is named like a MIR-1K clip, but is not stereo"))
        waves.reverse()
    least, *_, most = sorted(len(wave) / SAMPLE_RATE for wave in waves)
    demand((most - least <= 1, f"{song.vocals}: the stems of this song last {least:.1f} to {most:.1f} s"))
    vocals, *band = [wave[:min(map(len, waves))] for wave in waves]
    pair = np.stack([vocals, sum(band) - song.is_mixture * vocals])
    pair *= 0.9 / max(np.abs(pair).max(), 1e-6)
    block = SAMPLE_RATE // 10
    power = (np.pad(pair, ((0, 0), (0, -len(vocals) % block))).reshape(2, -1, block) ** 2).mean(2)
    runs = lambda mask: np.flatnonzero(np.diff(np.pad(mask.astype(int), 1))).reshape(-1, 2)         # [(begin, end)] of true
    keep = np.ones(power.shape[1], bool)
    for begin, end in [run for silent in power < 10 ** (quiet / 10) for run in runs(silent)]:
        keep[begin:end] &= end - begin <= longest * 10
    stretches = [part for begin, end in runs(keep) * block
                 if (part := pair[:, begin:end]).shape[1] >= shortest * SAMPLE_RATE]
    demand((stretches, f"{song.vocals}: no {shortest} s in which both singing and band are above {quiet} dBFS"))
    return stretches


def stem_songs(songs, val, seed, skipped):
    """For `write_set`, group by group in a shuffled order: the first usable group is for training, the next for validation
    until it has its share, the rest for training again. One singer's songs are groups of their own, if nobody else sings.
    `skipped`: the reasons so far; all are printed."""
    alone = len({song.group for song in songs}) == 1
    group = lambda song: song.name if alone else song.group
    groups = np.random.default_rng(seed).permutation(sorted({group(song) for song in songs})).tolist()
    wanted, usable = max(1, round(val * len(groups))), set()
    for song in tqdm(sorted(songs, key=lambda song: groups.index(group(song))), unit="song", disable=None):
        split = "val" if 1 <= len(usable - {group(song)}) <= wanted else "train"
        try:
            for number, (vocals, accomp) in enumerate(load_stems(song), 1):
                usable.add(group(song))
                yield vocals, accomp, dict(name=song.name if number == 1 else f"{song.name}#{number}", split=split)
        except UserError as problem:
            skipped.append(str(problem))
    for reason in skipped:
        print(f"prep.py: skipped: {reason}", file=sys.stderr)
    demand((usable, "no usable song found; known layouts: vocals.* beside drums, bass, other.*, no_vocals.* or mixture.*; "
                    "NAME_vocals.* beside NAME_accompaniment.*; MIR-1K"),
           (len(usable) > 1, "one usable song found; give at least two, for one is kept for validation"))
    print(f"skipped: {len(skipped)}")


def read_set(folder, split, level_dbfs=Config.level_dbfs):
    """The songs of one split of a prepared set -> [(facts, int16 (L, 2) memory map, the two gains that bring voice and
    band from int16 to float at `level_dbfs`)]. Raises UserError for anything that is not such a set, whole."""
    try:
        meta = json.loads((Path(folder) / "meta.json").read_text())
        pairs = np.memmap(Path(folder) / f"{split}.bin", np.int16, "r").reshape(-1, 2)
        facts = [song for song in meta["songs"] if song["split"] == split]
        demand(((meta["format"], meta["sample_rate"], meta[f"{split}_samples"]) == (FORMAT, SAMPLE_RATE, len(pairs)),
                f"{split}.bin holds {len(pairs)} samples of format {FORMAT}; meta.json says otherwise"),
               (facts, f"no songs in {split}.bin"))
        songs = []
        for song in facts:
            begin, end = song["start"], song["start"] + song["length"]
            gains = decibels(level_dbfs - np.array([song["vocals_dbfs"], song["accomp_dbfs"]])) / 32768
            demand((0 <= begin < end <= len(pairs) and np.isfinite(gains).all(),
                    f"{song['name']} lies beyond {split}.bin or has no level"))
            songs.append((song, pairs[begin:end], np.float32(gains)))
    except (OSError, ValueError, KeyError, TypeError, UserError) as problem:
        raise UserError(f"{folder} is not a whole data set ({problem!r}); make it with prep.py") from None
    return songs


def free_place(out, seconds):
    """Raises UserError if a set of so many seconds cannot go into the folder `out`: a stranger's, or on a full disk."""
    strange = lambda folder: set(os.listdir(folder)) - set(FILES) if folder.is_dir() else folder.exists()
    out, partial = Path(out), Path(f"{Path(out)}.partial")
    here = next(folder for folder in out.absolute().parents if folder.exists())
    need, free = seconds * SAMPLE_RATE * 4 / 1e6, shutil.disk_usage(here).free / 1e6
    demand(((out / "meta.json").exists() or not strange(out),
            f"--out {out} was not made by prep.py (no meta.json in it); give another name"),
           (not strange(partial), f"{partial} is in the way; remove it"),
           (need <= free, f"{need:.0f} MB are needed in {here}, {free:.0f} MB are free"))
    return out, partial


def write_set(out, partial, songs):
    """songs: (vocals (L,), accompaniment (L,), dict of at least name and split), one after the other. Writes to the folder
    `partial` and moves its files to `out` when all is well; leaves nothing behind when it is not."""
    shutil.rmtree(partial, ignore_errors=True)
    facts, samples = [], dict(train=0, val=0)
    try:
        with writing(partial):
            partial.mkdir(parents=True)
        for vocals, accomp, info in songs:
            pair = np.round(np.stack([vocals, accomp], axis=1) * 32767).astype(np.int16)            # (L, 2)
            levels = [round(active_dbfs(column / np.float32(32768), SAMPLE_RATE), 2) for column in pair.T]
            with writing(partial), open(partial / f"{info['split']}.bin", "ab") as file:
                file.write(pair.tobytes())
            place = dict(start=samples[info["split"]], length=len(pair))
            facts.append(dict(vocals_dbfs=levels[0], accomp_dbfs=levels[1]) | info | place)
            samples[info["split"]] += len(pair)
        counts = {f"{split}_samples": count for split, count in samples.items()}
        meta = dict(format=FORMAT, sample_rate=SAMPLE_RATE, **counts, songs=facts)
        with writing(partial):
            (partial / "meta.json").write_text(json.dumps(meta))
            out.mkdir(exist_ok=True)
            (out / "meta.json").unlink(missing_ok=True)                     # goes first and comes last: whenever this is
            for name in FILES:                                              # interrupted, nobody takes half a set for whole
                os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for split, count in samples.items():
        number, seconds = sum(song["split"] == split for song in facts), count / SAMPLE_RATE
        print(f"{split:5} {number:5} songs {seconds / 60:7.1f} min {count * 4 / 1e6:8.1f} MB  {out / split}.bin")


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
    least = dict(songs=2, seconds=8, val_songs=1, workers=1, seed=0)        # of two songs one is for validation
    try:
        demand(*((vars(args)[name] >= value, f"--{name.replace('_', '-')} {vars(args)[name]:g}: must be at least {value}")
                 for name, value in least.items()), (0 < args.val < 1, f"--val {args.val:g}: must lie between 0 and 1"))
        if args.paths:
            stems, skipped = find_stems(args.paths)
            seconds = 0
            for song in stems:
                with suppress(soundfile.LibsndfileError):                   # when it is read, it is skipped with a reason
                    seconds += soundfile.info(song.vocals).duration
            place = free_place(args.out or "data/mine", seconds)
            write_set(*place, stem_songs(stems, args.val, args.seed, skipped))
        else:
            val_songs = min(args.val_songs, max(1, args.songs // 4))
            place = free_place(args.out or "data/demo", args.songs * args.seconds)
            jobs = [(args.seed, index, args.seconds, "val" if index < val_songs else "train") for index in range(args.songs)]
            ctrl_c = signal.SIGINT, signal.SIG_IGN                          # is the main process's business
            with Pool(min(args.workers, args.songs), signal.signal, ctrl_c) as pool:
                write_set(*place, tqdm(pool.imap(make_song, jobs), total=args.songs, unit="song", disable=None))
    except UserError as problem:
        print(f"prep.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prep.py: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

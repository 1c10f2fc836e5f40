"""Make the training set: pairs of (solo singing, the band that fits it), 24 kHz mono, in two flat files.

    python prep.py                                  demo songs, composed and synthesised here -> data/demo
    python prep.py --songs 8 --seed 1 --out data/x  a handful, to try things out
    python prep.py PATH ... --out data/mine         stems: MUSDB18-HQ, Demucs, MIR-1K, NAME_vocals + _accompaniment

OUT/train.bin, val.bin: int16 (samples, 2): column 0 vocals, column 1 accompaniment, songs end to end, 5.8 MB a minute.
OUT/meta.json: where each song lies in them, its levels and, for demo songs, beats and chords. First comes a lesson: a
song is a score, a score is notes, a voice is a few numbers; only what singing and band have in common has to be true.
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
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from fastsag import Config, UserError, active_dbfs, at_least, demand, finish, istft, resample, stft, writing

SAMPLE_RATE = Config.sample_rate                                            # Hz
FORMAT, FILES = 1, ("train.bin", "val.bin", "meta.json")                    # of a prepared set
N_VOICES, N_BANDS, HELD_OUT = 480, 240, 8                                   # every 8th voice and band: validation only
decibels = lambda db: 10 ** (np.asarray(db) / 20)                           # to a factor of amplitude

# ---------------------------------------------------------------------------------------------------------------------
# The score. Time is counted in beats, pitch in MIDI notes (69 = 440 Hz), harmony in degrees of a scale.
MODES = dict(major=((0, 2, 4, 5, 7, 9, 11), "1564 6415 1645 4156 2511 1415 1625 1345 15634145 111144115415"),
             minor=((0, 2, 3, 5, 7, 8, 10), "1637 1673 1763 6713 1473 1646 17611431"),
             harmonic=((0, 2, 3, 5, 7, 8, 11), "1415 1645 1465 4156 6415 15151415"),
             mixolydian=((0, 2, 4, 5, 7, 9, 10), "1741 1714 1547 1177"),    # scale in semitones, loops of chords
             dorian=((0, 2, 3, 5, 7, 9, 10), "1414 1434 1747 1144"))
STRONG = {3: (0,), 4: (0, 2)}                                               # the strong beats of a bar of 3 or 4
FORM = "intro verse chorus gap verse chorus bridge chorus".split()          # over and over; begun anywhere
# The sections: the singer's range and density (shares, from .. to), dB; the band's force, chance of drums and of a pad
SUNG = dict(verse=(0, 0.7, 0.25, 0.95, -2), chorus=(0.3, 1, 0.1, 0.75, 1), bridge=(0.15, 0.85, 0.1, 0.75, 0))
PLAYED = dict(intro=(0.75, 0.5, 0.5), verse=(0.8, 0.9, 0.3), chorus=(1, 1, 0.8), bridge=(0.85, 0.9, 1),
              gap=(0.9, 0.9, 0.5))

# A band's style: tempo from .. to (beats per minute), place of the off-beat eighth in % of a beat (66: shuffle), bars
# of a sign per sixteenth. Kick, snare, hat: X accent, x normal, o soft. Bass: R root, 3 third, 5 fifth, 8 octave.
# Harmony, twice: X a chord held until the next sign, s a short one, a-d single tones that ring. One is for the bridge.
Style = namedtuple("Style", "name slowest fastest swing kick snare hat bass harmony bridge")
STYLES = """
ballad   65  92 50 X......xx....... ....X.......X... x.o.x.o.x.o.x.o. R.........5..... X...X...X...X... a.b.c.d.c.b.c.b.
rock    100 160 50 X.x.....x.X..... ....X.......X... X.x.X.x.X.x.X.x. R.R.R.R.R.R.R.R. X.s.s.s.X.s.s.s. X.....X.....X...
waltz    85 160 50 X...........     ....o...o...     x...o...o...     R.......5...     ....s...s...     a.b.c.d.c.b.
disco   108 132 50 X...X...X...X... ....X.......X... x.X.x.X.x.X.x.X. R.8.R.8.R.8.R.8. ..s...s...s...s. s..s..s...s..s..
bossa    95 150 50 X.....x.X.....x. x..x..x...x..x.. o.o.o.o.o.o.o.o. R.....5.R.....5. s..s..s...s..s.. ..s...s.s...s...
reggae   65  95 50 ........X....... ........X....... x.x.x.x.x.x.x.x. R..R..5...3.R... ....s.......s... ..s...s...s...s.
hiphop   68 100 56 X..x......x..... ....X.......X... x.x.x.x.x.x.x.xx R..R......5..... X.......X.....s. a...c...b...d...
picking  70 125 50 X.......x....... ....o.......o... o.x.o.x.o.x.o.x. R.......R.....5. a.c.b.d.a.c.b.d. a.cdb.cda.cdb.cd
shuffle  80 140 66 X.....x.X.....x. ....X.......X... X.x.X.x.X.x.X.x. R...3...5...3... ..s...s...s...s. X.....s.X.....s.
polka    85 140 50 X.......X....... ..x...x...x...x. ..o...o...o...o. R.......5....... ..s...s...s...s. ....s.......s...
anthem   90 150 50 X...X...X...X... ....X.......X... o.x.o.x.o.x.o.x. R.R.R.R.R.R.R.R. X..s..s.X..s..s. s.ss.ss.s.ss.ss.
""".split()
STYLES = [Style(row[0], *map(int, row[1:4]), *row[4:]) for row in np.reshape(STYLES, (-1, 10)).tolist()]
# meter: beats per bar; seconds: beat -> seconds; bars: [(kind of section, its chord: pitch classes, root first)]
# notes: [Note] that are sung: start, length, MIDI, dB, is it the first of its phrase?
Score = namedtuple("Score", "tempo meter seconds style bars notes")
Note = namedtuple("Note", "beat beats midi loudness begins")

def write_motif(rng, beats, meter, groove, upbeat, density, syncopation, sixteenths):
    """A phrase's rhythm and contour as [(onset, duration, steps up)] in beats and notes of a scale: moving notes, one
    long note near the end, then a breath."""
    last = beats - rng.choice([meter, meter, meter, meter - 1, 2])
    at = np.arange(-upbeat, last, 0.25 if sixteenths else 0.5)
    strikes = np.array(list(groove))[(at % meter * 4).astype(int)] != "."   # singers lean on the band's chords
    off_beat = np.where(at % 0.5 == 0, 0.1 + 0.55 * density, 0.4 * density) * np.where(strikes, 1.5, 0.6)
    strong, on_beat = np.isin(at % meter, STRONG[meter]), at % 1 == 0
    chance = np.select([at < 0, strong, on_beat], [1, 0.9 - syncopation, 0.45 + 0.4 * density - syncopation], off_beat)
    onsets = np.append(at[rng.random(len(at)) < chance], last)
    room = beats - upbeat - last                                            # the next phrase may begin before its bar
    lengths = np.diff(onsets, append=last + max(room / 2, room - rng.choice([0.5, 1, 1, 1.5])))
    return list(zip(onsets, lengths, np.round(rng.standard_t(4, len(onsets))).astype(int)))

def write_melody(rng, chords, scale, low, high, meter, loudness, **rhythm):
    """A melody over bars of one chord each, out of two or three motifs. A motif that returns keeps rhythm and contour,
    but is led anew over its chords: on strong beats mostly a chord tone, between them steps of the scale."""
    ladder = [midi for midi in range(low, high + 1) if midi % 12 in scale]
    span, plan, notes = rng.choice([2, 2, 4]), rng.choice(["abac", "aaba", "abab", "aaab", "aabc"]), []
    motifs = {name: write_motif(rng, span * meter, meter, **rhythm) for name in "abc"}          # of 2 or 4 bars
    places = {name: rng.integers(len(ladder)) for name in "abc"}            # where on the ladder each begins
    for phrase in range(len(chords) // span):
        motif, place, start = motifs[plan[phrase % 4]], places[plan[phrase % 4]], phrase * span * meter
        for i, (onset, length, steps) in enumerate(motif):
            place = np.clip(place + steps, 0, len(ladder) - 1)
            beat = max(onset, min(np.ceil(onset), onset + length - 0.01))   # a syncopation stands for the next beat
            strong, chord = beat % meter in STRONG[meter], chords[int(start + beat) // meter]
            if strong and rng.random() < 0.7 or i == len(motif) - 1:        # 0.7, and chance makes it about 0.85
                place = min((abs(at - place), at) for at, midi in enumerate(ladder) if midi % 12 in chord)[1]
            notes.append(Note(start + onset, length, ladder[place], 2.0 * strong + loudness, begins=i == 0))
    return notes

def compose(rng, style, low, high, seconds):
    """A song of at least `seconds` in a random key for a singer with the range low..high (MIDI)."""
    tempo, tonic, meter = rng.uniform(style.slowest, style.fastest), int(rng.integers(12)), len(style.kick) // 4
    if rng.random() < 0.5:
        style = style._replace(harmony=style.bridge, bridge=style.harmony)
    steps, loops = MODES[rng.choice(list(MODES), p=[0.5, 0.16, 0.16, 0.1, 0.08])]
    scale = [(tonic + step) % 12 for step in steps]
    habits = dict(groove=style.harmony, upbeat=rng.choice([0, 0, 0.5, 1, 1.5]), syncopation=rng.choice([0, 0, 0.15]))
    bar = meter * 60 / tempo                                                # seconds
    start = rng.uniform(-1, 0.6) * bar                                      # bar lines have no fixed place in the file
    total, material = int(np.ceil((seconds - start) / bar)) + 1, {}         # bars; chords and melody of each section
    for kind, (floor, top, sparse, dense, loudness) in SUNG.items():
        loop = rng.choice(loops.split())
        chords = [[scale[(int(degree) - 1 + 2 * third) % 7] for third in range(rng.choice([3, 3, 3, 3, 3, 4]))]
                  for degree in loop]                                       # triads, sometimes with a seventh
        chords *= max(1, (4 if bar > 2.4 else 8) // len(loop))
        lowest, highest = (int(low + share * (high - low)) for share in (floor, top))
        material[kind] = chords, write_melody(rng, chords, scale, lowest, highest, meter, loudness, **habits,
                                              density=rng.uniform(sparse, dense), sixteenths=tempo < 84)
    form, bars, notes = FORM[rng.choice([0, 0, 0, 3, 3, 1, 5]):] + FORM * total, [], []
    while len(bars) < total:
        kind = form.pop(0)
        rest = min(rng.choice([1, 2, 4]), max(1, total // 4))               # bars of an intro or a gap: nobody sings
        chords, melody = material.get(kind) or (material["verse"][0][:rest], [])
        notes += [note._replace(beat=len(bars) * meter + note.beat) for note in melody]
        bars += [(kind, chord) for chord in chords]
    swing = lambda beat: np.floor(beat) + np.interp(np.mod(beat, 1), (0, 0.5, 1), (0, style.swing / 100, 1))
    return Score(tempo, meter, lambda beat: start + swing(beat) * 60 / tempo, style, bars, notes)

# ---------------------------------------------------------------------------------------------------------------------
# The singer: a source (glottal pulses, noise) through a filter (formants) that changes every 5 ms
HOP, WINDOW, FRAME_RATE = 128, 512, SAMPLE_RATE / 128                       # samples, samples, 187.5 frames/s
MOUTH = np.array([(280, 2250), (400, 2050), (600, 1800), (780, 1250), (560, 880), (400, 760), (310, 680), (290, 1750),
                  (500, 1450), (260, 1050), (340, 1300)])                   # two formants in Hz: nine vowels, then n, l
VOWELS, NEUTRAL, NASAL, LIQUID, THROAT = 9, 8, 9, 10, (2600, 3400, 4500)    # three more formants, always the same
CONSONANTS = [                                            # seconds closed, seconds open, voicing, noise, its Hz, mouth
    (0, 0.11, 0, 0.5, 6500, NEUTRAL), (0, 0.10, 0, 0.5, 3300, NEUTRAL), (0, 0.07, 0.1, 0.1, 1500, NEUTRAL),  # s sh h
    (0.05, 0.02, 0, 0.4, 900, NEUTRAL), (0.05, 0.03, 0, 0.6, 4500, NEUTRAL), (0.05, 0.03, 0, 0.5, 2000, NEUTRAL),  # ptk
    (0, 0.07, 0.4, 0, 900, NASAL), (0, 0.07, 0.5, 0, 900, LIQUID), (0, 0, 0, 0, 900, NEUTRAL)]    # n, l, none
TIMBRE = dict(                               # what makes a voice: drawn from .. to
    bandwidth=(0.8, 1.6), formant_loss=((0, 2, 6, 8, 12), (1, 12, 22, 26, 32)),    # of the five formants: factor, dB
    darkness=(1.5, 5), tilt=(0.2, 1.6), breath=(-44, -18),    # lost by the source: dB per kHz, power of Hz; dB
    vibrato=(-0.4, 0.8), vibrato_rate=(4.5, 6.5), drift=(0.02, 0.2),        # semitones (a third without), Hz, semitones
    glide=(0.03, 0.14), scoop=(0, 3),                                       # seconds; semitones too low to begin with
    lag=(-0.015, 0.035), articulation=(0.55, 0.95),                         # s, share of notes with their own syllable
    consonants=(-12, 2), dynamics=(0.4, 1))                                 # dB, share of the written dB that is heard

def smooth(track, width):
    """Running mean with a Hann window of about `width` values; constant ends."""
    window = np.hanning(int(width) // 2 * 2 + 3)[1:-1]                      # an odd number
    return np.convolve(np.pad(track, len(window) // 2, "edge"), window / window.sum(), "valid").astype(np.float32)

class Voice:
    """A singer, drawn from its number: from bass men (0) to children (479), eight of each height."""

    def __init__(self, number):
        rng = np.random.default_rng([1, number])
        height = (number // HELD_OUT + rng.random()) / (N_VOICES // HELD_OUT)
        self.low = int(39 + 21 * height ** 1.3)                             # lowest and highest note, MIDI
        self.high = self.low + rng.integers(12, 18)
        self.formant_scale = np.clip(0.84 + 0.38 * height + rng.normal(0, 0.04), 0.82, 1.25)
        self.scatter = min(0.004 + rng.exponential(0.02), 0.08)             # of the timing, in seconds
        vars(self).update({name: rng.uniform(*between) for name, between in TIMBRE.items()})

    def perform(self, rng, score, seconds):
        """The score as a person sings it, as curves of one value per frame: f0 (Hz), loudness, noise, the noise's
        centre (Hz) and formants (5, T) (Hz). Each note writes its stretch; smoothing makes the glides."""
        T = int(seconds * FRAME_RATE) + 4
        pitch, loud, swell, noise = np.full(T, 60.0), *np.zeros((3, T))     # MIDI, amplitude, share of the vibrato, amplitude
        noise_hz, formants = np.full(T, 2000.0), np.tile(MOUTH[NEUTRAL], (T, 1))
        beats = np.arange(-8, score.notes[-1].beat + 16, 0.25)
        times = np.sort(score.seconds(beats) + self.lag + rng.normal(0, self.scatter, len(beats)))     # loose timing
        frame = lambda beat: int(np.clip(np.interp(beat, beats, times) * FRAME_RATE, 0, T))
        before = ended = 0                                                  # frames: start and end of the last note
        for note in score.notes:
            begin = onset = frame(note.beat)
            end = frame(note.beat + note.beats * rng.choice([1, 1, 1, 1, 1, 0.6]))                 # legato, staccato
            level = decibels(note.loudness + 0.35 * (note.midi - self.low - 7) + rng.normal(0, 1.5))
            if note.begins or rng.random() < self.articulation:             # a syllable: the vowel falls on the beat,
                closed, sounds, voicing, hiss, centre, mouth = CONSONANTS[rng.integers(len(CONSONANTS))]
                stretch = min(rng.uniform(0.7, 1.4) * FRAME_RATE, (onset - before) / 2 / (closed + sounds + 0.001))
                begin, opens = (onset - int(stretch * time) for time in (closed + sounds, sounds))
                loud[begin:onset] = noise[begin:onset] = 0                  # a consonant precedes it
                loud[opens:onset], noise[opens:onset] = voicing * level, hiss * level * decibels(self.consonants)
                noise_hz[begin:onset], formants[begin:onset] = centre, MOUTH[mouth]
                formants[onset:] = MOUTH[rng.integers(VOWELS)] * rng.normal(1, 0.04, 2)
            if begin - ended > 0.5 * FRAME_RATE:                            # breathing in
                noise[begin - 65:begin - 15], noise_hz[begin - 65:begin - 15] = rng.uniform(0, 0.08), 1800
            since = np.arange(end - onset) / FRAME_RATE                     # seconds
            pitch[begin:] = note.midi + rng.normal(0, 0.1)
            pitch[onset:end] -= max(0, rng.uniform(-1, 1)) * self.scoop * np.exp(-since / 0.06)
            swell[onset:end] = np.clip(since / 0.3 - 1, 0, 1) * rng.uniform(0.3, 1.2)
            loud[onset:end] = level * np.linspace(1, rng.uniform(0.4, 1.3), end - onset)
            before, ended = onset, end
        wander = lambda width: smooth(rng.standard_normal(T), width) * np.sqrt(width)               # about -1 .. 1
        vibrato = np.sin(2 * np.pi * np.cumsum(self.vibrato_rate + 0.4 * wander(80)) / FRAME_RATE)
        pitch = smooth(pitch, self.glide * FRAME_RATE) + max(0, self.vibrato) * smooth(swell, 20) * vibrato
        pitch += rng.uniform(-0.25, 0.25) + self.drift * (wander(200) + 0.6 * wander(30)) + 0.02 * wander(4)    # jitter
        f0 = 440 * 2 ** ((pitch - 69) / 12)
        tracks = [*(smooth(track, 14) for track in formants.T), *np.outer(THROAT, np.ones(T))]
        formants = self.formant_scale * np.stack(tracks)
        formants[0] = np.maximum(formants[0], f0)                           # high singers open the mouth: F1 follows f0
        loud, noise = smooth(loud, 9) ** self.dynamics, smooth(noise, 3) ** self.dynamics
        return f0, loud * decibels(wander(6)), noise, noise_hz, formants

    def sing(self, rng, score, seconds):
        """The melody as a dry voice, (L,)."""
        f0, loud, noise, noise_hz, formants = (np.float32(curve) for curve in self.perform(rng, score, seconds))
        # Source: all overtones at once, by a geometric series, sum r^k cos(k phase) = Re 1 / (1 - r e^(i phase)) - 1
        # where r^k is a loss of so many dB per kHz at any pitch: a dull voice or a bright one, and no audible aliases.
        f0_samples = np.interp(np.arange(len(f0) * HOP) / HOP, np.arange(len(f0)), f0)
        cosine = np.cos(2 * np.pi * (np.cumsum(f0_samples / SAMPLE_RATE) % 1)).astype(np.float32)
        r = decibels(-self.darkness * f0_samples / 1000).astype(np.float32)
        pulses = (r * cosine - r * r) / (1 - 2 * r * cosine + r * r)
        hiss = 0.27 * rng.standard_normal(len(pulses), dtype=np.float32)
        # Filter: multiply each frame of a short-time Fourier transform by the resonances of its vowel.
        pulses, hiss = stft(torch.from_numpy(np.stack([pulses, hiss])), WINDOW, HOP).numpy()        # (bins, T) each
        freqs = np.float32(np.linspace(0, SAMPLE_RATE / 2, len(pulses)))[:, None]                   # Hz
        resonance = np.full(pulses.shape, 0.004, np.float32)
        widths = np.float32(self.bandwidth * np.array((90, 110, 160, 220, 300)))                    # Hz
        for centre, width, gain in zip(formants, widths, decibels(-self.formant_loss).astype(np.float32)):
            resonance += gain * width * centre / np.sqrt((centre ** 2 - freqs ** 2) ** 2 + (width * freqs) ** 2)
        resonance *= (1 + freqs / 300) ** np.float32(-self.tilt)
        # Noise: breath takes the vowel's colour, a consonant is a band of noise.
        breath = np.float32(decibels(self.breath)) * (resonance + 0.1 * freqs / 12000)
        consonants = noise / (1 + (3 * freqs / noise_hz - 3) ** 2)
        spectrum = pulses * resonance * loud + hiss * (breath * loud + consonants)
        return istft(torch.from_numpy(spectrum)[None], WINDOW, HOP)[0, :int(seconds * SAMPLE_RATE)].numpy()

def at_level(wave, dbfs):
    """The wave at this active level in dBFS, see `active_dbfs`; silence stays silence."""
    return wave * np.float32(decibels(dbfs - max(active_dbfs(wave, SAMPLE_RATE), -200)))

def filter_and_room(rng, wave, wet, echo, tilt, low_cut=30, high_cut=11500):
    """Everything linear between a sound and the tape, in one FFT: a few random resonances and notches, and
    wet: share of reverberation; echo: seconds until it has fallen by 60 dB; tilt: dB per octave; cuts: Hz."""
    tail = rng.standard_normal(int(echo * SAMPLE_RATE)) * np.logspace(0, -3, int(echo * SAMPLE_RATE))
    size = -(-(len(wave) + len(tail)) // 32768) * 32768                     # a length that the FFT likes
    freqs = np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32) + 1
    octaves = np.log2(freqs / 1000)
    gain = tilt * octaves
    for _ in range(3):
        gain += rng.uniform(-6, 6) * np.exp(-((octaves - rng.uniform(-2.5, 3)) / rng.uniform(0.3, 1)) ** 2)
    gain = decibels(gain) / np.sqrt((1 + (low_cut / freqs) ** 4) * (1 + (freqs / high_cut) ** 16))
    room = np.fft.rfft(tail / np.sqrt(np.sum(tail ** 2)), size) / (1 + freqs / 4000)    # walls swallow the highs
    return np.fft.irfft(np.fft.rfft(wave, size) * gain * (1 - wet + wet * room), size)[:len(wave)].astype(np.float32)

def record_vocals(rng, wave):
    """What lies between a singer and a karaoke recording: room, microphone, noise."""
    high_cut = rng.choice([7600, 11500])                                    # many karaoke recordings end at 8 kHz
    wave = filter_and_room(rng, wave, max(0, rng.uniform(-0.1, 0.35)), rng.uniform(0.2, 1.8), rng.uniform(-3, 2),
                           low_cut=rng.uniform(30, 120), high_cut=high_cut)
    hiss = filter_and_room(rng, rng.standard_normal(len(wave)), 0, 0.2, rng.uniform(-3, 0), low_cut=10, high_cut=12000)
    return at_level(wave, -20) + at_level(hiss, rng.uniform(-85, -48))

# ---------------------------------------------------------------------------------------------------------------------
# The band: every instrument is a list of overtones and how they fade, every drum a falling tone and noise
# Overtone k has the amplitude k ** -slope, times `even` if k is, up to number `last`. Attack: s; decay of the tone,
# dark once more for each overtone: 1/s; detune (of two strings), vibrato: cents; puff: noise of a hammer or breath.
INSTRUMENTS = dict(                                                         # pairs: drawn from .. to
    #        slope       even    last attack       decay       dark        detune   vibrato  puff
    plucked=((0.6, 1.2), 1,       24, 0.003,       (0.8, 2.5), (0.2, 1.2), 0,       0,       (0, 0.3)),
    piano=((1.1, 1.7),   1,       24, 0.005,       (0.5, 1.5), (0.1, 0.5), 1.1,     0,       (0, 0.2)),
    epiano=((0.8, 1.6),  1,       4,  0.005,       (0.6, 1.5), (0.5, 2),   0,       (0, 6),  0),
    organ=((0.3, 0.7),   (0, 1),  8,  0.010,       0,          0,          0,       (0, 8),  0),
    strings=((1, 1.6),   1,       24, (0.06, 0.3), 0,          0,          (3, 10), (0, 10), 0),
    blown=((1.5, 2.5),   (0, 1),  24, 0.060,       0,          0,          0,       (5, 20), (0.05, 0.2)),
    synth=((1.0, 1.3),   (0, 1),  24, 0.008,       (0, 2),     (0, 0.5),   (2, 9),  0,       0),
    bass=((0.9, 2),      1,       24, 0.005,       (0.3, 2),   (0.2, 1.5), 0,       0,       0.05))
PLAYERS = dict(comping="plucked plucked plucked piano piano epiano organ synth", bass="bass",
               pad="strings strings strings blown organ synth")
DRUMS = dict(                                                               # give or take a third, each band its own
    # its body: Hz at the end, at the start, seconds; noise, seconds, differences taken (which makes it bright); peak
    kick=(50,    190,  0.30, 0.05, 0.02, 0, 1.00), tom=(100,    180,  0.35, 0.05, 0.05, 0, 0.70),
    snare=(190,  300,  0.15, 0.50, 0.25, 0, 0.80), clap=(300,   900,  0.02, 1.00, 0.20, 1, 0.80),
    hat=(6000,   6000, 0.01, 1.00, 0.08, 2, 0.35), open=(6000,  6000, 0.01, 1.00, 0.40, 2, 0.30),
    ride=(5000,  5000, 0.50, 0.20, 0.60, 2, 0.30), crash=(4000, 4000, 0.05, 1.00, 1.40, 2, 0.50))
RELEASE = 0.1                                                               # seconds in which a note ends
ACCENT, HELD = dict(x=0.75, o=0.4), dict(s=0.3, a=1.5, b=1.5, c=1.5, d=1.5)    # of a pattern's signs: gain; beats

def tone(rng, midi, seconds, overtones, attack, decay, dark, detune, vibrato, puff):
    """One note, (L,). With z = e^(i phase - dark t), overtone k is z^k: a polynomial instead of a sine each."""
    t, freq = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE, 440 * 2 ** ((midi - 69) / 12)
    overtones, wave = overtones[:int(11000 / freq)], puff * np.exp(-60 * t) * rng.standard_normal(len(t))
    for cents in {detune, -detune}:                                         # two, or one
        cycles = freq * 2 ** (cents / 1200) * t + rng.random()
        cycles += freq * vibrato / 1731 / 33 * np.sin(33 * t)               # 33 rad/s = 5.3 Hz
        z = np.exp((2j * np.pi * (cycles % 1) - dark * t).astype(np.complex64))
        fade = np.exp(-decay * (freq / 260) ** 0.4 * t) / np.sqrt(np.sum(np.abs(overtones) ** 2))
        wave += (np.polyval(overtones[::-1], z) * z).imag * fade
    return (wave * (freq / 260) ** -0.2 * np.minimum(t / attack, 1)).astype(np.float32)

def drum(rng, low, high, ring, noise, rustle, bright, peak):
    """One stroke, (L,)."""
    t = np.arange(int(1.6 * SAMPLE_RATE)) / SAMPLE_RATE
    low, high, ring, noise, rustle = np.array([low, high, ring, noise, rustle]) * rng.uniform(0.65, 1.35, 5)
    body = np.sin(2 * np.pi * (low * t + (high - low) / 40 * (1 - np.exp(-40 * t)))) * np.exp(-6.9 * t / ring)
    wave = body + noise * np.diff(rng.standard_normal(len(t) + bright), bright) * np.exp(-6.9 * t / rustle)
    return (peak * wave / np.abs(wave).max()).astype(np.float32)

class Band:
    """Three players and a drum kit, drawn from the band's number."""

    def __init__(self, number):
        rng = np.random.default_rng([2, number])
        k, self.instruments = np.arange(1, 25), {}
        for player, families in PLAYERS.items():
            ranges = INSTRUMENTS[rng.choice(families.split())]
            slope, even, last, *rest = (rng.uniform(*np.broadcast_to(between, 2)) for between in ranges)
            overtones = k ** -slope * np.where(k % 2, 1, even) * (k <= last) * np.append(1, rng.uniform(0.2, 1.4, 23))
            self.instruments[player] = (overtones * np.exp(2j * np.pi * rng.random(24))).astype(np.complex64), *rest
        self.drums = {name: drum(rng, *facts) for name, facts in DRUMS.items()}
        self.backbeat = rng.choice(["snare", "snare", "clap"])
        self.register = dict(comping=rng.integers(49, 60), pad=rng.integers(54, 65), bass=29)       # lowest notes, MIDI
        self.room = dict(wet=rng.uniform(0, 0.2), echo=rng.uniform(0.3, 1.5), tilt=rng.uniform(-1.5, 1))
        self.balance = dict(comping=0, pad=rng.uniform(-6, 1), bass=rng.uniform(-9, -4), drums=rng.uniform(-7, 0))
        self.tightness = rng.uniform(0.001, 0.008)                          # seconds of scatter

    def play(self, rng, score):
        """What the players do, event by event: (player, MIDI note or drum, beat, beats, gain). They know form and
        chords, but not one note that is sung. All they do is patterns; a fill is made up on the spot."""
        style, size = score.style, len(score.style.kick)                    # sixteenths of a bar
        plans = {kind: (force, rng.random() < drums, rng.random() < pad, rng.choice(["hat", "hat", "open", "ride"]))
                 for kind, (force, drums, pad) in PLAYED.items()}
        for number, (kind, chord) in enumerate(score.bars):
            before, after = (score.bars[other % len(score.bars)][0] for other in (number - 1, number + 1))
            force, drums_play, pad_plays, cymbal = plans[kind]
            bass, tones, pad = ([self.register[who] + (tone - self.register[who]) % 12 for tone in chord]
                                for who in ("bass", "comping", "pad"))      # all in an octave: voices move little
            kit = [("kick", style.kick), (self.backbeat, style.snare), (cymbal, style.hat)]
            if kind != before:                                              # a section begins
                kit.append(("crash", "X"))
            if kind != after:                                               # or ends: a fill in place of the last beat
                fill = [(name, "." * (size - 4) + "".join(rng.choice([*"xo.."], 4))) for name in ("snare", "tom")]
                kit = [(name, pattern[:size - 4]) for name, pattern in kit] + fill
            single = dict(zip("abcd", sorted(tones) + [min(tones) + 12]))
            parts = [("comping", style.bridge if kind == "bridge" else style.harmony, dict(X=tones, s=tones) | single),
                     ("bass", style.bass, dict(zip("R358", bass[:3] + [bass[0] + 12]))),
                     ("pad", "X" if pad_plays else "", dict(X=pad)),
                     *(("drums", pattern, dict.fromkeys("Xxo", name)) for name, pattern in kit if drums_play)]
            for player, pattern, sounds in parts:
                places = [i for i, sign in enumerate(pattern) if sign != "."]
                for i, following in zip(places, [*places[1:], size]):
                    gain = force * ACCENT.get(pattern[i], 1) * rng.uniform(0.8, 1)
                    for sound in np.atleast_1d(sounds[pattern[i]]).tolist():
                        yield player, sound, (number * size + i) / 4, HELD.get(pattern[i], (following - i) / 4), gain

    def record(self, rng, score, seconds):
        """The accompaniment, (L,): every event placed on its player's track in the band's own time, then mixed."""
        length, sounds = int(seconds * SAMPLE_RATE), {("drums", name): wave for name, wave in self.drums.items()}
        tracks = {player: np.zeros(length, np.float32) for player in self.balance}
        fade = np.linspace(1, 0, int(RELEASE * SAMPLE_RATE), dtype=np.float32)
        for player, sound, beat, beats, gain in self.play(rng, score):
            if (player, sound) not in sounds:                               # every note is computed once, then copied
                sounds[player, sound] = tone(rng, sound, 240 / score.tempo + RELEASE, *self.instruments[player])
            held = int((score.seconds(beat + beats) - score.seconds(beat)) * SAMPLE_RATE)
            wave = np.float32(gain) * sounds[player, sound][:held + len(fade)]
            wave[held:] *= fade[:len(wave[held:])]
            at = int((score.seconds(beat) + abs(rng.normal(0, self.tightness))) * SAMPLE_RATE)
            wave = wave[max(-at, 0):max(length - at, 0)]                    # what began before the file is cut
            tracks[player][max(at, 0):max(at, 0) + len(wave)] += wave
        mix = sum(at_level(wave, self.balance[player] - 14) for player, wave in tracks.items())
        return np.tanh(filter_and_room(rng, mix, **self.room))              # loud peaks give way

def make_song(job):
    """(seed, number of the song, seconds, split) -> vocals (L,), accompaniment (L,), facts: the same wherever made.
    Score, singer and band have random streams of their own, so that nothing but the score is common to both columns."""
    seed, index, seconds, split = job
    torch.set_num_threads(1)                                                # the songs are what runs in parallel
    casting, composing, singing, playing = (np.random.default_rng([seed, index, stream]) for stream in range(4))
    voice, band = (int(casting.choice(np.flatnonzero((np.arange(count) % HELD_OUT == 0) == (split == "val"))))
                   for count in (N_VOICES, N_BANDS))
    singer, style = Voice(voice), STYLES[index % len(STYLES)]
    score = compose(composing, style, singer.low, singer.high, seconds)
    vocals = record_vocals(singing, singer.sing(singing, score, seconds))
    accomp = at_level(Band(band).record(playing, score, seconds), -20 + np.clip(casting.normal(0, 2), -4, 4))
    gain = 0.9 / max(np.abs(vocals).max(), np.abs(accomp).max())
    clock = lambda beats: score.seconds(beats).clip(0, seconds).round(4).tolist()
    lines = clock(np.arange(len(score.bars) + 1) * score.meter)             # between bars
    chords = [(a, b, chord) for a, b, (_, chord) in zip(lines, lines[1:], score.bars) if a < b]
    beats = [beat for beat in clock(np.arange(-4, len(score.bars) * score.meter)) if 0 < beat < seconds]
    return vocals * gain, accomp * gain, dict(name=f"demo-{index:05d}", split=split, tempo=round(float(score.tempo), 3),
                                              beats=beats, chords=chords, style=style.name, voice=voice, band=band)

def demo_songs(seed, songs, val_songs, seconds, workers):
    """So many songs for `write_set`, those for validation first, made by so many processes."""
    val_songs = min(val_songs, max(1, songs // 4))
    jobs = [(seed, index, seconds, "val" if index < val_songs else "train") for index in range(songs)]
    with Pool(min(workers, songs), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:         # main() minds Ctrl-C
        yield from tqdm(pool.imap(make_song, jobs), total=songs, unit="song", disable=None)

# ---------------------------------------------------------------------------------------------------------------------
# Files: your own stems in, prepared sets out and in
def read_audio(path, mono=False, longest=4):
    """Any file that soundfile reads -> ((channels, L) float32, sample rate in Hz); mono: the mean of its channels. Goes
    block by block: a header may claim what is not there. Raises UserError, also beyond `longest` hours."""
    blocks, size = [], 1 << 20
    try:
        with open(path, "rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            rate = sound.samplerate
            demand((1000 <= rate <= 768000, f"{path} claims a rate of {rate} Hz; between 1 and 768 kHz is audio"))
            while len(block := sound.read(size, dtype="float32", always_2d=True)):
                blocks.append(block.mean(1, keepdims=True) if mono else block)
                demand((len(blocks) * size < longest * 3600 * rate, f"{path} is longer than {longest} hours; cut it"))
    except (OSError, soundfile.LibsndfileError) as e:
        reason = e.strerror if isinstance(e, OSError) else e.error_string.rstrip(".")
        raise UserError(f"{path} cannot be read as audio ({reason}); give a whole WAV, FLAC, OGG, MP3 or AIFF file") from None
    demand((blocks, f"{path} holds no samples; give a file with sound in it"))
    wav = np.concatenate(blocks).T
    bad = wav.size - np.count_nonzero(np.abs(wav) < 1e10)                  # NaN is not below anything
    demand((not bad, f"{path} holds {bad} samples that are NaN, infinite or beyond 1e10; export it again"))
    return wav, rate

def audio_bytes(wav, sample_rate, comment, kind="WAV"):
    """(L,) or (L, channels) from -1 to 1 -> the bytes of a 16-bit file, the same for the same arguments."""
    buffer, wav = io.BytesIO(), wav.reshape(len(wav), -1)
    with soundfile.SoundFile(buffer, "w", sample_rate, wav.shape[1], "PCM_16", format=kind) as file:
        file.comment = comment
        file.write(wav)
    return buffer.getvalue()

AUDIO = {f".{kind.lower()}" for kind in soundfile.available_formats()} - {".raw"} | {".aif", ".oga", ".opus"}
BANDS = ("no_vocals", "accompaniment", "instrumental"), ("drums", "bass", "other", "guitar", "piano"), ("mixture",)
# A group (a singer, where known) goes to training or to validation, never to both. band: the files whose sum is the
# accompaniment, or a mixture to take the vocals from, or None. clips: MIR-1K's, band left, vocals right, which follow
# each other without a gap; a beat shows over a minute, not over the 8 s that such a clip lasts.
Stems = namedtuple("Stems", "group name vocals band is_mixture clips", defaults=[()])

def find_stems(paths):
    """Everything under `paths` that looks like a song: ([Stems], [why something was skipped])."""
    folders, songs, skipped = {}, [], []
    for root in map(Path, paths):
        demand((root.exists(), f"{root} not found; give folders of stems, or no path at all for the demo songs"))
        for file in [root] if root.is_file() else sorted(root.rglob("*")):
            if file.suffix.lower() in AUDIO and file.is_file() and not file.name.startswith("."):
                folders.setdefault(file.parent.resolve(), {}).setdefault(file.stem.lower(), file)
    for folder, files in folders.items():
        found, title = [], "/".join(folder.parts[-2:])
        for stem, file in files.items():
            if match := re.fullmatch(r"(?!no_vocals)(|.+_)(?<!_no_)vocals", stem):      # [NAME_]vocals, not [NAME_]no_vocals
                prefix = match[1]
                whole, parts, mixture = ([files[prefix + x] for x in names if prefix + x in files] for names in BANDS)
                complete = all(prefix + x in files for x in ("drums", "bass", "other"))
                band = whole[:1] or (parts if complete else mixture or parts)
                group, name = (f"{title}/{prefix[:-1]}", file.stem[:len(prefix) - 1]) if prefix else (title, title)
                found.append(Stems(group, name, file, band, band == mixture))
        clips = sorted((match[1], int(match[2]), file) for stem, file in files.items()
                       if (match := re.fullmatch(r"([a-z][a-z0-9]*_\d+)_(\d+)", stem)))         # MIR-1K: SINGER_SONG_CLIP
        runs = {}                                                          # without a gap in their numbers
        for i, (song, number, file) in enumerate(clips):
            runs.setdefault((song, number - i), []).append(file)
        found = found or [Stems(song.split("_")[0], run[0].stem, run[0], None, False, run) for (song, _), run in runs.items()]
        if not found:
            skipped.append(f"{folder}: its {len(files)} audio files are in no known layout")
        skipped += [f"{song.vocals}: no accompaniment beside it" for song in found if song.band == []]
        songs += [song for song in found if song.band != []]
    return sorted(songs), skipped

def load_stems(song, quiet=-50, longest=4, shortest=5):
    """The useful stretches of a song -> [float32 (vocals and accompaniment, L) at 24 kHz], one gain for all: `shortest`
    s or more, without pauses of over `longest` s below `quiet` dBFS (100 ms RMS) in either. Or UserError."""
    paths = song.clips or [song.vocals, *song.band]
    files = [read_audio(path, mono=not song.clips) for path in paths]
    if song.clips:                                                         # one recording again
        for path, (wav, rate) in zip(paths, files):
            demand((len(wav) == 2 and rate == files[0][1],
                    f"{path} is named like a MIR-1K clip, but is not stereo, or not of {paths[0].name}'s rate"))
        files = [(np.concatenate([wav[i] for wav, _ in files])[None], rate) for i in (1, 0)]
    waves = [resample(torch.from_numpy(wav[0]), rate, SAMPLE_RATE).numpy() for wav, rate in files]
    least, *_, most = sorted(len(wave) / SAMPLE_RATE for wave in waves)
    demand((most - least <= 1, f"{song.vocals}: the stems of this song last {least:.1f} to {most:.1f} s"))
    vocals, *band = [wave[:min(map(len, waves))] for wave in waves]
    pair = np.stack([vocals, sum(band) - song.is_mixture * vocals])
    pair *= 0.9 / max(np.abs(pair).max(), 1e-6)
    block = SAMPLE_RATE // 10
    power = (np.pad(pair, ((0, 0), (0, -len(vocals) % block))).reshape(2, -1, block) ** 2).mean(2)
    runs = lambda mask: np.flatnonzero(np.diff(np.pad(mask.astype(int), 1))).reshape(-1, 2)         # [(begin, end)] of true
    keep = np.ones(power.shape[1], bool)                                   # shortest > longest: none is a mere pause
    for begin, end in [run for silent in power < 10 ** (quiet / 10) for run in runs(silent)]:
        keep[begin:end] &= end - begin <= longest * 10
    stretches = [part for begin, end in runs(keep) * block
                 if (part := pair[:, begin:end]).shape[1] >= shortest * SAMPLE_RATE]
    demand((stretches, f"{song.vocals}: no {shortest} s in which both singing and band are above {quiet} dBFS"))
    return stretches

def stem_songs(songs, skipped, val, seed):
    """For `write_set`, group by group in a shuffled order: the first usable one is for training, the next for validation
    until it has its share, the rest for training. Of a single singer, each song is a group. All of `skipped` is printed."""
    alone = len({song.group for song in songs}) == 1
    group = lambda song: song.group if not alone else song.name.rpartition("_")[0] if song.clips else song.name
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
    demand((usable, "no usable song found; known layouts: vocals.* beside drums, bass, other.*, no_vocals.* or "
                    "mixture.*; NAME_vocals.* beside NAME_accompaniment.*; MIR-1K"),
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

def write_set(out, seconds, songs):
    """songs: (vocals (L,), accompaniment (L,), dict of at least name and split), of `seconds` in all (0: unknown). Writes to
    `out`.partial and moves it to `out` when all is well. Raises UserError if `out` is a stranger's or its disk full."""
    strange = lambda folder: set(os.listdir(folder)) - set(FILES) if folder.is_dir() else folder.exists()
    out, partial = Path(out), Path(f"{Path(out)}.partial")
    here = next(folder for folder in out.absolute().parents if folder.exists())
    need, free = seconds * SAMPLE_RATE * 4 / 1e6, shutil.disk_usage(here).free / 1e6
    demand(((out / "meta.json").exists() or not strange(out),
            f"--out {out} was not made by prep.py (no meta.json in it); give another name"),
           (not strange(partial), f"{partial} is in the way; remove it"),
           (need <= free, f"{need:.0f} MB are needed in {here}, {free:.0f} MB are free"))
    shutil.rmtree(partial, ignore_errors=True)
    facts, samples = [], dict(train=0, val=0)
    try:
        with writing(partial):
            partial.mkdir(parents=True)
        for vocals, accomp, info in songs:                                  # whose own errors are not the disk's
            pair = np.round(np.stack([vocals, accomp], axis=1) * 32767).astype(np.int16)            # (L, 2)
            levels = [round(active_dbfs(column / np.float32(32768), SAMPLE_RATE), 2) for column in pair.T]
            with writing(partial), open(partial / f"{info['split']}.bin", "ab") as file:
                file.write(pair.tobytes())
            place = dict(start=samples[info["split"]], length=len(pair))
            facts.append(dict(vocals_dbfs=levels[0], accomp_dbfs=levels[1]) | info | place)
            samples[info["split"]] += len(pair)
        meta = dict(format=FORMAT, sample_rate=SAMPLE_RATE, songs=facts) | {f"{s}_samples": n for s, n in samples.items()}
        with writing(partial):
            (partial / "meta.json").write_text(json.dumps(meta))
            out.mkdir(exist_ok=True)
            (out / "meta.json").unlink(missing_ok=True)                     # goes first and comes last: nobody ever
            for name in FILES:                                              # takes half a set for a whole one
                os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for split, count in samples.items():
        number, minutes = sum(song["split"] == split for song in facts), count / SAMPLE_RATE / 60
        print(f"{split:5} {number:5} songs {minutes:7.1f} min {count * 4 / 1e6:8.1f} MB  {out / split}.bin")

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
    def work():
        at_least(args, songs=2, seconds=8, val_songs=1, workers=1, seed=0)  # of two songs one is for validation
        demand((0 < args.val < 1, f"--val {args.val:g}: must lie between 0 and 1"))
        if args.paths:
            write_set(args.out or "data/mine", 0, stem_songs(*find_stems(args.paths), args.val, args.seed))
        else:
            songs = demo_songs(args.seed, args.songs, args.val_songs, args.seconds, args.workers)
            write_set(args.out or "data/demo", args.songs * args.seconds, songs)
    return finish("prep.py", work, lambda: "stopped; nothing was written")

if __name__ == "__main__":
    sys.exit(main())

"""The band: from a score to an accompaniment, in two steps.

    Score -> Events    play: bar by bar, each player's pattern over the bar's chords
          -> wave      record_band: every event's sound on its player's track, then the mix

The players read form and chords, not the melody. An instrument is a list of overtones and how they
fade; a drum is a falling tone and noise.
"""
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .sound import SAMPLE_RATE, Room, at_level, record

NUM_BANDS = 240
NUM_OVERTONES = 24
HIGHEST_OVERTONE = 11000  # Hz
RELEASE = 0.1  # seconds in which a note ends
BASS_REGISTER = 29  # MIDI: lowest note of the bass, an F


# --------------------------------------------------------------------------------------------------
# Instruments and drums


Range = tuple | float  # (from, to), or a single number


@dataclass(frozen=True)
class Instrument:
    """The ranges from which an instrument's Timbre is drawn."""

    slope: Range  # overtone k has the amplitude k ** -slope
    attack: Range  # seconds until a note is loud
    even: Range = 1  # factor on even overtones; without them an instrument sounds hollow
    last: Range = NUM_OVERTONES  # number of the last overtone
    decay: Range = 0  # 1/s: how fast a note dies away
    dark: Range = 0  # 1/s: by so much faster with each overtone
    detune: Range = 0  # cents: two strings, one tuned up and one down
    vibrato: Range = 0  # cents
    puff: Range = 0  # amplitude of a noise at the beginning: a hammer, or breath


INSTRUMENTS = {
    "plucked": Instrument(
        slope=(0.6, 1.2),
        attack=0.003,
        decay=(0.8, 2.5),
        dark=(0.2, 1.2),
        puff=(0, 0.3),
    ),
    "piano": Instrument(
        slope=(1.1, 1.7),
        attack=0.005,
        decay=(0.5, 1.5),
        dark=(0.1, 0.5),
        detune=1.1,
        puff=(0, 0.2),
    ),
    "electric piano": Instrument(
        slope=(0.8, 1.6),
        attack=0.005,
        last=4,
        decay=(0.6, 1.5),
        dark=(0.5, 2),
        vibrato=(0, 6),
    ),
    "organ": Instrument(
        slope=(0.3, 0.7),
        attack=0.01,
        even=(0, 1),
        last=8,
        vibrato=(0, 8),
    ),
    "strings": Instrument(
        slope=(1, 1.6),
        attack=(0.06, 0.3),
        detune=(3, 10),
        vibrato=(0, 10),
    ),
    "blown": Instrument(
        slope=(1.5, 2.5),
        attack=0.06,
        even=(0, 1),
        vibrato=(5, 20),
        puff=(0.05, 0.2),
    ),
    "synth": Instrument(
        slope=(1, 1.3),
        attack=0.008,
        even=(0, 1),
        decay=(0, 2),
        dark=(0, 0.5),
        detune=(2, 9),
    ),
    "bass": Instrument(
        slope=(0.9, 2),
        attack=0.005,
        decay=(0.3, 2),
        dark=(0.2, 1.5),
        puff=0.05,
    ),
}

# What each player may play; what is named more often is more likely.
CHOICES = {
    "chords": [
        "plucked",
        "plucked",
        "plucked",
        "piano",
        "piano",
        "electric piano",
        "organ",
        "synth",
    ],
    "bass": ["bass"],
    "pad": ["strings", "strings", "strings", "blown", "organ", "synth"],
}


@dataclass(frozen=True)
class Timbre:
    """The sound of one instrument in one band."""

    overtones: np.ndarray  # (NUM_OVERTONES,) complex amplitudes
    attack: float  # these as in Instrument
    decay: float
    dark: float
    detune: float
    vibrato: float
    puff: float


def uniform(rng, between):
    """A number from the range (from, to). A single number is a range of no width."""
    start, end = np.broadcast_to(between, 2)
    return rng.uniform(start, end)


def draw_timbre(rng, instrument):
    """Timbre of an Instrument: each value from its range, and each overtone with a random phase."""
    slope = uniform(rng, instrument.slope)
    even = uniform(rng, instrument.even)
    last = uniform(rng, instrument.last)
    attack = uniform(rng, instrument.attack)
    decay = uniform(rng, instrument.decay)
    dark = uniform(rng, instrument.dark)
    detune = uniform(rng, instrument.detune)
    vibrato = uniform(rng, instrument.vibrato)
    puff = uniform(rng, instrument.puff)

    k = np.arange(1, NUM_OVERTONES + 1)
    amplitudes = k**-slope * np.where(k % 2, 1, even) * (k <= last)
    amplitudes[1:] *= rng.uniform(0.2, 1.4, NUM_OVERTONES - 1)
    phases = np.exp(2j * np.pi * rng.random(NUM_OVERTONES))

    overtones = (amplitudes * phases).astype(np.complex64)
    return Timbre(overtones, attack, decay, dark, detune, vibrato, puff)


def tone(rng, midi, seconds, timbre):
    """One note, (L,) float32.

    With z = e^(i phase - dark t), overtone k is z^k times its amplitude. The sum over k is a
    polynomial in z, which is quicker than a sine for each.
    """
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    freq = 440 * 2 ** ((midi - 69) / 12)
    overtones = timbre.overtones[: int(HIGHEST_OVERTONE / freq)]
    wave = timbre.puff * np.exp(-60 * t) * rng.standard_normal(len(t))

    # High notes die away faster. All strings are equally loud.
    fade = np.exp(-timbre.decay * (freq / 260) ** 0.4 * t)
    fade = fade / np.sqrt(np.sum(np.abs(overtones) ** 2))

    # Vibrato at 33 rad/s, 5.3 Hz. A cent is 1/1731 of the frequency (1731 = 1200 / ln 2). The phase
    # is the integral of the frequency: hence the second division.
    bend = freq * timbre.vibrato / 1731 / 33 * np.sin(33 * t)
    for cents in {timbre.detune, -timbre.detune}:  # two strings; a single one if not detuned
        cycles = freq * 2 ** (cents / 1200) * t + rng.random() + bend
        z = np.exp((2j * np.pi * (cycles % 1) - timbre.dark * t).astype(np.complex64))
        wave += (np.polyval(overtones[::-1], z) * z).imag * fade

    attack = np.minimum(t / timbre.attack, 1)
    louder_bass = (freq / 260) ** -0.2
    return (wave * louder_bass * attack).astype(np.float32)


@dataclass(frozen=True)
class Drum:
    """A tone that falls from high to low, and noise."""

    low: float  # Hz
    high: float  # Hz
    ring: float  # seconds until the tone has fallen by 60 dB
    noise: float  # amplitude
    noise_time: float  # seconds until the noise has fallen by 60 dB
    peak: float  # amplitude of the whole
    bright: int = 0  # how often differences of the noise are taken: each adds 6 dB per octave


DRUMS = {
    "kick": Drum(
        low=50,
        high=190,
        ring=0.3,
        noise=0.05,
        noise_time=0.02,
        peak=1,
    ),
    "tom": Drum(
        low=100,
        high=180,
        ring=0.35,
        noise=0.05,
        noise_time=0.05,
        peak=0.7,
    ),
    "snare": Drum(
        low=190,
        high=300,
        ring=0.15,
        noise=0.5,
        noise_time=0.25,
        peak=0.8,
    ),
    "clap": Drum(
        low=300,
        high=900,
        ring=0.02,
        noise=1,
        noise_time=0.2,
        bright=1,
        peak=0.8,
    ),
    "hat": Drum(
        low=6000,
        high=6000,
        ring=0.01,
        noise=1,
        noise_time=0.08,
        bright=2,
        peak=0.35,
    ),
    "open hat": Drum(
        low=6000,
        high=6000,
        ring=0.01,
        noise=1,
        noise_time=0.4,
        bright=2,
        peak=0.3,
    ),
    "ride": Drum(
        low=5000,
        high=5000,
        ring=0.5,
        noise=0.2,
        noise_time=0.6,
        bright=2,
        peak=0.3,
    ),
    "crash": Drum(
        low=4000,
        high=4000,
        ring=0.05,
        noise=1,
        noise_time=1.4,
        bright=2,
        peak=0.5,
    ),
}


def stroke(rng, drum):
    """One stroke, (L,) float32. Values vary by a third, so that each band has drums of its own."""
    t = np.arange(int(1.6 * SAMPLE_RATE)) / SAMPLE_RATE
    vary = rng.uniform(0.65, 1.35, 5)
    low = drum.low * vary[0]
    high = drum.high * vary[1]
    ring = drum.ring * vary[2]
    noise = drum.noise * vary[3]
    noise_time = drum.noise_time * vary[4]

    # The frequency falls from high to low as e^(-40 t); e^-6.9 is -60 dB.
    cycles = low * t + (high - low) / 40 * (1 - np.exp(-40 * t))
    body = np.sin(2 * np.pi * cycles) * np.exp(-6.9 * t / ring)
    hiss = np.diff(rng.standard_normal(len(t) + drum.bright), drum.bright)
    wave = body + noise * hiss * np.exp(-6.9 * t / noise_time)
    return (drum.peak * wave / np.abs(wave).max()).astype(np.float32)


# --------------------------------------------------------------------------------------------------
# The band, in a few numbers


@dataclass(frozen=True)
class Band:
    """Three players and a drum kit."""

    timbres: dict  # player: Timbre
    drums: dict  # name: wave of a stroke
    backbeat: str  # the drum that plays the snare's pattern
    register: dict  # player: lowest note, MIDI
    room: Room
    balance: dict  # player: dB
    scatter: float  # seconds: how loose the timing is


def draw_band(number):
    """Band of a number from 0 to NUM_BANDS - 1. The same number, the same Band."""
    rng = np.random.default_rng([2, number])
    timbres = {}
    for player, names in CHOICES.items():
        timbres[player] = draw_timbre(rng, INSTRUMENTS[rng.choice(names)])

    return Band(
        timbres=timbres,
        drums={name: stroke(rng, drum) for name, drum in DRUMS.items()},
        backbeat=rng.choice(["snare", "snare", "clap"]),
        register={
            "chords": rng.integers(49, 60),
            "pad": rng.integers(54, 65),
            "bass": BASS_REGISTER,
        },
        room=Room(
            wet=rng.uniform(0, 0.2),
            echo=rng.uniform(0.3, 1.5),
            tilt=rng.uniform(-1.5, 1),
        ),
        balance={
            "chords": 0,
            "pad": rng.uniform(-6, 1),
            "bass": rng.uniform(-9, -4),
            "drums": rng.uniform(-7, 0),
        },
        scatter=rng.uniform(0.001, 0.008),
    )


# --------------------------------------------------------------------------------------------------
# Playing: patterns become events.


@dataclass(frozen=True)
class PlayedSection:
    """How a section is played."""

    force: float  # gain of all notes
    drums: float  # chance that there are drums
    pad: float  # chance that there is a pad


PLAYED = {
    "intro": PlayedSection(force=0.75, drums=0.5, pad=0.5),
    "verse": PlayedSection(force=0.8, drums=0.9, pad=0.3),
    "chorus": PlayedSection(force=1, drums=1, pad=0.8),
    "bridge": PlayedSection(force=0.85, drums=0.9, pad=1),
    "gap": PlayedSection(force=0.9, drums=0.9, pad=0.5),
}

ACCENTS = {"x": 0.75, "o": 0.4}  # gain of a pattern's signs; of all others 1
HELD_BEATS = {"s": 0.3, "a": 1.5, "b": 1.5, "c": 1.5, "d": 1.5}  # others: until the next sign


@dataclass(frozen=True)
class Plan:
    """How all sections of one kind are played, in one song."""

    force: float
    drums: bool
    pad: bool
    cymbal: str


@dataclass(frozen=True)
class Part:
    """What a player plays in one bar, or in a Span of it."""

    player: str
    beat: int  # where it begins, counted from the bar line
    beats: int  # length
    pattern: str  # one sign per sixteenth, see Style
    sounds: dict  # sign: MIDI notes, or names of drums


@dataclass(frozen=True)
class Event:
    """One note or stroke."""

    player: str
    sound: object  # MIDI note, or name of a drum
    beat: float
    beats: float  # length
    gain: float


def draw_plans(rng):
    """A Plan for each kind of section."""
    plans = {}
    for section, played in PLAYED.items():
        plans[section] = Plan(
            force=played.force,
            drums=rng.random() < played.drums,
            pad=rng.random() < played.pad,
            cymbal=rng.choice(["hat", "hat", "open hat", "ride"]),
        )
    return plans


def voicing(chord, lowest):
    """Pitch classes -> MIDI notes in the octave above `lowest`: close to those of other chords."""
    return [int(lowest + (pitch_class - lowest) % 12) for pitch_class in chord]


def signs_of(pattern, span):
    """The signs of a bar's pattern that fall into the Span."""
    begin = 4 * span.beat
    return pattern[begin : begin + 4 * span.beats]


def chord_part(band, style, section, span):
    """The harmony: chords, or their tones one by one."""
    notes = voicing(span.chord, band.register["chords"])
    sounds = {"X": notes, "s": notes}

    # Tones one by one, from low to high. A triad lacks a fourth: its lowest, an octave up.
    tones = sorted(notes) + [min(notes) + 12]
    for sign, note in zip("abcd", tones[:4], strict=True):
        sounds[sign] = [note]

    pattern = style.bridge if section == "bridge" else style.harmony
    signs = signs_of(pattern, span)

    # A chord that is held is struck again when it changes.
    before = pattern[: 4 * span.beat].rstrip(".")
    if before.endswith("X") and signs[0] == ".":
        signs = "X" + signs[1:]
    return Part("chords", span.beat, span.beats, signs, sounds)


def bass_part(band, style, span):
    """The chord's notes, mostly root, third and fifth, and an octave above the first of them."""
    root, third, fifth = voicing(span.chord, band.register["bass"])[:3]
    sounds = {"R": [root], "3": [third], "5": [fifth], "8": [root + 12]}

    signs = signs_of(style.bass, span)
    if span.beat > 0:  # whatever the pattern has there: a new chord begins with its bass
        signs = "R" + signs[1:]
    return Part("bass", span.beat, span.beats, signs, sounds)


def pad_part(band, span):
    """One chord that is held until it changes."""
    sounds = {"X": voicing(span.chord, band.register["pad"])}
    return Part("pad", span.beat, span.beats, "X", sounds)


def drum_parts(rng, band, style, cymbal, begins, ends):
    """[Part] of the kit. Where a section begins there is a crash; where it ends, a fill."""
    patterns = [("kick", style.kick), (band.backbeat, style.snare), (cymbal, style.hat)]
    if begins:
        patterns.append(("crash", "X"))

    if ends:  # random strokes in place of the last beat
        before = len(style.kick) - 4
        patterns = [(drum, pattern[:before]) for drum, pattern in patterns]
        for drum in ("snare", "tom"):
            last_beat = "".join(rng.choice(["x", "o", ".", "."], 4))
            patterns.append((drum, "." * before + last_beat))

    parts = []
    for drum, pattern in patterns:
        sounds = {sign: [drum] for sign in "Xxo"}
        parts.append(Part("drums", 0, style.meter, pattern, sounds))
    return parts


def events_of(rng, part, bar_line, force):
    """The events of a Part, in a bar that begins at the beat bar_line."""
    begin = bar_line + part.beat
    end = 4 * part.beats  # sixteenths after begin
    places = [i for i, sign in enumerate(part.pattern) if sign != "."]
    for place, next_place in pairwise([*places, end]):
        sign = part.pattern[place]
        beats = HELD_BEATS.get(sign, (next_place - place) / 4)
        gain = force * ACCENTS.get(sign, 1) * rng.uniform(0.8, 1)
        for sound in part.sounds[sign]:
            yield Event(part.player, sound, begin + place / 4, beats, gain)


def play(rng, band, score):
    """All events of a song, bar by bar: a generator of Event.

    The caller draws from the same rng between two events. So a list of the events, made first,
    would give another song.
    """
    plans = draw_plans(rng)
    bars = score.bars
    for i, bar in enumerate(bars):
        plan = plans[bar.section]
        previous_bar = bars[i - 1]  # of the first bar: the last
        next_bar = bars[(i + 1) % len(bars)]
        begins = bar.section != previous_bar.section
        ends = bar.section != next_bar.section

        # A fill is drawn even if no drums play: what is drawn later does not depend on it.
        drums = drum_parts(rng, band, score.style, plan.cymbal, begins, ends)

        parts = []
        for span in bar.spans():
            if not span.chord:
                continue
            parts.append(chord_part(band, score.style, bar.section, span))
            parts.append(bass_part(band, score.style, span))
            if plan.pad:
                parts.append(pad_part(band, span))
        if plan.drums:
            parts += drums

        for part in parts:
            yield from events_of(rng, part, i * score.meter, plan.force)


# --------------------------------------------------------------------------------------------------
# Recording: events become sound.


def add_at(track, wave, at):
    """Add the wave to the track from sample `at` on. What lies outside of the track is cut off."""
    begin = max(at, 0)
    wave = wave[begin - at : max(len(track) - at, 0)]
    track[begin : begin + len(wave)] += wave


def record_band(rng, band, score, seconds):
    """The accompaniment, (L,) float32: a track for each player, then the mix."""
    length = int(seconds * SAMPLE_RATE)
    tracks = {player: np.zeros(length, np.float32) for player in band.balance}
    fade_out = np.linspace(1, 0, int(RELEASE * SAMPLE_RATE), dtype=np.float32)
    bar_of_four = 4 * 60 / score.tempo  # seconds: no note is longer

    # Every note is computed once, then copied.
    sounds = {("drums", name): wave for name, wave in band.drums.items()}
    for event in play(rng, band, score):
        key = (event.player, event.sound)
        if key not in sounds:
            timbre = band.timbres[event.player]
            sounds[key] = tone(rng, event.sound, bar_of_four + RELEASE, timbre)

        begin = score.seconds(event.beat)
        end = score.seconds(event.beat + event.beats)
        held = int((end - begin) * SAMPLE_RATE)
        wave = np.float32(event.gain) * sounds[key][: held + len(fade_out)]
        wave[held:] *= fade_out[: len(wave[held:])]

        late = abs(rng.normal(0, band.scatter))
        add_at(tracks[event.player], wave, int((begin + late) * SAMPLE_RATE))

    mix = sum(at_level(track, band.balance[player] - 14) for player, track in tracks.items())
    return np.tanh(record(rng, mix, band.room))  # tanh rounds off loud peaks

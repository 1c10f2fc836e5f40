"""Composing: from random numbers to a Score.

Key, tempo and metre come first. Verse, chorus and bridge each get a loop of chords and a melody
over it, made of two or three motifs. Then the sections are put one after the other, with bars in
between in which nobody sings.
"""
import math
from dataclasses import dataclass, replace

import numpy as np

from .score import Bar, Note, Score


@dataclass(frozen=True)
class Mode:
    """A scale, and the chord loops that are common in it."""

    name: str
    share: float  # of the songs
    scale: tuple  # semitones above the tonic
    loops: tuple  # one digit per bar: the degree of the scale that is the chord's root


MODES = [
    Mode(
        name="major",
        share=0.5,
        scale=(0, 2, 4, 5, 7, 9, 11),
        loops=(
            "1564",
            "6415",
            "1645",
            "4156",
            "2511",
            "1415",
            "1625",
            "1345",
            "15634145",
            "111144115415",
        ),
    ),
    Mode(
        name="minor",
        share=0.16,
        scale=(0, 2, 3, 5, 7, 8, 10),
        loops=("1637", "1673", "1763", "6713", "1473", "1646", "17611431"),
    ),
    Mode(
        name="harmonic minor",
        share=0.16,
        scale=(0, 2, 3, 5, 7, 8, 11),
        loops=("1415", "1645", "1465", "4156", "6415", "15151415"),
    ),
    Mode(
        name="mixolydian",
        share=0.1,
        scale=(0, 2, 4, 5, 7, 9, 10),
        loops=("1741", "1714", "1547", "1177"),
    ),
    Mode(
        name="dorian",
        share=0.08,
        scale=(0, 2, 3, 5, 7, 9, 10),
        loops=("1414", "1434", "1747", "1144"),
    ),
]


@dataclass(frozen=True)
class SungSection:
    """How the melody of a section differs from the others'."""

    low: float  # share of the singer's range, 0 for the lowest note, 1 for the highest
    high: float
    sparse: float  # density of notes, 0 to 1, is drawn from sparse to dense
    dense: float
    loudness: float  # dB


SUNG = {
    "verse": SungSection(low=0, high=0.7, sparse=0.25, dense=0.95, loudness=-2),
    "chorus": SungSection(low=0.3, high=1, sparse=0.1, dense=0.75, loudness=1),
    "bridge": SungSection(low=0.15, high=0.85, sparse=0.1, dense=0.75, loudness=0),
}

# How often something occurs. These numbers bring the composed melodies close to those of 810 pop
# songs (docs/log.md): where notes begin, how they move, how long chords last.
REPEATS = 0.22  # share of the notes that repeat the pitch before; chord tones change that
HALF_BARS = 0.6  # share of the loops, in bars of four, in which chords last half a bar
INVERSIONS = 0.1  # share of the chords that have their third in the bass
SIXTEENTHS_SLOW = 1  # share of the songs with sixteenths, below 100 beats per minute
SIXTEENTHS_FAST = 0.5  # from 100 on

# The form of every song. It is repeated until the song is long enough.
FORM = ["intro", "verse", "chorus", "gap", "verse", "chorus", "bridge", "chorus"]

# Where in the form a song may begin: most often at the intro, or at the gap, the verse, a chorus.
FIRST_SECTIONS = [0, 0, 0, 3, 3, 1, 5]

STRONG_BEATS = {3: (0,), 4: (0, 2)}  # beats per bar: the strong ones, counted from 0


@dataclass(frozen=True)
class Rhythm:
    """The habits that make a motif's rhythm."""

    groove: str  # the band's pattern of chords in verse and chorus: singers lean on it
    upbeat: float  # beats by which a phrase begins before its bar
    syncopation: float  # how much less likely a note on the beat is
    density: float  # of the notes, 0 to 1
    sixteenths: float  # chance of notes between the eighths, 0 to 1


@dataclass(frozen=True)
class MotifNote:
    """A note that has no pitch yet."""

    onset: float  # beats after the phrase's first bar line
    beats: float  # length
    steps: int  # up or down the scale, from the note before


def onset_chance(grid, meter, rhythm):
    """Chance that a note begins at each place of the grid (beats after a bar line)."""
    sixteenth = (grid % meter * 4).astype(int)
    band_strikes = np.array(list(rhythm.groove))[sixteenth] != "."

    on_eighth = grid % 0.5 == 0
    on_sixteenth = rhythm.sixteenths * (0.25 + 0.6 * rhythm.density)
    off_beat = np.where(on_eighth, 0.2 + 0.6 * rhythm.density, on_sixteenth)
    off_beat = off_beat * np.where(band_strikes, 1.5, 0.6)

    strong_beat = np.isin(grid % meter, STRONG_BEATS[meter])
    any_beat = grid % 1 == 0

    # The first condition that is true decides. An upbeat, before the bar line, is always sung.
    return np.select(
        [grid < 0, strong_beat, any_beat],
        [1, 0.85 - rhythm.syncopation, 0.4 + 0.4 * rhythm.density - rhythm.syncopation],
        default=off_beat,
    )


def write_motif(rng, beats, meter, rhythm):
    """[MotifNote] for so many beats: moving notes, one long note near the end, then a breath."""
    # The long note mostly begins with the last bar.
    last_onset = beats - rng.choice([meter, meter, meter, meter - 1, 2])

    spacing = 0.25 if rhythm.sixteenths > 0 else 0.5
    grid = np.arange(-rhythm.upbeat, last_onset, spacing)
    chance = onset_chance(grid, meter, rhythm)
    onsets = np.append(grid[rng.random(len(grid)) < chance], last_onset)

    # The next phrase may begin an upbeat before its bar line; until then there is room.
    room = beats - rhythm.upbeat - last_onset
    last_beats = max(room / 2, room - rng.choice([0.5, 1, 1, 1.5]))
    lengths = np.diff(onsets, append=last_onset + last_beats)

    # Student's t with 4 degrees of freedom, rounded away from 0: small steps mostly, now and then a
    # leap. Some notes repeat the one before.
    drift = rng.standard_t(4, len(onsets))
    steps = np.trunc(drift) + np.sign(drift)
    steps[rng.random(len(onsets)) < REPEATS] = 0

    motif = []
    for onset, length, step in zip(onsets, lengths, steps, strict=True):
        motif.append(MotifNote(onset, length, int(step)))
    return motif


def nearest_chord_tone(ladder, place, chord):
    """The place on the ladder of MIDI notes, nearest to `place`, that holds a tone of the chord."""
    places = [i for i, midi in enumerate(ladder) if midi % 12 in chord]
    return min(places, key=lambda i: abs(i - place))


def felt_beat(note):
    """The beat on which a listener counts a note.

    A note that begins between two beats and is held into the next one counts as that beat. The
    0.01: a note that ends on a beat does not reach it.
    """
    next_beat = np.ceil(note.onset)
    end = note.onset + note.beats - 0.01
    return max(note.onset, min(next_beat, end))


def write_melody(rng, chords, scale, low, high, meter, loudness, rhythm):
    """[Note] over a chord for each beat, between the MIDI notes low and high.

    The melody is made of two or three motifs. A motif that returns keeps its rhythm and contour,
    but follows the chords of its new place: on strong beats it mostly takes a chord tone, between
    them it moves by steps of the scale.
    """
    ladder = [midi for midi in range(low, high + 1) if midi % 12 in scale]
    bars_per_phrase = rng.choice([2, 2, 4])
    plan = rng.choice(["abac", "aaba", "abab", "aaab", "aabc"])

    phrase_beats = bars_per_phrase * meter
    motifs = {letter: write_motif(rng, phrase_beats, meter, rhythm) for letter in "abc"}
    places = {letter: rng.integers(len(ladder)) for letter in "abc"}  # where each motif begins

    notes = []
    for phrase in range(len(chords) // phrase_beats):
        letter = plan[phrase % 4]
        motif = motifs[letter]
        place = places[letter]
        start = phrase * phrase_beats

        for i, note in enumerate(motif):
            steps = note.steps
            if not 0 <= place + steps < len(ladder):
                steps = -steps  # turn back at the end of the range
            place = np.clip(place + steps, 0, len(ladder) - 1)

            beat = felt_beat(note)
            is_strong = beat % meter in STRONG_BEATS[meter]
            chord = chords[int(start + beat)]

            # By chance many notes are chord tones already: 0.7 here makes it about 0.85.
            wants_chord_tone = is_strong and rng.random() < 0.7
            if wants_chord_tone or i == len(motif) - 1:
                place = nearest_chord_tone(ladder, place, chord)

            accent = 2.0 if is_strong else 0.0  # dB
            notes.append(
                Note(
                    beat=start + note.onset,
                    beats=note.beats,
                    midi=ladder[place],
                    loudness=accent + loudness,
                    begins_phrase=i == 0,
                )
            )
    return notes


def write_chords(rng, mode, scale, meter, bar_seconds):
    """[chord], one per beat: a loop of the mode, repeated to 8 bars (4 if bars are long).

    A loop that is longer stands once. Chords last a bar, or half a bar of four.
    """
    loop = rng.choice(mode.loops)
    beats = meter
    if meter == 4 and rng.random() < HALF_BARS:
        beats = 2  # half a bar

    chords = []
    for degree in loop:
        size = rng.choice([3, 3, 3, 3, 3, 4])  # a triad, sometimes a seventh chord
        thirds = range(0, 2 * size, 2)  # every second note of the scale
        chord = [scale[(int(degree) - 1 + third) % 7] for third in thirds]
        if rng.random() < INVERSIONS:
            chord = chord[1:] + chord[:1]  # the third in the bass
        chords += [chord] * beats

    bars = 4 if bar_seconds > 2.4 else 8
    return chords * max(1, bars * meter // len(chords))


def arrange(rng, chords, melodies, total, meter):
    """Sections in the order of the form -> ([Bar], [Note]), at least `total` bars.

    chords (one per beat) and melodies: by the name of a section that is sung.
    """
    bars = []
    notes = []
    first = rng.choice(FIRST_SECTIONS)
    for section in FORM[first:] + FORM * total:
        if len(bars) >= total:
            break

        # An intro or a gap: so many bars of the verse's chords, and nobody sings.
        rest = min(rng.choice([1, 2, 4]), max(1, total // 4))
        section_chords = chords.get(section, chords["verse"][: rest * meter])
        melody = melodies.get(section, [])

        start = len(bars) * meter
        notes += [replace(note, beat=start + note.beat) for note in melody]
        for first_beat in range(0, len(section_chords), meter):
            bars.append(Bar(section, section_chords[first_beat : first_beat + meter]))
    return bars, notes


def compose(rng, style, low, high, seconds):
    """A Score of at least `seconds`, in a random key, for a singer from low to high (MIDI)."""
    tempo = rng.uniform(style.slowest, style.fastest)
    tonic = int(rng.integers(12))
    meter = style.meter
    bar_seconds = meter * 60 / tempo

    # Half of the songs exchange the two patterns of chords.
    if rng.random() < 0.5:
        style = style.exchanged()

    mode = MODES[rng.choice(len(MODES), p=[mode.share for mode in MODES])]
    scale = [(tonic + step) % 12 for step in mode.scale]
    upbeat = rng.choice([0, 0, 0.5, 1, 1.5])
    syncopation = rng.choice([0, 0.15, 0.3])
    sixteenths = 0.0
    if rng.random() < (SIXTEENTHS_SLOW if tempo < 100 else SIXTEENTHS_FAST):
        sixteenths = rng.uniform(0.3, 1)

    # Bar lines have no fixed place in the file.
    start = rng.uniform(-1, 0.6) * bar_seconds
    total = math.ceil((seconds - start) / bar_seconds) + 1

    chords = {}
    melodies = {}
    for name, section in SUNG.items():
        chords[name] = write_chords(rng, mode, scale, meter, bar_seconds)
        rhythm = Rhythm(
            groove=style.harmony,
            upbeat=upbeat,
            syncopation=syncopation,
            density=rng.uniform(section.sparse, section.dense),
            sixteenths=sixteenths,
        )
        lowest = int(low + section.low * (high - low))
        highest = int(low + section.high * (high - low))
        melodies[name] = write_melody(
            rng, chords[name], scale, lowest, highest, meter, section.loudness, rhythm
        )

    bars, notes = arrange(rng, chords, melodies, total, meter)
    return Score(
        tempo=tempo,
        meter=meter,
        start=start,
        style=style,
        bars=bars,
        notes=notes,
    )

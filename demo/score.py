"""What a score is: bars with their chords, the melody, and the patterns that the band plays.

Time is counted in beats, pitch in MIDI notes (60 is middle C, 69 is 440 Hz). A pitch class is the
note without its octave, 0 for C to 11 for B. A chord is a list of pitch classes,
the lowest note first.
"""
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np


@dataclass(frozen=True)
class Style:
    """How a band plays one bar. A pattern has one sign per sixteenth note; "." means no new sound.

    kick, snare, hat   X accent, x normal, o soft
    bass               R, 3, 5 first, second, third note of the chord (root, third and fifth, if the
                       root is lowest), 8 an octave above the first
    harmony, bridge    X chord, held until the next sign; s short chord;
                       a, b, c, d single tones of the chord from low to high, which ring on
    """

    name: str
    slowest: float  # beats per minute: the tempo is drawn from slowest to fastest
    fastest: float
    swing: float  # where in the beat the second eighth falls, in %: 50 straight, 66 shuffle
    kick: str
    snare: str
    hat: str
    bass: str
    harmony: str
    bridge: str  # harmony in the bridge of the song

    @property
    def meter(self):
        """Beats per bar."""
        return len(self.kick) // 4

    def exchanged(self):
        """The same style with its two patterns of chords exchanged."""
        return replace(self, harmony=self.bridge, bridge=self.harmony)


@dataclass(frozen=True)
class Note:
    """One sung note."""

    beat: float  # where it begins, counted from the first bar line
    beats: float  # length
    midi: int
    loudness: float  # dB
    begins_phrase: bool


@dataclass(frozen=True)
class Span:
    """Beats of one bar over which the chord stays the same."""

    beat: int  # where it begins, counted from the bar line
    beats: int  # length
    chord: list  # pitch classes, the lowest note first; [] is no chord


@dataclass(frozen=True)
class Bar:
    """A bar has a chord on each beat."""

    section: str  # intro, verse, chorus, bridge, or gap, in which nobody sings
    chords: list  # one per beat

    def spans(self):
        """[Span] from one change of chord to the next."""
        spans = []
        beat = 0
        for chord, same in groupby(self.chords):
            beats = len(list(same))
            spans.append(Span(beat, beats, chord))
            beat += beats
        return spans


@dataclass(frozen=True)
class Score:
    """All that singer and band know about a song."""

    tempo: float  # beats per minute
    meter: int  # beats per bar
    start: float  # seconds: where the first bar begins; may be negative
    style: Style
    bars: list  # of Bar
    notes: list  # of Note

    def seconds(self, beat):
        """Beats -> seconds, for a number or an array. Swing delays the second half of each beat."""
        swing = self.style.swing / 100
        swung = np.floor(beat) + np.interp(np.mod(beat, 1), (0, 0.5, 1), (0, swing, 1))
        return self.start + swung * 60 / self.tempo


STYLES = [
    Style(
        name="ballad",
        slowest=65,
        fastest=92,
        swing=50,
        kick=   "X......xx.......",
        snare=  "....X.......X...",
        hat=    "x.o.x.o.x.o.x.o.",
        bass=   "R.........5.....",
        harmony="X...X...X...X...",
        bridge= "a.b.c.d.c.b.c.b.",
    ),
    Style(
        name="rock",
        slowest=100,
        fastest=160,
        swing=50,
        kick=   "X.x.....x.X.....",
        snare=  "....X.......X...",
        hat=    "X.x.X.x.X.x.X.x.",
        bass=   "R.R.R.R.R.R.R.R.",
        harmony="X.s.s.s.X.s.s.s.",
        bridge= "X.....X.....X...",
    ),
    Style(
        name="waltz",
        slowest=85,
        fastest=160,
        swing=50,
        kick=   "X...........",
        snare=  "....o...o...",
        hat=    "x...o...o...",
        bass=   "R.......5...",
        harmony="....s...s...",
        bridge= "a.b.c.d.c.b.",
    ),
    Style(
        name="disco",
        slowest=108,
        fastest=132,
        swing=50,
        kick=   "X...X...X...X...",
        snare=  "....X.......X...",
        hat=    "x.X.x.X.x.X.x.X.",
        bass=   "R.8.R.8.R.8.R.8.",
        harmony="..s...s...s...s.",
        bridge= "s..s..s...s..s..",
    ),
    Style(
        name="bossa",
        slowest=95,
        fastest=150,
        swing=50,
        kick=   "X.....x.X.....x.",
        snare=  "x..x..x...x..x..",
        hat=    "o.o.o.o.o.o.o.o.",
        bass=   "R.....5.R.....5.",
        harmony="s..s..s...s..s..",
        bridge= "..s...s.s...s...",
    ),
    Style(
        name="reggae",
        slowest=65,
        fastest=95,
        swing=50,
        kick=   "........X.......",
        snare=  "........X.......",
        hat=    "x.x.x.x.x.x.x.x.",
        bass=   "R..R..5...3.R...",
        harmony="....s.......s...",
        bridge= "..s...s...s...s.",
    ),
    Style(
        name="hiphop",
        slowest=68,
        fastest=100,
        swing=56,
        kick=   "X..x......x.....",
        snare=  "....X.......X...",
        hat=    "x.x.x.x.x.x.x.xx",
        bass=   "R..R......5.....",
        harmony="X.......X.....s.",
        bridge= "a...c...b...d...",
    ),
    Style(
        name="picking",
        slowest=70,
        fastest=125,
        swing=50,
        kick=   "X.......x.......",
        snare=  "....o.......o...",
        hat=    "o.x.o.x.o.x.o.x.",
        bass=   "R.......R.....5.",
        harmony="a.c.b.d.a.c.b.d.",
        bridge= "a.cdb.cda.cdb.cd",
    ),
    Style(
        name="shuffle",
        slowest=80,
        fastest=140,
        swing=66,
        kick=   "X.....x.X.....x.",
        snare=  "....X.......X...",
        hat=    "X.x.X.x.X.x.X.x.",
        bass=   "R...3...5...3...",
        harmony="..s...s...s...s.",
        bridge= "X.....s.X.....s.",
    ),
    Style(
        name="polka",
        slowest=85,
        fastest=140,
        swing=50,
        kick=   "X.......X.......",
        snare=  "..x...x...x...x.",
        hat=    "..o...o...o...o.",
        bass=   "R.......5.......",
        harmony="..s...s...s...s.",
        bridge= "....s.......s...",
    ),
    Style(
        name="anthem",
        slowest=90,
        fastest=150,
        swing=50,
        kick=   "X...X...X...X...",
        snare=  "....X.......X...",
        hat=    "o.x.o.x.o.x.o.x.",
        bass=   "R.R.R.R.R.R.R.R.",
        harmony="X..s..s.X..s..s.",
        bridge= "s.ss.ss.s.ss.ss.",
    ),
]

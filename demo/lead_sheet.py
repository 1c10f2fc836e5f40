"""Lead sheets: melodies and chords that somebody else wrote, as scores for singer and band.

A file of lead sheets is JSON Lines: each line is one song. Positions and lengths are in beats.

    name, tempo   a text; beats per minute
    meter         beats per bar
    first_bar     beat on which the first full bar begins, from 0 to meter - 1
    notes         [[start, length, MIDI pitch], ...]: the melody, one note at a time
    chords        [[start, [pitch classes, root first]], ...]: each lasts until the next one, [] is
                  no chord; they begin on whole beats, the first on beat 0; the last one is [] and
                  marks the end of the song

Other fields are ignored.
"""
import json
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastsag import UserError

from .compose import STRONG_BEATS, SUNG
from .score import STYLES, Bar, Note, Score

FIELDS = ("name", "tempo", "meter", "first_bar", "notes", "chords")
LARGEST_FILE = 10**8  # bytes: more than ten thousand songs
LAST_BEAT = 10**5  # a longer song is a mistake: it would last for hours
GRID = 1024  # places per beat. With a power of two, sums and differences of positions are exact.
ROUNDING = 1 / 64  # beats: a file may round positions and lengths to two decimals


@dataclass(frozen=True)
class LeadSheet:
    """One line of a file, checked. The fields are explained above; a meter of 2 has become 4."""

    name: str
    tempo: float
    meter: int
    first_bar: int
    notes: list  # of (start, length, midi)
    chords: list  # of (start, chord)


# --------------------------------------------------------------------------------------------------
# Reading: every value is checked, since files come from anywhere.


def is_number(value, low, high):
    """Is this a JSON number from low to high? True, false and NaN are none."""
    return type(value) in (int, float) and low <= value <= high


def is_whole(value, low, high):
    """The same for whole numbers; 4.0 is one."""
    return is_number(value, low, high) and value == int(value)


def read_notes(notes):
    """The field `notes` -> [(start, length, midi)]. Raises UserError with the reason."""
    if not isinstance(notes, list) or not notes:
        raise UserError("notes must be a list with at least one note")

    checked = []
    last_end = 0
    for number, note in enumerate(notes, 1):
        if not isinstance(note, list) or len(note) != 3:
            raise UserError(f"note {number} is {note!r:.40}; it must be [start, length, pitch]")

        start, length, midi = note
        if not is_number(start, 0, LAST_BEAT):
            raise UserError(f"note {number} begins at {start!r:.40}; 0 to {LAST_BEAT} is right")
        if not is_number(length, ROUNDING, LAST_BEAT):
            raise UserError(f"note {number} has the length {length!r:.40}; 0.02 or more is right")
        if not is_whole(midi, 0, 127):
            raise UserError(f"note {number} has the pitch {midi!r:.40}; MIDI has 0 to 127")
        if start < last_end - ROUNDING:
            raise UserError(
                f"note {number} begins at {start:g}, before the end of note {number - 1} at "
                f"{last_end:g}; sort the notes and let none overlap"
            )

        start = round(start * GRID) / GRID
        length = round(length * GRID) / GRID
        checked.append((start, length, int(midi)))
        last_end = start + length
    return checked


def read_chords(chords):
    """The field `chords` -> [(start, chord)]. Raises UserError with the reason."""
    if not isinstance(chords, list) or len(chords) < 2:
        raise UserError("chords must be a list of at least one chord and the end")

    checked = []
    for number, entry in enumerate(chords, 1):
        if not isinstance(entry, list) or len(entry) != 2:
            raise UserError(f"chord {number} is {entry!r:.40}; it must be [start, pitch classes]")

        start, chord = entry
        earliest = checked[-1][0] + 1 if checked else 0
        if not is_whole(start, earliest, LAST_BEAT):
            raise UserError(
                f"chord {number} begins at {start!r:.40}; a whole beat from {earliest} to "
                f"{LAST_BEAT} is right"
            )
        if not isinstance(chord, list) or not all(is_whole(tone, 0, 11) for tone in chord):
            raise UserError(f"chord {number} is {chord!r:.40}; a list of numbers 0 to 11 is right")
        if len(chord) in (1, 2) or len(set(chord)) < len(chord):
            raise UserError(f"chord {number} is {chord}; none or at least three tones are right")
        checked.append((int(start), [int(tone) for tone in chord]))

    if checked[0][0] != 0:
        raise UserError(f"the first chord begins at {checked[0][0]}; 0 is right, [] is no chord")
    if checked[-1][1]:
        raise UserError("the last chord must be [], it marks the end")
    return checked


def read_line(line):
    """A line -> LeadSheet. Raises UserError with the reason if it is none."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError("not JSON") from None
    if not isinstance(fields, dict):
        raise UserError("not a JSON object")

    for field in FIELDS:
        if field not in fields:
            raise UserError(f"{field} is missing")

    name = fields["name"]
    tempo = fields["tempo"]
    meter = fields["meter"]
    first_bar = fields["first_bar"]
    if not isinstance(name, str) or not name:
        raise UserError(f"name is {name!r:.40}; a text is right")
    if not is_number(tempo, 20, 400):
        raise UserError(f"tempo is {tempo!r:.40}; from 20 to 400 beats per minute is right")
    if not is_whole(meter, 1, 16):
        raise UserError(f"meter is {meter!r:.40}; a whole number from 1 to 16 is right")
    if not is_whole(first_bar, 0, meter - 1):
        raise UserError(f"first_bar is {first_bar!r:.40}; a whole number below the meter is right")

    notes = read_notes(fields["notes"])
    chords = read_chords(fields["chords"])
    last_start = notes[-1][0]
    end = chords[-1][0]
    if last_start >= end - ROUNDING:
        raise UserError(f"the last note begins at {last_start:g}, but the song ends at {end}")

    if meter == 2:
        meter = 4  # two bars of two are played as one of four
    sheet = LeadSheet(name, tempo, int(meter), int(first_bar), notes, chords)
    chord_of_beat, held_notes = lay_out(sheet, 0)
    if not sung_over_chords(chord_of_beat, held_notes).any():
        raise UserError("no chord sounds together with the melody")
    return sheet


def read_lead_sheets(path):
    """A file -> [LeadSheet], [why a line was skipped]. Raises UserError if it is no text file."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give lead sheets") from None
    if b"\0" in data:
        raise UserError(f"{path} is not text; give lead sheets as JSON Lines")
    if len(data) > LARGEST_FILE:
        raise UserError(f"{path} is larger than {LARGEST_FILE / 1e6:.0f} MB; divide it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; give lead sheets as JSON Lines") from None

    sheets = []
    skipped = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            sheets.append(read_line(line))
        except UserError as problem:
            skipped.append(f"{path}, line {number}: {problem}")
    return sheets, skipped


# --------------------------------------------------------------------------------------------------
# From a lead sheet to a Score: a stretch of it, in a key that suits the singer. The sections are
# guessed, from where somebody sings.

SHORTEST_REST = 0.5  # beats; a shorter one comes from how a note was played
SECTION_BARS = 8  # sung bars until a verse becomes a chorus, and back
TEMPO_CHANGE = 0.1  # a song is drawn at most so much faster or slower than its sheet, as a share
SLOWEST = 40  # beats per minute: the drawn tempo is then kept between these two
FASTEST = 200


def styles_of(meter):
    """The styles that have so many beats per bar."""
    return [style for style in STYLES if style.meter == meter]


def hold(notes):
    """Every note is held until the next one if less than SHORTEST_REST is between them."""
    held = []
    for (start, length, midi), (next_start, _, _) in pairwise(notes):
        rest = next_start - start - length
        if rest < SHORTEST_REST - ROUNDING:
            length = next_start - start
        held.append((start, length, midi))
    return [*held, notes[-1]]


def lay_out(sheet, num_beats):
    """The sheet from a bar line on -> [chord of each beat], [(start, length, midi)].

    When the sheet ends, it begins again, so a stretch of num_beats can begin on any of its beats.
    """
    upbeat = -sheet.first_bar % sheet.meter  # empty beats before the song
    end = upbeat + sheet.chords[-1][0]
    run = math.ceil(end / sheet.meter) * sheet.meter  # beats: whole bars

    chords = [[]] * run
    for (start, chord), (next_start, _) in pairwise(sheet.chords):
        chords[upbeat + start : upbeat + next_start] = [chord] * (next_start - start)

    runs = 1 + math.ceil(num_beats / run)
    notes = []
    for i in range(runs):
        offset = upbeat + i * run
        notes += [(offset + start, length, midi) for start, length, midi in sheet.notes]
    return chords * runs, hold(notes)


def sung_beats(num_beats, notes):
    """In which beats does a note sound? (num_beats,) bool."""
    sung = np.zeros(num_beats, bool)
    for start, length, _ in notes:
        first = int(start + ROUNDING)
        last = math.ceil(start + length - ROUNDING)
        sung[first : max(first + 1, last)] = True
    return sung


def sung_over_chords(chords, notes):
    """In which beats are there both a note and a chord? (beats,) bool."""
    has_chord = np.array([len(chord) > 0 for chord in chords])
    return sung_beats(len(chords), notes) & has_chord


def draw_first_beat(rng, chords, notes, num_beats):
    """The beat on which a stretch of num_beats begins: any with enough singing over chords.

    Enough is half as much as in the best stretch. A recording begins and ends in mid-beat, so the
    first beat and the last two do not count.
    """
    useful = sung_over_chords(chords, notes)
    amounts = []
    for first in range(len(useful) - num_beats + 1):
        inside = useful[first + 1 : first + num_beats - 2]
        amounts.append(inside.sum())

    amounts = np.array(amounts)
    return int(rng.choice(np.flatnonzero(amounts >= amounts.max() / 2)))


def cut_out(notes, begin, end):
    """What sounds between two beats: [(start, length, midi)], counted from `begin`."""
    inside = []
    for start, length, midi in notes:
        if start + length > begin + ROUNDING and start < end - ROUNDING:
            first = max(start, begin)
            last = min(start + length, end)
            inside.append((first - begin, last - first, midi))
    return inside


def draw_interval(rng, notes, low, high):
    """Semitones to transpose by, so that most of the singing lies between low and high (MIDI)."""
    lengths = np.array([length for _, length, _ in notes])
    midi = np.array([midi for _, _, midi in notes])

    intervals = np.arange(low - midi.max(), high - midi.min() + 1)
    amounts = []  # beats within the range
    for interval in intervals:
        is_inside = (low <= midi + interval) & (midi + interval <= high)
        amounts.append(lengths[is_inside].sum())
    return int(rng.choice(intervals[np.isclose(amounts, max(amounts))]))


def write_bars(chords, notes, meter):
    """[Bar]: intro or gap where nobody sings for a bar, verse and chorus in turn elsewhere."""
    bars = []
    num_sung = 0
    sung = sung_beats(len(chords), notes)
    for begin in range(0, len(chords), meter):
        bar = slice(begin, begin + meter)
        if sung[bar].any():
            section = "chorus" if num_sung // SECTION_BARS % 2 else "verse"
            num_sung += 1
        else:
            section = "gap" if num_sung else "intro"
        bars.append(Bar(section, chords[bar]))
    return bars


def write_melody(notes, bars, meter):
    """[Note] of [(start, length, midi)]: with accents, and louder in the chorus."""
    melody = []
    last_end = 0
    for start, length, midi in notes:
        section = bars[int(start + ROUNDING) // meter].section
        accent = 2.0 if start % meter in STRONG_BEATS[meter] else 0.0  # dB
        melody.append(
            Note(
                beat=start,
                beats=length,
                midi=midi,
                loudness=accent + SUNG[section].loudness,
                begins_phrase=not melody or start > last_end + ROUNDING,
            )
        )
        last_end = start + length
    return melody


def transpose(chord, interval):
    """Pitch classes, so many semitones higher."""
    return [(tone + interval) % 12 for tone in chord]


def arrange_sheet(rng, sheet, low, high, seconds):
    """A Score of at least `seconds`, for a singer from low to high (MIDI).

    Style, tempo, key and the stretch of the sheet are drawn.
    """
    meter = sheet.meter
    styles = styles_of(meter)
    style = styles[rng.integers(len(styles))]
    if rng.random() < 0.5:
        style = style.exchanged()

    tempo = sheet.tempo * rng.uniform(1 - TEMPO_CHANGE, 1 + TEMPO_CHANGE)
    tempo = min(max(tempo, SLOWEST), FASTEST)
    num_beats = int(seconds * tempo / 60) + 2  # all that a recording from mid-beat on touches

    chords, notes = lay_out(sheet, num_beats)
    first_beat = draw_first_beat(rng, chords, notes, num_beats)

    # Whole bars around the stretch. From here on, beats are counted from the first of them.
    first_bar = first_beat // meter
    last_bar = (first_beat + num_beats) // meter + 1
    bars = write_bars(chords, notes, meter)[first_bar:last_bar]
    notes = cut_out(notes, first_bar * meter, last_bar * meter)
    start_beat = first_beat % meter + rng.random()

    interval = draw_interval(rng, notes, low, high)
    notes = [(start, length, midi + interval) for start, length, midi in notes]
    for i, bar in enumerate(bars):
        bars[i] = Bar(bar.section, [transpose(chord, interval) for chord in bar.chords])

    return Score(
        tempo=tempo,
        meter=meter,
        start=-start_beat * 60 / tempo,
        style=style,
        bars=bars,
        notes=write_melody(notes, bars, meter),
    )

"""The singer: from a score to a solo voice, by source and filter.

A voice is a source (pulses of the vocal folds, and noise) that passes a filter (the resonances of
mouth and throat, called formants). The source carries the melody; the filter tells which vowel it
is, and whose voice. Both change every 5 ms:

    Score -> Curves         perform, first: each note is written at its place
          -> Performance    perform, then: glides, vibrato, unsteadiness (smooth_curves)
          -> wave           sing: source times filter
          -> recording      record_vocals: room, microphone, noise
"""
from dataclasses import dataclass

import numpy as np
import torch

from fastsag import istft, stft

from .sound import SAMPLE_RATE, Room, at_level, decibels, record

HOP = 128  # samples between two frames
WINDOW = 512  # samples
FRAME_RATE = SAMPLE_RATE / HOP  # 187.5 frames per second

NUM_VOICES = 480
VOICES_PER_HEIGHT = 8  # voices 0-7 are the lowest; one of eight is for validation (song.py)


@dataclass(frozen=True)
class Mouth:
    """The two formants that change with the shape of the mouth, in Hz."""

    example: str
    f1: int
    f2: int


NEUTRAL = Mouth("about", 500, 1450)
VOWELS = [
    Mouth("see", 280, 2250),
    Mouth("day", 400, 2050),
    Mouth("bed", 600, 1800),
    Mouth("father", 780, 1250),
    Mouth("law", 560, 880),
    Mouth("go", 400, 760),
    Mouth("boot", 310, 680),
    Mouth("French tu", 290, 1750),
    NEUTRAL,
]
NASAL = Mouth("n", 260, 1050)
LIQUID = Mouth("l", 340, 1300)

THROAT = (2600, 3400, 4500)  # Hz: three more formants, the same for every mouth
BANDWIDTHS = (90, 110, 160, 220, 300)  # Hz, of the five formants


@dataclass(frozen=True)
class Consonant:
    """What is heard before a vowel: the mouth is closed, then it opens and the sound comes."""

    name: str
    closed: float = 0  # seconds of silence
    open: float = 0  # seconds of sound
    voicing: float = 0  # amplitude of the voice, as a share of the vowel's
    noise: float = 0  # amplitude of the noise, likewise
    noise_hz: float = 900  # centre of the noise
    mouth: Mouth = NEUTRAL


CONSONANTS = [
    Consonant("s", open=0.11, noise=0.5, noise_hz=6500),
    Consonant("sh", open=0.10, noise=0.5, noise_hz=3300),
    Consonant("h", open=0.07, voicing=0.1, noise=0.1, noise_hz=1500),
    Consonant("p", closed=0.05, open=0.02, noise=0.4, noise_hz=900),
    Consonant("t", closed=0.05, open=0.03, noise=0.6, noise_hz=4500),
    Consonant("k", closed=0.05, open=0.03, noise=0.5, noise_hz=2000),
    Consonant("n", open=0.07, voicing=0.4, mouth=NASAL),
    Consonant("l", open=0.07, voicing=0.5, mouth=LIQUID),
    Consonant("none"),
]


@dataclass(frozen=True)
class Voice:
    """A singer, in a few numbers."""

    # The body
    low: int  # lowest and highest note, MIDI
    high: int
    formant_scale: float  # factor on all formants: large for a short throat
    bandwidth: float  # factor on the formants' bandwidths
    formant_loss: np.ndarray  # (5,) dB, of the five formants
    darkness: float  # dB per kHz that the source loses
    tilt: float  # a further loss, as a power of the frequency
    breath: float  # dB: noise in the vowels

    # The manner
    vibrato: float  # semitones; none if negative
    vibrato_rate: float  # Hz
    drift: float  # semitones: how unsteady the pitch is
    glide: float  # seconds from one note to the next
    scoop: float  # semitones by which a note may begin too low
    lag: float  # seconds behind the beat
    scatter: float  # seconds: how loose the timing is
    articulation: float  # share of the notes that get a syllable of their own
    consonants: float  # dB: how loud their noise is
    dynamics: float  # how much of the written changes of loudness is heard, 0 to 1


def draw_voice(number):
    """The Voice of a number, always the same: from 0, a bass, to NUM_VOICES - 1, a child."""
    rng = np.random.default_rng([1, number])
    num_heights = NUM_VOICES // VOICES_PER_HEIGHT
    height = (number // VOICES_PER_HEIGHT + rng.random()) / num_heights  # 0 to 1
    low = int(39 + 21 * height**1.3)

    return Voice(
        low=low,
        high=low + rng.integers(12, 18),
        formant_scale=np.clip(0.84 + 0.38 * height + rng.normal(0, 0.04), 0.82, 1.25),
        scatter=min(0.004 + rng.exponential(0.02), 0.08),
        bandwidth=rng.uniform(0.8, 1.6),
        formant_loss=rng.uniform((0, 2, 6, 8, 12), (1, 12, 22, 26, 32)),
        darkness=rng.uniform(1.5, 5),
        tilt=rng.uniform(0.2, 1.6),
        breath=rng.uniform(-44, -18),
        vibrato=rng.uniform(-0.4, 0.8),
        vibrato_rate=rng.uniform(4.5, 6.5),
        drift=rng.uniform(0.02, 0.2),
        glide=rng.uniform(0.03, 0.14),
        scoop=rng.uniform(0, 3),
        lag=rng.uniform(-0.015, 0.035),
        articulation=rng.uniform(0.55, 0.95),
        consonants=rng.uniform(-12, 2),
        dynamics=rng.uniform(0.4, 1),
    )


# --------------------------------------------------------------------------------------------------
# Step 1: write every note into curves of one value per frame.


class Curves:
    """What is sung, in (frames,) values each; still with a jump from note to note."""

    def __init__(self, frames):
        self.pitch = np.full(frames, 60.0)  # MIDI
        self.loud = np.zeros(frames)  # amplitude of the voice
        self.vibrato = np.zeros(frames)  # share of the singer's vibrato
        self.noise = np.zeros(frames)  # amplitude of consonants and of breathing in
        self.noise_hz = np.full(frames, 2000.0)  # centre of that noise
        self.formants = np.full((frames, 2), (NEUTRAL.f1, NEUTRAL.f2))  # whole Hz


def place_consonant(rng, curves, voice, level, last_onset, onset):
    """A consonant before the vowel, which falls on the onset -> the frame where it begins.

    level: amplitude of the note. last_onset, onset: frames.
    """
    consonant = CONSONANTS[rng.integers(len(CONSONANTS))]
    seconds = consonant.closed + consonant.open

    # Pronounced slowly or quickly, in at most half of the time since the last onset
    frames_per_second = rng.uniform(0.7, 1.4) * FRAME_RATE
    frames_per_second = min(frames_per_second, (onset - last_onset) / 2 / (seconds + 0.001))
    begin = onset - int(frames_per_second * seconds)
    opens = onset - int(frames_per_second * consonant.open)

    curves.loud[begin:onset] = 0
    curves.noise[begin:onset] = 0
    curves.loud[opens:onset] = consonant.voicing * level
    curves.noise[opens:onset] = consonant.noise * level * decibels(voice.consonants)
    curves.noise_hz[begin:onset] = consonant.noise_hz
    curves.formants[begin:onset] = (consonant.mouth.f1, consonant.mouth.f2)
    return begin


def place_vowel(rng, curves, onset):
    """A vowel from the onset on, until another one takes its place."""
    vowel = VOWELS[rng.integers(len(VOWELS))]
    curves.formants[onset:] = np.array((vowel.f1, vowel.f2)) * rng.normal(1, 0.04, 2)


def breathe_in(rng, curves, begin):
    """A quarter of a second of noise, which ends 80 ms before the frame `begin`."""
    breath = slice(begin - 65, begin - 15)
    curves.noise[breath] = rng.uniform(0, 0.08)
    curves.noise_hz[breath] = 1800


def write_note(rng, curves, voice, midi, level, begin, onset, end):
    """Pitch from the frame `begin` on, and what happens between onset and end."""
    seconds = np.arange(end - onset) / FRAME_RATE  # since the onset
    curves.pitch[begin:] = midi + rng.normal(0, 0.1)

    # Half of the notes begin too low and find their pitch within some 60 ms.
    scoop = max(0, rng.uniform(-1, 1)) * voice.scoop
    curves.pitch[onset:end] -= scoop * np.exp(-seconds / 0.06)

    # Vibrato comes in between 0.3 and 0.6 s.
    curves.vibrato[onset:end] = np.clip(seconds / 0.3 - 1, 0, 1) * rng.uniform(0.3, 1.2)
    curves.loud[onset:end] = level * np.linspace(1, rng.uniform(0.4, 1.3), end - onset)


def perform(rng, voice, score, seconds):
    """The score as this voice sings it -> Performance."""
    num_frames = int(seconds * FRAME_RATE) + 4
    curves = Curves(num_frames)

    # The singer's own time: every sixteenth comes a little early or late.
    beats = np.arange(-8, score.notes[-1].beat + 16, 0.25)
    times = score.seconds(beats) + voice.lag + rng.normal(0, voice.scatter, len(beats))
    times = np.sort(times)

    def frame_at(beat):
        """The frame in which the singer reaches this beat of the score."""
        frame = np.interp(beat, beats, times) * FRAME_RATE
        return int(np.clip(frame, 0, num_frames))

    last_onset = 0
    last_end = 0
    for note in score.notes:
        onset = frame_at(note.beat)
        length = rng.choice([1, 1, 1, 1, 1, 0.6])  # one note in six is cut short
        end = frame_at(note.beat + note.beats * length)

        # High notes are louder: 0.35 dB per semitone.
        loudness = note.loudness + 0.35 * (note.midi - voice.low - 7) + rng.normal(0, 1.5)
        level = decibels(loudness)

        begin = onset
        if note.begins_phrase or rng.random() < voice.articulation:
            begin = place_consonant(rng, curves, voice, level, last_onset, onset)
            place_vowel(rng, curves, onset)
        if begin - last_end > 0.5 * FRAME_RATE:
            breathe_in(rng, curves, begin)
        write_note(rng, curves, voice, note.midi, level, begin, onset, end)

        last_onset = onset
        last_end = end

    return smooth_curves(rng, curves, voice)


# --------------------------------------------------------------------------------------------------
# Step 2: nothing in a voice moves at once, and nothing stays still.


@dataclass
class Performance:
    """What the singer does, in T frames; all float32."""

    f0: np.ndarray  # (T,) Hz: the fundamental frequency
    loud: np.ndarray  # (T,) amplitude of the voice
    noise: np.ndarray  # (T,) amplitude of consonants and of breathing in
    noise_hz: np.ndarray  # (T,) its centre
    formants: np.ndarray  # (5, T) Hz


def smooth(track, width):
    """Running mean of (T,) with a Hann window of about `width` values; constant ends."""
    window_length = int(width) // 2 * 2 + 3  # odd, with the zeros at both ends of a Hann window
    window = np.hanning(window_length)[1:-1]
    padded = np.pad(track, len(window) // 2, "edge")
    return np.convolve(padded, window / window.sum(), "valid").astype(np.float32)


def smooth_curves(rng, curves, voice):
    """Curves -> Performance: glides from note to note, vibrato, unsteadiness."""
    num_frames = len(curves.pitch)

    def wander(width):
        """A random curve (T,) with a standard deviation of about 1.1; slower for a larger width."""
        return smooth(rng.standard_normal(num_frames), width) * np.sqrt(width)

    vibrato_rate = voice.vibrato_rate + 0.4 * wander(80)
    vibrato = np.sin(2 * np.pi * np.cumsum(vibrato_rate) / FRAME_RATE)
    depth = max(0, voice.vibrato) * smooth(curves.vibrato, 20)

    out_of_tune = rng.uniform(-0.25, 0.25)  # semitones, for the whole song
    drift = voice.drift * (wander(200) + 0.6 * wander(30))
    jitter = 0.02 * wander(4)
    pitch = smooth(curves.pitch, voice.glide * FRAME_RATE) + depth * vibrato
    pitch += out_of_tune + drift + jitter
    f0 = 440 * 2 ** ((pitch - 69) / 12)

    mouth = np.stack([smooth(formant, 14) for formant in curves.formants.T])  # (2, T)
    throat = np.outer(THROAT, np.ones(num_frames))  # (3, T)
    formants = voice.formant_scale * np.concatenate([mouth, throat])
    formants[0] = np.maximum(formants[0], f0)  # on high notes singers open the mouth

    loud = smooth(curves.loud, 9) ** voice.dynamics * decibels(wander(6))
    noise = smooth(curves.noise, 3) ** voice.dynamics
    return Performance(
        f0=f0.astype(np.float32),
        loud=loud.astype(np.float32),
        noise=noise,
        noise_hz=curves.noise_hz.astype(np.float32),
        formants=formants.astype(np.float32),
    )


# --------------------------------------------------------------------------------------------------
# Step 3: source times filter, frame by frame.


def pulses_of(f0, darkness):
    """Pulses of the vocal folds, (T * HOP,): all overtones of f0 (T,) at once.

    Overtone k has the amplitude r^k, where r is the loss over one f0 at `darkness` dB per kHz. So
    a voice is equally dark at any pitch, and aliases are not heard. The sum is a geometric series:

        sum over k = 1, 2, ... of r^k cos(k phase) = Re 1 / (1 - r e^(i phase)) - 1
    """
    length = len(f0) * HOP
    f0 = np.interp(np.arange(length) / HOP, np.arange(len(f0)), f0)  # one value per sample

    cycles = np.cumsum(f0 / SAMPLE_RATE) % 1
    cosine = np.cos(2 * np.pi * cycles).astype(np.float32)
    r = decibels(-darkness * f0 / 1000).astype(np.float32)
    return (r * cosine - r * r) / (1 - 2 * r * cosine + r * r)


def resonances(voice, formants, freqs):
    """The filter: formants (5, T) in Hz -> gain (bins, T) at freqs (bins, 1) in Hz."""
    widths = np.float32(voice.bandwidth * np.array(BANDWIDTHS))
    gains = decibels(-voice.formant_loss).astype(np.float32)

    floor = 0.004  # between the resonances
    gain = np.full((len(freqs), formants.shape[1]), floor, np.float32)
    for i, centre in enumerate(formants):
        distance = centre**2 - freqs**2
        peak = gains[i] * widths[i] * centre
        gain += peak / np.sqrt(distance**2 + (widths[i] * freqs) ** 2)
    return gain * (1 + freqs / 300) ** np.float32(-voice.tilt)


def sing(rng, voice, score, seconds):
    """The melody of the score as a dry voice, (L,) float32."""
    performance = perform(rng, voice, score, seconds)
    pulses = pulses_of(performance.f0, voice.darkness)
    hiss = 0.27 * rng.standard_normal(len(pulses), dtype=np.float32)

    source = torch.from_numpy(np.stack([pulses, hiss]))
    pulses, hiss = stft(source, WINDOW, HOP).numpy()  # (bins, T) each
    freqs = np.linspace(0, SAMPLE_RATE / 2, len(pulses)).astype(np.float32)[:, None]  # Hz

    # Breathiness takes the colour of the vowel, and adds a little hiss at the top. The noise of a
    # consonant has its own centre, and half the amplitude a third of the centre away from it.
    vowel = resonances(voice, performance.formants, freqs)
    breathiness = np.float32(decibels(voice.breath)) * (vowel + 0.1 * freqs / 12000)
    consonant = performance.noise / (1 + (3 * freqs / performance.noise_hz - 3) ** 2)

    voiced = pulses * vowel * performance.loud
    unvoiced = hiss * (breathiness * performance.loud + consonant)
    spectrum = torch.from_numpy(voiced + unvoiced)[None]
    wave = istft(spectrum, WINDOW, HOP)[0].numpy()
    return wave[: int(seconds * SAMPLE_RATE)]


def record_vocals(rng, wave):
    """A dry voice (L,) as on a karaoke recording: in a room, by some microphone, with noise."""
    high_cut = rng.choice([7600, 11500])  # Hz; many karaoke recordings end at 8 kHz
    room = Room(
        wet=max(0, rng.uniform(-0.1, 0.35)),
        echo=rng.uniform(0.2, 1.8),
        tilt=rng.uniform(-3, 2),
        low_cut=rng.uniform(30, 120),
        high_cut=high_cut,
    )
    wave = record(rng, wave, room)

    hiss = rng.standard_normal(len(wave))
    hiss_colour = Room(wet=0, echo=0.2, tilt=rng.uniform(-3, 0), low_cut=10, high_cut=12000)
    hiss = record(rng, hiss, hiss_colour)
    return at_level(wave, -20) + at_level(hiss, rng.uniform(-85, -48))

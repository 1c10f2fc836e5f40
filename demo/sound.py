"""What singer and band share: levels, and all that is linear between a sound and its recording."""
import math
from dataclasses import dataclass

import numpy as np

from fastsag import Config, active_dbfs

SAMPLE_RATE = Config.sample_rate  # Hz
FFT_SIZE = 32768  # transforms of whole songs are a multiple of it: sizes that the FFT likes


def decibels(db):
    """Level in dB -> factor of amplitude."""
    return 10 ** (np.asarray(db) / 20)


def at_level(wave, dbfs):
    """The wave (L,), brought to this active level in dBFS. Silence stays silence."""
    level = max(active_dbfs(wave, SAMPLE_RATE), -200)
    return wave * np.float32(decibels(dbfs - level))


@dataclass
class Room:
    """A room and a microphone."""

    wet: float  # share of reverberation
    echo: float  # seconds until it has fallen by 60 dB
    tilt: float  # dB per octave: how bright the recording is
    low_cut: float = 30  # Hz
    high_cut: float = 11500  # Hz


def filter_response(rng, room, freqs):
    """Gain at each frequency (Hz): the room's tilt and cuts, and three broad peaks or dips."""
    octaves = np.log2(freqs / 1000)
    gain = room.tilt * octaves  # dB
    for _ in range(3):
        peak = rng.uniform(-6, 6)  # dB
        centre = rng.uniform(-2.5, 3)  # octaves from 1 kHz
        width = rng.uniform(0.3, 1)  # octaves
        gain += peak * np.exp(-(((octaves - centre) / width) ** 2))

    low_cut = 1 + (room.low_cut / freqs) ** 4
    high_cut = 1 + (freqs / room.high_cut) ** 16
    return decibels(gain) / np.sqrt(low_cut * high_cut)


def record(rng, wave, room):
    """The wave (L,) as it is recorded in the room, (L,) float32: one multiplication of spectra."""
    length = int(room.echo * SAMPLE_RATE)
    tail = rng.standard_normal(length) * np.logspace(0, -3, length)  # noise that falls by 60 dB
    tail = tail / np.sqrt(np.sum(tail**2))

    size = math.ceil((len(wave) + length) / FFT_SIZE) * FFT_SIZE
    freqs = np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32) + 1  # 0 Hz has no logarithm
    gain = filter_response(rng, room, freqs)
    reverberation = np.fft.rfft(tail, size) / (1 + freqs / 4000)  # walls swallow high frequencies

    spectrum = np.fft.rfft(wave, size) * gain * (1 - room.wet + room.wet * reverberation)
    return np.fft.irfft(spectrum, size)[: len(wave)].astype(np.float32)

"""FastSAG from scratch: solo singing in, the matching instrumental accompaniment out.

One file, to be read top to bottom, for the paper "FastSAG: Towards Fast Non-Autoregressive Singing
Accompaniment Generation" (Chen, Xue, Tan, Ye, Liu, Guo; IJCAI 2024, arXiv 2405.07682). The last
part is plumbing and may be skipped.

The signal path, from top to bottom as in this file:

    vocals (B, L), 24 kHz mono
      -> log-mel (B, M, T) with T = L / 256                                    log_mel
      -> music features (B, S, T/4): chroma, onsets, loudness                  music_features
      -> bar profile (B, 148, T/4): what is sung around a frame, bar by bar    bar_profile
    chords and tempo, if the user tells them -> chart (B, 27, T/4)             chart_features
      -> semantic projection: features expected of the ACCOMPANIMENT           FastSAG.semantic
      -> prior projection: mean mel of the accompaniment, mu (B, M, T)         FastSAG.prior
      -> diffusion: a U-Net turns noise into a mel that fits both              FastSAG.sample
      -> vocoder -> accompaniment (B, L)                                       Vocoder, griffin_lim

Names, the same everywhere:

    B, C, M, T, L       batch, channels, mel bins, mel frames, waveform samples
    S                   music features; they have a quarter of the mel's frame rate: T/4 frames
    vocals, accomp      waveforms (B, L); mel_accomp is the normalised log-mel (B, M, T) of accomp
    expected, mu        what the two projections say: features and a beat, (B, S + 1, T/4), and the
                        mean mel (B, M, T)
    told                given by the user, not heard: chords and beats
    sigma, c_skip, ...  the letters of EDM, Table 1
    F_x, D_x            raw network output, denoised mel

The other papers: EDM (Karras et al. 2022, arXiv 2206.00364), classifier-free guidance (Ho and
Salimans 2022, arXiv 2207.12598), Grad-TTS (Popov et al. 2021, arXiv 2105.06337), RoPE (Su et al.
2021, arXiv 2104.09864), Vocos (Siuzdak 2023, arXiv 2306.00814), fast Griffin-Lim (Perraudin et al.
2013).
"""
import functools
import io
import math
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm


# --------------------------------------------------------------------------------------------------
# Config: all that is needed to rebuild a model and its losses. It travels inside every checkpoint.
# Settings of the optimiser are options of train.py.


@dataclass
class Config:
    # Audio. Published 24 kHz vocoders (BigVGAN, many HiFi-GANs) use this definition of the mel.
    sample_rate: int = 24000  # Hz
    n_fft: int = 1024  # samples: 43 ms
    hop_length: int = 256  # samples: 10.7 ms, so 93.75 mel frames per second
    n_mels: int = 100  # bands from 0 to 12 kHz
    level_dbfs: float = -20.0  # voice and band of every song are brought to this level

    # Mean and standard deviation of accompaniments' log-mels at that level: a normalised mel has
    # about mean 0 and standard deviation sigma_data.
    mel_mean: float = -5.3
    mel_std: float = 2.8

    # The two projections, at 23.4 frames per second
    dim: int = 128  # channels
    layers: int = 6  # of the semantic projection; every second one has attention
    attention_radius: int = 128  # frames to either side: 5.5 s

    # U-Net
    channels: tuple = (48, 96, 192)  # per level; each level halves time and frequency
    blocks: int = 1  # residual blocks per level, on the way down and on the way up
    unet_radius: int = 16  # attention at the bottom: frames of 171 ms to either side, 2.7 s

    # Training
    segment: int = 1024  # mel frames per clip that the diffusion loss sees: 10.9 s
    input_dropout: float = 0.15  # chance that a clip's music features, or bar profile, are hidden
    cond_dropout: float = 0.1  # chance that the U-Net is not told mu and features, for guidance

    # Which of IDEAS is left out, to see what it is worth; "" is none
    without: str = ""

    # EDM, Table 1. EDM goes from sigma 80 to 0.002. We start from mu in noise, for which 5 is
    # enough, and end where the noise is below the mel's own detail.
    sigma_data: float = 0.5
    sigma_min: float = 0.02
    sigma_max: float = 5.0
    rho: float = 7.0
    P_mean: float = -1.2  # noise levels in training: ln(sigma) ~ N(P_mean, P_std^2)
    P_std: float = 1.2

    # Sampling
    temperature: float = 1.2  # divides the first noise (Grad-TTS: 1.5): higher is tamer
    timbre_std: float = 0.13  # of the timbre drawn for a song, see draw_timbre()
    guidance_min_sigma: float = 0.5  # classifier-free guidance acts above this noise level only

    # Vocoder
    vocoder_dim: int = 256  # channels
    vocoder_layers: int = 6


PRESETS = {
    # for tests: seconds
    "tiny": Config(
        dim=32,
        layers=2,
        attention_radius=32,
        channels=(16, 24, 32),
        segment=64,
        vocoder_dim=32,
        vocoder_layers=2,
    ),
    # the shipped weights: 5.5 M parameters and a vocoder of 2.8 M
    "demo": Config(),
    # real songs, one GPU: 47 M parameters and a vocoder of 14 M
    "base": Config(
        dim=384,
        layers=10,
        channels=(128, 256, 384),
        blocks=2,
        vocoder_dim=512,
        vocoder_layers=8,
    ),
}

# What train.py --without can leave out: the loss of a projection (what it says is still used); what
# a projection says; an input; the network that draws (mu is then all there is).
IDEAS = ("semantic-loss", "prior-loss", "semantic", "prior", "bar-profile", "diffusion")

PATCH = 4  # one feature frame is 4 mel frames (43 ms); the U-Net works on 4 x 4 patches of the mel


# --------------------------------------------------------------------------------------------------
# Mel. The diffusion draws a picture of the sound, 100 bands at 93.75 frames per second, instead of
# 24000 samples per second.
#
# The arithmetic: a frame of 1024 samples starts every 256 samples. The signal is reflected by 384
# samples at both ends, so L samples give exactly L / 256 frames. Magnitudes are
# sqrt(re^2 + im^2 + 1e-9), bands are triangles on Slaney's scale, and the result is the natural
# logarithm of at least 1e-5.

# Spectra are computed so many frames at a time, all clips together. A small piece stays in the
# caches of a CPU; a GPU wants a large one.
CPU_PIECE = 256
GPU_PIECE = 65536


def without_autocast(function):
    """Decorator: networks may run in bfloat16, by autocast; spectra must not."""

    @functools.wraps(function)
    def run(x, *args):
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args)

    return run


@functools.lru_cache
def hann_window(n_fft, device):
    """(n_fft,) periodic Hann window, made once per device."""
    return torch.hann_window(n_fft, device=device)


def frames_of(wav, n_fft, hop_length):
    """(B, L), L a multiple of hop_length -> overlapping frames (B, T, n_fft), a view."""
    pad = (n_fft - hop_length) // 2
    padded = F.pad(wav[:, None], (pad, pad), mode="reflect")[:, 0]
    return padded.unfold(-1, n_fft, hop_length)


def spectrum_of(frames):
    """(B, T, n_fft) -> complex (B, n_fft/2 + 1, T)"""
    window = hann_window(frames.shape[-1], frames.device)
    return torch.fft.rfft(frames * window).transpose(1, 2)


def stft(wav, n_fft, hop_length):
    """(B, L) -> complex (B, n_fft/2 + 1, L / hop_length): Hann window, reflected edges."""
    return spectrum_of(frames_of(wav, n_fft, hop_length))


def stft_pieces(wav, n_fft, hop_length):
    """Yields stft(wav) in pieces along time: less memory, if each is made smaller at once."""
    size = CPU_PIECE if wav.device.type == "cpu" else GPU_PIECE
    for frames in frames_of(wav, n_fft, hop_length).split(max(1, size // len(wav)), dim=1):
        yield spectrum_of(frames)


def overlap_add(frames, hop_length):
    """Sum of frames (B, T, n_fft) that begin hop_length apart -> (B, (T - 1) * hop + n_fft)."""
    B, T, n_fft = frames.shape
    total = frames.new_zeros(B, T + n_fft // hop_length - 1, hop_length)

    # One hop of all frames at a time: a few large additions instead of T small ones.
    for i, part in enumerate(frames.split(hop_length, dim=-1)):
        total[:, i : i + T] += part

    return total.flatten(1)


def istft(spec, n_fft, hop_length):
    """Least-squares inverse of stft: (B, n_fft/2 + 1, T) -> (B, T * hop_length).

    Windowed frames are added up and divided by the added-up squared windows (Griffin and Lim 1984,
    eq. 6).
    """
    window = hann_window(n_fft, spec.device)
    frames = torch.fft.irfft(spec.transpose(1, 2), n=n_fft) * window  # (B, T, n_fft)

    wav = overlap_add(frames, hop_length)
    weight = overlap_add(window.square().expand_as(frames[:1]), hop_length)

    pad = (n_fft - hop_length) // 2
    return wav[:, pad:-pad] / weight[:, pad:-pad]


@functools.lru_cache
def mel_filterbank(sample_rate, n_fft, n_mels, device="cpu"):
    """(n_mels, n_fft/2 + 1) triangular filters of area 1 (per Hz) on Slaney's scale.

    The same numbers as librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels). Cached on
    the device, since copying them there in every step would make a GPU wait.
    """
    # Slaney's scale is linear up to 1 kHz, which is mel 15, and then logarithmic.
    hz_per_mel = 200 / 3
    log_hz_per_mel = math.log(6.4) / 27
    top = 15 + math.log(sample_rate / 2 / 1000) / log_hz_per_mel
    mels = torch.linspace(0, top, n_mels + 2, dtype=torch.float64)
    above = 1000 * torch.exp((mels - 15) * log_hz_per_mel)
    hz = torch.where(mels < 15, mels * hz_per_mel, above)

    low = hz[:-2, None]
    centre = hz[1:-1, None]
    high = hz[2:, None]
    freqs = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (freqs - low) / (centre - low)
    falling = (high - freqs) / (high - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0)

    return (triangles * 2 / (high - low)).float().to(device)


def magnitude(spec):
    """Complex -> |spec|, with a small constant that keeps the gradient finite in silence."""
    return (spec.real.square() + spec.imag.square() + 1e-9).sqrt()


@without_autocast
def log_mel(wav, cfg):
    """(B, L) -> (B, M, T = L / hop_length): natural logarithm of the mel magnitudes."""
    filters = mel_filterbank(cfg.sample_rate, cfg.n_fft, cfg.n_mels, wav.device)
    pieces = stft_pieces(wav, cfg.n_fft, cfg.hop_length)
    mel = torch.cat([filters @ magnitude(spec) for spec in pieces], dim=-1)
    return mel.clamp(min=1e-5).log()


def normalise(mel, cfg):
    """log-mel -> mean 0, standard deviation sigma_data: what the networks work with."""
    return (mel - cfg.mel_mean) * (cfg.sigma_data / cfg.mel_std)


def denormalise(mel, cfg):
    """The inverse of normalise."""
    return mel * (cfg.mel_std / cfg.sigma_data) + cfg.mel_mean


# --------------------------------------------------------------------------------------------------
# Music features: what an accompanist listens for. The paper takes layer 7 of MERT-v1-95M, a
# pretrained model with 768 features. Here 28 features are written by hand: which notes sound
# (chroma), where something begins (onsets) and how loud it is. They say little about timbre: most
# of what a source separator does to real stems does not show in them. (A bass that leaks into the
# vocals still can, in the bass chroma.)

CHROMA_BANDS = ((40, 175), (175, 1400))  # Hz: the bass, and what lies above it
ONSET_BAND_EDGES = (8, 40)  # mel bands 0-7 (up to 270 Hz), 8-39 (to 1.4 kHz) and 40-99
N_CHROMA = 12 * len(CHROMA_BANDS)
N_FEATURES = N_CHROMA + len(ONSET_BAND_EDGES) + 2  # S = 28
N_EXPECTED = N_FEATURES + 1  # of the accompaniment, a pulse at each beat is expected, too


@functools.lru_cache
def chroma_filterbank(sample_rate, n_fft, device):
    """(24, bins): how much each bin up to 1400 Hz counts for each pitch class, C first, bass first.

    A bin counts by a Gaussian of its distance from the pitch class. The Gaussian is 0.3 semitones
    wide, or 0.6 bins where that is more, below 100 Hz.
    """
    highest = CHROMA_BANDS[-1][1]
    freqs = torch.arange(1, highest * n_fft / sample_rate) * sample_rate / n_fft  # without bin 0
    pitch = 69 + 12 * torch.log2(freqs / 440)  # MIDI note number
    distance = (pitch - torch.arange(12)[:, None] + 6) % 12 - 6  # (12, bins), -6 to 6 semitones

    semitones_per_bin = 12 / math.log(2) * (sample_rate / n_fft) / freqs
    width = torch.maximum(torch.tensor(0.3), 0.6 * semitones_per_bin)
    weight = torch.exp(-0.5 * (distance / width).square()) / width

    bands = [weight * ((freqs >= low) & (freqs < high)) for low, high in CHROMA_BANDS]
    return F.pad(torch.cat(bands), (1, 0)).to(device)  # bin 0 has no pitch


def compress(mel):
    """log-mel -> a logarithm that is 0 in silence. Sounds 40 dB below usual music count little."""
    return torch.log1p(100 * mel.exp())


def onset_envelope(compressed):
    """compress(mel) (B, M, T) -> (B, M, T/4): how much each band rises within a feature frame."""
    rise = compressed.diff().clamp(min=0)
    return F.pad(rise, (1, 0)).unflatten(-1, (-1, PATCH)).sum(-1)


def loudness(compressed):
    """compress(mel) (B, M, T) -> (B, T/4): mean over the bands."""
    return compressed.mean(1).unflatten(-1, (-1, PATCH)).mean(-1)


def chroma(wav, cfg):
    """(B, L) -> (B, 2, 12, T/4): bass and middle pitch classes, each of length 1; 0 in silence."""
    # A quarter of the sample rate, 6 kHz, is enough for notes up to 1.4 kHz. With frames of 341 ms
    # neighbouring notes come apart from about 100 Hz on.
    decimation = 4
    n_fft = 2048
    low_rate = cfg.sample_rate // decimation
    low_hop = cfg.hop_length * PATCH // decimation
    low_wav = resample(wav, cfg.sample_rate, low_rate)

    # 4 / n_fft: a sine of amplitude 1 has a peak of 1 in the spectrum of a Hann window. abs(), not
    # magnitude(): in silence the latter is a little more than 0, which a cosine takes for a chord.
    filters = chroma_filterbank(low_rate, n_fft, wav.device) * (4 / n_fft)
    bins = filters.shape[1]
    pieces = stft_pieces(low_wav, n_fft, low_hop)
    strength = torch.cat([filters @ spec[:, :bins].abs() for spec in pieces], dim=-1)
    strength = strength.unflatten(1, (2, 12))

    # Only the shape counts, not the loudness. The small constant decides what silence is.
    return strength / (strength.norm(dim=2, keepdim=True) + 0.01)


@without_autocast
def music_features(wav, mel, cfg):
    """(B, L) and its log-mel (B, M, T) -> (B, S, T/4).

    Factors and offsets bring those of accompaniments to about mean 0 and variance 1.
    """
    compressed = compress(mel)
    bands = onset_envelope(compressed).tensor_split(ONSET_BAND_EDGES, dim=1)
    onsets = torch.stack([band.mean(1) for band in bands], dim=1)

    rows = [
        4 * chroma(wav, cfg).flatten(1, 2) - 1,
        3 * onsets.sqrt() - 1,
        2 * loudness(compressed)[:, None] - 2,
    ]
    return torch.cat(rows, dim=1)


def chroma_of(features):
    """(B, S, T/4) -> (B, 24, T/4): the chroma rows of music_features, from 0 to 1 again."""
    return (features[:, :N_CHROMA] + 1) / 4


# --------------------------------------------------------------------------------------------------
# Beat and bar profile. NOT IN THE PAPER: this part stands in for what MERT, the paper's pretrained
# model, may know of rhythm. Without it the band falls out of time: the measure of rhythm is halved.
#
# Singers are early, late and off the beat. A network needs thousands of steps to discover the
# steady beat underneath. So we look for the period that fits the singer's onsets best. Then, for
# each frame, we average what is sung one beat later, two beats later, half a beat earlier and so
# on, over all bars within 22 s. Which of these places is the first beat of the bar, and what the
# band plays there, is left to the network.

BEAT_SLOWEST = 0.9  # Hz. One octave of tempos is searched: 54 to 108 beats per minute
BEAT_TEMPOS = 512  # in that octave
BEAT_MULTIPLES = (1, 2, 4)  # singers sing on beats, halves and quarters
BEAT_REACH = 512  # frames: 22 s to either side
BEAT_EVERY = 32  # frames, 1.4 s: the period is decided this often
BEAT_VOTES = 31  # windows that decide together: one, the 15 before it and the 15 after it
SWELL = 49  # frames, 2 s: what changes more slowly than this is not rhythm

PLACES_PER_BEAT = 8
BARS = (4, 3)  # beats: which of them fits is left to the network
LOOPS = (8, 16, 12)  # beats, multiples of 4: chords often come back after so many
N_BAR = 2 * sum(BARS) * PLACES_PER_BEAT + 12 * len(LOOPS)  # 148 rows of the bar profile


def frame_rate(cfg):
    """Feature frames per second: 23.4."""
    return cfg.sample_rate / (cfg.hop_length * PATCH)


@functools.lru_cache
def beat_waves(rate, device):
    """Windowed waves to compare onsets with.

    rate in frames per second -> period (tempos,) in frames, and waves (6 * tempos, 1025): cosine
    and sine at each tempo, at its double and at its fourfold.
    """
    octave = torch.arange(BEAT_TEMPOS, device=device) / BEAT_TEMPOS
    period = rate / BEAT_SLOWEST * 2**-octave
    time = torch.arange(-BEAT_REACH, BEAT_REACH + 1, device=device)
    window = torch.hann_window(len(time), periodic=False, device=device)

    waves = []
    for multiple in BEAT_MULTIPLES:
        angle = 2 * math.pi * multiple * time / period[:, None]
        waves.append(angle.cos() * window)
        waves.append(angle.sin() * window)
    return period, torch.cat(waves)


def find_beat(onsets, cfg):
    """Onset strength (B, T/4) -> frames per beat (B, T/4), constant for 1.4 s at a time.

    A Fourier tempogram (Grosche and Mueller 2011): each window of 44 s is compared with waves of
    every tempo, its double and its fourfold. The tempo with the most power wins. Songs that are
    faster than 108 beats per minute show up at half of their tempo, slower than 54 at its double.
    """
    period, waves = beat_waves(frame_rate(cfg), onsets.device)

    # Onsets without their slow swell, in a window of 44 s every 1.4 s
    swell = F.avg_pool1d(onsets[:, None], SWELL, 1, SWELL // 2, count_include_pad=False)[:, 0]
    padded = F.pad(onsets - swell, (BEAT_REACH, BEAT_REACH))
    windows = padded.unfold(1, 2 * BEAT_REACH + 1, BEAT_EVERY)  # (B, windows, 1025)

    # Power of each tempo in each window: cosine^2 + sine^2, added up over its three multiples
    product = (windows @ waves.T).unflatten(-1, (-1, BEAT_TEMPOS))  # (B, windows, 6, tempos)
    power = product.square().sum(2)  # (B, windows, tempos)

    # Neighbouring windows vote together: a song seldom changes its tempo.
    half = BEAT_VOTES // 2
    votes = F.pad(power, (0, 0, half, half)).unfold(1, BEAT_VOTES, 1).sum(-1)

    found = period[votes.argmax(-1)]  # (B, windows)
    return found.repeat_interleave(BEAT_EVERY, dim=1)[:, : onsets.shape[1]]


def interpolate(tracks, time):
    """Linear interpolation: tracks (B, C, N) at times (B, R, N) in frames -> (B, C, R, N)."""
    N = tracks.shape[-1]
    time = time.clamp(0, N - 1)
    before = time.long().clamp(max=N - 2)
    share = (time - before)[:, None]

    # Values before and after each time. gather() must be told the shape; take_along_dim() need not,
    # but takes three times as long on a CPU, since it checks every place.
    shape = (-1, tracks.shape[1], time.shape[1], -1)
    tracks = tracks[:, :, None].expand(shape)  # (B, C, R, N)
    before = before[:, None].expand(shape)
    left = tracks.gather(3, before)
    right = tracks.gather(3, before + 1)
    return torch.lerp(left, right, share)


def fold(tracks, period, step, lengths, cfg):
    """For each frame, the mean of a track at a place in the bar, over all bars around the frame.

    Places are `step` beats apart. For example step 1/8, a bar of 32 steps (four beats) and place 4:
    the mean of the track half a beat after the frame, 4.5, 8.5, ... beats after it, and 3.5, 7.5,
    ... beats before it. Place 0 is the frame itself, and whole bars from it. What is further away
    counts less, by a Hann window of 22 s to either side.

    tracks (B, C, N); period (B, N), frames per beat; lengths, in steps, of several kinds of bars
    -> for each of these kinds (B, C, length, N)
    """
    N = tracks.shape[-1]
    frame = torch.arange(N, device=tracks.device)
    period = period[:, None]

    # A block consists of whole bars of every kind (96 steps for bars of 32 and 24), so that tracks
    # are interpolated once for all kinds. There are enough blocks for the fastest song: asking for
    # the song's own period would make a GPU wait.
    block = math.lcm(*lengths)
    shortest = frame_rate(cfg) / (2 * BEAT_SLOWEST)  # frames per beat
    blocks_per_side = math.ceil(BEAT_REACH / (shortest * step * block))

    totals = [0] * len(lengths)
    norms = [0] * len(lengths)
    for n in range(-blocks_per_side, blocks_per_side):  # block 0 begins at the frame itself
        places = step * (n * block + torch.arange(block, device=tracks.device))  # in beats
        distance = places[:, None] * period  # (B, block, N) frames
        time = frame + distance
        inside = (time >= 0) & (time < N)
        near = distance.clamp(-BEAT_REACH, BEAT_REACH)
        weight = (0.5 + 0.5 * torch.cos(math.pi / BEAT_REACH * near)) * inside
        value = weight[:, None] * interpolate(tracks, time)  # (B, C, block, N)

        for i, length in enumerate(lengths):
            totals[i] = totals[i] + value.unflatten(2, (-1, length)).sum(2)
            norms[i] = norms[i] + weight.unflatten(1, (-1, length)).sum(1)

    return [total / (norm + 1e-3)[:, None] for total, norm in zip(totals, norms, strict=True)]


@without_autocast
def bar_profile(mel, chroma_vocals, cfg):
    """log-mel (B, M, T) and chroma (B, 24, T/4) of the vocals -> (B, 148, T/4).

    For each frame: how strongly something begins, and how loud it is, at each eighth of a beat
    around it, in bars of four beats and of three; and which notes are sung when a loop of 8, 16 or
    12 beats comes round. Factors bring all rows to about the size of the music features.
    """
    compressed = compress(mel)
    onsets = onset_envelope(compressed).mean(1)
    period = find_beat(onsets, cfg)

    # Onsets and loudness in bars of four and of three: (B, 2, 32, T/4) and (B, 2, 24, T/4)
    tracks = torch.stack([4 * onsets, 2 * loudness(compressed)], dim=1)
    lengths = [beats * PLACES_PER_BEAT for beats in BARS]
    bars = fold(tracks, period, 1 / PLACES_PER_BEAT, lengths, cfg)

    # Rows go from half a bar before the frame to half a bar after it: the frame is in the middle.
    rows = [bar.roll(length // 2, dims=2) for bar, length in zip(bars, lengths, strict=True)]

    # The mean over a bar of four is taken off: what counts is which places stand out. One mean
    # serves both kinds of bars, so that they can be compared.
    mean = rows[0].mean(2, keepdim=True)
    bar_rows = (torch.cat(rows, dim=2) - mean).flatten(1, 2)  # (B, 112, T/4)

    # Notes in loops, in steps of four beats: bass and middle register together. Only place 0 is
    # kept: the frame itself, and whole loops from it.
    notes = chroma_vocals[:, :12] + chroma_vocals[:, 12:]
    loops = fold(notes, period, 4, [beats // 4 for beats in LOOPS], cfg)
    loop_rows = [2 * loop[:, :, 0] for loop in loops]  # (B, 12, T/4) each

    return torch.cat([bar_rows, *loop_rows], dim=1)


# --------------------------------------------------------------------------------------------------
# Chart. NOT IN THE PAPER, where the voice decides everything. Whoever sings a known song knows its
# chords, and whoever sings to a metronome knows its beats. What the user tells goes into the
# semantic projection as further rows, next to what is heard. In training the chart is told in some
# clips only, so that the model can do without. (From chord names to these rows: see "The chart as
# text", below the vocoder.)

# Rows of a chart: 0 to 11 mark the pitch class of a chord's lowest note, 12 to 23 those of all its
# notes. The others:
CHART_CHORD_TOLD = 24  # 1 where a chord, or that there is none, is told
CHART_PULSE = 25  # a triangle around each beat
CHART_BEAT_TOLD = 26  # 1 where the beats are told
N_CHART = 27

PULSE_WIDTH = 0.064  # seconds, 1.5 feature frames: so far from a beat the pulse is 0
TUNING_WIDTH = 0.4  # semitones: clips that are played faster lie between two pitch classes


def frame_centres(num_frames, cfg):
    """Times of the middles of feature frames, in seconds: (num_frames,)."""
    return (torch.arange(num_frames) + 0.5) / frame_rate(cfg)


def beat_pulses(beats, num_frames, cfg):
    """Times of beats in seconds, sorted -> (num_frames,): a triangle around each, 1 at its top."""
    if len(beats) == 0:
        return torch.zeros(num_frames)
    centre = frame_centres(num_frames, cfg)
    beats = torch.as_tensor(beats, dtype=torch.float32)
    after = torch.searchsorted(beats, centre).clamp(max=len(beats) - 1)
    before = (after - 1).clamp(min=0)
    distance = torch.minimum((beats[after] - centre).abs(), (beats[before] - centre).abs())
    return (1 - distance / PULSE_WIDTH).clamp(min=0)


def ones_at(places, width):
    """[(row, column)] -> (12, width), 1 at these places."""
    rows, columns = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T
    table = torch.zeros(12, width)
    table[rows, columns] = 1
    return table


def chord_table(chords, shift):
    """[(begin, end, pitch classes)] -> a column of a chart for each chord, (25, chords + 1).

    Column 0 is "nothing told".
    """
    lowest = []
    notes = []
    for column, (_, _, pitch_classes) in enumerate(chords, 1):
        lowest += [(note, column) for note in pitch_classes[:1]]
        notes += [(note, column) for note in pitch_classes]
    bass = ones_at(lowest, len(chords) + 1)
    tones = ones_at(notes, len(chords) + 1)
    told = (torch.arange(len(chords) + 1) > 0)[None]

    # Moved by a fraction of a semitone, a note lies between two pitch classes. Even one that is not
    # moved marks its neighbours, with 4 %.
    source = torch.arange(12)
    target = source[:, None]
    distance = (target - source - shift + 6) % 12 - 6  # (12, 12), -6 to 6 semitones
    moved = torch.exp(-0.5 * (distance / TUNING_WIDTH).square())
    return torch.cat([moved @ bass, moved @ tones, told])


def chord_rows(chords, num_frames, cfg, shift):
    """[(begin, end, pitch classes)], sorted -> the first rows of a chart, (25, num_frames)."""
    # Which chord sounds in the middle of a frame? The last one that has begun, if it has not ended.
    centre = frame_centres(num_frames, cfg)
    begins = torch.tensor([begin for begin, _, _ in chords], dtype=torch.float32)
    ends = torch.tensor([-1.0] + [end for _, end, _ in chords])
    column = torch.searchsorted(begins, centre, right=True)
    column = torch.where(centre < ends[column], column, 0)
    return chord_table(chords, shift)[:, column]


def chart_features(chords, beats, num_frames, cfg, shift=0.0):
    """What is told of a song or clip -> (N_CHART, num_frames), 0 where nothing is told.

    chords: [(begin, end, pitch classes)] in seconds, sorted, the lowest note first; no pitch class
    means that no chord sounds. beats: times in seconds, sorted; none: beats are not told. shift:
    semitones by which a clip that is played faster or slower has been moved.
    """
    beats_told = torch.full((1, num_frames), float(len(beats) > 0))
    pulses = beat_pulses(beats, num_frames, cfg)[None]
    return torch.cat([chord_rows(chords, num_frames, cfg, shift), pulses, beats_told])


def draw_chart_mask(batch, num_frames, options):
    """What of its chart each clip is told, in training -> (batch, N_CHART, num_frames), 0 or 1.

    Half of the clips are told nothing, a tenth the chords, a quarter both, and the others the
    beats: all the time or for a stretch.
    """
    kind = torch.rand(batch, 1, 1, **options)
    chords_told = kind < 0.35
    beats_told = (kind > 0.1) & (kind < 0.5)

    # At each end, with a chance of a half, up to half of the clip is left out.
    left_out = (torch.rand(batch, 2, 1, **options) - 0.5).clamp(min=0)
    place = torch.arange(num_frames, device=kind.device) / num_frames
    inside = (place >= left_out[:, :1]) & (place < 1 - left_out[:, 1:])

    rows = torch.arange(N_CHART, device=kind.device)[:, None]
    told = torch.where(rows >= CHART_PULSE, beats_told, chords_told)
    return (told & inside).float()


# --------------------------------------------------------------------------------------------------
# Blocks. No statistics are taken over time, and attention has a fixed reach. So a result depends on
# what is around a frame and not on the length of the clip: trained on clips, the model works on
# songs.


class RMSNorm(nn.Module):
    """Divides by the root mean square over the channels (dim 1); a learnt gain per channel."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x, scale=0.0):
        """x (B, C, ...); scale (B, C), if given, changes the gain for each example."""
        # 1e-6: silence stays silent. The mean is taken in float32; the result has the dtype of x,
        # also under CUDA's autocast, which squares in float32.
        mean_square = x.square().mean(dim=1, keepdim=True, dtype=torch.float32)
        inverse = (mean_square + 1e-6).rsqrt()
        gain = self.gain * (1 + scale)  # (C,) or (B, C)
        gain = gain.view(*gain.shape, *[1] * (x.dim() - 2))
        return x * inverse.to(x.dtype) * gain.to(x.dtype)


def rotate(x, position):
    """Rotary positions: turns pairs of channels of x (B, heads, T, head_dim) by position * freq.

    position (T,): the place in time of each frame or token.
    """
    freqs = 10000.0 ** -torch.linspace(0, 1, x.shape[-1] // 2, device=x.device)
    angle = position[:, None] * freqs  # (T, head_dim/2)
    a, b = x.chunk(2, dim=-1)
    turned = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
    return torch.cat(turned, dim=-1).to(x.dtype)


class LocalAttention(nn.Module):
    """Residual attention over time, `radius` frames to either side, with rotary positions (RoPE).

    Queries are taken in blocks of `radius` frames. Each block sees itself and its two neighbours:
    exact, and linear in the number of frames. inner = number of heads * head_dim.
    """

    def __init__(self, channels, inner, radius, head_dim=32):
        super().__init__()
        self.radius = radius
        self.head_dim = head_dim
        self.norm = RMSNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * inner, 1)
        self.out = nn.Conv1d(inner, channels, 1)

    def into_blocks(self, x):
        """(B, heads, T, head_dim) -> (B, heads, blocks, radius, head_dim), zeros at the end."""
        missing = -x.shape[2] % self.radius
        return F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, self.radius))

    def with_neighbours(self, blocks):
        """(B, heads, blocks, radius, head_dim) -> (B, heads, blocks, 3 * radius, head_dim)."""
        padded = F.pad(blocks, (0, 0, 0, 0, 1, 1))
        return torch.cat([padded[:, :, :-2], blocks, padded[:, :, 2:]], dim=3)

    def forward(self, x):
        """(B, C, T) -> (B, C, T)"""
        T = x.shape[-1]
        R = self.radius

        qkv = self.qkv(self.norm(x)).unflatten(1, (3, -1, self.head_dim)).transpose(-1, -2)
        q, k, v = qkv.unbind(1)  # (B, heads, T, head_dim) each
        time = torch.arange(T, device=x.device)
        q = self.into_blocks(rotate(q, time))
        k = self.with_neighbours(self.into_blocks(rotate(k, time)))
        v = self.with_neighbours(self.into_blocks(v))

        # Which frames are queries and keys? Keys too far away, or outside of the clip, are masked.
        i = torch.arange(q.shape[2] * R, device=x.device).view(-1, R, 1)  # (blocks, R, 1)
        j = i[:, :1] + torch.arange(-R, 2 * R, device=x.device)  # (blocks, 1, 3R)
        masked = ((i - j).abs() > R) | (j < 0) | (j >= T)

        # Written out: on a CPU faster than torch's fused attention with a mask. A score of -1e4
        # makes a weight of exactly 0.
        score = (self.head_dim**-0.5 * q) @ k.transpose(-1, -2)  # (B, heads, blocks, R, 3R)
        score = score + torch.where(masked, -1e4, 0.0).to(score.dtype)
        weight = score.softmax(-1).to(v.dtype)
        y = (weight @ v).flatten(2, 3)[:, :, :T]  # (B, heads, T, head_dim)

        return x + self.out(y.transpose(-1, -2).flatten(1, 2))


class TimeBlock(nn.Module):
    """Residual dilated convolution over time, then a two-layer perceptron per frame."""

    def __init__(self, C, dilation):
        super().__init__()
        self.conv = nn.Sequential(
            RMSNorm(C),
            nn.Conv1d(C, C, 5, padding=2 * dilation, dilation=dilation),
            nn.SiLU(),
        )
        self.mlp = nn.Sequential(
            RMSNorm(C),
            nn.Conv1d(C, 4 * C, 1),
            nn.SiLU(),
            nn.Conv1d(4 * C, C, 1),
        )

    def forward(self, x):
        """(B, C, T) -> (B, C, T)"""
        x = x + self.conv(x)
        return x + self.mlp(x)


# --------------------------------------------------------------------------------------------------
# The two projections, the heart of the paper (Fig. 1b). Both are regressions.
#
#   semantic   features and bar profile of the vocals, chart -> expected of the band     L_semantic
#   prior      expected features and hidden state of the former -> mean mel, mu          L_prior
#
# Why two? The first says what to play: 28 numbers per 43 ms for harmony, rhythm and loudness, and
# the beat. They are easy to learn from few songs, and the U-Net is told them at every step. But
# they do not say in which of the 100 mel bands, nor when within the 43 ms. The second says that, in
# the U-Net's own terms: a mel. It also sees the hidden state of the first, since 29 numbers alone
# would be a bottleneck.
#
# Why is that not the end? A regression learns the mean of all that could follow. The mean of many
# accompaniments is a blur that sounds like none of them. The diffusion draws one of them.
#
# Official code: WaveNets, of 8 x 8 layers and about 150 M parameters for the semantic projection;
# the prior sees the expected features, added to the vocals' own. Here attention gives the many
# seconds of context that a beat and a key need, with 1.5 M for the semantic projection.


class Projection(nn.Module):
    """Inputs (B, *, T/4) with c_in channels in all -> output (B, c_out, T/4), hidden (B, dim, T/4).

    Every second layer is followed by attention, if attention is True.
    """

    def __init__(self, cfg, c_in, c_out, layers, attention):
        super().__init__()
        self.embed = nn.Conv1d(c_in, cfg.dim, 1)
        self.layers = nn.Sequential()
        for i in range(layers):
            self.layers.append(TimeBlock(cfg.dim, dilation=2 ** (i % 4)))
            if attention and i % 2 == 1:
                self.layers.append(LocalAttention(cfg.dim, cfg.dim, cfg.attention_radius))
        self.out = nn.Sequential(RMSNorm(cfg.dim), nn.Conv1d(cfg.dim, c_out, 1))

    def forward(self, *inputs):
        hidden = self.layers(self.embed(torch.cat(inputs, dim=1)))
        return self.out(hidden), hidden


# --------------------------------------------------------------------------------------------------
# U-Net: the network of the diffusion (Fig. 1c). It sees the noisy mel and mu as two pictures, and
# the expected features. The mel (100, T) is folded into 4 x 4 patches; for the demo preset:
#
#                         channels   frequency x time     frame of
#   level 0                     48   25 x T/4                43 ms      down ->             -> up
#   level 1                     96   13 x T/8                85 ms         down ->       -> up
#   level 2, attention         192    7 x T/16              171 ms            -> middle
#
# Official code: Grad-TTS's U-Net, 64 x (1, 2, 4) channels at the full 100 x 1024, and mu alone as
# condition. With as many channels, patches cost about a fourteenth of the operations.


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions; the noise level scales and shifts what lies between them.

    The last convolution starts at zero, so the block starts as its shortcut alone.
    """

    def __init__(self, c_in, c_out, c_emb):
        super().__init__()
        self.norm1 = RMSNorm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulate = nn.Linear(c_emb, 2 * c_out)
        self.norm2 = RMSNorm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x, emb):
        """x (B, c_in, rows, time), emb (B, c_emb) -> (B, c_out, rows, time)"""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(emb).chunk(2, dim=1)
        h = self.norm2(h, scale) + shift[:, :, None, None]
        h = self.conv2(F.silu(h))
        return self.skip(x) + h


class DownStage(nn.Module):
    """Residual blocks at one level, then the step to the next: half the rows, half the time."""

    def __init__(self, c, c_next, c_emb, blocks):
        super().__init__()
        self.blocks = nn.ModuleList([ResBlock(c, c, c_emb) for _ in range(blocks)])
        self.halve = nn.Conv2d(c, c_next, 3, stride=2, padding=1)

    def forward(self, h, emb):
        """-> what goes down (B, c_next, rows/2, time/2), what the way up will need (B, c, ...)"""
        for block in self.blocks:
            h = block(h, emb)
        return self.halve(h), h


class UpStage(nn.Module):
    """The step back up to a level, joined with what its DownStage kept, then residual blocks."""

    def __init__(self, c_below, c, c_emb, blocks):
        super().__init__()
        self.narrow = nn.Conv2d(c_below, c, 1)
        inputs = [2 * c] + [c] * (blocks - 1)
        self.blocks = nn.ModuleList([ResBlock(c_in, c, c_emb) for c_in in inputs])

    def forward(self, h, skip, emb):
        h = self.narrow(h)
        doubled = F.interpolate(h, scale_factor=2, mode="nearest").to(h.dtype)  # CUDA: float32
        doubled = doubled[:, :, : skip.shape[2]]  # 25 rows became 13, then 26

        h = torch.cat([doubled, skip], dim=1)  # (B, 2c, rows, time)
        for block in self.blocks:
            h = block(h, emb)
        return h


class UNet(nn.Module):
    """The raw network F_x of EDM."""

    def __init__(self, cfg):
        super().__init__()
        C = cfg.channels
        c_emb = 4 * C[0]
        self.rows = cfg.n_mels // PATCH
        bottom_rows = math.ceil(self.rows / 2 ** (len(C) - 1))

        # Inputs: the noise level; two pictures; the features, painted over the rows; and the number
        # of the row, which a convolution cannot know.
        self.noise = nn.Sequential(
            nn.Linear(32, c_emb),
            nn.SiLU(),
            nn.Linear(c_emb, c_emb),
            nn.SiLU(),
        )
        self.embed = nn.Conv2d(2 * PATCH**2, C[0], 3, padding=1)
        self.features = nn.Conv1d(N_EXPECTED, C[0] * self.rows, 1)
        self.position = nn.Parameter(torch.randn(C[0], self.rows, 1) * 0.1)

        # Levels from the finest to the coarsest and back
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in range(len(C) - 1):
            self.down.append(DownStage(C[level], C[level + 1], c_emb, cfg.blocks))
        for level in reversed(range(len(C) - 1)):
            self.up.append(UpStage(C[level + 1], C[level], c_emb, cfg.blocks))

        # At the bottom, all rows of a frame together are one token of the attention.
        self.middle1 = ResBlock(C[-1], C[-1], c_emb)
        self.attention = LocalAttention(C[-1] * bottom_rows, C[-1], cfg.unet_radius)
        self.middle2 = ResBlock(C[-1], C[-1], c_emb)

        # The output starts at zero, so D_x starts as c_skip * x.
        last = nn.Conv2d(C[0], PATCH**2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(RMSNorm(C[0]), nn.SiLU(), last)

        self.to(memory_format=torch.channels_last)  # faster convolutions

    def embed_noise(self, c_noise):
        """(B,) -> (B, c_emb): 16 sines and cosines with frequencies from 1 to 55."""
        freqs = torch.exp(torch.linspace(0, 4, 16, device=c_noise.device))
        angle = c_noise[:, None] * freqs
        return self.noise(torch.cat([angle.cos(), angle.sin()], dim=1))

    def forward(self, x, mu, expected, c_noise):
        """x, mu (B, M, T); expected (B, S + 1, T/4); c_noise (B,) -> F_x (B, M, T).

        T must be a multiple of 4 * 2 ** (levels - 1): of 16 for three levels.
        """
        emb = self.embed_noise(c_noise)
        pictures = torch.stack([x, mu], dim=1)  # (B, 2, M, T)
        h = self.embed(F.pixel_unshuffle(pictures, PATCH))  # (B, C, rows, T/4)
        painted = self.features(expected).unflatten(1, (-1, self.rows))
        h = h + (self.position + painted).to(h.dtype)

        skips = []
        for stage in self.down:
            h, skip = stage(h, emb)
            skips.append(skip)

        h = self.middle1(h, emb)
        tokens = h.flatten(1, 2)  # (B, C * rows, T/16)
        h = self.attention(tokens).view_as(h)
        h = self.middle2(h, emb)

        for stage in self.up:
            h = stage(h, skips.pop(), emb)

        return F.pixel_shuffle(self.out(h), PATCH)[:, 0]


# --------------------------------------------------------------------------------------------------
# Diffusion: EDM (Karras et al. 2022). A network learns to remove noise of any level sigma from a
# mel. Sampling starts from much noise and removes it step by step, towards what the network takes
# for the mel at each level. Frames do not wait for each other: a song takes 8 steps, 12 evaluations
# of the network with guidance, whatever its length.
#
# Preconditioning, loss weight, noise distribution and the formula for the noise levels are those of
# EDM's Table 1 (column "Ours"). Three things differ:
#   - The solver is Euler's, as in the official code. A second-order solver that ends nearer to the
#     exact solution, DPM-Solver++, does not play better (docs/log.md, 2026-11-28); EDM's own,
#     Heun's, does worse in so few steps (2026-11-27, "The ladder of steps").
#   - It starts from mu in noise of sigma 5, not from pure noise of 80. From 80 down to 5, the best
#     guess is hardly more than the mean, and mu is that mean.
#   - Guidance acts on the high noise levels only, and the first noise is divided by a temperature,
#     though the network is told sigma_max (Grad-TTS).
# The official code takes the preconditioning of consistency models, (sigma - sigma_min) for sigma,
# and 51 steps.


class Denoiser(nn.Module):
    """D(x; sigma): the denoised mel, by the U-Net with the preconditioning of EDM's Table 1."""

    def __init__(self, cfg):
        super().__init__()
        self.sigma_data = cfg.sigma_data
        self.unet = UNet(cfg)

    def forward(self, x, sigma, mu, expected):
        """Noisy mel x (B, M, T) with noise of sigma (B,); mu, expected -> D_x (B, M, T); eq. 7."""
        sigma = sigma[:, None, None]
        sigma_data = self.sigma_data

        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
        c_in = 1 / (sigma**2 + sigma_data**2).sqrt()
        c_noise = sigma.log() / 4

        F_x = self.unet(c_in * x, mu, expected, c_noise.flatten())
        D_x = c_skip * x + c_out * F_x
        return D_x


def diffusion_loss(denoiser, mel, mu, expected, sigma, noise):
    """EDM's loss per example, (B,): eq. 2 with the weight lambda(sigma) of Table 1."""
    sigma_data = denoiser.sigma_data
    noisy = mel + sigma[:, None, None] * noise
    D_x = denoiser(noisy, sigma, mu, expected)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return weight * (D_x - mel).square().mean((1, 2))


def noise_levels(num_steps, cfg):
    """(num_steps + 1,) noise levels from sigma_max to sigma_min, then 0: eq. 5."""
    highest = cfg.sigma_max ** (1 / cfg.rho)
    lowest = cfg.sigma_min ** (1 / cfg.rho)
    sigmas = torch.linspace(highest, lowest, num_steps) ** cfg.rho
    return F.pad(sigmas, (0, 1))


def euler_solver(denoise, x, sigmas, progress=False):
    """From x (B, M, T) in noise of sigmas[0] to a sample: EDM, Algorithm 1 without its correction.

    denoise(x, sigma) -> D_x. sigmas (num_steps + 1,) fall, the last one is 0: there x ends at the
    denoised mel itself.
    """
    hide = None if progress else True  # None: show the bar on a terminal, not in a file
    for i in tqdm(range(len(sigmas) - 1), "diffusion", leave=False, disable=hide):
        slope = (x - denoise(x, sigmas[i])) / sigmas[i]  # dx / dsigma, eq. 1 and 3
        x = x + (sigmas[i + 1] - sigmas[i]) * slope
    return x


def draw_timbre(batch, cfg, generator):
    """How a song's timbre differs from the average: a level and a slope, (batch, M, 1).

    mu has the average timbre of all accompaniments. The first noise hides what changes from frame
    to frame, but what lasts for a whole song shows through it. So the U-Net would take mu's timbre
    for the song's own, and all songs would sound alike. Level, and slope from low to high
    frequencies, explain 69 % of how true mels differ from mu in their means over time (docs/log.md,
    2026-11-27).
    """
    level, slope = cfg.timbre_std * torch.randn(2, batch, 1, 1, generator=generator)
    frequency = math.sqrt(3) * torch.linspace(-1, 1, cfg.n_mels)[:, None]  # of variance 1
    return level + slope * frequency


def classifier_free_guidance(denoiser, x, sigma, mu, expected, guidance_scale):
    """D_x, moved away from what the network says without a condition (Ho and Salimans 2022).

    Scale 1 is no guidance and one evaluation; any other scale takes two. The larger the scale, the
    surer the band is of beat and chords, and the less the takes differ. (Their w is our scale - 1.)
    """
    cond = denoiser(x, sigma, mu, expected)
    if guidance_scale == 1:
        return cond
    uncond = denoiser(x, sigma, torch.zeros_like(mu), torch.zeros_like(expected))
    return uncond + guidance_scale * (cond - uncond)


def in_pieces(run, frames, size, halo, hop=1):
    """Runs a long song piece by piece: run(begin, end) -> (..., hop values per frame), joined.

    Each piece gets `halo` more frames on either side, which are cut off again. If the network sees
    no further than the halo, the joins are exact. end may lie beyond the song.
    """
    pieces = []
    for start in range(0, frames, size):
        begin = max(0, start - halo)
        piece = run(begin, start + size + halo)
        pieces.append(piece[..., (start - begin) * hop : (start - begin + size) * hop])
    return torch.cat(pieces, dim=-1)


# --------------------------------------------------------------------------------------------------
# FastSAG: the parts joined. Three losses train together with weights 1 : 1 : 1, as in the paper:
# semantic and prior are squared errors (the prior's is divided by the mel's variance, which the
# official code does not do), the third is EDM's. The expected beat, which is not in the paper, has
# a small loss of its own. The diffusion loss also trains the two projections, through mu and the
# expected features, as in the official code. So these are not purely means: they lean towards what
# helps the U-Net.

BEAT_WEIGHT = 0.2  # of the loss of the expected beat, beside 1 : 1 : 1


def beat_loss(expected_beat, chart):
    """Squared error of the expected pulse (B, T/4), where the true beats are known; weighted.

    The target is the chart's pulse; factor and offset bring it to about mean 0 and variance 1.
    Where the beats are not known, the error counts as 0. It is a mean over all frames, like the
    other losses: so several GPUs that share a batch have the same loss as one.
    """
    target = 4 * chart[:, CHART_PULSE] - 0.5
    is_known = chart[:, CHART_BEAT_TOLD]
    error = (expected_beat - target).square() * is_known
    return BEAT_WEIGHT * error.mean()


def expected_pulse(expected):
    """(B, S + 1, T/4) -> (B, T/4): about 1 where a beat is expected for sure, 0 for no beat."""
    return (expected[:, N_FEATURES] + 0.5) / 4


def crop(x, start, length):
    """Each row of x (B, C, T) from its own start (B,) on -> (B, C, length)."""
    frames = start[:, None, None] + torch.arange(length, device=x.device)
    return x.take_along_dim(frames, dim=2)


class FastSAG(nn.Module):
    """Vocals to accompaniment. In use: FastSAG.load(path), then accompany(vocals, sample_rate)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        heard_and_told = N_FEATURES + N_BAR + N_CHART
        self.semantic = Projection(cfg, heard_and_told, N_EXPECTED, cfg.layers, attention=True)
        self.prior = Projection(cfg, N_EXPECTED + cfg.dim, PATCH * cfg.n_mels, 2, attention=False)
        self.denoiser = Denoiser(cfg)
        self.vocoder = None  # a Vocoder(cfg), once one is trained

        # Samples that one column at the bottom of the U-Net stands for: all lengths are multiples
        # of it.
        self.frame_length = cfg.hop_length * PATCH * 2 ** (len(cfg.channels) - 1)

    @property
    def device(self):
        return next(self.parameters()).device

    def condition(self, vocals, chart=None, keep_inputs=None):
        """What and where to play: vocals (B, L) -> expected (B, S + 1, T/4), mu (B, M, T).

        chart (B, N_CHART, T/4): what the user tells; None is nothing. keep_inputs (B, 2), in
        training: 0 where the music features, or the bar profile, are hidden, so that the
        projections learn to manage with either of them.
        """
        mel = log_mel(vocals, self.cfg)
        features = music_features(vocals, mel, self.cfg)
        bar = bar_profile(mel, chroma_of(features), self.cfg)
        if self.cfg.without == "bar-profile":
            bar = torch.zeros_like(bar)
        if keep_inputs is not None:
            features = features * keep_inputs[:, :1, None]
            bar = bar * keep_inputs[:, 1:, None]

        if chart is None:
            chart = torch.zeros(len(mel), N_CHART, bar.shape[-1], device=mel.device)

        expected, hidden = self.semantic(features, bar, chart)
        if self.cfg.without == "semantic":
            expected = torch.zeros_like(expected)
        # Each feature frame holds four mel frames: (B, M * 4, T/4) -> (B, M, T/4, 4) -> (B, M, T)
        frames, _ = self.prior(expected, hidden)
        mu = frames.unflatten(1, (-1, PATCH)).transpose(2, 3).flatten(2)
        if self.cfg.without == "prior":
            mu = torch.zeros_like(mu)
        return expected, mu

    def draw_randomness(self, batch, frames, generator):
        """Everything random in a training step on clips of `frames` mel frames -> dict of tensors.

        Drawn apart from the step: validation sets the noise level, several GPUs share the rows.
        """
        cfg = self.cfg
        options = {"generator": generator, "device": generator.device}
        segment = min(cfg.segment, frames)
        unit = self.frame_length // cfg.hop_length  # segments begin at frames of the U-Net's bottom

        log_sigma = cfg.P_mean + cfg.P_std * torch.randn(batch, **options)
        start = torch.randint((frames - segment) // unit + 1, (batch,), **options) * unit
        noise = torch.randn(batch, cfg.n_mels, segment, **options)
        keep_cond = torch.rand(batch, **options) >= cfg.cond_dropout
        keep_inputs = torch.rand(batch, 2, **options) >= cfg.input_dropout
        chart_mask = draw_chart_mask(batch, frames // PATCH, options)
        return {
            "sigma": log_sigma.exp(),
            "start": start,
            "noise": noise,
            "keep_cond": keep_cond.float(),
            "keep_inputs": keep_inputs.float(),
            "chart_mask": chart_mask,
        }

    def forward(self, vocals, accomp, chart, randomness):
        """vocals, accomp (B, L), chart (B, N_CHART, T/4), what draw_randomness() gave -> losses.

        A dict: the three losses of the paper, and "beat", weighted. "diffusion" is (B,), the others
        are scalars. The three are close to 1 for networks whose output is 0, hence weights of
        1 : 1 : 1.
        """
        cfg = self.cfg
        log_mel_accomp = log_mel(accomp, cfg)
        features = music_features(accomp, log_mel_accomp, cfg)
        mel_accomp = normalise(log_mel_accomp, cfg)

        told = chart * randomness["chart_mask"]
        expected, mu = self.condition(vocals, told, randomness["keep_inputs"])
        semantic = F.mse_loss(expected[:, :N_FEATURES], features)
        beat = beat_loss(expected[:, N_FEATURES], chart)
        prior = F.mse_loss(mu, mel_accomp) / cfg.sigma_data**2

        # The U-Net needs less context than the projections: a segment of each clip is enough
        # (Grad-TTS). For guidance, some examples lose their condition.
        sigma = randomness["sigma"]
        noise = randomness["noise"]
        start = randomness["start"]
        segment = noise.shape[-1]
        keep = randomness["keep_cond"][:, None, None]
        mel_segment = crop(mel_accomp, start, segment)
        mu_segment = crop(mu, start, segment) * keep
        expected_segment = crop(expected, start // PATCH, segment // PATCH) * keep
        diffusion = diffusion_loss(
            self.denoiser, mel_segment, mu_segment, expected_segment, sigma, noise
        )

        if cfg.without == "semantic-loss":
            semantic = 0 * semantic
            beat = 0 * beat
        if cfg.without == "prior-loss":
            prior = 0 * prior
        if cfg.without == "diffusion":
            diffusion = 0 * diffusion
        return {"semantic": semantic, "beat": beat, "prior": prior, "diffusion": diffusion}

    def denoise_song(self, x, sigma, mu, expected, guidance_scale, window=8192, halo=512):
        """The denoised mel of a whole song; on a CPU in windows of 87 s, to save memory.

        The U-Net sees about 400 mel frames to either side (base: 450): 512 leave no seam.
        """
        sigma = torch.full((len(x),), float(sigma), device=x.device)

        def run(begin, end):
            noisy = x[..., begin:end]
            cond = (mu[..., begin:end], expected[..., begin // PATCH : end // PATCH])
            return classifier_free_guidance(self.denoiser, noisy, sigma, *cond, guidance_scale)

        frames = x.shape[-1]
        size = window if x.device.type == "cpu" else frames
        return in_pieces(run, frames, size, halo)

    @torch.no_grad()
    def sample(self, mu, expected, num_steps=8, guidance_scale=5.0, seed=0, progress=False):
        """Draws a normalised mel (B, M, T) for a condition.

        Guidance is applied to the high noise levels only, where beat and chords are decided: half
        of the steps. (Kynkaanniemi et al. 2024, arXiv 2404.07724, leave out the highest, too.)
        progress=True shows a bar.
        """
        cfg = self.cfg
        if cfg.without == "diffusion":
            return mu
        sigmas = noise_levels(num_steps, cfg)  # on the CPU: they steer the loop
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
        noise = torch.randn(mu.shape, generator=generator).to(mu.device)
        timbre = draw_timbre(len(mu), cfg, generator).to(mu.device)
        x = mu + timbre + sigmas[0] / cfg.temperature * noise

        def denoise(x, sigma):
            scale = guidance_scale if sigma > cfg.guidance_min_sigma else 1
            return self.denoise_song(x, sigma, mu, expected, scale)

        with bfloat16_where_it_pays(mu.device):
            return euler_solver(denoise, x, sigmas, progress)

    # From here on: what a user calls, and the steps that sample.py times one by one

    @torch.no_grad()
    def accompany(
        self,
        vocals,
        sample_rate,
        num_steps=8,
        guidance_scale=5.0,
        seed=0,
        chart=None,
        bpm=None,
        first_beat=None,
    ):
        """vocals (L,) float -> accompaniment (L,) float32 numpy, at the same sample rate.

        It is as loud as the vocals, measured by active_dbfs. Half a minute or more lets the model
        find the beat. chart, bpm, first_beat: what the user tells, see tell(). Raises ValueError
        for vocals that are not mono, or silent, and UserError for what tell() refuses.
        """
        vocals = torch.as_tensor(vocals, dtype=torch.float32)
        wav, gain = self.prepare(vocals, sample_rate)
        told = self.tell(wav, len(vocals) / sample_rate, chart, bpm, first_beat)
        expected, mu = self.condition(wav, told)
        mel = self.sample(mu, expected, num_steps, guidance_scale, seed)
        return self.render(mel, gain, sample_rate, len(vocals))

    def prepare(self, vocals, sample_rate):
        """(L,) -> (1, L'), padded to whole U-Net frames, and the gain that was applied.

        The model knows one sample rate and one level, and so does its training.
        """
        if vocals.dim() != 1 or len(vocals) == 0:
            raise ValueError(f"vocals must be mono, shape (L,); got {tuple(vocals.shape)}")
        wav = resample(vocals, sample_rate, self.cfg.sample_rate)
        level = active_dbfs(wav, self.cfg.sample_rate)
        if level == -math.inf:
            raise ValueError("vocals are silent")

        gain = 10 ** ((self.cfg.level_dbfs - level) / 20)
        padded = F.pad(wav * gain, (0, -len(wav) % self.frame_length))
        return padded[None].to(self.device), gain

    def tell(self, wav, seconds, chart=None, bpm=None, first_beat=None):
        """What the user tells of a song -> (1, N_CHART, T/4) for condition(); None if nothing.

        wav (1, L') as prepare() gives it; seconds: length of the song. chart: chords as (begin,
        end, label) in seconds, see parse_chord(); between them the model decides. bpm:
        beats per minute. first_beat: time of a beat in seconds; if None, it is the beginning of the
        first chord (of the second, if the first begins at 0 s with the file), or else the beats
        that the model expects decide. Raises UserError for what cannot be.
        """
        check_told(bpm, first_beat, seconds)
        if not chart and bpm is None:
            return None

        chords = parse_chart(chart or [], seconds)
        num_frames = wav.shape[-1] // (self.cfg.hop_length * PATCH)
        beats = []
        if bpm is not None:
            bpm = told_tempo(bpm)
            if first_beat is None:
                first_beat = next((begin for begin, _, _ in chords if begin > 0), None)
            if first_beat is None:
                expected, _ = self.condition(wav)
                pulse = expected_pulse(expected)[0].float().cpu()
                first_beat = find_first_beat(pulse, bpm, self.cfg)
            beats = regular_beats(bpm, first_beat, num_frames / frame_rate(self.cfg))
        return chart_features(chords, beats, num_frames, self.cfg)[None].to(wav.device)

    def vocode(self, mel, vocoder="neural"):
        """log-mel (1, M, T) -> waveform (1, T * hop). "neural" or "griffinlim".

        Weights without a neural vocoder are played by Griffin-Lim.
        """
        if vocoder == "griffinlim" or self.vocoder is None:
            return griffin_lim(mel, self.cfg)
        with bfloat16_where_it_pays(mel.device):
            return self.vocoder.vocode_song(mel)

    def render(self, mel, gain, sample_rate, length, vocoder="neural"):
        """Normalised mel (1, M, T) -> (length,) float32 numpy; undoes the gain of prepare()."""
        wav = self.vocode(denormalise(mel, self.cfg), vocoder)[0].cpu()
        wav = resample(wav, self.cfg.sample_rate, sample_rate)[:length]
        level = active_dbfs(wav, sample_rate)
        wav = wav * 10 ** ((self.cfg.level_dbfs - level) / 20) / gain
        return F.pad(wav, (0, length - len(wav))).numpy()

    def save(self, path):
        """Writes what sampling needs, in half precision: {"config", "ema"}.

        EMA is the exponential moving average of the weights, which train.py samples with.
        """
        weights = {name: weight.half() for name, weight in self.state_dict().items()}
        save_checkpoint({"config": asdict(self.cfg), "ema": weights}, path)

    @classmethod
    def load(cls, path, device="auto"):
        """A released or a training checkpoint -> model in eval mode, with the EMA weights.

        Raises UserError if the file is neither, or the device is not there.
        """
        checkpoint = load_checkpoint(path)
        with explain_misfits(path):
            model = cls(Config(**checkpoint["config"]))
            if any(name.startswith("vocoder.") for name in checkpoint["ema"]):
                model.vocoder = Vocoder(model.cfg)
            model.load_state_dict(checkpoint["ema"])
        return model.float().eval().to(pick_device(device))


# --------------------------------------------------------------------------------------------------
# From mel to sound. A mel has no phases, and its bands are too wide to separate neighbouring
# overtones. The neural vocoder has learnt to guess both. It works at the mel's frame rate and
# leaves the way up to 24 kHz to the inverse STFT, which is the idea of Vocos. Griffin-Lim, the way
# without any learning, begins with random phases. Both methods end with the same search for better
# phases. Official code: BigVGAN, pretrained, 112 M parameters.


def find_phases(spec, correct, num_rounds, momentum, cfg):
    """Fast Griffin-Lim (Perraudin et al. 2013): spec (B, n_fft/2 + 1, T) -> waveform (B, T * hop).

    Most spectra belong to no waveform. Each round goes to the nearest waveform and back, which
    mends the phases, and correct(spec, share of the rounds done) mends the magnitudes. Momentum
    saves many rounds.
    """
    wav = istft(correct(spec, 0), cfg.n_fft, cfg.hop_length)
    ahead = wav
    for i in range(num_rounds):
        old_wav = wav
        spec = stft(ahead, cfg.n_fft, cfg.hop_length)
        wav = istft(correct(spec, (i + 1) / num_rounds), cfg.n_fft, cfg.hop_length)
        ahead = wav + momentum * (wav - old_wav)
    return wav


@functools.lru_cache
def inverse_filterbank(sample_rate, n_fft, n_mels, device):
    """(n_fft/2 + 1, n_mels): mel magnitudes -> magnitudes of the bins, by least squares."""
    filters = mel_filterbank(sample_rate, n_fft, n_mels)
    return torch.linalg.pinv(filters).to(device)  # computed on the CPU: mps has no pinv


def griffin_lim(mel, cfg, num_rounds=32, momentum=0.99):
    """log-mel (B, M, T) -> waveform (B, T * hop). Takes 2 GB for ten minutes of sound."""
    inverse = inverse_filterbank(cfg.sample_rate, cfg.n_fft, cfg.n_mels, mel.device)
    target = (inverse @ mel.exp()).clamp(min=0)

    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(target.shape[1:], generator=generator).to(mel.device)
    spec = torch.polar(target, angle.expand_as(target))

    def correct(spec, done):
        return target * spec / spec.abs().clamp(min=1e-8)

    return find_phases(spec, correct, num_rounds, momentum, cfg)


def match_mel(spec, mel, cfg, power=1):
    """Scales the bins of spec (B, n_fft/2 + 1, T) so that its mel comes closer to mel (B, M, T).

    A multiplicative update as in non-negative matrix factorisation (Lee and Seung 2001), taken to a
    power. Bins that no band covers fall silent.
    """
    filters = mel_filterbank(cfg.sample_rate, cfg.n_fft, cfg.n_mels, spec.device)
    spec = spec.transpose(1, 2)  # frames first, as they lie in memory
    wanted = mel.exp().transpose(1, 2)
    present = magnitude(spec) @ filters.T  # (B, T, M)

    # Each bin gets the mean of its bands' ratios, weighted by how much it counts for them.
    share = filters / filters.sum(0).clamp(min=1e-8)
    ratio = (wanted / present) ** power @ share
    return (spec * ratio).transpose(1, 2)


def log_spectrum(wav, n_fft):
    """(B, L) -> (B, n_fft/2 + 1, 4 L / n_fft). 1e-3 is 66 dB below the spectrum of usual music."""
    return (stft(wav, n_fft, n_fft // 4).abs() + 1e-3).log()


def stft_distance(a, b):
    """Waveforms (B, L) -> mean difference of log-spectra, at three resolutions, (3,).

    In units of the natural logarithm. train.py and sample.py --evaluate use it.
    """
    distances = []
    for n_fft in (512, 1024, 2048):
        distances.append(F.l1_loss(log_spectrum(a, n_fft), log_spectrum(b, n_fft)))
    return torch.stack(distances)


class ConvNeXtBlock(nn.Module):
    """Convolution over time per channel, then a perceptron per frame (Liu et al. 2022, in 1-D)."""

    def __init__(self, C):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(C, C, 7, padding=3, groups=C),
            RMSNorm(C),
            nn.Conv1d(C, 3 * C, 1),
            nn.GELU(),
            nn.Conv1d(3 * C, C, 1),
        )
        self.scale = nn.Parameter(torch.full((C, 1), 0.2))  # deep stacks start near the identity

    def forward(self, x):
        """(B, C, T) -> (B, C, T)"""
        return x + self.scale * self.layers(x)


class Vocoder(nn.Module):
    """log-mel (B, M, T) -> waveform (B, T * hop).

    The network gives magnitudes and phases of each frame. A steady tone has the same mel in every
    frame, but its phase moves on. So phases are given relative to a known rotation: a tone in the
    middle of bin k then has the same phase in every frame. A tone beside the middle still drifts
    from frame to frame, and a convolution cannot count frames. Clocks count for it: slow waves, of
    8 to 128 frames, as further inputs.
    """

    CLOCK_PERIODS = (8, 16, 32, 64, 128)  # mel frames
    NUM_ROUNDS = 8
    MOMENTUM = 0.4
    MAX_LOG_MAGNITUDE = 7  # e^7 is more than a sine of full scale gives

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        C = cfg.vocoder_dim
        blocks = [ConvNeXtBlock(C) for _ in range(cfg.vocoder_layers)]
        self.embed = nn.Conv1d(cfg.n_mels + 2 * len(self.CLOCK_PERIODS), C, 7, padding=3)
        self.blocks = nn.Sequential(*blocks, RMSNorm(C))
        self.out = nn.Conv1d(C, cfg.n_fft + 2, 1)

    def clocks(self, time):
        """Frame numbers (B, 1, T) -> (B, 10, T): a cosine and a sine of each period."""
        phase = torch.cat([time * (2 * math.pi / period) for period in self.CLOCK_PERIODS], dim=1)
        return torch.cat([phase.cos(), phase.sin()], dim=1)

    def rotation(self, time):
        """How far bin k has turned by frame t: 2 pi k t hop / n_fft -> (B, n_fft/2 + 1, T).

        Bins and frames are taken modulo n_fft / hop first, for float32 has few digits.
        """
        overlap = self.cfg.n_fft // self.cfg.hop_length
        bins = torch.arange(self.cfg.n_fft // 2 + 1, device=time.device)[:, None]
        return (time % overlap) * (bins % overlap) * (2 * math.pi / overlap)

    def forward(self, mel, start=0, num_rounds=NUM_ROUNDS):
        """start: the frame of its song that mel begins with; an integer, or integers (B, 1, 1)."""
        frame = torch.arange(mel.shape[-1], device=mel.device)
        time = start + frame.expand(len(mel), 1, -1)  # (B, 1, T)

        # The blocks are passed twice: deeper, without being larger.
        x = self.embed(torch.cat([normalise(mel, self.cfg), self.clocks(time)], dim=1))
        x = self.blocks(self.blocks(x))
        log_magnitude, phase = self.out(x).float().chunk(2, dim=1)

        log_magnitude = log_magnitude.clamp(max=self.MAX_LOG_MAGNITUDE)
        spec = torch.polar(log_magnitude.exp(), phase + self.rotation(time))

        # The mel decides how loud each band is. Going through a waveform undoes a good part of each
        # correction, so corrections grow from power 1 to power 2. Under autocast the products with
        # the filterbank are in bfloat16, 0.2 % off: later rounds mend that.
        def correct(spec, done):
            return match_mel(spec, mel, self.cfg, power=1 + done**2)

        return find_phases(spec, correct, num_rounds, self.MOMENTUM, self.cfg)

    def vocode_song(self, mel, piece=2048, halo=80):
        """The same for a whole song, in pieces of 22 s.

        The network sees 39 frames to either side (base: 51), the rounds about 26: the halo is more.
        """

        def run(begin, end):
            return self(mel[..., begin:end], start=begin)

        return in_pieces(run, mel.shape[-1], piece, halo, self.cfg.hop_length)


# --------------------------------------------------------------------------------------------------
# The chart as text. NOT IN THE PAPER; a reader may skip it. The user tells chords as (begin, end,
# label), in seconds, and a tempo.

LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "b": -1}

# Kinds of chords: semitones above the root. Each has one or more spellings.
CHORD_KINDS = {
    ("", "maj"): (0, 4, 7),
    ("m", "min"): (0, 3, 7),
    ("7",): (0, 4, 7, 10),
    ("maj7", "M7"): (0, 4, 7, 11),
    ("m7", "min7"): (0, 3, 7, 10),
    ("mM7", "minmaj7"): (0, 3, 7, 11),
    ("dim",): (0, 3, 6),
    ("dim7",): (0, 3, 6, 9),
    ("m7b5", "hdim7"): (0, 3, 6, 10),
    ("aug", "+"): (0, 4, 8),
    ("sus2",): (0, 2, 7),
    ("sus4", "sus"): (0, 5, 7),
    ("7sus4",): (0, 5, 7, 10),
    ("6", "maj6"): (0, 4, 7, 9),
    ("m6", "min6"): (0, 3, 7, 9),
    ("9",): (0, 4, 7, 10, 2),
    ("maj9",): (0, 4, 7, 11, 2),
    ("m9", "min9"): (0, 3, 7, 10, 2),
    ("add9",): (0, 4, 7, 2),
    ("5",): (0, 7),
}
SPELLINGS = {name: tones for names, tones in CHORD_KINDS.items() for name in names}

# The bass of a MIREX label, "C:maj/3", is a degree of the major scale.
DEGREES = {"1": 0, "2": 2, "3": 4, "4": 5, "5": 7, "6": 9, "7": 11}


def parse_note(text):
    """The pitch class of a note: 6 for "F#". Raises KeyError if the text names none."""
    return (LETTERS[text[:1]] + ACCIDENTALS[text[1:]]) % 12


def parse_chord(label):
    """The pitch classes of a chord, the lowest note first: [7, 9, 0, 4] for "Am7/G".

    "N" is no chord: []. MIREX spells "A:min7/b7", which is understood, too. Raises UserError.
    """
    if label == "N":
        return []

    name, slash, bass_name = label.partition("/")
    root_length = 2 if name[1:2] in ("#", "b") else 1
    try:
        root = parse_note(name[:root_length])
        tones = SPELLINGS[name[root_length:].removeprefix(":")]
        notes = [(root + tone) % 12 for tone in tones]
        if not slash:
            return notes

        if bass_name[-1:] in DEGREES:
            bass = (root + DEGREES[bass_name[-1:]] + ACCIDENTALS[bass_name[:-1]]) % 12
        else:
            bass = parse_note(bass_name)
    except KeyError:
        raise UserError(
            f"chord {label!r:.40} is not known; C, Am, F#m7, Bbmaj7, Dsus4, C/E or N are right"
        ) from None
    return [bass] + [note for note in notes if note != bass]


def parse_chart(chart, seconds):
    """[(begin, end, label)] of a song of so many seconds -> [(begin, end, pitch classes)], sorted.

    Where a label is "X", an unknown chord in MIREX, the model decides. Raises UserError.
    """
    slack = 0.1  # seconds: times may be rounded
    chords = []
    last_end = 0.0
    for begin, end, label in sorted(chart):
        chord = f"chord {label:.40} from {begin:g} to {end:g} s"
        if not 0 <= begin < end:  # refuses NaN, too
            raise UserError(f"{chord}: must begin at 0 s or later, and end after that")
        if begin >= seconds or end > seconds + slack:
            raise UserError(f"{chord}: must end within the song, which lasts {seconds:.2f} s")
        if begin < last_end - slack:
            raise UserError(f"{chord}: the chord before it ends at {last_end:g} s only")
        last_end = end
        if label != "X":
            chords.append((begin, end, parse_chord(label)))
    return chords


# The model has hardly met other tempos, in beats per minute. Of faster beats every second is told;
# between slower ones, one more each.
SLOWEST_TOLD = 50
FASTEST_TOLD = 180


def check_told(bpm, first_beat, seconds):
    """Raises UserError if a tempo or the time of a beat cannot be."""
    if bpm is not None and not 30 <= bpm <= 300:
        raise UserError(f"bpm {bpm:g}: must lie between 30 and 300")
    if first_beat is not None and bpm is None:
        raise UserError(f"first-beat {first_beat:g}: needs a tempo (bpm), too")
    if first_beat is not None and not first_beat >= 0:  # refuses NaN, too
        raise UserError(f"first-beat {first_beat:g}: must be 0 s or later")
    if first_beat is not None and first_beat >= seconds:
        raise UserError(
            f"first-beat {first_beat:g}: must lie within the song, which lasts {seconds:.2f} s"
        )


def told_tempo(bpm):
    """The tempo that the model is told: bpm, halved or doubled if need be."""
    while bpm > FASTEST_TOLD:
        bpm = bpm / 2
    while bpm < SLOWEST_TOLD:
        bpm = bpm * 2
    return bpm


def regular_beats(bpm, first_beat, seconds):
    """Times of all beats within a song, in seconds: before and after first_beat."""
    beat = 60 / bpm
    before = math.floor(first_beat / beat)
    after = math.floor((seconds - first_beat) / beat)
    return [first_beat + n * beat for n in range(-before, after + 1)]


def find_first_beat(pulse, bpm, cfg):
    """Expected pulses (T/4,) -> seconds until the first of the beats at bpm that fit them best."""
    seconds = len(pulse) / frame_rate(cfg)
    places = torch.arange(32) / 32 * 60 / bpm
    strength = []
    for place in places.tolist():
        grid = beat_pulses(regular_beats(bpm, place, seconds), len(pulse), cfg)
        strength.append((grid * pulse).sum() / grid.sum().clamp(min=1))
    return places[torch.stack(strength).argmax()].item()


# --------------------------------------------------------------------------------------------------
# Plumbing: levels, sample rates, devices, files. Nothing below is about the paper; a reader may
# stop here.


class UserError(Exception):
    """The user's input cannot be used. The message is one sentence, with what would be right."""


def active_dbfs(wav, sample_rate):
    """Level of (L,) in dBFS, 20 log10(RMS), where it sounds; -inf for digital silence.

    Blocks of 100 ms that are more than 40 dB below the loudest do not count.
    """
    wav = torch.as_tensor(wav)
    block = min(len(wav), sample_rate // 10)
    whole_blocks = wav[: len(wav) // block * block].view(-1, block)
    power = whole_blocks.square().mean(1)
    active = power[power > power.max() * 1e-4]
    if len(active) == 0:
        return -math.inf
    return 10 * math.log10(active.mean())


@functools.lru_cache
def sinc_kernel(up, down, device, zeros=48, rolloff=0.945, beta=8.0):
    """Windowed sinc filters for resampling by up / down -> (up, 1, taps), half width in samples.

    Row p evaluates the signal p * down / up input samples after the start of a step. A Kaiser
    window of beta 8 over 48 zero crossings falls by 80 dB within 6 % of the cutoff. The cutoff lies
    5.5 % below the lower of the two Nyquist frequencies: aliases stay under -60 dB.
    """
    cutoff = rolloff * min(1.0, up / down)  # in units of the input's Nyquist frequency
    width = math.ceil(zeros / cutoff)
    t = torch.arange(-width, width + down) - torch.arange(up)[:, None] * down / up

    inside = (1 - (t / width).square()).clamp(min=0).sqrt()
    kaiser = torch.special.i0(beta * inside) / torch.special.i0(torch.tensor(beta))
    kernel = cutoff * torch.sinc(cutoff * t) * kaiser * (t.abs() < width)
    return kernel[:, None].float().to(device), width


def resample(wav, rate_in, rate_out):
    """(..., L) at rate_in Hz -> (..., ceil(L * rate_out / rate_in)) at rate_out Hz."""
    if rate_in == rate_out:
        return wav

    # Odd rates become a nearby fraction, at worst 5e-4 off (44101 Hz: 2e-6). A small one, like
    # 1/4, is expanded to 16/64: a convolution is fast only with enough output channels.
    ratio = Fraction(rate_out, rate_in).limit_denominator(1000)
    expand = max(1, 16 // ratio.numerator)
    up = ratio.numerator * expand
    down = ratio.denominator * expand
    kernel, width = sinc_kernel(up, down, wav.device)

    # Steps: `down` samples in, `up` samples out
    length = math.ceil(wav.shape[-1] * rate_out / rate_in)
    steps = math.ceil(length / up)
    after = max(0, steps * down + width - wav.shape[-1])
    x = F.pad(wav.reshape(-1, 1, wav.shape[-1]), (width, after))
    y = F.conv1d(x, kernel.to(x.dtype), stride=down)  # (N, up, at least `steps`)

    return y.transpose(1, 2).reshape(*wav.shape[:-1], -1)[..., :length]


def pick_device(name="auto"):
    """Name -> torch.device; "auto" is cuda, else mps, else cpu. UserError if it is not there."""
    available = []
    if torch.cuda.is_available():
        available.append("cuda")
    if torch.backends.mps.is_available():
        available.append("mps")
    available.append("cpu")

    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise UserError(f"device {name} is not available; this machine has {', '.join(available)}")
    return torch.device(name)


def bfloat16_pays(device):
    """Is bfloat16 faster than float32 on this device?"""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # T4 and V100 cannot
    if device.type == "cpu":
        # Processors with units for it are about twice as fast in bfloat16, others much slower.
        # torch reports them on x86 only, and only in recent versions.
        units = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(units.get("avx512_bf16") or units.get("amx_bf16"))
    return False


def bfloat16_where_it_pays(device):
    """Context for networks: autocast to bfloat16 on devices that are faster with it."""
    if bfloat16_pays(device):
        return torch.autocast(device.type, torch.bfloat16)
    return torch.autocast(device.type, enabled=False)


@contextmanager
def explain_write_errors(path):
    """Around whatever writes: an OSError, such as a full disk, becomes a UserError about path."""
    try:
        yield
    except OSError as error:
        reason = f"{path} cannot be written ({error.strerror})"
        raise UserError(f"{reason}; is the disk full, or the folder not yours?") from None


def write_file(path, data):
    """Bytes to a file; makes its folder. First under a temporary name: a kill leaves no half file.

    Raises UserError if it cannot be written.
    """
    temporary = Path(f"{path}.tmp")
    with explain_write_errors(path):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def save_checkpoint(checkpoint, path):
    """A dict of plain values and tensors to a file. Raises UserError if it cannot be written."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_file(path, buffer.getbuffer())


def load_checkpoint(path):
    """The dict in a checkpoint file, with tensors on the CPU. Raises UserError.

    weights_only: a stranger's file cannot run code.
    """
    advice = "give assets/demo.pt or a checkpoint written by train.py"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in a dozen ways
        kind = type(error).__name__
        raise UserError(f"checkpoint {path} cannot be read ({kind}); {advice}") from None
    if not isinstance(checkpoint, dict) or not {"config", "ema"} <= checkpoint.keys():
        raise UserError(f'{path} has no "config" and "ema", so it is no checkpoint; {advice}')
    return checkpoint


@contextmanager
def explain_misfits(path):
    """Around the use of a checkpoint's contents: whatever does not fit becomes a UserError."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        last_line = str(error).split("\n\t")[-1]  # torch's first lines say nothing
        reason = " ".join(last_line.split())[:150]
        raise UserError(
            f"{path} is damaged or of another version of this program ({reason}); train it again"
        ) from None


def describe():
    """Prints the parts of the demo model, their sizes, and the shapes on the way through it."""
    model = FastSAG(PRESETS["demo"])
    model.vocoder = Vocoder(model.cfg)
    for name, part in model.named_children():
        millions = sum(weight.numel() for weight in part.parameters()) / 1e6
        print(f"{name:10s}{millions:6.2f} M parameters")

    vocals = 0.1 * torch.randn(1, 10 * model.frame_length)
    with torch.no_grad():
        expected, mu = model.condition(vocals)
        mel = model.sample(mu, expected, num_steps=2)
        accomp = model.vocode(denormalise(mel, model.cfg))
    for name, value in (
        ("vocals", vocals),
        ("expected", expected),
        ("mu", mu),
        ("mel", mel),
        ("accomp", accomp),
    ):
        print(f"{name:10s}{tuple(value.shape)}")


if __name__ == "__main__":
    describe()

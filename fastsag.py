"""FastSAG from scratch: solo singing in, the matching instrumental accompaniment out.

One file, read top to bottom, for the paper "FastSAG: Towards Fast Non-Autoregressive Singing Accompaniment Generation"
(Chen, Xue, Tan, Ye, Liu, Guo; IJCAI 2024). The signal path, with B batch, L samples, M mel bins, T frames, S features:

    vocals (B, L), 24 kHz mono
      -> log-mel (B, M, T = L/256)  and  music features (B, S, T/4): chroma, onsets, loudness
      -> semantic projection: the features to expect of the ACCOMPANIMENT (B, S, T/4)      WHAT to play   (Fig. 1b)
      -> prior projection:    the mean mel of the accompaniment, mu (B, M, T)              WHERE in time  (Fig. 1b)
      -> EDM diffusion: a 2-D U-Net turns noise into a mel that fits [mu, features]        (Fig. 1c)
      -> mel of the accompaniment (B, M, T)
      -> small neural vocoder, or Griffin-Lim -> accompaniment (B, L), 24 kHz

The other papers: EDM (Karras et al. 2022, arXiv 2206.00364), DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095),
fast Griffin-Lim (Perraudin et al. 2013), Vocos (Siuzdak 2023, arXiv 2306.00814), RoPE (Su et al. 2021), segment
training as in Grad-TTS (Popov et al. 2021).
"""
import io
import math
import os
import timeit
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache, wraps

import numpy as np
import soundfile
import torch
import torch.nn as nn
import torch.nn.functional as F

# ----------------------------------------------------------------------------------------------------------------------
# Config. Everything that a checkpoint needs to rebuild its model; the training settings live in train.py.


@dataclass
class Config:
    # audio: the 24 kHz / 100 band definition that BigVGAN and Vocos publish vocoders for
    sample_rate: int = 24000          # Hz
    n_fft: int = 1024                 # samples, 43 ms
    hop_length: int = 256             # samples, 10.7 ms: 93.75 mel frames per second
    n_mels: int = 100                 # slaney bands from 0 to 12 kHz
    level_dbfs: float = -20.0         # every song's voice and band are brought to this active level, once per song
    mel_mean: float = -5.3            # of log-mels at that level, measured on the demo songs' accompaniments, so that
    mel_std: float = 2.8              # the normalised mel has mean 0 and standard deviation sigma_data
    # conditioning encoder, at 23.4 frames per second
    dim: int = 128                    # channels
    layers: int = 6                   # each: dilated convolution, attention, MLP
    radius: int = 128                 # attention reaches this many frames to either side: 5.5 s, so 10.9 s per layer
    # U-Net
    channels: tuple = (48, 96, 192)   # per level; each level halves time and frequency
    blocks: int = 1                   # residual blocks per level, on the way down and again on the way up
    unet_radius: int = 16             # bottom attention, frames of 171 ms to either side: 2.7 s
    segment: int = 1024               # mel frames per clip that the diffusion loss sees, 10.9 s (Grad-TTS's economy)
    input_drop: float = 0.15          # share of training examples whose encoder must do without one of its inputs
    cond_drop: float = 0.1            # share of training examples without condition, for classifier-free guidance
    # vocoder
    vocoder_dim: int = 256            # channels
    vocoder_layers: int = 6
    # EDM (Table 1); sigma_data is the standard deviation of the normalised mel
    sigma_data: float = 0.5
    sigma_min: float = 0.02           # EDM: 0.002 and 80, from pure noise. Here the way begins at mu in noise of sigma_max,
    sigma_max: float = 5.0            # which is where it would lead anyway, and the steps are spent on the details
    rho: float = 7.0
    P_mean: float = -1.2              # training noise levels: ln(sigma) ~ N(P_mean, P_std^2)
    P_std: float = 1.2


PRESETS = {
    "tiny": Config(dim=32, layers=2, radius=32, channels=(16, 24, 32), segment=64,       # for tests: seconds
                   vocoder_dim=32, vocoder_layers=2),
    "demo": Config(),                                                                    # the shipped weights
    "base": Config(dim=384, layers=10, channels=(128, 256, 384), blocks=2,               # real data, one GPU
                   vocoder_dim=512, vocoder_layers=8),
}
N_FEATURES = 12 + 12 + 3 + 1          # S: bass chroma, middle chroma, onsets in three bands, loudness
PATCH = 4                             # one feature frame is 4 mel frames, 43 ms; the U-Net sees 4 x 4 mel patches


class UserError(Exception):
    """The user's input cannot be used; the message is one sentence that the scripts print, with exit status 2."""


def demand(*checks):
    """checks: (is it good?, the sentence to say if it is not). Raises UserError with the first that is not."""
    for good, complaint in checks:
        if not good:
            raise UserError(complaint)


# ----------------------------------------------------------------------------------------------------------------------
# Audio in and out. Resampling is a windowed sinc; the rest is bookkeeping around soundfile.


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


@contextmanager
def writing(path):
    """Around whatever writes: a full disk or a folder without rights becomes a UserError about `path`."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{path} cannot be written ({e.strerror}); is the disk full, or the folder not yours?") from None


def write(path, data):
    """Bytes to a file, its folder made if need be, first under a temporary name: a kill leaves the old file or the new one,
    never half of one. Raises UserError if it cannot be written."""
    temporary = f"{path}.tmp"
    try:
        with writing(path):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def active_dbfs(wav, sample_rate):
    """RMS level in dBFS (20 log10) over the 100 ms blocks within 40 dB of the loudest; -inf for digital silence."""
    wav = torch.as_tensor(wav)
    block = min(len(wav), sample_rate // 10)
    power = wav[: len(wav) // block * block].view(-1, block).square().mean(1)
    active = power[power > power.max() * 1e-4]
    return 10 * math.log10(active.mean()) if len(active) else -math.inf


@lru_cache
def sinc_kernel(up, down, zeros=48, rolloff=0.945, beta=8.0):
    """(up, 1, taps): row p interpolates at p * down / up input samples. A Kaiser window of beta 8 on 48 zero crossings
    falls by 80 dB within 5 % of the cutoff, so a cutoff 5.5 % below the lower Nyquist frequency keeps aliases under."""
    cutoff = rolloff * min(1.0, up / down)                                 # in units of the input's Nyquist frequency
    width = math.ceil(zeros / cutoff)
    t = torch.arange(-width, width + down)[None] - torch.arange(up)[:, None] * down / up
    kaiser = torch.special.i0(beta * (1 - (t / width).square()).clamp(min=0).sqrt())
    window = kaiser / torch.special.i0(torch.tensor(beta)) * (t.abs() < width)
    return (cutoff * torch.sinc(cutoff * t) * window)[:, None].float(), width


def resample(wav, rate_in, rate_out):
    """(..., L) at rate_in Hz -> (..., ceil(L * rate_out / rate_in)) at rate_out Hz; aliases stay below -60 dB."""
    if rate_in == rate_out:
        return wav
    ratio = Fraction(rate_out, rate_in).limit_denominator(1000)            # odd rates: within 1e-6 of the true ratio
    up, down = ratio.numerator, ratio.denominator
    kernel, width = sinc_kernel(up, down)
    length = math.ceil(wav.shape[-1] * rate_out / rate_in)
    steps = math.ceil(length / up)
    x = wav.reshape(-1, 1, wav.shape[-1])
    x = F.pad(x, (width, max(0, steps * down + width - x.shape[-1])))
    y = F.conv1d(x, kernel.to(x), stride=down)                             # (N, up, steps): `up` out per `down` in
    return y.transpose(1, 2).reshape(*wav.shape[:-1], -1)[..., :length]


# ----------------------------------------------------------------------------------------------------------------------
# Mel front end. log-mel as in BigVGAN's and Vocos' 24 kHz / 100 band models: frames that start (n_fft - hop) / 2
# before their hop, magnitudes sqrt(re^2 + im^2 + 1e-9), slaney filters, natural log of at least 1e-5. This is the only
# mel of the project: preparation, training, sampling and vocoding call it.


def in_float32(function):
    """Networks may run in bfloat16; what is done to spectra may not."""
    @wraps(function)
    def run(x, *args):
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args)
    return run


def stft(wav, n_fft, hop_length, then=lambda spec: spec):
    """(B, L) -> complex (B, n_fft/2 + 1, L/hop_length), Hann window, reflected edges. L is a multiple of the hop.
    then: what to make of the spectrum, piece by piece, for a long song's is large."""
    pad, window = (n_fft - hop_length) // 2, torch.hann_window(n_fft, device=wav.device)
    frames = F.pad(wav[:, None], (pad, pad), mode="reflect")[:, 0].unfold(-1, n_fft, hop_length)   # (B, T, n_fft)
    pieces = [then(torch.fft.rfft(piece * window).transpose(1, 2)) for piece in frames.split(4096, 1)]
    return torch.cat(pieces, -1) if len(pieces) > 1 else pieces[0]


def overlap_add(frames, hop_length):
    """(B, T, n_fft), each frame a hop after the last -> their sum (B, (T - 1) * hop + n_fft)."""
    B, T, n_fft = frames.shape
    slices = frames.unflatten(-1, (-1, hop_length))                        # one hop-sized slice of all frames at a time
    total = frames.new_zeros(B, T + n_fft // hop_length - 1, hop_length)
    for i in range(n_fft // hop_length):
        total[:, i: i + T] += slices[:, :, i]
    return total.flatten(1)


@lru_cache(maxsize=2)
def overlapped_window(T, n_fft, hop_length, device):
    window = torch.hann_window(n_fft, device=device)
    return overlap_add(window.square().expand(1, T, n_fft), hop_length).clamp(min=1e-6)


def istft(spec, n_fft, hop_length):
    """The least-squares inverse of stft: windowed frames are added up and divided by the added-up squared window."""
    frames = torch.fft.irfft(spec.transpose(1, 2), n=n_fft) * torch.hann_window(n_fft, device=spec.device)
    pad, norm = (n_fft - hop_length) // 2, overlapped_window(frames.shape[1], n_fft, hop_length, spec.device)
    return (overlap_add(frames, hop_length) / norm)[:, pad:-pad]


@lru_cache
def mel_filterbank(sample_rate, n_fft, n_mels):
    """(n_mels, n_fft/2 + 1) triangles of area one on Slaney's scale: linear up to 1 kHz, then 27 mels per factor 6.4.
    The same numbers as librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels)."""
    linear, per_log = 200 / 3, math.log(6.4) / 27                          # Hz per mel below 1 kHz; ln(Hz) per mel above
    top = 15 + math.log(sample_rate / 2 / 1000) / per_log                  # 1 kHz is 15 mels
    mels = torch.linspace(0, top, n_mels + 2, dtype=torch.float64)
    hz = torch.where(mels < 15, mels * linear, 1000 * torch.exp((mels - 15) * per_log))
    low, centre, high = hz[:-2, None], hz[1:-1, None], hz[2:, None]
    freqs = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    triangles = torch.minimum((freqs - low) / (centre - low), (high - freqs) / (high - centre)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


@in_float32
def log_mel(wav, cfg):
    """(B, L) -> (B, M, T = L / hop_length): natural log of the mel magnitudes, at least ln(1e-5)."""
    filters = mel_filterbank(cfg.sample_rate, cfg.n_fft, cfg.n_mels).to(wav.device)
    mel = lambda spec: filters @ (spec.real.square() + spec.imag.square() + 1e-9).sqrt()
    return stft(wav, cfg.n_fft, cfg.hop_length, mel).clamp(min=1e-5).log()


# ----------------------------------------------------------------------------------------------------------------------
# Music features. Where the paper takes 768 features of MERT-v1-95M, a pretrained model, we write down what an
# accompanist listens for: which notes sound (chroma, in the bass and above it), where something begins (onsets, low,
# middle, high) and how loud it is. They know nothing of timbre, so they cannot carry a source separator's artefacts.


@lru_cache
def chroma_filterbank(rate, n_fft):
    """(24, n_fft/2 + 1): bass pitch classes (40-175 Hz), then middle ones (175-1400 Hz); C is 0. A bin counts for a
    pitch class by a Gaussian of its distance in semitones; at the bottom, where bins are wider, of a bin's width."""
    freqs = torch.linspace(0, rate / 2, n_fft // 2 + 1)[1:]
    pitch = 69 + 12 * torch.log2(freqs / 440)                              # MIDI note number
    width = torch.maximum(torch.tensor(0.3), 0.6 * 12 / math.log(2) * (rate / n_fft) / freqs)      # semitones
    distance = (pitch - torch.arange(12)[:, None] + 6) % 12 - 6            # (12, bins), from -6 to 6
    weight = torch.exp(-0.5 * (distance / width).square()) / width
    bands = [(freqs >= low) & (freqs < high) for low, high in ((40, 175), (175, 1400))]
    return F.pad(torch.cat([weight * band for band in bands]), (1, 0))


def onset_envelope(mel):
    """log-mel (B, M, T) -> (B, M, T/4): by how much each band rose from mel frame to mel frame, added up per feature
    frame. Sounds below about -40 dB of the usual level, where a logarithm would make much of nothing, count little."""
    level = torch.log1p(100 * mel.exp())
    rise = F.pad((level[..., 1:] - level[..., :-1]).clamp(min=0), (1, 0))
    return rise.unflatten(-1, (-1, PATCH)).sum(-1)


@in_float32
def music_features(wav, mel, cfg):
    """(B, L) and its log-mel (B, M, T) -> (B, S, T/4), each row of roughly zero mean and unit variance."""
    low, n_fft = cfg.sample_rate // 4, 2048                                # 6 kHz is enough for chroma; 341 ms frames
    filters = chroma_filterbank(low, n_fft).to(wav.device) * (4 / n_fft)   # a sine of amplitude 1 gives 1
    chroma = stft(resample(wav, cfg.sample_rate, low), n_fft, cfg.hop_length * PATCH // 4, lambda spec: filters @ spec.abs())
    chroma = chroma.unflatten(1, (2, 12))
    chroma = chroma / (chroma.norm(dim=2, keepdim=True) + 0.01)            # shape, not loudness; silence gives 0
    onsets = onset_envelope(mel)
    edges = (0, 8, 40, cfg.n_mels)                                         # 0-270 Hz, 270-1700 Hz, 1.7-12 kHz
    onsets = torch.stack([onsets[:, a:b].mean(1) for a, b in zip(edges, edges[1:])], 1)
    loudness = torch.log1p(100 * mel.exp()).mean(1, keepdim=True).unflatten(-1, (-1, PATCH)).mean(-1)
    return torch.cat([4 * chroma.flatten(1, 2) - 1, 3 * onsets.sqrt() - 1, 2 * loudness - 2], 1)


@lru_cache
def pulse_filterbank(frame_rate, per_octave, octaves=3, slowest=0.9, taps=513):
    """(2 * octaves * per_octave, 1, taps): cosines, then sines, of 0.9 to 7.2 Hz (54 to 432 per minute), 22 s long."""
    freqs = slowest * 2 ** (torch.arange(per_octave * octaves) / per_octave)
    angle = 2 * math.pi * freqs[:, None] * (torch.arange(taps) - taps // 2) / frame_rate
    return (torch.cat([angle.cos(), angle.sin()]) * torch.hann_window(taps, periodic=False))[:, None]


@in_float32
def pulses(mel, cfg, per_octave=96):
    """log-mel (B, M, T) -> (B, 6, T/4): the beat that the onsets suggest, half of it and a quarter, as cosine and sine.

    Singers sing early, late and between the beats; what stays is a period. So correlate the onset envelope with waves of
    every tempo (Grosche & Mueller 2011, predominant local pulse) and choose, frame by frame, the beat that fits best
    together with its halves and quarters over 44 s. A network can learn this too, but takes thousands of steps for it."""
    envelope = onset_envelope(mel).mean(1, keepdim=True)                   # (B, 1, T/4)
    envelope = envelope - F.avg_pool1d(envelope, 49, 1, padding=24, count_include_pad=False)
    bank = pulse_filterbank(cfg.sample_rate / cfg.hop_length / PATCH, per_octave).to(mel.device)
    reach = bank.shape[-1] // 2
    waves = F.conv1d(envelope, bank, padding=reach)
    energy = F.avg_pool1d(envelope.square(), 2 * reach + 1, 1, reach) * (2 * reach + 1)     # coherence: 0 to 1
    waves = (waves / (energy.sqrt() * reach ** 0.5 + 1e-3)).unflatten(1, (2, 3, per_octave))  # cos or sin; level; tempo
    power = waves.square().sum((1, 2))                                                       # a beat and its divisions
    total, half = F.pad(power.double().cumsum(-1), (1, 0)), 512            # (B, tempo, T/4 + 1)
    frame = torch.arange(power.shape[-1], device=mel.device)
    power = total[..., (frame + half + 1).clamp(max=len(frame))] - total[..., (frame - half).clamp(min=0)]
    best = power.argmax(1)[:, None, None, None].expand(-1, 2, 3, -1, -1)
    return 12 * waves.gather(3, best).flatten(1, 3)


def chroma_of(features):
    """(B, S, T/4) -> (B, 24, T/4): the chroma rows of music_features as shares from 0 to 1."""
    return (features[:, :24] + 1) / 4


# ----------------------------------------------------------------------------------------------------------------------
# Blocks. Nothing here takes statistics over time, and attention reaches a fixed distance: a frame's result depends on
# its surroundings alone, not on how long the clip is. A model trained on clips then works on songs.


class ChannelNorm(nn.Module):
    """Divides by the root mean square over the channels (dim 1) at each position; a learned gain per channel."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        gain = self.gain.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
        return x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-6).to(x.dtype) * gain


class LocalAttention(nn.Module):
    """Attention over time, `radius` frames to either side, with rotary positions. Queries go in blocks of `radius`
    frames, each block sees itself and its two neighbours: linear in time, and exact."""

    def __init__(self, channels, inner, radius, head=32):
        super().__init__()
        self.radius, self.head = radius, head
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * inner, 1)
        self.out = nn.Conv1d(inner, channels, 1)

    def rotate(self, x):                                                   # (B, heads, T, head)
        freqs = 10000.0 ** -torch.linspace(0, 1, self.head // 2, device=x.device)
        angle = torch.arange(x.shape[2], device=x.device)[:, None] * freqs
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).to(x.dtype)

    def forward(self, x):                                                  # (B, C, T)
        T, R = x.shape[-1], self.radius
        q, k, v = self.qkv(self.norm(x)).unflatten(1, (3, -1, self.head)).transpose(-1, -2).unbind(1)
        q, k = self.rotate(q), self.rotate(k)                              # (B, heads, T, head)
        time = torch.arange(T, device=x.device)
        extra = -T % R
        q = F.pad(q, (0, 0, 0, extra)).unflatten(2, (-1, R))               # (B, heads, blocks, R, head)
        k, v = (F.pad(t, (0, 0, R, R + extra)).unflatten(2, (-1, R)) for t in (k, v))
        k, v = (torch.cat([t[:, :, :-2], t[:, :, 1:-1], t[:, :, 2:]], 3) for t in (k, v))   # a block and its neighbours
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))     # (B blocks, heads, R or 3R, head)
        i = F.pad(time, (0, extra), value=T).view(-1, R, 1)                # the queries' times
        j = torch.arange(0, T + extra, R, device=x.device)[:, None, None] + torch.arange(-R, 2 * R, device=x.device)
        near = ((i - j).abs() <= R) & (j >= 0) & (j < T) | (i == T)        # (blocks, R, 3R); padding may look anywhere
        mask = torch.zeros(near.shape, dtype=q.dtype, device=x.device).masked_fill(~near, -math.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None].repeat(len(x), 1, 1, 1))
        y = y.unflatten(0, (len(x), -1)).permute(0, 2, 4, 1, 3).flatten(1, 2).flatten(2)[..., :T]      # (B, inner, T)
        return x + self.out(y)


class TimeBlock(nn.Module):
    """Residual dilated convolution over time, then a two-layer perceptron per frame."""

    def __init__(self, channels, dilation):
        super().__init__()
        self.conv = nn.Sequential(
            ChannelNorm(channels), nn.Conv1d(channels, channels, 5, padding=2 * dilation, dilation=dilation), nn.SiLU())
        self.mlp = nn.Sequential(ChannelNorm(channels), nn.Conv1d(channels, 4 * channels, 1), nn.SiLU(),
                                 nn.Conv1d(4 * channels, channels, 1))

    def forward(self, x):                                                  # (B, C, T)
        x = x + self.conv(x)
        return x + self.mlp(x)


# ----------------------------------------------------------------------------------------------------------------------
# The two projections, the heart of the paper. Both are regressions: they learn the mean of what may follow, and the
# diffusion adds what a mean cannot have. Official code: WaveNets of 8 x 8 layers on MERT features, about 150 M
# parameters; here attention gives the context that a beat and a key need, in about 2 M.


class SemanticProjection(nn.Module):
    """WHAT to play: from the vocals, the music features to expect of the accompaniment (paper: L_semantic)."""

    def __init__(self, cfg):
        super().__init__()
        self.embed = nn.Conv1d(N_FEATURES + 6, cfg.dim, 1)
        self.layers = nn.Sequential()
        for i in range(cfg.layers):
            self.layers.append(TimeBlock(cfg.dim, dilation=2 ** (i % 4)))
            self.layers.append(LocalAttention(cfg.dim, cfg.dim, cfg.radius))
        self.out = nn.Sequential(ChannelNorm(cfg.dim), nn.Conv1d(cfg.dim, N_FEATURES, 1))

    def forward(self, features, pulse):
        """features (B, S, T/4) and pulses (B, 6, T/4) of the vocals -> expected features (B, S, T/4) and the hidden state
        that they are read from (B, dim, T/4). The vocals' mel would tell more, and most of it is the singer: on singers
        never met, networks with and without it follow the beat and the harmony equally well."""
        hidden = self.layers(self.embed(torch.cat([features, pulse], 1)))
        return self.out(hidden), hidden


class PriorProjection(nn.Module):
    """WHERE in time: the mean mel of the accompaniment, mu, frame by frame (paper: L_prior). Official code stretches
    the features over (100, T) like a picture; here each feature frame unfolds into its four mel frames."""

    def __init__(self, cfg):
        super().__init__()
        self.embed = nn.Conv1d(N_FEATURES + cfg.dim, cfg.dim, 1)
        self.layers = nn.Sequential(*[TimeBlock(cfg.dim, dilation=d) for d in (1, 2)])
        self.out = nn.Sequential(ChannelNorm(cfg.dim), nn.Conv1d(cfg.dim, PATCH * cfg.n_mels, 1))

    def forward(self, expected, hidden):
        """expected features (B, S, T/4) and hidden state (B, dim, T/4) -> mu (B, M, T), a normalised mel."""
        frames = self.out(self.layers(self.embed(torch.cat([expected, hidden], 1))))
        return frames.unflatten(1, (-1, PATCH)).transpose(2, 3).flatten(2)     # (B, M, 4, T/4) -> (B, M, T)


# ----------------------------------------------------------------------------------------------------------------------
# U-Net on mel patches. The mel (100, T) is folded into 4 x 4 patches; for the demo's channels the stages are
#
#                         channels   frequency x time     frame of
#   level 0                     48   25 x T/4                43 ms      down ->                        -> up, out
#   level 1                     96   13 x T/8                85 ms             down ->          -> up
#   level 2, attention         192    7 x T/16              171 ms                    -> middle
#
# Official code: Grad-TTS's U-Net, 64 x (1, 2, 4) channels at the full 100 x 1024; patches cost a tenth of that.


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions; the noise level scales and shifts what lies between them. Starts as the identity."""

    def __init__(self, c_in, c_out, c_emb):
        super().__init__()
        self.norm1, self.conv1 = ChannelNorm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulate = nn.Linear(c_emb, 2 * c_out)
        self.norm2, self.conv2 = ChannelNorm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x, emb):                                             # (B, C, F, T), (B, c_emb)
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(emb)[:, :, None, None].chunk(2, 1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class UNet(nn.Module):
    """The raw network F_x of EDM: (noisy mel, condition, noise level) -> (B, M, T)."""

    def __init__(self, cfg):
        super().__init__()
        C, emb, self.rows = cfg.channels, 4 * cfg.channels[0], cfg.n_mels // PATCH
        self.noise = nn.Sequential(nn.Linear(32, emb), nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        self.embed = nn.Conv2d(2 * PATCH ** 2, C[0], 3, padding=1)         # two pictures: the noisy mel and mu
        self.features = nn.Conv1d(N_FEATURES, C[0] * self.rows, 1)         # what to play, painted over the rows
        self.position = nn.Parameter(torch.randn(C[0], self.rows, 1) * 0.1)  # a convolution knows no pitch: tell it
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(C[:-1]):
            self.down.append(nn.ModuleList([ResBlock(c, c, emb) for _ in range(cfg.blocks)]
                                           + [nn.Conv2d(c, C[i + 1], 3, stride=2, padding=1)]))
            self.up.insert(0, nn.ModuleList([nn.Conv2d(C[i + 1], c, 1)]
                                            + [ResBlock(2 * c if j == 0 else c, c, emb) for j in range(cfg.blocks)]))
        rows = math.ceil(self.rows / 2 ** (len(C) - 1))                    # each frame's rows make one token
        self.middle = nn.ModuleList([ResBlock(C[-1], C[-1], emb), LocalAttention(C[-1] * rows, C[-1], cfg.unet_radius),
                                     ResBlock(C[-1], C[-1], emb)])
        self.out = nn.Sequential(ChannelNorm(C[0]), nn.SiLU(), nn.Conv2d(C[0], PATCH ** 2, 3, padding=1))
        nn.init.zeros_(self.out[-1].weight)                                # D_x starts as c_skip x: no guess at all
        nn.init.zeros_(self.out[-1].bias)
        self.to(memory_format=torch.channels_last)                         # convolutions like it

    def forward(self, x, mu, expected, c_noise):
        """x, mu (B, M, T); expected (B, S, T/4); c_noise (B,) -> F_x (B, M, T). T is a multiple of 16."""
        angle = c_noise[:, None] * torch.exp(torch.linspace(0, 4, 16, device=x.device))      # (B, 16), 1 to 55 rad
        emb = self.noise(torch.cat([angle.cos(), angle.sin()], 1))
        h = self.embed(F.pixel_unshuffle(torch.stack([x, mu], 1), PATCH))                    # (B, C, rows, T/4)
        h = h + self.position + self.features(expected).unflatten(1, (-1, self.rows))
        skips = []
        for *blocks, halve in self.down:
            for block in blocks:
                h = block(h, emb)
            skips.append(h)
            h = halve(h)
        first, attention, last = self.middle
        h = first(h, emb)
        h = attention(h.flatten(1, 2)).view_as(h)
        h = last(h, emb)
        for narrow, *blocks in self.up:
            skip = skips.pop()
            h = F.interpolate(narrow(h), scale_factor=2, mode="nearest")[:, :, : skip.shape[2]]
            h = torch.cat([h, skip], 1)                                    # (B, 2C, rows, time)
            for block in blocks:
                h = block(h, emb)
        return F.pixel_shuffle(self.out(h), PATCH)[:, 0]


# ----------------------------------------------------------------------------------------------------------------------
# From mel to sound. A mel has no phases, and its bands are too wide to tell neighbouring partials apart. The neural
# vocoder has learnt both from examples; it works at the mel's rate and leaves the way up to 24 kHz to the inverse STFT
# (the idea of Vocos; the official code uses BigVGAN, 112 M parameters). Griffin-Lim knows nothing and looks for the
# phases: go to the waveform and back again and again, keep the phases, restore the magnitudes. Momentum makes 32 rounds
# as good as a hundred.


class ConvNeXtBlock(nn.Module):
    """Convolution over time, each channel for itself, then a two-layer perceptron per frame (Liu et al. 2022, in 1-D)."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels, channels, 7, padding=3, groups=channels), ChannelNorm(channels),
            nn.Conv1d(channels, 3 * channels, 1), nn.GELU(), nn.Conv1d(3 * channels, channels, 1))
        self.scale = nn.Parameter(torch.full((channels, 1), 0.2))          # deep stacks start close to the identity

    def forward(self, x):                                                  # (B, C, T)
        return x + self.scale * self.layers(x)


def log_spectrum(wav, n_fft):
    """(B, L) -> (B, n_fft/2 + 1, 4 L / n_fft): natural log of the magnitudes. What lies 66 dB or more below a spectrum of
    music at the usual level counts as silence."""
    return (stft(wav, n_fft, n_fft // 4).abs() + 1e-3).log()


def stft_distance(a, b):
    """Waveforms (B, L) -> mean difference of the logarithms of their spectra, in nepers, at three resolutions, (3,)."""
    return torch.stack([(log_spectrum(a, n_fft) - log_spectrum(b, n_fft)).abs().mean() for n_fft in (512, 1024, 2048)])


@in_float32
def match_mel(spec, log_mel, cfg):
    """Scale the bins of a spectrogram (B, n_fft/2 + 1, T) so that its mel comes close to log_mel (B, M, T): a multiplicative
    update as in non-negative matrix factorisation (Lee & Seung 2001). What no band sees falls silent."""
    filters = mel_filterbank(cfg.sample_rate, cfg.n_fft, cfg.n_mels).to(spec.device)
    spec, want = spec.transpose(1, 2), log_mel.exp().transpose(1, 2)       # frames first, as they lie in memory
    have = (spec.real.square() + spec.imag.square() + 1e-9).sqrt() @ filters.T
    return (spec * ((want / have) @ (filters / filters.sum(0).clamp(min=1e-8)))).transpose(1, 2)


class Vocoder(nn.Module):
    """log-mel (B, M, T) -> waveform (B, T * hop). The network gives each frame's magnitudes and phases, out of the mel
    around it. The mel has the last word about how loud each band is: nine times, for each inverse STFT moves it again.

    A steady tone has the same mel in every frame, but its phase moves on. Something must tell the frames apart: phases are
    given relative to each bin's own rotation, i^(k t), and clocks of up to 128 frames let tones between the bins drift."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, C = cfg, cfg.vocoder_dim
        self.embed = nn.Conv1d(cfg.n_mels + 10, C, 7, padding=3)
        self.blocks = nn.Sequential(*[ConvNeXtBlock(C) for _ in range(cfg.vocoder_layers)], ChannelNorm(C))
        self.out = nn.Conv1d(C, cfg.n_fft + 2, 1)

    def forward(self, mel, start=0):
        """start: which frame of its song mel begins with, an integer or integers (B, 1, 1)."""
        cfg = self.cfg
        time = start + torch.arange(mel.shape[-1], device=mel.device).expand(len(mel), 1, -1)             # (B, 1, T)
        clock = 2 * math.pi * time / torch.tensor([[8], [16], [32], [64], [128]], device=mel.device)      # (B, 5, T)
        x = (mel - cfg.mel_mean) * (cfg.sigma_data / cfg.mel_std)
        x = self.embed(torch.cat([x, clock.cos(), clock.sin()], 1))
        log_magnitude, phase = self.out(self.blocks(x)).float().chunk(2, 1)
        magnitude = log_magnitude.clamp(max=7).exp()                       # e^7: a sine of full scale and then some
        turns = time % 4 * torch.arange(phase.shape[1], device=mel.device)[:, None].float() % 4          # quarter turns
        phase = phase + math.pi / 2 * turns
        spec = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        wav = ahead = istft(match_mel(spec, mel, cfg), cfg.n_fft, cfg.hop_length)
        for _ in range(8):
            last, spec = wav, stft(ahead, cfg.n_fft, cfg.hop_length)
            wav = istft(match_mel(spec, mel, cfg), cfg.n_fft, cfg.hop_length)
            ahead = wav + 0.5 * (wav - last)                               # momentum, as in griffin_lim
        return wav

    def long(self, mel, piece=2048, halo=64):
        """The same for a song, in pieces of 22 s with more to either side than the network sees: no seam exists."""
        hop, wavs = self.cfg.hop_length, []
        for start in range(0, mel.shape[-1], piece):
            a = max(0, start - halo)
            wav = self(mel[..., a: start + piece + halo], a)
            wavs.append(wav[:, (start - a) * hop: (start - a + piece) * hop])
        return torch.cat(wavs, 1)


def griffin_lim(mel, cfg, iterations=32, momentum=0.99):
    """log-mel (B, M, T) -> waveform (B, T * hop). Takes 4 GB for ten minutes: it needs the whole song at once."""
    filters = mel_filterbank(cfg.sample_rate, cfg.n_fft, cfg.n_mels).to(mel.device)
    magnitude = (torch.linalg.pinv(filters) @ mel.exp()).clamp(min=0)      # least squares; a spectrum is not negative
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(magnitude.shape[1:], generator=generator).to(mel.device)
    spec = torch.polar(magnitude, angle.expand_as(magnitude))
    previous = torch.zeros_like(spec)
    for _ in range(iterations):
        rebuilt = stft(istft(spec, cfg.n_fft, cfg.hop_length), cfg.n_fft, cfg.hop_length)
        step = rebuilt + momentum * (rebuilt - previous)
        spec = magnitude * step / step.abs().clamp(min=1e-8)
        previous = rebuilt
    return istft(spec, cfg.n_fft, cfg.hop_length)


# ----------------------------------------------------------------------------------------------------------------------
# The model: precondition, loss and sampler follow EDM line by line. The official code takes the preconditioning of
# consistency models, (sigma - sigma_min) for sigma, and steps with Euler; here both are as EDM's Table 1 prints them.


class FastSAG(nn.Module):
    """Vocals to accompaniment. `FastSAG.load(path)` and `accompany(vocals, sample_rate)` are all that a user needs."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.semantic = SemanticProjection(cfg)
        self.prior = PriorProjection(cfg)
        self.unet = UNet(cfg)
        self.vocoder = None                                                # a Vocoder(cfg), once one is trained

    @property
    def device(self):
        return next(self.parameters()).device

    # --- mel and condition

    def normalise(self, mel):
        """log-mel -> mean 0, standard deviation sigma_data."""
        return (mel - self.cfg.mel_mean) * (self.cfg.sigma_data / self.cfg.mel_std)

    def denormalise(self, mel):
        return mel * (self.cfg.mel_std / self.cfg.sigma_data) + self.cfg.mel_mean

    @torch.no_grad()
    def analyse(self, wav):
        """(B, L) at the level of the config -> normalised mel (B, M, T), features (B, S, T/4)."""
        mel = log_mel(wav, self.cfg)
        return self.normalise(mel), music_features(wav, mel, self.cfg)

    def condition(self, vocals, hear=None):
        """vocals (B, L) -> expected features (B, S, T/4), mu (B, M, T): the two things that the U-Net is told.
        hear (B, 2), in training: 0 where the features or the pulses are kept from the encoder. One that must sometimes do
        without relies on neither too much, when a real voice does not sound like the training's."""
        mel, features = self.analyse(vocals)
        with torch.no_grad():
            pulse = pulses(self.denormalise(mel), self.cfg)
        if hear is not None:
            features, pulse = (x * h for x, h in zip((features, pulse), hear[..., None, None].unbind(1)))
        expected, hidden = self.semantic(features, pulse)
        return expected, self.prior(expected, hidden)

    # --- EDM

    def denoise(self, x, sigma, mu, expected):
        """D_x, the denoised mel: EDM eq. 7 with the preconditioning of Table 1. x (B, M, T), sigma (B,)."""
        sigma_data, s = self.cfg.sigma_data, sigma[:, None, None]
        c_skip = sigma_data ** 2 / (s ** 2 + sigma_data ** 2)
        c_out = s * sigma_data / (s ** 2 + sigma_data ** 2).sqrt()
        c_in = 1 / (s ** 2 + sigma_data ** 2).sqrt()
        c_noise = sigma.log() / 4
        F_x = self.unet(c_in * x, mu, expected, c_noise)
        return c_skip * x + c_out * F_x

    def draw(self, batch, frames, generator):
        """All that is random in a training step, for clips of `frames` mel frames, so that a step can be repeated."""
        cfg, device = self.cfg, generator.device
        segment = min(cfg.segment, frames)
        normal = torch.randn(batch, generator=generator, device=device)
        return {
            "start": torch.randint((frames - segment) // 16 + 1, (batch,), generator=generator, device=device) * 16,
            "sigma": (cfg.P_mean + cfg.P_std * normal).exp(),
            "noise": torch.randn(batch, cfg.n_mels, segment, generator=generator, device=device),
            "keep": (torch.rand(batch, generator=generator, device=device) >= cfg.cond_drop).float(),
            "hear": (torch.rand(batch, 2, generator=generator, device=device) >= cfg.input_drop).float(),
        }

    def forward(self, vocals, accomp, draw):
        """vocals, accomp (B, L) and draw() -> {"semantic": scalar, "prior": scalar, "diffusion": (B,)}. All three
        are close to 1 for a model that knows nothing, so the paper's weights of 1 : 1 : 1 can stand."""
        cfg = self.cfg
        mel, features = self.analyse(accomp)
        expected, mu = self.condition(vocals, draw["hear"])
        semantic = F.mse_loss(expected, features)
        prior = F.mse_loss(mu, mel) / cfg.sigma_data ** 2

        segment, sigma = draw["noise"].shape[-1], draw["sigma"]            # diffusion: a piece of each clip is enough
        keep = draw["keep"][:, None, None]                                 # classifier-free guidance: drop some conditions
        mel, mu = cut(mel, draw["start"], segment), cut(mu, draw["start"], segment) * keep
        expected = cut(expected, draw["start"] // PATCH, segment // PATCH) * keep
        D_x = self.denoise(mel + sigma[:, None, None] * draw["noise"], sigma, mu, expected)
        weight = (sigma ** 2 + cfg.sigma_data ** 2) / (sigma * cfg.sigma_data) ** 2          # lambda(sigma), Table 1
        return {"semantic": semantic, "prior": prior, "diffusion": weight * (D_x - mel).square().mean((1, 2))}

    def guided(self, x, sigma, mu, expected, guidance, window=8192, halo=416):
        """denoise() for a song: windows of 87 s, each with 4.4 s more to either side, which is more than the U-Net sees, so
        that no seam exists. Guidance (Ho & Salimans 2022): away from what the network expects without a condition. Two
        passes, one after the other: on a CPU, they are a quarter faster than one pass over a batch of two."""
        pieces = []
        for start in range(0, x.shape[-1], window):
            a, b = max(0, start - halo), min(x.shape[-1], start + window + halo)
            args = x[..., a:b], sigma.expand(len(x)), mu[..., a:b], expected[..., a // PATCH: b // PATCH]
            D_x = self.denoise(*args)
            if guidance != 1:
                without = self.denoise(*args[:2], *[0 * condition for condition in args[2:]])
                D_x = without + guidance * (D_x - without)
            pieces.append(D_x[..., start - a: start - a + window])
        return torch.cat(pieces, -1)

    @torch.no_grad()
    def sample(self, mu, expected, steps=8, guidance=6.0, seed=0, progress=lambda steps: steps):
        """Draw a mel (B, M, T) for a condition: the probability-flow ODE of EDM in `steps` network evaluations, from the
        prior on: in noise this strong, all that can be expected of the mel is its mean (as Grad-TTS starts from its mean).
        Solver: DPM-Solver++(2M), second order like EDM's Heun but with one evaluation per step. Guidance acts in the middle
        of the way only, where the beat and the chords are decided (Kynkaanniemi et al. 2024): half the second passes."""
        noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed)).to(mu.device)
        denoise = lambda x, sigma: self.guided(x, sigma, mu, expected, guidance if 0.5 < sigma < 15 else 1)
        with torch.autocast(mu.device.type, torch.bfloat16, enabled=bfloat16_pays(mu.device)):
            return solve(denoise, mu + self.cfg.sigma_max * noise, sigma_steps(steps, self.cfg).to(mu.device), progress)

    # --- use

    @torch.no_grad()
    def accompany(self, vocals, sample_rate, steps=8, guidance=6.0, seed=0):
        """vocals (L,) float at sample_rate, 0.5 s or longer -> accompaniment (L,) float32 at the same rate, as loud as
        the voice (active level)."""
        vocals = torch.as_tensor(vocals, dtype=torch.float32)
        assert vocals.dim() == 1, f"vocals must be mono, shape (L,); got {tuple(vocals.shape)}"
        wav, gain = self.prepare(vocals, sample_rate)
        expected, mu = self.condition(wav)
        mel = self.sample(mu, expected, steps, guidance, seed)
        return self.render(mel, gain, sample_rate, len(vocals))

    def prepare(self, vocals, sample_rate):
        """(L,) -> (1, L') at the model's rate and level, padded to whole U-Net frames; and the gain that was applied."""
        wav = resample(vocals, sample_rate, self.cfg.sample_rate)
        level = active_dbfs(wav, self.cfg.sample_rate)
        assert level > -math.inf, "vocals are silent"
        gain = 10 ** ((self.cfg.level_dbfs - level) / 20)
        return F.pad(wav * gain, (0, -len(wav) % self.frame_length))[None].to(self.device), gain

    @property
    def frame_length(self):
        """Samples per frame of the U-Net's lowest level: lengths are multiples of it."""
        return self.cfg.hop_length * PATCH * 2 ** (len(self.cfg.channels) - 1)

    def vocode(self, mel, vocoder="neural"):
        """log-mel (1, M, T) -> waveform (1, T * hop). "neural" falls back to "griffinlim" if the weights have none."""
        if vocoder == "neural" and self.vocoder is not None:
            with torch.autocast(mel.device.type, torch.bfloat16, enabled=bfloat16_pays(mel.device)):
                return self.vocoder.long(mel)
        return griffin_lim(mel, self.cfg)

    def render(self, mel, gain, sample_rate, length, vocoder="neural"):
        """Normalised mel (1, M, T) -> (length,) float32 numpy at sample_rate; undoes the gain of prepare()."""
        wav = self.vocode(self.denormalise(mel), vocoder)[0].cpu()
        wav = resample(wav, self.cfg.sample_rate, sample_rate)[:length]
        wav = wav * 10 ** ((self.cfg.level_dbfs - active_dbfs(wav, sample_rate)) / 20) / gain
        return F.pad(wav, (0, length - len(wav))).numpy()

    # --- save and load

    def save(self, path):
        """Write what sampling needs, in half precision: {"config", "ema"}."""
        save_checkpoint({"config": asdict(self.cfg), "ema": {k: v.half() for k, v in self.state_dict().items()}}, path)

    @classmethod
    def load(cls, path, device="auto"):
        """A released or a training checkpoint -> model with its EMA weights. Raises UserError if it is neither."""
        checkpoint = load_checkpoint(path)
        with fitting(path):
            model = cls(Config(**checkpoint["config"]))
            if any(name.startswith("vocoder.") for name in checkpoint["ema"]):
                model.vocoder = Vocoder(model.cfg)
            model.load_state_dict(checkpoint["ema"])
        return model.float().eval().to(pick_device(device))


def cut(x, start, length):
    """Rows of x (B, C, T) from their own start (B,) on -> (B, C, length)."""
    index = start[:, None, None] + torch.arange(length, device=x.device)
    return x.gather(2, index.expand(-1, x.shape[1], -1))


def sigma_steps(steps, cfg):
    """(steps + 1,) noise levels from sigma_max to sigma_min, then 0: EDM eq. 5."""
    i = torch.arange(steps) / max(steps - 1, 1)
    high, low = cfg.sigma_max ** (1 / cfg.rho), cfg.sigma_min ** (1 / cfg.rho)
    return F.pad((high + i * (low - high)) ** cfg.rho, (0, 1))


def solve(denoise, x, sigmas, progress=lambda steps: steps):
    """From x, which holds noise of sigmas[0], to a sample. DPM-Solver++(2M), Algorithm 2 of Lu et al., in EDM's terms
    (alpha = 1, so lambda = -ln sigma): x falls towards D_x exponentially in lambda, and D_x is extrapolated in a straight
    line through the last two evaluations. One evaluation per step; the last one, to sigma = 0, lands on D_x itself."""
    previous = None
    for i in progress(range(len(sigmas) - 1)):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        D_x = denoise(x, sigma)
        ahead = D_x
        if previous is not None and sigma_next > 0:
            h, h_last = torch.log(sigma / sigma_next), torch.log(sigmas[i - 1] / sigma)
            ahead = D_x + (D_x - previous) * h / (2 * h_last)
        x = ahead + (x - ahead) * (sigma_next / sigma)
        previous = D_x
    return x


def pick_device(name="auto"):
    """"auto" -> cuda, else mps, else cpu. Raises UserError for a device that is not there."""
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name != "auto" and name.split(":")[0] not in there:
        raise UserError(f"device {name} is not available; this machine has {', '.join(there)}")
    return torch.device(there[0] if name == "auto" else name)


@lru_cache
def bfloat16_pays(device):
    """Are convolutions in bfloat16 at least 1.3 times as fast as in float32? Many processors have none of it and take ten
    times as long, so a CPU is tried."""
    if device.type != "cpu":
        return device.type == "cuda"

    def seconds(dtype):
        conv, x = nn.Conv2d(48, 48, 3, dtype=dtype), torch.randn(1, 48, 25, 32, dtype=dtype)
        return min(timeit.repeat(lambda: conv(x), number=1, repeat=3))
    return seconds(torch.float32) > 1.3 * seconds(torch.bfloat16)


def save_checkpoint(checkpoint, path):
    """A dict of plain values and tensors, whole or not at all. Raises UserError if it cannot be written."""
    torch.save(checkpoint, buffer := io.BytesIO())
    write(path, buffer.getbuffer())


def load_checkpoint(path):
    """The dict in a checkpoint file, on the CPU. weights_only: a stranger's file cannot run code. Raises UserError."""
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist; give assets/demo.pt or a checkpoint written by train.py")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:                                                 # torch.load fails in a dozen ways
        raise UserError(f"checkpoint {path} cannot be read ({type(e).__name__}); it is damaged or not a checkpoint, "
                        "copy or train it again") from None
    if not isinstance(checkpoint, dict) or not {"config", "ema"} <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of this program: it has no \"config\" and \"ema\"; "
                        "give assets/demo.pt or a checkpoint written by train.py")
    return checkpoint


@contextmanager
def fitting(path):
    """Around the use of a checkpoint's contents: whatever does not fit becomes a UserError."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError) as e:
        reason = " ".join(str(e).split("\n\t")[-1].split())[:150]           # torch's first line says nothing
        raise UserError(f"{path} was made by another version of this program, or its config and weights do not belong "
                        f"together ({reason}); give assets/demo.pt or train it again") from None


if __name__ == "__main__":
    # What is in it: the parts of the demo model, their sizes, and the shapes on the way.
    model = FastSAG(PRESETS["demo"])
    model.vocoder = Vocoder(model.cfg)
    for name, part in model.named_children():
        print(f"{name:10s}{sum(p.numel() for p in part.parameters()) / 1e6:6.2f} M parameters")
    vocals = torch.randn(1, 10 * model.frame_length) * 0.1
    mel, features = model.analyse(vocals)
    expected, mu = model.condition(vocals)
    accomp = model.sample(mu, expected, steps=2)
    for name in ("vocals", "mel", "features", "expected", "mu", "accomp"):
        print(f"{name:10s}{tuple(locals()[name].shape)}")

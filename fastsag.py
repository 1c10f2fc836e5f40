"""FastSAG from scratch: solo singing in, the matching instrumental accompaniment out.

One file, read top to bottom, for the paper "FastSAG: Towards Fast Non-Autoregressive Singing Accompaniment Generation"
(Chen, Xue, Tan, Ye, Liu, Guo; IJCAI 2024). The signal path, with B batch, L samples, M mel bins, T frames, S features:

    vocals (B, L), 24 kHz mono
      -> log-mel (B, M, T = L/256); music features (B, S, T/4): chroma, onsets, loudness; bar profile: where in the bar
      -> semantic projection: the features to expect of the ACCOMPANIMENT (B, S, T/4)      WHAT to play   (Fig. 1b)
      -> prior projection:    the mean mel of the accompaniment, mu (B, M, T)              WHERE in time  (Fig. 1b)
      -> EDM diffusion: a 2-D U-Net turns noise into a mel that fits [mu, features]        (Fig. 1c)
      -> mel (B, M, T) -> small neural vocoder, or Griffin-Lim -> accompaniment (B, L), 24 kHz

The other papers: EDM (Karras et al. 2022, arXiv 2206.00364), DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), RoPE (Su et
al. 2021), Grad-TTS (Popov et al. 2021), Vocos (Siuzdak 2023, arXiv 2306.00814), fast Griffin-Lim (Perraudin et al. 2013).
"""
import io
import math
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# ----------------------------------------------------------------------------------------------------------------------
# Config. All that a checkpoint needs to rebuild its model and its losses; the optimiser's settings live in train.py.
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
    layers: int = 6                   # each: dilated convolution, MLP; every second one: attention
    radius: int = 128                 # attention reaches this many frames to either side: 5.5 s, so 10.9 s per layer
    # U-Net
    channels: tuple = (48, 96, 192)   # per level; each level halves time and frequency
    blocks: int = 1                   # residual blocks per level, on the way down and again on the way up
    unet_radius: int = 16             # bottom attention, frames of 171 ms to either side: 2.7 s
    segment: int = 1024               # mel frames per clip that the diffusion loss sees, 10.9 s (Grad-TTS's economy)
    input_drop: float = 0.15          # chance, in training, that the encoder must do without features; or bar profile
    cond_drop: float = 0.1            # share of training examples without condition, for classifier-free guidance
    vocoder_dim: int = 256            # channels
    vocoder_layers: int = 6
    # EDM (Table 1); sigma_data is the standard deviation of the normalised mel
    sigma_data: float = 0.5
    sigma_min: float = 0.02           # EDM: 0.002 and 80, from pure noise. Here the way begins at mu in noise of sigma_max,
    sigma_max: float = 5.0            # which is where it would lead anyway, and the steps are spent on the details
    temperature: float = 1.2          # the first noise is divided by it: more typical bands (Grad-TTS: 1.5)
    rho: float = 7.0
    P_mean: float = -1.2              # training noise levels: ln(sigma) ~ N(P_mean, P_std^2)
    P_std: float = 1.2

PRESETS = {
    "tiny": Config(dim=32, layers=2, radius=32, channels=(16, 24, 32), segment=64,       # for tests: seconds
                   vocoder_dim=32, vocoder_layers=2),
    "demo": Config(),                                                                    # the shipped weights
    "base": Config(dim=384, layers=10, channels=(128, 256, 384), blocks=2,               # real data, one GPU
                   vocoder_dim=512, vocoder_layers=8)}
N_FEATURES = 12 + 12 + 3 + 1          # S: bass chroma, middle chroma, onsets in three bands, loudness
N_BAR = 2 * (4 + 3) * 8 + 3 * 12      # bar profile: two tracks at each eighth of a beat, bars of four and three; three loops
PATCH = 4                             # one feature frame is 4 mel frames, 43 ms; the U-Net sees 4 x 4 mel patches

class UserError(Exception):
    """The user's input cannot be used; the message is one sentence that the scripts print, with exit status 2."""

def demand(*checks):
    """checks: (is it good?, the sentence to say if it is not). Raises UserError with the first that is not."""
    for good, complaint in checks:
        if not good:
            raise UserError(complaint)

def at_least(args, **least):
    """Raises UserError for the first option of a command line (None: not given) that is below its least value."""
    for name, value in least.items():
        given = getattr(args, name)
        demand((given is None or given >= value, f"--{name.replace('_', '-')} {given}: must be at least {value}"))

def finish(script, work, stopped=lambda: "stopped"):
    """Run a script's work() -> exit status: what it returns, or 0; 2 after a UserError, 130 after Ctrl-C, told in a line."""
    try:
        return work() or 0
    except UserError as problem:
        print(f"{script}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{script}: {stopped()}", file=sys.stderr)
        return 130

# ----------------------------------------------------------------------------------------------------------------------
# Files, written whole or not at all; checkpoints and devices; levels and sample rates
@contextmanager
def writing(path):
    """Around whatever writes: a full disk or a folder without rights becomes a UserError about `path`."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{path} cannot be written ({e.strerror}); is the disk full, or the folder not yours?") from None

def write(path, data):
    """Bytes to a file, its folder made if need be; first under a temporary name, so that a kill never leaves half a file."""
    temporary = Path(f"{path}.tmp")
    with writing(path):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

def pick_device(name="auto"):
    """"auto" -> cuda, else mps, else cpu. Raises UserError for a device that is not there."""
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    demand((name in ("auto", *there), f"device {name} is not available; this machine has {', '.join(there)}"))
    return torch.device(there[0] if name == "auto" else name)

def bfloat16_pays(device):
    """Is bfloat16 faster than float32? On a CPU with units for it twice, on one without a tenth as fast."""
    units = getattr(torch.cpu, "get_capabilities", dict)()                 # of x86; an old torch does not tell
    return device.type == "cuda" or device.type == "cpu" and any(units.get(name) for name in ("avx512_bf16", "amx_bf16"))

def save_checkpoint(checkpoint, path):
    """A dict of plain values and tensors, whole or not at all. Raises UserError if it cannot be written."""
    torch.save(checkpoint, buffer := io.BytesIO())
    write(path, buffer.getbuffer())

def load_checkpoint(path):
    """The dict in a checkpoint file, on the CPU. weights_only: a stranger's file cannot run code. Raises UserError."""
    given = "give assets/demo.pt or a checkpoint written by train.py"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:                                                 # torch.load fails in a dozen ways
        raise UserError(f"checkpoint {path} cannot be read ({type(e).__name__}); {given}") from None
    demand((isinstance(checkpoint, dict) and {"config", "ema"} <= checkpoint.keys(),
            f"{path} is not a checkpoint of this program: it has no \"config\" and \"ema\"; {given}"))
    return checkpoint

@contextmanager
def fitting(path):
    """Around the use of a checkpoint's contents: whatever does not fit becomes a UserError."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError) as e:
        reason = " ".join(str(e).split("\n\t")[-1].split())[:150]           # torch's first line says nothing
        raise UserError(f"{path} is damaged or of another version of this program ({reason}); train it again") from None

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
    up, down = Fraction(rate_out, rate_in).limit_denominator(1000).as_integer_ratio()      # odd rates: to within 1e-6
    kernel, width = sinc_kernel(up, down)
    length = math.ceil(wav.shape[-1] * rate_out / rate_in)
    steps = math.ceil(length / up)
    x = F.pad(wav.reshape(-1, 1, wav.shape[-1]), (width, max(0, steps * down + width - wav.shape[-1])))
    y = F.conv1d(x, kernel.to(x), stride=down)                             # (N, up, steps): `up` out per `down` in
    return y.transpose(1, 2).reshape(*wav.shape[:-1], -1)[..., :length]

# ----------------------------------------------------------------------------------------------------------------------
# Mel front end, the only one of the project. log-mel as in BigVGAN's and Vocos' 24 kHz / 100 band models: frames that start
# (n_fft - hop) / 2 before their hop, magnitudes sqrt(re^2 + im^2 + 1e-9), slaney filters, natural log of at least 1e-5.
def in_float32(function):
    """Networks may run in bfloat16; what they hear may not."""
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
    total = frames.new_zeros(B, T + n_fft // hop_length - 1, hop_length)
    for i, part in enumerate(frames.split(hop_length, -1)):                # a hop of all frames at a time: F.fold is slow
        total[:, i: i + T] += part
    return total.flatten(1)

def istft(spec, n_fft, hop_length):
    """The least-squares inverse of stft: windowed frames are added up and divided by the added-up squared window."""
    pad, window = (n_fft - hop_length) // 2, torch.hann_window(n_fft, device=spec.device)
    frames = torch.fft.irfft(spec.transpose(1, 2), n=n_fft) * window                               # (B, T, n_fft)
    weight = overlap_add(window.square().expand_as(frames[:1]), hop_length)
    return overlap_add(frames, hop_length)[:, pad:-pad] / weight[:, pad:-pad]

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

def normalise(mel, cfg):
    """log-mel -> mean 0, standard deviation sigma_data, as the networks like it."""
    return (mel - cfg.mel_mean) * (cfg.sigma_data / cfg.mel_std)

def denormalise(mel, cfg):
    return mel * (cfg.mel_std / cfg.sigma_data) + cfg.mel_mean

# ----------------------------------------------------------------------------------------------------------------------
# Music features. Where the paper takes 768 features of MERT-v1-95M, a pretrained model, we write down what an accompanist
# listens for: which notes sound (chroma, in the bass and above it), where something begins (onsets, low, middle, high) and
# how loud it is. They know nothing of timbre, nor of a source separator's artefacts. A network can learn to find the beat
# too, but takes thousands of steps; what is *on* the beat, and what the band does there, is left to it.
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
    rise = torch.log1p(100 * mel.exp()).diff().clamp(min=0)
    return F.pad(rise, (1, 0)).unflatten(-1, (-1, PATCH)).sum(-1)

def loudness(mel):
    """log-mel (B, M, T) -> (B, T/4), mean over the bands; a logarithm that stays at 0 in silence."""
    return torch.log1p(100 * mel.exp()).mean(1).unflatten(-1, (-1, PATCH)).mean(-1)

@in_float32
def music_features(wav, mel, cfg):
    """(B, L) and its log-mel (B, M, T) -> (B, S, T/4), each row of roughly zero mean and unit variance. The three bands of
    the onsets reach up to 270 Hz, 1.4 kHz and 12 kHz."""
    low, n_fft = cfg.sample_rate // 4, 2048                                # 6 kHz is enough for chroma; 341 ms frames
    filters = chroma_filterbank(low, n_fft).to(wav.device) * (4 / n_fft)   # a sine of amplitude 1 gives 1
    chroma = stft(resample(wav, cfg.sample_rate, low), n_fft, cfg.hop_length * PATCH // 4, lambda spec: filters @ spec.abs())
    chroma = chroma.unflatten(1, (2, 12))
    chroma = chroma / (chroma.norm(dim=2, keepdim=True) + 0.01)            # shape, not loudness; silence gives 0
    onsets = torch.stack([band.mean(1) for band in onset_envelope(mel).split([8, 32, cfg.n_mels - 40], 1)], 1)
    return torch.cat([4 * chroma.flatten(1, 2) - 1, 3 * onsets.sqrt() - 1, 2 * loudness(mel)[:, None] - 2], 1)

def find_beat(onsets, cfg, slowest=0.9, tempos=512, reach=512, every=32):
    """Onset strength (B, T/4) -> frames per beat (B, T/4), decided anew every 1.4 s, for a beat of 0.9 to 1.8 Hz (54 to 108
    per minute; faster songs show up at half their tempo). Singers sing early, late and between the beats; what stays is a
    period. So correlate 44 s with waves of every tempo, its double and fourfold (Grosche & Mueller 2011), for halves and
    quarters of a beat are sung too, and add up the power of the 31 such windows around."""
    rate = cfg.sample_rate / cfg.hop_length / PATCH                        # frames per second
    period = rate / slowest * 2 ** -(torch.arange(tempos, device=onsets.device) / tempos)                # frames
    time = torch.arange(-reach, reach + 1, device=onsets.device)
    angle = 2 * math.pi * torch.tensor([1, 2, 4], device=onsets.device)[:, None, None] * time / period[:, None]
    waves = torch.stack([angle.cos(), angle.sin()]) * torch.hann_window(len(time), periodic=False, device=onsets.device)
    swell = F.avg_pool1d(onsets[:, None], 49, 1, 24, count_include_pad=False)[:, 0]          # over 2 s: not the rhythm
    around = F.pad(onsets - swell, (reach, reach)).unfold(1, len(time), every)               # (B, windows, 1025)
    power = (around @ waves.flatten(0, 2).T).unflatten(-1, (6, tempos)).square().sum(2)      # (B, windows, tempos)
    total = F.pad(power, (0, 0, 15, 15)).unfold(1, 31, 1).sum(-1)
    return period[total.argmax(-1)].repeat_interleave(every, 1)[:, : onsets.shape[1]]

def chroma_of(features):
    """(B, S, T/4) -> (B, 24, T/4): the chroma rows of music_features as shares from 0 to 1."""
    return (features[:, :24] + 1) / 4

def fold(tracks, period, beats, places, reach=512):
    """What is sung at each point of the bar? tracks (B, C, T/4), frames per beat (B, T/4), places (R,) in beats -> (B, C, R,
    T/4): for each frame, the mean over all that lies place + n * beats beats from it (n whole), up to 22 s to either side."""
    N = tracks.shape[-1]
    time, places = torch.arange(N, device=tracks.device), torch.as_tensor(places, device=tracks.device)[:, None]
    period, sums = period[:, None], 0
    tracks = F.pad(tracks, (0, 0, 0, 1), value=1.0)[:, :, None]            # one more, to count what was added up
    pick = lambda i: tracks.take_along_dim(i[:, None], 3)                  # (B, R, T/4) -> (B, C + 1, R, T/4)
    bars = int(reach / beats / period.min())
    for bar in range(-bars, bars + 1):
        away = (bar * beats + places) * period                             # (B, R, T/4) frames from here
        weight = (0.5 + 0.5 * torch.cos(math.pi / reach * away.clamp(-reach, reach))) * ((time + away - N / 2).abs() < N / 2)
        at = (time + away).clamp(0, N - 1)
        before = at.long().clamp(max=N - 2)                                # and after it: interpolate between the two
        sums = sums + weight[:, None] * torch.lerp(pick(before), pick(before + 1), (at - before)[:, None])
    return sums[:, :-1] / (sums[:, -1:] + 1e-3)

@in_float32
def bar_profile(mel, chroma, cfg):
    """log-mel (B, M, T) and chroma (B, 24, T/4) of the singing -> (B, 148, T/4). How strongly, beside the average, something
    begins and how loud it is at each eighth of a beat around each frame, in bars of four beats and of three; which notes are
    sung here each time that a loop of 8, 16 or 12 beats comes round (chords come in loops)."""
    onsets = onset_envelope(mel).mean(1)
    tracks, period = torch.stack([4 * onsets, 2 * loudness(mel)], 1), find_beat(onsets, cfg)
    four, three = (fold(tracks, period, beats, torch.arange(beats * 8) / 8 - beats / 2) for beats in (4, 3))
    loops = [2 * fold(chroma[:, :12] + chroma[:, 12:], period, beats, [0.0])[:, :, 0] for beats in (8, 16, 12)]
    return torch.cat([(torch.cat([four, three], 2) - four.mean(2, keepdim=True)).flatten(1, 2), *loops], 1)

# ----------------------------------------------------------------------------------------------------------------------
# Blocks. No statistics are taken over time, and attention reaches a fixed distance: a frame's result depends on what is
# around it, not on how long the clip is. A model trained on clips then works on songs.
class ChannelNorm(nn.Module):
    """Divides by the root mean square over the channels (dim 1). A gain per channel, which `scale` (B, C) can change."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x, scale=0.0):
        gain = (self.gain * (1 + scale)).to(x.dtype)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x * (norm * x.shape[1] ** -0.5 + 1e-3).reciprocal() * gain[(..., *[None] * (x.dim() - 2))]

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
        extra = -T % R                                                     # up to whole blocks
        q, k, v = self.qkv(self.norm(x)).unflatten(1, (3, -1, self.head)).transpose(-1, -2).unbind(1)
        q = F.pad(self.rotate(q), (0, 0, 0, extra)).unflatten(2, (-1, R))  # (B, heads, blocks, R, head)
        k, v = (F.pad(t, (0, 0, R, R + extra)).unfold(2, 3 * R, R) for t in (self.rotate(k), v))     # (..., head, 3R)
        i = torch.arange(T + extra, device=x.device).view(-1, R, 1)        # when the queries and the keys are
        j = i[:, :1] + torch.arange(-R, 2 * R, device=x.device)
        far = ((i - j).abs() > R) | (j < 0) | (j >= T)                     # (blocks, R, 3R)
        score = (self.head ** -0.5 * q @ k).masked_fill(far, -1e4)         # by hand: faster on a CPU than torch's fused one
        y = score.softmax(-1).to(v.dtype) @ v.transpose(-1, -2)            # (B, heads, blocks, R, head)
        return x + self.out(y.flatten(2, 3)[:, :, :T].transpose(-1, -2).flatten(1, 2))

class TimeBlock(nn.Module):
    """Residual dilated convolution over time, then a two-layer perceptron per frame."""

    def __init__(self, C, dilation):
        super().__init__()
        self.conv = nn.Sequential(ChannelNorm(C), nn.Conv1d(C, C, 5, padding=2 * dilation, dilation=dilation), nn.SiLU())
        self.mlp = nn.Sequential(ChannelNorm(C), nn.Conv1d(C, 4 * C, 1), nn.SiLU(), nn.Conv1d(4 * C, C, 1))

    def forward(self, x):                                                  # (B, C, T)
        x = x + self.conv(x)
        return x + self.mlp(x)

def in_pieces(run, frames, size, halo, hop=1):
    """A song, `size` frames at a time: run(begin, end) -> (..., `hop` values a frame), where end may lie beyond the song. The
    `halo` frames to either side are cut off again: whoever sees no further than these makes no seam."""
    pieces = []
    for start in range(0, frames, size):
        a = max(0, start - halo)
        pieces.append(run(a, start + size + halo)[..., (start - a) * hop: (start - a + size) * hop])
    return torch.cat(pieces, -1)

# ----------------------------------------------------------------------------------------------------------------------
# The two projections, the heart of the paper. Both are regressions: they learn the mean of what may follow, and the
# diffusion adds what a mean cannot have.
#   semantic: WHAT to play. Music features and bar profile of the vocals -> features to expect of the band       L_semantic
#   prior: WHERE in time. These and the hidden state that they are read from -> the band's mean mel, mu          L_prior
# The vocals' mel would tell more, but of the singer: it does not help with singers never met. Official code: WaveNets of
# 8 x 8 layers on MERT features, about 150 M parameters; here attention gives what beat and key need, in 2 M.
class Projection(nn.Module):
    """Inputs (B, *, T/4), together c_in channels -> output (B, c_out, T/4) and the hidden state before it (B, dim, T/4)."""

    def __init__(self, cfg, c_in, c_out, layers, attend):
        super().__init__()
        self.embed = nn.Conv1d(c_in, cfg.dim, 1)
        self.layers = nn.Sequential()
        for i in range(layers):
            self.layers.append(TimeBlock(cfg.dim, dilation=2 ** (i % 4)))
            if attend and i % 2:
                self.layers.append(LocalAttention(cfg.dim, cfg.dim, cfg.radius))
        self.out = nn.Sequential(ChannelNorm(cfg.dim), nn.Conv1d(cfg.dim, c_out, 1))

    def forward(self, *inputs):
        hidden = self.layers(self.embed(torch.cat(inputs, 1)))
        return self.out(hidden), hidden

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
    """Two 3 x 3 convolutions; the noise level scales and shifts what lies between them. Starts as its shortcut alone."""

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
        scale, shift = self.modulate(emb).chunk(2, 1)
        h = self.conv2(F.silu(self.norm2(h, scale) + shift[:, :, None, None]))
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
        blocks = lambda c_in, c: [ResBlock(c if i else c_in, c, emb) for i in range(cfg.blocks)]
        for c, wide in zip(C, C[1:]):
            self.down.append(nn.ModuleList([*blocks(c, c), nn.Conv2d(c, wide, 3, stride=2, padding=1)]))
            self.up.insert(0, nn.ModuleList([nn.Conv2d(wide, c, 1), *blocks(2 * c, c)]))
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
        h = h + (self.position + self.features(expected).unflatten(1, (-1, self.rows))).to(h.dtype)
        skips = []
        for *blocks, halve in self.down:
            for block in blocks:
                h = block(h, emb)
            skips.append(h)
            h = halve(h)
        first, attention, last = self.middle
        h = first(h, emb)
        h = last(attention(h.flatten(1, 2)).view_as(h), emb)
        for narrow, *blocks in self.up:
            skip = skips.pop()
            h = F.interpolate(narrow(h), scale_factor=2, mode="nearest")[:, :, : skip.shape[2]]
            h = torch.cat([h, skip], 1)                                    # (B, 2C, rows, time)
            for block in blocks:
                h = block(h, emb)
        return F.pixel_shuffle(self.out(h), PATCH)[:, 0]

# ----------------------------------------------------------------------------------------------------------------------
# From mel to sound. A mel has no phases, and its bands are too wide to tell neighbouring partials apart. The neural
# vocoder has learnt both; it works at the mel's rate and leaves the way up to 24 kHz to the inverse STFT (the idea of
# Vocos; official code: BigVGAN, 112 M parameters). Griffin-Lim begins with random phases. Then both search alike.
def find_phases(spec, correct, rounds, momentum, cfg):
    """Fast Griffin-Lim (Perraudin et al. 2013): spec (B, n_fft/2 + 1, T) -> waveform (B, T * hop). Most spectra belong to
    no waveform: go to the nearest one and back, keep its phases, `correct` the magnitudes (told which share of the rounds is
    done). Momentum saves many rounds."""
    wav = ahead = istft(correct(spec, 0), cfg.n_fft, cfg.hop_length)
    for i in range(rounds):
        last, spec = wav, stft(ahead, cfg.n_fft, cfg.hop_length)
        wav = istft(correct(spec, (i + 1) / rounds), cfg.n_fft, cfg.hop_length)
        ahead = wav + momentum * (wav - last)
    return wav

def griffin_lim(mel, cfg, iterations=32):
    """log-mel (B, M, T) -> waveform (B, T * hop). Takes 2 GB for ten minutes: it needs the whole song at once."""
    filters = mel_filterbank(cfg.sample_rate, cfg.n_fft, cfg.n_mels).to(mel.device)
    magnitude = (torch.linalg.pinv(filters) @ mel.exp()).clamp(min=0)      # least squares; a spectrum is not negative
    angle = 2 * math.pi * torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(0)).to(mel.device)
    spec = torch.polar(magnitude, angle.expand_as(magnitude))
    return find_phases(spec, lambda spec, done: magnitude * spec / spec.abs().clamp(min=1e-8), iterations, 0.99, cfg)

class ConvNeXtBlock(nn.Module):
    """Convolution over time, each channel for itself, then a two-layer perceptron per frame (Liu et al. 2022, in 1-D)."""

    def __init__(self, C):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(C, C, 7, padding=3, groups=C), ChannelNorm(C),
                                    nn.Conv1d(C, 3 * C, 1), nn.GELU(), nn.Conv1d(3 * C, C, 1))
        self.scale = nn.Parameter(torch.full((C, 1), 0.2))                 # deep stacks start close to the identity

    def forward(self, x):                                                  # (B, C, T)
        return x + self.scale * self.layers(x)

def log_spectrum(wav, n_fft):
    """(B, L) -> (B, n_fft/2 + 1, 4 L / n_fft): log of the magnitudes; what is 66 dB below usual music counts as silence."""
    return (stft(wav, n_fft, n_fft // 4).abs() + 1e-3).log()

def stft_distance(a, b):
    """Waveforms (B, L) -> mean difference of the logarithms of their spectra, in nepers, at three resolutions, (3,)."""
    return torch.stack([F.l1_loss(log_spectrum(a, n_fft), log_spectrum(b, n_fft)) for n_fft in (512, 1024, 2048)])

def match_mel(spec, mel, cfg, power=1):
    """Scale the bins of a spectrogram (B, n_fft/2 + 1, T) so that its mel comes close to mel (B, M, T): a multiplicative
    update as in non-negative matrix factorisation (Lee & Seung 2001), to a power. What no band sees falls silent."""
    filters = mel_filterbank(cfg.sample_rate, cfg.n_fft, cfg.n_mels).to(spec.device)
    spec, want = spec.transpose(1, 2), mel.exp().transpose(1, 2)           # frames first, as they lie in memory
    have = (spec.real.square() + spec.imag.square() + 1e-9).sqrt() @ filters.T
    return (spec * ((want / have) ** power @ (filters / filters.sum(0).clamp(min=1e-8)))).transpose(1, 2)

class Vocoder(nn.Module):
    """log-mel (B, M, T) -> waveform (B, T * hop). The network gives each frame's magnitudes and phases, out of the mel
    around it; its blocks are passed twice: deeper, not larger. How loud each band is, the mel says last. A steady tone
    has the same mel in every frame, but its phase moves on: phases are given relative to each bin's own rotation, i^(k t),
    and clocks of up to 128 frames let tones between the bins drift."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, C = cfg, cfg.vocoder_dim
        self.embed = nn.Conv1d(cfg.n_mels + 10, C, 7, padding=3)
        self.blocks = nn.Sequential(*[ConvNeXtBlock(C) for _ in range(cfg.vocoder_layers)], ChannelNorm(C))
        self.out = nn.Conv1d(C, cfg.n_fft + 2, 1)

    def forward(self, mel, start=0, rounds=8):
        """start: which frame of its song mel begins with, an integer or integers (B, 1, 1). rounds: of find_phases, whose
        corrections grow, up to twofold: going through a waveform undoes a good part of each."""
        time = start + torch.arange(mel.shape[-1], device=mel.device).expand(len(mel), 1, -1)             # (B, 1, T)
        clock = 2 * math.pi * time / torch.tensor([[8], [16], [32], [64], [128]], device=mel.device)      # (B, 5, T)
        x = self.embed(torch.cat([normalise(mel, self.cfg), clock.cos(), clock.sin()], 1))
        log_magnitude, phase = self.out(self.blocks(self.blocks(x))).float().chunk(2, 1)
        magnitude = log_magnitude.clamp(max=7).exp()                       # e^7: a sine of full scale and then some
        turns = time % 4 * (torch.arange(phase.shape[1], device=mel.device)[:, None].float() % 4)        # quarter turns
        spec = torch.polar(magnitude, phase + math.pi / 2 * turns)
        return find_phases(spec, lambda spec, done: match_mel(spec, mel, self.cfg, 1 + done ** 2), rounds, 0.4, self.cfg)

    def long(self, mel, piece=2048, halo=80):
        """The same for a song, in pieces of 22 s with more to either side than the network sees: no seam exists."""
        return in_pieces(lambda a, b: self(mel[..., a:b], a), mel.shape[-1], piece, halo, self.cfg.hop_length)

# ----------------------------------------------------------------------------------------------------------------------
# The model: precondition, loss and sampler follow EDM line by line. The official code takes the preconditioning of
# consistency models, (sigma - sigma_min) for sigma, and steps with Euler; here both are as EDM's Table 1 prints them.
def cut(x, start, length):
    """Rows of x (B, C, T) from their own start (B,) on -> (B, C, length)."""
    return x.take_along_dim(start[:, None, None] + torch.arange(length, device=x.device), 2)

def sigma_steps(steps, cfg):
    """(steps + 1,) noise levels from sigma_max to sigma_min, then 0: EDM eq. 5."""
    high, low = cfg.sigma_max ** (1 / cfg.rho), cfg.sigma_min ** (1 / cfg.rho)
    return F.pad(torch.linspace(high, low, steps) ** cfg.rho, (0, 1))

def solve(denoise, x, sigmas, progress=lambda steps: steps):
    """From x, which holds noise of sigmas[0], to a sample. DPM-Solver++(2M), Algorithm 2 of Lu et al., in EDM's terms
    (alpha = 1, so lambda = -ln sigma): x falls towards D_x exponentially in lambda, and D_x is extrapolated in a straight
    line through the last two evaluations. Second order, as EDM's Heun, for half the evaluations; sigma = 0 gives D_x."""
    h = -sigmas.log().diff()                                               # steps of lambda; the last one is infinite
    for i in progress(range(len(h))):
        D_x = ahead = denoise(x, sigmas[i])
        if 0 < i < len(h) - 1:
            ahead = D_x + (D_x - previous) * h[i] / (2 * h[i - 1])
        x = ahead + (x - ahead) * (sigmas[i + 1] / sigmas[i])
        previous = D_x
    return x

class FastSAG(nn.Module):
    """Vocals to accompaniment. `FastSAG.load(path)` and `accompany(vocals, sample_rate)` are all that a user needs."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.semantic = Projection(cfg, N_FEATURES + N_BAR, N_FEATURES, cfg.layers, attend=True)
        self.prior = Projection(cfg, N_FEATURES + cfg.dim, PATCH * cfg.n_mels, layers=2, attend=False)
        self.unet = UNet(cfg)
        self.vocoder = None                                                # a Vocoder(cfg), once one is trained
        self.frame_length = cfg.hop_length * PATCH * 2 ** (len(cfg.channels) - 1)            # all lengths are multiples of it

    @property
    def device(self):
        return next(self.parameters()).device

    def condition(self, vocals, hear=None):
        """vocals (B, L) -> expected features (B, S, T/4), mu (B, M, T): the two things that the U-Net is told.
        hear (B, 2), in training: 0 where features or bar profile are kept from the encoder, lest it rely on one alone."""
        mel = log_mel(vocals, self.cfg)
        features = music_features(vocals, mel, self.cfg)
        bar = bar_profile(mel, chroma_of(features), self.cfg)
        if hear is not None:
            features, bar = features * hear[:, :1, None], bar * hear[:, 1:, None]
        expected, hidden = self.semantic(features, bar)
        frames, _ = self.prior(expected, hidden)                           # each feature frame holds four mel frames
        return expected, frames.unflatten(1, (-1, PATCH)).transpose(2, 3).flatten(2)       # (B, M, 4, T/4) -> (B, M, T)

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
        cfg, how = self.cfg, {"generator": generator, "device": generator.device}
        segment = min(cfg.segment, frames)
        return {"sigma": (cfg.P_mean + cfg.P_std * torch.randn(batch, **how)).exp(),
                "start": torch.randint((frames - segment) // 16 + 1, (batch,), **how) * 16,
                "noise": torch.randn(batch, cfg.n_mels, segment, **how),
                "keep": (torch.rand(batch, **how) >= cfg.cond_drop).float(),
                "hear": (torch.rand(batch, 2, **how) >= cfg.input_drop).float()}

    def forward(self, vocals, accomp, draw):
        """vocals, accomp (B, L) and draw() -> {"semantic": scalar, "prior": scalar, "diffusion": (B,)}. All three
        are close to 1 for a model that knows nothing, so the paper's weights of 1 : 1 : 1 can stand."""
        cfg = self.cfg
        mel = log_mel(accomp, cfg)
        features, mel = music_features(accomp, mel, cfg), normalise(mel, cfg)
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

    def guided(self, x, sigma, mu, expected, guidance, window=8192, halo=512):
        """denoise() for a song. Guidance (Ho & Salimans 2022): away from what the network expects without a condition, in a
        second pass. On a CPU in windows of 87 s, to save memory, with 5.5 s to either side: more than the U-Net sees."""
        def run(a, b):
            predict = lambda keep: self.denoise(x[..., a:b], sigma.expand(len(x)), keep * mu[..., a:b],
                                                keep * expected[..., a // PATCH: b // PATCH])
            return predict(1) if guidance == 1 else torch.lerp(predict(0), predict(1), guidance)
        return in_pieces(run, x.shape[-1], window if x.device.type == "cpu" else x.shape[-1], halo)

    @torch.no_grad()
    def sample(self, mu, expected, steps=8, guidance=5.0, seed=0, progress=lambda steps: steps):
        """Draw a mel (B, M, T) for a condition: the probability-flow ODE of EDM in `steps` network evaluations. It starts at
        mu, as in Grad-TTS: in noise this strong, nothing but the mean can be expected. Guidance acts at 0.5 < sigma < 15 only:
        in the first half of the steps, where beat and chords are decided (Kynkaanniemi et al. 2024)."""
        noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed)).to(mu.device) / self.cfg.temperature
        sigmas = sigma_steps(steps, self.cfg).to(mu.device)
        denoise = lambda x, sigma: self.guided(x, sigma, mu, expected, guidance if 0.5 < sigma < 15 else 1)
        with torch.autocast(mu.device.type, torch.bfloat16, enabled=bfloat16_pays(mu.device)):
            return solve(denoise, mu + sigmas[0] * noise, sigmas, progress)

    @torch.no_grad()
    def accompany(self, vocals, sample_rate, steps=8, guidance=5.0, seed=0):
        """vocals (L,) float, 0.5 s or longer -> accompaniment (L,) float32, at the same rate and active level."""
        vocals = torch.as_tensor(vocals, dtype=torch.float32)
        assert vocals.dim() == 1, f"vocals must be mono, shape (L,); got {tuple(vocals.shape)}"
        wav, gain = self.prepare(vocals, sample_rate)
        expected, mu = self.condition(wav)
        return self.render(self.sample(mu, expected, steps, guidance, seed), gain, sample_rate, len(vocals))

    def prepare(self, vocals, sample_rate):
        """(L,) -> (1, L') at the model's rate and level, padded to whole U-Net frames; and the gain that was applied."""
        wav = resample(vocals, sample_rate, self.cfg.sample_rate)
        level = active_dbfs(wav, self.cfg.sample_rate)
        assert level > -math.inf, "vocals are silent"
        gain = 10 ** ((self.cfg.level_dbfs - level) / 20)
        return F.pad(wav * gain, (0, -len(wav) % self.frame_length))[None].to(self.device), gain

    def vocode(self, mel, vocoder="neural"):
        """log-mel (1, M, T) -> waveform (1, T * hop). "neural" falls back to "griffinlim" if the weights have none."""
        if vocoder == "neural" and self.vocoder is not None:
            with torch.autocast(mel.device.type, torch.bfloat16, enabled=bfloat16_pays(mel.device)):
                return self.vocoder.long(mel)
        return griffin_lim(mel, self.cfg)

    def render(self, mel, gain, sample_rate, length, vocoder="neural"):
        """Normalised mel (1, M, T) -> (length,) float32 numpy at sample_rate; undoes the gain of prepare()."""
        wav = self.vocode(denormalise(mel, self.cfg), vocoder)[0].cpu()
        wav = resample(wav, self.cfg.sample_rate, sample_rate)[:length]
        wav = wav * 10 ** ((self.cfg.level_dbfs - active_dbfs(wav, sample_rate)) / 20) / gain
        return F.pad(wav, (0, length - len(wav))).numpy()

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

if __name__ == "__main__":
    # What is in it: the parts of the demo model, their sizes, and the shapes on the way.
    model = FastSAG(PRESETS["demo"])
    model.vocoder = Vocoder(model.cfg)
    for name, part in model.named_children():
        print(f"{name:10s}{sum(p.numel() for p in part.parameters()) / 1e6:6.2f} M parameters")
    vocals = torch.randn(1, 10 * model.frame_length) * 0.1
    expected, mu = model.condition(vocals)
    mel = model.sample(mu, expected, steps=2)
    for name, value in dict(vocals=vocals, expected=expected, mu=mu, mel=mel).items():
        print(f"{name:10s}{tuple(value.shape)}")

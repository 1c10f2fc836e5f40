"""The autoregressive way, for comparison: music as tokens, each drawn given the tokens before it.

    python baselines/singsong.py train [--data data/demo] [--minutes 30] [--out runs/singsong]
    python baselines/singsong.py sample vocals.wav [--checkpoint runs/singsong/singsong.pt]
    python baselines/singsong.py evaluate data/demo         a table with both methods

To be read after fastsag.py, with which it shares mel, features, data and vocoder. The method is
that of SingSong (Donahue et al. 2023, arXiv 2301.12662), which is AudioLM's (Borsos et al. 2022,
arXiv 2209.03143) with a voice as its condition. B songs, N = T/4 feature frames of 43 ms:

    vocals (B, L)
      -> voice (B, N, 176): music features and bar profile, as in FastSAG
      -> stage 1 draws semantic tokens of the accompaniment (B, N, 1)             Stage
      -> stage 2 draws its acoustic tokens (B, N, 8)                              Stage
      -> its mel (B, M, T)                                                        MelCodec
      -> vocoder -> accompaniment (B, L)                                          fastsag.Vocoder

What differs from SingSong, beside size and data:
- A semantic token stands for 28 music features, not for an output of w2v-BERT. The codec codes
  mels, not waveforms; its codebooks come from k-means, not from a trained network. So both methods
  here start from the same features and sound through the same vocoder.
- The voice is not quantised. Each frame of it is added to the tokens of the same frame, where
  SingSong looks for it by cross-attention.
- One stage draws all acoustic tokens, frame by frame; SingSong draws the coarse ones of a clip
  before the fine ones. It has 25 semantic, 200 coarse and 400 fine tokens a second; here are 23.4
  semantic and 187.5 acoustic ones.
- Songs are longer than the 11 s that a stage sees at once. They are drawn in windows.

What differs from FastSAG here: nothing is learnt from charts and true beats, there is no guidance,
and attention reaches no further than a window (the bar profile does).
"""
import argparse
import copy
import math
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # fastsag.py lies there

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import sample as fastsag_sample
from fastsag import (
    N_BAR,
    N_FEATURES,
    PATCH,
    Config,
    FastSAG,
    UserError,
    bar_profile,
    chroma_of,
    denormalise,
    explain_misfits,
    frame_rate,
    load_checkpoint,
    log_mel,
    music_features,
    normalise,
    pick_device,
    resample,
    rotate,
    save_checkpoint,
    write_file,
)
from prep import audio_bytes, check_least, read_set
from train import (
    SPEED_RANGE,
    augment,
    read_clips,
    set_up_device,
    to_waveforms,
    update_ema,
)


@dataclass
class TokenConfig:
    # Tokens
    semantic_codes: int = 256
    acoustic_codes: int = 1024
    patches: int = 4  # a frame's 100 mel bins x 4 mel frames, divided from low to high
    codes_per_patch: int = 2  # the first says it roughly, the second what is missing

    # Transformers of the two stages; with these sizes, about as many parameters as FastSAG: 5.5 M
    dim: int = 128
    heads: int = 4
    encoder_layers: int = 4
    decoder_layers: int = 4
    context: int = 256  # frames, 11 s, that a stage sees at once

    @property
    def acoustic_tokens(self):
        """Per frame: 8."""
        return self.patches * self.codes_per_patch


# --------------------------------------------------------------------------------------------------
# Tokens. A codebook holds typical vectors; a token is the number of the nearest one. Codebooks are
# found by k-means, before any network is trained.


class VectorQuantiser(nn.Module):
    """Vectors (..., dim) <-> tokens (...), whole numbers below num_codes."""

    def __init__(self, num_codes, dim):
        super().__init__()
        self.register_buffer("codebook", torch.zeros(num_codes, dim))

    def encode(self, x):
        """(..., dim) -> (...)"""
        # |x - c|^2 = |x|^2 - 2 x c + |c|^2, and |x|^2 is the same for all codes.
        distance = self.codebook.square().sum(1) - 2 * x @ self.codebook.T
        return distance.argmin(-1)

    def decode(self, tokens):
        """(...) -> (..., dim)"""
        return self.codebook[tokens]

    def fit(self, x, rounds=20):
        """k-means (Lloyd 1982) on vectors (n, dim), n > num_codes.

        A code without vectors becomes one of the vectors, at random.
        """
        num_codes = len(self.codebook)
        generator = torch.Generator().manual_seed(0)
        self.codebook.copy_(x[torch.randperm(len(x), generator=generator)[:num_codes]])
        for _ in range(rounds):
            tokens = self.encode(x)
            count = torch.bincount(tokens, minlength=num_codes)
            total = torch.zeros_like(self.codebook).index_add_(0, tokens, x)
            mean = total / count.clamp(min=1)[:, None]
            elsewhere = x[torch.randint(len(x), (num_codes,), generator=generator)]
            self.codebook.copy_(torch.where(count[:, None] > 0, mean, elsewhere))


class MelCodec(nn.Module):
    """Normalised mels (B, M, T) <-> acoustic tokens (B, N, 8).

    A frame, 100 mel bins x 4 mel frames, is divided into four patches of 25 bins, from low to high.
    A patch has two codes: one for itself, and one for what the first has left, as in SoundStream
    (Zeghidour et al. 2021; the division into patches is ours). The tokens of a frame are the first
    codes of its four patches, then their second codes.
    """

    def __init__(self, cfg):
        super().__init__()
        self.num_patches = cfg.patches
        self.bins = Config.n_mels // cfg.patches  # of a patch
        self.levels = nn.ModuleList()  # first codes, second codes
        for _ in range(cfg.codes_per_patch):
            quantisers = nn.ModuleList()
            for _ in range(cfg.patches):
                quantisers.append(VectorQuantiser(cfg.acoustic_codes, self.bins * PATCH))
            self.levels.append(quantisers)

    def split(self, mel):
        """(B, M, T) -> vectors (B, N, patches, bins * 4)"""
        x = mel.unflatten(1, (self.num_patches, self.bins))
        x = x.unflatten(3, (-1, PATCH))  # (B, patches, bins, N, 4)
        return x.permute(0, 3, 1, 2, 4).flatten(3)

    def join(self, vectors):
        """(B, N, patches, bins * 4) -> (B, M, T)"""
        x = vectors.unflatten(3, (self.bins, PATCH))  # (B, N, patches, bins, 4)
        x = x.permute(0, 2, 3, 1, 4)  # (B, patches, bins, N, 4)
        return x.flatten(3).flatten(1, 2)

    def encode(self, mel, fit=False):
        """(B, M, T) -> tokens (B, N, 8); fit: finds the codebooks on the way."""
        missing = self.split(mel)
        tokens = []
        for quantisers in self.levels:
            decoded = []
            for p, quantiser in enumerate(quantisers):
                x = missing[:, :, p]
                if fit:
                    quantiser.fit(x.flatten(0, 1))
                codes = quantiser.encode(x)
                tokens.append(codes)
                decoded.append(quantiser.decode(codes))
            missing = missing - torch.stack(decoded, dim=2)  # is left for the next codes
        return torch.stack(tokens, dim=2)

    def decode(self, tokens):
        """(B, N, 8) -> (B, M, T)"""
        tokens = tokens.unflatten(2, (len(self.levels), self.num_patches))
        total = 0
        for level, quantisers in enumerate(self.levels):
            decoded = []
            for p, quantiser in enumerate(quantisers):
                decoded.append(quantiser.decode(tokens[:, :, level, p]))
            total = total + torch.stack(decoded, dim=2)
        return self.join(total)


# --------------------------------------------------------------------------------------------------
# The two stages. An encoder reads the condition, which has as many frames as what is to be drawn. A
# decoder draws token after token. It sees the tokens before, and the encoder's output in its own
# frame: since both sides have the same frames, no attention has to find the place in the voice.


class Cache:
    """Keys and values of the past (B, heads, count, head_dim), in memory for `length` tokens.

    The memory is taken once: to copy all of the past for each new token costs more than the token.
    """

    def __init__(self, length):
        self.length = length
        self.count = 0
        self.keys = None
        self.values = None

    def append(self, k, v):
        """k, v (B, heads, n, head_dim) of the next tokens -> keys and values up to them."""
        if self.keys is None:
            B, heads, _, head_dim = k.shape
            self.keys = k.new_empty(B, heads, self.length, head_dim)
            self.values = torch.empty_like(self.keys)
        end = self.count + k.shape[2]
        self.keys[:, :, self.count : end] = k
        self.values[:, :, self.count : end] = v
        self.count = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Residual attention with rotary positions; with a cache, the past is not computed again."""

    def __init__(self, dim, heads, causal):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x, position, cache=None):
        """x (B, n, dim) at positions (n,) -> (B, n, dim).

        cache: what is before x. If that is nothing yet, x may have any length; else it is the one
        token that comes next.
        """
        qkv = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1))  # (B, n, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, n, head_dim) each
        q = rotate(q, position)
        k = rotate(k, position)
        if cache is not None:
            k, v = cache.append(k, v)

        # A single token may look at all of the past; several only at themselves and what is before.
        is_causal = self.causal and x.shape[1] > 1
        y = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return x + self.out(y.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention, then a perceptron."""

    def __init__(self, dim, heads, causal):
        super().__init__()
        self.attention = Attention(dim, heads, causal)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, dim),
        )

    def forward(self, x, position, cache=None):
        x = self.attention(x, position, cache)
        return x + self.mlp(x)


class Stage(nn.Module):
    """A condition (B, N, c_in) -> tokens (B, N, P), one after the other; P tokens per frame.

    Token number i is in frame i // P; its place in the frame is i % P.
    """

    def __init__(self, cfg, c_in, num_codes, per_frame):
        super().__init__()
        self.cfg = cfg
        self.per_frame = per_frame
        self.num_codes = num_codes
        self.embed_condition = nn.Linear(c_in, cfg.dim)
        self.encoder = nn.ModuleList()
        for _ in range(cfg.encoder_layers):
            self.encoder.append(TransformerBlock(cfg.dim, cfg.heads, causal=False))

        # One table has the embeddings of all tokens: token v at place p is row p * num_codes + v.
        # The last row stands before the first token, where there is none.
        self.start_row = per_frame * num_codes
        self.embed = nn.Embedding(self.start_row + 1, cfg.dim)
        self.place = nn.Embedding(per_frame, cfg.dim)
        self.decoder = nn.ModuleList()
        for _ in range(cfg.decoder_layers):
            self.decoder.append(TransformerBlock(cfg.dim, cfg.heads, causal=True))
        self.out = nn.ModuleList()  # a layer for each place
        for _ in range(per_frame):
            self.out.append(nn.Sequential(nn.LayerNorm(cfg.dim), nn.Linear(cfg.dim, num_codes)))

    @torch.no_grad()
    def begin_with(self, quantisers):
        """Sets embeddings and outputs so that codes which stand for similar vectors are similar.

        quantisers: one for each place. Stage 1 then learns in 25 steps what takes it 125 steps from
        random weights.
        """
        dim = self.cfg.dim
        for p, quantiser in enumerate(quantisers):
            codes = quantiser.codebook
            codes = (codes - codes.mean(0)) / codes.std()
            projection = torch.randn(codes.shape[1], dim, device=codes.device)
            projected = codes @ projection / codes.shape[1] ** 0.5  # (num_codes, dim), variance 1
            self.embed.weight[p * self.num_codes : (p + 1) * self.num_codes] = projected
            self.out[p][1].weight.copy_(projected / dim**0.5)

    def run_encoder(self, condition):
        """(B, N, c_in) -> (B, N, dim)"""
        x = self.embed_condition(condition)
        position = torch.arange(x.shape[1], device=x.device)
        for block in self.encoder:
            x = block(x, position)
        return x

    def rows_before(self, tokens):
        """Tokens (B, n, P) -> rows of the table (B, n * P + 1): the start, then the tokens."""
        place = torch.arange(self.per_frame, device=tokens.device)
        rows = place * self.num_codes + tokens
        return F.pad(rows.flatten(1), (1, 0), value=self.start_row)

    def run_decoder(self, encoded, rows, first=0, caches=None):
        """One pass over tokens number first, first + 1, ... -> hidden (B, n, dim).

        encoded (B, N, dim); rows (B, n): of the token before each of them, see rows_before();
        caches: one for each block, see Attention.
        """
        number = torch.arange(first, first + rows.shape[1], device=rows.device)
        place = self.place(number % self.per_frame)
        own_frame = encoded[:, number // self.per_frame]
        x = self.embed(rows) + place + own_frame
        for i, block in enumerate(self.decoder):
            x = block(x, number, caches[i] if caches else None)
        return x

    def loss(self, condition, target):
        """Mean cross-entropy of target (B, N, P), each token given those before; nats."""
        rows = self.rows_before(target)[:, :-1]
        hidden = self.run_decoder(self.run_encoder(condition), rows)
        hidden = hidden.unflatten(1, (-1, self.per_frame))
        losses = []
        for p in range(self.per_frame):
            logits = self.out[p](hidden[:, :, p])
            losses.append(F.cross_entropy(logits.flatten(0, 1), target[:, :, p].flatten()))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def generate(self, condition, known, draw):
        """Tokens (B, N, P) for a condition (B, N, c_in), beginning with those in `known`.

        known (B, n, P), n from 0 on; draw(logits (B, num_codes)) -> (B, 1).
        """
        encoded = self.run_encoder(condition)
        num_known = known.shape[1] * self.per_frame
        num_tokens = condition.shape[1] * self.per_frame
        caches = [Cache(num_tokens) for _ in self.decoder]
        tokens = [known.flatten(1)]

        # The first pass goes over all that is known, to fill the caches, and over the first token
        # to be drawn. Every other pass goes over a single token.
        rows = self.rows_before(known)
        first = 0
        for number in range(num_known, num_tokens):
            hidden = self.run_decoder(encoded, rows, first, caches)
            place = number % self.per_frame
            token = draw(self.out[place](hidden[:, -1]))  # (B, 1)
            tokens.append(token)
            rows = place * self.num_codes + token  # from now on only the token just drawn
            first = number + 1
        return torch.cat(tokens, dim=1).unflatten(1, (-1, self.per_frame))

    def generate_song(self, condition, draw, progress=False):
        """Tokens (B, N, P) for a condition (B, N, c_in) of any length, window after window.

        Windows of `context` frames overlap by half: each is given the last 128 frames that were
        drawn, and adds 128 more. So 512 frames take windows from 0, 128 and 256 on.
        """
        N = condition.shape[1]
        context = self.cfg.context
        begins = range(0, max(1, N - context // 2), context // 2)
        tokens = torch.zeros(len(condition), 0, self.per_frame, dtype=torch.long)
        tokens = tokens.to(condition.device)
        hide = None if progress else True
        for begin in tqdm(begins, "tokens", leave=False, disable=hide):
            window = self.generate(condition[:, begin : begin + context], tokens[:, begin:], draw)
            tokens = torch.cat([tokens[:, :begin], window], dim=1)
        return tokens


# --------------------------------------------------------------------------------------------------
# SingSong: tokens and stages joined


class SingSong(nn.Module):
    """Vocals to the mel of an accompaniment, by tokens."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.semantic = VectorQuantiser(cfg.semantic_codes, N_FEATURES)
        self.codec = MelCodec(cfg)

        c_voice = N_FEATURES + N_BAR
        self.stage1 = Stage(cfg, c_voice, cfg.semantic_codes, 1)
        self.stage2 = Stage(cfg, c_voice + N_FEATURES, cfg.acoustic_codes, cfg.acoustic_tokens)

    @torch.no_grad()
    def voice_features(self, vocals):
        """vocals (B, L) -> music features and bar profile (B, N, 176)."""
        mel = log_mel(vocals, Config)
        features = music_features(vocals, mel, Config)
        bar = bar_profile(mel, chroma_of(features), Config)
        return torch.cat([features, bar], dim=1).transpose(1, 2)

    @torch.no_grad()
    def tokenise(self, accomp, fit=False):
        """accomp (B, L) -> semantic tokens (B, N, 1), acoustic tokens (B, N, 8).

        fit: finds the codebooks first.
        """
        mel = log_mel(accomp, Config)
        features = music_features(accomp, mel, Config).transpose(1, 2)
        if fit:
            self.semantic.fit(features.flatten(0, 1))
        semantic = self.semantic.encode(features)[:, :, None]
        acoustic = self.codec.encode(normalise(mel, Config), fit)
        return semantic, acoustic

    def with_semantics(self, voice, semantic):
        """The condition of stage 2: the voice, and what the semantic tokens stand for."""
        return torch.cat([voice, self.semantic.decode(semantic[:, :, 0])], dim=2)

    def losses(self, voice, semantic, acoustic, window):
        """Cross-entropies of the two stages on clips of several windows; nats per token.

        voice (B, N, 176), semantic (B, N, 1), acoustic (B, N, 8). Stage 1 learns all windows of a
        clip. Stage 2 learns only number `window`: it has eight times as many tokens to draw, and
        would take most of the time.
        """

        def windows(x):
            return x.unflatten(1, (-1, self.cfg.context))  # (B, windows, context, ...)

        loss1 = self.stage1.loss(windows(voice).flatten(0, 1), windows(semantic).flatten(0, 1))

        condition = self.with_semantics(voice, semantic)
        loss2 = self.stage2.loss(windows(condition)[:, window], windows(acoustic)[:, window])
        return loss1, loss2

    @torch.no_grad()
    def sample(self, vocals, seed=0, temperature=1.0, top_k=50, progress=False, semantic=None):
        """vocals (1, L), at the model's rate and level -> normalised mel (1, M, T).

        Of the top_k likeliest codes one is drawn; a temperature below 1 prefers the likelier ones.
        semantic (1, N, 1): use these tokens instead of drawing them.
        """
        generator = torch.Generator().manual_seed(seed)

        def draw(logits):
            best, codes = (logits / temperature).topk(min(top_k, logits.shape[1]))
            choice = torch.multinomial(best.softmax(-1).cpu(), 1, generator=generator)
            return codes.gather(1, choice.to(codes.device))

        voice = self.voice_features(vocals)
        if semantic is None:
            semantic = self.stage1.generate_song(voice, draw, progress)
        acoustic = self.stage2.generate_song(self.with_semantics(voice, semantic), draw, progress)
        return self.codec.decode(acoustic)

    @classmethod
    def load(cls, path, device):
        """Raises UserError if the file is not what train() writes."""
        if not Path(path).exists():
            raise UserError(f"{path} not found; make it: python baselines/singsong.py train")
        checkpoint = load_checkpoint(path)
        with explain_misfits(path):
            model = cls(TokenConfig(**checkpoint["config"]))
            model.load_state_dict(checkpoint["ema"])
        return model.eval().to(device)


# --------------------------------------------------------------------------------------------------
# Training, on clips of 44 s, as FastSAG's

CLIP_FRAMES = 1024
CLIPS_FOR_CODES = 60  # 61440 frames for the k-means


def random_clips(songs, rng, count, device):
    """Random clips of 44 s -> vocals, accomp (count, L)."""
    length = CLIP_FRAMES * PATCH * Config.hop_length
    clips = read_clips(songs, rng, count, length, speed_range=SPEED_RANGE)
    return to_waveforms(clips, length, device)


def train(args):
    """Simpler than train.py: no --resume, no validation, no reading ahead, always float32."""
    device, _, _ = set_up_device(args.device)
    path = Path(args.out) / "singsong.pt"
    if path.exists():
        raise UserError(f"{path} is there already; choose another --out")
    songs = [song for folder in args.data for song in read_set(folder, "train")]
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    generator = torch.Generator(device).manual_seed(0)

    model = SingSong(TokenConfig()).to(device)
    _, accomp = random_clips(songs, rng, CLIPS_FOR_CODES, device)
    model.tokenise(accomp, fit=True)
    model.stage1.begin_with([model.semantic])
    model.stage2.begin_with([quantiser for level in model.codec.levels for quantiser in level])
    stages = (model.stage1, model.stage2)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(f"codebooks found; {millions:.2f} M parameters", flush=True)

    began = time.time()
    step = 0
    share = 0.0
    losses = []
    while share < 1:
        vocals, accomp = random_clips(songs, rng, args.batch_size, device)
        voice = model.voice_features(augment(vocals, generator, args.batch_size))
        semantic, acoustic = model.tokenise(accomp)
        window = rng.integers(CLIP_FRAMES // model.cfg.context)
        loss1, loss2 = model.losses(voice, semantic, acoustic, window)
        (loss1 + loss2).backward()
        for stage in stages:
            nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        cosine = 0.5 + 0.5 * math.cos(math.pi * share)
        optimizer.param_groups[0]["lr"] = args.lr * min(1, (step + 1) / 100) * cosine
        optimizer.step()
        optimizer.zero_grad()

        step += 1
        losses.append(torch.stack([loss1, loss2]).detach())  # no GPU has to wait for it
        update_ema(ema, model, step)
        share = (time.time() - began) / 60 / args.minutes
        if step % 25 == 0 or share >= 1:
            semantic_loss, acoustic_loss = torch.stack(losses).mean(0).tolist()
            losses = []
            print(
                f"step {step:6d}  semantic {semantic_loss:.3f}  acoustic {acoustic_loss:.3f} "
                f"nats per token  {100 * share:.0f} % done",
                flush=True,
            )
        if step % 250 == 0 or share >= 1:
            save_checkpoint({"config": asdict(model.cfg), "ema": ema.state_dict()}, path)
    print(f"{path}: listen by python baselines/singsong.py sample vocals.wav --checkpoint {path}")


# --------------------------------------------------------------------------------------------------
# Playing along, and both methods in one table

# Rows of the table, beside those of sample.py
CODEC = "true band, as tokens"  # through MelCodec: the ceiling of all that is drawn as tokens
STAGE2 = "SingSong, true semantics"  # stage 1 is replaced by the true band's semantic tokens
SINGSONG = "SingSong, generated"
FASTSAG = "FastSAG, generated"
SINGSONG_RATE = 625  # tokens per second of music: 25 semantic, 200 coarse, 400 fine


def load_fastsag(args):
    """The FastSAG to compare with, and its vocoder. What train.py wrote borrows the shipped one."""
    fastsag = FastSAG.load(args.fastsag, args.device)
    if fastsag.vocoder is None:
        fastsag.vocoder = FastSAG.load(fastsag_sample.DEFAULT_CHECKPOINT, args.device).vocoder
    return fastsag


@torch.no_grad()
def play_along(args):
    device = pick_device(args.device)
    singsong = SingSong.load(args.checkpoint, device)
    fastsag = load_fastsag(args)  # for its vocoder

    vocals, sample_rate = fastsag_sample.read_vocals(args.vocals)
    began = time.time()
    rate = max(sample_rate, Config.sample_rate)  # a band has more high tones than a telephone
    vocals = resample(vocals, sample_rate, rate)
    wav, gain = fastsag.prepare(vocals, rate)
    mel = singsong.sample(wav, args.seed, args.temperature, progress=True)
    accomp = fastsag.render(mel, gain, rate, len(vocals))
    seconds = time.time() - began

    mix = vocals.numpy() + accomp
    folder = Path(args.out) / Path(args.vocals).stem
    command = (
        f"python baselines/singsong.py sample {shlex.quote(args.vocals)} --seed {args.seed} "
        f"--temperature {args.temperature:g} --checkpoint {shlex.quote(args.checkpoint)} "
        f"--fastsag {shlex.quote(args.fastsag)}"
    )
    comment = fastsag_sample.printable(command)
    for name, sound in (("singsong", accomp), ("singsong-mix", mix)):
        sound = sound * fastsag_sample.gain_to_fit(sound)
        write_file(folder / f"{name}.wav", audio_bytes(sound, rate, comment))
    length = len(vocals) / rate
    print(f"{folder}/: singsong.wav, singsong-mix.wav; RTF {seconds / length:.3f}")


@torch.no_grad()
def evaluate(args):
    """Both methods on the same songs, in turns.

    For a fair table both have been trained on the same songs, equally long. Tokens are drawn in
    float32 everywhere; FastSAG works in bfloat16 on machines where that is faster.
    """
    device = pick_device(args.device)
    singsong = SingSong.load(args.checkpoint, device)
    fastsag = load_fastsag(args)
    songs = fastsag_sample.read_val_songs(args.set)

    stopwatch = fastsag_sample.Stopwatch()
    results = fastsag_sample.Results("neural", len(songs))
    for i, song in enumerate(tqdm(songs, unit="song", disable=None)):
        facts = song[0]
        vocals, true = fastsag_sample.load_excerpt(song, fastsag)
        _, other = fastsag_sample.load_excerpt(fastsag_sample.other_song(songs, i), fastsag)
        results.music += len(true) / Config.sample_rate

        def sound(mel):
            return fastsag.vocode(denormalise(mel, Config))[0]

        true_mel = normalise(log_mel(true[None], Config), Config)
        semantic, acoustic = singsong.tokenise(true[None])
        rows = {
            fastsag_sample.TRUE: true,
            fastsag_sample.CEILING: sound(true_mel),
            CODEC: sound(singsong.codec.decode(acoustic)),
        }
        mel = singsong.sample(vocals[None], args.seed, args.temperature, semantic=semantic)
        rows[STAGE2] = sound(mel)
        stopwatch.lap("the rest")

        mel = singsong.sample(vocals[None], args.seed, args.temperature)
        stopwatch.lap("tokens")
        rows[SINGSONG] = sound(mel)
        stopwatch.lap("vocoder")

        expected, mu = fastsag.condition(vocals[None])
        mel = fastsag.sample(mu, expected, seed=args.seed + i)
        stopwatch.lap("diffusion")
        rows[FASTSAG] = sound(mel)

        rows[fastsag_sample.VOCALS] = vocals
        rows[fastsag_sample.FLOOR] = other
        results.add(rows, true, Config, facts)
        stopwatch.lap("the rest")

    print(
        f"{args.set}: {results.songs} songs, {results.music / 60:.1f} minutes; temperature "
        f"{args.temperature:g}; mean and 95 % interval over songs"
    )
    fastsag_sample.print_table(results)
    print_speed(stopwatch, results.music, (1 + singsong.cfg.acoustic_tokens) * frame_rate(Config))


def print_speed(stopwatch, music, rate):
    """Real-time factors of both methods; music in seconds, rate in tokens per second of it."""
    tokens = stopwatch.seconds["tokens"] / music
    diffusion = stopwatch.seconds["diffusion"] / music
    vocoder = stopwatch.seconds["vocoder"] / music
    as_many = tokens * SINGSONG_RATE / rate
    print(
        f"RTF of SingSong {tokens + vocoder:.3f}, of FastSAG {diffusion + vocoder:.3f}, of these "
        f"{vocoder:.3f} for the vocoder"
    )
    print(
        f"{1000 * tokens / rate:.2f} ms per token, {rate:.0f} tokens per second of music; with "
        f"{SINGSONG_RATE}, as in SingSong, this small model's RTF would be at least "
        f"{as_many + vocoder:.2f}"
    )


# --------------------------------------------------------------------------------------------------
# The command line


def make_parser():
    parser = argparse.ArgumentParser(
        prog="singsong.py",
        usage="python baselines/singsong.py {train, sample VOCALS, evaluate DATA} [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(dest="task", required=True, prog="singsong.py")

    learn = tasks.add_parser("train", help="find codebooks, then train both stages")
    learn.add_argument("--data", nargs="+", default=["data/demo"], help="prepared sets (data/demo)")
    learn.add_argument("--out", default="runs/singsong", help="folder of the run (runs/singsong)")
    learn.add_argument("--minutes", type=float, default=30, help="length of the run (30)")
    learn.add_argument("--batch-size", type=int, default=8, help="clips of 44 s (8)")
    learn.add_argument("--lr", type=float, default=1e-3, help="highest learning rate (1e-3)")
    learn.set_defaults(run=train)

    play = tasks.add_parser("sample", help="play along with a voice")
    play.add_argument("vocals", metavar="VOCALS", help="an audio file with solo singing")
    play.add_argument("--out", default="out", help="folder to write to (out)")
    play.set_defaults(run=play_along)

    table = tasks.add_parser("evaluate", help="both methods on a set's validation songs")
    table.add_argument("set", metavar="DATA", help="a prepared set")
    table.set_defaults(run=evaluate)

    for task in (learn, play, table):
        task.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (auto)")
    for task in (play, table):
        task.add_argument("--checkpoint", default="runs/singsong/singsong.pt", help="weights")
        task.add_argument(
            "--fastsag", default=fastsag_sample.DEFAULT_CHECKPOINT, help="weights of FastSAG"
        )
        task.add_argument("--seed", type=int, default=0, help="of the draws (0)")
        task.add_argument("--temperature", type=float, default=1.0, help="lower is tamer (1)")
    return parser


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    least = {"minutes": 0.01, "batch_size": 1, "lr": 1e-9, "temperature": 0.01, "seed": 0}
    check_least(parser, args, least)
    try:
        args.run(args)
    except UserError as problem:
        parser.error(str(problem))
    except KeyboardInterrupt:
        parser.exit(130, "singsong.py: stopped\n")


if __name__ == "__main__":
    main()

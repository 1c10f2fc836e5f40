"""The autoregressive way, for comparison: music as tokens, each drawn given the tokens before it.

    python baselines/singsong.py train [--data data/demo] [--minutes 30] [--out runs/singsong]
    python baselines/singsong.py sample vocals.wav [--checkpoint runs/singsong/singsong.pt]
    python baselines/singsong.py evaluate data/demo         a table with both methods

To be read after fastsag.py, with which it shares mel, features, data and vocoder. The method is
that of SingSong (Donahue et al. 2023, arXiv 2301.12662), which is AudioLM's (Borsos et al. 2022,
arXiv 2209.03143) with a voice as its condition:

    voice (B, L)
      -> music features and bar profile (B, T/4, 176), as in FastSAG
      -> stage 1 draws the band's semantic tokens (B, T/4, 1)                     Stage
      -> stage 2 draws the band's acoustic tokens (B, T/4, 8)                     Stage
      -> mel of the band (B, M, T)                                                MelCodec
      -> vocoder -> accompaniment (B, L)                                          fastsag.Vocoder

What differs from SingSong: semantic tokens are those of music features, not of w2v-BERT, and the
codec is one of mels, not of waveforms, so that both methods here start from the same features and
sound through the same vocoder. The voice is not quantised, for tokens would lose its beat. Voice
and band have the same frames, so what is read of the voice is added, frame by frame, where SingSong
looks for it by cross-attention. SingSong has 25 semantic, 200 coarse and 400 fine acoustic tokens a
second; here are 23.4 semantic and 187.5 acoustic ones.
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
    crop,
    denormalise,
    explain_misfits,
    frame_rate,
    load_checkpoint,
    log_mel,
    music_features,
    normalise,
    pick_device,
    rotate,
    save_checkpoint,
    write_file,
)
from prep import audio_bytes, read_set
from train import SPEED_RANGE, augment, check_least, read_clips, to_waveforms, update_ema


@dataclass
class TokenConfig:
    # Tokens
    semantic_codes: int = 256
    acoustic_codes: int = 1024
    bands_per_patch: int = 25  # 100 bands x 4 mel frames make four patches
    residuals: int = 2  # codes of a patch: the first says it roughly, the second what is missing

    # Transformers of the two stages; with these sizes, about as many parameters as FastSAG: 5.5 M
    dim: int = 128
    heads: int = 4
    encoder_layers: int = 4
    decoder_layers: int = 4
    context: int = 256  # frames, 11 s, that a stage sees at once

    @property
    def acoustic_tokens(self):
        """Per frame: 8."""
        return Config.n_mels // self.bands_per_patch * self.residuals


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
        """k-means (Lloyd 1982) on vectors (n, dim). A code that nobody is nearest to moves."""
        num_codes = len(self.codebook)
        if len(x) < num_codes:
            raise UserError(f"{len(x)} frames of music are too few for {num_codes} codes")
        generator = torch.Generator().manual_seed(0)
        self.codebook.copy_(x[torch.randperm(len(x), generator=generator)[:num_codes]])
        for _ in range(rounds):
            tokens = self.encode(x)
            count = torch.bincount(tokens, minlength=num_codes)
            total = torch.zeros_like(self.codebook).index_add_(0, tokens, x)
            elsewhere = x[torch.randint(len(x), (num_codes,), generator=generator)]
            mean = total / count.clamp(min=1)[:, None]
            self.codebook.copy_(torch.where(count[:, None] > 0, mean, elsewhere))


class MelCodec(nn.Module):
    """Normalised mels (B, M, T) <-> acoustic tokens (B, T/4, 8).

    100 bands x 4 mel frames are four patches of 25 bands, from low to high. Each patch has two
    codes: one for itself, and one for what the first has left, as in SoundStream (Zeghidour et al.
    2021; the division into patches is ours). A frame has the first codes of all patches, then the
    second ones.
    """

    def __init__(self, cfg):
        super().__init__()
        self.bands = cfg.bands_per_patch
        self.num_patches = Config.n_mels // self.bands
        dim = self.bands * PATCH
        self.quantisers = nn.ModuleList()
        for _ in range(cfg.acoustic_tokens):
            self.quantisers.append(VectorQuantiser(cfg.acoustic_codes, dim))

    def patches(self, mel):
        """(B, M, T) -> (B, T/4, patches, bands * 4)"""
        x = mel.unflatten(1, (self.num_patches, self.bands)).unflatten(3, (-1, PATCH))
        return x.permute(0, 3, 1, 2, 4).flatten(3)

    def encode(self, mel, fit=False):
        """(B, M, T) -> (B, T/4, tokens of a frame); fit: finds the codebooks on the way."""
        tokens = []
        residual = self.patches(mel).clone()
        for i, quantiser in enumerate(self.quantisers):
            p = i % self.num_patches
            if fit:
                quantiser.fit(residual[:, :, p].flatten(0, 1))
            tokens.append(quantiser.encode(residual[:, :, p]))
            residual[:, :, p] -= quantiser.decode(tokens[i])  # is left for the patch's next code
        return torch.stack(tokens, dim=2)

    def decode(self, tokens):
        """(B, T/4, tokens of a frame) -> (B, M, T)"""
        parts = [quantiser.decode(tokens[:, :, i]) for i, quantiser in enumerate(self.quantisers)]
        parts = torch.stack(parts, dim=2).unflatten(2, (-1, self.num_patches))
        x = parts.sum(2)  # (B, T/4, residuals, patches, bands * 4) -> (B, T/4, patches, bands * 4)
        x = x.unflatten(3, (self.bands, PATCH))
        return x.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)


# --------------------------------------------------------------------------------------------------
# The two stages. An encoder reads the condition, which has as many frames as what is to be drawn. A
# decoder draws token after token. It sees the encoder's output in its own frame, and the tokens
# before: since both sides have the same frames, no attention has to find the place in the voice.


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
        """x (B, N, dim) at positions (N,) -> (B, N, dim).

        cache: a dict with keys and values of the past, empty at the beginning; x continues it. Once
        it is not empty, x must be a single token.
        """
        qkv = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv  # (B, heads, N, head_dim) each
        q = rotate(q, position)
        k = rotate(k, position)
        if cache:
            k = torch.cat([cache["k"], k], dim=2)
            v = torch.cat([cache["v"], v], dim=2)
        if cache is not None:
            cache.update(k=k, v=v)

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
    """A condition (B, N, c_in) -> tokens (B, N, per_frame), one after the other."""

    def __init__(self, cfg, c_in, num_codes, per_frame):
        super().__init__()
        self.cfg = cfg
        self.per_frame = per_frame
        self.num_codes = num_codes
        self.condition = nn.Linear(c_in, cfg.dim)
        self.encoder = nn.ModuleList()
        for _ in range(cfg.encoder_layers):
            self.encoder.append(TransformerBlock(cfg.dim, cfg.heads, causal=False))

        # The tokens of a frame have embeddings and outputs of their own. After all embeddings comes
        # one for the start, where there is no token before.
        self.start = per_frame * num_codes
        self.embed = nn.Embedding(self.start + 1, cfg.dim)
        self.place = nn.Embedding(per_frame, cfg.dim)
        self.decoder = nn.ModuleList()
        for _ in range(cfg.decoder_layers):
            self.decoder.append(TransformerBlock(cfg.dim, cfg.heads, causal=True))
        self.out = nn.ModuleList()
        for _ in range(per_frame):
            self.out.append(nn.Sequential(nn.LayerNorm(cfg.dim), nn.Linear(cfg.dim, num_codes)))

    def encode(self, condition):
        """(B, N, c_in) -> (B, N, dim)"""
        x = self.condition(condition)
        position = torch.arange(x.shape[1], device=x.device)
        for block in self.encoder:
            x = block(x, position)
        return x

    def rows(self, tokens):
        """Tokens (B, N, per_frame) -> their rows in the table of embeddings, (B, N * per_frame)."""
        place = torch.arange(self.per_frame, device=tokens.device)
        return (place * self.num_codes + tokens).flatten(1)

    def decode(self, encoded, before, first, caches=None):
        """One pass over the tokens number first, first + 1, ... -> hidden (B, n, dim).

        encoded (B, N, dim); before (B, n): rows of the tokens before these. caches: one for each
        block, see Attention.
        """
        position = torch.arange(first, first + before.shape[1], device=before.device)
        own_place = self.place(position % self.per_frame)
        own_frame = encoded[:, position // self.per_frame]
        x = self.embed(before) + own_place + own_frame
        for i, block in enumerate(self.decoder):
            x = block(x, position, caches[i] if caches else None)
        return x

    def loss(self, condition, target):
        """Mean cross-entropy of target (B, N, per_frame), each token given those before; nats."""
        before = F.pad(self.rows(target), (1, 0), value=self.start)[:, :-1]
        hidden = self.decode(self.encode(condition), before, 0)
        hidden = hidden.unflatten(1, (-1, self.per_frame))
        losses = []
        for p in range(self.per_frame):
            logits = self.out[p](hidden[:, :, p])
            losses.append(F.cross_entropy(logits.flatten(0, 1), target[:, :, p].flatten()))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def generate(self, condition, known, draw):
        """Tokens (B, N, per_frame) for a condition (B, N, c_in), beginning with those in `known`.

        known (B, n, per_frame), n from 0 on; draw(logits (B, num_codes)) -> (B, 1).
        """
        P = self.per_frame
        encoded = self.encode(condition)
        caches = [{} for _ in self.decoder]
        tokens = [known.flatten(1)]  # (B, n * P), then (B, 1) each

        # What is known goes through the decoder in one pass, every new token in one of its own.
        before = F.pad(self.rows(known), (1, 0), value=self.start)
        first = 0
        for j in range(known.shape[1] * P, condition.shape[1] * P):
            hidden = self.decode(encoded, before, first, caches)
            token = draw(self.out[j % P](hidden[:, -1]))
            tokens.append(token)
            first = j + 1
            before = j % P * self.num_codes + token
        return torch.cat(tokens, dim=1).unflatten(1, (-1, P))

    def generate_song(self, condition, draw, progress=False):
        """Tokens (B, N, per_frame) for a condition of any length, in windows of the context.

        Each window continues the second half of the one before.
        """
        N = condition.shape[1]
        context = self.cfg.context
        begins = range(0, max(1, N - context // 2), context // 2)
        tokens = torch.zeros(len(condition), 0, self.per_frame, dtype=torch.long)
        tokens = tokens.to(condition.device)
        hide = None if progress else True
        for begin in tqdm(begins, "tokens", leave=False, disable=hide):
            window = condition[:, begin : begin + context]
            whole = self.generate(window, tokens[:, begin:], draw)
            tokens = torch.cat([tokens[:, :begin], whole], dim=1)
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
    def hear(self, vocals):
        """vocals (B, L) -> music features and bar profile (B, T/4, 176)."""
        mel = log_mel(vocals, Config)
        features = music_features(vocals, mel, Config)
        bar = bar_profile(mel, chroma_of(features), Config)
        return torch.cat([features, bar], dim=1).transpose(1, 2)

    @torch.no_grad()
    def write_down(self, accomp, fit=False):
        """accomp (B, L) -> semantic tokens (B, T/4, 1), acoustic tokens (B, T/4, 8).

        fit: finds the codebooks first.
        """
        mel = log_mel(accomp, Config)
        features = music_features(accomp, mel, Config).transpose(1, 2)
        if fit:
            self.semantic.fit(features.flatten(0, 1))
        semantic = self.semantic.encode(features)[:, :, None]
        return semantic, self.codec.encode(normalise(mel, Config), fit)

    def with_semantics(self, voice, semantic):
        """The condition of stage 2: the voice, and what the semantic tokens stand for."""
        return torch.cat([voice, self.semantic.decode(semantic[:, :, 0])], dim=2)

    def loss(self, voice, semantic, acoustic):
        """Cross-entropies of the two stages, in nats per token."""
        loss1 = self.stage1.loss(voice, semantic)
        loss2 = self.stage2.loss(self.with_semantics(voice, semantic), acoustic)
        return loss1, loss2

    @torch.no_grad()
    def sample(self, vocals, seed=0, temperature=1.0, top_k=50, progress=False):
        """vocals (1, L), at the model's rate and level -> normalised mel (1, M, T).

        Of the top_k likeliest codes one is drawn; a temperature below 1 prefers the likelier ones.
        """
        generator = torch.Generator().manual_seed(seed)

        def draw(logits):
            best, codes = (logits / temperature).topk(min(top_k, logits.shape[1]))
            choice = torch.multinomial(best.softmax(-1).cpu(), 1, generator=generator)
            return codes.gather(1, choice.to(codes.device))

        voice = self.hear(vocals)
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
# Training: clips of 44 s are listened to, as FastSAG does, and 11 s of each are learnt.

CLIP_FRAMES = 1024
CLIPS_FOR_CODES = 60  # 61440 frames for the k-means


def read_tokens(model, songs, rng, count, generator, fit=False):
    """Clips from the songs -> voice, semantic and acoustic tokens of `context` frames each."""
    length = CLIP_FRAMES * PATCH * Config.hop_length
    clips = read_clips(songs, rng, count, length, speed_range=SPEED_RANGE)
    vocals, accomp = to_waveforms(clips, length, generator.device)
    voice = model.hear(augment(vocals, generator, count))
    semantic, acoustic = model.write_down(accomp, fit)

    start = rng.integers(CLIP_FRAMES - model.cfg.context + 1, size=count)
    start = torch.from_numpy(start).to(voice.device)
    parts = []
    for part in (voice, semantic, acoustic):
        parts.append(crop(part.transpose(1, 2), start, model.cfg.context).transpose(1, 2))
    return parts


def train(args):
    device = pick_device(args.device)
    path = Path(args.out) / "singsong.pt"
    if path.exists():
        raise UserError(f"{path} is there already; choose another --out")
    songs = [song for folder in args.data for song in read_set(folder, "train")]
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    generator = torch.Generator(device).manual_seed(0)

    model = SingSong(TokenConfig()).to(device)
    read_tokens(model, songs, rng, CLIPS_FOR_CODES, generator, fit=True)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    print(f"codebooks found; {sum(w.numel() for w in model.parameters()) / 1e6:.2f} M parameters")

    began = time.time()
    step = 0
    share = 0.0
    while share < 1:
        loss1, loss2 = model.loss(*read_tokens(model, songs, rng, args.batch_size, generator))
        (loss1 + loss2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        cosine = 0.5 + 0.5 * math.cos(math.pi * share)
        optimizer.param_groups[0]["lr"] = args.lr * min(1, (step + 1) / 100) * cosine
        optimizer.step()
        optimizer.zero_grad()

        step += 1
        update_ema(ema, model, step)
        share = (time.time() - began) / 60 / args.minutes
        if step % 25 == 0 or share >= 1:
            losses = f"semantic {loss1:.3f}  acoustic {loss2:.3f} nats per token"
            print(f"step {step:6d}  {losses}  {100 * share:.0f} % done", flush=True)
        if step % 250 == 0 or share >= 1:
            save_checkpoint({"config": asdict(model.cfg), "ema": ema.state_dict()}, path)
    print(f"{path}: listen by python baselines/singsong.py sample vocals.wav --checkpoint {path}")


# --------------------------------------------------------------------------------------------------
# Playing along, and both methods in one table

SINGSONG = "SingSong, generated"
CODEC = "true band, as tokens"
FASTSAG = "FastSAG, generated"
SINGSONG_RATE = 625  # tokens per second of music: 25 semantic, 200 coarse, 400 fine


@torch.no_grad()
def play_along(args):
    device = pick_device(args.device)
    singsong = SingSong.load(args.checkpoint, device)
    fastsag = FastSAG.load(args.fastsag, args.device)  # for its vocoder

    vocals, rate = fastsag_sample.read_vocals(args.vocals)
    began = time.time()
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
    for name, sound in (("singsong", accomp), ("singsong-mix", mix)):
        sound = sound * fastsag_sample.gain_to_fit(sound)
        write_file(folder / f"{name}.wav", audio_bytes(sound, rate, command))
    length = len(vocals) / rate
    print(f"{folder}/: singsong.wav, singsong-mix.wav; RTF {seconds / length:.3f}")


@torch.no_grad()
def evaluate(args):
    device = pick_device(args.device)
    singsong = SingSong.load(args.checkpoint, device)
    fastsag = FastSAG.load(args.fastsag, args.device)
    songs = fastsag_sample.read_val_songs(args.set)

    stopwatch = fastsag_sample.Stopwatch()
    results = fastsag_sample.Results("neural", len(songs))
    for i, song in enumerate(tqdm(songs, unit="song", disable=None)):
        facts = song[0]
        vocals, true = fastsag_sample.load_excerpt(song, fastsag)
        _, other = fastsag_sample.load_excerpt(fastsag_sample.other_song(songs, i), fastsag)
        results.music += len(true) / Config.sample_rate
        true_mel = log_mel(true[None], Config)
        _, acoustic = singsong.write_down(true[None])
        stopwatch.lap("load")

        mel = singsong.sample(vocals[None], args.seed, args.temperature)
        by_tokens = fastsag.vocode(denormalise(mel, Config))[0]
        stopwatch.lap("SingSong")
        expected, mu = fastsag.condition(vocals[None])
        mel = fastsag.sample(mu, expected, seed=args.seed)
        by_diffusion = fastsag.vocode(denormalise(mel, Config))[0]
        stopwatch.lap("FastSAG")

        rows = {
            fastsag_sample.TRUE: true,
            fastsag_sample.CEILING: fastsag.vocode(true_mel)[0],
            CODEC: fastsag.vocode(denormalise(singsong.codec.decode(acoustic), Config))[0],
            SINGSONG: by_tokens,
            FASTSAG: by_diffusion,
            fastsag_sample.VOCALS: vocals,
            fastsag_sample.FLOOR: other,
        }
        results.add(rows, true, Config, facts)
        stopwatch.lap("measure")

    fastsag_sample.print_table(results)
    for name in ("SingSong", "FastSAG"):
        print(f"RTF of {name} {stopwatch.seconds[name] / results.music:.3f}")
    tokens_per_second = (1 + singsong.cfg.acoustic_tokens) * frame_rate(Config)
    per_token = stopwatch.seconds["SingSong"] / (results.music * tokens_per_second)
    print(
        f"{1000 * per_token:.2f} ms per token, {tokens_per_second:.0f} tokens per second of music; "
        f"at SingSong's {SINGSONG_RATE} the RTF would be {SINGSONG_RATE * per_token:.2f}"
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
    learn.add_argument("--batch-size", type=int, default=8, help="clips of 11 s (8)")
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
            "--fastsag", default=fastsag_sample.DEFAULT_CHECKPOINT, help="weights with a vocoder"
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

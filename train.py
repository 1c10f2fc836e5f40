"""Train FastSAG, or its vocoder, on a prepared data set (see prep.py).

    python train.py                                   demo songs, demo preset, any device
    python train.py --minutes 90                      as much as fits into an evening
    python train.py --resume                          go on where the last run stopped
    python train.py --data data/mine --start assets/demo.pt --lr 3e-4      fine-tune shipped weights
    python train.py --data data/mine --preset base --steps 60000 --batch-size 32 --lr 5e-4
    python train.py --vocoder --start runs/demo/best.pt --out runs/vocoder       train its vocoder
    torchrun --nproc_per_node=8 -- train.py --batch-size 128    8 GPUs share the 128 clips of a step
    torchrun --nproc_per_node=2 -- train.py --compile     2 CPU cores: 1.4 times as fast

The "--" keeps torchrun from taking --start for an option of its own. On a CPU, --compile needs a
C++ compiler.

Of several sets, each counts by its length. A run that is killed and resumed has the same losses as
one that was not. Every --every steps these are written: OUT/checkpoint.pt, which holds everything
that sampling and resuming need; OUT/best.pt, if the validation loss was never lower; and
OUT/sample.wav, what the model plays (left) to a validation song (right).
"""
import argparse
import copy
import ctypes
import math
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from fastsag import (
    IDEAS,
    N_CHART,
    PATCH,
    PRESETS,
    Config,
    FastSAG,
    UserError,
    Vocoder,
    bfloat16_pays,
    chart_features,
    explain_misfits,
    explain_write_errors,
    load_checkpoint,
    log_mel,
    log_spectrum,
    pick_device,
    save_checkpoint,
    stft_distance,
    write_file,
)
from prep import audio_bytes, check_least, check_seed, read_set

MODEL_CROP = 43.69  # seconds per clip, 2^20 samples: beat and key show over a long stretch
VOCODER_CROP = 0.68  # seconds per clip, 2^14 samples
SPEED_RANGE = 0.06  # clips are played up to 6 % faster or slower
EMA_CAP = 0.9999  # the average spans a tenth of the run so far, and at most 10000 steps
LOG_EVERY = 25  # steps
READERS = 4  # threads that read batches: more than one, for a data set on a disk that is slow
READ_AHEAD = 6  # batches
MAX_BROKEN = 10  # steps in a row without a finite gradient after which a run ends
START_AGAIN = "begin again with a lower --lr and another --out; --start takes the last save"


# --------------------------------------------------------------------------------------------------
# The run. Its parts follow: data, state, validation, the vocoder's losses, what is
# printed, the machine, the command line.


def train(args):
    device, rank, world = set_up_device(args.device)
    rows = slice(rank, None, world)  # this process's part of every batch: of 2, clips 0, 2, 4, ...
    every = args.every or (1000 if device.type == "cuda" else 250)

    def say(line):
        if rank == 0 and line:
            tqdm.write(line)

    # Data
    songs = [song for folder in args.data for song in read_set(folder, "train")]
    val_songs = [song for folder in args.data for song in read_set(folder, "val")]

    # Model, optimizer, averaged weights
    torch.manual_seed(args.seed)
    run = Run(args, device)
    with explain_write_errors(args.out):
        os.makedirs(args.out, exist_ok=True)
    say(start_message(run, device, world, songs))
    compiled = device.type == "cuda" if args.compile is None else args.compile
    if compiled and not args.vocoder:  # a vocoder spends half of its time in FFTs
        say(compile_networks(run.model, device))
    parallel = run.task
    if world > 1:
        # Each step leaves out two or three of the discriminators, or what --without names.
        unused = args.vocoder or run.model.cfg.without != ""
        parallel = nn.parallel.DistributedDataParallel(run.task, find_unused_parameters=unused)

    total = None if args.minutes else args.steps

    # The loop. What is random in a step depends on (seed, step) alone. So a resumed run repeats
    # nothing and misses nothing, and N processes that share a batch train as one would.
    hide_bar = None if rank == 0 else True  # None: show it on a terminal, not in a file
    bar = tqdm(initial=run.step, total=total, unit="step", disable=hide_bar)
    reader = Reader(run, songs, rows, pin_memory=device.type == "cuda")
    with bar, closing(reader):
        if run.step != run.validated_step and rank == 0:  # it was stopped in its validation
            say(save_and_validate(run, val_songs, reader.long_clip))
        log = Log(world, reader)
        share = run.share_done(world)
        while share < 1:
            clips, length = reader.next()
            seed = (args.seed * 1_000_003 + run.step) % 2**63
            generator = torch.Generator(device).manual_seed(seed)
            inputs = prepare_inputs(run, clips, length, rows, generator)

            # Discriminators join late, one per step, when the vocoder is roughly right.
            options = {}
            if args.vocoder and share > 1 - args.adversarial:
                options["discriminator"] = run.step % 3
            with torch.autocast(device.type, torch.bfloat16, enabled=run.bfloat16):
                losses = parallel(*inputs, **options)
            norm, lr = run.update(losses, share)

            log.add(norm, losses, args.batch_size * length / Config.sample_rate)
            share = run.share_done(world)
            bar.update()
            due = run.step % every == 0 or share >= 1
            if due or run.step % LOG_EVERY == 0:
                say(log.line(run.step, run.minutes(), losses, lr))
            if due and rank == 0:  # the others wait for it in their next step
                say(save_and_validate(run, val_songs, reader.long_clip))
                log.begin_line()  # the next line does not count this time

    say(last_message(run))
    if world > 1:
        dist.destroy_process_group()


def prepare_inputs(run, clips, length, rows, generator):
    """Clips from the reader -> vocals, accomp, chart, randomness on the device, for the losses.

    Everything random is drawn for the whole batch; `rows` of it are this process's.
    """
    args = run.args
    vocals, accomp = to_waveforms(clips, length, generator.device)
    frames = length // run.model.cfg.hop_length
    randomness = run.task.draw_randomness(args.batch_size, frames, generator)
    randomness = {name: value[rows] for name, value in randomness.items()}

    vocals = augment(vocals, generator, args.batch_size, rows)
    if args.vocoder:
        # Half of the clips that VocoderTask takes from bands are filtered: real bands are, too.
        filtered = augment(accomp, generator, args.batch_size, rows)
        accomp = torch.where(randomness["mix"] < 0.4, filtered, accomp)
    chart = clips.charts.to(generator.device, non_blocking=True)
    return vocals, accomp, chart, randomness


def learning_rate(args, step, share):
    """Linear warm-up, then half a cosine down to 1 %; share of the run that is done, 0 to 1."""
    warmup = min(1, (step + 1) / args.warmup)
    cosine = 0.5 + 0.5 * math.cos(math.pi * share)
    return args.lr * warmup * (0.01 + 0.99 * cosine)


@torch.no_grad()
def update_ema(ema, model, step):
    """Exponential moving average of the weights. Their mean age is a tenth of the run so far."""
    decay = min(EMA_CAP, step / (step + 9))
    weights = [weight.detach() for weight in model.parameters()]
    torch._foreach_lerp_(list(ema.parameters()), weights, 1 - decay)


# --------------------------------------------------------------------------------------------------
# Data: random clips of random songs. A song, as read_set() gives it, is (facts, pairs, gains):
# pairs is (L, 2) int16 in a memory-mapped file, the two gains bring vocals and accompaniment to the
# model's level. The reader only copies samples. Gain and speed are the device's work, for a GPU
# would have to wait for a reader that does more.


@dataclass
class Clips:
    """Clips as they lie on the disk, of different lengths if their speed is to change."""

    samples: torch.Tensor  # (clips, longest, 2) int16: vocals, accompaniment; zeros at the end
    gains: torch.Tensor  # (clips, 2) float32
    charts: torch.Tensor  # (clips, N_CHART, T/4) float32: chords and beats; zeros where not known
    lengths: list  # samples of each clip that count


def read_clips(songs, rng, count, length, rows=slice(None), speed_range=0.0, pin_memory=False):
    """Reads random clips of songs from read_set(). A longer song is chosen more often.

    Clips of different speeds take different lengths from the song; all are to become `length`
    samples. Choices are made for `count` clips, of which `rows` are read: what is chosen does not
    depend on the number of processes. Songs that are too short end in silence.
    """
    song_lengths = np.array([len(pairs) for _, pairs, _ in songs], float)
    picks = rng.choice(len(songs), count, p=song_lengths / song_lengths.sum())[rows]
    places = rng.random(count)[rows]
    speeds = 1 + speed_range * rng.uniform(-1, 1, count)[rows]

    lengths = [length] * len(picks)
    if speed_range > 0:
        # Whole 128ths of the length: there are few of them, and their FFT is fast.
        lengths = [length // 128 * round(128 * speed) for speed in speeds]

    shape = (len(picks), max(lengths), 2)
    samples = torch.zeros(shape, dtype=torch.int16, pin_memory=pin_memory)
    gains = torch.empty((len(picks), 2), pin_memory=pin_memory)
    num_frames = length // (Config.hop_length * PATCH)
    charts = torch.empty((len(picks), N_CHART, num_frames), pin_memory=pin_memory)
    for row, (pick, place, n) in enumerate(zip(picks, places, lengths, strict=True)):
        facts, pairs, song_gains = songs[pick]
        start = int(place * max(0, len(pairs) - n + 1))
        clip = pairs[start : start + n]
        samples.numpy()[row, : len(clip)] = clip
        gains.numpy()[row] = song_gains
        charts[row] = chart_of_clip(facts, start, n / length, num_frames)

    return Clips(samples, gains, charts, lengths)


def chart_of_clip(facts, start, speed, num_frames):
    """Chords and beats of a clip -> (N_CHART, num_frames). Only demo songs know theirs.

    The clip begins at sample `start` of its song and is played `speed` times as fast and high.
    """
    begin = start / Config.sample_rate
    end = begin + num_frames * Config.hop_length * PATCH / Config.sample_rate * speed

    chords = []
    for chord_begin, chord_end, pitch_classes in facts.get("chords", []):
        if chord_begin < end and chord_end > begin:
            times = (chord_begin - begin) / speed, (chord_end - begin) / speed
            chords.append((*times, pitch_classes))
    beats = (np.array(facts.get("beats", [])) - begin) / speed
    shift = 12 * math.log2(speed)
    return chart_features(chords, beats, num_frames, Config, shift)


def resample_by_fft(wave, length):
    """(2, n) -> (2, length): the same sound, n / length times as fast, by cutting its spectrum."""
    n = wave.shape[1]
    spectrum = torch.fft.rfft(wave)[:, : length // 2 + 1]
    return torch.fft.irfft(spectrum, n=length) * (length / n)


def to_waveforms(clips, length, device):
    """Clips -> vocals, accomp, (clips, length) each, on the device. Speed changes key and tempo."""
    samples = clips.samples.to(device, non_blocking=True)
    gains = clips.gains.to(device, non_blocking=True)

    waves = []
    for clip, gain, n in zip(samples, gains, clips.lengths, strict=True):
        wave = (clip[:n] * gain).T  # (2, n)
        waves.append(wave if n == length else resample_by_fft(wave, length))
    return torch.stack(waves, dim=1).unbind(0)


def augment(wavs, generator, batch_size, rows=slice(None)):
    """Another microphone, level and noise for each clip: (B, L) -> (B, L).

    What is random is drawn for the whole batch, of which these clips are the rows `rows`.
    """
    L = wavs.shape[-1]
    device = wavs.device

    def rand():
        return torch.rand(batch_size, 1, generator=generator, device=device)[rows]

    # Level +-3 dB and tilt +-2 dB per octave
    hz = torch.linspace(0, Config.sample_rate / 2, L // 2 + 1, device=device)
    octaves = torch.log2(hz / 1000 + 0.02)  # from 1 kHz
    decibels = 6 * (rand() - 0.5) + 4 * (rand() - 0.5) * octaves

    # Two resonances or notches of up to 6 dB
    for _ in range(2):
        centre = 6 * rand() - 2.5
        width = 0.3 + rand()
        bump = torch.exp(-((octaves - centre) / width).square())
        decibels = decibels + 12 * (rand() - 0.5) * bump

    # Low-pass from 4 to 16 kHz on, of 40 to 400 dB per octave
    slope = 40 * 10 ** rand()
    corner = 2 + 2 * rand()
    decibels = decibels - slope * (octaves - corner).clamp(min=0)

    # Noise of -45 to -90 dBFS; the sound is at -20
    noise = torch.randn(batch_size, L, generator=generator, device=device)[rows]
    noise = noise * 10 ** (-(45 + 45 * rand()) / 20)

    return torch.fft.irfft(torch.fft.rfft(wavs + noise) * 10 ** (decibels / 20), n=L)


class Reader:
    """Reads batches ahead of the training, in threads; counts the seconds that next() waits."""

    def __init__(self, run, songs, rows, pin_memory):
        self.args = run.args
        self.songs = songs
        self.rows = rows
        self.pin_memory = pin_memory
        self.step = run.step
        self.batches = deque()
        self.pool = ThreadPoolExecutor(READERS)
        self.waited = 0.0

        # Every second batch has clips of a quarter of the length: users' songs may be short.
        unit = run.model.frame_length
        self.long_clip = max(1, round(self.args.crop * Config.sample_rate / unit)) * unit
        self.short_clip = max(1, self.long_clip // unit // 4) * unit

    def load(self, step):
        """The batch of a step -> Clips, and the length that they are to have."""
        rng = np.random.default_rng([self.args.seed, step])
        length = self.short_clip if step % 2 == 0 else self.long_clip
        speed_range = SPEED_RANGE
        if self.args.vocoder:
            length = self.long_clip
            speed_range = 0.0  # what is slowed down has an empty top, and a vocoder would learn it
        count = self.args.batch_size
        clips = read_clips(
            self.songs, rng, count, length, self.rows, speed_range, self.pin_memory
        )
        return clips, length

    def next(self):
        """The next batch, as load() gives it."""
        while len(self.batches) < READ_AHEAD:
            self.batches.append(self.pool.submit(self.load, self.step))
            self.step += 1

        began = time.perf_counter()
        batch = self.batches.popleft().result()
        self.waited += time.perf_counter() - began
        return batch

    def close(self):
        self.pool.shutdown(wait=False, cancel_futures=True)


# --------------------------------------------------------------------------------------------------
# Run: what is trained, and its state


class Run:
    """What a training run carries from step to step, and what a checkpoint holds."""

    def __init__(self, args, device):
        self.args = args
        self.path = f"{args.out}/checkpoint.pt"
        self.best_path = f"{args.out}/best.pt"
        if os.path.exists(self.path) and not args.resume:
            raise UserError(f"{self.path} is there already; choose --resume or another --out")

        # The model: of this run, of --start, or new. What is not trained stays as it is.
        source = self.path if args.resume else args.start
        model = FastSAG.load(source, device.type) if source else FastSAG(PRESETS[args.preset])
        if args.without:
            model.cfg = replace(model.cfg, without=args.without)
        if args.vocoder and model.vocoder is None:
            model.vocoder = Vocoder(model.cfg)
        for name, weight in model.named_parameters():
            is_vocoder = name.startswith("vocoder.")
            weight.requires_grad_(is_vocoder if args.vocoder else not is_vocoder)

        self.model = model.to(device).train()
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.task = VocoderTask(self.model).to(device) if args.vocoder else self.model
        self.trained = [weight for weight in self.task.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )

        self.step = 0
        self.began = time.time()  # restore() takes off the time spent before
        self.bfloat16 = bfloat16_pays(device) and not args.float32
        self.validated_step = 0
        self.best_score = math.inf
        self.best_step = 0
        if args.resume:
            self.restore()

    def settings(self):
        """What must not change when a run is resumed."""
        names = ["preset", "without", "batch_size", "crop", "lr", "warmup", "seed"]
        names += ["float32", "vocoder", "adversarial"]
        settings = {name: getattr(self.args, name) for name in names}

        # The sets by their names: folders may be moved.
        folders = [os.path.basename(os.path.abspath(folder)) for folder in self.args.data]
        return settings | {"data": " ".join(folders)}

    def restore(self):
        """Puts back the state of an interrupted run.

        FastSAG.load() has read the averaged weights, and ema is a copy of them; what is missing are
        the weights in training and the optimizer's state.
        """
        checkpoint = load_checkpoint(self.path)
        if "optimizer" not in checkpoint:
            raise UserError(f"{self.path} is for sampling only; --resume needs one of train.py")
        with explain_misfits(self.path):
            before = checkpoint["settings"]
            for name, value in self.settings().items():
                if before[name] != value:
                    option = "--" + name.replace("_", "-")
                    raise UserError(
                        f"{self.path} was trained with {option} {before[name]}, not {value}; "
                        "--resume needs the same"
                    )
            self.task.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.step = checkpoint["step"]
            self.began = time.time() - checkpoint["seconds"]
            self.bfloat16 = checkpoint["bfloat16"]  # goes on with the same rounding
            self.validated_step = checkpoint["validated_step"]
            self.best_score = checkpoint["best_score"]
            self.best_step = checkpoint["best_step"]

    def save(self):
        """Writes OUT/checkpoint.pt."""
        checkpoint = {
            "config": asdict(self.model.cfg),
            "ema": self.ema.state_dict(),
            "model": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": self.settings(),
            "step": self.step,
            "seconds": time.time() - self.began,
            "bfloat16": self.bfloat16,
            "validated_step": self.validated_step,
            "best_score": self.best_score,
            "best_step": self.best_step,
        }
        save_checkpoint(checkpoint, self.path)

    def keep_if_best(self, score):
        """Writes OUT/best.pt, if no validation score was lower so far."""
        if score < self.best_score:
            self.best_score = score
            self.best_step = self.step
            self.ema.save(self.best_path)

    def minutes(self):
        """Minutes of training so far."""
        return (time.time() - self.began) / 60

    def share_done(self, world):
        """Share of the run that is done: by the steps, or by the clock of the first process."""
        if not self.args.minutes:
            return self.step / self.args.steps
        share = torch.tensor(self.minutes() / self.args.minutes)
        if world > 1:
            dist.broadcast(share, 0)  # between CPUs: no GPU waits for it
        return float(share)

    def update(self, losses, share):
        """Backward pass, optimizer, averaged weights -> gradient norm, learning rate.

        A step without a finite gradient is skipped. Fused AdamW does so where found_inf is 1 (a
        gradient scaler uses it in the same way), so the host need not wait for the answer. On mps,
        which ignores found_inf, it has to.
        """
        sum(loss.mean() for loss in losses.values()).backward()  # the diffusion loss is per example
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)

        lr = learning_rate(self.args, self.step, share)
        self.optimizer.param_groups[0]["lr"] = lr
        broken = ~norm.isfinite()
        self.optimizer.found_inf = broken.float()
        if broken.device.type != "mps" or not broken:
            self.optimizer.step()
        self.optimizer.zero_grad()

        self.step += 1
        update_ema(self.ema, self.model, self.step)
        return norm, lr


# --------------------------------------------------------------------------------------------------
# Validation


VALIDATION_CLIPS = 16
VALIDATION_SIGMAS = (0.05, 0.2, 0.6, 2.0)


@torch.no_grad()
def validate(model, songs, length, vocoder):
    """Losses on fixed clips -> {name: value}; the diffusion loss at fixed noise levels.

    For a vocoder: its distances on bands.
    """
    clips = read_clips(songs, np.random.default_rng(0), VALIDATION_CLIPS, length)
    vocals, accomp = to_waveforms(clips, length, model.device)
    chart = clips.charts.to(model.device)

    losses = {}
    if vocoder:
        mel = log_mel(accomp, model.cfg)
        made = model.vocoder(mel)
        losses["log-mel L1"] = F.l1_loss(log_mel(made, model.cfg), mel)
        losses["stft"] = stft_distance(made, accomp).mean()
    else:
        generator = torch.Generator(model.device).manual_seed(0)
        frames = length // model.cfg.hop_length
        fixed = model.draw_randomness(VALIDATION_CLIPS, frames, generator)
        fixed["keep_cond"] = torch.ones_like(fixed["keep_cond"])  # nothing is hidden
        fixed["keep_inputs"] = torch.ones_like(fixed["keep_inputs"])
        fixed["chart_mask"] = torch.zeros_like(fixed["chart_mask"])  # and nothing is told
        for sigma in VALIDATION_SIGMAS:
            fixed["sigma"] = torch.full_like(fixed["sigma"], sigma)
            parts = model(vocals, accomp, chart, fixed)
            losses["semantic"] = parts["semantic"]  # the same for every sigma
            losses["beat"] = parts["beat"]
            losses["prior"] = parts["prior"]
            losses[f"diffusion {sigma}"] = parts["diffusion"].mean()

    return {name: value.item() for name, value in losses.items()}


def validation_score(losses):
    """One number to compare weights by: the sum, in which the noise levels count as one loss."""
    diffusion = [value for name, value in losses.items() if name.startswith("diffusion")]
    others = [value for name, value in losses.items() if not name.startswith("diffusion")]
    return sum(others) + sum(diffusion) / max(1, len(diffusion))


@torch.no_grad()
def example(model, songs, length, vocoder):
    """A stereo sound (L, 2) at 24 kHz to listen to.

    Left, what the model plays to a validation song; right, the song's voice. For a vocoder: left,
    what it makes of a band's mel; right, the band.
    """
    clips = read_clips(songs, np.random.default_rng(1), 1, length)
    vocals, accomp = to_waveforms(clips, length, "cpu")
    voice = vocals[0]
    band = accomp[0]

    if vocoder:
        mel = log_mel(band[None].to(model.device), model.cfg)
        pair = [model.vocode(mel)[0].cpu(), band]
    else:
        try:
            pair = [model.accompany(voice, Config.sample_rate), voice]
        except ValueError:  # the clip fell into a rest: the voice is silent
            pair = [voice, voice]
    return np.stack(pair, axis=1).clip(-1, 1)


def save_and_validate(run, val_songs, length):
    """Writes checkpoint, best weights and sample.wav -> the line to print."""
    run.save()  # first: validation takes a while, and the run may be stopped in it
    losses = validate(run.ema, val_songs, length, run.args.vocoder)
    score = validation_score(losses)
    if not math.isfinite(score):
        raise UserError(f"the validation loss is {score} at step {run.step}; {START_AGAIN}")
    run.keep_if_best(score)
    run.validated_step = run.step
    run.save()  # the checkpoint tells the best score, too

    long_enough = max(length, 64 * run.model.frame_length)  # a vocoder's clip is too short to hear
    sound = example(run.ema, val_songs, long_enough, run.args.vocoder)
    comment = f"step {run.step}"
    write_file(f"{run.args.out}/sample.wav", audio_bytes(sound, Config.sample_rate, comment))

    parts = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    return f"step {run.step:6d}  validation: {parts}"


# --------------------------------------------------------------------------------------------------
# The vocoder's losses. Mel and spectra of the made sound must be right. Discriminators then find
# what these losses miss.


class Discriminator(nn.Module):
    """Tells real from made sound, patch by patch of a spectrogram (UnivNet, Jang et al. 2021).

    Real sound should give 1 or more, made sound -1 or less.
    """

    def __init__(self, n_fft, c=16):
        super().__init__()
        self.n_fft = n_fft
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(1, c, (7, 3), stride=(2, 1), padding=(3, 1)),
                nn.Conv2d(c, 2 * c, (5, 3), stride=(2, 1), padding=(2, 1)),
                nn.Conv2d(2 * c, 2 * c, (5, 3), stride=(2, 2), padding=(2, 1)),
                nn.Conv2d(2 * c, 1, 3, padding=1),
            ]
        )

    def forward(self, wav):
        """(B, L) -> the output of every layer; the last one is the verdict."""
        spectrum = log_spectrum(wav, self.n_fft)[:, None] / 2  # of about unit variance
        outputs = [self.layers[0](spectrum)]
        for layer in self.layers[1:]:
            outputs.append(layer(F.leaky_relu(outputs[-1], 0.1)))
        return outputs


class VocoderTask(nn.Module):
    """A vocoder and its discriminators in training.

    forward() returns the losses of both, so that one backward pass and one optimizer do: the
    discriminator sees a detached copy of the made sound, the vocoder a discriminator with detached
    weights.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.cfg = model.cfg
        self.discriminators = nn.ModuleList([Discriminator(n_fft) for n_fft in (512, 1024, 2048)])

    def draw_randomness(self, batch, frames, generator):
        """Everything random in a training step; see FastSAG.draw_randomness."""
        options = {"generator": generator, "device": generator.device}
        return {
            "mix": torch.rand(batch, 1, **options),
            "blur": torch.rand(batch, 1, 1, **options),
            # Which frame of a song a clip begins with: the vocoder's clocks must work at any.
            "first_frame": (128 * torch.rand(batch, 1, 1, **options)).long(),
            "noise": torch.randn(batch, self.cfg.n_mels, frames, **options),
        }

    def forward(self, vocals, accomp, chart, randomness, discriminator=None):
        """vocals, accomp (B, L) -> {name: weighted loss}; discriminator: which one, if any.

        The chart is of no use to a vocoder.

        Shares and weights were found by trial (docs/log.md).
        """
        # Of ten clips eight are bands, one is a voice and one is both.
        mix = randomness["mix"]
        both = 0.7 * (vocals + accomp)
        wav = torch.where(mix < 0.8, accomp, torch.where(mix < 0.9, vocals, both))
        mel = log_mel(wav, self.cfg)

        # Half of the mels are blurred and noisy, more or less, as the diffusion's mels are.
        amount = (2 * randomness["blur"] - 1).clamp(min=0)
        blurred = F.avg_pool2d(mel[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
        rough = torch.lerp(mel, blurred, 0.5 * amount) + 0.2 * amount * randomness["noise"]

        # Three rounds of find_phases; in use there are eight.
        made = self.model.vocoder(rough, randomness["first_frame"], num_rounds=3)
        losses = {
            "mel": 0.3 * F.l1_loss(log_mel(made, self.cfg), mel),
            "stft": stft_distance(made, wav).mean(),
        }
        if discriminator is not None:
            losses |= self.adversarial_losses(self.discriminators[discriminator], wav, made)
        return losses

    def adversarial_losses(self, discriminator, wav, made):
        """Hinge losses (Lim and Ye 2017) of both sides, and feature matching for the vocoder."""
        real = discriminator(wav)
        fake = discriminator(made.detach())
        discriminator_loss = (1 - real[-1]).relu().mean() + (1 + fake[-1]).relu().mean()

        weights = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        judged = torch.func.functional_call(discriminator, weights, made)
        adversarial_loss = -judged[-1].mean()
        feature_matching_loss = 0
        for a, b in zip(judged[:-1], real[:-1], strict=True):
            feature_matching_loss = feature_matching_loss + F.l1_loss(a, b.detach())

        return {
            "discriminator": discriminator_loss,
            "adversarial": 0.3 * adversarial_loss,
            "feature matching": 0.6 * feature_matching_loss,
        }


# --------------------------------------------------------------------------------------------------
# What is printed


class Log:
    """Collects the losses of each step on the device; now and then makes a line of them.

    Reading a value makes the device finish all its work, so it is done once a line.
    """

    def __init__(self, world, reader):
        self.world = world
        self.reader = reader
        self.broken_in_a_row = 0
        self.begin_line()

    def begin_line(self):
        self.began = time.perf_counter()
        self.reader.waited = 0.0
        self.audio = 0.0  # seconds of audio
        self.rows = []

    def add(self, norm, losses, audio):
        values = torch.stack([loss.detach().mean() for loss in losses.values()])
        self.rows.append(torch.cat([norm[None], values]))
        self.audio += audio

    def line(self, step, minutes, names, lr):
        """What happened since the last line, as text. Raises UserError if training broke down."""
        # One row per step, a mean over all processes. Losses that join in the middle of a line,
        # with the discriminators, count as 0 before.
        table = nn.utils.rnn.pad_sequence(self.rows, batch_first=True) / self.world
        if self.world > 1:
            dist.all_reduce(table)
        table = table.cpu()

        healthy = table.isfinite().all(dim=1)
        for good in healthy.tolist():
            self.broken_in_a_row = 0 if good else self.broken_in_a_row + 1
        if self.broken_in_a_row >= MAX_BROKEN:
            first = step - self.broken_in_a_row + 1
            raise UserError(f"the loss is NaN or infinite from step {first} on; {START_AGAIN}")

        norm, *means = table[healthy].mean(0).tolist()
        parts = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(names, means, strict=True))
        elapsed = time.perf_counter() - self.began
        text = (
            f"step {step:6d}  loss {sum(means):.4f} ({parts})  norm {norm:.2f}  lr {lr:.1e}  "
            f"{minutes:.1f} min  {self.audio / elapsed:.0f} s of audio/s  "
            f"waited for data {100 * self.reader.waited / elapsed:.0f} %"
        )
        if not healthy.all():
            text += f"  skipped {(~healthy).sum()} step(s) without a finite gradient"
        self.begin_line()
        return text


def start_message(run, device, world, songs):
    """What is going to be trained, on what, in one line."""
    millions = sum(weight.numel() for weight in run.trained) / 1e6
    hours = sum(len(pairs) for _, pairs, _ in songs) / Config.sample_rate / 3600
    precision = "bfloat16" if run.bfloat16 else "float32"
    hint = ""
    if device.type == "cpu" and run.args.device == "auto":
        hint = " (no GPU found)"
    return (
        f"device {device}{hint}, {precision}, {world} process(es); {millions:.2f} M parameters to "
        f"train; {len(songs)} songs, {hours:.2f} hours"
    )


def last_message(run):
    """Which weights to use, and why."""
    path = run.best_path
    why = f"its validation loss of {run.best_score:.4f} at step {run.best_step} is the lowest"
    if run.args.vocoder and run.args.adversarial > 0:
        path = run.path
        why = "the validation loss does not tell what the discriminators taught at the end"
    return (
        f"{run.step} steps in {run.minutes():.1f} minutes. Use {path}: {why}.\n"
        f"Listen: python sample.py vocals.wav --checkpoint {path}"
    )


# --------------------------------------------------------------------------------------------------
# The machine: devices, memory, compilation


def num_processes():
    """How many processes share a batch: torchrun says so in the environment."""
    return int(os.environ.get("WORLD_SIZE", 1))


def set_up_device(name):
    """-> device, rank and number of processes."""
    rank = int(os.environ.get("RANK", 0))
    world = num_processes()
    device = pick_device(name)

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True  # only two clip lengths: each is tuned once
    if device.type == "cpu":
        keep_freed_memory()
    if world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device, rank, world


def keep_freed_memory():
    """Linux: freed memory stays with the process instead of going back to the system.

    A step allocates the same gigabytes again and again. To get them anew each time costs half a
    million page faults a step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # not the C library of Linux
    M_TRIM_THRESHOLD = -1
    M_MMAP_MAX = -4
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # never


def compile_networks(model, device):
    """Compiles the networks -> "", or in one line why it cannot.

    Every clip length is compiled on its own (dynamic=False): with shapes that may vary, compilation
    fails for some networks (pytorch issue 185510).
    """
    try:
        # Is a compiler there that works? Find out on something small.
        torch.compile(torch.sin)(torch.zeros(1, device=device))
    except Exception as error:  # no C++ compiler, no Python.h, no triton: all fail differently
        first_line = str(error).strip().partition("\n")[0]
        reason = f"{type(error).__name__}: {first_line[:100]}"
        return f"not compiled ({reason}); --no-compile skips the attempt"
    for part in (model.semantic, model.prior, model.denoiser.unet):
        part.compile(dynamic=False)
    return ""


# --------------------------------------------------------------------------------------------------
# The command line


def parse_args(parser, argv):
    parser.add_argument("--data", nargs="+", default=["data/demo"], help="prepared sets")
    parser.add_argument("--out", default="runs/demo", help="folder of the run (runs/demo)")
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="of a new model (demo)")
    parser.add_argument("--without", choices=IDEAS, default="", help="leave out an idea: ablation")
    parser.add_argument("--start", metavar="WEIGHTS", help="begin with these, not at random")
    parser.add_argument("--resume", action="store_true", help="go on; same options but no --start")

    parser.add_argument("--steps", type=int, default=20000, help="length of the run (20000)")
    parser.add_argument("--minutes", type=float, help="train this long instead")
    parser.add_argument("--batch-size", type=int, default=16, help="clips, of all processes (16)")
    parser.add_argument("--crop", type=float, help="seconds per clip (43.69; vocoder: 0.68)")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate (1e-3)")
    parser.add_argument("--warmup", type=int, default=100, help="steps up to it (100)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, clips and noise (0)")
    parser.add_argument("--every", type=int, help="steps between saves (250; on CUDA 1000)")

    parser.add_argument("--vocoder", action="store_true", help="train only a vocoder for --start")
    parser.add_argument(
        "--adversarial",
        type=float,
        default=0.33,
        help="vocoder: last share of the run that has discriminators (0.33)",
    )

    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (auto)")
    parser.add_argument("--float32", action="store_true", help="never compute in bfloat16")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the networks (default: on CUDA)",
    )
    args = parser.parse_args(argv)

    least = {"batch_size": 1, "steps": 1, "every": 1, "minutes": 0.01, "crop": 0.5, "lr": 1e-9}
    least |= {"seed": 0, "warmup": 1}
    check_least(parser, args, least)
    check_seed(parser, args)
    world = num_processes()
    if args.batch_size % world != 0:
        parser.error(f"--batch-size {args.batch_size}: must be a multiple of {world} processes")
    if not 0 <= args.adversarial <= 1:
        parser.error(f"--adversarial {args.adversarial}: must lie between 0 and 1")
    if args.vocoder and args.without:
        parser.error("--without is for the model, not for --vocoder")
    if args.resume and args.start:
        parser.error("--resume goes on with its own weights; leave --start away")
    if args.vocoder and not (args.start or args.resume):
        parser.error("--vocoder needs --start WEIGHTS: the model that the vocoder is for")

    if args.crop is None:
        args.crop = VOCODER_CROP if args.vocoder else MODEL_CROP
    return args


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="python train.py [--data data/demo] [--out runs/demo] [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    args = parse_args(parser, argv)
    try:
        train(args)
    except UserError as problem:
        parser.error(str(problem))
    except KeyboardInterrupt:
        hint = ""
        if os.path.exists(f"{args.out}/checkpoint.pt"):
            hint = f"; --resume goes on from the last save in {args.out}"
        parser.exit(130, f"train.py: stopped{hint}\n")


if __name__ == "__main__":
    main()

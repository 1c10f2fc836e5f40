"""Train FastSAG, or its vocoder, on a prepared data set (see prep.py).

    python train.py                                        demo songs, demo preset, on whatever device there is
    python train.py --minutes 90                           as much as fits into an evening
    python train.py --resume                               go on where the last run stopped
    python train.py --data data/mine --preset base --steps 200000 --batch-size 32
    python train.py --data data/mine --start assets/demo.pt --lr 3e-4      fine-tune the shipped weights
    python train.py --vocoder --start runs/demo/checkpoint.pt --out runs/vocoder     give those weights a vocoder
    torchrun --nproc_per_node=8 train.py --batch-size 128  several GPUs; --batch-size is the sum over all of them

OUT/checkpoint.pt holds everything that sampling and resuming need, OUT/sample.wav what the model plays (left) to a
validation song (right), both written every --every steps.
"""
import argparse
import copy
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from fastsag import (PRESETS, Config, FastSAG, Vocoder, at_least, bfloat16_pays, demand, finish, fitting, load_checkpoint,
                     log_mel, log_spectrum, pick_device, save_checkpoint, stft_distance, write, writing)
from prep import audio_bytes, read_set

# ----------------------------------------------------------------------------------------------------------------------
# Data: one flat memory-mapped file per split; a batch is random crops of random songs.
def random_crops(songs, rng, count, length, keep=slice(None), bend=0.0):
    """`count` crops of songs from read_set -> (2, those in `keep`, length): vocals, accomp. Short songs end in silence.
    bend: play each up to this share faster or slower, voice and band together: other keys, other tempos."""
    lengths, crops = np.array([len(pairs) for _, pairs, _ in songs], float), []
    picks = rng.choice(len(songs), count, p=lengths / lengths.sum())
    places, speeds = rng.random(count), 1 + bend * rng.uniform(-1, 1, count)
    for pick, place, speed in zip(picks[keep], places[keep], speeds[keep]):
        _, pairs, gains = songs[pick]
        n = round(length * speed / 2048) * 2048 if bend else length        # lengths with small factors: a fast FFT
        start = int(place * max(0, len(pairs) - n + 1))
        crop = torch.from_numpy((pairs[start: start + n] * gains).T)
        crop = F.pad(crop, (0, n - crop.shape[1]))
        if bend:
            crop = torch.fft.irfft(torch.fft.rfft(crop)[:, : length // 2 + 1], n=length) * (length / n)
        crops.append(crop)
    return torch.stack(crops, 1)

def augment(wavs, generator, batch_size, mine=slice(None)):
    """Another microphone and level for each clip of `wavs`: (B, L) -> (B, L). What is random is drawn for the whole batch, of
    which these are the rows `mine`: it does not depend on the number of processes."""
    L, device = wavs.shape[-1], wavs.device
    rand = lambda: torch.rand(batch_size, 1, generator=generator, device=device)[mine]
    octaves = torch.log2(torch.linspace(0, Config.sample_rate / 2, L // 2 + 1, device=device) / 1000 + 0.02)
    decibels = 6 * (rand() - 0.5) + 4 * (rand() - 0.5) * octaves                # level +-3 dB, tilt +-2 dB per octave
    for _ in range(2):                                                     # two resonances or notches of +-6 dB
        centre, width = 6 * rand() - 2.5, 0.3 + rand()
        decibels = decibels + 12 * (rand() - 0.5) * torch.exp(-((octaves - centre) / width).square())
    decibels -= 40 * 10 ** rand() * (octaves - 2 - 2 * rand()).clamp(min=0)    # low-pass: from 4..16 kHz, 40..400 dB/octave
    noise = torch.randn(batch_size, L, generator=generator, device=device)[mine]
    noise = noise * 10 ** (-(45 + 45 * rand()) / 20)                       # -45 to -90 dBFS; the voice is at -20
    return torch.fft.irfft(torch.fft.rfft(wavs + noise) * 10 ** (decibels / 20), n=L)

# ----------------------------------------------------------------------------------------------------------------------
# The vocoder's losses: mel and spectra are to be right; then small discriminators tell what they miss
class Judge(nn.Module):
    """Looks at a spectrogram of one resolution and says, patch by patch, whether it is real (above 0) or made (UnivNet,
    Jang et al. 2021). Returns what its layers see; the last of them is the verdict."""

    def __init__(self, n_fft, c=16):
        super().__init__()
        self.n_fft = n_fft
        self.layers = nn.ModuleList(                                       # kernel, stride, padding
            [nn.Conv2d(1, c, (7, 3), (2, 1), (3, 1)), nn.Conv2d(c, 2 * c, (5, 3), (2, 1), (2, 1)),
             nn.Conv2d(2 * c, 2 * c, (5, 3), (2, 2), (2, 1)), nn.Conv2d(2 * c, 1, 3, 1, 1)])

    def forward(self, wav):                                                # (B, L)
        seen = [self.layers[0](log_spectrum(wav, self.n_fft)[:, None] / 2)]
        for layer in self.layers[1:]:
            seen.append(layer(F.leaky_relu(seen[-1], 0.1)))
        return seen

class VocoderTask(nn.Module):
    """A vocoder in training. forward() returns losses of both sides, so that one optimiser and one backward do: the judges
    look at a copy of the made sound that carries no gradient back, the vocoder faces judges whose weights stand still."""

    def __init__(self, model):
        super().__init__()
        self.model, self.cfg = model, model.cfg
        self.judges = nn.ModuleList([Judge(n_fft) for n_fft in (512, 1024, 2048)])

    def draw(self, batch, frames, generator):
        rand = lambda *shape: torch.rand(*shape, generator=generator, device=generator.device)
        return {"mix": rand(batch, 1), "blur": rand(batch, 1, 1), "start": (128 * rand(batch, 1, 1)).long(),
                "noise": torch.randn(batch, self.cfg.n_mels, frames, generator=generator, device=generator.device)}

    def forward(self, vocals, accomp, draw, judge=None):
        """vocals, accomp (B, L) -> {name: weighted loss}. Of ten clips eight are bands, one is a voice and one is both, their
        mels blurred and noisy, a little or not at all, as the diffusion's mels are. judge: which one is asked, if any."""
        mix = draw["mix"]
        wav = torch.where(mix < 0.8, accomp, torch.where(mix < 0.9, vocals, 0.7 * (vocals + accomp)))
        mel = log_mel(wav, self.cfg)
        amount = (2 * draw["blur"] - 1).clamp(min=0)
        rough = torch.lerp(mel, F.avg_pool2d(mel[:, None], 3, 1, 1, count_include_pad=False)[:, 0], 0.5 * amount)
        made = self.model.vocoder(rough + 0.2 * amount * draw["noise"], draw["start"], rounds=3)         # faster than 8
        losses = {"mel": 0.3 * F.l1_loss(log_mel(made, self.cfg), mel), "stft": stft_distance(made, wav).mean()}
        if judge is not None:                                              # hinge losses (Lim & Ye 2017), feature matching
            judge = self.judges[judge]
            still = {name: weight.detach() for name, weight in judge.named_parameters()}
            real, fake, faced = judge(wav), judge(made.detach()), torch.func.functional_call(judge, still, made)
            near = sum(F.l1_loss(a, b.detach()) for a, b in zip(faced[:-1], real[:-1]))
            losses |= {"judge": (1 - real[-1]).relu().mean() + (1 + fake[-1]).relu().mean(),
                       "fool": -0.3 * faced[-1].mean(), "match": 0.6 * near}
        return losses

# ----------------------------------------------------------------------------------------------------------------------
# Validation
@torch.no_grad()
def validate(model, songs, length, vocoder, sigmas=(0.05, 0.2, 0.6, 2.0), count=16):
    """The three losses on fixed crops, the diffusion loss at fixed noise levels; or the vocoder's distances, on bands."""
    vocals, accomp = random_crops(songs, np.random.default_rng(0), count, length).to(model.device)
    if vocoder:
        mel = log_mel(accomp, model.cfg)
        made = model.vocoder(mel)
        result = {"log-mel L1": F.l1_loss(log_mel(made, model.cfg), mel), "stft": stft_distance(made, accomp).mean()}
    else:
        draw = model.draw(count, length // model.cfg.hop_length, torch.Generator(model.device).manual_seed(0))
        draw |= {name: torch.ones_like(draw[name]) for name in ("keep", "hear")}
        losses = [model(vocals, accomp, draw | {"sigma": torch.full_like(draw["sigma"], sigma)}) for sigma in sigmas]
        result = {f"diffusion {sigma}": at.pop("diffusion").mean() for sigma, at in zip(sigmas, losses)} | losses[-1]
    return {name: value.item() for name, value in result.items()}

@torch.no_grad()
def listen(model, songs, length, vocoder):
    """A stereo example (L, 2) at 24 kHz: what the model plays (left) to a validation song's voice (right), or what the
    vocoder makes (left) of a band's mel (right: the band)."""
    (voice,), (band,) = random_crops(songs, np.random.default_rng(1), 1, length)           # a crop may fall into a rest
    if vocoder:
        pair = model.vocode(log_mel(band[None].to(model.device), model.cfg))[0].cpu(), band
    else:
        pair = model.accompany(voice, Config.sample_rate) if voice.any() else voice, voice
    return np.stack(pair, 1).clip(-1, 1)

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", default=["data/demo"], help="prepared sets (default: data/demo)")
    add("--out", default="runs/demo", help="folder of the run (default: runs/demo)")
    add("--preset", choices=PRESETS, default="demo", help="size of a new model (default: demo)")
    add("--steps", type=int, default=20000, help="training steps, the length of the schedule (default: 20000)")
    add("--minutes", type=float, help="train this long, whatever the number of steps")
    add("--batch-size", type=int, default=16, help="clips per step, all processes together (default: 16)")
    add("--crop", type=float, help="seconds per clip (default: 43.69, for a beat shows over long stretches; vocoder: 0.68)")
    add("--lr", type=float, default=1e-3, help="highest learning rate (default: 1e-3)")
    add("--seed", type=int, default=0, help="of weights, crops and noise (default: 0)")
    add("--every", type=int, default=250, help="steps between validations, samples and saves (default: 250)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    add("--float32", action="store_true", help="never compute in bfloat16, not even where that is faster; --resume: as begun")
    add("--resume", action="store_true", help="go on from OUT/checkpoint.pt; the other options as before")
    add("--start", metavar="WEIGHTS", help="begin with these instead of at random, as with assets/demo.pt")
    add("--judges", type=float, default=0.33, help="vocoder: the last share of the run that has judges (default: 0.33)")
    add("--vocoder", action="store_true", help="train the vocoder instead, leave the rest as it is in --start")
    args = parser.parse_args(argv)
    hint = f"; --resume goes on from the last save in {args.out}"
    return finish("train.py", lambda: train(args), lambda: "stopped" + hint * os.path.exists(f"{args.out}/checkpoint.pt"))

def train(args):
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))       # set by torchrun
    mine = slice(rank, None, world)                                        # this process's rows of every batch
    at_least(args, batch_size=1, steps=1, every=1, minutes=0.01, crop=0.5, lr=1e-9, seed=0)
    args.crop = args.crop or (0.68 if args.vocoder else 43.69)
    demand((args.batch_size % world == 0, f"--batch-size {args.batch_size}: must be a multiple of {world} processes"))
    device = pick_device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    # Data and model. What is random in a step depends on (seed, step) alone, so a resumed run repeats nothing and
    # misses nothing, and N processes that share a batch train exactly as one would.
    songs, val_songs = ([song for path in args.data for song in read_set(path, split)] for split in ("train", "val"))
    torch.manual_seed(args.seed)
    path = f"{args.out}/checkpoint.pt"
    demand((args.resume or not os.path.exists(path), f"{path} is there already; choose --resume or another --out"))
    source = path if args.resume else args.start
    model = (FastSAG.load(source, args.device).train() if source else FastSAG(PRESETS[args.preset])).to(device)
    length = round(args.crop * Config.sample_rate / model.frame_length) * model.frame_length
    if args.vocoder:
        model.vocoder = model.vocoder or Vocoder(model.cfg).to(device)
    for name, weight in model.named_parameters():                          # what is not trained stays as it is
        weight.requires_grad_(name.startswith("vocoder.") == args.vocoder)
    task = VocoderTask(model).to(device) if args.vocoder else model        # what has the losses
    trained = [weight for weight in task.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda")
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    step, seconds, half = 0, 0.0, not args.float32 and bfloat16_pays(device)                 # seconds: of earlier runs too
    settings = {name: getattr(args, name) for name in ("preset", "batch_size", "crop", "lr", "seed", "vocoder")}
    if args.resume:
        checkpoint = load_checkpoint(path)
        demand(("optimizer" in checkpoint, f"{path} holds weights for sampling only; --resume needs one of train.py"))
        with fitting(path):
            demand((checkpoint["settings"] == settings,
                    f"{path} was trained with {checkpoint['settings']}; --resume needs the same, not {settings}"))
            task.load_state_dict(checkpoint["model"])                      # ema has its weights from FastSAG.load
            optimizer.load_state_dict(checkpoint["optimizer"])
            step, seconds, half = (checkpoint[name] for name in ("step", "seconds", "half"))
    with writing(args.out):
        os.makedirs(args.out, exist_ok=True)
    if device.type == "cuda":
        for part in (model.semantic, model.prior, model.unet):
            part.compile()
    parallel = nn.parallel.DistributedDataParallel(task, find_unused_parameters=args.vocoder) if world > 1 else task
    say = tqdm.write if rank == 0 else lambda line: None
    say(f"device {device}{' (no GPU found)' * (device.type == 'cpu' and args.device == 'auto')}, "
        f"{'bfloat16' if half else 'float32'}, {world} process(es); {sum(p.numel() for p in trained) / 1e6:.2f} M parameters "
        f"to train; {len(songs)} songs, {sum(len(pairs) for _, pairs, _ in songs) / Config.sample_rate / 3600:.2f} hours")
    def load(step):
        """Every second batch has clips of a quarter of the length: who brings a few seconds is to be served too."""
        size = length if args.vocoder or step % 2 else max(1, length // model.frame_length // 4) * model.frame_length
        rng, bend = np.random.default_rng([args.seed, step]), 0.0 if args.vocoder else 0.06         # slowed, its top is empty
        return random_crops(songs, rng, args.batch_size, size, mine, bend)

    def progress():
        """Share of the run that is done, 0 to 1: by the steps, or by the clock of the first process."""
        share = (time.time() - began) / 60 / args.minutes if args.minutes else step / args.steps
        if args.minutes and world > 1:
            dist.broadcast(share := torch.tensor(share, device=device), 0)
        return float(share)

    began, recent, heard = time.time() - seconds, [], 0.0                  # heard: seconds of audio since the last line
    bar = tqdm(initial=step, total=None if args.minutes else args.steps, unit="step", disable=None if rank == 0 else True)
    with bar, ThreadPoolExecutor(1) as reader:
        batch, share = reader.submit(load, step), progress()
        while share < 1:
            # learning rate: warm-up over 100 steps, then half a cosine down to 1 %
            lr = args.lr * min(1, (step + 1) / 100) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share)))
            optimizer.param_groups[0]["lr"] = lr
            vocals, accomp = batch.result().to(device)
            batch = reader.submit(load, step + 1)
            generator = torch.Generator(device).manual_seed((args.seed * 1_000_003 + step) % 2 ** 63)
            draw = task.draw(args.batch_size, vocals.shape[1] // model.cfg.hop_length, generator)
            vocals = augment(vocals, generator, args.batch_size, mine)
            if args.vocoder:                                               # half of the bands: to be ready for real ones
                accomp = torch.where(draw["mix"][mine] < 0.4, augment(accomp, generator, args.batch_size, mine), accomp)
            # the judges come in at the end, in turns, when the vocoder has learnt the rough of it
            judge = [step % 3 if share > 1 - args.judges else None] * args.vocoder
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                losses = parallel(vocals, accomp, {name: value[mine] for name, value in draw.items()}, *judge)
            values = torch.stack([loss.mean() for loss in losses.values()])
            values.sum().backward()
            norm = nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            share = progress()
            decay = min(0.999, step / (step + 9))                          # EMA over the last tenth of a short run
            torch._foreach_lerp_(list(ema.parameters()), [weight.detach() for weight in model.parameters()], 1 - decay)
            # Now and then: a line, a check for NaN; less often: validation, a sample, a checkpoint.
            recent.append(torch.cat([norm[None], values.detach()]))
            heard += args.batch_size * vocals.shape[1] / Config.sample_rate
            bar.update()
            due = step % args.every == 0 or share >= 1
            if due or step % 25 == 0:
                table = nn.utils.rnn.pad_sequence(recent, batch_first=True) / world          # 0 before judges came in
                if world > 1:
                    dist.all_reduce(table)
                healthy = table.isfinite().all(1)
                demand((healthy.all(),
                        f"the loss was NaN or infinite at step {step - len(recent) + 1 + healthy.int().argmin()}; "
                        f"begin again with a lower --lr ({args.lr:g}) and another --out; --start takes the last save"))
                norm, *means = table.mean(0).tolist()                      # the device is read once a line
                last, seconds = seconds, time.time() - began
                speed = f"lr {lr:.1e}  {seconds / 60:.1f} min  {heard / (seconds - last):.0f} s of audio/s"
                recent, heard = [], 0.0
                parts = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(losses, means))
                say(f"step {step:6d}  loss {sum(means):.4f} ({parts})  norm {norm:.2f}  {speed}")
            if due and rank == 0:
                save_checkpoint({"config": asdict(model.cfg), "ema": ema.state_dict(), "model": task.state_dict(),
                                 "optimizer": optimizer.state_dict(), "settings": settings, "step": step, "half": half,
                                 "seconds": seconds}, path)
                losses = validate(ema, val_songs, length, args.vocoder)
                say(f"step {step:6d}  validation: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))
                example = listen(ema, val_songs, max(length, 64 * model.frame_length), args.vocoder)
                write(f"{args.out}/sample.wav", audio_bytes(example, Config.sample_rate, f"step {step}"))
    say(f"{path} is written: {step} steps in {seconds / 60:.1f} minutes; "
        f"listen: python sample.py vocals.wav --checkpoint {path}")
    if world > 1:
        dist.destroy_process_group()

if __name__ == "__main__":
    sys.exit(main())

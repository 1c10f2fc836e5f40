"""Train FastSAG on a prepared data set (see prep.py).

    python train.py                                        demo songs, demo preset, on whatever device there is
    python train.py --minutes 90                           as much as fits into an evening
    python train.py --resume                               go on where the last run stopped
    python train.py --data data/mine --preset base --steps 200000 --batch-size 32
    torchrun --nproc_per_node=8 train.py --batch-size 128  several GPUs; --batch-size is the sum over all of them

OUT/checkpoint.pt holds everything that sampling and resuming need, OUT/sample.wav what the model plays (left) to a
validation song (right), both written every --every steps. On a CPU under Linux,
`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000` in front of the command keeps freed memory in the process, which
cut the time of a step by a third on two cores.
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
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from fastsag import (PRESETS, Config, FastSAG, UserError, audio_bytes, demand, fitting, load_checkpoint, pick_device,
                     save_atomically, whole_file, writing)
from prep import read_set

# ----------------------------------------------------------------------------------------------------------------------
# Data: one flat memory-mapped file per split; a batch is random crops of random songs.


class Songs:
    """The songs of one split of one or more prepared sets."""

    def __init__(self, folders, split):
        self.songs = [song for folder in folders for song in read_set(folder, split)]
        lengths = np.array([len(pairs) for _, pairs, _ in self.songs], float)
        self.share = lengths / lengths.sum()

    def crops(self, rng, count, length, keep=slice(None)):
        """`count` random crops -> vocals, accomp (those of them in `keep`, length). Short songs end in silence."""
        picks = rng.choice(len(self.songs), count, p=self.share)
        places = rng.random(count)
        out = np.zeros((len(picks[keep]), length, 2), np.float32)
        for row, pick, place in zip(out, picks[keep], places[keep]):
            _, pairs, gains = self.songs[pick]
            start = int(place * max(0, len(pairs) - length + 1))
            crop = pairs[start: start + length]
            row[: len(crop)] = crop * gains
        return torch.from_numpy(out).unbind(-1)


def augment(vocals, generator, batch_size, mine=slice(None)):
    """Another microphone and level for each voice: (B, L) -> (B, L). The band stays as it is. What is random is drawn for
    the whole batch, of which `vocals` are the rows `mine`, so that it does not depend on the number of processes."""
    L, device = vocals.shape[-1], vocals.device
    rand = lambda: torch.rand(batch_size, 1, generator=generator, device=device)[mine]
    octaves = torch.log2(torch.linspace(0, Config.sample_rate / 2, L // 2 + 1, device=device) / 1000 + 0.02)
    decibels = 6 * (rand() - 0.5) + 4 * (rand() - 0.5) * octaves                # level +-3 dB, tilt +-2 dB per octave
    for _ in range(2):                                                     # two resonances or notches of +-6 dB
        centre, width = 6 * rand() - 2.5, 0.3 + rand()
        decibels = decibels + 12 * (rand() - 0.5) * torch.exp(-((octaves - centre) / width).square())
    decibels = decibels - 40 * (octaves - 2 - 2 * rand()).clamp(min=0)         # a low-pass between 4 and 16 kHz
    noise = torch.randn(batch_size, L, generator=generator, device=device)[mine]
    noise = noise * 10 ** (-(50 + 40 * rand()) / 20)                       # -50 to -90 dBFS; the voice is at -20
    return torch.fft.irfft(torch.fft.rfft(vocals) * 10 ** (decibels / 20), n=L) + noise


# ----------------------------------------------------------------------------------------------------------------------
# Validation


@torch.no_grad()
def validate(model, songs, length, sigmas=(0.05, 0.2, 0.6, 2.0), count=16):
    """The three losses on fixed crops, the diffusion loss at fixed noise levels -> {name: value}."""
    vocals, accomp = (wav.to(model.device) for wav in songs.crops(np.random.default_rng(0), count, length))
    result = {}
    for sigma in sigmas:
        draw = model.draw(count, length // model.cfg.hop_length, torch.Generator(model.device).manual_seed(0))
        draw.update(sigma=torch.full_like(draw["sigma"], sigma), keep=torch.ones_like(draw["keep"]))
        losses = model(vocals, accomp, draw)
        result[f"diffusion {sigma}"] = losses["diffusion"].mean()
    result.update(semantic=losses["semantic"], prior=losses["prior"])
    return {name: float(value) for name, value in result.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["data/demo"], help="prepared sets (default: data/demo)")
    parser.add_argument("--out", default="runs/demo", help="folder of the run (default: runs/demo)")
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="size of the model (default: demo)")
    parser.add_argument("--steps", type=int, default=20000, help="training steps, the length of the schedule (default: 20000)")
    parser.add_argument("--minutes", type=float, help="train this long, whatever the number of steps")
    parser.add_argument("--batch-size", type=int, default=16, help="clips per step, all processes together (default: 16)")
    parser.add_argument("--crop", type=float, default=10.92, help="seconds per clip (default: 10.92, 1024 mel frames)")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate (default: 1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and noise (default: 0)")
    parser.add_argument("--every", type=int, default=250, help="steps between validations, samples and saves (default: 250)")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    args = parser.parse_args(argv)
    try:
        train(args)
    except UserError as problem:
        print(f"train.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        saved = os.path.exists(f"{args.out}/checkpoint.pt")
        print("train.py: stopped" + f"; --resume goes on from the last save in {args.out}" * saved, file=sys.stderr)
        return 130
    return 0


def train(args):
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))       # set by torchrun
    mine = slice(rank, None, world)                                        # this process's rows of every batch
    demand((args.batch_size >= 1 and args.batch_size % world == 0,
            f"--batch-size {args.batch_size}: must be a positive multiple of the {world} processes"),
           (args.steps >= 1, f"--steps {args.steps}: must be at least 1"),
           (args.every >= 1, f"--every {args.every}: must be at least 1"),
           (args.minutes is None or args.minutes > 0, f"--minutes {args.minutes}: must be positive"),
           (args.crop >= 2, f"--crop {args.crop:g}: must be at least 2 seconds"),
           (args.lr > 0, f"--lr {args.lr:g}: must be positive"))
    device = pick_device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    # Data and model. What is random in a step depends on (seed, step) alone, so a resumed run repeats nothing and
    # misses nothing, and N processes that share a batch train exactly as one would.
    songs, val_songs = Songs(args.data, "train"), Songs(args.data, "val")
    torch.manual_seed(args.seed)
    model = FastSAG(PRESETS[args.preset]).to(device)
    length = round(args.crop * Config.sample_rate / model.frame_length) * model.frame_length
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda")
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    step, seconds = 0, 0.0                                                 # done so far, resumed runs included
    path = f"{args.out}/checkpoint.pt"
    settings = {name: getattr(args, name) for name in ("preset", "batch_size", "crop", "lr", "seed")}
    if args.resume:
        checkpoint = load_checkpoint(path)
        if "optimizer" not in checkpoint:
            raise UserError(f"{path} holds weights for sampling only; --resume needs a checkpoint written by train.py")
        with fitting(path):
            if checkpoint["settings"] != settings:
                raise UserError(f"{path} was trained with {checkpoint['settings']}; --resume needs the same, not {settings}")
            model.load_state_dict(checkpoint["model"])
            ema.load_state_dict(checkpoint["ema"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            step, seconds = checkpoint["step"], checkpoint["seconds"]
    with writing(args.out):
        os.makedirs(args.out, exist_ok=True)
    if device.type == "cuda":
        for part in (model.semantic, model.prior, model.unet):
            part.compile()
    parallel = DistributedDataParallel(model) if world > 1 else model

    def say(line):
        if rank == 0:
            tqdm.write(line)

    hours = sum(len(pairs) for _, pairs, _ in songs.songs) / Config.sample_rate / 3600
    reason = " (no GPU found)" if device.type == "cpu" and args.device == "auto" else ""
    say(f"device {device}{reason}, {world} process(es); "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; {len(songs.songs)} songs, {hours:.2f} hours")

    def load(step):
        return songs.crops(np.random.default_rng([args.seed, step]), args.batch_size, length, mine)

    def save():
        if rank == 0:
            save_atomically({"config": asdict(model.cfg), "ema": ema.state_dict(), "model": model.state_dict(),
                             "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds, "settings": settings}, path)

    began, recent = time.time() - seconds, []

    def progress():
        """Share of the run that is done, the same on every process: 0 to 1."""
        if not args.minutes:
            return step / args.steps
        minutes = torch.tensor((time.time() - began) / 60, device=device)
        if world > 1:
            dist.broadcast(minutes, 0)
        return minutes.item() / args.minutes

    total = None if args.minutes else args.steps
    bar = tqdm(initial=step, total=total, unit="step", disable=None if rank == 0 else True)
    with bar, ThreadPoolExecutor(1) as reader:
        batch, share = reader.submit(load, step), progress()
        while share < 1:
            # learning rate: warm-up over 100 steps, then half a cosine down to 1 %
            lr = args.lr * min(1, (step + 1) / 100) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share)))
            for group in optimizer.param_groups:
                group["lr"] = lr

            vocals, accomp = (wav.to(device, non_blocking=True) for wav in batch.result())
            batch = reader.submit(load, step + 1)
            generator = torch.Generator(device).manual_seed(args.seed * 1_000_003 + step)
            draw = model.draw(args.batch_size, length // model.cfg.hop_length, generator)
            draw = {name: value[mine] for name, value in draw.items()}
            vocals = augment(vocals, generator, args.batch_size, mine)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                losses = parallel(vocals, accomp, draw)
                loss = losses["semantic"] + losses["prior"] + losses["diffusion"].mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            share = progress()
            decay = min(0.999, step / (step + 9))                          # EMA over the last tenth of a short run
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)

            # Now and then: a line, a check for NaN; less often: validation, a sample, a checkpoint.
            parts = losses["semantic"], losses["prior"], losses["diffusion"].mean(), norm
            recent.append(torch.stack([loss, *parts]).detach())
            bar.update()
            if step % 25 == 0 or step % args.every == 0 or share >= 1:
                table = torch.stack(recent)
                if world > 1:
                    dist.all_reduce(table)
                    table /= world
                bad = (~table.isfinite().all(1)).nonzero()
                if len(bad):
                    raise UserError(f"the loss was NaN or infinite at step {step - len(recent) + 1 + bad[0].item()}; "
                                    f"lower --lr ({args.lr:g}) and --resume from the last save")
                total, semantic, prior, diffusion, norm = table.mean(0).tolist()
                now = time.time() - began
                rate = len(recent) * args.batch_size * length / Config.sample_rate / (now - seconds)
                seconds, recent = now, []
                bar.set_postfix_str(f"loss {total:.3f}, lr {lr:.1e}, {rate:.0f} s of audio/s")
                say(f"step {step:6d}  loss {total:.4f} (semantic {semantic:.4f}, prior {prior:.4f}, "
                    f"diffusion {diffusion:.4f})  norm {norm:.2f}  lr {lr:.1e}  {now / 60:.1f} min  {rate:.0f} s of audio/s")
            if step % args.every == 0 or share >= 1:
                save()
                if rank == 0:
                    losses = validate(ema, val_songs, length)
                    say(f"step {step:6d}  validation: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))
                    vocals, _ = val_songs.crops(np.random.default_rng(1), 1, length)
                    if vocals.any():                                       # a crop may fall into a rest
                        accomp = ema.accompany(vocals[0], Config.sample_rate)
                        stereo = np.stack([accomp, vocals[0]], 1).clip(-1, 1)
                        with whole_file(f"{args.out}/sample.wav") as file:
                            file.write(audio_bytes(stereo, Config.sample_rate, f"step {step}, left: accompaniment"))
    say(f"{path} is written: {step} steps in {seconds / 60:.1f} minutes; "
        f"listen: python sample.py vocals.wav --checkpoint {path}")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())

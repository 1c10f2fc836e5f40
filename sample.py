"""Play along: solo singing in, accompaniment out.

    python sample.py vocals.wav                         -> out/vocals/accompaniment.wav, mix.wav, mel.png
    python sample.py a.wav b.flac --takes 3 --seed 7    several songs, three different accompaniments each
    python sample.py vocals.wav --page                  also out/index.html: listen, mix voice and band, see the pictures
    python sample.py --evaluate data/demo               how good is it? A table over a set's validation songs

The accompaniment is as loud as the voice, at the voice's sample rate (24 kHz if that is higher). The last line tells where
the time went and the real-time factor: seconds of computing per second of music, loading included.
"""
import argparse
import base64
import html
import os
import shlex
import sys
import time
import zlib
from collections import Counter, defaultdict
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

try:
    import resource
except ImportError:                                                        # Windows counts memory in another way
    resource = None

from fastsag import (Config, FastSAG, UserError, active_dbfs, at_least, bfloat16_pays, chroma_of, demand, denormalise, finish,
                     log_mel, music_features, normalise, onset_envelope, resample, stft_distance, write)
from prep import audio_bytes, read_audio, read_set

WEIGHTS = os.path.join(os.path.dirname(__file__), "assets/demo.pt")

# ----------------------------------------------------------------------------------------------------------------------
# The picture: what the model heard, expects, and played. A PNG is three zlib-packed chunks; a font is 15 bits a letter.
FONT = ("7b6f2c9773e772cf5bc979cf79ef72527bef7bcf2bed6bae39236b6e79a779a4396b5bed7497126a5bad4927"
        "5fed6b6d2b6a6ba42b7b6bad388e74925b6f5b6a5bfd5aad5a9272a7")         # 0-9 A-Z, 3 x 5 dots each, 4 hex digits
COLOURS = np.array([(0, 0, 10), (60, 15, 110), (170, 45, 110), (245, 125, 60), (255, 250, 180)], float)

def png(picture):
    """(height, width, 3) uint8 -> the bytes of an RGB PNG file."""
    number = lambda n: n.to_bytes(4, "big")
    chunk = lambda kind, data: number(len(data)) + kind + data + number(zlib.crc32(kind + data))
    height, width, _ = picture.shape
    rows = np.pad(picture.reshape(height, -1), ((0, 0), (1, 0)))           # each row starts with its filter: 0, none
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", number(width) + number(height) + bytes([8, 2, 0, 0, 0]))
            + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + chunk(b"IEND", b""))

def write_text(picture, x, y, text):
    """Draw text (letters and digits) in light grey with its upper left corner at x, y."""
    for i, letter in enumerate(text):
        bits = int(FONT[4 * int(letter, 36):][:4], 16) if letter != " " else 0
        dots = np.array(list(f"{bits:015b}")).reshape(5, 3).repeat(2, 0).repeat(2, 1) == "1"
        spot = picture[y: y + 10, x + 8 * i:][:, :6]
        spot[dots[:, : spot.shape[1]]] = 210                               # cut off at the right edge

def draw(model, vocals, expected, mu, mel, width=1200, inner=210, left=60, gap=26):
    """The four stages of one song: vocals (1, L) at the model's rate, expected features, mu and mel -> PNG with axes."""
    cfg, seconds = model.cfg, vocals.shape[-1] / model.cfg.sample_rate
    mels = lambda hz: 15 + 27 * np.log(hz / 1000) / np.log(6.4) if hz >= 1000 else hz * 3 / 200
    tones = [(f"{hz}".replace("000", "k"), mels(hz) / mels(cfg.sample_rate / 2) * cfg.n_mels - 0.5)
             for hz in (200, 500, 1000, 2000, 4000, 8000)]
    notes = [(name, row + part) for part in (0, 12) for name, row in zip("CEG", (0, 4, 7))]
    shade = lambda mel: (mel + 1) / 2.3                                    # from dark, 0, to bright, 1
    panels = [("vocals in hz", shade(normalise(log_mel(vocals, cfg), cfg)), tones),
              ("expected harmony  bass below  middle above", chroma_of(expected) / 0.7, notes),
              ("prior mu in hz", shade(mu), tones), ("accompaniment in hz", shade(mel), tones)]
    picture = np.full(((inner + gap) * len(panels) + gap, width + left + 40, 3), 24, np.uint8)
    for top, (title, rows, labels) in zip(count(gap, inner + gap), panels):
        rows = F.interpolate(rows.cpu().float(), width, mode="area")[0].numpy()
        level = rows[np.arange(inner)[::-1] * len(rows) // inner]          # nearest row; low ones at the bottom
        colours = [np.interp(level, np.linspace(0, 1, len(COLOURS)), channel) for channel in COLOURS.T]
        picture[top: top + inner, left: left + width] = np.stack(colours, -1)
        write_text(picture, left, top - 14, title)
        for label, row in labels:
            y = top + inner - 1 - int((row + 0.5) * inner / len(rows))
            picture[y, left - 5: left] = 210
            write_text(picture, left - 8 - 8 * len(label), max(top, y - 5), label)
    step = next((s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600) if seconds / s <= 12), 1200)
    for second in range(0, int(seconds) + 1, step):
        x = left + int(second / seconds * (width - 1))
        picture[-gap: -gap + 5, x] = 210
        write_text(picture, x - 4, len(picture) - gap + 9, f"{second} s")
    return png(picture)

# ----------------------------------------------------------------------------------------------------------------------
# Playing along
def read_vocals(path):
    """-> mono (L,) without DC offset, sample rate in Hz. Raises UserError for what nobody can accompany."""
    (wav,), sample_rate = read_audio(path, mono=True)
    wav = torch.from_numpy(wav - float(wav.mean(dtype=float)))             # in double: a constant must leave nothing
    level = active_dbfs(wav, sample_rate)
    demand((len(wav) >= 0.5 * sample_rate,
            f"{path} is {len(wav) / sample_rate:.2f} s long; at least 0.5 s of singing is needed"),
           (np.isfinite(level), f"{path} is silent; give a recording in which somebody sings"))
    if level < -50:
        up = Config.level_dbfs - level
        print(f"{path} is hardly audible ({level:.0f} dBFS); gained up by {up:.0f} dB, also in the mix")
        wav = wav * 10 ** (up / 20)
    return wav, sample_rate

def play_along(model, path, folder, args, clock, sections):
    """One song: read, condition, draw, vocode, write, describe in `sections` for --page. Returns its length in seconds."""
    vocals, sample_rate = read_vocals(path)
    rate = max(sample_rate, model.cfg.sample_rate)                         # a telephone's voice gets a full band
    vocals = resample(vocals, sample_rate, rate)
    name = path.encode(errors="backslashreplace").decode()
    clock("read")
    with torch.no_grad():
        wav, gain = model.prepare(vocals, rate)
        expected, mu = model.condition(wav)
        clock("condition")
        for take in range(args.takes):
            title, number = f"{os.path.basename(name)} {take + 1}/{args.takes}", f"-{take + 1}" if take else ""
            bar = lambda steps: tqdm(steps, desc=title, unit="step", disable=None, leave=False)
            mel = model.sample(mu, expected, args.steps, args.guidance, args.seed + take, bar)
            clock("diffusion")
            accomp = model.render(mel, gain, rate, len(vocals), args.vocoder)
            clock("vocoder")
            again = (f"python sample.py {shlex.quote(name)} --seed {args.seed + take} --steps {args.steps} "
                     f"--guidance {args.guidance:g} --vocoder {args.vocoder}")
            again += f" --checkpoint {shlex.quote(args.checkpoint)}" if args.checkpoint != WEIGHTS else ""
            pair = np.stack([vocals.numpy(), accomp], 1)
            pair *= min(1, 0.99 / np.abs(pair.sum(1)).max())               # too loud a mix is turned down, never clipped
            accomp *= min(1, 0.99 / np.abs(accomp).max())
            picture = draw(model, wav, expected, mu, mel)
            write(f"{folder}/accompaniment{number}.wav", audio_bytes(accomp, rate, again))
            write(f"{folder}/mix{number}.wav", audio_bytes(pair.sum(1), rate, again))
            write(f"{folder}/mel{number}.png", picture)
            if args.page:
                sections.append(section(title, again, pair, rate, picture))
            clock("write")
    return len(vocals) / rate

class Clock(Counter):
    """Adds up the seconds since the last call, at first since `start`, under the name of what was done in them."""

    def __call__(self, name):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self[name] += time.perf_counter() - self.start - self.total()

# ----------------------------------------------------------------------------------------------------------------------
# The page: one file that plays anywhere. A take is one stereo sound, voice left and band right, so both are always in
# step; each player hears them through two volumes: vocals 1 and 0, accompaniment 0 and 1, mix as the sliders say.
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>FastSAG plays along</title>
<style>
  body { font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; background: #18181c; color: #ddd }
  section { margin: 2em 0; border-top: 1px solid #555 } img { width: 100% }
  label { display: inline-block; margin: 0 1em 1em 0 } audio { display: block; width: 18em }
</style>
<h1>FastSAG plays along</h1>
SECTIONS
<script>
  const context = new AudioContext(), players = document.querySelectorAll("audio");
  for (const player of players) {
    const take = player.closest("section"), sliders = take.querySelectorAll("input");
    const split = context.createChannelSplitter(2);
    player.src = take.dataset.sound;
    context.createMediaElementSource(player).connect(split);
    [player.dataset.voice, player.dataset.band].forEach((volume, side) => {
      const gain = new GainNode(context, {gain: volume ?? sliders[side].value});
      split.connect(gain, side).connect(context.destination);
      if (volume === undefined) sliders[side].oninput = event => gain.gain.value = event.target.value;
    });
    player.onplay = () => players.forEach(other => other === player ? context.resume() : other.pause());
  }
</script></html>
"""

def section(title, settings, pair, sample_rate, picture):
    """One take on the page. pair (L, 2): voice and band; at most 24 kHz, for the band has nothing above 12."""
    rate = min(sample_rate, Config.sample_rate)
    pair = resample(torch.from_numpy(pair.T), sample_rate, rate).T.numpy()
    link = lambda kind, data: f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f"""
<section data-sound="{link('audio/flac', audio_bytes(pair, rate, settings, 'FLAC'))}">
  <h2>{html.escape(title)}</h2>
  <label>vocals <audio controls data-voice="1" data-band="0"></audio></label>
  <label>accompaniment <audio controls data-voice="0" data-band="1"></audio></label>
  <label>mix <audio controls></audio></label>
  <label>voice in the mix <input type="range" min="0" max="1" step="0.01" value="1"></label>
  <label>band in the mix <input type="range" min="0" max="1" step="0.01" value="1"></label>
  <p><code>{html.escape(settings)}</code></p>
  <img alt="what was heard, expected and played" src="{link('image/png', picture)}">
</section>"""

# ----------------------------------------------------------------------------------------------------------------------
# Evaluation. Every row is a way to fill the band's place; the floor is another song's band, the ceiling the true one.
def measure(wav, true, cfg, song):
    """wav and the true band, (L,) at 24 kHz and the model's level -> dict of measures and the patches for Frechet."""
    pair = torch.stack([x[: min(len(wav), len(true))] for x in (wav, true)]).cpu()
    mel = log_mel(pair, cfg)
    features = chroma_of(music_features(pair, mel, cfg)).clamp(min=0)      # (2, 24, T/4)
    envelopes = onset_envelope(mel).mean(1)                                # (2, T/4)
    moved = torch.stack([mel[0].roll(frames, -1) for frames in range(-6, 7)])                  # by up to 64 ms
    rhythm = torch.corrcoef(torch.cat([envelopes[1:], onset_envelope(moved).mean(1)]))[0, 1:].nan_to_num()
    sounding = features[1].norm(dim=0) > 0.5                               # where the true band plays
    result = {"harmony": F.cosine_similarity(*features, dim=0)[sounding].mean(),
              "rhythm": rhythm[6], "rhythm +-64 ms": rhythm.max()}         # the second: whoever sang how early or late
    if "chords" in song:
        when = (torch.arange(envelopes.shape[-1]) + 0.5) * 4 * cfg.hop_length / cfg.sample_rate          # seconds
        chord = torch.zeros(12, len(when), dtype=torch.bool)
        for begin, end, tones in song["chords"]:
            chord[tones] |= (when >= begin) & (when < end)
        energy = features[0, 12:].square()
        result["on chord"] = ((energy * chord).sum(0) / energy.sum(0).clamp(min=1e-9))[chord.any(0) & sounding].mean()
        near = (when[:, None] - torch.tensor(song["beats"])).abs().amin(1) < 0.043
        result["on beat"] = envelopes[0][near].mean() / envelopes[0][~near].mean()
    patches = F.avg_pool2d(mel[:1], (4, 1))[0].unfold(-1, 16, 16)          # (25, n, 16): a patch is 171 ms
    patches = torch.cat([patches.mean(-1), patches.std(-1)]).T             # (n, 50): spectrum and its movement
    return {name: value.item() for name, value in result.items()}, patches.numpy()

def copy_distances(made, true, cfg):
    """made, true (1, L): the same band, once out of its mel -> what the vocoder lost: log-STFT distance, log-mel L1 and
    the sharpness of its onsets, as a share."""
    mels = log_mel(torch.cat([made, true]), cfg)
    onsets = onset_envelope(mels).mean(1)                                  # (2, T/4)
    peaks = onsets.topk(max(1, onsets.shape[-1] // 100)).values.mean(-1)
    return [stft_distance(made, true).mean().item(), F.l1_loss(*mels).item(), (peaks[0] / peaks[1]).item()]

def frechet(a, b):
    """Frechet distance between two sets of vectors (n, d), each taken as a Gaussian."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    cross = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).astype(complex)).real.sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross

@torch.no_grad()
def evaluate(model, args, clock, longest=30):
    """Print the table for the validation songs of a prepared set, `longest` seconds of each, and one for the vocoders."""
    cfg, songs = model.cfg, read_set(args.evaluate, "val", model.cfg.level_dbfs)
    demand((len(songs) > 1, f"{args.evaluate} has one validation song; a floor needs another song's band, so at least 2"))
    vocoders = ["neural"] * (model.vocoder is not None) + ["griffinlim"]
    vocoder = args.vocoder if args.vocoder in vocoders else "griffinlim"
    rows, patches, copies, seconds = defaultdict(list), defaultdict(list), defaultdict(list), 0.0
    def load(_, pairs, gains):                                             # (2, L): vocals, accompaniment
        length = min(len(pairs), longest * cfg.sample_rate) // model.frame_length * model.frame_length
        return torch.from_numpy(pairs[:length] * gains).T.to(model.device)

    for i, song in enumerate(tqdm(songs, unit="song", disable=None)):
        vocals, true = load(*song)
        other = load(*songs[(i + len(songs) // 2) % len(songs)])[1]        # half the set away: not the same singer's song
        true_mel, seconds = log_mel(true[None], cfg), seconds + len(true) / cfg.sample_rate
        clock("load")
        expected, mu = model.condition(vocals[None])
        mel = model.sample(mu, expected, args.steps, args.guidance, args.seed)
        generated = model.vocode(denormalise(mel, cfg), vocoder)[0]
        clock("generated")
        made = {}
        for name in vocoders:
            made[name] = model.vocode(true_mel, name)
            clock(name)
            copies[name].append(copy_distances(made[name], true[None], cfg))
            clock("measure")
        wavs = {"true band": true, "true band's mel": made[vocoder][0], "generated": generated,
                "prior mu alone": model.vocode(denormalise(mu, cfg), vocoder)[0], "the vocals themselves": vocals,
                "mismatched (another song's)": other}
        for row, wav in wavs.items():
            result, some = measure(wav, true, cfg, song[0])
            rows[row].append(list(result.values()))
            patches[row].append(some)
        clock("measure")
    print(f"{args.evaluate}: {len(songs)} songs, {seconds / 60:.1f} minutes; {args.steps} evaluations, guidance {args.guidance:g}, "
          f"{vocoder}; mean and 95 % interval over songs")
    print(f"{'':28s}" + "".join(f"{name:>16s}" for name in result) + f"{'Frechet':>10s}")
    mean = {}
    for row, values in rows.items():
        mean[row], half = np.mean(values, 0), 1.96 * np.std(values, 0, ddof=1) / len(values) ** 0.5
        distance = frechet(*(np.concatenate(patches[name]) for name in (row, "true band")))
        print(f"{row:28s}" + "".join(f"{m:9.3f} ±{h:5.3f}" for m, h in zip(mean[row], half)) + f"{distance:10.2f}")
    floor, ceiling = mean["mismatched (another song's)"], mean["true band's mel"]
    for row in ("generated", "prior mu alone", "the vocals themselves"):
        closed = 100 * (mean[row] - floor) / (ceiling - floor)
        print(f"gap closed by {row}: " + ", ".join(f"{name} {c:.0f} %" for name, c in zip(result, closed)))
    for name, distances in copies.items():
        distance, l1, sharpness = np.mean(distances, 0)
        print(f"true bands' mels through {name}: log-STFT distance {distance:.3f}, log-mel L1 {l1:.3f}, onset sharpness "
              f"{sharpness:.3f}, {seconds / clock[name]:.0f} times real time")
    print(f"RTF {clock['generated'] / seconds:.3f} ({model.device}, condition, diffusion and vocoder)")

def play_all(model, args, clock):
    """Each song into its own folder, the page, the last line -> exit status."""
    seconds, folders, sections, status = 0.0, [], [], 0
    for path in args.vocals:
        name = os.path.join(args.out, os.path.splitext(os.path.basename(path))[0])
        names = [name, *(f"{name}-{number}" for number in range(2, len(folders) + 2))]          # a/vocals.wav, b/vocals.wav
        folders.append(folder := next(name for name in names if name not in folders))
        try:
            seconds += play_along(model, path, folder, args, clock, sections)
            print(f"{folder}/: accompaniment, mix, picture")
        except (UserError, MemoryError, RuntimeError) as problem:          # the other songs are not to blame
            status, known = 2, isinstance(problem, UserError)
            if isinstance(problem, RuntimeError) and "memory" not in str(problem):
                raise
            print("sample.py:", problem if known else f"{path} needs more memory than there is; cut it", file=sys.stderr)
    if sections:
        page = os.path.join(args.out, "index.html")
        write(page, PAGE.replace("SECTIONS", "".join(sections)).encode())
        print(f"{page}: open it in a browser")
    if seconds:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0
        memory = peak / (1e6 if sys.platform == "darwin" else 1e3)         # macOS counts in bytes, Linux in kB
        print(", ".join(f"{name} {t:.2f} s" for name, t in clock.items()),
              f"{'bfloat16' if bfloat16_pays(model.device) else 'float32'} on {model.device}, "
              f"{torch.get_num_threads()} threads", f"peak memory {memory:.0f} MB",
              f"{seconds:.1f} s of music in {clock.total():.2f} s: RTF {clock.total() / seconds:.3f}", sep="; ")
    return status

def main(argv=None):
    clock = Clock()
    clock.start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("vocals", nargs="*", help="audio files with solo singing: from 0.5 s on, any rate and channel count")
    add("--out", default="out", help="folder to write to (default: out)")
    add("--checkpoint", default=WEIGHTS, help="weights (default: assets/demo.pt)")
    add("--steps", type=int, default=8, help="network evaluations of the diffusion (default: 8)")
    add("--guidance", type=float, default=5.0, help="1: none; more: closer to the voice, less varied (default: 5)")
    add("--takes", type=int, default=1, help="different accompaniments per song (default: 1)")
    add("--seed", type=int, default=0, help="of the first take; the next takes count on (default: 0)")
    add("--vocoder", choices=["neural", "griffinlim"], default="neural", help="neural: if the weights hold one (default)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    add("--page", action="store_true", help="also write OUT/index.html: all takes to listen to and to mix")
    add("--evaluate", metavar="DATA", help="measure on a prepared set's validation songs instead")
    words = sys.argv[1:] if argv is None else argv
    words = [os.path.join(".", word) if word.startswith("-") and os.path.isfile(word) else word for word in words]
    args = parser.parse_args(words)                                        # a file called -x.wav is no option
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")                  # a terminal without emoji
    def work():
        demand((bool(args.vocals) != bool(args.evaluate), "give audio files with singing, or --evaluate DATA"),
               (0 <= args.guidance <= 20, f"--guidance {args.guidance:g}: must lie between 0 and 20"))
        at_least(args, steps=1, takes=1, seed=0)
        return (evaluate if args.evaluate else play_all)(FastSAG.load(args.checkpoint, args.device), args, clock)
    return finish("sample.py", work)

if __name__ == "__main__":
    sys.exit(main())

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
import math
import os
import shlex
import struct
import sys
import time
import zlib
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

try:
    import resource
except ImportError:                                                        # Windows counts memory in another way
    resource = None

from fastsag import (Config, FastSAG, UserError, active_dbfs, audio_bytes, bfloat16_pays, chroma_of, demand, log_mel,
                     music_features, onset_envelope, read_audio, resample, stft_distance, write)
from prep import read_set

# ----------------------------------------------------------------------------------------------------------------------
# The picture: what the model heard, expects, and played. A PNG is three zlib-packed chunks; a font is 15 bits a letter.

FONT = ("7b6f2c9773e772cf5bc979cf79ef72527bef7bcf2bed6bae39236b6e79a779a4396b5bed7497126a5bad4927"
        "5fed6b6d2b6a6ba42b7b6bad388e74925b6f5b6a5bfd5aad5a9272a7")         # 0-9 A-Z, 3 x 5 dots each, 4 hex digits
COLOURS = np.array([(0, 0, 10), (60, 15, 110), (170, 45, 110), (245, 125, 60), (255, 250, 180)], float)


def png(picture):
    """(height, width, 3) uint8 -> the bytes of an RGB PNG file."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = picture.shape
    rows = np.pad(picture.reshape(height, -1), ((0, 0), (1, 0)))           # each row starts with its filter: 0, none
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows.astype(np.uint8).tobytes(), 6)) + chunk(b"IEND", b""))


def write_text(picture, x, y, text, scale=2):
    """Draw text (letters and digits) in light grey with its upper left corner at x, y."""
    for letter in text.upper():
        i = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".find(letter)
        bits = int(FONT[4 * i: 4 * i + 4], 16) if i >= 0 else 0
        dots = np.array([bits >> (14 - n) & 1 for n in range(15)], bool).reshape(5, 3).repeat(scale, 0).repeat(scale, 1)
        spot = picture[y: y + 5 * scale, x: x + 3 * scale]
        spot[dots[:, : spot.shape[1]]] = 210                               # cut off at the right edge
        x += 4 * scale


def draw(panels, seconds, width=1200):
    """panels: [(title, (rows, frames) array, low, high, [(row, label)])], row 0 at the bottom -> PNG with labelled axes."""
    left, gap, inner = 60, 26, 210
    picture = np.full(((inner + gap) * len(panels) + gap, width + left + 40, 3), 24, np.uint8)
    for i, (title, values, low, high, labels) in enumerate(panels):
        top = gap + i * (inner + gap)
        values = F.interpolate(torch.as_tensor(values)[None].float(), width, mode="area")[0].numpy()
        level = np.clip((values - low) / (high - low), 0, 1) * (len(COLOURS) - 1)
        rows = (np.arange(inner)[::-1] * len(values) // inner)             # nearest row; low ones at the bottom
        level = level[rows]
        below = np.minimum(level.astype(int), len(COLOURS) - 2)
        colour = COLOURS[below] + (level - below)[..., None] * (COLOURS[below + 1] - COLOURS[below])
        picture[top: top + inner, left: left + width] = colour
        write_text(picture, left, top - 14, title)
        for row, label in labels:
            y = top + inner - 1 - int((row + 0.5) * inner / len(values))
            picture[y, left - 5: left] = 210
            write_text(picture, left - 8 - 8 * len(label), max(top, y - 5), label)
    step = next((s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600) if seconds / s <= 12), 1200)
    for second in range(0, int(seconds) + 1, step):
        x = left + int(second / seconds * (width - 1))
        picture[-gap: -gap + 5, x] = 210
        write_text(picture, x - 4, len(picture) - gap + 9, f"{second} s")
    return png(picture)


def draw_song(model, vocals, expected, mu, mel):
    """The four stages of one song: vocals (1, L) at the model's rate, expected features, mu and mel -> PNG."""
    cfg = model.cfg
    mel_row = lambda hz: 15 + 27 * np.log(hz / 1000) / np.log(6.4) if hz >= 1000 else hz * 3 / 200
    hz = [(mel_row(hz) / mel_row(cfg.sample_rate / 2) * cfg.n_mels - 0.5, label) for hz, label in
          ((200, "200"), (500, "500"), (1000, "1K"), (2000, "2K"), (4000, "4K"), (8000, "8K"))]
    notes = [(row + 12 * part, name) for part in (0, 1) for row, name in ((0, "C"), (4, "E"), (7, "G"))]
    log_mels = [model.normalise(log_mel(vocals, cfg)), mu, mel]
    titles = "vocals in hz", "prior mu in hz", "accompaniment in hz"
    panels = [(title, m[0].cpu(), -1.0, 1.3, hz) for title, m in zip(titles, log_mels)]
    harmony = chroma_of(expected)[0].cpu()
    panels.insert(1, ("expected harmony  bass below  middle above", harmony, 0, 0.7, notes))
    return draw(panels, vocals.shape[-1] / cfg.sample_rate)


# ----------------------------------------------------------------------------------------------------------------------
# Playing along


def read_vocals(path):
    """-> mono (L,) without DC offset, sample rate in Hz. Raises UserError for what nobody can accompany."""
    wav, sample_rate = read_audio(path, mono=True)
    wav = torch.from_numpy(wav[0])
    demand((len(wav) >= 0.5 * sample_rate,
            f"{path} is {len(wav) / sample_rate:.2f} s long; at least 0.5 s of singing is needed"))
    wav = wav - wav.mean(dtype=torch.float64).float()                      # in double: a constant must leave nothing
    level = active_dbfs(wav, sample_rate)
    demand((level > -math.inf, f"{path} is silent; give a recording in which somebody sings"))
    if level < -50:
        up = Config.level_dbfs - level
        print(f"{path} is hardly audible ({level:.0f} dBFS); gained up by {up:.0f} dB, also in the mix")
        wav = wav * 10 ** (up / 20)
    return wav, sample_rate


def play_along(model, path, folder, args, clock):
    """One song: read, condition, draw, vocode, write. Returns its length in seconds and, for --page, its sections."""
    vocals, sample_rate = read_vocals(path)
    rate = max(sample_rate, model.cfg.sample_rate)                         # a telephone's voice gets a full band
    vocals = resample(vocals, sample_rate, rate)
    name = os.path.basename(path).encode(errors="backslashreplace").decode()
    sections = []
    clock("read")
    with torch.no_grad():
        wav, gain = model.prepare(vocals, rate)
        expected, mu = model.condition(wav)
        clock("condition")
        for take in range(args.takes):
            title = f"{name} {take + 1}/{args.takes}"
            bar = lambda steps: tqdm(steps, desc=title, unit="step", disable=None, leave=False)
            mel = model.sample(mu, expected, args.steps, args.guidance, args.seed + take, bar)
            clock("diffusion")
            accomp = model.render(mel, gain, rate, len(vocals), args.vocoder)
            clock("vocoder")
            number = f"-{take + 1}" if take else ""
            again = command(name, args, take)
            pair = np.stack([vocals.numpy(), accomp], 1)
            pair *= min(1, 0.99 / np.abs(pair.sum(1)).max())               # too loud a mix is turned down, never clipped
            accomp *= min(1, 0.99 / np.abs(accomp).max())
            picture = draw_song(model, wav, expected, mu, mel)
            write(f"{folder}/accompaniment{number}.wav", audio_bytes(accomp, rate, again))
            write(f"{folder}/mix{number}.wav", audio_bytes(pair.sum(1), rate, again))
            write(f"{folder}/mel{number}.png", picture)
            if args.page:
                sections.append(section(title, again, pair, rate, picture))
            clock("write")
    return len(vocals) / rate, sections


def command(name, args, take):
    """What makes this take again; stands in the comment field of its files and on the page."""
    options = {"--seed": args.seed + take, "--steps": args.steps, "--guidance": f"{args.guidance:g}",
               "--vocoder": args.vocoder, "--checkpoint": os.path.basename(args.checkpoint)}
    words = ["python", "sample.py", name, *(word for option in options.items() for word in option)]
    return shlex.join(map(str, words))


class Clock:
    """Adds up the seconds between calls under the name of what was done in between."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.spent = {}

    def __call__(self, name):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent[name] = self.spent.get(name, 0) + now - self.last
        self.last = now


# ----------------------------------------------------------------------------------------------------------------------
# The page: one file that plays anywhere. A take is one stereo sound, voice left and band right, so that both are always
# in step; each player hears them through two volumes: vocals 1 and 0, accompaniment 0 and 1, mix as the sliders say.

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>FastSAG plays along</title>
<style>
  body { font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; background: #18181c; color: #ddd }
  section { margin: 2em 0; border-top: 1px solid #555 }
  label { display: inline-block; margin: 0 1em 1em 0 }
  audio { display: block; width: 18em }
  img { width: 100% }
</style>
<h1>FastSAG plays along</h1>
SECTIONS
<script>
  const context = new AudioContext(), players = document.querySelectorAll("audio");
  for (const take of document.querySelectorAll("section")) {
    for (const player of take.querySelectorAll("audio")) {
      player.src = take.dataset.sound;
      const split = context.createChannelSplitter(2), sliders = take.querySelectorAll("input");
      context.createMediaElementSource(player).connect(split);
      [player.dataset.voice, player.dataset.band].forEach((volume, side) => {
        const gain = new GainNode(context, {gain: volume ?? sliders[side].value});
        split.connect(gain, side).connect(context.destination);
        if (volume === undefined) sliders[side].oninput = event => gain.gain.value = event.target.value;
      });
      player.onplay = () => {
        context.resume();
        players.forEach(other => other === player || other.pause());
      };
    }
  }
</script>
</html>
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
    features, envelopes = [], []
    for x in (wav, true):
        mel = log_mel(x[None], cfg)
        features.append(chroma_of(music_features(x[None], mel, cfg))[0].clamp(min=0))        # (24, T/4)
        envelopes.append(onset_envelope(mel)[0].mean(0))                   # (T/4,)
        if x is wav:
            patches = mel[0, :, : mel.shape[-1] // 16 * 16].unflatten(1, (-1, 16)).unflatten(0, (-1, 4)).mean(1)
    sounding = features[1].norm(dim=0) > 0.5                               # where the true band plays
    result = {"harmony": F.cosine_similarity(*features, dim=0)[sounding].mean().item(),
              "rhythm": torch.corrcoef(torch.stack(envelopes))[0, 1].nan_to_num().item()}
    if "chords" in song:
        time = (torch.arange(features[0].shape[-1]) + 0.5) * 4 * cfg.hop_length / cfg.sample_rate
        chord = torch.zeros(12, len(time))
        for begin, end, tones in song["chords"]:
            chord[torch.tensor(tones)[:, None], ((time >= begin) & (time < end)).nonzero()[:, 0]] = 1
        energy, known = features[0][12:].square(), chord.sum(0) > 0
        result["on chord"] = ((energy * chord).sum(0) / energy.sum(0).clamp(min=1e-9))[known & sounding].mean().item()
        near = (time[:, None] - torch.tensor(song["beats"])).abs().amin(1) < 0.043
        result["on beat"] = (envelopes[0][near].mean() / envelopes[0][~near].mean()).item()
    patches = torch.cat([patches.mean(-1), patches.std(-1)], 0).T          # (n, 50): spectrum and its movement in 171 ms
    return result, patches.numpy()


def copy_distances(made, true, cfg):
    """made, true (1, L): the same band, once out of its mel -> dict of what the vocoder lost."""
    mels = [log_mel(x, cfg) for x in (made, true)]
    onsets = [onset_envelope(mel).mean(1).flatten() for mel in mels]
    peaks = [x.topk(max(1, len(x) // 100)).values.mean() for x in onsets]
    return {"log-STFT distance": stft_distance(made, true).mean().item(), "log-mel L1": F.l1_loss(*mels).item(),
            "onset sharpness": (peaks[0] / peaks[1]).item()}


def frechet(a, b):
    """Frechet distance between two sets of vectors (n, d), each taken as a Gaussian."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    cross = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).astype(complex)).real.sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross


@torch.no_grad()
def evaluate(model, folder, args, longest=30):
    """Print the table for the validation songs of a prepared set, `longest` seconds of each, and one for the vocoders."""
    cfg, songs = model.cfg, read_set(folder, "val", model.cfg.level_dbfs)
    demand((len(songs) > 1, f"{folder} has one validation song; a floor needs another song's band, so at least 2"))
    vocoders = ["neural", "griffinlim"] if model.vocoder is not None else ["griffinlim"]
    vocoder = args.vocoder if args.vocoder in vocoders else "griffinlim"
    rows, patches, copies, seconds, clock = {}, {}, {}, 0.0, Clock()

    def load(song):                                                        # (2, L): vocals, accompaniment
        _, pairs, gains = song
        length = min(len(pairs), longest * cfg.sample_rate) // model.frame_length * model.frame_length
        return torch.from_numpy(pairs[:length] * gains).T.to(model.device)

    for i, song in enumerate(tqdm(songs, unit="song", disable=None)):
        vocals, true = load(song)
        other = load(songs[(i + len(songs) // 2) % len(songs)])[1]         # half the set away: not the same singer's song
        true_mel, seconds = log_mel(true[None], cfg), seconds + len(true) / cfg.sample_rate
        clock("load")
        expected, mu = model.condition(vocals[None])
        mel = model.sample(mu, expected, args.steps, args.guidance, args.seed)
        wavs = {"true band": true, "true band's mel": None,
                "generated": model.vocode(model.denormalise(mel), vocoder)[0]}
        clock("generated")
        for name in vocoders:
            made = model.vocode(true_mel, name)
            clock(name)
            copies.setdefault(name, []).append(copy_distances(made, true[None], cfg))
            if name == vocoder:
                wavs["true band's mel"] = made[0]
        wavs |= {"prior mu alone": model.vocode(model.denormalise(mu), vocoder)[0], "the vocals themselves": vocals,
                 "mismatched (another song's)": other}
        for row, wav in wavs.items():
            n = min(len(wav), len(true)) // model.frame_length * model.frame_length
            result, some = measure(wav[:n].cpu(), true[:n].cpu(), cfg, song[0])
            rows.setdefault(row, []).append(result)
            patches.setdefault(row, []).append(some)
        clock("measure")

    names = list(rows["generated"][0])
    patches = {row: np.concatenate(some) for row, some in patches.items()}
    print(f"{folder}: {len(songs)} songs, {seconds / 60:.1f} minutes; {args.steps} evaluations, guidance {args.guidance:g}, "
          f"{vocoder}; mean and 95 % interval over songs")
    print(f"{'':28s}" + "".join(f"{name:>16s}" for name in names) + f"{'Frechet':>10s}")
    mean = {}
    for row, results in rows.items():
        values = np.array([list(result.values()) for result in results])
        mean[row], half = values.mean(0), 1.96 * values.std(0, ddof=1) / len(values) ** 0.5
        print(f"{row:28s}" + "".join(f"{m:9.3f} ±{h:5.3f}" for m, h in zip(mean[row], half))
              + f"{frechet(patches[row], patches['true band']):10.2f}")
    floor, ceiling = mean["mismatched (another song's)"], mean["true band's mel"]
    for row in ("generated", "prior mu alone", "the vocals themselves"):
        closed = 100 * (mean[row] - floor) / (ceiling - floor)
        print(f"gap closed by {row}: " + ", ".join(f"{name} {c:.0f} %" for name, c in zip(names, closed)))
    for name, distances in copies.items():
        means = {key: np.mean([d[key] for d in distances]) for key in distances[0]}
        print(f"true bands' mels through {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in means.items())
              + f", {seconds / clock.spent[name]:.0f} times real time")
    print(f"RTF {clock.spent['generated'] / seconds:.3f} ({model.device}, condition, diffusion and vocoder)")


def main(argv=None):
    clock = Clock()
    shipped = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "demo.pt")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("vocals", nargs="*", help="audio files with solo singing: from 0.5 s on, any rate and channel count")
    add("--out", default="out", help="folder to write to (default: out)")
    add("--checkpoint", default=shipped, help="weights (default: assets/demo.pt)")
    add("--steps", type=int, default=8, help="network evaluations of the diffusion (default: 8)")
    add("--guidance", type=float, default=6.0,
        help="1: none, a third less time; more: closer to the voice, less varied (default: 6)")
    add("--takes", type=int, default=1, help="different accompaniments per song (default: 1)")
    add("--seed", type=int, default=0, help="of the first take; the next takes count on (default: 0)")
    add("--vocoder", choices=["neural", "griffinlim"], default="neural",
        help="the learnt one, where the weights hold one, or Griffin-Lim (default: neural)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    add("--page", action="store_true", help="also write OUT/index.html: all takes to listen to and to mix")
    add("--evaluate", metavar="DATA", help="measure on a prepared set's validation songs instead")
    words = sys.argv[1:] if argv is None else argv
    words = [os.path.join(".", word) if word.startswith("-") and os.path.isfile(word) else word for word in words]
    args = parser.parse_args(words)                                        # a file called -x.wav is no option
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")                  # a terminal without emoji
    status = 0
    try:
        demand((bool(args.vocals) != bool(args.evaluate), "give audio files with singing, or --evaluate DATA"),
               (args.steps >= 1, f"--steps {args.steps}: at least 1 is needed"),
               (args.takes >= 1, f"--takes {args.takes}: at least 1 is needed"),
               (args.seed >= 0, f"--seed {args.seed}: must not be negative"),
               (0 <= args.guidance <= 20, f"--guidance {args.guidance:g}: must lie between 0 and 20"))
        model = FastSAG.load(args.checkpoint, args.device)
        if args.evaluate:
            evaluate(model, args.evaluate, args)
            return 0
        seconds, folders, sections = 0.0, set(), []
        for path in args.vocals:
            name = os.path.join(args.out, os.path.splitext(os.path.basename(path))[0])
            names = (f"{name}-{number}" if number > 1 else name for number in count(1))      # a/vocals.wav, b/vocals.wav
            folder = next(name for name in names if name not in folders)
            folders.add(folder)
            try:
                length, takes = play_along(model, path, folder, args, clock)
                seconds, sections = seconds + length, sections + takes
                print(f"{folder}/: accompaniment, mix, picture")
            except (UserError, MemoryError, torch.OutOfMemoryError) as problem:            # the other songs are not to blame
                reason = problem if isinstance(problem, UserError) else f"{path} needs more memory than there is; cut it"
                print(f"sample.py: {reason}", file=sys.stderr)
                status = 2
        if sections:
            page = os.path.join(args.out, "index.html")
            write(page, PAGE.replace("SECTIONS", "".join(sections)).encode())
            print(f"{page}: open it in a browser")
    except UserError as problem:
        print(f"sample.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sample.py: stopped", file=sys.stderr)
        return 130
    if seconds:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0
        memory = peak / (1e6 if sys.platform == "darwin" else 1e3)         # macOS counts in bytes, Linux in kB
        spent = ", ".join(f"{name} {t:.2f} s" for name, t in clock.spent.items())
        numbers = f"{'bfloat16' if bfloat16_pays(model.device) else 'float32'} on {model.device}, {torch.get_num_threads()} threads"
        print(f"{spent}; {numbers}; peak memory {memory:.0f} MB; {seconds:.1f} s of music in {clock.last - clock.start:.2f} s: "
              f"RTF {(clock.last - clock.start) / seconds:.3f}")
    return status


if __name__ == "__main__":
    sys.exit(main())

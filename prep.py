"""Make the training set: pairs of solo singing and the band that fits it, 24 kHz mono.

    python prep.py                                   demo songs, made by demo/ -> data/demo
    python prep.py --songs 8 --seed 1 --out data/x   a handful, to try things out
    python prep.py PATH ... --out data/mine          your own stems, found in folders
    python prep.py --scores FILE.jsonl ...           demo songs of melodies and chords from files

Layouts of stems that are recognised, in WAV, FLAC, OGG, MP3 or AIFF, at any sample rate:

    MUSDB18-HQ    SONG/vocals.wav beside drums, bass and other.wav, or beside mixture.wav
    Demucs        SONG/vocals.wav beside its other stems, or beside no_vocals.wav
    pairs         NAME_vocals.wav beside NAME_accompaniment.wav or NAME_instrumental.wav
    MIR-1K        SINGER_SONG_CLIP.wav: stereo, band on the left, vocals on the right

Pauses of voice or band that last longer than 4 s are cut out. In MIR-1K all songs of a singer go to
training or all to validation; elsewhere, songs of one artist may go to both.

What is written:

    OUT/train.bin, val.bin   int16 (samples, 2): column 0 vocals, column 1 accompaniment; songs
                             end to end, 5.8 MB a minute
    OUT/meta.json            where each song lies, its levels; of demo songs also beats and chords
"""
import argparse
import io
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from demo.lead_sheet import read_lead_sheets, styles_of
from demo.song import make_songs
from fastsag import Config, UserError, active_dbfs, explain_write_errors, resample

SAMPLE_RATE = Config.sample_rate  # Hz
FORMAT = 1  # version of a prepared set
FILES = ("train.bin", "val.bin", "meta.json")  # of a prepared set; meta.json is moved last


# --------------------------------------------------------------------------------------------------
# Audio files

# What soundfile reads, by the end of the name. Raw samples have no header, so they are left out.
AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()}
AUDIO_SUFFIXES |= {".aif", ".oga", ".opus"}
AUDIO_SUFFIXES -= {".raw"}

# What it does not read, but ffmpeg does: recordings of phones, videos, other codecs
PHONE_SUFFIXES = {".m4a", ".3gp", ".amr"}
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm"}
CODEC_SUFFIXES = {".aac", ".ac3", ".ape", ".m4b", ".mka", ".wma", ".wv"}
FFMPEG_SUFFIXES = PHONE_SUFFIXES | VIDEO_SUFFIXES | CODEC_SUFFIXES

HIGHEST_SAMPLE = 1e10  # beyond it a file is broken: full scale is 1


def convert_first(path):
    """What to tell the user about a file that ffmpeg reads and soundfile does not."""
    source = shlex.quote(str(path))
    target = shlex.quote(str(Path(path).with_suffix(".wav")))
    return (
        f"{path} cannot be read as audio (a {Path(path).suffix} file); "
        f"convert it first: ffmpeg -i {source} {target}"
    )


def read_blocks(path, mono, longest_hours):
    """A file -> [(n, channels) float32], sample rate. Raises what soundfile raises, and UserError.

    It is read block by block: a header may claim far more samples than there are.
    """
    block_size = 2**20  # samples
    blocks = []
    with open(path, "rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
        rate = sound.samplerate
        if not 1000 <= rate <= 768000:
            raise UserError(f"{path} claims a rate of {rate} Hz; between 1 and 768 kHz is audio")

        while True:
            block = sound.read(block_size, dtype="float32", always_2d=True)
            if len(block) == 0:
                return blocks, rate

            blocks.append(block.mean(1, keepdims=True) if mono else block)
            if len(blocks) * block_size >= longest_hours * 3600 * rate:
                raise UserError(f"{path} is longer than {longest_hours} hours; cut it")


def read_audio(path, mono=False, longest_hours=4):
    """Any file that soundfile reads -> (channels, L) float32, sample rate in Hz.

    mono: return the mean of the channels, (1, L). Raises UserError if the file cannot be read, is
    longer than longest_hours, or holds no samples or values that are not sound.
    """
    try:
        blocks, rate = read_blocks(path, mono, longest_hours)
    except OSError as error:
        raise UserError(f"{path} cannot be read as audio ({error.strerror})") from None
    except soundfile.LibsndfileError as error:
        if Path(path).suffix.lower() in FFMPEG_SUFFIXES:
            raise UserError(convert_first(path)) from None
        reason = error.error_string.rstrip(".")
        raise UserError(
            f"{path} cannot be read as audio ({reason}); "
            f"give a whole WAV, FLAC, OGG, MP3 or AIFF file"
        ) from None

    if not blocks:
        raise UserError(f"{path} holds no samples; give a file with sound in it")

    wav = np.concatenate(blocks).T
    num_good = np.count_nonzero(np.abs(wav) < HIGHEST_SAMPLE)  # NaN is not below anything
    if num_good < wav.size:
        raise UserError(
            f"{path} holds {wav.size - num_good} samples that are NaN, infinite or beyond 1e10; "
            f"export it again"
        )
    return wav, rate


def audio_bytes(wav, sample_rate, comment, kind="WAV"):
    """(L,) or (L, channels) from -1 to 1 -> the bytes of a 16-bit file; kind: WAV, FLAC, ...

    The same arguments give the same bytes.
    """
    buffer = io.BytesIO()
    wav = wav.reshape(len(wav), -1)
    channels = wav.shape[1]
    with soundfile.SoundFile(buffer, "w", sample_rate, channels, "PCM_16", format=kind) as file:
        file.comment = comment
        file.write(wav)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------
# Finding stems. `files` is always one folder: {name without suffix, in lower case: path}. A stem's
# name may begin with a prefix, as in NAME_vocals; `prefix` is then "name_", otherwise "".


@dataclass
class Accompaniment:
    """The files beside the vocals; none if the layout does not fit."""

    paths: list  # their sum is the accompaniment
    is_mixture: bool = False  # the sum contains the vocals, too


@dataclass
class Song:
    """The files of one song."""

    group: str  # songs of a group are all for training or all for validation; a singer, if known
    name: str
    piece: str  # a finer group, for sets in which all songs have the same singer (load_songs)
    vocals: Path  # in MIR-1K: the first clip
    accompaniment: Accompaniment = None
    clips: list = field(default_factory=list)  # MIR-1K only, in order


def present(files, prefix, stems):
    """Paths of those of the stems that are in the folder."""
    return [files[prefix + stem] for stem in stems if prefix + stem in files]


def demucs_two_stems(files, prefix):
    """vocals beside no_vocals."""
    return Accompaniment(present(files, prefix, ["no_vocals"]))


def name_accompaniment(files, prefix):
    """NAME_vocals beside NAME_accompaniment or NAME_instrumental."""
    return Accompaniment(present(files, prefix, ["accompaniment", "instrumental"])[:1])


def musdb18_hq_stems(files, prefix):
    """vocals beside drums, bass and other. Demucs has the same names, and maybe guitar, piano."""
    if len(present(files, prefix, ["drums", "bass", "other"])) < 3:
        return Accompaniment([])
    return some_stems(files, prefix)


def musdb18_hq_mixture(files, prefix):
    """vocals beside mixture, which contains them."""
    return Accompaniment(present(files, prefix, ["mixture"]), is_mixture=True)


def some_stems(files, prefix):
    """vocals beside any of the instruments."""
    return Accompaniment(present(files, prefix, ["drums", "bass", "other", "guitar", "piano"]))


# The first that fits is taken: a whole accompaniment before a mixture, some of the stems last.
LAYOUTS = [
    demucs_two_stems,
    name_accompaniment,
    musdb18_hq_stems,
    musdb18_hq_mixture,
    some_stems,
]


def vocals_prefix(stem):
    """The prefix of a file of vocals: "" for vocals, "name_" for name_vocals. Of others None."""
    if stem == "vocals":
        return ""

    is_vocals = stem.endswith("_vocals") and stem != "_vocals"
    is_band = stem.startswith("no_vocals") or stem.endswith("_no_vocals")  # end in _vocals, too
    if is_vocals and not is_band:
        return stem.removesuffix("vocals")
    return None


def songs_with_vocals(folder, files):
    """A Song for each file of vocals in the folder; its accompaniment is None if there is none."""
    title = "/".join(folder.parts[-2:])
    songs = []
    for stem, path in files.items():
        prefix = vocals_prefix(stem)
        if prefix is None:
            continue

        if prefix:
            group = f"{title}/{prefix[:-1]}"
            name = path.stem[: len(prefix) - 1]
        else:
            group = title
            name = title
        song = Song(group=group, name=name, piece=name, vocals=path)

        for layout in LAYOUTS:
            accompaniment = layout(files, prefix)
            if accompaniment.paths:
                song.accompaniment = accompaniment
                break
        songs.append(song)
    return songs


@dataclass(frozen=True, order=True)
class Clip:
    """A file of MIR-1K: SINGER_SONG_CLIP."""

    singer: str
    song: str
    number: int
    path: Path

    def follows(self, other):
        """Is this the next clip of the same song?"""
        is_same_song = (self.singer, self.song) == (other.singer, other.song)
        return is_same_song and self.number == other.number + 1


def mir1k_clip(stem, path):
    """The file as a Clip, or None if its name is of another kind."""
    parts = stem.split("_")
    if len(parts) != 3:
        return None

    singer, song, number = parts
    is_singer = singer.isascii() and singer.isalnum() and singer[0].isalpha()
    if is_singer and song.isdecimal() and number.isdecimal():
        return Clip(singer, song, int(number), path)
    return None


def mir1k_songs(files):
    """A Song for each run of MIR-1K's clips without a gap in their numbers.

    MIR-1K cuts a recording into clips of some 8 s, one right after the other. That is too short to
    find a beat, so the clips are joined again.
    """
    clips = [mir1k_clip(stem, path) for stem, path in files.items()]
    clips = sorted(clip for clip in clips if clip is not None)

    songs = []
    previous = None
    for clip in clips:
        if previous and clip.follows(previous):
            songs[-1].clips.append(clip.path)
        else:
            name = clip.path.stem
            piece = name.rpartition("_")[0]
            songs.append(Song(clip.singer, name, piece, vocals=clip.path, clips=[clip.path]))
        previous = clip
    return songs


def list_audio(paths):
    """Audio files under the paths -> {folder: files}, [files that ffmpeg could convert]."""
    folders = {}
    for_ffmpeg = []
    for root in map(Path, paths):
        if not root.exists():
            raise UserError(
                f"{root} not found; give folders of stems, or no path at all for the demo songs"
            )

        inside = [root] if root.is_file() else sorted(root.rglob("*"))
        for path in inside:
            if path.name.startswith(".") or not path.is_file():
                continue
            if path.suffix.lower() in AUDIO_SUFFIXES:
                files = folders.setdefault(path.parent.resolve(), {})
                files.setdefault(path.stem.lower(), path)
            elif path.suffix.lower() in FFMPEG_SUFFIXES:
                for_ffmpeg.append(path)
    return folders, for_ffmpeg


def find_songs(paths):
    """All songs under the paths: [Song], [why something was skipped]."""
    folders, for_ffmpeg = list_audio(paths)
    skipped = [convert_first(path) for path in for_ffmpeg]

    songs = []
    for folder, files in folders.items():
        found = songs_with_vocals(folder, files) or mir1k_songs(files)
        if not found:
            skipped.append(f"{folder}: its {len(files)} audio files are in no known layout")

        for song in found:
            if song.accompaniment or song.clips:
                songs.append(song)
            else:
                skipped.append(f"{song.vocals}: no accompaniment beside it")

    songs.sort(key=lambda song: (song.group, song.name, song.vocals))
    return songs, skipped


# --------------------------------------------------------------------------------------------------
# Reading stems: from files to stretches in which there is singing and a band.

BLOCKS_PER_SECOND = 10  # levels are measured in blocks of 100 ms
BLOCK = SAMPLE_RATE // BLOCKS_PER_SECOND  # samples
QUIET_DBFS = -50  # a block with a lower RMS is a pause
LONGEST_PAUSE = 4  # seconds; longer pauses are cut out
SHORTEST_STRETCH = 5  # seconds; longer than LONGEST_PAUSE, or a stretch could be one pause


def join_clips(paths):
    """Clips of MIR-1K, joined -> vocals (L,), accompaniment (L,), rate."""
    clips = []
    first_rate = None
    for path in paths:
        wav, rate = read_audio(path)
        first_rate = first_rate or rate
        if len(wav) != 2 or rate != first_rate:
            raise UserError(
                f"{path} is named like a MIR-1K clip, but has {len(wav)} channels at {rate} Hz; "
                f"it should be stereo, at the {first_rate} Hz of {paths[0].name}"
            )
        clips.append(wav)

    accomp, vocals = np.concatenate(clips, axis=1)
    return vocals, accomp, first_rate


def at_sample_rate(wav, rate):
    """(L,) numpy at `rate` -> (L',) at SAMPLE_RATE."""
    return resample(torch.from_numpy(wav), rate, SAMPLE_RATE).numpy()


def read_pair(song):
    """Song -> (2, L) float32 at SAMPLE_RATE: vocals, accompaniment; one gain for both, peak 0.9."""
    if song.clips:
        vocals, accomp, rate = join_clips(song.clips)
        waves = [at_sample_rate(vocals, rate), at_sample_rate(accomp, rate)]
    else:
        waves = []
        for path in [song.vocals, *song.accompaniment.paths]:
            wav, rate = read_audio(path, mono=True)
            waves.append(at_sample_rate(wav[0], rate))

    shortest = min(len(wave) for wave in waves)
    longest = max(len(wave) for wave in waves)
    if (longest - shortest) / SAMPLE_RATE > 1:
        raise UserError(
            f"{song.vocals}: the stems of this song last {shortest / SAMPLE_RATE:.1f} to "
            f"{longest / SAMPLE_RATE:.1f} s; they must be equally long, to within 1 s"
        )

    vocals, *others = [wave[:shortest] for wave in waves]
    accomp = sum(others)
    if song.accompaniment and song.accompaniment.is_mixture:
        accomp = accomp - vocals

    pair = np.stack([vocals, accomp])
    pair *= 0.9 / max(np.abs(pair).max(), 1e-6)
    return pair


def runs_of(mask):
    """Where the mask (N,) is true: (number of runs, 2), begin and end of each run."""
    changes = np.diff(np.pad(mask.astype(int), 1))
    return np.flatnonzero(changes).reshape(-1, 2)


def load_song(song):
    """Song -> its useful stretches, [(2, L) float32]. Raises UserError if there is none.

    A pause of the vocals or of the accompaniment that lasts longer than LONGEST_PAUSE is cut out.
    What remains is useful if it lasts SHORTEST_STRETCH or longer.
    """
    pair = read_pair(song)
    length = pair.shape[1]
    padded = np.pad(pair, ((0, 0), (0, -length % BLOCK)))
    power = (padded.reshape(2, -1, BLOCK) ** 2).mean(2)  # (2, blocks)

    keep = np.ones(power.shape[1], bool)
    for is_quiet in power < 10 ** (QUIET_DBFS / 10):
        for begin, end in runs_of(is_quiet):
            if end - begin > LONGEST_PAUSE * BLOCKS_PER_SECOND:
                keep[begin:end] = False

    stretches = [pair[:, begin:end] for begin, end in runs_of(keep) * BLOCK]
    stretches = [part for part in stretches if part.shape[1] >= SHORTEST_STRETCH * SAMPLE_RATE]
    if not stretches:
        raise UserError(
            f"{song.vocals}: no {SHORTEST_STRETCH} s in which both singing and band are above "
            f"{QUIET_DBFS} dBFS"
        )
    return stretches


def load_songs(songs, skipped, val, seed):
    """[Song] -> a generator of (vocals, accompaniment, {name, split}) for write_set.

    Groups are taken in a random order. The first that is usable is for training, the next ones for
    validation until it has its share `val` of the groups, all others for training. Prints why
    songs were skipped. Raises UserError if fewer than two groups are usable.
    """
    # With a single singer, each piece is a group.
    if len({song.group for song in songs}) == 1:
        for song in songs:
            song.group = song.piece

    groups = sorted({song.group for song in songs})
    order = np.random.default_rng(seed).permutation(groups).tolist()
    songs = sorted(songs, key=lambda song: order.index(song.group))
    num_val = max(1, round(val * len(groups)))

    usable = set()
    for song in tqdm(songs, unit="song", disable=None):
        # Usable groups before this one: none, training; up to num_val, validation; more, training.
        num_before = len(usable - {song.group})
        split = "val" if 1 <= num_before <= num_val else "train"
        try:
            stretches = load_song(song)
        except UserError as problem:
            skipped.append(str(problem))
            continue

        usable.add(song.group)
        for number, (vocals, accomp) in enumerate(stretches, 1):
            name = song.name if number == 1 else f"{song.name}#{number}"
            yield vocals, accomp, {"name": name, "split": split}

    for reason in skipped:
        print(f"prep.py: skipped: {reason}", file=sys.stderr)
    if not usable:
        raise UserError(
            "no usable song found; known layouts: vocals.* beside drums, bass, other.*, "
            "no_vocals.* or mixture.*; NAME_vocals.* beside NAME_accompaniment.*; MIR-1K"
        )
    if len(usable) == 1:
        raise UserError("one usable song found; give at least two: one is kept for validation")
    print(f"skipped: {len(skipped)}")


# --------------------------------------------------------------------------------------------------
# Reading lead sheets: the format is explained in demo/lead_sheet.py.


def load_sheets(paths):
    """Files -> [LeadSheet]. Prints why lines were skipped. Raises UserError if all of them were."""
    sheets = []
    skipped = []
    for path in paths:
        found, reasons = read_lead_sheets(path)
        sheets += found
        skipped += reasons

    for reason in skipped:
        print(f"prep.py: skipped: {reason}", file=sys.stderr)

    # These are no mistakes, and there may be hundreds.
    playable = [sheet for sheet in sheets if styles_of(sheet.meter)]
    num_others = len(sheets) - len(playable)
    if num_others:
        print(
            f"prep.py: skipped: songs in a meter that no style of the band has: {num_others}",
            file=sys.stderr,
        )

    if not playable:
        raise UserError(
            f"no usable lead sheet in {', '.join(paths)}; the format is explained in "
            f"demo/lead_sheet.py"
        )
    print(f"lead sheets: {len(playable)}, skipped: {len(skipped) + num_others}")
    return playable


# --------------------------------------------------------------------------------------------------
# Prepared sets


def read_set(folder, split, level_dbfs=Config.level_dbfs):
    """The songs of one split of a prepared set -> [(facts, pair, gains)].

    facts: the song's entry in meta.json. pair: (L, 2) int16, memory-mapped. gains: (2,) float32,
    factors that bring vocals and accompaniment from int16 to float at level_dbfs.
    Raises UserError for anything that is not such a set, whole.
    """
    try:
        meta = json.loads((Path(folder) / "meta.json").read_text())
        pairs = np.memmap(Path(folder) / f"{split}.bin", np.int16, "r").reshape(-1, 2)

        claimed = (meta["format"], meta["sample_rate"], meta[f"{split}_samples"])
        if claimed != (FORMAT, SAMPLE_RATE, len(pairs)):
            raise ValueError(
                f"{split}.bin holds {len(pairs)} samples of format {FORMAT} at {SAMPLE_RATE} Hz; "
                f"meta.json says otherwise"
            )

        songs = []
        for facts in meta["songs"]:
            if facts["split"] != split:
                continue
            begin = facts["start"]
            end = begin + facts["length"]
            levels = np.array([facts["vocals_dbfs"], facts["accomp_dbfs"]])
            gains = 10 ** ((level_dbfs - levels) / 20) / 32768
            if not 0 <= begin < end <= len(pairs) or not np.isfinite(gains).all():
                raise ValueError(f"{facts['name']} lies beyond {split}.bin or has no level")
            songs.append((facts, pairs[begin:end], gains.astype(np.float32)))

        if not songs:
            raise ValueError(f"no songs in {split}.bin")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        reason = f"{type(problem).__name__}: {problem}"
        raise UserError(
            f"{folder} is not a whole data set ({reason}); make it with prep.py"
        ) from None
    return songs


def has_other_files(folder):
    """Is something there that is not of a prepared set?"""
    if folder.is_dir():
        return bool(set(os.listdir(folder)) - set(FILES))
    return folder.exists()


def check_out(out, partial, seconds):
    """Raises UserError if a set of so many seconds (0: unknown) cannot or must not be written."""
    if not (out / "meta.json").exists() and has_other_files(out):
        raise UserError(
            f"--out {out} was not made by prep.py (no meta.json in it); give another name"
        )
    if has_other_files(partial):
        raise UserError(f"{partial} is in the way; remove it")

    folder = next(parent for parent in out.absolute().parents if parent.exists())
    needed = seconds * SAMPLE_RATE * 4 / 1e6  # two columns of two bytes each
    free = shutil.disk_usage(folder).free / 1e6
    if needed > free:
        raise UserError(f"{needed:.0f} MB are needed in {folder}, {free:.0f} MB are free")


def write_songs(partial, songs):
    """Write the files of a set into `partial` -> [facts of a song], {split: number of samples}."""
    all_facts = []
    num_samples = {"train": 0, "val": 0}
    for vocals, accomp, facts in songs:
        split = facts["split"]
        pair = np.stack([vocals, accomp], axis=1)
        pair = np.round(pair * 32767).astype(np.int16)  # (L, 2)

        # Around the writing only: making the next song raises errors of its own.
        with explain_write_errors(partial), open(partial / f"{split}.bin", "ab") as file:
            file.write(pair.tobytes())

        wav = pair / np.float32(32768)
        levels = {
            "vocals_dbfs": round(active_dbfs(wav[:, 0], SAMPLE_RATE), 2),
            "accomp_dbfs": round(active_dbfs(wav[:, 1], SAMPLE_RATE), 2),
        }
        place = {"start": num_samples[split], "length": len(pair)}
        all_facts.append(levels | facts | place)
        num_samples[split] += len(pair)

    meta = {
        "format": FORMAT,
        "sample_rate": SAMPLE_RATE,
        "songs": all_facts,
        "train_samples": num_samples["train"],
        "val_samples": num_samples["val"],
    }
    with explain_write_errors(partial):
        (partial / "meta.json").write_text(json.dumps(meta))
    return all_facts, num_samples


def write_set(out, seconds, songs):
    """Make a set of songs: (vocals (L,), accompaniment (L,), facts with at least name and split).

    seconds: length of all songs together, 0 if unknown. The set is written to `out`.partial and
    moved to `out` when it is whole. Raises UserError if `out` holds anything but a set, or if the
    disk refuses.
    """
    out = Path(out)
    partial = Path(f"{out}.partial")
    check_out(out, partial, seconds)

    shutil.rmtree(partial, ignore_errors=True)
    try:
        with explain_write_errors(partial):
            partial.mkdir(parents=True)
        facts, num_samples = write_songs(partial, songs)

        # meta.json goes first and comes last: half a set never looks like a whole one.
        with explain_write_errors(out):
            out.mkdir(exist_ok=True)
            (out / "meta.json").unlink(missing_ok=True)
            for name in FILES:
                os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

    for split, count in num_samples.items():
        num_songs = sum(song["split"] == split for song in facts)
        minutes = count / SAMPLE_RATE / 60
        megabytes = count * 4 / 1e6
        path = out / f"{split}.bin"
        print(f"{split:5} {num_songs:5} songs {minutes:7.1f} min {megabytes:8.1f} MB  {path}")


# --------------------------------------------------------------------------------------------------
# The command line


def make_parser():
    """The options and their defaults."""
    parser = argparse.ArgumentParser(
        prog="prep.py",
        usage="python prep.py [PATH ...] [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="folders (or files) of stems; none: make demo songs",
    )
    parser.add_argument(
        "--scores",
        nargs="+",
        metavar="FILE",
        help="demo: take melodies and chords from these files, JSON Lines, one song a line",
    )
    parser.add_argument(
        "--out",
        help="folder to make (default: data/demo; data/scores with --scores; data/mine for stems)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="another seed: other songs, or other stems for validation (default: 0)",
    )
    parser.add_argument(
        "--val",
        type=float,
        default=0.06,
        help="stems: share of the singers or songs for validation (default: 0.06)",
    )
    parser.add_argument(
        "--songs",
        type=int,
        default=240,
        help="demo: number of songs, validation included (default: 240)",
    )
    parser.add_argument(
        "--val-songs",
        type=int,
        default=20,
        help="demo: how many for validation, at most a quarter (default: 20)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=45,
        help="demo: length of a song in seconds (default: 45)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="demo: processes (default: all cores)",
    )
    return parser


def check_least(parser, args, least):
    """Exits with a sentence if an option is below its least value; {name of option: value}."""
    for name, lowest in least.items():
        value = getattr(args, name, None)
        if value is not None and not value >= lowest:  # refuses NaN, too
            parser.error(f"--{name.replace('_', '-')} {value}: must be at least {lowest}")


def check_seed(parser, args):
    """Exits with a sentence if --seed is too large: torch takes 64 bits, and takes count on."""
    if args.seed >= 2**62:
        parser.error(f"--seed {args.seed}: must be below 2^62")


def check_options(parser, args):
    """Exits with a sentence if an option is out of range."""
    if args.paths and args.scores:
        parser.error(f"--scores beside {args.paths[0]}: give lead sheets or stems, not both")
    if args.songs < 2:
        parser.error(f"--songs {args.songs}: must be at least 2, one of them for validation")
    if not args.seconds >= 8:  # refuses NaN, too
        parser.error(f"--seconds {args.seconds:g}: must be at least 8")
    check_least(parser, args, {"val_songs": 1, "workers": 1, "seed": 0})
    if not 0 < args.val < 1:
        parser.error(f"--val {args.val:g}: must lie between 0 and 1")


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)

    try:
        if args.paths:
            songs, skipped = find_songs(args.paths)
            pairs = load_songs(songs, skipped, args.val, args.seed)
            write_set(args.out or "data/mine", 0, pairs)
        elif args.scores:
            sheets = load_sheets(args.scores)
            songs = make_songs(
                args.seed, args.songs, args.val_songs, args.seconds, args.workers, sheets
            )
            write_set(args.out or "data/scores", args.songs * args.seconds, songs)
        else:
            songs = make_songs(args.seed, args.songs, args.val_songs, args.seconds, args.workers)
            write_set(args.out or "data/demo", args.songs * args.seconds, songs)
    except UserError as problem:
        parser.error(str(problem))
    except KeyboardInterrupt:
        parser.exit(130, "prep.py: stopped; nothing was written\n")


if __name__ == "__main__":
    main()

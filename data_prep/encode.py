"""Encoding: the audio of a manifest becomes discrete codes in a Megatron indexed dataset, one sequence per utterance.

OUT/part-00000.bin, .idx hold the codes (int32); .jsonl the manifest lines in the same order, with their paths as this
manifest names them; .json what they were made from (hashes of manifest and codec), counts and a checksum per file,
written last: a part is complete where its .json is. OUT/codec is a copy of the codec.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_prep.manifest import Entry, Problems, numbered_lines, read_manifest, relocate, write_entry
from ttt_dist.errors import UserError
from ttt_dist.files import atomic_write, commit, sha256_file, temporary_name, writing
from ttt_dist.telemetry.console import Progress, say

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from ttt_dist.audio import Codec, UtteranceReader
    from ttt_dist.audio.codec import Codes

FORMAT = 1
WINDOW_SECONDS = 1200.0  # audio held in memory at once: 77 MB at 16 kHz
WINDOW_UTTERANCES = 4096
BATCH_SECONDS = 120.0  # audio handed to the codec at once

EXAMPLES = """examples:
  # learn the built-in codec from the corpus, then encode the corpus with it
  python -m data_prep encode --manifest work/train.jsonl --codec melvq --train-codec --frame-rate 25 \\
      --codebook-size 512 --sample-rate 8000 --audio-root recordings --codec-out work/codec --out work/codes-train
  # encode other speech with the same codec
  python -m data_prep encode --manifest work/valid.jsonl --audio-root recordings \\
      --codec melvq:work/codec --out work/codes-valid

Unreadable audio and bad lines are reported and left out, the rest is encoded. With more bad ones than --max-errors
the exit status is 1. A part that is complete is not made again.
"""


@dataclass
class Counts:
    """What a part holds."""

    utterances: int = 0
    codes: int = 0
    seconds: float = 0.0
    skipped: int = 0


def encode_manifest(
    manifest: Path, codec: Codec, out: Path, problems: Problems, audio_root: Path | None = None
) -> Counts:
    """Encode every utterance of `manifest` into the part OUT/part-00000; a part complete from the same inputs stays.

    Raises UserError where the part holds other inputs' codes, or nothing could be encoded.
    """
    from ttt_dist.audio import UtteranceReader

    inputs = _fingerprint(manifest, codec)
    done = _finished(out / "part-00000", inputs)
    if done is not None:
        say(f"{out}/part-00000: complete already, {done.utterances:,} utterances")
        problems.count += done.skipped
        return done
    reader = UtteranceReader(manifest.parent, codec.sample_rate, audio_root=audio_root)
    _keep_codec(codec, out / "codec")
    counts = Counts()
    with PartWriter(out / "part-00000") as writer, Progress(total_seconds(manifest), "encoding", "s audio") as progress:
        for window in _windows(manifest, reader, problems, progress):
            waves = [wave for _, wave in window]
            for (entry, wave), codes in zip(window, encode_sorted(codec, waves), strict=True):
                writer.add(_moved(entry, manifest.parent, out), codes)
                counts.utterances += 1
                counts.codes += len(codes)
                counts.seconds += len(wave) / codec.sample_rate
        if not counts.utterances:
            raise UserError(f"{manifest}: none of its utterances could be encoded ({problems.count} bad)")
        counts.skipped = problems.count
        counts.seconds = round(counts.seconds, 3)
        writer.finish({"format": FORMAT, "inputs": inputs, "codec": _describe(codec), "counts": vars(counts)})
    return counts


def encode_sorted(codec: Codec, waves: list[Tensor]) -> list[Codes]:
    """Codes in the order of `waves`, encoded in batches of similar length (a codec may pad its batch)."""
    order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
    codes: list[Codes | None] = [None] * len(waves)
    limit = BATCH_SECONDS * codec.sample_rate
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * len(waves[order[stop]]) <= limit:
            stop += 1
        batch = order[start:stop]
        for i, result in zip(batch, codec.encode([waves[i] for i in batch]), strict=True):
            codes[i] = result
        start = stop
    return [result for result in codes if result is not None]


class PartWriter:
    """Writes PREFIX.bin, .idx and .jsonl under temporary names; `finish` gives them their names, then writes .json.

    Use as a context manager: left without `finish`, it removes what it wrote.
    """

    def __init__(self, prefix: Path) -> None:
        from ttt_dist.data.indexed import new_builder  # megatron-core takes seconds to import

        self.prefix = prefix
        self.paths = {kind: prefix.with_name(f"{prefix.name}.{kind}") for kind in ("bin", "idx", "jsonl")}
        with writing(prefix):
            prefix.parent.mkdir(parents=True, exist_ok=True)
            self._builder = new_builder(temporary_name(self.paths["bin"]), multimodal=False)
            self._lines: IO[str] = temporary_name(self.paths["jsonl"]).open("w", encoding="utf-8")

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._builder.data_file, self._lines):
            with contextlib.suppress(OSError):  # a full disk: the write has raised it, and the file goes now
                file.close()
        for path in self.paths.values():
            temporary_name(path).unlink(missing_ok=True)

    def add(self, entry: Entry, codes: Codes) -> None:
        """Append one utterance."""
        import torch

        with writing(self.paths["bin"]):
            self._builder.add_item(torch.from_numpy(codes))
            self._builder.end_document()
        with writing(self.paths["jsonl"]):
            write_entry(self._lines, entry)

    def finish(self, meta: dict[str, Any]) -> None:
        """Name the files and write PREFIX.json: `meta` and the SHA-256 of each."""
        with writing(self.paths["idx"]):
            self._builder.finalize(str(temporary_name(self.paths["idx"])))
        with writing(self.paths["jsonl"]):
            self._lines.close()
        meta_path = self.prefix.with_name(f"{self.prefix.name}.json")
        meta_path.unlink(missing_ok=True)
        checksums = {}
        for path in self.paths.values():
            checksums[path.name] = sha256_file(temporary_name(path))
            with writing(path):
                commit(temporary_name(path), path)
        with atomic_write(meta_path) as file:
            json.dump({**meta, "files": checksums}, file, indent=2)
            file.write("\n")


def _windows(
    manifest: Path, reader: UtteranceReader, problems: Problems, progress: Progress, share: float = 1.0, seed: int = 0
) -> Iterator[list[tuple[Entry, Tensor]]]:
    """A random share of the manifest's entries with their audio, in stretches that memory holds; what cannot be read
    is reported."""
    generator = random.Random(seed)
    window: list[tuple[Entry, Tensor]] = []
    samples = 0
    for place, entry in read_manifest(manifest, problems):
        if generator.random() >= share:
            continue
        try:
            wave = reader.read(entry)
        except UserError as error:
            problems.report(f"{place}: {error}")
            continue
        window.append((entry, wave))
        samples += len(wave)
        if samples >= WINDOW_SECONDS * reader.sample_rate or len(window) >= WINDOW_UTTERANCES:
            yield window
            progress.advance(samples / reader.sample_rate)
            window, samples = [], 0
    if window:
        yield window
        progress.advance(samples / reader.sample_rate)


def total_seconds(manifest: Path) -> float | None:
    """The manifest's audio by its `duration` fields; None where one has none. Bad lines are left to the reading."""
    total = 0.0
    for _, line in numbered_lines(manifest, Problems(told=0)):
        try:
            total += json.loads(line)["duration"]
        except (ValueError, KeyError, TypeError):
            return None
    return total


def learn_codec(manifest: Path, settings: dict[str, Any], folder: Path, audio_root: Path | None) -> Codec:
    """The codec of `folder` where it was learnt from these inputs, else one learnt now and saved there.

    Raises UserError where the folder holds a codec of other inputs: codes depend on it.
    """
    from ttt_dist.audio import UtteranceReader, load_codec
    from ttt_dist.audio.melvq import MelVQ, MelVQSettings, stacks_to_learn_from

    learnt = {"manifest_sha256": sha256_file(manifest), **settings}
    note = folder.with_name(f"{folder.name}.learnt.json")  # beside it: copies of the codec must be equal
    if (folder / "codec.json").exists():
        if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == learnt:
            return load_codec(f"melvq:{folder}")
        raise UserError(f"{folder}: holds a codec learnt from something else; remove it or choose another --codec-out")
    melvq = MelVQSettings(**settings)
    reader = UtteranceReader(manifest.parent, melvq.sample_rate, audio_root=audio_root)
    total = total_seconds(manifest)
    needed = 2 * stacks_to_learn_from(melvq) / melvq.frame_rate  # twice: durations in manifests may be wrong
    share = min(1.0, needed / total) if total else 1.0
    with Progress(total and total * share, "learning the codec", "s audio") as progress:
        problems = Problems(told=3)
        codec = MelVQ.learn(_readable(manifest, reader, problems, progress, share, melvq.seed), melvq)
    codec.save(folder)
    with atomic_write(note) as file:
        json.dump(learnt, file, indent=2)
    say(f"{folder}: melvq codec, {codec.codebook_size} codes at {codec.frame_rate:g} Hz")
    return codec


def _readable(
    manifest: Path, reader: UtteranceReader, problems: Problems, progress: Progress, share: float, seed: int
) -> Iterator[Tensor]:
    """The audio of a random share of the manifest. What is bad is passed over: encoding counts it again.

    Raises UserError where nothing can be read, after the first reasons have been told.
    """
    readable = False
    for window in _windows(manifest, reader, problems, progress, share, seed):
        readable = True
        yield from (wave for _, wave in window)
    if not readable:
        raise UserError(f"{manifest}: no audio could be read to learn the codec from (see the warnings)")


def _keep_codec(codec: Codec, folder: Path) -> None:
    """Save the codec beside its codes; UserError where another one lies there."""
    from ttt_dist.audio import load_codec

    if not (folder / "codec.json").exists():
        codec.save(folder)
    elif load_codec(folder).hash != codec.hash:
        raise UserError(f"{folder}: holds another codec than the one asked for; remove it or choose another --out")


def _fingerprint(manifest: Path, codec: Codec) -> str:
    return hashlib.sha256(f"{FORMAT} {sha256_file(manifest)} {codec.hash}".encode()).hexdigest()


def _describe(codec: Codec) -> dict[str, Any]:
    return {name: getattr(codec, name) for name in ("name", "hash", "sample_rate", "frame_rate", "codebook_size")}


def _finished(prefix: Path, inputs: str) -> Counts | None:
    """The counts of a part that is complete; UserError where it was made from other inputs."""
    path = prefix.with_name(f"{prefix.name}.json")
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        made_from, files, counts = meta["inputs"], dict(meta["files"]), Counts(**meta["counts"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); remove it, and the part is made again") from error
    if made_from != inputs:
        raise UserError(f"{path}: was made from another manifest or codec; remove its folder or choose another --out")
    whole = all(
        (prefix.parent / name).is_file() and sha256_file(prefix.parent / name) == checksum
        for name, checksum in files.items()
    )
    return counts if whole else None


def _moved(entry: Entry, folder: Path, out: Path) -> Entry:
    """The entry with its paths as a manifest in `out` names them."""
    audio = entry["audio"]
    if isinstance(audio, str):
        return {**entry, "audio": relocate(folder / audio, out)}
    return {**entry, "audio": [relocate(folder / part, out) for part in audio]}


def run(args: argparse.Namespace) -> None:
    """Learn or load the codec, then encode."""
    from ttt_dist.audio import load_codec

    if args.train_codec:
        if args.codec != "melvq":
            args.fail(f"--train-codec: only the built-in codec can be learnt; write --codec melvq, not {args.codec}")
        settings = {name: getattr(args, name) for name in ("sample_rate", "frame_rate", "codebook_size", "seed")}
        codec = learn_codec(args.manifest, settings, args.codec_out or args.out / "codec", args.audio_root)
    else:
        codec = load_codec(args.codec)
    problems = Problems(args.max_errors)
    counts = encode_manifest(args.manifest, codec, args.out, problems, args.audio_root)
    say(f"{args.out}: {counts.utterances:,} utterances, {counts.seconds / 3600:.2f} hours, {counts.codes:,} codes")
    problems.settle(f"the other {counts.utterances:,} utterances were encoded")


def add_parser(subparsers: Any) -> None:
    """Add the command `encode`."""
    parser = subparsers.add_parser(
        "encode",
        help="turn the manifest's audio into codes (and learn the built-in codec)",
        description="Turn the audio of a manifest into discrete codes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--manifest", required=True, type=Path, help="manifest to encode")
    parser.add_argument("--codec", required=True, help="NAME:FOLDER of a codec, or melvq with --train-codec")
    parser.add_argument("--out", required=True, type=Path, help="folder for the codes")
    parser.add_argument("--audio-root", type=Path, help="folder that all audio lies in (default: the manifest's)")
    parser.add_argument("--max-errors", type=int, default=0, help="bad lines or files allowed (default 0)")
    learning = parser.add_argument_group("learning melvq")
    learning.add_argument("--train-codec", action="store_true", help="learn the codec from this manifest first")
    learning.add_argument("--codec-out", type=Path, help="where to save it (default: OUT/codec)")
    learning.add_argument("--sample-rate", type=int, default=16000, help="Hz (default 16000)")
    learning.add_argument("--frame-rate", type=float, default=25.0, help="codes per second (default 25)")
    learning.add_argument("--codebook-size", type=int, default=512, help="codes (default 512)")
    learning.add_argument("--seed", type=int, default=0, help="of the codebook (default 0)")
    parser.set_defaults(func=run, fail=parser.error)

"""`data_prep pack`: composed samples into packs of seq_len tokens, as one shard in Megatron's format.

Only indices are kept in memory: lengths of all samples, and one window of 100,000 samples at a time. The shard depends
on the samples and the seed, on nothing else.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.binpack import pack_lengths
from data_prep.samples import copy_beside, find_parts, report_errors
from ttt_dist.data.shards import Document, ShardReader, ShardWriter
from ttt_dist.errors import UserError
from ttt_dist.telemetry.console import Progress, say

EXAMPLES = """examples:
  python -m data_prep pack --samples samples/train --seq-len 4096 --out shards/train
  python -m data_prep pack --samples samples/train --seq-len 2048 --max-errors 100 --out shards/train
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the argument parser of data_prep."""
    parser = subparsers.add_parser(
        "pack",
        help="pack samples into a shard",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=Path, required=True, help="folder that data_prep compose wrote")
    parser.add_argument("--seq-len", type=int, required=True, help="tokens per pack")
    parser.add_argument("--seed", type=int, default=0, help="of the order of samples (default 0)")
    parser.add_argument(
        "--too-long",
        choices=("drop", "fail"),
        default="drop",
        help="samples longer than seq-len: leave them out, or write nothing (default drop)",
    )
    parser.add_argument("--max-errors", type=int, default=0, help="dropped samples that are put up with (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="prefix of the shard: PREFIX.bin, .idx, .json")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """The command. Raises UserError where more samples than --max-errors were too long; the shard is there even so."""
    if args.seq_len < 1:
        raise UserError(f"--seq-len {args.seq_len}: must be 1 or more")
    readers = [ShardReader(prefix) for prefix in find_parts(args.samples, "compose")]
    require_alike(readers)
    source = SampleSource(readers)
    dropped = source.longer_than(args.seq_len)
    report_errors([f"{args.samples}/{message}" for message in dropped])
    if dropped and args.too_long == "fail":
        raise UserError(f"{len(dropped)} samples exceed --seq-len {args.seq_len}: raise it, or use --too-long drop")

    copy_beside(args.samples, args.out.parent)
    meta = {
        "layout": readers[0].layout.to_dict(),
        "seq_len": args.seq_len,
        "seed": args.seed,
        "sources": [describe(reader) for reader in readers],
        "dropped": dropped,
    }
    with ShardWriter(args.out, meta) as writer, Progress(len(source.lengths), "packing", "sample") as progress:
        for packs in pack_lengths(source.lengths, args.seq_len, args.seed):
            for pack in packs:
                writer.add_document(source.gather(pack))
                progress.advance(len(pack))
    counts = writer.counts()
    packed = f"{counts['packs']:,} packs of {args.seq_len}, {counts['samples']:,} samples"
    say(f"{args.out}: {packed}, fill {counts['fill']:.2%}")
    if len(dropped) > args.max_errors:
        raise UserError(
            f"{args.out}: {len(dropped)} samples exceed --seq-len {args.seq_len} and were dropped (--max-errors "
            f"{args.max_errors}); the others are packed: raise --seq-len or --max-errors"
        )


def require_alike(readers: Sequence[ShardReader]) -> None:
    """Refuse parts of different layouts, and packs given for samples."""
    for reader in readers:
        if reader.seq_len is not None:
            raise UserError(f"{reader.prefix}: packs, not samples; give --samples the folder that compose wrote")
        readers[0].layout.require_same(reader.layout, f"{reader.prefix}.json")
        if _settings(reader) != _settings(readers[0]):
            raise UserError(f"{reader.prefix}: composed with other settings than {readers[0].prefix}; compose again")


def _settings(reader: ShardReader) -> Any:
    return reader.meta.get("made_from", {}).get("settings")


def describe(reader: ShardReader) -> dict[str, Any]:
    """Where samples came from, for the shard's JSON."""
    files = {name: record["sha256"] for name, record in reader.meta["files"].items()}
    made_from = reader.meta.get("made_from")
    return {"part": reader.prefix.name, "samples": len(reader), "made_from": made_from, "files": files}


class SampleSource:
    """The samples of all parts, under one running number."""

    def __init__(self, readers: Sequence[ShardReader]) -> None:
        self.readers = readers
        self.lengths = np.concatenate([reader.lengths() for reader in readers])
        self._starts = np.concatenate([[0], np.cumsum([len(reader) for reader in readers])])

    def _place(self, number: int) -> tuple[ShardReader, int]:
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.readers[part], int(number - self._starts[part])

    def longer_than(self, seq_len: int) -> list[str]:
        """A message for each sample that fits no pack."""
        messages = []
        for number in np.flatnonzero(self.lengths > seq_len).tolist():
            reader, document = self._place(number)
            place = f"{reader.prefix.name}.bin: document {document}"
            messages.append(f"{place}: {self.lengths[number]} tokens, longer than seq_len {seq_len}")
        return messages

    def gather(self, numbers: np.ndarray) -> Document:
        """Several samples as one document."""
        places = [self._place(number) for number in numbers.tolist()]
        documents = [reader.document(document) for reader, document in places]
        return Document(*(np.concatenate(arrays) for arrays in zip(*documents, strict=True)))

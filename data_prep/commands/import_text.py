"""`data_prep import`: samples that exist as text already: chats and documents, with or without `<|audio_N|>` codes in them.

The sources are JSONL, JSON or Parquet files of `messages` or `text` (the released format). JSONL is cut into parts of so
many lines, every other file is one part. The result is what compose writes, and is packed in the same way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.commands.compose import write_assets
from data_prep.commands.encode import PART_SIZE, keep_codec
from data_prep.packing.sample_parts import SampleWriter, finished_samples
from data_prep.released import read_released, released_sample
from data_prep.token_layout_args import add_layout_argument, open_template
from ttt_dist.jobs.parts import LineRange, cut_lines, part_prefix, require_no_others
from ttt_dist.jobs.runner import Outcome, PartJob, ProgressCallback, add_arguments, run_parts, task_shard_of, tell
from ttt_dist.manifest.problems import Collected, Problems
from ttt_dist.sequence.templates import TemplateSettings, load_template_settings
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.errors import UserError

EXAMPLES = """examples:
  # the authors' data, for their checkpoints
  python -m data_prep import --source data/*.parquet --tokenizer Qwen2.5/ --layout released \\
      --codec glm4voice:/models/glm-4-voice-tokenizer --out samples/released
  # text chats beside speech: the codec says how many audio codes the vocabulary has
  python -m data_prep import --source chats.jsonl --tokenizer Qwen2.5/ --codec codes/train/codec --out samples/chats
"""


@dataclass
class ImportJob(PartJob):
    """Stretches of JSONL files, and whole files of other kinds."""

    pieces: list[LineRange | Path]
    tokenizer: Path
    settings: TemplateSettings
    num_codes: int
    layout: str
    out: Path
    label = "importing"
    unit = "part"

    @property
    def num_parts(self) -> int:
        return len(self.pieces)

    def prefix(self, number: int) -> Path:
        return part_prefix(self.out, number)

    def amount(self, number: int) -> float:
        return 1

    def open(self) -> None:
        """Load the tokenizer and make the token layout. Raises UserError where they do not fit."""
        self.template = open_template(self.tokenizer, self.num_codes, self.layout, self.settings)
        write_assets(self.template, self.out, None)

    def finished(self, number: int) -> Outcome | None:
        return finished_samples(self.prefix(number), self._made_from(number))

    def _made_from(self, number: int) -> dict[str, Any]:
        piece = self.pieces[number]
        if isinstance(piece, LineRange):
            of_piece = {"source": piece.path.name, "first_line": piece.first, "lines_sha256": piece.sha256()}
        else:
            of_piece = {"source": piece.name, "first_line": 1, "lines_sha256": sha256_file(piece)}
        return {
            **of_piece,
            "layout": self.layout,
            "settings": self.settings.to_dict(),
            "tokenizer_hash": self.template.tokenizer.hash,
        }

    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        writer = SampleWriter(
            self.prefix(number), number, self.num_parts, self.template.layout, self._made_from(number)
        )
        with writer:
            for place, record in self._records(number, writer.problems):
                try:
                    writer.add(released_sample(self.template, record))
                except UserError as error:
                    writer.problems.append(f"{place}: {error}")
        tick(1)
        return writer.outcome()

    def _records(self, number: int, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        piece = self.pieces[number]
        if isinstance(piece, Path):
            yield from read_released(piece, Collected(problems))
            return
        for place, line in piece.lines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                problems.append(f"{place}: is not JSON in UTF-8 ({error}); write one JSON object per line")
                continue
            if isinstance(record, dict):
                yield place, record
            else:
                problems.append(f"{place}: is {type(record).__name__}, not an object; write messages or text")


def run(args: argparse.Namespace) -> None:
    """The command. Raises UserError where more records than --max-errors could not be used; the others are kept."""
    share = task_shard_of(args)
    pieces: list[LineRange | Path] = []
    for source in args.source:
        pieces += cut_lines(source, args.part_size) if source.suffix == ".jsonl" else [source]
    require_no_others(args.out, len(pieces))
    settings = load_template_settings(args.settings) if args.settings else TemplateSettings()
    num_codes = args.num_codes or _keep(args.codec, args.out)
    job = ImportJob(pieces, args.tokenizer, settings, num_codes, args.layout, args.out)
    problems = Problems(args.max_errors)
    totals = run_parts(job, share, problems)
    counts = {name: int(totals.counts.get(name, 0)) for name in ("samples", "tokens", "audio_tokens")}
    what = f"{counts['samples']:,} samples, {counts['tokens']:,} tokens, {counts['audio_tokens']:,} of them audio"
    tell(args.out, totals, what, share, job.num_parts)
    problems.raise_if_over_limit(f"the other {counts['samples']:,} samples are there")


def _keep(codec: str, out: Path) -> int:
    """Put the codec beside the samples; the size of its codebook."""
    from ttt_dist.audio import load_codec

    loaded = load_codec(codec)
    keep_codec(loaded, out / "codec")
    return loaded.codebook_size


def add_parser(subparsers: Any) -> None:
    """Add the command to the argument parser of data_prep."""
    parser = subparsers.add_parser(
        "import",
        help="make samples of chats and documents that are text already",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", type=Path, required=True, nargs="+", help=".jsonl, .json or .parquet files")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder with tokenizer.json, or a sentencepiece model"
    )
    codes = parser.add_mutually_exclusive_group(required=True)
    codes.add_argument(
        "--codec", help="codec whose codes the vocabulary has: NAME:FOLDER, or a folder that encode wrote"
    )
    codes.add_argument(
        "--num-codes", type=int, help="... or only their number; a model trained on it cannot be exported"
    )
    add_layout_argument(parser)
    parser.add_argument("--settings", type=Path, help="YAML with the chat template (chatml or tokenizer)")
    parser.add_argument("--part-size", type=int, default=PART_SIZE, help=f"lines of a part (default {PART_SIZE})")
    parser.add_argument("--max-errors", type=int, default=0, help="bad records that are put up with (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the samples")
    add_arguments(parser)
    parser.set_defaults(func=run)

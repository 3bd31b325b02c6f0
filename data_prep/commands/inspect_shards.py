"""`data_prep verify | stats | show`: is a shard sound, what is in it or in a manifest, and what does a pack look like."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.check import check
from data_prep.manifest_statistics import read_statistics
from data_prep.pack_printer import describe_pack
from ttt_dist.config.objective import Objective
from ttt_dist.data.shards import ShardReader
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.text_files import suffix_of
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.sample import TASKS, Sample, spans, task_of
from ttt_dist.sequence.text_tokenizer import load_tokenizer
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.sequence.visibility import dense_mask
from ttt_dist.telemetry.corpus_plots import draw_packs
from ttt_dist.telemetry.plots import draw_mask
from ttt_dist.util.atomic_files import atomic_write, writing
from ttt_dist.util.console import Progress, print_rank0
from ttt_dist.util.errors import UserError

EXAMPLES = {
    "verify": "examples:\n  python -m data_prep verify shards/train\n  python -m data_prep verify codes/train\n"
    "  python -m data_prep verify work/train.jsonl\n",
    "stats": "examples:\n  python -m data_prep stats shards/train\n"
    "  python -m data_prep stats work/train.jsonl --plot work/train.png\n",
    "show": "examples:\n  python -m data_prep show shards/train --pack 3\n"
    "  python -m data_prep show shards/train --mask mask.png --tokens 256\n",
}
WHAT = {
    "verify": "PREFIX of a shard or a set, a folder of codes or samples, a manifest, or a learnt codec or tokenizer",
    "stats": "PREFIX of PREFIX.json, or a manifest",
    "show": "PREFIX of PREFIX.json",
}


def add_parser(subparsers: Any) -> None:
    """Add the three commands to the argument parser of data_prep."""
    commands = {
        "verify": (run_verify, "check every byte of an output, and every token of shards"),
        "stats": (run_stats, "count what a shard or a manifest holds"),
        "show": (run_show, "print a pack readably and draw its mask"),
    }
    parsers = {}
    for name, (function, summary) in commands.items():
        parser = parsers[name] = subparsers.add_parser(
            name, help=summary, epilog=EXAMPLES[name], formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("prefix", type=Path, help=WHAT[name])
        parser.set_defaults(func=function)
    parsers["stats"].add_argument(
        "--plot", type=Path, metavar="PNG", help="draw lengths, rates, speakers, fill of packs"
    )
    parsers["stats"].add_argument(
        "--codes-per-second", type=float, metavar="RATE", help="of a manifest: tell how full packs will be, e.g. 12.5"
    )
    parsers["stats"].set_defaults(fail=parsers["stats"].error)
    show = parsers["show"]
    show.add_argument("--pack", type=int, default=0, help="which pack (default 0)")
    show.add_argument("--epoch", type=int, default=0, help="whose noise (default 0)")
    show.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    show.add_argument("--mask", type=Path, help="PNG file for the picture of who sees whom")
    show.add_argument("--tokens", type=int, help="draw only the first tokens of the pack")


def run_verify(args: argparse.Namespace) -> None:
    """The command. Prints a line per problem and raises UserError where there is one."""
    with Progress(None, "verifying", "pack") as progress:
        problems = check(args.prefix, progress.advance)
    for problem in problems:
        print_rank0(problem)
    if problems:
        raise UserError(f"{args.prefix}: {len(problems)} problem(s), listed above; write it again")
    print_rank0(f"{args.prefix}: sound, every checksum" + (" and every token" if progress.done else ""))


def run_stats(args: argparse.Namespace) -> None:
    """The command."""
    if suffix_of(args.prefix) == ".jsonl" and args.prefix.is_file():
        print_manifest_statistics(args.prefix, args.plot, args.codes_per_second)
        return
    if args.codes_per_second is not None:
        args.fail(f"--codes-per-second: {args.prefix} is no manifest (a file FILE.jsonl); what is packed has its fill")
    reader = ShardReader(args.prefix)
    contents = Contents.of(reader)
    for line in statistics(reader, contents):
        print_rank0(line)
    if args.plot:
        contents.draw(args.plot, f"{args.prefix.name}: {len(reader):,} packs")
        print_rank0(f"drawn in {args.plot}")


def print_manifest_statistics(manifest: Path, plot: Path | None, codes_per_second: float | None) -> None:
    """Print what a manifest holds, and draw it where `plot` is given. Raises UserError where lines of it are bad."""
    problems = Problems()
    found = read_statistics(manifest, problems, codes_per_second)
    print_rank0(f"{manifest}:")
    for line in found.describe():
        print_rank0(line)
    if plot:
        found.draw(plot, f"{manifest.name}: {found.lines:,} entries, {sum(found.seconds) / 3600:,.1f} hours")
        print_rank0(f"drawn in {plot}")
    problems.raise_if_over_limit("the good ones were counted")


@dataclass
class Contents:
    """Lengths in tokens of what a shard holds."""

    per_pack: list[int] = field(default_factory=list)
    """Samples of each pack."""
    fills: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    spans: list[int] = field(default_factory=list)
    kinds: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, reader: ShardReader) -> "Contents":
        """Read all packs."""
        found = cls()
        with Progress(len(reader), "reading", "pack") as progress:
            for index in range(len(reader)):
                samples = reader[index]
                found.per_pack.append(len(samples))
                found.fills.append(sum(map(len, samples)) / (reader.seq_len or sum(map(len, samples))))
                for sample in samples:
                    found.samples.append(len(sample))
                    found.spans += [end - start for start, end in spans(sample.ids, reader.layout)]
                    found.kinds.setdefault(kind_of(sample, reader.layout), []).append(len(sample))
                progress.advance()
        return found

    def draw(self, path: Path, title: str) -> None:
        """Draw them as a PNG."""
        tokens = {kind: float(sum(lengths)) for kind, lengths in self.kinds.items()}
        with atomic_write(path, "wb") as file:
            draw_packs(self.fills, self.samples, self.spans, tokens, file, title)


def statistics(reader: ShardReader, contents: Contents) -> Iterator[str]:
    """Counts of a shard as lines of text; lengths in tokens."""
    counts = reader.meta["counts"]
    unit = "documents of one sample" if reader.seq_len is None else f"packs of {reader.seq_len}"
    yield f"{reader.prefix}: {counts['packs']:,} {unit}" + (f", fill {counts['fill']:.2%}" if "fill" in counts else "")
    for key in ("samples", "tokens", "audio_tokens", "target_tokens"):
        share = f"  {counts[key] / counts['tokens']:6.1%} of tokens" if key.endswith("_tokens") else ""
        yield f"  {key.replace('_', ' '):14}{counts[key]:>14,}{share}"
    yield from _lengths_and_kinds(contents)
    layout = reader.layout
    text = f"tokenizer {layout.tokenizer} of {layout.num_text_tokens:,}"
    yield f"  layout: {text}, {layout.num_codes:,} codes, {layout.vocab_size:,} ids"
    if source := reader.meta.get("source"):
        what = ", ".join(source.get("templates") or ["imported"])
        yield f"  source: {source['samples']:,} samples of {source['parts']:,} part(s), {what}"
    too_long = reader.meta.get("too_long") or {"dropped": 0, "cut": 0}
    if too_long["dropped"] or too_long["cut"]:
        yield f"  too long: {too_long['dropped']:,} samples dropped, {too_long['cut']:,} cut (the first named in the JSON)"


def _lengths_and_kinds(contents: Contents) -> Iterator[str]:
    yield f"  {'':18}{'min':>7}{'10 %':>7}{'median':>8}{'90 %':>7}{'max':>7}{'mean':>9}"
    yield _distribution("samples per pack", contents.per_pack)
    yield _distribution("sample length", contents.samples)
    yield _distribution("span length", contents.spans)
    for kind, lengths in sorted(contents.kinds.items()):
        yield f"  {kind}: {len(lengths):,} samples, {sum(lengths):,} tokens"


def _distribution(name: str, values: list[int]) -> str:
    if not values:
        return f"  {name:18}{'none':>7}"
    low, tenth, median, ninetieth, high = np.percentile(values, [0, 10, 50, 90, 100])
    return f"  {name:18}{low:7.0f}{tenth:7.0f}{median:8.0f}{ninetieth:7.0f}{high:7.0f}{np.mean(values):9.1f}"


def kind_of(sample: Sample, layout: TokenLayout) -> str:
    """What goes in and what comes out, e.g. `speech to text+speech`."""
    given, wanted = TASKS[task_of(sample, layout)].split("_to_")
    return f"{given} to {'text+speech' if wanted == 'speech' else wanted}"


def run_show(args: argparse.Namespace) -> None:
    """The command. Raises UserError where the shard has no such pack."""
    reader = ShardReader(args.prefix)
    if not 0 <= args.pack < len(reader):
        raise UserError(f"--pack {args.pack}: {args.prefix} has packs 0..{len(reader) - 1}")
    pack = reader[args.pack]
    seq_len = reader.seq_len or sum(map(len, pack))
    batch = collate([pack], reader.layout, Objective(), args.seed, [args.epoch], seq_len)
    tokenizer = load_tokenizer(args.prefix.parent / "tokenizer")
    print_rank0(f"{args.prefix}: pack {args.pack} of {len(reader)}, noise of seed {args.seed}, epoch {args.epoch}")
    for line in describe_pack(pack, batch, reader.layout, tokenizer):
        print_rank0(line)
    if args.mask:
        draw_batch_mask(batch, args.mask, args.tokens, f"{args.prefix.name}, pack {args.pack}: who sees whom")
        print_rank0(f"mask drawn in {args.mask}")


def draw_batch_mask(batch: Batch, path: Path, tokens: int | None = None, title: str = "Who sees whom") -> None:
    """Draw the mask of a batch's first row as a PNG, of its first `tokens` only where given."""
    crop = slice(tokens)
    sample_ids, position_ids, span_ids = (
        ids[0, crop] for ids in (batch.sample_ids, batch.position_ids, batch.span_ids)
    )
    visible = dense_mask(sample_ids, position_ids, span_ids).numpy()
    weights = batch.ar_weights[0, crop].numpy(), batch.nar_weights[0, crop].numpy()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_mask(visible, sample_ids.numpy(), span_ids.numpy(), path, *weights, title=title)

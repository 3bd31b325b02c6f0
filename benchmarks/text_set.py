"""A plain text set of Megatron's: time to its first row and per row, against Megatron-Core's GPTDataset on the same files.

    python -m benchmarks.text_set [--documents 10000000] [--rows 500] [--out benchmarks/results/DATE-text-set.md]

The set is made for it: lengths drawn around 600 tokens, a real `.idx`, a `.bin` of zeros that takes no space. Each side opens it
in a process of its own: ours; GPTDataset without its cache, which it writes; GPTDataset with that cache. Start is from the
prefix to the object, imports apart (ours looks at the ids of 16 rows in it), and `memory` by how much that raised the process's
peak, mapped pages of the index included. A row is what each hands on before noise and masks: samples of separate documents here, one
line of ids there (its attention masks are switched off); of the same rows read
five times, the best: when their pages are in memory. The last line is one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result_file import head, result_path
from tests.megatron_files import indexed_dataset
from tests.structures import tiny_layout
from ttt_dist.data.indexed import HEADER, INT32, MAGIC, VERSION
from ttt_dist.data.text_set import TextSet
from ttt_dist.util.console import print_json, print_rank0, run_command

SEQ_LEN = 4096
SIDES = ("ours", "GPTDataset, no cache", "GPTDataset, cached")


def write_set(prefix: Path, num_documents: int) -> int:
    """A set of documents of 100 to 1,100 tokens; returns its tokens."""
    lengths = np.random.default_rng(0).integers(100, 1100, num_documents, dtype=np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    with open(f"{prefix}.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, INT32, num_documents, num_documents + 1))
        for values in (lengths, (ends - lengths) * 4, np.arange(num_documents + 1)):
            file.write(values.tobytes())
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(int(ends[-1]) * 4)
    return int(ends[-1])


class Tokenizer:
    """What GPTDataset asks of one."""

    vocab_size, eod, pad, unique_identifiers = 150_000, 149_999, -1, {"name": "none"}


def gpt_dataset(prefix: Path) -> Any:
    """Megatron-Core's reader, whose cache lies beside the set."""
    from megatron.core.datasets import gpt_dataset as module
    from megatron.core.datasets.utils import Split

    config = module.GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQ_LEN,
        split="1,0,0",
        path_to_cache=str(prefix.parent / "cache"),
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    low = module.GPTDataset.build_low_level_dataset(str(prefix), config)
    indices = np.arange(len(low), dtype=np.int32)
    return module.GPTDataset(low, str(prefix), indices, None, Split.train, config)


def measure(open_rows: Callable[[Path], Any], prefix: Path, num_rows: int) -> dict[str, float]:
    """Seconds to open, milliseconds of a row, megabytes that opening took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    rows = open_rows(prefix)
    start_s = time.perf_counter() - begin
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    chosen = np.random.default_rng(0).integers(0, len(rows), num_rows).tolist()
    passes = []
    for _ in range(5):
        begin = time.perf_counter()
        for index in chosen:
            rows[index]
        passes.append(1000 * (time.perf_counter() - begin) / num_rows)
    return {
        "start_s": start_s,
        "row_ms": min(passes),
        "memory_mb": taken / 1024,
        "num_rows": len(rows),
    }


def side(name: str, prefix: Path, num_rows: int) -> None:
    """The part of one process."""
    indexed_dataset()
    if name == "ours":
        figures = measure(lambda path: TextSet(path, tiny_layout(), SEQ_LEN), prefix, num_rows)
    else:
        import megatron.core.datasets.gpt_dataset  # noqa: F401  imports are not counted

        figures = measure(gpt_dataset, prefix, num_rows)
    print(json.dumps(figures))


def main() -> None:
    """Make the set, measure the sides in turn, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--out", type=result_path)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return side(args.side[0], Path(args.side[1]), args.rows)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "corpus_text_document"
        num_tokens = write_set(prefix, args.documents)
        found = {name: _in_process(name, prefix, args.rows) for name in SIDES}
    lines = [
        *head(f"A plain text set of {args.documents:,} documents", "benchmarks.text_set"),
        f"- {num_tokens:,} tokens of int32, rows of {SEQ_LEN:,}, {args.rows:,} of them at random; a process per line",
        "",
        "| | start, s | a row, ms | memory, MB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {one['start_s']:.2f} | {one['row_ms']:.3f} | {one['memory_mb']:.0f} |"
            for name, one in found.items()
        ),
    ]
    for line in lines:
        print_rank0(line)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf8")
    print_json({"documents": args.documents, "sides": found})


def _in_process(name: str, prefix: Path, num_rows: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.text_set", "--side", name, str(prefix), "--rows", str(num_rows)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    run_command(main)

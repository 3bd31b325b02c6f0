"""What a short command costs: CPU seconds (user and system) of its process from start to end.

`help`: train.py --help; `stats`: data_prep stats on a small shard; `dry_run`: train.py --dry-run with the demo's settings
on that shard. Speed is commands per CPU second.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

REPEAT = 2
NUM_TEXT, NUM_CODES, NUM_PACKS, SEQ_LEN = 400, 512, 40, 1024  # the demo's vocabulary and packs


def words_of(job: str, folder: Path) -> list[str]:
    """What follows `python`, for a working directory that is the tree under test."""
    prefix = folder / "shards" / "train"
    settings = [f"data.train={prefix}", f"data.valid={prefix}", f"run_dir={folder / 'run'}"]
    return {
        "help": ["ttt_dist/train.py", "--help"],
        "stats": ["-m", "data_prep", "stats", str(prefix)],
        "dry_run": ["ttt_dist/train.py", "--config", "recipes/demo.yaml", "--dry-run", *settings],
    }[job]


def cpu_seconds(words: list[str]) -> float:
    """User and system seconds of a command, which has to succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(folder: Path) -> None:
    """A shard of the demo's shape, and empty things in place of what lies beside one."""
    import numpy as np

    from ttt_dist.data.shards import ShardWriter
    from ttt_dist.sequence.sample import Sample, Segment
    from ttt_dist.sequence.tokens import AUDIO_SPECIALS, TEXT_SPECIALS, TokenLayout

    first_code, last_code = NUM_TEXT + len(TEXT_SPECIALS), NUM_TEXT + len(TEXT_SPECIALS) + NUM_CODES
    special_ids = {name: NUM_TEXT + i for i, name in enumerate(TEXT_SPECIALS)}
    special_ids |= {name: last_code + i for i, name in enumerate(AUDIO_SPECIALS)}
    size = last_code + len(AUDIO_SPECIALS)
    layout = TokenLayout(
        tokenizer="demo",
        tokenizer_hash="0" * 64,
        num_text_tokens=NUM_TEXT,
        special_ids=special_ids,
        first_code=first_code,
        num_codes=NUM_CODES,
        vocab_size=size,
        padded_vocab_size=-(-size // 128) * 128,
    )
    shards, random = folder / "shards", np.random.default_rng(0)
    for name in ("tokenizer", "codec"):
        (shards / name).mkdir(parents=True)
    (shards / "template.json").write_text("{}")
    make: Any = getattr(Sample, "of", Sample)  # its name in older builds
    with ShardWriter(shards / "train", {"layout": layout.to_dict(), "seq_len": SEQ_LEN}) as writer:
        for _ in range(NUM_PACKS):
            pack = []
            for length in random.integers(20, 60, SEQ_LEN // 80):
                text, codes = random.integers(0, NUM_TEXT, 12), first_code + random.integers(0, NUM_CODES, length)
                reply = [layout.begin_of_quad, *codes, layout.end_of_audio_span_last, layout.im_end]
                pack.append(make([Segment(text.astype(np.int32), False), Segment(np.array(reply, np.int32), True)]))
            writer.add(pack)


def main() -> None:
    """Prepare, or run the command a few times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", nargs="?", choices=["help", "stats", "dry_run"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    if args.prepare:
        prepare(args.folder)
        return
    words = words_of(args.job, args.folder)
    seconds = sum(cpu_seconds(words) for _ in range(REPEAT))
    print(json.dumps({"speed": REPEAT / seconds}))


if __name__ == "__main__":
    main()

"""Sets of many shards: opened, and packs of them read, per second: a workload of `benchmarks.against`.

    python -P benchmarks/workloads/shards.py open|read [--prepare] --folder INPUTS

`open`: a set of 2,000 shards is opened and its first pack read, as each process of a run does; the index that this build keeps
of a set is there, as `data_prep pack` writes it. `read`: packs of that set in random order, after one round. The shards are
links to one.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

SHARDS, PACKS, SEQ_LEN, SAMPLES, ROUNDS = 2_000, 200, 2_048, 8, 2_000


def prepare(folder: Path) -> None:
    """One shard, linked under many names, and the JSON of the set."""
    import os

    import numpy as np

    from ttt_dist.data import metadata
    from ttt_dist.data.shards import ShardReader, ShardWriter
    from ttt_dist.sequence.sample import Sample, Segment
    from ttt_dist.sequence.tokens import released

    layout = released()
    common = {"layout": layout.to_dict(), "seq_len": SEQ_LEN}
    length = SEQ_LEN // (2 * SAMPLES)
    half = np.arange(length, dtype=np.int32)
    pack = [Sample.of([Segment(half, False), Segment(half, True)])] * SAMPLES
    with ShardWriter(folder / "one", common) as writer:
        for _ in range(PACKS):
            writer.add(pack)
    one = metadata.read(folder / "one")
    names = [f"train-{number:05d}-of-{SHARDS:05d}" for number in range(SHARDS)]
    for name in names:
        for suffix in (".bin", ".idx"):
            os.link(folder / f"one{suffix}", folder / f"{name}{suffix}")
        files = {key.replace("one", name): value for key, value in one["files"].items()}
        (folder / f"{name}.json").write_text(metadata.render({**one, "files": files}))
    counts = {key: count * SHARDS for key, count in one["counts"].items() if key != "fill"}
    values = {"format": metadata.FORMAT, **common, "shards": names, "counts": counts, "files": {}, "beside": {}}
    (folder / "train.json").write_text(metadata.render(values))
    ShardReader(folder / "train")


def main() -> None:
    """Prepare, or open or read and tell how fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("open", "read"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    if args.prepare:
        prepare(args.folder)
        return
    import numpy as np

    from ttt_dist.data.shards import ShardReader

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # earlier builds keep all shards open
    start = time.perf_counter()
    reader = ShardReader(args.folder / "train")
    reader[0]
    speed = 1 / (time.perf_counter() - start)
    if args.what == "read":
        packs = np.random.default_rng(0).integers(len(reader), size=ROUNDS).tolist()
        for pack in packs:
            reader[pack]
        start = time.perf_counter()
        for pack in packs:
            reader[pack]
        speed = ROUNDS / (time.perf_counter() - start)
    sys.stdout.write(json.dumps({"speed": speed}) + "\n")


if __name__ == "__main__":
    main()

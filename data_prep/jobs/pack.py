"""Packing: windows of the one random order of all samples, each run of them a shard."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.assets import copy_assets
from data_prep.packing.binpack import WINDOW, num_windows, pack_window
from data_prep.packing.sample_source import NAMED, SampleSource
from ttt_dist.data import metadata
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.set_index import SUFFIX, SetIndex, without_lists
from ttt_dist.data.shards import SUFFIXES, ShardWriter
from ttt_dist.jobs.parts import describe_file, has_files, read_part, versions
from ttt_dist.jobs.runner import Outcome, PartJob, ProgressCallback
from ttt_dist.util.atomic_files import atomic_write, remove_leftovers
from ttt_dist.util.console import print_rank0, warn
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease


@dataclass(kw_only=True)
class PackJob(PartJob):
    """The shards of all samples: each is a run of windows of the one random order."""

    source: SampleSource
    samples: Path
    out: Path
    seq_len: int
    seed: int
    policy: str
    shard_samples: int
    too_long: dict[str, Any] = field(default_factory=dict)
    label = "packing"
    unit = "sample"

    def plan(self) -> None:
        """Read the lengths of all samples, and settle what happens to those that are too long."""
        self.previous = _files_of(self.out)
        self.source.read_lengths(with_suffix(self.out, ".lengths"))
        self.too_long = self.source.shorten(self.seq_len, cut=self.policy == "cut")
        self.made_from = {
            "samples": self.source.fingerprint(),
            "seq_len": self.seq_len,
            "seed": self.seed,
            "too_long": self.policy,
            "shard_samples": self.shard_samples,
            "window": self.window,
        }

    def refuse_too_long(self) -> None:
        """Name what is too long. Raises UserError where the policy is to fail on it."""
        for message in self.too_long["examples"]:
            warn(f"{self.samples}/{message}")
        number = self.too_long["dropped"] + self.too_long["cut"]
        if number > NAMED:
            warn(f"{number - NAMED:,} more samples are too long and only counted")
        if number and self.policy == "fail":
            raise UserError(
                f"{number} samples exceed --seq-len {self.seq_len}: raise it, or use --too-long drop or cut"
            )

    @property
    def window(self) -> int:
        """Samples of a window."""
        return min(WINDOW, self.shard_samples)

    @property
    def windows_per_shard(self) -> int:
        return max(1, self.shard_samples // self.window)

    @property
    def num_windows(self) -> int:
        return num_windows(len(self.source.lengths), self.window)

    @property
    def num_parts(self) -> int:
        return -(-self.num_windows // self.windows_per_shard)

    def prefix(self, number: int) -> Path:
        if self.num_parts == 1:
            return self.out
        return self.out.with_name(f"{self.out.name}-{number:05d}-of-{self.num_parts:05d}")

    def _windows(self, number: int) -> range:
        first = number * self.windows_per_shard
        return range(first, min(first + self.windows_per_shard, self.num_windows))

    def amount(self, number: int) -> float:
        windows = self._windows(number)
        return min(windows.stop * self.window, len(self.source.lengths)) - windows.start * self.window

    def open(self) -> None:
        folder = self.out.parent
        with lease(folder / "tokenizer", wait=True):
            remove_leftovers(*(folder / name for name in metadata.ASSETS))
            copy_assets(self.samples, self.out.parent)

    def finished(self, number: int) -> Outcome | None:
        prefix = self.prefix(number)
        part = read_part(prefix, "pack again")
        if part is None or part.get("made_from") != self.made_from or "shards" in part or not has_files(prefix, part):
            return None
        return Outcome(part["counts"])

    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        prefix = self.prefix(number)
        remove_leftovers(*(with_suffix(prefix, suffix) for suffix in SUFFIXES))
        with ShardWriter(prefix, self.meta(), may_be_empty=self.num_parts > 1) as writer:
            for window in self._windows(number):
                chosen, packs = pack_window(self.source.lengths, window, self.seq_len, self.seed, self.window)
                documents = self.source.load(chosen)
                for pack in packs:
                    writer.add_document(documents.join(pack))
                    tick(len(pack))
        return Outcome(writer.counts())

    def meta(self) -> dict[str, Any]:
        """What the JSON of every shard says beside its counts and checksums."""
        return {
            "layout": self.source.layout,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "made_from": self.made_from,
            "source": self.source.describe(),
            "too_long": self.too_long,
            "versions": versions(),
        }


def finish(job: PackJob) -> None:
    """Where all shards of a set are there, write PREFIX.json that lists them, and remove what an earlier run left.

    The task that finishes last does it; the others leave.
    """
    if job.num_parts > 1:
        shards = [(job.prefix(number), job.finished(number)) for number in range(job.num_parts)]
        missing = [prefix.name for prefix, outcome in shards if outcome is None]
        if missing:
            print_rank0(
                f"{job.out}: {len(missing)} of {len(shards)} shards are left to other tasks, {missing[0]} first"
            )
            return
        with lease(job.out, wait=True):
            remove_leftovers(with_suffix(job.out, ".json"), with_suffix(job.out, SUFFIX))
            _write_set(job, [prefix for prefix, _ in shards])
    for name in job.previous - _files_of(job.out):
        job.out.with_name(name).unlink(missing_ok=True)


def _write_set(job: PackJob, prefixes: list[Path]) -> None:
    """The JSON of a set, then its index. A shard that has no sample left is no member. Raises UserError where none has any."""
    counts: dict[str, float] = {}
    files: dict[str, Any] = {}

    def members() -> Iterator[tuple[Path, dict[str, Any]]]:
        """Prefix and JSON of each, counted on the way: of many shards, one JSON is held at a time."""
        for prefix in prefixes:
            meta = metadata.read(prefix)
            if meta["counts"]["packs"]:
                counts.update({name: counts.get(name, 0) + count for name, count in meta["counts"].items()})
                files[f"{prefix.name}.json"] = describe_file(with_suffix(prefix, ".json"))
                yield prefix, meta

    index = SetIndex.of_shards({}, members())
    if not files:
        raise UserError(f"{job.out}: nothing to write, all samples are too long; raise --seq-len")
    counts["fill"] = round(counts["tokens"] / (counts["packs"] * job.seq_len), 6)
    names = [name.removesuffix(".json") for name in files]
    meta = {"format": metadata.FORMAT, **job.meta(), "shards": names, "counts": counts, "files": files}
    text = metadata.render({**meta, "beside": metadata.asset_checksums(job.out.parent)})
    with atomic_write(with_suffix(job.out, ".json")) as file:
        file.write(text)
    replace(index, meta=without_lists(json.loads(text))).write(job.out)


def _files_of(prefix: Path) -> set[str]:
    """The names of the files that the shard or set at `prefix` consists of."""
    path = with_suffix(prefix, ".json")
    try:
        names = metadata.shard_names(prefix, metadata.read(prefix))
        of_set = [f"{prefix.name}{SUFFIX}"] if names != [prefix.name] else []
        return {path.name, *of_set, *(f"{name}{suffix}" for name in names for suffix in SUFFIXES)}
    except UserError:  # none, or one that nothing can be told of
        return set()

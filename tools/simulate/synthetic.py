"""Sets of shards and checkpoints as large as anybody's that take no room: all shards are one, tokens and weights are holes."""

import json
import math
import os
from pathlib import Path
from typing import Any

from ttt_dist.checkpoint.manager import METADATA, OPTIMIZER_BYTES, CheckpointMetadata, bytes_per_parameter, make_newest
from ttt_dist.checkpoint.manifest import FileChecksum, file_checksum, write_manifest
from ttt_dist.config.deepspeed import zero_stage
from ttt_dist.config.pipeline import Recipe
from ttt_dist.data import metadata
from ttt_dist.data.document import IS_TARGET, STARTS_SAMPLE
from ttt_dist.data.indexed import IndexedBuilder
from ttt_dist.data.metadata import with_suffix
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.atomic_files import sha256_file

SAMPLES_PER_PACK = 8
MAX_LINKS = 30_000  # names that a file may have: 65,000 on ext4


def make_set(folder: Path, layout: TokenLayout, num_shards: int, num_samples: int, seq_len: int) -> int:
    """Write the set `folder`/train with what belongs beside it, as an earlier version did: without its index. Packs in all."""
    _write_assets(folder)
    packs = max(1, num_samples // num_shards // SAMPLES_PER_PACK)
    samples = packs * SAMPLES_PER_PACK
    counts = {"packs": packs, "samples": samples, "tokens": packs * seq_len, "audio_tokens": 0}
    counts["target_tokens"] = counts["tokens"] // 2
    common = {"format": metadata.FORMAT, "layout": layout.to_dict(), "seq_len": seq_len}
    names = [f"train-{number:05d}-of-{num_shards:05d}" for number in range(num_shards)]
    of_set = {}
    for number, name in enumerate(names):
        template = folder / f"template-{number // MAX_LINKS}"
        if number % MAX_LINKS == 0:
            files = _write_template(template, packs, seq_len)
        for suffix in files:
            os.link(with_suffix(template, suffix), folder / f"{name}{suffix}")
        meta = {**common, "counts": counts, "files": {f"{name}{suffix}": file for suffix, file in files.items()}}
        text = metadata.render({**meta, "beside": {}})
        (folder / f"{name}.json").write_text(text)
        of_set[f"{name}.json"] = {"bytes": len(text), "sha256": "0" * 64}
    counts = {name: count * num_shards for name, count in counts.items()}
    meta = {**common, "shards": names, "counts": counts, "files": of_set, "beside": {}}
    with_suffix(folder / "train", ".json").write_text(metadata.render(meta))
    return int(counts["packs"])


def _write_assets(folder: Path) -> None:
    for name in ("tokenizer", "codec"):
        (folder / name).mkdir(parents=True)
    (folder / "template.json").write_text("{}")


def _write_template(prefix: Path, packs: int, seq_len: int) -> dict[str, dict[str, Any]]:
    """A shard of equal packs, each token of which is 0; size and checksum of its files by suffix."""
    builder = IndexedBuilder(with_suffix(prefix, ".bin"), multimodal=True)
    length = seq_len // (2 * SAMPLES_PER_PACK)
    lengths = [length, length] * SAMPLES_PER_PACK
    modes = [STARTS_SAMPLE, IS_TARGET] * SAMPLES_PER_PACK
    builder.add_documents(b"", lengths * packs, modes * packs, [len(lengths)] * packs)
    builder.data_file.truncate(4 * packs * seq_len)
    builder.finalize(with_suffix(prefix, ".idx"))
    paths = {suffix: with_suffix(prefix, suffix) for suffix in (".bin", ".idx")}
    return {
        suffix: {"bytes": path.stat().st_size, "sha256": sha256_file(path) if suffix == ".idx" else "0" * 64}
        for suffix, path in paths.items()
    }


def checkpoint_files(config: Recipe, layout: TokenLayout, world_size: int) -> dict[str, int]:
    """The files that DeepSpeed writes of a run with ZeRO and without other splits, and their bytes: a process's share of the
    optimizer's numbers, and the weights once (ZeRO 1, 2) or their shapes for each process (ZeRO 3)."""
    sizes = [math.prod(shape) for shape in parameter_shapes(config.model, layout.padded_vocab_size).values()]
    prefix = "bf16_" if config.train.precision == "bf16" else ""
    is_whole = zero_stage(config.deepspeed) < 3
    files = (
        {"mp_rank_00_model_states.pt": (bytes_per_parameter(config) - OPTIMIZER_BYTES) * sum(sizes)} if is_whole else {}
    )
    for rank in range(world_size):
        start = f"zero_pp_rank_{rank}_mp_rank_00"
        if not is_whole:
            files[f"{start}_model_states.pt"] = 200 * len(sizes)
        files[f"{prefix}{start}_optim_states.pt"] = OPTIMIZER_BYTES * sum(-(-size // world_size) for size in sizes)
    return files


def write_checkpoint(config: Recipe, layout: TokenLayout, world_size: int, step: int) -> dict[str, int]:
    """Write a checkpoint of holes into the run's folder and make it the newest: its files and their bytes."""
    final = Path(config.run_dir) / "checkpoints" / f"step-{step:08d}"
    aside = final.with_name(f".{final.name}.tmp")
    aside.mkdir(parents=True)
    files = checkpoint_files(config, layout, world_size)
    for name, size in files.items():
        with open(aside / name, "wb") as file:
            file.truncate(size)
    run = CheckpointMetadata.of_run(config, layout, world_size)
    about = {"step": step, "form": "native", "layout": layout.to_dict(), "config": run.config, "counters": {}}
    (aside / METADATA).write_text(
        json.dumps({**about, "world_size": world_size, "zero_stage": run.zero_stage}, indent=1)
    )
    sums = {name: FileChecksum(size, "0" * 64) for name, size in files.items()}
    write_manifest(aside, {**sums, METADATA: file_checksum(aside / METADATA)})
    os.replace(aside, final)
    make_newest(final, config.checkpoint)
    return files

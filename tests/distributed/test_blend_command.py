"""Blends by the real command, with a change of weights or a text set: one and two processes read the same, and so does a resumed run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.distributed.cases import ROOT
from tests.distributed.random_packs import SEQ_LEN, random_pack
from tests.distributed.small_run import records, train_on_two
from tests.distributed.test_train_command import alone
from tests.megatron_files import indexed_dataset
from ttt_dist.data.shards import ShardWriter
from ttt_dist.sequence.text_tokenizer import train_sentencepiece
from ttt_dist.sequence.tokens import extend

STEPS, SAVED, CHANGE = 6, 2, 3
FIGURES = ("step", "loss", "ar_loss", "nar_loss", "ar_tokens", "nar_tokens", "grad_norm", "lr")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, each in a folder of its own, and a config that changes over from one to the other after CHANGE steps."""
    folder = tmp_path_factory.mktemp("blend")
    tokenizer = train_sentencepiece(
        ["one two three four five", "six seven eight"] * 20, folder / "tokenizer", vocab_size=300
    )
    layout = extend(tokenizer, 32)
    for seed, (name, num_packs) in enumerate({"long": 20, "short": 5}.items()):
        shutil.copytree(folder / "tokenizer", folder / name / "tokenizer")
        (folder / name / "codec").mkdir()
        (folder / name / "codec" / "codec.json").write_text("{}")
        (folder / name / "template.json").write_text(json.dumps({"text_ratio": seed + 1}))
        random = np.random.default_rng(seed)
        with ShardWriter(folder / name / "train", {"layout": layout.to_dict(), "seq_len": SEQ_LEN}) as writer:
            for _ in range(num_packs):
                writer.add(random_pack(random, layout))
    settings = {
        "run_dir": str(folder / "one"),
        "deepspeed": str(ROOT / "ds_configs/zero1.json"),
        "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_hidden_size": 64},
        "data": {
            "blend": {
                "short": {"shard": str(folder / "short/train"), "weight": 0.1},
                "long": {"shard": str(folder / "long/train"), "weight": 0.9},
            },
            "stages": [{"from_step": CHANGE, "weights": {"short": 3, "long": 1}}],
        },
        "train": {"steps": STEPS, "global_batch": 8, "micro_batch": 4, "warmup": 2, "lr": 3e-3},
        "checkpoint": {"save_every": SAVED, "keep_last": 0},
        "telemetry": {"log_every": 1, "noise_scale_every": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    """The run folder after a whole run as one process."""
    done = alone(work)
    assert done.returncode == 0, done.stdout + done.stderr
    # Of 24 slots each: 21 (0.9 x 24, rounded down) and 3, then 6 and 18; 27 of 20 packs and 21 of 5.
    assert "steps 3 to 6: long 25.0% (to epoch 1.35), short 75.0% (to epoch 4.20)" in done.stdout
    return work / "one"


def figures(run: Path) -> list[dict[str, float]]:
    """Those of a step, and of its sources and tasks, which hang on the layout no more than these."""
    return [
        {key: value for key, value in record.items() if key in FIGURES or key.startswith(("source_", "task_"))}
        for record in records(run)
    ]


def noise_scales(run: Path) -> list[tuple[float | None, float | None]]:
    return [(record.get("noise_scale"), record.get("noise_scale_packs")) for record in records(run)]


def test_the_losses_of_the_sources_weighted_by_their_shares_are_the_loss(run: Path) -> None:
    for record in records(run):
        for kind in ("source", "task"):
            parts = [key.removesuffix("_share") for key in record if key.startswith(kind) and key.endswith("_share")]
            assert len(parts) == 2 if kind == "source" else len(parts) > 2
            for term in ("ar_loss", "nar_loss"):
                found = sum(record[f"{part}_share"] * record.get(f"{part}_{term}", 0.0) for part in parts)
                assert found == pytest.approx(record[term], rel=1e-6)
        assert record["source_long_ar_loss"] != record["source_short_ar_loss"]


def test_two_processes_read_the_same_blend(run: Path, work: Path) -> None:
    train_on_two(work / "config.yaml", f"run_dir={work / 'two'}", "train.micro_batch=2", "checkpoint.save_every=0")
    one, two = figures(run), figures(work / "two")
    assert [record["step"] for record in one] == list(range(1, STEPS + 1))
    for mine, other in zip(one, two, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


def test_resume_in_the_middle_is_exact(run: Path, work: Path) -> None:
    """From a step before the change of weights; a stage after the last step is a change of nothing."""
    resumed = work / "resumed"
    shutil.copytree(run, resumed)
    for newer in sorted((resumed / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(newer)
    stage = (
        f"data.stages=[{{from_step: {CHANGE}, weights: {{short: 6, long: 2}}}}, {{from_step: 9, weights: {{long: 1}}}}]"
    )
    done = alone(work, f"run_dir={resumed}", stage, "checkpoint.save_every=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not as it would have" not in done.stderr
    assert f"from step {SAVED}" in done.stdout
    assert figures(resumed) == figures(run)
    assert noise_scales(resumed) == noise_scales(run) and any(scale for scale, _ in noise_scales(run))
    weights = "export/model.safetensors"
    assert (resumed / weights).read_bytes() == (run / weights).read_bytes()


def test_the_export_has_the_template_of_the_first_source(run: Path) -> None:
    assert json.loads((run / "export" / "template.json").read_text()) == {"text_ratio": 1}


def test_a_text_set_is_read_alike_by_one_and_two_processes_and_a_resumed_run(work: Path) -> None:
    """Megatron's own writer made it; of 48 packs read, 16 are its rows."""
    builder = indexed_dataset().IndexedDatasetBuilder(str(work / "corpus_text_document.bin"), dtype=np.uint16)
    random = np.random.default_rng(0)
    for length in random.integers(1, 3 * SEQ_LEN, 20):
        builder.add_document(random.integers(0, 200, length), [length])
    builder.finalize(str(work / "corpus_text_document.idx"))
    source = {"shard": f"{work}/corpus_text_document", "weight": 0.5, "tokenizer": f"{work}/tokenizer"}
    settings = [f"data.blend.text.{key}={value}" for key, value in source.items()]
    done = alone(work, *settings, f"run_dir={work}/text-one", "data.stages=[]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "which tokenizer" not in done.stderr
    one = figures(work / "text-one")
    shutil.copytree(work / "text-one", work / "text-two")
    for newer in sorted((work / "text-two" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(newer)
    train_on_two(work / "config.yaml", *settings, f"run_dir={work}/text-two", "data.stages=[]", "train.micro_batch=2")
    two = figures(work / "text-two")
    assert [record["step"] for record in two] == list(range(1, STEPS + 1))
    for mine, other in zip(one, two, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)

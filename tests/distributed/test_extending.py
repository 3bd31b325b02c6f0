"""The examples of docs/extending.md, as they stand there: written into a package of one's own and used."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
from transformers import SeedOssConfig

from data_prep.__main__ import main as data_prep
from tests.distributed.launch import run_distributed
from tests.distributed.random_packs import LAYOUT, SEQ_LEN, global_batches
from tests.distributed.small_run import ROOT, STEPS, TRAIN, execute, make_run
from tests.evaluated import FEW, evaluate_here, make_workplace, read_lines
from tests.tiny_model import RATE, noise
from ttt_dist.audio import load_codec
from ttt_dist.config.objective import Objective
from ttt_dist.config.section import NonNegativeFloat
from ttt_dist.model.attention.plan import attend, attention_plan
from ttt_dist.model.cross_entropy import VocabularySlice
from ttt_dist.model.hf.families import NO_BIAS, Family, Fixed
from ttt_dist.model.loss import linear_cross_entropy, loss_rows
from ttt_dist.sequence import loss_terms
from ttt_dist.sequence.batch import collate
from ttt_dist.sequence.loss_terms import LossTerm
from ttt_dist.sequence.noise_schedule import SCHEDULES, noise_schedule, require_noise_schedules

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf8")
FILES = dict(re.findall(r"^`(lab/\w+\.py)`:\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
"""The modules of the package, by path."""


def block_after(words: str) -> str:
    """The first Python that stands behind some words of the page."""
    behind = PAGE[PAGE.index(words) :]
    return behind[behind.index("```python\n") + 10 : behind.index("\n```", behind.index("```python\n"))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the package lies in, on the path."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "lab").mkdir()
    for name, source in FILES.items():
        (folder / name).write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
        del sys.modules[name]


def test_the_page_has_an_example_of_each() -> None:
    wanted = {"codec", "reader", "schedules", "evaluation", "sharding", "hooks", "patience"}
    assert set(FILES) == {f"lab/{name}.py" for name in wanted}
    assert all(len(source.splitlines()) <= 32 for source in FILES.values())


def test_a_reader_and_a_codec(lab: Path, tmp_path: Path) -> None:
    for number, wave in enumerate(noise(seconds=0.4, count=2)):
        (tmp_path / "corpus" / "train").mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "corpus" / "train" / f"{number}.wav", wave.numpy(), RATE)
        (tmp_path / "corpus" / "train" / f"{number}.lab").write_text("one two\n")
    manifest, codes = tmp_path / "train.jsonl", tmp_path / "codes"
    reader = ["--reader", "lab.reader:read_lab", "--split", "train", "--source", str(tmp_path / "corpus")]
    data_prep(["manifest", *reader, "--out", str(manifest)])
    assert [entry["text"] for entry in read_lines(manifest)] == ["one two", "one two"]
    data_prep(["encode", "--manifest", str(manifest), "--codec", "lab.codec:Loudness", "--out", str(codes)])
    codec = load_codec(codes / "codec")
    together = codec.encode(noise(0.4, 2))
    assert all(
        np.array_equal(codec.encode([wave])[0], both) for wave, both in zip(noise(0.4, 2), together, strict=True)
    )


def test_an_evaluation_task(lab: Path, tmp_path: Path) -> None:
    workplace = make_workplace(tmp_path / "work")
    where = ["--model", workplace / "model", "--data", workplace / "test.jsonl", "--out", tmp_path / "out"]
    evaluate_here([*map(str, where), "--task", "lab.evaluation:LENGTH", *FEW])
    records = read_lines(tmp_path / "out" / "length.jsonl")
    summary = json.loads((tmp_path / "out" / "length_summary.json").read_text())
    assert summary["characters"] == pytest.approx(sum(record["got"] for record in records) / len(records))


def test_a_masking_schedule(lab: Path) -> None:
    require_noise_schedules(Objective(noise_schedule="lab.schedules:SQUARE"))
    square = noise_schedule("lab.schedules:SQUARE")
    assert square.masked_share(0.5) == 0.25 and square not in SCHEDULES.values()


def test_a_loss_term(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"NonNegativeFloat": NonNegativeFloat, "Objective": Objective, "dataclass": dataclass}
    field = block_after("`ttt_dist/config/objective.py`: the setting").replace("\n", "\n    ")
    exec(f"@dataclass\nclass WithFocal(Objective):\n    {field}", settings)
    rows = eval("{" + block_after("`ttt_dist/sequence/loss_terms.py`, a row") + "}", {"LossTerm": LossTerm})
    monkeypatch.setitem(loss_terms.MORE_TERMS, "focal", rows["focal"])
    [packs] = global_batches(1, 8)
    batch = collate(packs, LAYOUT, settings["WithFocal"](focal=0.5, p_mix=0.0), 1, [0] * 8, SEQ_LEN)
    random = torch.Generator().manual_seed(0)
    targets = loss_rows(batch, slice(None))
    hidden = torch.randn(len(targets.rows), 6, generator=random, dtype=torch.float64)
    weight = torch.randn(LAYOUT.padded_vocab_size, 6, generator=random, dtype=torch.float64)
    sums = linear_cross_entropy(hidden, weight, targets, VocabularySlice(0, LAYOUT.vocab_size))
    logits = hidden @ weight[: LAYOUT.vocab_size].T
    nats = torch.nn.functional.cross_entropy(logits, targets.targets, reduction="none")
    focal = ((1 - (-nats).exp()) ** 2 * nats * targets.weights)[targets.kinds["nar"]].sum()
    assert focal > 0
    torch.testing.assert_close(sums.terms["focal"], 0.5 * focal)
    torch.testing.assert_close(sums.loss, sum(sums.terms.values()))


def test_a_model_family_says_what_transformers_takes_missing_keys_for() -> None:
    names = {"Family": Family, "Fixed": Fixed, "NO_BIAS": NO_BIAS}
    row = eval("{" + block_after("`ttt_dist/model/hf/families.py`, a row") + "}", names)["seed_oss"]
    theirs = SeedOssConfig().to_dict()
    assert {key: theirs[key] for key in row.defaults} == row.defaults
    assert row.fixed.keys() <= theirs.keys()


def gathered_attention() -> list[np.ndarray]:
    """This process's rows of attention and of the gradient of q, by the page's sharding, and the same of all at once."""
    names: dict[str, object] = {}
    exec(FILES["lab/sharding.py"], names)
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    sharding = names["GatheredAttention"](groups[dist.get_rank() // 2])  # type: ignore[operator]
    random = torch.Generator().manual_seed(0)
    whole = [torch.randn(12, heads, 8, generator=random, requires_grad=True) for heads in (4, 2, 2)]
    plan = attention_plan(torch.tensor([[1] * 5 + [2] * 7]), torch.tensor([[0, 0, 1, 1, 1] + [0] * 7]))
    own = sharding.local_tokens(12)
    parts = [part.detach()[own].requires_grad_() for part in whole]
    mine, theirs = sharding.attend(*parts, plan), attend(*whole, plan)
    mine.square().sum().backward()
    theirs.square().sum().backward()
    pairs = ((mine, theirs[own]), *((part.grad, all_.grad[own]) for part, all_ in zip(parts, whole, strict=True)))
    return [tensor.detach().numpy() for pair in pairs for tensor in pair]


def test_a_sharding_of_tokens_gives_what_one_process_does() -> None:
    for found in run_distributed([(gathered_attention, ())], 4)[0]:
        for mine, theirs in zip(found[::2], found[1::2], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_callback(lab: Path, tmp_path: Path) -> None:
    config = make_run(tmp_path)
    entry = re.search(r"^  - (\{lab\.hooks:.*\})$", PAGE, re.MULTILINE)
    assert entry is not None
    done = execute(
        [sys.executable, TRAIN, "--config", str(config), f"callbacks=[{entry[1]}]"], PYTHONPATH=f"{ROOT}:{lab}"
    )
    assert done.returncode == 0, done.stderr
    beats = [line.split() for line in (tmp_path / "run" / "heartbeat").read_text().splitlines()]
    assert [int(step) for _, step, _ in beats] == sorted({*range(2, STEPS + 1, 2), STEPS})


def test_a_callback_ends_the_training_and_is_kept(lab: Path, tmp_path: Path) -> None:
    """A rate of nothing: the held-out loss stays what it was at the first evaluation."""
    config = make_run(tmp_path, train={"lr": 1e-30, "eval_every": 1})
    found = re.search(r"'(callbacks=\[\{lab\.patience:.*?\}\])'", PAGE)
    assert found is not None
    words = found[1].replace("evaluations: 5", "evaluations: 2")
    done = execute([sys.executable, TRAIN, "--config", str(config), words], PYTHONPATH=f"{ROOT}:{lab}")
    assert done.returncode == 0, done.stderr
    last = tmp_path / "run" / "checkpoints" / "step-00000003"
    (kept,) = json.loads((last / "run.json").read_text())["counters"]["callbacks"]
    assert kept["name"] == "lab.patience:Patience" and kept["state"]["since"] == 2
    assert (tmp_path / "run" / "export" / "config.json").is_file()
    again = execute([sys.executable, TRAIN, "--config", str(config), words], PYTHONPATH=f"{ROOT}:{lab}")
    assert again.returncode == 0 and "no better held-out loss in 3 evaluations" in again.stdout

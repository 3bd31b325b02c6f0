"""The comparison of objectives: what each variant changes, what is not done twice, and the figures, worked by hand."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ttt_dist.config.checks import check_run
from ttt_dist.config.loader import load_config
from ttt_dist.config.objective import Objective
from ttt_dist.tools import compare_objectives as tool
from ttt_dist.tools import pipeline
from ttt_dist.tools.decoding_sweep import ways
from ttt_dist.util.errors import UserError

ONE_WAY: dict = {"evaluation.decode.audio_mode": "diffusion"}
OF_THE_PAPER: dict = {"objective.stages": [], "objective.p_mix": 0.3, "objective.p_trunc": 0.5, **ONE_WAY}
OF_THE_PAPER |= {"objective.normalisation": "sample", "objective.ar_weight": 1.0}
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "compare.yaml"


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("ttt", {}),
        (
            "paper",
            {"objective.preset": "paper", "objective.masking": "bernoulli", "objective.audio_ar": 0.0, **OF_THE_PAPER},
        ),
        ("ar", {"objective.kind": "ar", **OF_THE_PAPER}),
        (
            "nar",
            {"objective.kind": "nar", "evaluation.decode.block": 40, "evaluation.decode.steps": 40, **OF_THE_PAPER},
        ),
        ("no_banom", {"objective.p_mix": 0}),
        ("no_ppm", {"objective.p_prefix": 0}),
        ("sst", {"objective.p_trunc": 0.5}),
    ],
)
def test_a_variant_changes_its_own_settings_alone(name: str, changed: dict) -> None:
    plain = tool.run_settings(load_config(RECIPE))
    theirs = tool.run_settings(load_config(RECIPE, tool.overrides_of(RECIPE, [], name)))
    assert {key: theirs[key] for key in plain if theirs[key] != plain[key]} == changed
    assert plain["objective.p_mix"] > 0 == plain["objective.p_trunc"] and plain["objective.p_prefix"] == 0.3


def test_the_paper_s_objective_is_so_whatever_the_recipe_s_is() -> None:
    own = ["p_mix=0.1", "p_prefix=0.1", "p_trunc=0.1", "p_draft=0.1", "normalisation=token", "ar_weight=2"]
    own += ["nar_weight=2", "noise_schedule=cosine", "z_loss=0.1", "masking=exact_count", "audio_ar=0.5"]
    own = [f"objective.{setting}" for setting in own]
    found = load_config(RECIPE, [*own, *tool.VARIANTS["paper"].overrides]).objective
    assert found == Objective(preset="paper", masking="bernoulli", audio_ar=0.0)


def test_the_docs_name_every_variant() -> None:
    page = (RECIPE.parents[1] / "docs" / "comparison.md").read_text()
    named = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and "OUT/" not in line]
    assert named == list(tool.VARIANTS)


@pytest.mark.parametrize(("mode", "more"), [("diffusion", []), ("verified", []), ("tidar", ["objective.stages=[]"])])
def test_a_recipe_may_decode_in_any_way(mode: str, more: list[str]) -> None:
    """Variants that would not learn it are decoded as they can be, and the sweep takes each in all of its ways."""
    recipe = [f"evaluation.decode.audio_mode={mode}", "data.train=shards/train", *more]
    found = {}
    for name in tool.VARIANTS:
        config = load_config(RECIPE, tool.overrides_of(RECIPE, recipe, name))
        check_run(config, 1)
        trained = config.objective.at(config.train.steps - 1)
        found[name] = {(way, how.audio_mode) for way, how in ways(trained, config.evaluation.decode)}
    denoised = {("denoised", "diffusion")}
    assert found["ttt"] == {*denoised, ("left to right", "ar"), ("verified", "verified"), ("tidar", "tidar")}
    # Without BANOM left to right is learnt in drafts alone: without them the variant denoises.
    assert found["no_banom"] == (denoised if more else found["ttt"])
    spoken = load_config(RECIPE, tool.overrides_of(RECIPE, recipe, "no_banom")).evaluation.decode.audio_mode
    assert spoken == ("diffusion" if more else mode)
    assert found["paper"] == denoised
    assert found["ar"] == {("left to right", "diffusion")}


def test_a_variant_that_cannot_be_decoded_as_the_recipe_says_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, asked = Commands(), ("evaluation.decode.ends=causal", "evaluation.decode.audio_mode=diffusion")
    with pytest.raises(UserError, match=r"^variant paper: ends \(--ends\) is causal.*or leave it out of --only$"):
        start(monkeypatch, tmp_path / "out", commands, *asked)
    with pytest.raises(UserError, match=r"^train.tokens=9: .*set train.steps"):
        start(monkeypatch, tmp_path / "out", commands, "train.tokens=9")
    assert not commands.prepared and not (tmp_path / "out").exists()


def test_long_blocks_are_swept_as_far_as_each_way_takes_them() -> None:
    decode = load_config(
        RECIPE, ["evaluation.decode.block=200", "evaluation.decode.audio_mode=diffusion"]
    ).evaluation.decode
    for _, settings in ways(Objective(), decode):
        settings.require_mode("ttt", learns_audio_ar=True)


def test_figures_by_hand() -> None:
    found = {"ttt": {1: {"wer": 0.1, "tts_wer": 0.5}, 2: {"wer": 0.3, "tts_wer": 0.5}, 3: {"wer": 0.2, "tts_wer": 0.8}}}
    rows = tool.compare({**found, "ar": {1: {"wer": 0.25, "tts_wer": 1.5}}, "nar": {}})
    assert list(rows) == ["ttt", "ar"]
    assert rows["ttt"]["seeds"] == [1, 2, 3]
    assert (rows["ttt"]["wer"], rows["ttt"]["wer_sd"]) == pytest.approx((0.2, 0.1))
    assert (rows["ttt"]["tts_wer"], rows["ttt"]["tts_wer_sd"]) == pytest.approx((0.6, 0.03**0.5))
    assert rows["ttt"]["wer_by_seed"] == [0.1, 0.3, 0.2]
    assert (rows["ar"]["wer"], rows["ar"]["wer_sd"]) == (0.25, None)
    _, cells = tool.table(rows)
    assert cells[0] == ["TtT", "3", "20.0 ± 10.0", "60.0 ± 17.3", "12.53", "13.65"]
    assert cells[1] == ["AR baseline", "1", "25.0", "150.0", "54.94", "72.01"]


def test_own_speech_stands_beside_its_ceiling_by_each_judge() -> None:
    own = {"wer": 0.1, "tts_wer": 0.5, "recordings_model": 0.1, "ceiling_model": 0.2}
    rows = tool.compare({"ttt": {1: own | {"tts_wer_whisper": 0.8, "recordings_whisper": 0.3, "ceiling_whisper": 0.4}}})
    header, cells = tool.table(rows)
    assert header[3:5] == ["own speech by the model itself, WER %", "own speech by whisper, WER %"]
    assert cells[0][3:5] == ["50.0 (10.0 / 20.0)", "80.0 (30.0 / 40.0)"]


class Commands:
    """Stands for the commands that a comparison starts, which take minutes; `fails_at` is the training that dies, `silent` the
    forwards a block of which no speech comes, or none but what openers bring (`told` 0).
    """

    def __init__(self, fails_at: int | None = None, silent: str = "", told: float | None = None) -> None:
        self.fails_at = fails_at
        self.silent, self.told = silent, told
        self.prepared = 0
        self.trained: list[str] = []
        self.settings: list[list[str]] = []

    def __call__(self, arguments: Sequence[object]) -> None:
        words = [str(argument) for argument in arguments]
        self.prepared += words[:3] == ["-m", "data_prep", "manifest"]
        if "ttt_dist.train" in words:
            self.settings.append([word for word in words if word.startswith(("objective.", "seed="))])
            self.train(Path(next(word for word in words if word.startswith("run_dir=")).removeprefix("run_dir=")))
        elif "ttt_dist.evaluate" in words:
            results = Path(words[words.index("--out") + 1])
            wer = len(results.parent.name) / 100
            results.mkdir(exist_ok=True, parents=True)
            judges = {"model": {"speech": {"value": wer}, "codec": {"value": 0.03}}}
            steps, mode = (words[words.index(flag) + 1] for flag in ("--steps", "--audio-mode"))
            forwards = {"diffusion": int(steps), "ar": 13.0, "verified": 1 + int(steps), "tidar": 1.5}[mode]
            summary = {
                "wer": wer,
                "judges": judges,
                "forwards_per_second": self.told if steps == self.silent else forwards,
            }
            (results / f"{words[words.index('--task') + 1]}_summary.json").write_text(json.dumps(summary))

    def train(self, folder: Path) -> None:
        if len(self.trained) == self.fails_at:
            raise UserError("stopped")
        self.trained.append(folder.name)
        folder.mkdir(exist_ok=True)
        records = [
            {"step": 10, "loss": 2.0},
            {"step": 10, "eval_loss": 1.0, "eval_ar_loss": 0.25, "eval_nar_loss": 0.75},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def start(monkeypatch: pytest.MonkeyPatch, out: Path, commands: Commands, *more: str) -> None:
    arguments = ["--config", str(RECIPE), "--source", str(out.parent), "--out", str(out), "--processes", "2", *more]
    monkeypatch.setattr(sys, "argv", ["compare_objectives.py", *arguments])
    monkeypatch.setattr(pipeline, "run", commands)
    tool.main()


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, wanted = tmp_path / "out", ("--seeds", "2", "--only", "ttt,sst")
    first, second, third = Commands(fails_at=3), Commands(), Commands()
    with pytest.raises(UserError, match="stopped"):
        start(monkeypatch, out, first, *wanted)
    assert (first.prepared, first.trained) == (1, ["ttt-1234", "sst-1234", "ttt-1235"])
    assert first.settings[:2] == [["seed=1234"], ["objective.p_trunc=0.5", "seed=1234"]]
    start(monkeypatch, out, second, *wanted)
    assert (second.prepared, second.trained) == (0, ["sst-1235"])
    capsys.readouterr()
    start(monkeypatch, out, third, *wanted)
    assert third.trained == []
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["ttt"]["wer"], last["sst"]["tts_wer"]) == (0.08, 0.08)
    assert json.loads((out / "comparison.json").read_text())["sst"]["seeds"] == [1234, 1235]
    assert "| TtT with SST | 2 | 8.0 ± 0.0 | 8.0 ± 0.0 (3.0) |  |  |" in (out / "comparison.md").read_text()
    page = (out / "comparison.html").read_text()
    assert page.count("<svg") == 1 and "Learning curves" in page


@pytest.mark.slow
def test_own_speech_by_forwards_stands_in_table_picture_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, wanted = tmp_path / "out", ("--seeds", "1", "--only", "ttt,paper,ar,nar", "objective.stages=[]")
    start(monkeypatch, out, Commands(), *wanted)
    assert not (out / "comparison.png").exists()
    again = Commands()
    start(monkeypatch, out, again, *wanted, "--sweep")
    assert again.trained == []
    table = [line for line in (out / "comparison.md").read_text().splitlines() if "| " in line][-18:]
    denoised = [f"denoised | {steps} | {steps}.0 |" for steps in (2, 4, 7, 13)]
    verified = [
        f"{way}{how} | 1 | {forwards} |"
        for way, forwards in (("verified", 2.0), ("tidar", 1.5))
        for how in ("", ", accept_ratio 0.1", ", accept_ratio 0.03")
    ]
    ours = [f"| TtT | {row}" for row in (*denoised, "left to right |  | 13.0 |", *verified)]
    others = [*(f"| TtT of the paper | {row}" for row in denoised), "| AR baseline | left to right |  | 13.0 |"]
    found = [line for line in table if line.startswith(("| TtT |", "| TtT of", "| AR"))][-16:]
    assert [line[: len(row)] for line, row in zip(found, [*ours, *others], strict=True)] == [*ours, *others]
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "comparison.html").read_text().count("<svg") == 2


@pytest.mark.parametrize("told", [None, 0.0])
def test_a_model_that_says_nothing_has_no_point(
    told: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, tmp_path / "out", Commands(silent="2", told=told), "--seeds", "1", "--only", "paper", "--sweep")
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert "denoised | 4 |" in table and "denoised | 2 |" not in table


@pytest.mark.parametrize(
    ("override", "key"), [("train.steps=3", "train.steps"), ("prep.max_words=2", "prep.max_words")]
)
def test_runs_of_other_settings_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, key: str
) -> None:
    out, wanted = tmp_path / "out", ("--seeds", "1", "--only", "ttt")
    with pytest.raises(UserError, match="stopped"):
        start(monkeypatch, out, Commands(fails_at=0), *wanted)
    with pytest.raises(UserError, match=f"{key}=.* take another --out"):
        start(monkeypatch, out, Commands(), *wanted, override)


@pytest.mark.parametrize("wrong", [("--only", "ttt,best"), ("--seeds", "0")])
def test_bad_usage_ends_with_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        start(monkeypatch, tmp_path / "out", Commands(), *wrong)

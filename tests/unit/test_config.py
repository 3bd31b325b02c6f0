"""Rule 6: settings are checked first, and every refusal names the key and what would work."""

import ast
import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from tests.distributed.cases import ROOT
from ttt_dist.config.checks import check_run, check_steps
from ttt_dist.config.loader import load_config, save_config
from ttt_dist.util.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {hidden_size: 128, num_heads: 4}\n"
        "data: {train: shards/train}\n"
        "train: {lr: 1e-3, betas: [0.9, 0.99]}\n"
        "telemetry: {wandb: off}\n"
        f"deepspeed: {ROOT / 'ds_configs/zero3.json'}\n"
    )
    return file


def test_values_take_the_type_of_their_field(path: Path) -> None:
    config = load_config(path, ["train.warmup=1e2", "model.head_dim=64", "telemetry.tensorboard=true", "run_dir=7"])
    assert config.train.lr == 1e-3  # YAML itself reads 1e-3 as text
    assert config.train.betas == (0.9, 0.99)
    assert config.telemetry.wandb == "off"  # YAML itself reads off as false
    assert (config.train.warmup, config.model.head_dim, config.telemetry.tensorboard, config.run_dir) == (
        100,
        64,
        True,
        "7",
    )
    assert load_config(path, ["model.head_dim=null"]).model.head_dim is None


def test_a_saved_config_is_read_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["objective.kind=ar", "data.valid=shards/valid"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", "unknown key `train.lrr`; did you mean `train.lr`"),
        ("trian.lr=1", "unknown key `trian.lr`; did you mean `train.lr`"),
        ("warmup=1", "unknown key `warmup`; did you mean `train.warmup`"),
        ("train.lr.x=1", "unknown key `train.lr.x`"),
        ("train=1", "train is a section"),
        ("train.lr", "write section.key=value"),
        ("train.steps=1.5", "train.steps must be a whole number, not 1.5"),
        ("train.steps=0", "train.steps must be positive"),
        ("train.steps=many", "train.steps must be a whole number, not 'many'"),
        ("train.precision=fp16", "train.precision must be one of bf16, fp32"),
        ("train.betas=0.9", "train.betas needs 2 values"),
        ("train.clip=-1", "train.clip must not be negative"),
        ("telemetry.tensorboard=3", "telemetry.tensorboard must be true or false"),
        ("objective.kind=foo", "objective.kind must be one of ttt, ar, nar, not 'foo'"),
        ("objective.p_mix=2", "objective.p_mix must lie in [0, 1], not 2"),
        ("model.num_kv_heads=3", "model.num_heads=4 is no multiple of model.num_kv_heads=3"),
        ("model.hidden_size=130", "set model.head_dim"),
        ("seed=-1", "seed must lie in"),
    ],
)
def test_a_wrong_setting_is_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=1e-4", "unknown key `train.learning_rate`; did you mean `train.lr`?"),
        ("learning_rate=1e-4", "did you mean `train.lr`?"),
        ("train.batch_size=8", "use train.global_batch (packs of a step) or train.micro_batch"),
        (
            "gradient_accumulation_steps=4",
            "there is none: accumulation steps are train.global_batch / (train.micro_batch",
        ),
        ("train.max_steps=9", "did you mean `train.steps`?"),
        ("train.seed=9", "did you mean `seed`?"),
        ("model.init_from=9", "did you mean `train.init_from`?"),
        ("num_train_steps=9", "did you mean `train.steps`?"),
        ("warmup_steps=9", "did you mean `train.warmup`?"),
        ("train.max_grad_norm=1", "did you mean `train.clip`?"),
        ("weight_decay=0.1", "did you mean `train.weight_decay`?"),
        ("train.bf16=true", "did you mean `train.precision=bf16`?"),
        ("fp16=true", "use train.precision=bf16: fp16 with a scaled loss is not offered"),
        ("output_dir=runs/a", "did you mean `run_dir`?"),
        ("train.optimizer=adamw", "the optimizer is always AdamW"),
        ("train.lr_decay_style=linear", "did you mean `train.schedule`?"),
        ("model.dropout=0.1", "there is none: no dropout is applied"),
        ("optimizer.type=adamw", "the optimizer is always AdamW"),
        ("lr_scheduler.name=cosine", "did you mean `train.schedule`?"),
        ("per_device_batch_size=4", "did you mean `train.micro_batch`?"),
        ("gradient_accumulation=4", "there is none: accumulation steps are"),
        ("tensor_parallel=2", "did you mean `parallel.tensor`?"),
        ("lerning_rate=1", "did you mean `train.lr`?"),
        ("checkpoint.interval=10", "did you mean `checkpoint.save_every`?"),
        ("clip_norm=1", "did you mean `train.clip`?"),
        ("resume_from=x", "use --resume PATH"),
        ("lora_r=8", "did you mean `model.lora.r`?"),
        ("neftune_noise_alpha=5", "known sections: run_dir, seed"),
        ("quantization=4", "there is none: weights are trained in full"),
        ("patience=3", "there is none: it is not offered"),
        ("trainer.devices=8", "there is none: data parallelism is the processes that are started"),
        ("train.zzz=8", "unknown key `train.zzz`; known keys of train: train.steps, train.tokens"),
        ("callbacks={a: {b: 1}}", "callbacks must be a list, not"),
        (
            "data.train=null",
            "data.train must be text, not null; give a shard, e.g. data.train=shards/train, or data.blend",
        ),
        ("telemetry.wandb=true", "one of off, offline, online, not 'true'; online sends records to the service"),
        ("train.precision=bfloat16", "must be one of bf16, fp32, not 'bfloat16'"),
        ("prep.seq_len=-1", "prep.seq_len must be positive, not -1"),
        ("prep.gap=0.3", "prep.gap='0.3' is no pair of seconds"),
        ("prep.pattern={text}.wav", "prep.pattern='{text}.wav' lacks {speaker}"),
        ("prep.min_words=9", "prep.min_words=9 is above prep.max_words=5"),
        ("evaluation.asr_utterances=0", "evaluation.asr_utterances must be positive, not 0"),
        ("evaluation.tts_utterances=0", "evaluation.tts_utterances must be positive, not 0"),
        ("prep.test_utterances=0", "prep.test_utterances must be positive, not 0"),
        ("evaluation.decode.stop_at_last_span=true", "speaking does not; take it away"),
        ("evaluation.decode.top_p=0", "evaluation.decode.top_p must lie in (0, 1], not 0"),
        ("train.steps=1:30", "train.steps must be a whole number, not '1:30'"),
        ("train.steps=1_000", "train.steps must be a whole number, not '1_000'"),
        ("train.lr=inf", "train.lr must be a number, not 'inf'"),
        ("train.lr=1e999", "train.lr must be a number, not inf"),
        ("train.steps=" + "9" * 5000, "train.steps must be a whole number, not inf"),
        ("train.steps=1e300", "train.steps is 1000"),
        ("model.num_layers=1000000000000", "model.num_layers=1000000000000 is beyond any model; use at most 10,000"),
        ("model.hidden_size=100000000", "model.hidden_size=100000000 is beyond any model"),
        ("guard.start_timeout=1e300", "guard.start_timeout must lie in (0, 100000000.0], not 1e+300"),
        ("run_dir=null", "run_dir must be text, not null"),
        ("run_dir=a\0b", "run_dir holds the character '\\x00'"),
        ("data.valid=[a, b]", "data.valid must be text or values by name or null, not ['a', 'b']"),
        (
            "data.valid.far=s",
            "data.valid was given the value null, in which there is no far; give data.valid as a whole",
        ),
        ("data.skip=[3, 5]", "data.skip.0 needs 2 values, e.g. [10, 20], not 3"),
        ("train.betas=0.9", "train.betas needs 2 values, e.g. [0.9, 0.95], not 0.9"),
        ("train.batch_stages=[{from_step: 2}]", "train.batch_stages.0 lacks global_batch; give it"),
        ("train.param_groups=[{parms: x}]", "did you mean `train.param_groups.0.params`?"),
        ("data.stages=[1", "is not YAML"),
    ],
    ids=lambda value: value[:40],
)
def test_a_setting_of_another_trainer_or_meaning_is_told_what_to_write(path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["1.10", "2024_01", "run #3", "010", "1:30", "yes", "{a}", "[x", "a: b", "1e3"])
def test_text_stays_as_it_is_written(path: Path, text: str) -> None:
    assert load_config(path, [f"run_dir={text}", f"data.blend.a.shard={text}", "data.blend.a.weight=1"]).run_dir == text
    path.write_text(f"run_dir: {text}\n" if text not in ("run #3", "{a}", "[x", "a: b") else f"run_dir: '{text}'\n")
    assert load_config(path).run_dir == text


def test_numbers_mean_what_they_look_like(path: Path) -> None:
    config = load_config(
        path, ["seed=010", "train.steps=0x40", "train.lr=3e-4", "train.weight_decay=.5", "train.compile=yes"]
    )
    assert (config.seed, config.train.steps, config.train.lr, config.train.weight_decay) == (10, 64, 3e-4, 0.5)
    assert config.train.compile is True
    path.write_text(
        "train: {lr: '1e-3', steps: 1.0e+2}\ntelemetry: {wandb: false, tensorboard: on, profile_ranks: 3}\n"
    )
    config = load_config(path)
    assert (config.train.lr, config.train.steps) == (1e-3, 100)
    assert (config.telemetry.wandb, config.telemetry.tensorboard, config.telemetry.profile_ranks) == ("off", True, [3])


def test_the_last_override_of_a_key_holds_and_is_named(path: Path) -> None:
    assert load_config(path, ["train.steps=2", "train.steps=3"]).train.steps == 3
    with pytest.raises(UserError, match=r"^override 'train\.steps=-2': train\.steps must be positive, not -2"):
        load_config(path, ["train.steps=1", "seed=3", "train.steps=-2"])
    with pytest.raises(UserError, match="train was given the value 1"):
        load_config(path, ["train=1", "train.steps=2"])


def test_the_config_of_an_earlier_build_is_read() -> None:
    """Written by revision f7f6f4f, with a few settings of every kind changed."""
    config = load_config(ROOT / "tests" / "golden" / "config_f7f6f4f.yaml")
    assert (config.run_dir, config.train.lr, config.train.betas) == ("runs/1.10", 1e-5, (0.9, 0.95))
    assert (config.objective.preset, config.objective.masking, config.objective.audio_ar) == ("paper", "bernoulli", 0.0)
    assert (config.evaluation.decode.block, config.prep.tail) == (6, "0.0:0.5")


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    with pytest.raises(UserError, match=r"run\.yaml: the config cannot be read"):
        load_config(file)
    file.write_text("train:\n  lr: [1\n")
    with pytest.raises(UserError, match=r"run\.yaml: line \d is not YAML"):
        load_config(file)
    file.write_text("train: {stepps: 3}\n")
    with pytest.raises(UserError, match=r"run\.yaml: unknown key `train\.stepps`; did you mean `train\.steps`"):
        load_config(file)
    file.write_text("train.steps: 3\n")
    with pytest.raises(UserError, match=r"run\.yaml: `train\.steps` is one word here; write it as a section: `train:`"):
        load_config(file)


BLEND = """
data:
  blend:
    asr: {shard: shards/asr, weight: 0.3}
    tts: {shard: shards/tts, weight: 7e-1}
  stages:
    - {from_step: 100, weights: {tts: 1}}
    - {from_step: 200, weights: {asr: 2, tts: 1}}
"""


@pytest.fixture
def blend(tmp_path: Path) -> Path:
    file = tmp_path / "blend.yaml"
    file.write_text(BLEND)
    return file


def test_a_blend_is_read_changed_and_saved(blend: Path, tmp_path: Path) -> None:
    added = ["data.blend.chat.shard=shards/chat", "data.blend.chat.weight=1", "data.stages.1.weights.chat=5"]
    config = load_config(blend, [*added, "data.blend.asr.weight=0.4", "data.stages.0.from_step=9"])
    assert {name: (source.shard, source.weight) for name, source in config.data.blend.items()} == {
        "asr": ("shards/asr", 0.4),
        "tts": ("shards/tts", 0.7),
        "chat": ("shards/chat", 1.0),
    }
    assert [stage.from_step for stage in config.data.stages] == [9, 200]
    assert config.data.stages[1].weights == {"asr": 2.0, "tts": 1.0, "chat": 5.0}
    assert list(config.data.prefixes().items())[:2] == [("asr", "shards/asr"), ("chat", "shards/chat")]
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    one = load_config(
        blend, ["data.stages=[{from_step: 5, weights: {asr: 1}}]", "data.blend.asr={shard: a, weight: 1}"]
    )
    assert [stage.from_step for stage in one.data.stages] == [5]
    assert load_config(blend, ["data.blend=null", "data.stages=null"]).data.blend == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.blend.asr.wieght=1", "unknown key `data.blend.asr.wieght`; did you mean `data.blend.asr.weight`"),
        ("data.blned.asr.weight=1", "unknown key `data.blned.asr.weight`; did you mean `data.blend.asr.weight`"),
        ("data.blend.ars.weight=1", "data.blend.ars.shard names no shard; give its prefix"),
        ("data.blend.chat.shard=x", "give one of data.blend.chat.weight and data.blend.chat.epochs, not none"),
        ("data.blend.asr.epochs=1", "give one of data.blend.asr.weight and data.blend.asr.epochs, not both"),
        ("data.blend.asr={shard: a, epochs: 1}", "data.blend.asr.epochs and data.blend.tts.weight do not mix"),
        ("data.blend.asr.weight=-1", "data.blend.asr.weight must not be negative"),
        ("data.blend.asr.weight=much", "data.blend.asr.weight must be a number or null, not 'much'"),
        ("data.blend.asr.weight.x=1", "unknown key `data.blend.asr.weight.x`"),
        ("data.blend.asr=3", "data.blend.asr is a section, not the value 3"),
        ("data.blend=3", "data.blend is a section, not the value 3"),
        ("data.blend={3: {shard: a}}", "data.blend.3: give one of data.blend.3.weight and data.blend.3.epochs"),
        ("data.blend={a b: {shard: a, weight: 1}}", "the name 'a b' of a source must be of letters"),
        (
            "data.blend.new={shard: shards/asr, weight: 1}",
            "data.blend.asr.shard and data.blend.new.shard are both 'shards/asr'",
        ),
        ("data.blend={asr: {shard: a, weight: 0}, tts: {shard: b, weight: 0}}", "data.blend: all weights are zero"),
        (
            "data.blend={asr: {shard: a, epochs: 1}, tts: {shard: b, epochs: 2}}",
            "data.stages change weights, but data.blend",
        ),
        ("data.blend=null", "data.stages are changes of data.blend, which names no source"),
        ("data.stages.0.from_step=0", "data.stages.0.from_step=0 must be above 0: data.blend holds from step 0"),
        (
            "data.stages.1.from_step=100",
            "data.stages.1.from_step=100 must be above 100: the stage before it begins at 100",
        ),
        ("data.stages.1.from_stp=3", "unknown key `data.stages.1.from_stp`; did you mean `data.stages.1.from_step`"),
        ("data.stages.2.from_step=300", "data.stages.2.from_step: there are 2 items here"),
        ("data.stages.0.weights.chat=1", "data.stages.0.weights.chat: no such source; data.blend names asr, tts"),
        ("data.stages.0.weights.tts=0", "data.stages.0.weights: all are zero"),
        ("data.stages.0.weights.tts=-1", "data.stages.0.weights.tts must not be negative"),
        ("data.stages.0.weights.tts=[1]", "data.stages.0.weights.tts must be a number"),
        ("data.stages=[3]", "data.stages.0 is a section, not the value 3"),
        ("data.stages.first.weights.asr=1", "unknown key `data.stages.first.weights.asr`"),
    ],
)
def test_a_wrong_blend_is_named(blend: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(blend, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_blend_in_the_file_is_named(blend: Path) -> None:
    blend.write_text(BLEND.replace("7e-1", "1}\n    asr: {shard: b, weight: 1"))
    with pytest.raises(UserError, match=r"blend\.yaml: line 6 .*the key `asr` stands twice"):
        load_config(blend)
    blend.write_text(BLEND.replace("weight:", "wieght:", 1))
    with pytest.raises(
        UserError, match=r"blend\.yaml: unknown key `data\.blend\.asr\.wieght`; did you mean `data\.blend\.asr\.weight`"
    ):
        load_config(blend)


def test_training_reads_one_shard_or_one_blend(blend: Path, path: Path) -> None:
    check_run(load_config(blend), 1)
    with pytest.raises(UserError, match=r"data\.train and data\.blend are both set.*data\.train= or data\.blend=null"):
        check_run(load_config(blend, ["data.train=shards/train"]), 1)
    check_run(load_config(blend, ["data.train=shards/train", "data.train="]), 1)
    with pytest.raises(UserError, match=r"neither data\.train nor data\.blend names a shard"):
        check_run(load_config(path, ["data.train="]), 1)


def test_a_way_of_decoding_that_will_not_be_learnt_is_refused_before_training(path: Path) -> None:
    verified = "evaluation.decode.audio_mode=verified"
    check_steps(load_config(path, [verified]))
    with pytest.raises(UserError, match="--audio-mode.*objective.audio_ar is 0, or both p_mix and p_draft"):
        check_steps(load_config(path, [verified, "objective.preset=paper"]))
    last = "objective.stages=[{from_step: 0, p_mix: 0}, {from_step: 1, audio_ar: %s}]"
    check_steps(load_config(path, [verified, "objective.preset=paper", last % 0.5]))
    with pytest.raises(UserError, match="--audio-mode.*objective.audio_ar is 0, or both p_mix and p_draft"):
        check_steps(load_config(path, [verified, last % 0]))


def test_a_batch_that_does_not_divide_is_refused(path: Path) -> None:
    config = load_config(path, ["train.global_batch=12", "train.micro_batch=2"])
    check_run(config, 3)
    with pytest.raises(UserError, match=r"train\.global_batch=12.*must be a multiple of 8"):
        check_run(config, 4)


def test_a_run_that_says_little_of_itself_is_warned_of(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_steps(load_config(path, ["data.valid=shards/valid", "train.eval_every=9"]))
    assert not capsys.readouterr().err
    check_steps(load_config(path, ["data.valid=shards/train"]))
    assert "warning: data.valid=shards/train is trained on too" in capsys.readouterr().err
    check_steps(load_config(path, ["train.eval_every=9"]))
    assert "warning: train.eval_every=9: data.valid names no shard" in capsys.readouterr().err


def test_recipes_that_denoise_speech_take_blocks_of_a_whole_span() -> None:
    """Others end spans in the wrong place (docs/decoding.md#settings), and exports remember them."""
    recipes = [load_config(path) for path in (Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml")]
    denoising = [recipe for recipe in recipes if recipe.evaluation.decode.audio_mode == "diffusion"]
    assert len(denoising) == 8
    assert all(recipe.evaluation.decode.block == recipe.prep.audio_ratio + 1 for recipe in denoising)


@pytest.mark.parametrize("told", ["objective.preset=paper", "objective.audio_ar=0"])
def test_drafts_that_nothing_will_make_use_of_are_told(
    path: Path, capsys: pytest.CaptureFixture[str], told: str
) -> None:
    check_steps(load_config(path, ["data.valid=shards/valid", "objective.p_draft=0.5"]))
    check_steps(load_config(path, ["data.valid=shards/valid", "objective.p_draft=0.5", "objective.kind=ar"]))
    assert not capsys.readouterr().err
    check_steps(load_config(path, ["objective.p_draft=0.5", told]))
    assert "warning: objective.p_draft=0.5 from step 0 on" in capsys.readouterr().err
    stages = f"objective.stages=[{{from_step: 0}}, {{from_step: 9, p_draft: 0.5, {told[len('objective.') :].replace('=', ': ')}}}]"
    check_steps(load_config(path, [stages]))
    assert "warning: objective.p_draft=0.5 from step 9 on" in capsys.readouterr().err


def test_speech_that_is_not_learnt_as_it_will_be_written_is_told(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_steps(load_config(path, ["objective.p_mix=1"]))
    assert "warning: objective.p_mix=1 at the last step: nothing is noised" in capsys.readouterr().err
    check_steps(load_config(path, ["objective.p_mix=1", "evaluation.decode.audio_mode=ar"]))
    assert not capsys.readouterr().err


def test_a_run_folder_that_is_a_file_is_refused(path: Path) -> None:
    for run_dir in (path, path / "deeper" / "still"):
        with pytest.raises(UserError, match=rf"run_dir={run_dir}: {path} is a file.*choose another run_dir"):
            check_run(load_config(path, [f"run_dir={run_dir}"]), 1)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("~/runs/x", "/home/me/runs/x"), ("$SPACE/x", "/space/x"), ("${NOWHERE}/x", "the whole path")],
)
def test_a_run_folder_that_no_shell_has_read_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, written: str, meant: str
) -> None:
    """A folder by the name of `~` would be made, and the run not be found again."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SPACE", "/space")
    with pytest.raises(UserError, match=rf"neither ~ nor \$NAME is read here; write {meant}$"):
        check_run(load_config(path, [f"run_dir={written}"]), 1)


def test_a_warm_up_without_end_is_told(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_steps(load_config(path, ["train.steps=50"]))
    assert "warmup" not in capsys.readouterr().err
    check_steps(load_config(path, ["train.steps=49"]))
    assert "train.warmup=50 is beyond train.steps=49" in capsys.readouterr().err


REFUSED = [
    (2, ["parallel.ulysses=2", "train.compile=true"], "ZeRO 0 to 2 and data parallelism only.*ulysses=2"),
    (2, ["parallel.tensor=2", "train.compile=true"], "set train.compile=false"),
    (2, ["deepspeed=ds_configs/zero3.json", "train.compile=true"], "not with ZeRO 3"),
    (1, ["train.fp8=true"], r"train\.precision=fp32 asks to keep; set train\.precision=bf16 or train\.fp8=false"),
    (2, ["train.fp8=true", "train.precision=bf16", "parallel.tensor=2"], r"not with parallel\.tensor=2"),
    (1, ["train.fp8=true", "train.precision=bf16", "model.ffn_hidden_size=72"], r"ffn_hidden_size=72 .*multiple of 16"),
    (
        2,
        ["parallel.pipeline=2", "deepspeed=ds_configs/zero2.json"],
        "ZeRO 0 or 1 only.*zero2.json asks for ZeRO 2.*use ds_configs/zero1",
    ),
    (2, ["parallel.pipeline=2", "deepspeed=ds_configs/zero3.json"], "asks for ZeRO 3"),
    (8, ["parallel.pipeline=8"], r"parallel\.pipeline=8 has more stages than model\.num_layers=4"),
    (4, ["parallel.pipeline=2", "parallel.ulysses=2"], r"parallel\.ulysses=2 does not go with parallel\.pipeline=2"),
    (3, ["parallel.tensor=3"], r"parallel\.tensor=3 does not divide model\.num_heads=4"),
    (
        4,
        ["parallel.tensor=4", "model.ffn_hidden_size=770"],
        r"parallel\.tensor=4 does not divide model\.ffn_hidden_size=770",
    ),
    (
        2,
        ["parallel.tensor=2", "model.num_heads=6", "model.num_kv_heads=3", "model.head_dim=8"],
        r"model\.num_kv_heads=3: one must be",
    ),
    (8, ["parallel.tensor=2", "parallel.ulysses=4"], r"parallel\.ulysses=4 does not divide the 2 query heads"),
    (1, ["model.lora.r=4"], r"model\.lora\.r=4 adapts a model .* name it by train\.init_from"),
    (1, ["model.lora.r=4", "train.init_from=x", "train.fp8=true", "train.precision=bf16"], r"set train\.fp8=false"),
    (
        4,
        ["model.lora.r=4", "train.init_from=x", "parallel.tensor=4", "train.global_batch=8"],
        r"take these three out of",
    ),
    (1, ["parallel.sequence_parallel=true"], r"set parallel\.tensor above 1"),
    (3, ["parallel.tensor=2"], "3 process.* cannot be split into groups of 2.*start a multiple of 2"),
    (2, ["parallel.tensor=2", "train.precision=bf16", "deepspeed=ds_configs/zero0.json"], "bf16 without ZeRO"),
    (
        4,
        ["parallel.tensor=2", "train.global_batch=3"],
        r"global_batch=3 cannot be split over 2 data-parallel.*multiple of 2",
    ),
]


@pytest.mark.parametrize(("world_size", "overrides", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_split_that_cannot_be_is_refused_with_the_reason(
    path: Path, world_size: int, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    plain = ["data.train=shards/train", "deepspeed=ds_configs/zero1.json", "train.global_batch=8"]
    config = load_config(path, [*plain, "model.num_layers=4", *overrides])
    with pytest.raises(UserError, match=message):
        check_run(config, world_size)


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_shipped_recipes_are_valid(recipe: str) -> None:
    config = load_config(ROOT / "recipes" / recipe, ["data.blend=null", "data.train=shards/train"])
    check_run(dataclasses.replace(config, deepspeed=str(ROOT / config.deepspeed)), 2)


@pytest.mark.parametrize("path", sorted((ROOT / "ttt_dist" / "config").glob("*.py")), ids=lambda path: path.stem)
def test_every_field_is_explained(path: Path) -> None:
    """A doc line stands under each field that is no section."""
    for section in ast.parse(path.read_text()).body:
        if not isinstance(section, ast.ClassDef) or path.stem == "deepspeed" or section.name == "ObjectiveStage":
            continue
        for field, after in itertools.pairwise([*section.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign) and not set(
                re.findall(r"default_factory|ClassVar", ast.unparse(field))
            ):
                assert isinstance(after, ast.Expr), f"{section.name}.{ast.unparse(field)}"

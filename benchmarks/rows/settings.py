"""Rows A12 to A16, and of C what concerns settings: launchers' variables, DeepSpeed's JSON, YAML, and what is silent at a launch."""

import json
from pathlib import Path

from kit import RECIPE, dry_run, main, module, row, work, write


def processes(folder: Path, *settings: str, **env: str) -> str:
    """How many processes a dry run speaks of, or its refusal."""
    said = dry_run(folder, "train.global_batch=8", *settings, env=env)
    line = next((line for line in said.splitlines() if line.startswith("processes")), said)
    return line[:200]


LAUNCHERS = {
    "Cray PALS": dict(
        PALS_RANKID="0", PALS_NODEID="0", PALS_LOCAL_RANKID="0", PMI_RANK="0", PMI_SIZE="8", PMI_LOCAL_RANK="0"
    ),
    "PMIx alone": dict(PMIX_RANK="3", PMIX_NAMESPACE="x"),
    "PMI alone": dict(PMI_RANK="3", PMI_SIZE="4"),
    "Flux": dict(FLUX_TASK_RANK="0", FLUX_JOB_SIZE="4", FLUX_TASK_LOCAL_ID="0", FLUX_JOB_ID="f2Y"),
    "jsrun": dict(JSM_NAMESPACE_RANK="0", JSM_NAMESPACE_SIZE="4", JSM_NAMESPACE_LOCAL_RANK="0", PMIX_RANK="0"),
}
for name, variables in LAUNCHERS.items():
    row("A12", f"variables of {name}", r"^processes +[48] |of several|does not tell", "launchers::each_launcher")(
        lambda folder, variables=variables: processes(folder, **variables)
    )


def deepspeed(folder: Path, **values: object) -> str:
    """A dry run with a DeepSpeed JSON."""
    file = write(folder / "ds.json", json.dumps(values))
    return dry_run(folder, f"deepspeed={file}")


A13 = "deepspeed_file::a_wrong_file_is_named"
for what, values, want in (
    ("zero_optimisation", {"zero_optimisation": {"stage": 2}}, "^[12]: .*zero_optimisation"),
    ("stge", {"zero_optimization": {"stge": 2}}, "^[12]: .*stge"),
    ("reduce_buket_size", {"zero_optimization": {"stage": 2, "reduce_buket_size": 5}}, "^[12]: .*reduce_buket_size"),
    ("MiCS", {"zero_optimization": {"stage": 3, "mics_shard_size": 4}}, "^[12]: .*mics_shard_size"),
    ('"auto" for the batch', {"train_batch_size": "auto", "zero_optimization": {"stage": 2}}, "^0: .*ZeRO 2"),
    ('"auto" for the stage', {"zero_optimization": {"stage": "auto"}}, "^[12]: .*write 0, 1, 2 or 3"),
):
    row("A13", f"DeepSpeed JSON: {what}", want, A13)(lambda folder, values=values: deepspeed(folder, **values))


def meaning(folder: Path, setting: str, key: str) -> str:
    """What a setting comes to, or its refusal."""
    loader = module("ttt_dist.config.loader", "ttt_dist.config")
    config = write(folder / "run.yaml", RECIPE.format(folder=folder, work="w"))
    found = (
        loader.read_config(config, [setting])
        if hasattr(loader, "read_config")
        else loader.load_config(config, [setting])
    )
    for part in key.split("."):
        found = getattr(found, part)
    return repr(found)


A14 = "config::numbers_mean_what_they_look_like, yaml_file"
for setting, want in (
    ("seed=010", "^10$|^refused"),
    ("train.steps=1:30", "^refused"),
    ("run_dir=1.10", "^'1.10'"),
    ("run_dir=2024_01", "^'2024_01'"),
    ("run_dir=run #3", "^'run #3'"),
    ("prep.seq_len=-1", "^refused"),
):
    key = setting.partition("=")[0]
    row("A14", setting, want, A14)(lambda folder, setting=setting, key=key: meaning(folder, setting, key))


def launch(folder: Path, *settings: str) -> str:
    """The lines of a dry run that warn or refuse."""
    said = dry_run(folder, *(setting.format(folder=folder, work=work()) for setting in settings))
    told = [line for line in said.splitlines() if "warning" in line or "error" in line]
    return " ".join(told) or f"{said[0]}: nothing told"


A15 = "config::a_warm_up_without_end, config::a_run_that_says_little, config::a_run_folder_that_is_a_file"
for settings, want in (
    (("train.warmup=50",), "train.warmup=50"),
    (("data.valid={work}/shards/train", "train.warmup=1"), "data.valid.*trained on"),
    (("train.eval_every=2", "train.warmup=1"), "eval_every=2"),
    (("run_dir={folder}/run.yaml", "train.warmup=1"), "is a file"),
):
    row("A15", " ".join(settings), want, A15)(lambda folder, settings=settings: launch(folder, *settings))

C = "config::a_setting_of_another_trainer, train_arguments, init_from"
for settings, want in (
    (("--train.lr=1e-4", "train.warmup=1"), "^0: nothing told$"),
    (("learning_rate=1e-4",), "train.lr"),
    (("train.optimizer=adamw",), "AdamW"),
    (("train.dropout=0.1",), "no dropout"),
    (("telemetry.wandb=true",), "online.*offline"),
    (("data.train={work}/shards/train.bin",), "data.train={work}/shards/train\\b|without .*bin|prefix"),
    (("data.train={work}/shards",), "shards/train"),
    (("train.init_from=Qwen/Qwen2.5-0.5B",), "not (fetched|downloaded)|import-hf"),
):
    row("C", " ".join(settings), want, C)(lambda folder, settings=settings: launch(folder, *settings))


@row(
    "C",
    "--dry-run for 64 processes, no run folder here",
    "^0: ",
    "launchers::a_dry_run_is_asked_about_so_many_processes",
)
def sixty_four(folder: Path) -> str:
    return dry_run(
        folder, "train.global_batch=64", "run_dir=/proc/nowhere/run", "train.warmup=1", env={"WORLD_SIZE": "64"}
    )


@row("C", "--dry-run for 64 processes: how many it speaks of", "^processes +64", "launchers::a_dry_run_is_asked_about")
def sixty_four_processes(folder: Path) -> str:
    return processes(folder, "train.global_batch=64", WORLD_SIZE="64")


if __name__ == "__main__":
    main()

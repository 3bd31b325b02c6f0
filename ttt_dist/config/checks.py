"""Whether the settings of a run fit each other, its processes and the files that they name.

All of it is checked before any process group exists; nothing is touched.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ttt_dist.config.deepspeed import zero_stage
from ttt_dist.config.pipeline import Recipe
from ttt_dist.config.run import Config
from ttt_dist.config.section import require
from ttt_dist.util.console import warn


def check_run(config: Recipe, world_size: int) -> None:
    """Cross-checks that need the number of processes; raises UserError, touches nothing.

    The shards have their own checks, made when they are opened.
    """
    _check_run_dir(Path(config.run_dir))
    one, blend = bool(config.data.train), bool(config.data.blend)
    require(one or blend, "neither data.train nor data.blend names a shard; give one, e.g. data.train=shards/train")
    require(
        not (one and blend), "data.train and data.blend are both set; take one away: data.train= or data.blend=null"
    )
    stage = zero_stage(config.deepspeed)
    _check_parallel(config, stage)
    train, parallel = config.train, config.parallel
    model_size = parallel.tensor * parallel.pipeline * parallel.ulysses
    require(
        world_size % model_size == 0,
        f"{world_size} process(es) cannot be split into groups of {model_size} = parallel.tensor={parallel.tensor} x "
        f"parallel.pipeline={parallel.pipeline} x parallel.ulysses={parallel.ulysses}: start a multiple of {model_size}",
    )
    _check_noise_scale(config)
    dp = world_size // model_size
    for number, global_batch in enumerate(train.global_batches):
        key = f"train.batch_stages.{number - 1}.global_batch" if number else "train.global_batch"
        require(
            global_batch % (train.micro_batch * dp) == 0,
            f"{key}={global_batch} cannot be split over {dp} data-parallel process(es) in micro-batches of "
            f"train.micro_batch={train.micro_batch}: it must be a multiple of {train.micro_batch * dp}",
        )


def _check_noise_scale(config: Config) -> None:
    """Refuse layouts whose micro-batches have no gradient of their own anywhere, and steps of a single one."""
    every, train, parallel = config.telemetry.noise_scale_every, config.train, config.parallel
    if not every:
        return
    told = f"telemetry.noise_scale_every={every} needs the gradient of each micro-batch alone"
    require(
        parallel.ulysses == 1,
        f"{told}, which parallel.ulysses={parallel.ulysses} adds up only with those of others; set one of them to its default",
    )
    require(
        parallel.pipeline == 1 or not config.model.tie_embeddings,
        f"{told}; of the embedding that model.tie_embeddings=true shares, the two ends of parallel.pipeline={parallel.pipeline} "
        "add theirs up at the end of a step only; set telemetry.noise_scale_every=0",
    )
    require(
        min(train.global_batches) > train.micro_batch,
        f"{told} and that of several: train.micro_batch={train.micro_batch} is the whole global batch; use a smaller one",
    )


def _check_run_dir(run_dir: Path) -> None:
    """Refuse what cannot become a folder, and what a shell would read otherwise: in a YAML file there is none."""
    meant = os.path.expanduser(os.path.expandvars(run_dir))
    require(
        run_dir.exists() or not re.search(r"^~|\$[\w{]", str(run_dir)),
        f"run_dir={run_dir}: neither ~ nor $NAME is read here; write "
        + (meant if meant != str(run_dir) and "$" not in meant else "the whole path"),
    )
    above = next((path for path in (run_dir, *run_dir.parents) if os.path.exists(path)), None)
    require(
        above is None or os.path.isdir(above),
        f"run_dir={run_dir}: {above} is a file, and a run is a folder; choose another run_dir",
    )


def check_steps(config: Recipe) -> None:
    """What hangs on the number of steps: warn of a warm-up without end, of evaluations that say nothing, and of learning for nothing.

    Raises UserError where the model that comes of the last step could not be evaluated as asked.
    """
    train, data = config.train, config.data
    last = config.objective.at(train.steps - 1)  # which the export is a model of
    config.evaluation.decode.require_mode(last.kind, last.learns_audio_ar)
    _warn_of_objective(config)
    if train.warmup > train.steps:
        warn(
            f"train.warmup={train.warmup} is beyond train.steps={train.steps}, so train.lr={train.lr:g} is never reached; set "
            f"train.warmup={train.steps // 10} or so"
        )
    if train.eval_every and not data.held_out:
        warn(f"train.eval_every={train.eval_every}: data.valid names no shard, so there is nothing to evaluate on")
    trained_on = {os.path.realpath(prefix) for prefix in data.prefixes().values()}
    for name, prefix in data.held_out.items():
        if os.path.realpath(prefix) in trained_on:
            key = f"data.valid.{name}" if name else "data.valid"
            warn(f"{key}={prefix} is trained on too: its loss tells what is learnt by heart; hold some data out")


def _warn_of_objective(config: Recipe) -> None:
    """Tell of drafts that nothing will make, and of speech that is written in a way that the last step does not teach."""
    objective, mode = config.objective, config.evaluation.decode.audio_mode
    last = objective.at(config.train.steps - 1)
    for start in sorted({0, *(stage.from_step for stage in objective.stages)}):
        now = objective.at(start)
        if now.kind == "ttt" and now.p_draft and not now.p_audio_ar:
            warn(
                f"objective.p_draft={now.p_draft:g} from step {start} on is for the audio modes verified and tidar, which need "
                "audio_ar above 0 as well; set it there, or p_draft=0"
            )
    if last.kind == "ttt" and last.p_mix == 1 and mode == "diffusion":
        warn(
            "objective.p_mix=1 at the last step: nothing is noised, but speech will be denoised; set "
            "evaluation.decode.audio_mode=ar, or p_mix below 1"
        )


def _check_parallel(config: Config, stage: int) -> None:
    """Refuse what cannot be split as the config asks."""
    model, parallel = config.model, config.parallel
    tensor, pipeline, ulysses = parallel.tensor, parallel.pipeline, parallel.ulysses
    require(
        pipeline == 1 or stage < 2,
        f"parallel.pipeline={pipeline} goes with ZeRO 0 or 1 only, but deepspeed={config.deepspeed} asks for ZeRO {stage}: "
        "DeepSpeed's pipeline keeps whole gradients; use ds_configs/zero1.json, or parallel.pipeline=1",
    )
    require(
        pipeline == 1 or ulysses == 1,
        f"parallel.ulysses={ulysses} does not go with parallel.pipeline={pipeline}; set one of them to 1",
    )
    require(
        pipeline <= model.num_layers,
        f"parallel.pipeline={pipeline} has more stages than model.num_layers={model.num_layers}; use fewer",
    )
    require(
        tensor > 1 or not parallel.sequence_parallel,
        "parallel.sequence_parallel=true is a part of tensor parallelism; set parallel.tensor above 1, or use parallel.ulysses",
    )
    require(
        not (config.train.compile and (stage == 3 or tensor * pipeline * ulysses > 1)),
        f"train.compile=true goes with ZeRO 0 to 2 and data parallelism only, not with ZeRO {stage} and parallel.tensor={tensor}, "
        f"pipeline={pipeline}, ulysses={ulysses}: what they do between layers is not safe to compile; set train.compile=false",
    )
    if config.train.fp8:
        _check_fp8(config)
    if model.lora.r:
        _check_lora(config)
    require(
        not (tensor > 1 and stage == 0 and config.train.precision == "bf16"),
        f"parallel.tensor={tensor} in bf16 without ZeRO: DeepSpeed then takes the gradient norm of one process's slices; "
        "use ds_configs/zero1.json",
    )
    for name, value in (("num_heads", model.num_heads), ("ffn_hidden_size", model.ffn_hidden_size)):
        require(
            value % tensor == 0, f"parallel.tensor={tensor} does not divide model.{name}={value}; use one that does"
        )
    groups = model.num_kv_heads
    require(
        groups % tensor == 0 or tensor % groups == 0,
        f"parallel.tensor={tensor} and model.num_kv_heads={groups}: one must be a multiple of the other; change parallel.tensor",
    )
    require(
        model.num_heads // tensor % ulysses == 0,
        f"parallel.ulysses={ulysses} does not divide the {model.num_heads // tensor} query heads of a process "
        f"(model.num_heads={model.num_heads} / parallel.tensor={tensor}); use one that does",
    )


def _check_lora(config: Config) -> None:
    """Refuse adapters of nothing, and those that cannot be split as the projections are."""
    groups, tensor, lora = config.model.num_kv_heads, config.parallel.tensor, config.model.lora
    require(
        config.train.init_from is not None,
        f"model.lora.r={lora.r} adapts a model that stays as it is; name it by train.init_from, or set model.lora.r=0",
    )
    require(
        groups % tensor == 0 or not {"q_proj", "k_proj", "v_proj"} & set(lora.target_modules),
        f"parallel.tensor={tensor} divides the key-value heads of model.num_kv_heads={groups}, which adapters of q_proj, k_proj and "
        f"v_proj do not go with; use parallel.tensor={groups}, or take these three out of model.lora.target_modules",
    )
    require(
        not config.train.fp8,
        f"train.fp8=true rounds what model.lora.r={lora.r} leaves as it is, and was not tried with it; set train.fp8=false",
    )


def _check_fp8(config: Config) -> None:
    """Refuse what cannot multiply in fp8."""
    require(
        config.train.precision == "bf16",
        f"train.fp8=true rounds to 8 bits what train.precision={config.train.precision} asks to keep; "
        "set train.precision=bf16 or train.fp8=false",
    )
    require(
        config.parallel.tensor == 1,
        f"train.fp8=true goes with whole layers only, not with parallel.tensor={config.parallel.tensor}; "
        "set parallel.tensor=1 or train.fp8=false",
    )
    for name in ("hidden_size", "ffn_hidden_size"):
        size = getattr(config.model, name)
        require(size % 16 == 0, f"train.fp8=true needs model.{name}={size} to be a multiple of 16; set train.fp8=false")

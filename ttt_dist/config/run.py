"""Every setting of a run: nested dataclasses, read from one YAML file plus `section.key=value` overrides.

`load_config` builds a `Config` and refuses what it does not know; `check_run` holds the cross-checks that need the number of
processes and the files on disk. Both raise `UserError` (one line that names the key and what would work), and both run
before any process group exists.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ttt_dist.config.data import DataConfig
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.config.typed_yaml import build, override, read_yaml, require
from ttt_dist.util.errors import UserError

__all__ = [
    "Config",
    "Objective",
    "UserError",
    "check_run",
    "load_config",
    "read_deepspeed",
    "save_config",
    "to_dict",
    "zero_stage",
]


@dataclass
class TrainConfig:
    """Optimisation. Batches are counted in packs."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    global_batch: int = 8
    """Packs per optimizer step, over all processes."""
    micro_batch: int = 1
    """Packs per forward pass of one process; the rest is gradient accumulation."""
    lr: float = 1e-3
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """Where the cosine ends, as a share of lr."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """AdamW's weight decay; norms and biases have none."""
    warmup: int = 50
    """Steps of linear warm-up."""
    clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Weights and activations of the forward pass; the optimizer's weights are always fp32."""
    init_from: str | None = None
    """Model folder (tools/convert_checkpoint.py import-hf, or an export) whose weights the run starts from; null: random."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again: nothing, all but attention and the products that widen, or whole blocks."""
    compile: bool = False
    """Compile each block with torch.compile."""
    fp8: bool = False
    """Multiply in 8-bit floating point in the MLP; the rest stays bf16."""
    gc_every: int = 100
    """Steps between garbage collections, on all processes at once; 0: whenever Python likes."""
    eval_every: int = 0
    """Steps between evaluations on the held-out packs; 0: only at the end."""
    eval_packs: int = 64
    """Held-out packs per evaluation; 0: all."""

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        for name in ("steps", "global_batch", "micro_batch"):
            require(getattr(self, name) > 0, f"train.{name} must be positive, not {getattr(self, name)}")
        for name in ("min_lr_ratio", "weight_decay", "warmup", "clip", "gc_every", "eval_every", "eval_packs"):
            require(getattr(self, name) >= 0, f"train.{name} must not be negative, but is {getattr(self, name)}")
        require(self.eps > 0, f"train.eps must be positive, not {self.eps}")
        require(self.lr > 0, f"train.lr must be positive, not {self.lr}")
        require(
            self.min_lr_ratio <= 1, f"train.min_lr_ratio is a share of train.lr: at most 1, not {self.min_lr_ratio}"
        )
        require(all(0 <= beta < 1 for beta in self.betas), f"train.betas must lie in [0, 1), not {self.betas}")


@dataclass
class ParallelConfig:
    """How the model is split over processes; what is left of them is data parallel."""

    tensor: int = 1
    """Processes that share each layer's weights (Megatron tensor parallelism)."""
    pipeline: int = 1
    """Stages of consecutive layers, with ZeRO 0 or 1."""
    ulysses: int = 1
    """Processes that share the tokens of a micro-batch, and the heads in attention (DeepSpeed Ulysses), with any ZeRO."""
    sequence_parallel: bool = False
    """Under tensor parallelism: split norms and residuals over the tokens too."""


@dataclass
class CheckpointConfig:
    """Saving and resuming."""

    save_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_last: int = 2
    """Complete checkpoints kept in the run folder; 0: all."""
    keep_every: int = 0
    """Checkpoints of steps that are a multiple of this are kept for ever; 0: none is."""
    resume: bool = True
    """Continue from the newest complete checkpoint of run_dir where there is one; false: refuse a run_dir that has any."""


@dataclass
class GuardConfig:
    """What ends a run, or a step, before its end."""

    max_skipped: int = 10
    """Steps in a row that may be skipped; more end the run. A step is skipped where its loss or gradient is not finite."""
    spike_factor: float = 0.0
    """Skip steps whose gradient norm is above this many times the median of the last accepted ones; 0: never."""
    step_timeout: float = 600.0
    """Seconds that a step may take before the run ends with the stacks of all processes."""
    start_timeout: float = 1800.0
    """The same for all processes to come together, the first step, which compiles, a save, an evaluation and the export."""
    stop_after: float = 0.0
    """Minutes after which the run saves and stops, to be started again; 0: never. A SLURM time limit is known anyway."""

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        for name in ("max_skipped", "spike_factor", "stop_after"):
            require(getattr(self, name) >= 0, f"guard.{name} must not be negative, but is {getattr(self, name)}")
        for name in ("step_timeout", "start_timeout"):
            require(getattr(self, name) > 0, f"guard.{name} must be positive, not {getattr(self, name)}")
        require(
            self.spike_factor == 0 or self.spike_factor > 1,
            f"guard.spike_factor={self.spike_factor} would skip ordinary steps; use a factor above 1, or 0 for never",
        )


@dataclass
class TelemetryConfig:
    """What is written about the run, and how often."""

    log_every: int = 10
    """Steps between console lines and metrics.jsonl records."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: nothing leaves the machine unless `online`."""
    wandb_project: str = "ttt-dist"
    """Project name shown by Weights & Biases."""
    tensorboard: bool = False
    """Write TensorBoard event files into run_dir/tensorboard."""
    peak_tflops: float = 0.0
    """TFLOP/s of one device, which the MFU is a share of; 0: dense bf16 of known GPUs, and no MFU elsewhere."""
    profile_start: int = 10
    """First step that is profiled, counted from 1 as in metrics.jsonl."""
    profile_steps: int = 0
    """Steps that are profiled, into run_dir/profile; 0: none."""
    profile_ranks: list[int] = field(default_factory=lambda: [0])
    """Processes that are profiled."""

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        for name in ("log_every", "profile_start"):
            require(getattr(self, name) > 0, f"telemetry.{name} must be positive, not {getattr(self, name)}")
        for name in ("peak_tflops", "profile_steps"):
            require(getattr(self, name) >= 0, f"telemetry.{name} must not be negative, but is {getattr(self, name)}")


@dataclass
class PrepConfig:
    """From recordings of words to shards: what tools/pipeline.py does before training. train.py reads none of it."""

    pattern: str = "{text}_{speaker}_{index}.wav"
    """File names of the recordings; {text}, {speaker} and {index} are needed."""
    holdout_every: int = 10
    """Every n-th recording index is kept for held-out utterances."""
    train_utterances: int = 20000
    """Random strings of words built for training."""
    valid_utterances: int = 400
    """... from held-out recordings, for the evaluation loss."""
    test_utterances: int = 400
    """... from held-out recordings, for the scores."""
    min_words: int = 1
    """Fewest words of an utterance."""
    max_words: int = 5
    """Most words of an utterance."""
    gap: str = "0.0:0.15"
    """Silence before each word, drawn between two bounds in seconds."""
    tail: str = "0.0:0.3"
    """Silence after the last word."""
    sample_rate: int = 16000
    """Hz, of the codec."""
    frame_rate: float = 12.5
    """Codes per second."""
    codebook_size: int = 512
    """Codes of the codec."""
    text_vocab_size: int = 400
    """Entries of the text tokenizer that is trained, at most."""
    templates: str = "asr,tts"
    """What samples are made of each utterance."""
    text_ratio: int = 13
    """Text tokens between spans of speech."""
    audio_ratio: int = 26
    """Codes of every span but the last."""
    name_speaker: bool = True
    """Name the speaker in text-to-speech prompts."""
    seq_len: int = 1024
    """Tokens of a pack."""


@dataclass
class EvaluationConfig:
    """Scores that tools/pipeline.py takes after training. train.py reads none of it."""

    asr_utterances: int = 300
    """Held-out utterances transcribed."""
    tts_utterances: int = 100
    """Held-out texts spoken."""
    normaliser: str | None = None
    """Of texts before they are compared (docs/evaluation.md), spelt-en where they are English without digits; by default each
    text's language decides."""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """How: as the flags of evaluate.py."""


@dataclass
class Config:
    """One run."""

    run_dir: str = "runs/default"
    """Folder that holds everything about the run: config, logs, metrics, checkpoints, export."""
    seed: int = 1234
    """Seed of the initial weights, the order of packs and the noise."""
    deepspeed: str = "ds_configs/zero1.json"
    """DeepSpeed's JSON (ZeRO stage, buckets, offload); batch sizes, precision, clipping and optimizer come from here, not from it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: Objective = field(default_factory=Objective)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    prep: PrepConfig = field(default_factory=PrepConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    callbacks: list[Any] = field(default_factory=list)
    """What else happens at a step: classes of one's own, my_package.module:Class or {my_package.module:Class: {every: 10}}."""


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides such as `train.lr=1e-3`, and check every value by itself.

    Raises UserError that names the file and the key (with the closest known key), or what is wrong with a value.
    """
    values = read_yaml(Path(path))
    config = build(Config, values, str(path))
    for text in overrides:
        config = override(config, text)
    _check_values(config)
    config.objective = config.objective.resolved()  # only now: an override may have changed the preset
    return config


def check_run(config: Config, world_size: int) -> None:
    """Cross-checks that need the number of processes; raises UserError, touches nothing.

    The shards have their own checks, made when they are opened.
    """
    one, blend = bool(config.data.train), bool(config.data.blend)
    require(one or blend, "neither data.train nor data.blend names a shard; give one, e.g. data.train=shards/train")
    require(
        not (one and blend), "data.train and data.blend are both set; take one away: data.train= or data.blend=null"
    )
    last = config.objective.at(config.train.steps - 1)  # which the export is a model of
    config.evaluation.decode.require_mode(last.kind, last.learns_audio_ar)
    stage = zero_stage(config.deepspeed)
    _check_parallel(config, stage)
    train, parallel = config.train, config.parallel
    model_size = parallel.tensor * parallel.pipeline * parallel.ulysses
    require(
        world_size % model_size == 0,
        f"{world_size} process(es) cannot be split into groups of {model_size} = parallel.tensor={parallel.tensor} x "
        f"parallel.pipeline={parallel.pipeline} x parallel.ulysses={parallel.ulysses}: start a multiple of {model_size}",
    )
    dp = world_size // model_size
    require(
        train.global_batch % (train.micro_batch * dp) == 0,
        f"train.global_batch={train.global_batch} cannot be split over {dp} data-parallel process(es) in micro-batches of "
        f"train.micro_batch={train.micro_batch}: it must be a multiple of {train.micro_batch * dp}",
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


def read_deepspeed(path: str | Path) -> dict[str, Any]:
    """The DeepSpeed JSON as a dict; UserError where it is missing, broken, or sets what the run's config sets."""
    try:
        values = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(
            f"deepspeed={path}: cannot be read ({error.strerror}); ds_configs/ holds zero0.json to zero3.json"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"deepspeed={path}: line {error.lineno} is not JSON ({error.msg})") from None
    require(isinstance(values, dict), f"deepspeed={path}: must hold a JSON object")
    for name, knob in _OWNED_BY_CONFIG.items():
        require(name not in values, f"deepspeed={path}: remove `{name}`; the run's config sets it ({knob})")
    zero = values.get("zero_optimization", {})
    require(isinstance(zero, dict), f"deepspeed={path}: zero_optimization must be a JSON object")
    stage = zero.get("stage", 0)
    require(stage in (0, 1, 2, 3), f"deepspeed={path}: zero_optimization.stage must be 0, 1, 2 or 3, not {stage!r}")
    return values


def zero_stage(path: str | Path) -> int:
    """The ZeRO stage that a DeepSpeed JSON asks for."""
    return int(read_deepspeed(path).get("zero_optimization", {}).get("stage", 0))


_OWNED_BY_CONFIG = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch and train.micro_batch",
    "gradient_clipping": "train.clip",
    "optimizer": "train.lr, train.betas, train.weight_decay",
    "scheduler": "train.warmup, train.min_lr_ratio",
    "bf16": "train.precision",
    "fp16": "train.precision",
}


def to_dict(config: Any) -> dict[str, Any]:
    """A (nested) settings dataclass as plain values that YAML and JSON can hold."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved settings as YAML that `load_config` reads back to the same Config."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def _check_values(config: Config) -> None:
    config.model.check()
    config.objective.check()
    config.data.check()
    config.train.check()
    for name, size in dataclasses.asdict(config.parallel).items():
        require(size > 0 or name == "sequence_parallel", f"parallel.{name} must be positive, not {size}")
    require(bool(config.run_dir), "run_dir must name a folder")
    require(0 <= config.seed < 2**63, f"seed must lie in [0, 2^63), not {config.seed}")
    for name in ("save_every", "keep_last", "keep_every"):
        value = getattr(config.checkpoint, name)
        require(value >= 0, f"checkpoint.{name} must not be negative, but is {value}")
    config.guard.check()
    config.telemetry.check()

"""The settings of a run: what train.py does, section by section.

A recipe also says what is done before and after it (`ttt_dist.config.pipeline`). `ttt_dist.config.loader` reads settings,
`ttt_dist.config.checks` looks whether they fit each other and the processes at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

from annotated_types import Interval

from ttt_dist.config.data import DataConfig
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.config.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
    require,
)

Seconds = Annotated[float, Interval(gt=0, le=1e8)]
"""What clocks and sockets take: three years."""
DecayRate = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(kw_only=True)
class BatchStage(Section):
    """Another batch size from a step on, until the next stage."""

    from_step: PositiveInt
    """The first step of the stage."""
    global_batch: PositiveInt
    """Packs per optimizer step."""


@dataclass(kw_only=True)
class ParamGroup(Section):
    """Weights that are updated in another way than the rest."""

    params: str
    """Names of the weights, with * and ?: embed.weight, blocks.0.*, *norm*; a weight belongs to the first group that names it."""
    lr_scale: NonNegativeFloat = 1.0
    """Times the step's learning rate; 0: the weights stay as they are."""
    weight_decay: NonNegativeFloat | None = None
    """In place of train.weight_decay; null: the same, and none for norms and biases."""
    rows: Literal["all", "new"] = "all"
    """all | new: of embed.weight and head.weight, only the rows that the base's text vocabulary does not have."""


@dataclass(kw_only=True)
class TrainConfig(Section):
    """Optimisation. Batches are counted in packs."""

    steps: PositiveInt = 1000
    """Optimizer steps of the whole run."""
    tokens: NonNegativeInt = 0
    """The end of the run as a budget of tokens (packs x their length), in place of steps; 0: steps says."""
    global_batch: PositiveInt = 8
    """Packs per optimizer step, over all processes."""
    batch_stages: list[BatchStage] = field(default_factory=list)
    """Other numbers of packs from set steps on, in order."""
    micro_batch: PositiveInt = 1
    """Packs per forward pass of one process; the rest is gradient accumulation."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    """What the rate does behind the warm-up; wsd (warm-up, stable, decay) keeps it and lets it fall in the last decay_steps."""
    schedule_by: Literal["steps", "tokens"] = "steps"
    """What warm-up and schedule count: the same, unless batch_stages changes the tokens of a step."""
    min_lr_ratio: Probability = 0.1
    """Where the schedule ends, as a share of lr; inverse_sqrt falls no further."""
    decay_steps: NonNegativeInt = 0
    """The decay of wsd; 0: a tenth of all steps."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay; norms and biases have none."""
    ema: DecayRate = 0.0
    """Decay of a moving average of the weights, kept beside them (`export-hf --ema`); 0: none."""
    param_groups: list[ParamGroup] = field(default_factory=list)
    """Weights with another rate or decay, or that stay as they are."""
    warmup: NonNegativeInt = 50
    """Steps of linear warm-up."""
    clip: NonNegativeFloat = 1.0
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
    gc_every: NonNegativeInt = 100
    """Steps between garbage collections, on all processes at once; 0: whenever Python likes."""
    eval_every: NonNegativeInt = 0
    """Steps between evaluations on the held-out packs; 0: only at the end."""
    eval_packs: NonNegativeInt = 64
    """Held-out packs per evaluation; 0: all."""

    def check(self, key: str) -> None:
        """Raise UserError for stages out of order."""
        for before, stage in pairwise(self.batch_stages):
            require(
                stage.from_step > before.from_step,
                f"{key}.batch_stages: the stage from step {stage.from_step} must come behind that from {before.from_step}",
            )

    @property
    def global_batches(self) -> list[int]:
        """Packs per step of all stages."""
        return [self.global_batch, *(stage.global_batch for stage in self.batch_stages)]


@dataclass
class ParallelConfig(Section):
    """How the model is split over processes; what is left of them is data parallel."""

    tensor: PositiveInt = 1
    """Processes that share each layer's weights (Megatron tensor parallelism)."""
    pipeline: PositiveInt = 1
    """Stages of consecutive layers, with ZeRO 0 or 1."""
    ulysses: PositiveInt = 1
    """Processes that share the tokens of a micro-batch, and the heads in attention (DeepSpeed Ulysses), with any ZeRO."""
    sequence_parallel: bool = False
    """Under tensor parallelism: split norms and residuals over the tokens too."""


@dataclass
class CheckpointConfig(Section):
    """Saving and resuming."""

    save_every: NonNegativeInt = 0
    """Steps between checkpoints; 0: only at the end."""
    save_every_minutes: NonNegativeFloat = 0.0
    """Minutes of training, by rank 0's clock, after which the next step is saved too; 0: steps alone decide."""
    keep_last: NonNegativeInt = 2
    """Complete checkpoints kept in the run folder; 0: all."""
    keep_every: NonNegativeInt = 0
    """Checkpoints of steps that are a multiple of this are kept for ever; 0: none is."""
    resume: bool = True
    """Continue from the newest complete checkpoint of run_dir where there is one; false: refuse a run_dir that has any."""
    async_save: bool = False
    """Train on while a checkpoint is written. Takes host memory for a copy of what each process saves."""
    local_every: NonNegativeInt = 0
    """Steps between saves to checkpoint.local_dir, beside training; a start goes on from them where they are newer. 0: none."""
    local_dir: str | None = None
    """Folder on each host's own disk, which may name its variables: /scratch/$SLURM_JOB_ID. Each host keeps a copy for another."""

    def check(self, key: str) -> None:
        """Raise UserError for local saves without a place."""
        require(
            self.local_every == 0 or bool(self.local_dir),
            f"{key}.local_every={self.local_every} needs {key}.local_dir: a folder on each host's own disk",
        )


@dataclass
class ExportConfig(Section):
    """Model folders beside the checkpoints, to be decoded while the training goes on."""

    every: NonNegativeInt = 0
    """Steps between exports into run_dir/exports/step-N; 0: none. At its end a run writes run_dir/export in any case."""


@dataclass(kw_only=True)
class GuardConfig(Section):
    """What ends a run, or a step, before its end."""

    max_skipped: NonNegativeInt = 10
    """Steps in a row that may be skipped; more end the run. A step is skipped where its loss or gradient is not finite."""
    max_data_skips: NonNegativeInt = 0
    """How often a run that would end so goes back to its last checkpoint instead and passes over the packs read since."""
    spike_factor: NonNegativeFloat = 0.0
    """Skip steps whose gradient norm is above this many times the median of the last accepted ones; 0: never."""
    recompute: bool = False
    """Compute a step that is to be skipped twice more, on its own ranks and on others: a device that differs ends the run."""
    step_timeout: Seconds = 600.0
    """Seconds that a step may take before the run ends with the stacks of all processes."""
    start_timeout: Seconds = 1800.0
    """The same for all processes to come together, the first step, which compiles, a save, an evaluation and an export."""
    check_nodes: bool = True
    """Before the first step, multiply, send and write on every node: what is wrong ends the run, what is slow is named."""
    stop_after: NonNegativeFloat = 0.0
    """Minutes after which the run saves and stops, to be started again; 0: never. A SLURM time limit is known anyway."""

    def check(self, key: str) -> None:
        """Raise UserError for a factor that would skip every other step."""
        require(
            self.spike_factor == 0 or self.spike_factor > 1,
            f"{key}.spike_factor={self.spike_factor} would skip ordinary steps; use a factor above 1, or 0 for never",
        )


@dataclass(kw_only=True)
class TelemetryConfig(Section):
    """What is written about the run, and how often."""

    log_every: PositiveInt = 10
    """Steps between console lines and metrics.jsonl records."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: nothing leaves the machine unless `online`."""
    wandb_project: str = "ttt-dist"
    """Project name shown by Weights & Biases."""
    tensorboard: bool = False
    """Write TensorBoard event files into run_dir/tensorboard."""
    peak_tflops: NonNegativeFloat = 0.0
    """TFLOP/s of one device, which the MFU is a share of; 0: dense bf16 of known GPUs, and no MFU elsewhere."""
    noise_scale_every: NonNegativeInt = 0
    """Steps between measurements of the gradient noise scale; 0: never."""
    profile_start: PositiveInt = 10
    """First step that is profiled, counted from 1 as in metrics.jsonl."""
    profile_steps: NonNegativeInt = 0
    """Steps that are profiled, into run_dir/profile; 0: none."""
    profile_ranks: list[NonNegativeInt] = field(default_factory=lambda: [0])
    """Processes that are profiled."""
    memory_history: bool = False
    """Record where device memory is taken and given back, for the snapshot in run_dir/logs where it runs out."""


@dataclass(kw_only=True)
class Config(Section):
    """One run."""

    run_dir: str = "runs/default"
    """Folder that holds everything about the run: config, logs, metrics, checkpoints, export."""
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = 1234
    """Seed of the initial weights, the order of packs and the noise."""
    deepspeed: str = "ds_configs/zero1.json"
    """DeepSpeed's JSON (ZeRO stage, buckets, offload); batch sizes, precision, clipping and optimizer come from here, not from it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: Objective = field(default_factory=Objective)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    callbacks: list[Any] = field(default_factory=list)
    """What else happens at a step: classes of one's own, my_package.module:Class or {my_package.module:Class: {every: 10}}."""

    def check(self, key: str) -> None:
        """Raise UserError where the run has no folder."""
        require(bool(self.run_dir), "run_dir must name a folder; give one, e.g. run_dir=runs/mine")

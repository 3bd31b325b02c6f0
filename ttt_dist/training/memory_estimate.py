"""Memory of one process of a run, estimated from its settings: for `--dry-run`, on any machine.

What is counted is what the model, DeepSpeed and autograd keep, each formula with its reason; tests compare them with what
is really allocated. Not counted: the process itself (interpreter, CUDA context, NCCL), fragmentation, the batch, the attention
masks of the CPU, and host memory of an optimizer that is offloaded from a GPU.
"""

from dataclasses import astuple, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from ttt_dist.config.deepspeed import read_deepspeed
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import Config
from ttt_dist.model.loss_chunks import CHUNK_ROWS, TILE_ELEMENTS
from ttt_dist.model.optimizer_groups import learnt_names
from ttt_dist.model.structure import head_dim, parameter_shapes
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.partition import padded_rows
from ttt_dist.parallel.stages import layer_sizes, stage_bounds
from ttt_dist.sequence.tokens import TokenLayout

FP32 = 4  # bytes
ADAM = 8  # bytes per parameter: two fp32 moments
COMMUNICATED = 500_000_000  # elements that DeepSpeed copies at a time to all-reduce them, where no bucket is configured
# What a DeepSpeed JSON that is silent about them means, in elements.
DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process at its peak. Needs that exclude each other in time are counted once, see `memory_per_rank`."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(astuple(self))

    def __str__(self) -> str:
        """The total and the parts, in one unit."""
        unit, size = ("GiB", 2**30) if self.total >= 2**30 else ("MiB", 2**20)
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / size:.1f}" for field in fields(self))
        return f"{self.total / size:.1f} {unit}: {parts}"


@dataclass(frozen=True)
class States:
    """Bytes that live from step to step, and what the update needs besides, when no activations are left."""

    weights: int
    gradients: int
    update: int
    optimizer: int


def memory_per_rank(
    config: Config, layout: TokenLayout, mesh: Mesh, zero_stage: int, seq_len: int, on_cuda: bool = False
) -> Memory:
    """Peak of the fullest process of `mesh`, with packs of `seq_len` tokens; pure, and no process group is made.

    Three things follow each other while all saved activations are there, or after them, so the largest counts: the loss
    (`logits`), the backward pass of one block (its excess over the logits is added to `activations`), and the update (its
    excess over both is added to `gradients`). `on_cuda`: kernels, buffers and offloading as on a GPU.
    """
    setup = Setup(config=config, layout=layout, mesh=mesh, zero_stage=zero_stage, seq_len=seq_len, on_cuda=on_cuda)
    sizes = layer_sizes(config.model, layout, mesh.tensor)
    learnt = layer_sizes(config.model, layout, mesh.tensor, setup.learns)
    bounds = stage_bounds([sum(layer) for layer in sizes], mesh.pipeline)
    stages = (_memory_of_stage(setup, sizes, learnt, stage, *ends) for stage, ends in enumerate(pairwise(bounds)))
    return max(stages, key=lambda memory: memory.total)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The arguments of `memory_per_rank`, and what follows from them."""

    config: Config
    layout: TokenLayout
    mesh: Mesh
    zero_stage: int
    seq_len: int
    on_cuda: bool

    @property
    def zero(self) -> dict[str, Any]:
        """DeepSpeed's settings of ZeRO, defaults put in."""
        values: dict[str, Any] = read_deepspeed(self.config.deepspeed).get("zero_optimization", {})
        return DEFAULTS | values

    @property
    def learns(self) -> set[str]:
        """The weights that the optimizer has: all, but where there are adapters."""
        return learnt_names(parameter_shapes(self.config.model, self.layout.padded_vocab_size), self.config.train)

    @property
    def is_bf16(self) -> bool:
        return self.config.train.precision == "bf16"

    @property
    def width(self) -> int:
        """Bytes of an element of weights and activations."""
        return 2 if self.is_bf16 else FP32

    @property
    def steps(self) -> int:
        """Micro-batches that a process accumulates."""
        return max(self.config.train.global_batches) // (self.config.train.micro_batch * self.mesh.data)

    @property
    def num_tokens(self) -> int:
        """Tokens of a micro-batch in one process."""
        return self.config.train.micro_batch * self.seq_len // self.mesh.ulysses

    @property
    def is_offloaded(self) -> bool:
        """The optimizer is in host memory, apart from the GPU's."""
        return self.on_cuda and self.zero.get("offload_optimizer", {}).get("device", "none") != "none"


def _memory_of_stage(
    setup: Setup, layers: list[list[int]], learnt: list[list[int]], stage: int, first: int, end: int
) -> Memory:
    """The stage that holds [first, end) of the pipeline's `layers`, of which `learnt` is what learns; see `memory_per_rank`."""
    model, mesh, kept = setup.config.model, setup.mesh, Kept.of(setup)
    has_head = stage == mesh.pipeline - 1
    if model.tie_embeddings and first == 0 and has_head:
        layers, learnt = layers[:-1], learnt[:-1]  # the embedding again
    states = states_of(setup, *([size for layer in kind[first:end] for size in layer] for kind in (layers, learnt)))

    num_blocks = max(min(end, model.num_layers + 1) - max(first, 1), 0)
    widths = Widths.of(model, mesh, setup.config.parallel.sequence_parallel)
    saved = num_blocks * widths.saved(setup.width, kept)
    saved += widths.saved_by_ends(setup.width, has_head, setup.on_cuda)
    # 1F1B: stage s has begun (stages - s) micro-batches when the first of them comes back.
    activations = saved * setup.num_tokens * min(mesh.pipeline - stage, setup.steps)
    block = setup.num_tokens * widths.block_backward(setup.width, kept) if num_blocks else 0
    logits = _logits(setup) if has_head else 0
    activations += max(block - logits, 0)
    gradients = states.gradients + max(states.update - activations - logits, 0)
    return Memory(
        weights=states.weights, gradients=gradients, optimizer=states.optimizer, activations=activations, logits=logits
    )


def states_of(setup: Setup, sizes: list[int], learnt: list[int] | None = None) -> States:
    """Weights, gradients and optimizer of a process with parameters of `sizes`, of which those of `learnt` (default: all) learn.

    Adam's moments are fp32. The optimizer has fp32 weights of its own wherever DeepSpeed wraps it: in bf16, and from ZeRO 1
    on in fp32 too. ZeRO-3 has shards of the weights, and whole ones as `_gathered` says.
    """
    learnt = sizes if learnt is None else learnt
    count = sum(learnt)
    # In bf16 a pipeline has BF16_Optimizer, which shards at ZeRO 0 too.
    is_sharded = setup.zero_stage > 0 or (setup.is_bf16 and setup.mesh.pipeline > 1)
    per_parameter = ADAM + (FP32 if setup.is_bf16 or setup.zero_stage > 0 else 0)
    per_parameter += FP32 if setup.config.train.ema else 0
    optimizer = 0 if setup.is_offloaded else per_parameter * count // (setup.mesh.zero_size if is_sharded else 1)
    weights = setup.width * sum(sizes)
    if setup.zero_stage == 3 and setup.mesh.zero_size > 1:
        weights = weights // setup.mesh.zero_size + setup.width * _gathered(sizes, setup.zero)
    return States(weights, *_gradients(setup, learnt), optimizer)


def _gathered(sizes: list[int], zero: dict[str, Any]) -> int:
    """Elements that ZeRO-3 holds whole at the turn from forward to backward pass, besides its shards.

    Parameters up to the persistence threshold stay whole. Of the others, each submodule fetches a bucket more, up to
    max_live_parameters; and those stay that are used again within the reuse distance, which are those of the last half of
    it, as the way to the end and back passes each of them twice. By both defaults that is a model of 10^9 parameters.
    """
    persistent = sum(size for size in sizes if size <= zero["stage3_param_persistence_threshold"])
    others = max(zero["stage3_max_live_parameters"], zero["stage3_max_reuse_distance"] // 2, *sizes)
    return int(min(sum(sizes), persistent + others))


def _gradients(setup: Setup, sizes: list[int]) -> tuple[int, int]:
    """Bytes of the gradients in the backward pass, and what is allocated after it to reduce them and to update.

    Sums over micro-batches are fp32, but in bf16 at ZeRO 0 (see `ttt_dist.parallel.zero.deepspeed_config`).
    """
    count, largest, steps = sum(sizes), max(sizes, default=0), min(setup.steps, 2)
    shard = count // setup.mesh.zero_size
    capacity = int(setup.zero["reduce_bucket_size"])
    bucket = capacity if setup.on_cuda else min(capacity, count)  # a CPU gives memory only to what is written
    all_reduced = min(count, COMMUNICATED)  # flattened copies, of which one process has no need but makes them too
    if setup.zero_stage == 0 and not setup.is_bf16:
        # Each weight's .grad.
        return FP32 * count, FP32 * all_reduced
    if setup.zero_stage == 0 and setup.mesh.pipeline == 1:
        # bf16 .grad; the update has fp32 copies of all.
        return 2 * count, max(2 * all_reduced, FP32 * count)
    if setup.zero_stage == 0:
        # BF16_Optimizer: bf16 .grad and a bf16 sum of all; the update casts its shard.
        return 4 * count, max(2 * all_reduced, FP32 * shard)
    if setup.zero_stage == 1 and setup.is_bf16 and not setup.is_offloaded:
        # BF16_Optimizer: bf16 .grad and an fp32 sum of all; the update reads its shard in place.
        return (2 + FP32) * count, FP32 * all_reduced
    if setup.zero_stage == 1:
        # .grad of all and a bucket, to which a pipeline adds one; after the backward pass flat copies of the own shard.
        return FP32 * (count + bucket * min(setup.mesh.pipeline, 2)), FP32 * shard
    # From ZeRO 2 on a .grad lives until it is in a bucket; one too large for it is reduced by itself.
    single = setup.width * largest
    buckets = 2 if setup.zero.get("overlap_comm") else 1  # one is filled while the other is sent
    if setup.zero_stage == 2 and setup.is_bf16:
        # bf16 buckets; the fp32 copy that is sent; the own shard's fp32 sum. What was too large for a bucket and belongs to
        # the shard stays to the end of the backward pass.
        too_large = sum(size for size in sizes if size > capacity)
        single = max(single, setup.width * min(too_large, too_large // setup.mesh.zero_size + largest))
        return single + FP32 * (shard + bucket) + 2 * buckets * bucket, 0
    if setup.zero_stage == 2:
        # The buckets; the own shard, twice while a micro-batch is added to others, and twice in the update.
        return single + FP32 * (buckets * bucket + steps * shard), FP32 * (2 - steps) * shard
    # ZeRO 3: the own shard's fp32 sum, a bucket and the copy that is sent; the update flattens the shard.
    kept = 0 if setup.is_offloaded else shard
    return single + FP32 * (kept + 2 * bucket), FP32 * kept


@dataclass(frozen=True)
class Kept:
    """How blocks run, as far as it decides what they keep."""

    checkpointing: str
    on_cuda: bool
    compiled: bool = False

    @classmethod
    def of(cls, setup: Setup) -> "Kept":
        train = setup.config.train
        return cls(train.activation_checkpointing, setup.on_cuda, train.compile)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Elements per token of what one process keeps: hidden states between the matrices, and slices within them."""

    hidden: int
    queries: int
    keys_values: int
    attended: int
    """Queries, keys and values as attention gets them: Ulysses repeats keys and values that it cannot split."""
    inner: int
    num_heads: int
    head_dim: int
    model_hidden: int
    has_head_norms: bool
    adapted: int
    """What lies between the two matrices of all adapters of a block."""

    @classmethod
    def of(cls, model: ModelConfig, mesh: Mesh, sequence_parallel: bool) -> "Widths":
        """Tensor parallelism divides heads and inner width, and hidden states with sequence parallelism only."""
        num_heads = model.num_heads // mesh.tensor
        num_groups = max(model.num_kv_heads // mesh.tensor, 1)
        attended_groups = num_groups if num_groups % mesh.ulysses == 0 else num_heads
        width = head_dim(model)
        return cls(
            hidden=model.hidden_size // (mesh.tensor if sequence_parallel else 1),
            queries=num_heads * width,
            keys_values=2 * num_groups * width,
            attended=(num_heads + 2 * attended_groups) * width,
            inner=model.ffn_hidden_size // mesh.tensor,
            num_heads=num_heads,
            head_dim=width,
            model_hidden=model.hidden_size,
            has_head_norms=model.qk_norm,
            adapted=model.lora.r * len(model.lora.target_modules),
        )

    def saved(self, width: int, kept: Kept) -> int:
        """Bytes per token that a block keeps for its backward pass; elements have `width` bytes.

        none: both norms; attention's inputs, output and fp32 log-sums; the output again as tokens, where slots of the CPU's
        buckets are another copy; gate and up, which SwiGLU saves, and its product, which `down` saves. The rotation saves
        shared tables only, and the sums of the residual stream save nothing. Compiled, attention's values are a part of the
        projection, which stays whole for them. selective: the block's input, the widening products and attention's output, but
        not where eager checkpointing does not see it, inside CUDA's kernel; full: the input.
        """
        product = self.queries + self.keys_values
        log_sums = FP32 * self.num_heads
        if kept.checkpointing == "full":
            return width * self.hidden
        if kept.checkpointing == "selective":
            products = sum(size for size in (product, 2 * self.inner) if size != self.model_hidden)
            attention = width * self.queries + log_sums if kept.compiled or not kept.on_cuda else 0
            return width * (self.hidden + products + self.adapted) + attention
        is_fused = kept.on_cuda or kept.compiled
        norms = 2 * (self._norm_inside(width, self.hidden, is_fused) + width * self.hidden)
        if self.has_head_norms and not kept.compiled:
            norms += self._norm_inside(width, self.queries + self.keys_values // 2, is_fused)
        attended = product + self.queries + self.keys_values // 2 if kept.compiled else self.attended
        outputs = self.queries if is_fused else 2 * self.queries
        return norms + width * (attended + outputs + 3 * self.inner + self.adapted) + log_sums

    def block_backward(self, width: int, kept: Kept) -> int:
        """Bytes per token that the backward pass of one block allocates.

        Its widest place is SwiGLU: the gradients of product, gate and up and two factors, and the residual stream's gradient.
        Compiled it has no factors. A block that was checkpointed is computed again first, and then saves what `none` does,
        compiled without what it has still.
        """
        whole = self.saved(width, replace(kept, checkpointing="none"))
        if kept.compiled:
            return whole - self.saved(width, kept) + width * (3 * self.inner + 2 * self.hidden)
        again = 0 if kept.checkpointing == "none" else whole
        return again + width * (5 * self.inner + 2 * self.hidden)

    def saved_by_ends(self, width: int, has_head: bool, on_cuda: bool) -> int:
        """Bytes per token besides the blocks: rotary tables, and the last norm or what is sent to the next stage."""
        end = self._norm_inside(width, self.hidden, on_cuda) if has_head else width * self.hidden
        return width * self.head_dim + end

    @staticmethod
    def _norm_inside(width: int, size: int, is_fused: bool) -> int:
        """Bytes that RMSNorm saves: its input; eager in bf16 on the CPU that in fp32, and the same divided by its rms."""
        return width * size if is_fused or width == FP32 else 2 * FP32 * size


def _logits(setup: Setup) -> int:
    """Bytes of the loss, every token taken for a target (at most one of each kind is), see `ttt_dist.model.loss`.

    Hidden states, the rows taken from them, and their gradient; the head's gradient, if it learns, in fp32, with a bf16 copy; on CUDA one
    chunk of logits in the weight's type and its gradient, and in the backward pass both gradients times the loss's
    beside themselves; on the CPU a tile of logits, and what it adds to the gradients.
    """
    hidden_size = setup.config.model.hidden_size
    rows = padded_rows(setup.layout.padded_vocab_size, setup.mesh.tensor) // setup.mesh.tensor
    extra = setup.width if setup.is_bf16 else 0
    states = 3 * setup.width * hidden_size * setup.num_tokens
    learns = ("embed.weight" if setup.config.model.tie_embeddings else "head.weight") in setup.learns
    whole = (FP32 + extra) * hidden_size * rows if learns else 0
    if not setup.on_cuda:
        return states + whole + (FP32 + extra) * min(TILE_ELEMENTS, setup.num_tokens * rows)
    chunk = 2 * setup.width * min(CHUNK_ROWS, setup.num_tokens) * rows
    return states + max(whole + chunk, 2 * setup.width * hidden_size * rows if learns else 0)

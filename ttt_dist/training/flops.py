"""Model FLOPs: the arithmetic that a step cannot do without, and what a GPU could do in the same time.

Useful work of a step, forward and backward:

    6 x weights of the blocks' matrices x tokens that are not padding
    + 6 x vocabulary x hidden size x targets (no other position needs logits)
    + 12 x visible (query, key) pairs x head width x heads x layers.

A matrix costs 2 FLOP per weight and token forward and 4 backward, of which 2 are for its own gradient: beside adapters, which
count as matrices of their own, it has none. Attention has two products of that kind. Pairs are
counted exactly, sample by sample and span by span. What is done beyond that (padding, hidden pairs, recomputation) counts
as nothing; norms, rotations, SwiGLU and softmax are not counted.
"""

import math
import re
from dataclasses import dataclass

from ttt_dist.config.model import ModelConfig
from ttt_dist.model.structure import head_dim, is_adapter, parameter_shapes

# Dense bf16 TFLOP/s of NVIDIA's data sheets (which print twice as much, "with sparsity", from A100 on); the first match counts.
PEAK_TFLOPS = {
    r"H100 PCIe": 756.0,
    r"H100 NVL|H200 NVL": 835.0,
    r"H100|H200|H800|GH200": 989.0,
    r"H20": 148.0,
    r"B200": 2250.0,
    r"A100|A800": 312.0,
    r"A40": 149.7,
    r"A30": 165.0,
    r"A10": 125.0,
    r"L40S": 362.0,
    r"L4": 121.0,
}


@dataclass(frozen=True)
class ModelFlops:
    """FLOP, forward and backward, of what a batch holds."""

    per_token: float
    per_target: float
    per_pair: float

    @classmethod
    def of(cls, model: ModelConfig, vocab_size: int, learns_head: bool = True) -> "ModelFlops":
        """Of a model with so many tokens in its vocabulary, padding left out."""
        width = head_dim(model)
        queries, keys_values = model.num_heads * width, 2 * model.num_kv_heads * width
        attention = model.hidden_size * (queries + keys_values) + queries * model.hidden_size  # before it, and after
        mlp = 3 * model.hidden_size * model.ffn_hidden_size
        adapters = sum(
            math.prod(shape) for name, shape in parameter_shapes(model, vocab_size).items() if is_adapter(name)
        )
        return cls(
            per_token=(4.0 if model.lora.r else 6.0) * model.num_layers * (attention + mlp) + 6.0 * adapters,
            per_target=(6.0 if learns_head else 4.0) * vocab_size * model.hidden_size,
            per_pair=12.0 * model.num_layers * queries,
        )

    def useful(self, tokens: float, targets: float, pairs: float) -> float:
        """Of so many tokens but padding, AR and NAR targets, and visible pairs."""
        return self.per_token * tokens + self.per_target * targets + self.per_pair * pairs


def known_peak_tflops(gpu: str) -> float | None:
    """Dense bf16 TFLOP/s of a GPU by the name that torch.cuda.get_device_name gives; None for one that is not in the table."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b(?:{name})\b", gpu)), None)

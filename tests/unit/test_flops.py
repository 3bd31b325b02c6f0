"""Model FLOPs against a count by hand, and against what torch counts while a model runs."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.structures import tiny_layout
from ttt_dist.config.model import LoraConfig, ModelConfig
from ttt_dist.model import loss, products
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.batch import Batch
from ttt_dist.training.flops import ModelFlops, known_peak_tflops

LAYOUT = tiny_layout()


def test_by_hand() -> None:
    """Two layers, width 8, 4 query heads and 2 key-value heads of 3, MLP 16, vocabulary 100."""
    flops = ModelFlops.of(
        ModelConfig(hidden_size=8, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=16, head_dim=3), 100
    )
    matrices = 8 * (12 + 6 + 6) + 12 * 8 + 8 * 32 + 16 * 8  # q, k, v; out; gate and up; down
    assert flops.per_token == 6 * 2 * matrices
    assert flops.per_target == 6 * 8 * 100
    assert flops.per_pair == 2 * 4 * 6 * 3 * 2  # layers, heads, 2 forward + 4 backward, width, scores and values
    assert flops.useful(5, 3, 15) == 5 * flops.per_token + 3 * flops.per_target + 15 * flops.per_pair


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=24),
        ModelConfig(
            hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, ffn_hidden_size=40, head_dim=6, qk_norm=True
        ),
        ModelConfig(
            hidden_size=16,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            ffn_hidden_size=24,
            lora=LoraConfig(r=3, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"]),
        ),
    ],
)
def test_as_counted_by_torch(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch without padding whose one sample is a span: each pair of tokens is visible, and none is computed in vain.

    By the ways of CUDA: torch does not count oneDNN's products, and the loss by tiles computes its logits twice.
    """
    monkeypatch.setattr(products, "ONEDNN", None)
    monkeypatch.setattr(loss, "by_tiles", loss.by_chunks)
    num_tokens, num_targets = 32, 9
    ids = torch.arange(num_tokens).unsqueeze(0) % LAYOUT.vocab_size
    one, place = torch.ones_like(ids), torch.arange(num_tokens).unsqueeze(0)
    weights = (place < num_targets).float()
    batch = Batch(
        input_ids=ids, position_ids=place, sample_ids=one, span_ids=one, ar_targets=ids, ar_weights=weights,
        nar_targets=ids, nar_weights=0 * weights, nar_bins=0 * ids, group_ids=0 * ids, num_loss_units=1.0,
    )  # fmt: skip
    assert batch.visible_pairs == num_tokens**2
    network = Transformer.for_layout(model, LAYOUT)
    learns = (
        ("_lora.", "embed") if model.lora.r else ("",)
    )  # an embedding that learns, or the first block has less to do
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(part in name for part in learns))

    def products_into(shape: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
        return int(2 * a[0] * a[1] * b[1])

    # The loss adds a product to the gradient of the head, which torch does not count by itself.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: products_into})
    with sdpa_kernel(SDPBackend.MATH), counter:
        network(batch).loss.backward()
    expected = ModelFlops.of(model, LAYOUT.vocab_size, learns_head=not model.lora.r).useful(
        num_tokens, num_targets, batch.visible_pairs
    )
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA GB200", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_by_name(name: str, tflops: float | None) -> None:
    assert known_peak_tflops(name) == tflops

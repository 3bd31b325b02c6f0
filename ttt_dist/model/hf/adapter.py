"""Adapters for other programs: merged into the weights that they adapt, and as a folder that peft reads.

That is a folder of its own in an export: on a model folder that holds one, transformers puts the adapter once more.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ttt_dist.config.model import LoraConfig, ModelConfig
from ttt_dist.model.hf.weight_names import OUTER_NAMES, from_huggingface, to_huggingface
from ttt_dist.model.structure import is_adapter
from ttt_dist.sequence.tokens import TokenLayout

ADAPTER = "adapter"
PREFIX = "base_model.model."
"""What peft puts before the names of a model that it wraps."""


@dataclass(frozen=True)
class Adaptation:
    """What adapters were trained on, and with."""

    base: str
    """The model folder, as train.init_from names it."""
    first_rows: Mapping[str, int]
    """Of embedding and head, by our names, where they learnt: the first row that did."""


class Merged:
    """The weights of a model by our names, adapters merged into the others; what a folder of peft's holds is kept."""

    def __init__(
        self, weights: Iterable[tuple[str, Tensor]], adapted: ModelConfig, adaptation: Adaptation | None = None
    ) -> None:
        """`weights` are in the order of the model's parameters, so that those of a layer follow each other."""
        self.weights, self.adapted, self.adaptation = weights, adapted, adaptation
        self.config = replace(adapted, lora=LoraConfig())
        """Of the model that the merged weights are of."""
        self._kept: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        if not self.adapted.lora.r:
            yield from self.weights  # one at a time: what comes may be in the memory of the one before
            return
        for _, weights in groupby(self.weights, lambda pair: _layer_of(pair[0])):
            yield from self._layer(dict(weights))

    def _layer(self, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        adapters = {name: weight for name, weight in weights.items() if is_adapter(name)}
        if self.adaptation is not None:
            self._kept |= {name: weight for name, weight in weights.items() if name in self.adaptation.first_rows}
        self._kept |= adapters
        for name, weight in weights.items():
            if name not in adapters:
                yield name, self._merged(name, weight, adapters) if name.endswith(".weight") and adapters else weight

    @torch.no_grad()
    def _merged(self, name: str, weight: Tensor, adapters: Mapping[str, Tensor]) -> Tensor:
        """W + lora_alpha / r * B A, part by part, in fp32."""
        lora, merged = self.adapted.lora, []
        for key, piece in to_huggingface(name, weight.float(), self.adapted).items():
            adapter = f"{_layer_of(name)}_lora.{key.split('.')[-2]}"
            if f"{adapter}.lora_A" in adapters:
                low, high = (adapters[f"{adapter}.lora_{letter}"].float() for letter in "AB")
                piece = piece + lora.lora_alpha / lora.r * high @ low
            merged.append(piece)
        return from_huggingface(name, merged, self.adapted).to(weight.dtype)

    def write_adapter(self, place: Path, layout: TokenLayout, dtype: torch.dtype) -> None:
        """Write the folder ADAPTER into `place`, once all weights have been read; nothing where there is no adaptation."""
        if self.adaptation is None:
            return
        (place / ADAPTER).mkdir()
        rows = {name: range(first, layout.vocab_size) for name, first in self.adaptation.first_rows.items()}
        tensors = {}
        for name, weight in self._kept.items():
            (theirs,) = to_huggingface(name, weight, self.adapted)
            if name in rows:
                theirs = theirs.replace(".weight", ".token_adapter.trainable_tokens_delta")
                weight = weight[rows[name].start : rows[name].stop]
            tensors[PREFIX + theirs] = weight.to(dtype).contiguous().clone()
        save_file(tensors, place / ADAPTER / "adapter_model.safetensors", {"format": "pt"})
        lora = self.adapted.lora
        values = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": self.adaptation.base,
            "r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": 0.0, "target_modules": list(lora.target_modules),
            "bias": "none", "inference_mode": True,
            "trainable_token_indices": {OUTER_NAMES[name].split(".")[-2]: list(of) for name, of in rows.items()} or None,
        }  # fmt: skip
        (place / ADAPTER / "adapter_config.json").write_text(json.dumps(values) + "\n", encoding="utf8")


def _layer_of(name: str) -> str:
    """The layer that a weight or an adapter belongs to: blocks.0.mlp.down."""
    return name.partition("_lora.")[0] if is_adapter(name) else name.rpartition(".")[0]

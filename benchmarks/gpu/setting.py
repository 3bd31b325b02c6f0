"""What a phase runs on: the device, and the shapes that are measured there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.contestants import QWEN_1_5B
from ttt_dist.config.model import ModelConfig
from ttt_dist.model import layers
from ttt_dist.sequence.tokens import AUDIO_SPECIALS, TEXT_SPECIALS, TokenLayout, released

Figures = dict[str, Any]
Measurement = tuple[str, Callable[[], Figures]]
"""A name, and what measures it; an exception costs this measurement alone."""

TINY = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_hidden_size=64, tie_embeddings=True)


class Skipped(Exception):
    """Raised by a measurement that cannot be made here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """Qwen2.5-1.5B's shape in bf16 with the released vocabulary on CUDA; a toy in fp32 on CPU, to try the phases."""

    device: str
    work: Path
    """Folder for files of all phases."""

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def config(self) -> ModelConfig:
        return QWEN_1_5B if self.on_cuda else TINY

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_cuda else torch.float32

    @property
    def layout(self) -> TokenLayout:
        return released() if self.on_cuda else small_layout()

    @property
    def seq_len(self) -> int:
        """Tokens of a pack."""
        return 8192 if self.on_cuda else 2048

    def require_cuda(self, what: str) -> None:
        """Raise Skipped on the CPU."""
        if not self.on_cuda:
            raise Skipped(f"{what}: needs CUDA")

    def wait(self) -> None:
        """Until the device has done what it was asked for."""
        if self.on_cuda:
            torch.cuda.synchronize()


def small_layout(num_text: int = 200, num_codes: int = 64) -> TokenLayout:
    """Text, special tokens, codes."""
    names = [*TEXT_SPECIALS, *AUDIO_SPECIALS]
    special_ids = {name: num_text + index for index, name in enumerate(names)}
    first_code = num_text + len(names)
    size = first_code + num_codes
    return TokenLayout(
        tokenizer="numbers",
        tokenizer_hash="0" * 64,
        num_text_tokens=num_text,
        special_ids=special_ids,
        first_code=first_code,
        num_codes=num_codes,
        vocab_size=size,
        padded_vocab_size=-(-size // 64) * 64,
    )


@contextmanager
def weights_drawn_on(device: str) -> Iterator[None]:
    """First weights are drawn where they are needed, by name as ever: on the CPU 1.5 B of them take half a minute."""

    def draw(source: Any, name: str, shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> Tensor:
        seed = int.from_bytes(blake2b(f"{source.seed}/{name}".encode(), digest_size=7).digest(), "little")
        generator = torch.Generator(device).manual_seed(seed)
        return torch.normal(mean, std, shape, generator=generator, device=device)

    with patch.object(layers.RandomWeights, "__call__", draw):
        yield

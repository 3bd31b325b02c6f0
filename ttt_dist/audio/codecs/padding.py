"""How waveforms of different lengths share a forward of a published network without changing each other's codes.

Everything here holds for waveforms of whole frames, so that no layer fills up a frame of its own:

- Causal networks (Mimi, EnCodec): an output sees no later input, so silence behind the end changes nothing before it.
  One exception: EnCodec mirrors the first samples to the left of the start. A layer whose whole input is shorter than what
  it mirrors takes zeros for the rest, and finds computed padding there where it is batched: hence `causal_from`.
- DAC pads each convolution with zeros on both sides, and what it computes of the padding (biases) is not zero: `silenced`
  makes it zero again before every convolution, which is then told what it would see at the waveform's own end.
- The others have a transformer that attends to everything without a mask, or norms over all of the time (Hubert's first
  group norm): only equal lengths may share a forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


def causal_from(model: Any, hop: int) -> int | None:
    """The samples from which a waveform may be padded at its end; None where the network is not causal.

    `model` is Mimi or EnCodec of transformers, whose convolutions know what they put before the start.
    """
    config = model.config
    if not config.use_causal_conv or getattr(config, "norm_type", "weight_norm") != "weight_norm":
        return None
    if config.pad_mode != "reflect":
        return 0
    return hop * (1 + max(int(getattr(layer, "padding_total", 0)) for layer in model.encoder.modules()))


@contextmanager
def silenced(encoder: nn.Module, lengths: Sequence[int]) -> Iterator[None]:
    """Within, every convolution of `encoder` finds zeros behind the end of each row of its batch.

    `lengths` are those of the rows in samples, of which the longest is the batch's. Every stride divides them.
    """
    longest = max(lengths)

    def silence(_: nn.Module, inputs: tuple[Tensor]) -> None:
        (x,) = inputs  # [B, C, T]: the output of an activation, which nothing else reads
        ends = torch.tensor([length * x.shape[2] // longest for length in lengths], device=x.device)
        x.masked_fill_((torch.arange(x.shape[2], device=x.device) >= ends[:, None])[:, None], 0.0)

    with ExitStack() as hooks:
        for layer in encoder.modules():
            if isinstance(layer, nn.Conv1d) and layer.kernel_size != (1,) and len(set(lengths)) > 1:
                handle = layer.register_forward_pre_hook(silence)
                hooks.callback(handle.remove)
        yield


def encode_in_steps(model: Any, waves: Sequence[Tensor], step: int, device: torch.device, **options: Any) -> Tensor:
    """Mimi's codes [B, k, n] of waveforms [T_i] of whole frames, n those of the longest, `step` samples (whole frames) at a
    time: the network keeps what its causal layers still need, so that memory grows with B x `step` and not with the length.
    """
    found: list[Tensor] = []
    caches: dict[str, Any] = {}
    for start in range(0, max(map(len, waves)), step):
        now = pad_sequence([wave[start : start + step] for wave in waves], batch_first=True)
        result = model.encode(now[:, None].to(device), use_streaming=True, **caches, **options)
        caches = {
            "encoder_past_key_values": result.encoder_past_key_values,
            "padding_cache": result.padding_cache,
        }
        found.append(result.audio_codes)
    return torch.cat(found, dim=2)

"""Behind `model.generate` of transformers: the decoder on the weights of an `AutoModelForCausalLM`, of which it makes no copy.

    model.generate(**prompt, custom_generate="runs/demo/export", trust_remote_code=True)

An export's custom_generate/generate.py hands on to `generate` here. Layout, tokenizer and settings come from the folder, or from
the Hub's repository, that the model was loaded from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ttt_dist.config.decode import DecodeSettings, folder_settings
from ttt_dist.data.metadata import ASSETS
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.detokenizer import Event, Finished, Result
from ttt_dist.model.hf.families import CONFIG, LAYOUT
from ttt_dist.model.hf.folder import open_folder
from ttt_dist.model.hf.shared_weights import transformer_on
from ttt_dist.util.errors import UserError

BESIDE_WEIGHTS = [CONFIG, "generation_config.json", LAYOUT, *ASSETS, *(f"{name}/*" for name in ASSETS)]
"""What is fetched of a repository: its weights are in the model."""


@dataclass
class TextToTalkOutput(ModelOutput):
    """Responses, one for each prompt."""

    sequences: torch.LongTensor | None = None
    """Prompts and responses, filled up with padding to the right."""
    text: list[str] | None = None
    spans: list[list[Tensor]] | None = None
    """The codes of each audio span in order, int32 [n] each, for the codec in the folder."""
    finish: list[str] | None = None
    """Why each ended (docs/decoding.md)."""


class Streamer(Protocol):
    """A streamer of transformers."""

    def put(self, value: Tensor) -> None:
        """Take the prompt, then tokens as they become final."""
        ...

    def end(self) -> None:
        """Take note that the response is whole."""
        ...


def generate(
    inputs: Tensor | Sequence[Any] | None = None,
    *,
    model: nn.Module,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    streamer: Streamer | None = None,
    on_event: Callable[[int, Event], None] = lambda row, event: None,
    return_dict_in_generate: bool = False,
    **options: Any,
) -> torch.LongTensor | TextToTalkOutput:
    """Responses to prompts [B, T] (or [T]), whose padding `attention_mask` tells, as `generate.py` decodes them.

    Without it every pad token is padding, as in transformers. `options` are fields of `DecodeSettings`; those not given are as the
    folder says. Row b is sampled with the seed `seed` + b.
    `streamer` takes the tokens of one prompt's response as they become final, a span at once; `on_event` text, spans and ends
    of any row (`ttt_dist.inference.detokenizer`). Returns tokens, or with `return_dict_in_generate` text and spans too.
    Raises UserError (a ValueError) for what the decoder does not take.
    """
    given = inputs if inputs is not None else input_ids
    if given is None:
        raise UserError("generate: no prompt; give input_ids, of tokenizer.apply_chat_template say")
    table = torch.atleast_2d(torch.as_tensor(given))
    if streamer is not None and len(table) > 1:
        raise UserError(f"generate: a streamer takes one prompt, not {len(table)}; use on_event for many")
    settings, decoder = _settings(folder_of(model), options), _decoder_on(model)
    pad = decoder.folder.layout.pad
    mask = table != pad if attention_mask is None else torch.atleast_2d(attention_mask)
    prompts = [row[keep].cpu().numpy() for row, keep in zip(table, mask.bool(), strict=True)]
    requests = [Request(ids, seed + row, max_new_tokens) for row, ids in enumerate(prompts)]
    results = _run(decoder, requests, settings, streamer, on_event)
    sequences = _padded(table, results, pad)
    if not return_dict_in_generate:
        return sequences
    return TextToTalkOutput(
        sequences=sequences,
        text=[result.text for result in results],
        spans=[[torch.from_numpy(span) for span in result.spans] for result in results],
        finish=[result.finish for result in results],
    )


def folder_of(model: nn.Module) -> Path:
    """The export that a model was loaded from; of a repository of the Hub, the copy of what lies beside its weights."""
    name = str(getattr(model, "name_or_path", "") or "")
    if Path(name).is_dir():
        return Path(name)
    if not name:
        raise UserError("the model says no folder that it was loaded from (name_or_path); load it by from_pretrained")
    return Path(snapshot_download(name, allow_patterns=BESIDE_WEIGHTS))


def _settings(folder: Path, options: dict[str, Any]) -> DecodeSettings:
    """The folder's settings, changed. transformers hands on all arguments of its own `generate`, those not given as None."""
    known = {field.name for field in fields(DecodeSettings)}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            raise UserError(
                f"generate: the Text-to-Talk decoder takes no {name}; it takes seed, max_new_tokens, streamer, on_event, "
                f"return_dict_in_generate, {', '.join(sorted(known))}"
            )
    return folder_settings(folder).changed(**given)


def _run(
    decoder: Decoder,
    requests: Sequence[Request],
    settings: DecodeSettings,
    streamer: Streamer | None,
    on_event: Callable[[int, Event], None],
) -> list[Result]:
    results: dict[int, Result] = {}
    session, told = decoder.session(), 0
    for request in requests:  # their keys count from 0
        session.add(request, settings)
    if streamer is not None:
        streamer.put(torch.from_numpy(requests[0].ids))
    while not session.is_idle:
        for row, event in session.step():
            on_event(row, event)
            if isinstance(event, Finished):
                results[row] = event.result
        if streamer is not None:
            ids = results[0].ids if 0 in results else session.committed(0)
            if len(ids) > told:
                streamer.put(torch.from_numpy(ids[told:].copy()))
            told = len(ids)
    if streamer is not None:
        streamer.end()
    return [results[row] for row in range(len(requests))]


def _padded(prompts: Tensor, results: Sequence[Result], pad: int) -> torch.LongTensor:
    width = max((len(result.ids) for result in results), default=0)
    rows = [np.pad(result.ids, (0, width - len(result.ids)), constant_values=pad) for result in results]
    responses = torch.from_numpy(np.stack(rows)).to(prompts.device, torch.int64)
    return torch.cat([prompts.long(), responses], dim=1)  # type: ignore[return-value]  # int64, which has no class


class _Known(NamedTuple):
    decoder: Decoder
    places: list[int]
    """Where the weights were in memory: `model.to` moves them."""


_DECODERS: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _decoder_on(model: nn.Module) -> Decoder:
    """The decoder on a model's weights: reading the tokenizer takes longer than a short response."""
    places = [weight.data_ptr() for weight in model.parameters()]
    known = _DECODERS.get(model)
    if known is None or known.places != places:
        folder = open_folder(folder_of(model), lambda config, layout: transformer_on(model, config, layout))
        known = _DECODERS[model] = _Known(Decoder(folder, takes_over=False), places)
    return known.decoder

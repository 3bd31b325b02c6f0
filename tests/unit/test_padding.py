"""Which codecs share a forward among waveforms of different length, and that nobody's codes change by it.

Networks have random weights in double precision, where rounding decides no code: what holds here holds by construction.
What single precision adds is shown apart: at one shape of the batch, not a bit follows from its other rows.
"""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.tiny_codecs import RATES, sound, tiny_model
from ttt_dist.audio.batches import MOST_PADDED, Sharing, batches
from ttt_dist.audio.codecs.codebooks import unflatten
from ttt_dist.audio.codecs.transformers import Pretrained, max_batch_samples
from ttt_dist.audio.codecs.transformers_kinds import KINDS

CPU = torch.device("cpu")
PADS = {"mimi": 0, "encodec": 80 * 9, "dac": 0}
"""From how many samples on; the others share a forward with their own length only. EnCodec mirrors up to 8 positions."""
BANDWIDTH = {"encodec": {"bandwidth": 1.5}}


def codec_of(name: str, model: Any) -> Pretrained:
    return Pretrained(name, model, Path("nowhere"), RATES[name][2], "", CPU)


@cache
def exact(name: str) -> Pretrained:
    """The tiny codec in double precision. Mimi's attention looks back 12 positions: long waves lose their first ones."""
    codec = codec_of(name, tiny_model(name, **{"sliding_window": 12} if name == "mimi" else {}))
    codec.model.double()
    return codec


def waves_of(lengths: list[int], seed: int = 0) -> list[Tensor]:
    return [sound(length, seed + number).double() for number, length in enumerate(lengths)]


def whole_frames(name: str, wave: Tensor) -> Tensor:
    return functional.pad(wave, (0, -len(wave) % RATES[name][1]))


def published(codec: Pretrained, wave: Tensor) -> np.ndarray:
    """The codes [k, n] of the package's own call of one waveform."""
    with torch.no_grad():
        found = codec.model.encode(
            whole_frames(codec.name, wave)[None, None], **BANDWIDTH.get(codec.name, {})
        ).audio_codes
    return np.asarray(found.flatten(0, -3)[0])


@pytest.mark.parametrize("name", KINDS)
def test_who_pads(name: str) -> None:
    codec = codec_of(name, tiny_model(name))
    assert codec.pads_from == PADS.get(name)
    assert codec.in_steps == (name == "mimi")


@pytest.mark.slow
@pytest.mark.parametrize("name", PADS)
@settings(max_examples=25, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 45 * 80), min_size=1, max_size=9), seed=st.integers(0, 99), step=st.integers(1, 40)
)
def test_codes_are_the_packages_own_whoever_the_mates_are(name: str, lengths: list[int], seed: int, step: int) -> None:
    codec, (_, hop, k, size) = exact(name), RATES[name]
    waves = waves_of(lengths, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ttt_dist.audio.codecs.transformers.STEP_SAMPLES", step * hop)
        patch.setattr("ttt_dist.audio.batches.MOST_PADDED", 50.0)
        found = codec.encode(waves)
    for wave, codes in zip(waves, found, strict=True):
        assert (unflatten(codes, k, size) == published(codec, wave)).all()


@pytest.mark.parametrize("name", PADS)
def test_batches_are_full(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen waveforms of different length, one batch: where lengths must be equal each would be alone."""
    codec, hop = codec_of(name, tiny_model(name)), RATES[name][1]
    sizes: list[int] = []
    codes = codec._codes
    monkeypatch.setattr(codec, "_codes", lambda waves: [sizes.append(len(waves)), codes(waves)][1])
    codec.encode([sound(30 * hop + number * hop) for number in range(12)])
    assert sizes == [12]


@pytest.mark.parametrize("name", ["higgs", "neucodec", "xcodec", "xcodec2"])
def test_the_others_share_with_their_own_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, hop = codec_of(name, tiny_model(name)), RATES[name][1]
    sizes: list[list[int]] = []
    codes = codec._codes
    monkeypatch.setattr(codec, "_codes", lambda waves: [sizes.append([len(wave) for wave in waves]), codes(waves)][1])
    codec.encode([sound(frames * hop) for frames in (30, 31, 30, 32, 31, 30)])
    assert [len(set(batch)) for batch in sizes] == [1, 1, 1]
    assert [len(batch) for batch in sizes] == [3, 2, 1]


@pytest.mark.parametrize("name", PADS)
def test_not_a_bit_follows_from_the_mates_sound(name: str) -> None:
    """In single precision, before the quantiser: other sounds of the same lengths beside a waveform."""
    codec, hop = codec_of(name, tiny_model(name)), RATES[name][1]
    seen: list[Tensor] = []
    codec.model.encoder.register_forward_hook(lambda _, inputs, out: seen.append(getattr(out, "latents", out)))
    for seed in (0, 7):
        codec._encode_batch([sound(31 * hop, seed), sound(28 * hop + 3, 3), sound(25 * hop, seed + 1)])
    one, other = (torch.cat(points, dim=2) for points in (seen[: len(seen) // 2], seen[len(seen) // 2 :]))
    assert torch.equal(one[1, :, :29], other[1, :, :29])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("name", ["dac", "encodec"])
def test_padding_alone_would_change_codes(name: str) -> None:
    """What the code beside these two is for: without it, a frame that sees behind the end has another code."""
    codec = exact(name)
    wave = sound(4 * 80 if name == "encodec" else 40 * 40, 1).double()
    padded = functional.pad(wave, (0, 40 * RATES[name][1]))
    alone = published(codec, wave)
    assert (published(codec, padded)[:, : alone.shape[1]] != alone).any()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mimi", {"use_causal_conv": False}),
        ("mimi", {"pad_mode": "reflect"}),
        ("encodec", {"use_causal_conv": False}),
        ("encodec", {"norm_type": "time_group_norm"}),
    ],
)
def test_other_settings_of_a_network_are_heeded(name: str, settings: dict[str, Any]) -> None:
    """Networks that are not causal, or mirror: equal lengths, or longer ones, and no steps."""
    codec = codec_of(name, tiny_model(name, **settings))
    assert codec.pads_from is None or codec.pads_from > 0
    assert not codec.in_steps
    hop = RATES[name][1]
    waves = [sound(frames * hop, frames) for frames in (30, 31, 30)]
    for wave, codes in zip(waves, codec.encode(waves), strict=True):
        assert (codec.encode([wave])[0] == codes).all()


@given(
    st.lists(st.integers(1, 50), max_size=20),
    st.integers(1, 100),
    st.one_of(st.none(), st.integers(0, 30)),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_batches_hold_each_index_once(lengths: list[int], most: int, pads_from: int | None, rows: int | None) -> None:
    found = list(batches(lengths, Sharing(most, pads_from, rows)))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        sizes = [lengths[index] for index in batch]
        assert len(sizes) == 1 or len(sizes) * max(sizes) <= most
        assert rows is None or len(sizes) <= rows
        if len(set(sizes)) > 1:
            assert pads_from is not None and min(sizes) >= pads_from
            assert max(sizes) <= MOST_PADDED * min(sizes)


def test_a_forward_fits_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert max_batch_samples(CPU) == 1_000_000
    assert max_batch_samples(torch.device("cuda")) == 8_888_888

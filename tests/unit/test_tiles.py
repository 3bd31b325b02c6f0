"""Embedding and head in tiles give what they gave as a plain weight."""

import copy

import pytest
import torch

from ttt_dist.config.model import ModelConfig
from ttt_dist.model import tiles
from ttt_dist.model.tiles import Tiles, tile_vocabulary
from ttt_dist.model.transformer import Transformer


def tiny(is_tied: bool) -> Transformer:
    config = ModelConfig(
        hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=2, ffn_hidden_size=8, tie_embeddings=is_tied
    )
    return Transformer(config, 40, num_tokens=37).requires_grad_(False)


@pytest.mark.parametrize("num_rows", [5, 16, 50])
def test_rows_and_products_are_those_of_the_weight(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_ROWS", 16)
    weight, x = torch.randn(num_rows, 12), torch.randn(3, 12)
    tiled = Tiles(weight.clone())
    assert torch.equal(tiled.rows(torch.arange(num_rows)), weight)
    for part in (slice(0, num_rows), slice(1, num_rows - 1), slice(num_rows - 2, num_rows)):
        with torch.inference_mode():
            torch.testing.assert_close(tiled.product(x, part), x @ weight[part].T)
    assert tiled.rows(torch.empty(0, dtype=torch.int64)).shape == (0, 12)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_model_stays_what_it_was(is_tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_ROWS", 16)
    model = tiny(is_tied)
    tiled = copy.deepcopy(model)
    address, size = tiled.head.weight.data_ptr(), sum(weight.numel() for weight in model.parameters())
    tile_vocabulary(tiled)
    tile_vocabulary(tiled)  # a second decoder of one model finds it done
    ids, hidden = torch.arange(40), torch.randn(2, 3, 8)
    assert tiled.head.tiles.flat.data_ptr() == address  # turned where it lay
    assert sum(weight.numel() for weight in tiled.parameters()) == size
    assert torch.equal(tiled.embed(ids), model.embed(ids))
    with torch.inference_mode():
        torch.testing.assert_close(tiled.logits(hidden), model.logits(hidden))
        assert tiled.logits(hidden[:0]).shape == model.logits(hidden[:0]).shape == (0, 3, 40)
        torch.testing.assert_close(tiled.logits(hidden[1, 2]), model.logits(hidden)[1, 2])


def test_what_is_not_fp32_on_the_cpu_is_left_alone() -> None:
    model: Transformer = tiny(True).bfloat16()
    before = model.head
    tile_vocabulary(model)
    assert model.head is before

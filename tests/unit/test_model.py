"""The Transformer against Hugging Face's Qwen2, and the rule that nothing leaks (rule 3 of the design)."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tests.structures import packs, tiny_layout
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.model.attention.plan import attention_plan
from ttt_dist.model.hf.folder import from_huggingface, huggingface_names
from ttt_dist.model.layers import LocalLayerFactory, RandomWeights, linear, swiglu
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.visibility import dense_mask

LAYOUT = tiny_layout()
SMALL = ModelConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=24)
VARIANTS = {
    "gqa": SMALL,
    "mha tied": dataclasses.replace(SMALL, num_kv_heads=4, tie_embeddings=True),
    "mqa wide heads": dataclasses.replace(SMALL, num_kv_heads=1, head_dim=8),
    "no bias": dataclasses.replace(SMALL, qkv_bias=False, rope_theta=1e4),
}


def reference(config: ModelConfig) -> PreTrainedModel:
    """A Hugging Face model of the same shape with random weights, biases and norms included."""
    kinds = (Qwen2Config, Qwen2ForCausalLM) if config.qkv_bias else (LlamaConfig, LlamaForCausalLM)
    torch.manual_seed(0)
    model = kinds[1](
        kinds[0](
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.ffn_hidden_size,
            head_dim=config.head_dim or config.hidden_size // config.num_heads,
            vocab_size=LAYOUT.padded_vocab_size,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def copy_of(theirs: PreTrainedModel, config: ModelConfig) -> Transformer:
    """Our model with the other one's weights."""
    ours = Transformer.for_layout(config, LAYOUT)
    state = theirs.state_dict()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            pieces = [state[key] for key in huggingface_names(name, config)]
            parameter.copy_(from_huggingface(name, pieces, config))
    return ours


def our_logits(model: Transformer, batch: Batch) -> Tensor:
    plan = attention_plan(batch.sample_ids, batch.span_ids, model.dtype)
    hidden = model.hidden(batch.input_ids.flatten(), batch.position_ids.flatten(), plan)
    return model.logits(hidden).view(*batch.input_ids.shape, -1)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_text_logits_equal_hugging_face(config: ModelConfig) -> None:
    theirs = reference(config)
    ids = torch.randint(0, LAYOUT.vocab_size, (3, 50), generator=torch.Generator().manual_seed(1))
    position_ids = torch.arange(50).expand(3, 50)
    plan = attention_plan(torch.ones_like(ids), torch.zeros_like(ids))
    ours = copy_of(theirs, config)
    with torch.no_grad():
        hidden = ours.hidden(ids.flatten(), position_ids.flatten(), plan)
        mine, wanted = ours.logits(hidden).view(*ids.shape, -1), theirs(ids).logits
    assert wanted.std() > 0.3
    torch.testing.assert_close(mine[..., : LAYOUT.vocab_size], wanted[..., : LAYOUT.vocab_size], rtol=0, atol=1e-4)
    assert (mine[..., LAYOUT.vocab_size :] == -torch.inf).all()


@settings(max_examples=15)
@given(packs(LAYOUT), st.sampled_from(list(VARIANTS.values())))
def test_packs_equal_hugging_face_with_a_dense_mask(rows: list, config: ModelConfig) -> None:
    """Positions restart, spans see both ways, samples do not see each other; loss and gradients follow."""
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + 2
    batch = collate(rows, LAYOUT, Objective(), 0, [0] * len(rows), seq_len)
    theirs = reference(config).double()
    ours = copy_of(theirs, config).double()
    mask = dense_mask(batch.sample_ids, batch.position_ids, batch.span_ids)[:, None]
    additive = torch.where(mask, 0.0, -1e30).double()
    logits = theirs(batch.input_ids, attention_mask=additive, position_ids=batch.position_ids).logits
    # Hugging Face computes angles, norms and softmax in fp32 whatever the model's type.
    mine, wanted = (x[batch.sample_ids != 0][:, : LAYOUT.vocab_size] for x in (our_logits(ours, batch), logits))
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-4)

    log_probs = logits[..., : LAYOUT.vocab_size].log_softmax(-1)
    loss = torch.zeros((), dtype=torch.float64)
    for targets, weights in ((batch.ar_targets, batch.ar_weights), (batch.nar_targets, batch.nar_weights)):
        loss = loss - (weights * log_probs.gather(-1, targets[..., None]).squeeze(-1)).sum()
    sums = ours(batch)
    torch.testing.assert_close(sums.loss.double(), loss, rtol=1e-5, atol=1e-6)
    sums.loss.backward()
    loss.backward()
    for name, parameter in ours.named_parameters():
        pieces = [theirs.get_parameter(key).grad for key in huggingface_names(name, config)]
        assert parameter.grad is not None, name
        expected = from_huggingface(name, [p if p is not None else torch.zeros(0) for p in pieces], config)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(packs(LAYOUT), st.sampled_from(["ttt", "ar", "nar"]), st.sampled_from(["bidirectional", "causal"]), st.data())
def test_a_changed_token_changes_no_logit_that_may_not_see_it(
    rows: list, kind: str, prompt_audio: str, data: st.DataObject
) -> None:
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + 3
    objective = Objective(kind=kind, prompt_audio=prompt_audio)
    batch = collate(rows, LAYOUT, objective, 0, [0] * len(rows), seq_len)
    model = Transformer.for_layout(SMALL, LAYOUT, LocalLayerFactory(RandomWeights(3)))
    row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, seq_len - 1))
    with torch.no_grad():
        before = our_logits(model, batch)
        batch.input_ids[row, column] = (batch.input_ids[row, column] + 1) % LAYOUT.vocab_size
        after = our_logits(model, batch)
    may_see = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    may_see[row] = dense_mask(batch.sample_ids, batch.position_ids, batch.span_ids)[row, :, column]
    may_see[row, column] = True
    changed = (before != after).any(-1)
    assert not (changed & ~may_see).any()
    assert changed[row, column]
    if batch.sample_ids[row, column] != 0:
        assert changed[may_see].all()


def test_nothing_but_padding_gives_zero_loss_and_every_gradient() -> None:
    batch = collate([[]], LAYOUT, Objective(), 0, [0], 5)
    model = Transformer.for_layout(SMALL, LAYOUT)
    sums = model(batch)
    sums.loss.backward()
    assert sums.loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_tied_head_is_the_embedding() -> None:
    model = Transformer.for_layout(VARIANTS["mha tied"], LAYOUT)
    assert model.head.weight is model.embed.weight


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    one, same, other = (
        Transformer.for_layout(SMALL, LAYOUT, LocalLayerFactory(RandomWeights(seed))) for seed in (5, 5, 6)
    )
    deeper = Transformer.for_layout(
        dataclasses.replace(SMALL, num_layers=3), LAYOUT, LocalLayerFactory(RandomWeights(5))
    )
    assert torch.equal(one.blocks[1].attention.qkv.weight, same.blocks[1].attention.qkv.weight)
    assert torch.equal(one.blocks[1].attention.qkv.weight, deeper.blocks[1].attention.qkv.weight)
    assert not torch.equal(one.embed.weight, other.embed.weight)
    assert not torch.equal(one.blocks[0].mlp.down.weight, one.blocks[1].mlp.down.weight)


def test_bf16_follows_fp32() -> None:
    ids = np.array(
        [1, 2, LAYOUT.begin_of_audio, *range(LAYOUT.first_code, LAYOUT.first_code + 9), LAYOUT.im_end], np.int32
    )
    rows = [[Sample.of([Segment(ids[:2], False), Segment(ids[2:], True)])] * 3]
    batch = collate(rows, LAYOUT, Objective(p_mix=0.0), 0, [0], 40)
    model = Transformer.for_layout(SMALL, LAYOUT)
    exact = model(batch)
    sums = model.bfloat16()(batch)
    sums.loss.backward()
    assert min(exact.terms["ar"], exact.terms["nar"]) > 0
    torch.testing.assert_close(sums.loss, exact.loss, rtol=2e-2, atol=0)


def test_swiglu_gradient() -> None:
    gate_up = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(swiglu, gate_up)


@pytest.mark.parametrize("num_rows", [1, 2, 8, 27, 257])
@pytest.mark.parametrize("num_out", [96, 256, 300])
def test_a_product_of_few_rows_is_the_same(num_rows: int, num_out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    generator = torch.Generator().manual_seed(num_rows)
    x, weight, bias = (
        torch.randn(*shape, generator=generator) for shape in ((num_rows, 48), (num_out, 48), (num_out,))
    )
    for added in (None, bias):
        with torch.inference_mode():
            found = linear(x, weight, added)
        torch.testing.assert_close(found, F.linear(x, weight, added), rtol=1e-5, atol=1e-5)
        assert found.is_contiguous()

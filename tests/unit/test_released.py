"""The released vocabulary and objective, whole model: packs against one dense row per sample and full logits.

The reference is written from docs/method.md#the-objective and from nothing of `ttt_dist.sequence` but the noise: a
sample's noised ids and the uniform numbers they were drawn from. Classes, spans, mask, targets, 1/p and normalisation
are its own; the forward is Hugging Face's.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.model.hf.folder import from_huggingface, huggingface_names
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.batch import collate
from ttt_dist.sequence.corruption import corrupt, draw
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.tokens import released

LAYOUT = released()
CONFIG = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=48)
SEQ_LEN = 448
FIRST_AUDIO, MASK, VOCAB_SIZE = 151684, 168069, 168072  # the released code's numbers
IM_START, IM_END, NEWLINE = 151644, 151645, 198
BEGIN, END_OF_PROMPT, BEGIN_LAST, END, END_LAST = 151674, 151675, 151676, 168070, 168071

Turn = tuple[list[int], bool]


def turn(role: int, body: list[int], is_target: bool) -> list[Turn]:
    """A ChatML turn: header, body, end of turn."""
    return [([IM_START, role, NEWLINE], False), ([*body, IM_END], is_target)]


def sample_of(turns: list[Turn]) -> Sample:
    return Sample.of([Segment(np.array(ids, np.int32), flag) for ids, flag in turns])


def text(rng: np.random.Generator, length: int) -> list[int]:
    return rng.integers(0, 151643, length).tolist()


def codes(rng: np.random.Generator, length: int) -> list[int]:
    return rng.integers(151685, 168069, length).tolist()


def spoken(words: list[int], speech: list[int]) -> list[int]:
    """13 text tokens and 26 codes in turn; the last span carries what is left."""
    ids: list[int] = []
    while len(words) > 13 and len(speech) > 26:
        ids += [*words[:13], BEGIN, *speech[:26], END]
        words, speech = words[13:], speech[26:]
    return [*ids, *words, BEGIN_LAST, *speech, END_LAST]


def asr(rng: np.random.Generator) -> Sample:
    speech = codes(rng, 41)
    prompt = turn(8948, text(rng, 4), False) + turn(872, [BEGIN, *speech, END_OF_PROMPT], False)
    return sample_of(prompt + turn(77091, spoken(text(rng, 15), speech), True))


def audio_chat(rng: np.random.Generator) -> Sample:
    """Two exchanges; the second answer has three spans."""
    turns: list[Turn] = []
    for num_words, num_codes in ((5, 9), (30, 75)):
        turns += turn(872, [*text(rng, 2), BEGIN, *codes(rng, 7), END_OF_PROMPT], False)
        turns += turn(77091, spoken(text(rng, num_words), codes(rng, num_codes)), True)
    return sample_of(turns)


def text_chat(rng: np.random.Generator) -> Sample:
    return sample_of(turn(872, text(rng, 6), False) + turn(77091, text(rng, 11), True))


def reference_loss(model: Qwen2ForCausalLM, sample: Sample, objective: Objective, seed: int, mix: bool) -> Tensor:
    """L_AR + L_NAR of one sample, alone in a row that is padded to SEQ_LEN / 2."""
    noise = draw(sample, seed, epoch=0)
    noised = corrupt(sample, LAYOUT, objective, noise, mix).input_ids
    num_tokens = len(noised)  # less than the sample where its last span was cut
    clean = torch.from_numpy(sample.ids[:num_tokens].astype(np.int64))
    is_target, is_audio = torch.from_numpy(sample.is_target[:num_tokens]), clean >= FIRST_AUDIO

    padded = F.pad(torch.from_numpy(noised.astype(np.int64)), (0, SEQ_LEN // 2 - num_tokens), value=151643)
    logits = model(padded[None], attention_mask=additive_mask(padded >= FIRST_AUDIO, num_tokens)).logits[0]
    log_probs = logits[:num_tokens, :VOCAB_SIZE].log_softmax(-1)

    masked = torch.from_numpy(noised == MASK)
    counts = is_target[1:] & ~is_audio[1:]
    if objective.preset == "paper":
        counts &= ~masked[:-1]
    ar = -log_probs[:-1].gather(1, clean[1:, None])[:, 0][counts]
    nar = -log_probs.gather(1, clean[:, None])[:, 0][masked]
    num_maskable = 0 if mix else int(maskable(is_audio & is_target, noise.prefix, noise.first_span).sum())
    p_noise = (1 - 1e-3) * noise.t + 1e-3
    return ar.sum() / max(len(ar), 1) + nar.sum() / p_noise / max(num_maskable, 1)


def additive_mask(is_audio: Tensor, num_tokens: int) -> Tensor:
    """0 or -1e30, [1, 1, S, S]: causal, and both ways within a run of audio; token by token from the definition."""
    size = len(is_audio)
    visible = torch.eye(size, dtype=torch.bool)  # padding looks at itself, since softmax must look somewhere
    for query in range(num_tokens):
        last = query
        while is_audio[query] and last + 1 < num_tokens and is_audio[last + 1]:
            last += 1
        visible[query, : last + 1] = True
    return torch.where(visible, 0.0, -1e30)[None, None]


def maskable(response_audio: Tensor, prefix: float, first_span: float) -> Tensor:
    """Response audio without the spans that PPM preserves."""
    number = (response_audio & ~F.pad(response_audio, (1, 0))[:-1]).cumsum(0)  # of the span, from 1
    first = int(first_span * int(number[-1])) if prefix < 0.3 else 0
    return response_audio & (number > first)


@cache
def reference_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=CONFIG.hidden_size,
            num_hidden_layers=CONFIG.num_layers,
            num_attention_heads=CONFIG.num_heads,
            num_key_value_heads=CONFIG.num_kv_heads,
            intermediate_size=CONFIG.ffn_hidden_size,
            vocab_size=LAYOUT.padded_vocab_size,
            rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@cache
def our_model() -> Transformer:
    ours, state = Transformer.for_layout(CONFIG, LAYOUT), reference_model().state_dict()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            pieces = [state[key] for key in huggingface_names(name, CONFIG)]
            parameter.copy_(from_huggingface(name, pieces, CONFIG))
    return ours


def pack(*kinds: Callable[[np.random.Generator], Sample]) -> list[Sample]:
    rng = np.random.default_rng(len(kinds))
    return [kind(rng) for kind in kinds]


PACKS = [pack(audio_chat, text_chat, asr), pack(text_chat, audio_chat)]
SAMPLES = [sample for row in PACKS for sample in row]
CASES = {"noise": ("released", 1), "text loss alone (BANOM)": ("released", 2), "paper": ("paper", 1)}


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "seed"), CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_equal_dense_rows_and_full_logits(preset: str, seed: int) -> None:
    objective = Objective(preset=preset, mix_unit="micro_batch")
    batch = collate(PACKS, LAYOUT, objective, seed, [0, 0], SEQ_LEN)
    mix = draw(PACKS[0][0], seed, 0).mix < 0.3
    theirs, ours = reference_model(), our_model()
    theirs.zero_grad()
    ours.zero_grad()

    total = 0.0
    for sample in SAMPLES:
        loss = reference_loss(theirs, sample, objective, seed, mix) / len(SAMPLES)
        loss.backward()
        total += loss.item()
    sums = ours(batch)
    (sums.loss / batch.num_loss_units).backward()

    assert abs(sums.loss.item() / batch.num_loss_units - total) < 1e-5 * total
    for name, parameter in ours.named_parameters():
        pieces = [theirs.get_parameter(key).grad for key in huggingface_names(name, CONFIG)]
        expected = from_huggingface(name, [piece for piece in pieces if piece is not None], CONFIG)
        assert parameter.grad is not None, name
        assert (parameter.grad - expected).norm() < 1e-5 * expected.norm(), name


def test_the_noise_of_these_cases_has_everything() -> None:
    """With seed 1: masked positions with a text target, cut spans, a preserved prefix. With seed 2: no noise."""
    draws = [draw(sample, 1, 0) for sample in SAMPLES]
    noisy, quiet = (collate(PACKS, LAYOUT, Objective(preset="released"), seed, [0, 0], SEQ_LEN) for seed in (1, 2))
    assert ((noisy.input_ids == MASK) & (noisy.ar_weights > 0)).any()
    assert noisy.useful_tokens < sum(map(len, SAMPLES))
    first = SAMPLES[0]
    response = torch.from_numpy(first.is_target & (first.ids >= FIRST_AUDIO))
    assert 0 < maskable(response, draws[0].prefix, draws[0].first_span).sum() < response.sum()
    assert not (quiet.input_ids == MASK).any() and quiet.nar_tokens == 0

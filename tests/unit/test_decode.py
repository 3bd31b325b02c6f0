"""Decoding against a plain loop of one request, sampling against its definitions, the rules for stopping."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.structures import samples, tiny_layout
from ttt_dist.config import ModelConfig
from ttt_dist.errors import UserError
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.phases import Rules, State, advance
from ttt_dist.inference.sampling import choose_codes, choose_text, keep_top_k, keep_top_p, most_confident
from ttt_dist.inference.settings import DecodeSettings
from ttt_dist.model.attention import attention_plan
from ttt_dist.model.layers import PlainFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.text_tokenizer import TextTokenizer

LAYOUT = tiny_layout(shuffle_seed=2)
CONFIG = ModelConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=24, init_std=0.4)
ENDS = {LAYOUT.end_of_audio_new, LAYOUT.end_of_audio_span_last}
STARTS = {LAYOUT.begin_of_audio, LAYOUT.begin_of_quad}


class Letters(TextTokenizer):
    """Text ids 0.. as letters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids) -> str:  # noqa: ANN001
        return "".join(chr(ord("a") + i) for i in ids)

    def special_id(self, piece: str) -> int | None:
        return None


def model(seed: int = 0) -> Transformer:
    return Transformer.for_layout(CONFIG, LAYOUT, PlainFactory(RandomWeights(seed))).requires_grad_(False)


def decoder(seed: int = 0, prompt_audio: str = "bidirectional", batch_size: int = 32) -> Decoder:
    return Decoder(model(seed), LAYOUT, Letters(), prompt_audio, batch_size)


def is_audio(token: int) -> bool:
    is_code = LAYOUT.first_code <= token < LAYOUT.first_code + LAYOUT.num_codes
    return is_code or token in ENDS or token == LAYOUT.mask


def plain_logits(net: Transformer, ids: list[int], num_prompt: int, prompt_audio: str) -> torch.Tensor:
    """Logits of every position of one sequence."""
    span_ids, run = [], 0
    for place, token in enumerate(ids):
        run += not is_audio(token)
        counts = is_audio(token) and (place >= num_prompt or prompt_audio == "bidirectional")
        span_ids.append(run + 1 if counts else 0)
    row = torch.tensor([ids])
    plan = attention_plan(torch.ones_like(row), torch.tensor([span_ids]))
    return net.logits(net.hidden(row[0], torch.arange(len(ids)), plan))


def plain_loop(net: Transformer, prompt: list[int], chosen: DecodeSettings, prompt_audio: str) -> list[int]:
    """Section 5 of the method, one request, greedy, everything recomputed at each step."""
    ids, num_text = list(prompt), 0
    text = [t for t in range(LAYOUT.vocab_size) if not is_audio(t)]
    text = [t for t in text if t not in (LAYOUT.pad, LAYOUT.im_start, LAYOUT.end_of_audio)]
    audio = [t for t in range(LAYOUT.vocab_size) if is_audio(t) and t != LAYOUT.mask]
    while num_text < chosen.max_text:
        logits = plain_logits(net, ids, len(prompt), prompt_audio)[-1]
        token = max(text, key=lambda t: float(logits[t]))
        ids.append(token)
        num_text += 1
        if token == LAYOUT.im_end or (token == LAYOUT.begin_of_quad and chosen.stop_at_last_span):
            break
        if token not in STARTS:
            continue
        start = len(ids)
        while len(ids) - start < chosen.span_limit:
            size = min(chosen.block, chosen.span_limit - (len(ids) - start))
            ids += [LAYOUT.mask] * size
            # An even split: the first forwards commit one more where it does not divide.
            steps = min(chosen.steps, size)
            shares = [size // steps + (step < size % steps) for step in range(steps)]
            for share in shares:
                logits = plain_logits(net, ids, len(prompt), prompt_audio).double()
                found = []
                for place in range(start, len(ids)):
                    if ids[place] == LAYOUT.mask:
                        allowed = logits[place][audio].softmax(-1)
                        best = int(allowed.argmax())
                        found.append((-float(allowed[best]), place, audio[best]))
                for _, place, code in sorted(found)[:share]:
                    ids[place] = code
            end = next((place for place in range(start, len(ids)) if ids[place] in ENDS), None)
            if end is not None:
                ids = ids[: end + 1]
                break
    return ids[len(prompt) :]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(samples(LAYOUT), min_size=1, max_size=5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["bidirectional", "causal"]),
    st.booleans(),
    st.integers(0, 5),
)
def test_batched_decoding_equals_the_plain_loop(
    prompts: list, block: int, steps: int, prompt_audio: str, stop: bool, seed: int
) -> None:
    chosen = DecodeSettings(block=block, steps=steps, span_limit=20, max_text=6, stop_at_last_span=stop)
    ours = decoder(seed, prompt_audio, batch_size=3)
    results = ours.generate([Request(prompt.ids) for prompt in prompts], chosen)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.ids.tolist() == plain_loop(ours.model, prompt.ids.tolist(), chosen, prompt_audio)


def random_prompts(count: int) -> list[Request]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, LAYOUT.num_text_tokens, rng.integers(1, 30)) for _ in range(count)]
    return [Request(np.append(prompt, LAYOUT.im_end).astype(np.int32), seed=n) for n, prompt in enumerate(prompts)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batch_mates_change_nothing(temperature: float) -> None:
    """Alone, with others, in another order and in smaller batches: the same tokens, sampled ones too."""
    chosen = DecodeSettings(
        block=5, steps=3, span_limit=15, max_text=8, temperature=temperature, code_temperature=temperature
    )
    requests = random_prompts(12)
    together = [result.ids.tolist() for result in decoder().generate(requests, chosen)]
    alone = [decoder().generate([request], chosen)[0].ids.tolist() for request in requests]
    backwards = [result.ids.tolist() for result in decoder(batch_size=5).generate(requests[::-1], chosen)][::-1]
    assert together == alone == backwards
    assert any(is_audio(token) for ids in together for token in ids)
    assert len({tuple(ids) for ids in together}) > 6


def test_seeds_decide_what_is_sampled() -> None:
    chosen = DecodeSettings(block=5, steps=3, span_limit=15, max_text=8, temperature=1.0, code_temperature=1.0)
    prompt = random_prompts(1)[0].ids
    outputs = [decoder().generate([Request(prompt, seed)], chosen)[0].ids.tolist() for seed in (1, 1, 2, 3)]
    assert outputs[0] == outputs[1]
    assert len({tuple(output) for output in outputs}) == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_only_allowed_tokens_in_their_places(seed: int, block: int, steps: int) -> None:
    """No mask, padding, prompt delimiter or end of turn where it cannot be, whatever the model would like."""
    chosen = DecodeSettings(block, steps, span_limit=17, max_text=7, temperature=2.0, code_temperature=2.0)
    (result,) = decoder(seed % 7).generate([Request(random_prompts(1)[0].ids, seed)], chosen)
    in_span = False
    for token in result.ids:
        assert token < LAYOUT.vocab_size
        assert token not in (LAYOUT.mask, LAYOUT.pad, LAYOUT.im_start, LAYOUT.end_of_audio)
        assert not is_audio(token) or in_span
        in_span = token in STARTS or (in_span and is_audio(token) and token not in ENDS)
    assert all(len(span) <= 17 for span in result.spans)
    assert result.finish == ("end_of_turn" if result.ids[-1] == LAYOUT.im_end else "max_text")
    assert result.text == "".join(chr(97 + t) for t in result.ids if t < LAYOUT.num_text_tokens)


def rules(**values: float | bool) -> Rules:
    return Rules.of(DecodeSettings(**values), LAYOUT, torch.device("cpu"))


def logits_of(*tokens: int) -> torch.Tensor:
    """Rows that make each of these tokens all but certain."""
    rows = torch.zeros(len(tokens), LAYOUT.padded_vocab_size)
    rows[range(len(tokens)), tokens] = 50.0
    return rows


def run(rows: list[torch.Tensor], chosen: Rules) -> State:
    state = State(np.array([1, 2], dtype=np.int32), 2, seed=0)
    for row in rows:
        assert state.finish is None
        state = advance(state, row, chosen)
    return state


def test_a_span_closes_after_its_first_end_and_text_goes_on() -> None:
    code, end = LAYOUT.first_code, LAYOUT.end_of_audio_new
    state = run([logits_of(LAYOUT.begin_of_audio), logits_of(code, end, code, end)], rules(block=4, steps=1))
    assert state.ids.tolist() == [1, 2, LAYOUT.begin_of_audio, code, end]
    assert state.span_start is None
    assert state.needed(LAYOUT).tolist() == [4]
    state = advance(state, logits_of(LAYOUT.im_end), rules(block=4, steps=1))
    assert (state.finish, state.num_forwards, state.num_text) == ("end_of_turn", 3, 2)


def test_a_full_block_is_followed_by_another_up_to_the_limit() -> None:
    code = LAYOUT.first_code
    chosen = rules(block=4, steps=1, span_limit=6)
    state = run([logits_of(LAYOUT.begin_of_quad), logits_of(*[code] * 4)], chosen)
    assert state.ids[3:].tolist() == [code] * 4 + [LAYOUT.mask] * 2
    state = advance(state, logits_of(code, code), chosen)
    assert state.span_start is None
    assert len(state.ids) == 3 + 6


def test_stopping_where_the_last_span_would_open() -> None:
    chosen = rules(stop_at_last_span=True)
    assert run([logits_of(3), logits_of(LAYOUT.begin_of_quad)], chosen).finish == "last_span"
    assert run([logits_of(3), logits_of(LAYOUT.begin_of_audio)], chosen).finish is None


@given(st.integers(1, 40), st.integers(1, 50))
@settings(deadline=None)
def test_commits_are_split_evenly(block: int, steps: int) -> None:
    chosen = rules(block=block, steps=steps, span_limit=block)
    state = run([logits_of(LAYOUT.begin_of_audio)], chosen)
    left = [block]
    while state.span_start is not None:
        state = advance(state, logits_of(*[LAYOUT.first_code] * left[-1]), chosen)
        left.append(int((state.ids == LAYOUT.mask).sum()))
    shares = -np.diff(left)
    assert shares.sum() == block
    assert len(shares) == min(steps, block)
    assert shares.max() - shares.min() <= 1


def test_the_surest_positions_are_committed_first_and_stay() -> None:
    chosen = rules(block=3, steps=3)
    logits = torch.zeros(3, LAYOUT.padded_vocab_size)
    logits[[0, 1, 2], LAYOUT.first_code] = torch.tensor([2.0, 9.0, 5.0])
    state = run([logits_of(LAYOUT.begin_of_audio), logits], chosen)
    assert state.ids[3:].tolist() == [LAYOUT.mask, LAYOUT.first_code, LAYOUT.mask]
    state = advance(state, logits_of(LAYOUT.first_code + 1, LAYOUT.first_code + 2), chosen)
    assert state.ids[4] == LAYOUT.first_code


def test_top_k_and_top_p() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05])
    kept = {k: set(keep_top_k(probabilities.log(), k).isfinite().nonzero().flatten().tolist()) for k in (0, 1, 3, 9)}
    assert kept == {0: {0, 1, 2, 3, 4}, 1: {1}, 3: {1, 2, 3}, 9: {0, 1, 2, 3, 4}}
    nucleus = {
        p: keep_top_p(probabilities.log(), p).isfinite().nonzero().flatten().tolist() for p in (0.3, 0.5, 0.7, 1.0)
    }
    assert nucleus == {0.3: [1], 0.5: [1, 3], 0.7: [1, 2, 3], 1.0: [0, 1, 2, 3, 4]}


def test_sampling_follows_the_probabilities() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    settings_ = DecodeSettings(temperature=1.0)
    drawn = Counter(choose_text(probabilities.log(), settings_, np.random.default_rng(n)) for n in range(4000))
    for token, probability in enumerate(probabilities.tolist()):
        assert abs(drawn[token] / 4000 - probability) < 0.03
    ids, confidence = choose_codes(probabilities.log().expand(4000, 3), 1.0, np.random.default_rng(0))
    assert abs((ids == 0).float().mean() - 0.6) < 0.03
    torch.testing.assert_close(confidence, probabilities[ids])


def test_ties_of_confidence_go_to_the_earlier() -> None:
    assert most_confident(torch.tensor([0.5, 0.9, 0.5, 0.9]), 3).tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"block": 0}, "--block"),
        ({"temperature": -1.0}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"steps": 0}, "--steps"),
    ],
)
def test_settings_out_of_range_are_named(values: dict, flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        DecodeSettings(**values)


@pytest.mark.parametrize("ids", [[], [LAYOUT.vocab_size], [-1]])
def test_a_prompt_that_cannot_be_is_refused(ids: list[int]) -> None:
    with pytest.raises(UserError, match="request 0"):
        decoder().generate([Request(np.array(ids, dtype=np.int32))], DecodeSettings())


def test_no_requests_no_results() -> None:
    assert decoder().generate([], DecodeSettings()) == []


def test_models_of_other_objectives_are_refused(tmp_path: Path) -> None:
    from ttt_dist.model.huggingface import ModelFolder
    from ttt_dist.sequence.objective import Objective
    from ttt_dist.sequence.templates import TemplateSettings

    folder = ModelFolder(model(), LAYOUT, Letters(), TemplateSettings(), Objective(kind="ar"), tmp_path)
    with pytest.raises(UserError, match=r"objective\.kind=ar"):
        Decoder.from_folder(folder)
    Decoder.from_folder(dataclasses.replace(folder, objective=Objective()))

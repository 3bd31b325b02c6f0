"""Decoding against a plain loop of one request, sampling against its definitions, events, the rules for stopping."""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plain_decoding import differing, draw_settings
from tests.structures import tiny_layout
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.detokenizer import UNFINISHED, Finished, IncrementalDetokenizer, SpanDone, TextPiece
from ttt_dist.inference.flags import add_decoding_flags, as_flags, settings_from_flags
from ttt_dist.inference.model_runner import Asked, Wanted, choices
from ttt_dist.inference.sampling import choose_codes, choose_text, guided, nucleus, sample
from ttt_dist.inference.sequence_state import (
    Choice,
    DecodeContext,
    SequenceState,
    allowed_ids,
    decode_step,
    most_confident,
)
from ttt_dist.model.attention.kv_cache import SequenceCache
from ttt_dist.model.hf.folder import ModelFolder
from ttt_dist.model.layers import LocalLayerFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.util.errors import UserError

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


def folder(
    seed: int = 0, kind: str = "ttt", prompt_audio: str = "bidirectional", max_length: int = 4096
) -> ModelFolder:
    """A model of random weights; what decoding does not read of a folder is left out."""
    model = Transformer.for_layout(CONFIG, LAYOUT, LocalLayerFactory(RandomWeights(seed))).requires_grad_(False)
    objective = Objective(kind=kind, prompt_audio=prompt_audio, audio_ar=0.5)
    return ModelFolder(
        model=model, layout=LAYOUT, tokenizer=Letters(), template=TemplateSettings(), objective=objective, codec=Path("none"),
        max_length=max_length,
    )  # fmt: skip


def decoder(seed: int = 0, batch_size: int = 32) -> Decoder:
    return Decoder(folder(seed), batch_size)


def is_audio(token: int) -> bool:
    is_code = LAYOUT.first_code <= token < LAYOUT.first_code + LAYOUT.num_codes
    return is_code or token in ENDS or token == LAYOUT.mask


def drawn_prompts(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Prompts of text, audio and earlier answers, of very different lengths."""
    prompts = []
    for _ in range(count):
        pieces = [rng.integers(0, LAYOUT.num_text_tokens, rng.integers(0, 12))]
        for _ in range(rng.integers(0, 3)):
            codes = LAYOUT.first_code + rng.integers(0, LAYOUT.num_codes, rng.integers(1, 40))
            end = rng.choice([LAYOUT.end_of_audio, *ENDS])  # the user's, or an earlier answer's
            pieces += [[LAYOUT.begin_of_audio], codes, [end]]
        prompts.append(np.concatenate([*pieces, [LAYOUT.im_end]]).astype(np.int32))
    return prompts


def modes_of(kind: str) -> list[str]:
    return ["diffusion", "ar", "verified", "tidar"] if kind == "ttt" else ["diffusion"]


LONG_CASES = {1, 6, 16, 18, 20, 28, 29, 33, 35}


@pytest.mark.parametrize("case", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG_CASES)) for n in range(36)])
def test_cached_batches_give_the_tokens_of_the_plain_loop(case: int) -> None:
    """432 prompts, each with settings of its own, in ragged batches of 1 to 8."""
    rng = np.random.default_rng(case)
    kind = "ttt" if case < 32 else ("ar", "nar")[case % 2]
    model = folder(case % 5, kind, str(rng.choice(["bidirectional", "causal"])))
    prompts = drawn_prompts(rng, 12)
    limits = {"span_limit": 70, "max_text": int(rng.integers(1, 7)), "max_codes": int(rng.integers(20, 150))}
    chosen = [draw_settings(rng, kind, audio_mode=rng.choice(modes_of(kind)), **limits) for _ in prompts]
    assert differing(model, prompts, chosen, 1 + case % 8) == []


def random_prompts(count: int, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, LAYOUT.num_text_tokens, rng.integers(1, 30)) for _ in range(count)]
    return [Request(np.append(prompt, LAYOUT.im_end).astype(np.int32), seed=n) for n, prompt in enumerate(prompts)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batch_mates_change_nothing(temperature: float, seed: int) -> None:
    """Alone, with others, in another order and in smaller batches: the same tokens, sampled ones too."""
    chosen = DecodeSettings(
        block=5, steps=3, span_limit=15, max_text=20, temperature=temperature, code_temperature=temperature
    )
    requests = random_prompts(12, seed)
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


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_only_allowed_tokens_in_their_places(seed: int, block: int, steps: int) -> None:
    """No mask, padding, prompt delimiter or end of turn where it cannot be, whatever the model would like."""
    chosen = DecodeSettings(block=block, steps=steps, span_limit=17, max_text=7, temperature=2.0, code_temperature=2.0)
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


def context(kind: str = "ttt", max_length: int = 4096, **values: float | bool | str) -> DecodeContext:
    return DecodeContext(DecodeSettings(**values), LAYOUT, kind, max_length)


def logits_of(*tokens: int) -> torch.Tensor:
    """Rows that make each of these tokens all but certain, over the whole vocabulary."""
    rows = torch.zeros(len(tokens), LAYOUT.padded_vocab_size)
    rows[range(len(tokens)), tokens] = 50.0
    return rows


def step(
    state: SequenceState, row: torch.Tensor, chosen: DecodeContext, *behind_openers: torch.Tensor
) -> SequenceState:
    """One forward that gives these logits, and under `tidar` those behind each opener that may come."""
    parts = zip([state, *chosen.openings(state)], [row, *behind_openers], strict=True)
    return decode_step(state, [choice_of(part, logits, chosen) for part, logits in parts], chosen)


def choice_of(state: SequenceState, row: torch.Tensor, chosen: DecodeContext) -> Choice:
    allowed = np.isin(np.arange(row.shape[1]), allowed_ids(LAYOUT, chosen.phase(state)))
    logits = row.masked_fill(~torch.from_numpy(allowed), float("-inf"))
    found = choices(chosen.phase(state), logits, Wanted.of([Asked(state, chosen, SequenceCache(0), None)]))
    return Choice(*(values.numpy() for values in found))


def run(rows: list[torch.Tensor], chosen: DecodeContext) -> SequenceState:
    state = chosen.start(np.array([1, 2]), np.array([0, 0]), seed=0)
    for row in rows:
        assert state.finish is None
        state = step(state, row, chosen)
    return state


def test_a_span_closes_after_its_first_end_and_text_goes_on() -> None:
    code, end = LAYOUT.first_code, LAYOUT.end_of_audio_new
    state = run([logits_of(LAYOUT.begin_of_audio), logits_of(code, end, code, end)], context(block=4, steps=1))
    assert state.ids.tolist() == [1, 2, LAYOUT.begin_of_audio, code, end]
    assert state.span_start is None
    assert context().needed(state).tolist() == [4]
    state = step(state, logits_of(LAYOUT.im_end), context(block=4, steps=1))
    assert (state.finish, state.num_forwards, state.num_text) == ("end_of_turn", 3, 2)


def test_a_full_block_is_followed_by_another_up_to_the_limit() -> None:
    code = LAYOUT.first_code
    chosen = context(block=4, steps=1, span_limit=6)
    state = run([logits_of(LAYOUT.begin_of_quad), logits_of(*[code] * 4)], chosen)
    assert state.ids[3:].tolist() == [code] * 4 + [LAYOUT.mask] * 2
    state = step(state, logits_of(code, code), chosen)
    assert state.span_start is None
    assert len(state.ids) == 3 + 6


def test_stopping_where_the_last_span_would_open() -> None:
    chosen = context(stop_at_last_span=True)
    assert run([logits_of(3), logits_of(LAYOUT.begin_of_quad)], chosen).finish == "last_span"
    assert run([logits_of(3), logits_of(LAYOUT.begin_of_audio)], chosen).finish is None


@given(st.integers(1, 40), st.integers(1, 50))
def test_commits_are_split_evenly(block: int, steps: int) -> None:
    chosen = context(block=block, steps=steps, span_limit=block)
    state = run([logits_of(LAYOUT.begin_of_audio)], chosen)
    left = [block]
    while state.span_start is not None:
        state = step(state, logits_of(*[LAYOUT.first_code] * left[-1]), chosen)
        left.append(int((state.ids == LAYOUT.mask).sum()))
    shares = -np.diff(left)
    assert shares.sum() == block
    assert len(shares) == min(steps, block)
    assert shares.max() - shares.min() <= 1


def test_the_surest_positions_are_committed_first_and_stay() -> None:
    chosen = context(block=3, steps=3)
    logits = torch.zeros(3, LAYOUT.padded_vocab_size)
    logits[[0, 1, 2], LAYOUT.first_code] = torch.tensor([2.0, 9.0, 5.0])
    state = run([logits_of(LAYOUT.begin_of_audio), logits], chosen)
    assert state.ids[3:].tolist() == [LAYOUT.mask, LAYOUT.first_code, LAYOUT.mask]
    state = step(state, logits_of(LAYOUT.first_code + 1, LAYOUT.first_code + 2), chosen)
    assert state.ids[4] == LAYOUT.first_code


def drawn(probabilities: torch.Tensor, **values: float) -> dict[int, float]:
    """Shares of the columns that 4,000 numbers, spread evenly, give."""
    chosen = DecodeSettings(temperature=1.0, **values)
    numbers = (torch.arange(4000) + 0.5) / 4000
    ids = choose_text(probabilities.log().expand(4000, -1), chosen, numbers)
    return {token: count / 4000 for token, count in sorted(Counter(ids.tolist()).items())}


def test_top_k_and_top_p() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05])
    kept = {k: set(drawn(probabilities, top_k=k)) for k in (0, 1, 3, 9)}
    assert kept == {0: {0, 1, 2, 3, 4}, 1: {1}, 3: {1, 2, 3}, 9: {0, 1, 2, 3, 4}}
    kept = {p: nucleus(probabilities.unsqueeze(0), p)[0].nonzero().flatten().tolist() for p in (0.3, 0.5, 0.7, 1.0)}
    assert kept == {0.3: [1], 0.5: [1, 3], 0.7: [1, 2, 3], 1.0: [0, 1, 2, 3, 4]}
    assert set(drawn(probabilities, top_k=3, top_p=0.6)) == {1, 3}  # of the three: 0.47, 0.29, 0.24


def test_sampling_follows_the_probabilities() -> None:
    probabilities = torch.tensor([0.6, 0.0, 0.3, 0.1])
    for top_k in (0, 3):
        assert drawn(probabilities, top_k=top_k) == pytest.approx({0: 0.6, 2: 0.3, 3: 0.1}, abs=0.001)
    heats, numbers = torch.tensor([1.0] * 4000 + [0.0]), torch.rand(4001, generator=torch.manual_seed(0))
    ids, probability, confidence = choose_codes(probabilities.log().repeat(4001, 1), heats, numbers)
    assert abs((ids[:4000] == 0).float().mean() - 0.6) < 0.03
    assert ids[4000] == 0
    torch.testing.assert_close(probability, probabilities[ids])
    assert confidence is probability


def test_a_code_comes_again_with_its_probability_and_else_the_likeliest_other() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log().repeat(4003, 1)
    before = np.array([1] * 4000 + [0, 2, -1])  # the likeliest, and codes that are not the likeliest anyway
    numbers = torch.rand(4003, generator=torch.manual_seed(0), dtype=torch.float64)
    ids, probability, _ = choose_codes(logits, torch.zeros(4003), numbers, before=before)
    assert abs((ids[:4000] == 1).float().mean() - 0.6) < 0.03
    assert set(ids[:4000].tolist()) == {1, 2} and ids[4000:].tolist() == [1, 1, 1]
    torch.testing.assert_close(probability, torch.tensor([0.1, 0.6, 0.3])[ids])
    sure = torch.tensor([[0.0, -200.0, -200.0]])
    found, _, _ = choose_codes(
        sure, torch.zeros(1), torch.tensor([1 - 2**-53], dtype=torch.float64), before=np.array([0])
    )
    assert found.tolist() == [0]


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-39, 1e-30, 9e-6, 1e-4, 1e300])
def test_no_temperature_draws_what_is_not_there(temperature: float) -> None:
    logits = torch.tensor([[-60.0, 80.0, -1e4, 79.0]])
    settings = DecodeSettings(temperature=temperature, code_temperature=temperature)
    heats = torch.tensor([settings.code_temperature])
    for number in (0.0, 0.5, 1.0):
        ids = (
            choose_text(logits, settings, torch.tensor([number])),
            choose_codes(logits.clone(), heats, torch.tensor([number]))[0],
        )
        assert all(0 <= int(one) < 4 if temperature > 1 else int(one) == 1 for one in ids)


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53, 1.0])
def test_no_number_draws_what_is_impossible(number: float) -> None:
    probabilities = torch.tensor([[0.0, 0.0, 1e-30, 0.0], [0.0, 0.3, 0.7, 0.0]])
    ids = sample(probabilities, torch.full((2,), number, dtype=torch.float64))
    assert (probabilities.gather(1, ids.unsqueeze(1)) > 0).all()


def test_ties_of_confidence_go_to_the_earlier() -> None:
    assert most_confident(np.array([0.5, 0.9, 0.5, 0.9]), 3).tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"block": 0}, "--block"),
        ({"temperature": -1.0}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"steps": 0}, "--steps"),
        ({"threshold": 1.5}, "--threshold"),
        ({"remasking": "none"}, "--remasking"),
        ({"cfg": float("nan")}, "--cfg"),
    ],
)
def test_settings_out_of_range_are_named(values: dict, flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        DecodeSettings().changed(**values)


@pytest.mark.parametrize("ids", [[], [LAYOUT.vocab_size], [-1]])
def test_a_prompt_that_cannot_be_is_refused(ids: list[int]) -> None:
    with pytest.raises(UserError, match="request 0"):
        decoder().generate([Request(np.array(ids, dtype=np.int32))], DecodeSettings())


def test_no_requests_no_results() -> None:
    assert decoder().generate([], DecodeSettings()) == []


def test_the_model_limits_prompt_and_response() -> None:
    prompt = np.zeros(20, dtype=np.int32)
    with pytest.raises(UserError, match="the prompt has 20 tokens, and the model takes 20 with its response"):
        Decoder(folder(max_length=20)).generate([Request(prompt)])
    for seed in range(6):
        (result,) = Decoder(folder(seed, max_length=27)).generate([Request(prompt)], DecodeSettings(block=4, steps=2))
        assert len(prompt) + len(result.ids) <= 27
        assert result.finish in ("max_length", "end_of_turn")


def test_audio_of_a_response_is_limited() -> None:
    code = LAYOUT.first_code
    chosen = context(block=4, steps=1, max_codes=6)
    state = run([logits_of(LAYOUT.begin_of_audio), logits_of(*[code] * 4), logits_of(code, code)], chosen)
    assert (state.finish, state.num_audio, state.span_start) == ("max_codes", 6, None)


def test_what_the_model_is_sure_of_is_committed_at_once() -> None:
    """Nine masks in three steps; those above the threshold go beyond the share, never below it."""
    logits = torch.zeros(9, LAYOUT.padded_vocab_size)
    logits[:7, LAYOUT.first_code] = 20.0
    for threshold, left in ((0.0, 6), (0.9, 2)):
        state = run([logits_of(LAYOUT.begin_of_audio), logits], context(block=9, steps=3, threshold=threshold))
        assert int((state.ids == LAYOUT.mask).sum()) == left
        assert state.steps_left == 2


def test_random_remasking_chooses_any_position() -> None:
    logits = torch.zeros(6, LAYOUT.padded_vocab_size)
    logits[:, LAYOUT.first_code] = torch.arange(6.0) + 1
    places = set()
    for seed in range(80):
        chosen = context(block=6, steps=6, remasking="random")
        state = chosen.start(np.array([1]), np.array([0]), seed)
        state = step(step(state, logits_of(LAYOUT.begin_of_audio), chosen), logits, chosen)
        places.add(int(np.flatnonzero(state.ids == LAYOUT.first_code)[0]))
    assert places == set(range(2, 8))


def test_position_decay_commits_the_first_masks_however_sure_the_others_are() -> None:
    logits = torch.zeros(6, LAYOUT.padded_vocab_size)
    logits[:, LAYOUT.first_code] = torch.arange(6.0) + 1
    chosen = context(block=6, steps=3, position_decay=100.0)
    state = step(chosen.start(np.array([1]), np.array([0]), 0), logits_of(LAYOUT.begin_of_audio), chosen)
    for number in (1, 2, 3):
        state = step(state, logits[2 * number - 2 :], chosen)
        assert np.flatnonzero(state.ids[2:8] == LAYOUT.first_code).tolist() == list(range(2 * number))


def test_guidance_moves_logits_away_from_those_without_context() -> None:
    with_context, without = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    torch.testing.assert_close(guided(with_context, without, 0.0), with_context)
    torch.testing.assert_close(guided(with_context, without, 0.5), torch.tensor([0.5, 3.0]))


@pytest.mark.parametrize(("cfg", "factor"), [(0.0, 1), (0.5, 2)])
def test_guidance_doubles_the_forwards_of_spans(cfg: float, factor: int) -> None:
    in_spans = 0
    for request in random_prompts(8):
        session, num_steps, results = decoder().session(), 0, []
        session.add(request, DecodeSettings(cfg=cfg, block=4, steps=4, span_limit=8, max_text=6))
        while not session.is_idle:
            results += [event.result for _, event in session.step() if isinstance(event, Finished)]
            num_steps += 1
        num_text = sum(not is_audio(token) for token in results[0].ids)
        assert results[0].num_forwards == num_text + factor * (num_steps - num_text)
        assert results[0].num_audio_forwards == factor * (num_steps - num_text)
        in_spans += num_steps - num_text
    assert in_spans > 0


def test_events_tell_text_and_spans_as_they_are_finished() -> None:
    chosen = DecodeSettings(block=3, steps=2, span_limit=9, max_text=9, temperature=1.0, code_temperature=1.0)
    requests = random_prompts(8)
    told: dict[int, list] = {}
    for index, event in decoder(batch_size=3).stream(requests, chosen):
        told.setdefault(index, []).append(event)
    for index, result in enumerate(decoder().generate(requests, chosen)):
        *events, end = told[index]
        assert isinstance(end, Finished)
        assert end.result.ids.tolist() == result.ids.tolist()
        assert "".join(event.text for event in events if isinstance(event, TextPiece)) == result.text
        spans = [event.codes.tolist() for event in events if isinstance(event, SpanDone)]
        assert spans == [span.tolist() for span in result.spans]
        places = [next(n for n, t in enumerate(result.ids) if is_audio(t)) if result.spans else 0]
        first = next((n for n, event in enumerate(events) if isinstance(event, SpanDone)), 0)
        before = [t for t in result.ids[: places[0]] if t < LAYOUT.num_text_tokens]
        assert first == (len(before) if result.spans else 0)  # told before the text that follows


def test_text_is_told_when_its_characters_are_whole() -> None:
    class Halves(Letters):
        """Two ids make a letter."""

        def decode(self, ids) -> str:  # noqa: ANN001
            return "".join("ab"[i % 2] for i in ids[1::2]) + UNFINISHED * (len(ids) % 2)

    reader = IncrementalDetokenizer(Halves(), LAYOUT)
    assert [reader.read(np.array([n])) for n in range(4)] == [[], [TextPiece("b")], [], [TextPiece("b")]]
    state = SequenceState(ids=np.arange(5), span_ids=np.zeros(5), num_prompt=0, seed=0, finish="max_text")
    assert reader.read(np.array([4])) == []
    assert reader.end(state, 5, 2)[0] == TextPiece(UNFINISHED)


def test_requests_join_and_leave_a_session() -> None:
    chosen = DecodeSettings(block=3, steps=2, span_limit=9, max_text=9, temperature=0.7)
    requests = random_prompts(6)
    alone = [result.ids.tolist() for result in decoder().generate(requests, chosen)]
    session, found = decoder(batch_size=4).session(), {}
    keys = [session.add(request, chosen) for request in requests[:3]]
    for number in range(1000):
        found.update({key: e.result.ids.tolist() for key, e in session.step() if isinstance(e, Finished)})
        if number == 1:
            keys += [session.add(request, chosen) for request in requests[3:]]
            session.drop(keys[1])
            session.drop(keys[5])
    assert session.is_idle
    assert session.step() == []
    assert found == {key: alone[key] for key in (0, 2, 3, 4)}


def test_flags_say_the_settings() -> None:
    parser = argparse.ArgumentParser()
    add_decoding_flags(parser)
    parser.set_defaults(model=Path("none"))
    chosen = DecodeSettings(block=7, threshold=0.5, cfg=0.1, remasking="random", block_cache="block_causal", top_p=0.9)
    assert settings_from_flags(parser.parse_args(as_flags(chosen))) == chosen
    with pytest.raises(SystemExit):
        parser.parse_args(["--remasking", "none"])

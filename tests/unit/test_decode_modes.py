"""Ways to write audio against each other, the rules by which masks are committed, and what a model folder says of both."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from tests.unit.test_decode import (
    ENDS,
    LAYOUT,
    STARTS,
    context,
    decoder,
    drawn_prompts,
    folder,
    is_audio,
    logits_of,
    modes_of,
    random_prompts,
    run,
    step,
)  # fmt: skip
from ttt_dist.config.decode import BEFORE, DEFAULTS, GENERATION, KEY, DecodeSettings, folder_settings, generation_json
from ttt_dist.config.objective import Objective
from ttt_dist.inference import model_runner as forward_module
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.detokenizer import Result
from ttt_dist.inference.flags import add_decoding_flags, as_flags, settings_from_flags
from ttt_dist.inference.model_runner import Wanted, choices
from ttt_dist.inference.sampling import choose_codes
from ttt_dist.inference.sequence_state import Phase, SequenceState, allowed_ids, share, uniforms
from ttt_dist.sequence.corruption import corrupt, draw
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.util.errors import UserError

SHORT = DecodeSettings(span_limit=40, max_text=8, max_codes=90)
MODES = ["ar", "verified", "tidar"]


def by_mode(requests: list[Request], chosen: DecodeSettings, seed: int = 0) -> list[list[Result]]:
    """Results of MODES."""
    settings = [replace(chosen, audio_mode=mode, cfg=chosen.cfg * (mode != "tidar")) for mode in MODES]
    return [Decoder(folder(seed)).generate(requests, one) for one in settings]


def same(one: list[Result], other: list[Result]) -> bool:
    return [(a.ids.tolist(), a.finish) for a in one] == [(b.ids.tolist(), b.finish) for b in other]


def requests_of(rng: np.random.Generator, count: int) -> list[Request]:
    return [Request(prompt, seed=number) for number, prompt in enumerate(drawn_prompts(rng, count))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("case", range(5))
def test_drafts_change_nothing_of_what_is_written(case: int, temperature: float) -> None:
    """400 prompts, greedy and sampled, whatever makes the drafts."""
    rng = np.random.default_rng(case)
    drafts = {"block": int(rng.integers(1, 20)), "steps": int(rng.integers(1, 5)), "cfg": 0.5 * (case == 3)}
    drafts |= {"block_cache": ("exact", "block_causal")[case % 2], "remasking": ("margin", "random")[case % 2]}
    chosen = replace(SHORT, temperature=temperature, code_temperature=temperature, **drafts)
    written, *others = by_mode(requests_of(rng, 40), chosen, case)
    assert all(same(written, other) for other in others)


def agreeing(phase: Phase, logits: torch.Tensor, wanted: Wanted) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`choices` of a model that all but knows most codes by their place, in whatever way it writes them."""
    if phase == "span":
        codes = np.flatnonzero(~np.isin(allowed_ids(LAYOUT, phase), list(ENDS)))
        shifts = [not one.state.is_denoised for one in wanted.asked]
        places = wanted.places + wanted.of_owners(shifts)
        known = np.flatnonzero(places % 13 != 0)
        columns = allowed_ids(LAYOUT, phase)[codes[places[known] * 31 % len(codes)]] - allowed_ids(LAYOUT, phase)[0]
        logits[known, columns] += 9.0
    return choices(phase, logits, wanted)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("block_cache", ["exact", "block_causal"])
def test_long_drafts_are_accepted_at_once(
    temperature: float, block_cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "choices", agreeing)
    chosen = replace(
        SHORT, block=16, steps=1, block_cache=block_cache, temperature=temperature, code_temperature=temperature
    )
    written, verified, tidar = by_mode(requests_of(np.random.default_rng(5), 50), chosen)
    assert same(written, verified)
    assert same(written, tidar)
    codes = sum(is_audio(token) for result in written for token in result.ids)
    spent = [
        sum(result.num_forwards - sum(not is_audio(token) for token in result.ids) for result in results)
        for results in (written, verified, tidar)
    ]
    assert spent[0] == codes > 300
    assert spent[1] < codes / 2  # two forwards for a draft of 16
    assert spent[2] < 0.55 * spent[1]  # one forward each, and the first draft of a span comes with its opener


def test_a_verification_accepts_the_same_prefix_and_one_token_more() -> None:
    code, end = LAYOUT.first_code, LAYOUT.end_of_audio_new
    chosen = context(block=4, steps=1, span_limit=9, audio_mode="verified")
    state = run([logits_of(LAYOUT.begin_of_audio), logits_of(*[code] * 4)], chosen)
    assert (state.is_drafted, state.num_forwards, state.ids[3:].tolist()) == (True, 2, [code] * 4)
    assert not state.span_ids.any()
    assert chosen.needed(state).tolist() == [2, 3, 4, 5, 6]
    for written, left in (
        ([code] * 5, [code] * 5 + [LAYOUT.mask] * 4),
        ([code, code + 1, code, code, code], [code, code + 1] + [LAYOUT.mask] * 4),
        ([code, code, end, code, code], [code, code, end]),
        ([code] * 4 + [end], [code] * 4 + [end]),
    ):
        after = step(state, logits_of(*written), chosen)
        assert after.ids[3:].tolist() == left
        assert (after.span_start is None) == (end in written)
        assert chosen.num_cacheable(after) == (2 if after.span_start else len(after.ids))


def test_one_forward_verifies_a_draft_and_makes_the_next() -> None:
    code, end = LAYOUT.first_code, LAYOUT.end_of_audio_new
    chosen = context(block=4, steps=1, span_limit=7, audio_mode="tidar")
    state = run([], chosen)
    # The same forward reads both openers, each with what follows it and a draft behind that.
    openings = chosen.openings(state)
    assert [opened.ids[2:].tolist() for opened in openings] == [[LAYOUT.begin_of_audio], [LAYOUT.begin_of_quad]]
    assert [chosen.needed(opened).tolist() for opened in openings] == [[2, 3, 4, 5]] * 2
    drafts = [logits_of(code, *[code + 1] * 3), logits_of(*[code + 3] * 4)]
    assert step(state, logits_of(LAYOUT.begin_of_quad), chosen, *drafts).ids[3:].tolist() == [code + 3] * 4
    assert step(state, logits_of(1), chosen, *drafts).ids[2:].tolist() == [1]
    closed = step(state, logits_of(LAYOUT.begin_of_audio), chosen, logits_of(end, *[code] * 3), drafts[1])
    assert (closed.ids[2:].tolist(), closed.span_start) == ([LAYOUT.begin_of_audio, end], None)
    state = step(state, logits_of(LAYOUT.begin_of_audio), chosen, *drafts)
    assert (state.block_start, state.num_forwards, state.ids[3:].tolist()) == (4, 1, [code, *[code + 1] * 3])
    # Behind 0 to 3 accepted tokens: a mask for the one that this forward tells, and as many as the span has room for.
    assert chosen.blocks_ahead(state) == [range(4, 8), range(5, 9), range(6, 10), range(7, 10)]
    assert chosen.needed(state).tolist() == [3, 4, 5, 6, 4, 5, 6, 5, 6, 7, 6, 7, 8, 7, 8]
    assert chosen.num_cacheable(state) == 4
    other = [code + 2 + n % 9 for n in range(11)]
    for read, left in (
        ([code, code, code, code], [code, *other[:3]]),
        ([code + 1, code, code, code], [code + 1, code, *other[3:6]]),
        ([code + 1, code + 1, code + 1, code], [code + 1] * 3 + [code, *other[9:]]),
        ([code + 1, end, code, code], [code + 1, end]),
    ):
        after = step(state, logits_of(*read, *other), chosen)
        assert after.ids[4:].tolist() == left
        assert after.block_start == (None if end in read else 4 + read.index(code) + 1)
    after = step(state, logits_of(*[code] * 4, other[0], end, *other[2:]), chosen)
    assert after.ids[4:].tolist() == [code, other[0], end]  # a draft ends at its first end


def test_a_block_of_a_token_that_is_known_anyway_is_not_read() -> None:
    chosen = context(block=1, audio_mode="tidar")
    state = run([], chosen)
    assert [chosen.needed(opened).tolist() for opened in chosen.openings(state)] == [[2], [2]]
    state = step(state, logits_of(LAYOUT.begin_of_audio), chosen, *[logits_of(LAYOUT.first_code)] * 2)
    assert (state.ids[3:].tolist(), chosen.needed(state).tolist()) == ([LAYOUT.first_code], [3])


def test_repetitions_are_drawn_alike_in_all_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that holds each code for five places."""

    def holding(phase: Phase, logits: torch.Tensor, wanted: Wanted) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if phase == "span":
            codes = np.flatnonzero(~np.isin(allowed_ids(LAYOUT, phase), list(ENDS)))
            places = wanted.places + wanted.of_owners([not one.state.is_denoised for one in wanted.asked])
            logits[np.arange(len(places)), codes[places // 5 * 31 % len(codes)]] += 5.0
        return choices(phase, logits, wanted)

    def repetitions(results: list[Result]) -> int:
        return sum(
            is_audio(one) and one == other
            for result in results
            for one, other in zip(result.ids, result.ids[1:], strict=False)
        )

    monkeypatch.setattr(forward_module, "choices", holding)
    requests = requests_of(np.random.default_rng(5), 30)
    held, *_ = by_mode(requests, replace(SHORT, block=16, steps=1))
    drawn, verified, tidar = by_mode(requests, replace(SHORT, block=16, steps=1, repeats="drawn"))
    assert same(drawn, verified) and same(drawn, tidar)
    assert 0 < repetitions(drawn) < 0.8 * repetitions(held)


@pytest.mark.parametrize("mode", ["verified", "tidar"])
def test_a_likely_code_of_the_draft_is_kept(mode: str) -> None:
    prompts = requests_of(np.random.default_rng(3), 30)
    spent = {}
    for ratio in (1.0, 0.999999, 0.5, 1e-6):
        chosen = replace(SHORT, block=8, steps=1, audio_mode=mode, accept_ratio=ratio)
        results = Decoder(folder(1)).generate(prompts, chosen)
        spent[ratio] = sum(result.num_forwards for result in results) / sum(len(result.ids) for result in results)
        if ratio == 0.999999:
            assert same(results, Decoder(folder(1)).generate(prompts, replace(chosen, accept_ratio=1.0)))
    assert spent[1.0] > spent[0.5] > spent[1e-6]


def test_neither_an_end_of_the_draft_nor_a_code_in_place_of_an_end_is_kept() -> None:
    code, end = LAYOUT.first_code, LAYOUT.end_of_audio_new
    chosen = context(block=4, steps=1, audio_mode="verified", accept_ratio=0.1)
    opened = run([logits_of(LAYOUT.begin_of_audio)], chosen)
    state = step(opened, logits_of(code, code, end, code), chosen)
    assert chosen.draft(state).tolist() == [code, code, -1, -1]
    assert chosen.draft(opened).tolist() == [-1] * 4
    plain = replace(chosen, settings=replace(chosen.settings, audio_mode="diffusion"))
    assert plain.draft(opened).tolist() == [-1] * 4


def test_a_draft_ends_at_its_first_end() -> None:
    code, end = LAYOUT.first_code, LAYOUT.end_of_audio_span_last
    chosen = context(block=4, steps=1, audio_mode="verified")
    state = run([logits_of(LAYOUT.begin_of_quad), logits_of(code, end, code, code)], chosen)
    assert state.ids[3:].tolist() == [code, end]
    state = step(state, logits_of(code, code + 1, code), chosen)
    assert state.ids[3:5].tolist() == [code, code + 1]  # the end was the draft's alone


def test_requests_of_all_modes_share_a_batch() -> None:
    requests = random_prompts(16)
    chosen = [replace(SHORT, audio_mode=mode, block=5, steps=2, code_temperature=0.5) for mode in modes_of("ttt") * 4]
    alone = [decoder().generate([one], how)[0].ids.tolist() for one, how in zip(requests, chosen, strict=True)]
    session, found = decoder(batch_size=7).session(), {}
    keys = [session.add(one, how) for one, how in zip(requests, chosen, strict=True)]
    while not session.is_idle:
        found.update({key: event.result.ids.tolist() for key, event in session.step() if hasattr(event, "result")})
    assert [found[key] for key in keys] == alone


def test_numbers_of_what_is_written_depend_on_its_place() -> None:
    state = SequenceState(ids=np.arange(9), span_ids=np.zeros(9), num_prompt=3, seed=4, num_forwards=7)
    chosen = context(audio_mode="verified")
    one_by_one = [uniforms(state, np.array([place]), chosen)[0] for place in range(3, 9)]
    assert uniforms(replace(state, num_forwards=2), np.arange(3, 9), chosen).tolist() == one_by_one
    draft = replace(state, span_start=3, block_start=3)
    assert uniforms(draft, np.array([4, 6, 9]), chosen).tolist() == [one_by_one[n] for n in (0, 2, 5)]
    assert len(set(one_by_one)) == 6


@pytest.mark.parametrize(
    ("kind", "audio_ar", "mode", "remedy"),
    [
        ("ttt", 0.0, "ar", "train with them above 0"),
        ("ttt", 0.0, "verified", "train with them above 0"),
        ("ar", 0.5, "verified", "--audio-mode diffusion"),
        ("nar", 0.5, "ar", "--audio-mode diffusion"),
        ("nar", 0.5, "verified", "--audio-mode diffusion"),
        ("ar", 0.5, "tidar", "--audio-mode diffusion"),
        ("ttt", 0.0, "tidar", "train with them above 0"),
    ],
)
def test_a_mode_that_a_model_did_not_learn_is_refused(kind: str, audio_ar: float, mode: str, remedy: str) -> None:
    model = replace(folder(kind=kind), objective=Objective(kind=kind, audio_ar=audio_ar))
    with pytest.raises(UserError, match=f"--audio-mode.* {mode}.*{remedy}"):
        Decoder(model).generate(random_prompts(1), DecodeSettings(audio_mode=mode))
    with pytest.raises(UserError, match="--audio-mode"):
        Decoder(model).session().add(random_prompts(1)[0], DecodeSettings(audio_mode=mode))


def test_a_block_whose_square_is_read_at_once_has_a_limit() -> None:
    with pytest.raises(UserError, match="block .--block. is 65.*take up to 64"):
        decoder().session().add(random_prompts(1)[0], DecodeSettings(audio_mode="tidar", block=65))


def test_a_model_that_reads_nothing_left_to_right_is_not_asked_for_its_ends_so() -> None:
    with pytest.raises(UserError, match="ends .--ends. is causal.*kind nar.*take --ends leftmost"):
        Decoder(folder(kind="nar")).generate(random_prompts(1), DecodeSettings(ends="causal"))


def test_guidance_is_refused_where_no_forward_can_be_guided() -> None:
    with pytest.raises(UserError, match="cfg .--cfg. is 0.5.*take --cfg 0"):
        decoder().generate(random_prompts(1), DecodeSettings(audio_mode="tidar", cfg=0.5))


@pytest.mark.parametrize("prompt_audio", ["bidirectional", "causal"])
@pytest.mark.parametrize("mode", ["diffusion", *MODES])
def test_earlier_answers_are_seen_as_training_saw_them(mode: str, prompt_audio: str) -> None:
    codes = [LAYOUT.first_code] * 3
    heard, said = [LAYOUT.begin_of_audio, *codes, LAYOUT.end_of_audio], [*codes, LAYOUT.end_of_audio_new, LAYOUT.im_end]
    turns = [(heard, False), ([5, LAYOUT.begin_of_audio, *said], True), ([LAYOUT.begin_of_audio, *codes, 6], False)]
    sample = Sample.of([Segment(np.array(ids, dtype=np.int32), is_answer) for ids, is_answer in turns])
    written = float(mode != "diffusion")
    trained = Objective(prompt_audio=prompt_audio, p_trunc=0.0, p_mix=written, audio_ar=1.0)
    session = Decoder(folder(prompt_audio=prompt_audio)).session()
    session.add(Request(sample.ids), replace(SHORT, audio_mode=mode))
    spans = session._waiting[0][1].span_ids
    assert spans.tolist() == corrupt(sample, LAYOUT, trained, draw(sample, 0, 0)).span_ids.tolist()
    assert (spans[7:11] > 0).tolist() == [mode == "diffusion"] * 4


def test_an_ar_model_writes_the_same_in_the_modes_it_knows() -> None:
    requests = random_prompts(5)
    modes = [replace(SHORT, audio_mode=mode) for mode in ("diffusion", "ar")]
    one, other = (Decoder(folder(kind="ar")).generate(requests, chosen) for chosen in modes)
    assert same(one, other)


C, E, M = LAYOUT.first_code, LAYOUT.end_of_audio_new, LAYOUT.mask


@pytest.mark.parametrize(
    ("tokens", "sureness", "steps", "leftmost", "anywhere"),
    [
        ([C, E, C, C], [5, 9, 7, 6], 4, [M, M, C, M], [M, E, M, M]),  # the end waits, others go on
        ([C, E, C, C], [8, 9, 7, 6], 2, [C, E], [C, E]),  # all before it go with it
        ([C, C, E, C], [5, 6, 9, 7], 2, [M, C, M, C], [M, M, E, C]),
        ([C, C, E, E], [6, 5, 8, 9], 2, [C, C, M, M], [M, M, E, E]),  # a second end waits longer still
        ([E, C, C, C], [9, 8, 7, 6], 4, [E], [E]),
        ([C, E, C, E], [5, 9, 7, 8], 1, [C, E], [C, E]),  # all are committed, and cut
    ],
)
def test_an_end_is_committed_where_no_mask_is_left_before_it(
    tokens: list[int], sureness: list[float], steps: int, leftmost: list[int], anywhere: list[int]
) -> None:
    logits = torch.zeros(4, LAYOUT.padded_vocab_size)
    logits[range(4), tokens] = torch.tensor(sureness, dtype=torch.float32)
    for rule, expected in (("leftmost", leftmost), ("any", anywhere)):
        state = run([logits_of(LAYOUT.begin_of_audio), logits], context(block=4, steps=steps, ends=rule))
        assert state.ids[3:].tolist() == expected


def test_what_waits_for_an_unsure_mask_is_not_sure() -> None:
    logits = torch.zeros(4, LAYOUT.padded_vocab_size)
    logits[range(4), [C, E, C, C]] = torch.tensor([0.5, 50.0, 50.0, 50.0])
    state = run([logits_of(LAYOUT.begin_of_audio), logits], context(block=4, steps=4, threshold=0.9))
    assert state.ids[3:].tolist() == [M, M, C, C]


@given(st.integers(1, 60), st.integers(1, 70), st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.7, 10.0]))
def test_shares_follow_their_power_and_a_block_ends_in_time(block: int, steps: int, power: float) -> None:
    chosen = DecodeSettings(block=block, steps=steps, commit_power=power)
    left = block
    for number in range(1, steps + 1):
        count = share(left, steps - number + 1, chosen)
        assert power != 1 or count == max(-(-left // (steps - number + 1)), 1)
        left -= min(count, left)
        planned = block - block * (number / steps) ** power
        assert left <= planned + 1e-6
        assert left == 0 or count == 1 or left > planned - steps
    assert left == 0


@pytest.mark.parametrize("rule", ["margin", "entropy", "low_confidence"])
def test_confidence_by_each_rule(rule: str) -> None:
    probabilities = torch.tensor([[0.6, 0.0, 0.3, 0.1], [0.4, 0.35, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]])
    measured = {rule: np.array([0, 2])} if rule != "low_confidence" else {}
    best, second, third = (float(p) for p in probabilities.max(-1).values)
    found = choose_codes(probabilities.log(), torch.zeros(3), torch.zeros(3), measured)
    assert found[1].tolist() == pytest.approx([best, second, third])
    expected = {
        "margin": [0.3, second, 0.0],
        "entropy": [float(torch.special.entr(probabilities[0]).sum().neg()), second, -float(np.log(4))],
        "low_confidence": [best, second, third],
    }
    assert found[2].tolist() == pytest.approx(expected[rule], abs=1e-6)


def test_requests_of_all_rules_share_a_forward() -> None:
    """Each is measured by its own."""
    model = folder()
    found = []
    for request in random_prompts(8):
        session = Decoder(model).session()
        for rule in ("low_confidence", "margin", "entropy"):
            session.add(request, replace(SHORT, remasking=rule, block=6, steps=6))
        while not session.is_idle and not found:
            session.step()
            if session._active and all(one.state.block_start for one in session._active.values()):
                found = [own for (own,) in session._forwards(list(session._active.values()))]
    assert len({tuple(one.ids) for one in found}) == 1
    assert found[0].confidence.tolist() == found[0].probability.tolist()
    assert (found[1].confidence < found[1].probability).all()
    assert (found[2].confidence < 0).all()


def parsed(model: Path, *words: str) -> DecodeSettings:
    parser = argparse.ArgumentParser()
    add_decoding_flags(parser)
    arguments = parser.parse_args(words)
    arguments.model = model
    return settings_from_flags(arguments)


def written(model: Path, content: object) -> Path:
    (model / GENERATION).write_text(content if isinstance(content, str) else json.dumps(content))
    return model


TOKENS = {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": 4, "vocab_size": 9}


def test_a_folder_remembers_its_decoding_and_flags_win(tmp_path: Path) -> None:
    kept = DecodeSettings(block=13, steps=4, audio_mode="verified", remasking="entropy", ends="any", commit_power=2.0)
    written(tmp_path, generation_json(TOKENS, replace(kept, stop_at_last_span=True)))
    assert folder_settings(tmp_path) == kept
    assert parsed(tmp_path) == kept
    assert parsed(tmp_path, "--block", "7", "--ends", "leftmost") == replace(kept, block=7, ends="leftmost")
    read = GenerationConfig.from_pretrained(tmp_path)
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (None, 3, 4)
    assert getattr(read, KEY)["block"] == 13


def test_a_flag_that_changes_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, generation_json(TOKENS, DecodeSettings(audio_mode="tidar", block=8, steps=5, accept_ratio=0.1)))
    parsed(tmp_path, "--steps", "2", "--block", "4", "--ends", "leftmost", "--top-k", "3", "--code-temperature", "1")
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" changes nothing with --audio-mode tidar")[0] for line in told] == [
        "note: --steps 2", "note: --top-k 3"
    ]  # fmt: skip
    parsed(tmp_path, "--steps", "2", "--audio-mode", "verified", "--top-k", "3", "--temperature", "0.5")
    parsed(tmp_path, *as_flags(folder_settings(tmp_path)))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "mode"), [("ttt", "diffusion"), ("ttt", "ar"), ("ttt", "tidar"), ("ar", "diffusion"), ("nar", "diffusion")]
)
def test_what_is_idle_changes_nothing(kind: str, mode: str) -> None:
    drawn = DecodeSettings(
        block=9, steps=3, threshold=0.4, remasking="entropy", position_decay=0.3, block_cache="block_causal", cfg=0.7,
        commit_power=2.0, ends="any", accept_ratio=0.2, temperature=1.0, top_k=3, top_p=0.7, max_text=7,
    )  # fmt: skip
    plain = replace(SHORT, audio_mode=mode, code_temperature=1.0, block=5, steps=2)
    requests = random_prompts(6)
    idle = plain.idle(kind)
    assert idle
    other = replace(plain, **{name: getattr(drawn, name) for name in idle})
    assert same(*(Decoder(folder(kind=kind)).generate(requests, one) for one in (plain, other)))


def test_a_folder_that_says_nothing_is_decoded_as_before(tmp_path: Path) -> None:
    assert parsed(tmp_path) == BEFORE == replace(DEFAULTS, ends="any")
    assert parsed(written(tmp_path, {"eos_token_id": 3}), "--steps", "3") == replace(BEFORE, steps=3)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "Expecting"),
        ("[]", KEY),
        ({KEY: None}, f"{KEY} must hold settings"),
        ({KEY: {"blok": 3}}, "blok"),
        ({KEY: {"block": "many"}}, "block"),
        ({KEY: {"steps": 0}}, "steps"),
        ({KEY: {"ends": "all"}}, "ends"),
        ({KEY: {"stop_at_last_span": True}}, "decided by the task"),
    ],
)
def test_a_damaged_file_is_named_with_its_key(content: object, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{GENERATION}: .*{told}") as caught:
        parsed(written(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 9, None])
def test_short_limits_cut_drafts_as_they_cut_what_is_written(most: int | None) -> None:
    """Tokens of the response, of a span and of all spans, by which a draft with its opener has no room, or some."""
    requests = [replace(one, max_new_tokens=most) for one in requests_of(np.random.default_rng(11), 20)]
    for limits in ({"span_limit": 1}, {"span_limit": 3, "max_codes": 4}, {"max_text": 1}):
        written, _, tidar = by_mode(requests, replace(SHORT, block=5, **limits))
        assert same(written, tidar)
        for one in tidar:  # an opener's forward is a span's where it drafts: where anything has room behind it
            followed = zip(one.ids, [*one.ids[1:], -1], strict=True)
            of_text = [not is_audio(token) and not (token in STARTS and is_audio(after)) for token, after in followed]
            assert one.num_forwards - one.num_audio_forwards == sum(of_text)


def test_no_opener_is_read_in_transcripts_and_where_no_span_has_room() -> None:
    transcribing, full = context(audio_mode="tidar", stop_at_last_span=True), context(audio_mode="tidar", max_length=3)
    assert transcribing.openings(run([], transcribing)) == full.openings(run([], full)) == []
    closed = step(run([], full), logits_of(LAYOUT.begin_of_audio), full)
    assert (closed.finish, closed.span_start) == ("max_length", None)

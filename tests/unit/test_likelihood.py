"""The likelihood of data: exact for text, a bound for audio, against sums over all masks done by hand."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluated import line, make_model, make_workplace, read_lines, write_lines
from ttt_dist import evaluate
from ttt_dist.audio import load_codec, read_audio
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.objective import Objective
from ttt_dist.data.shards import ShardWriter
from ttt_dist.evaluation.args import EvalArgs
from ttt_dist.evaluation.metrics.scores import Normalisers
from ttt_dist.evaluation.tasks.likelihood import measure, score_likelihood
from ttt_dist.model.attention.plan import attention_plan
from ttt_dist.model.hf.folder import ModelFolder, load_folder
from ttt_dist.sequence.corruption import draw, p_bin
from ttt_dist.sequence.noise_schedule import noise_schedule
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.util.errors import UserError


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("likelihood"))


@pytest.fixture(scope="module")
def folder(workplace: Path) -> ModelFolder:
    return load_folder(workplace / "model", device="cpu")


@pytest.fixture(scope="module")
def sample(folder: ModelFolder) -> Sample:
    """Two tokens of text, the opening of a span, a code and the end of audio, the end of turn."""
    layout = folder.layout
    said = [5, 9, layout.begin_of_quad, layout.first_code + 3, layout.end_of_audio_span_last, layout.im_end]
    return Sample.of(
        [Segment(np.array([layout.im_start, 7], np.int32), False), Segment(np.array(said, np.int32), True)]
    )


def plan(**values: Any) -> EvalArgs:
    paths = {name: Path(name) for name in ("model", "data", "out")}
    return EvalArgs(task="likelihood", template="", decoding=DecodeSettings(), **paths, **values)


def nats(folder: ModelFolder, ids: np.ndarray, place: int, target: int) -> float:
    """Of `target` at `place` of a sequence whose audio tokens are one span."""
    tensor = torch.from_numpy(ids.astype(np.int64))[None]
    span_ids = torch.from_numpy(folder.layout.is_audio[ids].astype(np.int64))[None]
    with torch.inference_mode():
        hidden = folder.model.hidden(
            tensor[0], torch.arange(len(ids)), attention_plan(torch.ones_like(tensor), span_ids)
        )
        return float(-folder.model.logits(hidden[place]).log_softmax(-1)[target])


def test_text_is_exact_and_the_bound_is_the_mean_over_all_masks(folder: ModelFolder, sample: Sample) -> None:
    ids, first = sample.ids, 5  # of the two audio tokens
    found = measure(folder.model, folder.layout, folder.objective, sample, plan(draws=3000))
    assert found["audio"]["estimator"] == "exact_count"
    text = sum(nats(folder, ids, place - 1, ids[place]) for place in (2, 3, 4, 7))
    assert found["text"]["tokens"] == 4
    assert found["text"]["nats"] == [pytest.approx(text, rel=1e-5)]
    # Over p uniform in 0..1 each set of k of 2 masks has the weight of the integral of p^k (1 - p)^(2 - k) / p: a half.
    # Of masks of an exact count, one has the probability 1/4 and the weight 2, two have 1/2 and 1.
    wanted = 0.0
    for masked in ([0], [1], [0, 1]):
        noised = ids.copy()
        noised[[first + place for place in masked]] = folder.layout.mask
        wanted += 0.5 * sum(nats(folder, noised, first + place, ids[first + place]) for place in masked)
    draws = np.array(found["audio"]["nats"])
    error = draws.std(ddof=1) / math.sqrt(len(draws))
    assert found["audio"]["tokens"] == 2 and error < 0.05 * wanted
    assert abs(draws.mean() - wanted) < 4 * error
    summary = score_likelihood([found | {"id": "1"}], Normalisers())
    assert summary.figures["text_nats_per_token"].value == pytest.approx(text / 4, rel=1e-5)
    assert summary.figures["audio_nats_per_token"].value == pytest.approx(draws.mean() / 2, rel=1e-5)
    assert summary.details["audio_standard_error"] == pytest.approx(error / 2, rel=1e-4)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(folder: ModelFolder, sample: Sample) -> None:
    known = folder.model.head.weight.clone()
    try:
        folder.model.head.weight.zero_()
        found = measure(
            folder.model, folder.layout, folder.objective, sample, plan(draws=6, seed=4, estimator="bernoulli")
        )
    finally:
        folder.model.head.weight.copy_(known)
    each = math.log(folder.layout.vocab_size)
    assert found["text"]["nats"][0] == pytest.approx(4 * each, rel=1e-5)
    draws = [draw(sample, 4, epoch) for epoch in range(6)]
    probs = [noise_schedule("linear").mask_prob(one.t) for one in draws]
    counts = [int((one.tokens[5:7] < p).sum()) for one, p in zip(draws, probs, strict=True)]
    wanted = [count * each / p for count, p in zip(counts, probs, strict=True)]
    assert found["audio"]["nats"] == pytest.approx(wanted, rel=1e-5)
    by_p, tokens = np.zeros(5), np.zeros(5)
    for count, p in zip(counts, probs, strict=True):
        by_p[p_bin(p) - 1] += count * each
        tokens[p_bin(p) - 1] += count
    np.testing.assert_allclose(found["by_p"], [by_p, tokens], rtol=1e-5)


@pytest.fixture(scope="module")
def longer(folder: ModelFolder) -> Sample:
    """A span of eight codes."""
    layout = folder.layout
    codes = layout.code_ids(np.arange(8) % layout.num_codes)
    said = [5, layout.begin_of_quad, *codes, layout.end_of_audio_span_last, layout.im_end]
    return Sample.of(
        [Segment(np.array([layout.im_start, 7], np.int32), False), Segment(np.array(said, np.int32), True)]
    )


@pytest.mark.parametrize("kind", ["ttt", "nar"])
def test_both_estimators_have_one_mean_and_an_exact_count_the_smaller_error(
    folder: ModelFolder, longer: Sample, kind: str
) -> None:
    """Whatever the model was trained with; `by_p` is the same mean cross-entropy by p, whoever draws."""
    objective = Objective(preset="paper", kind=kind, normalisation="sample")
    means, errors = {}, {}
    for estimator in ("exact_count", "bernoulli"):
        found = measure(folder.model, folder.layout, objective, longer, plan(draws=1500, estimator=estimator))
        draws = np.array(found["audio"]["nats"])
        means[estimator], errors[estimator] = draws.mean(), draws.std(ddof=1) / math.sqrt(len(draws))
        assert found["audio"]["estimator"] == estimator
        assert all(count > 0 for count in found["by_p"][1])
    assert abs(means["exact_count"] - means["bernoulli"]) < 3 * math.hypot(*errors.values())
    assert errors["exact_count"] < 0.5 * errors["bernoulli"]


def test_audio_that_is_learnt_from_left_to_right_too_has_an_exact_figure(folder: ModelFolder, longer: Sample) -> None:
    """It is that of the same weights as an AR model; text stays what it is behind audio that is seen whole."""
    both, paper, ar = (
        measure(folder.model, folder.layout, objective, longer, plan(draws=4))
        for objective in (Objective(), Objective(preset="paper"), Objective(kind="ar"))
    )
    assert both["audio_ar"] == ar["audio"] and both["audio_ar"]["tokens"] == 9
    assert {name: value for name, value in both.items() if name != "audio_ar"} == paper
    scored = score_likelihood([both | {"id": "1"}], Normalisers())
    figure = scored.figures["audio_ar_nats_per_token"]
    assert (figure.by, figure.value) == ("exact", pytest.approx(ar["audio"]["nats"][0] / 9, rel=1e-5))
    assert scored.figures["audio_nats_per_token"].by.startswith("upper bound")
    assert scored.details["audio_ar_standard_error"] is None


def test_what_training_weighed_is_no_likelihood(folder: ModelFolder, longer: Sample) -> None:
    plain, weighed = (
        measure(folder.model, folder.layout, Objective(ar_weight=weight, nar_weight=2 * weight), longer, plan(draws=2))
        for weight in (0.5, 3.0)
    )
    assert plain == weighed
    assert plain["audio"] == measure(folder.model, folder.layout, Objective(), longer, plan(draws=2))["audio"]


def run(workplace: Path, out: Path, monkeypatch: pytest.MonkeyPatch, data: Path, *words: object, model: str) -> dict:
    where = ["--task", "likelihood", "--model", workplace / model, "--data", data, "--out", out, "--draws", 4]
    path = list(sys.path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, [*where, *words])])
    try:
        evaluate.main()
    finally:
        sys.path[:] = path
    return json.loads((out / "likelihood_summary.json").read_text())


@pytest.mark.parametrize(
    ("kind", "text", "audio"),
    [
        ("ttt", "exact", "upper bound, 4 draws of noise"),
        ("ar", "exact", "exact"),
        ("nar", "upper bound, 4 draws of noise", "upper bound, 4 draws of noise"),
    ],
)
def test_of_items_and_of_shards_it_is_the_same(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, text: str, audio: str
) -> None:
    model = make_model(workplace, kind, Objective(kind=kind)).name
    of_items = run(
        workplace, tmp_path / "items", monkeypatch, workplace / "test.jsonl", "--template", "tts", model=model
    )
    assert [of_items["scores"][f"{name}_nats_per_token"]["by"] for name in ("text", "audio")] == [text, audio]
    assert ("audio_by_p" in of_items) == (kind != "ar")
    assert ("audio_ar_nats_per_token" in of_items) == (kind == "ttt")
    assert of_items["noise"] == {"estimator": "exact_count", "draws": 4, "seed": 0}

    opened = load_folder(workplace / model, device="cpu")
    template, codec = ChatTemplate(opened.tokenizer, opened.layout, opened.template), load_codec(opened.codec)
    codes = codec.encode([read_audio(workplace / f"{number}.wav", codec.sample_rate) for number in range(4)])
    samples = [template.sample("tts", line(number), [each]) for number, each in enumerate(codes)]
    meta = {"layout": opened.layout.to_dict(), "seq_len": 512}
    with ShardWriter(workplace / f"shards-{kind}", meta) as writer:
        writer.add(samples[:3])
        writer.add(samples[3:])
    of_shards = run(workplace, tmp_path / "shards", monkeypatch, workplace / f"shards-{kind}", model=model)
    assert of_shards["items"] == of_items["items"] == 4
    for name in ("text_nats_per_token", "audio_nats_per_token", "audio_standard_error"):
        assert of_shards[name] == of_items[name], name
    ids = [record["id"] for record in read_lines(tmp_path / "shards" / "likelihood.jsonl")]
    assert ids == ["0/0", "0/1", "0/2", "1/0"]


def test_what_does_not_fit_is_named(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_lines(
        tmp_path / "d.jsonl", [line(0, audio=str(workplace / "0.wav")), {"audio": str(workplace / "1.wav")}]
    )
    words = ["--template", "tts", "--audio-root", workplace, "--max-errors", 1]
    summary = run(workplace, tmp_path / "out", monkeypatch, data, *words, model="model")
    assert (summary["items"], summary["errors"]) == (1, 1) and "d.jsonl:2: lacks 'text'" in summary["problems"][0]
    opened = load_folder(workplace / "model", device="cpu")
    layout = opened.layout.to_dict() | {"tokenizer_hash": "0" * 64}
    with ShardWriter(tmp_path / "other", {"layout": layout, "seq_len": 64}) as writer:
        writer.add([Sample.of([Segment(np.array([5, 6], np.int32), True)])])
    with pytest.raises(UserError, match="token layout differs in tokenizer_hash"):
        run(workplace, tmp_path / "out2", monkeypatch, tmp_path / "other", model="model")

"""benchmarks/decode.py measures what it says: every side writes the course's reply, and the two ways of ours the same one."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import decode as benchmark
from benchmarks.decode_sides import FREE, Course, Measured, decode, random_folder, released_way
from tests.structures import tiny_layout
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.model import tiles

LAYOUT = tiny_layout(shuffle_seed=3)
CONFIG = ModelConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=24, init_std=0.4)
COURSE = Course.of(LAYOUT, num_text=8, num_codes=14, text_ratio=3, audio_ratio=6)
REQUESTS = [Request(np.arange(length, dtype=np.int32)) for length in (4, 9)]
FOLDER = random_folder(CONFIG, LAYOUT, torch.float32, "cpu")


def test_a_course_is_interleaved_as_templates_do() -> None:
    begin, last = LAYOUT.begin_of_audio, LAYOUT.begin_of_quad
    round_ = [FREE] * 3 + [begin] + [FREE] * 6 + [LAYOUT.end_of_audio_new]
    end = [FREE] * 2 + [last] + [FREE] * 2 + [LAYOUT.end_of_audio_span_last, LAYOUT.im_end]
    assert COURSE.required.tolist() == round_ * 2 + end


@pytest.mark.parametrize(("kind", "steps", "num_forwards"), [("ttt", 1, 15), ("ttt", 3, 20), ("ar", 1, 29)])
def test_replies_follow_the_course(kind: str, steps: int, num_forwards: int) -> None:
    decoder = Decoder(dataclasses.replace(FOLDER, objective=Objective(kind=kind)))
    measured = decode(
        decoder, REQUESTS, DecodeSettings(block=7, steps=steps, temperature=3.0, code_temperature=3.0), COURSE
    )
    assert measured.num_forwards == num_forwards
    assert 0 < measured.first_span_s < measured.seconds
    fixed = COURSE.required != FREE
    for reply in measured.replies:
        assert (reply[fixed] == COURSE.required[fixed]).all()
        assert not np.isin(reply[~fixed], COURSE.required[fixed]).any()


@pytest.mark.parametrize("is_screened", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_released_way_writes_the_same(steps: int, is_screened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_screened:
        monkeypatch.setattr(tiles, "LARGE", 0)
    settings, decoder = (
        DecodeSettings(block=7, steps=steps),
        Decoder(random_folder(CONFIG, LAYOUT, torch.float32, "cpu")),
    )
    ours = decode(decoder, REQUESTS[:1], settings, COURSE)
    assert (decoder.folder.model.head.screen is not None) == is_screened
    theirs = released_way(decoder.folder, REQUESTS[0], settings, COURSE)
    assert theirs.replies[0].tolist() == ours.replies[0].tolist()
    assert theirs.num_forwards == ours.num_forwards


def test_ratios_by_hand() -> None:
    seconds = {(benchmark.OURS, 1, 2): 4.0, (benchmark.OURS, 8, 2): 10.0, (benchmark.AR, 1, 1): 6.0}
    seconds[benchmark.RELEASED, 1, 2] = 80.0
    summary = benchmark.compare({key: Measured(value, 1.0, 40, []) for key, value in seconds.items()})
    assert (summary["speedup_batch1"], summary["speedup_batch8"], summary["vs_ar_cache"]) == (20, 64, 1.5)
    assert summary["real_time_factor"]["ours, batch 8, 2 forwards per block"] == 0.5
    assert benchmark.row((benchmark.OURS, 8, 2), Measured(10.0, 1.0, 40, [])) == [
        "ours",
        "8",
        "2",
        "10",
        "200",
        "0.5",
        "1",
        "2",
    ]

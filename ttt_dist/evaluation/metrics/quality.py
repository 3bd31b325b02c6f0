"""How speech sounds, without a text: naturalness by two predictors of opinion scores, and whose voice it is.

The networks come with packages of the extra `quality`, weights and all: DNSMOS (Reddy et al. 2022, arXiv 2110.01763; its overall
score) and DistillMOS (Stahl and Gamper 2025, arXiv 2502.05356), each about 1 to 5, and Resemblyzer's speaker encoder (Wan et
al. 2018, arXiv 1710.10467), whose vectors are compared by their cosine. They run on the CPU, in fp32.
"""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from ttt_dist.audio.batches import inference
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.scores import Record, mean
from ttt_dist.evaluation.sound_sources import SOURCES, Sound
from ttt_dist.util.errors import UserError

FLAG = "--quality"
RATE = 16000  # Hz, that all three networks hear
SHORTEST_S = 0.5  # shorter speech is filled up with silence: the networks want some frames
MEASURES = {"dnsmos": "DNSMOS", "distillmos": "DistillMOS", "speaker": "cosine to another recording of the speaker"}
"""Name in a record -> what a table calls it."""

QUALITY_NOTE = "Predicted opinions of listeners, about 1 to 5, and how near the voice is to the speaker's, up to 1."

Values = dict[str, float]


class Quality:
    """The three networks, loaded."""

    def __init__(self) -> None:
        """Raises UserError where a package is missing."""
        try:
            from distillmos import ConvTransformerSQAModel
            from resemblyzer import VoiceEncoder
            from speechmos import dnsmos
        except ImportError as error:
            raise UserError(f'{FLAG}: {error.name} is not installed; pip install -e ".[quality]"') from error
        with redirect_stdout(io.StringIO()):  # it says where its weights are
            self._distillmos = ConvTransformerSQAModel().eval()
        self._dnsmos, self._voices = dnsmos, VoiceEncoder("cpu", verbose=False)

    def naturalness(self, wave: Tensor) -> Values:
        """[T] at RATE -> predicted opinion scores."""
        wave = _filled(wave)
        with inference():
            distilled = float(self._distillmos(wave[None]))
        opinion = float(self._dnsmos.run(wave.numpy(), RATE)["ovrl_mos"])
        return {"dnsmos": round(opinion, 6), "distillmos": round(distilled, 6)}

    def voice(self, wave: Tensor) -> np.ndarray:
        """[T] at RATE -> a vector of length one that tells the speaker; of zeros where there is no voice."""
        return np.nan_to_num(self._voices.embed_utterance(_filled(wave).numpy()))


def _filled(wave: Tensor) -> Tensor:
    """At most 1 in size, and at least SHORTEST_S long."""
    missing = max(int(SHORTEST_S * RATE) - len(wave), 0)
    return functional.pad(wave.clamp(-1, 1), (0, missing))


def measure(quality: Quality, sounds: Mapping[str, Sequence[tuple[Item, Sound]]]) -> dict[str, dict[str, Values]]:
    """By the item's id, the values of each source of `sounds` (`recording` among them).

    Voices are compared with the next recording of the same speaker among the items, so that recordings have a figure too.
    """
    found: dict[str, dict[str, Values]] = defaultdict(dict)
    voices: dict[tuple[str, str], np.ndarray] = {}
    for source, rows in sounds.items():
        for item, sound in rows:
            wave = sound(RATE)
            found[item.id][source] = quality.naturalness(wave)
            voices[item.id, source] = quality.voice(wave)
    others = nearest([item for item, _ in sounds["recording"]])
    for (name, source), voice in voices.items():
        if name in others:
            found[name][source]["speaker"] = round(float(voice @ voices[others[name], "recording"]), 6)
    return found


def nearest(items: Sequence[Item]) -> dict[str, str]:
    """The id of each item -> that of the next of the same speaker, after the last the first; none where it is alone."""
    by_speaker: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if item.entry.get("speaker"):
            by_speaker[item.entry["speaker"]].append(item.id)
    return {
        name: names[(place + 1) % len(names)]
        for names in by_speaker.values()
        for place, name in enumerate(names)
        if len(names) > 1
    }


def score_quality(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Of each measure and source the mean over the items, as `Figure.to_dict`; empty where nothing was measured."""
    scores: dict[str, dict[str, Any]] = {}
    for name, by in MEASURES.items():
        for source in SOURCES:
            known = [record for record in records if name in record.get("quality", {}).get(source, {})]
            if known:
                values = [record["quality"][source][name] for record in known]
                scores.setdefault(name, {})[source] = mean(known, values, by).to_dict()
    return scores


def as_table(summary: Mapping[str, Any]) -> list[list[str]]:
    """A header and a row per measure; empty where nothing was measured."""
    rows = [
        [MEASURES[name], *(_cell(by_source.get(source)) for source in SOURCES)]
        for name, by_source in summary.get("quality", {}).items()
    ]
    return [["mean of", *SOURCES.values()], *rows] if rows else []


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "none"
    interval = " ({:.2f} to {:.2f})".format(*score["interval_95"]) if score["interval_95"] else ""
    return f"{score['value']:.2f}{interval}"

"""Decoding as a plain loop: one request, greedy, the whole sequence recomputed at each step.

    python -m tests.plain_decoding --model runs/demo/export --data runs/demo/data/test.jsonl --audio-root demo_speech --prompts 100

compares the decoder with it on a trained model: every line is transcribed and spoken, with settings drawn at random.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt_dist.audio import UtteranceReader, load_codec
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.detokenizer import Finished
from ttt_dist.model.attention.plan import attention_plan
from ttt_dist.model.hf.folder import ModelFolder, load_folder
from ttt_dist.sequence.templates import ChatTemplate

Ids = list[int]


class PlainLoop:
    """Decodes as docs/method.md#decoding is written, with no thought of speed."""

    def __init__(self, folder: ModelFolder) -> None:
        self.net, self.layout, self.objective = folder.model, folder.layout, folder.objective
        layout = folder.layout
        self.audio = [t for t in range(layout.vocab_size) if self.is_audio(t) and t != layout.mask]
        never = (layout.pad, layout.im_start, layout.end_of_audio)
        self.text = [t for t in range(layout.vocab_size) if not self.is_audio(t) and t not in never]
        self.ends = {layout.end_of_audio_new, layout.end_of_audio_span_last}

    def is_audio(self, token: int) -> bool:
        is_code = self.layout.first_code <= token < self.layout.first_code + self.layout.num_codes
        return is_code or token in (
            self.layout.mask, self.layout.end_of_audio_new, self.layout.end_of_audio_span_last
        )  # fmt: skip

    def __call__(self, prompt: Ids, chosen: DecodeSettings) -> Ids:
        """The response to a prompt."""
        self.prompt, self.chosen = prompt, chosen
        self.blocks: Ids = []  # where the blocks of the open span begin, for block_causal
        self.draft_from: int | None = None  # what a draft of `verified` sees in both directions begins here
        self.causal_from: int | None = None  # what is read from left to right, to find where a span ends, begins here
        self.num_forwards = self.num_choices = 0
        ids = list(prompt)
        if self.objective.kind == "nar":
            return self._span(ids)[len(prompt) :]
        num_text = num_audio = 0
        while num_text < chosen.max_text and num_audio < chosen.max_codes:
            token = self._best(self._forward(ids)[-1], self.text)[0]
            ids.append(token)
            num_text += 1
            if token == self.layout.im_end or (token == self.layout.begin_of_quad and chosen.stop_at_last_span):
                break
            if token in (self.layout.begin_of_audio, self.layout.begin_of_quad):
                before = len(ids)
                limit = min(chosen.span_limit, chosen.max_codes - num_audio)
                mode = "ar" if self.objective.kind == "ar" else chosen.audio_mode
                ways = {"ar": self._codes, "verified": self._verified, "tidar": self._tidar, "diffusion": self._span}
                ids = ways[mode](ids, limit)
                num_audio += len(ids) - before
        return ids[len(prompt) :]

    def _codes(self, ids: Ids, limit: int) -> Ids:
        """A span that is written code by code."""
        start = len(ids)
        while len(ids) - start < limit and not (len(ids) > start and ids[-1] in self.ends):
            ids = [*ids, self._written(self._forward(ids)[-1], ids, start)]
        return ids

    def _written(self, logits: torch.Tensor, ids: Ids, start: int) -> int:
        """What follows in a span that begins at `start`: the likeliest; under `repeats: drawn` not always the code before once more."""
        best, probability, _ = self._best(logits, self.audio)
        number = np.random.default_rng([0, 0, 1]).random(len(ids) + 1)[-1]
        if self.chosen.repeats == "likeliest" or len(ids) == start or best != ids[-1] or number < probability:
            return best
        logits = logits.clone()
        logits[best] = float("-inf")
        return self._best(logits, self.audio)[0]

    def _verified(self, ids: Ids, limit: int) -> Ids:
        """The same span, by drafts: each is denoised, then read causally as far as it is what would have been written."""
        start, end = len(ids), len(ids) + limit
        while len(ids) < end:
            self.draft_from = len(ids) if self.chosen.block_cache == "block_causal" else start
            draft = self._denoise(ids, min(self.chosen.block, end - len(ids)), self.audio, self.ends, start)
            self.draft_from = None
            ids = self._read(draft, len(ids), start, end)
            if ids[-1] in self.ends:
                break
        return ids

    def _read(self, draft: Ids, place: int, start: int, end: int) -> Ids:
        """What is before `place`, the draft behind it as far as it is written so, and one token more."""
        logits, ids = self._forward(draft), draft[:place]
        while len(ids) < end:
            ids = [*ids, self._kept(logits[len(ids) - 1], draft[len(ids) : len(ids) + 1], ids, start)]
            if ids[-1] in self.ends or ids != draft[: len(ids)]:
                break
        return ids

    def _tidar(self, ids: Ids, limit: int) -> Ids:
        """The same span; a draft comes from the forward that verified the one before, which did not know the last token yet; the
        first one from the forward that wrote the opener, but in transcripts.
        """
        draft, start, end = ids, len(ids), len(ids) + limit
        self.num_forwards -= not self.chosen.stop_at_last_span
        while len(ids) < end:
            ids = self._read(draft, len(ids), start, end)
            if ids[-1] in self.ends:
                break
            masks = [self.layout.mask] * min(self.chosen.block, end - len(ids) + 1)
            self.draft_from, draft = len(ids) - 1, ids
            logits = self._logits(ids[:-1] + masks)
            self.draft_from = None
            while len(draft) < len(ids) - 1 + len(masks) and (draft == ids or draft[-1] not in self.ends):
                draft = [*draft, self._best(logits[len(draft)], self.audio)[0]]
        return ids

    def _kept(self, logits: torch.Tensor, drafted: Ids, ids: Ids, start: int) -> int:
        """A code of the draft that is likely enough and no repetition that is to be drawn, or what would be written without a draft."""
        written, (_, probability, _) = self._written(logits, ids, start), self._best(logits, self.audio)
        if not drafted or self.ends & {written, *drafted}:
            return written
        share = float(logits[self.audio].softmax(-1)[self.audio.index(drafted[0])]) / probability
        is_drawn = self.chosen.repeats == "drawn" and len(ids) > start and drafted[0] == ids[-1]
        is_near = self.chosen.accept_ratio < 1 and share >= self.chosen.accept_ratio
        return drafted[0] if is_near and not is_drawn else written

    def _span(self, ids: Ids, limit: int | None = None) -> Ids:
        """A span of masks, denoised block by block and cut after its first end."""
        is_whole = self.objective.kind == "nar"
        allowed, ends = (self.text + self.audio, {self.layout.im_end}) if is_whole else (self.audio, self.ends)
        start, chosen = len(ids), self.chosen
        limit = limit or min(chosen.span_limit, chosen.max_codes)
        while len(ids) - start < limit:
            self.blocks.append(len(ids))
            size = min(chosen.block, limit - (len(ids) - start))
            if chosen.ends != "causal" or self.objective.kind != "ttt":
                ids = self._denoise(ids, size, allowed, ends, start)
                if ids[-1] in ends:
                    break
                continue
            codes = [token for token in allowed if token not in ends]
            before, ids = len(ids), self._denoise(ids, size, codes, set(), start)
            self.causal_from = before if chosen.block_cache == "block_causal" else start
            logits = self._forward(ids)
            self.causal_from = None
            written = [self._best(row, allowed)[0] for row in logits[before - 1 :]]
            end = next((place for place, token in enumerate(written, before) if token in ends), None)
            if end is not None:
                return [*ids[:end], written[end - before]][: start + limit]
        return ids

    def _denoise(self, ids: Ids, size: int, allowed: Ids, ends: set[int], start: int) -> Ids:
        """A block of masks behind `ids`, denoised, and cut after an end once no mask is left before it."""
        chosen, before, ids = self.chosen, len(ids), ids + [self.layout.mask] * size
        masked = list(range(before, len(ids)))
        for step in range(chosen.steps):
            if not masked:
                break
            logits = self._forward(ids)
            if chosen.cfg:
                guide = self._forward([self.layout.mask] * start + ids[start:], like=ids)
                logits = guide + (1 + chosen.cfg) * (logits - guide)
                self.num_choices -= 1
            found = {place: self._best(logits[place], allowed) for place in masked}
            for place in self._committed(found, step, ends):
                ids[place] = found[place][0]
            masked = [place for place in masked if ids[place] == self.layout.mask]
            end = next((place for place in range(before, len(ids)) if ids[place] in ends), None)
            if end is not None and self.layout.mask not in ids[before:end]:
                return ids[: end + 1]
        return ids

    def _committed(self, found: dict[int, tuple[int, float, float]], step: int, ends: set[int]) -> Ids:
        """Places that are committed, one by one: the surest of those that may be."""
        chosen, left, committed = self.chosen, list(found), []
        waits = {place: chosen.ends != "any" and found[place][0] in ends for place in left}
        numbers = dict(
            zip(left, np.random.default_rng([0, self.num_choices - 1]).random((2, len(left)))[1], strict=True)
        )

        def is_sure(place: int) -> bool:
            """An end is no surer than the codes it waits for, and waits for another end in vain."""
            before = [other for other in found if other < place and waits[place]]
            is_likely = 0 < chosen.threshold <= found[place][1]
            return is_likely and all(is_sure(other) and not waits[other] for other in before)

        def rank(place: int) -> tuple[bool, float, int]:
            order = numbers[place] if chosen.remasking == "random" else found[place][2]
            if chosen.position_decay:
                order = order if chosen.remasking == "entropy" else math.log(max(order, 1e-30))
            return is_sure(place), order - chosen.position_decay * place, -place

        done, next_ = (((step + n) / chosen.steps) ** chosen.commit_power for n in (0, 1))
        share = max(1, math.ceil(len(left) * (next_ - done) / (1 - done) - 1e-9))
        for _ in range(max(share, sum(map(is_sure, found)))):
            committed.append(max((place for place in left if not waits[place] or place == left[0]), key=rank))
            if waits[committed[-1]]:
                break
            left.remove(committed[-1])
        return committed

    def _best(self, logits: torch.Tensor, allowed: Ids) -> tuple[int, float, float]:
        """The likeliest token, its probability, and how sure the model is by the rule of remasking."""
        probabilities = logits[allowed].softmax(-1)
        best = int(probabilities.argmax())
        sure = float(probabilities[best])
        if self.chosen.remasking == "margin":
            highest = probabilities.sort(descending=True).values
            sure = float(highest[0] - highest[1])
        elif self.chosen.remasking == "entropy":
            sure = -float(torch.special.entr(probabilities).sum())
        return allowed[best], float(probabilities[best]), sure

    def _forward(self, ids: Ids, like: Ids | None = None) -> torch.Tensor:
        self.num_forwards += 1
        self.num_choices += 1
        return self._logits(ids, like)

    def _logits(self, ids: Ids, like: Ids | None = None) -> torch.Tensor:
        """Logits of every position; who sees whom follows `like`, by default the ids themselves."""
        row = torch.tensor([ids])
        plan = attention_plan(torch.ones_like(row), torch.tensor([self._spans(like or ids)]))
        return self.net.logits(self.net.hidden(row[0], torch.arange(len(ids)), plan))

    def _spans(self, ids: Ids) -> Ids:
        """The number of each token's bidirectional span; 0 is causal."""
        kind, numbers, keys = self.objective.kind, [], {}
        run = 0
        for place, token in enumerate(ids):
            in_response, is_audio = place >= len(self.prompt), self.is_audio(token)
            run += not is_audio
            block = sum(begin <= place for begin in self.blocks) if self.chosen.block_cache == "block_causal" else 0
            key = (in_response, 0 if kind == "nar" and in_response else run, block)
            spans = is_audio and (in_response or self.objective.prompt_audio == "bidirectional")
            spans = (spans or (kind == "nar" and in_response)) and kind != "ar"
            if kind == "ttt" and is_audio and (in_response or self._is_answer(ids, place)):
                is_draft = self.draft_from is not None and place >= self.draft_from
                spans = self.chosen.audio_mode == "diffusion" or is_draft
                spans = spans and not (self.causal_from is not None and place >= self.causal_from)
            numbers.append(keys.setdefault(key, len(keys) + 1) if spans else 0)
        return numbers

    def _is_answer(self, ids: Ids, place: int) -> bool:
        """Whether the audio at a place of the prompt is of an earlier answer: its end is audio as well."""
        after = next((n for n in range(place, len(self.prompt)) if not self.is_audio(ids[n])), len(self.prompt))
        return ids[after - 1] in self.ends


def draw_settings(rng: np.random.Generator, kind: str = "ttt", **limits: Any) -> DecodeSettings:
    """Greedy settings for a model of objective.kind: blocks of 1 to 64, steps of 1 to the block, every rule; with and without
    guidance, threshold, approximation.
    """
    rules = ["leftmost", "any", "leftmost" if kind == "nar" else "causal"]
    block = int(rng.integers(1, 65))
    steps = int(rng.integers(1, block + 1))
    if (
        limits.get("audio_mode") == "verified"
    ):  # of a draft of untrained weights one code is kept, so all steps are taken for each
        steps = min(steps, 4)
    return DecodeSettings(
        block=block,
        steps=steps,
        commit_power=float(rng.choice([1.0, 1.0, 0.5, 2.0])),
        remasking=str(rng.choice(["low_confidence", "margin", "entropy", "random"])),  # type: ignore[arg-type]
        position_decay=float(rng.choice([0.0, 0.0, 0.3, 100.0])),
        ends=str(rng.choice(rules)),  # type: ignore[arg-type]
        threshold=float(rng.choice([0.0, 0.0, 0.3, 0.9])),
        block_cache=str(rng.choice(["exact", "exact", "block_causal"])),  # type: ignore[arg-type]
        cfg=float(rng.choice([0.0, 0.0, 0.1, 1.0])) * (limits.get("audio_mode") != "tidar"),
        stop_at_last_span=bool(rng.random() < 0.2),
        accept_ratio=float(rng.choice([1.0, 0.9, 0.3])),
        repeats=str(rng.choice(["likeliest", "drawn"])),  # type: ignore[arg-type]
        **limits,
    )


def differing(folder: ModelFolder, prompts: list[np.ndarray], chosen: list[DecodeSettings], batch_size: int) -> Ids:
    """Which requests the decoder answers otherwise than the plain loop, or in another number of forwards; each has
    settings of its own.
    """
    plain, session, found = PlainLoop(folder), Decoder(folder, batch_size).session(), {}
    for prompt, settings in zip(prompts, chosen, strict=True):
        session.add(Request(prompt), settings)
    while not session.is_idle:
        found.update({key: event.result for key, event in session.step() if isinstance(event, Finished)})
    pairs = enumerate(zip(prompts, chosen, strict=True))
    return [
        n
        for n, (prompt, settings) in pairs
        if (found[n].ids.tolist(), found[n].num_forwards) != (plain(prompt.tolist(), settings), plain.num_forwards)
    ]


def main() -> None:
    """Compare on a trained model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--audio-root", type=Path)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = load_folder(args.model, torch.float32, "cpu")
    template, codec = ChatTemplate(folder.tokenizer, folder.layout, folder.template), load_codec(folder.codec)
    reader = UtteranceReader(args.data.parent, codec.sample_rate, audio_root=args.audio_root)
    rng, prompts = np.random.default_rng(args.seed), []
    for line in args.data.read_text(encoding="utf8").splitlines()[: args.prompts // 2]:
        entry = json.loads(line)
        prompts.append(template.tts_prompt(entry["text"], entry.get("speaker")))
        prompts.append(template.asr_prompt(codec.encode([reader.read(entry)])[0]))
    chosen = [
        replace(draw_settings(rng, folder.objective.kind), span_limit=120, max_text=40, max_codes=120) for _ in prompts
    ]
    torch.set_num_threads(1)  # products of one short sequence
    wrong: Ids = []
    for start in range(0, len(prompts), 20):
        part = slice(start, start + 20)
        with torch.inference_mode():
            found = differing(folder, prompts[part], chosen[part], int(rng.integers(1, 9)))
        wrong += [start + index for index in found]
        print(f"{min(start + 20, len(prompts))} of {len(prompts)} prompts, {len(wrong)} differing", flush=True)
    print(json.dumps({"prompts": len(prompts), "differing": len(wrong), "which": wrong[:20]}))


if __name__ == "__main__":
    main()

"""Decoding a spoken reply: ours against the released way and against autoregressive decoding with a key-value cache.

    python -m benchmarks.decode                                     on CPU, about 100 M parameters (25 minutes)
    python -m benchmarks.decode --device cuda --out benchmarks/results/DATE-decode-cuda.md

A reply has 125 text tokens and 250 codes (20 s at 12.5 Hz): nine rounds of 13 text tokens and a span of 26 codes, then 8 and
16. All sides take the same random weights and follow the same course (`benchmarks.decode_sides`). A block has 27 masks: 26
codes and the end. Prompts: 60 text tokens, or 100 codes after a system prompt, in turn; at batch 1 the former. Sides:

- ours: `Decoder` at 2, 4 and 8 forwards per block, batch 1, 8 and 32.
- AR with cache: `Decoder` on the same weights as a model of objective `ar`: one forward per text token, code and end.
- released way: the whole sequence recomputed for each text token and each step, logits of the whole vocabulary at all
  positions, one request at a time, 2 forwards per block, greedy, without classifier-free guidance (which would double its
  cost); measured in full, once. On CPU its tokens must be those of ours.

Batch 1 of ours and of AR is the median of five runs, taken in turns. Figures: codes of all replies per second; real-time factor, the
seconds that a reply took over the 20 s of its sound; seconds to the first finished span; forwards per second of sound,
those of a batch being shared. The last line is one JSON object; `speedup_batch1` compares seconds with the released way
at 2 forwards per block, `speedup_batch8` codes per second, `vs_ar_cache` seconds with AR at batch 1.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.decode_sides import SHAPES, Course, Measured, decode, draw_prompts, random_folder, released_way
from benchmarks.result_file import head, result_path
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.objective import Objective
from ttt_dist.inference.decoder import Decoder
from ttt_dist.model.hf.folder import ModelFolder
from ttt_dist.sequence.tokens import released
from ttt_dist.util.console import print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError

NUM_TEXT, NUM_CODES, CODE_RATE = 125, 250, 12.5
SOUND_S = NUM_CODES / CODE_RATE
BLOCK, STEPS, BATCHES = 27, (2, 4, 8), (1, 8, 32)
REPEATS = 5  # of batch 1; larger batches take long enough to run once
OURS, AR, RELEASED = "ours", "AR with cache", "released way"

Key = tuple[str, int, int]
"""Side, batch, forwards per block."""


def main() -> None:
    """Measure every shape of the device, and say how the sides compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=result_path, help="write a dated result file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; take --device cpu")
    names = ["100m"] if args.device == "cpu" else [name for name in SHAPES if name != "100m"]
    text = head("Decoding a spoken reply", "benchmarks.decode")
    by_shape = {}
    for name in names:
        title, found = measure_shape(name, args.device)
        by_shape[name] = compare(found)
        text += ["", f"## {title}", "", *table(found)]
    summary = by_shape[names[0]] | ({"by_shape": by_shape} if len(names) > 1 else {})
    if args.out:
        text += ["", "What the figures mean: docstring of `benchmarks/decode.py`.", "", f"`{json.dumps(summary)}`", ""]
        args.out.write_text("\n".join(text), encoding="utf8")
        print_rank0(f"wrote {args.out}")
    print_json(summary)


def measure_shape(name: str, device: str) -> tuple[str, dict[Key, Measured]]:
    """What the model is, and all that is measured on it."""
    dtype, layout = torch.float32 if device == "cpu" else torch.bfloat16, released()
    folder = random_folder(SHAPES[name], layout, dtype, device)
    sizes = {key: weight.numel() for key, weight in folder.model.named_parameters()}
    title = (
        f"{name}: {(sum(sizes.values()) - sizes['embed.weight']) / 1e6:,.0f} M parameters and "
        f"{sizes['embed.weight'] / 1e6:,.0f} M of the tied embedding (vocabulary {layout.vocab_size:,}), "
        f"{str(dtype).removeprefix('torch.')}"
    )
    print_rank0(title)
    found = {}
    for key, measured in measure(folder, Course.of(layout, NUM_TEXT, NUM_CODES)):
        found[key] = measured
        print_rank0(" | ".join(row(key, measured)))
    if device == "cpu" and found[RELEASED, 1, 2].replies[0].tolist() != found[OURS, 1, 2].replies[0].tolist():
        raise UserError("the released way and ours wrote different tokens from the same weights; one of them is wrong")
    return title, found


def measure(folder: ModelFolder, course: Course) -> Iterator[tuple[Key, Measured]]:
    """Every side at every batch size and number of forwards per block; repeated in turns, so that all meet the same machine."""
    ours, requests = Decoder(folder), draw_prompts(folder.layout, max(BATCHES))
    ar = Decoder(dataclasses.replace(folder, objective=Objective(kind="ar")))
    for decoder in (ours, ar):
        decode(decoder, requests[:1], settings(2), course)  # warms up: pages of weights grow large while they are read
    for batch in BATCHES:
        sides: dict[Key, tuple[Decoder, int]] = {(OURS, batch, steps): (ours, steps) for steps in STEPS}
        sides[AR, batch, 1] = ar, 1
        rounds = [
            {key: decode(decoder, requests[:batch], settings(steps), course) for key, (decoder, steps) in sides.items()}
            for _ in range(REPEATS if batch == 1 else 1)
        ]
        yield from ((key, median([found[key] for found in rounds])) for key in sides)
    yield (RELEASED, 1, 2), released_way(folder, requests[0], settings(2), course)


def settings(steps: int) -> DecodeSettings:
    """Greedy, one block a span."""
    return DecodeSettings(block=BLOCK, steps=steps)


def median(runs: Sequence[Measured]) -> Measured:
    """The run of middle length."""
    return sorted(runs, key=lambda measured: measured.seconds)[(len(runs) - 1) // 2]


def compare(found: dict[Key, Measured]) -> dict[str, Any]:
    """The ratios, and the real-time factor of everything."""
    released_s = found[RELEASED, 1, 2].seconds
    return {
        "speedup_batch1": round(released_s / found[OURS, 1, 2].seconds, 2),
        "speedup_batch8": round(8 * released_s / found[OURS, 8, 2].seconds, 2),
        "vs_ar_cache": round(found[AR, 1, 1].seconds / found[OURS, 1, 2].seconds, 2),
        "real_time_factor": {
            f"{side}, batch {batch}, {steps} forwards per block": round(measured.seconds / SOUND_S, 3)
            for (side, batch, steps), measured in found.items()
        },
    }


def table(found: dict[Key, Measured]) -> list[str]:
    """All figures as Markdown."""
    header = ["side", "batch", "forwards per block", "seconds", "codes/s", "real-time factor", "first span, s"]
    rows = [[*header, "forwards per second of sound"], ["---"] * (len(header) + 1)]
    rows += [row(key, measured) for key, measured in found.items()]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def row(key: Key, measured: Measured) -> list[str]:
    """One line of the table."""
    side, batch, steps = key
    seconds = measured.seconds
    figures = [seconds, batch * NUM_CODES / seconds, seconds / SOUND_S, measured.first_span_s]
    cells = [f"{figure:.3g}" for figure in [*figures, measured.num_forwards / SOUND_S]]
    return [side, str(batch), "" if side == AR else str(steps), *cells]


if __name__ == "__main__":
    run_command(main)

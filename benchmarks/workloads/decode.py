"""Decoding at batch `--batch`: replies per second, on the 100 M shape at 2 forwards a block.

    python -P benchmarks/workloads/decode.py --batch 32 --folder INPUTS [--kind ar]

A reply is three rounds (at batch 1: nine) of 13 text tokens and a span of 26 codes, then 8 and 16: the proportions of the
reply of benchmarks/decode.py, which has nine. Prompts, weights and course are the same there. Nothing is read from INPUTS.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from benchmarks.decode_sides import SHAPES, Course, decode, draw_prompts, random_folder
from ttt_dist.inference.decoder import Decoder, DecodeSettings  # whose own module has another name in older builds
from ttt_dist.sequence.tokens import released


def main() -> None:
    """Decode once to warm up, then once more on the clock."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--kind", choices=("ttt", "ar"), default="ttt")
    args = parser.parse_args()
    layout, rounds = released(), 9 if args.batch == 1 else 3
    folder = random_folder(SHAPES["100m"], layout, torch.float32, "cpu")
    decoder = Decoder(dataclasses.replace(folder, objective=dataclasses.replace(folder.objective, kind=args.kind)))
    requests, settings = draw_prompts(layout, args.batch), DecodeSettings(block=27, steps=2)
    decode(decoder, requests[:1], settings, Course.of(layout, 21, 42))
    measured = decode(decoder, requests, settings, Course.of(layout, 13 * rounds + 8, 26 * rounds + 16))
    print(json.dumps({"speed": args.batch / measured.seconds}))


if __name__ == "__main__":
    main()

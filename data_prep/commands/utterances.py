"""Utterances of several words from recordings of single words: random strings, each of one speaker.

No audio is written: an entry names the recordings to join (`audio`, a list), the seconds of silence before each
(`gaps`) and after the last (`tail`). Speakers, recordings of a word, and lengths come from shuffled decks that are dealt
to the end before they are shuffled again, so that all are used equally often; words are drawn freely, so that they may
repeat. Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from data_prep.commands.flags import add_max_errors
from data_prep.manifest_files import writing_manifests
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import read_manifest
from ttt_dist.util.console import Progress, print_rank0
from ttt_dist.util.errors import UserError

EXAMPLES = """examples:
  python -m data_prep utterances --manifest work/train.jsonl --out work/train-strings.jsonl --count 20000 \\
      --min-words 1 --max-words 5 --gap 0.0:0.15 --seed 0
"""

OF_NO_SINGLE_FILE = ("offset", "member", "channel", "turns", "segments", "speech")

T = TypeVar("T")


class Deck(Generic[T]):
    """Deals its cards in random order; when all are dealt, shuffles again."""

    def __init__(self, cards: Sequence[T], generator: random.Random) -> None:
        self._cards = list(cards)
        self._generator = generator
        self._left: list[T] = []

    def deal(self) -> T:
        """The next card."""
        if not self._left:
            self._left = self._cards.copy()
            self._generator.shuffle(self._left)
        return self._left.pop()


class Speaker:
    """The recordings of one speaker: words at random, the recordings of a word in turn."""

    def __init__(self, name: str, recordings: Sequence[Entry], generator: random.Random) -> None:
        self.name = name
        by_word: dict[str, list[Entry]] = defaultdict(list)
        for entry in recordings:
            by_word[entry["text"]].append(entry)
        self._generator = generator
        self._words = sorted(by_word)
        self._recordings = {word: Deck(by_word[word], generator) for word in self._words}

    def deal(self) -> Entry:
        """A recording of a random word."""
        return self._recordings[self._generator.choice(self._words)].deal()


def build_utterances(
    recordings: Sequence[Entry],
    count: int,
    words: tuple[int, int],
    gap: tuple[float, float],
    tail: tuple[float, float],
    seed: int,
    name: str,
) -> Iterator[Entry]:
    """`count` entries of words[0]..words[1] recordings of one speaker each.

    gap[0]..gap[1] seconds of silence stand before each recording, tail[0]..tail[1] after the last. Their ids are
    `name-000000`, ... Entries without a speaker count as one speaker's.
    """
    generator = random.Random(seed)
    by_speaker: dict[str, list[Entry]] = defaultdict(list)
    for entry in recordings:
        by_speaker[str(entry.get("speaker") or "")].append(entry)
    speakers = Deck([Speaker(who, by_speaker[who], generator) for who in sorted(by_speaker)], generator)
    lengths = Deck(range(words[0], words[1] + 1), generator)
    for number in range(count):
        speaker = speakers.deal()
        parts = [speaker.deal() for _ in range(lengths.deal())]
        gaps = [round(generator.uniform(*gap), 3) for _ in parts]
        end = round(generator.uniform(*tail), 3)
        joined: Entry = {
            "id": f"{name}-{number:06d}",
            "audio": [part["audio"] for part in parts],
            "gaps": gaps,
            "tail": end,
            "text": " ".join(part["text"] for part in parts),
            "duration": round(sum(part["duration"] for part in parts) + sum(gaps) + end, 6),
        }
        if speaker.name:
            joined["speaker"] = speaker.name
        if parts[0].get("lang"):
            joined["lang"] = parts[0]["lang"]
        yield joined


def read_recordings(path: Path, problems: Problems) -> list[Entry]:
    """The manifest's whole single files, their paths as this process can open them."""
    recordings = []
    for place, entry in read_manifest(path, problems):
        if not isinstance(entry.get("audio"), str) or any(entry.get(name) is not None for name in OF_NO_SINGLE_FILE):
            problems.report(f"{place}: is no whole single file; only those can be joined")
        elif not entry.get("text"):
            problems.report(f"{place}: field 'text' is missing; only recordings of words can be joined")
        elif not entry.get("duration"):
            problems.report(f"{place}: field 'duration' is missing; make the manifest with `data_prep manifest`")
        else:
            recordings.append({**entry, "audio": str(path.parent / entry["audio"]), "text": entry["text"].strip()})
    return recordings


def run(args: argparse.Namespace) -> None:
    """Write a manifest of random strings."""
    if not 1 <= args.min_words <= args.max_words:
        args.fail(f"--min-words {args.min_words} --max-words {args.max_words}: 1 <= min <= max is needed")
    if args.count < 1:
        args.fail(f"--count {args.count}: at least 1 is needed")
    problems = Problems(args.max_errors)
    recordings = read_recordings(args.manifest, problems)
    if not recordings:
        raise UserError(f"{args.manifest}: holds no recording that can be joined")
    words, name = (args.min_words, args.max_words), args.out.stem
    with (
        writing_manifests("utterances", args.manifest, [args.out], problems) as (file,),
        Progress(args.count, "joining", "utterance") as progress,
    ):
        for entry in build_utterances(recordings, args.count, words, args.gap, args.tail, args.seed, name):
            file.add(entry)
            progress.advance()
    print_rank0(f"{args.out}: {file.totals.describe()}, from {len(recordings):,} recordings")
    problems.raise_if_over_limit(f"{args.count:,} utterances were written from the good ones")


def gap_range(text: str) -> tuple[float, float]:
    """`LOW:HIGH` in seconds, or one number for both."""
    low, _, high = text.partition(":")
    try:
        gap = float(low), float(high or low)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH in seconds, such as 0.0:0.15") from error
    if not 0 <= gap[0] <= gap[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: 0 <= LOW <= HIGH is needed")
    return gap


def add_parser(subparsers: Any) -> None:
    """Add the command `utterances`."""
    parser = subparsers.add_parser(
        "utterances",
        help="join single recordings into random strings of words",
        description="Build utterances of several words by joining recordings of the same speaker.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--manifest", required=True, type=Path, help="manifest of the single recordings")
    parser.add_argument("--out", required=True, type=Path, help="manifest to write")
    parser.add_argument("--count", required=True, type=int, help="how many utterances to build")
    parser.add_argument("--min-words", type=int, default=1, help="fewest recordings in one (default 1)")
    parser.add_argument("--max-words", type=int, default=5, help="most recordings in one (default 5)")
    parser.add_argument(
        "--gap", type=gap_range, default=(0.0, 0.15), metavar="LOW:HIGH", help="silence before each, s (0.0:0.15)"
    )
    parser.add_argument(
        "--tail", type=gap_range, default=(0.0, 0.3), metavar="LOW:HIGH", help="silence after the last, s (0.0:0.3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides every draw (default 0)")
    add_max_errors(parser)
    parser.set_defaults(func=run, fail=parser.error)

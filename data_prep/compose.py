"""`data_prep compose`: audio codes and texts to samples, through the chat templates.

Every complete part of codes/ becomes a part of the same name in samples/, one document per sample; tokenizer, codec and
template settings go beside them. A part that is there already and was made from the same input is kept.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.samples import find_parts, render_template, report_errors, save_tokenizer, write_once
from ttt_dist.audio import load_codec
from ttt_dist.data.indexed import open_indexed
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.shards import ShardReader, ShardWriter
from ttt_dist.errors import UserError
from ttt_dist.files import copy_folder, sha256_file
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.templates import ChatTemplate, TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import extend
from ttt_dist.telemetry.console import Progress, say

TEMPLATES = ("asr", "tts")
EXAMPLES = """examples:
  python -m data_prep compose --codes codes/train --template asr,tts --tokenizer Qwen2.5/ --out samples/train
  python -m data_prep compose --codes codes/train --template asr --train-tokenizer --vocab-size 400 --out samples/train
  python -m data_prep compose --codes codes/test --template asr --tokenizer samples/train/tokenizer --out samples/test
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the argument parser of data_prep."""
    parser = subparsers.add_parser(
        "compose",
        help="make samples of codes and texts",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--codes", type=Path, required=True, help="folder that data_prep encode wrote")
    parser.add_argument("--template", type=template_names, required=True, help="asr, tts, or asr,tts")
    tokenizer = parser.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json, or a sentencepiece model")
    tokenizer.add_argument("--train-tokenizer", action="store_true", help="train a sentencepiece model on the texts")
    parser.add_argument("--vocab-size", type=int, default=400, help="entries to train, at most (default 400)")
    parser.add_argument("--tokenizer-out", type=Path, help="folder for the trained model (default OUT/tokenizer)")
    parser.add_argument("--text-ratio", type=int, default=13, help="text tokens between two spans (default 13)")
    parser.add_argument("--audio-ratio", type=int, default=26, help="codes in each span but the last (default 26)")
    parser.add_argument("--name-speaker", action="store_true", help="name the speaker in tts prompts")
    parser.add_argument("--max-errors", type=int, default=0, help="bad utterances that are put up with (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the samples")
    parser.set_defaults(func=run)


def template_names(text: str) -> tuple[str, ...]:
    """Parse `asr,tts`."""
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in TEMPLATES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no template '{unknown[0]}': choose among {', '.join(TEMPLATES)}")
    return names


def run(args: argparse.Namespace) -> None:
    """The command. Raises UserError where more utterances than --max-errors could not be used; the others are kept."""
    if args.text_ratio < 1 or args.audio_ratio < 1:
        raise UserError("--text-ratio and --audio-ratio must be 1 or more")
    parts = [CodesPart(prefix) for prefix in find_parts(args.codes, "encode")]
    for part in parts:
        part.check()
    refuse_other_parts(args.out, parts)
    settings = TemplateSettings(args.text_ratio, args.audio_ratio, name_speaker=args.name_speaker)
    tokenizer = train(args, parts, settings) if args.train_tokenizer else load_tokenizer(args.tokenizer)
    composer = prepare(args, tokenizer, settings)
    with Progress(len(parts), "composing", "part") as progress:
        for part in parts:
            composer.compose(part)
            progress.advance()
    report(composer, args)


def refuse_other_parts(out: Path, parts: list["CodesPart"]) -> None:
    """Parts of an earlier run that this one would not write again would be packed with it unnoticed."""
    known = {part.prefix.name for part in parts}
    for path in sorted(out.glob("part-*.json")):
        if path.stem not in known:
            raise UserError(f"{path}: left by another run, --codes has no such part; remove it or choose another --out")


def train(args: argparse.Namespace, parts: list["CodesPart"], settings: TemplateSettings) -> TextTokenizer:
    """Train a sentencepiece model on the corpus and on what the templates write themselves."""

    def texts() -> Iterator[str]:
        yield from (settings.asr_system, settings.tts_system, "system\n", "user\n", "assistant\n", "\n")
        for part in parts:
            for entry in part.entries():
                text = entry.get("text")
                if isinstance(text, str) and text.strip():
                    yield text.strip()
                    if settings.name_speaker and entry.get("speaker"):
                        yield f"{entry['speaker']}: {text.strip()}"

    try:
        return train_sentencepiece(texts(), args.tokenizer_out or args.out / "tokenizer", args.vocab_size)
    except RuntimeError as error:  # all that sentencepiece raises
        raise UserError(f"--vocab-size {args.vocab_size}: no tokenizer could be trained ({error})") from error


def prepare(args: argparse.Namespace, tokenizer: TextTokenizer, settings: TemplateSettings) -> "Composer":
    """Put tokenizer, codec and template.json in their places, and make the token layout of the two."""
    codec = load_codec(args.codes / "codec")
    layout = extend(tokenizer, codec.codebook_size)
    save_tokenizer(tokenizer, args.out / "tokenizer")
    copy_folder(args.codes / "codec", args.out / "codec")
    write_once(args.out / "template.json", render_template(settings))
    return Composer(ChatTemplate(tokenizer, layout, settings), args.template, args.out)


def report(composer: "Composer", args: argparse.Namespace) -> None:
    """Tell what came out, and fail where too much could not be used."""
    counts = composer.counts
    kept = f" ({composer.num_kept} parts were there already)" if composer.num_kept else ""
    say(
        f"{args.out}: {counts['samples']:,} samples, {counts['tokens']:,} tokens, "
        f"{counts['audio_tokens']:,} of them audio{kept}"
    )
    if composer.num_errors > args.max_errors:
        raise UserError(
            f"{args.out}: {composer.num_errors} utterances could not be composed (--max-errors {args.max_errors}); "
            "the others are there: mend the lines named above, or raise --max-errors"
        )


class CodesPart:
    """A part of codes/: one sequence of codes per line of its manifest."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.manifest = with_suffix(prefix, ".jsonl")

    def check(self) -> None:
        """Compare the files with the checksums that encode noted, and read the manifest once.

        Raises UserError naming the file that differs, or the line that cannot be read.
        """
        path = with_suffix(self.prefix, ".json")
        try:
            checksums = dict(json.loads(path.read_text(encoding="utf-8"))["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the JSON of a part ({error}); run data_prep encode again") from error
        for name, checksum in checksums.items():
            file = self.prefix.with_name(name)
            if not file.is_file() or sha256_file(file) != checksum:
                raise UserError(f"{file}: missing or changed since it was written; run data_prep encode again")
        for _ in self.entries():
            pass

    def entries(self) -> Iterator[dict[str, Any]]:
        """The manifest's entries. Raises UserError naming file and line."""
        try:
            with open(self.manifest, encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    yield self._parse(line, number)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.manifest}: not readable ({error}); run data_prep encode again") from error

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{self.manifest}:{number}: not JSON ({error}); run data_prep encode again") from error
        if not isinstance(entry, dict):
            raise UserError(f"{self.manifest}:{number}: not a JSON object; run data_prep encode again")
        return entry

    def utterances(self) -> Iterator[tuple[int, dict[str, Any], np.ndarray]]:
        """(line, entry, codes) of every utterance. Raises UserError where codes and manifest do not match."""
        dataset = open_indexed(self.prefix, multimodal=False)
        number = 0
        for number, entry in enumerate(self.entries(), start=1):
            if number > len(dataset):
                break
            yield number, entry, np.array(dataset[number - 1])
        if number != len(dataset):
            raise UserError(f"{self.manifest}: {number} lines for {len(dataset)} sequences of codes; run encode again")


@dataclass
class Composer:
    """Makes parts of samples, and keeps count."""

    template: ChatTemplate
    names: tuple[str, ...]
    out: Path
    num_errors: int = 0
    num_kept: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"samples": 0, "tokens": 0, "audio_tokens": 0})

    def compose(self, part: CodesPart) -> None:
        """Write the samples of one part, unless they are there."""
        made_from = self._made_from(part)
        meta = self._existing(self.out / part.prefix.name, made_from)
        if meta is None:
            meta = self._write(part, made_from)
        else:
            self.num_kept += 1
        self._report(part, meta["errors"])
        for key in self.counts:
            self.counts[key] += meta["counts"][key]

    def _report(self, part: CodesPart, errors: list[str]) -> None:
        report_errors([f"{part.manifest}:{error}" for error in errors], self.num_errors)
        self.num_errors += len(errors)

    def _made_from(self, part: CodesPart) -> dict[str, Any]:
        """All that decides what a part will hold: its codes, by their JSON with its checksums, and the settings."""
        return {
            "codes": sha256_file(with_suffix(part.prefix, ".json")),
            "templates": list(self.names),
            "settings": self.template.settings.to_dict(),
            "tokenizer_hash": self.template.tokenizer.hash,
        }

    def _existing(self, prefix: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
        if not with_suffix(prefix, ".json").exists():
            return None
        try:
            meta = ShardReader(prefix).meta
        except UserError:
            return None  # damaged: it is written again
        return meta if meta.get("made_from") == made_from else None

    def _write(self, part: CodesPart, made_from: dict[str, Any]) -> dict[str, Any]:
        errors: list[str] = []
        meta = {"layout": self.template.layout.to_dict(), "seq_len": None, "made_from": made_from, "errors": errors}
        writer = ShardWriter(self.out / part.prefix.name, meta)
        try:
            for line, entry, codes in part.utterances():
                try:
                    samples = self._samples(entry, codes)
                except UserError as error:
                    errors.append(f"{line}: {entry.get('id', 'utterance without id')}: {error}")
                else:
                    for sample in samples:
                        writer.add([sample])
            if not writer.num_documents:
                self._report(part, errors)
            return writer.close()
        except BaseException:
            writer.abort()
            raise

    def _samples(self, entry: dict[str, Any], codes: np.ndarray) -> list[Sample]:
        text = entry.get("text")
        if not isinstance(text, str):
            raise UserError("lacks 'text': add it to the manifest")
        if not len(codes):
            raise UserError("the audio has no codes: leave the utterance out")
        makers = {
            "asr": lambda: self.template.asr(codes, text),
            "tts": lambda: self.template.tts(text, codes, entry.get("speaker")),
        }
        return [makers[name]() for name in self.names]

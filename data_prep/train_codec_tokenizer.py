"""Learning the built-in codec and a text tokenizer: once, by whichever of many tasks comes first; the others find it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.jobs.compose import CodesPart, fingerprint
from data_prep.jobs.encode import UNREADABLE
from data_prep.learnt_notes import note_of, read_note
from ttt_dist.data import metadata
from ttt_dist.manifest.clips import clips
from ttt_dist.manifest.entry import is_seconds, parse_object
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import numbered_lines, read_manifest
from ttt_dist.util.atomic_files import (
    atomic_write,
    fsync_folder,
    remove_leftovers,
    sha256_file,
    sha256_folder,
    temporary_name,
    writing,
)
from ttt_dist.util.console import Progress, print_rank0
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from ttt_dist.audio import Codec, UtteranceReader
    from ttt_dist.sequence.templates import TemplateSettings


def _learn_once(
    folder: Path, what: str, option: str, learnt_from: dict[str, Any], learn: Callable[[Path], object]
) -> bool:
    """Have `learn` fill the folder, unless it is there, learnt from these inputs; returns whether it was learnt now.

    The note is written first and the folder then appears whole: a job killed at any moment leaves nothing between.
    Raises UserError where the folder holds what was learnt from other inputs.
    """
    with lease(folder, wait=True), writing(folder):
        if folder.exists() and any(folder.iterdir()):
            note = read_note(folder)
            if note and note.get("learnt_from") == learnt_from:
                return False
            raise UserError(
                f"{folder}: holds a {what} learnt from something else; remove it and {note_of(folder).name}, or choose "
                f"another {option}"
            )
        place = folder.resolve()  # a link stays one
        remove_leftovers(place, note_of(folder))
        temporary = temporary_name(place)
        try:
            temporary.mkdir()
            learn(temporary)
            with atomic_write(note_of(folder)) as file:
                file.write(metadata.render({"learnt_from": learnt_from, "sha256": sha256_folder(temporary)}))
            os.replace(temporary, place)
            fsync_folder(place.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return True


def learn_codec(manifest: Path, settings: dict[str, Any], folder: Path, audio_root: Path | None) -> None:
    """Learn melvq and save it in `folder`, unless it is there, learnt from these inputs.

    Raises UserError where the folder holds a codec of other inputs: codes depend on it.
    """
    learnt_from = {"manifest_sha256": sha256_file(manifest), **settings}
    if _learn_once(
        folder, "codec", "--codec-out", learnt_from, lambda new: _learn(manifest, settings, audio_root).save(new)
    ):
        print_rank0(f"{folder}: melvq codec, {settings['codebook_size']} codes at {settings['frame_rate']:g} Hz")


def _learn(manifest: Path, settings: dict[str, Any], audio_root: Path | None) -> Codec:
    from ttt_dist.audio import UtteranceReader
    from ttt_dist.audio.codecs.melvq import MelVQ, MelVQSettings, stacks_to_learn_from

    melvq = MelVQSettings(**settings)
    reader = UtteranceReader(manifest.parent, melvq.sample_rate, audio_root=audio_root)
    total = total_seconds(manifest)
    needed = 2 * stacks_to_learn_from(melvq) / melvq.frame_rate  # twice: durations in manifests may be wrong
    share = min(1.0, needed / total) if total else 1.0
    with Progress(total and total * share, "learning the codec", "s audio") as progress:
        return MelVQ.learn(_waves(manifest, reader, progress, share, melvq.seed), melvq)


def total_seconds(manifest: Path) -> float | None:
    """The manifest's audio by its `duration` fields; None where one has none. Bad lines are left to the reading."""
    total = 0.0
    for place, line in numbered_lines(manifest, Problems(told=0)):
        try:
            seconds = parse_object(line, place).get("duration")
        except UserError:
            return None
        if not is_seconds(seconds):
            return None
        total += seconds
    return total


def _waves(manifest: Path, reader: UtteranceReader, progress: Progress, share: float, seed: int) -> Iterator[Tensor]:
    """The audio of a random share of the manifest, or of all where that share has none: one duration may be far too long.
    What is bad is passed over: encoding counts it again.

    Raises UserError where nothing can be read, with the first reason.
    """
    problems = Problems(told=0)
    for part in {share: None, 1.0: None}:
        readable = False
        for wave in _readable(manifest, reader, part, seed, problems):
            readable = True
            yield wave
            progress.advance(len(wave) / reader.sample_rate)
        if readable:
            return
    reasons = [place for tally in problems.errors.values() for place in tally.places] or ["it has no line"]
    raise UserError(f"{manifest}: no audio could be read to learn the codec from: {reasons[0]}")


def _readable(manifest: Path, reader: UtteranceReader, share: float, seed: int, problems: Problems) -> Iterator[Tensor]:
    generator = random.Random(seed)
    for place, entry in read_manifest(manifest, problems):
        if generator.random() >= share:
            continue
        try:
            yield from [reader.read(clip) for clip in clips(entry)]
        except UNREADABLE as error:
            problems.report(f"{place}: {error}")


def learn_tokenizer(
    parts: Sequence[CodesPart], settings: TemplateSettings, names: Sequence[str], vocab_size: int, folder: Path
) -> None:
    """Train a sentencepiece model on the corpus and on what the templates write themselves, unless it is in `folder`.

    Raises UserError where the folder holds a tokenizer of other inputs.
    """
    from ttt_dist.sequence.text_tokenizer import train_sentencepiece

    own_texts = {"fixed_texts": settings.fixed_texts(names), "name_speaker": settings.name_speaker}
    learnt_from = {"codes": fingerprint(parts), **own_texts, "vocab_size": vocab_size}

    def learn(new: Path) -> None:
        try:
            train_sentencepiece(_texts(parts, settings, names), new, vocab_size)
        except RuntimeError as error:  # sentencepiece tells too small vocabularies and empty corpora this way
            raise UserError(f"--vocab-size {vocab_size}: no tokenizer could be trained ({error})") from error

    _learn_once(folder, "tokenizer", "--tokenizer-out", learnt_from, learn)


def _texts(parts: Sequence[CodesPart], settings: TemplateSettings, names: Sequence[str]) -> Iterator[str]:
    yield from settings.fixed_texts(names)
    others = settings.text_fields(names)
    for part in parts:
        for entry in part.entries():
            yield from (str(value).strip() for value in map(entry.get, others) if isinstance(value, str | int | float))
            for item in (entry, *(entry.get("turns") or ()), *(entry.get("segments") or ())):
                text = item.get("text")
                if isinstance(text, str) and text.strip():
                    yield text.strip()
                    if settings.name_speaker and item.get("speaker"):
                        yield f"{item['speaker']}: {text.strip()}"

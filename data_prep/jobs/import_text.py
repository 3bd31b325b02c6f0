"""Importing: chats and documents that are text already, as parts of samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.assets import write_assets
from data_prep.packing.sample_parts import SampleWriter, finished_samples
from data_prep.released import read_released, released_sample
from data_prep.token_layout_args import open_template
from ttt_dist.jobs.parts import LineRange, part_prefix
from ttt_dist.jobs.runner import Outcome, PartJob, ProgressCallback
from ttt_dist.manifest.problems import Collected
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.errors import UserError


@dataclass(kw_only=True)
class ImportJob(PartJob):
    """Stretches of JSONL files, and whole files of other kinds."""

    pieces: list[LineRange | Path]
    tokenizer: Path
    settings: TemplateSettings
    num_codes: int
    layout: str
    out: Path
    label = "importing"
    unit = "part"

    @property
    def num_parts(self) -> int:
        return len(self.pieces)

    def prefix(self, number: int) -> Path:
        return part_prefix(self.out, number)

    def amount(self, number: int) -> float:
        return 1

    def open(self) -> None:
        """Load the tokenizer and make the token layout. Raises UserError where they do not fit."""
        self.template = open_template(self.tokenizer, self.num_codes, self.layout, self.settings)
        write_assets(self.template, self.out, None)

    def finished(self, number: int) -> Outcome | None:
        return finished_samples(self.prefix(number), self._made_from(number))

    def _made_from(self, number: int) -> dict[str, Any]:
        piece = self.pieces[number]
        if isinstance(piece, LineRange):
            of_piece = {"source": piece.path.name, "first_line": piece.first, "lines_sha256": piece.sha256()}
        else:
            of_piece = {"source": piece.name, "first_line": 1, "lines_sha256": sha256_file(piece)}
        return {
            **of_piece,
            "layout": self.layout,
            "settings": self.settings.to_dict(),
            "tokenizer_hash": self.template.tokenizer.hash,
        }

    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        writer = SampleWriter(
            self.prefix(number), number, self.num_parts, self.template.layout, self._made_from(number)
        )
        with writer:
            for place, record in self._records(number, writer.problems):
                try:
                    writer.add(released_sample(self.template, record))
                except UserError as error:
                    writer.problems.append(f"{place}: {error}")
        tick(1)
        return writer.outcome()

    def _records(self, number: int, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        piece = self.pieces[number]
        if isinstance(piece, Path):
            yield from read_released(piece, Collected(problems))
            return
        for place, line in piece.lines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                problems.append(f"{place}: is not JSON in UTF-8 ({error}); write one JSON object per line")
                continue
            if isinstance(record, dict):
                yield place, record
            else:
                problems.append(f"{place}: is {type(record).__name__}, not an object; write messages or text")

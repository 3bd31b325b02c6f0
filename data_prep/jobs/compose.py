"""Composing: the parts of codes, rendered through the templates as parts of samples of the same names."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.assets import write_assets
from data_prep.codes import CodesPart, find_copies
from data_prep.packing.sample_parts import SampleWriter, finished_samples
from data_prep.token_layout_args import open_template
from ttt_dist.jobs.parts import part_prefix
from ttt_dist.jobs.runner import Outcome, PartJob, ProgressCallback
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.util.errors import UserError


@dataclass(kw_only=True)
class ComposeJob(PartJob):
    """The parts of codes, and how samples are made of them."""

    parts: list[CodesPart]
    names: tuple[str, ...]
    settings: TemplateSettings
    tokenizer: Path
    codec: Path
    out: Path
    deduplicate: bool
    layout: str = "own"
    label = "composing"
    unit = "utterance"

    @property
    def num_parts(self) -> int:
        return len(self.parts)

    def prefix(self, number: int) -> Path:
        return part_prefix(self.out, number)

    def amount(self, number: int) -> float:
        return self.parts[number].num_utterances

    def open(self) -> None:
        """Load the tokenizer, make the token layout, and put what belongs to the samples beside them."""
        from ttt_dist.audio import describe_codec

        num_codes = describe_codec(self.codec).codebook_size
        self.template = open_template(self.tokenizer, num_codes, self.layout, self.settings)
        write_assets(self.template, self.out, self.codec)
        self.copies = find_copies(self.parts) if self.deduplicate else [frozenset()] * len(self.parts)

    def finished(self, number: int) -> Outcome | None:
        return finished_samples(self.prefix(number), self._made_from(number))

    def _made_from(self, number: int) -> dict[str, Any]:
        """All that decides what a part will hold: its codes, by their JSON with its checksums, and the settings."""
        copies = repr(sorted(self.copies[number])).encode()
        return {
            "codes": self.parts[number].meta["checksum"],
            "manifest": self.parts[number].meta["manifest"],
            "codec": self.parts[number].meta["codec"],
            "templates": list(self.names),
            "settings": self.settings.to_dict(),
            "tokenizer_hash": self.template.tokenizer.hash,
            "layout": self.layout,
            "left_out_sha256": hashlib.sha256(copies).hexdigest() if self.deduplicate else None,
        }

    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        """Write the part."""
        part = self.parts[number]
        part.check()
        writer = SampleWriter(
            self.prefix(number), number, self.num_parts, self.template.layout, self._made_from(number)
        )
        with writer:
            for line, entry, codes in part.utterances(self.template.audio):
                tick(1)
                if line in self.copies[number]:
                    writer.counts["copies"] += 1
                    continue
                try:
                    for sample in self.template.samples(self.names, entry, codes):
                        writer.add(sample)
                except UserError as error:
                    writer.problems.append(
                        f"{part.manifest}:{line}: {entry.get('id', 'utterance without id')}: {error}"
                    )
        return writer.outcome()

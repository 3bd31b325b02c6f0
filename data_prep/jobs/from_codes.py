"""Parts of codes that were computed elsewhere (`data_prep.codes_sources`): as `encode` writes them, without reading audio."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.assets import keep_codec
from data_prep.codes_sources import flat_codes, open_codes
from data_prep.jobs.codes_writer import PartWriter
from data_prep.jobs.encode import UNREADABLE, EncodeJob, Line
from ttt_dist.jobs.runner import ProgressCallback
from ttt_dist.manifest.clips import clips
from ttt_dist.util.errors import UserError, one_line

OFF = "its codes do not last as long as its duration says (of another rate, or repetitions were removed?)"
TOLERANCE = 0.02  # of the duration, and two frames: how packages fill up or cut the last one


@dataclass(kw_only=True)
class FromCodesJob(EncodeJob):
    """The parts of a manifest, and where the codes of its recordings are."""

    codes: Path
    label = "taking codes"

    def open(self) -> None:
        """Load the codec, whose hash and rates the codes get, and find the codes."""
        from ttt_dist.audio import load_codec

        self.loaded = load_codec(self.codec, codebooks=self.codebooks, dtype=self.dtype, device="cpu")
        self.source = open_codes(self.codes, self.loaded.name, self.audio_root or self.ranges[0].path.parent)
        keep_codec(self.loaded, self.out / "codec")

    def _made_from(self, number: int) -> dict[str, Any]:
        return {**super()._made_from(number), "codes": self.source.fingerprint}

    def _encode(self, lines: Sequence[Line], writer: PartWriter, tick: ProgressCallback) -> None:
        """Give every line its codes, a hash of them, and the number of samples that they stand for; or its problem."""
        folder = self.ranges[0].path.parent
        for line in lines:
            try:
                if len(clips(line.entry)) != 1 or not line.entry.get("audio"):
                    raise UserError("has turns, segments or speech; --from-codes takes one recording per line")
                entry = dict(line.entry)
                if isinstance(entry["audio"], str):
                    entry["audio"] = str(folder / entry["audio"])
                codes = flat_codes(self.source.read(entry), self.loaded.info)
            except UNREADABLE as error:
                line.problem = one_line(f"{line.place}: {error}")
                continue
            frames = len(codes) // self.loaded.codes_per_frame
            line.codes = writer.lay_aside([codes])
            line.num_samples = frames * self.loaded.hop
            line.audio_hash = hashlib.blake2b(codes.tobytes(), digest_size=16).hexdigest()
            wanted = math.ceil((line.entry.get("duration") or 0) * self.loaded.frame_rate)
            if wanted and abs(frames - wanted) > 2 + TOLERANCE * wanted:
                line.notes.append(OFF)
            tick(1)

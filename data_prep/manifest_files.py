"""Manifests being written: whole or not at all, beside a report of what they hold and what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from data_prep.corpus_report import Totals, report_of, write_report
from ttt_dist.manifest.entry import Entry, with_paths
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import Line, relocate, write_entry
from ttt_dist.util.atomic_files import atomic_write, remove_leftovers
from ttt_dist.util.file_lock import require_lease


class ManifestFile:
    """A manifest being written: paths as `relocate` names them, and the totals of what was written."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path = path
        self.totals = Totals()
        self._file = file

    def add(self, entry: Entry) -> None:
        """Append one entry, whose paths this process can open."""
        write_entry(self._file, with_paths(entry, lambda name: relocate(name, self.path.parent)))
        self.totals.add(entry)

    def add_as_read(self, lines: Sequence[Line]) -> None:
        """Append lines byte for byte; their paths must be those that a manifest in this folder has."""
        text = b"".join([raw for _, raw, _ in lines]).decode()
        self._file.write(
            text if text.endswith("\n") or not text else text + "\n"
        )  # the last of a file may lack its end
        self.totals.add_all([entry for _, _, entry in lines])


@contextmanager
def writing_manifests(
    made_by: str, source: Path, paths: Sequence[Path], problems: Problems
) -> Iterator[list[ManifestFile]]:
    """Manifests that appear whole when the block ends, and beside the first the report on all of them.

    Raises UserError where another job is writing one of them.
    """
    report = report_of(paths[0])
    with ExitStack() as leases:
        for path in paths:
            leases.enter_context(require_lease(path))
        remove_leftovers(*paths, report)
        with ExitStack() as stack:
            files = [ManifestFile(path, stack.enter_context(atomic_write(path))) for path in paths]
            yield files
        write_report(report, made_by, source, {file.path: file.totals for file in files}, problems)

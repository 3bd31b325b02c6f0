"""Where the recordings lie that a list names: beside it, above it, or below another folder than when it was written."""

from __future__ import annotations

import os
from pathlib import Path

from ttt_dist.manifest.entry import bad_path
from ttt_dist.manifest.problems import Problems

ABOVE = 6  # folders from which a relative path may start: a recipe's own is three above dump/raw/train


class Locator:
    """Finds the files of a list in `folder`, each from where the one before was found.

    Relative paths start from that folder or from one above it, as toolkits name files from the folder that a recipe
    runs in. With an `audio_root` they start there, with as many leading folders left off as it takes.
    """

    def __init__(self, folder: Path, audio_root: Path | None) -> None:
        above = [folder.absolute(), *folder.absolute().parents][:ABOVE]
        self.roots = [os.path.abspath(audio_root)] if audio_root else [str(path) for path in above]
        self._strips = audio_root is not None
        self._root, self._left_off = self.roots[0], 0

    def find(self, name: str, problems: Problems, place: str) -> str | None:
        """The file's path; None, reported, where there is none."""
        reason = bad_path(name)
        if reason is None:
            path = self._joined(self._root, name, self._left_off)
            if os.path.isfile(path) or (path := self._search(name)):
                return path
        where = self.roots[0] if self._strips else f"{self.roots[0]} or above it"
        remedy = "fetch it, or name the folder of the recordings by --audio-root"
        problems.report(f"{place}: {name}: {reason or f'no such file in {where}'}; {remedy}", "no recording")
        return None

    def _search(self, name: str) -> str:
        for left_off in range(name.count("/") + 1 if self._strips else 1):
            for root in self.roots:
                path = self._joined(root, name, left_off)
                if os.path.isfile(path):
                    self._root, self._left_off = root, left_off
                    return path
        return ""

    def _joined(self, root: str, name: str, left_off: int) -> str:
        if self._strips:
            name = name.lstrip("/").split("/", left_off)[-1]
        return os.path.normpath(os.path.join(root, name))

"""Recordings found by the stems of their names, in folders or in tars: corpora that number their archives do not say which."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.common import AUDIO_SUFFIXES, walk
from data_prep.readers.tar_members import tar_members
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems

ARCHIVES = (".tar", ".tar.gz", ".tgz")


class Stems:
    """The recordings below a folder, tars in it included, or where it is none in FOLDER.tar; of several with one name the
    first counts. Some 400 bytes each."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        self._clips: dict[str, Entry] = {}
        for stem, clip in _clips(folder, problems):
            self._clips.setdefault(stem, clip)

    def take(self, stem: str, problems: Problems, place: str) -> Entry | None:
        """`audio`, and `member` where it is in a tar; None, reported, where there is none, or it was asked for before."""
        clip = self._clips.pop(stem, None)
        if clip is None:
            problems.report(f"{place}: recording {stem} is not there; fetch it, or remove the line", "no recording")
        return clip

    def skip_rest(self, problems: Problems) -> None:
        """Count the recordings that nobody asked for."""
        for stem, clip in self._clips.items():
            problems.skip("no transcript", f"{clip['audio']}: {stem}" if "member" in clip else clip["audio"])


def _clips(folder: Path, problems: Problems) -> Iterator[tuple[str, Entry]]:
    archives = [folder.with_name(folder.name + suffix) for suffix in ARCHIVES]
    for path in walk(folder, problems) if folder.is_dir() else filter(Path.is_file, archives):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            yield path.stem, {"audio": str(path)}
        elif path.name.endswith(ARCHIVES) and not _is_unpacked(path):
            for member in tar_members(path, problems):
                stem, _, suffix = member.name.rpartition("/")[2].rpartition(".")
                if f".{suffix.lower()}" in AUDIO_SUFFIXES:
                    yield stem, {"audio": str(path), "member": member.place()}


def _is_unpacked(archive: Path) -> bool:
    """Whether the folder lies beside it that it was unpacked to."""
    return archive.with_name(archive.name.partition(".tar")[0]).is_dir()

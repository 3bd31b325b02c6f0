"""Recordings that a corpus gives as a shell command whose output is the audio: run, if the user says so, and kept."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from ttt_dist.manifest.problems import Problems
from ttt_dist.util.atomic_files import atomic_write

RECIPE_FOLDERS = ("data", "dump")  # of a recipe: its commands are written for the folder above


class Pipes:
    """Runs commands in `folder` and keeps what each gives in `kept`, by the command's hash; without `kept` none is run."""

    def __init__(self, folder: Path, kept: Path | None) -> None:
        self._folder, self._kept = folder, kept

    def output(self, command: str, problems: Problems, place: str) -> str | None:
        """The file with the command's output; None, reported, where it failed or may not be run."""
        if self._kept is None:
            remedy = "see what it does and run it by --allow-pipes, or name files instead"
            problems.report(f"{place}: '{command} |' is a command, not a recording; {remedy}", "pipe")
            return None
        key = hashlib.sha256(command.encode()).hexdigest()[:32]
        path = self._kept / key[:2] / f"{key}.wav"
        if path.is_file():
            return str(path)
        run = subprocess.run(["bash", "-c", command], cwd=self._folder, capture_output=True, check=False)
        if run.returncode or not run.stdout:
            told = run.stderr.decode("utf-8", "replace").strip().splitlines() or ["no output"]
            message = f"{place}: '{command} |' failed with exit status {run.returncode} ({told[-1]}); run it by hand"
            problems.report(message, "pipe failed")
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            file.write(run.stdout)
        return str(path)


def recipe_folder(folder: Path, audio_root: Path | None) -> Path:
    """Where a data directory's commands are run: in --audio-root, or above the recipe's `data` or `dump`."""
    if audio_root:
        return audio_root
    above = [folder.absolute(), *folder.absolute().parents]
    return next((path.parent for path in above if path.name in RECIPE_FOLDERS), folder)

"""METEOR 1.5 of English captions, by the authors' program, which comes with pycocoevalcap (the extra `captions`) and runs in Java.

The program is asked once for each item: what it finds to match. The score of many items is made of sums of that here (Denkowski and
Lavie 2014), so that whoever scores an evaluation needs no Java.
"""

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ttt_dist.evaluation.metrics.normalise import normaliser
from ttt_dist.util.errors import UserError

FLAG = "--meteor"
BY = "METEOR 1.5, English, by pycocoevalcap, basic"
JAR = Path("meteor", "meteor-1.5.jar")
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # tuned for English: recall, fragmentation (two), content words
STAGES = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
NUM_STATS = 23


class Meteor:
    """The program, waiting for lines."""

    def __init__(self) -> None:
        """Raises UserError where the package, or Java, is missing."""
        package = find_spec("pycocoevalcap")
        if package is None or not package.submodule_search_locations:
            raise UserError(f'{FLAG}: pycocoevalcap is not installed; pip install -e ".[captions]"')
        java = shutil.which("java")
        if java is None:
            raise UserError(f"{FLAG}: there is no java on the PATH; install one (Debian: default-jre-headless)")
        jar = Path(package.submodule_search_locations[0]) / JAR
        command = [java, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def stats(self, hypothesis: str, references: Sequence[str]) -> list[float]:
        """What an item adds, [23]; of several references that of the best. Raises UserError where the program has ended."""
        words = normaliser("basic")
        line = " ||| ".join(["SCORE", *map(words, references), words(hypothesis)])
        assert self._process.stdin and self._process.stdout, "both are pipes"
        told = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            told = self._process.stdout.readline()
        found = [float(number) for number in told.split()]
        if len(found) != NUM_STATS:
            raise UserError(f"{FLAG}: java ended or gave {told[:60]!r}; try it by itself: java -jar {JAR.name}")
        return found


def meteor(sums: np.ndarray) -> np.ndarray:
    """Summed `Meteor.stats` [R, 23] -> METEOR [R], 0..1.

    Columns: words of both texts, function words of both, then for each stage matched content words of both and function words
    of both, then chunks and matched words of both.
    """
    lengths, function = sums[:, 0:2], sums[:, 2:4]
    matched = sums[:, 4:20].reshape(-1, 4, 2, 2)  # [R, stage, content or function, which text]
    weighted = np.einsum("rskt,s,k->rt", matched, STAGES, np.array([DELTA, 1 - DELTA]))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = (weighted / (DELTA * (lengths - function) + (1 - DELTA) * function)).T
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        chunks, words = sums[:, 20], sums[:, 21:23]
        is_whole = (words == lengths).all(axis=1) & (chunks == 1)
        fragmentation = np.where(is_whole, 0.0, chunks / words.mean(axis=1))
        return np.nan_to_num(mean * (1 - GAMMA * fragmentation**BETA))

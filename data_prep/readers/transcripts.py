"""Transcripts as text: tags of punctuation, tags of what is no speech, and spaces that are no spelling."""

from __future__ import annotations

import re
from pathlib import Path

from ttt_dist.manifest.entry import decode_line
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.text_files import reading
from ttt_dist.util.errors import UserError

PUNCTUATION = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}
_TAG = re.compile(rf"\s*<({'|'.join(PUNCTUATION)})>")
MAX_TEXT = 2**20  # bytes of one utterance's words
NO_SPEECH = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>", "ignore_time_segment_in_scoring")
"""Of GigaSpeech, and of TED-LIUM: what stands in place of a transcript."""

_HAN = "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_BESIDE_HAN = re.compile(rf"(?<=[{_HAN}])\s+|\s+(?=[{_HAN}])")


def punctuated(text: str) -> str:
    """`YES <COMMA> IT IS <PERIOD>` as `YES, IT IS.`"""
    return _TAG.sub(lambda found: PUNCTUATION[found[1]], text).strip() if "<" in text else text.strip()


def no_speech(text: str) -> str | None:
    """The tag that says that nothing is spoken, where the text has one."""
    return next((tag for tag in NO_SPEECH if tag in text), None)


def unsegmented(text: str) -> str:
    """Without the spaces beside Han characters, which part words and are no spelling; those between other words stay."""
    return _BESIDE_HAN.sub("", text.strip())


def text_beside(path: Path, problems: Problems) -> str | None:
    """What a file says that holds one utterance's words; None, reported, where it is missing or is not UTF-8."""
    try:
        with reading(path) as file:
            return decode_line(file.read(MAX_TEXT), str(path))
    except UserError as error:
        problems.report(error, "no transcript")
        return None

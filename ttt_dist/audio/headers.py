"""Headers that do not say how long a recording is, put right before libsndfile believes them.

Programs that write into a pipe leave the length open: 0, or all ones. libsndfile takes some of these for an empty file, and
of MP3 it takes a guess for a fact. `put_right` gives the bytes with the header that belongs to them.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator

from ttt_dist.audio.mp3 import counted, is_as_counted
from ttt_dist.audio.sources import Bytes, Source, head_of, mapped
from ttt_dist.util.errors import UserError

HEAD = 4096  # bytes in which the headers of nearly all files lie
TO_THE_END = 0xFFFFFFFF  # libsndfile reads a WAV of this size as far as it goes
MP3_IN_WAV = 0x55
NEAR_LIMIT = 2**16  # bytes by which the size of what has no end may differ from the greatest number
SLACK = 64  # bytes: some count the header among the samples
HEAD_OF_NIST = 1024
SHORTEN = re.compile(rb"\ANIST_1A.*\nsample_coding -s\d+ [^\n]*shorten", re.DOTALL)
MATROSKA, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"  # ids of EBML
NIST = (b"sample_count", b"channel_count", b"sample_n_bytes")
SAMPLES = (b"data", b"SSND", b"BODY")  # chunks of WAV, AIFF and 8SVX
LISTED = 2**24  # bytes of an Ogg file whose pages are looked at to know its length
PAGE = 27  # bytes of the head of an Ogg page
LONGEST_PAGE = PAGE + 255 + 255 * 255


def put_right(source: Source, name: str, is_whole: bool) -> Source:
    """The recording, in memory and with another header where its own is wrong. Raises UserError where it is cut off.

    `is_whole`: all of it will be read, so that looking at all of it costs little.
    """
    head = head_of(source, HEAD)
    if SHORTEN.search(head):
        raise UserError(f"{name}: is compressed by shorten, which is not read; make a WAV of it (sph2pipe -f wav)")
    size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    _require_whole(source, head, size, name)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        if _is_plain_wav(head):
            return source
        right = _right_wav
    elif head[:4] == b"caff":
        right = _right_caf
    elif head[:3] == b"ID3" or (head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE6 > 0xE0):
        if is_as_counted(head, size):
            return source
        right = counted
    elif head[:4] == b"OggS":
        with mapped(source) as data:
            _check_pages(data, name, is_whole)
        return source
    else:
        return source
    with mapped(source) as data:
        return right(data, name) or source


def _require_whole(source: Source, head: bytes, size: int, name: str) -> None:
    """Raise UserError where a file ends before the samples do that its header states: libsndfile is content with what there
    is."""
    found = _samples(head)
    if found is None and size > len(head):
        with mapped(source) as data:
            found = _samples(data)
    begin, stated = found or (0, 0)
    if not _is_open(stated) and begin + stated > size + SLACK:
        raise UserError(
            f"{name}: is cut off: {max(0, size - begin):,} of {stated:,} bytes of samples are there; fetch it again"
        )


def _samples(data: Bytes) -> tuple[int, int] | None:
    """(place, stated bytes) of the samples, 0 of a format whose header states none; None where they lie further back."""
    form = data[:4]
    if form in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
        return _samples_of_riff(data, "<" if form in (b"RIFF", b"RF64") else ">")
    if form == b"riff":  # Wave64: names of 16 bytes, and sizes of 64 bits that count both
        return _samples_of(((data[at : at + 4], at + 24, size - 24) for at, size in _wide_chunks(data, 40, 16, "<", 8)))
    if form == b"caff":
        return _samples_of(((data[at : at + 4], at + 12, size) for at, size in _wide_chunks(data, 8, 4, ">")))
    if form == b".snd":
        begin, size = struct.unpack(">2I", data[4:12].ljust(8, b"\0"))
        return begin, size
    if data[:7] == b"NIST_1A":
        fields = dict(re.findall(rb"(\w+) -(?:i|s\d+) (\d{1,18})\n", data[:HEAD]))  # libsndfile calls a byte a word
        return HEAD_OF_NIST, math.prod(int(fields.get(field, 0)) for field in NIST)
    if form == MATROSKA:
        return _segment(data)
    return 0, 0


def _segment(data: Bytes) -> tuple[int, int]:
    """Where the one element behind the head of a Matroska or WebM file begins, and its size; 0 where a browser left it open."""
    place, size = _sized(data, len(MATROSKA))
    place += size
    if data[place : place + 4] != SEGMENT:
        return 0, 0
    place, size = _sized(data, place + len(SEGMENT))
    return place, size


def _sized(data: Bytes, place: int) -> tuple[int, int]:
    """(place behind it, value) of a number of EBML, whose first byte tells its length; 0 where it says "unknown"."""
    length = 9 - (data[place] if place < len(data) else 0).bit_length()
    value = int.from_bytes(data[place : place + length], "big") & ~(1 << (7 * length))
    return place + length, 0 if value == (1 << (7 * length)) - 1 else value


def _samples_of_riff(data: Bytes, order: str) -> tuple[int, int] | None:
    wide = None
    for chunk, place, size in _chunks(data, order=order):
        if chunk == b"ds64":
            wide = int.from_bytes(data[place + 8 : place + 16], "little")
        elif chunk in SAMPLES:
            return place, wide if size == TO_THE_END and wide is not None else size
    return None


def _samples_of(chunks: Iterator[tuple[bytes, int, int]]) -> tuple[int, int] | None:
    return next(((place, max(0, size)) for name, place, size in chunks if name == b"data"), None)


def _wide_chunks(data: Bytes, place: int, name: int, order: str, pad: int = 0) -> Iterator[tuple[int, int]]:
    """(place, stated size) of chunks with sizes of 64 bits behind a name; those of Wave64 are padded to `pad` bytes."""
    while place + name + 8 <= len(data):
        (size,) = struct.unpack(f"{order}q", data[place + name : place + name + 8])
        yield place, size
        place += max(name + 8, -(-size // pad) * pad if pad else name + 8 + size)


def _is_open(size: int) -> bool:
    """Whether this is what programs state that write into a pipe: close to the greatest number, with or without sign."""
    return any(limit - NEAR_LIMIT <= size <= limit + NEAR_LIMIT for limit in (2**31, 2**32, 2**63, 2**64))


def _chunks(data: Bytes, place: int = 12, order: str = "<") -> Iterator[tuple[bytes, int, int]]:
    """(name, place of its contents, stated size) of a RIFF file's chunks."""
    while place + 8 <= len(data):
        name, size = struct.unpack(f"{order}4sI", data[place : place + 8])
        yield name, place + 8, size
        place += 8 + size + size % 2


def _is_plain_wav(head: bytes) -> bool:
    """Whether all is in order, by the first bytes: not so where they do not reach to the samples."""
    for name, place, size in _chunks(head):
        if name == b"fmt " and head[place : place + 2] == MP3_IN_WAV.to_bytes(2, "little"):
            return False
        if name == b"data":
            return size > 0 and head[:4] == b"RIFF"
    return False


def _right_wav(data: Bytes, name: str) -> bytes | None:
    """Samples of a stated size 0 go to the end, and an MP3 in WAV is taken out of it."""
    form, wide = b"", None
    for chunk, place, size in _chunks(data):
        if chunk == b"fmt ":
            form = data[place : place + 2]
        elif chunk == b"ds64":
            wide = place
        elif chunk == b"data" and form == MP3_IN_WAV.to_bytes(2, "little"):
            stream = data[place : place + size] if 0 < size < TO_THE_END else data[place:]
            return counted(stream, name) or stream
        elif chunk == b"data":
            return _with_samples(data, place, size, wide)
    return None


def _with_samples(data: Bytes, place: int, size: int, wide: int | None) -> bytes | None:
    there = len(data) - place
    if wide is not None:  # RF64: the sizes of 64 bits
        stated = int.from_bytes(data[wide + 8 : wide + 16], "little")
        if size not in (0, TO_THE_END) or 0 < stated <= there:
            return None
        whole = struct.pack("<QQ", len(data) - 8, there)
        return data[:wide] + whole + data[wide + 16 : place - 4] + b"\xff" * 4 + data[place:]
    if size or there == 0 or _ends_with_chunks(data, place):
        return None
    return data[: place - 4] + TO_THE_END.to_bytes(4, "little") + data[place:]


def _ends_with_chunks(data: Bytes, place: int) -> bool:
    """Whether what comes is a row of chunks up to the end: then there are no samples."""
    ends = [at + size + size % 2 for _, at, size in _chunks(data, place)]
    return bool(ends) and ends[-1] == len(data)


def _right_caf(data: Bytes, name: str) -> bytes | None:
    """The samples of a Core Audio file may have the size -1 where they come last."""
    place = 8
    while place + 12 <= len(data):
        chunk, size = struct.unpack(">4sq", data[place : place + 12])
        if chunk == b"data" and size == -1:
            return data[: place + 4] + struct.pack(">q", len(data) - place - 12) + data[place + 12 :]
        if size < 0:
            return None
        place += 12 + size
    return None


def _check_pages(data: Bytes, name: str, is_whole: bool) -> None:
    """Raise UserError where the last page is not there, or another recording follows: libsndfile reads the first alone, as
    far as it goes.

    Where not all is read anyway, what the last page of a long file belongs to tells most of them.
    """
    last = data.rfind(b"OggS", max(0, len(data) - LONGEST_PAGE))
    ends = last >= 0 and bool(data[last + 5 : last + 6]) and bool(data[last + 5] & 4)
    if is_whole or len(data) <= LISTED or data[last + 14 : last + 18] != data[14:18]:
        place, has_begun = 0, False
        while data[place : place + 4] == b"OggS" and place + PAGE <= len(data):
            is_first = bool(data[place + 5] & 2)
            if is_first and has_begun:
                raise UserError(
                    f"{name}: holds several recordings one behind the other (the second from byte {place:,}), of which "
                    "only the first can be read; convert it to FLAC, or cut it there"
                )
            has_begun |= not is_first
            ends = bool(data[place + 5] & 4)
            place = _end_of_page(data, place)
        ends = ends and place <= len(data)
    if not ends:
        raise UserError(
            f"{name}: is cut off: its last page is missing; fetch it again, or convert what there is to FLAC"
        )


def _end_of_page(data: Bytes, place: int) -> int:
    sizes = data[place + PAGE : place + PAGE + data[place + 26]]
    return place + PAGE + data[place + 26] + sum(sizes)

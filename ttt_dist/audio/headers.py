"""Headers that do not say how long a recording is, put right before libsndfile believes them.

Programs that write into a pipe leave the length open: 0, or all ones. libsndfile takes some of these for an empty file, and
of MP3 it takes a guess for a fact. `put_right` gives the bytes with the header that belongs to them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ttt_dist.audio.mp3 import counted
from ttt_dist.audio.sources import Bytes, Source, head_of, mapped
from ttt_dist.util.errors import UserError

HEAD = 4096  # bytes in which the headers of nearly all files lie
TO_THE_END = 0xFFFFFFFF  # libsndfile reads a WAV of this size as far as it goes
MP3_IN_WAV = 0x55
PAGE = 27  # bytes of the head of an Ogg page
LONGEST_PAGE = PAGE + 255 + 255 * 255


def put_right(source: Source, name: str, is_whole: bool) -> Source:
    """The recording, in memory and with another header where its own is wrong. Raises UserError where it is cut off.

    `is_whole`: all of it will be read, so that looking at all of it costs little.
    """
    head = head_of(source, HEAD)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        if _is_plain_wav(head):
            return source
        right = _right_wav
    elif head[:4] == b"caff":
        right = _right_caf
    elif head[:3] == b"ID3" or (head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE6 > 0xE0):
        right = counted
    elif head[:4] == b"OggS":
        with mapped(source) as data:
            _refuse_chain(data, name, is_whole)
        return source
    else:
        return source
    with mapped(source) as data:
        return right(data, name) or source


def _chunks(data: Bytes, place: int = 12) -> Iterator[tuple[bytes, int, int]]:
    """(name, place of its contents, stated size) of a RIFF file's chunks."""
    while place + 8 <= len(data):
        name, size = struct.unpack("<4sI", data[place : place + 8])
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


def _refuse_chain(data: Bytes, name: str, is_whole: bool) -> None:
    """Raise UserError where another recording follows: libsndfile reads the first alone.

    Where not all is read anyway, what its last page belongs to tells most of them.
    """
    last = data.rfind(b"OggS", max(0, len(data) - LONGEST_PAGE))
    if is_whole or data[last + 14 : last + 18] != data[14:18]:
        place, has_begun = 0, False
        while data[place : place + 4] == b"OggS" and place + PAGE <= len(data):
            is_first = bool(data[place + 5] & 2)
            if is_first and has_begun:
                raise UserError(
                    f"{name}: holds several recordings one behind the other (the second from byte {place:,}), of which "
                    "only the first can be read; convert it to FLAC, or cut it there"
                )
            has_begun |= not is_first
            sizes = data[place + PAGE : place + PAGE + data[place + 26]]
            place += PAGE + len(sizes) + sum(sizes)

"""How long an MP3 is. libsndfile guesses it from the size of the first frame, and reads no further than that.

A stream may begin with a frame "Xing" or "Info" that counts the others. Where it does not, or counts fewer than there are
(files that were put together), `counted` counts, and writes such a frame before them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ttt_dist.audio.sources import Bytes
from ttt_dist.util.errors import UserError

KBITS = {  # per second, by (version 1?, layer) and the index that a head gives
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44_100, 48_000, 32_000)  # Hz, of version 1
HALVED = {3: 0, 2: 1, 0: 2}  # how often, for versions 1, 2 and 2.5 as a head writes them
HELD = 120  # bytes that a frame "Xing" may hold
TAG = 128  # bytes of an ID3v1 at a file's end
NEAR = 2  # frames: whether "Xing" counts itself depends on the encoder


@dataclass(frozen=True)
class Frame:
    """What the four bytes at the head of a frame say."""

    kind: int  # version, layer and rate: alike in all frames of a stream
    layer: int
    size: int  # bytes
    bit_rate: int  # its index
    samples: int
    side_info: int  # bytes between the head and where a frame "Xing" says so


def parse(head: bytes) -> Frame | None:
    """The frame that these four bytes begin; None where they begin none, or one of free format."""
    bits = int.from_bytes(head, "big")
    version, layer, index, rate = bits >> 19 & 3, 4 - (bits >> 17 & 3), bits >> 12 & 15, bits >> 10 & 3
    if len(head) < 4 or bits >> 21 != 0x7FF or version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return None
    is_first, is_mono = version == 3, bits >> 6 & 3 == 3
    samples = 384 if layer == 1 else 1152 if is_first or layer == 2 else 576
    slot = 4 if layer == 1 else 1
    slots = samples // 8 * 1000 * KBITS[is_first, layer][index] // (RATES[rate] >> HALVED[version]) // slot
    side_info = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return Frame(bits & 0xFFFE0C00, layer, slot * (slots + (bits >> 9 & 1)), index, samples, side_info)


def first_frame(data: Bytes) -> int | None:
    """Where the stream begins, behind ID3 tags; None where this is no MPEG audio."""
    place = 0
    while data[place : place + 3] == b"ID3" and place + 10 <= len(data):
        sizes = data[place + 6 : place + 10]
        place += 10 + sum((size & 127) << shift for size, shift in zip(sizes, (21, 14, 7, 0), strict=True))
    frame = parse(data[place : place + 4])
    return place if frame is not None and _is_followed(data, place, frame) else None


def frames(data: Bytes, place: int) -> Iterator[tuple[int, Frame]]:
    """(place, frame) of each, in order. What else there is, tags or damage, is passed over."""
    kind = None
    while place + 4 <= len(data):
        frame = parse(data[place : place + 4])
        fits = frame is not None and place + frame.size <= len(data)
        if frame is not None and fits and (frame.kind == kind or _is_followed(data, place, frame)):
            kind = frame.kind
            yield place, frame
            place += frame.size
        else:
            kind, place = None, data.find(b"\xff", place + 1)
            if place < 0:
                return


def _is_followed(data: Bytes, place: int, frame: Frame) -> bool:
    """Whether another frame of this kind comes behind, or the end: any bytes may look like one head."""
    end = place + frame.size
    after = parse(data[end : end + 4])
    return end == len(data) or (after is not None and after.kind == frame.kind)


def _count_in(data: Bytes, place: int, frame: Frame) -> tuple[int | None, int | None] | None:
    """(frames, bytes) that a frame "Xing" states, each None where it does not; None where the frame is sound."""
    at = place + 4 + frame.side_info
    if data[at : at + 4] not in (b"Xing", b"Info") or len(data) < at + 16:
        return None
    flags, *counts = struct.unpack(">3I", data[at + 4 : at + 16])
    has_frames, has_bytes = flags & 1, flags & 2
    return counts[0] if has_frames else None, counts[1 if has_frames else 0] if has_bytes else None


def is_as_counted(data: Bytes, size: int) -> bool:
    """Whether a stream of so many bytes, which begins with `data`, is what its frame "Xing" counts: nothing was cut off or added."""
    place = first_frame(data)
    frame = None if place is None else parse(data[place : place + 4])
    if place is None or frame is None or frame.layer != 3:
        return False
    stated = _count_in(data, place, frame)
    return bool(stated and stated[0] and stated[1] and size - place - stated[1] in (0, TAG))


def counted(data: Bytes, name: str) -> bytes | None:
    """The stream with a count of its frames, or None where libsndfile finds the right one by itself.

    Raises UserError where frames are missing that the stream says it has.
    """
    place = first_frame(data)
    frame = None if place is None else parse(data[place : place + 4])
    if place is None or frame is None or frame.layer != 3:
        return None
    if is_as_counted(data, len(data)):
        return None
    stated = _count_in(data, place, frame)
    sound = [(at, one) for at, one in frames(data, place) if _count_in(data, at, one) is None]
    if stated and stated[0] and len(sound) < stated[0] - NEAR:
        seconds = frame.samples / (RATES[frame.kind >> 10 & 3] >> HALVED[frame.kind >> 19 & 3])
        raise UserError(
            f"{name}: is cut off or damaged: {len(sound) * seconds:.3f} s of {stated[0] * seconds:.3f} s are there; "
            "fetch it again"
        )
    if stated and stated[0] and len(sound) <= stated[0] + NEAR:
        return None
    bytes_of_frames = sum(one.size for _, one in sound)
    if len({one.bit_rate for _, one in sound}) == 1 and len(data) - place - bytes_of_frames in (0, TAG):
        return None  # of one bit rate, and nothing else: the guess is right
    return _counting(len(sound), data[place : place + 4]) + b"".join(data[at : at + one.size] for at, one in sound)


def _counting(number: int, head: bytes) -> bytes:
    """A frame "Info" like the one with this head that says how many follow."""
    heads = (bytes([head[0], head[1] | 1, index << 4 | head[2] & 0x0C, head[3]]) for index in range(1, 15))
    sizes = [(new, frame) for new in heads if (frame := parse(new))]  # no checksum, no padding, each bit rate
    new, frame = next((new, frame) for new, frame in sizes if frame.size >= 4 + frame.side_info + HELD)
    return (new + bytes(frame.side_info) + struct.pack(">4sII", b"Info", 1, number)).ljust(frame.size, b"\0")

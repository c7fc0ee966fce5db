"""The few boxes of MP4 that it takes to turn a finished video into a fragment of a longer one.

ISO/IEC 14496-12: a fragmented file is ``ftyp``, a ``moov`` that knows of no frame, and then any
number of ``moof`` and ``mdat`` pairs, each complete in itself. One video track, frames in the order
in which they are shown.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["DURATION_AT", "Segment", "fragment", "header", "read_segment"]

TIMESCALE = 90_000  # ticks per second, as in all of television
KEY, DELTA = 0x0200_0000, 0x0101_0000  # flags of a frame: stands alone, or needs the one before
UNITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)  # no rotation


@dataclass(frozen=True)
class Segment:
    """What a finished video of one track holds.

    Attributes:
        stsd: its sample description box, with the decoder's configuration.
        width, height: in pixels.
        sizes: bytes of each frame.
        keys: whether each frame stands alone.
        data: the frames, one after the other.
    """

    stsd: bytes
    width: int
    height: int
    sizes: Sequence[int]
    keys: Sequence[bool]
    data: memoryview


def boxes(data: bytes | memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """(type, content) of each box in a row; contents are views, as videos are large.

    Raises:
        ValueError: they do not end where they say.
    """
    data, at = memoryview(data), 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("a box is cut off")
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = len(data) if size == 0 else at + size
        if not start <= end <= len(data):
            raise ValueError(f"box {kind!r} is cut off")
        yield kind, data[start:end]
        at = end


def find(data: bytes | memoryview, *path: bytes) -> memoryview:
    """The content of a box inside boxes.

    Raises:
        ValueError: there is none.
    """
    for kind, content in boxes(data):
        if kind == path[0]:
            return content if len(path) == 1 else find(content, *path[1:])
    raise ValueError(f"there is no box {path[0]!r}")


def read_segment(data: bytes) -> Segment:
    """Take a finished MP4 with one video track apart.

    Raises:
        ValueError: it is not whole, or not of this simple kind.
    """
    track = find(data, b"moov", b"trak")
    table = find(track, b"mdia", b"minf", b"stbl")
    media = find(data, b"mdat")
    size, count = struct.unpack_from(">II", found := find(table, b"stsz"), 4)
    sizes = [size] * count if size else list(struct.unpack_from(f">{count}I", found, 12))
    if sum(sizes) != len(media):
        raise ValueError(f"{len(media)} bytes for frames of {sum(sizes)}")
    names = {kind for kind, _ in boxes(table)}
    if b"ctts" in names:
        raise ValueError("frames are not in the order in which they are shown")
    alone = set(range(1, count + 1))  # without a list every frame does
    if b"stss" in names:
        listed = find(table, b"stss")
        alone = set(struct.unpack_from(f">{struct.unpack_from('>I', listed, 4)[0]}I", listed, 8))
    width, height = struct.unpack_from(">II", find(track, b"tkhd"), 76)
    keys = [number in alone for number in range(1, count + 1)]
    return Segment(bytes(find(table, b"stsd")), width >> 16, height >> 16, sizes, keys, media)


def box(kind: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I4s", 8 + len(joined), kind) + joined


def full(kind: bytes, flags: int, *content: bytes, version: int = 0) -> bytes:
    """A box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def header(segment: Segment) -> bytes:
    """``ftyp`` and ``moov`` for fragments like ``segment``, with a duration of 0."""
    size = (segment.width << 16, segment.height << 16)
    nothing = struct.pack(">I", 0)
    tables = [full(kind, 0, nothing) for kind in (b"stts", b"stsc", b"stco")]
    table = box(b"stbl", box(b"stsd", segment.stsd), *tables, full(b"stsz", 0, nothing, nothing))
    url = full(b"dref", 0, struct.pack(">I", 1), full(b"url ", 1))  # 1: in this very file
    vmhd = full(b"vmhd", 1, bytes(8))
    media = box(
        b"mdia",
        full(b"mdhd", 0, struct.pack(">4IHH", 0, 0, TIMESCALE, 0, 0x55C4, 0)),  # no language
        full(b"hdlr", 0, bytes(4), b"vide", bytes(12), b"video\0"),
        box(b"minf", vmhd, box(b"dinf", url), table),
    )
    tkhd = full(
        b"tkhd", 3, struct.pack(">5I", 0, 0, 1, 0, 0), bytes(16), UNITY, struct.pack(">2I", *size)
    )
    mvhd = full(
        b"mvhd", 0,
        struct.pack(">4IIH", 0, 0, TIMESCALE, 0, 0x10000, 0x100), bytes(10), UNITY, bytes(24),
        struct.pack(">I", 2),
    )  # fmt: skip
    trex = full(b"trex", 0, struct.pack(">5I", 1, 1, 0, 0, 0))
    mehd = full(b"mehd", 0, struct.pack(">Q", 0), version=1)
    brands = b"isom" + struct.pack(">I", 0x200) + b"isom" + b"iso5" + b"mp41"
    moov = box(b"moov", mvhd, box(b"mvex", mehd, trex), box(b"trak", tkhd, media))
    return box(b"ftyp", brands) + moov


# Where ``header`` has the duration of all fragments, 8 bytes: behind ftyp, the heads of moov, mvhd,
# mvex and mehd. It is written anew with every fragment, so that players can seek.
DURATION_AT = 28 + 8 + 108 + 8 + 12


def fragment(segment: Segment, number: int, start: int, durations: Sequence[int]) -> bytes:
    """``moof`` and the head of ``mdat``; ``segment.data`` is to follow.

    Args:
        segment: the frames.
        number: of the fragment, from 1.
        start: time of its first frame, in ticks of ``TIMESCALE``.
        durations: of each frame, in the same.
    """
    flags = (KEY if key else DELTA for key in segment.keys)
    rows = zip(durations, segment.sizes, flags, strict=True)
    table = b"".join(struct.pack(">3I", *row) for row in rows)

    def moof(offset: int) -> bytes:
        run = struct.pack(">Ii", len(durations), offset) + table
        track = box(
            b"traf",
            full(b"tfhd", 0x20000, struct.pack(">I", 1)),  # offsets count from here
            full(b"tfdt", 0, struct.pack(">Q", start), version=1),
            full(b"trun", 0x701, run),  # an offset; of each frame duration, size and flags
        )
        return box(b"moof", full(b"mfhd", 0, struct.pack(">I", number)), track)

    return moof(len(moof(0)) + 8) + struct.pack(">I4s", 8 + len(segment.data), b"mdat")

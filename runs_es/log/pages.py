"""Frames and pages. A frame is encoded once, when published, to the bytes that go out on the wire before its id.

A page is one flush of frames of one run: a format byte, the count, the lengths, then the bodies end to end, in most
pages compressed together. Nothing in it knows its seq: that follows from the row (`seq - n + 1 … seq`).
"""

from __future__ import annotations

import struct
import threading
from functools import lru_cache
from itertools import accumulate, pairwise

import zstandard

RAW = 0
ZSTD = 1
# Below this there is too little to gain. Level 1 costs less time than the bytes it spares cost the database.
COMPRESS_FROM = 512
_LEVEL = 1
_HEADER = struct.Struct("!BI")
_MAX_PAGE = 256 * 1024 * 1024  # no page is larger; a damaged length must not allocate what is not there
_local = threading.local()  # zstd's contexts are not to be shared between threads


def frame(event: str, data: bytes) -> bytes:
    """One frame's body: `event: …\\r\\ndata: …\\r\\n`.

    Raises ValueError for an event name or data that would break the frame apart.
    """
    if b"\n" in data or b"\r" in data:
        raise ValueError(f"data of event {event!r} must be JSON on one line")
    return b"%b%b\r\n" % (_opening(event), data)


@lru_cache(maxsize=1024)
def _opening(event: str) -> bytes:
    """A frame up to its data. Runs use few event names, over and over."""
    if not event or "\n" in event or "\r" in event or "\x00" in event:
        raise ValueError(f"event name must be one line of text, got {event!r}")
    return b"event: %b\r\ndata: " % event.encode()


def event_of(body: bytes) -> str:
    """The event name of a frame's body."""
    return body[7 : body.index(b"\r\n")].decode()


def data_of(body: bytes) -> bytes:
    """The data of a frame's body."""
    return body[body.index(b"\r\n") + 8 : -2]


def rendered(body: bytes, seq: int) -> bytes:
    """A frame as it goes out: its body, its id and the blank line that ends it."""
    return b"%bid: %d\r\n\r\n" % (body, seq)


def encode_page(bodies: list[bytes]) -> bytes:
    """The stored form of a page."""
    lengths = struct.pack(f"!{len(bodies)}I", *map(len, bodies))
    joined = b"".join(bodies)
    if len(joined) >= COMPRESS_FROM:
        packed = _compressor().compress(joined)
        if len(packed) < len(joined):
            return b"".join((_HEADER.pack(ZSTD, len(bodies)), lengths, packed))
    return b"".join((_HEADER.pack(RAW, len(bodies)), lengths, joined))


def decode_page(state: bytes) -> list[bytes]:
    """The bodies of a stored page. Raises ValueError when the bytes are no page, or not whole."""
    if len(state) < _HEADER.size:
        raise ValueError("page is cut short")
    form, count = _HEADER.unpack_from(state)
    start = _HEADER.size + 4 * count
    if len(state) < start:
        raise ValueError("page is cut short")
    lengths = struct.unpack_from(f"!{count}I", state, _HEADER.size)
    if form == RAW:
        joined = state[start:]
    elif form == ZSTD:
        joined = _decompressed(state[start:], sum(lengths))
    else:
        raise ValueError(f"page format {form} is not known to this version")
    edges = list(accumulate(lengths, initial=0))
    if edges[-1] != len(joined):
        raise ValueError("page is cut short")
    return [joined[a:b] for a, b in pairwise(edges)]


def _compressor() -> zstandard.ZstdCompressor:
    kept: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if kept is None:
        kept = _local.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    return kept


def _decompressor() -> zstandard.ZstdDecompressor:
    kept: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if kept is None:
        kept = _local.decompressor = zstandard.ZstdDecompressor()
    return kept


def _decompressed(packed: bytes, size: int) -> bytes:
    if size > _MAX_PAGE:
        raise ValueError(f"page claims {size} bytes")
    try:
        return _decompressor().decompress(packed, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"page is damaged: {error}") from error

"""Frames and pages. A frame is encoded once, when published, to the bytes that go out on the wire before its id.

A page is one flush of frames of one run: a format byte, the count, the lengths, then the bodies end to end. Nothing
in it knows its seq: that follows from the row (`seq - n + 1 … seq`).
"""

from __future__ import annotations

import struct
from itertools import accumulate, pairwise

RAW = 0
_HEADER = struct.Struct("!BI")


def frame(event: str, data: bytes) -> bytes:
    """One frame's body: `event: …\\r\\ndata: …\\r\\n`.

    Raises ValueError for an event name or data that would break the frame apart.
    """
    if not event or "\n" in event or "\r" in event or "\x00" in event:
        raise ValueError(f"event name must be one line of text, got {event!r}")
    if b"\n" in data or b"\r" in data:
        raise ValueError(f"data of event {event!r} must be JSON on one line")
    return b"event: %b\r\ndata: %b\r\n" % (event.encode(), data)


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
    return b"".join((_HEADER.pack(RAW, len(bodies)), lengths, *bodies))


def decode_page(state: bytes) -> list[bytes]:
    """The bodies of a stored page. Raises ValueError when the bytes are no page."""
    form, count = _HEADER.unpack_from(state)
    if form != RAW:
        raise ValueError(f"page format {form} is not known to this version")
    start = _HEADER.size + 4 * count
    lengths = struct.unpack_from(f"!{count}I", state, _HEADER.size)
    edges = list(accumulate(lengths, initial=start))
    if edges[-1] != len(state):
        raise ValueError("page is cut short")
    return [state[a:b] for a, b in pairwise(edges)]

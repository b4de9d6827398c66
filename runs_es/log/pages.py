"""Frames and pages. A frame is encoded once, when published, to the bytes that go out on the wire before its id.

A page is one flush of frames of one run: a format byte, the count, the lengths, then the bodies end to end, in most
pages compressed together. Nothing in it knows its seq: that follows from the row (`seq - n + 1 … seq`). A delta page
also names, before its lengths, the seq of its key page: an earlier one of the same run, whose bodies zstd has as its
dictionary. A key page is never a delta itself.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import zstandard

RAW = 0
ZSTD = 1
DELTA = 2
# Below this there is too little to gain. Level 1 costs less time than the bytes it spares cost the database.
COMPRESS_FROM = 512
# Memory for key pages of writers, and as much for those of readers, unless a setting says otherwise.
KEY_BYTES = 64 * 1024 * 1024
_LEVEL = 1
_HEADER = struct.Struct("!BI")
_ONE = struct.Struct("!BII")
_KEY = struct.Struct("!Q")
_MAX_PAGE = 256 * 1024 * 1024  # no page is larger; a damaged length must not allocate what is not there
_local = threading.local()  # zstd's contexts are not to be shared between threads


def frame(event: str, data: bytes) -> bytes:
    """One frame's body: `event: …\\r\\ndata: …\\r\\n`.

    Raises ValueError for an event name or data that would break the frame apart.
    """
    if 10 in data or 13 in data:  # LF and CR: looked for as numbers, a sixth of the time
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


def encode_page(bodies: Sequence[bytes]) -> bytes:
    """The stored form of a page."""
    lengths = struct.pack(f"!{len(bodies)}I", *map(len, bodies))
    joined = b"".join(bodies)
    if len(joined) >= COMPRESS_FROM:
        packed = _compressor().compress(joined)
        if len(packed) < len(joined):
            return b"".join((_HEADER.pack(ZSTD, len(bodies)), lengths, packed))
    return b"".join((_HEADER.pack(RAW, len(bodies)), lengths, joined))


def encode_delta(bodies: Sequence[bytes], key_seq: int, packed: bytes) -> bytes:
    """The stored form of a page whose bodies were compressed against the page at `key_seq`."""
    lengths = struct.pack(f"!{len(bodies)}I", *map(len, bodies))
    return b"".join((_HEADER.pack(DELTA, len(bodies)), _KEY.pack(key_seq), lengths, packed))


def key_of(state: bytes) -> int | None:
    """The seq of the key page that a stored page needs, None for one that needs none."""
    if state[:1] != b"\x02":
        return None
    if len(state) < _HEADER.size + _KEY.size:
        raise ValueError("page is cut short")
    seq: int = _KEY.unpack_from(state, _HEADER.size)[0]
    return seq


def decode_page(state: bytes, key: KeyPage | None = None) -> list[bytes]:
    """The bodies of a stored page; a delta page needs its `key`. Raises ValueError when the bytes are no page, not
    whole, or not of that key.
    """
    lengths, joined = _contents(state, key)
    return [joined[a:b] for a, b in pairwise(accumulate(lengths, initial=0))]


def decoded_size(state: bytes) -> int:
    """Bytes of a stored page's bodies together; of a raw page those of its head, too. Raises ValueError."""
    return len(state) if state[:1] == b"\x00" else sum(_shape(state)[1])


def only_body(state: bytes) -> bytes:
    """The body of a raw page of one frame, the commonest there is: `decode_page` at a quarter of its time."""
    body = state[_ONE.size :]
    if len(state) < _ONE.size or _ONE.unpack_from(state) != (RAW, 1, len(body)):
        raise ValueError("page is cut short")
    return body


class KeyPage:
    """The bodies of a page as the dictionary of later ones. Safe between threads."""

    def __init__(self, seq: int, state: bytes) -> None:
        """`state` is the page as stored. Raises ValueError when it is no page, or a delta itself."""
        _, joined = _contents(state, None)
        self.seq = seq
        self.size = 2 * len(joined)  # zstd keeps a copy of its own
        content = zstandard.ZstdCompressionDict(joined, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        self._decompressor = zstandard.ZstdDecompressor(dict_data=content)
        self._lock = threading.Lock()

    def decompressed(self, packed: bytes, size: int) -> bytes:
        """What was compressed against this page."""
        with self._lock:
            return _decompressed(self._decompressor, packed, size)


def _shape(state: bytes) -> tuple[int, tuple[int, ...], int]:
    """The form of a stored page, the lengths of its bodies, and where they begin."""
    if len(state) < _HEADER.size:
        raise ValueError("page is cut short")
    form, count = _HEADER.unpack_from(state)
    if form not in (RAW, ZSTD, DELTA):
        raise ValueError(f"page format {form} is not known to this version")
    begin = _HEADER.size + (_KEY.size if form == DELTA else 0)
    start = begin + 4 * count
    if len(state) < start:
        raise ValueError("page is cut short")
    return form, struct.unpack_from(f"!{count}I", state, begin), start


def _contents(state: bytes, key: KeyPage | None) -> tuple[tuple[int, ...], bytes]:
    """The lengths of a page's bodies, and the bodies end to end."""
    form, lengths, start = _shape(state)
    size = sum(lengths)
    if form == RAW:
        joined = state[start:]
    elif form == ZSTD:
        joined = _decompressed(_decompressor(), state[start:], size)
    elif key is None or key.seq != key_of(state):
        raise ValueError(f"page needs the page at {key_of(state)} to be read")
    else:
        joined = key.decompressed(state[start:], size)
    if size != len(joined):
        raise ValueError("page is cut short")
    return lengths, joined


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


def _decompressed(decompressor: zstandard.ZstdDecompressor, packed: bytes, size: int) -> bytes:
    if size > _MAX_PAGE:
        raise ValueError(f"page claims {size} bytes")
    try:
        return decompressor.decompress(packed, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"page is damaged: {error}") from error

"""Which pages are stored as deltas, and against what: the writer's side of key pages.

Frames like `values` repeat a whole state at each step. A page that holds such a frame is compressed against an earlier
one, its key page, which is in the log already: only an acknowledged page becomes a key, so none can refer to one that
never landed. Both lie in one segment, so retention cannot cut the key and leave its deltas. A delta never is a key, so
whoever reads one page reads at most one more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import zstandard

from runs_es.log.append import Append, Appended, FactItem, PageItem
from runs_es.log.pages import encode_delta, encode_page, event_of

# A page counts as holding a state when its largest frame has so many bytes. Tokens are smaller and gain nothing.
STATE_FROM = 2048
# So many events of an attempt have a key each: a graph's state and those of its subgraphs.
KEYS_AN_ATTEMPT = 4
# A key page takes at most this share of the memory for all: with its compressor six times its size.
_LARGEST_SHARE = 8
_LARGEST = 64 * 1024 * 1024
_PATIENCE = 6  # after 2^n pages that resemble nothing, another try; n at most this
_LEVEL = 1

_Attempt = tuple[str, int]  # thread and fence, which no two attempts share
_Kind = tuple[str, str]  # run and event


class Deltas:
    """Encodes pages, and remembers key pages within `limit` bytes. Belongs to the log writer's thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._attempts: OrderedDict[_Attempt, OrderedDict[_Kind, _State]] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes held in memory."""
        return self._size

    def encode(self, batch: Sequence[Append], segment: int) -> None:
        """Make the stored form of these requests' pages, if it is not made yet. All go to `segment`: a delta made for
        another one is made anew, without its key.
        """
        for request in batch:
            for item in request.items:
                if isinstance(item, PageItem) and (not item.forms or item.segment not in (None, segment)):
                    item.segment = None
                    item.forms.append(self._encoded(request, item, segment))

    def acknowledged(self, request: Append, appended: Appended, segment: int) -> None:
        """The request is in the log, its pages in `segment`: they may be keys from now on."""
        if request.fence is None:
            return
        if any(isinstance(item, FactItem) and item.raises_fence for item in request.items):
            self.forget(request)  # the attempt is over
            return
        seq = appended.first_seq - 1
        for item in request.items:
            seq += len(item.bodies) if isinstance(item, PageItem) else 1
            if isinstance(item, PageItem) and item.segment is None and self._fits(item):
                self._remember((request.thread_id, request.fence), item, seq, segment)

    def forget(self, request: Append) -> None:
        """Let go of what the request's attempt had."""
        if request.fence is not None:
            self._drop(self._attempts.pop((request.thread_id, request.fence), {}))

    def _fits(self, item: PageItem) -> bool:
        return STATE_FROM <= item.size <= min(self._limit // _LARGEST_SHARE, _LARGEST)

    def _encoded(self, request: Append, item: PageItem, segment: int) -> bytes:
        if request.fence is not None and self._fits(item):
            states = self._attempts.get((request.thread_id, request.fence))
            state = states.get((item.run_id, _largest(item)[0])) if states else None
            if state is not None and state.key is not None:
                key, before = state.key, state.size
                packed = state.packed(item, segment)
                self._grown(state.size - before)
                if packed is not None:
                    item.segment = segment
                    return encode_delta(item.bodies, key.seq, packed)
        return encode_page(item.bodies)

    def _remember(self, attempt: _Attempt, item: PageItem, seq: int, segment: int) -> None:
        name, largest = _largest(item)
        if largest < STATE_FROM:
            return
        states = self._attempts.setdefault(attempt, OrderedDict())
        self._attempts.move_to_end(attempt)
        state = states.setdefault((item.run_id, name), _State())
        states.move_to_end((item.run_id, name))
        if len(states) > KEYS_AN_ATTEMPT:
            self._size -= states.popitem(last=False)[1].size
        before = state.size
        state.renew(_Key(seq, segment, item))
        self._grown(state.size - before)  # last: it may let go of this attempt

    def _grown(self, size: int) -> None:
        """Account for it, and let go of what was longest without a new key while it is too much in all."""
        self._size += size
        while self._size > self._limit:
            self._drop(self._attempts.popitem(last=False)[1])

    def _drop(self, states: Mapping[_Kind, _State]) -> None:
        self._size -= sum(state.size for state in states.values())


class _State:
    """One kind of state frames of a run: its key page, if any, and how well it does."""

    def __init__(self) -> None:
        self.key: _Key | None = None
        self._misses = 0  # keys in a row that nothing resembled
        self._rest = 0  # pages until another key is tried

    @property
    def size(self) -> int:
        return 0 if self.key is None else self.key.memory

    def renew(self, key: _Key) -> None:
        """A page of this kind that was stored whole: the next key, unless keys have been of no use."""
        if self._rest:
            self._rest -= 1
        else:
            self.key = key

    def packed(self, item: PageItem, segment: int) -> bytes | None:
        """The page against the key; None when it is to be stored whole, and to be the next key."""
        key = self.key
        if key is None or key.segment != segment or key.spent >= key.stored or item.size > key.reach:
            self.key = None
            return None
        packed = key.compress(b"".join(item.bodies))
        if len(packed) * key.content_size * 2 > item.size * key.stored:
            # Not half of what it would take whole: it resembles the key no more, or never did.
            self._misses = 0 if key.spent else min(self._misses + 1, _PATIENCE)
            self._rest = 2**self._misses - 1
            self.key = None
            return None
        # Once its deltas have taken what the key took, a new key is cheaper.
        key.spent += len(packed)
        self._misses = 0
        return packed


class _Key:
    """A key page, and the compressor that has it as its dictionary from the first delta on."""

    def __init__(self, seq: int, segment: int, item: PageItem) -> None:
        self.seq = seq
        self.segment = segment
        self.content_size = item.size
        self.stored = len(item.state)
        self.spent = 0  # bytes of its deltas
        self.memory = item.size
        self._window_log = max(item.size.bit_length() + 1, 12)
        self.reach = 1 << self._window_log  # a larger page would lose sight of the dictionary
        self._content: bytes | None = b"".join(item.bodies)
        self._compressor: zstandard.ZstdCompressor | None = None

    def compress(self, joined: bytes) -> bytes:
        """`joined` against the key."""
        if self._compressor is None:
            assert self._content is not None
            # Level 1 hashes so few places of a long dictionary that it finds nothing in it: as many as it has bytes
            # over eight find all but the smallest repetitions, and cost the least time.
            parameters = zstandard.ZstdCompressionParameters.from_level(
                _LEVEL,
                write_checksum=1,
                window_log=self._window_log,
                hash_log=max(self.content_size.bit_length() - 3, 12),
            )
            content = zstandard.ZstdCompressionDict(self._content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            self._compressor = zstandard.ZstdCompressor(dict_data=content, compression_params=parameters)
            self._content = None
        packed = self._compressor.compress(joined)
        self.memory = 2 * self.content_size + self._compressor.memory_size()
        return packed


def _largest(item: PageItem) -> tuple[str, int]:
    """The event of the page's largest frame, and its size."""
    body = max(item.bodies, key=len)
    return event_of(body), len(body)

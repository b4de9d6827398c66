"""What a writer asks for and is told, `Append` and `Appended`, and the two statements that carry a batch of them.

A request states what its writer knew. `expected` is the revision a command has folded (0: the thread is to be born);
`fence` and `frames` are what a worker's claim told it. Whatever is stated and no longer true loses: the row is simply
not in the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from runs_es.domain import Fact, Provenance, RunFact
from runs_es.log import codec
from runs_es.log.arrays import Bigints, Blobs, Bools, Ints, Texts

PAGE_TOPIC = "run.streamed"
ANONYMOUS = Provenance()


@dataclass(slots=True)
class FactItem:
    """One fact to append, encoded. With `idem_key` it is stored once a thread, however often it is sent."""

    topic: str
    run_id: str | None
    state: bytes
    raises_fence: bool = False
    provenance: Provenance = ANONYMOUS
    idem_key: str | None = None

    @classmethod
    def of(cls, fact: Fact, provenance: Provenance = ANONYMOUS, idem_key: str | None = None) -> FactItem:
        """`fact`, encoded. Raises ValueError when it cannot be JSON."""
        run_id = fact.run_id if isinstance(fact, RunFact) else None
        return cls(fact.topic, run_id, codec.encode(fact), fact.raises_fence, provenance, idem_key)


@dataclass(slots=True)
class PageItem:
    """Frames of one run, in order; grows until its request is sealed. `size` counts the bodies' bytes.

    `forms` are its stored forms, the newest last: one, unless its segment ended before it got there. A delta can only
    be read in `segment`, where its key page is.
    """

    run_id: str
    bodies: list[bytes]
    forms: list[bytes] = field(default_factory=list)
    segment: int | None = None
    size: int = 0

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.bodies))

    def extend(self, bodies: Sequence[bytes], size: int) -> None:
        """Add frames of `size` bytes together."""
        self.bodies.extend(bodies)
        self.size += size

    @property
    def state(self) -> bytes:
        """What is stored, once it is encoded."""
        return self.forms[-1]


class Appended(NamedTuple):
    """What became durable. `first_seq … last_seq` are the request's items in order, a frame or a fact each.

    `repeated` says that this is the result of an earlier request with the same idempotency key. Where a lost
    acknowledgement had to be looked up and others have written since, `current` is False: revision, fence and frames
    are then theirs.
    """

    thread_id: str
    first_seq: int
    last_seq: int
    revision: int
    fence: int
    frames: int
    position: int | None
    at: datetime
    repeated: bool = False
    current: bool = True

    @property
    def recorded_at(self) -> str:
        """When, in ISO form with its offset."""
        return self.at.isoformat()


class Writer(Protocol):
    """Whoever must be refused as a whole once one of its requests is."""

    refused: bool

    def settled(self, request: Append, *, refused: bool) -> None:
        """One of its requests has been decided. Called in the log's thread: return at once."""


@dataclass(slots=True, eq=False)
class Append:
    """One request."""

    thread_id: str
    items: list[FactItem | PageItem]
    expected: int | None = None
    fence: int | None = None
    frames: int | None = None
    writer: Writer | None = None
    future: Future[Appended] = field(default_factory=Future)
    sealed: bool = False
    # What its writer knew was read from the history that this process had seen then; see `HistoryGuard.generation`.
    generation: int | None = None

    @property
    def idem_key(self) -> str | None:
        return next((item.idem_key for item in self.items if isinstance(item, FactItem) and item.idem_key), None)

    @property
    def size(self) -> int:
        """Bytes, before pages are encoded."""
        return sum(item.size if isinstance(item, PageItem) else len(item.state) for item in self.items)

    @property
    def is_page(self) -> bool:
        """Whether it is a single page, which goes the narrow and lock-free way."""
        return len(self.items) == 1 and isinstance(self.items[0], PageItem)


# Pages only: one row a thread, a page each. No fact, hence no position, hence no global lock. Heads are locked in the
# order of their ids. What a request brings stays in its parameter until the insert takes it by `ord`: joining
# requests to rows again is to compare each with each (256 requests: 19 ms, now 4.5) and to copy pages at every step.
APPEND_PAGES = """
with won as materialized (
  select s.thread_id, r.n, r.ord::int ord
    from unnest(%(thread_id)b::text[], %(fence)b::bigint[], %(frames)b::bigint[], %(n)b::int[]) with ordinality
         r(thread_id, fence, frames, n, ord)
    join heads s on s.thread_id = r.thread_id
   where s.fence = coalesce(r.fence, s.fence) and s.frames = coalesce(r.frames, s.frames)
   order by s.thread_id for no key update of s),
upd as (
  update heads s
     set head = s.head + w.n, frames = s.frames + w.n, at = greatest(clock_timestamp(), s.at),
         chain = sha256(s.chain || int8send(s.head + w.n) || (%(digest)b::bytea[])[w.ord])
    from won w where s.thread_id = w.thread_id
  returning s.thread_id, s.head, s.revision, s.fence, s.frames, s.at, s.chain, w.n, w.ord),
ins as (
  insert into events (thread_id, seq, segment, n, run_id, topic, state, first_frame, link, recorded_at)
  select thread_id, head, %(segment)b::int, n, (%(run_id)b::text[])[ord], 'run.streamed', (%(state)b::bytea[])[ord],
         frames - n, chain, at
    from upd)
select thread_id, head, revision, fence, frames, null::bigint, at from upd
"""

# With facts. The order matters: the gate's lock is taken before the heads' (one order for all), and `position` is
# drawn under it, so position order is commit order. Heads are locked by thread_id, so two batches cannot deadlock.
# A thread that is made after a restore begins above the numbers that a lost one of its id may have given out, and its
# first row is wide (numbers.py).
APPEND_FACTS = """
with gate as materialized (select count(pg_advisory_xact_lock(%b::bigint)) c),
req as materialized (
  select r.* from gate, unnest(%b::text[], %b::bigint[], %b::bigint[], %b::bigint[], %b::int[], %b::int[], %b::int[],
                               %b::int[], %b::text[], %b::bytea[])
    r(thread_id, expected, fence, frames, n, facts, fences, nframes, idem, digest)),
epoch as materialized (select history.epoch * 4294967296 base from history),
born as (
  insert into heads (thread_id, head, revision, fence, frames, chain)
  select thread_id, base + n, facts, fences, nframes, sha256(int8send(base + n) || digest)
    from req, epoch where expected = 0 order by thread_id
  on conflict do nothing
  returning thread_id, (select base from epoch) base, 0::bigint base_revision, 0::bigint base_frames, revision,
            fence, frames, at, chain),
won as materialized (
  select s.thread_id from heads s join req r using (thread_id), (select count(*) from born) b
   where r.expected is distinct from 0 and s.revision = coalesce(r.expected, s.revision)
     and s.fence = coalesce(r.fence, s.fence) and s.frames = coalesce(r.frames, s.frames)
     and not exists (select from events_facts f where f.thread_id = r.thread_id and f.idem_key = r.idem)
   order by s.thread_id for no key update of s),
upd as (
  update heads s
     set head = s.head + r.n, revision = s.revision + r.facts, fence = s.fence + r.fences,
         frames = s.frames + r.nframes, at = greatest(clock_timestamp(), s.at),
         chain = sha256(s.chain || int8send(s.head + r.n) || r.digest)
    from req r join won using (thread_id) where s.thread_id = r.thread_id
  returning s.thread_id, s.head - r.n base, s.revision - r.facts base_revision, s.frames - r.nframes base_frames,
            s.revision, s.fence, s.frames, s.at, s.chain),
h as (select * from born union all select * from upd),
ins as (
  insert into events (thread_id, seq, segment, n, run_id, topic, state, revision, position, first_frame, page_segment,
                      actor, reason, correlation_id, causation_id, idem_key, link, recorded_at)
  select e.thread_id, h.base + e.off, case when e.fact is null then %b::int else 0 end,
         case when h.base > 0 and h.base_revision + e.fact = 1 then -1 else e.n end, e.run_id, e.topic, e.state,
         h.base_revision + e.fact, case when e.fact is not null then nextval('event_position') end,
         h.base_frames + e.frame, case when e.fact is not null then %b::int end,
         e.actor, e.reason, e.correlation_id, e.causation_id, e.idem, case when e.last then h.chain end, h.at
    from unnest(%b::text[], %b::int[], %b::int[], %b::text[], %b::text[], %b::bytea[], %b::int[], %b::int[],
                %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bool[])
         with ordinality e(thread_id, off, n, run_id, topic, state, fact, frame, actor, reason, correlation_id,
                           causation_id, idem, last, ord)
    join h using (thread_id) order by e.ord
  returning thread_id, position),
top as (select thread_id, max(position) position from ins group by thread_id)
select h.thread_id, h.base + r.n, h.revision, h.fence, h.frames, t.position, h.at
  from h join req r using (thread_id) join top t using (thread_id)
"""


def _digest(states: Sequence[bytes]) -> bytes:
    """What the hash chain takes of a request: a hash over the hashes of its items."""
    return hashlib.sha256(b"".join(hashlib.sha256(state).digest() for state in states)).digest()


def page_parameters(batch: Sequence[Append], segment: int) -> dict[str, object]:
    """Parameters of APPEND_PAGES for requests that are a page each."""
    pages = [item for request in batch for item in request.items if isinstance(item, PageItem)]
    return {
        "thread_id": Texts([request.thread_id for request in batch]),
        "fence": Bigints([request.fence for request in batch]),
        "frames": Bigints([request.frames for request in batch]),
        "n": Ints([len(page.bodies) for page in pages]),
        "run_id": Texts([page.run_id for page in pages]),
        "state": Blobs([page.state for page in pages]),
        "digest": Blobs([_digest([page.state]) for page in pages]),
        "segment": segment,
    }


@dataclass(slots=True)
class _Columns:
    """The item columns of APPEND_FACTS."""

    thread_id: Texts = field(default_factory=Texts)
    off: Ints = field(default_factory=Ints)
    n: Ints = field(default_factory=Ints)
    run_id: Texts = field(default_factory=Texts)
    topic: Texts = field(default_factory=Texts)
    state: Blobs = field(default_factory=Blobs)
    fact: Ints = field(default_factory=Ints)
    frame: Ints = field(default_factory=Ints)
    actor: Texts = field(default_factory=Texts)
    reason: Texts = field(default_factory=Texts)
    correlation_id: Texts = field(default_factory=Texts)
    causation_id: Texts = field(default_factory=Texts)
    idem: Texts = field(default_factory=Texts)
    last: Bools = field(default_factory=Bools)

    def add(self, request: Append) -> tuple[int, int, int, int]:
        """Add a request's items; returns its events, facts, fence-raising facts and frames."""
        events = facts = fences = frames = 0
        for item in request.items:
            if isinstance(item, FactItem):
                events, facts = events + 1, facts + 1
                fences += item.raises_fence
                self._add_fact(request.thread_id, item, events, facts)
            else:
                events += len(item.bodies)
                self._add_page(request.thread_id, item, events, frames)
                frames += len(item.bodies)
            self.last.append(item is request.items[-1])
        return events, facts, fences, frames

    def _add_fact(self, thread_id: str, item: FactItem, off: int, number: int) -> None:
        provenance = item.provenance
        row = (thread_id, off, 1, item.run_id, item.topic, item.state, number, None)
        who = (provenance.actor, provenance.reason, provenance.correlation_id, provenance.causation_id, item.idem_key)
        self._extend((*row, *who))

    def _add_page(self, thread_id: str, item: PageItem, off: int, frame: int) -> None:
        row = (thread_id, off, len(item.bodies), item.run_id, PAGE_TOPIC, item.state, None, frame)
        self._extend((*row, None, None, None, None, None))

    def _extend(self, row: tuple[object, ...]) -> None:
        for column, value in zip(self.all()[:-1], row, strict=True):
            column.append(value)

    def all(self) -> tuple[list[object], ...]:
        names = self.__slots__
        return tuple(getattr(self, name) for name in names)


def fact_parameters(batch: Sequence[Append], segment: int, lock_key: int) -> tuple[object, ...]:
    """Parameters of APPEND_FACTS for any requests."""
    columns = _Columns()
    counts = [columns.add(request) for request in batch]
    return (
        lock_key,
        Texts([request.thread_id for request in batch]),
        Bigints([request.expected for request in batch]),
        Bigints([request.fence for request in batch]),
        Bigints([request.frames for request in batch]),
        Ints([events for events, _, _, _ in counts]),
        Ints([facts for _, facts, _, _ in counts]),
        Ints([fences for _, _, fences, _ in counts]),
        Ints([frames for _, _, _, frames in counts]),
        Texts([request.idem_key for request in batch]),
        Blobs([_digest([item.state for item in request.items]) for request in batch]),
        segment,
        segment,
        *columns.all(),
    )

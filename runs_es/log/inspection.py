"""Whether the log is what it promises to be: every thread read once, in short reads in the order of the key.

What must hold in a thread: seqs without overlap, revisions 1, 2, 3 … without a hole, positions and times that rise,
at most one end a run, and a head row that counts exactly what is there. Frames may be missing where retention cuts:
whole segments, and all frames of a run. A page that is missing from the middle of what is kept was not cut.

A thread that is written to meanwhile can look wrong; so one that looks wrong is read again, in one snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from runs_es.domain import TERMINAL_TOPICS
from runs_es.log import codec, segments
from runs_es.log.append import PAGE_TOPIC

_UNIQUE = ("events_pkey", "events_facts_position", "events_facts_revision", "events_facts_idem_key", "heads_pkey")

OnProgress = Callable[[int], None]

_ROWS = 5000  # at a time
_THREADS = 500  # whose heads are read together
_MOST = 1000  # findings that are kept; all are counted
_COLUMNS = "thread_id, seq, segment, n, run_id, topic, revision, position, first_frame, page_segment, recorded_at"


class Entry(NamedTuple):
    """A row of the log without what it holds."""

    thread_id: str
    seq: int
    segment: int
    n: int
    run_id: str | None
    topic: str
    revision: int | None
    position: int | None
    first_frame: int | None
    page_segment: int | None
    recorded_at: Any

    @property
    def first(self) -> int:
        return self.seq - self.n + 1

    @property
    def pages_in(self) -> int | None:
        """The segment that pages went to when this row was written."""
        return self.page_segment if self.segment == 0 else self.segment


class HeadRow(NamedTuple):
    """A row of `heads`."""

    thread_id: str
    head: int
    revision: int
    fence: int
    frames: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be: which check says so, where, and what it saw."""

    check: str
    place: str
    detail: str


@dataclass(slots=True)
class Findings:
    """The first thousand, and how many there are."""

    kept: list[Finding] = field(default_factory=list)
    count: int = 0

    def add(self, *found: Finding) -> None:
        self.count += len(found)
        self.kept += found[: max(_MOST - len(self.kept), 0)]


@dataclass(slots=True)
class LogReport:
    """`cut` counts threads of which retention has taken frames. `unfilled` are read models that nobody has begun."""

    threads: int = 0
    facts: int = 0
    pages: int = 0
    cut: int = 0
    seconds: float = 0.0
    findings: Findings = field(default_factory=Findings)
    unfilled: list[str] = field(default_factory=list)


class ThreadInspection:
    """One thread, fed row by row in order of seq. Holds a number a run, and nothing else that grows."""

    def __init__(self, thread_id: str, kept_segments: frozenset[int]) -> None:
        self.thread_id = thread_id
        self.findings: list[Finding] = []
        self.was_cut = False
        self._segments = kept_segments
        self._last: Entry | None = None
        self._revision = self._position = 0
        self._frames: int | None = 0  # frames before the next page, where that is known
        self._at: Any = None
        self._ended: set[str] = set()

    def feed(self, entry: Entry) -> None:
        """The next row."""
        if entry.topic == "thread.erased":
            self._begin_again(entry)  # what is left of anything before it is being deleted, or is
        self._check_seq(entry)
        if entry.segment == 0:
            self._check_fact(entry)
        else:
            self._check_page(entry)
        if self._at is not None and entry.recorded_at < self._at:
            self._found("times rise", f"seq {entry.seq} was recorded before the one in front of it")
        self._last, self._at = entry, entry.recorded_at

    def finish(self, head: HeadRow | None) -> list[Finding]:
        """After the last row: the head row must count what was fed."""
        last = self._last.seq if self._last is not None else 0
        if head is None:
            self._found("heads equal rows", "there are events and no head row")
            return self.findings
        if head.revision != self._revision:
            self._found("heads equal rows", f"the head counts {head.revision} facts, the last one is {self._revision}")
        if head.head < last:
            self._found("heads equal rows", f"the head is at seq {head.head}, the last event at {last}")
        if head.head != head.revision + head.frames:
            self._found(
                "heads equal rows",
                f"{head.revision} facts and {head.frames} frames do not make seq {head.head}",
            )
        if head.head > last and self._last is not None:
            newest = max(self._segments, default=0)
            self._cut_or_lost(last + 1, head.head, lost=self._last.segment > 0 and self._last.segment == newest)
        return self.findings

    def _found(self, check: str, detail: str) -> None:
        self.findings.append(Finding(check, f"thread {self.thread_id}", detail))

    def _begin_again(self, entry: Entry) -> None:
        self.findings.clear()
        self._last = None
        self._revision, self._frames = (entry.revision or 1) - 1, None
        self._ended.clear()

    def _check_seq(self, entry: Entry) -> None:
        last = self._last
        if last is None and (entry.topic == "thread.erased" or entry.first == 1):
            return
        expected = last.seq + 1 if last is not None else 1
        if entry.first < expected:
            self._found("seqs are contiguous", f"the row at {entry.seq} begins at {entry.first}, before {expected}")
        elif entry.first > expected:
            self._cut_or_lost(expected, entry.first - 1, lost=last is not None and self._must_be_there(last, entry))
            self._frames = None

    def _must_be_there(self, last: Entry, entry: Entry) -> bool:
        """Whether frames between these two belong to a segment that is kept."""
        kept = entry.pages_in
        if last.pages_in != kept or kept not in self._segments:
            return False
        pages = (last.segment > 0) + (entry.segment > 0)
        # A fact names the segment its process knew. Until the one before was closed, another may have written to that.
        return pages == 2 or (pages == 1 and (kept == 1 or kept - 1 in self._segments))

    def _cut_or_lost(self, first: int, last: int, *, lost: bool) -> None:
        """Frames are missing. Retention leaves nothing of a run in a segment, or all of it: else they are lost."""
        if lost:
            self._found("seqs are contiguous", f"seqs {first} to {last} are missing, and retention did not take them")
        else:
            self.was_cut = True

    def _check_fact(self, entry: Entry) -> None:
        revision, position = entry.revision or 0, entry.position or 0
        if revision != self._revision + 1:
            self._found(
                "seqs are contiguous",
                f"fact {revision} at seq {entry.seq} follows fact {self._revision}: some are lost",
            )
        if position <= self._position:
            self._found("positions rise", f"seq {entry.seq} has position {position}, after {self._position}")
        if not codec.is_known(entry.topic):
            self._found("facts are known", f"seq {entry.seq} is a {entry.topic}, which this version does not know")
        self._revision, self._position = revision, position
        self._check_end(entry)

    def _check_end(self, entry: Entry) -> None:
        if entry.run_id is None:
            return
        if entry.topic == "run.created":
            self._ended.discard(entry.run_id)
        elif entry.topic in TERMINAL_TOPICS:
            if entry.run_id in self._ended:
                self._found("one end a run", f"run {entry.run_id} ends again at seq {entry.seq}")
            self._ended.add(entry.run_id)

    def _check_page(self, entry: Entry) -> None:
        first_frame = entry.first_frame if entry.first_frame is not None else -1
        if entry.topic != PAGE_TOPIC or entry.run_id is None:
            self._found("pages are in step", f"the row at {entry.seq} is in a segment of pages and is none")
        if self._frames is not None and first_frame != self._frames:
            self._found(
                "pages are in step", f"the page at {entry.seq} begins with frame {first_frame}, not {self._frames}"
            )
        self._frames = first_frame + entry.n


def inspect_log(connection: Connection[TupleRow], on_progress: OnProgress | None = None) -> LogReport:
    """Inspect the whole log over a session of its own. `on_progress` is told how many threads are done."""
    begun = time.monotonic()
    report = LogReport()
    threads = _threads(connection, report, _kept_segments(connection))
    while some := list(islice(threads, _THREADS)):
        _finish(connection, some, report)
        if on_progress is not None:
            on_progress(report.threads)
    _check_guards(connection, report.findings)
    _check_heads(connection, report.findings)
    _check_positions(connection, report.findings)
    report.seconds = time.monotonic() - begun
    return report


def _finish(connection: Connection[TupleRow], some: Sequence[ThreadInspection], report: LogReport) -> None:
    heads = _heads(connection, [each.thread_id for each in some])
    for each in some:
        found = each.finish(heads.get(each.thread_id))
        if found:
            found = _in_one_snapshot(connection, each.thread_id).findings
        report.findings.add(*found)
        report.cut += each.was_cut and not found
        report.threads += 1


def thread_count(connection: Connection[TupleRow]) -> int:
    """How many threads there are to inspect."""
    row = connection.execute("select count(*) from heads").fetchone()
    assert row is not None
    return int(row[0])


def _kept_segments(connection: Connection[TupleRow]) -> frozenset[int]:
    listed = segments.listing(connection)
    return frozenset(each.number for each in listed if each.state is segments.State.ATTACHED)


def _threads(connection: Connection[TupleRow], report: LogReport, kept: frozenset[int]) -> Iterator[ThreadInspection]:
    """Each thread once all its rows have been fed."""
    current: ThreadInspection | None = None
    for entry in _entries(connection):
        if current is None or current.thread_id != entry.thread_id:
            if current is not None:
                yield current
            current = ThreadInspection(entry.thread_id, kept)
        current.feed(entry)
        if entry.segment == 0:
            report.facts += 1
        else:
            report.pages += 1
    if current is not None:
        yield current


def _entries(connection: Connection[TupleRow], thread_id: str | None = None) -> Iterator[Entry]:
    """All rows of the log, or of a thread, by key."""
    of_thread = "thread_id = %(thread)s and" if thread_id is not None else ""
    statement = (
        f"select {_COLUMNS} from events where {of_thread} (thread_id, seq, segment) > (%(after)s, %(seq)s, %(segment)s)"
        f" order by thread_id, seq, segment limit {_ROWS}"
    )
    after, seq, segment = thread_id or "", -1, -1
    while True:
        named = {"thread": thread_id, "after": after, "seq": seq, "segment": segment}
        rows = connection.execute(statement, named, binary=True).fetchall()
        for row in rows:
            yield Entry(*row)
        if len(rows) < _ROWS:
            return
        after, seq, segment = rows[-1][:3]


def _heads(connection: Connection[TupleRow], thread_ids: list[str]) -> dict[str, HeadRow]:
    rows = connection.execute(
        "select thread_id, head, revision, fence, frames from heads where thread_id = any(%s)", (thread_ids,)
    ).fetchall()
    return {row[0]: HeadRow(*row) for row in rows}


def _in_one_snapshot(connection: Connection[TupleRow], thread_id: str) -> ThreadInspection:
    """The thread read again, rows and head of the same moment."""
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            inspection = ThreadInspection(thread_id, _kept_segments(connection))
            for entry in _entries(connection, thread_id):
                inspection.feed(entry)
            inspection.finish(_heads(connection, [thread_id]).get(thread_id))
            return inspection
    finally:
        connection.isolation_level = None


def _check_guards(connection: Connection[TupleRow], findings: Findings) -> None:
    """The triggers that keep the log as it is are on, and the indexes that keep it in order are whole."""
    off = connection.execute(
        "select c.relname, t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid"
        " where t.tgfoid = 'refuse_change'::regproc and t.tgenabled <> 'A' and t.tgparentid = 0 order by 1, 2"
    ).fetchall()
    for table, trigger in off:
        detail = f"trigger {trigger} is not on: `alter table {table} enable always trigger {trigger}`"
        findings.add(Finding("guards are on", f"table {table}", detail))
    for name in _UNIQUE:
        row = connection.execute(
            "select coalesce(bool_and(indisunique and indisvalid), false) from pg_index"
            " where indexrelid = to_regclass(%s)",
            (name,),
        ).fetchone()
        if row != (True,):
            findings.add(Finding("guards are on", f"index {name}", "is missing, not unique, or not valid"))


def _check_heads(connection: Connection[TupleRow], findings: Findings) -> None:
    """Every head row is of a thread with facts: those are never taken, but by an erasure that leaves one."""
    after = ""
    while True:
        rows = connection.execute(
            f"select thread_id, exists (select from events_facts f where f.thread_id = h.thread_id) from heads h"
            f" where thread_id > %s order by thread_id limit {_ROWS}",
            (after,),
        ).fetchall()
        for thread_id, has_facts in rows:
            if not has_facts:
                findings.add(Finding("heads equal rows", f"thread {thread_id}", "there is a head row and no facts"))
        if len(rows) < _ROWS:
            return
        after = rows[-1][0]


def _check_positions(connection: Connection[TupleRow], findings: Findings) -> None:
    """No two facts of the store have the same position, and the next one will be new."""
    last, thread_id, seq = 0, "", 0
    while True:
        rows = connection.execute(
            "select position, thread_id, seq from events_facts where position >= %(position)s"
            " and (position, thread_id, seq) > (%(position)s, %(thread)s, %(seq)s)"
            f" order by position, thread_id, seq limit {_ROWS}",
            {"position": last, "thread": thread_id, "seq": seq},
        ).fetchall()
        for position, thread_id, seq in rows:
            if position == last:
                place = f"thread {thread_id}"
                findings.add(Finding("positions are unique", place, f"seq {seq} has position {position} like another"))
            last = position
        if len(rows) < _ROWS:
            break
    row = connection.execute("select last_value from event_position").fetchone()
    if row is not None and row[0] < last:
        findings.add(
            Finding("positions are unique", "sequence event_position", f"is at {row[0]}, behind position {last}")
        )

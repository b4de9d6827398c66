"""The store's readers over read models and log: the ports `RunRepository` and `RunEventLog`, and threads.

One thing is read by folding its facts and is always current. Lists come from read models: they wait, bounded by `wait`
seconds, until these show what the caller may know of, and say whether they do (`Listed`). A `user_id` of None asks as
everybody; what has no user is everybody's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from runs_es.domain import (
    TERMINAL_TOPICS,
    CursorLost,
    Fact,
    Provenance,
    Run,
    RunCreated,
    RunDeleted,
    RunFact,
    RunId,
    RunNotFound,
    StoreUnavailable,
    Thread,
    ThreadCreated,
    ThreadNotFound,
    WriteConflict,
    checked_id,
)
from runs_es.domain.values import checked_json, names_of
from runs_es.log.append import ANONYMOUS
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.reader import Head
from runs_es.service.commands import FindRunsQuery, GetRunQuery, ListRunMessagesQuery, ListRunsQuery, check_page
from runs_es.service.views import RunMessageView, RunSnapshot, StoredRunEvent, ThreadSnapshot
from runs_projections import store
from runs_projections.events import fact_event, list_events
from runs_projections.freshness import Counted, Listed, TrackedTable, TrackingPoll, Waiter
from runs_projections.lookups import find_run, may_see
from runs_projections.message_lists import list_messages
from runs_projections.messages import MESSAGES
from runs_projections.projection import Fold
from runs_projections.run_lists import runs_source
from runs_projections.runs import RUNS
from runs_projections.stored_text import encoded, searchable, storable
from runs_projections.threads import THREADS, ThreadRow

_WAIT = 2.0  # seconds, as RUNS_ES_LIST_WAIT_SECONDS
_KWARGS_BYTES = 64 * 1024  # as RUNS_ES_LIST_KWARGS_BYTES


def _bounded_kwargs(most: int) -> str:
    """SQL for the kwargs of a listed run: large ones stay where they are, and a note takes their place.

    The stored size is asked for first: it is known without reading the value.
    """
    note = '{"__omitted__": "larger than RUNS_ES_LIST_KWARGS_BYTES; the run itself has them"}'
    return (
        f"case when pg_column_size(t.kwargs) > {most:d} then '{note}'"
        f" when octet_length(t.kwargs::text) > {most:d} then '{note}' else t.kwargs::text end"
    )


class ProjectedRuns:
    """`RunRepository`. Without a `waiter` (the process's `LiveProjector`) it asks the database how far it is.

    Lists leave out `kwargs` of more than `kwargs_bytes`.
    """

    def __init__(
        self, log: EventLog, waiter: Waiter | None = None, *, wait: float = _WAIT, kwargs_bytes: int = _KWARGS_BYTES
    ) -> None:
        self._reader = log.reader
        self._decisions = Decisions(log, kept_threads=64)
        instead = {"kwargs": _bounded_kwargs(kwargs_bytes)}
        self._table = TrackedTable(log.reader, RUNS, waiter or TrackingPoll(log.reader), wait, instead)

    def get(self, run_id: str, *, thread_id: str | None = None, user_id: str | None = None) -> Run | None:
        """The run as its facts tell, always current; None when absent, deleted, or another's."""
        query = GetRunQuery(run_id, thread_id, user_id)  # which checks them
        run = find_run(self._reader, query.run_id, query.thread_id)
        return run if run is not None and may_see(user_id, run.user_id) else None

    def list_by_thread(self, query: ListRunsQuery) -> Listed[RunSnapshot]:
        """A thread's runs, newest first."""
        source = "where t.thread_id = %(thread)s"
        if query.status is not None:
            source += " and t.status = %(status)s"
        if query.user_id is not None:
            source += " and (t.user_id is null or t.user_id = %(user)s)"
        parameters = {
            "thread": storable(query.thread_id),
            "status": _stored(query.status),
            "user": _stored(query.user_id),
        }
        needed = self._reader.last_position(query.thread_id)
        rows = self._table.listed(needed, source, "t.created_seq desc", query.limit, query.offset, parameters)
        return Listed((row.snapshot() for row in rows), current=rows.current, position=rows.position)

    def find(self, query: FindRunsQuery) -> Listed[RunSnapshot]:
        """Runs across threads, newest first. Raises ValueError for a time or cursor that is none."""
        source, order, parameters = runs_source(query)
        rows = self._table.listed(self._reader.last_position(), source, order, query.limit, 0, parameters)
        return Listed((row.snapshot() for row in rows), current=rows.current, position=rows.position)

    def save(self, run: Run, provenance: Provenance = ANONYMOUS) -> None:
        """Append the run's pending facts. Raises WriteConflict when the run changed since it was read, ThreadNotFound
        when there is no such thread.
        """
        if not isinstance(run, Run):
            raise TypeError(f"run must be a Run, not {type(run).__name__}")
        pending = run.pull_events()
        if not pending:
            return
        is_new = isinstance(pending[0], RunCreated)

        def decide(thread: Thread, _: Head) -> Decision:
            if not thread.exists:
                raise ThreadNotFound(run.thread_id)
            stored = find_run(self._reader, run.run_id, run.thread_id)
            # What the log will tell must be what the caller has in hand; then nobody has written in between.
            if is_new != (stored is None) or (stored is not None and _state(stored, pending) != _state(run)):
                raise WriteConflict(f"run {run.run_id} changed meanwhile")
            return Decision(pending)

        self._decisions.make(run.thread_id, decide, provenance=provenance)

    def delete(self, run_id: str, *, provenance: Provenance = ANONYMOUS) -> None:
        """Take a run out of every read model; one that has not ended is ended first. Raises RunNotFound."""
        run = self.get(run_id)
        if run is None:
            raise RunNotFound(run_id)
        self._decisions.make(
            run.thread_id, lambda thread, _: Decision(thread.delete_run(run_id)), provenance=provenance
        )

    def active_threads(self, *, without: Collection[str] = ()) -> list[str]:
        """Threads with a run that is running, or pending and due; for sweeps, so it may name one too many.

        What the read model has not come to yet is asked of the log: where it stands still, runs must not. Runs of the
        assistants `without` (ids) do not count, as far as the read model knows.
        """
        with self._reader.connection() as connection:
            rows = connection.execute(
                "select thread_id from runs where status in ('pending', 'running')"
                " and (due_at is null or due_at::timestamptz <= now()) and assistant_id <> all(%(without)s)"
                " union select thread_id from events_facts c where topic = 'run.created' and position > coalesce("
                "   (select position from tracking where (name, version) = (%(name)s, %(version)s)), 0)"
                " and not exists (select from events_facts e where e.thread_id = c.thread_id and e.run_id = c.run_id"
                "   and e.topic = any(%(ended)s)) order by 1",
                {
                    "name": RUNS.name,
                    "version": RUNS.version,
                    "ended": [*TERMINAL_TOPICS, RunDeleted.topic],
                    "without": list(without),
                },
            ).fetchall()
        return [thread_id for (thread_id,) in rows]

    def waiting_threads(self, assistant_ids: Collection[str], limit: int = 32) -> list[str]:
        """Threads whose next run is due and of one of these assistants, the oldest run first. What they know now is a
        guess: the log decides. Waits, bounded, for the newest fact.
        """
        self._table.is_current(self._reader.last_position())
        with self._reader.connection() as connection:
            rows = connection.execute(
                "select r.thread_id from runs r where r.status = 'pending' and r.assistant_id = any(%(ids)s)"
                " and (r.due_at is null or r.due_at::timestamptz <= now())"
                " and not exists (select from runs o where o.thread_id = r.thread_id"
                "   and (o.status = 'running' or (o.status = 'pending' and o.created_seq < r.created_seq"
                "        and (o.due_at is null or o.due_at::timestamptz <= now()))))"
                " order by moment(r.created_at) limit %(limit)s",
                {"ids": list(assistant_ids), "limit": limit},
            ).fetchall()
        return [thread_id for (thread_id,) in rows]

    def _must_be_current(self) -> None:
        if not self._table.is_current(self._reader.last_position()):
            raise StoreUnavailable("the list of runs lags behind the log; try again")

    def due(self) -> dict[tuple[str, str | None], int]:
        """How many runs are running, or pending and due, by (assistant, graph).

        Raises StoreUnavailable when the read model does not catch up in time: nobody is to believe that these are all.
        """
        self._must_be_current()
        with self._reader.connection() as connection:
            rows = connection.execute(
                "select assistant_id, searchable(metadata) ->> 'graph_id', count(*) from runs"
                " where status in ('pending', 'running') and (due_at is null or due_at::timestamptz <= now())"
                " group by 1, 2"
            ).fetchall()
        return {(assistant_id, graph_id): count for assistant_id, graph_id, count in rows}

    def unfinished_threads(self, user_id: str | None = None) -> list[str]:
        """Threads with a run that has not ended, delayed ones too, of runs that the user may see.

        Raises StoreUnavailable when the read model does not catch up in time: nobody is to believe that these are all.
        """
        self._must_be_current()
        with self._reader.connection() as connection:
            rows = connection.execute(
                "select distinct thread_id from runs where status in ('pending', 'running')"
                " and (%(user)s::text is null or user_id is null or user_id = %(user)s) order by thread_id",
                {"user": _stored(user_id)},
            ).fetchall()
        return [thread_id for (thread_id,) in rows]


def _state(run: Run, facts: Sequence[Fact] = ()) -> dict[str, Any]:
    """All that a run is, after these facts."""
    run = run.copy()
    for fact in facts:
        run.apply(fact)
    return vars(run)


class ProjectedEvents:
    """`RunEventLog`: messages from their read model, events from the log."""

    def __init__(self, log: EventLog, waiter: Waiter | None = None, *, wait: float = _WAIT) -> None:
        self._reader = log.reader
        self._decisions = Decisions(log, kept_threads=64)
        self._table = TrackedTable(log.reader, MESSAGES, waiter or TrackingPoll(log.reader), wait)
        self._threads = ProjectedThreads(log, waiter, wait=wait)

    def append(self, events: Sequence[Fact], provenance: Provenance = ANONYMOUS) -> list[StoredRunEvent]:
        """Append facts of one thread.

        Raises ValueError for facts of several and for what JSON does not have, ThreadNotFound and RunNotFound for facts
        of what is not there, WriteConflict when the thread keeps changing.
        """
        if not events:
            return []
        for fact in events:
            if not isinstance(fact, Fact):
                raise TypeError(f"events must be facts, and one is a {type(fact).__name__}")
            for name, value in vars(fact).items():
                checked_json(name, value)
        thread_id = events[0].thread_id
        if any(fact.thread_id != thread_id for fact in events):
            raise ValueError("events of one call must be of one thread")

        def decide(thread: Thread, _: Head) -> Decision:
            self._check_there(thread, events)
            return Decision(events)

        appended = self._decisions.make(thread_id, decide, provenance=provenance).appended
        assert appended is not None  # there were facts, and no idempotency key
        return [
            fact_event(fact, appended.first_seq + index, appended.recorded_at, provenance)
            for index, fact in enumerate(events)
        ]

    def _check_there(self, thread: Thread, facts: Sequence[Fact]) -> None:
        """Facts about what was deleted, or never was, would come back in lists."""
        if not thread.exists and not isinstance(facts[0], ThreadCreated):
            raise ThreadNotFound(thread.thread_id)
        there, gone = set(thread.active), set[str]()
        for fact in facts:
            if not isinstance(fact, RunFact):
                continue
            if isinstance(fact, RunCreated):
                there.add(RunId(fact.run_id))
            elif fact.run_id in gone or (
                fact.run_id not in there and find_run(self._reader, fact.run_id, thread.thread_id) is None
            ):
                raise RunNotFound(fact.run_id)
            if isinstance(fact, RunDeleted):
                gone.add(fact.run_id)

    def list_messages_by_run(self, query: ListRunMessagesQuery) -> Listed[RunMessageView]:
        """One entry a message id, at the seq of its newest version, ascending. Raises CursorLost."""
        self._refuse_lost(query.thread_id, query.after_seq)
        needed = self._reader.last_position(query.thread_id)
        if not self._may_list(query):
            return Listed((), current=True, position=needed)
        return list_messages(self._table, query, needed)

    def _refuse_lost(self, thread_id: str, after_seq: int | None) -> None:
        """A cursor of a lost history would pass over what this one has since, and never tell."""
        if after_seq and self._reader.is_of_lost_history(thread_id, after_seq):
            raise CursorLost(after_seq)

    def _may_list(self, query: ListRunMessagesQuery) -> bool:
        if query.user_id is None:
            return True
        if query.run_id is None:
            return self._threads.get(query.thread_id, query.user_id) is not None
        run = find_run(self._reader, query.run_id, query.thread_id)
        return run is not None and may_see(query.user_id, run.user_id)

    def list_events_by_run(
        self,
        thread_id: str,
        run_id: str | None,
        *,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int = 500,
        types: Sequence[str] | None = None,
    ) -> Listed[StoredRunEvent]:
        """Facts and frames, ascending; `run_id` None: of the whole thread. `types` are event types or categories.

        Raises CursorLost.
        """
        thread_id = checked_id("thread_id", thread_id)
        run_id = checked_id("run_id", run_id) if run_id is not None else None
        check_page(limit, before_seq, after_seq)
        types = names_of("types", types) if types is not None else None
        self._refuse_lost(thread_id, after_seq)
        position = self._reader.last_position(thread_id)
        found = list_events(
            self._reader,
            thread_id,
            run_id,
            after_seq=after_seq,
            before_seq=before_seq,
            limit=limit,
            types=types,
        )
        return Listed(found, current=True, position=position)


_SORTS = {
    "thread_id": "t.thread_id {0}",
    "status": "t.status {0}, t.created_order {0}, t.thread_id {0}",
    "created_at": "t.created_order {0}, t.thread_id {0}",
    "updated_at": "t.updated_order {0}, t.thread_id {0}",
    "state_updated_at": "t.state_order {0} nulls last, t.thread_id {0}",
}


class ProjectedThreads:
    """Threads: one as its facts tell, many from the read model."""

    def __init__(self, log: EventLog, waiter: Waiter | None = None, *, wait: float = _WAIT) -> None:
        self._reader = log.reader
        self._table = TrackedTable(log.reader, THREADS, waiter or TrackingPoll(log.reader), wait)

    def get(self, thread_id: str, user_id: str | None = None) -> ThreadSnapshot | None:
        """The thread, always current: its row, and over it the facts that the row does not know yet."""
        thread_id = checked_id("thread_id", thread_id)
        row = self._row(thread_id)
        folding: Fold[ThreadRow] = Fold(THREADS, {(thread_id,): row} if row is not None else None)
        for recorded in self._reader.lifecycle(thread_id, row.revision if row is not None else 0)[1]:
            folding.apply(recorded)
        current = folding.rows.get((thread_id,))
        return current.snapshot() if current is not None and may_see(user_id, current.user_id) else None

    def _row(self, thread_id: str) -> ThreadRow | None:
        table = THREADS.table
        with self._reader.connection() as connection:
            values = connection.execute(
                f"select {store.select_list(table, 't')} from {table.name} t where t.thread_id = %s",
                (storable(thread_id),),
                binary=True,
            ).fetchone()
        return store.row_of(table, values) if values is not None else None

    def search(
        self,
        *,
        ids: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        status: str | None = None,
        limit: int = 10,
        offset: int = 0,
        sort_by: str = "created_at",
        sort_order: str = "desc",
        user_id: str | None = None,
    ) -> Listed[ThreadSnapshot]:
        """Threads that hold all of `metadata`, newest first unless said. Raises ValueError for another sort."""
        if sort_by not in _SORTS or sort_order not in ("asc", "desc"):
            raise ValueError(f"threads are sorted by {', '.join(_SORTS)}, asc or desc: not by {sort_by} {sort_order}")
        source, parameters = _threads_source(ids, metadata, status, user_id)
        order = _SORTS[sort_by].format(sort_order)
        rows = self._table.listed(self._reader.last_position(), source, order, limit, offset, parameters)
        return Listed((row.snapshot() for row in rows), current=rows.current, position=rows.position)

    def count(
        self,
        *,
        ids: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        status: str | None = None,
        user_id: str | None = None,
    ) -> Counted:
        """How many threads `search` would find."""
        return self._table.counted(self._reader.last_position(), *_threads_source(ids, metadata, status, user_id))


def _threads_source(
    ids: Sequence[str] | None, metadata: Mapping[str, Any] | None, status: str | None, user_id: str | None
) -> tuple[str, dict[str, Any]]:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    if ids is not None:
        conditions.append("t.thread_id = any(%(ids)s)")
        parameters["ids"] = [storable(thread_id) for thread_id in ids]
    if metadata:
        conditions.append("t.searchable @> %(metadata)s::jsonb")
        parameters["metadata"] = searchable(encoded(metadata))
    if status is not None:
        conditions.append("t.status = %(status)s")
        parameters["status"] = storable(status)
    if user_id is not None:
        # The index holds the beginning of the id.
        conditions.append(
            "(left(t.user_id, 64) is null or (left(t.user_id, 64) = left(%(user)s, 64) and t.user_id = %(user)s))"
        )
        parameters["user"] = storable(user_id)
    return f"where {' and '.join(conditions)}" if conditions else "", parameters


def _stored(text: str | None) -> str | None:
    return None if text is None else storable(text)

"""As of any earlier seq: what a fold of the facts up to it says; at the head, what is read now."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runs_es.domain import MessageRecorded, Recorded, RunDeleted, ThreadCreated, ThreadDeleted, ThreadNotFound
from runs_es.log.event_log import EventLog
from runs_es.service.commands import ListRunMessagesQuery
from runs_es.service.views import RunSnapshot
from runs_projections import LiveProjector, ProjectedEvents, ProjectedRuns, ProjectedThreads, fold
from runs_projections.messages import MESSAGES
from runs_projections.past import AsOf, Past, newest_versions
from runs_projections.projection import Projection
from runs_projections.runs import RUNS
from runs_projections.threads import THREADS
from tests.projections.histories import Teller, append, tell_all
from tests.projections.test_histories import Names
from tests.projections.test_readers import Author, seqs


@pytest.fixture
def names() -> Names:
    return Names()


def _of_thread(projection: Projection[Any], facts: list[Recorded]) -> dict[Any, Any]:
    return {key[1:]: row for key, row in fold(projection, facts).items()}


@given(data=st.data())
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
def test_as_of_every_prefix_is_the_fold_of_that_prefix_and_at_the_head_what_is_read(
    log: EventLog, projector: LiveProjector, names: Names, data: st.DataObject
) -> None:
    def choose(options):  # type: ignore[no-untyped-def]
        return options[data.draw(st.integers(0, len(options) - 1))]

    tellers = [Teller(names.fresh(), choose) for _ in range(data.draw(st.integers(1, 2)))]
    tell_all(tellers, data.draw(st.integers(1, 25)), choose)
    position = append(log, tellers, random.Random(data.draw(st.integers(0, 9))))
    assert projector.wait_for(position, 30)

    for teller in tellers:
        thread_id = teller.thread.thread_id
        facts = log.reader.facts(thread_id)
        every_run = {each.fact.run_id for each in facts if hasattr(each.fact, "run_id")}
        for length in range(len(facts) + 1):
            _assert_is_the_fold(log, thread_id, facts[:length], sorted(every_run))
        if facts:
            _assert_is_what_is_read(log, projector, thread_id, facts, sorted(every_run))


def _assert_is_the_fold(log: EventLog, thread_id: str, prefix: list[Recorded], run_ids: list[str]) -> None:
    past, seq = Past(log.reader), prefix[-1].seq if prefix else 0
    runs = _of_thread(RUNS, prefix)
    assert past.thread_row(thread_id, seq) == _of_thread(THREADS, prefix).get(())
    for run_id in run_ids:
        assert past.run_row(thread_id, run_id, seq) == runs.get((run_id,))
    expected = [row.view() for row in newest_versions(fold(MESSAGES, prefix).values())]
    assert past.messages(ListRunMessagesQuery(thread_id=thread_id, limit=1000), seq) == expected
    if prefix:
        moment = AsOf(time=prefix[-1].recorded_at)
        recorded_by_then = [
            each.seq for each in log.reader.facts(thread_id) if each.recorded_at <= prefix[-1].recorded_at
        ]
        assert past.seq_at(thread_id, moment) == recorded_by_then[-1]


def _assert_is_what_is_read(
    log: EventLog, projector: LiveProjector, thread_id: str, facts: list[Recorded], run_ids: list[str]
) -> None:
    past, head = Past(log.reader), facts[-1].seq
    assert past.thread(thread_id, head) == ProjectedThreads(log, projector).get(thread_id)
    for run_id in run_ids:
        run = ProjectedRuns(log, projector).get(run_id, thread_id=thread_id)
        assert past.run(thread_id, run_id, head) == (RunSnapshot.from_run(run) if run is not None else None)
    query = ListRunMessagesQuery(thread_id=thread_id, limit=1000)
    assert past.messages(query, head) == ProjectedEvents(log, projector).list_messages_by_run(query)


def _talk(log: EventLog) -> Author:
    """Twelve messages by two runs; every third of another type, every fourth hidden, one edited by the second run."""
    author = Author(log)
    for run_id in ("r1", "r2"):
        author.run(run_id)
        author.start(run_id)
        for number in range(6):
            author.say(
                run_id,
                f"{run_id}-{number}",
                {"n": number, "additional_kwargs": {"hide_from_ui": number == 4}},
                event_type="human" if number % 3 == 0 else "ai",
                metadata={"hidden": number == 0},
            )
    author.say("r2", "r1-1", "edited", event_type="ai")
    return author


def test_every_filter_and_cursor_pages_the_past_as_it_pages_the_present(
    log: EventLog, projector: LiveProjector
) -> None:
    _talk(log)
    head = log.reader.head("t")
    assert head is not None
    events, past = ProjectedEvents(log, projector), Past(log.reader)
    whole = events.list_messages_by_run(ListRunMessagesQuery(thread_id="t", limit=100))
    assert len(whole) == 12

    for run_id, types, visibility, limit, cursor in product(
        (None, "r2"),
        (None, ("human",), ("human", "ai"), ("tool",), ()),
        ("all", "shown", "hidden"),
        (1, 2, 50),
        ({}, {"after_seq": 0}, {"before_seq": 14}, {"after_seq": 6, "before_seq": 16}),
    ):
        query = ListRunMessagesQuery(
            thread_id="t",
            run_id=run_id,
            types=types,
            visibility=visibility,  # type: ignore[arg-type]
            limit=limit,
            **cursor,
        )
        assert seqs(events.list_messages_by_run(query)) == _expected(whole, query)
        assert seqs(past.messages(query, head.seq)) == _expected(whole, query)


def _expected(whole: list[Any], query: ListRunMessagesQuery) -> list[int]:
    kept = [
        message.seq
        for message in whole
        if (query.run_id is None or message.run_id == query.run_id)
        and (query.types is None or message.event_type in query.types)
        and (query.visibility == "all" or _says_it_is_hidden(message) == (query.visibility == "hidden"))
        and (query.after_seq or 0) < message.seq < (query.before_seq or 10**9)
    ]
    return kept[: query.limit] if query.after_seq is not None else kept[-query.limit :]


def _says_it_is_hidden(message: Any) -> bool:
    marks = message.content["additional_kwargs"] if isinstance(message.content, dict) else {}
    return bool(message.metadata.get("hidden") or marks.get("hide_from_ui"))


def test_a_run_that_was_deleted_since_is_there_as_of_before(log: EventLog) -> None:
    author = Author(log)
    author.run("r")
    author.start("r")
    said = author.say("r", "m", "hello")
    author.write(author.fact(RunDeleted, "r"))
    past = Past(log.reader)
    query = ListRunMessagesQuery(thread_id="t")

    before = past.run("t", "r", said)

    assert before is not None
    assert before.status == "running"
    assert [message.content for message in past.messages(query, said)] == ["hello"]
    assert past.run("t", "r", said + 1) is None
    assert past.messages(query, said + 1) == []


def test_a_seq_that_is_not_reached_or_a_thread_that_never_was_is_refused(log: EventLog) -> None:
    Author(log)
    past = Past(log.reader)
    with pytest.raises(ValueError, match="as_of is 2, but the thread has only come to seq 1"):
        past.seq_at("t", AsOf(seq=2))
    with pytest.raises(ThreadNotFound):
        past.seq_at("never", AsOf(seq=1))
    with pytest.raises(ValueError, match="as_of_time must carry an offset"):
        AsOf(time="2026-01-01T00:00:00")
    with pytest.raises(ValueError, match="not both"):
        AsOf(seq=1, time="2026-01-01T00:00:00Z")


def test_what_lies_before_the_threads_last_deletion_is_not_shown(log: EventLog) -> None:
    author = Author(log)
    author.write(author.fact(ThreadDeleted))
    author.write(author.fact(ThreadCreated))
    past = Past(log.reader)
    assert [past.shown_at("t", AsOf(seq=seq)) for seq in (1, 2, 3)] == [0, 0, 3]
    assert past.thread("t", 1) is not None
    assert past.thread("t", 2) is None


def test_another_users_past_is_absent(log: EventLog) -> None:
    author = Author(log, user_id="ann")
    author.run("r", user_id="ann")
    past = Past(log.reader)
    for user_id, there in (("ann", True), ("bob", False), (None, True)):
        assert (past.thread("t", 2, user_id) is not None) == there
        assert (past.run("t", "r", 2, user_id) is not None) == there


def test_contents_of_a_page_only_are_read_whole(log: EventLog) -> None:
    author = Author(log)
    author.run("r")
    author.write(*(author.fact(MessageRecorded, "r", message_id=f"m{n}", content={"n": n}) for n in range(4500)))
    head = log.reader.head("t")
    assert head is not None
    page = Past(log.reader).messages(ListRunMessagesQuery(thread_id="t", limit=2), head.seq)
    assert [message.content for message in page] == [{"n": 4498}, {"n": 4499}]

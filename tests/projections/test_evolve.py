"""Each projection's `evolve`, fact by fact, in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runs_es.domain import (
    CancelAction,
    EventRecorded,
    Fact,
    MessageRecorded,
    MessageRemoved,
    Recorded,
    RunCancelled,
    RunCancelRequested,
    RunClaimed,
    RunCompleted,
    RunCreated,
    RunDeleted,
    RunFailed,
    RunRequeued,
    RunStarted,
    RunStatus,
    Thread,
    ThreadCreated,
    ThreadDeleted,
    ThreadErased,
    ThreadUpdated,
)
from runs_projections import Table, fold
from runs_projections.messages import MESSAGES, MessageRow
from runs_projections.projection import INT, TEXT, Column, changed
from runs_projections.runs import RUNS, RunRow
from runs_projections.stored_text import original, searchable, storable, utc
from runs_projections.threads import THREADS, ThreadRow
from runs_projections.usage import USAGE

AT = "2026-05-06T07:08:09.000001+00:00"
CREATED = ThreadCreated(thread_id="t", occurred_at=AT, metadata={"a": 1}, user_id="ann")


def at(second: int) -> str:
    return f"2026-05-06T07:09:{second:02}.000001+00:00"


def run_fact(kind: type[Any], second: int = 1, run_id: str = "r", **values: Any) -> Fact:
    made = kind(thread_id="t", run_id=run_id, occurred_at=at(second), **values)
    assert isinstance(made, Fact)
    return made


def created(run_id: str = "r", second: int = 0, **values: Any) -> Fact:
    return run_fact(RunCreated, second, run_id, assistant_id="agent", **values)


def claimed(run_id: str = "r") -> list[Fact]:
    return [run_fact(RunClaimed, 1, run_id, claim_id="c"), run_fact(RunStarted, 2, run_id)]


def logged(*facts: Fact) -> list[Recorded]:
    return [
        Recorded(fact=fact, seq=10 * number, revision=number, position=100 + number, recorded_at=at(number))
        for number, fact in enumerate(facts, 1)
    ]


def run_after(*facts: Fact) -> RunRow | None:
    return fold(RUNS, logged(*facts)).get(("t", "r"))


def thread_after(*facts: Fact) -> ThreadRow:
    return fold(THREADS, logged(*facts))[("t",)]


def messages_after(*facts: Fact) -> list[MessageRow]:
    return list(fold(MESSAGES, logged(*facts)).values())


def said(message_id: str, content: Any, second: int = 5, run_id: str = "r") -> Fact:
    return run_fact(MessageRecorded, second, run_id, message_id=message_id, content=content, metadata={"k": content})


class TestRuns:
    def test_a_created_run_is_pending_and_carries_all_that_was_asked(self) -> None:
        row = run_after(created(kwargs={"z": 1, "a": "\x00"}, metadata={"m": 2}, model_name="gpt", user_id="ann"))

        assert row is not None
        assert (row.status, row.attempt, row.created_seq, row.last_seq, row.position) == ("pending", 0, 10, 10, 101)
        assert row.kwargs == '{"z":1,"a":"\\u0000"}'
        assert row.snapshot().kwargs == {"z": 1, "a": "\x00"}
        assert (row.model_name, row.user_id, row.created_at, row.updated_at) == ("gpt", "ann", at(0), at(0))

    @pytest.mark.parametrize(
        ("last", "expected"),
        [
            (run_fact(RunClaimed, claim_id="c", attempt=3), {"status": "pending", "attempt": 3}),
            (run_fact(RunStarted, attempt=2), {"status": "running", "attempt": 2}),
            (run_fact(RunRequeued), {"status": "pending"}),
            (run_fact(RunCancelRequested), {"status": "pending"}),
            (
                run_fact(RunCompleted, interrupts={"x": [{"id": "i"}]}, checkpoint_id="cp"),
                {"status": "success", "interrupts": '{"x":[{"id":"i"}]}', "checkpoint_id": "cp"},
            ),
            (
                run_fact(RunFailed, error="a\x00b", error_type="Boom"),
                {"status": "error", "error": "a\x00b", "error_type": "Boom"},
            ),
            (
                run_fact(RunFailed, status=RunStatus.TIMEOUT, error="slow"),
                {"status": "timeout", "error": "slow", "error_type": "Error"},
            ),
            (run_fact(RunCancelled, action=CancelAction.INTERRUPT), {"status": "interrupted"}),
        ],
        ids=lambda value: value.topic if isinstance(value, Fact) else "",
    )
    def test_each_fact_changes_what_it_is_about_and_the_time(self, last: Fact, expected: dict[str, Any]) -> None:
        before, after = run_after(created()), run_after(created(), last)

        assert before is not None
        assert after == replace(before, **expected, updated_at=at(1), last_seq=20, position=102)

    def test_messages_and_traces_leave_the_run_alone(self) -> None:
        noted = run_fact(EventRecorded, event_type="tool")

        assert run_after(created(), said("m", 1), noted) == run_after(created())

    @pytest.mark.parametrize(
        "tombstone",
        [
            run_fact(RunDeleted),
            ThreadDeleted(thread_id="t", occurred_at=AT),
            ThreadErased(thread_id="t", occurred_at=AT),
        ],
        ids=lambda fact: fact.topic,
    )
    def test_a_deleted_run_leaves_and_nothing_brings_it_back(self, tombstone: Fact) -> None:
        assert run_after(created(), tombstone) is None
        assert run_after(created(), tombstone, run_fact(RunCompleted)) is None

    def test_the_facts_of_other_threads_and_runs_do_not_matter(self) -> None:
        elsewhere = ThreadDeleted(thread_id="other", occurred_at=AT)

        assert run_after(created(), elsewhere, run_fact(RunDeleted, run_id="r2")) == run_after(created())


class TestMessages:
    def test_an_edited_message_is_one_entry_at_the_seq_of_its_newest_version(self) -> None:
        (row,) = messages_after(created(), said("m", "first"), said("m", "second"))

        assert (row.first_seq, row.seq, row.content, row.metadata) == (20, 30, '"second"', '{"k":"second"}')
        assert row.created_at == at(3)

    def test_each_run_keeps_its_version_of_a_message(self) -> None:
        rows = messages_after(said("m", 1, run_id="r1"), said("m", 2, run_id="r2"))

        assert [(row.run_id, row.content) for row in rows] == [("r1", "1"), ("r2", "2")]

    def test_deleting_the_run_that_edited_a_message_leaves_what_was_there_before(self) -> None:
        (row,) = messages_after(said("m", 1, run_id="r1"), said("m", 2, run_id="r2"), run_fact(RunDeleted, run_id="r2"))

        assert (row.run_id, row.content) == ("r1", "1")

    def test_a_deleted_thread_takes_its_messages_and_a_new_one_of_its_id_has_its_own(self) -> None:
        gone = ThreadDeleted(thread_id="t", occurred_at=AT)

        (row,) = messages_after(said("m", 1), gone, CREATED, said("m", 2))

        assert (row.first_seq, row.content) == (40, "2")

    def test_a_removal_is_the_newest_version_until_the_message_is_recorded_again_or_its_run_deleted(self) -> None:
        removed = run_fact(MessageRemoved, run_id="r2", message_id="m", reason="why")
        before, gone = messages_after(said("m", 1, run_id="r1"), removed)
        assert (before.removed, before.content) == (False, "1")
        assert (gone.removed, gone.run_id, gone.seq, gone.content, gone.event_type) == (True, "r2", 20, "null", "")

        _, again = messages_after(said("m", 1, run_id="r1"), removed, said("m", 2, run_id="r2"))
        assert (again.removed, again.first_seq, again.content) == (False, 20, "2")
        assert messages_after(said("m", 1, run_id="r1"), removed, run_fact(RunDeleted, run_id="r2")) == [before]

    def test_a_removed_message_has_been_paid_for(self) -> None:
        spoken = said("m", {"usage_metadata": {"input_tokens": 3}})
        facts = logged(spoken, run_fact(MessageRemoved, message_id="m"))

        (row,) = fold(USAGE, facts).values()
        assert row.input_tokens == 3


class TestThreads:
    def test_a_created_thread_is_idle(self) -> None:
        row = thread_after(CREATED)

        assert (row.status, row.user_id, row.created_at, row.state_updated_at) == ("idle", "ann", AT, None)
        assert row.snapshot().metadata == {"a": 1}

    def test_metadata_is_merged_key_by_key(self) -> None:
        row = thread_after(CREATED, ThreadUpdated(thread_id="t", occurred_at=at(3), metadata={"b": 2, "a": {"x": 1}}))

        assert row.snapshot().metadata == {"a": {"x": 1}, "b": 2}
        assert row.updated_at == at(3)

    def test_it_is_busy_while_any_run_is_in_flight(self) -> None:
        first, second = created("r1"), created("r2")
        ended = run_fact(RunCompleted, 3, "r1")

        assert thread_after(CREATED, first).status == "busy"
        row = thread_after(CREATED, first, second, *claimed("r1"), ended)
        assert (row.status, row.active) == ("busy", (("r2", 0),))
        assert row.state_updated_at == at(3)

    @pytest.mark.parametrize(
        ("last", "status", "error"),
        [
            (run_fact(RunCompleted, 3), "idle", None),
            (run_fact(RunCompleted, 3, interrupts={"task": [{"id": "i"}]}), "interrupted", None),
            (run_fact(RunFailed, 3, error="no", error_type="Boom"), "error", {"error": "Boom", "message": "no"}),
            (
                run_fact(RunFailed, 3, status=RunStatus.TIMEOUT, error="slow"),
                "error",
                {"error": "Error", "message": "slow"},
            ),
            (run_fact(RunCancelled, 3), "interrupted", {"error": "UserInterrupt", "message": "run cancelled"}),
        ],
        ids=["success", "paused", "error", "timeout", "cancelled"],
    )
    def test_what_the_last_run_came_to_is_what_the_thread_is(
        self, last: Fact, status: str, error: dict[str, str] | None
    ) -> None:
        snapshot = thread_after(CREATED, created(), *claimed(), last).snapshot()

        assert (snapshot.status, snapshot.error, snapshot.state_updated_at) == (status, error, at(3))

    def test_a_pause_shows_what_is_asked_until_the_next_run_ends(self) -> None:
        asked = {"task": [{"id": "i", "value": {"q": "\x00"}}]}
        paused = [CREATED, created(), *claimed(), run_fact(RunCompleted, 3, interrupts=asked)]

        assert thread_after(*paused).snapshot().interrupts == asked
        resumed = [*paused, created("r2"), *claimed("r2"), run_fact(RunCompleted, 9, "r2")]
        assert thread_after(*resumed).snapshot().interrupts == {}

    @pytest.mark.parametrize(
        "before",
        [
            [],
            [created(), *claimed(), run_fact(RunCompleted, 3, interrupts={"task": [{"id": "i", "value": 1}]})],
            [created(), *claimed(), run_fact(RunFailed, 3)],
        ],
        ids=["new", "paused", "failed"],
    )
    @pytest.mark.parametrize("deleted", [False, True])
    def test_a_run_that_is_cancelled_before_it_began_leaves_the_thread_as_it_was(
        self, before: list[Fact], deleted: bool
    ) -> None:
        was = thread_after(CREATED, *before)
        gone = [run_fact(RunDeleted, 9, "r2")] if deleted else []
        facts = [CREATED, *before, created("r2"), run_fact(RunCancelled, 9, "r2"), *gone]

        is_now = thread_after(*facts)
        moved = {"revision": is_now.revision, "position": is_now.position, "updated_at": is_now.updated_at}
        assert is_now == replace(was, **moved)
        assert Thread.fold("t", facts).status == is_now.status

    def test_a_run_that_is_cancelled_between_two_attempts_has_begun(self) -> None:
        lost = [run_fact(RunRequeued, 3, attempt=1), run_fact(RunCancelled, 4, attempt=0)]

        assert thread_after(CREATED, created(), *claimed(), *lost).status == "interrupted"

    def test_deleting_the_run_that_ended_last_makes_the_thread_idle(self) -> None:
        failed = [CREATED, created(), *claimed(), run_fact(RunFailed, 3)]

        row = thread_after(*failed, run_fact(RunDeleted, 4))
        assert (row.status, row.error, row.interrupts) == ("idle", None, "{}")

    def test_deleting_a_run_in_flight_gives_back_what_was_before_it(self) -> None:
        failed = [CREATED, created(), *claimed(), run_fact(RunFailed, 3)]

        row = thread_after(*failed, created("r2"), run_fact(RunDeleted, 5, "r2"))
        assert row.status == "error"

    def test_a_thread_id_created_again_starts_anew(self) -> None:
        gone = ThreadDeleted(thread_id="t", occurred_at=at(4))
        before = [CREATED, created(), *claimed(), run_fact(RunFailed, 3), gone]

        assert fold(THREADS, logged(*before)) == {}
        row = thread_after(*before, replace(CREATED, metadata={"new": 1}))
        assert (row.status, row.error, row.state_updated_at, row.metadata) == ("idle", None, None, '{"new":1}')


class TestStoredText:
    @pytest.mark.parametrize("text", ["", "plain", "\x00", "a\x00\x00b", "\ufdd0", "\ufdd00", "\ufdd01\x00", "\\u0000"])
    def test_any_text_comes_back(self, text: str) -> None:
        assert "\x00" not in storable(text)
        assert original(storable(text)) == text

    def test_different_texts_stay_different(self) -> None:
        texts = ["\x00", "\ufdd0", "\ufdd00", "\ufdd01", "0", "1", ""]

        assert len({storable(text) for text in texts}) == len(texts)

    def test_searchable_json_has_no_nul_in_values_or_keys(self) -> None:
        assert searchable('{"a\\u0000":["\\u0000",1]}') == '{"a\ufdd00":["\ufdd00",1]}'
        assert searchable('{"a":"\\\\u0000"}') == '{"a":"\\\\u0000"}'

    def test_a_moment_is_the_same_in_any_offset(self) -> None:
        assert utc("2026-01-02T03:04:05+02:00") == "2026-01-02T01:04:05+00:00"
        assert utc("2026-01-02T03:04:05+00:00") == "2026-01-02T03:04:05+00:00"
        assert utc("0001-01-01T00:00:00+14:00") == "0001-01-01T00:00:00+00:00"


class TestTable:
    def test_columns_must_be_the_fields_of_the_row(self) -> None:
        with pytest.raises(ValueError, match="must be the fields of ThreadRow"):
            Table(name="x", row=ThreadRow, key=("thread_id",), columns=(Column("thread_id", TEXT),))

    def test_the_key_must_begin_with_the_thread(self) -> None:
        columns = tuple(Column(column.name, INT if column.name == "run_id" else column.kind) for column in _stored())

        with pytest.raises(ValueError, match="must begin with thread_id and be text"):
            Table(name="x", row=RunRow, key=("run_id", "thread_id"), columns=_stored())
        with pytest.raises(ValueError, match="must begin with thread_id and be text"):
            Table(name="x", row=RunRow, key=("thread_id", "run_id"), columns=columns)


def _stored() -> tuple[Column, ...]:
    return RUNS.table.stored


def test_a_changed_row_is_as_replace_makes_it_and_the_old_one_stays() -> None:
    row = run_after(created())
    assert row is not None
    before = replace(row)

    after = changed(row, status="error", last_seq=9)

    assert after == replace(before, status="error", last_seq=9)
    assert row == before
    with pytest.raises(TypeError, match="RunRow has no field stauts"):
        changed(row, stauts="error")

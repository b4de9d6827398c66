"""A projection that stopped: what can be seen of it, and how an operator lets it go on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from runs_es.domain import SYSTEM_THREAD, ProjectionRetried, ProjectionSkipped, Provenance, Recorded, StoreUnavailable
from runs_es.execution.langgraph.reaper import NAME as CHECKPOINTS
from runs_es.log.append import Append, FactItem
from runs_es.log.event_log import EventLog
from runs_projections import (
    PROJECTIONS,
    LiveProjector,
    ProjectedRows,
    feed,
    filling,
    fold,
    interventions,
    rebuild,
    status,
    tracking,
)
from runs_projections.filling import RebuildFailed
from runs_projections.interventions import NotStopped
from runs_projections.projection import AnyProjection
from runs_projections.status import ProjectionStatus
from runs_projections.threads import THREADS
from tests.projections.comparing import all_facts, folded, positions, stored
from tests.projections.following import following
from tests.projections.test_live import append_one, append_strange, copied, created
from tests.projections.test_rebuild import until

ANN = Provenance(actor="shell:ann", reason="a trial")


def statuses(log: EventLog, projections: tuple[AnyProjection, ...] = PROJECTIONS) -> dict[str, ProjectionStatus]:
    with tracking.connect(log.url, log.schema, "test") as connection:
        return {each.name: each for each in status.read(connection, log.schema, projections)}


def test_an_unknown_topic_is_passed_over_where_an_operator_says_so(log: EventLog, projector: LiveProjector) -> None:
    append_one(log, created("before"))
    strange = append_strange(log, "strange")
    last = append_one(log, created("after"))
    until(lambda: projector.failures.keys() == {each.name for each in PROJECTIONS})
    assert {each.state for each in statuses(log).values()} == {"stopped"}

    for projection in PROJECTIONS:
        assert interventions.skip(log, projection, ANN) == strange

    until(lambda: projector.wait_for(last, 0.1))
    assert projector.failures == {}
    assert sorted(stored(log)["threads"]) == [("after",), ("before",)]
    assert {(each.state, each.reason) for each in statuses(log).values()} == {("live", None)}
    # On record: what, who, why. And a rebuild passes over it too.
    facts = log.reader.facts(SYSTEM_THREAD)
    assert {fact.fact.projection for fact in facts if isinstance(fact.fact, ProjectionSkipped)} == {
        each.name for each in PROJECTIONS
    }
    assert {fact.provenance for fact in facts} == {ANN}
    before = stored(log)
    rebuild(log)
    assert stored(log) == before
    assert rebuild(log, verify=True).differences == ()


def append_garbled(log: EventLog, thread_id: str) -> int:
    """A message that no version could read, in a thread of its own."""
    append_one(log, created(thread_id))
    item = FactItem("message.recorded", "r", b'{"garbled": true}')
    position = log.writer.submit(Append(thread_id, [item], expected=1)).result(30).position
    assert position is not None
    return position


def test_a_fact_that_cannot_be_read_stops_only_those_that_want_it(log: EventLog, projector: LiveProjector) -> None:
    append_garbled(log, "t1")  # the last fact of all, then one in between
    until(lambda: projector.failures.keys() == {"messages", "usage"})
    garbled = append_garbled(log, "t2")
    assert projector.wait_for(garbled, 10, ["runs", "threads"])
    last = append_one(log, created("after"))

    assert projector.wait_for(last, 10, ["runs", "threads"])
    assert projector.failures.keys() == {"messages", "usage"}
    assert sorted(stored(log)["threads"]) == [("after",), ("t1",), ("t2",)]


def test_a_rebuild_reads_only_what_its_projection_wants(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it catches up: here with all of the log, for as long as nothing is there to be filled."""
    monkeypatch.setattr(feed, "last_position", lambda _: 0)
    monkeypatch.setattr(filling, "check_same_log", lambda *_: None)
    append_one(log, created("t0"))
    garbled = [append_garbled(log, f"t{number}") for number in (1, 2)]
    last = append_one(log, created("t3"))
    with tracking.connect(log.url, log.schema, "test") as connection:
        tracking.ensure(connection, log.schema, PROJECTIONS)
        connection.execute("update tracking set position = %s", (last,))

    for batch in (1, 2, 100):
        rebuild(log, ["threads"], batch=batch)
        assert sorted(stored(log)["threads"]) == [("t0",), ("t1",), ("t2",), ("t3",)]
    with pytest.raises(RebuildFailed, match=f"messages cannot take .* position {garbled[0]}: ValueError"):
        rebuild(log, ["messages"])
    monkeypatch.undo()
    with pytest.raises(RebuildFailed, match=f"messages cannot take .* position {garbled[0]}: ValueError"):
        rebuild(log, ["messages"], restart=True)


def test_only_the_projection_that_is_told_so_passes_over_a_fact(log: EventLog, projector: LiveProjector) -> None:
    strange = append_strange(log, "strange")
    last = append_one(log, created("after"))
    until(lambda: len(projector.failures) == len(PROJECTIONS))

    interventions.skip(log, THREADS, ANN)

    until(lambda: projector.wait_for(last, 0.1, ["threads"]))
    assert positions(log)["runs"] == strange - 1
    assert statuses(log)["runs"].state == "stopped"


def test_a_retry_goes_on_where_the_cause_was_mended(log: EventLog) -> None:
    mended = False

    def picky(row: Any, recorded: Recorded) -> Any:
        if recorded.fact.thread_id == "bad" and not mended:
            raise RuntimeError("cannot digest this\x00")
        return THREADS.evolve(row, recorded)

    with copied(log, THREADS, evolve=picky) as broken:
        everything = (*PROJECTIONS, broken)
        bad = append_one(log, created("bad"))
        last = append_one(log, created("after"))
        with LiveProjector(log, everything) as projector:
            until(lambda: broken.name in projector.failures)
            seen = statuses(log, everything)[broken.name]
            assert (seen.state, seen.failed_position) == ("stopped", bad)
            assert seen.reason == "RuntimeError: cannot digest this\x00"
            assert not seen.is_led
            assert statuses(log, everything)["threads"].is_led

            interventions.retry(log, broken, ANN)  # too early
            until(lambda: statuses(log, everything)[broken.name].failed_at != seen.failed_at)
            mended = True
            interventions.retry(log, broken, ANN)

            until(lambda: projector.wait_for(last, 0.1, [broken.name]))
            assert statuses(log, everything)[broken.name].reason is None
            kinds = [type(each.fact) for each in log.reader.facts(SYSTEM_THREAD)]
        assert kinds == [ProjectionRetried, ProjectionRetried]
        assert stored(log, (broken,))[broken.name] == fold(THREADS, all_facts(log))


def test_a_projection_whose_table_cannot_be_made_stops_alone(log: EventLog) -> None:
    table = replace(THREADS.table, name="unmade_v1", migrated=False, indexes=("unmade(thread_id)",))
    unmade = replace(THREADS, name="unmade", table=table)
    everything = (*PROJECTIONS, unmade)
    with LiveProjector(log, everything) as projector:
        last = append_one(log, created("t"))
        assert projector.wait_for(last, 10, [each.name for each in PROJECTIONS])
        until(lambda: statuses(log, everything)["unmade"].state == "stopped")
        reason = statuses(log, everything)["unmade"].reason
        assert reason is not None
        assert "UndefinedFunction" in reason

        with psycopg.connect(log.url, autocommit=True) as connection:
            connection.execute(
                "create function runs_es.unmade(text) returns text language sql immutable as 'select $1'"
            )
        interventions.retry(log, unmade, ANN)

        until(lambda: projector.wait_for(last, 0.1, ["unmade"]))
    assert sorted(stored(log, (unmade,))["unmade"]) == [("t",)]


def test_a_rebuild_says_whose_rows_cannot_be_stored(log: EventLog) -> None:
    def careless(row: Any, recorded: Recorded) -> Any:
        made = THREADS.evolve(row, recorded)
        return None if made is None else replace(made, user_id=object())

    append_one(log, created("t"))
    with (
        copied(log, THREADS, evolve=careless) as broken,
        pytest.raises(RebuildFailed, match=f"{broken.name} cannot take"),
    ):
        rebuild(log, [broken.name], projections=[broken])


def test_what_else_follows_the_log_is_no_read_model(log: EventLog) -> None:
    with log.reader.connection() as connection:
        connection.execute("insert into tracking (name, version, position) values (%s, 1, 0)", (CHECKPOINTS,))

    assert CHECKPOINTS not in statuses(log)
    assert CHECKPOINTS in tracking.RESERVED


def test_a_process_that_only_follows_later_knows_what_to_pass_over(log: EventLog) -> None:
    append_strange(log, "strange")
    last = append_one(log, created("after"))
    with LiveProjector(log) as projector:
        until(lambda: len(projector.failures) == len(PROJECTIONS))
    for projection in PROJECTIONS:
        interventions.skip(log, projection, ANN)

    with following(log.url), LiveProjector(log) as second:
        assert second.wait_for(last, 20)


def test_what_has_not_stopped_is_neither_tried_again_nor_passed_over(log: EventLog, projector: LiveProjector) -> None:
    assert projector.wait_for(append_one(log, created("t")), 10)

    for decide in (interventions.retry, interventions.skip):
        with pytest.raises(NotStopped, match="threads has not stopped"):
            decide(log, THREADS, ANN)
    assert log.reader.facts(SYSTEM_THREAD) == []


def test_a_fact_that_is_skipped_by_one_version_is_the_next_ones_to_try(log: EventLog) -> None:
    strange = append_strange(log, "strange")
    with LiveProjector(log) as projector:
        until(lambda: "threads" in projector.failures)
        interventions.skip(log, THREADS, ANN)
    with tracking.connect(log.url, log.schema, "test") as connection:
        assert interventions.skips(connection, [THREADS]) == {"threads": {strange}}
        assert interventions.skips(connection, [replace(THREADS, version=3)]) == {}


def test_two_versions_live_side_by_side(log: EventLog) -> None:
    """A rolling deploy: each process follows the version it has, and neither disturbs the other."""

    def shouting(row: Any, recorded: Recorded) -> Any:
        made = THREADS.evolve(row, recorded)
        return replace(made, user_id="SOMEBODY") if made is not None else None

    append_one(log, created("t1"))
    table = replace(THREADS.table, name="threads_v3", migrated=False)
    second = replace(THREADS, version=3, table=table, evolve=shouting)
    newer = (*(each for each in PROJECTIONS if each.name != "threads"), second)
    rebuild(log, ["threads"], projections=newer)
    with EventLog(log.url) as other, LiveProjector(log) as old, LiveProjector(other, newer) as new:
        last = append_one(log, created("t2"))
        assert old.wait_for(last, 20)
        assert new.wait_for(last, 20)
        assert "threads" in old.leads & new.leads

        rebuild(log, ["threads"], projections=newer)

        last = append_one(log, created("t3"))
        assert old.wait_for(last, 20)
        assert new.wait_for(last, 20)
    assert stored(log) == folded(log)
    rows = stored(log, (second,))["threads"]
    assert sorted(rows) == [("t1",), ("t2",), ("t3",)]
    assert {row.user_id for row in rows.values()} == {"SOMEBODY"}
    seen = statuses(log)
    assert seen["threads"].version in (2, 3)
    assert "left behind" in {each.state for each in statuses(log).values()} | {seen["threads"].state}


def test_a_version_that_is_not_made_yet_is_not_read(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_SHORT", 2)
    append_one(log, created("t1"))
    append_one(log, created("t2"))
    second = replace(THREADS, version=3, table=replace(THREADS.table, name="threads_v3", migrated=False))
    with tracking.connect(log.url, log.schema, "test") as connection:
        tracking.ensure(connection, log.schema, [second])
    reader = ProjectedRows(log, second, wait=0.1)

    with pytest.raises(StoreUnavailable, match="version 3 of the read model threads is being made for the first time"):
        reader.all()
    rebuild(log, ["threads"], projections=[second])

    rows = reader.all()
    assert [row.thread_id for row in rows] == ["t1", "t2"]
    append_one(log, created("t3"))
    assert not reader.all().current


def test_a_version_is_read_once_a_live_driver_has_made_it(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_SHORT", 0)
    last = append_one(log, created("t1"))
    with LiveProjector(log) as projector:
        assert projector.wait_for(last, 20)
        with tracking.connect(log.url, log.schema, "test") as connection:
            until(lambda: all(each.is_built for each in tracking.stands(connection, PROJECTIONS).values()))

"""External workers: a database whose acknowledgement is lost, and leases when two act at the same moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runs_es.domain import Run
from runs_es.domain.values import RunStatus
from runs_es.execution.external import Claimed, Content, Ending, ExternalAssistants, ExternalRuns, LeaseSweep, Stated
from runs_es.log.append import Append, FactItem
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.run_writer import MAX_PAGE_BYTES
from tests.conftest import new_folder
from tests.log.cutting_proxy import CuttingProxy

MESSAGES = [{"id": f"m{number}", "type": "ai", "content": "the lost one"} for number in range(2)]
FRAME = b'"' + b"x" * (MAX_PAGE_BYTES // 2) + b'"'
FRAMES = [("custom", FRAME), ("custom", FRAME), ("custom", b'"the lost one"')]


def pending_run(decisions: Decisions, run_id: str = "r1", thread_id: str = "t1") -> Run:
    """A run of `parrot`, recorded."""
    run = Run.create(run_id=run_id, thread_id=thread_id, assistant_id="parrot")
    facts = run.pull_events()
    decisions.make(thread_id, lambda thread, _: Decision([thread.create(), *facts]))
    return run


@pytest.mark.parametrize(
    "content", [Content(messages=MESSAGES), Content(frames=FRAMES[2:]), Content(messages=MESSAGES, frames=FRAMES)]
)
def test_a_write_whose_acknowledgement_was_lost_has_landed_once(database_url: str, content: Content) -> None:
    with new_folder() as folder, CuttingProxy(database_url, folder) as proxy, EventLog(proxy.url) as log:
        decisions = Decisions(log)
        pending_run(decisions)
        external = ExternalRuns(
            log,
            decisions,
            ExternalAssistants(["parrot"], str),
            waiting=lambda _: ["t1"],
            wake=lambda _: None,
        )
        claim = external.claim({"parrot"}, "w", 30)
        assert claim is not None
        stated = Stated("r1", claim.claim_id, claim.fence, claim.frames)
        proxy.arm(b"the lost one")
        written = external.append(stated, content)
        assert proxy.cuts == 1
        assert written.frames == claim.frames + len(content.frames)
        again = external.append(stated, content)
        assert (again.frames, again.seq) == (written.frames, written.seq)
        ended = external.finish(
            Stated("r1", claim.claim_id, written.fence, written.frames), Content(), Ending(RunStatus.SUCCESS)
        )
        assert ended.status is RunStatus.SUCCESS
        rows = log.reader.rows_after("t1", 0, 100)
    topics = [row.topic for row in rows]
    assert topics.count("message.recorded") == len(content.messages)
    pages = [row for row in rows if row.is_page][1:]
    assert sum(len(row.bodies) for row in pages) == len(content.frames)
    assert all(len(b"".join(row.bodies)) <= MAX_PAGE_BYTES + 100 for row in pages)
    assert topics[-1] == "run.completed"


def external_over(log: EventLog, *threads: str) -> tuple[ExternalRuns, LeaseSweep]:
    """What a server has for external workers, without anything that runs by itself. Work waits in `threads`."""
    decisions, waiting = Decisions(log), list(threads or ("t1",))
    external = ExternalRuns(
        log, decisions, ExternalAssistants(["parrot"], str), waiting=lambda _: waiting, wake=lambda _: None
    )
    return external, LeaseSweep(log, decisions, wake=lambda _: None, interval=60)


def expire(log: EventLog) -> None:
    with log.reader.connection() as connection:
        connection.execute("update leases set ends_at = now() - interval '1 second'")


def status(log: EventLog) -> RunStatus:
    run = Run.fold(each.fact for each in log.reader.run_facts("r1"))
    assert run is not None
    return run.status


def test_a_server_that_stood_still_before_its_claim_landed_leaves_no_run_that_nobody_watches(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventLog(database_url) as log:
        pending_run(Decisions(log))
        external, sweep = external_over(log)
        grant = external.leases.grant

        def stood_still(claim_id: str, **fields: Any) -> Any:
            granted = grant(claim_id, **fields)
            monkeypatch.setattr(external.leases, "grant", grant)
            expire(log)
            sweep.sweep()
            return granted

        monkeypatch.setattr(external.leases, "grant", stood_still)
        claim = external.claim({"parrot"}, "w", 30)
        assert claim is not None
        assert claim.lease_until > datetime.now(UTC)
        expire(log)  # its worker had gone long ago
        sweep.sweep()
        assert status(log) is RunStatus.PENDING


def test_of_two_equal_claims_through_two_servers_neither_takes_the_lease_from_the_other(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventLog(database_url) as log, EventLog(database_url) as other_log:
        pending_run(Decisions(log))
        (external, sweep), (other, _) = external_over(log), external_over(other_log)
        first: list[Claimed | None] = []
        grant = external.leases.grant

        def overtaken(claim_id: str, **fields: Any) -> Any:
            granted = grant(claim_id, **fields)
            monkeypatch.setattr(external.leases, "grant", grant)
            first.append(other.claim({"parrot"}, "w", 30, claim_id))
            return granted

        monkeypatch.setattr(external.leases, "grant", overtaken)
        assert external.claim({"parrot"}, "w", 30, "the-same-claim-id") is None
        again = external.claim({"parrot"}, "w", 30, "the-same-claim-id")
        assert first[0] is not None
        assert again is not None
        assert again.claim_id == first[0].claim_id
        expire(log)
        sweep.sweep()
        assert status(log) is RunStatus.PENDING


@pytest.mark.parametrize("word", ["append", "renew"])
def test_a_word_that_a_cancel_overtook_does_not_lengthen_the_grace(
    database_url: str, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    with EventLog(database_url) as log:
        decisions = Decisions(log)
        pending_run(decisions)
        external, sweep = external_over(log)
        claim = external.claim({"parrot"}, "w", 3600)
        assert claim is not None
        extend = external.leases.extend

        def overtaken(*arguments: Any, **fields: Any) -> Any:
            decisions.make("t1", lambda thread, _: Decision(thread.cancel("r1")))
            sweep.sweep()
            return extend(*arguments, **fields)

        monkeypatch.setattr(external.leases, "extend", overtaken)
        stated = Stated("r1", claim.claim_id, claim.fence, claim.frames)
        if word == "append":
            assert external.append(stated, Content(frames=FRAMES[2:])).lease_until is None
        else:
            assert external.renew(stated)[1] == "interrupt"
        until = external.leases.until(claim.claim_id)
        assert until is not None
        assert until < datetime.now(UTC) + timedelta(seconds=60)


def test_a_thread_that_cannot_be_read_keeps_no_other_from_being_claimed_or_swept(database_url: str) -> None:
    with EventLog(database_url) as log:
        pending_run(Decisions(log), "r0", "t0")
        pending_run(Decisions(log))
        external, sweep = external_over(log, "t0", "t1")
        assert external.claim({"parrot"}, "w", 30) is not None
        newer = FactItem("of.a.newer.version", "r0", b"{}", raises_fence=True)
        head = log.reader.head("t0")
        assert head is not None
        log.writer.submit(Append("t0", [newer], expected=head.revision)).result(30)
        claim = external.claim({"parrot"}, "w", 30)
        assert claim is not None
        assert claim.run.run_id == "r1"
        expire(log)
        sweep.sweep()
        assert status(log) is RunStatus.PENDING

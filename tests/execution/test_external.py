"""External workers' writes when it is the database whose acknowledgement is lost."""

from __future__ import annotations

import pytest

from runs_es.domain import Run
from runs_es.domain.values import RunStatus
from runs_es.execution.external import Content, Ending, ExternalAssistants, ExternalRuns, Stated
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.run_writer import MAX_PAGE_BYTES
from tests.conftest import new_folder
from tests.log.cutting_proxy import CuttingProxy

MESSAGES = [{"id": f"m{number}", "type": "ai", "content": "the lost one"} for number in range(2)]
FRAME = b'"' + b"x" * (MAX_PAGE_BYTES // 2) + b'"'
FRAMES = [("custom", FRAME), ("custom", FRAME), ("custom", b'"the lost one"')]


def pending_run(decisions: Decisions) -> Run:
    """A run of `parrot`, recorded."""
    run = Run.create(run_id="r1", thread_id="t1", assistant_id="parrot")
    facts = run.pull_events()
    decisions.make("t1", lambda thread, _: Decision([thread.create(), *facts]))
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

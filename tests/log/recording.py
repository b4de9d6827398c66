"""A run being written, and a log that was made long ago; for tests of retention and of following a run."""

from __future__ import annotations

import uuid
from typing import Any

from psycopg import Connection

from runs_es.domain import Run, ThreadCreated, now
from runs_es.log.event_log import EventLog
from runs_es.log.pages import frame
from runs_es.log.run_writer import RunWriter


class Recording:
    """A run in a thread of its own, being written."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.thread_id = str(uuid.uuid4())
        created = ThreadCreated(thread_id=self.thread_id, occurred_at=now())
        self.run = Run.create(run_id=str(uuid.uuid4()), thread_id=self.thread_id, assistant_id="a")
        self.run.mark_claimed(claim_id="c")
        self.run.mark_started()
        claimed = log.append(self.thread_id, [created, *self.run.pull_events()], expected=0).result(10)
        self.writer = RunWriter(
            log.writer, thread_id=self.thread_id, run_id=self.run.run_id, fence=claimed.fence, frames=claimed.frames
        )

    def publish(self, count: int = 1, text: str = "x") -> int:
        """Frames, durable; the last one's seq."""
        self.writer.publish(*(frame("custom", b'"%b"' % text.encode()) for _ in range(count)))
        last = self.writer.last()
        assert last is not None
        return last.result(20).last_seq

    def finish(self, error: str | None = None) -> int:
        """End the run; its end's seq."""
        if error is None:
            self.run.mark_completed()
        else:
            self.run.mark_failed(error)
        return self.writer.record(*(self.log.item(fact) for fact in self.run.pull_events())).result(20).last_seq


def ended(log: EventLog, frames: int = 3) -> Recording:
    recording = Recording(log)
    recording.publish(frames)
    recording.finish()
    return recording


def made_older(connection: Connection[Any], days: float) -> None:
    """As if everything had been made so many days earlier."""
    connection.execute("update segments set created_at = created_at - %s * interval '1 day'", (days,))

"""Where a run waits for a worker: the queue of its assistant, and its priority there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from runs_es.domain import Run, Thread, recorded_priority
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.reader import Head

DEFAULT_QUEUE = "default"


class Place(NamedTuple):
    """A queue, and a priority from -100 to 100: higher ones are taken first."""

    queue: str = DEFAULT_QUEUE
    priority: int = 0


class Routes:
    """Assistants (ids or graph names) by queue; all others wait in `default`."""

    def __init__(self, queues: Mapping[str, Sequence[str]]) -> None:
        self._queue_of = {assistant: queue for queue, assistants in queues.items() for assistant in assistants}
        self.queues = frozenset(queues) | {DEFAULT_QUEUE}

    def queue_of(self, assistant_id: str | None, graph_id: str | None = None) -> str:
        """The assistant's own queue wins over its graph's."""
        return self._queue_of.get(assistant_id or "") or self._queue_of.get(graph_id or "") or DEFAULT_QUEUE

    def place(self, run: Run) -> Place:
        graph_id = run.metadata.get("graph_id")
        queue = self.queue_of(run.assistant_id, graph_id if isinstance(graph_id, str) else None)
        return Place(queue, recorded_priority(run.kwargs.get("config") or {}))

    def takes(self, run: Run, queues: Collection[str]) -> bool:
        """Whether a worker of these queues executes it."""
        return self.place(run).queue in queues


def located(decisions: Decisions, routes: Routes) -> Callable[[str], Place | None]:
    """Where a thread's next due run waits, by the log as it is; None when it has none."""

    def locate(thread_id: str) -> Place | None:
        found: list[Place] = []

        def look(thread: Thread, _: Head) -> Decision:
            due = thread.next_due() if thread.exists else None
            found[:] = [routes.place(due)] if due is not None else []
            return Decision([])

        decisions.make(thread_id, look)
        return found[0] if found else None

    return locate

"""Where a run waits for a worker: the queue of its assistant, and its priority there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from runs_es.domain import Run, Thread, recorded_priority
from runs_es.execution.langgraph.graphs import assistant_id
from runs_es.log.decisions import Decision, Decisions
from runs_es.log.reader import Head

DEFAULT_QUEUE = "default"


class Place(NamedTuple):
    """A queue, and a priority from -100 to 100: higher ones are taken first.

    `assistants` are the names that the run's assistant goes by: a worker that serves named assistants takes those.
    """

    queue: str = DEFAULT_QUEUE
    priority: int = 0
    assistants: tuple[str, ...] = ()


class Routes:
    """Assistants (ids or graph names) by queue; all others wait in `default`.

    `served` are the assistants (ids or graph names) that this process executes; None means any.
    """

    def __init__(self, queues: Mapping[str, Sequence[str]], served: Iterable[str] | None = None) -> None:
        self.names = tuple(dict.fromkeys(served)) if served is not None else None
        # A run may know its assistant by either.
        self.served = frozenset({*self.names, *map(assistant_id, self.names)}) if self.names is not None else None
        self._queue_of = {assistant: queue for queue, assistants in queues.items() for assistant in assistants}
        self.queues = frozenset(queues) | {DEFAULT_QUEUE}

    def queue_of(self, assistant_id: str | None, graph_id: str | None = None) -> str:
        """The assistant's own queue wins over its graph's."""
        return self._queue_of.get(assistant_id or "") or self._queue_of.get(graph_id or "") or DEFAULT_QUEUE

    def place(self, run: Run) -> Place:
        graph_id = run.metadata.get("graph_id")
        queue = self.queue_of(run.assistant_id, graph_id if isinstance(graph_id, str) else None)
        return Place(queue, recorded_priority(run.kwargs.get("config") or {}), assistants_of(run))

    def takes(self, run: Run, queues: Collection[str]) -> bool:
        """Whether a worker of these queues executes it."""
        return self.serves(*assistants_of(run)) and self.place(run).queue in queues

    def serves(self, *names: str | None) -> bool:
        """Whether this process executes the assistant that goes by these names."""
        return self.served is None or not self.served.isdisjoint(names)


def assistants_of(run: Run) -> tuple[str, ...]:
    """The names that a run's assistant goes by: its id, and its graph where the request names one."""
    configurable = (run.kwargs.get("config") or {}).get("configurable") or {}
    named = (run.assistant_id, run.metadata.get("graph_id"), configurable.get("graph_id"))
    return tuple(dict.fromkeys(name for name in named if isinstance(name, str) and name))


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

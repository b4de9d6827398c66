"""What a webhook says: the run as it ended, folded from the log, so that every attempt says the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from runs_es.domain import TERMINAL_TOPICS, FramesGone, Run, RunStatus
from runs_es.execution.omissions import is_omission
from runs_es.log.reader import LogReader
from runs_es.service.application import last_values
from runs_es.service.views import RunSnapshot, run_body

# The values that an executor keeps of the state that a run left; None where there are none.
StateLeft: TypeAlias = Callable[[RunSnapshot], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run as it ended. `values` are the last that it streamed: None where there are none, or they are gone."""

    run: RunSnapshot
    started_at: str | None
    ended_at: str
    values: Any
    is_rolled_back: bool

    def body(self, values: Any, sent_at: str) -> bytes:
        """The JSON of the request."""
        fields: dict[str, Any] = {
            **run_body(self.run),
            "run_started_at": self.started_at,
            "run_ended_at": self.ended_at,
            "webhook_sent_at": sent_at,
            "values": values,
        }
        if self.run.status in (RunStatus.ERROR, RunStatus.TIMEOUT):
            fields["error"] = self.run.error or self.run.error_type or "Error"
        return orjson.dumps(fields, option=orjson.OPT_NON_STR_KEYS)


def ended_run(reader: LogReader, thread_id: str, run_id: str) -> EndedRun | None:
    """The run up to its terminal fact, whatever came after; None when it is erased."""
    facts = reader.run_facts(run_id, thread_id)
    last = next((place for place, each in enumerate(facts) if each.fact.topic in TERMINAL_TOPICS), None)
    run = None if last is None else Run.fold(each.fact for each in facts[: last + 1])
    if last is None or run is None:
        return None
    snapshot = RunSnapshot.from_run(run)
    values = None if run.is_rolled_back else _values(reader, snapshot, facts[last].seq)
    return EndedRun(snapshot, run.started_at, facts[last].fact.occurred_at, values, run.is_rolled_back)


def _values(reader: LogReader, run: RunSnapshot, last: int) -> Any:
    if "values" not in (run.kwargs.get("stream_mode") or ()):
        return None  # do not look through all frames for what is not there
    bounds = reader.bounds(run.thread_id, run.run_id)
    if bounds is None or bounds.started is None:
        return None
    try:
        values = last_values(reader, run.thread_id, run.run_id, bounds.started, last) or None
    except FramesGone:
        return None
    return None if is_omission(values) else values  # too large for a frame: the state has them

"""What differs between a run at two seqs, or between two runs: its fields, the messages it recorded, and the state that
its last `values` frame showed.

Places in JSON are named by JSON pointers (RFC 6901). Lists are compared place by place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias

import orjson

from runs_es.domain import RunNotFound
from runs_es.log.reader import LogReader
from runs_projections.events import list_events
from runs_projections.messages import MessageRow
from runs_projections.past import Past
from runs_projections.runs import RunRow

MOST_CHANGES = 1000  # of each kind, in one answer
Kind: TypeAlias = Literal["added", "removed", "changed"]

_FIELDS = ("assistant_id", "status", "attempt", "error", "error_type", "model_name", "multitask_strategy", "due_at")
_JSON_FIELDS = ("metadata", "kwargs", "interrupts")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference, at `path`. `before` of what was added and `after` of what was removed are None."""

    path: str
    kind: Kind
    before: Any = None
    after: Any = None


@dataclass(frozen=True, slots=True)
class MessageChange:
    """A message that one side has and the other has not, or that differs: `changes` says where in its content."""

    message_id: str
    kind: Kind
    event_type: str
    before: Any = None
    after: Any = None
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class RunAt:
    """A run as of a seq of its thread. `state` is None where no `values` frame had been streamed, or is kept."""

    row: RunRow
    seq: int
    messages: tuple[MessageRow, ...]
    state: Any


@dataclass(frozen=True, slots=True)
class RunDiff:
    """`truncated` when there was more than `MOST_CHANGES` of something."""

    before: RunAt
    after: RunAt
    run: tuple[Change, ...]
    messages: tuple[MessageChange, ...]
    state: tuple[Change, ...]
    truncated: bool

    @property
    def is_empty(self) -> bool:
        return not (self.run or self.messages or self.state)


def run_at(reader: LogReader, thread_id: str, run_id: str, seq: int) -> RunAt:
    """The run as of `seq`, with all that is compared. Raises RunNotFound where it was not there."""
    past = Past(reader)
    row = past.run_row(thread_id, run_id, seq)
    if row is None:
        raise RunNotFound(run_id)
    states = list_events(
        reader, thread_id, run_id, after_seq=None, before_seq=seq + 1, limit=1, types=("values",), upto=seq
    )
    messages = past.messages_of_run(thread_id, run_id, seq)
    return RunAt(row, seq, tuple(messages), states[0].content if states else None)


def diff(before: RunAt, after: RunAt) -> RunDiff:
    """What is different in `after`. Messages of one run are compared by their id, those of two by their order."""
    same_run = (before.row.thread_id, before.row.run_id) == (after.row.thread_id, after.row.run_id)
    run = _first(changes(_fields(before.row), _fields(after.row)))
    messages = _first(_message_changes(before.messages, after.messages, by_id=same_run))
    state = _first(changes(before.state, after.state))
    truncated = any(len(found) > MOST_CHANGES for found in (run, messages, state))
    return RunDiff(
        before, after, run[:MOST_CHANGES], messages[:MOST_CHANGES], state[:MOST_CHANGES], truncated=truncated
    )


def _first(found: Iterator[Any]) -> tuple[Any, ...]:
    """As many as are shown, and one to tell that there are more."""
    return tuple(islice(found, MOST_CHANGES + 1))


def _fields(row: RunRow) -> dict[str, Any]:
    plain = {name: getattr(row, name) for name in _FIELDS}
    return plain | {name: orjson.loads(getattr(row, name)) for name in _JSON_FIELDS}


def changes(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """What is different in JSON `after`, in the order of its keys."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            place = f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}"
            yield from _of_item(before, after, key, place, in_before=key in before, in_after=key in after)
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            sides = {"in_before": index < len(before), "in_after": index < len(after)}
            yield from _of_item(before, after, index, f"{path}/{index}", **sides)
    elif type(before) is not type(after) or before != after:
        yield Change(path, "changed", before, after)


def _of_item(before: Any, after: Any, key: Any, path: str, *, in_before: bool, in_after: bool) -> Iterator[Change]:
    if not in_before:
        yield Change(path, "added", after=after[key])
    elif not in_after:
        yield Change(path, "removed", before=before[key])
    else:
        yield from changes(before[key], after[key], path)


def _message_changes(
    before: Sequence[MessageRow], after: Sequence[MessageRow], *, by_id: bool
) -> Iterator[MessageChange]:
    old, new = (_keyed(rows, by_id=by_id) for rows in (before, after))
    for key in dict.fromkeys([*old, *new]):
        was, became = old.get(key), new.get(key)
        if was is None and became is not None:
            yield MessageChange(became.message_id, "added", became.event_type, after=orjson.loads(became.content))
        elif was is not None and became is None:
            yield MessageChange(was.message_id, "removed", was.event_type, before=orjson.loads(was.content))
        elif was is not None and became is not None:
            yield from _changed_message(was, became, by_id=by_id)


def _keyed(rows: Sequence[MessageRow], *, by_id: bool) -> dict[str, MessageRow]:
    return {row.message_id if by_id else str(place): row for place, row in enumerate(rows)}


def _changed_message(was: MessageRow, became: MessageRow, *, by_id: bool) -> Iterator[MessageChange]:
    before, after = (_said(row, by_id=by_id) for row in (was, became))
    found = tuple(islice(changes(before, after), MOST_CHANGES))
    if found:
        contents = orjson.loads(was.content), orjson.loads(became.content)
        yield MessageChange(became.message_id, "changed", became.event_type, *contents, changes=found)


def _said(row: MessageRow, *, by_id: bool) -> dict[str, Any]:
    """What is compared of a message. Ids of two runs never are the same, which says nothing."""
    content = orjson.loads(row.content)
    if not by_id and isinstance(content, Mapping):
        content = {key: value for key, value in content.items() if key != "id"}
    return {"type": row.event_type, "content": content, "metadata": orjson.loads(row.metadata)}

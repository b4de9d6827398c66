"""Facts to stored bytes and back, through a closed registry of topics.

What stands in the database is a topic, never a Python path: a row cannot make us import anything. A shape that changed
gets a new version and an upcast from the old one; stored rows are never rewritten, and every version that ever was has
a sample in tests/log/samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import orjson

from runs_es.domain import FACT_TYPES, EventCategory, EventRecorded, Fact, MessageRecorded, UnknownTopic
from runs_es.domain.facts import ENUMS, IDENTIFIERS
from runs_es.domain.values import checked_time

Upcast = Callable[[dict[str, Any]], dict[str, Any]]

_NOT_STORED = frozenset({"thread_id", "category"})
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS


class Codec:
    """A registry. `upcasts[topic, n]` makes the fields of version n + 1 of those of version n.

    A topic's current version is one more than its newest upcast's, and 1 without any. Raises ValueError for a gap.
    """

    def __init__(self, kinds: Iterable[type[Fact]], upcasts: Mapping[tuple[str, int], Upcast] | None = None) -> None:
        self._shapes = {kind.topic: _Shape(kind) for kind in kinds}
        self._upcasts = dict(upcasts or {})
        self._versions: dict[str, int] = {}
        for topic, version in sorted(self._upcasts):
            if topic not in self._shapes or version != self._versions.get(topic, 1):
                raise ValueError(
                    f"the upcasts of {topic} must go from 1 on without a gap, and of a topic that is known"
                )
            self._versions[topic] = version + 1

    @property
    def versions(self) -> dict[str, int]:
        """The current version of every topic."""
        return {topic: self._versions.get(topic, 1) for topic in self._shapes}

    def encode(self, fact: Fact) -> bytes:
        """The stored state of a fact. Raises ValueError, naming the topic, when a value cannot be JSON."""
        state: dict[str, Any] = {name: getattr(fact, name) for name in self._shapes[fact.topic].names}
        version = self._versions.get(fact.topic, 1)
        if version != 1:
            state["v"] = version
        try:
            return orjson.dumps(state, option=_OPTIONS)
        except orjson.JSONEncodeError as error:
            raise ValueError(f"{fact.topic} cannot be stored as JSON: {error}") from error

    def is_known(self, topic: str) -> bool:
        """Whether this version knows the topic."""
        return topic in self._shapes

    def decode(self, topic: str, state: bytes, thread_id: str) -> Fact:
        """The fact of a stored row.

        Raises UnknownTopic for a topic or version this code does not know, ValueError or TypeError for fields that
        make no fact of it.
        """
        shape = self._shapes.get(topic)
        if shape is None:
            raise UnknownTopic(f"topic {topic!r} is not known to this version")
        values: dict[str, Any] = orjson.loads(state)
        version = values.pop("v", 1)
        current = self._versions.get(topic, 1)
        if version != current:
            values = self._raised(topic, values, version, current)
        if "occurred_at" not in values:  # its default is for new facts, and would be another one at each reading
            raise ValueError(f"a stored {topic} does not say when it occurred")
        return shape.trusted(values, thread_id) or shape.kind(thread_id=thread_id, **values)

    def _raised(self, topic: str, values: dict[str, Any], version: int, current: int) -> dict[str, Any]:
        if version > current:
            raise UnknownTopic(f"topic {topic!r} has version {version}, this version knows {current}")
        while version < current:
            values = self._upcasts[topic, version](values)
            version += 1
        return values


_new, _set = object.__new__, object.__setattr__


class _Shape:
    """A kind of fact, and how to make one of fields that were checked before they were stored."""

    def __init__(self, kind: type[Fact]) -> None:
        self.kind = kind
        self.names = tuple(item.name for item in fields(kind) if item.name not in _NOT_STORED)
        self._keys = frozenset(self.names)
        self._ids = tuple(sorted(IDENTIFIERS & self._keys))
        enums = {**ENUMS, "kind": EventCategory} if kind is EventRecorded else ENUMS
        self._enums = tuple(
            (name, {member.value: member for member in enums[name]}) for name in self.names if name in enums
        )
        self._has_kind = kind is EventRecorded
        self._category = EventCategory.MESSAGE if kind is MessageRecorded else EventCategory.LIFECYCLE

    def trusted(self, values: dict[str, Any], thread_id: str) -> Fact | None:
        """The fact, if these are just the fields that `encode` writes; None where the constructor has to judge.

        Reading a log is mostly this, and the constructor takes four times as long.
        """
        if values.keys() != self._keys:
            return None
        for name in self._ids:
            text = values[name]
            if text is None and name in self.kind.optional:
                continue
            if type(text) is not str or not text or text != text.strip():
                return None
        for name, members in self._enums:
            value = values[name]
            if value is not None:
                if value not in members:
                    return None
                values[name] = members[value]
        values["occurred_at"] = checked_time("occurred_at", values["occurred_at"])
        values["thread_id"] = thread_id
        values["category"] = values["kind"] if self._has_kind else self._category
        fact = _new(self.kind)
        _set(fact, "__dict__", values)
        return fact


def _without_cause(values: dict[str, Any]) -> dict[str, Any]:
    """A requeue of before its cause was recorded."""
    unknown = {"cause": None, "worker_id": "", "silent_since": None, "due_at": None, "error": "", "error_type": ""}
    return {**values, **unknown}


def _without_traceback(values: dict[str, Any]) -> dict[str, Any]:
    """A failure of before tracebacks were recorded and errors could be hidden from clients."""
    return {**values, "traceback": "", "error_hidden": False}


# (topic, version) -> what makes the next version of its fields.
UPCASTS: dict[tuple[str, int], Upcast] = {
    ("run.requeued", 1): _without_cause,
    ("run.requeued", 2): _without_traceback,
    ("run.failed", 1): _without_traceback,
}

_REGISTRY = Codec(FACT_TYPES, UPCASTS)
encode = _REGISTRY.encode
decode = _REGISTRY.decode
is_known = _REGISTRY.is_known
versions = _REGISTRY.versions

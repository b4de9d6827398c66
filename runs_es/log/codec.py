"""Facts to stored bytes and back, through a closed registry of topics.

What stands in the database is a topic, never a Python path: a row cannot make us import anything. A shape that changed
gets a new version and an upcast from the old one; stored rows are never rewritten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import orjson

from runs_es.domain import FACT_TYPES, Fact, UnknownTopic

Upcast = Callable[[dict[str, Any]], dict[str, Any]]

_TYPES: dict[str, type[Fact]] = {kind.topic: kind for kind in FACT_TYPES}
# topic -> current version (1 where absent); (topic, version) -> what makes the next version of it.
_VERSIONS: dict[str, int] = {}
_UPCASTS: dict[tuple[str, int], Upcast] = {}
_NOT_STORED = frozenset({"thread_id", "category"})
_STATE_FIELDS: dict[str, tuple[str, ...]] = {
    topic: tuple(item.name for item in fields(kind) if item.name not in _NOT_STORED) for topic, kind in _TYPES.items()
}
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS


def encode(fact: Fact) -> bytes:
    """The stored state of a fact. Raises ValueError, naming the topic, when a value cannot be JSON."""
    state: dict[str, Any] = {name: getattr(fact, name) for name in _STATE_FIELDS[fact.topic]}
    version = _VERSIONS.get(fact.topic, 1)
    if version != 1:
        state["v"] = version
    try:
        return orjson.dumps(state, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"{fact.topic} cannot be stored as JSON: {error}") from error


def is_known(topic: str) -> bool:
    """Whether this version knows the topic."""
    return topic in _TYPES


def decode(topic: str, state: bytes, thread_id: str) -> Fact:
    """The fact of a stored row. Raises UnknownTopic for a topic or version this code does not know."""
    kind = _TYPES.get(topic)
    if kind is None:
        raise UnknownTopic(f"topic {topic!r} is not known to this version")
    values: dict[str, Any] = orjson.loads(state)
    version = values.pop("v", 1)
    current = _VERSIONS.get(topic, 1)
    if version > current:
        raise UnknownTopic(f"topic {topic!r} has version {version}, this version knows {current}")
    while version < current:
        values = _UPCASTS[topic, version](values)
        version += 1
    return kind(thread_id=thread_id, **values)

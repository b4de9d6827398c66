"""Stands in for a frame or a message that is too large to store: says so, how large it is, and where to read it.

A run goes on when its state outgrows a frame. Only the frame is replaced: the state itself is in its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OMITTED = "__omitted__"
_KEPT = ("type", "name", "role", "id", "tool_call_id", "status")
_EMPTY: dict[str, Any] = {"additional_kwargs": {}, "response_metadata": {}}
_MAX_CALLS = 100


def omission(size: int, limit: int, **more: Any) -> dict[str, Any]:
    """The words for something of `size` bytes, over `limit`; `more` says what and where it is."""
    return {"bytes": size, "limit": limit, "setting": "RUNS_ES_MAX_FRAME_BYTES", **more}


def is_omission(values: Any) -> bool:
    """Whether `values` of a frame stand in for larger ones."""
    return isinstance(values, Mapping) and OMITTED in values


def short_message(message: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A message without what makes it large: its content says how large it was. It is still a message to any client."""
    kept = {name: message[name] for name in _KEPT if name in message}
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        named = [each for each in calls[:_MAX_CALLS] if isinstance(each, Mapping)]
        kept["tool_calls"] = [
            {"name": _text(each.get("name")), "args": {}, "id": _text(each.get("id")), "type": "tool_call"}
            for each in named
        ]
    return {"content": f"[{size} bytes omitted]", **_EMPTY, **kept, OMITTED: {"bytes": size}}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:256]

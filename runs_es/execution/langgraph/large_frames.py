"""Frames in place of those that are too large: the same event, without what makes it large, and with the sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from runs_es.domain import LimitExceeded, Run
from runs_es.execution.langgraph.encoding import encode
from runs_es.execution.omissions import OMITTED, omission, short_message

_ROOM = 32 * 1024  # bytes, for what is said of the rest
_FRAME = 256  # bytes of a frame beside its data, at most
_MAX_NAMED = 100  # messages and channels that a replacement names, the largest first


def shortened_state(state: Any, messages: Sequence[bytes], error: LimitExceeded, run: Run) -> bytes:
    """A `values` frame with the largest messages and channels left out, as many as it takes.

    Messages stay in their places, each without its content (`short_message`); other channels are left out whole.
    `__omitted__` names what is missing, its bytes, and where the state can be read.
    """
    if not isinstance(state, Mapping):
        return shortened("values", b"null", error, run)
    others = {str(name): encode(value) for name, value in state.items() if name != "messages" or not messages}
    listed = list(messages)
    excess = error.size - error.limit + min(_ROOM, error.limit // 16)
    pieces: list[tuple[int, int | str]] = [(len(each), index) for index, each in enumerate(listed)]
    pieces += [(len(each), name) for name, each in others.items()]
    named: dict[str, dict[str, int]] = {"messages": {}, "channels": {}}
    for size, where in sorted(pieces, key=lambda piece: piece[0], reverse=True):
        if excess <= 0:
            break
        excess -= size
        if isinstance(where, int):
            known = orjson.loads(listed[where])
            short = short_message(known, size) if isinstance(known, dict) else {OMITTED: {"bytes": size}}
            listed[where] = encode(short)
            excess += len(listed[where])
            named["messages"][str(short.get("id") or where)] = size
        else:
            del others[where]
            named["channels"][where] = size
    said = {what: dict(list(sizes.items())[:_MAX_NAMED]) for what, sizes in named.items() if sizes}
    kept = {name: orjson.Fragment(each) for name, each in others.items()}
    if listed:
        kept["messages"] = orjson.Fragment(b"[%b]" % b",".join(listed))
    ordered = {str(name): kept[str(name)] for name in state if str(name) in kept}
    for words in ({**ordered, **_said(error, run, said)}, _said(error, run, said)):
        if len(replaced := encode(words)) < error.limit - _FRAME:
            return replaced
    return encode(_said(error, run))


def shortened(event: str, data: bytes, error: LimitExceeded, run: Run) -> bytes:
    """Any other frame. Messages of a `messages` event stay messages, without their content."""
    mode = event.partition("|")[0]
    if mode.partition("/")[0] == "messages" and mode != "messages/metadata":
        message, *rest = orjson.loads(data)
        if isinstance(message, dict):
            replaced = encode([{**short_message(message, len(data)), **_said(error, run)}, *rest])
            if len(replaced) < error.limit - _FRAME:
                return replaced
    return encode(_said(error, run))


def _said(error: LimitExceeded, run: Run, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    where = {"run_id": str(run.run_id), "thread_id": str(run.thread_id), "read": f"/threads/{run.thread_id}/state"}
    return {OMITTED: omission(error.size, error.limit, **where, **(more or {}))}

"""JSON of whatever a graph may hold: bytes on one line, and never an error.

A value that JSON has no word for becomes text. A frame that says a little less is better than a run that fails because
somebody put a socket into the state.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import orjson
from langchain_core.messages import BaseMessage
from langgraph.types import Send
from pydantic import BaseModel

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_MAX_DEPTH = 100
_INTEGERS = range(-(2**63), 2**64)


def encode(value: Any) -> bytes:
    """`value` as one line of JSON."""
    try:
        return orjson.dumps(value, _as_json, _OPTIONS)
    except (TypeError, RecursionError):
        return _encode_leniently(value)


def plain(value: Any) -> Any:
    """`value` as what `json.loads` would give: safe to hand to code that knows nothing of LangGraph."""
    return orjson.loads(encode(value))


def _as_json(value: Any) -> Any:
    """What orjson asks for the types that it does not know."""
    try:
        return _reduced(value)
    except Exception:  # noqa: BLE001 - it may be anybody's property or serializer that failed
        return _text(value)


def _reduced(value: Any) -> Any:
    match value:
        case BaseMessage():
            return _message(value)
        case BaseModel():
            # A field declared as a base class (`list[AnyMessage]`, say) keeps what its subclass has.
            return value.model_dump(warnings=False, serialize_as_any=True)
        case tuple() if hasattr(value, "_asdict"):
            return value._asdict()
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case BaseException():
            return {"error": type(value).__name__, "message": str(value)}
        case Send():
            return {"node": value.node, "arg": value.arg}
        case timedelta():
            return value.total_seconds()
        case Decimal() | PurePath():
            return str(value)
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case Mapping():
            return dict(value)
        case Collection():
            return list(value)
    return value.tolist() if hasattr(value, "tolist") else _text(value)


def _message(message: BaseMessage) -> dict[str, Any]:
    """What a message holds. LangChain's own kinds are read field by field, at a third of the time of a dump."""
    kind = type(message)
    if kind.__module__.partition(".")[0] != "langchain_core":
        return message.model_dump(warnings=False)
    return {**{name: getattr(message, name) for name in _fields(kind)}, **(message.model_extra or {})}


@lru_cache(maxsize=256)
def _fields(kind: type[BaseMessage]) -> tuple[str, ...]:
    return tuple(kind.model_fields)


def _text(value: Any) -> str:
    try:
        return _valid(repr(value))
    except Exception:  # noqa: BLE001 - a broken __repr__ is no reason either
        return object.__repr__(value)


def _valid(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _encode_leniently(value: Any) -> bytes:
    """For what orjson refuses outright: cycles, depth, integers past 64 bits, lone surrogates, tuples as keys."""
    try:
        return orjson.dumps(_rebuilt(value, frozenset()), _as_json, _OPTIONS)
    except (TypeError, ValueError, RecursionError):
        return orjson.dumps(_text(value))


def _rebuilt(value: Any, above: frozenset[int]) -> Any:
    """A copy that orjson takes. `above` holds the containers that `value` is inside of."""
    match value:
        case None | bool() | float():
            return value
        case str():
            return _valid(value)
        case int():
            return value if value in _INTEGERS else orjson.Fragment(str(value))
    if id(value) in above or len(above) >= _MAX_DEPTH:
        return _text(value)
    above = above | {id(value)}
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {_key(key): _rebuilt(item, above) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_asdict"):
        return [_rebuilt(item, above) for item in value]
    try:
        return orjson.loads(orjson.dumps(value))
    except TypeError:
        return _rebuilt(_as_json(value), above)


def _key(key: Any) -> str:
    """The word that orjson itself would write for `key`, where it has one."""
    if isinstance(key, str):
        return _valid(key)
    try:
        (word,) = orjson.loads(orjson.dumps({key: None}, option=_OPTIONS))
    except TypeError:
        return _text(key)
    return str(word)

"""Text, JSON and times as PostgreSQL stores them.

`text` and `jsonb` refuse the NUL character, which JSON and the texts of errors may hold. A NUL is replaced by two
characters that begin with a Unicode noncharacter, and that noncharacter by two of its own, so two texts are equal
exactly when their stored forms are: searches and comparisons stay true. JSON that must come back byte for byte goes to
`json` columns instead, as it is: there a NUL stands as an escape and is no trouble.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

_MARK = "\ufdd0"
_NUL = _MARK + "0"
_ITSELF = _MARK + "1"


def storable(text: str) -> str:
    """`text` without NUL characters; `original` undoes it."""
    if "\x00" in text or _MARK in text:
        return text.replace(_MARK, _ITSELF).replace("\x00", _NUL)
    return text


def original(text: str) -> str:
    """What `storable` made `text` of."""
    if _MARK in text:
        return text.replace(_NUL, "\x00").replace(_ITSELF, _MARK)
    return text


def encoded(value: Any) -> str:
    """A JSON value as text, in the order of its keys."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def searchable(json: str) -> str:
    """JSON text for a `jsonb` column: every string in it, keys too, is `storable`."""
    if "\\u0000" not in json and _MARK not in json:
        return json
    return encoded(_storable_within(orjson.loads(json)))


def _storable_within(value: Any) -> Any:
    match value:
        case str():
            return storable(value)
        case dict():
            return {storable(key): _storable_within(item) for key, item in value.items()}
        case list():
            return [_storable_within(item) for item in value]
        case _:
            return value


def utc(time: str) -> str:
    """The same moment, ISO 8601 in UTC: what the log answers carries the offset of the session that read it."""
    if time.endswith("+00:00"):
        return time
    moment = datetime.fromisoformat(time)
    try:
        return moment.astimezone(UTC).isoformat()
    except OverflowError:  # an offset at the very end of the calendar
        return moment.replace(tzinfo=UTC).isoformat()


def moment_of(name: str) -> Callable[[Any], str | None]:
    """For a column that sorts by a row's time of this name: facts carry times with any offset, as text."""
    return lambda row: utc(time) if (time := getattr(row, name)) is not None else None

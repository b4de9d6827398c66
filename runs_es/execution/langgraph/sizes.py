"""Which of a saver's work is too small for a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import BaseCheckpointSaver

_SERIALIZES = frozenset({"_dump_blobs", "_dump_writes", "_load_writes"})
_MORE = ("tool_calls", "invalid_tool_calls", "artifact", "tool_call_chunks")  # of some kinds of message, of any size
_MAX_VALUES = 64
_MAX_LENGTH = 16_384  # characters or bytes in all


def is_quick(function: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    """Whether this is a saver that reads or writes a few plain values and messages: tens of microseconds.

    What a value is that is not plain, only its own type knows; that goes to a thread.
    """
    # Whatever agents hand to a thread comes by here: partials and callable objects have no name.
    if getattr(function, "__name__", None) not in _SERIALIZES:
        return False
    if not isinstance(getattr(function, "__self__", None), BaseCheckpointSaver):
        return False
    length = 0
    for values, size in enumerate(_sizes(arguments), 1):
        length += size
        if values > _MAX_VALUES or length > _MAX_LENGTH:
            return False
    return True


def _sizes(value: Any) -> Iterator[int]:
    """The length of each plain value in `value`; a large one for what is not plain. Stops looking with its reader."""
    match value:
        case str() | bytes():
            yield len(value)
        case None | bool() | int() | float():
            yield 0
        case BaseMessage():
            yield from _sizes((value.content, value.additional_kwargs, value.response_metadata))
            more = (*(getattr(value, name, None) for name in _MORE), value.__pydantic_extra__)
            yield from _sizes([each for each in more if each])
        case dict():
            for each in value.items():
                yield from _sizes(each)
        case list() | tuple() | set():
            for each in value:
                yield from _sizes(each)
        case _:
            yield _MAX_LENGTH + 1

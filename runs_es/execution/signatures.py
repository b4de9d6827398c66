"""What makes an async function an agent: that it takes the run's input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeGuard

AgentFunction = Callable[..., Any]


def is_agent_function(found: Any) -> TypeGuard[AgentFunction]:
    """Whether `found` is an async function or generator that can be called with the input, and needs it."""
    if not (inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found)):
        return False
    return not _binds(found, 0) and (_binds(found, 1) or _binds(found, 2))


def arguments_of(function: AgentFunction) -> int:
    """2 where it takes the `ActiveRun` beside the input: a second argument called `run`, or one it needs; else 1."""
    names = list(inspect.signature(function).parameters)
    return 2 if _binds(function, 2) and (names[1:2] == ["run"] or not _binds(function, 1)) else 1


def _binds(function: AgentFunction, arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    return True

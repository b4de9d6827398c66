"""Plain async Python functions as agents: what they return is the run's result, what they yield are its frames."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from runs_es.domain import AssistantNotFound, Run
from runs_es.execution.langgraph.graphs import assistant_id
from runs_es.execution.protocol import ActiveRun, RunExecutor, RunOutcome
from runs_es.execution.signatures import AgentFunction, arguments_of, is_agent_function


class FunctionExecutor:
    """The `RunExecutor` of functions, by the name of their assistant. Runs of others go to `others`.

    A function is called with the run's input, and with the `ActiveRun` if it takes a second argument:

    - `async def agent(input, run)`: what it returns is the run's last `values` frame, unless it is None, or a
      `RunOutcome`;
    - `async def agent(input, run)` that yields: each `(event, data)` is a frame, anything else one of `custom`.
    """

    def __init__(self, functions: Mapping[str, AgentFunction], others: RunExecutor | None = None) -> None:
        for name, function in functions.items():
            if not is_agent_function(function):
                raise ValueError(
                    f"agent {name!r} must be an async function or generator of one or two arguments (input, run)"
                )
        self._functions = {**functions, **{assistant_id(name): function for name, function in functions.items()}}
        self._known = ", ".join(functions) or "none"
        self._others = others
        # The names of what it executes; None where others may know more.
        self.assistants: tuple[str, ...] | None = tuple(functions) if others is None else None

    async def execute(self, run: ActiveRun) -> RunOutcome | None:
        function = self._functions.get(run.run.assistant_id or "")
        if function is None and self._others is not None:
            return await self._others.execute(run)
        if function is None:
            raise AssistantNotFound(f"there is no agent {run.run.assistant_id!r}; known are: {self._known}")
        given = (_input_of(run.run), run)[: arguments_of(function)]
        if inspect.isasyncgenfunction(function):
            # Closed at once however this ends: after a cancel nothing of it goes on.
            async with aclosing(function(*given)) as frames:
                async for frame in frames:
                    await run.publish(*_named(frame))
            return None
        result = await function(*given)
        if result is None or isinstance(result, RunOutcome):
            return result
        await run.publish("values", result)
        return None

    def is_retryable(self, error: Exception) -> bool:
        """As the other executor says; a function raises `RetryableError` for what it knows to pass."""
        judge = getattr(self._others, "is_retryable", None)
        return judge is not None and bool(judge(error))


def _input_of(run: Run) -> Any:
    return run.kwargs.get("input")


def _named(frame: Any) -> tuple[str, Any]:
    match frame:
        case tuple((str(event), data)):
            return event, data
        case _:
            return "custom", frame

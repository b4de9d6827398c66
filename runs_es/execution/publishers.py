"""The runs in execution in this process, for who wants to publish to one by its id rather than by its `ActiveRun`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from runs_es.execution.protocol import ActiveRun, RunExecutor, RunOutcome


class Publisher:
    """Publishes to an active run from any event loop: what is asked elsewhere is done on the agent's own."""

    def __init__(self, run: ActiveRun) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()

    async def publish(self, event: str, data: Any) -> None:
        """As the active run's. Raises LeaseLost, ValueError."""
        await self._on_its_loop(lambda: self._run.publish(event, data))

    async def flush(self) -> None:
        """As the active run's. Raises LeaseLost."""
        await self._on_its_loop(self._run.flush)

    async def _on_its_loop(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if asyncio.get_running_loop() is self._loop:
            await call()
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), self._loop))


class Publishers:
    """Publishers by the id of their run."""

    def __init__(self) -> None:
        self._active: dict[str, Publisher] = {}

    def of(self, run_id: str) -> Publisher | None:
        """The publisher of a run that is in execution here, else None."""
        return self._active.get(run_id)

    def over(self, executor: RunExecutor) -> RunExecutor:
        """The same executor, whose runs have publishers while it executes them."""
        return _Registered(executor, self._active)


class _Registered:
    """An executor that registers its runs. Whatever else it can be asked, the executor beneath answers."""

    def __init__(self, executor: RunExecutor, active: dict[str, Publisher]) -> None:
        self._executor = executor
        self._active = active

    async def execute(self, run: ActiveRun) -> RunOutcome | None:
        publisher = Publisher(run)
        self._active[run.run.run_id] = publisher
        try:
            return await self._executor.execute(run)
        finally:
            # An attempt that was taken over may end after the next one has begun here.
            if self._active.get(run.run.run_id) is publisher:
                del self._active[run.run.run_id]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

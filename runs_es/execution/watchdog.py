"""A thread that says which run blocks the agents' event loop, and where in its code."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from runs_es.execution.guard import executing_in

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 10.0
_FRAMES = 30  # of a stack, the innermost
_RUNS_NAMED = 10


class Watchdog:
    """Asks the loop of the thread `thread_id` for a sign of life while it has runs. Without one for `seconds` it warns,
    and warns again every ten seconds. `executing` gives the ids of the runs on the loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        thread_id: int,
        executing: Callable[[], Sequence[str]],
        seconds: float,
    ) -> None:
        self._loop = loop
        self._thread_id = thread_id
        self._executing = executing
        self._seconds = seconds
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._main, name="runs-es watchdog", daemon=True)

    def start(self) -> None:
        """Watch until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Watch no longer."""
        self._closing.set()

    def _main(self) -> None:
        while not self._closing.wait(self._seconds / 2):
            if not self._executing():
                continue  # an idle process does not wake up for nothing
            answered = threading.Event()
            begun = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop has ended
                return
            if not answered.wait(self._seconds):
                self._wait(answered, begun)

    def _wait(self, answered: threading.Event, begun: float) -> None:
        """Warn until the loop answers."""
        while not self._closing.is_set():
            logger.warning("%s", self._report(time.monotonic() - begun))
            if answered.wait(max(_AGAIN_SECONDS, self._seconds)):
                logger.warning("the event loop of the agents goes on after %.1f s", time.monotonic() - begun)
                return

    def _report(self, seconds: float) -> str:
        stack = self._stack()
        try:
            culprit = executing_in(asyncio.current_task(self._loop))
        except RuntimeError:
            culprit = None
        runs = self._executing()
        others = [run for run in runs if culprit is None or run != culprit.run_id]
        waiting = ", ".join(others[:_RUNS_NAMED]) + (", …" if len(others) > _RUNS_NAMED else "")
        return (
            f"{culprit or 'code that belongs to no task'} blocks the event loop of the agents"
            f" for {seconds:.1f} s; {len(others)} other runs wait{': ' if others else ''}{waiting}\n{stack}"
        )

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread_id)
        return "".join(traceback.format_stack(frame)[-_FRAMES:]) if frame is not None else "(no stack)"

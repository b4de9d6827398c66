"""The worker's own thread and event loop, which no agent's code runs on: that has a loop of its own (agents_loop.py).

Beside the worker runs the sweep (sweep.py). `restore` undoes what a run did to its thread's state.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from contextlib import suppress

from runs_es.domain import Run, Timeouts
from runs_es.execution.agent_threads import AgentThreads, IsQuick
from runs_es.execution.agents_loop import AgentsLoop, OpenExecutor, loop_class
from runs_es.execution.blocking import blocking
from runs_es.execution.jobs import Locate
from runs_es.execution.queue import JobQueue, QueueWorker
from runs_es.execution.retry import Backoff
from runs_es.execution.routes import Routes
from runs_es.execution.sweep import Sweep
from runs_es.execution.thread_lock import barrier
from runs_es.execution.worker import Accepts, Restore, Worker, WorkerLimits
from runs_es.log.decisions import Decisions
from runs_es.log.event_log import EventLog
from runs_es.settings import Settings

logger = logging.getLogger(__name__)

_RESTART_SECONDS = 1.0


def limits_of(settings: Settings) -> WorkerLimits:
    """The numbers that workers keep to."""
    return WorkerLimits(
        settings.max_attempts,
        settings.cancel_grace_seconds,
        settings.publish_buffer_bytes,
        Timeouts(settings.run_timeout_seconds, settings.run_idle_timeout_seconds),
        Backoff(settings.retry_seconds, settings.retry_max_seconds),
        show_errors=settings.show_errors != "never",
    )


class WorkerSupervisor:
    """Runs a worker in this process. `open_executor` is entered on the agents' loop and left when that stops."""

    def __init__(
        self,
        log: EventLog,
        decisions: Decisions,
        queue: JobQueue,
        open_executor: OpenExecutor,
        settings: Settings,
        active_threads: Callable[[], list[str]],
        reap: Callable[[], int] | None = None,
        restore: Restore | None = None,
        accepts: Accepts | None = None,
        *,
        routes: Routes,
        queues: Collection[str] = (),
        locate: Locate,
        is_quick: IsQuick | None = None,
    ) -> None:
        self._log = log
        self._decisions = decisions
        self._queue = queue
        self._settings = settings
        self._active_threads = active_threads
        self._reap = reap
        self._restore = restore
        self._accepts = accepts or (lambda _: True)
        self._routes, self._locate = routes, locate
        self._queues = frozenset(queues) or routes.queues
        # For agents alone, see blocking.py; more than runs, because those of runs that timed out may hang in one still.
        threads = AgentThreads(4 * settings.concurrency + 32, is_quick)
        self._agents = AgentsLoop(
            open_executor,
            threads,
            self._executing,
            grace_seconds=settings.cancel_grace_seconds,
            blocked_seconds=settings.blocked_loop_seconds,
        )
        self._worker: Worker | None = None
        self._jobs: QueueWorker | None = None
        self._ready = threading.Event()
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="runs-es worker", daemon=True)

    def start(self, timeout: float = 30.0) -> None:
        """Return once the worker fetches jobs. Raises what kept it from starting."""
        self._agents.start(timeout)
        self._thread.start()
        self._ready.wait(timeout)
        if self._failure is not None:
            raise self._failure
        if not self._ready.is_set():
            raise TimeoutError(f"the worker did not start within {timeout} seconds")

    def drain(self) -> None:
        """Begin no further run; those in execution have `drain_seconds`, then they are put back for another worker."""
        self._stopped.set()
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # it has come to its end just now
                self._loop.call_soon_threadsafe(self._stopping.set)

    def stop(self) -> None:
        """Drain, and return when it is done."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join(self._settings.drain_seconds + self._settings.cancel_grace_seconds + 10)
        self._agents.stop()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _executing(self) -> list[str]:
        return [] if self._worker is None else self._worker.executing

    def _main(self) -> None:
        while True:
            try:
                with asyncio.Runner(loop_factory=loop_class()) as runner:
                    runner.run(self._run())
                return
            except BaseException as error:
                if not self._ready.is_set() or self._stopped.is_set():
                    self._failure = error
                    logger.exception("the worker stopped")
                    self._ready.set()
                    return
                logger.exception("the worker stopped; starting it again")
                self._stopped.wait(_RESTART_SECONDS)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        settings = self._settings
        worker = self._worker = Worker(
            self._log,
            self._decisions,
            self._agents.executor,
            limits=limits_of(settings),
            barrier=barrier(self._log.reader, self._log.schema, settings.append_wait_seconds),
            restore=self._restore,
            accepts=self._takes,
            on_requeue=lambda thread_id, due_at: self._queue.wake(thread_id, due_at=due_at),
            agents=self._agents.loop,
        )
        jobs = self._jobs = QueueWorker(
            self._log.url,
            self._log.schema,
            worker.advance,
            queues=self._queues,
            locate=self._locate,
            concurrency=settings.concurrency,
            heartbeat_seconds=settings.heartbeat_seconds,
            lease_seconds=settings.lease_seconds,
            drain_seconds=settings.drain_seconds,
        )
        fetching = asyncio.create_task(jobs.run(self._ready.set))
        sweep = Sweep(
            jobs,
            self._queue,
            self._decisions,
            self._active_threads,
            worker_id=worker.worker_id,
            accepts=self._accepts,
            reap=self._reap,
        )
        sweeping = asyncio.create_task(self._sweep(sweep))
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((fetching, stopped), return_when=asyncio.FIRST_COMPLETED)
        sweeping.cancel()
        worker.drain()
        jobs.stop()
        await fetching

    def _takes(self, run: Run) -> bool:
        """Whether this worker executes it; one of another queue is left to that queue's workers, who are told."""
        if self._routes.takes(run, self._queues):
            return self._accepts(run)
        if self._jobs is not None:
            self._jobs.pass_over(run.thread_id, run.run_id)
        return False

    async def _sweep(self, sweep: Sweep) -> None:
        while True:
            await blocking(self._ready.wait)
            await sweep.round()
            await asyncio.sleep(self._settings.sweep_seconds)

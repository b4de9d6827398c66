"""One place where the store is put together: `open_store`. The HTTP server uses it, and so does a library user.

```python
with open_store(Settings(), executor=MyExecutor()) as store:
    run = asyncio.run(store.service.create_and_wait(CreateRunCommand(assistant_id="mine", input="hello")))
```
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from runs_es.database import open_database
from runs_es.database.migrate import bring_up_to_date
from runs_es.database.server_check import patiently
from runs_es.execution.agent_threads import IsQuick
from runs_es.execution.agents_loop import OpenExecutor
from runs_es.execution.external import Arrivals, ExternalAssistants, ExternalRuns, LeaseSweep
from runs_es.execution.functions import FunctionExecutor
from runs_es.execution.langgraph import is_installed
from runs_es.execution.langgraph.graphs import GraphLoadError, GraphRegistry, assistant_id
from runs_es.execution.protocol import ActiveRun, RunExecutor, RunOutcome
from runs_es.execution.publishers import Publishers
from runs_es.execution.queue import JobQueue
from runs_es.execution.routes import Routes, located
from runs_es.execution.supervisor import WorkerSupervisor, limits_of
from runs_es.log.decisions import Decisions
from runs_es.log.event_log import EventLog
from runs_es.log.retention import RetentionTimer
from runs_es.service.application import RunsApplicationService
from runs_es.service.async_ports import AsyncRunEventLog, AsyncRunRepository, QueueScheduler, ServiceSupervisor
from runs_es.service.cron_scheduler import CronScheduler
from runs_es.service.crons import Crons, Launch
from runs_es.settings import Settings
from runs_es.streams.broker import LogRunStreamBroker
from runs_es.streams.cursor import RunStreams
from runs_es.streams.hub import Hub
from runs_es.webhooks.addresses import check_url
from runs_es.webhooks.deliverer import OpenState, WebhookDeliverer
from runs_es.webhooks.deliveries import Deliveries
from runs_projections.arguments import StoreArguments, checked
from runs_projections.consumption import ProjectedUsage
from runs_projections.cron_lists import ProjectedCrons
from runs_projections.live import LiveProjector
from runs_projections.loading import load_projections
from runs_projections.projection import AnyProjection, Projection
from runs_projections.readers import ProjectedEvents, ProjectedRuns, ProjectedThreads
from runs_projections.rows import ProjectedRows

if TYPE_CHECKING:
    from runs_projections.shown_state import AssistantStates, ShownState

R = TypeVar("R")

_THREADS = 32  # blocking calls of the application service at once
_STATE_CONNECTIONS = 4
_RUN_WAIT_SECONDS = 30.0  # a run waits longer for the database than a request: nobody waits for an answer to it


class Store:
    """Everything of one process. Close it, or use it as a context manager."""

    service: RunsApplicationService
    runs: ProjectedRuns
    threads: ProjectedThreads
    events: ProjectedEvents
    usage: ProjectedUsage
    crons: Crons
    cron_lists: ProjectedCrons
    projections: tuple[AnyProjection, ...]
    log: EventLog
    streams: RunStreams
    webhooks: Deliveries
    registry: GraphRegistry | None = None
    state: AssistantStates | None = None
    external: ExternalRuns
    publishers: Publishers
    repository: AsyncRunRepository
    event_log: AsyncRunEventLog
    broker: LogRunStreamBroker
    scheduler: QueueScheduler
    supervisor: ServiceSupervisor
    arrivals: Arrivals
    _checkpoints: Any = None
    _reap: Callable[[], int] | None = None
    _restore: Callable[[str, str], None] | None = None
    _open_state: OpenState | None = None
    _is_quick: IsQuick | None = None

    def __init__(self, arguments: StoreArguments) -> None:
        self.settings = arguments.settings
        self.worker: WorkerSupervisor | None = None
        self._exit = ExitStack()
        try:
            self._open(arguments)
        except BaseException:
            self._exit.close()
            raise

    def _open(self, arguments: StoreArguments) -> None:
        settings = self.settings
        if arguments.executor is None:
            self.registry = _registry(arguments.config, arguments.work, settings.graph_open_seconds)
            self.registry.add_external(settings.external_names)
            self.registry.load_all()
        external = self.registry.external if self.registry else settings.external_names
        self.database = self._exit.enter_context(open_database(settings))
        self.migrated = patiently(
            lambda: bring_up_to_date(self.database.url, settings.db_schema), settings.database_start_seconds
        )
        self.log = self._exit.enter_context(_log(self.database.url, settings))
        retention = RetentionTimer(self.log, settings)
        self._exit.callback(retention.close)
        retention.start()
        threads = self._exit.enter_context(ThreadPoolExecutor(_THREADS, "runs-es service"))
        self._threads = threads
        self.projections = load_projections(settings)
        projector = LiveProjector(self.log, self.projections)
        projector.start()
        self._exit.callback(projector.close)
        self.projector = projector
        self.runs = ProjectedRuns(
            self.log, projector, wait=settings.list_wait_seconds, kwargs_bytes=settings.list_kwargs_bytes
        )
        self.events = ProjectedEvents(self.log, projector, wait=settings.list_wait_seconds)
        self.threads = ProjectedThreads(self.log, projector, wait=settings.list_wait_seconds)
        self.usage = ProjectedUsage(self.log, projector, wait=settings.list_wait_seconds, prices=settings.prices)
        self.streams = RunStreams(Hub(self.log, ring_bytes=settings.ring_bytes), self.log.reader, threads)
        self._exit.callback(self.streams.close)
        self.decisions = Decisions(self.log)
        graphs = self.registry.names if self.registry else ()
        self.routes = Routes(settings.queues, arguments.served(external, graphs) if arguments.work else None)
        self._locate = located(self.decisions, self.routes)
        self.queue = JobQueue(self.database.url, settings.db_schema, routes=self.routes, locate=self._locate)
        self._exit.callback(self.queue.close)
        self.service = RunsApplicationService(
            decisions=self.decisions,
            reader=self.log.reader,
            streams=self.streams,
            runs=self.runs,
            events=self.events,
            queue=self.queue,
            threads=threads,
        )
        self.service.check_webhook = partial(check_url, allowed=settings.webhook_allowed_networks)
        self.webhooks = Deliveries(self.log.reader)
        self.cron_lists = ProjectedCrons(self.log, projector, wait=settings.list_wait_seconds)
        self.crons = Crons(self.log, self.cron_lists, self.service.create_now, settings, self.service.check_webhook)
        self._open_ports(threads)
        open_executor = self._graphs(self.registry) if self.registry else _given(arguments.executor)
        self._serve_external_workers(external)
        if arguments.work:
            deliverer = WebhookDeliverer(self.log, self.webhooks, settings, self._open_state)
            self._exit.callback(deliverer.close)
            deliverer.start()
            self._work(self._published(open_executor), arguments.queues)

    def _open_ports(self, threads: Executor) -> None:
        """What there is for event loops: repository, event log, broker, scheduler, supervisor."""
        self.publishers = Publishers()
        self.repository = AsyncRunRepository(self.runs, threads)
        self.event_log = AsyncRunEventLog(self.events, threads)
        self.broker = LogRunStreamBroker(self.streams, self.publishers.of)
        self.scheduler = QueueScheduler(self.runs.get, self.queue, self.service, threads)
        self.supervisor = ServiceSupervisor(self.service)

    def _published(self, open_executor: OpenExecutor) -> OpenExecutor:
        """The same executor, whose runs the broker can publish to while they are executed."""

        @asynccontextmanager
        async def opened() -> AsyncIterator[RunExecutor]:
            async with open_executor() as executor:
                yield self.publishers.over(executor)

        return opened

    def rows(self, projection: Projection[R]) -> ProjectedRows[R]:
        """A reader of a projection that this process follows."""
        return ProjectedRows(self.log, projection, self.projector, wait=self.settings.list_wait_seconds)

    def fire_crons(self, launch: Launch) -> CronScheduler:
        """Start runs of crons by their schedules until the store is closed. `launch` makes a cron's run."""
        scheduler = CronScheduler(
            self.database.url,
            self.settings.db_schema,
            self.cron_lists.due,
            lambda cron, moment: self.crons.fire(cron, moment, launch),
        )
        self._exit.callback(scheduler.close)
        scheduler.start()
        return scheduler

    def _work(self, open_executor: OpenExecutor, queues: Collection[str]) -> None:
        self.worker = WorkerSupervisor(
            self.log,
            self.decisions,
            self.queue,
            open_executor,
            self.settings,
            partial(self.runs.active_threads, without=self.external.assistants.ids),
            reap=self._reap,
            restore=self._restore,
            accepts=self.external.assistants.leave,
            routes=self.routes,
            queues=queues,
            locate=self._locate,
            is_quick=self._is_quick,
        )
        self._exit.callback(self.worker.stop)
        self.worker.start()

    def _serve_external_workers(self, names: Iterable[str]) -> None:
        limits, wake = limits_of(self.settings), self.queue.wake
        self.external = ExternalRuns(
            self.log,
            self.decisions,
            ExternalAssistants(names, assistant_id),
            waiting=self.runs.waiting_threads,
            wake=wake,
            limits=limits,
            restore=self._restore,
        )
        self.arrivals = Arrivals(self.log)
        sweep = LeaseSweep(
            self.log,
            self.decisions,
            wake=wake,
            interval=self.settings.sweep_seconds,
            limits=limits,
            restore=self._restore,
        )
        self._exit.callback(sweep.close)
        sweep.start()

    def _graphs(self, registry: GraphRegistry) -> OpenExecutor:
        """How to run the registry's assistants, and how to read what they leave behind."""
        from runs_projections.shown_state import AssistantStates, ShownState

        shown = ShownState(self.log.reader, self._threads)
        if not is_installed():  # functions and external workers need nothing of it
            self.state = AssistantStates(registry, None, shown)
            return _given(FunctionExecutor(registry.functions, others=_Unloaded(registry)))
        return self._langgraph(registry, shown)

    def _langgraph(self, registry: GraphRegistry, shown: ShownState) -> OpenExecutor:
        """As `_graphs`, where LangGraph is installed."""
        from runs_es.execution.langgraph.reaper import CheckpointReaper
        from runs_es.execution.langgraph.rollback import CheckpointRollback
        from runs_es.execution.langgraph.saver import open_checkpoint_pool
        from runs_es.execution.langgraph.sizes import is_quick
        from runs_es.execution.langgraph.state import GraphStateReader
        from runs_es.webhooks.state_left import open_state_left
        from runs_projections.shown_state import AssistantStates

        url, schema = self.database.url, self.settings.db_schema
        wait = self.settings.database_wait_seconds
        self._checkpoints = open_checkpoint_pool(url, schema, _STATE_CONNECTIONS, seconds=wait)
        checkpoints = CheckpointReaper(self.log.reader, schema)
        self._reap, self.service.forget = checkpoints.reap, checkpoints.forget
        self._is_quick = is_quick
        self._restore = CheckpointRollback(self.log.reader, schema).restore
        self._open_state = partial(open_state_left, registry, url, schema)
        graphs = GraphStateReader(registry, self._checkpoints, show_errors=self.settings.show_errors != "never")
        self.state = AssistantStates(registry, graphs, shown)

        @asynccontextmanager
        async def open_executor() -> AsyncIterator[RunExecutor]:
            from runs_es.execution.langgraph.executor import LangGraphExecutor

            async with open_checkpoint_pool(url, schema, self.settings.concurrency, seconds=_RUN_WAIT_SECONDS) as pool:
                graphs = LangGraphExecutor.over_pool(registry, pool, schema)
                yield FunctionExecutor(registry.functions, others=graphs)

        return open_executor

    @asynccontextmanager
    async def reading_state(self) -> AsyncIterator[None]:
        """While entered, `state` may be read, on the event loop that entered."""
        if self._checkpoints is None:
            yield
            return
        async with self._checkpoints:
            yield

    def close(self) -> None:
        """Stop the worker, end streams without an end, write what is queued, let go of the database."""
        self.stop_waiting()
        self._exit.close()

    def stop_waiting(self) -> None:
        """End streams without an end, and claims that wait: their clients ask again elsewhere."""
        self.streams.close()
        self.arrivals.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_store(
    settings: Settings | None = None,
    *,
    executor: RunExecutor | None = None,
    config: Path | str | None = None,
    work: bool = True,
    queues: Collection[str] = (),
    assistants: Collection[str] | str | None = None,
) -> Store:
    """Open the store: find or start the database, migrate it, follow it, and, with `work`, execute runs here.

    Runs are executed by `executor`; without one by LangGraph, with the graphs of `config` (a langgraph.json), or else
    the demo agent; those that wait in `queues`, or in any (RUNS_ES_QUEUES).
    Only runs of `assistants` (ids or graph names) are taken; unset means those of the executor's attribute `assistants`
    or of the graphs, and where there is neither, all. Others wait for a store that serves them.
    Raises TypeError and ValueError for arguments, DatabaseUnavailable, MigrationFailed, GraphLoadError,
    ProjectionLoadError.
    """
    return Store(checked(settings, executor, config, work, queues, assistants))


@asynccontextmanager
async def open_store_async(
    settings: Settings | None = None,
    *,
    executor: RunExecutor | None = None,
    config: Path | str | None = None,
    work: bool = True,
    queues: Collection[str] = (),
    assistants: Collection[str] | str | None = None,
) -> AsyncIterator[Store]:
    """As `open_store`, for event loops: `async with open_store_async(…) as store` opens and closes in a thread."""
    arguments = checked(settings, executor, config, work, queues, assistants)
    opening = asyncio.ensure_future(asyncio.to_thread(Store, arguments))
    try:
        store = await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread goes on, and what it opens would be nobody's.
        opening.add_done_callback(_close_abandoned)
        raise
    try:
        yield store
    finally:
        await asyncio.shield(asyncio.to_thread(store.close))


def _close_abandoned(opening: asyncio.Future[Store]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        threading.Thread(target=opening.result().close, name="runs-es close").start()


def _registry(config: Path | None, work: bool, open_seconds: float) -> GraphRegistry:
    """The assistants of `config`, or the demo agent; where LangGraph is not installed the latter cannot be."""
    if config is not None:
        return GraphRegistry.from_config(config, open_seconds=open_seconds)
    if is_installed():
        return GraphRegistry.demo()
    if work:
        raise GraphLoadError(
            "nothing can be executed here: the demo agent needs LangGraph. Install runs-es[langgraph], give an"
            " `executor` or a `config`, or open the store with work=False"
        )
    return GraphRegistry.empty()


class _Unloaded:
    """The executor of graphs where LangGraph is not installed: each run fails with what is missing."""

    def __init__(self, registry: GraphRegistry) -> None:
        self._registry = registry

    async def execute(self, run: ActiveRun) -> RunOutcome | None:
        assistant = run.run.assistant_id or ""
        self._registry.get(self._registry.resolve(assistant) or assistant)
        return None


def _log(url: str, settings: Settings) -> EventLog:
    return EventLog(
        url,
        settings.db_schema,
        pool_size=settings.read_pool_size,
        max_event_bytes=settings.max_frame_bytes,
        key_bytes=settings.key_bytes,
        lock_seconds=settings.append_wait_seconds,
        wait_seconds=settings.database_wait_seconds,
        on_new_history=settings.on_new_history,
    )


def _given(executor: RunExecutor | None) -> OpenExecutor:
    assert executor is not None

    @asynccontextmanager
    async def open_executor() -> AsyncIterator[RunExecutor]:
        yield executor

    return open_executor

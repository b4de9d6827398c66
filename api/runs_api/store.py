"""What this room needs of the store; `runs_projections.wiring.open_store` gives one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from runs_es.execution.external import Arrivals, ExternalRuns
from runs_es.execution.langgraph.graphs import GraphLoadError
from runs_es.log.event_log import EventLog
from runs_es.service.application import RunsApplicationService
from runs_es.service.commands import FindRunsQuery, ListRunMessagesQuery, ListRunsQuery
from runs_es.service.crons import Crons
from runs_es.service.views import RunMessageView, RunSnapshot, StoredRunEvent, ThreadSnapshot
from runs_es.streams.cursor import RunStreams
from runs_es.webhooks.deliveries import Deliveries
from runs_projections.consumption import ModelUsage
from runs_projections.cron_lists import ProjectedCrons
from runs_projections.freshness import Counted, Listed
from runs_projections.live import LiveProjector
from runs_projections.projection import AnyProjection


class RunReader(Protocol):
    """Lists of runs. Synchronous, as all readers: call through `Edge.read`."""

    def list_by_thread(self, query: ListRunsQuery) -> Listed[RunSnapshot]: ...

    def find(self, query: FindRunsQuery) -> Listed[RunSnapshot]: ...


class ThreadReader(Protocol):
    """Threads, one and many. A thread of another user reads as absent."""

    def get(self, thread_id: str, user_id: str | None = None) -> ThreadSnapshot | None: ...

    def search(
        self,
        *,
        ids: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        status: str | None = None,
        limit: int = 10,
        offset: int = 0,
        sort_by: str = "created_at",
        sort_order: str = "desc",
        user_id: str | None = None,
    ) -> Listed[ThreadSnapshot]: ...

    def count(
        self,
        *,
        ids: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        status: str | None = None,
        user_id: str | None = None,
    ) -> Counted: ...


class EventReader(Protocol):
    """Messages and stored events, in ascending seq."""

    def list_messages_by_run(self, query: ListRunMessagesQuery) -> Listed[RunMessageView]: ...

    def list_events_by_run(
        self,
        thread_id: str,
        run_id: str | None,
        *,
        after_seq: int | None = None,
        before_seq: int | None = None,
        limit: int = 500,
        types: Sequence[str] | None = None,
    ) -> Listed[StoredRunEvent]: ...


class UsageReader(Protocol):
    """Tokens by model, of a thread or a run in it."""

    def by_model(self, thread_id: str, run_id: str | None = None) -> tuple[list[ModelUsage], Counted]: ...


class StateReader(Protocol):
    """What graphs left behind in a thread, in the platform's shape."""

    async def get(
        self,
        thread_id: str,
        graph_id: str | None,
        checkpoint_id: str | None = None,
        subgraphs: bool = False,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]: ...

    async def history(
        self,
        thread_id: str,
        graph_id: str | None,
        limit: int,
        before: str | Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]: ...

    async def values(
        self, thread_id: str, graph_id: str | None, checkpoint_id: str | None = None
    ) -> dict[str, Any] | None: ...

    async def delete(self, thread_id: str) -> None: ...


class Graphs(Protocol):
    """The graphs that this deployment has, and its other assistants."""

    @property
    def names(self) -> list[str]: ...

    def assistant_id(self, name: str) -> str: ...

    def resolve(self, assistant_id_or_name: str) -> str | None: ...

    def get(self, name: str) -> Any: ...

    def is_graph(self, name: str) -> bool: ...

    @property
    def broken(self) -> Mapping[str, GraphLoadError]: ...


class Store(Protocol):
    """Everything of one process, wired. `state` and `registry` are None without LangGraph."""

    @property
    def service(self) -> RunsApplicationService: ...

    @property
    def runs(self) -> RunReader: ...

    @property
    def threads(self) -> ThreadReader: ...

    @property
    def events(self) -> EventReader: ...

    @property
    def usage(self) -> UsageReader: ...

    @property
    def webhooks(self) -> Deliveries: ...

    @property
    def crons(self) -> Crons: ...

    @property
    def cron_lists(self) -> ProjectedCrons: ...

    @property
    def projections(self) -> Sequence[AnyProjection]: ...

    @property
    def projector(self) -> LiveProjector: ...

    @property
    def log(self) -> EventLog: ...

    @property
    def streams(self) -> RunStreams: ...

    @property
    def state(self) -> StateReader | None: ...

    @property
    def external(self) -> ExternalRuns: ...

    @property
    def arrivals(self) -> Arrivals: ...

    @property
    def registry(self) -> Graphs | None: ...

    def reading_state(self) -> AbstractAsyncContextManager[None]:
        """While entered, `state` may be read, on the event loop that entered."""

"""How read models stand: a page for people, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import asdict

import psycopg
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field
from starlette.responses import Response

from runs_api.edge import PROBE_SECONDS, Edge, EdgeOf
from runs_api.responses import Error, Json
from runs_es.domain import StoreUnavailable
from runs_es.webhooks.deliveries import OPEN, Backlog
from runs_projections import status
from runs_projections.status import STATES, ProjectionStatus

logger = logging.getLogger(__name__)

router = APIRouter(tags=["Meta"], responses={503: {"model": Error, "description": "Not its database"}})

_LABELS = ("projection", "version")


class Projection(BaseModel):
    name: str
    version: int
    state: str = Field(description=", ".join(STATES))
    position: int = Field(description="of the last fact that is in")
    behind: int = Field(description="facts that are not in yet, at most")
    lag_seconds: float = Field(description="age of the oldest fact that is not in yet")
    is_led: bool = Field(description="whether some process follows the log for it")
    failed_position: int | None
    reason: str | None = Field(description="why it stopped")
    failed_at: str | None
    rebuild: str | None = Field(description="how far a rebuild is, if there is one")


@router.get("/projections", response_model=list[Projection], summary="How the read models stand")
async def list_projections(edge: EdgeOf) -> Response:
    return Json([asdict(each) for each in await edge.read(_statuses, edge)])


@router.get(
    "/metrics",
    response_class=Response,
    summary="Metrics for Prometheus",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(edge: EdgeOf) -> Response:
    """Without the database, what this process knows by itself: `runs_es_database_up` is 0 then."""
    registry = CollectorRegistry()
    try:
        statuses, backlog = await asyncio.gather(
            edge.ask(_statuses, edge), edge.ask(edge.store.webhooks.backlog, PROBE_SECONDS / 2)
        )
    except (StoreUnavailable, TimeoutError, psycopg.Error) as error:
        logger.info("metrics without the database: %s", error)
        statuses, backlog = [], None
    registry.register(_Database(is_up=backlog is not None))
    registry.register(_Projections(statuses, edge.store.projector.applied))
    if backlog is not None:
        registry.register(_Webhooks(backlog))
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})


def _statuses(edge: Edge) -> list[ProjectionStatus]:
    log = edge.store.log
    with log.reader.connection(PROBE_SECONDS / 2) as connection:
        return status.read(connection, log.schema, edge.store.projections)


class _Database(Collector):
    def __init__(self, *, is_up: bool) -> None:
        self._is_up = is_up

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily(
            "runs_es_database_up", "1 when the database answered; when it did not, what it knows is left out"
        )
        up.add_metric((), self._is_up)
        yield up


class _Projections(Collector):
    def __init__(self, statuses: list[ProjectionStatus], applied: dict[str, int]) -> None:
        self._statuses, self._applied = statuses, applied

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        lag = GaugeMetricFamily(
            "runs_es_projection_lag_seconds", "Age of the oldest fact that is not in yet", labels=_LABELS
        )
        behind = GaugeMetricFamily(
            "runs_es_projection_behind_facts", "Facts that are not in yet, at most", labels=_LABELS
        )
        led = GaugeMetricFamily("runs_es_projection_led", "1 when a process follows the log for it", labels=_LABELS)
        state = GaugeMetricFamily(
            "runs_es_projection_state", "1 for the state that it is in", labels=(*_LABELS, "state")
        )
        applied = CounterMetricFamily(
            "runs_es_projection_facts_applied", "Facts taken over by this process", labels=("projection",)
        )
        for each in self._statuses:
            labels = (each.name, str(each.version))
            if each.state != "left behind":  # a version that nobody follows any more falls behind for ever
                lag.add_metric(labels, each.lag_seconds)
                behind.add_metric(labels, each.behind)
            led.add_metric(labels, each.is_led)
            for name in STATES:
                state.add_metric((*labels, name), each.state == name)
        for name, facts in self._applied.items():
            applied.add_metric((name,), facts)
        yield from (lag, behind, led, state, applied)


class _Webhooks(Collector):
    """The same in every process: as the database has it."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog

    def collect(self) -> Iterator[GaugeMetricFamily]:
        count = GaugeMetricFamily(
            "runs_es_webhooks", "Webhooks not delivered: waiting for their run, pending, given up", labels=("state",)
        )
        for state in OPEN:
            count.add_metric((state,), self._backlog.states.get(state, 0))
        age = GaugeMetricFamily(
            "runs_es_webhook_oldest_seconds", "Time since the end of the run that is pending longest"
        )
        age.add_metric((), self._backlog.oldest_seconds)
        behind = GaugeMetricFamily(
            "runs_es_webhook_behind_facts", "Facts not yet looked at for the webhooks that they make due, at most"
        )
        behind.add_metric((), self._backlog.behind)
        yield from (count, age, behind)

"""Which error is which status, always in the same shape."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from runs_es.database.outage import Outage
from runs_es.domain import (
    AssistantNotFound,
    BadSequence,
    ConflictError,
    InvalidRunTransition,
    LimitExceeded,
    RunNotFound,
    StoreUnavailable,
    ThreadExists,
    ThreadNotFound,
    UnsupportedStrategyError,
    WriteConflict,
)
from runs_es.execution.langgraph.graphs import GraphLoadError
from runs_es.settings import Settings
from tests.api.conftest import client_of

RUN = "/threads/00000000-0000-0000-0000-000000000000/runs/00000000-0000-0000-0000-000000000000"


class FailingStore:
    """A store whose service fails with `error`."""

    registry = state = None

    def __init__(self) -> None:
        self.error: Exception = RuntimeError()
        self.service = SimpleNamespace(get_run=self._fail)
        self.log = SimpleNamespace(outage=Outage("postgresql://nobody@localhost/nothing"))  # looks only when told to

    async def _fail(self, *_: Any) -> None:
        raise self.error

    @asynccontextmanager
    async def reading_state(self) -> AsyncIterator[None]:
        yield


@pytest.fixture
def store() -> FailingStore:
    return FailingStore()


@pytest.fixture
async def client(store: FailingStore) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(store, Settings(cors_origins=["https://app.example"])) as client:
        yield client


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RunNotFound("r"), 404),
        (ThreadNotFound("t"), 404),
        (AssistantNotFound("no such assistant"), 404),
        (ConflictError("busy"), 409),
        (ThreadExists("t"), 409),
        (InvalidRunTransition("success", "running"), 409),
        (UnsupportedStrategyError("not offered"), 422),
        (BadSequence("no number"), 422),
        (ValueError("metadata must be an object"), 422),
        (LimitExceeded("too large (RUNS_ES_MAX_FRAME_BYTES)"), 413),
        (StoreUnavailable("the database does not answer"), 503),
        (WriteConflict("changed meanwhile"), 503),
        (GraphLoadError("graph 'x' does not compile"), 500),
    ],
)
async def test_an_error_of_the_store_has_its_status_and_its_own_words(
    client: httpx.AsyncClient, store: FailingStore, error: Exception, status: int
):
    store.error = error
    answer = await client.get(RUN)
    assert (answer.status_code, answer.json()) == (status, {"detail": str(error)})
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)


async def test_a_mistake_of_ours_tells_nothing_but_its_request_and_can_be_read_by_browsers(
    client: httpx.AsyncClient, store: FailingStore
):
    store.error = KeyError("password")
    answer = await client.get(RUN, headers={"Origin": "https://app.example", "X-Request-Id": "r1"})
    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal Server Error"})
    assert answer.headers["x-request-id"] == "r1"
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


async def test_routes_that_are_not_there_answer_in_the_same_shape(client: httpx.AsyncClient):
    answer = await client.get("/nope")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    answer = await client.put("/threads")
    assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})
    assert answer.headers["allow"] == "POST"
    assert (await client.get("/threads/")).status_code in (404, 405)


@pytest.mark.parametrize(
    ("content", "kind", "status", "detail"),
    [
        ('{"input":', "application/json", 422, "Invalid JSON in request body"),
        ("[]", "application/json", 422, "The request body must be a JSON object"),
        ("", "application/json", 422, "The request body must be a JSON object"),
        ("{}", "text/plain", 415, "The request body must be JSON: send it with Content-Type: application/json"),
        ("{}", "application/json; charset=utf-8", 422, "assistant_id: Field required"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    client: httpx.AsyncClient, content: str, kind: str, status: int, detail: str
):
    answer = await client.post("/runs", content=content, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()) == (status, {"detail": detail})


async def test_a_browser_may_ask_and_read_what_it_needs(client: httpx.AsyncClient):
    origin = {"Origin": "https://app.example"}
    preflight = await client.options(
        "/threads",
        headers={
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-api-key,last-event-id",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert preflight.headers["access-control-allow-headers"] == "content-type,x-api-key,last-event-id"
    assert preflight.headers["access-control-max-age"] == "600"
    answer = await client.get("/ok", headers=origin)
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert exposed == {
        "location",
        "content-location",
        "x-pagination-total",
        "x-pagination-next",
        "x-request-id",
        "x-runs-as-of",
        "x-runs-has-more",
        "x-runs-position",
        "x-runs-stale",
    }
    other = await client.get("/ok", headers={"Origin": "https://other.example"})
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


async def test_what_a_graph_raised_when_it_was_loaded_is_hidden_like_its_other_errors(store: FailingStore):
    store.error = GraphLoadError("importing ./graph.py failed: KeyError: 'password=hunter2'")
    for setting, told in [
        ("always", str(store.error)),
        ("never", "An internal error occurred (id request-7)"),
    ]:
        async with client_of(store, Settings(show_errors=setting)) as client:
            answer = await client.get(RUN, headers={"x-request-id": "request-7"})
        assert (answer.status_code, answer.json()) == (500, {"detail": told})

"""What is refused before a route sees it, and what every answer carries."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from runs_api.gate import RequestGate
from runs_es.settings import Settings

SETTINGS = Settings(max_body_bytes=2000, max_header_bytes=300)


async def read(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())} {request.state.request_id}")


async def fail(request: Request) -> PlainTextResponse:
    raise RuntimeError("a mistake of ours")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    routes = [Route("/", read, methods=["GET", "POST"]), Route("/fail", fail)]
    app = Starlette(routes=routes, middleware=[Middleware(RequestGate, settings=SETTINGS)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        yield client


async def in_pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 100):
        yield b"x" * 100


async def test_a_body_within_the_limit_passes(client: httpx.AsyncClient):
    assert (await client.post("/", content=b"x" * 2000)).text.startswith("2000 ")
    assert (await client.post("/", content=in_pieces(2000))).text.startswith("2000 ")


async def test_a_body_that_says_it_is_too_large_is_refused_unread(client: httpx.AsyncClient):
    answer = await client.post("/", content=b"x" * 2001)
    assert answer.status_code == 413
    assert "RUNS_ES_MAX_BODY_BYTES" in answer.json()["detail"]


async def test_a_body_that_does_not_say_how_large_it_is_is_counted(client: httpx.AsyncClient):
    answer = await client.post("/", content=in_pieces(2100))
    assert answer.status_code == 413


async def test_a_header_over_the_limit_is_refused_by_name(client: httpx.AsyncClient):
    answer = await client.get("/", headers={"X-Long": "x" * 301})
    assert answer.status_code == 431
    assert answer.json()["detail"].startswith("header x-long has 301 bytes")
    assert "RUNS_ES_MAX_HEADER_BYTES" in answer.json()["detail"]


async def test_a_query_over_the_limit_is_refused(client: httpx.AsyncClient):
    assert (await client.get("/", params={"q": "x" * 300})).status_code == 414


async def test_a_query_with_a_nul_is_refused(client: httpx.AsyncClient):
    assert (await client.get("/?types=a%00b")).status_code == 422


async def test_a_long_last_event_id_is_refused(client: httpx.AsyncClient):
    assert (await client.get("/", headers={"Last-Event-ID": "1" * 33})).status_code == 422
    assert (await client.get("/", headers={"Last-Event-ID": "1" * 32})).status_code == 200


async def test_the_request_id_of_the_caller_is_kept_and_sent_back(client: httpx.AsyncClient):
    answer = await client.get("/", headers={"X-Request-Id": "abc-1"})
    assert answer.text == "0 abc-1"
    assert answer.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("strange", ["", "a b", "x" * 201, "tab\there"])
async def test_a_request_that_brings_none_or_a_strange_one_gets_a_new_one(client: httpx.AsyncClient, strange: str):
    answer = await client.get("/", headers={"X-Request-Id": strange})
    assert len(answer.headers["x-request-id"]) == 36


async def test_refusals_carry_a_request_id_too(client: httpx.AsyncClient):
    answer = await client.post("/", content=b"x" * 2001, headers={"X-Request-Id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"


async def test_a_mistake_of_ours_is_a_500_that_tells_nothing(client: httpx.AsyncClient):
    answer = await client.get("/fail")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "Internal Server Error"}
    assert answer.headers["x-request-id"]

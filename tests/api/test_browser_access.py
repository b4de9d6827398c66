"""Pages of other origins, and names that are not this server's, are refused before anything is read or done."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers

from runs_api.app import create_app
from runs_api.browser_access import BrowserGuard, BrowserRules
from runs_es.settings import Settings
from runs_projections.wiring import Store

PREFLIGHT = {
    "Access-Control-Request-Method": "DELETE",
    "Access-Control-Request-Headers": "content-type",
    "Access-Control-Request-Private-Network": "true",
}


def client_at(store: Store, settings: Settings, url: str, *, is_local: bool = True) -> httpx.AsyncClient:
    app = create_app(store, settings, is_local=is_local)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url, timeout=30)


@pytest.fixture
def local(store: Store, store_settings: Settings) -> httpx.AsyncClient:
    """A client of a server on a loopback address."""
    return client_at(store, store_settings, "http://127.0.0.1:2024")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://evil.example:2024", "null", "http://localhost.evil.example"]
)
async def test_a_page_of_another_origin_can_do_nothing_with_or_without_a_preflight(
    local: httpx.AsyncClient, origin: str
):
    thread = (await local.post("/threads", json={})).json()["thread_id"]
    headers = {"Origin": origin}
    attempts: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"/threads/{thread}", {}),
        ("GET", f"/threads/{thread}/events", {"headers": {"Accept": "text/event-stream"}}),
        ("POST", "/threads", {}),
        ("POST", "/threads/search", {"content": "{}", "headers": {"Content-Type": "text/plain"}}),
        ("POST", "/runs/wait", {"data": {"assistant_id": "agent"}}),
        ("POST", "/runs/cancel", {"content": "{}"}),
        ("DELETE", f"/threads/{thread}", {}),
        ("OPTIONS", f"/threads/{thread}", {"headers": PREFLIGHT}),
        ("GET", "/nowhere", {}),
        ("GET", "/", {"headers": {"Connection": "Upgrade", "Upgrade": "websocket"}}),
    ]
    for method, path, request in attempts:
        answer = await local.request(method, path, **{**request, "headers": {**request.get("headers", {}), **headers}})
        assert answer.status_code == 403, (method, path)
        assert "RUNS_ES_CORS_ORIGINS" in answer.json()["detail"]
        assert not any(name.startswith("access-control-") for name in answer.headers)
        assert answer.headers["x-request-id"]
    assert (await local.get(f"/threads/{thread}")).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "http://127.0.0.1:5173", "https://localhost", "http://[::1]:3000", "http://127.0.0.2"],
)
async def test_a_page_of_this_machine_works_as_it_is(local: httpx.AsyncClient, origin: str):
    preflight = await local.options("/threads", headers={"Origin": origin, **PREFLIGHT})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-private-network"] == "true"
    answer = await local.post("/threads", json={}, headers={"Origin": origin})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:2024", 200),
        ("LOCALHOST", 200),
        ("localhost.:2024", 200),
        ("127.0.0.1:2024", 200),
        ("127.8.9.1", 200),
        ("[::1]:2024", 200),
        ("evil.example", 403),
        ("evil.example:2024", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("evil.example@localhost", 403),
        ("192.168.1.5:2024", 403),
        ("0.0.0.0:2024", 403),
        ("[::]:2024", 403),
        ("", 403),
    ],
)
async def test_on_a_loopback_address_the_server_answers_as_such_alone(local: httpx.AsyncClient, host: str, status: int):
    answer = await local.get("/ok", headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        assert "RUNS_ES_ALLOWED_HOSTS" in answer.json()["detail"]


async def test_two_hosts_must_both_be_right(local: httpx.AsyncClient):
    headers = [("Host", "localhost"), ("Host", "evil.example")]
    assert (await local.get("/ok", headers=headers)).status_code == 403


async def test_names_and_origins_that_settings_list_are_taken(store: Store, store_settings: Settings):
    settings = store_settings.model_copy(
        update={"allowed_hosts": ["api.example"], "cors_origins": ["https://app.example"]}
    )
    async with client_at(store, settings, "http://api.example") as client:
        assert (await client.get("/ok")).status_code == 200
        assert (await client.get("/ok", headers={"Origin": "https://app.example"})).status_code == 200
        own = await client.post("/threads", json={}, headers={"Origin": "https://api.example"})
        assert own.status_code == 200
        assert (await client.get("/ok", headers={"Host": "other.example"})).status_code == 403
        assert (await client.get("/ok", headers={"Origin": "https://other.example"})).status_code == 403


async def test_one_setting_opens_it_to_every_page(store: Store, store_settings: Settings):
    settings = store_settings.model_copy(update={"cors_origins": ["*"]})
    async with client_at(store, settings, "http://any.example") as client:
        answer = await client.post("/threads", json={}, headers={"Origin": "https://other.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


async def test_elsewhere_any_name_is_taken_and_other_origins_are_not(store: Store, store_settings: Settings):
    async with client_at(store, store_settings, "http://store", is_local=False) as client:
        assert (await client.get("/ok")).status_code == 200
        assert (await client.get("/ok", headers={"Origin": "http://store"})).status_code == 200
        assert (await client.post("/threads", headers={"Origin": "https://other.example"})).status_code == 403


@pytest.mark.parametrize(
    ("is_local", "site", "refused"),
    [(False, "same-origin", False), (False, "cross-site", True), (False, None, True), (True, "same-origin", True)],
)
def test_behind_a_proxy_that_changes_the_host_the_browser_says_which_page_is_the_servers_own(
    is_local: bool, site: str | None, refused: bool
):
    rules = BrowserRules(Settings(), is_local=is_local)
    host = "localhost" if is_local else "upstream"
    told = {"host": host, "origin": "https://app.example", **({"sec-fetch-site": site} if site else {})}
    assert (rules.refusal(Headers(told)) is not None) is refused


def test_elsewhere_with_names_listed_probes_still_come_by_address():
    rules = BrowserRules(Settings(allowed_hosts=["api.example"]), is_local=False)
    assert rules.takes_host("10.1.2.3:2024")
    assert rules.takes_host("localhost")
    assert not rules.takes_host("evil.example")


@pytest.mark.parametrize(
    ("fetch", "refused"),
    [
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, True),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}, True),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, True),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, False),
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}, False),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, False),
        ({"sec-fetch-mode": "cors"}, False),
        (
            {
                "sec-fetch-site": "cross-site",
                "sec-fetch-mode": "navigate",
                "sec-fetch-dest": "iframe",
                "referer": "http://localhost:3000/",
            },
            False,
        ),
    ],
)
def test_what_a_page_embeds_comes_without_an_origin_and_is_told_by_the_browser(fetch: dict[str, str], refused: bool):
    rules = BrowserRules(Settings(), is_local=True)
    headers = Headers({"host": "127.0.0.1:2024", **fetch})
    assert (rules.refusal(headers) is not None) is refused


async def test_a_websocket_of_another_origin_is_refused_before_it_is_opened():
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def never(*_: Any) -> None:
        raise AssertionError("must not be reached")

    guard = BrowserGuard(never, BrowserRules(Settings(), is_local=True))
    headers = [(b"host", b"localhost"), (b"origin", b"https://evil.example")]
    await guard({"type": "websocket", "headers": headers}, never, send)
    assert sent[0]["type"] == "websocket.close"


@pytest.mark.parametrize(
    "origin", ["https://app.example/", "app.example", "https://APP.example", "https://a.example/x"]
)
def test_what_is_no_origin_is_refused_at_the_start(origin: str):
    with pytest.raises(ValidationError, match="is no origin"):
        Settings(cors_origins=[origin])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["its own and of localhost", "called as localhost", "RUNS_ES_CORS_ORIGINS", "RUNS_ES_ALLOWED_HOSTS"]),
        ({"cors_origins": ["https://app.example"]}, ["https://app.example"]),
        ({"allowed_hosts": ["api.example"]}, ["called as localhost, api.example"]),
        ({"cors_origins": ["*"]}, ["any origin", "RUNS_ES_CORS_ORIGINS"]),
    ],
)
def test_the_start_says_who_may_ask_and_why(changes: dict[str, Any], words: list[str]):
    said = str(BrowserRules(Settings(**changes), is_local=True))
    assert [each for each in words if each not in said] == []

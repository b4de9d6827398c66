"""The default `serve`, and pages in a browser of the same machine: a foreign one reads, starts and deletes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.acceptance.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

RUN = '{"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": "hello"}]}}'
# Each returns what a page got to see. A page may send more than it can read, so the server is looked at afterwards.
ATTEMPTS = {
    "read": "fetch(`${url}/threads/${thread}`).then(r => r.text())",
    "read_opaque": "fetch(`${url}/threads/${thread}`, {mode: 'no-cors'}).then(r => r.text())",
    "read_with_xhr": """new Promise((seen, failed) => {
        const request = new XMLHttpRequest();
        request.onload = () => seen(request.responseText); request.onerror = () => failed('xhr');
        request.open('GET', `${url}/threads/${thread}`); request.send() })""",
    "search": """fetch(`${url}/threads/search`, {method: 'POST', body: '{}',
        headers: {'Content-Type': 'application/json'}}).then(r => r.text())""",
    "events": """new Promise((seen, failed) => {
        const source = new EventSource(`${url}/threads/${thread}/events`);
        source.onopen = () => seen('open'); source.onerror = () => { source.close(); failed('events') } })""",
    "websocket": """new Promise((seen, failed) => {
        const socket = new WebSocket(url.replace('http', 'ws'));
        socket.onopen = () => seen('open'); socket.onerror = () => failed('websocket') })""",
    "start": """fetch(`${url}/runs/wait`, {method: 'POST', body: run,
        headers: {'Content-Type': 'application/json'}}).then(r => r.text())""",
    "start_as_text": "fetch(`${url}/runs`, {method: 'POST', mode: 'no-cors', body: run}).then(r => r.text())",
    "beacon": "Promise.resolve(navigator.sendBeacon(`${url}/threads`, new Blob([], {type: 'text/plain'})) && '')",
    "form": """new Promise(seen => {
        const frame = document.createElement('iframe'); frame.name = 'into'; document.body.append(frame);
        const form = document.createElement('form'); document.body.append(form);
        Object.assign(form, {method: 'POST', action: `${url}/threads`, target: 'into'});
        frame.onload = () => { try { seen(frame.contentDocument.body.innerText) } catch { seen('') } };
        form.submit() })""",
    "make": "fetch(`${url}/threads`, {method: 'POST', mode: 'no-cors'}).then(r => r.text())",
    "delete": "fetch(`${url}/threads/${thread}`, {method: 'DELETE'}).then(r => r.text())",
    "picture": """new Promise((seen, failed) => {
        const image = new Image(); image.onload = () => seen('loaded'); image.onerror = () => failed('image');
        image.src = `${url}/threads/${thread}` })""",
    "frame": """new Promise(seen => {
        const frame = document.createElement('iframe'); document.body.append(frame);
        frame.onload = () => { try { seen(frame.contentDocument.body.innerText) } catch { seen('') } };
        frame.src = `${url}/docs` })""",
}


class Blank(BaseHTTPRequestHandler):
    """An empty page, whatever is asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>page</title><body></body>")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def pages() -> Iterator[int]:
    """The port of a web server with empty pages."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    with Server(database_url) as server:
        yield server


def attempt(page: Page, what: str, url: str, thread: str) -> str | None:
    """What the page saw; None when it was given nothing."""
    script = f"""async ([url, thread, run]) => {{
        try {{ return await ({ATTEMPTS[what]}) }} catch (error) {{ return null }} }}"""
    seen: str | None = page.evaluate(script, [url, thread, RUN])
    return seen


def counts(client: httpx.Client) -> tuple[int, list[Any]]:
    """How many threads there are, and all runs."""
    return client.post("/threads/count", json={}).json(), client.get("/runs").json()


def test_a_page_of_another_origin_reads_starts_and_deletes_nothing(browser: Browser, server: Server):
    with httpx.Client(base_url=server.url, timeout=30) as client, pages() as port:
        thread = client.post("/threads", json={"metadata": {"secret": "s3cret"}}).json()["thread_id"]
        before = counts(client)
        page = browser.new_page()
        for url in (server.url, f"http://localhost:{server.port}"):
            for what in ATTEMPTS:
                page.goto(f"http://evil.example:{port}/")  # a new page each: one attempt must not hinder the next
                assert attempt(page, what, url, thread) in (None, ""), (what, url)
        page.close()
        assert client.get(f"/threads/{thread}").status_code == 200
        assert counts(client) == before


def test_a_page_whose_name_was_pointed_at_this_machine_is_not_answered(browser: Browser, server: Server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        thread = client.post("/threads", json={"metadata": {"secret": "s3cret"}}).json()["thread_id"]
        before = counts(client)
        rebound = f"http://rebound.example:{server.port}"
        page = browser.new_page()
        answer = page.goto(f"{rebound}/ok")
        assert answer is not None
        assert answer.status == 403
        # Here it is the page's own origin, so it may read: refusals, and nothing else.
        for what in ("read", "search", "start", "make", "delete", "read_with_xhr"):
            seen = attempt(page, what, rebound, thread)
            assert seen is not None
            assert "RUNS_ES_ALLOWED_HOSTS" in seen
            assert "s3cret" not in seen
        assert attempt(page, "events", rebound, thread) is None
        page.close()
        assert client.get(f"/threads/{thread}").status_code == 200
        assert counts(client) == before


def test_a_page_on_localhost_works_with_the_default_settings(browser: Browser, server: Server):
    with httpx.Client(base_url=server.url, timeout=30) as client, pages() as port:
        thread = client.post("/threads", json={"metadata": {"secret": "s3cret"}}).json()["thread_id"]
        page = browser.new_page()
        page.goto(f"http://localhost:{port}/")
        assert "s3cret" in str(attempt(page, "read", server.url, thread))
        assert "s3cret" in str(attempt(page, "search", server.url, thread))
        assert attempt(page, "events", server.url, thread) == "open"
        assert "messages" in str(attempt(page, "start", server.url, thread))
        assert attempt(page, "delete", server.url, thread) == ""
        page.close()
        assert client.get(f"/threads/{thread}").status_code == 404


def test_the_servers_own_pages_work(browser: Browser, server: Server):
    page = browser.new_page()
    page.goto(f"{server.url}/docs")
    page.get_by_text("Create a thread").first.wait_for(timeout=30_000)
    page.close()

"""A receiver of webhooks on the loopback interface that answers as its script says, and keeps what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import orjson

LOOPBACK = '["127.0.0.0/8"]'


@dataclass(frozen=True)
class Delivered:
    """One request: `before` is how many with its id had been answered with 2xx when it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    before: int
    under_way: int  # others with its id

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> dict[str, Any]:
        return dict(orjson.loads(self.body))


# Of how many requests with its id have been made before, and the request: a status, or a status and headers.
Script = Callable[[int, Delivered], "int | tuple[int, dict[str, str]]"]


@dataclass
class Receiver:
    """Listens while entered. `script` is called in the request's thread, and may wait there."""

    script: Script = lambda *_: 200
    requests: list[Delivered] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._open: dict[str, int] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._answer(self)

            def do_GET(self) -> None:
                raise AssertionError("a webhook is a POST, and follows no redirect")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def wait_for(self, holds: Callable[[Self], bool], seconds: float = 30) -> None:
        """Until `holds(self)`; asked anew after each request and each answer."""
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self), seconds), f"the receiver has {len(self.requests)}"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["content-length"])
        body = handler.rfile.read(length)
        if len(body) < length:
            return  # whoever sent it was killed in the middle: no delivery
        headers = {name.lower(): value for name, value in handler.headers.items()}
        key = headers["webhook-id"]
        with self._changed:
            made = sum(each.id == key for each in self.requests)
            under_way = self._open.get(key, 0)
            request = Delivered(handler.path, headers, body, self.acknowledged.get(key, 0), under_way)
            self.requests.append(request)
            self._open[key] = under_way + 1
            self._changed.notify_all()
        try:
            answer = self.script(made, request)
            status, extra = answer if isinstance(answer, tuple) else (answer, {})
            with self._changed:
                # Before it goes out: from here on it counts as acknowledged.
                if 200 <= status < 300:
                    self.acknowledged[key] = self.acknowledged.get(key, 0) + 1
                self._changed.notify_all()
            handler.send_response(status)
            for name, value in {"content-length": "0", **extra}.items():
                handler.send_header(name, value)
            handler.end_headers()
        except OSError:
            pass  # who sent it has gone
        finally:
            with self._changed:
                self._open[key] -= 1
                self._changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

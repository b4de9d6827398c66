"""A real server in a process of its own, and a reader of its raw streams; for the acceptance tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

# Bounds for what hangs, far above what a slow and busy machine takes.
START_SECONDS = 180
END_SECONDS = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`runs-es serve` on a port of its own. The port stays the same over restarts."""

    def __init__(
        self,
        database_url: str,
        *,
        config: Path | None = None,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [str(Path(sys.executable).parent / "runs-es"), "serve", "--port", str(self.port)]
        self._command += options
        if config is not None:
            self._command += ["--config", str(config)]
        self._env = {**os.environ, "RUNS_ES_DATABASE_URL": database_url, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe that nobody reads would stop the server)

    def unset(self, name: str) -> None:
        """Start without this environment variable."""
        del self._env[name]

    def start(self) -> Self:
        """Start, and return once `/ok` answers."""
        self._process = subprocess.Popen(self._command, env=self._env, stdout=self._log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self._process.kill()  # nobody leaves a block that was not entered
            self._process.wait()
            raise
        return self

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None:
                raise AssertionError(f"the server ended: {self.output[-3000:]}")
            try:
                if httpx.get(f"{self.url}/ok", timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the server does not answer /ok"
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)  # tries again a little later, unless it has ended

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has printed so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and wait until it has drained; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(END_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        if kind is not None:
            sys.stderr.write(self.output[-4000:])
        self._log.close()


@dataclass
class Received:
    """What a client got of a stream: whole events, as bytes, in order."""

    events: list[tuple[int | None, bytes]] = field(default_factory=list)
    location: str = ""

    @property
    def ids(self) -> list[int]:
        return [seq for seq, _ in self.events if seq is not None]

    @property
    def raw(self) -> bytes:
        return b"".join(body for _, body in self.events)


def split_events(buffer: bytes) -> tuple[list[tuple[int | None, bytes]], bytes]:
    """Whole events at the head of `buffer`, comment lines left out, and the rest."""
    *whole, rest = buffer.split(b"\r\n\r\n")
    events = []
    for part in whole:
        lines = [line for line in part.split(b"\r\n") if not line.startswith(b":")]
        seq = next((int(line[4:]) for line in lines if line.startswith(b"id: ")), None)
        events.append((seq, b"\r\n".join(lines) + b"\r\n\r\n"))
    return events, rest


@contextmanager
def streaming(client: httpx.Client, method: str, path: str, **request: Any) -> Iterator[tuple[Received, Iterator[int]]]:
    """A stream being read: what has come so far, and an iterator that reads on, yielding the number of events."""
    received = Received()
    with client.stream(method, path, **request) as response:
        assert response.status_code == 200, response.read()
        received.location = response.headers.get("location", "")

        def read_on() -> Iterator[int]:
            rest = b""
            for chunk in response.iter_raw():
                events, rest = split_events(rest + chunk)
                received.events += events
                yield len(received.events)

        yield received, read_on()


def read_stream(client: httpx.Client, method: str, path: str, **request: Any) -> Received:
    """A stream to its end."""
    with streaming(client, method, path, **request) as (received, reading):
        for _ in reading:
            pass
    return received

"""A proxy before PostgreSQL's socket that keeps the end of a statement back: the server has executed it and waits, its
transaction open, as for a client that froze between two packets.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from tests.log.cutting_proxy import CHUNK, CuttingProxy, cut_off

_SYNC = b"S\x00\x00\x00\x04"  # the last message of a statement: only with it the server commits


class HoldingProxy(CuttingProxy):
    """Once `hold` was called, the next statement with `marker` in it is not committed until `release`."""

    def __init__(self, url: str, folder: Path) -> None:
        self._marker: bytes | None = None
        self._on_hold: Callable[[], object] = lambda: None
        self._released = threading.Event()
        self.held = threading.Event()
        super().__init__(url, folder)

    def hold(self, marker: bytes, on_hold: Callable[[], object]) -> None:
        """`on_hold` is called while the statement is being held."""
        self._on_hold, self._marker = on_hold, marker

    def release(self) -> None:
        self._released.set()

    def _upstream(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        try:
            while data := client.recv(CHUNK):
                if self._marker is not None and self._marker in data and data.endswith(_SYNC):
                    self._marker = None
                    server.sendall(data[: -len(_SYNC)])
                    self._on_hold()
                    self.held.set()
                    self._released.wait()
                    data = _SYNC
                server.sendall(data)
        except OSError:
            pass
        cut_off(server)

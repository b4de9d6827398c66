"""A proxy before PostgreSQL's socket that keeps a statement back, or its end: the server waits, its transaction open,
as for a client that froze between two packets.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from tests.log.cutting_proxy import CuttingProxy, marked

_SYNC = b"S\x00\x00\x00\x04"  # the last message of a statement: only with it the server commits


class HoldingProxy(CuttingProxy):
    """Once `hold` was called, the next statement with all `markers` in it is not committed until `release`, and never
    after `drop`.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._markers: tuple[bytes, ...] = ()
        self._whole = False
        self._on_hold: Callable[[], object] = lambda: None
        self._released = threading.Event()
        self._dropped = False
        self.held = threading.Event()
        super().__init__(url, folder)

    def hold(self, *markers: bytes, on_hold: Callable[[], object], whole: bool = False) -> None:
        """`on_hold` is called while the statement is being held: executed up to its commit, or, where it is held as a
        `whole`, not even begun.
        """
        self._released.clear()
        self.held.clear()
        self._dropped = False
        self._on_hold, self._whole, self._markers = on_hold, whole, markers

    def release(self) -> None:
        self._released.set()

    def drop(self) -> None:
        """Let the server see that the connection is dead, and what was held never come."""
        self._dropped = True
        self._released.set()

    def _sent(self, data: bytes, server: socket.socket, cut: threading.Event) -> bytes:
        data = super()._sent(data, server, cut)
        if not marked(data, self._markers) or not (self._whole or data.endswith(_SYNC)):
            return data
        self._markers = ()
        if not self._whole:
            server.sendall(data[: -len(_SYNC)])
            data = _SYNC
        self._on_hold()
        self.held.set()
        self._released.wait()
        if self._dropped:
            raise ConnectionAbortedError
        return data

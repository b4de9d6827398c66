"""A proxy before PostgreSQL's socket that can keep a reply back and cut the connection: the lost acknowledgement."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from psycopg import conninfo

CHUNK = 65536


class CuttingProxy:
    """Listens on a unix socket of its own. Once `arm` was called, the next connection on which the client sends a
    statement containing all `markers` loses the reply: the server executes it, the client sees the connection die.
    """

    def __init__(self, url: str, folder: Path) -> None:
        parts = conninfo.conninfo_to_dict(url)
        port = str(parts.get("port") or 5432)
        self._server = str(Path(str(parts["host"])) / f".s.PGSQL.{port}")
        self.url = conninfo.make_conninfo(url, host=str(folder))
        self.cuts = 0
        self.before_cut: Callable[[], object] = lambda: None
        self._armed: tuple[bytes, ...] = ()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / f".s.PGSQL.{port}"))
        self._listener.listen(16)
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def arm(self, *markers: bytes) -> None:
        """Cut the connection that sends all `markers` at once, one time, after the server has answered."""
        self._armed = markers

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cut_off(self._listener)
        self._thread.join()  # one that it is just accepting is to be closed too
        for each in (self._listener, *self._sockets):
            cut_off(each)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            self._sockets += [client, server]
            server.connect(self._server)
            cut = threading.Event()
            threading.Thread(target=self._upstream, args=(client, server, cut), daemon=True).start()
            threading.Thread(target=self._downstream, args=(server, client, cut), daemon=True).start()

    def _upstream(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        try:
            while data := client.recv(CHUNK):
                server.sendall(self._sent(data, server, cut))
        except OSError:
            pass
        cut_off(server)

    def _sent(self, data: bytes, _: socket.socket, cut: threading.Event) -> bytes:
        """What of this the server is still to get. Raises ConnectionError when it is to get nothing more."""
        if marked(data, self._armed):
            self._armed = ()
            cut.set()
        return data

    def _downstream(self, server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        try:
            while data := server.recv(CHUNK):
                if cut.is_set():
                    # The reply is here, so the statement is committed: now the client must not hear of it.
                    self.before_cut()
                    self.cuts += 1
                    break
                client.sendall(data)
        except OSError:
            pass
        cut_off(client)
        cut_off(server)


def marked(data: bytes, markers: tuple[bytes, ...]) -> bool:
    return bool(markers) and all(marker in data for marker in markers)


def cut_off(each: socket.socket) -> None:
    # Shut down, not closed: another thread may be waiting in it, and is to wake.
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)

"""Debian's PgBouncer in front of a test database, in a process of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg import conninfo

from tests.acceptance.server import free_port

START_SECONDS = 20


@contextmanager
def pgbouncer(database_url: str, folder: Path, mode: str, more: str = "") -> Iterator[str]:
    """The URL of the same database through a PgBouncer in this mode, session or transaction; `more` are settings."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert found is not None, "PgBouncer is missing: apt-get install pgbouncer"
    parts, port = conninfo.conninfo_to_dict(database_url), free_port()
    target = " ".join(
        f"{name}={parts[name]}" for name in ("host", "port", "dbname", "user", "password") if name in parts
    )
    (folder / "users.txt").write_text(f'"{parts["user"]}" ""\n')
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\nstore = {target}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {folder}/users.txt\npool_mode = {mode}\ndefault_pool_size = 150\nmax_client_conn = 300\n{more}"
    )
    command = [found, "-q", str(configuration)]
    if os.geteuid() == 0:
        for path in (folder, *folder.glob("*.*")):
            path.chmod(0o755)
        # It does not run as root; the account of an embedded server may enter the folder of its socket.
        owner = os.stat(parts["host"]).st_uid if str(parts.get("host", "")).startswith("/") else 0
        command[1:1] = ["-u", pwd.getpwuid(owner).pw_name if owner else "nobody"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_it_listens(process, port)
        yield f"postgresql://{parts['user']}@127.0.0.1:{port}/store"
    finally:
        process.terminate()
        process.wait(10)


def _until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, "PgBouncer ended"
            assert time.monotonic() < deadline, "PgBouncer does not listen"
            time.sleep(0.02)

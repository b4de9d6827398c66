"""What the machine gives: commits of the disk, by pgbench; and a Redis server beside ours, where one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from runs_es.database.binaries import account_for, programs_for
from tests.acceptance.server import free_port
from tests.benchmarks.figures import console

_CLIENTS = 16
_SECONDS = 1


def commits_a_second(url: str) -> float:
    """Durable transactions of one small insert each, by `pgbench` with 16 clients."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table if not exists commits (at timestamptz not null)")
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write("insert into commits values (clock_timestamp());")
        script.flush()
        command = [_pgbench(), "--no-vacuum", f"--client={_CLIENTS}", "--jobs=1", f"--time={_SECONDS}"]
        command += ["--protocol=prepared", f"--file={script.name}", url]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"tps = ([0-9.]+)", answer.stdout)
    assert found is not None, answer.stdout
    return float(found[1])


def _pgbench() -> str:
    installation = programs_for(account_for(Path.cwd()))  # the benchmark runs on the embedded server
    return str(installation / "bin" / "pgbench")


@contextmanager
def redis_server() -> Iterator[str | None]:
    """The URL of a Redis server that syncs each write to the disk, or None, with a word, where there is none."""
    if shutil.which("redis-server") is None:
        console.print("redis-server is not installed: left out", style="dim")
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            url = f"redis://127.0.0.1:{port}"
            with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 100)) as client:
                client.ping()
            yield url
        finally:
            process.terminate()
            process.wait()

"""A process that runs a live projector: `python -m tests.projections.following URL BATCH`, until its stdin closes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from runs_es.log.event_log import EventLog
from runs_projections import LiveProjector


@contextmanager
def following(url: str, batch: int = 500) -> Iterator[subprocess.Popen[str]]:
    """Start one; it leads something when this returns. Killed at the end, if not before."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.projections.following", url, str(batch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def main(url: str, batch: int) -> None:
    with EventLog(url) as log, LiveProjector(log, batch=batch) as projector:
        projector.wait_for(0, 10)
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""File locks (flock) between processes. The kernel drops them with the last process that holds the file open.

That is the whole point: no kill, no reused pid and no zombie leaves one behind, and a child that inherits the
descriptor keeps the lock alive for exactly as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runs_es.database.errors import DatabaseUnavailable

_POLL_SECONDS = 0.02


class FileLock:
    """One lock held on one file, released by `release` or by the end of every process that shares the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def release(self) -> None:
        # Closing, not LOCK_UN: unlocking would take the lock from a child that inherited the descriptor too.
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def try_lock(path: Path, *, shared: bool = False) -> FileLock | None:
    """Take the lock now, or return None because somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


@contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock alone; wait for it at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (lock := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise DatabaseUnavailable(f"Another process has held {path} for {timeout:.0f} s")
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()

"""Ctrl+C twice: the first time a process stops in order, the second time it ends at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

AGAIN = "Ctrl+C again to end at once"
_EXIT_CODE = 130  # as a shell says it of a process that SIGINT ended


class Interrupts:
    """A handler of SIGINT: calls `on_first`, which may raise, and ends the process the next time."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self.stopping = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            end_at_once()
        self.stopping = True
        self._on_first()


def end_at_once() -> NoReturn:
    """End the process without waiting for anything: as after a kill, other workers take its runs over."""
    with suppress(Exception):  # the signal may have come in the middle of a write
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, b"ended at once: runs that were under way are taken over when their lease is over\n")
    os._exit(_EXIT_CODE)

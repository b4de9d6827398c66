"""The store's own threads for what blocks. Agents have the event loop's default ones: a graph whose synchronous nodes
hang there for ever, with their runs timed out long ago, must not keep the worker from claiming and ending runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from runs_es.database.outage import be_patient

T = TypeVar("T")

_THREADS = 32
_WAIT_SECONDS = 30.0  # for the database: a run waits longer than a request, whose client waits for an answer
_threads = ThreadPoolExecutor(_THREADS, "runs-es worker", lambda: be_patient(_WAIT_SECONDS))


async def blocking(function: Callable[..., T], *arguments: object, **named: object) -> T:
    """Call `function` in one of the threads, in the caller's context: what it logs names the caller's run."""
    call = partial(copy_context().run, function, *arguments, **named)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)

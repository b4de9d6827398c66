"""`?as_of=SEQ` and `?as_of_time=TIME`: what a route answers as of an earlier moment of its thread."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Query

from runs_api.caller import Caller
from runs_api.edge import Edge
from runs_api.outlived import last_seq
from runs_es.domain import RunNotFound, ThreadNotFound
from runs_es.service.views import RunSnapshot, ThreadSnapshot
from runs_es.streams.cursor import MAX_SEQ
from runs_projections.past import AsOf, Past

_UNESCAPED_PLUS = re.compile(r" (?=\d\d:?\d\d$)")


async def _as_of(
    seq: Annotated[
        int | None,
        Query(alias="as_of", ge=0, le=MAX_SEQ, description="as it was when the thread had come to this seq"),
    ] = None,
    time: Annotated[
        str | None, Query(alias="as_of_time", description="as it was at this time (ISO 8601 with offset)")
    ] = None,
) -> AsOf | None:
    if seq is None and time is None:
        return None
    if time is not None:
        time = _UNESCAPED_PLUS.sub("+", time)  # what a plus becomes in a query that was not escaped
    return AsOf(seq, time)


AsOfQuery = Annotated[AsOf | None, Depends(_as_of)]


def as_of_header(seq: int) -> dict[str, str]:
    """Which seq an answer is as of; for a time, the one that it meant."""
    return {"X-Runs-As-Of": str(seq)}


async def thread_as_of(edge: Edge, caller: Caller, thread_id: str, moment: AsOf) -> tuple[ThreadSnapshot, int]:
    """The thread as it was, and the seq that the moment means. Raises ThreadNotFound where it was not there."""
    past = Past(edge.store.log.reader)
    await _must_be_there(edge, caller, thread_id)
    seq = await edge.read(past.shown_at, thread_id, moment)
    thread = await edge.read(past.thread, thread_id, seq, caller.user_id)
    if thread is None:
        raise ThreadNotFound(thread_id)
    return thread, seq


async def run_as_of(edge: Edge, caller: Caller, thread_id: str, run_id: str, moment: AsOf) -> tuple[RunSnapshot, int]:
    """The run as it was, and the seq that the moment means: also of one that was deleted since. Raises RunNotFound."""
    past = Past(edge.store.log.reader)
    if await _outlived(edge, caller, thread_id, run_id):
        seq = await edge.read(past.seq_at, thread_id, moment)
    else:
        await _must_be_there(edge, caller, thread_id)
        seq = await edge.read(past.shown_at, thread_id, moment)
    run = await edge.read(past.run, thread_id, run_id, seq, caller.user_id)
    if run is None:
        raise RunNotFound(run_id)
    return run, seq


async def _outlived(edge: Edge, caller: Caller, thread_id: str, run_id: str) -> bool:
    """Whether this is a stateless run that the caller may see, and whose thread has gone."""
    try:
        return await last_seq(edge, caller, thread_id, run_id) is not None
    except RunNotFound:  # it may have been deleted since the moment that is asked for
        return False


async def _must_be_there(edge: Edge, caller: Caller, thread_id: str) -> None:
    """Now: of a deleted thread nothing is shown, whenever it is asked about."""
    if await edge.read(edge.store.threads.get, thread_id, caller.user_id) is None:
        raise ThreadNotFound(thread_id)

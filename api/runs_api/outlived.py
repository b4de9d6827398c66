"""Stateless runs whose temporary thread has gone: their log stays readable, for whoever may join their stream."""

from __future__ import annotations

from runs_api.caller import Caller
from runs_api.edge import Edge
from runs_es.domain import RunNotFound
from runs_es.log.reader import LogReader
from runs_es.service.commands import GetRunQuery
from runs_projections.lookups import gone_at


async def last_seq(edge: Edge, caller: Caller, thread_id: str, run_id: str) -> int | None:
    """The last seq at which the run was there, when it has outlived its thread; None while its thread is there.

    Raises RunNotFound unless the caller may see the run.
    """
    query = GetRunQuery(run_id=run_id, thread_id=thread_id, user_id=caller.user_id)
    if await edge.store.service.get_run(query) is not None:
        return None
    if await edge.store.service.get_recorded_run(query) is None:
        raise RunNotFound(run_id)
    return await edge.read(_before_it_went, edge.store.log.reader, thread_id, run_id)


def _before_it_went(reader: LogReader, thread_id: str, run_id: str) -> int:
    bounds = reader.bounds(thread_id, run_id)
    went = gone_at(reader, thread_id, bounds.created) if bounds is not None else None
    if went is None:  # erased, or back again
        raise RunNotFound(run_id)
    return went - 1

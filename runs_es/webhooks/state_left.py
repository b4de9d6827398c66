"""The state that a graph's run left, for runs that streamed no values: at the checkpoint that the run ended with."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from runs_es.domain import RunScope
from runs_es.execution.langgraph.graphs import GraphLoadError, GraphRegistry
from runs_es.execution.langgraph.saver import open_checkpoint_pool
from runs_es.execution.langgraph.state import GraphStateReader
from runs_es.service.views import RunSnapshot
from runs_es.webhooks.payload import StateLeft

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_state_left(registry: GraphRegistry, url: str, schema: str) -> AsyncIterator[StateLeft]:
    """A reader on the event loop that enters. `schema` is the log's."""
    async with open_checkpoint_pool(url, schema, 1) as pool:
        reader = GraphStateReader(registry, pool)

        async def state_left(run: RunSnapshot) -> Any:
            configurable = (run.kwargs.get("config") or {}).get("configurable") or {}
            graph_id = configurable.get("graph_id")
            # A temporary thread's checkpoints go at some moment: no attempt is to depend on which.
            if run.checkpoint_id is None or graph_id is None or run.scope is RunScope.TEMPORARY_THREAD:
                return None
            try:
                return await reader.values(run.thread_id, str(graph_id), run.checkpoint_id)
            except GraphLoadError as error:
                # Gone from the configuration since. To try again would not bring it back, and it ended all the same.
                logger.warning("the webhook of run %s comes without values: %s", run.run_id, error)
                return None

        yield state_left

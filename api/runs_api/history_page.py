"""The history of a run as a page to look at: every fact, who, when and why, and what the run was at each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from runs_api.caller import CallerOf
from runs_api.edge import EdgeOf
from runs_api.history import what
from runs_api.outlived import last_seq
from runs_api.requests import RunIdPath, ThreadIdPath
from runs_api.responses import ERRORS, encoded
from runs_es.domain import Recorded
from runs_es.log.reader import LogReader

router = APIRouter(prefix="/threads/{thread_id}/runs", tags=["Runs"], responses=ERRORS)

MOST = 2000  # facts on a page
_PAGE = Path(__file__).with_name("history.html")
# Nothing from elsewhere, and nothing that a message says is run.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@router.get(
    "/{run_id}/history",
    response_class=Response,
    summary="Look at the history of a run",
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def show_history(thread_id: ThreadIdPath, run_id: RunIdPath, edge: EdgeOf, caller: CallerOf) -> Response:
    """A page for a browser, with a slider over what the run was. Also of a stateless run whose thread has gone."""
    await last_seq(edge, caller, thread_id, run_id)  # whether the caller may see it
    facts = await edge.read(_facts, edge.store.log.reader, thread_id, run_id)
    data = {
        "thread_id": thread_id,
        "run_id": run_id,
        "facts": [_row(fact) for fact in facts[:MOST]],
        "more": len(facts) > MOST,
    }
    # In a script element only `<` can end it.
    told = encoded(data).decode().replace("<", "\\u003c")
    return HTMLResponse(_PAGE.read_text(encoding="utf-8").replace("{data}", told, 1), headers=_HEADERS)


def _facts(reader: LogReader, thread_id: str, run_id: str) -> list[Recorded]:
    return reader.facts(thread_id, run_id=run_id)


def _row(fact: Recorded) -> dict[str, Any]:
    return {
        "seq": fact.seq,
        "when": fact.recorded_at[:23].replace("T", " "),
        "what": what(fact.fact),
        "who": fact.provenance.actor or "",
        "why": fact.provenance.reason or "",
    }

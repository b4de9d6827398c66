"""`runs-es webhooks list | retry`: how deliveries stand, and beginning anew with those that were given up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import orjson
import typer

from runs_api.terminal import Refused, command_settings, migrated_database, out, printable
from runs_es.log.event_log import EventLog
from runs_es.webhooks.addresses import host_of
from runs_es.webhooks.deliveries import Deliveries, WebhookStatus

app = typer.Typer(help="How webhooks stand, and trying again.", no_args_is_help=True, add_completion=False)


class State(StrEnum):
    WAITING = "waiting"
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@app.command("list")
def list_webhooks(
    state: Annotated[State | None, typer.Option("--state", help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many at most.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a webhook.")] = False,
) -> None:
    """Webhooks, a line each, those of runs that ended last first; exit code 1 when one of them was given up."""
    with _deliveries() as deliveries:
        found = deliveries.list(state.value if state is not None else None, limit)
    for each in found:
        if json:
            sys.stdout.write(orjson.dumps(_as_json(each)).decode() + "\n")
        else:
            out.print(_line(each), markup=False)
    raise typer.Exit(1 if any(each.state == State.FAILED for each in found) else 0)


@app.command()
def retry(
    run: Annotated[str | None, typer.Argument(help="Id of the run.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that were given up.")] = False,
) -> None:
    """Begin anew with webhooks that were given up, with as many attempts as a new one has."""
    if (run is None) is not every:
        raise Refused("name a run, or say --all", 2)
    with _deliveries() as deliveries:
        count = deliveries.retry(run_id=run)
    if run is not None and not count:
        raise Refused(f"run {run} has no webhook that was given up; see `runs-es webhooks list`")
    out.print(f"{count} due now; a process that executes runs sends them")


def _as_json(webhook: WebhookStatus) -> dict[str, Any]:
    """All but the path of the URL, which may be a secret."""
    told = asdict(webhook)
    return {"host": host_of(told.pop("url")), **told}


def _line(webhook: WebhookStatus) -> str:
    parts = [webhook.run_id, f"{webhook.state:<9}", f"attempts {webhook.attempts}", printable(host_of(webhook.url))]
    if webhook.next_attempt_at is not None:
        parts.append(f"next {webhook.next_attempt_at}")
    if webhook.last_error is not None:
        parts.append(printable(webhook.last_error))
    return "  ".join(parts)


@contextmanager
def _deliveries() -> Iterator[Deliveries]:
    settings = command_settings()
    with migrated_database(settings) as database, EventLog(database.url, settings.db_schema, pool_size=2) as log:
        yield Deliveries(log.reader)

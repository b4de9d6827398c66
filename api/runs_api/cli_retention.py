"""`runs-es retain` and `runs-es erase`: what goes from the log, when, and what comes back for it."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import orjson
import typer
from psycopg import Connection
from psycopg.errors import LockNotAvailable
from rich.table import Table
from rich.text import Text

from runs_api.terminal import Refused, command_settings, migrated_database, out, size_of, user, where
from runs_es.domain import ConflictError, Provenance, RunStatus, ThreadNotFound
from runs_es.log import retention
from runs_es.log.event_log import EventLog
from runs_es.log.retention import Action, Erasable, Plan, Step
from runs_es.settings import Settings

_DONE = {Action.KEEP: "kept", Action.ROTATE: "closed", Action.DROP: "dropped"}
_WOULD = {Action.KEEP: "keep", Action.ROTATE: "close", Action.DROP: "drop"}
_COLUMNS = ("segment", "created", "size", "rows", "what", "why")
_PROJECTION_SECONDS = 30.0


class Ended(StrEnum):
    """How a run can have ended."""

    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"


def retain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")] = False,
    status: Annotated[
        list[Ended] | None, typer.Option("--status", help="Delete the frames of runs that ended so, and do no more.")
    ] = None,
    thread: Annotated[
        str | None, typer.Option("--thread", help="Delete the frames of this thread's ended runs, and do no more.")
    ] = None,
    older_than_days: Annotated[
        float, typer.Option("--older-than-days", min=0, help="With --status or --thread: ended so long ago.")
    ] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object: segments, and what came back.")] = False,
) -> None:
    """Drop streamed frames that are no longer to be kept (RUNS_ES_KEEP_STREAMS_*); what happened stays on record."""
    settings = command_settings()
    if older_than_days and not (status or thread):
        raise Refused(
            "--older-than-days goes with --status or --thread; by age alone, set RUNS_ES_KEEP_STREAMS_DAYS", 2
        )
    with (
        migrated_database(settings) as database,
        retention.connect(database.url, settings.db_schema) as connection,
    ):
        try:
            if status or thread:
                _retain_runs(connection, status or None, thread, older_than_days, dry_run, json)
            else:
                _retain_segments(connection, settings, dry_run, json)
        except retention.RetentionBusy as error:
            raise Refused(str(error)) from error
        except LockNotAvailable as error:
            raise Refused(
                "a long transaction still reads the log (see pg_stat_activity); run `runs-es retain` again to finish"
            ) from error


def _retain_segments(connection: Connection[Any], settings: Settings, dry_run: bool, json: bool) -> None:
    plan = (retention.plan if dry_run else retention.apply)(connection, settings)
    if json:
        sys.stdout.write(orjson.dumps(_as_json(plan, dry_run)).decode() + "\n")
        return
    _print(plan, dry_run)
    if not retention.is_asked_for(settings):
        out.print("nothing is dropped: set RUNS_ES_KEEP_STREAMS_DAYS or RUNS_ES_KEEP_STREAMS_BYTES")


def _retain_runs(
    connection: Connection[Any], ended: list[Ended] | None, thread: str | None, days: float, dry_run: bool, json: bool
) -> None:
    statuses = None if ended is None else [RunStatus(each.value) for each in ended]
    deleted = retention.delete_pages(
        connection, thread_id=thread, statuses=statuses, older_than_days=days, dry_run=dry_run
    )
    if json:
        told = {"dry_run": dry_run, "pages": deleted.rows, "runs": deleted.runs}
        sys.stdout.write(orjson.dumps(told).decode() + "\n")
        return
    out.print(f"{deleted.rows:,} pages of {deleted.runs:,} runs {'would be deleted' if dry_run else 'deleted'}")


def _as_json(plan: Plan, dry_run: bool) -> dict[str, Any]:
    segments = [
        {
            "segment": step.segment.number,
            "created_at": step.segment.created_at.isoformat(),
            "bytes": step.segment.size,
            "rows": step.rows,
            "action": step.action.value,
            "why": step.why,
        }
        for step in plan.steps
    ]
    return {"dry_run": dry_run, "segments": segments, "bytes_back": plan.bytes_back, "runs_that_lose_frames": plan.runs}


def _print(plan: Plan, dry_run: bool) -> None:
    words = _WOULD if dry_run else _DONE
    if out.is_terminal:
        table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
        for number in (0, 2, 3):
            table.columns[number].justify = "right"
        for step in plan.steps:
            table.add_row(*map(Text, _row(step, words)), style="red" if step.action is Action.DROP else None)
        out.print(table, soft_wrap=False)
    else:
        for row in (_COLUMNS, *(_row(step, words) for step in plan.steps)):
            sys.stdout.write("\t".join(row) + "\n")
    if plan.drops:
        would = "would come" if dry_run else "came"
        lose = "would lose" if dry_run else "lost"
        out.print(f"{size_of(plan.bytes_back)} {would} back; {plan.runs:,} runs {lose} frames")


def _row(step: Step, words: dict[Action, str]) -> tuple[str, ...]:
    segment = step.segment
    rows = f"{step.rows:,}" if step.runs is not None else f"~{step.rows:,}"
    created = segment.created_at.isoformat(" ", "seconds")
    return str(segment.number), created, size_of(segment.size), rows, words[step.action], step.why


def erase(
    thread: Annotated[str, typer.Argument(help="A thread's id.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays on record.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="End its active runs too.")] = False,
) -> None:
    """Delete a thread for good: runs, messages, frames. Who did it, when and why is all that stays.

    Looks first, says how much there is, and then asks.
    """
    from runs_projections.live import LiveProjector
    from runs_projections.loading import load_projections

    if not reason.strip():
        raise Refused("--reason must say something: it is all that will be left", 2)
    settings = command_settings()
    with (
        migrated_database(settings) as database,
        EventLog(database.url, settings.db_schema, pool_size=2) as log,
    ):
        provenance = Provenance(actor=f"shell:{user()}", reason=reason.strip())
        try:
            found = retention.erasable(log, thread, force=force)
            if found.is_nothing:
                raise Refused(f"thread {thread} was erased before; nothing of it is left in {where(settings)}")
            if not yes:
                typer.confirm(f"Erase thread {thread} for good: {_contents(found)}?", abort=True)
            with LiveProjector(log, load_projections(settings)) as projector:
                erased = retention.erase_thread(log, thread, provenance=provenance, force=force)
                is_applied = projector.wait_for(erased.position, _PROJECTION_SECONDS)
        except ThreadNotFound as error:
            raise Refused(f"there is no thread {thread} in {where(settings)}") from error
        except ConflictError as error:
            raise Refused(f"{error} (--force)") from error
    out.print(Text(f"erased thread {thread}: {erased.rows:,} rows; event {erased.seq} says who and why"))
    out.print("its checkpoints go with the next sweep of a worker")
    if not is_applied:
        raise Refused("the read models still lag behind; they lose the thread as soon as a server has caught up")


def _contents(found: Erasable) -> str:
    active = f" ({found.active:,} not ended)" if found.active else ""
    return f"{found.runs:,} runs{active}, {found.facts:,} facts and {found.pages:,} pages of frames"

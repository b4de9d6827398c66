"""`runs-es restored` and `runs-es not-lost`: what an operator says of a database that was restored or failed over."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runs_api.terminal import Refused, command_settings, err, migrated_database, out, user
from runs_es.log import restored as restores
from runs_es.log.numbers import MAX_EPOCH


def restored(
    lost_restores: Annotated[
        int,
        typer.Option(
            "--lost-restores",
            min=0,
            max=MAX_EPOCH // restores.SPREAD - 1,
            help="How often `restored` had been said between this backup and now, on what is lost.",
        ),
    ] = 0,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays on record.")] = "the database was restored",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Say that the database was restored, or failed over with a loss: clients of what is lost get a gap.

    Every thread's numbers go on 2^32 later, and writers are let in again. Killed, call it again: it goes on.
    """
    settings = command_settings()
    with migrated_database(settings) as database, restores.connect(database.url, settings.db_schema) as connection:
        before = restores.state_of(connection)
        count = restores.threads_left(connection, before)
        if before.is_raised and not yes:
            why = before.doubt or before.written_at.difference(before.place) or "nothing says that it was restored"
            out.print(f"{settings.db_schema}: {why}")
            typer.confirm(f"Let the numbers of {count:,} threads go on 2^32 later?", abort=True)
        try:
            with _progress() as progress:
                task = progress.add_task("threads", total=count)
                done = restores.restore_numbers(
                    connection,
                    lost_restores=lost_restores,
                    actor=f"shell:{user()}",
                    reason=reason.strip() or "the database was restored",
                    on_progress=lambda threads: progress.update(task, completed=threads),
                )
        except restores.RestoreBusy as error:
            raise Refused(str(error)) from error
        epoch = restores.state_of(connection).epoch
    out.print(f"{done:,} threads raised to epoch {epoch}; the log may be written to again")


def not_lost() -> None:
    """Say that nothing was lost, after a planned failover, a move or an upgrade: writers are let in again."""
    settings = command_settings()
    with migrated_database(settings) as database, restores.connect(database.url, settings.db_schema) as connection:
        before = restores.state_of(connection)
        try:
            restores.say_not_lost(connection)
        except restores.RestoreBusy as error:
            raise Refused(str(error)) from error
    why = before.doubt or before.written_at.difference(before.place)
    out.print(f"{why}: taken for the same history" if why else "there was no doubt about it")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, disable=not err.is_terminal, transient=True)

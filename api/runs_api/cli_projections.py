"""`runs-es projections`: how read models stand, what to do about one that stopped, and about what is left behind."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.table import Table
from rich.text import Text

from runs_api.terminal import Refused, command_settings, err, migrated_database, out, size_of, user
from runs_es.domain import Provenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from runs_es.log.event_log import EventLog
    from runs_projections.projection import AnyProjection
    from runs_projections.status import ProjectionStatus

app = typer.Typer(
    name="projections",
    help="How read models stand, and what to do about one that stopped.",
    no_args_is_help=True,
    add_completion=False,
)

Name = Annotated[str, typer.Argument(help="A read model that has stopped.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a read model.")]

_COLUMNS = ("name", "version", "state", "position", "behind", "lag", "led", "why")
_COLOURS = {"stopped": "red", "behind": "yellow"}


@app.command("list")
def show(json: AsJson = False) -> None:
    """Show every read model: where it stands, how far behind the log, whether a process follows for it, and why not."""
    _print(_statuses(), json)


@app.command()
def status(
    max_lag: Annotated[
        float, typer.Option("--max-lag", min=0, help="Seconds that a fact may wait until it shows.")
    ] = 60.0,
    json: AsJson = False,
) -> None:
    """As `list`; exit code 1 when a read model has stopped or lags, for monitoring."""
    statuses = _statuses()
    _print(statuses, json)
    stopped = [each for each in statuses if each.state == "stopped"]
    if stopped:
        first = stopped[0]
        raise Refused(
            f"{', '.join(each.name for each in stopped)} stopped. When the cause is mended:"
            f" `runs-es projections retry {first.name}`; to pass over the fact at position {first.failed_position}:"
            f" `runs-es projections skip {first.name} --reason TEXT`"
        )
    for each in (each for each in statuses if each.state == "left behind" and not json):
        err.print(
            f"version {each.version} of {each.name} is left behind: when no process of an older release runs any more,"
            f" `runs-es projections drop {each.name} {each.version}` takes it away"
        )
    late = [each.name for each in statuses if each.state != "left behind" and each.lag_seconds > max_lag]
    if late:
        raise Refused(f"{', '.join(late)}: more than {max_lag:g} s behind the log; is a server or worker running?")


@app.command()
def retry(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="What was mended; it stays on record.")] = "",
) -> None:
    """Let every process try the fact again at which a read model stopped."""
    from runs_projections import interventions

    position = _decide(interventions.retry, name, reason)
    out.print(f"{name}: position {position} is tried again within a second or two, by whichever process follows")


@app.command()
def skip(
    name: Name, reason: Annotated[str, typer.Option("--reason", help="Why it may be missing; it stays on record.")]
) -> None:
    """Let a read model pass over the fact at which it stopped, now and in every rebuild of this version."""
    from runs_projections import interventions

    if not reason.strip():
        raise Refused("--reason must say something: it is what is left of the fact in this read model", 2)
    position = _decide(interventions.skip, name, reason)
    out.print(f"{name}: position {position} is passed over; who and why is on record in the log")


@app.command()
def drop(
    name: Annotated[str, typer.Argument(help="A read model.")],
    version: Annotated[int, typer.Argument(min=1, help="The version that is left behind.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget a version that no release in use has any more, and what its table holds. Looks first, and then asks."""
    from runs_projections import removal, tracking
    from runs_projections.loading import load_projections

    settings = command_settings()
    projections = load_projections(settings)
    with (
        migrated_database(settings) as database,
        tracking.connect(database.url, settings.db_schema, "removal") as connection,
    ):
        try:
            found = removal.remains(connection, settings.db_schema, projections, name, version)
        except removal.NotLeftBehind as error:
            raise Refused(str(error)) from error
        table = f"and {size_of(found.size)} in the table {found.table}" if found.table else "which has no table here"
        if not yes:
            typer.confirm(f"Drop version {version} of {name}, {table}?", abort=True)
        removal.drop(connection, settings.db_schema, found)
    out.print(f"dropped version {version} of {name}, {table}")


def _decide(decide: Callable[[EventLog, AnyProjection, Provenance], int], name: str, reason: str) -> int:
    from runs_es.log.event_log import EventLog
    from runs_projections.interventions import NotStopped
    from runs_projections.loading import find, load_projections

    settings = command_settings()
    try:
        projection = find(load_projections(settings), name)
    except ValueError as error:
        raise Refused(str(error), 2) from error
    provenance = Provenance(actor=f"shell:{user()}", reason=reason.strip() or None)
    with (
        migrated_database(settings) as database,
        EventLog(database.url, settings.db_schema, pool_size=2) as log,
    ):
        try:
            return decide(log, projection, provenance)
        except NotStopped as error:
            raise Refused(str(error)) from error


def _statuses() -> list[ProjectionStatus]:
    from runs_projections import status as statuses
    from runs_projections import tracking
    from runs_projections.loading import load_projections

    settings = command_settings()
    projections = load_projections(settings)
    with (
        migrated_database(settings) as database,
        tracking.connect(database.url, settings.db_schema, "status") as connection,
    ):
        tracking.enter(connection, projections)
        return statuses.read(connection, settings.db_schema, projections)


def _print(statuses: list[ProjectionStatus], json: bool) -> None:
    if json:
        for each in statuses:
            sys.stdout.write(orjson.dumps(each).decode() + "\n")
    elif not out.is_terminal:
        for row in (_COLUMNS, *map(_row, statuses)):
            sys.stdout.write("\t".join(row) + "\n")
    else:
        table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
        for each in statuses:
            table.add_row(*map(Text, _row(each)), style=_COLOURS.get(each.state))
        out.print(table, soft_wrap=False)


def _row(status: ProjectionStatus) -> tuple[str, ...]:
    why = status.rebuild or ""
    if status.reason is not None:
        why = f"at position {status.failed_position}: {' '.join(status.reason.split())}"
    return (
        status.name,
        str(status.version),
        status.state,
        f"{status.position}",
        f"{status.behind}",
        f"{status.lag_seconds:.1f} s",
        "yes" if status.is_led else "no",
        "".join(each for each in why if each.isprintable()),
    )

"""`runs-es rebuild`: read models made again from the log beside the live ones, while the service runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from runs_api.terminal import Refused, command_settings, err, migrated_database, out

if TYPE_CHECKING:
    from runs_projections.projection import AnyProjection
    from runs_projections.rebuild import RebuildReport


def rebuild(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Read models: runs, messages, threads, usage, and your own; all by default."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Change nothing; compare with what the log says.")] = False,
    version: Annotated[
        int | None, typer.Option("--version", help="Refuse unless this code has this version of the read model.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what a rebuild that was killed has done.")
    ] = False,
    grace: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds until the tables that were replaced are dropped.")
    ] = 600.0,
    source: Annotated[
        str | None, typer.Option("--from", help="URL of a replica to read the log from, but for its newest facts.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object: rows, seconds, differences.")] = False,
) -> None:
    """Make read models again from the log, while the service runs; or verify that they are what the log says.

    New tables are made beside the live ones and swapped in. Killed, it goes on from where it was when called again.
    """
    from runs_projections.filling import RebuildFailed
    from runs_projections.loading import load_projections
    from runs_projections.rebuild import rebuild as make_again

    settings = command_settings()
    projections = load_projections(settings)
    _check_version(projections, names, version)
    with migrated_database(settings) as database, _progress() as progress:
        task = progress.add_task("verifying" if verify else "rebuilding", total=None)
        try:
            report = make_again(
                database.url,
                names or None,
                lambda done, total: progress.update(task, completed=done, total=total),
                schema=settings.db_schema,
                verify=verify,
                projections=projections,
                restart=restart,
                grace=grace,
                source=source,
            )
        except ValueError as error:
            raise Refused(str(error), 2) from error
        except RebuildFailed as error:
            raise Refused(f"{error}; the live read model is as it was") from error
    if json:
        sys.stdout.write(orjson.dumps(asdict(report), default=str).decode() + "\n")
    else:
        _print_report(report, verify)
    _refuse_differences(report)


def _check_version(projections: Sequence[AnyProjection], names: list[str] | None, version: int | None) -> None:
    if version is None:
        return
    if names is None or len(names) != 1:
        raise Refused("--version goes with the name of one read model", 2)
    for projection in projections:
        if projection.name == names[0] and projection.version != version:
            raise Refused(
                f"this code has version {projection.version} of {names[0]}; run `runs-es rebuild` of the release"
                f" that has version {version}",
                2,
            )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )


class _Rate(ProgressColumn):
    """Facts a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} facts/s" if speed else "", "cyan")


def _print_report(report: RebuildReport, verify: bool) -> None:
    rate = report.facts / report.seconds if report.seconds else 0
    out.print(f"{report.facts:,} facts in {report.seconds:.2f} s ({rate:,.0f}/s)")
    for name, rows in report.rows.items():
        swap = f", swapped in {report.swaps[name] * 1000:.1f} ms" if name in report.swaps else ""
        out.print(f"  {name:<10}{rows:>12,} rows{swap}")
    if not verify:
        return
    for difference in report.differences:
        where = f"{difference.name} {'/'.join(difference.key)} {difference.column}".rstrip()
        out.print(Text(f"  {where}: expected {difference.expected}, found {difference.found}", "red"))
    if not report.differences:
        out.print("identical to what the log says")


def _refuse_differences(report: RebuildReport) -> None:
    if report.differences:
        wrong = " ".join(sorted({difference.name for difference in report.differences}))
        raise Refused(f"the read models differ from the log; `runs-es rebuild {wrong}` makes them again")

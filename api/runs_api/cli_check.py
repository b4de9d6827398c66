"""`runs-es check`: is everything as it must be? Settings, database, schema, log, read models."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import orjson
import psycopg
import typer
from psycopg import Connection
from psycopg.rows import TupleRow
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from runs_api.terminal import Refused, command_settings, err, out, printable
from runs_es.database import SchemaMismatch, open_database
from runs_es.database import migrate as migrations
from runs_es.log import session
from runs_es.log.inspection import Finding, Findings, LogReport, inspect_log, thread_count
from runs_projections.inspection import inspect_tracking

# What a log rests on; by what PostgreSQL calls it, and what it must not be.
_UNSAFE = {
    "fsync": ("off", "a crash of the machine may lose or damage what was committed"),
    "full_page_writes": ("off", "a crash of the machine may damage what was committed"),
    "synchronous_commit": (
        "off",
        "a crash of the server may lose what was acknowledged, unless a session says otherwise",
    ),
}


def check(
    json: Annotated[bool, typer.Option("--json", help="One JSON object: findings, counts, seconds.")] = False,
) -> None:
    """Check settings, database, schema, every thread of the log, and read models; exit 0 only where all is well.

    Reads the whole log once, in short reads, while the service runs; changes nothing.
    """
    settings = command_settings()
    with open_database(settings, create=False) as database:
        report = LogReport()
        is_migrated = _check_schema(database.url, settings.db_schema, report.findings)
        # Always by key: a plan that reads and sorts a whole table would be no short read.
        with session.connect(
            database.url,
            settings.db_schema,
            "check",
            enable_seqscan="off",
            jit="off",
            plan_cache_mode="force_custom_plan",
            default_transaction_read_only="on",
        ) as connection:
            _check_server(connection, report.findings)
            if is_migrated:
                unfilled = inspect_tracking(connection, report.findings)
                report = _inspected(connection, report.findings)
                report.unfilled = unfilled
    if json:
        sys.stdout.write(orjson.dumps(_as_json(report)).decode() + "\n")
    else:
        _print(report, is_migrated)
    if report.findings.count:
        raise Refused(f"{report.findings.count:,} finding{'s' if report.findings.count > 1 else ''}")


def _check_schema(url: str, schema: str, findings: Findings) -> bool:
    """Whether the database has every table that this version needs."""
    try:
        missing = migrations.pending(url, schema)
    except SchemaMismatch as error:
        findings.add(Finding("schema", f"schema {schema}", str(error)))
        return False
    for name in missing:
        findings.add(Finding("schema", f"schema {schema}", f"{name} is not applied: run `runs-es migrate`"))
    return not missing


def _check_server(connection: Connection[TupleRow], findings: Findings) -> None:
    for name, (unsafe, consequence) in _UNSAFE.items():
        row = connection.execute("select current_setting(%s)", (name,)).fetchone()
        if row == (unsafe,):
            findings.add(Finding("database", f"setting {name}", f"is {unsafe}: {consequence}"))
    row = connection.execute("show server_encoding").fetchone()
    if row != ("UTF8",):
        findings.add(Finding("database", "encoding", f"is {row and row[0]}, and must be UTF8"))


def _inspected(connection: Connection[TupleRow], before: Findings) -> LogReport:
    with _progress() as progress:
        task = progress.add_task("checking threads", total=thread_count(connection))
        try:
            report = inspect_log(connection, lambda done: progress.update(task, completed=done))
        except psycopg.errors.UndefinedTable as error:
            report = LogReport()
            report.findings.add(Finding("schema", "tables", str(error).splitlines()[0]))
    findings = Findings()
    findings.add(*before.kept, *report.findings.kept)
    findings.count = before.count + report.findings.count
    report.findings = findings
    return report


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, disable=not err.is_terminal, transient=True)


def _as_json(report: LogReport) -> dict[str, Any]:
    return {
        "ok": not report.findings.count,
        "findings": [
            {"check": each.check, "place": each.place, "detail": each.detail} for each in report.findings.kept
        ],
        "findings_total": report.findings.count,
        "threads": report.threads,
        "facts": report.facts,
        "pages": report.pages,
        "threads_cut_by_retention": report.cut,
        "read_models_not_begun": report.unfilled,
        "seconds": round(report.seconds, 3),
    }


def _print(report: LogReport, is_migrated: bool) -> None:
    if not out.is_terminal:
        for each in report.findings.kept:
            sys.stdout.write("\t".join(map(printable, (each.check, each.place, each.detail))) + "\n")
    elif report.findings.kept:
        table = Table("check", "where", "what is wrong", box=None, pad_edge=False, header_style="bold")
        for column in table.columns[1:]:
            column.overflow = "fold"
        for each in report.findings.kept:
            table.add_row(Text(each.check, "red"), Text(printable(each.place)), Text(printable(each.detail)))
        out.print(table, soft_wrap=False)
    if report.findings.count > len(report.findings.kept):
        out.print(f"… and {report.findings.count - len(report.findings.kept):,} more")
    if not is_migrated:
        out.print("the log was not looked at: its tables are not those of this version")
        return
    seconds = max(report.seconds, 1e-6)
    out.print(
        f"{report.threads:,} threads, {report.facts:,} facts and {report.pages:,} pages in {report.seconds:.2f} s"
        f" ({report.threads / seconds:,.0f} threads/s, {report.facts / seconds:,.0f} facts/s)"
    )
    if report.cut:
        out.print(f"retention has taken frames of {report.cut:,} of these threads")
    if report.unfilled:
        out.print(f"not filled yet, which the next server or worker does: {', '.join(report.unfilled)}")
    if not report.findings.count:
        out.print(Text("all is well", "bold green"))

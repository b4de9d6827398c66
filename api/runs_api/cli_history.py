"""`runs-es history`: what happened to a run, also up to an earlier seq only, and what it then was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import orjson
import typer
from rich.table import Table
from rich.text import Text

from runs_api import history as histories
from runs_api.terminal import Refused, command_settings, migrated_database, out, printable, where
from runs_es.domain import Recorded
from runs_es.log.reader import LogReader
from runs_es.process_log import escaped
from runs_projections.past import AsOf, Past
from runs_projections.runs import RunRow

_COLUMNS = ("seq", "when", "what", "who", "why")


def history(
    run: Annotated[str, typer.Argument(help="A run's id.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object a fact, with everything it holds.")] = False,
    as_of: Annotated[
        int | None,
        typer.Option("--as-of", min=1, metavar="SEQ", help="Only up to this seq, and what the run was then."),
    ] = None,
) -> None:
    """Show what happened to a run: every fact, when, who did it, and why; also of a deleted run."""
    settings = command_settings()
    with migrated_database(settings) as database:
        reader = LogReader(database.url, settings.db_schema, pool_size=1)
        try:
            facts = histories.facts_of(reader, run)
            if not facts:
                raise Refused(f"there is no run {run} in {where(settings)}")
            then = _as_of(reader, facts, as_of) if as_of is not None else None
        finally:
            reader.close()
    if as_of is not None:
        facts = [each for each in facts if each.seq <= as_of]
    if json:
        for each in facts:
            sys.stdout.write(orjson.dumps(histories.as_json(each)).decode() + "\n")
        return
    if not out.is_terminal:
        for row in (_COLUMNS, *map(_row, facts)):
            sys.stdout.write("\t".join(row) + "\n")
        for line in _tracebacks(facts):
            sys.stdout.write(line + "\n")
        return
    _print(run, facts, as_of, then)
    for line in _tracebacks(facts):
        out.print(Text(line))


def _tracebacks(facts: list[Recorded]) -> Iterator[str]:
    """The lines of what is recorded of agents' tracebacks, behind the table."""
    for each in facts:
        if told := histories.traceback_of(each.fact):
            yield ""
            yield f"at seq {each.seq}, {each.fact.topic}:"
            yield from (escaped(line) for line in told.splitlines())


def _as_of(reader: LogReader, facts: list[Recorded], seq: int) -> RunRow | None:
    """The run as it was. Raises Refused for a seq before its creation, or that its thread has not come to."""
    thread_id, run_id = facts[0].fact.thread_id, facts[0].fact.run_id  # type: ignore[attr-defined]  # facts of a run
    if seq < facts[0].seq:
        raise Refused(f"run {run_id} was not there at seq {seq}: it was created at {facts[0].seq}")
    past = Past(reader)
    try:
        return past.run_row(thread_id, run_id, past.seq_at(thread_id, AsOf(seq=seq)))
    except ValueError as error:
        raise Refused(str(error).replace("as_of is", "--as-of is"), 2) from error


def _print(run: str, facts: list[Recorded], as_of: int | None, then: RunRow | None) -> None:
    out.print(f"run {run} of thread {facts[0].fact.thread_id}")
    table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
    table.columns[0].justify = "right"
    table.columns[1].no_wrap = True
    for column in table.columns[2:]:
        column.overflow = "fold"
    for each in facts:
        table.add_row(*map(Text, _row(each)))
    out.print(table, soft_wrap=False)
    if as_of is not None:
        was = f"{then.status}, attempt {then.attempt}" if then is not None else "deleted"
        out.print(f"as of {as_of}: {was}", style="bold")


def _row(recorded: Recorded) -> tuple[str, ...]:
    provenance = recorded.provenance
    when = recorded.recorded_at[:23].replace("T", " ")
    what = histories.what(recorded.fact, for_operator=True)
    return str(recorded.seq), when, printable(what), printable(provenance.actor), printable(provenance.reason)

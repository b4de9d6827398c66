"""`runs-es diff`: a run at two moments, or two runs, side by side in words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from runs_api.diffs import diff_body
from runs_api.terminal import Refused, command_settings, migrated_database, out, printable, where
from runs_es.domain import Recorded, RunNotFound
from runs_es.log.reader import LogReader
from runs_projections.diff import Change, MessageChange, RunAt, RunDiff, run_at
from runs_projections.diff import diff as compare
from runs_projections.lookups import gone_at
from runs_projections.past import AsOf, Past

_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}
_MOST = 200  # characters of a value


def diff(
    run: Annotated[str, typer.Argument(help="A run's id.")],
    other: Annotated[str | None, typer.Argument(help="Another run's id: compare the two as they are now.")] = None,
    start: Annotated[
        int | None, typer.Option("--from", min=1, help="A seq of the thread; by default that of the run's creation.")
    ] = None,
    end: Annotated[
        int | None,
        typer.Option("--to", min=1, help="A seq of the thread; by default the newest where the run is there."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, as the API answers.")] = False,
) -> None:
    """Show what changed in a run between two seqs, or what two runs differ in: fields, messages and state."""
    if other is not None and (start is not None or end is not None):
        raise Refused("two runs are compared as they are now: leave out --from and --to", 2)
    settings = command_settings()
    with migrated_database(settings) as database:
        reader = LogReader(database.url, settings.db_schema, pool_size=1)
        try:
            before = _at(reader, run, start, where(settings), newest=other is not None)
            after = _at(reader, other or run, end, where(settings), newest=True)
        finally:
            reader.close()
    if other is None and before.seq > after.seq:
        raise Refused(f"--from {before.seq} is after --to {after.seq}", 2)
    found = compare(before, after)
    if json:
        sys.stdout.write(orjson.dumps(diff_body(found)).decode() + "\n")
    else:
        _print(found)


def _at(reader: LogReader, run_id: str, seq: int | None, place: str, *, newest: bool) -> RunAt:
    """The run as of `seq`; without one as it is, or was before it was deleted, or else as it was created."""
    facts = reader.run_facts(run_id)
    if not facts:
        raise Refused(f"there is no run {run_id} in {place}")
    thread_id = facts[0].fact.thread_id
    if seq is None:
        seq = _last(reader, thread_id, facts) if newest else facts[0].seq
    try:
        seq = Past(reader).seq_at(thread_id, AsOf(seq=seq))
        return run_at(reader, thread_id, run_id, seq)
    except ValueError as error:
        raise Refused(str(error).replace("as_of is", "the seq asked for is"), 2) from error
    except RunNotFound:
        first, last = facts[0].seq, facts[-1].seq
        raise Refused(f"run {run_id} was not there at seq {seq}; it is told of from {first} to {last}") from None


def _last(reader: LogReader, thread_id: str, facts: Sequence[Recorded]) -> int:
    """The newest seq at which the run is there: before it or its thread was deleted, if either was."""
    deleted = next((each.seq for each in facts if each.fact.topic == "run.deleted"), None)
    ends = [seq for seq in (deleted, gone_at(reader, thread_id, facts[0].seq)) if seq is not None]
    if ends:
        return min(ends) - 1
    head = reader.head(thread_id)
    return head.seq if head is not None else facts[-1].seq


def _print(found: RunDiff) -> None:
    for sign, side, style in (("---", found.before, "red"), ("+++", found.after, "green")):
        out.print(Text(f"{sign} run {side.row.run_id} at seq {side.seq}: {side.row.status}", f"bold {style}"))
    if found.is_empty:
        out.print("no differences")
    _section("run", [line for change in found.run for line in _lines(change)])
    _section("messages", [line for message in found.messages for line in _message_lines(message)])
    _section("state", [line for change in found.state for line in _lines(change)])
    if found.truncated:
        out.print(Text("there is more; --json has no more than this either", "yellow"))


def _section(title: str, lines: list[Text]) -> None:
    if lines:
        out.print(Text(title, "bold"))
        for line in lines:
            out.print(line)


def _message_lines(message: MessageChange) -> list[Text]:
    sign, style = _SIGNS[message.kind]
    head = Text(f"  {sign} {printable(message.event_type)} {printable(message.message_id)}", style)
    if message.kind == "changed":
        return [head, *(line for change in message.changes for line in _lines(change, indent=4))]
    content = message.after if message.kind == "added" else message.before
    return [head.append(f"  {_shown(content)}")]


def _lines(change: Change, indent: int = 2) -> list[Text]:
    sign, style = _SIGNS[change.kind]
    space = " " * indent
    place = f"{space}{sign} {printable(change.path) or '(all of it)'}"
    if change.kind == "changed":
        sides = (("-", change.before, "red"), ("+", change.after, "green"))
        return [Text(place, style), *(Text(f"{space}    {mark} {_shown(value)}", tone) for mark, value, tone in sides)]
    return [Text(f"{place}: {_shown(change.after if change.kind == 'added' else change.before)}", style)]


def _shown(value: Any) -> str:
    text = printable(value if isinstance(value, str) else orjson.dumps(value).decode())
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"

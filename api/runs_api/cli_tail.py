"""`runs-es tail`: a run's stream in the shell, from any event on until its end.

From the database it is the same cursor loop that serves HTTP clients. From a server (`--url`) it is what any client
does: it remembers the last id it got and comes back with it when the connection breaks.
"""

from __future__ import annotations

import asyncio
import http.client
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import orjson
import typer

from runs_api.terminal import Refused, command_settings, migrated_database, out, where
from runs_es.domain import RunNotFound
from runs_es.log.event_log import EventLog
from runs_es.log.pages import data_of, event_of
from runs_es.streams.cursor import End, Frames, Gap, RunStreams
from runs_es.streams.hub import Hub

GAP = 3
_HEARTBEAT = 15.0
# A server says something every few seconds; one that is silent for so long is gone.
_SILENCE = 30.0
_RECONNECT_SECONDS = 60.0
_PAUSE = 0.5
# What a model wrote must not command the terminal; JSON escapes only some of these.
_TAME = dict.fromkeys((*range(32), *range(127, 160)), "?")

# seq, event, data
Event = tuple[int, str, bytes]


def tail(
    run: Annotated[str, typer.Argument(help="A run's id.")],
    after: Annotated[int, typer.Option("--after", min=0, help="Only what comes after this event.")] = 0,
    url: Annotated[str | None, typer.Option("--url", help="Ask this server rather than the database.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object an event: seq, event, data.")] = False,
) -> None:
    """Follow a run's stream until its end. Exit code 3 when events asked for are no longer kept."""
    show = Printer(json=json)
    if url is not None:
        gap = follow_server(url, run, after, show)
    else:
        settings = command_settings()
        with (
            migrated_database(settings) as database,
            EventLog(database.url, settings.db_schema, pool_size=2) as log,
        ):
            try:
                gap = asyncio.run(_follow(log, run, after, show))
            except RunNotFound:
                raise Refused(f"there is no run {run} in {where(settings)}") from None
    if gap is not None:
        raise Refused(_in_words(gap), GAP)


class Printer:
    """One line an event: its seq, its name, its data; cut to the terminal's width where it goes to one."""

    def __init__(self, *, json: bool = False) -> None:
        self._json = json

    def __call__(self, events: Iterable[Event]) -> None:
        sys.stdout.write("".join(f"{self.line(event)}\n" for event in events))
        sys.stdout.flush()  # whoever reads a pipe follows too

    def line(self, event: Event) -> str:
        seq, name, data = event
        if self._json:
            return orjson.dumps({"seq": seq, "event": name, "data": orjson.Fragment(data)}).decode()
        text = data.decode(errors="replace")
        if not out.is_terminal:
            return f"{seq}\t{name}\t{text}"
        start = f"{seq:>7}  {name:<12} ".translate(_TAME)
        room = max(out.width - len(start), 8)
        return start + (text if len(text) <= room else f"{text[: room - 1]}…").translate(_TAME)


def _in_words(gap: dict[str, Any]) -> str:
    first, last = gap["earliest_available_event_id"], gap["latest_available_event_id"]
    asked = gap["requested_event_id"]
    if first is None:
        return f"nothing of run {gap['run_id']} after event {asked} is there any more"
    return (
        f"events of run {gap['run_id']} are missing after {asked}: {first} to {last} are there; "
        f"`--after {int(first) - 1}` shows them"
    )


# --- from the database ---


async def _follow(log: EventLog, run_id: str, after: int, show: Printer) -> dict[str, Any] | None:
    """Show the stream; the gap it ended with, if it did. Raises RunNotFound."""
    with ThreadPoolExecutor(2, "runs-es tail") as threads:
        # No ring: whatever is committed is committed elsewhere.
        streams = RunStreams(Hub(log, ring_bytes=0), log.reader, threads)
        facts = await asyncio.get_running_loop().run_in_executor(threads, log.reader.run_facts, run_id)
        if not facts:
            raise RunNotFound(run_id)
        stream = await streams.open(facts[0].fact.thread_id, run_id, after, heartbeat=_HEARTBEAT)
        async for step in stream.steps():
            if isinstance(step, Frames):
                show((seq, event_of(body), data_of(body)) for seq, body in step.items())
            elif isinstance(step, End):
                show([(step.seq, "end", b"null")])
            elif isinstance(step, Gap):
                return step.payload()
    return None


# --- from a server ---


def follow_server(url: str, run_id: str, after: int, show: Callable[[Iterable[Event]], None]) -> dict[str, Any] | None:
    """Show the stream as a server sends it, over as many connections as it takes; the gap it ended with, if it did."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise Refused(f"--url must begin with http:// or https://, got {url}", 2)
    place = f"{url.rstrip('/')}/runs/{quote(run_id, safe='')}/stream"
    reached, deadline = False, 0.0
    while True:
        try:
            with urlopen(_request(place, after), timeout=_SILENCE) as response:  # noqa: S310  (checked above)
                reached, deadline = True, time.monotonic() + _RECONNECT_SECONDS
                for event in parsed(_lines(response)):
                    if event[1] == "gap":
                        gap: dict[str, Any] = orjson.loads(event[2])
                        return gap
                    show([event])
                    after = event[0]
                    if event[1] == "end":
                        return None
                if response.chunked:
                    return None  # a whole answer without an `end`: the server is set to send none
        except HTTPError as error:
            with error:
                if not (reached and error.code >= 500):
                    raise Refused(_refusal(url, run_id, error)) from None
        except (URLError, http.client.HTTPException, OSError) as error:
            if not reached:
                raise Refused(f"{url} does not answer ({getattr(error, 'reason', error)})") from None
        # Cut off before the end: a restart, a network. Come back with the last id.
        if time.monotonic() > deadline:
            raise Refused(f"{url} has not answered for {_RECONNECT_SECONDS:g} s; go on with `--after {after}`")
        time.sleep(_PAUSE)


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The answer's lines as they come. Raises IncompleteRead when it was cut: reading line by line would hide that."""
    rest = b""
    while piece := response.read1(65536):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _request(place: str, after: int) -> Request:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
    return Request(place, headers=headers)  # noqa: S310  (the scheme is checked)


def _refusal(url: str, run_id: str, error: HTTPError) -> str:
    if error.code == 404:
        return f"there is no run {run_id} at {url}"
    return f"{url} answered {error.code}: {error.read(300).decode(errors='replace')}"


def parsed(lines: Iterable[bytes]) -> Iterator[Event]:
    """The events of a stream; one that is cut short is none. A gap has no id, and so 0."""
    fields: dict[bytes, bytes] = {}
    for raw in lines:
        line = raw.rstrip(b"\r\n")
        if line.startswith(b":"):
            continue
        if line:
            name, _, value = line.partition(b":")
            fields[name] = value.removeprefix(b" ")
        elif b"event" in fields:
            yield int(fields.get(b"id", b"0")), fields[b"event"].decode(), fields.get(b"data", b"null")
            fields = {}

"""What is told of an agent's exception: to the operator everything, to clients its text or an id."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from runs_api.app import create_app
from runs_es.domain import RunFailed, RunRequeued, RunScope
from runs_es.execution import ActiveRun, RetryableError, RunOutcome
from runs_es.process_log import CHATTY, MAX_TRACEBACK_BYTES, configure
from runs_es.service.commands import CreateRunCommand, JoinRunStreamCommand
from runs_es.settings import Settings
from runs_es.webhooks.payload import ended_run
from runs_projections.wiring import Store, open_store
from tests.execution.test_worker import QUICK

SECRET = "password=hunter2"
FAST: dict[str, Any] = {**QUICK, "retry_seconds": 0.05, "retry_max_seconds": 0.05}
InStore = Callable[[Store], Awaitable[None]]


class TwiceOverloaded(RetryableError):
    """What passes after two attempts."""


class Unprintable(Exception):
    """Raises when it is printed."""

    def __str__(self) -> str:
        raise SystemExit(SECRET)

    __repr__ = __str__


class Failing:
    """Fails as the run's input says."""

    async def execute(self, run: ActiveRun) -> RunOutcome | None:
        logging.getLogger("my_agent").warning("hello from the agent")
        match run.run.kwargs["input"]:
            case "pass" if run.attempt <= 2:
                raise TwiceOverloaded(SECRET)
            case "pass":
                return None
            case "deep":
                return self.deeper(5000)
            case "unprintable":
                raise Unprintable
            case "exits":
                raise SystemExit(SECRET)
            case "unstorable":
                raise ValueError(f"{SECRET} \x00 \ud800")
            case "huge":
                raise ValueError(SECRET * 1_000_000)
            case "ours":
                await run.publish("end", {})
        return await self.node()

    async def node(self) -> None:
        try:
            raise ConnectionError(SECRET)
        except ConnectionError as error:
            raise LookupError(f"no answer: {SECRET}") from error

    def deeper(self, left: int) -> None:
        self.deeper(left - 1)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the process logs at every level, as lines of JSON."""
    written = io.StringIO()
    root, before = logging.getLogger(), (logging.getLogger().handlers[:], logging.getLogger().level)
    configure(level="WARNING", levels={"runs_es.execution": "DEBUG"}, form="json", stream=written)
    try:
        yield written
    finally:
        for name in ("runs_es.execution", *CHATTY):
            logging.getLogger(name).setLevel(logging.NOTSET)
        root.handlers[:], root.level = before


def told(log: io.StringIO, level: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [each for each in lines if each["level"] == level and each["logger"].startswith("runs_es")]


async def within(settings: Settings, body: InStore, **changes: Any) -> None:
    store = await asyncio.to_thread(
        lambda: open_store(settings.model_copy(update={**FAST, **changes}), executor=Failing())
    )
    try:
        await asyncio.wait_for(body(store), 60)
    finally:
        await asyncio.to_thread(store.close)


def command(what: str, thread_id: str | None = "t", **values: Any) -> CreateRunCommand:
    return CreateRunCommand(thread_id=thread_id, create_thread=True, assistant_id="failing", input=what, **values)


def failed(store: Store, run_id: str) -> RunFailed:
    (fact,) = [each.fact for each in store.log.reader.run_facts(run_id) if isinstance(each.fact, RunFailed)]
    return fact


async def raw(store: Store, run_id: str) -> list[tuple[str, str, Any]]:
    handle = await store.service.join_stream(JoinRunStreamCommand(run_id=run_id))
    return [(event.id, event.event, event.data) async for event in handle.events if event.id]


async def test_a_failure_is_one_error_with_the_agents_traceback_in_the_log_and_in_the_fact(
    settings: Settings, log: io.StringIO
) -> None:
    async def body(store: Store) -> None:
        handle = await store.service.create_and_stream(command("fail", user_id="ada"))
        await store.service.ended("t", handle.run_id)
        (line,) = told(log, "ERROR")
        assert line["message"] == f"run {handle.run_id} raised LookupError"
        assert (line["run_id"], line["thread_id"], line["attempt"], line["user_id"]) == (handle.run_id, "t", 1, "ada")
        assert store.log.reader.run_facts(handle.run_id)[-1].provenance.actor == f"worker:{line['worker_id']}"
        fact = failed(store, handle.run_id)
        for text in (line["exception"], fact.traceback):
            assert text.count("Traceback (most recent call last):") == 2
            assert f"ConnectionError: {SECRET}" in text
            assert "in node" in text
            assert text.endswith(f"LookupError: no answer: {SECRET}")
            assert "worker.py" not in text
        assert not fact.error_hidden

    await within(settings, body)


async def test_agents_log_as_their_run(settings: Settings, log: io.StringIO) -> None:
    async def body(store: Store) -> None:
        handle = await store.service.create_and_stream(command("pass"))
        await store.service.ended("t", handle.run_id)
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
        of_agent = [each for each in lines if each["logger"] == "my_agent"]
        assert [(each["run_id"], each["attempt"]) for each in of_agent] == [(handle.run_id, n) for n in (1, 2, 3)]

    await within(settings, body)


async def test_an_attempt_that_is_tried_again_is_for_debugging_and_its_traceback_is_kept(
    settings: Settings, log: io.StringIO
) -> None:
    async def body(store: Store) -> None:
        handle = await store.service.create_and_stream(command("pass"))
        await store.service.ended("t", handle.run_id)
        assert told(log, "ERROR") == []
        first, second = [each for each in told(log, "DEBUG") if "exception" in each]
        assert (first["attempt"], second["attempt"]) == (1, 2)
        assert first["message"] == f"run {handle.run_id} raised TwiceOverloaded; it is tried again"
        facts = [each.fact for each in store.log.reader.run_facts(handle.run_id)]
        kept = [fact.traceback for fact in facts if isinstance(fact, RunRequeued)]
        assert kept == [first["exception"], second["exception"]]
        assert all("in execute" in text and text.endswith(SECRET) for text in kept)

    await within(settings, body)


@pytest.mark.parametrize("what", ["deep", "unstorable", "huge", "unprintable", "exits"])
@pytest.mark.parametrize("scope", [RunScope.STATEFUL, RunScope.TEMPORARY_THREAD])
async def test_a_traceback_is_recorded_whatever_is_in_it(
    what: str, scope: RunScope, settings: Settings, log: io.StringIO
) -> None:
    async def body(store: Store) -> None:
        run = await store.service.create_background(command(what, scope=scope))
        await store.service.ended("t", run.run_id)
        traceback = failed(store, run.run_id).traceback
        assert len(traceback.encode()) <= MAX_TRACEBACK_BYTES
        assert "\x00" not in traceback
        assert traceback.startswith("Traceback (most recent call last):")
        assert "in execute" in traceback
        (line,) = told(log, "ERROR")
        assert (line["run_id"], line["exception"]) == (run.run_id, traceback)

    await within(settings, body)


async def test_a_traceback_leaves_room_where_facts_are_small(settings: Settings) -> None:
    async def body(store: Store) -> None:
        run = await store.service.create_background(command("fail"))
        await store.service.ended("t", run.run_id)
        fact = failed(store, run.run_id)
        assert (fact.error_type, fact.error) == ("LookupError", f"no answer: {SECRET}")
        assert len(fact.traceback.encode()) <= 128

    await within(settings, body, max_frame_bytes=1024)


async def everything(store: Store, settings: Settings, thread: str, run: str) -> dict[str, bytes]:
    """All that a client can read of the run."""
    transport = httpx.ASGITransport(create_app(store, settings))
    read: dict[str, bytes] = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://store", timeout=30) as client:
        for path in (
            f"/threads/{thread}",
            f"/threads/{thread}/runs/{run}",
            f"/threads/{thread}/runs/{run}/join",
            f"/threads/{thread}/runs/{run}/stream",
            f"/threads/{thread}/runs/{run}/events",
            f"/threads/{thread}/runs/{run}/history",
            f"/threads/{thread}/runs",
            f"/threads/{thread}/events",
            "/runs",
        ):
            answer = await client.get(path)
            assert answer.status_code == 200, path
            read[path.rsplit("/", 1)[-1]] = answer.content
    return read


async def test_hidden_errors_reach_no_client_and_are_replayed_as_they_were_under_any_later_setting(
    settings: Settings, log: io.StringIO
) -> None:
    thread, ids, streamed = "0197d3c2-0000-7000-8000-000000000001", list[str](), list[list[tuple[str, str, Any]]]()
    seen: list[dict[str, bytes]] = []

    async def hidden(store: Store) -> None:
        for what in ("fail", "pass"):
            handle = await store.service.create_and_stream(command(what, thread))
            streamed.append([(event.id, event.event, event.data) async for event in handle.events if event.id])
            ids.append(handle.run_id)
            assert await raw(store, handle.run_id) == streamed[-1]
            if what == "fail":
                seen.append(await everything(store, settings, thread, handle.run_id))
                result = await store.service.result(thread, handle.run_id)
                shown = {"error": "LookupError", "message": f"An internal error occurred (id {handle.run_id})"}
                assert result == {"__error__": shown}
                assert streamed[-1][-2][1:] == ("error", shown)
                ended = ended_run(store.log.reader, thread, handle.run_id)
                assert ended is not None
                webhook = json.loads(ended.body(None, "now"))
                assert webhook["error"] == shown["message"]
                assert SECRET not in json.dumps(webhook)
                fact = failed(store, handle.run_id)
                assert (fact.error, fact.error_hidden) == (f"no answer: {SECRET}", True)
                (line,) = told(log, "ERROR")
                assert line["run_id"] in shown["message"]
                assert SECRET in line["exception"]
        seen.append(await everything(store, settings, thread, ids[1]))

    async def shown_by_now(store: Store) -> None:
        assert [await raw(store, run_id) for run_id in ids] == streamed
        seen.append(await everything(store, settings, thread, ids[0]))

    await within(settings, hidden, show_errors="never")
    await within(settings, shown_by_now, show_errors="always")
    for read in seen:
        for path, body in read.items():
            assert SECRET.encode() not in body, path
            assert b"Traceback" not in body, path
    assert seen[0]["stream"] == seen[2]["stream"]
    assert b"An internal error occurred" in seen[0]["events"]


async def test_what_the_store_says_itself_is_not_hidden(settings: Settings) -> None:
    async def body(store: Store) -> None:
        result = await store.service.create_and_wait(command("ours"))
        assert result["__error__"]["message"] == "event 'end' is the store's own; choose another name"
        result = await store.service.create_and_wait(command("exits"))
        assert result["__error__"]["message"].startswith("An internal error occurred (id ")
        config = {"timeout_seconds": 0.001}
        result = await store.service.create_and_wait(command("pass", config=config))
        assert "timeout_seconds" in result["__error__"]["message"]

    await within(settings, body, show_errors="never")

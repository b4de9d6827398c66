"""Wrong values meet an error that names them, before anything is recorded or asked of the database."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from runs_es import (
    ActiveRun,
    CancelRunCommand,
    CancelRunsCommand,
    CreateRunCommand,
    FindRunsQuery,
    GetRunQuery,
    JoinRunStreamCommand,
    ListRunMessagesQuery,
    ListRunsQuery,
    MessageRecorded,
    MultitaskPolicy,
    Provenance,
    Run,
    Settings,
    Store,
    open_store_async,
)
from runs_es.service.crons import NewCron

UUID: Any = uuid.uuid4()
NAN = float("nan")
DEEP: list[Any] = []
DEEP.append(DEEP)


class Executes:
    async def execute(self, run: ActiveRun) -> None: ...


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: CreateRunCommand(UUID, "a"), ValueError, "thread_id must be a string, not UUID"),
        (lambda: CreateRunCommand("t", UUID), ValueError, "assistant_id must be a string, not UUID"),
        (lambda: CreateRunCommand("t", "a", run_id=UUID), ValueError, "run_id must be a string, not UUID"),
        (lambda: CreateRunCommand("t", "a", user_id=UUID), ValueError, "user_id must be a string or None, not UUID"),
        (lambda: CreateRunCommand("  ", "a"), ValueError, "thread_id must not be empty"),
        (lambda: CreateRunCommand("t", "a", metadata=[]), ValueError, "metadata must be a mapping, not list"),  # type: ignore[arg-type]
        (lambda: CreateRunCommand("t", "a", config="x"), ValueError, "config must be a mapping, not str"),  # type: ignore[arg-type]
        (lambda: CreateRunCommand("t", "a", stream_mode=3), ValueError, "stream_mode must be a string or a list"),  # type: ignore[arg-type]
        (lambda: CreateRunCommand("t", "a", scope="x"), ValueError, "'x' is not a valid RunScope"),  # type: ignore[arg-type]
        (lambda: CreateRunCommand("t", "a", multitask_strategy="x"), ValueError, "not a valid MultitaskStrategy"),  # type: ignore[arg-type]
        (lambda: CreateRunCommand("t", "a", after_seconds="1"), ValueError, "after_seconds must be a number"),  # type: ignore[arg-type]
        (lambda: CancelRunCommand(UUID), ValueError, "run_id must be a string"),
        (lambda: CancelRunCommand("r", "stop"), ValueError, "'stop' is not a valid CancelAction"),  # type: ignore[arg-type]
        (lambda: CancelRunsCommand(status="ended"), ValueError, "status must be one of pending, running, all"),  # type: ignore[arg-type]
        (lambda: JoinRunStreamCommand("r", 3), TypeError, "last_event_id must be a string as events carry it"),  # type: ignore[arg-type]
        (lambda: JoinRunStreamCommand("r", heartbeat_interval=0), ValueError, "heartbeat_interval"),
        (lambda: GetRunQuery(UUID), ValueError, "run_id must be a string"),
        (lambda: GetRunQuery("r", UUID), ValueError, "thread_id must be a string"),
        (lambda: ListRunsQuery("t", limit=-1), ValueError, "limit must be a whole number of at least 0, got -1"),
        (lambda: ListRunsQuery("t", limit="5"), ValueError, "limit must be a whole number"),  # type: ignore[arg-type]
        (lambda: ListRunsQuery("t", status="done"), ValueError, "'done' is not a valid RunStatus"),
        (lambda: ListRunMessagesQuery("t", "r", before_seq=1.5), ValueError, "before_seq must be a whole number"),  # type: ignore[arg-type]
        (lambda: ListRunMessagesQuery("t", visibility="x"), ValueError, "visibility must be one of"),  # type: ignore[arg-type]
        (lambda: FindRunsQuery(created_after="yesterday"), ValueError, "created_after must be an ISO 8601 time"),
        (lambda: MultitaskPolicy("x"), ValueError, "not a valid MultitaskStrategy"),  # type: ignore[arg-type]
        (lambda: Run.create(run_id="r", thread_id="t", metadata={"a": NAN}), ValueError, r"metadata\.a is nan"),
        (lambda: Run.create(run_id="r", thread_id="t", due_at="soon"), ValueError, "due_at must be an ISO 8601 time"),
        (lambda: Run.create(run_id="r", thread_id="t").mark_failed(3), ValueError, "error must be a string"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_value_is_refused_when_it_is_given(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_one_text_for_several_names_is_one_name() -> None:
    assert list(CancelRunsCommand(thread_id="t", run_ids="abc").run_ids) == ["abc"]
    assert list(ListRunMessagesQuery("t", types="human").types or ()) == ["human"]
    assert CreateRunCommand("t", interrupt_before="node").interrupt_before == ["node"]
    assert CreateRunCommand("t", interrupt_before="*").interrupt_before == "*"


def test_space_around_the_ids_of_a_command_is_no_part_of_them() -> None:
    command = CreateRunCommand(" t ", "\ta", run_id="r\n")
    assert (command.thread_id, command.assistant_id, command.run_id) == ("t", "a", "r")


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    async with open_store_async(settings, executor=Executes(), work=False) as opened:
        yield opened


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"metadata": {"score": NAN}}, r"metadata\.score is nan, which JSON does not have"),
        ({"metadata": {"scores": [1.0, float("inf")]}}, r"metadata\.scores\[1\] is inf"),
        ({"input": {"messages": [{"content": [{"x": NAN}]}]}}, r"input\.messages\[0\]\.content\[0\]\.x is nan"),
        ({"input": NAN}, "input is nan"),
        ({"config": {"timeout_seconds": NAN}}, "nan"),
        ({"config": {"configurable": {"t": NAN}}}, r"config\.configurable\.t is nan"),
        ({"context": {"t": -float("inf")}}, r"context\.t is -inf"),
        ({"command": {"resume": NAN}}, r"command\.resume is nan"),
        ({"thread_metadata": {"t": NAN}}, r"metadata\.t is nan"),
        ({"input": {"deep": DEEP}}, "nested too deeply, or holds itself"),
        ({"after_seconds": NAN}, "after_seconds"),
        ({"input": object()}, "cannot be stored as JSON"),
    ],
)
async def test_what_json_does_not_have_is_refused_and_nothing_is_recorded(
    store: Store, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(Exception, match=text) as refused:
        await store.service.create_background(CreateRunCommand("t", "a", create_thread=True, **fields))
    assert isinstance(refused.value, ValueError) or "after_seconds" in fields
    assert store.log.reader.head("t") is None


async def test_metadata_of_threads_is_checked_as_that_of_runs_is(store: Store) -> None:
    with pytest.raises(ValueError, match=r"metadata\.a is nan"):
        await store.service.create_thread("t", metadata={"a": NAN})
    await store.service.create_thread("t")
    with pytest.raises(ValueError, match=r"metadata\.a is nan"):
        await store.service.update_thread("t", {"a": NAN}, provenance=Provenance())
    with pytest.raises(ValueError, match="thread_id must be a string, not UUID"):
        await store.service.create_thread(UUID)
    with pytest.raises(ValueError, match="thread_id must be a string, not UUID"):
        await store.service.delete_thread(UUID, provenance=Provenance())
    with pytest.raises(ValueError, match="user_id must be a string"):
        await store.service.create_thread("u", user_id=UUID)


async def test_crons_are_checked_as_runs_are(store: Store) -> None:
    for new, text in (
        (NewCron(assistant_id="a", schedule="@daily", payload={"input": NAN}), r"payload\.input is nan"),
        (NewCron(assistant_id="a", schedule="@daily", metadata={"a": NAN}), r"metadata\.a is nan"),
        (NewCron(assistant_id=UUID, schedule="@daily"), "assistant_id must be a string"),
        (NewCron(assistant_id="a", schedule="@daily", run_thread_id=UUID), "run_thread_id must be a string"),
    ):
        with pytest.raises(ValueError, match=text):
            store.crons.create(new)


async def test_ports_check_what_they_are_given(store: Store) -> None:
    await store.service.create_thread("t")
    run = await store.service.create_background(CreateRunCommand("t", "a"))
    spoilt = MessageRecorded(thread_id="t", run_id=run.run_id, message_id="m", content={"x": [NAN]})
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: store.repository.get(UUID), ValueError, "run_id must be a string"),
        (lambda: store.repository.list_by_thread(UUID), ValueError, "thread_id must be a string"),
        (lambda: store.repository.list_by_thread("t", limit=-1), ValueError, "limit"),
        (lambda: store.repository.save("r"), TypeError, "run must be a Run, not str"),  # type: ignore[arg-type]
        (lambda: store.repository.delete(UUID), ValueError, "run_id must be a string"),
        (lambda: store.event_log.append(["x"]), TypeError, "events must be facts, and one is a str"),  # type: ignore[list-item]
        (lambda: store.event_log.append([spoilt]), ValueError, r"content\.x\[0\] is nan"),
        (lambda: store.event_log.list_events_by_run(UUID, None), ValueError, "thread_id must be a string"),
        (lambda: store.event_log.list_events_by_run("t", UUID), ValueError, "run_id must be a string"),
        (lambda: store.event_log.list_events_by_run("t", None, limit=-1), ValueError, "limit"),
        (lambda: store.event_log.list_messages_by_run("t", UUID), ValueError, "run_id must be a string"),
        (lambda: store.scheduler.start(UUID), ValueError, "run_id must be a string"),
        (lambda: store.supervisor.cancel(UUID), ValueError, "run_id must be a string"),
        (lambda: store.broker.publish(UUID, "x", 1), ValueError, "run_id must be a string"),
        (lambda: store.broker.publish_terminal(run.run_id, event="stop"), ValueError, "terminal event"),
        (lambda: anext(store.broker.subscribe(run.run_id, last_event_id=3)), TypeError, "last_event_id"),  # type: ignore[arg-type]
        (lambda: store.service.ended("t", UUID), ValueError, "run_id must be a string"),
        (lambda: store.service.result(UUID, "r"), ValueError, "thread_id must be a string"),
    ]
    for call, error, text in calls:
        with pytest.raises(error, match=text):
            await call()
    for blocking, text in (
        (lambda: store.runs.get(UUID), "run_id must be a string"),
        (lambda: store.runs.delete(UUID), "run_id must be a string"),
        (lambda: store.threads.get(UUID), "thread_id must be a string"),
        (lambda: store.events.list_events_by_run(UUID, None), "thread_id must be a string"),
        (lambda: store.events.list_events_by_run("t", None, types=3), "types must be"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=text):
            blocking()
    assert [each.event_type for each in store.events.list_events_by_run("t", None, types="run.created")] == [
        "run.created"
    ]

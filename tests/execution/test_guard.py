"""What agents' code may do to the event loop that it shares with other runs, without and with uvloop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest
import uvloop

from runs_es.domain import LeaseLost
from runs_es.execution.agent_threads import AgentThreads
from runs_es.execution.agents_loop import AgentsLoop
from runs_es.execution.attempt_failure import MAX_ERROR_TEXT, AgentExited, Failure
from runs_es.execution.guard import EXECUTING, AgentTask, executing_in, guarded
from runs_es.process_log import MAX_CLASS_NAME
from tests.execution.test_worker_faults import Scripted, given

Body = Callable[[], Coroutine[Any, Any, Any]]


class Recorded:
    """An attempt that only records what is said of it."""

    def __init__(self, run_id: str = "bad") -> None:
        self.run_id = run_id
        self.is_over = False
        self.failures: list[Failure] = []
        self.interrupted = threading.Event()
        self.failed = threading.Event()

    def __str__(self) -> str:
        return f"run {self.run_id}"

    def fail(self, error: Exception) -> None:
        self.failures.append(Failure.of(error))
        self.failed.set()

    def interrupt(self) -> None:
        self.interrupted.set()


class Loop(AgentsLoop):
    """The agents' loop, and a way to have a coroutine run on it as an attempt's code."""

    def begin(self, body: Body, executing: Recorded | None = None, *, is_root: bool = False) -> Future[Any]:
        ended: Future[Any] = Future()

        def settle(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                ended.set_exception(asyncio.CancelledError())
            elif (error := task.exception()) is not None:
                ended.set_exception(error)
            else:
                ended.set_result(task.result())

        def begin() -> None:
            task = AgentTask(guarded(body()), executing=executing, is_root=is_root, loop=self.loop)
            task.add_done_callback(settle)

        context = copy_context()
        context.run(EXECUTING.set, executing)
        self.loop.call_soon_threadsafe(begin, context=context)
        return ended


@pytest.fixture(params=[asyncio.SelectorEventLoop, uvloop.Loop], ids=["asyncio", "uvloop"])
def agents(request: pytest.FixtureRequest) -> Iterator[Loop]:
    loop = Loop(
        given(Scripted()), AgentThreads(4), lambda: ["bad"], grace_seconds=1, blocked_seconds=0.2, base=request.param
    )
    loop.start(10)
    yield loop
    loop.stop()
    assert loop.loop.is_closed()


def test_the_executor_is_left_before_generators_are_closed(caplog: pytest.LogCaptureFixture) -> None:
    left: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Scripted]:
        try:
            yield Scripted()
        except GeneratorExit:
            left.append("closed")
            raise
        left.append("left")

    loop = Loop(opened, AgentThreads(1), list, grace_seconds=1, blocked_seconds=5)
    loop.start(10)
    loop.stop()
    assert left == ["left"]
    assert caplog.records == []


async def count(until: threading.Event) -> int:
    """The turns of a coroutine of another run, which end when `until` is set."""
    turns = 0
    while not until.is_set():
        turns += 1
        await asyncio.sleep(0)
    return turns


class Stop(BaseException):
    """Neither an Exception nor what ends a process."""


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Stop("enough")], ids=repr)
def test_what_a_task_raises_reaches_who_awaits_it_and_not_the_loop(agents: Loop, error: BaseException) -> None:
    async def exits() -> None:
        await asyncio.sleep(0)
        raise error

    async def body() -> str:
        with pytest.raises(AgentExited) as raised:
            await asyncio.create_task(exits())
        assert raised.value.original is error
        with pytest.raises(AgentExited):
            await asyncio.gather(exits(), exits())
        return "went on"

    done = threading.Event()
    other = agents.begin(lambda: count(done), Recorded("other"))
    bad = Recorded()
    assert agents.begin(body, bad).result(10) == "went on"
    done.set()
    assert other.result(10) > 1
    assert bad.failures == []


def eagerly(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task past any factory of the loop, as LangGraph starts nodes on Python 3.12 and later."""
    factory = getattr(asyncio, "eager_task_factory", None)
    return asyncio.Task(coroutine, loop=loop) if factory is None else factory(loop, coroutine)  # type: ignore[no-any-return]


def test_a_task_started_past_the_factory_ends_its_run_and_not_the_loop(agents: Loop) -> None:
    async def exits() -> None:
        await asyncio.sleep(0)
        raise SystemExit(3)

    async def body() -> None:
        task = eagerly(asyncio.get_running_loop(), exits())
        assert executing_in(task) is bad or sys.version_info < (3, 12)
        await asyncio.wait((task,))
        assert isinstance(task.exception(), SystemExit)

    bad = Recorded()
    agents.begin(body, bad).result(10)
    (failure,) = bad.failures
    assert (failure.kind, failure.text) == (
        "AgentExited",
        "the agent called for the end of its process: SystemExit(3)",
    )


@pytest.mark.parametrize("how", ["call_soon", "call_soon_threadsafe", "call_later", "call_at", "future", "reader"])
def test_a_callback_that_exits_ends_its_run_and_not_the_loop(agents: Loop, how: str) -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        if how == "call_later":
            loop.call_later(0, sys.exit, 3)
        elif how == "call_at":
            loop.call_at(loop.time(), sys.exit, 3)
        elif how == "future":
            made = loop.create_future()
            made.add_done_callback(lambda _: sys.exit(3))
            made.set_result(None)
        elif how == "reader":
            await read(loop)
        else:
            getattr(loop, how)(sys.exit, 3)

    async def read(loop: asyncio.AbstractEventLoop) -> None:
        import socket

        here, there = socket.socketpair()
        with here, there:

            def gone() -> None:
                loop.remove_reader(here)
                sys.exit(3)

            loop.add_reader(here, gone)
            there.send(b"x")
            await asyncio.to_thread(bad.failed.wait, 10)

    bad = Recorded()
    agents.begin(body, bad).result(10)
    assert bad.failed.wait(10)
    assert [failure.text for failure in bad.failures] == ["the agent called for the end of its process: SystemExit(3)"]
    assert agents.begin(quick, Recorded()).result(10) == "quick"


async def quick() -> str:
    return "quick"


@pytest.mark.parametrize("how", ["stop", "close"])
def test_the_loop_cannot_be_ended_by_an_agent(agents: Loop, how: str) -> None:
    async def body() -> None:
        getattr(asyncio.get_running_loop(), how)()
        await asyncio.sleep(0)

    bad = Recorded()
    agents.begin(body, bad).result(10)
    assert [failure.kind for failure in bad.failures] == ["LoopStopped"]
    assert agents.begin(quick, Recorded()).result(10) == "quick"


def test_an_exception_that_breaks_out_of_the_loop_all_the_same_loses_nothing(
    agents: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    """In a context that names no attempt nothing is guarded, but for the loop: it is run on."""
    done = threading.Event()
    other = agents.begin(lambda: count(done), Recorded("other"))

    async def exits() -> None:
        raise SystemExit(3)

    async def body() -> BaseException | None:
        task = asyncio.get_running_loop().create_task(exits(), context=Context())
        await asyncio.wait((task,))
        return task.exception()

    assert repr(agents.begin(body, Recorded()).result(10)) == "SystemExit(3)"
    done.set()
    assert other.result(10) > 1
    assert "code of no run called for the end of the agents' event loop, which goes on" in caplog.text


def test_cancelling_all_tasks_interrupts_other_runs_and_ends_the_one_that_did_it(agents: Loop) -> None:
    async def for_ever() -> None:
        await asyncio.Event().wait()

    async def body() -> None:
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(0)

    other, bad = Recorded("other"), Recorded()
    waiting = agents.begin(for_ever, other, is_root=True)
    with pytest.raises(asyncio.CancelledError):
        agents.begin(body, bad, is_root=True).result(10)
    with pytest.raises(asyncio.CancelledError):
        waiting.result(10)
    assert other.interrupted.is_set()
    assert [failure.kind for failure in bad.failures] == ["OtherRunsCancelled"]
    assert agents.begin(quick, Recorded()).result(10) == "quick", "what all runs use has not been cancelled"


def test_a_task_of_no_run_that_a_thread_of_an_agent_started_can_be_cancelled(agents: Loop) -> None:
    async def for_ever() -> None:
        await asyncio.Event().wait()

    async def body() -> bool:
        loop = asyncio.get_running_loop()
        waiting = await loop.run_in_executor(None, asyncio.run_coroutine_threadsafe, for_ever(), loop)
        (task,) = [task for task in asyncio.all_tasks() if executing_in(task) is None and "for_ever" in repr(task)]
        task.cancel()
        await asyncio.wait((task,), timeout=10)
        return task.cancelled() and waiting.cancelled()

    assert agents.begin(body, Recorded()).result(20)


def test_the_threads_of_all_runs_cannot_be_ended_by_an_agent(agents: Loop) -> None:
    async def body() -> int:
        with pytest.raises(Exception, match="threads that it shares"):
            await asyncio.get_running_loop().shutdown_default_executor()
        with pytest.raises(SystemExit):
            await asyncio.to_thread(sys.exit, 3)
        return await asyncio.to_thread(int, "4")

    assert agents.begin(body, Recorded()).result(10) == 4


def test_the_generators_of_all_runs_cannot_be_closed_by_an_agent(agents: Loop) -> None:
    began, gone = threading.Event(), threading.Event()

    async def numbers() -> AsyncIterator[int]:
        began.set()
        yield 1
        yield await count(until=gone)

    async def of_another_run() -> list[int]:
        return [number async for number in numbers()]

    async def body() -> None:
        await asyncio.get_running_loop().shutdown_asyncgens()

    other = agents.begin(of_another_run, Recorded("other"))
    assert began.wait(10)
    with pytest.raises(Exception, match="generators that it shares"):
        agents.begin(body, Recorded()).result(10)
    gone.set()
    assert len(other.result(10)) == 2


def test_the_factory_passes_on_what_a_task_is_made_with(agents: Loop) -> None:
    told: ContextVar[str] = ContextVar("told", default="nothing")

    async def tell() -> str:
        return told.get()

    async def body() -> None:
        context = copy_context()
        context.run(told.set, "something")
        task = asyncio.create_task(tell(), name="a name", context=context)
        assert task.get_name() == "a name"
        assert isinstance(task, AgentTask)
        coroutine = task.get_coro()
        assert inspect.iscoroutine(coroutine)
        assert coroutine.__name__ == "tell"
        assert await task == "something"
        outside = asyncio.create_task(tell(), context=Context())
        assert outside.get_coro().__qualname__.endswith("tell")  # type: ignore[union-attr]
        assert executing_in(outside) is None
        assert await outside == "nothing"
        if sys.version_info >= (3, 12):
            loop = asyncio.get_running_loop()
            eager = loop.get_task_factory()(loop, tell(), eager_start=True)  # type: ignore[misc, call-arg]
            assert eager.done()  # type: ignore[union-attr]

    agents.begin(body, Recorded()).result(10)


def test_a_task_that_is_cancelled_before_its_first_step_leaves_nothing_unawaited(agents: Loop) -> None:
    async def step() -> None: ...

    async def body() -> list[bool]:
        tasks = [asyncio.get_running_loop().create_task(step()) for _ in range(2)]
        tasks[0].cancel()
        await asyncio.wait(tasks)
        gc.collect()
        return [task.cancelled() for task in tasks]

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert agents.begin(body, Recorded()).result(30) == [True, False]
    assert [str(each.message) for each in warned if each.category is RuntimeWarning] == []


def test_closing_a_guarded_coroutine_closes_what_it_guards() -> None:
    seen: list[type[BaseException]] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(10)
        except BaseException as error:
            seen.append(type(error))
            raise

    async def sleep_once() -> None:
        coroutine = guarded(waits())
        coroutine.send(None)
        coroutine.close()

    asyncio.run(sleep_once())
    assert seen == [GeneratorExit]


def test_a_task_that_dies_unheard_is_one_line_and_one_that_lost_its_lease_is_none(
    agents: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async def dies(error: BaseException) -> None:
        raise error

    async def body() -> None:
        for error in (LeaseLost("no longer this worker's"), ValueError("unheard"), SystemExit(3)):
            task = asyncio.create_task(dies(error))
            await asyncio.wait((task,))
            del task

    caplog.set_level(logging.INFO)
    agents.begin(body, Recorded("left")).result(10)
    gc.collect()
    agents.stop()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("run left")]
    assert lines == [
        "run left: a task that nobody awaits raised ValueError: unheard",
        "run left: a task that nobody awaits raised AgentExited: the agent called for the end of its process:"
        " SystemExit(3)",
    ]


def test_the_log_names_the_run_that_blocks_the_loop_and_where(agents: Loop) -> None:
    warned = threading.Event()
    lines: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            warned.set()

    async def block() -> bool:
        return wait_in_the_way(warned)

    logger, heard = logging.getLogger("runs_es.execution.watchdog"), Heard()
    logger.addHandler(heard)
    try:
        assert agents.begin(block, Recorded()).result(30)
    finally:
        logger.removeHandler(heard)
    assert lines[0].startswith("run bad blocks the event loop of the agents for 0.")
    assert "in wait_in_the_way" in lines[0]


def wait_in_the_way(warned: threading.Event) -> bool:
    return warned.wait(20)


def test_a_task_that_dies_after_its_run_is_reported_at_once(agents: Loop, caplog: pytest.LogCaptureFixture) -> None:
    kept: list[asyncio.Task[None]] = []

    async def dies(error: BaseException) -> None:
        raise error

    async def body() -> None:
        over.is_over = True
        for error in (LeaseLost("no longer this worker's"), ValueError("unheard"), SystemExit(3)):
            kept.append(asyncio.create_task(dies(error)))
        await asyncio.wait(kept)

    over = Recorded("over")
    agents.begin(body, over).result(10)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("run over")]
    assert [line.partition(" raised ")[2].partition(":")[0] for line in lines] == ["ValueError", "AgentExited"]
    kept.clear()
    gc.collect()
    agents.stop()
    assert len([record for record in caplog.records if record.getMessage().startswith("run over")]) == 2


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even this")

    __repr__ = __str__


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


class Endless(Exception):
    def __str__(self) -> str:
        return "x" * 30_000_000


class Text(str):
    __slots__ = ()

    def __getitem__(self, _: Any) -> Any:
        raise RuntimeError("no part of it")


class Told(Exception):
    def __str__(self) -> str:
        return Text("told\x00\udcff")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Unprintable(), "Unprintable", "Unprintable"),
        (Unpicklable("why"), "Unpicklable", "why"),
        (Endless(), "Endless", "x" * MAX_ERROR_TEXT),
        (Told(), "Told", "told\ufffd?"),
        (type("Long" * 1000, (Exception,), {})("why"), ("Long" * 1000)[:MAX_CLASS_NAME], "why"),
        (AgentExited(SystemExit(Unprintable())), "AgentExited", "the agent called for the end of its process: "
         "SystemExit"),
        (AgentExited(Stop("enough")), "Stop", "enough"),
    ],
    ids=["unprintable", "unpicklable", "endless", "strange text", "long name", "exit", "stop"],
)  # fmt: skip
def test_a_failure_is_plain_text_whatever_the_exception_does(error: BaseException, kind: str, text: str) -> None:
    failure = Failure.of(error)
    assert (failure.kind, failure.text) == (kind, text)

"""The log of a process: one line an event, whatever is in it, with what it belongs to."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from runs_es.execution.blocking import blocking
from runs_es.process_log import MAX_TRACEBACK_BYTES, bind, bound, bounded, configure, escaped, traceback_text

FORGED = "2026-11-26 12:00:00,000 ERROR runs_es: the disk is on fire"
NAMES = ("test.agent", "procrastinate.worker", "procrastinate", "httpx", "httpcore", "uvicorn.access")


class Unprintable(Exception):
    """Ends the process of who prints it."""

    def __str__(self) -> str:
        raise SystemExit("printed")

    __repr__ = __str__


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Where `configure` is told to log to; the process's logging is put back as it was."""
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in NAMES}
    handlers, level = root.handlers[:], root.level
    try:
        yield io.StringIO()
    finally:
        root.handlers[:], root.level = handlers, level
        for name, single in levels.items():
            logging.getLogger(name).setLevel(single)


def lines(written: io.StringIO) -> list[str]:
    return written.getvalue().splitlines()


def objects(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_line_says_what_it_belongs_to_and_the_calls_own_fields_win(written: io.StringIO) -> None:
    configure(stream=written)
    with bound(run_id="r", thread_id="t", attempt=2, worker_id="w", user_id=None):
        logging.getLogger("test.agent").warning("said %d", 7, extra={"attempt": 3})
    logging.getLogger("test.agent").warning("said outside")

    inside, outside = lines(written)

    assert inside.endswith("WARNING test.agent: said 7 run_id=r thread_id=t attempt=3 worker_id=w")
    assert outside.endswith("WARNING test.agent: said outside")


def test_no_text_can_forge_a_line(written: io.StringIO) -> None:
    configure(stream=written)
    error = raised(ValueError(f"secret\n{FORGED}\u2028{FORGED}"))
    with bound(user_id=f"eve\n{FORGED}"):
        logging.getLogger("test.agent").error("said\r\n%s\x1b[2J", FORGED, exc_info=error)

    head, *rest = lines(written)

    assert head.endswith(f"said\\r\\n{FORGED}\\x1b[2J user_id=eve\\n{FORGED}")
    assert len(rest) >= 4
    assert all(line.startswith("    ") for line in rest)


def test_a_line_of_json_has_every_field_and_the_exception_too(written: io.StringIO) -> None:
    configure(stream=written, form="json")
    with bound(run_id="r", thread_id="t"):
        logging.getLogger("test.agent").error("it\nfailed", exc_info=raised(KeyError("k")), extra={"tool": {"n": 1}})

    (told,) = objects(written)

    assert (told["level"], told["logger"], told["message"]) == ("ERROR", "test.agent", "it\nfailed")
    assert (told["run_id"], told["thread_id"], told["tool"]) == ("r", "t", {"n": 1})
    assert told["exception"].startswith("Traceback (most recent call last):")
    assert told["exception"].endswith("KeyError: 'k'")
    assert told["timestamp"].endswith("+00:00")


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_cannot_be_printed_or_encoded_loses_no_line(form: Any, written: io.StringIO) -> None:
    configure(stream=written, form=form)
    error = raised(Unprintable())
    itself: dict[str, Any] = {}
    itself["itself"] = itself
    logger = logging.getLogger("test.agent")
    logger.error("one %s", error)
    logger.error("two", exc_info=error)
    logger.error("three", extra={"error": error})
    logger.error("four", extra={"itself": itself, "run_id": "r"})
    logger.error("five \ud800")

    found = [line for line in lines(written) if not line.startswith("    ")]

    assert [word for line in found for word in ("one", "two", "three", "four", "five") if word in line] == [
        "one", "two", "three", "four", "five",
    ]  # fmt: skip
    assert "Logging error" not in written.getvalue()


def test_levels_of_single_loggers_win_and_the_queues_chatter_is_for_debugging(written: io.StringIO) -> None:
    def chatter() -> None:
        for name in ("procrastinate.worker", "test.agent"):
            logging.getLogger(name).info("chatter of %s", name)

    configure(stream=written, level="INFO", form="json")
    chatter()
    assert [each["logger"] for each in objects(written)] == ["test.agent"]
    configure(stream=written, level="WARNING", levels={"procrastinate.worker": "INFO"}, form="json")
    chatter()
    assert [each["logger"] for each in objects(written)] == ["test.agent", "procrastinate.worker"]


def test_at_debug_the_queue_is_heard_too(written: io.StringIO) -> None:
    configure(stream=written, level="DEBUG")
    logging.getLogger("procrastinate.worker").info("chatter")

    assert "INFO procrastinate.worker: chatter" in written.getvalue()


async def test_tasks_and_threads_of_a_run_log_as_that_run(written: io.StringIO) -> None:
    configure(stream=written, level="INFO", form="json")
    logger = logging.getLogger("test.agent")

    async def run(name: str) -> None:
        bind(run_id=name)
        await asyncio.gather(asyncio.to_thread(logger.info, "thread"), blocking(logger.info, "own thread"))
        logger.info("task")

    await asyncio.gather(run("a"), run("b"))
    logger.info("nobody's")

    told = [(each.get("run_id"), each["message"]) for each in objects(written)]
    assert sorted(told[:-1]) == [(name, what) for name in "ab" for what in ("own thread", "task", "thread")]
    assert told[-1] == (None, "nobody's")


def test_a_traceback_has_its_bound_and_keeps_both_ends() -> None:
    text = traceback_text(raised(ValueError("x" * 10_000_000 + "the end")), None)

    assert len(text.encode()) <= MAX_TRACEBACK_BYTES
    assert text.startswith("ValueError: xxx")
    assert text.endswith("the end")
    assert "bytes omitted" in text


@pytest.mark.parametrize("most", [128, 1000, 16_384])
def test_a_cut_text_is_within_its_bound_whatever_its_characters(most: int) -> None:
    for text in ("é" * 20_000, "\U0001d11e" * 20_000, "\x00\ud800" * 20_000):
        cut = bounded(text, most)
        assert len(cut.encode()) <= most
        assert "\x00" not in cut
    assert bounded("short \ud800\x00", most) == "short ?\ufffd"


class Nameless(type):
    """A class that does not tell its name."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class Unnamed(Exception, metaclass=Nameless):
    """Only the interpreter knows what its class is called."""

    def __str__(self) -> str:
        raise Unnamed


def test_a_traceback_is_text_also_when_the_class_of_the_exception_does_not_tell_its_name() -> None:
    assert traceback_text(Unnamed(), None) == "Unnamed: its traceback cannot be printed (RuntimeError)"
    assert escaped(Unnamed()) == "<Unnamed>"

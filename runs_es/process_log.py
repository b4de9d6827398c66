"""The log of a process: one line an event, to standard error, as text for a terminal or as JSON.

Every line says which run, thread, attempt, worker, user and request it belongs to, where that is known. The fields come
from the context that `bound` and `bind` fill, or from `extra=` of a single call, which wins. The record attributes and
the keys in JSON have the names in `FIELDS`; `thread` is taken by the standard library, so it is `thread_id` here.

Nothing that an agent raises or says can end a line, forge one, or keep the others from being written.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

FIELDS = ("run_id", "thread_id", "attempt", "worker_id", "user_id", "request_id")
MAX_TRACEBACK_BYTES = 16_384  # of a traceback in UTF-8, in a fact and in a line of the log
MAX_CLASS_NAME = 200  # characters of it that are kept
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# They report each job and each request at INFO, which is nothing an operator asked for.
CHATTY = ("procrastinate", "httpx", "httpcore")
_OMITTED = "\n  ... {} bytes omitted ...\n"

_STANDARD = frozenset(vars(logging.makeLogRecord({})))

_context: ContextVar[Mapping[str, object]] = ContextVar("runs_es_process_log")
_NOTHING: Mapping[str, object] = {}


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add fields to every line logged in this context, and in tasks that begin in it. None means unknown."""
    token = _context.set(_merged(fields))
    try:
        yield
    finally:
        _context.reset(token)


def bind(**fields: object) -> None:
    """As `bound`, until the context ends, as that of a task does."""
    _context.set(_merged(fields))


def _merged(fields: Mapping[str, object]) -> Mapping[str, object]:
    return {**_context.get(_NOTHING), **{name: value for name, value in fields.items() if value is not None}}


def configure(
    *,
    level: str = "WARNING",
    levels: Mapping[str, str] | None = None,
    form: Literal["text", "json"] = "text",
    stream: TextIO | None = None,
) -> None:
    """Log to `stream`, or standard error, from now on. `levels` are of single loggers by name, and win over `level`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    handler.addFilter(_with_context)
    root = logging.getLogger()
    for earlier in root.handlers[:]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)
    quiet = max(logging.WARNING, root.level) if root.level > logging.DEBUG else logging.NOTSET
    for name in CHATTY:
        logging.getLogger(name).setLevel(quiet)
    for name, single in (levels or {}).items():
        logging.getLogger(name).setLevel(single)


def _with_context(record: logging.LogRecord) -> bool:
    """Put the context's fields on a record that lacks them. A filter of the handler: it sees every logger's records."""
    for name, value in _context.get(_NOTHING).items():
        if not hasattr(record, name):
            setattr(record, name, value)
    return True


class _SafeFormatter(logging.Formatter):
    """Formats records whose arguments or exceptions cannot be printed, and bounds what an exception says."""

    def formatException(self, ei: Any) -> str:
        kind, error, trace = ei
        return "" if kind is None else traceback_text(error, trace)

    @staticmethod
    def message_of(record: logging.LogRecord) -> str:
        """The message, or what is known of it where it cannot be printed."""
        try:
            return record.getMessage()
        except BaseException as error:  # noqa: BLE001  (an object of somebody else's code prints itself here)
            return f"{_described(record.msg)} (arguments that cannot be printed: {class_name(error)})"


class TextLines(_SafeFormatter):
    """`time LEVEL logger: message run_id=… thread_id=…`. A message is one line; the lines of a traceback are indented,
    so none can be taken for an event.
    """

    def format(self, record: logging.LogRecord) -> str:
        known = "".join(
            f" {name}={escaped(value)}" for name in FIELDS if (value := getattr(record, name, None)) is not None
        )
        head = f"{self.formatTime(record)} {record.levelname} {record.name}: {escaped(self.message_of(record))}{known}"
        details = self.formatException(record.exc_info) if record.exc_info else record.exc_text or ""
        if record.stack_info:
            details = f"{details}\n{record.stack_info}".strip("\n")
        return "\n".join([head, *(f"    {escaped(line)}" for line in details.splitlines())])


class JsonLines(_SafeFormatter, JsonFormatter):
    """One JSON object a line: `timestamp`, `level`, `logger`, `message`, `exception`, known fields, and `extra=`."""

    def __init__(self) -> None:
        # ASCII only: a lone surrogate in a text must not keep the line from being written.
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"},
            timestamp=True,
            json_ensure_ascii=True,
            json_default=_described,
        )

    def format(self, record: logging.LogRecord) -> str:
        plain = {**vars(record), "msg": self.message_of(record), "args": None}
        try:
            return super().format(logging.makeLogRecord(plain))
        except Exception:  # noqa: BLE001  (something in `extra=` refers to itself, say: the event is worth more)
            standard = {name: value for name, value in plain.items() if name in _STANDARD or name in FIELDS}
            return super().format(logging.makeLogRecord(standard))


def class_name(value: object) -> str:
    """The name of an object's class, cut. A metaclass may say otherwise or raise, so it is not asked."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name[:MAX_CLASS_NAME]


def _described(value: object) -> str:
    try:
        return str(value)
    except BaseException:  # noqa: BLE001  (an object of somebody else's code prints itself here)
        return f"<{class_name(value)}>"


def escaped(value: object) -> str:
    """`value` on one line: line breaks and other control characters are written as escapes."""
    text = _described(value)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def traceback_text(error: BaseException, trace: TracebackType | None, most: int = MAX_TRACEBACK_BYTES) -> str:
    """A traceback of at most `most` bytes, without what PostgreSQL cannot store. Does not raise, whatever the exception
    does when it is printed.
    """
    try:
        text = "".join(traceback.TracebackException(type(error), error, trace).format()).rstrip("\n")
    except BaseException as failure:  # noqa: BLE001  (an exception of somebody else's code prints itself here)
        text = f"{class_name(error)}: its traceback cannot be printed ({class_name(failure)})"
    return bounded(text, most)


def bounded(text: str, most: int) -> str:
    """`text` in at most `most` bytes of UTF-8: its beginning and its end. NUL and lone surrogates are replaced."""
    whole = text.replace("\x00", "\ufffd").encode("utf-8", "replace")
    if len(whole) <= most:
        return whole.decode()
    half = (most - 64) // 2
    begin, end = whole[:half].decode("utf-8", "ignore"), whole[-half:].decode("utf-8", "ignore")
    return begin + _OMITTED.format(len(whole) - 2 * half) + end

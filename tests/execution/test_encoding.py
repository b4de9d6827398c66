"""JSON of whatever stands in a state: always one line, never an error."""

from __future__ import annotations

import datetime
import uuid
from collections import deque, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.types import Interrupt, Send
from pydantic import BaseModel

from runs_es.execution.langgraph.encoding import encode, plain

Point = namedtuple("Point", "x y")
CALL = {"name": "clock", "args": {}, "id": "c", "type": "tool_call"}


class Colour(Enum):
    RED = "red"


@dataclass
class Box:
    held: Any


class Talk(BaseModel):
    messages: list[AnyMessage]


class Broken(BaseModel):
    def model_dump(self, **kwargs: Any) -> dict[str, Any]:
        raise RuntimeError("no")


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({3}, [3]),
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), {"x": 1, "y": 2}),
        (deque([1]), [1]),
        ({"a": 1}.keys(), ["a"]),
        (b"ab", "YWI="),
        (ValueError("boom"), {"error": "ValueError", "message": "boom"}),
        (Box(b"ab"), {"held": "YWI="}),
        (Interrupt(value={1}, id="i"), {"value": [1], "id": "i", "response_schema": None}),
        (Send("node", {1}), {"node": "node", "arg": [1]}),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "2026-01-02T00:00:00+00:00"),
        (datetime.timedelta(minutes=1), 60.0),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (Decimal("1.50"), "1.50"),
        (PurePosixPath("a/b"), "a/b"),
        (int, "builtins.int"),
        (float("nan"), None),
        (float("inf"), None),
        ({1: 1, None: 2, False: 3, (1, 2): 4}, {"1": 1, "null": 2, "false": 3, "(1, 2)": 4}),
        (2**64, 2.0**64),
        ("\ud800!", "?!"),
        ({"\ud800": Box({"big": 2**70})}, {"?": {"held": {"big": 2.0**70}}}),
        (Broken(), "Broken()"),
    ],
)
def test_every_value_has_a_word_in_json(value: Any, expected: Any) -> None:
    assert plain(value) == expected


def test_messages_are_dumped_with_all_that_their_class_has() -> None:
    message = AIMessage("hi", tool_calls=[CALL], id="1")
    assert plain(message)["tool_calls"] == [CALL]
    assert plain(Talk(messages=[message, HumanMessage("x")]))["messages"][0]["tool_calls"] == [CALL]


@pytest.mark.parametrize("value", [Mute(), object(), lambda: 1, (n for n in [1]), 10**5000], ids=type)
def test_the_last_resort_is_a_text_about_the_object(value: Any) -> None:
    assert plain(value).startswith("<")


def test_a_value_that_holds_itself_ends_somewhere() -> None:
    inner: list[Any] = [HumanMessage("kept")]
    inner += [inner, inner]
    assert plain({"inner": inner})["inner"][0]["content"] == "kept"


def test_depth_ends_somewhere() -> None:
    value: Any = None
    for _ in range(3000):
        value = [value]
    assert encode(value).startswith(b"[[[")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.uuids(),
    lambda inner: (
        st.lists(inner)
        | st.frozensets(st.integers())
        | st.dictionaries(st.text(st.characters()) | st.integers() | st.tuples(st.integers()), inner)
        | inner.map(Box)
        | inner.map(lambda value: Point(value, 1))
    ),
    max_leaves=20,
)


@given(anything)
def test_anything_is_one_line_of_json(value: Any) -> None:
    assert b"\n" not in encode(value)
    assert plain(plain(value)) == plain(value)

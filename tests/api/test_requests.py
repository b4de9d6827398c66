"""What bodies, ids and queries are accepted, and in what words others are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from runs_api.errors import ApiError, described
from runs_api.json_bodies import MAX_DEPTH, Bounds, parsed
from runs_api.requests import (
    HistoryBody,
    Names,
    RunBody,
    StatelessRunBody,
    ThreadBody,
    ThreadIdText,
    ThreadSearchBody,
)

ID = "4c84a93e-e3bb-4bee-8a34-654ef0152289"
NAMES: TypeAdapter[list[str]] = TypeAdapter(Names)


def refusal(model: Any, **fields: Any) -> str:
    """The words in which these fields are refused."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    return "; ".join(described({**error, "loc": ("body", *error["loc"])}) for error in caught.value.errors())


def test_a_run_needs_nothing_but_an_assistant():
    body = RunBody.model_validate({"assistant_id": "agent"})
    assert body.stream_mode == ["values"]
    assert body.multitask_strategy == "enqueue"
    assert body.on_disconnect == "continue"
    assert body.if_not_exists == "reject"


def test_unknown_fields_are_ignored_and_null_means_the_default():
    body = RunBody.model_validate(
        {
            "assistant_id": "agent",
            "zzz": 1,
            "langsmith_tracer": {"project_name": "p"},
            "config": None,
            "metadata": None,
            "stream_mode": None,
            "multitask_strategy": None,
            "after_seconds": None,
            "feedback_keys": None,
            "webhook": None,
        }
    )
    assert body == RunBody(assistant_id="agent")


@pytest.mark.parametrize("mode", ["values", "updates", "messages", "messages-tuple", "custom"])
def test_one_stream_mode_or_several_are_accepted(mode: str):
    assert RunBody(assistant_id="a", stream_mode=mode).stream_mode == [mode]
    assert RunBody(assistant_id="a", stream_mode=[mode, "values"]).stream_mode == [mode, "values"]


@pytest.mark.parametrize("mode", ["events", "debug", "tasks", "checkpoints", "tools", "xxx", 5])
def test_other_stream_modes_are_refused_by_name(mode: object):
    words = refusal(RunBody, assistant_id="a", stream_mode=["values", mode])
    assert words.startswith("stream_mode: ")
    if isinstance(mode, str):
        assert mode in words


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("webhook", 5),
        ("webhook", "https://example.org/" + "a" * 2048),
        ("feedback_keys", ["a"]),
        ("multitask_strategy", "nope"),
        ("assistant_id", ""),
        ("assistant_id", 7),
        ("after_seconds", -1),
        ("after_seconds", 1e12),
        ("if_not_exists", "maybe"),
        ("on_disconnect", "stop"),
        ("durability", "never"),
        ("metadata", [1]),
        ("context", "x"),
        ("interrupt_before", 5),
        ("interrupt_after", [1]),
    ],
)
def test_what_is_not_offered_or_wrong_is_refused_by_the_name_of_its_field(field: str, value: object):
    assert refusal(RunBody, **{"assistant_id": "agent", field: value}).startswith(f"{field}: ")


def test_each_strategy_is_named_once_in_a_refusal():
    assert refusal(RunBody, assistant_id="a", multitask_strategy="nope").count("'reject'") == 1


def test_a_missing_assistant_is_named():
    assert refusal(RunBody, input={}) == "assistant_id: Field required"


def test_fields_inside_objects_are_named_with_their_path():
    assert refusal(RunBody, assistant_id="a", config={"recursion_limit": 0}).startswith("config.recursion_limit: ")
    assert refusal(RunBody, assistant_id="a", command={"update": 3}).startswith("command.update: ")


@pytest.mark.parametrize("update", [{"a": 1}, [["a", 1], ["b", 2]]])
@pytest.mark.parametrize("goto", ["node", {"node": "n", "input": 1}, ["a", {"node": "b"}]])
def test_a_command_may_update_and_go_somewhere(update: object, goto: object):
    body = RunBody.model_validate({"assistant_id": "a", "command": {"update": update, "goto": goto, "resume": False}})
    assert body.command is not None
    assert body.command.as_recorded() == {"update": update, "goto": goto, "resume": False}


def test_a_command_that_goes_nowhere_sensible_is_refused():
    assert refusal(RunBody, assistant_id="a", command={"goto": {"input": 1}}).startswith("command.goto: ")


@pytest.mark.parametrize("fields", [{"checkpoint_id": "abc"}, {"checkpoint": {"checkpoint_id": "abc"}}])
def test_a_checkpoint_must_be_a_uuid(fields: dict[str, object]):
    assert refusal(RunBody, assistant_id="a", **fields) == "Invalid checkpoint ID"


def test_breakpoints_are_a_star_or_nodes():
    assert RunBody(assistant_id="a", interrupt_before="*").interrupt_before == "*"
    assert RunBody(assistant_id="a", interrupt_after=["n"]).interrupt_after == ["n"]


def test_a_stateless_run_says_whether_its_thread_stays():
    assert StatelessRunBody(assistant_id="a").on_completion == "delete"
    assert refusal(StatelessRunBody, assistant_id="a", on_completion="burn").startswith("on_completion: ")


def test_ids_are_uuids_in_any_case_and_are_kept_in_lower_case():
    assert ThreadBody(thread_id=ID.upper()).thread_id == ID
    assert refusal(ThreadBody, thread_id="abc") == "Invalid thread ID: must be a UUID"


@pytest.mark.parametrize(
    "text", ["", "xyz", f"{ID} ", f"{{{ID}}}", ID.replace("-", ""), f"urn:uuid:{ID}", f"{ID}\n", "４" + ID[1:]]
)
def test_what_only_looks_like_a_uuid_is_refused(text: str):
    with pytest.raises(ValidationError, match="Invalid thread ID"):
        TypeAdapter(ThreadIdText).validate_python(text)


@pytest.mark.parametrize("field", ["ttl", "supersteps"])
def test_a_thread_with_what_is_not_offered_is_refused_by_name(field: str):
    assert refusal(ThreadBody, **{field: [1]}) == f"{field}: is not offered yet; leave it out"


@pytest.mark.parametrize("limit", [0, 1001, "x"])
def test_a_search_is_limited(limit: object):
    assert refusal(ThreadSearchBody, limit=limit).startswith("limit: ")


@pytest.mark.parametrize("before", [ID, {"checkpoint_id": ID}, {"configurable": {"checkpoint_id": ID}}])
def test_history_begins_before_a_checkpoint_however_it_is_named(before: object):
    assert HistoryBody.model_validate({"before": before}).before == ID


@pytest.mark.parametrize("before", ["abc", {}, {"checkpoint_id": 5}, 7])
def test_history_before_no_checkpoint_is_refused(before: object):
    assert refusal(HistoryBody, before=before) == "Invalid checkpoint ID"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["values"], ["values"]),
        (["values", "custom"], ["values", "custom"]),
        (['["values","custom"]'], ["values", "custom"]),
        (["values,custom"], ["values", "custom"]),
        ([" values , ,custom", "updates"], ["values", "custom", "updates"]),
        ([""], []),
    ],
)
def test_several_values_of_a_query_may_be_written_in_four_ways(given: list[str], names: list[str]):
    assert NAMES.validate_python(given) == names


@pytest.mark.parametrize("given", [["["], ["[1]"]])
def test_a_list_in_a_query_that_is_none_is_refused(given: list[str]):
    with pytest.raises(ValidationError):
        NAMES.validate_python(given)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_json_that_is_too_deep_to_be_written_again_is_refused():
    assert parsed(nested(MAX_DEPTH)) is not None
    with pytest.raises(ApiError) as caught:
        parsed(nested(MAX_DEPTH + 1))
    assert caught.value.status_code == 422


def test_much_json_that_is_not_deep_is_accepted():
    wide = json.dumps([[{"a": []}] * 10 for _ in range(200)]).encode()
    assert len(parsed(wide)) == 200


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b'"\xff"', b'{"a": "\\ud800"}'])
def test_what_is_not_json_is_no_json(body: bytes):
    with pytest.raises(json.JSONDecodeError):
        parsed(body)


DEEP = b",".join([b"[" * 150 + b"]" * 150] * 20_000)
WIDE = b"[" + b",".join([b"[]"] * 3_000_000) + b"]"


@pytest.mark.parametrize("body", [WIDE, b"[" + DEEP + b"]", b"[" + b"0," * 4_000_000 + b"0]"])
def test_a_body_of_too_many_elements_is_refused_once_so_many_have_come(body: bytes):
    bounds = Bounds(max_elements=250_000)
    with pytest.raises(ApiError, match="RUNS_ES_MAX_BODY_ELEMENTS") as caught:
        bounds.check(body[: len(body) // 4])
    assert caught.value.status_code == 413


def test_depth_is_counted_over_pieces_and_before_the_end_has_come():
    bounds = Bounds(max_depth=10)
    bounds.check(b"[" * 6)
    bounds.check(b"]" * 2 + b"{" * 6)
    with pytest.raises(ApiError, match="RUNS_ES_MAX_BODY_DEPTH"):
        bounds.check(b"[")


@settings(max_examples=150, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.text(alphabet='[]{},"\\\n\t\x00aä'),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\,', max_size=3), inner),
        max_leaves=20,
    ),
    size=st.integers(1, 7),
)
def test_what_stands_in_strings_does_not_count_wherever_the_pieces_end(value: Any, size: int):
    text = json.dumps(value).encode()

    def within(depth: int, elements: int) -> bool:
        bounds = Bounds(depth, elements)
        try:
            for start in range(0, len(text), size):
                bounds.check(text[start : start + size])
        except ApiError:
            return False
        return True

    depth, elements = measured(value)
    assert within(depth, elements)
    assert depth == 0 or not within(depth - 1, elements)
    assert elements == 0 or not within(depth, elements - 1)


def measured(value: Any) -> tuple[int, int]:
    """Depth and elements: each array or object, and each comma."""
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [measured(each) for each in (value.values() if isinstance(value, dict) else value)]
    depth = 1 + max((depth for depth, _ in inner), default=0)
    return depth, 1 + max(len(inner) - 1, 0) + sum(elements for _, elements in inner)

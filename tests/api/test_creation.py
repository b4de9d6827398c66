"""What a request becomes: the recorded command, and whose words count."""

from __future__ import annotations

from typing import Any

import pytest

from runs_api.caller import Caller
from runs_api.creation import assistant_of, stateful, stateless
from runs_api.cron_runs import cron_runs
from runs_api.errors import ApiError
from runs_api.requests import RunBody, StatelessRunBody
from runs_es.domain import AssistantNotFound, DisconnectMode, MultitaskStrategy, Provenance, RunScope
from runs_es.execution.langgraph.graphs import GraphRegistry
from runs_es.service.commands import CreateRunCommand
from runs_es.service.crons import CronSnapshot

THREAD = "4c84a93e-e3bb-4bee-8a34-654ef0152289"
ASSISTANT = "fe096781-5601-53d2-b2f6-0d3403f7e9ca"
GRAPHS = GraphRegistry.demo()
ADA = Caller("ada", Provenance(actor="user:ada", correlation_id="c1"))
ANYBODY = Caller(None, Provenance(actor="api"))


def cron(user_id: str | None, thread_id: str | None, payload: dict[str, Any]) -> CronSnapshot:
    at = "2026-01-01T00:00:00+00:00"
    return CronSnapshot(
        cron_id="c1",
        assistant_id="agent",
        schedule="* * * * *",
        timezone=None,
        end_time=None,
        enabled=True,
        run_thread_id=thread_id,
        on_run_completed=None,
        payload=payload,
        metadata={},
        user_id=user_id,
        created_at=at,
        updated_at=at,
        next_run_date=at,
        revision=1,
    )


def command(caller: Caller = ANYBODY, **fields: Any) -> CreateRunCommand:
    body = RunBody.model_validate({"assistant_id": "agent", **fields})
    return stateful(body, caller, GRAPHS, THREAD)


def test_the_request_is_recorded_in_the_platforms_shape():
    made = command(
        ADA,
        input={"x": 1},
        metadata={"m": 1},
        config={"tags": ["t"], "recursion_limit": 7, "metadata": {"cm": 2}, "run_name": "kept"},
        interrupt_after=["plan"],
        stream_subgraphs=True,
        stream_resumable=True,
    )
    ids = {"graph_id": "agent", "assistant_id": ASSISTANT}
    assert made.kwargs() == {
        "input": {"x": 1},
        "command": None,
        "config": {
            "tags": ["t"],
            "recursion_limit": 7,
            "run_name": "kept",
            "metadata": {"created_by": "system", "cm": 2, "m": 1, **ids},
            "configurable": {"run_id": made.run_id, "thread_id": THREAD, **ids, "user_id": "ada"},
        },
        "context": {},
        "stream_mode": ["values"],
        "interrupt_before": None,
        "interrupt_after": ["plan"],
        "webhook": None,
        "feedback_keys": None,
        "temporary": False,
        "subgraphs": True,
        "resumable": True,
        "checkpoint_during": True,
        "durability": "async",
    }
    assert made.metadata == {"cm": 2, "m": 1, **ids}
    assert made.thread_metadata == ids
    assert made.user_id == "ada"
    assert made.provenance == ADA.provenance


def test_what_a_client_says_of_ids_and_of_who_it_is_does_not_count():
    claimed = {
        "thread_id": "theirs",
        "run_id": "theirs",
        "user_id": "root",
        "graph_id": "other",
        "langgraph_auth_user": {"identity": "root"},
        "langgraph_auth_user_id": "root",
        "__pregel_checkpointer": {},
        "color": "red",
    }
    made = command(ADA, config={"configurable": claimed}, metadata={"assistant_id": "other", "graph_id": "other"})
    assert made.config["configurable"] == {
        "color": "red",
        "run_id": made.run_id,
        "thread_id": THREAD,
        "graph_id": "agent",
        "assistant_id": ASSISTANT,
        "user_id": "ada",
    }
    assert made.metadata == {"assistant_id": ASSISTANT, "graph_id": "agent"}
    assert made.context == {
        "color": "red",
        "thread_id": THREAD,
        "run_id": made.run_id,
        "user_id": "ada",
        "graph_id": "agent",
    }


@pytest.mark.parametrize(
    "fields", [{"config": {"configurable": {"user_id": "alice"}}}, {"context": {"user_id": "alice"}}]
)
def test_a_client_says_who_the_user_is_when_none_is_known(fields: dict[str, Any]):
    for caller, seen in ((ANYBODY, "alice"), (ADA, "ada")):
        made = command(caller, **fields)
        assert (made.config["configurable"]["user_id"], made.context["user_id"]) == (seen, seen)


def test_without_a_known_user_and_without_a_word_of_the_client_the_user_is_empty():
    assert command().config["configurable"]["user_id"] == ""
    assert command().context == {}


def test_runs_of_crons_and_stateless_runs_are_told_of_the_user_in_the_same_way():
    fields = {"assistant_id": "agent", "config": {"configurable": {"user_id": "alice"}}}
    body = StatelessRunBody.model_validate(fields)
    assert stateless(body, ANYBODY, GRAPHS).config["configurable"]["user_id"] == "alice"
    assert stateless(body, ADA, GRAPHS).config["configurable"]["user_id"] == "ada"
    for thread_id in (None, THREAD):
        for user_id, seen in ((None, "alice"), ("ada", "ada")):
            launched = cron_runs(GRAPHS)(cron(user_id, thread_id, {"config": fields["config"]}), THREAD)
            assert launched.config["configurable"]["user_id"] == seen


def test_what_is_sent_as_configurable_is_the_context_too():
    made = command(config={"configurable": {"model": "m-1", "__pregel_store": {}, "langgraph_auth_user_id": "root"}})
    assert made.context == {"model": "m-1"}
    assert made.config["configurable"]["model"] == "m-1"


def test_what_is_sent_as_context_is_configurable_too_but_for_what_langgraph_reads_there():
    checkpoint = {"checkpoint_id": "1efc4c5c-0000-6000-8000-000000000000", "checkpoint_ns": "x", "checkpoint_map": {}}
    made = command(context={"model": "m-1", "thread_id": "theirs", "langgraph_auth_user_id": "root", **checkpoint})
    assert made.context == {"model": "m-1", "thread_id": "theirs", **checkpoint}
    assert made.config["configurable"] == {
        "model": "m-1",
        "run_id": made.run_id,
        "thread_id": THREAD,
        "graph_id": "agent",
        "assistant_id": ASSISTANT,
        "user_id": "",
    }


@pytest.mark.parametrize("named", ["agent", ASSISTANT, ASSISTANT.upper()])
def test_an_assistant_is_named_by_its_graph_or_its_id(named: str):
    assert assistant_of(GRAPHS, named) == ("agent", ASSISTANT)


def test_an_unknown_id_is_not_found_and_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(AssistantNotFound, match=r"^Thread or assistant not found\.$"):
        assistant_of(GRAPHS, "00000000-0000-0000-0000-000000000000")
    with pytest.raises(ApiError) as caught:
        assistant_of(GRAPHS, "nope")
    assert caught.value.status_code == 422
    assert caught.value.detail == (
        "Invalid assistant: 'nope'. Must be either:\n- A valid assistant UUID, or\n"
        "- One of the registered graphs: agent"
    )


def test_an_executor_of_ones_own_gets_the_assistant_as_it_was_named():
    assert assistant_of(None, "parrot") == ("parrot", "parrot")


def test_context_and_configurable_together_are_refused():
    with pytest.raises(ApiError) as caught:
        command(context={"a": 1}, config={"configurable": {"b": 1}})
    assert caught.value.status_code == 400
    assert str(caught.value.detail).startswith("Cannot specify both configurable and context. Prefer ")
    assert command(context={"a": 1}, config={"configurable": {}}).context == {"a": 1}


@pytest.mark.parametrize(
    ("fields", "durability", "during"),
    [
        ({}, "async", True),
        ({"durability": "exit"}, "exit", False),
        ({"durability": "sync"}, "sync", True),
        ({"checkpoint_during": False}, "exit", False),
        ({"checkpoint_during": True}, "async", True),
    ],
)
def test_durability_is_recorded_as_the_executor_reads_it(fields: dict[str, Any], durability: str, during: bool):
    options = command(**fields).options
    assert (options["durability"], options["checkpoint_during"]) == (durability, during)


def test_a_checkpoint_to_start_from_is_recorded_as_named():
    named = {"checkpoint_id": THREAD, "checkpoint_ns": "", "checkpoint_map": {"": THREAD}}
    options = command(checkpoint={**named, "thread_id": "t"}, checkpoint_id=THREAD.upper()).options
    assert options["checkpoint"] == named
    assert options["checkpoint_id"] == THREAD
    assert command(config={"configurable": {"checkpoint_id": THREAD}}).options["checkpoint_id"] == THREAD


def test_the_choices_of_a_run_reach_its_command():
    made = command(
        multitask_strategy="reject",
        on_disconnect="cancel",
        if_not_exists="create",
        after_seconds=2.5,
        stream_mode=["updates", "updates", "custom"],
        command={"resume": {"a": 1}},
        context={"model_name": "m-1"},
    )
    assert made.multitask_strategy is MultitaskStrategy.REJECT
    assert made.on_disconnect is DisconnectMode.CANCEL
    assert made.create_thread
    assert made.after_seconds == 2.5
    assert made.stream_mode == ("updates", "custom")
    assert made.command == {"resume": {"a": 1}}
    assert made.model_name == "m-1"
    assert made.scope is RunScope.STATEFUL


@pytest.mark.parametrize("empty", [{}, {"goto": []}, {"goto": "", "update": None}])
def test_an_empty_command_is_none(empty: dict[str, Any]):
    assert command(command=empty).command is None


@pytest.mark.parametrize(
    ("on_completion", "scope"), [("delete", RunScope.TEMPORARY_THREAD), ("keep", RunScope.STATELESS)]
)
def test_a_stateless_run_gets_a_thread_of_its_own(on_completion: str, scope: RunScope):
    body = StatelessRunBody.model_validate({"assistant_id": "agent", "on_completion": on_completion})
    first, second = (stateless(body, ANYBODY, GRAPHS) for _ in range(2))
    assert first.thread_id != second.thread_id
    assert first.create_thread
    assert first.scope is scope
    assert first.kwargs()["temporary"] is (scope is RunScope.TEMPORARY_THREAD)


def test_a_stateless_run_cannot_resume_anything():
    body = StatelessRunBody.model_validate({"assistant_id": "agent", "command": {"resume": 1}})
    with pytest.raises(ApiError) as caught:
        stateless(body, ANYBODY, GRAPHS)
    assert (caught.value.status_code, caught.value.detail) == (400, "You must provide a thread_id when resuming.")

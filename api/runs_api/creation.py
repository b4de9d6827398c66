"""From a request body to the command that starts a run, with the request recorded as the platform records it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runs_api.caller import Caller
from runs_api.errors import ApiError
from runs_api.requests import RunBody, StatelessRunBody, is_uuid
from runs_api.store import Graphs
from runs_es.domain import AssistantNotFound, DisconnectMode, MultitaskStrategy, RunScope
from runs_es.service.application import new_id
from runs_es.service.commands import CreateRunCommand

NOT_FOUND = "Thread or assistant not found."
_BOTH = (
    "Cannot specify both configurable and context. Prefer setting context alone. Context was introduced in"
    " LangGraph 0.6.0 and is the long term planned replacement for configurable."
)
# The platform's own keys: what a request says there is not for it to say.
_PLATFORM = ("langgraph_auth_", "langgraph_request_id")
_INTERNAL = (*_PLATFORM, "__")
# LangGraph reads these out of `configurable`. Keys of a context that happen to have such a name are not meant for it.
_CHECKPOINT_KEYS = frozenset({"checkpoint_id", "checkpoint_ns", "checkpoint_map"})


def stateful(body: RunBody, caller: Caller, graphs: Graphs | None, thread_id: str) -> CreateRunCommand:
    """A run on a thread. Raises ApiError and AssistantNotFound."""
    return _command(
        body,
        caller,
        graphs,
        thread_id,
        scope=RunScope.STATEFUL,
        create_thread=body.if_not_exists == "create",
    )


def stateless(
    body: StatelessRunBody, caller: Caller, graphs: Graphs | None, thread_id: str | None = None
) -> CreateRunCommand:
    """A run on a new thread, which goes with it unless it is to be kept."""
    if body.command is not None and body.command.resume is not None:
        raise ApiError(400, "You must provide a thread_id when resuming.")
    scope = RunScope.STATELESS if body.on_completion == "keep" else RunScope.TEMPORARY_THREAD
    return _command(body, caller, graphs, thread_id or new_id(), scope=scope, create_thread=True)


def _command(
    body: RunBody, caller: Caller, graphs: Graphs | None, thread_id: str, *, scope: RunScope, create_thread: bool
) -> CreateRunCommand:
    if body.context and body.config.configurable:
        raise ApiError(400, _BOTH)
    graph_id, assistant_id = assistant_of(graphs, body.assistant_id)
    run_id = new_id()
    ids = {"graph_id": graph_id, "assistant_id": assistant_id}
    configurable, context = _configurable_and_context(body, caller, {"run_id": run_id, "thread_id": thread_id, **ids})
    return CreateRunCommand(
        run_id=run_id,
        run_id_is_new=True,
        thread_id=thread_id,
        create_thread=create_thread,
        assistant_id=assistant_id,
        input=body.input,
        command=(body.command.as_recorded() or None) if body.command else None,
        metadata={**body.config.metadata, **body.metadata, **ids},
        config=_config(body, configurable, ids),
        context=context,
        scope=scope,
        on_disconnect=DisconnectMode(body.on_disconnect),
        multitask_strategy=MultitaskStrategy(body.multitask_strategy),
        stream_mode=tuple(dict.fromkeys(body.stream_mode)),
        stream_subgraphs=body.stream_subgraphs,
        interrupt_before=body.interrupt_before,
        interrupt_after=body.interrupt_after,
        options=_options(body),
        model_name=_model_name(body.context) or _model_name(body.config.configurable),
        after_seconds=body.after_seconds,
        thread_metadata=ids,
        user_id=caller.user_id,
        provenance=caller.provenance,
    )


def assistant_of(graphs: Graphs | None, named: str) -> tuple[str, str]:
    """(graph, assistant id) that a client means. Raises AssistantNotFound for an id, ApiError 422 for a name."""
    if graphs is None:
        return named, named  # an executor that is not LangGraph's knows its agents itself
    graph_id = graphs.resolve(named)
    if graph_id is not None:
        return graph_id, graphs.assistant_id(graph_id)
    if is_uuid(named):
        raise AssistantNotFound(NOT_FOUND)
    known = ", ".join(graphs.names)
    raise ApiError(
        422,
        f"Invalid assistant: '{named}'. Must be either:\n- A valid assistant UUID, or\n"
        f"- One of the registered graphs: {known}",
    )


def _configurable_and_context(
    body: RunBody, caller: Caller, own: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`configurable` and `context` of the run. Whichever of the two a client sends, a graph finds it in the other too.

    `own` are the run's ids, which win over whatever a client wrote in `configurable`. The user who is known wins in
    both; where none is, `user_id` is the client's to say.
    """
    if body.context:
        asked = {key: value for key, value in body.context.items() if key not in _CHECKPOINT_KEYS}
    else:
        asked = body.config.configurable
    asked = {key: value for key, value in asked.items() if not key.startswith(_INTERNAL)}
    user_id = caller.user_id if caller.user_id is not None else asked.get("user_id", "")
    configurable = {**asked, **own, "user_id": user_id}
    if body.context:
        context = {key: value for key, value in body.context.items() if not key.startswith(_PLATFORM)}
        known = {} if caller.user_id is None or "user_id" not in context else {"user_id": caller.user_id}
        return configurable, {**context, **known}
    return configurable, {key: configurable[key] for key in asked}


def _config(body: RunBody, configurable: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """The config as asked for, with the run's own ids in it."""
    return {
        # Not dumped, which would copy whatever is inside: no field of it is a model.
        **{name: value for name, value in body.config if name in body.config.model_fields_set},
        "metadata": {"created_by": "system", **body.config.metadata, **body.metadata, **ids},
        "configurable": dict(configurable),
    }


def _options(body: RunBody) -> dict[str, Any]:
    durability = body.durability or ("exit" if body.checkpoint_during is False else "async")
    options: dict[str, Any] = {
        "webhook": body.webhook,
        "feedback_keys": None,
        "resumable": body.stream_resumable,
        "checkpoint_during": durability != "exit",
        "durability": durability,
    }
    if body.strict_resume:
        options["strict_resume"] = True
    if body.checkpoint is not None:
        options["checkpoint"] = body.checkpoint.as_recorded()
    # LangGraph takes it from there too, and what a run begins at is looked for in one place (domain/answers.py).
    of_config = body.config.configurable.get("checkpoint_id") if body.checkpoint is None else None
    if (checkpoint_id := body.checkpoint_id or of_config) is not None:
        options["checkpoint_id"] = checkpoint_id
    return options


def _model_name(values: Mapping[str, Any]) -> str | None:
    name = values.get("model_name")
    return name if isinstance(name, str) and name else None

"""What a recorded request asks of LangGraph: its input, its config, and which frames it wants to see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.types import All, Command, Durability, Send, StreamMode
from langgraph.version import __version__ as langgraph_version

from runs_es.domain import Run
from runs_es.execution.langgraph.graphs import GraphLoadError, GraphRegistry, assistant_id

# What LangGraph calls the modes of the platform. `messages` has two forms there; LangGraph has the tuples.
_MODES: dict[str, StreamMode] = {
    "values": "values",
    "updates": "updates",
    "custom": "custom",
    "messages-tuple": "messages",
    "messages": "messages",
}
_KEPT = ("tags", "recursion_limit", "max_concurrency")
_CHECKPOINT_KEYS = ("checkpoint_id", "checkpoint_ns", "checkpoint_map")
_DURABILITIES: tuple[Durability, ...] = ("sync", "async", "exit")

Breakpoints = All | list[str] | None
MessageForm = Literal["tuple", "built"]


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """One attempt's request, in LangGraph's words."""

    run_id: str
    thread_id: str
    graph_id: str
    input: Any
    config: RunnableConfig
    context: Any
    modes: frozenset[str]
    subgraphs: bool
    interrupt_before: Breakpoints
    interrupt_after: Breakpoints
    durability: Durability
    resume: Any
    strict: bool

    @classmethod
    def of(cls, run: Run, attempt: int, registry: GraphRegistry) -> GraphRequest:
        """Read `run.kwargs`. Raises ValueError for what no graph could run with."""
        kwargs = run.kwargs
        graph_id = _graph_of(run, registry)
        return cls(
            run_id=run.run_id,
            thread_id=run.thread_id,
            graph_id=graph_id,
            input=_command(kwargs["command"]) if kwargs.get("command") else kwargs.get("input"),
            config=_config(run, attempt, graph_id),
            context=kwargs.get("context") or None,
            modes=_modes(kwargs.get("stream_mode")),
            subgraphs=bool(kwargs.get("subgraphs")),
            interrupt_before=kwargs.get("interrupt_before"),
            interrupt_after=kwargs.get("interrupt_after"),
            durability=durability_of(kwargs),
            resume=(kwargs.get("command") or {}).get("resume"),
            strict=bool(kwargs.get("strict_resume")) and (kwargs.get("command") or {}).get("resume") is not None,
        )

    @property
    def graph_modes(self) -> list[StreamMode]:
        """What to ask LangGraph for. Always the values too: messages are recorded from them."""
        return list(dict.fromkeys(["values", *(_MODES[mode] for mode in sorted(self.modes))]))

    @property
    def message_form(self) -> MessageForm:
        """Asked for both forms of messages, the platform sends the tuples only."""
        return "tuple" if "messages-tuple" in self.modes else "built"

    @property
    def thread_config(self) -> RunnableConfig:
        """Names the thread's newest state, whichever checkpoint the run started from."""
        return {"configurable": {"thread_id": self.thread_id, "checkpoint_ns": ""}}

    def continued(self) -> GraphRequest:
        """The same request for an attempt that goes on from what an earlier one saved: its input is in there."""
        configurable = {k: v for k, v in self.config["configurable"].items() if k not in _CHECKPOINT_KEYS}
        return replace(
            self,
            input=None,
            resume=None,
            strict=False,
            config={**self.config, "configurable": {**configurable, "checkpoint_ns": ""}},
        )


def _graph_of(run: Run, registry: GraphRegistry) -> str:
    """The run's graph: its assistant is one, or says in the recorded config which."""
    configurable = (run.kwargs.get("config") or {}).get("configurable") or {}
    for named in (run.assistant_id, configurable.get("graph_id"), run.metadata.get("graph_id")):
        if named and (found := registry.resolve(str(named))):
            return found
    raise GraphLoadError(
        f"assistant {run.assistant_id} is no graph of this worker; it has: {', '.join(registry.names) or 'none'}"
    )


def _config(run: Run, attempt: int, graph_id: str) -> RunnableConfig:
    asked: dict[str, Any] = run.kwargs.get("config") or {}
    ids = {"graph_id": graph_id, "assistant_id": _assistant_of(run, graph_id)}
    own = {"run_id": str(run.run_id), "thread_id": str(run.thread_id)}
    config: dict[str, Any] = {key: asked[key] for key in _KEPT if asked.get(key) is not None}
    config["metadata"] = {
        "created_by": "system",
        **ids,
        **(asked.get("metadata") or {}),
        **run.metadata,
        **ids,
        "run_attempt": attempt,
        "langgraph_version": langgraph_version,
        **own,
    }
    config["configurable"] = {
        **_without_internals(asked.get("configurable") or {}),
        **own,
        **ids,
        **_user(run),
        **_checkpoint(run.kwargs),
    }
    if attempt == 1 and (trace_id := _uuid(run.run_id)):
        config["run_id"] = trace_id  # a tracer calls the run by its own id; a second attempt is another trace
    return cast(RunnableConfig, config)


def _assistant_of(run: Run, graph_id: str) -> str:
    return assistant_id(graph_id) if run.assistant_id == graph_id else str(run.assistant_id)


def _without_internals(configurable: Mapping[str, Any]) -> dict[str, Any]:
    """LangGraph hands itself savers and runtimes through names like these; a request must not replace one by JSON."""
    return {key: value for key, value in configurable.items() if not key.startswith("__")}


def _user(run: Run) -> dict[str, str]:
    return {"user_id": run.user_id, "langgraph_auth_user_id": run.user_id} if run.user_id else {}


def _checkpoint(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Where to start from: the newest state, or the checkpoint that the request names."""
    named = {**(kwargs.get("checkpoint") or {})}
    if kwargs.get("checkpoint_id"):
        named["checkpoint_id"] = kwargs["checkpoint_id"]
    return {"checkpoint_ns": "", **{key: named[key] for key in _CHECKPOINT_KEYS if named.get(key)}}


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _modes(asked: Any) -> frozenset[str]:
    modes = frozenset([asked] if isinstance(asked, str) else asked or ["values"])
    if unknown := modes - _MODES.keys():
        raise ValueError(f"stream_mode {', '.join(sorted(unknown))} is not offered; there are {', '.join(_MODES)}")
    return modes


def durability_of(kwargs: Mapping[str, Any]) -> Durability:
    """When a request wants checkpoints to be durable: before the next step, during it, or at the end."""
    asked = kwargs.get("durability")
    for durability in _DURABILITIES:
        if asked == durability:
            return durability
    return "exit" if kwargs.get("checkpoint_during") is False else "async"


def _command(asked: Mapping[str, Any]) -> Command[Any]:
    """A client's command, with only what it names: null is neither an answer nor an update."""
    given: dict[str, Any] = {key: asked[key] for key in ("update", "resume") if asked.get(key) is not None}
    if isinstance(given.get("update"), list):
        given["update"] = [(key, value) for key, value in given["update"]]
    if asked.get("goto"):
        goto = asked["goto"]
        given["goto"] = [_destination(each) for each in (goto if isinstance(goto, list) else [goto])]
    return Command(**given)


def _destination(asked: Any) -> str | Send:
    if isinstance(asked, Mapping):
        return Send(asked["node"], asked.get("input", asked.get("arg")))
    return str(asked)

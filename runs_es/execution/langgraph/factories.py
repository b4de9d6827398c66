"""Functions that make a graph: how each is called, and how what it gives is opened and closed.

A factory takes nothing, the run's config, a `ServerRuntime`, or both. It gives the graph, a coroutine, a context
manager or a generator of one, synchronous or not. It is called for each run, as the platform does it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import StateGraph
from langgraph.pregel import Pregel
from langgraph.runtime import Runtime
from pydantic import BaseModel

from runs_es.execution.langgraph.configuration import GraphSource
from runs_es.execution.langgraph.context import context_for
from runs_es.execution.signatures import is_agent_function

Graph = Pregel[Any, Any, Any, Any]
Access = Literal["threads.create_run", "threads.read", "assistants.read"]
Role = Literal["config", "runtime"]

_ROLES: tuple[Role, ...] = ("config", "runtime")


@dataclass(frozen=True, slots=True)
class KnownUser:
    """The user of a run, as a factory sees it: the platform's `BaseUser`."""

    identity: str

    @property
    def display_name(self) -> str:
        return self.identity

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def permissions(self) -> list[str]:
        return []

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in ("identity", "display_name", "is_authenticated", "permissions")

    def __iter__(self) -> Iterator[str]:
        return iter(("identity", "display_name", "is_authenticated", "permissions"))


@dataclass(frozen=True, slots=True)
class Opening:
    """Why a graph is made: for which access, with which config and context, and for which user."""

    access: Access
    config: RunnableConfig
    context: Mapping[str, Any] | None = None
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class GraphFactory:
    """A function that makes a graph. `roles` says which of its parameters is given what."""

    source: GraphSource
    make: Callable[..., Any]
    roles: Mapping[str, Role]

    @asynccontextmanager
    async def opened(self, opening: Opening) -> AsyncIterator[Graph]:
        """The graph, for as long as this is entered. Raises what the factory raises, GraphLoadError for no graph.

        What is raised inside reaches the factory's context manager, which may close; it cannot swallow it.
        """
        made = self.make(**{name: self._argument(name, role, opening) for name, role in self.roles.items()})
        raised: BaseException | None = None
        async with _entered(made) as given:
            graph = compiled(self.source, given, f"{self.source.attribute}() gave")
            try:
                yield graph
            except BaseException as error:
                raised = error
                raise
        if raised is not None:
            raise raised

    def _argument(self, name: str, role: Role, opening: Opening) -> Any:
        if role == "runtime":
            return _server_runtime(self.source, opening, _hint(self.make, name))
        config = opening.config
        # A copy: what a factory writes there is not the run's.
        return {**config, **{key: dict(config[key]) for key in ("configurable", "metadata") if key in config}}


def factory_of(source: GraphSource, found: Any) -> GraphFactory | None:
    """The factory that `found` is; None for what is a graph, an agent's function, or no function at all.

    Raises GraphLoadError for a function that needs other arguments than a factory is given.
    """
    if isinstance(found, Pregel | StateGraph) or not callable(found):
        return None
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return None
    roles = {each.name: role for each in parameters if (role := _role(found, each)) is not None}
    needed = [each for each in parameters if each.default is each.empty and each.kind not in _VARIADIC]
    unknown = [each.name for each in needed if each.name not in roles]
    if is_agent_function(found) and (unknown or not roles) and not _gives_graph(found):
        return None
    if unknown and "config" not in roles.values():
        roles[unknown.pop(0)] = "config"
    by_position = any(each.kind is each.POSITIONAL_ONLY for each in parameters)
    if unknown or by_position or len(set(roles.values())) < len(roles):
        raise source.error(
            f"{source.attribute} needs arguments that a factory of graphs is not given; it may have two, "
            "`config: RunnableConfig` and `runtime: ServerRuntime`"
        )
    return GraphFactory(source, found, roles)


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def compiled(source: GraphSource, found: Any, said: str) -> Graph:
    """The graph that `found` is or builds. Raises GraphLoadError for anything else; `said` begins its message."""
    if isinstance(found, StateGraph):
        try:
            found = found.compile()
        except Exception as error:
            raise source.error(f"{source.attribute} does not compile: {error}") from error
    if not isinstance(found, Pregel):
        raise source.error(
            f"{said} a {type(found).__name__}; it must be a StateGraph, a compiled graph, an entrypoint, a function of "
            "(config, runtime) or of nothing that gives one, or an async function of (input, run)"
        )
    return found


def _role(function: Callable[..., Any], parameter: inspect.Parameter) -> Role | None:
    """What a parameter is given, by its annotation or else by its name."""
    hint = _hint(function, parameter.name)
    if hint is RunnableConfig or hint == "RunnableConfig":
        return "config"
    if _is_runtime(hint):
        return "runtime"
    return next((role for role in _ROLES if parameter.name == role), None)


def _hint(function: Callable[..., Any], name: str) -> Any:
    """The annotation of a parameter, or `return`; as text when it names what is imported for type checkers alone."""
    inner = inspect.unwrap(function)
    try:
        return typing.get_type_hints(inner).get(name)
    except Exception:  # noqa: BLE001 - evaluates the text of a user's annotations
        return getattr(inner, "__annotations__", {}).get(name)


def _is_runtime(hint: Any) -> bool:
    if isinstance(hint, str):
        return hint.partition("[")[0].rpartition(".")[2] in ("ServerRuntime", "Runtime")
    origin = typing.get_origin(hint) or hint
    return origin is Runtime or getattr(origin, "__name__", None) == "ServerRuntime"


def _gives_graph(function: Callable[..., Any]) -> bool:
    """Whether a function is annotated to return a graph."""
    hint = _hint(function, "return")
    origin = typing.get_origin(hint) or hint
    if isinstance(origin, str):
        return origin.partition("[")[0].rpartition(".")[2] in ("StateGraph", "CompiledStateGraph", "Pregel")
    return isinstance(origin, type) and issubclass(origin, Pregel | StateGraph)


@asynccontextmanager
async def _entered(made: Any) -> AsyncIterator[Any]:
    """What a factory gave, awaited and entered; left and closed in the end."""
    if inspect.isawaitable(made):
        made = await made
    if inspect.isasyncgen(made):
        made = asynccontextmanager(_same(made))()
    elif inspect.isgenerator(made):
        made = contextmanager(_same(made))()
    if isinstance(made, Pregel | StateGraph):
        yield made
    elif isinstance(made, AbstractAsyncContextManager):
        async with made as graph:
            yield graph
    elif isinstance(made, AbstractContextManager):
        with made as graph:
            yield graph
    else:
        yield made


def _same(made: Any) -> Callable[[], Any]:
    return lambda: made


def _server_runtime(source: GraphSource, opening: Opening, hint: Any) -> Any:
    """The platform's `ServerRuntime`: with the context where a run is executed."""
    try:
        from langgraph_sdk.runtime import ServerRuntime
    except ModuleNotFoundError as error:
        raise source.error(f"{source.attribute} takes a runtime, which needs langgraph-sdk 0.3.5 or newer") from error
    # The union names both variants; the one that executes is the one with a context.
    variants = [typing.get_origin(each) or each for each in typing.get_args(ServerRuntime.__value__)]
    execution, reading = sorted(variants, key=lambda each: "context" not in {field.name for field in fields(each)})
    user = KnownUser(opening.user_id) if opening.user_id is not None else None
    if opening.access != "threads.create_run":
        return reading(access_context=opening.access, user=user, store=None)
    context = _context(opening.context, hint)
    return execution(access_context=opening.access, user=user, store=None, context=context)


def _context(asked: Mapping[str, Any] | None, hint: Any) -> Any:
    """The context as the type that `ServerRuntime[…]` names, else as the request has it."""
    (schema, *_) = (*typing.get_args(hint), None)
    if isinstance(schema, type) and (is_dataclass(schema) or issubclass(schema, BaseModel)):
        return schema(**(context_for(schema, asked) or {}))
    return dict(asked or {})

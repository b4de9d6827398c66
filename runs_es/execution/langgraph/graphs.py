"""The assistants of a process: graphs, functions that make graphs, plain functions, and names of external ones.

Imports no langgraph before a graph is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union, cast, runtime_checkable
from uuid import UUID, uuid5

from runs_es.execution.langgraph.configuration import (
    GraphLoadError,
    GraphSource,
    demo_sources,
    read_configuration,
)
from runs_es.execution.langgraph.user_modules import named_object
from runs_es.execution.signatures import AgentFunction, is_agent_function

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.pregel import Pregel

    from runs_es.execution.langgraph.factories import Opening

    Graph = Pregel[Any, Any, Any, Any]

__all__ = ["GraphLoadError", "GraphRegistry", "GraphSource", "assistant_id", "over"]

logger = logging.getLogger(__name__)

_ASSISTANTS = UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8")
_DEMO = {"agent": "runs_es.execution.langgraph.demo:graph"}
OPEN_SECONDS = 30.0

Loaded: TypeAlias = Union["Graph", "MakesGraph", AgentFunction]


@lru_cache(maxsize=1024)
def assistant_id(name: str) -> str:
    """The id that every server gives the assistant of the graph called `name`."""
    return str(uuid5(_ASSISTANTS, name))


def over(graph: Graph, checkpointer: BaseCheckpointSaver[Any]) -> Graph:
    """The same graph with its state kept by `checkpointer`, whatever it was compiled with.

    A shallow copy, because `graph.copy` forgets which types the state may hold (LANGGRAPH_STRICT_MSGPACK).
    """
    bound = copy(graph)
    bound.checkpointer = checkpointer
    return bound


@runtime_checkable
class MakesGraph(Protocol):
    """A function that makes graphs, ready to be called (factories.py)."""

    @property
    def source(self) -> GraphSource: ...

    def opened(self, opening: Opening) -> AbstractAsyncContextManager[Graph]: ...


class GraphRegistry:
    """The assistants of one process. Each is loaded when first asked for, or all at once by `load_all`.

    A graph that is only looked at (its schemas, its drawing, a thread's state) is made once when a factory makes it;
    `open_seconds` is how long that may take.
    """

    def __init__(
        self,
        sources: Mapping[str, GraphSource],
        external: Iterable[str] = (),
        *,
        open_seconds: float = OPEN_SECONDS,
    ) -> None:
        self._sources = dict(sources)
        self._loaded: dict[str, Loaded] = {}
        self._broken: dict[str, GraphLoadError] = {}
        self._loading = {name: threading.RLock() for name in self._sources}
        self._shown: dict[str, Future[Graph]] = {}
        self._showing = threading.Lock()
        self._open_seconds = open_seconds
        self.external: tuple[str, ...] = ()
        self._ids: dict[str, str] = {}
        self.add_external(external)

    @classmethod
    def from_config(cls, path: str | Path, *, open_seconds: float = OPEN_SECONDS) -> GraphRegistry:
        """The graphs of a `langgraph.json`. Sets its `env`, and puts its folders first on `sys.path`."""
        configuration = read_configuration(path)
        return cls(configuration.sources, configuration.external, open_seconds=open_seconds)

    @classmethod
    def demo(cls) -> GraphRegistry:
        """The demo agent that comes with this package, called `agent`."""
        return cls(demo_sources(_DEMO))

    def add_external(self, names: Iterable[str]) -> None:
        """Assistants that external workers execute. Raises GraphLoadError for one that is a graph here."""
        self.external = tuple(dict.fromkeys((*self.external, *names)))
        for name in self.external:
            if name in self._sources:
                raise self._sources[name].error("it cannot be external as well; take it out of one of the two")
        self._ids = {assistant_id(name): name for name in (*self._sources, *self.external)}

    @property
    def names(self) -> list[str]:
        return [*self._sources, *self.external]

    @property
    def broken(self) -> dict[str, GraphLoadError]:
        """The assistants that could not be loaded, each with the reason. Those not loaded yet are not among them."""
        return dict(self._broken)

    def assistant_id(self, name: str) -> str:
        """The deterministic assistant id of graph `name`."""
        return assistant_id(name)

    def resolve(self, assistant_id_or_name: str) -> str | None:
        """The name of the graph that a client means by its name or its assistant id."""
        if assistant_id_or_name in self._ids.values():
            return assistant_id_or_name
        return self._ids.get(assistant_id_or_name.lower())

    def get(self, name: str) -> Graph:
        """The compiled graph, to look at: one that a factory made has been closed again, and cannot be run.

        Raises GraphLoadError, also for a name that is not registered, or is no graph's.
        """
        found = self._get(name)
        if is_agent_function(found):
            raise self._sources[name].error("it is a function, and has no graph")
        return self._made(name, found) if isinstance(found, MakesGraph) else cast("Graph", found)

    async def look_at(self, name: str) -> Graph:
        """As `get`, and the event loop goes on while a factory makes the graph."""
        found = self._loaded.get(name)
        if found is not None and not isinstance(found, MakesGraph):
            return self.get(name)
        return await asyncio.get_running_loop().run_in_executor(None, self.get, name)

    @asynccontextmanager
    async def opened(self, name: str, opening: Opening) -> AsyncIterator[Graph]:
        """The graph to run, made for this one opening when a factory makes it, and closed when left.

        Raises GraphLoadError, and whatever a factory raises.
        """
        found = self._get(name) if name in self._sources else None
        if not isinstance(found, MakesGraph):
            yield self.get(name)
            return
        async with found.opened(opening) as graph:
            yield graph

    def is_graph(self, name: str) -> bool:
        """Whether the assistant is a graph, and so keeps checkpoints; one that is broken counts as a graph.

        Raises GraphLoadError for a name not known.
        """
        if name in self.external:
            return False
        try:
            return not is_agent_function(self._get(name))
        except GraphLoadError:
            if name in self._broken:
                return True
            raise

    @property
    def functions(self) -> dict[str, AgentFunction]:
        """The assistants that are plain functions."""
        found = {name: self._get(name) for name in self._sources if name not in self._broken}
        return {name: each for name, each in found.items() if is_agent_function(each)}

    def load_all(self) -> None:
        """Load everything now. What cannot be loaded is `broken`, logged, and keeps nothing else from being served.

        Raises GraphLoadError when nothing can be loaded.
        """
        for name in self._sources:
            try:
                self._get(name)
            except GraphLoadError as error:
                logger.error("%s", error, exc_info=error.__cause__)
        if self._sources and len(self._broken) == len(self._sources) and not self.external:
            raise GraphLoadError("; ".join(str(error) for error in self._broken.values()))

    def _get(self, name: str) -> Loaded:
        source = self._source_of(name)
        with self._loading[name]:
            if name in self._broken:
                raise self._broken[name].again()
            if name not in self._loaded:
                try:
                    self._loaded[name] = _load(source)
                except GraphLoadError as error:
                    self._broken[name] = error
                    raise
            return self._loaded[name]

    def _made(self, name: str, factory: MakesGraph) -> Graph:
        """What the factory makes, once, however many ask at the same time. A failure is tried again by the next."""
        with self._showing:
            made = self._shown.get(name)
            if made is None:
                made = self._shown[name] = Future()
                threading.Thread(target=_make, args=(factory, made), name=f"graph {name}", daemon=True).start()
        try:
            return made.result(self._open_seconds)
        except TimeoutError:
            raise self._sources[name].error(
                f"{factory.source.attribute}() gave no graph within {self._open_seconds:g} s"
                " (RUNS_ES_GRAPH_OPEN_SECONDS)"
            ) from None
        except GraphLoadError as error:
            with self._showing:
                if self._shown.get(name) is made:
                    del self._shown[name]
            raise error.again() from error.__cause__

    def _source_of(self, name: str) -> GraphSource:
        if name in self.external:
            raise GraphLoadError(f"{name!r} is executed by external workers, and has no graph here")
        try:
            return self._sources[name]
        except KeyError:
            known = ", ".join(self._sources) or "none"
            raise GraphLoadError(f"there is no graph {name!r}; registered are: {known}") from None


def _load(source: GraphSource) -> Loaded:
    found: Any = None
    try:
        found = named_object(source)
        from runs_es.execution.langgraph.factories import compiled, factory_of
    except (GraphLoadError, ModuleNotFoundError) as error:
        missing = error.__cause__ if isinstance(error, GraphLoadError) else error
        if not (isinstance(missing, ModuleNotFoundError) and _root(missing.name) in ("langgraph", "langchain_core")):
            raise
        if is_agent_function(found):
            return found  # it needs no LangGraph
        raise source.error(f"LangGraph is missing ({missing}); install runs-es[langgraph]") from missing
    factory = factory_of(source, found)
    if factory is not None:
        return factory
    if is_agent_function(found):
        return found
    return compiled(source, found, f"{source.attribute} in {source.target} is")


def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _make(factory: MakesGraph, made: Future[Graph]) -> None:
    """Make the graph on an event loop of its own, and close it again; in a thread of its own."""
    from runs_es.execution.langgraph.factories import Opening

    source = factory.source
    ids = {"graph_id": source.name, "assistant_id": assistant_id(source.name)}
    opening = Opening("assistants.read", {"metadata": {"created_by": "system", **ids}, "configurable": dict(ids)})

    async def open_and_close() -> Graph:
        async with factory.opened(opening) as graph:
            return graph

    try:
        made.set_result(asyncio.run(open_and_close()))
    except GraphLoadError as error:
        made.set_exception(error)
    except BaseException as error:  # noqa: BLE001 - raised in the threads that asked
        failure = source.failure(f"{source.attribute}() failed", error)
        failure.__cause__ = error
        made.set_exception(failure)

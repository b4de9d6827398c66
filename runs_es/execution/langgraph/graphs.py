"""Which graphs and functions there are: reads a `langgraph.json`, loads what it names, and gives each its assistant id.

Imports no langgraph before a graph is asked for. A graph's module lives in `sys.modules` as `user_graphs.<its path>`.
That name ends up in checkpoints (LangGraph stores where a state's classes are from), so it must be the same on every
machine and never hold an absolute path.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid5

from runs_es.execution.langgraph import is_installed
from runs_es.execution.signatures import AgentFunction, is_agent_function

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.graph.state import CompiledStateGraph

    Graph = CompiledStateGraph[Any, Any, Any, Any]

_ASSISTANTS = UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8")
_PACKAGE = "user_graphs"
_MISSING = "LangGraph is missing; install runs-es[langgraph]"
_DEMO = {"agent": "runs_es.execution.langgraph.demo:graph"}


class GraphLoadError(Exception):
    """A graph or its configuration cannot be loaded; the message says which, where, and what to do."""


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


@dataclass(frozen=True, slots=True)
class GraphSource:
    """Where one graph is from. `target` is a file below `folder` or the dotted name of a module."""

    name: str
    target: str
    attribute: str
    folder: Path
    config: Path | None = None

    @property
    def is_file(self) -> bool:
        return self.target.endswith(".py") or "/" in self.target or "\\" in self.target

    @property
    def file(self) -> Path:
        return (self.folder / self.target).resolve()

    def error(self, problem: str) -> GraphLoadError:
        where = f" of {self.config}" if self.config else ""
        return GraphLoadError(f"graph {self.name!r}{where}: {problem}")


class GraphRegistry:
    """The assistants of one process: graphs, plain functions, and, by name alone, those of external workers. Each is
    loaded when first asked for, or all at once by `load_all`.
    """

    def __init__(self, sources: Mapping[str, GraphSource], external: Iterable[str] = ()) -> None:
        self._sources = dict(sources)
        self._loaded: dict[str, Graph | AgentFunction] = {}
        self._loading = threading.RLock()
        self.external: tuple[str, ...] = ()
        self._ids: dict[str, str] = {}
        self.add_external(external)

    @classmethod
    def from_config(cls, path: str | Path) -> GraphRegistry:
        """The graphs of a `langgraph.json`. Sets its `env`, and puts its folders first on `sys.path`."""
        config_path = Path(path).resolve()
        config = _read_config(config_path)
        external = _external(config_path, config.get("external"))
        sources = {} if external and not config.get("graphs") else _sources(config_path, config.get("graphs"))
        _set_environment(config_path, config.get("env") or {})
        _put_first_on_path(_folders(config_path, config.get("dependencies") or ["."]))
        return cls(sources, external)

    @classmethod
    def empty(cls) -> GraphRegistry:
        """No assistants, until external ones are added."""
        return cls({})

    @classmethod
    def demo(cls) -> GraphRegistry:
        """The demo agent that comes with this package, called `agent`."""
        here = Path(__file__).parent
        return cls({name: _source(name, where, here, None) for name, where in _DEMO.items()})

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

    def assistant_id(self, name: str) -> str:
        """The deterministic assistant id of graph `name`."""
        return assistant_id(name)

    def resolve(self, assistant_id_or_name: str) -> str | None:
        """The name of the graph that a client means by its name or its assistant id."""
        if assistant_id_or_name in self._ids.values():
            return assistant_id_or_name
        return self._ids.get(assistant_id_or_name.lower())

    def get(self, name: str) -> Graph:
        """The compiled graph. Raises GraphLoadError, also for a name that is not registered, or is no graph's."""
        found = self._get(name)
        if is_agent_function(found):
            raise self._sources[name].error("it is a function, and has no graph")
        return cast("Graph", found)

    def is_graph(self, name: str) -> bool:
        """Whether the assistant is a graph, and so keeps checkpoints. Raises GraphLoadError for a name not known."""
        return name not in self.external and not is_agent_function(self._get(name))

    @property
    def functions(self) -> dict[str, AgentFunction]:
        """The assistants that are plain functions."""
        found = {name: self._get(name) for name in self._sources}
        return {name: each for name, each in found.items() if is_agent_function(each)}

    def _get(self, name: str) -> Graph | AgentFunction:
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = _load(self._source_of(name))
            return self._loaded[name]

    def load_all(self) -> None:
        """Load every graph now, so that a worker fails when it starts and not with its first run."""
        for name in self._sources:
            self._get(name)

    def _source_of(self, name: str) -> GraphSource:
        if name in self.external:
            raise GraphLoadError(f"{name!r} is executed by external workers, and has no graph here")
        try:
            return self._sources[name]
        except KeyError:
            known = ", ".join(self._sources) or "none"
            raise GraphLoadError(f"there is no graph {name!r}; registered are: {known}") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GraphLoadError(f"{path} does not exist; name a langgraph.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GraphLoadError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise GraphLoadError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise GraphLoadError(f'{path} must hold a JSON object with a "graphs" entry')
    return config


def _sources(config: Path, graphs: Any) -> dict[str, GraphSource]:
    if not isinstance(graphs, dict) or not graphs:
        raise GraphLoadError(f'{config} names no graphs; add "graphs": {{"agent": "./agent.py:graph"}}')
    return {name: _source(name, where, config.parent, config) for name, where in graphs.items()}


def _external(config: Path, names: Any) -> list[str]:
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise GraphLoadError(f'{config}: "external" must be a list of names, such as ["researcher"]')
    return names


def _source(name: str, where: Any, folder: Path, config: Path | None) -> GraphSource:
    if isinstance(where, dict):
        where = where.get("path")
    target, colon, attribute = where.rpartition(":") if isinstance(where, str) else ("", "", "")
    if not (target and colon and attribute):
        said = GraphSource(name, "", "", folder, config)
        raise said.error(f'{where!r} is no place of a graph; write "./file.py:variable" or "package.module:variable"')
    return GraphSource(name, target, attribute, folder, config)


def _folders(config: Path, dependencies: Any) -> list[Path]:
    """The folders among the dependencies, and always the configuration's own. Package names are for pip."""
    if not isinstance(dependencies, list):
        raise GraphLoadError(f'{config}: "dependencies" must be a list, such as ["."]')
    named = [config.parent / entry for entry in dependencies if isinstance(entry, str) and entry.startswith(".")]
    for folder in named:
        if not folder.is_dir():
            raise GraphLoadError(f"{config}: the dependency {folder} is no folder")
    return list(dict.fromkeys(folder.resolve() for folder in [*named, config.parent]))


def _put_first_on_path(folders: list[Path]) -> None:
    """First, so that a user's own `api`, `tests` or `utils` are found before anybody else's."""
    places = [str(folder) for folder in folders]
    sys.path[:] = places + [place for place in sys.path if place not in places]
    importlib.invalidate_caches()


def _set_environment(config: Path, env: Any) -> None:
    """What stands in the environment already, wins."""
    if isinstance(env, str):
        env = _read_env_file(config.parent / env)
    if not isinstance(env, dict):
        raise GraphLoadError(f'{config}: "env" must be an object or the path of a file of KEY=VALUE lines')
    for key, value in env.items():
        os.environ.setdefault(key, value if isinstance(value, str) else json.dumps(value))


def _read_env_file(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise GraphLoadError(f"the env file {path} cannot be read: {error.strerror}") from error
    pairs = (line.strip().removeprefix("export ").partition("=") for line in lines)
    return {key.strip(): _unquoted(value.strip()) for key, equals, value in pairs if equals and not key.startswith("#")}


def _unquoted(value: str) -> str:
    quoted = re.fullmatch(r"""(["'])(.*?)\1(\s+#.*)?""", value)
    return quoted[2] if quoted else re.split(r"\s+#", value)[0]


def _load(source: GraphSource) -> Graph | AgentFunction:
    try:
        named = _attribute(source, _module(source))
    except GraphLoadError as error:
        if _is_without_langgraph(error.__cause__):
            raise source.error(_MISSING) from error
        raise
    if is_agent_function(named):
        return named  # it needs no LangGraph
    if not is_installed():
        raise source.error(_MISSING)
    from langgraph.graph.state import CompiledStateGraph, StateGraph

    found = _made(source, named, (CompiledStateGraph, StateGraph))
    if isinstance(found, StateGraph):
        try:
            found = found.compile()
        except Exception as error:
            raise source.error(f"{source.attribute} does not compile: {error}") from error
    if not isinstance(found, CompiledStateGraph):
        raise source.error(
            f"{source.attribute} in {source.target} is a {type(found).__name__}; it must be a StateGraph, "
            "a compiled graph, a function without arguments that gives one, or an async function of (input, run)"
        )
    return found


def _is_without_langgraph(error: BaseException | None) -> bool:
    """Whether an import failed because LangGraph is not there."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    return package in ("langgraph", "langchain_core") and not is_installed()


def _module(source: GraphSource) -> ModuleType:
    if source.is_file and not source.file.is_file():
        raise source.error(f"the file {source.file} does not exist")
    try:
        return _module_of_file(source) if source.is_file else importlib.import_module(source.target)
    except (Exception, SystemExit) as error:
        raise source.error(f"importing {source.target} failed: {type(error).__name__}: {error}") from error


def _module_of_file(source: GraphSource) -> ModuleType:
    """Import the file as a module of our package over its folder, so that its relative imports work."""
    folder, file = source.folder.resolve(), source.file
    if file.suffix != ".py":
        raise ImportError(f"{file} is no Python file")
    package = _package_over(folder)
    parts = file.relative_to(folder).with_suffix("").parts if file.is_relative_to(folder) else ()
    parts = parts[:-1] if parts[-1:] == ("__init__",) else parts
    if parts and all("." not in part for part in parts):
        return importlib.import_module(".".join((package, *parts)))
    name = f"{package}.{re.sub(r'[^0-9A-Za-z]+', '_', source.target)}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # before it runs: dataclasses look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package_over(folder: Path) -> str:
    """The name of a package that exists only in memory, whose modules are the files below `folder`.

    A second folder in one process gets a number: tests do that, servers do not.
    """
    for number in range(1, sys.maxsize):
        name = _PACKAGE if number == 1 else f"{_PACKAGE}_{number}"
        package = sys.modules.get(name)
        if package is None:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(folder)]
            package = sys.modules[name] = importlib.util.module_from_spec(spec)
        if list(package.__path__) == [str(folder)]:
            return name
    raise AssertionError("unreachable")


def _attribute(source: GraphSource, module: ModuleType) -> Any:
    found: Any = module
    for part in source.attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise source.error(
                f"{source.target} has no {source.attribute!r}; name a variable that it defines"
            ) from None
    return found


def _made(source: GraphSource, found: Any, graph_types: tuple[type, ...]) -> Any:
    """The graph that `found` is, or the one it makes if it is a factory."""
    if isinstance(found, graph_types) or not callable(found):
        return found
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):
        raise source.error(f"{source.attribute} needs arguments; a factory of graphs must do without") from None
    try:
        made = found()
        return _awaited(made) if inspect.iscoroutine(made) else made
    except (Exception, SystemExit) as error:
        raise source.error(f"{source.attribute}() failed: {type(error).__name__}: {error}") from error


def _awaited(coroutine: Any) -> Any:
    """In a thread of its own, for this one may be running an event loop."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(coroutine))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that asked
            outcome.append(error)

    thread = threading.Thread(target=run, name="graph factory")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]

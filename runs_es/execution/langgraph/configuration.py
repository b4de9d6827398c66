"""Reads a `langgraph.json`: the graphs it names, the environment it sets, and what it asks that is not served."""

from __future__ import annotations

import difflib
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs_es.domain.facts import hidden_error
from runs_es.environment import PREFIX, READ_ELSEWHERE
from runs_es.execution.attempt_failure import printed
from runs_es.execution.own_frames import last_own_frame
from runs_es.process_log import class_name

logger = logging.getLogger(__name__)

_SERVED = ("graphs", "dependencies", "env", "external")
# These are for the tool that builds an image, and mean nothing to a server.
_FOR_IMAGES = (
    "$schema",
    "api_version",
    "base_image",
    "docker_compose_file",
    "dockerfile_lines",
    "image_distro",
    "keep_pkg_tools",
    "node_version",
    "pip_config_file",
    "pip_installer",
    "python_version",
    "source",
)
_REFUSED = {
    "auth": "this server would be open to everybody who can reach it. Let a proxy authenticate users and name them in"
    ' a header (RUNS_ES_USER_HEADER), and take "auth" out of the file',
    "encryption": 'what it is to protect would be stored as it is. Take "encryption" out of the file if that may be so',
}
_NOT_SERVED = ("checkpointer", "http", "store", "ui", "ui_config", "webhooks")


class GraphLoadError(Exception):
    """A graph or its configuration cannot be loaded; the message says which, where, and what to do.

    `problem` is the message without the name of the graph and without the path of its configuration.
    """

    def __init__(self, message: str, problem: str | None = None, graph_id: str = "") -> None:
        super().__init__(message)
        self.problem = message if problem is None else problem
        self.graph_id = graph_id

    def again(self) -> GraphLoadError:
        """The same error, to be raised in another thread."""
        twin = GraphLoadError(str(self), self.problem, self.graph_id)
        twin.__cause__ = self.__cause__
        return twin

    def shown(self, show_errors: bool) -> str:
        """The problem as clients see it. Without `show_errors` not what the user's code raised: it may hold secrets."""
        hidden = not show_errors and self.__cause__ is not None
        return hidden_error(self.graph_id) if hidden else self.problem


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
        return GraphLoadError(f"graph {self.name!r}{where}: {problem}", problem, self.name)

    def failure(self, what: str, error: BaseException) -> GraphLoadError:
        """The error for user code that raised, with the last frame of that code."""
        frame = last_own_frame(error, self.folder.resolve())
        return self.error(f"{what}: {class_name(error)}: {printed(error)}" + (f" ({frame})" if frame else ""))


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a `langgraph.json` names."""

    sources: dict[str, GraphSource]
    external: list[str]


def read_configuration(path: str | Path) -> Configuration:
    """Read the file, set its `env`, and put its folders first on `sys.path`.

    Logs a warning for each key that has no effect here. Raises GraphLoadError, also for a key without which the server
    would protect less than the file says.
    """
    config_path = Path(path).resolve()
    config = _read_config(config_path)
    _refuse_unprotected(config_path, config)
    for key, why in _without_effect(config):
        logger.warning("%s: %s %s", config_path, key, why)
    external = _external(config_path, config.get("external"))
    sources = {} if external and not config.get("graphs") else _sources(config_path, config.get("graphs"))
    _set_environment(config_path, config.get("env") or {})
    _put_first_on_path(_folders(config_path, config.get("dependencies") or ["."]))
    return Configuration(sources, external)


def _refuse_unprotected(path: Path, config: dict[str, Any]) -> None:
    for key, consequence in _REFUSED.items():
        if config.get(key):
            raise GraphLoadError(f'{path}: "{key}" is not served: {consequence}')


def _without_effect(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys that change nothing here, each with the reason."""
    known = (*_SERVED, *_FOR_IMAGES, *_REFUSED, *_NOT_SERVED)
    for key, value in config.items():
        if key in _NOT_SERVED:
            nested = value if isinstance(value, dict) and key in ("checkpointer", "http") else {}
            for name in [f"{key}.{inner}" for inner in nested] or [key]:
                yield f'"{name}"', "is not served yet, and has no effect"
        elif key not in known:
            (nearest, *_) = (*difflib.get_close_matches(key, known, 1), "")
            meant = f'; did you mean "{nearest}"?' if nearest else ""
            yield f'"{key}"', f"is not known, and has no effect{meant}"
    graphs = config.get("graphs")
    for name, where in graphs.items() if isinstance(graphs, dict) else ():
        for key in where if isinstance(where, dict) else ():
            if key != "path":
                yield f'"graphs.{name}.{key}"', "is not served yet, and has no effect"


def demo_sources(demo: dict[str, str]) -> dict[str, GraphSource]:
    """The sources of graphs that come with this package."""
    return {name: _source(name, where, Path(__file__).parent, None) for name, where in demo.items()}


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
    """Set what is not set already. Raises GraphLoadError for settings of the server, which have been read by now."""
    if isinstance(env, str):
        env = _read_env_file(config.parent / env)
    if not isinstance(env, dict):
        raise GraphLoadError(f'{config}: "env" must be an object or the path of a file of KEY=VALUE lines')
    late = sorted({key for key in env if key.upper().startswith(PREFIX)} - READ_ELSEWHERE - os.environ.keys())
    if late:
        # Passed over, a user header would protect nobody and a misspelt name would never be noticed.
        raise GraphLoadError(
            f'{config}: "env" comes too late for {late[0]}, a setting of the server:'
            " set it in the environment of the process"
        )
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

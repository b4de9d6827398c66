"""Which projections a process runs: the built-in ones, installed ones, and those that a setting names.

An installed package offers its own by entry point, in the group `runs_es.projections`; `RUNS_ES_PROJECTIONS` names
others as `module:object`, separated by commas. Either is a `Projection` or several in a list or tuple.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from runs_es.execution.own_frames import last_own_frame
from runs_es.settings import Settings
from runs_projections.crons import CRONS
from runs_projections.messages import MESSAGES
from runs_projections.projection import AnyProjection, Projection
from runs_projections.runs import RUNS
from runs_projections.threads import THREADS
from runs_projections.tracking import RESERVED
from runs_projections.usage import USAGE

GROUP = "runs_es.projections"

PROJECTIONS: tuple[AnyProjection, ...] = (RUNS, MESSAGES, THREADS, USAGE, CRONS)


class ProjectionLoadError(Exception):
    """A projection that cannot be loaded; says which, where it was named, and why."""


def load_projections(settings: Settings | None = None) -> tuple[AnyProjection, ...]:
    """The built-in projections, and behind them the user's. Raises ProjectionLoadError."""
    loaded = list(PROJECTIONS)
    for named, load in _named(settings or Settings()):
        try:
            found = load()
        except (Exception, SystemExit) as error:
            frame = last_own_frame(error)
            why = f"{type(error).__name__}: {error}" + (f" ({frame})" if frame else "")
            raise ProjectionLoadError(f"{named} cannot be loaded: {why}") from error
        for projection in found if isinstance(found, list | tuple) else [found]:
            _check(named, projection, loaded)
            loaded.append(projection)
    return tuple(loaded)


def find(projections: Iterable[AnyProjection], name: str) -> AnyProjection:
    """The projection of this name. Raises ValueError that says which there are."""
    known = {projection.name: projection for projection in projections}
    if name not in known:
        raise ValueError(f"no such projection: {name}; there are {', '.join(known)}")
    return known[name]


def _named(settings: Settings) -> Iterator[tuple[str, Callable[[], Any]]]:
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        yield f"projection {entry.value!r} (entry point {entry.name!r} of {GROUP})", entry.load
    for path in (settings.projections or "").split(","):
        if path.strip():
            yield f"projection {path.strip()!r} (RUNS_ES_PROJECTIONS)", partial(_imported, path.strip())


def _imported(path: str) -> Any:
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError("it must be written as module:object")
    return getattr(importlib.import_module(module), name)


def _check(named: str, projection: Any, loaded: list[AnyProjection]) -> None:
    if not isinstance(projection, Projection):
        raise ProjectionLoadError(f"{named} is no Projection but of type {type(projection).__name__}")
    if projection.name in RESERVED:
        raise ProjectionLoadError(f"{named}: the name {projection.name} is taken")
    table = projection.table.name
    if not table.endswith(f"_v{projection.version}"):
        raise ProjectionLoadError(
            f"{named}: its table must be called <name>_v{projection.version}, not {table},"
            " so that versions can stand side by side"
        )
    for other in loaded:
        if projection.name == other.name or table == other.table.name:
            raise ProjectionLoadError(
                f"{named}: there is another projection called {other.name} over {other.table.name}"
            )

"""What `open_store` is given, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs_es.domain.values import names_of
from runs_es.execution.protocol import RunExecutor
from runs_es.execution.routes import Routes
from runs_es.settings import Settings


@dataclass(frozen=True, slots=True)
class StoreArguments:
    """The arguments of `open_store`. `assistants` None means those that the executor names, or else any."""

    settings: Settings
    executor: RunExecutor | None
    config: Path | None
    work: bool
    queues: tuple[str, ...]
    assistants: tuple[str, ...] | None

    def served(self, external: Iterable[str], graphs: Iterable[str]) -> tuple[str, ...] | None:
        """The assistants that this store executes, by name or id; None means any.

        Jobs for external assistants are taken by whoever comes, to be thrown away.
        """
        named = self.assistants
        if named is None and self.executor is None:
            named = tuple(graphs)
        if named is None:
            return None
        return (*named, *external)


def checked(
    settings: Settings | None,
    executor: RunExecutor | None,
    config: Path | str | None,
    work: bool,
    queues: Collection[str],
    assistants: Collection[str] | str | None,
) -> StoreArguments:
    """The arguments in one form. Raises TypeError and ValueError that name the argument."""
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError(f"settings must be a runs_es.Settings, not {type(settings).__name__}")
    settings = settings or Settings()
    _check_executor(executor)
    if config is not None and not isinstance(config, str | Path):
        raise TypeError(f"config must be the path of a langgraph.json, not {type(config).__name__}")
    if executor is not None and config is not None:
        raise ValueError("give an executor or a config of graphs: both would execute the runs")
    known = Routes(settings.queues).queues
    wanted = names_of("queues", queues)
    if unknown := sorted(set(wanted) - known):
        raise ValueError(f"no queue {', '.join(unknown)}: RUNS_ES_QUEUES knows {', '.join(sorted(known))}")
    named: Any = assistants if assistants is not None else getattr(executor, "assistants", None)
    return StoreArguments(
        settings,
        executor,
        Path(config) if config is not None else None,
        work,
        wanted,
        names_of("assistants", named) if named is not None else None,
    )


def _check_executor(executor: object) -> None:
    if executor is None:
        return
    if isinstance(executor, type):
        raise TypeError(f"executor must be an object, and {executor.__name__} is a class: call it")
    if not callable(getattr(executor, "execute", None)):
        raise TypeError(
            f"executor must have a method `async def execute(self, run)`, and {type(executor).__name__} has none"
        )

"""Which assistants are executed by external workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from runs_es.domain import Run, RunStatus


class ExternalAssistants:
    """Their names, and the ids that runs know them by."""

    def __init__(self, names: Iterable[str], assistant_id: Callable[[str], str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        # Where there is no registry of graphs, an assistant's id is its name.
        self._ids = {name: frozenset({name, assistant_id(name)}) for name in self.names}
        self.ids = frozenset[str]().union(*self._ids.values())

    def ids_of(self, named: Iterable[str]) -> frozenset[str]:
        """The ids of these assistants, each given by its name or one of its ids; all of them when none is named.

        Raises ValueError for one that is not external.
        """
        found: set[str] = set()
        for wanted in named:
            ids = next((ids for ids in self._ids.values() if wanted in ids), None)
            if ids is None:
                known = ", ".join(self.names) or "none"
                raise ValueError(
                    f'assistant {wanted!r} is not for external workers; those are: {known} ("external" in the'
                    " configuration, RUNS_ES_EXTERNAL_ASSISTANTS)"
                )
            found |= ids
        return frozenset(found) or self.ids

    def name_of(self, assistant_id: str) -> str:
        """The name of the assistant with this id."""
        return next((name for name, ids in self._ids.items() if assistant_id in ids), assistant_id)

    def leave(self, run: Run) -> bool:
        """Whether the run is for the workers of this project: one of another assistant, or one that only has to be
        ended, which needs no agent.
        """
        ends = run.status is RunStatus.PENDING and run.cancel_requested is not None
        return ends or run.assistant_id not in self.ids

"""Strict resumes: an answer to what is not asked is an error, and changes nothing."""

from __future__ import annotations

from typing import Any

from langgraph.types import StateSnapshot

from runs_es.domain.answers import names_interrupts


class UnknownInterruptError(Exception):
    """An answer that fits nothing that waits: LangGraph's name, which is the domain's UNKNOWN_INTERRUPT too."""


def must_be_asked(resume: Any, state: StateSnapshot) -> None:
    """Raises UnknownInterruptError unless the state waits for this answer: by id for each, or by value for one."""
    asked = {interrupt.id for task in state.tasks for interrupt in task.interrupts}
    if names_interrupts(resume):
        unknown = sorted(resume.keys() - asked)
        if unknown or not resume:
            what = f"these do not wait for an answer: {', '.join(unknown)}" if unknown else "no interrupt is named"
            raise UnknownInterruptError(f"{what}; what waits: {', '.join(sorted(asked)) or 'nothing'}")
    elif not asked and not state.next:
        raise UnknownInterruptError("nothing waits for an answer")
    elif len(asked) > 1:
        raise UnknownInterruptError(f"several wait for an answer, name which: {', '.join(sorted(asked))}")

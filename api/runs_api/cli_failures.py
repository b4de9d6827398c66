"""Expected failures, in one sentence that says what to do."""

from __future__ import annotations

import psycopg
from pydantic import ValidationError
from pydantic_settings import SettingsError

from runs_api.bad_settings import described
from runs_es.database import DatabaseUnavailable, MigrationFailed, SchemaMismatch
from runs_es.domain import StoreUnavailable, UnknownTopic
from runs_es.execution.langgraph.graphs import GraphLoadError
from runs_projections.loading import ProjectionLoadError

_TELLING = (
    DatabaseUnavailable,
    MigrationFailed,
    SchemaMismatch,
    GraphLoadError,
    ProjectionLoadError,
    StoreUnavailable,
)


def in_words(error: Exception) -> tuple[str, int] | None:
    """The sentence and the exit code; None for a mistake of ours."""
    match error:
        case ValidationError() | SettingsError():
            return described(error), 2
        case UnknownTopic():
            return f"{error}: a newer version wrote this log; run that one, or upgrade", 1
        case psycopg.errors.InsufficientPrivilege():
            return f"{str(error).splitlines()[0].strip()}: run this as the role that owns the tables", 1
        case psycopg.Error():
            return f"The database failed: {str(error).strip()}", 1
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in ("langgraph", "langchain_core"):
            return f'LangGraph is missing ({error}). Install it with `pip install "runs-es[langgraph]"`', 1
        case _ if isinstance(error, _TELLING):
            return str(error), 1
    return None

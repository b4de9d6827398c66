"""The database of one process: the one it is told of, or the embedded one. Nothing here makes or changes tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from runs_es.database.errors import (
    DatabaseUnavailable,
    EmbeddedUnavailable,
    MigrationFailed,
    SchemaMismatch,
)
from runs_es.database.server_check import check_server
from runs_es.settings import Settings

__all__ = [
    "Database",
    "DatabaseUnavailable",
    "EmbeddedUnavailable",
    "MigrationFailed",
    "SchemaMismatch",
    "open_database",
]


class Database:
    """A database that was reached once. `close` lets go of the embedded server, if that is what it is."""

    def __init__(self, url: str, close: Callable[[], None] | None = None) -> None:
        self.url = url
        self._close = close

    def close(self) -> None:
        if self._close is not None:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_database(settings: Settings, *, create: bool = True) -> Database:
    """Find or start the database and see that it can hold a store, waiting for one that is still starting.

    Without `create` an embedded database that does not exist is not made: for commands that only read.
    Raises DatabaseUnavailable with what to do.
    """
    if settings.database_url is not None:
        check_server(settings.database_url, settings.database_start_seconds)
        return Database(settings.database_url)
    if sys.platform == "win32":
        raise DatabaseUnavailable("The embedded server does not run on Windows: set RUNS_ES_DATABASE_URL")
    # Imported late: it needs modules that Windows lacks.
    from runs_es.database import places
    from runs_es.database.embedded import EmbeddedPostgres

    if not create and not places.has_cluster(settings.data_dir):
        raise DatabaseUnavailable(
            f"There is no database in {settings.data_dir}, and this command makes none: `runs-es serve` does. "
            "RUNS_ES_DATA_DIR names the folder of another embedded one, RUNS_ES_DATABASE_URL any other"
        )
    server = EmbeddedPostgres(settings.data_dir, settings.embedded_max_connections).start()
    return Database(server.url, server.detach)

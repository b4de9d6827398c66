"""What all commands share: where they print, how they refuse, and the database they need."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from runs_es.database import Database, open_database
from runs_es.database import migrate as migrations
from runs_es.settings import Settings

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Refused(Exception):
    """Something that the user can put right; the message says how."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def printable(text: str | None) -> str:
    """On one line, without control characters: what a caller wrote must not drive the reader's terminal."""
    return " ".join("".join(each if each.isprintable() else " " for each in text or "").split())


@contextmanager
def migrated_database(settings: Settings) -> Iterator[Database]:
    """The database of the settings. Raises Refused when it lacks a migration."""
    with open_database(settings) as database:
        if missing := migrations.pending(database.url, settings.db_schema):
            raise Refused(f"the database lacks {', '.join(missing)}: run `runs-es migrate` first")
        yield database


def user() -> str:
    """Who types."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        return "unknown"

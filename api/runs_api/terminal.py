"""What all commands share: where they print, how they refuse, and the database they need.

Imports what it needs late, so that `runs-es --help` need not wait for it.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from runs_es.database import Database
    from runs_es.settings import Settings

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_HERE = Path(".data")  # where `make serve` puts the embedded database


class Refused(Exception):
    """Something that the user can put right; the message says how."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def printable(text: str | None) -> str:
    """On one line, without control characters: what a caller wrote must not drive the reader's terminal."""
    return " ".join("".join(each if each.isprintable() else " " for each in text or "").split())


def command_settings() -> Settings:
    """The settings of a command: `.data` of this folder is its database when nothing names another, and is named."""
    from runs_es.settings import Settings

    settings = Settings()
    if settings.database_url is None and "data_dir" not in settings.model_fields_set and _is_ours(_HERE):
        settings = settings.model_copy(update={"data_dir": _HERE.resolve()})
        err.print(f"using the database in {settings.data_dir}, because RUNS_ES_DATA_DIR is not set", style="dim")
    return settings


def _is_ours(folder: Path) -> bool:
    """Whether it holds a database that this user made: to start another's would run code of theirs."""
    try:
        found = folder.stat()
    except OSError:
        return False
    users = {os.geteuid(), int(os.environ["SUDO_UID"])} if _is_sudo() else {os.geteuid()}
    if found.st_uid not in users or found.st_mode & 0o022:
        return False
    return (folder / "postgres").is_dir() or (folder / "relocated").is_file()


def _is_sudo() -> bool:
    return os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdecimal()


def size_of(size: int) -> str:
    """A number of bytes for people."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


@contextmanager
def migrated_database(settings: Settings) -> Iterator[Database]:
    """The database of the settings, which has to exist. Raises Refused when it lacks a migration."""
    from runs_es.database import migrate, open_database

    with open_database(settings, create=False) as database:
        if missing := migrate.pending(database.url, settings.db_schema):
            raise Refused(f"{where(settings)}: the database lacks {', '.join(missing)}: run `runs-es migrate` first")
        yield database


def where(settings: Settings) -> str:
    """The database in words, without its password."""
    from psycopg.conninfo import conninfo_to_dict

    if settings.database_url is None:
        return f"{settings.data_dir} (embedded PostgreSQL)"
    parts = conninfo_to_dict(settings.database_url)
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"{parts.get('host') or 'localhost'}{port}/{parts.get('dbname') or ''}, schema {settings.db_schema}"


def user() -> str:
    """Who types."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        return "unknown"

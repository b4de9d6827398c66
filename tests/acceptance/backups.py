"""Backups of a database with what is there: `pg_dump` and `pg_restore`, else a copy as a template."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import conninfo, sql

from runs_es.database import binaries
from runs_es.database.errors import EmbeddedUnavailable
from tests.conftest import new_database, url_of


def _programs() -> tuple[Path, dict[str, str]] | None:
    """Where `pg_dump` lies, and the environment that it needs."""
    try:
        installation = binaries.programs_for(binaries.account_for(Path("/nowhere")))
    except EmbeddedUnavailable:
        found = shutil.which("pg_dump")
        return (Path(found).parent, dict(os.environ)) if found else None
    return installation / "bin", binaries.environment(installation)


class Backup:
    """The database as it was at one moment, for as long as `backup_of` is entered."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._name = str(conninfo.conninfo_to_dict(url)["dbname"])
        self._server = url_of(url, "postgres")
        self._file = folder / f"{uuid.uuid4().hex}.dump"
        self._copy = f"test_{uuid.uuid4().hex[:16]}"
        self._programs = _programs()

    def take(self) -> None:
        """While the database is in use, where there is `pg_dump`; ends its sessions where there is not."""
        if self._programs is not None:
            self._run("pg_dump", "--format=custom", f"--file={self._file}", f"--dbname={self._url}")
        else:
            self._clone(self._name, self._copy)

    def restore(self) -> None:
        """Put the backup in the place of the database, under the same name. Ends all sessions."""
        with psycopg.connect(self._server, autocommit=True) as connection:
            drop = sql.SQL("drop database {} with (force)").format(sql.Identifier(self._name))
            connection.execute(drop)
        if self._programs is None:
            self._clone(self._copy, self._name)
            return
        with psycopg.connect(self._server, autocommit=True) as connection:
            create = sql.SQL("create database {} template template0").format(sql.Identifier(self._name))
            connection.execute(create)
        self._run("pg_restore", "--exit-on-error", f"--dbname={self._url}", str(self._file))

    def forget(self) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            drop = sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(self._copy))
            connection.execute(drop)

    def _clone(self, source: str, target: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (source,))
            create = sql.SQL("create database {} template {}").format(sql.Identifier(target), sql.Identifier(source))
            connection.execute(create)

    def _run(self, program: str, *arguments: str) -> None:
        assert self._programs is not None
        folder, environment = self._programs
        subprocess.run([str(folder / program), *arguments], env=environment, check=True, timeout=120)


@contextmanager
def backup_of(postgres_url: str, folder: Path) -> Iterator[tuple[str, Backup]]:
    """A new database, not yet migrated, and its backup."""
    with new_database(postgres_url) as url:
        backup = Backup(url, folder)
        try:
            yield url, backup
        finally:
            backup.forget()

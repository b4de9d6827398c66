"""Applies `migrations/*.sql`, then the tables of procrastinate and LangGraph, under one lock; forward only.

Plain numbered SQL rather than Alembic: there are no SQLAlchemy models to compare with, so it would bring a dependency
and a second language for the same statements. Rather than yoyo: its lock is a table row that a killed process leaves
behind, and it knows neither schemas nor checksums. What is left to do by hand, the order, the checksum, the
transaction and the lock, is this file; and what runs in production can be read, and run, with psql.

A step runs with `search_path` set to the schema, so the files name no schema. An applied file is never edited.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from procrastinate.schema import SchemaManager
from psycopg import sql
from psycopg.rows import dict_row

from runs_es.database import sessions
from runs_es.database.errors import DatabaseUnavailable, MigrationFailed, SchemaMismatch, reason

_FILE = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_PACKAGE = Path(__file__).resolve().parent.parent
_QUEUE = "procrastinate/"
_CHECKPOINTS = "langgraph/"
_LOCK_SECONDS = 600.0
_TABLE_LOCK_SECONDS = 60
_LOCK_POLL_SECONDS = 0.05

_VERSIONS = """
create table if not exists {schema}.schema_versions (
    name       text        primary key,
    sha256     text        not null,
    package    text,
    applied_at timestamptz not null default now()
)
"""

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Step:
    """One SQL file; `package` says whose it is when it is not ours."""

    name: str
    text: str
    package: str | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def queue_schema(schema: str) -> str:
    """Where procrastinate's tables live."""
    return f"{schema}_queue"


def checkpoint_schema(schema: str) -> str:
    """Where LangGraph's tables live."""
    return f"{schema}_checkpoints"


def steps(folder: Path | None = None) -> list[Step]:
    """Our own steps in order: of `folder`, else of the installed package, else of the checkout."""
    if folder is None:
        places = (_PACKAGE / "migrations", _PACKAGE.parent / "migrations")
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise SchemaMismatch(f"The folder `migrations` is missing from the installation in {_PACKAGE}")
    found: dict[str, Step] = {}
    for file in sorted(folder.glob("*.sql")):
        match = _FILE.match(file.name)
        if match is None or match[1] in found:
            raise SchemaMismatch(f"{file}: a step is named like 0001_log.sql, each number once")
        # Universal newlines: a checkout that converts line ends must not change the checksum.
        found[match[1]] = Step(file.name, file.read_text(encoding="utf-8"))
    return list(found.values())


def migrate(url: str, schema: str, folder: Path | None = None) -> list[str]:
    """Bring the database to what this code needs; return the names of the steps that this call applied.

    Needs a connection of its own to the server: a pooler in transaction mode would lose the lock.
    """
    own = steps(folder)
    with _connect(url) as connection, _rights(schema), _only_one(connection, schema):
        for name in (schema, queue_schema(schema)):
            _make_schema(connection, name)
        connection.execute(sql.SQL(_VERSIONS).format(schema=sql.Identifier(schema)))
        applied = []
        for step in _missing(own, _recorded(connection, schema)):
            _apply(connection, step, schema, schema)
            applied.append(step.name)
        applied += _migrate_queue(connection, schema)
        if _has_langgraph():
            applied += _migrate_checkpoints(connection, url, schema)
        return applied


def bring_up_to_date(url: str, schema: str) -> list[str]:
    """As `migrate`, by a role that may own nothing: where nothing is to be applied, nothing is tried."""
    try:
        missing = pending(url, schema)
    except DatabaseUnavailable as error:
        if not isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise
        detail = error.__cause__.diag.message_primary
        raise DatabaseUnavailable(
            f"The role may not read {schema} ({detail}): run `runs-es grants ROLE --apply` as the owner"
        ) from error
    if not missing:
        return []
    try:
        return migrate(url, schema)
    except DatabaseUnavailable as error:
        if not isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise
        raise DatabaseUnavailable(
            f"The database lacks {', '.join(missing)}, and this role may not change it "
            f"({error.__cause__.diag.message_primary}): run `runs-es migrate` as the owner"
        ) from error


def pending(url: str, schema: str, folder: Path | None = None) -> list[str]:
    """The names that `migrate` would apply, changing nothing; refuses what `migrate` refuses."""
    own = steps(folder)
    with _connect(url) as connection, _rights(schema):
        recorded = _recorded(connection, schema)
        names = [step.name for step in (*_missing(own, recorded), *_missing_of_queue(connection, schema, recorded))]
        if _has_langgraph() and (wanted := _wanted_checkpoints()) > _version_of_checkpoints(connection, schema):
            names.append(f"{_CHECKPOINTS}{wanted}")
        return names


def _connect(url: str) -> Connection:
    try:
        # autocommit: the connection that holds the lock must not hold a snapshot, or CREATE INDEX CONCURRENTLY
        # on LangGraph's connection would wait for it for ever.
        connection: Connection = sessions.connect(url, None, "migrate")
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"The database cannot be reached: {reason(error)}") from error
    connection.execute(f"set lock_timeout = '{_TABLE_LOCK_SECONDS}s'")
    return connection


@contextmanager
def _rights(schema: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseUnavailable(
            f"The role may not do this ({error.diag.message_primary}). It needs CREATE on the database, or the schemas "
            f"{schema}, {queue_schema(schema)} and {checkpoint_schema(schema)} made by an administrator and owned by it"
        ) from error
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"The database failed: {error}") from error


@contextmanager
def _only_one(connection: Connection, schema: str) -> Iterator[None]:
    """Hold the advisory lock of this schema.

    Asked for again and again rather than waited for: a statement that waits inside pg_advisory_lock holds a snapshot,
    CREATE INDEX CONCURRENTLY of the lock's holder waits for that snapshot, and the two are a deadlock.
    """
    key = int.from_bytes(hashlib.sha256(f"runs-es migrate {schema}".encode()).digest()[:8], "big", signed=True)
    deadline = time.monotonic() + _LOCK_SECONDS
    while connection.execute("select pg_try_advisory_lock(%s)", (key,)).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise DatabaseUnavailable(f"Another process has been migrating {schema} for {_LOCK_SECONDS:.0f} s")
        time.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.closed:  # a lost connection has lost the lock as well
            connection.execute("select pg_advisory_unlock(%s)", (key,))


def _make_schema(connection: Connection, name: str) -> None:
    # Looked up first: `if not exists` asks for the right to create even when there is nothing to do.
    known = connection.execute("select 1 from pg_namespace where nspname = %s", (name,))
    if known.fetchone() is None:
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))


def _has_table(connection: Connection, schema: str, table: str) -> bool:
    known = connection.execute(
        "select 1 from pg_class join pg_namespace n on n.oid = relnamespace where nspname = %s and relname = %s",
        (schema, table),
    )
    return known.fetchone() is not None


def _recorded(connection: Connection, schema: str) -> dict[str, str]:
    if not _has_table(connection, schema, "schema_versions"):
        return {}
    query = sql.SQL("select name, sha256 from {}.schema_versions").format(sql.Identifier(schema))
    return dict(connection.execute(query).fetchall())


def _missing(own: list[Step], recorded: dict[str, str]) -> list[Step]:
    for step in own:
        if recorded.get(step.name, step.sha256) != step.sha256:
            raise SchemaMismatch(f"{step.name} was applied with another content: undo the edit and add a new step")
    unknown = sorted(name for name in recorded.keys() - {step.name for step in own} if "/" not in name)
    if unknown:
        raise SchemaMismatch(f"The database is newer than this code, which does not know {', '.join(unknown)}: update")
    return [step for step in own if step.name not in recorded]


def _apply(connection: Connection, step: Step, target: str, schema: str, *, also: tuple[Step, ...] = ()) -> None:
    """Run one step and record it (and what it stands for) in one transaction."""
    record = sql.SQL("insert into {}.schema_versions (name, sha256, package) values (%s, %s, %s)")
    with _told(step.name), connection.transaction():
        connection.execute(sql.SQL("set local search_path to {}").format(sql.Identifier(target)))
        connection.execute(step.text.encode())
        for done in (step, *also):
            query = record.format(sql.Identifier(schema))
            connection.execute(query, (done.name, done.sha256, done.package))


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except (psycopg.errors.InsufficientPrivilege, psycopg.InterfaceError):
        raise
    except psycopg.Error as error:
        raise MigrationFailed(f"{name}: {error}") from error


def _queue_steps() -> tuple[Step, list[Step]]:
    """procrastinate's whole schema, and the scripts that lead to it from any older one."""
    package = f"procrastinate {importlib.metadata.version('procrastinate')}"
    whole = Step(f"{_QUEUE}schema.sql", SchemaManager.get_schema(), package)
    files = sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))
    return whole, [Step(_QUEUE + file.name, file.read_text(encoding="utf-8"), package) for file in files]


def _missing_of_queue(connection: Connection, schema: str, recorded: dict[str, str]) -> list[Step]:
    whole, scripts = _queue_steps()
    if whole.name not in recorded:
        if _has_table(connection, queue_schema(schema), "procrastinate_jobs"):
            raise SchemaMismatch(
                f"{queue_schema(schema)} holds tables of procrastinate that `runs-es migrate` did not make, "
                "so their version is unknown: drop or rename that schema, or choose another RUNS_ES_DB_SCHEMA"
            )
        return [whole]
    known = {step.name for step in (whole, *scripts)}
    unknown = sorted(name for name in recorded if name.startswith(_QUEUE) and name not in known)
    if unknown:
        raise SchemaMismatch(f"The queue's tables are newer than the installed {whole.package}: {', '.join(unknown)}")
    return [step for step in scripts if step.name not in recorded]


def _migrate_queue(connection: Connection, schema: str) -> list[str]:
    whole, scripts = _queue_steps()
    missing = _missing_of_queue(connection, schema, _recorded(connection, schema))
    for step in missing:
        # The whole schema is what all scripts of its version amount to: later only newer ones are missing.
        also = tuple(scripts) if step.name == whole.name else ()
        _apply(connection, step, queue_schema(schema), schema, also=also)
    return [step.name for step in missing]


def _has_langgraph() -> bool:
    try:
        return importlib.util.find_spec("langgraph.checkpoint.postgres") is not None
    except ImportError:
        return False


def _wanted_checkpoints() -> int:
    from langgraph.checkpoint.postgres import PostgresSaver

    return len(PostgresSaver.MIGRATIONS) - 1


def _version_of_checkpoints(connection: Connection, schema: str) -> int:
    target = checkpoint_schema(schema)
    if not _has_table(connection, target, "checkpoint_migrations"):
        return -1
    query = sql.SQL("select coalesce(max(v), -1) from {}.checkpoint_migrations").format(sql.Identifier(target))
    row = connection.execute(query).fetchone()
    return -1 if row is None else int(row[0])


def _migrate_checkpoints(connection: Connection, url: str, schema: str) -> list[str]:
    """LangGraph's own setup: it keeps its versions itself and is safe only because ours is the one call."""
    from langgraph.checkpoint.postgres import PostgresSaver

    if _version_of_checkpoints(connection, schema) >= _wanted_checkpoints():
        return []
    target = checkpoint_schema(schema)
    _make_schema(connection, target)
    _drop_unfinished_indexes(connection, target)
    with _told("LangGraph's tables"), sessions.connect(url, target, "migrate", row_factory=dict_row) as its_own:
        its_own.execute(f"set lock_timeout = '{_TABLE_LOCK_SECONDS}s'")
        PostgresSaver(its_own).setup()
    return [f"{_CHECKPOINTS}{_version_of_checkpoints(connection, schema)}"]


def _drop_unfinished_indexes(connection: Connection, target: str) -> None:
    # An interrupted CREATE INDEX CONCURRENTLY leaves an invalid index, which its IF NOT EXISTS would keep for ever.
    query = """
        select relname from pg_index join pg_class c on c.oid = indexrelid join pg_namespace n on n.oid = relnamespace
        where nspname = %s and not indisvalid
    """
    for (name,) in connection.execute(query, (target,)).fetchall():
        connection.execute(sql.SQL("drop index {}.{}").format(sql.Identifier(target), sql.Identifier(name)))

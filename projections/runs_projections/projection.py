"""The one shape of a projection, and the fold that every driver runs: live, rebuild, verify and in memory.

A projection is a name, a version, a pure `evolve(row, recorded)` and where its rows live. A row belongs to one thread:
its key begins with the thread's id, and a fact reaches rows of its own thread only. Rows are frozen dataclasses as they
are stored; JSON in them is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeAlias, TypeVar

from runs_es.domain import Recorded
from runs_projections.stored_text import original, searchable, storable

R = TypeVar("R")

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")

Key: TypeAlias = tuple[str, ...]
# The first columns of a key: the rows of a thread, or of a run of it.
Scope: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A PostgreSQL type: how values are sent (as an array of `sent`) and what is done to them on the way."""

    name: str
    sent: str = "text"
    write: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None


TEXT = Kind("text", write=storable, read=original)
# `json`, not `jsonb`: it keeps the order of keys and takes escaped NULs, and kwargs go back out as they came.
JSON = Kind("json")
BIGINT = Kind("bigint", "bigint")
INT = Kind("int", "int")
FLOAT = Kind("double precision", write=repr)
BOOL = Kind("boolean", write=lambda value: "true" if value else "false")
# For columns that are only searched or sorted by.
JSONB = Kind("jsonb", write=searchable)
TIME = Kind("timestamptz")


@dataclass(frozen=True, slots=True)
class Column:
    """A column; a derived one is computed from the row, for searching and sorting, and never read back."""

    name: str
    kind: Kind
    derive: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Table(Generic[R]):
    """Where rows live: `row`'s fields are its columns, in their order. `key` begins with thread_id.

    `hashed` are columns of the key that its unique index holds as md5: an index entry has less room than three ids.
    `indexes` are further ones, each as it stands between parentheses: `"thread_id, seq"`. A `migrated` table is made by
    `migrations/`; any other by whoever first runs its projection.
    """

    name: str
    row: type[R]
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    hashed: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    migrated: bool = False
    stored: tuple[Column, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name.rpartition(".")[2]):
            raise ValueError(
                f"name of a table must be a lower-case SQL name of 40 characters at most, got {self.name!r}"
            )
        stored = tuple(column for column in self.columns if column.derive is None)
        names = tuple(item.name for item in fields(self.row))  # type: ignore[arg-type]  # R is a dataclass
        if tuple(column.name for column in stored) != names:
            raise ValueError(f"columns of table {self.name} must be the fields of {self.row.__name__}, in order")
        texts = {column.name for column in stored if column.kind is TEXT}
        if self.key[:1] != ("thread_id",) or not texts.issuperset(self.key):
            raise ValueError(f"key of table {self.name} must begin with thread_id and be text columns of it")
        object.__setattr__(self, "stored", stored)

    def key_of(self, row: R) -> Key:
        return tuple(getattr(row, name) for name in self.key)


@dataclass(frozen=True)
class Projection(Generic[R]):
    """A read model. `version` goes up when the rows it makes of the same facts change.

    `key` says which row a fact is about, `evolve` what becomes of it (None: it goes, or there is none), and `clears`
    which rows go at once: `(thread_id,)`, or a longer beginning of the key. A fact clears first, then evolves.
    `topics` are all that it wants to see (None: every fact); a rebuild does not read the others.
    """

    name: str
    version: int
    table: Table[R]
    key: Callable[[Recorded], Key | None]
    evolve: Callable[[R | None, Recorded], R | None]
    clears: Callable[[Recorded], Scope | None] = lambda _: None
    topics: frozenset[str] | None = None

    def wants(self, recorded: Recorded) -> bool:
        return self.topics is None or recorded.fact.topic in self.topics

    def keys(self, recordeds: Iterable[Recorded]) -> list[Key]:
        """The keys of all rows that these facts are about, each once."""
        keys = (self.key(recorded) for recorded in recordeds if self.wants(recorded))
        return list(dict.fromkeys(key for key in keys if key is not None))


def changed(row: R, **changes: Any) -> R:
    """`dataclasses.replace` for a frozen row without slots, at a tenth of the cost: nothing is checked or derived.

    Raises TypeError for a field that the row does not have.
    """
    fields_of_row = row.__dict__
    if not fields_of_row.keys() >= changes.keys():
        unknown = ", ".join(sorted(changes.keys() - fields_of_row.keys()))
        raise TypeError(f"{type(row).__name__} has no field {unknown}")
    new = object.__new__(type(row))
    new.__dict__.update(fields_of_row, **changes)
    return new


AnyProjection: TypeAlias = Projection[Any]
AnyTable: TypeAlias = Table[Any]


class Fold(Generic[R]):
    """A projection over a stretch of facts, from the rows that stood before it; knows what to write afterwards."""

    def __init__(self, projection: Projection[R], before: Mapping[Key, R] | None = None) -> None:
        self._topics = projection.topics
        self._key, self._evolve, self._clears = projection.key, projection.evolve, projection.clears
        self._before = frozenset(before or ())
        self._threads: dict[str, dict[Key, R]] = {}
        self._changed: dict[Key, R | None] = {}
        self.cleared: dict[Scope, None] = {}
        for key, row in (before or {}).items():
            self._threads.setdefault(key[0], {})[key] = row

    def apply(self, recorded: Recorded) -> None:
        fact = recorded.fact
        if self._topics is not None and fact.topic not in self._topics:
            return
        rows = self._threads.get(fact.thread_id)
        if rows is None:
            rows = self._threads[fact.thread_id] = {}
        scope = self._clears(recorded)
        if scope is not None:
            self._clear(rows, scope)
        key = self._key(recorded)
        if key is None:
            return
        old = rows.get(key)
        new = self._evolve(old, recorded)
        if new is old:
            return
        self._changed[key] = new
        if new is None:
            del rows[key]
        else:
            rows[key] = new

    def _clear(self, rows: dict[Key, R], scope: Scope) -> None:
        self.cleared[scope] = None
        for key in [key for key in rows if key[: len(scope)] == scope]:
            del rows[key]
            self._changed[key] = None

    @property
    def rows(self) -> dict[Key, R]:
        """The rows that stand now, of those that were given or touched."""
        return {key: row for rows in self._threads.values() for key, row in rows.items()}

    @property
    def upserts(self) -> list[R]:
        return [row for row in self._changed.values() if row is not None]

    @property
    def deletes(self) -> list[Key]:
        return [key for key, row in self._changed.items() if row is None and key in self._before]


def fold(projection: Projection[R], recordeds: Iterable[Recorded]) -> dict[Key, R]:
    """All rows after these facts: the in-memory driver. Without the facts before them it begins at nothing."""
    folding = Fold(projection)
    for recorded in recordeds:
        folding.apply(recorded)
    return folding.rows

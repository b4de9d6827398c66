"""Lists as PostgreSQL arrays in binary form, of a fixed type each.

psycopg picks the array type from the values (int2[] or int8[], unknown when all are null), and every new combination
would be another prepared plan. Here the type is the class.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar

from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

_LENGTH = struct.Struct("!i")
_HEAD = struct.Struct("!iiIii")
_EMPTY = struct.Struct("!iiI")
_INT4 = struct.Struct("!ii")
_INT8 = struct.Struct("!iq")
_BOOL = struct.Struct("!i?")
_NULL = _LENGTH.pack(-1)


class Texts(list[str | None]):
    """text[]"""


class Bigints(list[int | None]):
    """bigint[]"""


class Ints(list[int | None]):
    """int[]"""


class Bools(list[bool]):
    """bool[]"""


class Blobs(list[bytes | None]):
    """bytea[]"""


class _ArrayDumper(Dumper):
    format = Format.BINARY
    element_oid: ClassVar[int]

    def pack(self, value: Any) -> bytes:
        """One element, behind its length."""
        raise AssertionError("each array type packs its own elements")

    def dump(self, obj: list[Any]) -> bytes:
        if not obj:
            return _EMPTY.pack(0, 0, self.element_oid)
        pack = self.pack
        items = [_NULL if item is None else pack(item) for item in obj]
        return b"".join((_HEAD.pack(1, 1, self.element_oid, len(items), 1), *items))


class _Texts(_ArrayDumper):
    oid, element_oid = 1009, 25

    def pack(self, value: str) -> bytes:
        encoded = value.encode()
        return _LENGTH.pack(len(encoded)) + encoded


class _Bigints(_ArrayDumper):
    oid, element_oid = 1016, 20

    def pack(self, value: int) -> bytes:
        return _INT8.pack(8, value)


class _Ints(_ArrayDumper):
    oid, element_oid = 1007, 23

    def pack(self, value: int) -> bytes:
        return _INT4.pack(4, value)


class _Bools(_ArrayDumper):
    oid, element_oid = 1000, 16

    def pack(self, value: bool) -> bytes:
        return _BOOL.pack(1, value)


class _Blobs(_ArrayDumper):
    oid, element_oid = 1001, 17

    def pack(self, value: bytes) -> bytes:
        return _LENGTH.pack(len(value)) + value


def register(connection: Connection[Any]) -> None:
    """Teach `connection` these types."""
    for kind, dumper in ((Texts, _Texts), (Bigints, _Bigints), (Ints, _Ints), (Bools, _Bools), (Blobs, _Blobs)):
        connection.adapters.register_dumper(kind, dumper)

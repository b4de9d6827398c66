"""The numbers that a stored row covers, and what tells those of a lost history.

An ordinary row covers `seq - n + 1 … seq`. A wide one has n < 0: `thread.restored` covers -n * 2^32 numbers, those that
the lost history may have given out; the first fact of a thread that was made after a restore covers all from 1 on. A
cursor inside a wide row was never given out by this history.
"""

from __future__ import annotations

from typing import LiteralString

RESTORED = "thread.restored"
WIDE = 2**32
# All numbers stay where every client's numbers are exact.
MAX_EPOCH = 2**53 // WIDE - 1

FIRST: LiteralString = (
    "case when n > 0 then seq - n + 1 when topic = 'thread.restored' then seq + n * 4294967296 + 1 else 1 end"
)
"""`first_of` as an expression over a row of `events`."""


def first_of(seq: int, n: int, topic: str) -> int:
    """The first number that a row covers; `seq` is the last."""
    if n > 0:
        return seq - n + 1
    return seq + n * WIDE + 1 if topic == RESTORED else 1

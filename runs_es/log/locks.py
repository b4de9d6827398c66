"""Keys of PostgreSQL advisory locks that more than one room takes: same inputs, same key, in every process."""

from __future__ import annotations

from hashlib import blake2b


def thread_lock_key(schema: str, thread_id: str) -> int:
    """The lock of one thread: shared by whoever writes behind its fence, exclusive for whoever raises the fence.

    Advisory locks are one space for the whole database, hence the schema, and `person` against keys of other purposes.
    """
    digest = blake2b(f"{schema}\x00{thread_id}".encode(), digest_size=8, person=b"runs-es:thread")
    return int.from_bytes(digest.digest(), "big", signed=True)

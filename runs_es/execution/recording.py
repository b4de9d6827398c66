"""Messages as facts: which of those that an attempt shows are new to the thread, and under which keys they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import orjson

from runs_es.domain import MessageRecorded, MessageRemoved, Run, now

_REMOVED = "removed"
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY

Keyed = tuple[MessageRecorded | MessageRemoved, str]


class KnownMessages:
    """What a thread holds of messages, from `LogReader.message_keys`: by id, how many versions there were and the
    content hash of the newest that still counts.

    Keys read `message:id:version:hash`, with `removed` for a hash where the message was removed. Versions of deleted
    runs, and from before the thread was deleted, are counted, so that no key is used again, but do not say that the
    message is recorded. Counting versions makes a message that is edited back to what it was a new fact, and a retry
    none.
    """

    def __init__(self, keys: Iterable[tuple[str, bool]]) -> None:
        self._newest: dict[str, tuple[int, str]] = {}
        for key, counts in keys:
            self.note(key, counts=counts)

    def note(self, key: str, *, counts: bool = True) -> None:
        """Something was recorded under this key."""
        name, version, digest = key.rsplit(":", 2)
        message_id = name.partition(":")[2]
        before = self._newest.get(message_id, (0, ""))[1]
        self._newest[message_id] = (int(version), digest if counts else before)

    def recorded(self, run: Run, message: Mapping[str, Any]) -> Keyed | None:
        """The fact of a message that `run` shows, and its key; None where the thread's newest of that id is the same.

        Raises ValueError when it has no id. Nothing is known of it before it is `noted`.
        """
        message_id = str(message.get("id") or "")
        content = orjson.dumps(message, option=_OPTIONS | orjson.OPT_SORT_KEYS)
        digest = hashlib.blake2b(content, digest_size=12).hexdigest()
        versions, newest = self._newest.get(message_id, (0, ""))
        if digest == newest:
            return None
        fact = MessageRecorded(
            thread_id=run.thread_id,
            run_id=run.run_id,
            occurred_at=now(),
            message_id=message_id,
            event_type=str(message.get("type") or "message")[:32],
            content=orjson.loads(orjson.dumps(message, option=_OPTIONS)),
        )
        return fact, f"message:{message_id}:{versions + 1}:{digest}"

    def others(self, message_ids: Collection[str]) -> list[str]:
        """The ids of the messages that the thread lists, but for these."""
        kept = frozenset(message_ids)
        return [name for name, (_, newest) in self._newest.items() if newest not in ("", _REMOVED) and name not in kept]

    def removed(self, run: Run, message_id: str, reason: str) -> Keyed:
        """The fact that a message leaves the list, and its key: a version like any other, so that recording the message
        again is a new fact.
        """
        fact = MessageRemoved(
            thread_id=run.thread_id, run_id=run.run_id, occurred_at=now(), message_id=message_id, reason=reason
        )
        return fact, f"message:{message_id}:{self._newest[message_id][0] + 1}:{_REMOVED}"

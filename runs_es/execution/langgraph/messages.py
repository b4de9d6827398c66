"""What becomes of messages: the frames of the platform's `messages` mode, and which messages of a state are new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID, uuid5

import orjson
from langchain_core.messages import BaseMessage, BaseMessageChunk, convert_to_messages, message_chunk_to_message

from runs_es.execution.langgraph.encoding import encode, plain

_ANONYMOUS = UUID("b6a7d7a4-0d0c-5a0f-9a55-0c6d1c1a6a10")


class MessageFrames:
    """Turns what a model streams into `messages/metadata`, `messages/partial` and `messages/complete`. One a run."""

    def __init__(self) -> None:
        self._so_far: dict[str | None, BaseMessage] = {}

    def of(self, message: BaseMessage, metadata: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
        """The frames of one streamed message: its metadata once, then everything of it up to here."""
        known = self._so_far.get(message.id)
        if known is None:
            yield "messages/metadata", encode({message.id: {"metadata": metadata}})
        if not isinstance(message, BaseMessageChunk):
            self._so_far[message.id] = message
            yield "messages/complete", encode([message])
            return
        whole = known + message if isinstance(known, BaseMessageChunk) else message
        self._so_far[message.id] = whole
        yield "messages/partial", encode([message_chunk_to_message(whole)])


class NewMessages:
    """Finds the messages of a state that differ from those this run has shown. One a run.

    Each message of each state is encoded and compared, because a node may change any part of one in place: that the
    object is the same proves nothing. The bytes serve for the frame too.
    """

    def __init__(self, thread_id: str) -> None:
        self._thread_id = thread_id
        self._seen: dict[str | int, tuple[Any, bytes]] = {}
        self._encoded: list[bytes] = []
        self.changed_in_place = False  # an object that was shown had other content later

    def of(self, state: Any) -> Iterator[dict[str, Any]]:
        """The messages that are new or changed, as JSON has them; what they are is then known."""
        self._encoded = []
        for index, message in enumerate(_messages(state)):
            encoded = encode(message)
            self._encoded.append(encoded)
            key = _field(message, "id") or index
            seen, before = self._seen.get(key, (None, b""))
            self._seen[key] = (message, encoded)
            if encoded == before:
                continue
            self.changed_in_place = self.changed_in_place or seen is message
            if (known := _as_dict(message)) is not None:
                yield {**known, "id": known.get("id") or self._id_of(index, known)}

    def differ(self, state: Any) -> bool:
        """Whether a state holds a message that is not as it was shown last."""
        for index, message in enumerate(_messages(state)):
            known = self._seen.get(_field(message, "id") or index)
            if known is None or known[1] != encode(message):
                return True
        return False

    def encoded(self, state: Any) -> tuple[Any, list[bytes]]:
        """The state that `of` has been through, its messages already encoded; and the bytes of each message."""
        if not self._encoded:
            return state, []
        return {**state, "messages": [orjson.Fragment(each) for each in self._encoded]}, self._encoded

    def ids(self, state: Any) -> list[str] | None:
        """The ids, as `of` gives them, of all messages of a state; None for a state without a list of messages."""
        messages = state.get("messages") if isinstance(state, Mapping) else None
        if not isinstance(messages, list):
            return None
        ids = [str(_field(message, "id") or "") for message in messages]
        for index, message in enumerate(messages):
            if not ids[index] and (known := _as_dict(message)) is not None:
                ids[index] = known.get("id") or self._id_of(index, known)
        return ids

    def _id_of(self, index: int, message: Mapping[str, Any]) -> str:
        """The same for the same message at the same place of the thread, whichever run or attempt shows it."""
        words = (self._thread_id, str(index), str(message.get("type")), encode(message.get("content")).decode())
        return str(uuid5(_ANONYMOUS, "\x00".join(words)))


def _messages(state: Any) -> list[Any]:
    messages = state.get("messages") if isinstance(state, Mapping) else None
    return messages if isinstance(messages, list) else []


def _field(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)


def _as_dict(message: Any) -> dict[str, Any] | None:
    """A message as JSON has it; None for what is no message at all."""
    try:
        (converted,) = convert_to_messages([message])
    except (NotImplementedError, TypeError, ValueError, KeyError):
        return None
    if isinstance(converted, BaseMessageChunk):
        converted = message_chunk_to_message(converted)
    known: dict[str, Any] = plain(converted)
    return known

"""What becomes of messages: the frames of the platform's `messages` mode, and which messages of a state are new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID, uuid5

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
    """Finds the messages of a state that this run has not yet shown. One a run.

    A state comes after every superstep and may hold a thousand messages: those that are the same objects as the last
    time, with the same content object, are passed over without looking inside.
    """

    def __init__(self, thread_id: str) -> None:
        self._thread_id = thread_id
        self._seen: dict[str | int, tuple[Any, Any]] = {}

    def of(self, state: Any) -> Iterator[dict[str, Any]]:
        messages = state.get("messages") if isinstance(state, Mapping) else None
        if not isinstance(messages, list):
            return
        for index, message in enumerate(messages):
            key, content = _field(message, "id") or index, _field(message, "content")
            seen, seen_content = self._seen.get(key, (None, None))
            if seen is message and seen_content is content:
                continue
            self._seen[key] = (message, content)
            # The same object with another content was changed in place, so it equals itself and proves nothing.
            if (seen is message or seen != message) and (known := _as_dict(message)) is not None:
                yield {**known, "id": known.get("id") or self._id_of(index, known)}

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

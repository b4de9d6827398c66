"""What a graph streams as `values`: its whole state at each step, here messages that grow and fields that change."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator

import orjson

from runs_es.log.pages import frame


def made_up_words(dice: random.Random, count: int = 2000) -> list[str]:
    letters = "etaoinshrdlucmfwypvbgk"
    return ["".join(dice.choices(letters, k=dice.randint(2, 9))) for _ in range(count)]


def values_frames(steps: int, last_size: int, seed: int = 1) -> Iterator[bytes]:
    """Bodies of `steps` frames, the last of about `last_size` bytes. Fields before and behind the messages change."""
    dice = random.Random(seed)
    words = made_up_words(dice)
    messages: list[dict[str, object]] = []
    for step in range(steps):
        text = " ".join(dice.choices(words, k=last_size // steps))  # a word is six characters and a half with its space
        content = text[: max(last_size // steps - 150, 1)]
        message_id = str(uuid.UUID(int=dice.getrandbits(128)))
        messages.append(
            {
                "content": content,
                "type": "ai" if step % 2 else "human",
                "name": None,
                "id": message_id,
                "example": False,
            }
        )
        state = {
            "step": step,
            "messages": messages,
            "plan": {"done": step * 7, "open": ["a", "b"]},
            "cost": step * 0.017,
        }
        yield frame("values", orjson.dumps(state))

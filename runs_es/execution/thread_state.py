"""A thread's state in the platform's shape, as far as it needs no checkpoints."""

from __future__ import annotations

from typing import Any


def empty_state() -> dict[str, Any]:
    """The state of a thread that no run has written to."""
    return {
        "values": {},
        "next": [],
        "tasks": [],
        "metadata": None,
        "created_at": None,
        "checkpoint": None,
        "parent_checkpoint": None,
        "interrupts": [],
        "checkpoint_id": None,
        "parent_checkpoint_id": None,
    }

"""How urgent a run is, compared with those of other threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_PRIORITY = 100


def priority_of(config: Mapping[str, Any]) -> int:
    """`priority` of a run's config, 0 if it has none. Raises ValueError, naming the field, for what is none."""
    value = config.get("priority")
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_PRIORITY:
        raise ValueError(
            f"config.priority must be a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}, got {value!r}"
        )
    return value


def recorded_priority(config: Mapping[str, Any]) -> int:
    """As `priority_of`, of a run that exists: what is none (a run older than priorities) counts as 0."""
    try:
        return priority_of(config)
    except ValueError:
        return 0

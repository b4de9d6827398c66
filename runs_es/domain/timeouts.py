"""How long a run may take: in all, and without a sign of life."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; None means no bound. `wall` counts from the run's first start, over all attempts; `idle` from the last
    frame, message or event of the attempt.
    """

    wall: float | None = None
    idle: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], default: Timeouts | None = None) -> Timeouts:
        """What a run's `config` asks for in `timeout_seconds` and `idle_timeout_seconds`, else the default.

        Raises ValueError, naming the field, for what is no positive number.
        """
        default = default or cls()
        wall, idle = _seconds(config, "timeout_seconds"), _seconds(config, "idle_timeout_seconds")
        return cls(default.wall if wall is None else wall, default.idle if idle is None else idle)

    def why(self, kind: str) -> str:
        """What to say of a run that is out of time: `wall` or `idle`."""
        if kind == "wall":
            return f"the run took longer than {self.wall or 0:g} s (timeout_seconds)"
        return f"the run showed no sign of life for {self.idle or 0:g} s (idle_timeout_seconds)"


def _seconds(config: Mapping[str, Any], name: str) -> float | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"config.{name} must be a positive number of seconds, got {value!r}")
    return float(value)

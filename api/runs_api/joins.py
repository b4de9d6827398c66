"""How many clients may listen at once: a number a process and a number a user."""

from __future__ import annotations

from collections import Counter

from runs_api.errors import RETRY, ApiError


class Joins:
    """Counts open streams and waits. Belongs to one event loop."""

    def __init__(self, most: int, most_per_user: int) -> None:
        self._most = most
        self._most_per_user = most_per_user
        self._of_user: Counter[str] = Counter()
        self.open = 0

    def admit(self, user_id: str | None) -> Seat:
        """A seat for one more; give it back with `release`. Raises ApiError 503 or 429 when there is none."""
        if self.open >= self._most:
            raise ApiError(503, f"this process has {self._most} open streams, its limit (RUNS_ES_MAX_JOINS)", RETRY)
        if user_id is not None:
            if self._of_user[user_id] >= self._most_per_user:
                limit = f"{self._most_per_user} open streams, the limit (RUNS_ES_MAX_JOINS_PER_USER)"
                raise ApiError(429, f"user {user_id} has {limit}", RETRY)
            self._of_user[user_id] += 1
        self.open += 1
        return Seat(self, user_id)

    def _leave(self, user_id: str | None) -> None:
        self.open -= 1
        if user_id is not None:
            self._of_user[user_id] -= 1
            if not self._of_user[user_id]:
                del self._of_user[user_id]


class Seat:
    """One admitted listener."""

    def __init__(self, joins: Joins, user_id: str | None) -> None:
        self._joins = joins
        self._user_id = user_id
        self._taken = True

    def release(self) -> None:
        """Safe to call twice."""
        if self._taken:
            self._taken = False
            self._joins._leave(self._user_id)

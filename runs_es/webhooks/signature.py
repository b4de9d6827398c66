"""Signatures as https://www.standardwebhooks.com has them, so that receivers verify with its libraries."""

from __future__ import annotations

from datetime import UTC, datetime

from standardwebhooks import Webhook


class Signer:
    """Signs with each of the secrets: while one is replaced, receivers have the old or the new."""

    def __init__(self, secrets: str | None) -> None:
        self._keys = [Webhook(secret) for secret in (secrets or "").split()]

    def headers(self, delivery_id: str, moment: datetime, body: bytes) -> dict[str, str]:
        """The three headers of a delivery; without a secret, the two that name it."""
        headers = {"webhook-id": delivery_id, "webhook-timestamp": str(int(moment.timestamp()))}
        if self._keys:
            text, at = body.decode(), moment.astimezone(UTC)
            headers["webhook-signature"] = " ".join(key.sign(delivery_id, at, text) for key in self._keys)
        return headers

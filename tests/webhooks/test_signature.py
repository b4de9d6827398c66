"""Signatures that a receiver can verify with the libraries of Standard Webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from runs_es.settings import Settings
from runs_es.webhooks.signature import Signer

OLD, NEW = (f"whsec_{base64.b64encode(bytes([fill] * 32)).decode()}" for fill in (1, 2))
BODY = '{"status":"success","text":"über"}'.encode()


def test_the_signature_is_what_the_specification_says() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=timezone(timedelta(hours=2)))
    headers = Signer(OLD).headers("msg_1", moment, BODY)
    seconds = str(int(moment.timestamp()))
    signed = hmac.new(bytes([1] * 32), b"msg_1." + seconds.encode() + b"." + BODY, hashlib.sha256).digest()
    assert headers == {
        "webhook-id": "msg_1",
        "webhook-timestamp": seconds,
        "webhook-signature": "v1," + base64.b64encode(signed).decode(),
    }


def test_receivers_verify_with_the_old_and_with_the_new_of_two_secrets() -> None:
    headers = Signer(f"{NEW} {OLD}").headers("msg_1", datetime.now(UTC), BODY)
    for secret in (OLD, NEW):
        Webhook(secret).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(BODY + b" ", headers)


def test_without_a_secret_nothing_is_signed() -> None:
    assert Signer(None).headers("msg_1", datetime.now(UTC), BODY).keys() == {"webhook-id", "webhook-timestamp"}


@pytest.mark.parametrize("secret", ["whsec_short", "not base64 at all!", "whsec_" + "A" * 100, f"{OLD} whsec_QQ=="])
def test_a_secret_that_cannot_sign_keeps_the_process_from_starting(secret: str) -> None:
    with pytest.raises(ValidationError, match="24 to 64 bytes"):
        Settings(webhook_secret=secret)  # type: ignore[arg-type]


def test_a_secret_is_not_shown() -> None:
    assert OLD not in repr(Settings(webhook_secret=OLD))  # type: ignore[arg-type]

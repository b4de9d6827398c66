"""Who may work on runs over HTTP: the holder of the token, or, without one, this machine's own processes."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import Annotated

from fastapi import Header, Request
from pydantic import SecretStr

from runs_api.edge import EdgeOf
from runs_api.errors import ApiError

# Headers that HTTP clients send by themselves, and those of tracing. Proxies mark what they forward with headers of
# any name, so without a token every other header counts as a proxy's.
_OF_CLIENTS = frozenset(
    {
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "authorization",
        "b3",
        "baggage",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "pragma",
        "sec-fetch-mode",
        "te",
        "traceparent",
        "tracestate",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-api-key",
        "x-request-id",
    }
)


async def worker_allowed(request: Request, edge: EdgeOf, authorization: Annotated[str | None, Header()] = None) -> None:
    """Raises ApiError 401 for a wrong token. Without a token raises ApiError 403 when users are configured, for another
    machine, and for a request that a browser or a proxy may have sent.
    """
    token = edge.settings.worker_token
    if token is not None:
        _check_token(token, authorization)
        return
    if edge.settings.user_header is not None:
        raise ApiError(403, "workers see the runs of all users (RUNS_ES_USER_HEADER): set RUNS_ES_WORKER_TOKEN")
    if request.client is None or not _is_loopback(request.client.host):
        raise ApiError(403, "external workers on other machines need a token: set RUNS_ES_WORKER_TOKEN here and there")
    foreign = sorted(set(request.headers.keys()) - _OF_CLIENTS)
    if foreign:
        raise ApiError(
            403,
            f"a request with the header {foreign[0]} may come through a proxy or from a browser, and needs a token:"
            " set RUNS_ES_WORKER_TOKEN here and there",
        )


def _check_token(token: SecretStr, authorization: str | None) -> None:
    kind, _, given = (authorization or "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.get_secret_value().encode()):
        raise ApiError(
            401, "Authorization: Bearer … must be the token of RUNS_ES_WORKER_TOKEN", {"WWW-Authenticate": "Bearer"}
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

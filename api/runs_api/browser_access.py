"""The rules for browsers: pages of which origins may ask, and by which names this server may be called.

A browser sends requests for any page that its user opens, also to servers that only this machine can reach. So a
request of another origin is refused before anything else looks at it, whether or not it needs a preflight. A page whose
own name was pointed at this machine (DNS rebinding) has the right origin and a wrong `Host`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from runs_api.errors import ApiError
from runs_api.gate import request_id
from runs_es.settings import Settings

ANY = "*"
LOOPBACK_ORIGIN = r"https?://(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?"
_LOOPBACK_ORIGIN = re.compile(LOOPBACK_ORIGIN, re.ASCII)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::[0-9]{0,5})?", re.ASCII | re.IGNORECASE)


class BrowserRules:
    """Which origins and hosts a server accepts. `is_local` says that it listens on a loopback address."""

    def __init__(self, settings: Settings, *, is_local: bool) -> None:
        self.origins: Sequence[str] = settings.cors_origins
        self.takes_any_origin = ANY in settings.cors_origins
        named = {each.lower() for each in settings.allowed_hosts}
        # A guard of names guards nothing when every page may ask under its own.
        self.takes_any_host = ANY in named or self.takes_any_origin or not (is_local or named)
        self._hosts = named
        self._is_local = is_local

    def refusal(self, headers: Headers) -> ApiError | None:
        """An error for a request that must not be served, else None."""
        hosts = headers.getlist("host")
        for host in hosts:
            if not self.takes_host(host):
                return ApiError(
                    403, f"this server does not answer as {host!r}; RUNS_ES_ALLOWED_HOSTS can name it (JSON list)"
                )
        origins = headers.getlist("origin")
        for origin in origins:
            if not self.takes_origin(origin, hosts) and not self._is_own_behind_a_proxy(headers):
                return ApiError(
                    403, f"pages of {origin!r} may not use this server; RUNS_ES_CORS_ORIGINS can name it (JSON list)"
                )
        if not origins and _is_embedded_elsewhere(headers) and not self._takes_referrer(headers, hosts):
            return ApiError(403, "a page of another site may link to this server, and neither embed nor load from it")
        return None

    def takes_host(self, host: str) -> bool:
        """Whether the server answers to this value of `Host`."""
        if self.takes_any_host:
            return True
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower()
        if name in self._hosts or host.lower() in self._hosts or _is_loopback(name):
            return True
        # No page can have an address of this network as its name and be another's; probes come under such.
        return not self._is_local and _address(name) is not None

    def takes_origin(self, origin: str, hosts: Sequence[str] = ()) -> bool:
        """Whether pages of `origin` may ask a server that was called as `hosts`."""
        if self.takes_any_origin or origin in self.origins or _LOOPBACK_ORIGIN.fullmatch(origin):
            return True
        scheme, _, name = origin.lower().partition("://")
        return scheme in ("http", "https") and [name] == [host.lower() for host in hosts]

    def _is_own_behind_a_proxy(self, headers: Headers) -> bool:
        """Whether the browser says that the page is the server's own. A proxy may have changed `Host` since, but no
        page can set this header. On a loopback address there is no proxy to allow for.
        """
        return not self._is_local and headers.getlist("sec-fetch-site") == ["same-origin"]

    def _takes_referrer(self, headers: Headers, hosts: Sequence[str]) -> bool:
        parts = urlsplit(headers.get("referer", ""))
        return self.takes_origin(f"{parts.scheme}://{parts.netloc}", hosts)

    def __str__(self) -> str:
        """Say what is open to browsers, and which setting changes it."""
        if self.takes_any_origin:
            return "pages of any origin, by RUNS_ES_CORS_ORIGINS"
        pages = ", ".join(["pages of its own and of localhost", *self.origins])
        named = "" if self.takes_any_host else ", called as " + ", ".join(["localhost", *sorted(self._hosts)])
        return f"{pages}{named}; other sites could act for you (RUNS_ES_CORS_ORIGINS, RUNS_ES_ALLOWED_HOSTS)"


class BrowserGuard:
    """ASGI middleware that refuses what the rules refuse, in front of everything else. The refusals have no CORS
    headers, so a page cannot read them either.
    """

    def __init__(self, app: ASGIApp, rules: BrowserRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._rules.refusal(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(reason=str(refusal.detail))(scope, receive, send)
        else:
            response = refusal.response()
            response.headers["x-request-id"] = request_id(scope["headers"]).decode()
            await response(scope, receive, send)


def _is_loopback(name: str) -> bool:
    address = _address(name)
    return name.rstrip(".") == "localhost" or (address is not None and address.is_loopback)


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name.strip("[]"))
    except ValueError:
        return None


def _is_embedded_elsewhere(headers: Headers) -> bool:
    """Whether a page of another site loads this as a picture, script or frame: browsers then send no `Origin`."""
    if headers.get("sec-fetch-site") != "cross-site":
        return False
    return headers.get("sec-fetch-mode") != "navigate" or headers.get("sec-fetch-dest") != "document"

"""Where webhooks may go: to public addresses, and to networks that the operator has named.

A URL is looked at twice: as text when a run is created, and by the addresses that its host has when it is sent.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

Address: TypeAlias = IPv4Address | IPv6Address
Networks: TypeAlias = Sequence[IPv4Network | IPv6Network]

MAX_URL_LENGTH = 2048

_LOOPBACKS = (ip_address("127.0.0.1"), ip_address("::1"))
_NAT64 = IPv6Network("64:ff9b::/96")
# Tunnels to an IPv4 address that is written inside, which nobody uses any more but to get around such a check.
_TUNNELS = (IPv6Network("2002::/16"), IPv6Network("2001::/32"))


class AddressRefused(ValueError):
    """Webhooks do not go there; the text says why, and which setting would change it."""


def check_url(url: object, allowed: Networks) -> None:
    """Raises ValueError, naming the field `webhook`, for what no webhook can be sent to. Resolves no names."""
    if not isinstance(url, str) or not 0 < len(url) <= MAX_URL_LENGTH:
        raise ValueError(f"webhook: must be a URL of {MAX_URL_LENGTH} characters at most")
    if not url.isascii() or any(ord(each) <= 32 or each in "\x7f\\" for each in url):
        raise ValueError("webhook: must be an encoded URL, without spaces, backslashes or characters beyond ASCII")
    parts, host = _parsed(url)
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("webhook: must be an absolute URL with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("webhook: must not hold a user name or password; receivers verify the signature instead")
    for address in _named(host):
        try:
            check_address(address, allowed)
        except AddressRefused as refused:
            raise ValueError(f"webhook: {refused}") from None


def host_of(url: str) -> str:
    """The host that a URL names, in lower case; empty when it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def check_address(address: Address, allowed: Networks) -> None:
    """Raises AddressRefused unless the address is public or in one of the networks."""
    inner = _inside(address)
    if any(each in network for each in (address, inner) for network in allowed):
        return
    kind = _not_public(address) if inner is address else _not_public(inner)
    if kind is not None:
        raise AddressRefused(
            f"{address} is {kind}, and webhooks go to public addresses only;"
            " RUNS_ES_WEBHOOK_ALLOWED_NETWORKS allows others"
        )


def _parsed(url: str) -> tuple[SplitResult, str]:
    try:
        parts = urlsplit(url)
        if parts.port == 0:
            raise ValueError("port 0")
        return parts, parts.hostname or ""
    except ValueError:
        raise ValueError("webhook: is no URL that can be read") from None


def _named(host: str) -> Sequence[Address]:
    """The addresses that a host is by its spelling; a name is none, and is looked up when the webhook is sent."""
    bare = host.rstrip(".")
    if bare == "localhost" or bare.endswith(".localhost"):
        return _LOOPBACKS[:1]
    try:
        return [ip_address(bare)]
    except ValueError:
        pass
    try:
        return [IPv4Address(socket.inet_aton(bare))]  # 127.1, 0x7f000001, 2130706433: resolvers read them so
    except OSError:
        return []


def _inside(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(address.packed[-4:])
    return address


def _not_public(address: Address) -> str | None:
    """What the address is, unless it is one that anybody may be asked at."""
    kinds = {
        "a loopback address": address.is_loopback,
        "an unspecified address": address.is_unspecified,
        "a link-local address": address.is_link_local,
        "a multicast address": address.is_multicast,
        "a tunnel's address": any(address in network for network in _TUNNELS),
        "a private address": address.is_private or (isinstance(address, IPv6Address) and address.is_site_local),
        "a reserved address": address.is_reserved or not address.is_global,
    }
    return next((kind for kind, holds in kinds.items() if holds), None)

"""One POST: to an address that was checked, without redirects, within one deadline, with little read of the answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import httpcore

from runs_es.webhooks.addresses import Address, AddressRefused, Networks, check_address


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver said: its status, and the seconds it asks to be left alone."""

    status: int
    retry_after: float | None = None


class Unreachable(Exception):
    """There was no answer; the text says why."""


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Looks a host up, checks every address that it has, and connects to one of those: what a name server says a moment
    later does not count. Of several each has its share of `seconds`: one that swallows all is not to be the only one.
    """

    def __init__(self, allowed: Networks, seconds: float) -> None:
        self._allowed, self._seconds = allowed, seconds
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _looked_up(host, port)
        for address in addresses:
            check_address(address, self._allowed)
        share = timeout if len(addresses) < 2 else self._seconds / len(addresses)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, path: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise AddressRefused("webhooks go to network addresses only")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _looked_up(host: str, port: int) -> Sequence[Address]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"{host} cannot be looked up: {error}") from error
    return [ip_address(place[0]) for *_, place in dict.fromkeys(found)]


class Poster:
    """Sends, for all deliveries of a process. `timeout` is for all of a request, `most` bytes of an answer are read."""

    def __init__(self, allowed: Networks, timeout: float, most: int) -> None:
        self._timeout, self._most = timeout, most
        # No connection is kept: one that its receiver closes meanwhile would fail the next delivery.
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=None, max_keepalive_connections=0, network_backend=CheckedBackend(allowed, timeout)
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Raises Unreachable, and AddressRefused."""
        answer: Answer | None = None
        try:
            async with asyncio.timeout(self._timeout):
                async with self._pool.stream("POST", url, headers=list(headers.items()), content=body) as response:
                    answer = Answer(response.status, _seconds(response.headers))
                    await self._read(response)
        except TimeoutError:
            if answer is None:  # else its body is what takes so long, and that is not needed
                raise Unreachable(f"no answer within {self._timeout:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise Unreachable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        except (httpcore.UnsupportedProtocol, ValueError, TypeError) as error:
            if isinstance(error, AddressRefused):
                raise
            raise Unreachable(f"the URL cannot be used: {error}") from error
        assert answer is not None
        return answer

    async def _read(self, response: httpcore.Response) -> None:
        """Some of the body, so that who sends a short one is not cut off; none of it is kept."""
        size = 0
        with suppress(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            async for chunk in response.aiter_stream():
                size += len(chunk)
                if size >= self._most:
                    return

    async def close(self) -> None:
        await self._pool.aclose()


def _seconds(headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    """`Retry-After`, where it is given in seconds."""
    value = next((value for name, value in headers if name.lower() == b"retry-after"), b"").strip()
    return float(value) if value.isdigit() and len(value) < 9 else None

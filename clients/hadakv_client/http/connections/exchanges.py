"""Requests over a transport, without the cookies, redirects and authentication of the clients of httpx."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx

Timeouts = float | httpx.Timeout | None
_CLOSED = "Cannot send a request, as the client has been closed."


class Exchanges:
    """Sender of requests, with the parts of `httpx.Client` that a client of the service needs.

    Args:
        transport: transport to send them with.
        timeout: seconds to wait for the connection and for each part of a response, or an `httpx.Timeout`.
    """

    def __init__(self, transport: httpx.BaseTransport, timeout: Timeouts) -> None:
        self._transport = transport
        self._extensions = {"timeout": httpx.Timeout(timeout).as_dict()}
        self._is_closed = False

    @contextmanager
    def stream(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes | Iterable[bytes] | None, **_: Any
    ) -> Iterator[httpx.Response]:
        """Send a request, and yield the response without its body."""
        if self._is_closed:
            raise RuntimeError(_CLOSED)
        request = httpx.Request(method, url, headers=headers, content=content, extensions=self._extensions)
        response = self._transport.handle_request(request)
        try:
            yield response
        finally:
            response.close()

    def close(self) -> None:
        """Close the transport."""
        self._is_closed = True
        self._transport.close()


class AsyncExchanges:
    """Asynchronous sender of requests. See `Exchanges`."""

    def __init__(self, transport: httpx.AsyncBaseTransport, timeout: Timeouts) -> None:
        self._transport = transport
        self._extensions = {"timeout": httpx.Timeout(timeout).as_dict()}
        self._is_closed = False

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes | AsyncIterable[bytes] | None,
        **_: Any,
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, and yield the response without its body."""
        if self._is_closed:
            raise RuntimeError(_CLOSED)
        request = httpx.Request(method, url, headers=headers, content=content, extensions=self._extensions)
        response = await self._transport.handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close the transport."""
        self._is_closed = True
        await self._transport.aclose()

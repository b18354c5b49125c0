"""Transports of httpx over the pool. A request owns its connection until the response is complete or the request fails.

The pools of httpcore queue requests and assign connections to them. A request that is cancelled or interrupted at the
wrong moment leaves its connection assigned for ever. Only the HTTP/1.1 protocol of httpcore is used here. Errors are
those of httpcore.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic

import httpcore
import httpx

from hadakv_client.http.connections import asyncio_streams, blocking_streams
from hadakv_client.http.connections.pool import KEEPALIVE_SECONDS, Connection, Http, Pool
from hadakv_client.http.connections.tls import Tls

# Maximum number of connections in use at a time in an event loop. Further requests wait.
MAX_CONNECTIONS = 100


class PooledTransport(httpx.BaseTransport):
    """Transport of the synchronous client. It has no limit: a thread uses one connection at a time.

    Args:
        uds: path of a Unix domain socket to connect to; None for TCP.
        tls: context for https.
    """

    def __init__(self, uds: str | None, tls: Tls) -> None:
        self._uds = uds
        self._tls = tls
        self._pool: Pool[httpcore.HTTP11Connection] = Pool()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the response without its body."""
        sent = _core_request(request)
        connection = self._pool.take() or self._connect(sent)
        try:
            response = connection.http.handle_request(sent)
        except BaseException:
            connection.close()
            raise
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response, connection, self._pool))

    def _connect(self, request: httpcore.Request) -> Connection[httpcore.HTTP11Connection]:
        origin, timeout = request.url.origin, request.extensions["timeout"]["connect"]
        host = origin.host.decode("ascii")
        tls = self._tls.context() if origin.scheme == b"https" else None
        stream = blocking_streams.connect(host, origin.port, self._uds, tls, timeout)
        connection = Connection(
            httpcore.HTTP11Connection(origin, stream, KEEPALIVE_SECONDS), stream.socket, stream.close
        )
        self._pool.add(connection)
        return connection

    def close(self) -> None:
        """Close the idle connections now, and those in use when their requests end."""
        self._pool.close()


class AsyncPooledTransport(httpx.AsyncBaseTransport):
    """Transport of the asynchronous client. See `PooledTransport`. Each event loop has its own limit of connections."""

    def __init__(self, uds: str | None, tls: Tls) -> None:
        self._uds = uds
        self._tls = tls
        self._pool: Pool[httpcore.AsyncHTTP11Connection] = Pool()
        self._slots: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the response without its body."""
        sent = _core_request(request)
        slots = self._slots_of_loop()
        await _acquire(slots, sent.extensions["timeout"]["pool"])
        connection = None
        try:
            connection = self._pool.take() or await self._connect(sent)
            response = await connection.http.handle_async_request(sent)
        except BaseException:
            slots.release()
            if connection is not None:
                connection.close()
            raise
        body = _AsyncBody(response, connection, self._pool, slots)
        return httpx.Response(response.status, headers=response.headers, stream=body)

    def _slots_of_loop(self) -> asyncio.Semaphore:
        loop = asyncio_streams.running_loop()
        slots = self._slots.get(loop)
        if slots is None:
            self._slots = {each: kept for each, kept in self._slots.items() if not each.is_closed()}
            slots = self._slots[loop] = asyncio.Semaphore(MAX_CONNECTIONS)
        return slots

    async def _connect(self, request: httpcore.Request) -> Connection[httpcore.AsyncHTTP11Connection]:
        origin, timeout = request.url.origin, request.extensions["timeout"]["connect"]
        host = origin.host.decode("ascii")
        tls = self._tls.context() if origin.scheme == b"https" else None
        stream = await asyncio_streams.connect(host, origin.port, self._uds, tls, timeout)
        http = httpcore.AsyncHTTP11Connection(origin, stream, KEEPALIVE_SECONDS)
        connection = Connection(http, stream.socket, stream.close)
        self._pool.add(connection)
        return connection

    async def aclose(self) -> None:
        """Close the idle connections now, and those in use when their requests end."""
        self._pool.close()


def _core_request(request: httpx.Request) -> httpcore.Request:
    url = request.url
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return httpcore.Request(
        request.method, target, headers=request.headers.raw, content=request.stream, extensions=request.extensions
    )


async def _acquire(slots: asyncio.Semaphore, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds if slots.locked() else None):
            await slots.acquire()
    except TimeoutError as error:
        raise httpcore.PoolTimeout(f"all {MAX_CONNECTIONS} connections are in use") from error


class _OwnedBody(Generic[Http]):
    """Body of a response, and the connection that it arrives on."""

    def __init__(self, response: httpcore.Response, connection: Connection[Http], pool: Pool[Http]) -> None:
        self._stream: Any = response.stream
        self._connection: Connection[Http] | None = connection
        self._pool: Pool[Http] = pool

    def _take_connection(self) -> Connection[Http] | None:
        connection, self._connection = self._connection, None
        return connection


class _Body(_OwnedBody[httpcore.HTTP11Connection], httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        connection = self._take_connection()
        if connection is None:
            return
        try:
            self._stream.close()
        except BaseException:
            connection.close()
            raise
        self._pool.give_back(connection)


class _AsyncBody(_OwnedBody[httpcore.AsyncHTTP11Connection], httpx.AsyncByteStream):
    def __init__(
        self,
        response: httpcore.Response,
        connection: Connection[httpcore.AsyncHTTP11Connection],
        pool: Pool[httpcore.AsyncHTTP11Connection],
        slots: asyncio.Semaphore,
    ) -> None:
        super().__init__(response, connection, pool)
        self._slots = slots

    def __aiter__(self) -> AsyncIterator[bytes]:
        iterator: AsyncIterator[bytes] = aiter(self._stream)
        return iterator

    async def aclose(self) -> None:
        connection = self._take_connection()
        if connection is None:
            return
        try:
            await self._stream.aclose()
        except BaseException:
            connection.close()
            raise
        finally:
            self._slots.release()
        self._pool.give_back(connection)

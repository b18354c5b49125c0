"""Network streams for asyncio. Closing one never waits, so a cancelled task cannot leave a socket open.

They use the sockets directly, not through transports of asyncio. A transport belongs to its event loop. It cannot be
closed after the loop, and in a forked child closing it would change the selector that the parent uses.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import httpcore

from hadakv_client.http.connections.blocking_streams import is_readable

T = TypeVar("T")
_Address = tuple[int, Any]


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs.

    Raises:
        RuntimeError: none of asyncio does.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("AsyncClient needs a running asyncio event loop; elsewhere run Client in a thread") from None


class SocketStream(httpcore.AsyncNetworkStream):
    """Stream over one non-blocking socket."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - fixed by httpcore
        """Return at least one byte; nothing at the end of the stream."""
        receiving = asyncio.get_running_loop().sock_recv(self.socket, max_bytes)
        return await _limit(receiving, timeout, httpcore.ReadTimeout, httpcore.ReadError)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - fixed by httpcore
        """Send all bytes."""
        sending = asyncio.get_running_loop().sock_sendall(self.socket, buffer)
        await _limit(sending, timeout, httpcore.WriteTimeout, httpcore.WriteError)

    async def aclose(self) -> None:
        """Close the socket."""
        self.close()

    def close(self) -> None:
        """Close the socket, and remove it from the event loop. Otherwise the loop may confuse it with a new socket."""
        descriptor = self.socket.fileno()
        if descriptor < 0:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            loop.remove_reader(descriptor)
            loop.remove_writer(descriptor)
        self.socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Return `"is_readable"` or `"socket"`; None for everything else."""
        if info == "is_readable":
            return is_readable(self.socket)
        return self.socket if info == "socket" else None


class TlsStream(httpcore.AsyncNetworkStream):
    """TLS over a `SocketStream`."""

    def __init__(self, stream: SocketStream, context: ssl.SSLContext, host: str) -> None:
        self._stream = stream
        self.socket, self.close = stream.socket, stream.close
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=host)

    async def handshake(self, seconds: float | None) -> None:
        """Negotiate keys, and verify the certificate."""
        await _limit(self._run(self._tls.do_handshake), seconds, httpcore.ConnectTimeout, httpcore.ConnectError)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - fixed by httpcore
        """Return at least one byte; nothing at the end of the stream."""
        return await _limit(self._read(max_bytes), timeout, httpcore.ReadTimeout, httpcore.ReadError)

    async def _read(self, max_bytes: int) -> bytes:
        try:
            return await self._run(lambda: self._tls.read(max_bytes))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            # HTTP detects a body that is cut off.
            return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - fixed by httpcore
        """Send all bytes."""
        sending = self._run(lambda: self._tls.write(buffer))
        await _limit(sending, timeout, httpcore.WriteTimeout, httpcore.WriteError)

    async def _run(self, operation: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self._flush(loop)
                data = await loop.sock_recv(self._stream.socket, 1 << 16)
                if data:
                    self._received.write(data)
                else:
                    self._received.write_eof()
            else:
                await self._flush(loop)
                return result

    async def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        if data := self._to_send.read():
            await loop.sock_sendall(self._stream.socket, data)

    async def aclose(self) -> None:
        """Close the socket."""
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        """Return `"is_readable"` or `"socket"`; None for everything else."""
        if info == "is_readable" and self._received.pending:
            return True
        return self._stream.get_extra_info(info)


async def connect(
    host: str, port: int, uds: str | None, tls: ssl.SSLContext | None, seconds: float | None
) -> "SocketStream | TlsStream":
    """Connect to the first address of a host that accepts, or to a Unix socket. See `blocking_streams.connect`."""
    stream = await _connect_first([(socket.AF_UNIX, uds)] if uds else await _addresses(host, port, seconds), seconds)
    if tls is None:
        return stream
    secured = TlsStream(stream, tls, host)
    try:
        await secured.handshake(seconds)
    except BaseException:
        stream.close()
        raise
    return secured


async def _connect_first(addresses: Iterable[_Address], seconds: float | None) -> SocketStream:
    error: Exception = httpcore.ConnectError("the host has no address")
    for family, address in addresses:
        try:
            return await _connect(family, address, seconds)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as failure:
            error = failure
    raise error


async def _connect(family: int, address: Any, seconds: float | None) -> SocketStream:
    stream = SocketStream(socket.socket(family, socket.SOCK_STREAM))
    try:
        stream.socket.setblocking(False)
        if family != socket.AF_UNIX:
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connecting = asyncio.get_running_loop().sock_connect(stream.socket, address)
        await _limit(connecting, seconds, httpcore.ConnectTimeout, httpcore.ConnectError)
    except BaseException:
        stream.close()
        raise
    return stream


async def _addresses(host: str, port: int, seconds: float | None) -> Iterable[_Address]:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        looking_up = asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = await _limit(looking_up, seconds, httpcore.ConnectTimeout, httpcore.ConnectError)
        return [(family, address) for family, *_, address in found]
    return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]


async def _limit(operation: Awaitable[T], seconds: float | None, late: type[Exception], failed: type[Exception]) -> T:
    """Limit the time of an operation, and convert its errors to those of httpcore."""
    try:
        async with asyncio.timeout(seconds):
            return await operation
    except TimeoutError as error:
        raise late(error) from error
    except OSError as error:
        raise failed(error) from error

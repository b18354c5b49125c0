"""Receive a large request body straight into the application's buffer.

uvicorn passes a body on in chunks and copies each chunk four times. While `DirectBodyReceiver` is the transport's
protocol, the kernel writes to the application's buffer instead.
"""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hadakv_service.server.protocol import HttpProtocol

# Maximum number of bytes to read before other connections get their turn.
READ_CHUNK_NBYTES = 1 << 20


class DirectBodyReceiver(asyncio.BufferedProtocol):
    """Protocol of a connection while a request body is received into a buffer.

    Args:
        connection: HTTP protocol of the connection. It gets all other events.
        rest: writable buffer, exactly as long as the rest of the body.

    Attributes:
        is_filled: result: True when the buffer is full, False if the connection was lost first.
    """

    def __init__(self, connection: "HttpProtocol", rest: memoryview) -> None:
        self._connection = connection
        self._rest = rest
        self.is_filled: asyncio.Future[bool] = connection.loop.create_future()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return the part of the body buffer to receive into next."""
        return self._rest[:READ_CHUNK_NBYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Count received bytes. Return to the HTTP protocol when the body is complete."""
        self._connection.on_direct_data(nbytes)
        self._rest = self._rest[nbytes:]
        if not self._rest:
            self._connection.on_direct_body_complete()
            self._finish(is_filled=True)
        elif nbytes == READ_CHUNK_NBYTES:
            # libuv reads on as long as it can fill the buffer. Pause, so that other connections get their turn.
            self._connection.transport.pause_reading()
            self._connection.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._rest and not self._connection.transport.is_closing():
            self._connection.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the lost connection to the HTTP protocol."""
        self._connection.connection_lost(exc)
        self._finish(is_filled=False)

    def pause_writing(self) -> None:
        """Forward to the HTTP protocol."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Forward to the HTTP protocol."""
        self._connection.resume_writing()

    def _finish(self, *, is_filled: bool) -> None:
        self._rest = memoryview(b"")
        if not self.is_filled.done():
            self.is_filled.set_result(is_filled)

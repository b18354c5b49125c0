"""HashingReader: reads a file from a stream of bytes and computes its SHA-256 on the way."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Protocol

from hadakv_service.errors import MalformedBody

# Bytes that are received before they are hashed. Hashing more at once would delay the transfer.
PIECE_NBYTES = 1 << 20
# Fewer bytes are hashed on the event loop, because another thread would take longer to start.
SMALL_NBYTES = 32 << 10


class ByteSource(Protocol):
    """A stream of bytes, for example a request body."""

    async def read_into(self, buffer: memoryview) -> int:
        """Copy the next bytes to the start of a buffer. Return their number, 0 at the end of the stream."""
        ...


class HashingReader:
    """Reader of a file. Hashes each piece in another thread while the next one is received.

    Args:
        source: bytes of the file.

    Attributes:
        nbytes: number of bytes read.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._digest = hashlib.sha256()
        self._pending: asyncio.Future[None] | None = None
        self.nbytes = 0

    async def read(self, buffer: memoryview) -> None:
        """Fill a buffer. The bytes must not change before the next call.

        Raises:
            MalformedBody: the file ends before that.
        """
        for start in range(0, len(buffer), PIECE_NBYTES):
            piece = buffer[start : start + PIECE_NBYTES]
            if await self._fill(piece) < len(piece):
                raise MalformedBody(f"The file is truncated: it ends after {self.nbytes} bytes.")
            await self._settle()
            self._pending = await update_digest(self._digest.update, piece)

    async def at_end(self) -> bool:
        """Whether the file ends here."""
        return await self._fill(memoryview(bytearray(1))) == 0

    async def digest(self) -> bytes:
        """Return the SHA-256 of all bytes read so far."""
        await self._settle()
        return self._digest.digest()

    async def _fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer) and (nbytes := await self._source.read_into(buffer[filled:])):
            filled += nbytes
        self.nbytes += filled
        return filled

    async def _settle(self) -> None:
        if self._pending is not None:
            await self._pending
            self._pending = None


async def update_digest(update: Callable[[memoryview], None], data: memoryview) -> "asyncio.Future[None] | None":
    """Hash bytes: small ones at once, others in another thread, which does not hold the GIL meanwhile.

    Returns:
        what to await before the next update; None if the bytes were hashed.
    """
    if len(data) < SMALL_NBYTES:
        update(data)
        return None
    return asyncio.get_running_loop().run_in_executor(None, update, data)

"""Export: stream a session as a session file, one layer at a time."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import numpy as np

from hadakv_kernels import Backend
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.operations import session_file
from hadakv_service.operations.session_file import Span
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.page import Page, on_host
from hadakv_service.sessions.session import Session
from hadakv_service.wire.serialization import CHUNK_NBYTES

# Bytes that one job on the device thread copies, at least a page: well under a millisecond.
COPY_NBYTES = 1 << 20
# Maximum time to check a session before the first byte is sent.
VERIFY_SECONDS = 10.0


class ExportAborted(Exception):
    """The client has closed the connection before the export began."""


@dataclass(frozen=True, slots=True)
class Export:
    """A session file to send. Later changes of the session do not affect it.

    Attributes:
        session: value of the session.
        header: bytes of the file before the tensors.
        nbytes: size of the file.
    """

    session: Session
    header: bytes
    nbytes: int

    @classmethod
    def from_session(cls, session: Session, session_id: str, created: datetime) -> "Export":
        """Return the export of a session.

        Args:
            session: value of the session.
            session_id: id of the session.
            created: creation time of the session.
        """
        header = session_file.header(session, session_id, created)
        return cls(session, header, len(header) + session.nbytes)

    async def verify(self, device: DeviceExecutor, is_disconnected: Callable[[], bool]) -> None:
        """Read all pages once before the first byte is sent, because a later error can only break the response off.

        Pages stay in memory if there is space. The check stops after VERIFY_SECONDS, since the client waits for it.

        Args:
            device: device that reads the pages, 1 MiB in one job.
            is_disconnected: returns whether the client has closed the connection.

        Raises:
            SessionCorrupt, StorageUnavailable: a page cannot be read.
            Busy: the device queue is full.
            ExportAborted: the client has closed the connection.
        """
        until = time.monotonic() + VERIFY_SECONDS
        evicted = iter([page for page in self.session.all_pages() if not page.is_resident])
        while await device.call(partial(_read_chunk, evicted)) and time.monotonic() < until:
            if is_disconnected():
                raise ExportAborted

    async def chunks(self, device: DeviceExecutor) -> AsyncIterator[bytes | memoryview]:
        """Yield the file in chunks. Only the tensors of one layer are in host memory at a time."""
        yield self.header
        for layer, span in enumerate(session_file.by_layer(session_file.spans(self.session))):
            async for chunk in self._layer_chunks(layer, span, device):
                yield chunk

    async def _layer_chunks(self, layer: int, span: Span, device: DeviceExecutor) -> AsyncIterator[memoryview]:
        buffer = _LayerBuffer(self.session, span)
        for start in range(span.base, span.length, buffer.copy_tokens):
            stop = min(start + buffer.copy_tokens, span.length)
            await device.call_unbounded(partial(buffer.copy, layer, start, stop, device.backend))
        for start in range(0, buffer.memory.nbytes, CHUNK_NBYTES):
            yield buffer.memory.data[start : start + CHUNK_NBYTES]


def _read_chunk(pages: Iterator[Page]) -> bool:
    """Read the next pages. Return whether there may be more. Runs on the device thread."""
    nbytes = 0
    for page in pages:
        page.resident_copy()
        nbytes += page.nbytes
        if nbytes >= COPY_NBYTES:
            return True
    return False


class _LayerBuffer:
    """Tensors of one layer in the layout of the file.

    Attributes:
        memory: bytes of the tensors, one after the other.
        copy_tokens: number of tokens to copy in one job: whole pages.
    """

    def __init__(self, session: Session, span: Span) -> None:
        self._session = session
        self._base = span.base
        heads, widths = session.kv_heads or 0, [w for spec in session.specs for w in (spec.row_bytes, 4 * spec.norms)]
        sizes = [heads * span.tokens * width for width in widths]
        self.memory = np.empty(sum(sizes), np.uint8)
        parts = np.split(self.memory, np.cumsum(sizes)[:-1])
        # uint8 [kv_heads, tokens, width]: packed vectors and norms of K, then of V.
        self._tensors = [part.reshape(heads, span.tokens, width) for part, width in zip(parts, widths, strict=True)]
        self.copy_tokens = max(COPY_NBYTES // (heads * sum(widths)) // PAGE_TOKENS, 1) * PAGE_TOKENS

    def copy(self, layer: int, start: int, stop: int, backend: Backend) -> None:
        """Copy positions `start` to `stop` of a layer of the session. Runs on the device thread."""
        page = self._session.read(layer, layer + 1, start, stop, backend)
        streams = [on_host(stream, backend) for stream in page.load()]
        arrays = [array.view(np.uint8)[0] for stream in streams for array in (stream.packed, stream.norms)]
        for tensor, array in zip(self._tensors, arrays, strict=True):
            tensor[:, start - self._base : stop - self._base] = array

"""The export: a session's value as a file, a layer at a time, as fast as whoever reads it takes it."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import numpy as np
from starlette.requests import ClientDisconnect

from hadakv_kernels import Backend
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.operations import session_file
from hadakv_service.operations.session_file import Span
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.page import Page, on_host
from hadakv_service.sessions.session import Session
from hadakv_service.wire.serialization import CHUNK_NBYTES

# What one step on the device's thread copies, but that it takes a whole page at least: well under a millisecond.
STEP_NBYTES = 1 << 20
# How long whoever asks for a file waits at most to hear that it can be read.
VERIFY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Export:
    """What a session was at one moment, whatever becomes of it meanwhile.

    Attributes:
        session: its value.
        header: what stands in the file before the tensors' bytes.
        nbytes: of the whole file.
    """

    session: Session
    header: bytes
    nbytes: int

    @classmethod
    def from_session(cls, session: Session, session_id: str, created: datetime) -> "Export":
        """An export of a session of that id, made at that time."""
        header = session_file.header(session, session_id, created)
        return cls(session, header, len(header) + session.nbytes)

    async def verify(self, device: DeviceExecutor, is_gone: Callable[[], bool]) -> None:
        """Read all of it once while it still can be said that it cannot be read; what has room stays.

        After some seconds what is left is not waited for, as whoever asked waits for the first byte.

        Args:
            device: whose turn each MiB takes.
            is_gone: whether whoever asked has left.

        Raises:
            SessionDamaged, TierUnavailable: it cannot be read.
            Busy: too many wait for the device.
            ClientDisconnect: nobody waits for it.
        """
        until = time.monotonic() + VERIFY_SECONDS
        away = iter([page for page in self.session.all_pages() if not page.is_resident])
        while await device.call(partial(_read_chunk, away)) and time.monotonic() < until:
            if is_gone():
                raise ClientDisconnect

    async def chunks(self, device: DeviceExecutor) -> AsyncIterator[bytes | memoryview]:
        """The file. Of the tensors no more is in host memory than those of one layer."""
        yield self.header
        for layer, span in enumerate(session_file.by_layer(session_file.spans(self.session))):
            async for piece in self._layer(layer, span, device):
                yield piece

    async def _layer(self, layer: int, span: Span, device: DeviceExecutor) -> AsyncIterator[memoryview]:
        tensors = _LayerBuffer(self.session, span)
        for start in range(span.base, span.length, tensors.step):
            stop = min(start + tensors.step, span.length)
            await device.call_unbounded(partial(tensors.copy, layer, start, stop, device.backend))
        for start in range(0, tensors.memory.nbytes, CHUNK_NBYTES):
            yield tensors.memory.data[start : start + CHUNK_NBYTES]


def _read_chunk(pages: Iterator[Page]) -> bool:
    """Have the next pages read, and say whether there may be more; runs on the device's thread."""
    nbytes = 0
    for page in pages:
        page.resident_copy()
        nbytes += page.nbytes
        if nbytes >= STEP_NBYTES:
            return True
    return False


class _LayerBuffer:
    """One layer's tensors as they stand in the file, filled from its pages.

    Attributes:
        memory: their bytes, one after the other.
        step: tokens to be taken at a time, whole pages.
    """

    def __init__(self, session: Session, span: Span) -> None:
        self._session = session
        self._base = span.base
        heads, widths = session.kv_heads or 0, [w for spec in session.specs for w in (spec.row_bytes, 4 * spec.norms)]
        sizes = [heads * span.tokens * width for width in widths]
        self.memory = np.empty(sum(sizes), np.uint8)
        parts = np.split(self.memory, np.cumsum(sizes)[:-1])
        # uint8 [kv_heads, tokens, width]: k's packed vectors and norms, and v's.
        self._tensors = [part.reshape(heads, span.tokens, width) for part, width in zip(parts, widths, strict=True)]
        self.step = max(STEP_NBYTES // (heads * sum(widths)) // PAGE_TOKENS, 1) * PAGE_TOKENS

    def copy(self, layer: int, start: int, stop: int, backend: Backend) -> None:
        """Copy positions `start` to `stop` of the session's layer; runs on the device's thread."""
        page = self._session.read(layer, layer + 1, start, stop, backend)
        streams = [on_host(stream, backend) for stream in (page.k, page.v)]
        arrays = [array.view(np.uint8)[0] for stream in streams for array in (stream.packed, stream.norms)]
        for tensor, array in zip(self._tensors, arrays, strict=True):
            tensor[:, start - self._base : stop - self._base] = array

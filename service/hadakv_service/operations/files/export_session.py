"""Export: stream a session as a session file, page by page."""

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import Encoded
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.operations.files import layout
from hadakv_service.operations.files.layout import DIGEST_NBYTES, FilePage
from hadakv_service.operations.files.source import update_digest
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import BufferPool
from hadakv_service.storage.disk.row_format import pack_page
from hadakv_service.wire.serialization import Buffer, split

# Bytes that one job on the device thread reads when it checks a session, at least a page.
VERIFY_NBYTES = 1 << 20
PAGES_IN_MEMORY = 2
# Maximum time to check a session before the first byte is sent.
VERIFY_SECONDS = 10.0


class ExportAborted(Exception):
    """The client has closed the connection before the export began."""


@dataclass(frozen=True, slots=True)
class Export:
    """A session file to send. Later changes of the session do not affect it.

    Attributes:
        session: value of the session.
        pool: pool that owns its pages.
        header: bytes of the file before the tensors.
        nbytes: size of the file.
    """

    session: Session
    pool: BufferPool
    header: bytes
    nbytes: int

    @classmethod
    def from_session(cls, session: Session, pool: BufferPool, session_id: str, created: datetime) -> "Export":
        """Return the export of a session.

        Args:
            session: value of the session.
            pool: pool that owns its pages.
            session_id: id of the session.
            created: creation time of the session.
        """
        header = layout.header(session, session_id, created)
        return cls(session, pool, header, len(header) + session.nbytes + DIGEST_NBYTES)

    @property
    def memory_nbytes(self) -> int:
        """Maximum bytes in memory while the file is sent: a page that is being sent, and the next one."""
        spans = layout.paged_spans(self.session)
        sizes = [layout.page_nbytes(self.session, each.layers, min(each.page_tokens, each.tokens)) for each in spans]
        return PAGES_IN_MEMORY * max(sizes, default=0)

    async def verify(self, device: DeviceExecutor, is_disconnected: Callable[[], bool]) -> None:
        """Read all pages once before the first byte is sent, because a later error can only break the response off.

        Pages do not stay in memory. The check stops after VERIFY_SECONDS, since the client waits for it.

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
        while await device.call(partial(self._verify_chunk, evicted)) and time.monotonic() < until:
            if is_disconnected():
                raise ExportAborted

    def _verify_chunk(self, pages: Iterator[Page]) -> bool:
        """Read the next pages. Return whether there may be more. Runs on the device thread."""
        nbytes = 0
        for page in pages:
            self.pool.read_once(page)
            nbytes += page.nbytes
            if nbytes >= VERIFY_NBYTES:
                return True
        return False

    async def chunks(self, device: DeviceExecutor) -> AsyncIterator[Buffer]:
        """Yield the file in chunks. One page of it is in memory at a time. The digest comes last.

        Raises:
            SessionCorrupt, StorageUnavailable: a page cannot be read. The file then has no digest.
        """
        digest = hashlib.sha256()
        for chunk in split(memoryview(self.header)):
            digest.update(chunk)
            yield chunk
        for page in layout.file_pages(layout.paged_spans(self.session)):
            data = await device.call_unbounded(partial(self._page_bytes, page))
            if hashing := await update_digest(digest.update, data):
                await hashing
            *chunks, last = split(data)
            # A copy, so that the page does not stay in memory while the next one is read.
            last = memoryview(bytes(last))
            del data
            while chunks:
                yield chunks.pop(0)
            yield last
        yield digest.digest()

    def _page_bytes(self, page: FilePage) -> memoryview:
        """Return the bytes of a page of the file. Runs on the device thread."""
        stored_pages = list(self._stored_pages(page))
        if len(stored_pages) == 1 and stored_pages[0][0].tokens == page.tokens:
            # The file and the disk store have the same layout of a page.
            return memoryview(pack_page(self.pool.read_once(stored_pages[0][0]))[1])
        lead = (page.span.layers, self.session.kv_heads or 0, page.tokens)
        widths = [width for spec in self.session.specs for width in (spec.row_bytes, 4 * spec.norms)]
        sizes = [lead[0] * lead[1] * lead[2] * width for width in widths]
        memory = np.empty(sum(sizes), np.uint8)
        parts = np.split(memory, np.cumsum(sizes)[:-1])
        # uint8 [layers, kv_heads, tokens, width]: packed vectors and norms of K, then of V.
        tensors = [part.reshape(*lead, width) for part, width in zip(parts, widths, strict=True)]
        for stored, first, at, tokens in stored_pages:
            for stream, pair in zip(self.pool.read_once(stored), (tensors[:2], tensors[2:]), strict=True):
                _copy_tokens(stream, slice(first, first + tokens), pair, slice(at, at + tokens))
        return memory.data

    def _stored_pages(self, page: FilePage) -> Iterator[tuple[Page, int, int, int]]:
        """Yield the stored pages that a page of the file has tokens of.

        Yields:
            the stored page, its first such token, where the tokens begin in the page of the file, and their number.
        """
        run, end = self.session.runs[page.run], page.start + page.tokens
        # All pages before this one are full.
        index = min(page.start // PAGE_TOKENS, run.full_pages)
        offset = index * PAGE_TOKENS
        for stored in run.pages[index:]:
            if offset >= end:
                return
            start, stop = max(offset, page.start), min(offset + stored.tokens, end)
            if start < stop:
                yield stored, start - offset, start - page.start, stop - start
            offset += stored.tokens


def _copy_tokens(stream: Encoded, tokens: slice, tensors: list[NDArray[np.uint8]], place: slice) -> None:
    for tensor, array in zip(tensors, (stream.packed, stream.norms), strict=True):
        tensor[:, :, place] = array.view(np.uint8)[:, :, tokens]

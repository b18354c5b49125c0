"""Import: create a session from a file while the file is received."""

import asyncio
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from hadakv_kernels import Encoded, Stream
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.device.jobs import run_to_completion
from hadakv_service.errors import BodyTooLarge, StorageUnavailable
from hadakv_service.operations.files import layout, parse
from hadakv_service.operations.files.pages import LayeredReader, PagedReader, PageReader, RunPage
from hadakv_service.operations.files.parse import FileHeader
from hadakv_service.operations.files.source import ByteSource, HashingReader
from hadakv_service.operations.files.spool import FileSpool, MemorySpool, Spool, SpoolDirectory
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.interface import DiskStoreError
from hadakv_service.storage.session_store import Key, SessionRecord, SessionStore
from hadakv_service.storage.staging.staged_session import StagedSession, without_pages

# A larger header is parsed in another thread.
_SMALL_HEADER_NBYTES = 64 << 10
# Copies of a page in memory at a time: one is received, one is stored, and the database makes two.
_PAGES_IN_MEMORY = 4
# A page above this size is stored before the next one is received, which takes less memory and a little more time.
_LARGE_PAGE_NBYTES = 4 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Imported:
    """A session that was imported.

    Attributes:
        record: record of the session.
        has_digest: whether the file was checked by its digest, as files of version 2 are.
    """

    record: SessionRecord
    has_digest: bool


@dataclass(frozen=True, slots=True)
class Importer:
    """Importer of session files.

    Attributes:
        store: the sessions.
        device: runs what uses the store or the backend.
        new_session: session with the values that a file does not have.
        spools: place for files of version 1; None for memory.
        max_in_memory: maximum size of a file of version 1 in memory, bytes.
    """

    store: SessionStore
    device: DeviceExecutor
    new_session: Session
    spools: SpoolDirectory | None
    max_in_memory: int

    async def run(self, key: Key, source: ByteSource, nbytes: int | None, count: Callable[[int], None]) -> Imported:
        """Create a session from a file, all of it or nothing.

        Args:
            key: key of the session.
            source: bytes of the file.
            nbytes: size of the file; None if it is not known.
            count: called with the bytes of memory that the import needs while it runs; may raise.

        Raises:
            MalformedBody, InvalidRequest, FileCorrupt: the file cannot be imported.
            SessionExists: the id is taken.
            QuotaExceeded, InsufficientStorage, StorageUnavailable: the session cannot be stored.
            BodyTooLarge: a file of version 1 is too large for the memory of a service without a disk.
        """
        reader = HashingReader(source)
        header = await read_header(reader, nbytes, count)
        count(_PAGES_IN_MEMORY * _largest_page_nbytes(header))
        async with AsyncExitStack() as stack:
            pages: PageReader = PagedReader(header, reader)
            if header.offsets is not None:
                spool = await self._spool(header.data_nbytes, count)
                stack.callback(spool.close)
                pages = LayeredReader(header, reader, spool)
            return Imported(await self._store(key, header, pages), header.offsets is None)

    async def _spool(self, nbytes: int, count: Callable[[int], None]) -> Spool:
        if self.spools is None:
            if nbytes > self.max_in_memory:
                raise BodyTooLarge(self.max_in_memory)
            return MemorySpool(count)
        try:
            available = await self.device.call(lambda: self.store.disk.available)
        except DiskStoreError as error:
            raise StorageUnavailable(f"The disk cannot be used: {error}.") from error
        return FileSpool(self.spools, nbytes, available)

    async def _store(self, key: Key, header: FileHeader, pages: PageReader) -> SessionRecord:
        session = replace(
            without_pages(header.session, header.runs),
            ttl_seconds=header.session.ttl_seconds or self.new_session.ttl_seconds,
            durability=self.new_session.durability,
        )
        staged = self.store.stage(key, session)
        try:
            await self.device.run(_StagingJob(staged.job_key, staged, staged.open))
            await self._add_all(staged, pages)
            commit = _StagingJob(key, staged, lambda batch: run_to_completion(staged.commit(batch)))
            return await self.device.run_unbounded(commit)
        except BaseException:
            # Also after a lost connection and in a cancelled task. Jobs that are queued already run before this one.
            self.device.submit(_StagingJob(staged.job_key, staged, lambda _: staged.abort()))
            raise

    async def _add_all(self, staged: StagedSession, pages: PageReader) -> None:
        """Store each page while the next one is received."""
        storing: asyncio.Task[None] | None = None
        try:
            async with aclosing(pages.pages()) as each:
                async for page in each:
                    if storing:
                        await storing
                    storing = asyncio.create_task(self._add(staged, page))
                    if page.nbytes > _LARGE_PAGE_NBYTES:
                        await storing
                    # Otherwise this name would keep the page in memory until the next one is complete.
                    del page
            if storing:
                await storing
        except BaseException:
            if storing:
                # Only the first error is reported.
                storing.add_done_callback(lambda done: done.cancelled() or done.exception())
                storing.cancel()
            raise

    async def _add(self, staged: StagedSession, page: RunPage) -> None:
        step = partial(staged.add, page.run, page.content)
        await self.device.run_unbounded(_StagingJob(staged.job_key, staged, step))


async def read_header(reader: HashingReader, nbytes: int | None, count: Callable[[int], None]) -> FileHeader:
    """Read and check the header of a file.

    Args:
        reader: reads the file from its start.
        nbytes: size of the file; None if it is not known.
        count: called with the size of the header before it is read; may raise.

    Raises:
        MalformedBody, InvalidRequest: the header is not valid, or the file has another size.
    """
    prefix = memoryview(bytearray(layout.PREFIX_NBYTES))
    await reader.read(prefix)
    length = parse.header_nbytes(prefix)
    count(length)
    text = memoryview(bytearray(length))
    await reader.read(text)
    if length > _SMALL_HEADER_NBYTES:
        header = await asyncio.to_thread(parse.parse_header, text)
    else:
        header = parse.parse_header(text)
    if nbytes is not None:
        parse.check_file_nbytes(nbytes, length, header.data_nbytes)
    return header


def _largest_page_nbytes(header: FileHeader) -> int:
    page_tokens = [each.page_tokens for each in header.paged_spans] or [PAGE_TOKENS] * len(header.spans)
    spans = zip(header.spans, page_tokens, strict=True)
    sizes = [layout.page_nbytes(header.session, span.layers, min(span.tokens, tokens)) for span, tokens in spans]
    return max(sizes, default=0)


class _StagingJob(Generic[T]):
    """A step of an import on the device thread.

    Args:
        key: what the job works on: the staged session, or for the commit the key of the session.
        staged: the staged session.
        step: called with the keys of all jobs in progress, whose sessions must not be deleted.
    """

    def __init__(self, key: Hashable, staged: StagedSession, step: Callable[[Collection[Hashable]], T]) -> None:
        self.key = key
        self._staged = staged
        self._step = step

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """Return no streams."""
        self._pinned = batch | {self._staged.key}
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> T:  # noqa: ARG002 - nothing was encoded
        """Run the step."""
        return self._step(self._pinned)

    def roll_back(self) -> None:
        """Do nothing: a step that fails changes nothing."""

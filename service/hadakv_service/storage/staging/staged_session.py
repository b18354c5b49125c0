"""StagedSession: pages of an import that is not complete yet, in memory or on disk, and the commit of all of them."""

from collections.abc import Callable, Collection, Generator, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from itertools import count

from hadakv_kernels import Backend, Encoded
from hadakv_service.errors import InsufficientStorage, SessionExists
from hadakv_service.sessions.layer_run import PAGE_TOKENS, LayerRun
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import BufferPool
from hadakv_service.storage.disk.interface import DiskStore, Key, PageContent
from hadakv_service.storage.disk_space import DiskBudgetExceeded, DiskSpace
from hadakv_service.storage.disk_writer import DiskWriter, WriteBatch
from hadakv_service.storage.eviction import Evictor
from hadakv_service.storage.memory_budget import (
    EVICTED_PAGE_NBYTES,
    PAGE_OVERHEAD_NBYTES,
    MemoryBudget,
    Reservation,
    load_nbytes,
    metadata_nbytes,
)
from hadakv_service.storage.session_table import SessionRecord
from hadakv_service.storage.write_back import WRITE_CHUNK_NBYTES, WriteBack
from hadakv_service.tenants.quotas import TenantUsage

# Size of a session whose pages stay in memory until the commit. The pages of a larger one are written to disk as they
# come, so that they take no memory from sessions that are in use.
RESIDENT_NBYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingArea:
    """The parts of the store that staged sessions need. Only the device thread uses them.

    Attributes:
        backend: backend whose memory the pages use.
        memory: byte counters.
        disk: disk store.
        pool: pages in memory.
        writer: marks pages on disk as garbage.
        write_back: writes pages to disk.
        space: says what the disk may have.
        evictor: makes space in memory.
        usage: bytes and sessions of the tenants.
        has: returns whether a key is taken.
        check_memory: called with bytes and pinned keys; raises `InsufficientStorage` if memory cannot have them.
        commit: stores a session, like `SessionStore.commit`.
    """

    backend: Backend | None
    memory: MemoryBudget
    disk: DiskStore
    pool: BufferPool
    writer: DiskWriter
    write_back: WriteBack
    space: DiskSpace
    evictor: Evictor
    usage: TenantUsage
    has: Callable[[Key], bool]
    check_memory: Callable[[int, Collection[Hashable]], int]
    commit: Callable[[Reservation, Session], Generator[None, None, SessionRecord]]


class _State(Enum):
    NEW = "new"
    OPEN = "open"
    COMMITTING = "committing"
    CLOSED = "closed"


_numbers = count()


class StagedSession:
    """A session whose pages arrive one by one. Requests do not see it before the commit.

    Its size counts for the tenant's quota from `open` on. Its pages count for the budgets as they arrive. Pages on disk
    belong to no manifest, so they are garbage after a crash. Only the device thread calls the methods.

    Args:
        area: parts of the store.
        key: key of the session.
        session: its value, with runs that have no pages yet.

    Attributes:
        key: key of the session.
        job_key: key of the jobs that fill it, so that they run one after another.
    """

    def __init__(self, area: StagingArea, key: Key, session: Session) -> None:
        self._area = area
        self.key = key
        self._session = session
        self._pages: list[list[Page]] = [[] for _ in session.runs]
        self._resident: list[Page] = []
        self._on_disk: list[Page] = []
        # No session has such an id.
        self.job_key: Key = key[0], f"{key[1]}\0{next(_numbers)}"
        self._state = _State.NEW
        self._reservation: Reservation | None = None
        self._may_spill = area.space.can_spill(session)
        self._is_streamed = False
        self._is_cancelled = False

    def open(self, pinned: Collection[Hashable]) -> None:
        """Check that the whole session can be stored, before any of it arrives.

        Raises:
            SessionExists: the id is taken.
            QuotaExceeded: the tenant would have too many bytes or sessions.
            InsufficientStorage: neither memory nor disk can have it.
        """
        area, session = self._area, self._session
        self._check_free_id()
        area.usage.check(self.key[0], session.nbytes, 1)
        counts = _page_counts(session)
        pages, metadata = sum(count for _, count in counts), metadata_nbytes(session)
        disk_nbytes = sum(area.disk.page_nbytes(nbytes) * count for nbytes, count in counts if count)
        self._may_spill = self._may_spill and area.space.can_fit(disk_nbytes, pinned)
        # Pages that are written at once need not be in the backend's memory.
        self._is_streamed = self._may_spill and session.nbytes > RESIDENT_NBYTES
        page_nbytes = EVICTED_PAGE_NBYTES * pages if self._may_spill else session.nbytes + PAGE_OVERHEAD_NBYTES * pages
        area.check_memory(metadata + page_nbytes, pinned)
        self._reservation = area.memory.reserve(self.key, metadata)
        area.usage.add(self.key[0], session.nbytes, 1)
        area.pool.pin(self.job_key, self._on_disk)
        self._state = _State.OPEN

    def add(self, run: int, content: PageContent, pinned: Collection[Hashable]) -> None:
        """Add the next page of a run. Nothing is added on an error.

        Args:
            run: index of the run.
            content: page with `PAGE_TOKENS` tokens; the last one of the run may have fewer.
            pinned: keys of sessions that must not be deleted for it.

        Raises:
            InsufficientStorage: it does not fit, or the disk cannot be written.
        """
        assert self._state is _State.OPEN
        page = Page(*content) if self._is_streamed else Page(*map(self._to_device, content))
        if self._is_streamed and self._resident_nbytes() + page.nbytes > WRITE_CHUNK_NBYTES:
            self._spill(pinned)
        try:
            self._grow(page.nbytes + PAGE_OVERHEAD_NBYTES, pinned)
        except InsufficientStorage:
            if not self._may_spill:
                raise
            self._spill(pinned)
            self._add_beyond_memory(page, pinned)
        else:
            self._resident.append(page)
        self._pages[run].append(page)
        if self._is_streamed and page.nbytes >= WRITE_CHUNK_NBYTES:
            # There is nothing to gain from waiting for more pages, and the caller may free the memory.
            with suppress(InsufficientStorage):
                self._spill(pinned)

    def _to_device(self, stream: Encoded) -> Encoded:
        assert self._area.backend
        return Encoded(self._area.backend.to_device(stream.packed), self._area.backend.to_device(stream.norms))

    def commit(self, pinned: Collection[Hashable]) -> Generator[None, None, SessionRecord]:
        """Make the session visible, in chunks. All or nothing is stored. See `SessionStore.commit`.

        Raises:
            SessionExists: the id was taken meanwhile.
            QuotaExceeded, InsufficientStorage: it cannot be stored.
        """
        if self._state is _State.CLOSED:
            # The commit succeeded, but the group commit after it did not, so the job runs again. The pages are gone.
            raise InsufficientStorage("The disk is full or cannot be written. Nothing was stored.")
        assert self._state is _State.OPEN, "the import was cancelled"
        assert self._reservation
        self._check_free_id()
        if self._is_streamed:
            self._spill(pinned)
        self._state = _State.COMMITTING
        self._reservation.pinned = pinned
        # The committed session counts instead.
        self._area.usage.add(self.key[0], -self._session.nbytes, -1)
        try:
            record = yield from self._area.commit(self._reservation, self._complete_session())
        except BaseException:
            self._area.usage.add(self.key[0], self._session.nbytes, 1)
            self._state = _State.OPEN
            if self._is_cancelled:
                self.abort()
            raise
        self._close()
        return record

    def abort(self) -> None:
        """Drop all pages, unless the session is committed. A commit in progress goes on; pages go if it fails."""
        self._is_cancelled = True
        if self._state is _State.NEW:
            self._state = _State.CLOSED
        if self._state is not _State.OPEN:
            return
        assert self._reservation
        self._area.usage.add(self.key[0], -self._session.nbytes, -1)
        self._reservation.release()
        self._area.writer.mark_garbage(self._on_disk)
        self._close()

    def _close(self) -> None:
        self._area.pool.unpin(self.job_key)
        self._pages, self._resident, self._on_disk = [], [], []
        self._state = _State.CLOSED

    def _check_free_id(self) -> None:
        if self._area.has(self.key):
            raise SessionExists(f"The session {self.key[1]!r} exists already.", field="id")

    def _complete_session(self) -> Session:
        runs = [
            replace(run, pages=tuple(pages), full_pages=sum(page.tokens == PAGE_TOKENS for page in pages))
            for run, pages in zip(self._session.runs, self._pages, strict=True)
        ]
        return replace(self._session, runs=tuple(runs))

    def _resident_nbytes(self) -> int:
        return sum(page.nbytes for page in self._resident)

    def _grow(self, nbytes: int, pinned: Collection[Hashable]) -> None:
        """Reserve more memory, and make space for it if other sessions can be spilled.

        Raises:
            InsufficientStorage: space cannot be made. Nothing more is reserved.
        """
        assert self._reservation
        self._area.check_memory(nbytes, pinned)
        before = self._reservation.nbytes
        self._reservation.resize(before + nbytes)
        # Without a disk, evicting deletes sessions. The commit does that, if there is one.
        if self._area.disk.budget:
            try:
                self._area.evictor.ensure_now(self._area.memory.reserved, pinned)
            except InsufficientStorage:
                self._reservation.resize(before)
                raise

    def _add_beyond_memory(self, page: Page, pinned: Collection[Hashable]) -> None:
        """Reserve memory for a page. Write it to disk at once if there is no memory for its bytes."""
        assert self._reservation
        try:
            self._grow(page.nbytes + PAGE_OVERHEAD_NBYTES, pinned)
        except DiskBudgetExceeded:
            raise
        except InsufficientStorage:
            self._grow(EVICTED_PAGE_NBYTES, pinned)
            try:
                self._write([page], pinned)
            except InsufficientStorage:
                self._reservation.resize(self._reservation.nbytes - EVICTED_PAGE_NBYTES)
                raise
        else:
            self._resident.append(page)

    def _spill(self, pinned: Collection[Hashable]) -> None:
        """Write the pages that are in memory to disk, and evict them.

        Raises:
            InsufficientStorage: the disk is full or cannot be written. The other pages are still in memory.
        """
        assert self._reservation
        while self._resident:
            chunk, nbytes = [self._resident[0]], self._resident[0].nbytes
            for page in self._resident[1:]:
                if nbytes + page.nbytes > WRITE_CHUNK_NBYTES:
                    break
                chunk.append(page)
                nbytes += page.nbytes
            self._write(chunk, pinned)
            del self._resident[: len(chunk)]
            self._reservation.resize(self._reservation.nbytes - sum(map(load_nbytes, chunk)))

    def _write(self, pages: Sequence[Page], pinned: Collection[Hashable]) -> None:
        self._area.write_back.commit(WriteBatch(pages=pages), pinned)
        self._on_disk += pages
        for page in pages:
            self._area.pool.evict(page)


def without_pages(session: Session, spans: Sequence[tuple[int, int, int, bool]]) -> Session:
    """Return the session with runs that are to be filled, and all declared layers.

    Args:
        session: session without runs.
        spans: number of layers, first position and length of each run, and whether its layers do not exist.
    """
    runs = tuple(LayerRun(layers, start, stop, is_gap=is_gap) for layers, start, stop, is_gap in spans)
    return replace(session, runs=runs).with_declared_layers()


def _page_counts(session: Session) -> list[tuple[int, int]]:
    """Return the bytes of the pages that the session will have, and how many such pages there will be."""
    if not session.has_shape:
        return []
    token_nbytes = (session.kv_heads or 0) * sum(spec.nbytes for spec in session.specs)
    counts = []
    for run in session.runs:
        full, rest = divmod(run.stop - run.start, PAGE_TOKENS)
        counts += [(run.layers * PAGE_TOKENS * token_nbytes, full), (run.layers * rest * token_nbytes, int(rest > 0))]
    return counts

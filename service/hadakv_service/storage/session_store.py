"""SessionStore: find, list, reserve, commit, fork, delete."""

from collections.abc import Collection, Generator, Hashable
from contextlib import suppress

from hadakv_kernels import Backend
from hadakv_service.errors import (
    InsufficientStorage,
    SessionExists,
    StorageUnavailable,
)
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.page_diff import page_diff
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import BufferPool
from hadakv_service.storage.checkpoints.checkpointer import Checkpointer
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError, Key
from hadakv_service.storage.disk.manifest import is_prefix
from hadakv_service.storage.disk.null_store import NullStore
from hadakv_service.storage.disk_space import DiskSpace
from hadakv_service.storage.disk_writer import DiskWriter
from hadakv_service.storage.eviction import Evictor
from hadakv_service.storage.group_commit import GroupCommit
from hadakv_service.storage.lifetime.clock import SteadyClock
from hadakv_service.storage.lifetime.maintenance import StoreMaintenance
from hadakv_service.storage.memory_budget import (
    PAGE_OVERHEAD_NBYTES,
    MemoryBudget,
    Reservation,
    metadata_nbytes,
    page_nbytes_in_memory,
    resident_nbytes,
)
from hadakv_service.storage.session_lookup import SessionLookup
from hadakv_service.storage.session_table import Clock, SessionRecord, SessionTable
from hadakv_service.storage.staging.staged_session import StagedSession, StagingArea
from hadakv_service.storage.write_back import WriteBack
from hadakv_service.tenants.quotas import QuotaTable, TenantUsage

__all__ = ["Clock", "Key", "Reservation", "SessionRecord", "SessionStore"]


class SessionStore(SessionLookup, StoreMaintenance):
    """Sessions in memory and on disk, within their budgets.

    Only the device thread uses the store, so it needs no locks.

    Args:
        budget: bytes of memory that sessions may take, stored or reserved.
        clock: returns Unix seconds; by default a `SteadyClock`.
        disk: disk store; None to keep sessions in memory only.
        backend: backend whose memory the pages use. Needed to load, write or split pages.
        quotas: quotas of the tenants.
        checkpoint_seconds: maximum age of a change at which a checkpoint begins; 0 for none.

    Attributes:
        checkpoints: writes changed sessions in the background.
        memory: byte counters.
        disk: disk store.
        pool: pages in memory.
    """

    def __init__(
        self,
        budget: int,
        clock: Clock | None = None,
        *,
        disk: DiskStore | None = None,
        backend: Backend | None = None,
        quotas: QuotaTable | None = None,
        checkpoint_seconds: float = 0.0,
    ) -> None:
        self.memory = MemoryBudget(budget)
        self.disk: DiskStore = disk or NullStore()
        clock = clock or SteadyClock()
        self.disk.resume_clock(clock())
        self.pool = BufferPool(
            self.memory,
            self.disk,
            backend,
            on_memory_pressure=self._free_memory,
            on_corrupt_page=self._mark_corrupt,
        )
        self._writer = DiskWriter(self.disk, self.pool)
        self._usage = TenantUsage(quotas or QuotaTable(), self.disk.owners())
        self._table = SessionTable(self.memory, self.disk, self.pool, self._writer, self._usage, clock)
        space = DiskSpace(self.disk, self.pool, self._writer, self._table)
        self._space = space
        self._write_back = WriteBack(self.disk, self.pool, self._writer, self._table, space)
        self._group_commit = GroupCommit(self._writer, self._table, self._write_back)
        self.checkpoints = Checkpointer(
            checkpoint_seconds, self.disk, self._writer, self._table, space, self._group_commit
        )
        self._evictor = Evictor(self.memory, self.disk, self.pool, self._table, space, self._write_back)
        self._staging = StagingArea(
            backend=backend,
            memory=self.memory,
            disk=self.disk,
            pool=self.pool,
            writer=self._writer,
            write_back=self._write_back,
            space=space,
            evictor=self._evictor,
            usage=self._usage,
            has=self.has,
            check_memory=self._reservable,
            commit=self.commit,
        )

    def _free_memory(self, nbytes: int) -> None:
        self._evictor.try_free(nbytes)

    def reserve(
        self,
        key: Key,
        session: Session,
        pinned: Collection[Hashable],
        *,
        nbytes: int = 0,
        pages: int = 0,
        slices_nbytes: int = 0,
    ) -> Reservation:
        """Reserve memory for a new value of a session, before anything is allocated or evicted.

        If memory has no space for copies of slices, they go to disk at once, provided the session may be there.

        Args:
            key: key of the session.
            session: new value, without tokens that are still to be encoded.
            pinned: keys of sessions that must not be deleted for it. Their pages may be evicted.
            nbytes: packed bytes of these tokens.
            pages: number of pages of these tokens.
            slices_nbytes: stored bytes of pages that are split into slices.

        Raises:
            InsufficientStorage: space in memory cannot be made.
            QuotaExceeded: the tenant would have too many bytes or sessions.
        """
        record = self.find(key)
        self._usage.check(key[0], *_usage_growth(record, session, nbytes))
        growth = resident_nbytes(session) + nbytes + pages * PAGE_OVERHEAD_NBYTES - (record.cost if record else 0)
        bypasses_memory = False
        try:
            reserved = self._reservable(growth + slices_nbytes, pinned)
        except InsufficientStorage:
            if not (slices_nbytes and self._space.can_spill(session)):
                raise
            bypasses_memory = True
            reserved = self._reservable(growth, pinned)
        return Reservation(
            self.memory, key, reserved, pinned, slices_nbytes=slices_nbytes, bypasses_memory=bypasses_memory
        )

    def _reservable(self, nbytes: int, pinned: Collection[Hashable]) -> int:
        """Return how many bytes to reserve, if space can be made for them.

        Raises:
            InsufficientStorage: it cannot.
        """
        # Merging small pages frees some bytes, but not before the merge.
        nbytes = max(nbytes, 0)
        # Expired sessions go before any other is evicted.
        self.expire()
        shortfall = self._evictor.shortfall(nbytes, pinned)
        if shortfall > 0:
            hint = " Send more than fits in memory in several appends." if self.disk.budget else ""
            raise InsufficientStorage(
                f"The session needs {nbytes} more bytes of memory. {shortfall} of them do not fit in the budget of "
                f"{self.memory.limit} bytes, even if every other session is evicted.{hint}",
                needed=nbytes,
                budget=self.memory.limit,
            )
        return nbytes

    def stage(self, key: Key, session: Session) -> StagedSession:
        """Return a session that is to be filled page by page. It does nothing before it is opened.

        Args:
            key: key of the session.
            session: its value, with runs that have no pages yet.
        """
        return StagedSession(self._staging, key, session)

    def commit(self, reservation: Reservation, session: Session) -> Generator[None, None, SessionRecord]:
        """Store the new value of a session, in chunks. Other jobs may run between them.

        All or nothing is stored, after the last chunk. On success the reservation is consumed. On failure it must be
        released.

        Args:
            reservation: memory reserved for the value. Its key is that of the session.
            session: new value.

        Raises:
            InsufficientStorage: pages must be written to disk, which is full or cannot be written.
            QuotaExceeded: the tenant would have too many bytes or sessions.
            SessionCorrupt, StorageUnavailable: a page to be split cannot be read.
        """
        key = reservation.key
        if reservation.slices_nbytes:
            yield from self._ensure_memory(reservation)
            in_memory = not reservation.bypasses_memory
            yield from self._write_back.materialize_slices(key, session, in_memory=in_memory)
        yield from self._write_back.flush_early(key, session)
        yield from self._ensure_memory(reservation)
        return self._replace(reservation, session)

    def _ensure_memory(self, reservation: Reservation) -> Generator[None, None, None]:
        # Without a disk, evicting deletes sessions. `_replace` then evicts for the exact size, not for the estimate.
        if self.disk.budget:
            yield from self._evictor.ensure(reservation.nbytes, reservation.pinned)

    def _replace(self, reservation: Reservation, session: Session) -> SessionRecord:
        """Put the new value in the table, and mark it dirty. Nothing else runs meanwhile."""
        key, pinned = reservation.key, {reservation.key, *reservation.pinned}
        old = self.find(key)
        if old is None and key in self._table:
            # The old session has expired. Sync its deletion, so that it does not reappear under the same id.
            self._table.delete(key, "user")
        self._usage.check(key[0], *_usage_growth(old, session))
        if old is None:
            self._forget_unserved(key)
        is_longer = old is not None and is_prefix(old.session, session)
        if old and not is_longer:
            # A background write may give the disk tokens that this value does not have. The group commit must know.
            self._writer.settle(key)
        if not is_longer:
            session = session.with_new_revision()
        gained, lost = page_diff(old.session if old else None, session)
        assert not any(page.parent for page in gained), "slices cannot be committed"
        metadata_growth = metadata_nbytes(session) - (metadata_nbytes(old.session) if old else 0)
        # Evict twice. The first pass may evict pages in `lost`, and then frees less than was counted.
        for _ in range(2):
            growth = metadata_growth + _page_growth(gained, lost)
            if self.memory.stored + growth <= self.memory.limit:
                break
            self._evictor.ensure_now(growth, pinned)
        now = self._table.clock()
        record = SessionRecord(session, old.created if old else now, now, old.manifest if old else None)
        self._table.replace(key, record, gained, lost)
        reservation.release()
        self._group_commit.mark_dirty(key, old, record)
        if self.memory.stored > self.memory.limit and self.disk.budget:
            # The new value can be spilled now, which the old one could not.
            with suppress(InsufficientStorage):
                self._evictor.ensure_now(0, pinned)
        return record

    def fork(
        self, source: Key, target: Key, session: Session, pinned: Collection[Hashable] = ()
    ) -> Generator[None, None, SessionRecord]:
        """Store a value of one session as a new session, which shares its pages. See `commit`.

        Args:
            source: key of the session to fork, which counts as used.
            target: key of the new session.
            session: value of the source, or a truncated one.
            pinned: keys of sessions that must not be deleted for it.

        Raises:
            SessionExists: the target exists already.
            InsufficientStorage: space in memory for pages that are not shared cannot be made.
        """
        if self.has(target):
            raise SessionExists(f"The session {target[1]!r} exists already.", field="id")
        self.touch(source)
        pinned = {source, *pinned}
        nbytes = metadata_nbytes(session) + _page_growth(list(session.all_pages()), ())
        reservation = self.memory.reserve(target, self._reservable(nbytes, pinned), pinned)
        try:
            return (yield from self.commit(reservation, session))
        finally:
            reservation.release()

    def delete(self, key: Key) -> bool:
        """Delete a session, also a corrupt one. Return whether there was one that had not expired.

        Raises:
            StorageUnavailable: the disk cannot be written. Nothing was deleted.
        """
        record = self._table.get(key)
        was_unserved = self._forget_unserved(key)
        is_deleted = self._table.delete(key, "user") and not (record and self._table.is_expired(record))
        return is_deleted or was_unserved

    def _forget_unserved(self, key: Key) -> bool:
        """Delete a session that is on a disk which is not in use. It must not reappear when the disk is used again."""
        try:
            return self.disk.forget_unserved(key)
        except DiskStoreError as error:
            raise StorageUnavailable(f"The session on disk cannot be deleted: {error}.") from error

    def group_commit(self) -> dict[Key, Exception]:
        """Write what was committed since the last call, in one transaction.

        Returns:
            the error of each session that could not be written. These sessions are as they were before.
        """
        try:
            return self._group_commit.run()
        finally:
            self._table.evicted.report()


def _page_growth(gained: Collection[Page], lost: Collection[Page]) -> int:
    """Return how much more memory pages take than those they replace, in their present states."""
    growth = sum(page_nbytes_in_memory(page) for page in gained if not page.ref_count)
    return growth - sum(page_nbytes_in_memory(page) for page in lost if page.ref_count == 1)


def _usage_growth(record: SessionRecord | None, session: Session, nbytes: int = 0) -> tuple[int, int]:
    """Return by how many packed bytes and sessions a tenant's usage grows."""
    return session.nbytes + nbytes - (record.session.nbytes if record else 0), int(record is None)

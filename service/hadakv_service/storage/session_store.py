"""Sessions by owner and id: what is stored, reserved, forgotten. No HTTP, and one writer: the device."""

import time
from collections.abc import Collection, Generator, Hashable, Sequence
from contextlib import suppress
from itertools import islice

from hadakv_kernels import Backend
from hadakv_service.device.chunks import run_to_completion
from hadakv_service.errors import (
    InsufficientStorage,
    ServiceError,
    SessionCorrupt,
    SessionExists,
    SessionNotFound,
    StorageUnavailable,
)
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session, page_diff
from hadakv_service.storage.buffer_pool import BufferPool, session_from_manifest
from hadakv_service.storage.corrupt_pages import CORRUPT_DETAIL, row_of
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError, DiskUnavailable, Key
from hadakv_service.storage.disk.null_store import NullStore
from hadakv_service.storage.eviction import Evictor
from hadakv_service.storage.memory_budget import (
    PAGE_OVERHEAD_NBYTES,
    MemoryBudget,
    evicted_nbytes,
    metadata_nbytes,
    page_nbytes_in_memory,
    resident_nbytes,
)
from hadakv_service.storage.session_table import Clock, SessionRecord, SessionTable
from hadakv_service.storage.write_back import WriteBack
from hadakv_service.tenants.quotas import QuotaTable, TenantUsage

# Who has expired is not there for anybody; that they go has time.
SWEEP = 32
_ELSEWHERE = "on disk or evicted. What is more than memory can be sent in several appends."

__all__ = ["Clock", "Key", "SessionRecord", "SessionStore"]


class SessionStore:
    """Sessions within a budget.

    Only the device's thread touches it, so that nothing here needs a lock.

    Args:
        budget: bytes that sessions may take in memory, stored or reserved.
        clock: gives unix seconds.
        tier: takes what has no room in memory, and what is to outlive the process.
        backend: whose memory pages lie in; needed with a tier.
        quotas: what each owner may have.
    """

    def __init__(
        self,
        budget: int,
        clock: Clock = time.time,
        *,
        tier: DiskStore | None = None,
        backend: Backend | None = None,
        quotas: QuotaTable | None = None,
    ) -> None:
        self.memory = MemoryBudget(budget)
        self.disk: DiskStore = tier or NullStore()
        self.residence = BufferPool(self.memory, self.disk, backend)
        self._entries = SessionTable(self.memory, clock)
        self._owners = TenantUsage(quotas or QuotaTable(), self.disk.owners())
        self._room = Evictor(self.memory, self._entries, self.residence, self._owners)
        self.residence.damage.mark_sessions = self._mark_corrupt
        self._settling = WriteBack(self.memory, self._entries, self.residence, self._room, self._owners)

    def __len__(self) -> int:
        return len(self._entries) + self.disk.sessions - self._entries.saved

    @property
    def in_memory(self) -> int:
        """Sessions in memory, though their pages may be elsewhere."""
        return len(self._entries)

    @property
    def evictions(self) -> int:
        """Sessions that were ended to make room."""
        return self._room.evictions

    def find(self, key: Key) -> SessionRecord | None:
        """The entry, unless absent or expired.

        Raises:
            SessionDamaged, TierUnavailable: the tier has it and cannot give it.
        """
        entry = self._entries.get(key) or self._load_session(key)
        if entry is None or self._entries.expired(entry):
            return None
        if entry.is_corrupt:
            raise SessionCorrupt(CORRUPT_DETAIL)
        return entry

    def has(self, key: Key) -> bool:
        """Whether the id is taken, be it by a session that is damaged.

        Raises:
            TierUnavailable: the tier cannot tell.
        """
        try:
            return self.find(key) is not None
        except SessionCorrupt:
            return True

    def _load_session(self, key: Key) -> SessionRecord | None:
        """Take a session that only the tier has into memory again; its pages follow when they are needed."""
        if self.disk.sessions == self._entries.saved:
            return None
        found = self.residence.find(key)
        if found is None:
            return None
        session, manifest = found
        self.residence.damage.raise_if_corrupt(session)
        entry = SessionRecord(session, manifest.created, manifest.last_used, manifest, is_clean=True)
        if self._entries.expired(entry):
            self.delete(key)
            return None
        self._room.try_free(evicted_nbytes(session))
        self._entries.add(key, entry)
        self.memory.hold(session.all_pages())
        return entry

    def get(self, key: Key) -> SessionRecord:
        """The entry.

        Raises:
            SessionNotFound: absent or expired.
            SessionDamaged, TierUnavailable: the tier has it and cannot give it.
        """
        entry = self.find(key)
        if entry is None:
            raise SessionNotFound(key[1])
        return entry

    def list_sessions(
        self, owner: str, prefix: str, after: str, limit: int
    ) -> tuple[list[tuple[str, SessionRecord]], str | None]:
        """Up to `limit` sessions of an owner in order of id, and the id to go on after, if there are more."""
        found = {
            id_: entry
            for (tenant, id_), entry in self._entries.items()
            if tenant == owner and id_.startswith(prefix) and id_ > after and not self._entries.expired(entry)
        }
        try:
            below = self.disk.list_manifests(owner, prefix, after, limit + 1)
        except DiskStoreError as error:
            raise StorageUnavailable(f"What is on disk cannot be listed: {error}.") from error
        for id_, manifest in below:
            entry = SessionRecord(
                session_from_manifest(manifest), manifest.created, manifest.last_used, manifest, is_clean=True
            )
            if (owner, id_) not in self._entries and not self._entries.expired(entry):
                found[id_] = entry
        # Beyond the last of a full page from the tier it may have more between those in memory.
        horizon = below[limit][0] if len(below) > limit else None
        listed = sorted(id_ for id_ in found if horizon is None or id_ <= horizon)
        last = listed[limit - 1] if len(listed) > limit else horizon
        return [(id_, found[id_]) for id_ in listed[:limit]], last

    def touch(self, key: Key) -> None:
        """Note that a session was used, unless it is gone."""
        if self.find(key):
            self._entries.touch(key)

    def reserve_growth(
        self, key: Key, session: Session, keep: Collection[Hashable], *, nbytes: int = 0, pages: int = 0, extra: int = 0
    ) -> int:
        """Count in what a session will take more than it does now, and say how much that is.

        Args:
            key: whose.
            session: its next value, but for what is still to be encoded.
            keep: as for `reserve`.
            nbytes: packed bytes still to come.
            pages: pages still to come.
            extra: bytes of memory that it takes besides until it is stored; or, negative, that leave it before.

        Raises:
            InsufficientStorage: it would not fit.
            QuotaExceeded: its owner may not have so much.
        """
        entry = self.find(key)
        self._owners.check(key[0], *_growth(entry, session, nbytes))
        growth = resident_nbytes(session) + nbytes + extra + pages * PAGE_OVERHEAD_NBYTES - (entry.cost if entry else 0)
        # Small pages that become one free some bytes, but only once they have.
        growth = max(growth, 0)
        self.reserve(growth, keep)
        return growth

    def reserve(self, nbytes: int, keep: Collection[Hashable]) -> None:
        """Count bytes in before they are allocated, if others could make room for them.

        Args:
            nbytes: what the work under way will store.
            keep: sessions that may not be ended for it; what they have may leave memory where there is a tier.

        Raises:
            InsufficientStorage: they would not fit even then.
        """
        # Before anybody is evicted the expired go.
        self.expire()
        missing = self._room.shortfall(nbytes, keep)
        if missing > 0:
            elsewhere = _ELSEWHERE if self.disk.budget else "evicted."
            raise InsufficientStorage(
                f"The session needs {nbytes} bytes of memory more; {missing} of them do not fit the budget of "
                f"{self.memory.limit} bytes even with every other session {elsewhere}",
                needed=nbytes,
                budget=self.memory.limit,
            )
        self.memory.reserved += nbytes

    def release(self, nbytes: int) -> None:
        """Give back what was reserved: the work under way stores nothing."""
        self.memory.reserved -= nbytes

    def ahead_in_steps(self, key: Key, session: Session) -> Generator[None, None, None]:
        """Write ahead of `settle`, which otherwise does it in one go; see `Settling.write_ahead`."""
        return self._settling.flush_early(key, session)

    def separate_in_steps(
        self, key: Key, session: Session, backend: Backend, *, in_memory: bool
    ) -> Generator[None, None, None]:
        """Let a value that is to be stored have no parts of other pages; see `Settling.separate`."""
        return self._settling.materialize_slices(key, session, backend, in_memory=in_memory)

    def can_spill(self, session: Session) -> bool:
        """Whether a session's pages may be on disk only."""
        return self._room.can_spill(session)

    def leave(self, key: Key, pages: Sequence[Page]) -> None:
        """Let pages of a session that is still to be stored leave memory; see `Settling.leave`."""
        self._settling.write_through(key, pages)

    def room_in_steps(self, nbytes: int, keep: Collection[Hashable]) -> Generator[None, None, None]:
        """Make room ahead of `put`, which otherwise does it in one go; see `Room.in_steps`."""
        if self.disk.budget:
            yield from self._room.ensure(nbytes, keep)

    def commit(self, key: Key, session: Session, reserved: int = 0, keep: Collection[Hashable] = ()) -> SessionRecord:
        """Store a session's new value in place of its old one and of what was reserved for it.

        Args:
            key: whose.
            session: the new value.
            reserved: what `reserve` counted in for it; if this fails it still is.
            keep: sessions that may not be ended for it, as for `reserve`.

        Raises:
            InsufficientStorage: the tier cannot take what would have to leave memory. Nothing was stored.
            QuotaExceeded: its owner may not have so much. Nothing was stored.
        """
        old = self.find(key)
        if old is None and key in self._entries:
            self.delete(key)
        growth = _growth(old, session)
        self._owners.check(key[0], *growth)
        gained, lost = page_diff(old.session if old else None, session)
        assert not any(page.parent for page in gained), "parts of pages cannot be counted"
        apart = metadata_nbytes(session) - (metadata_nbytes(old.session) if old else 0)
        # Twice, as of what it will no longer have some may have left memory for it.
        for _ in range(2):
            run_to_completion(self._room.ensure(apart + _gained_nbytes(gained, lost), {key, *keep}))
        now = self._entries.clock()
        entry = SessionRecord(session, old.created if old else now, now, old.manifest if old else None)
        if old:
            self._entries.remove(key)
        self._entries.add(key, entry)
        self.memory.hold(gained)
        self.residence.let_go(lost)
        self._owners.add(key[0], *growth)
        self.memory.reserved -= reserved
        self._settling.mark_dirty(key, old, entry)
        if self.memory.stored > self.memory.limit and self.disk.budget:
            # What has been stored can leave memory now, as what it was could not.
            with suppress(InsufficientStorage):
                run_to_completion(self._room.ensure(0, {key, *keep}))
        return entry

    def fork(self, source: Key, target: Key, session: Session, keep: Collection[Hashable] = ()) -> SessionRecord:
        """Store a value of one session as a new one, which shares its pages.

        Args:
            source: whose value it is; it is used by that.
            target: of the new session.
            session: the source's value, or one with pages of its own beside shared ones.
            keep: sessions that may not be evicted for it, as for `reserve`.

        Raises:
            SessionExists: there is a target already.
            InsufficientStorage: what is not shared would not fit.
        """
        if self.has(target):
            raise SessionExists(f"There is a session {target[1]!r} already.", field="id")
        self.touch(source)
        nbytes = metadata_nbytes(session) + sum(
            page_nbytes_in_memory(page) for page in session.all_pages() if not page.ref_count
        )
        self.reserve(nbytes, {source, *keep})
        try:
            return self.commit(target, session, nbytes, {source, *keep})
        except ServiceError:
            self.release(nbytes)
            raise

    def _mark_corrupt(self, row: int) -> list[Key]:
        """Note that every session with a page of that row is damaged; who that is, be it in memory or below."""
        here = {key: entry for key, entry in self._entries.items() if row in map(row_of, entry.session.all_pages())}
        for entry in here.values():
            entry.is_corrupt = True
        return sorted({*here, *self.disk.sessions_with_page(row)})

    def delete(self, key: Key) -> bool:
        """Forget a session; whether there was one that had not expired, though it may be damaged.

        Raises:
            TierUnavailable: the tier keeps it; nothing happened.
        """
        before, entry = len(self), self._entries.get(key)
        self._room.delete(key)
        return len(self) < before and not (entry and self._entries.expired(entry))

    def expire(self) -> None:
        """Forget sessions in memory that have expired; of very many some at a time."""
        with suppress(StorageUnavailable):
            for key in islice(self._entries.pop_expired(), SWEEP):
                # Who comes back after a loss of power has expired then, too.
                self._room.delete(key, sync=False)

    def run_maintenance(self) -> None:
        """What has to be done now and then: forget who has expired, tell the tier who was used, let it shrink."""
        self.expire()
        with suppress(StorageUnavailable, DiskStoreError):
            self._settling.note_uses(self._entries.with_ttl())
            for key in self.disk.expired(self._entries.clock()):
                if key not in self._entries:
                    self._room.delete(key, sync=False)
            self.residence.collect_garbage()
            self.disk.vacuum()

    def health_check(self) -> int:
        """See whether the tier can be written, and how much more it takes without ending anybody.

        Raises:
            TierUnavailable: it cannot.
        """
        try:
            self.disk.check()
            return max(0, self.disk.available)
        except DiskUnavailable as error:
            raise StorageUnavailable(f"The disk cannot be written: {error}.") from error

    def group_commit(self) -> dict[Key, Exception]:
        """Bring the tier up to date with what was stored since; whom that failed for, and why."""
        return self._settling.group_commit()

    def close(self, until: float) -> int:
        """Write what may outlive the process until a moment of `time.monotonic`; how many sessions were not."""
        left = self._settling.checkpoint(until)
        self.disk.close()
        return left


def _gained_nbytes(gained: Collection[Page], lost: Collection[Page]) -> int:
    """How much more memory pages take that are stored in place of others, as things are now."""
    more = sum(page_nbytes_in_memory(page) for page in gained if not page.ref_count)
    return more - sum(page_nbytes_in_memory(page) for page in lost if page.ref_count == 1)


def _growth(entry: SessionRecord | None, session: Session, nbytes: int = 0) -> tuple[int, int]:
    """How many packed bytes and sessions more there are, once a session has a new value and so many bytes more."""
    return session.nbytes + nbytes - (entry.session.nbytes if entry else 0), int(entry is None)

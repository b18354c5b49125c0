"""SessionTable: sessions in LRU order, with an expiry queue; deletes sessions."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush, heapreplace
from itertools import islice
from math import inf
from typing import Literal

from hadakv_service.errors import StorageUnavailable
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import BufferPool
from hadakv_service.storage.checkpoints.dirty_sessions import DirtySessions
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError, Key, Manifest
from hadakv_service.storage.disk_writer import DiskWriter, SessionWrite
from hadakv_service.storage.lifetime.eviction_log import EvictionLog
from hadakv_service.storage.memory_budget import MemoryBudget, metadata_nbytes, resident_nbytes
from hadakv_service.tenants.quotas import TenantUsage

Clock = Callable[[], float]
# Why a session is deleted: by a user, because it expired, or to make space in memory or on disk.
DeleteReason = Literal["user", "ttl", "memory", "disk"]
# Expired sessions expire again after a power loss. `DiskSpace` syncs once after all of its deletions.
_SYNCED_REASONS = ("user", "memory")
_SPARE_QUEUE_ITEMS = 64


@dataclass(slots=True, eq=False)
class SessionRecord:
    """A session in memory. Its pages may be evicted.

    Attributes:
        session: present value. An append puts a new record in place of this one.
        created: creation time, Unix seconds.
        last_used: time of last use, Unix seconds.
        manifest: manifest on disk, always of a prefix of the session; None if there is none.
        is_clean: whether the manifest covers the whole session.
        is_corrupt: whether stored tokens of the session were found corrupt.
    """

    session: Session
    created: float
    last_used: float
    manifest: Manifest | None = None
    is_clean: bool = False
    is_corrupt: bool = False

    @property
    def cost(self) -> int:
        """Bytes counted for the session with all pages in memory."""
        return resident_nbytes(self.session)

    @property
    def expires(self) -> float | None:
        """Time at which the session expires unless it is used, Unix seconds; None for never."""
        ttl = self.session.ttl_seconds
        return None if ttl is None else self.last_used + ttl

    @property
    def is_acknowledged(self) -> bool:
        """Whether clients rely on the session being on disk. It is never deleted to make space."""
        return self.session.durability == "ack"

    def to_write(self, key: Key) -> SessionWrite:
        """Return the write that brings the disk up to date with the record."""
        return SessionWrite(key, self.session, self.created, self.last_used, self.manifest)


class SessionTable:
    """Sessions in memory, least recently used first. The only place that deletes a session.

    Args:
        memory: counts the bytes of sessions besides their pages.
        disk: store that may have further sessions.
        pool: pool that counts references of pages.
        writer: writer of the disk store.
        usage: counts bytes and sessions of each tenant.
        clock: returns Unix seconds.

    Attributes:
        clock: returns Unix seconds.
        dirty: `spill` sessions that the disk does not have completely.
        with_manifest: number of sessions in the table that have a manifest on disk.
        evicted: sessions deleted to make space.
        expirations: number of sessions deleted because they were not used for their TTL.
    """

    def __init__(
        self,
        memory: MemoryBudget,
        disk: DiskStore,
        pool: BufferPool,
        writer: DiskWriter,
        usage: TenantUsage,
        clock: Clock,
    ) -> None:
        self.clock = clock
        self.dirty = DirtySessions()
        self.with_manifest = 0
        self.evicted = EvictionLog()
        self.expirations = 0
        self._memory = memory
        self._disk = disk
        self._pool = pool
        self._writer = writer
        self._usage = usage
        # Least recently used first.
        self._records: OrderedDict[Key, SessionRecord] = OrderedDict()
        # A heap of times at which to check a session. No session expires before its time here, but use may put it off.
        # `_scheduled` has the valid time of each key; other items of the heap are stale.
        self._expiry_queue: list[tuple[float, Key]] = []
        self._scheduled: dict[Key, float] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def get(self, key: Hashable) -> SessionRecord | None:
        """Return the record of a session in memory, expired or not."""
        return self._records.get(key)  # type: ignore[call-overload, no-any-return]  # keys of other jobs are not found

    def items(self) -> Iterable[tuple[Key, SessionRecord]]:
        """Return all records, least recently used first."""
        return self._records.items()

    def mru_keys(self) -> list[Key]:
        """Return all keys as a list, most recently used first."""
        return list(reversed(self._records))

    def lru_key(self, pinned: Collection[Hashable]) -> Key | None:
        """Return the key of the least recently used session that is not pinned."""
        return next((key for key in self._records if key not in pinned), None)

    def lru_items(self, limit: int) -> list[tuple[Key, SessionRecord]]:
        """Return up to `limit` least recently used sessions."""
        return list(islice(self._records.items(), limit))

    def lru_order(self, keys: Collection[Hashable]) -> Iterator[tuple[Key, SessionRecord]]:
        """Yield those of the keys that are in the table, least recently used first."""
        found = [(key, record) for key in keys if (record := self.get(key))]
        return iter(sorted(found, key=lambda item: item[1].last_used))  # type: ignore[arg-type]  # keys in the table are of type Key

    def add(self, key: Key, record: SessionRecord) -> None:
        """Add a session that was on disk only, as the most recently used one."""
        self._insert(key, record)
        self._pool.retain(record.session.all_pages())

    def replace(self, key: Key, record: SessionRecord | None, gained: Collection[Page], lost: Collection[Page]) -> None:
        """Put a record in place of the present one, as the most recently used one.

        Args:
            key: key of the session.
            record: new record; None to take the present one away.
            gained: pages that only the new record has.
            lost: pages that only the present record has.
        """
        old = self._remove(key) if key in self._records else None
        if record:
            self._insert(key, record)
        else:
            self.dirty.discard(key)
        self._pool.retain(gained)
        self._writer.mark_garbage(self._pool.release(lost))
        nbytes = (record.session.nbytes if record else 0) - (old.session.nbytes if old else 0)
        self._usage.add(key[0], nbytes, (record is not None) - (old is not None))

    def drop_from_memory(self, key: Key) -> None:
        """Remove a session from memory. It stays on disk."""
        record = self._remove(key)
        self.dirty.discard(key)
        self._writer.mark_garbage(self._pool.release(record.session.all_pages()))

    def delete(self, key: Key, reason: DeleteReason) -> bool:
        """Delete a session from memory and disk.

        Args:
            key: key of the session.
            reason: why it is deleted. Deletions for "user" and "memory" survive a power loss from then on.

        Returns:
            whether there was a session, expired or not.

        Raises:
            StorageUnavailable: the disk cannot be written. Nothing was deleted.
        """
        self._writer.settle(key)
        record = self._records.get(key)
        has_expired = reason == "ttl" or (record is not None and self.is_expired(record))
        nbytes = record.session.nbytes if record else None
        try:
            if record is None and self._disk.sessions > self.with_manifest:
                nbytes = self._disk.nbytes(key)
            if nbytes is None:
                return False
            if record is None or record.manifest:
                self._writer.delete(key, sync=reason in _SYNCED_REASONS)
        except DiskStoreError as error:
            raise StorageUnavailable(f"The session cannot be deleted from disk: {error}.") from error
        if record:
            self.drop_from_memory(key)
        self._usage.add(key[0], -nbytes, -1)
        if reason in ("memory", "disk") and not has_expired:
            self.evicted.add(key, reason)
        self.expirations += has_expired
        return True

    def _insert(self, key: Key, record: SessionRecord) -> None:
        self._records[key] = record
        self.with_manifest += record.manifest is not None
        if (expires := record.expires) is not None and expires < self._scheduled.get(key, inf):
            self._schedule(key, expires)
        if self._disk.budget and record.session.durability == "spill" and not record.is_clean:
            self.dirty.mark(key)
        self._memory.allocate(metadata_nbytes(record.session))

    def _remove(self, key: Key) -> SessionRecord:
        record = self._records.pop(key)
        self.with_manifest -= record.manifest is not None
        self._memory.free(metadata_nbytes(record.session))
        return record

    def touch(self, key: Key) -> None:
        """Set the time of last use to now."""
        record = self._records[key]
        record.last_used = self.clock()
        self._records.move_to_end(key)

    def set_manifest(self, key: Key, record: SessionRecord, manifest: Manifest | None, *, clean: bool) -> None:
        """Set what the disk has of a session in the table."""
        if clean:
            self.dirty.written(key)
        self.with_manifest += (manifest is not None) - (record.manifest is not None)
        record.manifest, record.is_clean = manifest, clean

    def write_last_used(self, items: Iterable[tuple[Key, SessionRecord]]) -> None:
        """Write to disk when sessions were last used, where the manifest there has another time.

        Raises:
            DiskUnavailable: the disk cannot be written.
        """
        self._writer.settle()
        changed = [
            (key, record, replace(record.manifest, last_used=record.last_used, expires=record.expires))
            for key, record in items
            if record.manifest and record.manifest.last_used != record.last_used
        ]
        if not changed:
            return
        self._writer.update_last_used([(key, manifest) for key, _, manifest in changed])
        for _, record, manifest in changed:
            record.manifest = manifest

    def is_expired(self, record: SessionRecord) -> bool:
        """Whether a session has not been used for its TTL."""
        return record.expires is not None and record.expires <= self.clock()

    @property
    def may_have_expired(self) -> bool:
        """Whether `expired` has sessions to look at."""
        return bool(self._expiry_queue) and self._expiry_queue[0][0] <= self.clock()

    def expired(self) -> Iterator[Key]:
        """Yield each expired session in memory. The caller must delete it before it asks for the next."""
        while self._expiry_queue and self._expiry_queue[0][0] <= self.clock():
            at, key = self._expiry_queue[0]
            record = self._records.get(key)
            expires = record.expires if record and self._scheduled.get(key) == at else None
            if expires is None:
                heappop(self._expiry_queue)
                if self._scheduled.get(key) == at:
                    del self._scheduled[key]
            elif expires > at:
                heapreplace(self._expiry_queue, (expires, key))
                self._scheduled[key] = expires
            else:
                yield key

    def with_ttl(self) -> Iterator[tuple[Key, SessionRecord]]:
        """Yield every session in memory that has a TTL."""
        return (
            (key, record)
            for key in self._scheduled
            if (record := self._records.get(key)) and record.expires is not None
        )

    def _schedule(self, key: Key, at: float) -> None:
        self._scheduled[key] = at
        heappush(self._expiry_queue, (at, key))
        if len(self._expiry_queue) > 2 * len(self._records) + _SPARE_QUEUE_ITEMS:
            # Most items are of sessions that are gone. Build the queue anew.
            self._scheduled = {
                key: record.expires for key, record in self._records.items() if record.expires is not None
            }
            self._expiry_queue = sorted((expires, key) for key, expires in self._scheduled.items())

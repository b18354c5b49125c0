"""SessionLookup: find and list sessions, in memory and on disk."""

from hadakv_service.errors import SessionCorrupt, SessionNotFound, StorageUnavailable
from hadakv_service.sessions.session import Shape
from hadakv_service.storage.buffer_pool import BufferPool
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError, Key
from hadakv_service.storage.disk.manifest import is_prefix, session_from_manifest
from hadakv_service.storage.disk_writer import DiskWriter
from hadakv_service.storage.eviction import Evictor
from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, MemoryBudget, evicted_nbytes
from hadakv_service.storage.pages.corrupt_pages import CORRUPT_DETAIL, stored_page_id
from hadakv_service.storage.session_table import SessionRecord, SessionTable


class SessionLookup:
    """The part of `SessionStore` that finds sessions. It never stores a new value.

    Attributes:
        memory: byte counters.
        disk: disk store.
        pool: pages in memory.
    """

    memory: MemoryBudget
    disk: DiskStore
    pool: BufferPool
    _table: SessionTable
    _writer: DiskWriter
    _evictor: Evictor

    def __len__(self) -> int:
        return len(self._table) + self.disk.sessions - self._table.with_manifest

    @property
    def in_memory(self) -> int:
        """Number of sessions in memory. Their pages may be evicted."""
        return len(self._table)

    @property
    def evictions(self) -> int:
        """Number of sessions deleted to make space."""
        return self._table.evicted.count

    @property
    def expirations(self) -> int:
        """Number of sessions deleted because they were not used for their TTL."""
        return self._table.expirations

    def find(self, key: Key) -> SessionRecord | None:
        """Return the record of a session; None if there is none or it has expired.

        Raises:
            SessionCorrupt: stored tokens of the session are corrupt.
            StorageUnavailable: the disk cannot be read.
        """
        record = self._table.get(key) or self._load_session(key)
        if record is None or self._table.is_expired(record):
            return None
        if record.is_corrupt:
            raise SessionCorrupt(CORRUPT_DETAIL)
        return record

    def can_append_in_memory(self, key: Key, shape: Shape, nbytes: int) -> bool:
        """Whether an append to a session needs neither the disk nor the device: it only adds a page in memory.

        Args:
            key: key of the session.
            shape: axes of the append, and where it is stored.
            nbytes: bytes of its tensors, at least as many as they take when packed.
        """
        record = self._table.get(key)
        return (
            record is not None
            and not (record.is_acknowledged or record.is_corrupt or self._table.is_expired(record))
            and record.session.appends_one_page(shape)
            # Otherwise the group commit must delete the manifest.
            and (record.manifest is None or is_prefix(record.manifest, record.session))
            # Nothing has to be evicted, expired or collected.
            and nbytes + PAGE_OVERHEAD_NBYTES <= self.memory.available
            and not self._table.may_have_expired
            and (self._writer.collects_in_background or not self._writer.has_garbage)
        )

    def get(self, key: Key) -> SessionRecord:
        """Return the record of a session.

        Raises:
            SessionNotFound: there is none, or it has expired.
            SessionCorrupt: stored tokens of the session are corrupt.
            StorageUnavailable: the disk cannot be read.
        """
        record = self.find(key)
        if record is None:
            raise SessionNotFound(key[1])
        return record

    def has(self, key: Key) -> bool:
        """Whether the id is taken, even by a corrupt session.

        Raises:
            StorageUnavailable: the disk cannot be read.
        """
        try:
            return self.find(key) is not None
        except SessionCorrupt:
            return True

    def _load_session(self, key: Key) -> SessionRecord | None:
        """Add a session that is on disk only to the table. Its pages are loaded when they are read."""
        if self.disk.sessions == self._table.with_manifest:
            return None
        found = self.pool.open_session(key)
        if found is None:
            return None
        session, manifest = found
        record = SessionRecord(session, manifest.created, manifest.last_used, manifest, is_clean=True)
        if self._table.is_expired(record):
            # Synced, so that it does not reappear under the same id.
            self._table.expirations += self._table.delete(key, "user")
            return None
        self._evictor.try_free(evicted_nbytes(session))
        self._table.add(key, record)
        return record

    def _mark_corrupt(self, page_id: int) -> list[Key]:
        """Mark every session in memory that has a page as corrupt. Return all sessions that have it, also on disk."""
        found = {
            key: record
            for key, record in self._table.items()
            if page_id in map(stored_page_id, record.session.all_pages())
        }
        for record in found.values():
            record.is_corrupt = True
        return sorted({*found, *self.disk.sessions_with_page(page_id)})

    def list_sessions(
        self, owner: str, prefix: str, after: str, limit: int
    ) -> tuple[list[tuple[str, SessionRecord]], str | None]:
        """List sessions of an owner in order of id.

        Args:
            owner: tenant.
            prefix: start of the ids to list.
            after: id to start after.
            limit: maximum number of sessions.

        Returns:
            ids and records, and the id to continue after; None if there are no more.

        Raises:
            StorageUnavailable: the disk cannot be read.
        """
        found = {
            id_: record
            for (tenant, id_), record in self._table.items()
            if tenant == owner and id_.startswith(prefix) and id_ > after and not self._table.is_expired(record)
        }
        try:
            on_disk = self.disk.list_manifests(owner, prefix, after, limit + 1)
        except DiskStoreError as error:
            raise StorageUnavailable(f"Sessions on disk cannot be listed: {error}.") from error
        for id_, manifest in on_disk:
            session = session_from_manifest(manifest)
            record = SessionRecord(session, manifest.created, manifest.last_used, manifest, is_clean=True)
            if (owner, id_) not in self._table and not self._table.is_expired(record):
                found[id_] = record
        # A full listing from disk ends here. After it, the disk may have sessions between those in memory.
        last_complete = on_disk[limit][0] if len(on_disk) > limit else None
        ids = sorted(id_ for id_ in found if last_complete is None or id_ <= last_complete)
        next_after = ids[limit - 1] if len(ids) > limit else last_complete
        return [(id_, found[id_]) for id_ in ids[:limit]], next_after

    def touch(self, key: Key) -> None:
        """Set the time of last use of a session to now. Do nothing if there is none."""
        if self.find(key):
            self._table.touch(key)

"""DiskWriter: opens every write transaction; collects garbage pages."""

from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import BufferPool
from hadakv_service.storage.disk.interface import DiskStore, Key, Manifest
from hadakv_service.storage.disk.manifest import manifest_from_session

# Pages that one transaction deletes, so that no request waits long for it.
GARBAGE_BATCH = 64


class SessionWrite(NamedTuple):
    """A session to write.

    Attributes:
        key: key of the session.
        session: value to write.
        created: creation time, Unix seconds.
        last_used: time of last use, Unix seconds.
        old_manifest: manifest on disk that this replaces; None if there is none.
    """

    key: Key
    session: Session
    created: float
    last_used: float
    old_manifest: Manifest | None


class WriteBatch(NamedTuple):
    """Changes that one transaction makes.

    Attributes:
        sessions: sessions to write, with their pages that are not on disk yet.
        pages: further pages to write, which no manifest references yet.
        removed: keys of sessions whose manifests are deleted. Their pages become garbage.
        sync: whether the changes must survive a power loss once the transaction is committed.
    """

    sessions: Sequence[SessionWrite] = ()
    pages: Sequence[Page] = ()
    removed: Collection[Key] = ()
    sync: bool = False

    def unwritten_pages(self) -> list[Page]:
        """Return the pages of the batch that are not on disk yet, each once."""
        pages = chain(self.pages, *(write.session.all_pages() for write in self.sessions))
        return [page for page in dict.fromkeys(pages) if page.page_id is None]


class DiskWriter:
    """Writer of the disk store.

    Args:
        disk: store to write to.
        pool: pool that owns the pages.
    """

    def __init__(self, disk: DiskStore, pool: BufferPool) -> None:
        self._disk = disk
        self._pool = pool
        # Ids of pages that may no longer be needed.
        self._garbage_candidates: set[int] = set()

    def write(self, batch: WriteBatch) -> list[Manifest]:
        """Write a batch in one transaction. Return the manifests of its sessions.

        Raises:
            DiskUnavailable: the disk cannot be written. Nothing was written.
            SessionCorrupt, StorageUnavailable: the parent page of a slice cannot be read. Nothing was written.
        """
        page_ids: dict[Page, int] = {}
        manifests: list[Manifest] = []
        dropped: list[int] = []
        with self._disk.transaction(sync=batch.sync) as transaction:
            for page, content in self._pool.read_contents(batch.unwritten_pages()):
                page_ids[page] = transaction.add_page(content)
            for write in batch.sessions:
                manifests.append(manifest_from_session(write.session, write.created, write.last_used, page_ids))
                dropped += transaction.put(write.key, manifests[-1], write.old_manifest)
            for key in batch.removed:
                dropped += transaction.remove(key)
        for page, page_id in page_ids.items():
            self._pool.add_on_disk(page, page_id)
        self._garbage_candidates.update(dropped)
        return manifests

    def delete(self, key: Key, *, sync: bool) -> None:
        """Delete the manifest of a session. Its pages become garbage.

        Raises:
            DiskUnavailable: the disk cannot be written. The session is still there.
        """
        self.write(WriteBatch(removed=[key], sync=sync))

    def update_last_used(self, sessions: Sequence[tuple[Key, Manifest]]) -> None:
        """Write the time of last use of sessions, which their manifests have.

        Raises:
            DiskUnavailable: the disk cannot be written.
        """
        with self._disk.transaction() as transaction:
            for key, manifest in sessions:
                transaction.touch(key, manifest.last_used, manifest.expires)

    def mark_garbage(self, pages: Iterable[Page]) -> None:
        """Have pages deleted from disk once nothing references them."""
        self._garbage_candidates.update(page.page_id for page in pages if page.page_id is not None)

    def garbage_in_use(self) -> set[Page]:
        """Return pages that no session references but an operation in progress still does. They stay on disk."""
        pages = (self._pool.page_by_id(page_id) for page_id in self._garbage_candidates)
        return {page for page in pages if page is not None and not page.ref_count}

    def collect_garbage(self, *, everything: bool = True) -> None:
        """Delete pages from disk that neither a manifest nor anything in memory references.

        Args:
            everything: whether to delete all of them, or at most one batch.

        Raises:
            DiskUnavailable: the disk cannot be written. The remaining pages are still there.
        """
        alive = {
            page_id: page
            for page_id in self._garbage_candidates
            if (page := self._pool.page_by_id(page_id)) is not None
        }
        # When the last session releases such a page, it becomes a candidate again.
        self._garbage_candidates -= {page_id for page_id, page in alive.items() if page.ref_count}
        # An operation in progress may hold an old value of a session, and with it pages that no session references.
        unreferenced = [page_id for page_id in self._garbage_candidates if page_id not in alive]
        for start in range(0, len(unreferenced), GARBAGE_BATCH):
            page_ids = unreferenced[start : start + GARBAGE_BATCH]
            with self._disk.transaction() as transaction:
                transaction.remove_pages(page_ids)
            self._garbage_candidates.difference_update(page_ids)
            if not everything:
                return

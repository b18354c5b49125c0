"""Makes room: sessions leave memory for the tier, and end where there is none."""

import logging
import time
from collections.abc import Collection, Generator, Hashable, Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import cast

from hadakv_service.errors import InsufficientStorage, StorageUnavailable
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import BufferPool, SessionWrite
from hadakv_service.storage.disk.interface import DiskStoreError, DiskUnavailable, Key, Manifest
from hadakv_service.storage.memory_budget import MemoryBudget, evicted_nbytes
from hadakv_service.storage.session_table import SessionRecord, SessionTable
from hadakv_service.tenants.quotas import TenantUsage

log = logging.getLogger(__name__)

# When pages have to leave memory, so much of them goes at once: one transaction is worth it, and holds nobody up.
SPILL_NBYTES = 8 << 20
# How often at most the log says that the disk is full.
TELL_SECONDS = 60.0
# Sessions that are looked at for room before a page is read past memory instead.
_SOME = 64


class Evictor:
    """Ends sessions, and moves them below memory.

    Args:
        ledger: counts memory.
        entries: the sessions in memory.
        residence: moves their pages.
        owners: whom what is ended belonged to.

    Attributes:
        evictions: sessions that were ended to make room.
        under_way: pages that work under way still has to read, by the session it is for.
    """

    def __init__(self, ledger: MemoryBudget, entries: SessionTable, residence: BufferPool, owners: TenantUsage) -> None:
        self.evictions = 0
        self.under_way: dict[Key, Collection[Page]] = {}
        self._ledger = ledger
        self._entries = entries
        self._residence = residence
        self._owners = owners
        self._tier = residence.tier
        # When it may be told again that the file system is full.
        self._tell_again = 0.0
        residence.make_room = self.try_free

    def can_spill(self, session: Session) -> bool:
        """Whether a session's pages may go to the tier."""
        return self._tier.budget > 0 and session.durability != "memory"

    def shortfall(self, nbytes: int, keep: Collection[Hashable]) -> int:
        """How many bytes would not fit into memory beside these sessions, whatever happens to others."""
        if nbytes <= self._ledger.available:
            return 0
        kept = [entry for key in keep if (entry := self._entries.get(key))]
        more = nbytes + self._ledger.reserved - self._ledger.limit
        as_they_are = more + sum(entry.cost for entry in kept)
        if as_they_are <= 0 or not self._tier.budget or not self._fits_on_disk(as_they_are, keep):
            return as_they_are
        return more + sum(
            evicted_nbytes(entry.session) if self.can_spill(entry.session) else entry.cost for entry in kept
        )

    def _fits_on_disk(self, nbytes: int, keep: Collection[Hashable]) -> bool:
        tier = self._tier
        try:
            return nbytes <= tier.available or tier.retained_nbytes(_keys(keep)) + nbytes <= tier.used + tier.available
        except DiskStoreError:
            return False

    def delete(self, key: Key, *, sync: bool = True) -> None:
        """Forget a session wherever it is; nothing happens if there is none.

        Args:
            key: whose.
            sync: whether it must not come back after a loss of power, which others of its name would be taken for.

        Raises:
            TierUnavailable: the tier keeps it; nothing happened.
        """
        entry = self._entries.get(key)
        nbytes = entry.session.nbytes if entry else None
        try:
            if entry is None and self._tier.sessions > self._entries.saved:
                nbytes = self._tier.nbytes(key)
            if nbytes is None:
                return
            if entry is None or entry.manifest:
                self._residence.write([], removed=[key], sync=sync)
        except DiskStoreError as error:
            raise StorageUnavailable(f"The session cannot be removed from disk: {error}.") from error
        if entry:
            self._drop_from_memory(key, entry)
        self._owners.add(key[0], -nbytes, -1)

    def _drop_from_memory(self, key: Key, entry: SessionRecord) -> None:
        self._entries.remove(key)
        self._residence.let_go(entry.session.all_pages())

    def _evict(self, key: Key, *, sync: bool = True) -> None:
        self.delete(key, sync=sync)
        self.evictions += 1

    def ensure(self, nbytes: int, keep: Collection[Hashable]) -> Generator[None, None, None]:
        """Let so many bytes fit beside what is stored, as far as that is possible; others may go on at each pause.

        Args:
            nbytes: what is to be stored.
            keep: sessions that may not be ended for it; if nothing else helps their pages leave memory.

        Raises:
            InsufficientStorage: what would have to leave memory finds no room in the tier. Nothing was lost.
        """
        while (excess := self._ledger.stored + nbytes - self._ledger.limit) > 0:
            if not (self._evict_lru_session(excess, keep) or self._spill_pinned_sessions(excess, keep)):
                return
            yield

    def try_free(self, nbytes: int) -> None:
        """Make so many bytes free, as far as some who were not used lately can, without ending anybody.

        What ties pages together is not written, as it may be under way.
        """
        with suppress(DiskStoreError, InsufficientStorage):
            for key, entry in self._entries.lru_items(_SOME):
                while (excess := nbytes - self._ledger.available) > 0:
                    pages = self._pages_to_spill(entry, excess) if self.can_spill(entry.session) else []
                    if not pages or self._unwritten_nbytes(pages) > self._tier.available:
                        break
                    self._spill_pages(pages, [])
                if excess <= 0:
                    return
                if entry.is_clean and not any(page.is_resident for page in entry.session.all_pages()):
                    self._residence.update_last_used([(key, entry)])
                    self._drop_from_memory(key, entry)

    def _evict_lru_session(self, excess: int, keep: Collection[Hashable]) -> bool:
        """Free some memory of who was used least recently."""
        key = self._entries.lru_key(keep)
        if key is None:
            return False
        entry = self._entries.get(key)
        assert entry is not None
        if not self.can_spill(entry.session):
            self._evict(key)
            return True
        pages = self._pages_to_spill(entry, excess)
        whole = len(pages) == sum(page.is_resident for page in entry.session.all_pages())
        savings = [SessionWrite(key, entry.session, entry.created, entry.last_used, entry.manifest)] if whole else []
        try:
            self.ensure_disk(self._unwritten_nbytes(entry.session.all_pages() if whole else pages), {key, *keep})
        except DiskBudgetExceeded:
            if _is_permanent(entry):
                raise
            if entry.manifest:
                # What it was may take the room that what it is needs. If it ends after all, it must not come back.
                try:
                    self._residence.write([], removed=[key], sync=True)
                    self._entries.set_manifest(entry, None, clean=False)
                    self._residence.collect_garbage()
                except DiskUnavailable as error:
                    raise InsufficientStorage(f"The disk cannot be written: {error}.") from error
                return True
            # There is no room for it anywhere, and nobody colder who could give it up.
            self._evict(key)
            return True
        for manifest in self._spill_pages(pages, savings):
            self._entries.set_manifest(entry, manifest, clean=True)
            self._drop_from_memory(key, entry)
        return True

    def _spill_pinned_sessions(self, excess: int, keep: Collection[Hashable]) -> bool:
        """Free some memory of those who may not be ended; what ties their pages together is not written yet."""
        for _, entry in self._entries.lru_order(keep):
            pages = self._pages_to_spill(entry, excess) if self.can_spill(entry.session) else []
            if pages:
                self.ensure_disk(self._unwritten_nbytes(pages), keep)
                self._spill_pages(pages, [])
                return True
        return False

    def _pages_to_spill(self, entry: SessionRecord, excess: int) -> list[Page]:
        """Pages of a session that are in memory, as many as are worth writing at a time."""
        pages: list[Page] = []
        wanted = min(max(excess, SPILL_NBYTES // 2), SPILL_NBYTES)
        for page in entry.session.all_pages():
            if wanted <= 0:
                break
            if page.is_resident:
                pages.append(page)
                wanted -= page.nbytes
        return pages

    def _unwritten_nbytes(self, pages: Iterable[Page]) -> int:
        return sum(self._tier.page_nbytes(page.nbytes) for page in pages if page.page_id is None)

    def _spill_pages(self, pages: Sequence[Page], savings: Sequence[SessionWrite]) -> list[Manifest]:
        """Write pages that are not in the tier yet, and sessions, and let the pages leave memory.

        Raises:
            InsufficientStorage: the disk takes nothing. Nothing happened.
        """
        try:
            manifests = self._residence.write(savings, pages)
        except DiskUnavailable as error:
            raise InsufficientStorage(
                f"Memory is full, and so is the disk, or it cannot be written: {error}."
            ) from error
        self._residence.spills += len(pages)
        for page in pages:
            self._ledger.leave(page)
        return manifests

    def ensure_disk(self, nbytes: int, keep: Collection[Hashable], before: float = inf) -> None:
        """Let so many bytes more fit into the tier, ending who was used least recently and may be ended.

        Args:
            nbytes: what is to be written.
            keep: sessions that may not be ended for it.
            before: nor may those that were used at this moment or later.

        Raises:
            NoRoomBelow: they do not fit even then. Nobody was ended.
        """
        tier = self._tier
        if not nbytes:
            return
        try:
            if nbytes <= tier.available:
                return
            self._residence.collect_garbage()
            kept, limit = _keys(keep), tier.used + tier.available
            short = self._warn_if_disk_full()
            if tier.retained_nbytes(kept, before) + self._unreferenced_nbytes(keep) + nbytes > limit:
                why = "as its file system has no more" if short else "which is its budget"
                raise DiskBudgetExceeded(f"On disk there is room for {limit} bytes, {why}, not for {nbytes} more.")
            if nbytes > tier.available:
                while nbytes > tier.available:
                    self._evict(self._lru_session_on_disk(kept, before), sync=False)
                    self._residence.collect_garbage()
                tier.sync()
        except DiskStoreError as error:
            raise InsufficientStorage(f"The disk cannot be used: {error}.") from error

    def _warn_if_disk_full(self) -> bool:
        """Whether it is the file system that is full, which somebody has to do something about."""
        short = self._tier.is_short_of_disk
        if short and time.monotonic() >= self._tell_again:
            self._tell_again = time.monotonic() + TELL_SECONDS
            log.warning(
                "the file system of the data directory has too little room, less than the disk budget: sessions are "
                "refused, or end for others; make room there"
            )
        return short

    def _unreferenced_nbytes(self, keep: Collection[Hashable]) -> int:
        """Bytes counted for pages in the tier that have to stay there, and are in no manifest that is sure to stay."""
        entries = [entry for key in keep if (entry := self._entries.get(key))]
        entries += [entry for key in self.under_way if (entry := self._entries.get(key)) and _is_permanent(entry)]
        pages = {page for entry in entries for page in entry.session.all_pages()} | self._residence.garbage_in_use()
        pages.update(*self.under_way.values())
        bound = {row for entry in entries if entry.manifest for run in entry.manifest.runs for row in run.pages}
        return sum(
            self._tier.page_nbytes(page.nbytes)
            for page in pages
            if page.page_id is not None and page.page_id not in bound
        )

    def _lru_session_on_disk(self, keep: Collection[Key], before: float) -> Key:
        """Who has something in the tier, may be ended, and was used least recently, before a moment.

        Raises:
            NoRoomBelow: there is nobody.
        """
        while (key := self._tier.lru_session(keep, before)) is not None:
            entry = self._entries.get(key)
            if entry is None or entry.manifest is None or entry.manifest.last_used == entry.last_used:
                return key
            # It was used since; the tier is told, and asked again.
            self._residence.update_last_used([(key, entry)])
        for key, entry in self._entries.items():
            spared = key in keep or entry.session.durability == "ack" or entry.last_used >= before
            if not spared and any(page.page_id is not None for page in entry.session.all_pages()):
                return key
        raise DiskBudgetExceeded("The disk budget is taken by sessions that may not be ended.")


def _is_permanent(entry: SessionRecord) -> bool:
    return entry.session.durability == "ack"


def _keys(keep: Collection[Hashable]) -> list[Key]:
    return [cast(Key, key) for key in keep]


class DiskBudgetExceeded(InsufficientStorage):
    """The tier's budget does not allow it."""

"""Makes room: sessions leave memory for the tier, and end where there is none."""

import logging
import time
from collections.abc import Collection, Generator, Hashable, Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import cast

from hadakv_service.errors import InsufficientStorage, TierUnavailable
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import Residence, Saving
from hadakv_service.storage.disk.interface import Key, Manifest, TierError, TierFailed
from hadakv_service.storage.memory_budget import Ledger, least_cost
from hadakv_service.storage.session_table import Entries, Entry
from hadakv_service.tenants.quotas import Owners

log = logging.getLogger(__name__)

# When pages have to leave memory, so much of them goes at once: one transaction is worth it, and holds nobody up.
SPILL_NBYTES = 8 << 20
# How often at most the log says that the disk is full.
TELL_SECONDS = 60.0
# Sessions that are looked at for room before a page is read past memory instead.
_SOME = 64


class Room:
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

    def __init__(self, ledger: Ledger, entries: Entries, residence: Residence, owners: Owners) -> None:
        self.evictions = 0
        self.under_way: dict[Key, Collection[Page]] = {}
        self._ledger = ledger
        self._entries = entries
        self._residence = residence
        self._owners = owners
        self._tier = residence.tier
        # When it may be told again that the file system is full.
        self._tell_again = 0.0
        residence.make_room = self.spill_for

    def can_leave(self, session: Session) -> bool:
        """Whether a session's pages may go to the tier."""
        return self._tier.budget > 0 and session.durability != "memory"

    def missing(self, nbytes: int, keep: Collection[Hashable]) -> int:
        """How many bytes would not fit into memory beside these sessions, whatever happens to others."""
        if nbytes <= self._ledger.free:
            return 0
        kept = [entry for key in keep if (entry := self._entries.get(key))]
        more = nbytes + self._ledger.reserved - self._ledger.budget
        as_they_are = more + sum(entry.cost for entry in kept)
        if as_they_are <= 0 or not self._tier.budget or not self._fits_below(as_they_are, keep):
            return as_they_are
        return more + sum(least_cost(entry.session) if self.can_leave(entry.session) else entry.cost for entry in kept)

    def _fits_below(self, nbytes: int, keep: Collection[Hashable]) -> bool:
        tier = self._tier
        try:
            return nbytes <= tier.room or tier.kept_nbytes(_keys(keep)) + nbytes <= tier.used + tier.room
        except TierError:
            return False

    def end(self, key: Key, *, sync: bool = True) -> None:
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
            if entry is None or entry.saved:
                self._residence.write([], removed=[key], sync=sync)
        except TierError as error:
            raise TierUnavailable(f"The session cannot be removed from disk: {error}.") from error
        if entry:
            self._leave(key, entry)
        self._owners.add(key[0], -nbytes, -1)

    def _leave(self, key: Key, entry: Entry) -> None:
        self._entries.forget(key)
        self._residence.let_go(entry.session.all_pages())

    def _evict(self, key: Key, *, sync: bool = True) -> None:
        self.end(key, sync=sync)
        self.evictions += 1

    def in_steps(self, nbytes: int, keep: Collection[Hashable]) -> Generator[None, None, None]:
        """Let so many bytes fit beside what is stored, as far as that is possible; others may go on at each pause.

        Args:
            nbytes: what is to be stored.
            keep: sessions that may not be ended for it; if nothing else helps their pages leave memory.

        Raises:
            InsufficientStorage: what would have to leave memory finds no room in the tier. Nothing was lost.
        """
        while (excess := self._ledger.stored + nbytes - self._ledger.budget) > 0:
            if not (self._free_others(excess, keep) or self._free_these(excess, keep)):
                return
            yield

    def spill_for(self, nbytes: int) -> None:
        """Make so many bytes free, as far as some who were not used lately can, without ending anybody.

        What ties pages together is not written, as it may be under way.
        """
        with suppress(TierError, InsufficientStorage):
            for key, entry in self._entries.oldest(_SOME):
                while (excess := nbytes - self._ledger.free) > 0:
                    pages = self._to_leave(entry, excess) if self.can_leave(entry.session) else []
                    if not pages or self._new_nbytes(pages) > self._tier.room:
                        break
                    self._spill(pages, [])
                if excess <= 0:
                    return
                if entry.clean and not any(page.is_here for page in entry.session.all_pages()):
                    self._residence.note_uses([(key, entry)])
                    self._leave(key, entry)

    def _free_others(self, excess: int, keep: Collection[Hashable]) -> bool:
        """Free some memory of who was used least recently."""
        key = self._entries.first(keep)
        if key is None:
            return False
        entry = self._entries.get(key)
        assert entry is not None
        if not self.can_leave(entry.session):
            self._evict(key)
            return True
        pages = self._to_leave(entry, excess)
        whole = len(pages) == sum(page.is_here for page in entry.session.all_pages())
        savings = [Saving(key, entry.session, entry.created, entry.last_used, entry.saved)] if whole else []
        try:
            self.below(self._new_nbytes(entry.session.all_pages() if whole else pages), {key, *keep})
        except NoRoomBelow:
            if _is_permanent(entry):
                raise
            if entry.saved:
                # What it was may take the room that what it is needs. If it ends after all, it must not come back.
                try:
                    self._residence.write([], removed=[key], sync=True)
                    self._entries.note_saved(entry, None, clean=False)
                    self._residence.drop_loose()
                except TierFailed as error:
                    raise InsufficientStorage(f"The disk cannot be written: {error}.") from error
                return True
            # There is no room for it anywhere, and nobody colder who could give it up.
            self._evict(key)
            return True
        for manifest in self._spill(pages, savings):
            self._entries.note_saved(entry, manifest, clean=True)
            self._leave(key, entry)
        return True

    def _free_these(self, excess: int, keep: Collection[Hashable]) -> bool:
        """Free some memory of those who may not be ended; what ties their pages together is not written yet."""
        for _, entry in self._entries.ordered(keep):
            pages = self._to_leave(entry, excess) if self.can_leave(entry.session) else []
            if pages:
                self.below(self._new_nbytes(pages), keep)
                self._spill(pages, [])
                return True
        return False

    def _to_leave(self, entry: Entry, excess: int) -> list[Page]:
        """Pages of a session that are in memory, as many as are worth writing at a time."""
        pages: list[Page] = []
        wanted = min(max(excess, SPILL_NBYTES // 2), SPILL_NBYTES)
        for page in entry.session.all_pages():
            if wanted <= 0:
                break
            if page.is_here:
                pages.append(page)
                wanted -= page.nbytes
        return pages

    def _new_nbytes(self, pages: Iterable[Page]) -> int:
        return sum(self._tier.cost(page.nbytes) for page in pages if page.row is None)

    def _spill(self, pages: Sequence[Page], savings: Sequence[Saving]) -> list[Manifest]:
        """Write pages that are not in the tier yet, and sessions, and let the pages leave memory.

        Raises:
            InsufficientStorage: the disk takes nothing. Nothing happened.
        """
        try:
            manifests = self._residence.write(savings, pages)
        except TierFailed as error:
            raise InsufficientStorage(
                f"Memory is full, and so is the disk, or it cannot be written: {error}."
            ) from error
        self._residence.spills += len(pages)
        for page in pages:
            self._ledger.leave(page)
        return manifests

    def below(self, nbytes: int, keep: Collection[Hashable], before: float = inf) -> None:
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
            if nbytes <= tier.room:
                return
            self._residence.drop_loose()
            kept, limit = _keys(keep), tier.used + tier.room
            short = self._tell_if_short()
            if tier.kept_nbytes(kept, before) + self._unbound_nbytes(keep) + nbytes > limit:
                why = "as its file system has no more" if short else "which is its budget"
                raise NoRoomBelow(f"On disk there is room for {limit} bytes, {why}, not for {nbytes} more.")
            if nbytes > tier.room:
                while nbytes > tier.room:
                    self._evict(self._coldest(kept, before), sync=False)
                    self._residence.drop_loose()
                tier.sync()
        except TierError as error:
            raise InsufficientStorage(f"The disk cannot be used: {error}.") from error

    def _tell_if_short(self) -> bool:
        """Whether it is the file system that is full, which somebody has to do something about."""
        short = self._tier.is_short_of_disk
        if short and time.monotonic() >= self._tell_again:
            self._tell_again = time.monotonic() + TELL_SECONDS
            log.warning(
                "the file system of the data directory has too little room, less than the disk budget: sessions are "
                "refused, or end for others; make room there"
            )
        return short

    def _unbound_nbytes(self, keep: Collection[Hashable]) -> int:
        """Bytes counted for pages in the tier that have to stay there, and are in no manifest that is sure to stay."""
        entries = [entry for key in keep if (entry := self._entries.get(key))]
        entries += [entry for key in self.under_way if (entry := self._entries.get(key)) and _is_permanent(entry)]
        pages = {page for entry in entries for page in entry.session.all_pages()} | self._residence.pinned()
        pages.update(*self.under_way.values())
        bound = {row for entry in entries if entry.saved for run in entry.saved.runs for row in run.pages}
        return sum(self._tier.cost(page.nbytes) for page in pages if page.row is not None and page.row not in bound)

    def _coldest(self, keep: Collection[Key], before: float) -> Key:
        """Who has something in the tier, may be ended, and was used least recently, before a moment.

        Raises:
            NoRoomBelow: there is nobody.
        """
        while (key := self._tier.coldest(keep, before)) is not None:
            entry = self._entries.get(key)
            if entry is None or entry.saved is None or entry.saved.last_used == entry.last_used:
                return key
            # It was used since; the tier is told, and asked again.
            self._residence.note_uses([(key, entry)])
        for key, entry in self._entries.items():
            spared = key in keep or entry.session.durability == "ack" or entry.last_used >= before
            if not spared and any(page.row is not None for page in entry.session.all_pages()):
                return key
        raise NoRoomBelow("The disk budget is taken by sessions that may not be ended.")


def _is_permanent(entry: Entry) -> bool:
    return entry.session.durability == "ack"


def _keys(keep: Collection[Hashable]) -> list[Key]:
    return [cast(Key, key) for key in keep]


class NoRoomBelow(InsufficientStorage):
    """The tier's budget does not allow it."""

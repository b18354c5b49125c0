"""Makes room: sessions leave memory for the tier, and end where there is none."""

from collections.abc import Collection, Generator, Hashable
from typing import cast

from hadakv_service.entries import Entries, Entry
from hadakv_service.errors import InsufficientStorage, TierUnavailable
from hadakv_service.ledger import Ledger, least_cost
from hadakv_service.page import Page
from hadakv_service.residence import Residence, Saving
from hadakv_service.tiers import Key, TierFailed

# When pages have to leave memory, so much of them goes at once: one transaction is worth it, and holds nobody up.
SPILL_NBYTES = 8 << 20


class Room:
    """Ends sessions, and moves them below memory.

    Args:
        ledger: counts memory.
        entries: the sessions in memory.
        residence: moves their pages.

    Attributes:
        evictions: sessions that were ended to make room.
    """

    def __init__(self, ledger: Ledger, entries: Entries, residence: Residence) -> None:
        self.evictions = 0
        self._ledger = ledger
        self._entries = entries
        self._residence = residence
        self._tier = residence.tier
        residence.make_room = self.spill_for

    def can_leave(self, entry: Entry) -> bool:
        """Whether a session's pages may go to the tier."""
        return self._tier.budget > 0 and entry.session.durability != "memory"

    def least_cost(self, entry: Entry) -> int:
        """Bytes of memory that a session needs whatever happens to others."""
        return least_cost(entry.session) if self.can_leave(entry) else entry.cost

    def end(self, key: Key) -> None:
        """Forget a session wherever it is; nothing happens if there is none.

        Raises:
            TierUnavailable: the tier keeps it; nothing happened.
        """
        entry = self._entries.get(key)
        if entry.saved if entry else self._tier.sessions > self._entries.saved:
            try:
                self._residence.write([], removed=[key], sync=entry is not None and entry.session.durability == "ack")
            except TierFailed as error:
                raise TierUnavailable(f"The session cannot be removed from disk: {error}.") from error
        if entry:
            self._leave(key, entry)

    def _leave(self, key: Key, entry: Entry) -> None:
        self._entries.forget(key)
        self._residence.let_go(entry.session.all_pages())

    def _evict(self, key: Key) -> None:
        self.end(key)
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
        """Make so many bytes free, as far as that is possible without ending anybody."""
        try:
            for key, entry in list(self._entries.items()):
                while (excess := nbytes - self._ledger.free) > 0:
                    if not (self.can_leave(entry) and self._spill(key, entry, excess, ())):
                        break
                if excess <= 0:
                    return
        except InsufficientStorage:
            return

    def _free_others(self, excess: int, keep: Collection[Hashable]) -> bool:
        """Free some memory of who was used least recently."""
        key = self._entries.first(keep)
        if key is None:
            return False
        entry = self._entries.get(key)
        assert entry is not None
        if self.can_leave(entry):
            try:
                self._spill(key, entry, excess, keep)
            except NoRoomBelow:
                # There is no room for it anywhere, and nobody colder who could give it up.
                self._evict(key)
            else:
                if not any(page.is_here for page in entry.session.all_pages()):
                    self._leave(key, entry)
        else:
            self._evict(key)
        return True

    def _free_these(self, excess: int, keep: Collection[Hashable]) -> bool:
        """Free some memory of those who may not be ended."""
        return any(
            self.can_leave(entry) and self._spill(key, entry, excess, keep)
            for key, entry in self._entries.ordered(keep)
        )

    def _spill(self, key: Key, entry: Entry, excess: int, keep: Collection[Hashable]) -> bool:
        """Let some of a session's pages leave memory, or all if it has not more; whether there was anything to do."""
        pages: list[Page] = []
        wanted, whole = min(max(excess, SPILL_NBYTES // 2), SPILL_NBYTES), True
        for page in entry.session.all_pages():
            if page.is_here:
                if wanted <= 0:
                    whole = False
                    break
                pages.append(page)
                wanted -= page.nbytes
        new = [page for page in pages if page.row is None]
        self.below(sum(self._tier.cost(page.nbytes) for page in new), {key, *keep})
        savings = [Saving(key, entry.session, entry.created, entry.last_used, entry.saved)] if whole else []
        try:
            manifests = self._residence.write(savings, new)
        except TierFailed as error:
            raise InsufficientStorage(
                f"Memory is full, and so is the disk, or it cannot be written: {error}."
            ) from error
        for manifest in manifests:
            self._entries.note_saved(entry, manifest, clean=True)
        self._residence.spills += len(pages)
        for page in pages:
            self._ledger.leave(page)
        return bool(pages)

    def below(self, nbytes: int, keep: Collection[Hashable]) -> None:
        """Let so many bytes more fit into the tier, ending who was used least recently and may be ended.

        Raises:
            NoRoomBelow: they do not fit even then. Nobody was ended.
        """
        tier = self._tier
        if tier.used + nbytes <= tier.budget:
            return
        try:
            self._residence.drop_loose()
            kept = [cast(Key, key) for key in keep]
            if tier.kept_nbytes(kept) + nbytes > tier.budget:
                raise NoRoomBelow(f"The disk budget of {tier.budget} bytes has no room for {nbytes} more.")
            while tier.used + nbytes > tier.budget:
                self._evict(self._coldest(kept))
                self._residence.drop_loose()
        except TierFailed as error:
            raise InsufficientStorage(f"The disk cannot be written: {error}.") from error

    def _coldest(self, keep: Collection[Key]) -> Key:
        """Who has something in the tier, may be ended, and was used least recently.

        Raises:
            NoRoomBelow: there is nobody.
        """
        while (key := self._tier.coldest(keep)) is not None:
            entry = self._entries.get(key)
            if entry is None or entry.saved is None or entry.saved.last_used == entry.last_used:
                return key
            # It was used since; the tier is told, and asked again.
            self._residence.touch([(key, self._entries.note_used(entry))])
        for key, entry in self._entries.items():
            permanent = entry.session.durability == "ack"
            if key not in keep and not permanent and any(page.row is not None for page in entry.session.all_pages()):
                return key
        raise NoRoomBelow("The disk budget is taken by sessions that may not be ended.")


class NoRoomBelow(InsufficientStorage):
    """The tier's budget does not allow it."""

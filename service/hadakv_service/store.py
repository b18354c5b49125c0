"""Sessions by owner and id: the byte ledger, the budget, eviction and expiry. No HTTP, and one writer: the device."""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import cast

from hadakv_service.errors import InsufficientStorage, SessionExists, SessionNotFound
from hadakv_service.pages import Page
from hadakv_service.session import Session

Key = tuple[str, str]
Clock = Callable[[], float]


# What Python keeps beside packed bytes. Measured with tracemalloc on CPython 3.11, and rounded up: 1022 bytes for a
# session with its entry, a long id and codecs of its own, 94 for a run of layers, 1290 for a page with its four arrays.
SESSION_NBYTES = 1024
RUN_NBYTES = 128
PAGE_NBYTES = 1536


class Ledger:
    """The only place that counts bytes.

    Attributes:
        budget: what may be stored.
        stored: what sessions hold.
        reserved: what work under way will store. Room for it is known to be there, but nobody is evicted before it is
            stored: until then both together may be more than the budget.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.stored = 0
        self.reserved = 0
        # Pages that several sessions hold: by identity, the page, which keeps its identity taken, and how many.
        self._shared: dict[int, tuple[Page, int]] = {}

    @property
    def used(self) -> int:
        """Bytes stored and reserved."""
        return self.stored + self.reserved

    @property
    def free(self) -> int:
        """Bytes that can be reserved with nobody evicted."""
        return self.budget - self.used

    def remove(self, entry: "Entry") -> None:
        """Count a session out, but for the pages that others hold too."""
        self.stored -= entry.cost
        if self._shared:
            for page in entry.session.all_pages():
                self._let_go(page)

    def share(self, session: Session, shared: Collection[int]) -> None:
        """Note that one more session holds those of its pages that have one of these identities; count them once."""
        for page in session.all_pages():
            if id(page) in shared:
                _, holders = self._shared.get(id(page), (page, 1))
                self._shared[id(page)] = page, holders + 1
                self.stored -= page.nbytes + PAGE_NBYTES

    def replaced(self, old: Session, new: Session) -> None:
        """Note which shared pages a session no longer holds."""
        if self._shared:
            kept = {id(page) for page in new.all_pages()}
            for page in old.all_pages():
                if id(page) not in kept:
                    self._let_go(page)

    def _let_go(self, page: Page) -> None:
        _, holders = self._shared.get(id(page), (page, 1))
        if holders == 1:
            return
        # Until now it was counted once for all of them; the cost of whoever lets go had it as well.
        self.stored += page.nbytes + PAGE_NBYTES
        if holders == 2:
            del self._shared[id(page)]
        else:
            self._shared[id(page)] = page, holders - 1

    @staticmethod
    def cost(session: Session) -> int:
        """Bytes a session is counted as: the packed ones, and what is kept beside them."""
        return session.nbytes + SESSION_NBYTES + len(session.runs) * RUN_NBYTES + session.pages * PAGE_NBYTES


@dataclass(slots=True)
class Entry:
    """A session in the store.

    Attributes:
        session: a value that an append replaces.
        created: in unix seconds.
        last_used: likewise.
        cost: bytes it is counted as.
    """

    session: Session
    created: float
    last_used: float
    cost: int

    @property
    def expires(self) -> float | None:
        """When it is forgotten unless used, in unix seconds."""
        ttl = self.session.ttl_seconds
        return None if ttl is None else self.last_used + ttl


class Store:
    """Sessions within a budget.

    Only the device's thread touches it, so that nothing here needs a lock.

    Args:
        budget: bytes that sessions may take, stored or reserved.
        clock: gives unix seconds.
    """

    def __init__(self, budget: int, clock: Clock = time.time) -> None:
        self.ledger = Ledger(budget)
        self.evictions = 0
        self._clock = clock
        # Least recently used first.
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        # The same order for each time to live: who expires first is first.
        self._mortal: dict[float, OrderedDict[Key, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key) -> Entry | None:
        """The entry, unless absent or expired."""
        entry = self._entries.get(key)
        return None if entry is None or self._expired(entry) else entry

    def get(self, key: Key) -> Entry:
        """The entry.

        Raises:
            SessionNotFound: absent or expired.
        """
        entry = self.find(key)
        if entry is None:
            raise SessionNotFound(key[1])
        return entry

    def page(self, owner: str, prefix: str, after: str, limit: int) -> tuple[list[tuple[str, Entry]], str | None]:
        """Up to `limit` sessions of an owner in order of id, and the id to go on after, if there are more."""
        mine = [
            (id_, entry)
            for (tenant, id_), entry in self._entries.items()
            if tenant == owner and id_.startswith(prefix) and id_ > after and not self._expired(entry)
        ]
        found = sorted(mine, key=lambda item: item[0])
        return found[:limit], found[limit - 1][0] if len(found) > limit else None

    def touch(self, key: Key) -> None:
        """Note that a session was used."""
        entry = self._entries[key]
        entry.last_used = self._clock()
        self._entries.move_to_end(key)
        if entry.session.ttl_seconds is not None:
            self._mortal[entry.session.ttl_seconds].move_to_end(key)

    def reserve_growth(
        self, key: Key, session: Session, keep: Collection[Hashable], *, nbytes: int = 0, pages: int = 0
    ) -> int:
        """Count in what a session will take more than it does now, and say how much that is.

        Args:
            key: whose.
            session: its next value, but for what is still to be encoded.
            keep: as for `reserve`.
            nbytes: packed bytes still to come.
            pages: pages still to come.

        Raises:
            InsufficientStorage: it would not fit.
        """
        entry = self.find(key)
        growth = self.ledger.cost(session) + nbytes + pages * PAGE_NBYTES - (entry.cost if entry else 0)
        # Small pages that become one free some bytes, but only once they have.
        growth = max(growth, 0)
        self.reserve(growth, keep)
        return growth

    def reserve(self, nbytes: int, keep: Collection[Hashable]) -> None:
        """Count bytes in before they are allocated, if evicting the least recently used sessions would make room.

        Args:
            nbytes: what the work under way will store.
            keep: sessions that may not be evicted for it.

        Raises:
            InsufficientStorage: they would not fit even then.
        """
        # Before anybody is evicted the expired go.
        self.sweep()
        kept = sum(entry.cost for key in keep if (entry := self._entries.get(cast(Key, key))))
        missing = nbytes + self.ledger.reserved + kept - self.ledger.budget
        if missing > 0:
            raise InsufficientStorage(
                f"The session needs {nbytes} bytes more; {missing} of them do not fit the memory budget of "
                f"{self.ledger.budget} bytes even with every other session evicted.",
                needed=nbytes,
                budget=self.ledger.budget,
            )
        self.ledger.reserved += nbytes

    def release(self, nbytes: int) -> None:
        """Give back what was reserved: the work under way stores nothing."""
        self.ledger.reserved -= nbytes

    def put(self, key: Key, session: Session, reserved: int = 0, keep: Collection[Hashable] = ()) -> Entry:
        """Store a session's new value in place of its old one and of what was reserved for it.

        Args:
            key: whose.
            session: the new value.
            reserved: what `reserve` counted in for it.
            keep: sessions that may not be evicted for it, as for `reserve`.
        """
        old = self.find(key)
        now = self._clock()
        entry = Entry(session, old.created if old else now, now, self.ledger.cost(session))
        if old:
            self.ledger.replaced(old.session, session)
            self.ledger.stored -= old.cost
            self._forget(key)
        else:
            self.remove(key)
        self._entries[key] = entry
        if session.ttl_seconds is not None:
            self._mortal.setdefault(session.ttl_seconds, OrderedDict())[key] = None
        self.ledger.stored += entry.cost
        self.ledger.reserved -= reserved
        self._evict({key, *keep})
        return entry

    def fork(self, source: Key, target: Key, session: Session, keep: Collection[Hashable] = ()) -> Entry:
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
        if self.find(target):
            raise SessionExists(f"There is a session {target[1]!r} already.", field="id")
        shared = {id(page) for page in self.get(source).session.all_pages()}
        self.touch(source)
        own = sum(page.nbytes + PAGE_NBYTES for page in session.all_pages() if id(page) not in shared)
        nbytes = SESSION_NBYTES + len(session.runs) * RUN_NBYTES + own
        self.reserve(nbytes, {source, *keep})
        self.ledger.share(session, shared)
        return self.put(target, session, nbytes, {source, *keep})

    def _evict(self, keep: Collection[Hashable]) -> None:
        """Forget the least recently used sessions until what is stored fits the budget."""
        while self.ledger.stored > self.ledger.budget:
            victim = next((key for key in self._entries if key not in keep), None)
            if victim is None:
                return
            self.remove(victim)
            self.evictions += 1

    def remove(self, key: Key) -> None:
        """Forget a session; nothing happens if there is none."""
        entry = self._entries.get(key)
        if entry is not None:
            self.ledger.remove(entry)
            self._forget(key)

    def _forget(self, key: Key) -> None:
        entry = self._entries.pop(key)
        if (ttl := entry.session.ttl_seconds) is not None:
            del self._mortal[ttl][key]
            if not self._mortal[ttl]:
                del self._mortal[ttl]

    def sweep(self) -> None:
        """Forget every expired session."""
        for keys in list(self._mortal.values()):
            while keys and self._expired(self._entries[first := next(iter(keys))]):
                self.remove(first)

    def _expired(self, entry: Entry) -> bool:
        return entry.expires is not None and entry.expires <= self._clock()

"""Sessions by owner and id: the byte ledger, the budget, eviction and expiry. No HTTP, and one writer: the device."""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass

from hadakv_service.errors import InsufficientStorage, SessionNotFound
from hadakv_service.session import Session

Key = tuple[str, str]
Clock = Callable[[], float]


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

    @property
    def used(self) -> int:
        """Bytes stored and reserved."""
        return self.stored + self.reserved

    @property
    def free(self) -> int:
        """Bytes that can be reserved with nobody evicted."""
        return self.budget - self.used


@dataclass(slots=True)
class Entry:
    """A session in the store. The session is a value that an append replaces; the rest is its age in unix seconds."""

    session: Session
    created: float
    last_used: float

    @property
    def expires(self) -> float | None:
        """When it is forgotten unless used, in unix seconds."""
        ttl = self.session.ttl_seconds
        return None if ttl is None else self.last_used + ttl


class Store:
    """Sessions within a budget.

    Only the device's thread touches it, so that nothing here needs a lock.

    Args:
        budget: bytes of packed pages that may be stored or reserved.
        clock: gives unix seconds.
    """

    def __init__(self, budget: int, clock: Clock = time.time) -> None:
        self.ledger = Ledger(budget)
        self.evictions = 0
        self._clock = clock
        # Least recently used first.
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._next_sweep = 0.0

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
        self._entries[key].last_used = self._clock()
        self._entries.move_to_end(key)

    def reserve(self, nbytes: int, keep: Collection[Hashable]) -> None:
        """Count bytes in before they are allocated, if evicting the least recently used sessions would make room.

        Args:
            nbytes: what the work under way will store.
            keep: sessions that may not be evicted for it.

        Raises:
            InsufficientStorage: they would not fit even then.
        """
        if nbytes > self.ledger.free:
            self._next_sweep = 0.0  # Before anybody is evicted the expired go, however recent the last sweep.
        self.sweep()
        missing = nbytes - self.ledger.free
        for key, entry in self._entries.items():
            if missing <= 0:
                break
            missing -= 0 if key in keep else entry.session.nbytes
        if missing > 0:
            raise InsufficientStorage(
                f"The append needs {nbytes} bytes; {missing} of them do not fit the memory budget of "
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
        entry = self.find(key)
        self.ledger.stored += session.nbytes - (entry.session.nbytes if entry else 0)
        self.ledger.reserved -= reserved
        now = self._clock()
        if entry is None:
            self.remove(key)
            entry = self._entries[key] = Entry(session, now, now)
        else:
            entry.session = session
        self.touch(key)
        self._evict({key, *keep})
        return entry

    def _evict(self, keep: Collection[Hashable]) -> None:
        """Forget the least recently used sessions until what is stored fits the budget."""
        excess = self.ledger.stored - self.ledger.budget
        victims = []
        for key, entry in self._entries.items():
            if excess <= 0:
                break
            if key not in keep and entry.session.nbytes:
                victims.append(key)
                excess -= entry.session.nbytes
        for key in victims:
            self.remove(key)
        self.evictions += len(victims)

    def remove(self, key: Key) -> None:
        """Forget a session; nothing happens if there is none."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.ledger.stored -= entry.session.nbytes

    def sweep(self) -> None:
        """Forget every expired session, at most once a second."""
        now = self._clock()
        if now < self._next_sweep:
            return
        self._next_sweep = now + 1.0
        for key in [key for key, entry in self._entries.items() if self._expired(entry)]:
            self.remove(key)

    def _expired(self, entry: Entry) -> bool:
        return entry.expires is not None and entry.expires <= self._clock()

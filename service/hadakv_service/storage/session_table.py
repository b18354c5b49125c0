"""The sessions in memory by key, least recently used first, and who of them expires when."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush, heapreplace
from itertools import islice
from math import inf

from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.interface import Key, Manifest
from hadakv_service.storage.memory_budget import MemoryBudget, metadata_nbytes, resident_nbytes

Clock = Callable[[], float]
_SPARE_LOOKS = 64


@dataclass(slots=True, eq=False)
class SessionRecord:
    """A session in memory, though its pages may be elsewhere.

    Attributes:
        session: a value that an append replaces.
        created: in unix seconds.
        last_used: likewise.
        saved: what the tier has of it, always a beginning of it; None if nothing.
        clean: whether that is all of it.
        damaged: whether stored tokens of it were found to be.
    """

    session: Session
    created: float
    last_used: float
    manifest: Manifest | None = None
    is_clean: bool = False
    is_corrupt: bool = False

    @property
    def cost(self) -> int:
        """Bytes it is counted as with all pages in memory."""
        return resident_nbytes(self.session)

    @property
    def expires(self) -> float | None:
        """When it is forgotten unless used, in unix seconds."""
        ttl = self.session.ttl_seconds
        return None if ttl is None else self.last_used + ttl


class SessionTable:
    """Sessions in memory. What they take beside their pages is counted here.

    Args:
        ledger: counts it.
        clock: gives unix seconds.

    Attributes:
        saved: how many of them the tier has a manifest of.
    """

    def __init__(self, ledger: MemoryBudget, clock: Clock) -> None:
        self.saved = 0
        self.clock = clock
        self._ledger = ledger
        # Least recently used first.
        self._entries: OrderedDict[Key, SessionRecord] = OrderedDict()
        # A heap of when to look at whom again: nobody expires before, but to be used moves that further away. And for
        # each key which of its places in the heap counts.
        self._expiry_queue: list[tuple[float, Key]] = []
        self._scheduled: dict[Key, float] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def get(self, key: Hashable) -> SessionRecord | None:
        """The entry, expired or not."""
        return self._entries.get(key)  # type: ignore[call-overload, no-any-return]  # other jobs' keys are nobody's here

    def items(self) -> Iterable[tuple[Key, SessionRecord]]:
        """All of them, least recently used first."""
        return self._entries.items()

    def mru_keys(self) -> list[Key]:
        """All keys as they are now, most recently used first."""
        return list(reversed(self._entries))

    def lru_key(self, skip: Collection[Hashable]) -> Key | None:
        """Who was used least recently."""
        return next((key for key in self._entries if key not in skip), None)

    def lru_items(self, limit: int) -> list[tuple[Key, SessionRecord]]:
        """Those who were used least recently."""
        return list(islice(self._entries.items(), limit))

    def lru_order(self, keys: Collection[Hashable]) -> Iterator[tuple[Key, SessionRecord]]:
        """Those of the keys that are here, least recently used first."""
        here = [(key, entry) for key in keys if (entry := self.get(key))]
        return iter(sorted(here, key=lambda item: item[1].last_used))  # type: ignore[arg-type]  # they are keys, being here

    def add(self, key: Key, entry: SessionRecord) -> None:
        """Add an entry, as the one used last."""
        self._entries[key] = entry
        self.saved += entry.manifest is not None
        if (expires := entry.expires) is not None and expires < self._scheduled.get(key, inf):
            self._schedule(key, expires)
        self._ledger.stored += metadata_nbytes(entry.session)

    def _schedule(self, key: Key, at: float) -> None:
        self._scheduled[key] = at
        heappush(self._expiry_queue, (at, key))
        if len(self._expiry_queue) > 2 * len(self._entries) + _SPARE_LOOKS:
            # Most are of sessions that are gone.
            self._scheduled = {key: entry.expires for key, entry in self._entries.items() if entry.expires is not None}
            self._expiry_queue = sorted((expires, key) for key, expires in self._scheduled.items())

    def remove(self, key: Key) -> SessionRecord:
        """Take an entry out."""
        entry = self._entries.pop(key)
        self.saved -= entry.manifest is not None
        self._ledger.stored -= metadata_nbytes(entry.session)
        return entry

    def touch(self, key: Key) -> None:
        """Note that a session was used."""
        entry = self._entries[key]
        entry.last_used = self.clock()
        self._entries.move_to_end(key)

    def set_manifest(self, entry: SessionRecord, manifest: Manifest | None, *, clean: bool) -> None:
        """Note what the tier has of an entry that is here."""
        self.saved += (manifest is not None) - (entry.manifest is not None)
        entry.manifest, entry.is_clean = manifest, clean

    @staticmethod
    def manifest_with_last_used(entry: SessionRecord) -> Manifest:
        """Its manifest as of its last use."""
        assert entry.manifest is not None
        return replace(entry.manifest, last_used=entry.last_used, expires=entry.expires)

    def expired(self, entry: SessionRecord) -> bool:
        """Whether it has not been used for too long."""
        return entry.expires is not None and entry.expires <= self.clock()

    def pop_expired(self) -> Iterator[Key]:
        """Everybody who has expired, one after the other; each must be taken out before the next is asked for."""
        while self._expiry_queue and self._expiry_queue[0][0] <= self.clock():
            at, key = self._expiry_queue[0]
            entry = self._entries.get(key)
            expires = entry.expires if entry and self._scheduled.get(key) == at else None
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
        """Everybody who may expire."""
        return (
            (key, entry) for key in self._scheduled if (entry := self._entries.get(key)) and entry.expires is not None
        )

"""Gauges of the storage tiers, memory and disk. They read the session store through protocols."""

from typing import Protocol


class MemoryFigures(Protocol):
    """Byte counters of the memory budget."""

    @property
    def limit(self) -> int:
        """Memory budget in bytes."""
        ...

    @property
    def stored(self) -> int:
        """Bytes of stored sessions."""
        ...

    @property
    def reserved(self) -> int:
        """Bytes reserved for appends in progress."""
        ...


class DiskFigures(Protocol):
    """Counters of the disk store."""

    @property
    def name(self) -> str:
        """Label of the tier."""
        ...

    @property
    def budget(self) -> int:
        """Disk budget in bytes."""
        ...

    @property
    def used(self) -> int:
        """Bytes of stored sessions."""
        ...

    @property
    def sessions(self) -> int:
        """Number of sessions with a manifest on disk."""
        ...

    @property
    def failures(self) -> int:
        """Number of failed reads and writes."""
        ...

    @property
    def read_nbytes(self) -> int:
        """Bytes of pages that were read."""
        ...

    @property
    def written_nbytes(self) -> int:
        """Bytes of pages and manifests that were committed."""
        ...


class PageFigures(Protocol):
    """Counters of pages moved between memory and disk."""

    @property
    def spills(self) -> int:
        """Number of pages evicted from memory to disk."""
        ...

    @property
    def restores(self) -> int:
        """Number of pages loaded from disk."""
        ...

    @property
    def reads_from_memory(self) -> int:
        """Number of pages that reads found in memory."""
        ...

    @property
    def reads_from_disk(self) -> int:
        """Number of pages that reads found on disk only."""
        ...


class CheckpointFigures(Protocol):
    """Counters of the checkpoints in the background."""

    @property
    def seconds(self) -> float:
        """Checkpoint interval; 0 if there are no checkpoints."""
        ...

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest change that is not on disk; 0 if there is none."""
        ...

    @property
    def completed(self) -> float | None:
        """Time of the last checkpoint of a session, by `time.monotonic`; None before the first."""
        ...

    @property
    def sessions(self) -> int:
        """Number of sessions written."""
        ...

    @property
    def nbytes(self) -> int:
        """Packed bytes of the pages written."""
        ...

    @property
    def write_seconds(self) -> float:
        """Time spent writing."""
        ...

    @property
    def failures(self) -> int:
        """Number of transactions that failed."""
        ...


class Store(Protocol):
    """Figures of the session store.

    The device thread writes them during a scrape. Each is a plain number or a `len`, which is safe to read.
    """

    @property
    def memory(self) -> MemoryFigures:
        """Memory budget."""
        ...

    @property
    def disk(self) -> DiskFigures:
        """Disk store."""
        ...

    @property
    def pool(self) -> PageFigures:
        """Buffer pool."""
        ...

    @property
    def checkpoints(self) -> CheckpointFigures:
        """Checkpoints in the background."""
        ...

    @property
    def in_memory(self) -> int:
        """Number of sessions in the session table."""
        ...

    @property
    def evictions(self) -> int:
        """Number of sessions deleted to free space."""
        ...

    @property
    def expirations(self) -> int:
        """Number of sessions deleted because they were not used for their TTL."""
        ...


class TierGauges(Protocol):
    """Figures of one storage tier."""

    @property
    def name(self) -> str:
        """Label of the tier: "memory" or "disk"."""
        ...

    @property
    def budget(self) -> int:
        """Maximum size of the sessions, in bytes."""
        ...

    @property
    def used(self) -> int:
        """Size of the sessions, in bytes."""
        ...

    @property
    def sessions(self) -> int:
        """Number of sessions."""
        ...

    @property
    def spills(self) -> int:
        """Number of pages evicted from the tier above to this one."""
        ...

    @property
    def restores(self) -> int:
        """Number of pages loaded from this tier."""
        ...

    @property
    def failures(self) -> int:
        """Number of failed reads and writes."""
        ...

    @property
    def read_nbytes(self) -> int:
        """Bytes read from this tier into memory."""
        ...

    @property
    def written_nbytes(self) -> int:
        """Bytes written from memory to this tier."""
        ...


class MemoryTierGauges:
    """Gauges of memory, the top tier. It receives no evicted pages, and nothing fails in it."""

    name = "memory"
    spills = restores = failures = read_nbytes = written_nbytes = 0

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def budget(self) -> int:
        """Memory budget in bytes."""
        return self._store.memory.limit

    @property
    def used(self) -> int:
        """Bytes of stored sessions, without reserved bytes."""
        return self._store.memory.stored

    @property
    def sessions(self) -> int:
        """Number of sessions in the session table; their pages may be on disk only."""
        return self._store.in_memory


class DiskTierGauges:
    """Gauges of the disk store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name = store.disk.name

    @property
    def budget(self) -> int:
        """Disk budget in bytes."""
        return self._store.disk.budget

    @property
    def used(self) -> int:
        """Bytes of stored sessions."""
        return self._store.disk.used

    @property
    def sessions(self) -> int:
        """Number of sessions with a manifest on disk, whether or not they are in memory."""
        return self._store.disk.sessions

    @property
    def spills(self) -> int:
        """Number of pages evicted from memory to disk."""
        return self._store.pool.spills

    @property
    def restores(self) -> int:
        """Number of pages loaded from disk."""
        return self._store.pool.restores

    @property
    def failures(self) -> int:
        """Number of failed reads and writes."""
        return self._store.disk.failures

    @property
    def read_nbytes(self) -> int:
        """Bytes of pages that were read."""
        return self._store.disk.read_nbytes

    @property
    def written_nbytes(self) -> int:
        """Bytes of pages and manifests that were committed."""
        return self._store.disk.written_nbytes

"""Checkpointer: writes changed `spill` sessions in small transactions, on a thread of its own."""

import logging
from collections.abc import Container, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from time import monotonic

from hadakv_service.errors import InsufficientStorage
from hadakv_service.sessions.page import Page
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError, Key
from hadakv_service.storage.disk_space import DiskSpace
from hadakv_service.storage.disk_writer import DiskWriter, WriteBatch, WrittenBatch, unwritten_pages
from hadakv_service.storage.session_table import SessionRecord, SessionTable

log = logging.getLogger(__name__)

# Bytes of pages after which a transaction takes no further page. An operation that needs the disk waits for it.
STEP_NBYTES = 2 << 20
# Maximum number of pages, and of sessions, in a transaction.
STEP_PAGES = 256
# Sessions without space on disk after which a step looks no further.
MAX_MISFITS = 4
# Bytes to free at once on a full disk, as a part of its budget and at most. Each time takes a sync.
SLACK_SHARE, MAX_SLACK_NBYTES = 1 / 32, 32 << 20
# Minimum seconds until a write that failed is tried again.
RETRY_SECONDS = 1.0


class Checkpointer:
    """Writer of sessions that changed. It deletes no session in memory to make space on disk.

    A step begins on the device thread, which chooses the pages. Another thread writes them. The device thread then
    records what was written: at `settle`, or earlier, if an operation needs the disk.

    Args:
        seconds: maximum age of a change at which its session begins to be written; 0 writes nothing.
        disk: store to write to.
        writer: writer of the disk store.
        table: sessions in memory, and which of them changed.
        space: makes space on disk.
        uncommitted: sessions that the next group commit writes or rolls back. They are left to it.

    Attributes:
        seconds: checkpoint interval; 0 if there are no checkpoints.
        sessions: number of sessions written.
        nbytes: packed bytes of the pages written.
        write_seconds: time spent writing.
        failures: number of transactions that failed.
        step_nbytes: bytes of pages after which a transaction takes no further page.
        completed: time of the last step that brought a session up to date, by `time.monotonic`; None before the first.
    """

    def __init__(
        self,
        seconds: float,
        disk: DiskStore,
        writer: DiskWriter,
        table: SessionTable,
        space: DiskSpace,
        uncommitted: Container[Key],
    ) -> None:
        self.seconds = seconds if disk.budget else 0.0
        self.sessions = 0
        self.nbytes = 0
        self.write_seconds = 0.0
        self.failures = 0
        self.completed: float | None = None
        self.step_nbytes = STEP_NBYTES
        self._disk = disk
        self._writer = writer
        self._table = table
        self._dirty = table.dirty
        self._space = space
        self._uncommitted = uncommitted
        writer.collects_in_background = self.seconds > 0
        self._is_failing = False
        # By `DirtySessions.now`: when to try again after a failure, and the sessions for which the disk had no space.
        self._retry_at = 0.0
        self._misfits: dict[Key, float] = {}
        self._began = 0.0

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest change that is not on disk; 0 if there is none. Any thread may read it."""
        oldest = self._dirty.oldest
        return 0.0 if oldest is None else max(0.0, self._dirty.now() - oldest)

    @property
    def has_work(self) -> bool:
        """Whether sessions have changed or garbage is to be deleted. Any thread may read it."""
        return self.seconds > 0 and (self._dirty.oldest is not None or self._writer.has_garbage)

    @property
    def is_overdue(self) -> bool:
        """Whether a change is older than the checkpoint interval. Any thread may read it."""
        return self._dirty.is_overdue(self.seconds)

    def begin(self) -> "Future[WrittenBatch] | None":
        """Begin to write some of the sessions that are due, and to delete garbage pages.

        Returns:
            the result, once it is written. None if there is nothing to do.
        """
        self.settle()
        if not self.seconds or self._dirty.now() < self._retry_at:
            return None
        try:
            batch = self._choose()
        except InsufficientStorage as error:
            self._failed(error)
            return None
        garbage = self._writer.unreferenced_garbage()
        if not (batch.sessions or batch.pages or garbage or batch.sync):
            return None
        self._dirty.start([write.key for write in batch.sessions])
        self._began = monotonic()
        nbytes = sum(page.nbytes for page in batch.unwritten_pages())
        return self._writer.begin(batch, garbage, partial(self._ended, batch, nbytes))

    def settle(self) -> None:
        """Wait until the write in progress has ended, and record what it wrote."""
        self._writer.settle()

    def _choose(self) -> WriteBatch:
        """Return the sessions and pages of the next transaction.

        Raises:
            InsufficientStorage: no session fits on disk, or the disk cannot be used.
        """
        writes, parts = [], list[Page]()
        chosen: set[Key] = set()
        nbytes = pages = misfits = 0
        for key, record in self._candidates():
            unwritten = unwritten_pages(record.session)
            try:
                self._ensure_space(record, nbytes + self._disk_nbytes(unwritten))
            except InsufficientStorage:
                self._misfits[key] = self._dirty.now() + max(self.seconds, RETRY_SECONDS)
                misfits += 1
                if misfits >= MAX_MISFITS:
                    break
                continue
            chosen.add(key)
            step = _first(unwritten, self.step_nbytes - nbytes, STEP_PAGES - pages)
            nbytes += self._disk_nbytes(step)
            pages += len(step)
            if len(step) < len(unwritten):
                parts += step
            else:
                writes.append(record.to_write(key))
            if nbytes >= self.step_nbytes or pages >= STEP_PAGES or len(chosen) >= STEP_PAGES:
                break
        if misfits and not chosen:
            raise InsufficientStorage("There is no space on disk for sessions that changed.")
        return WriteBatch(writes, parts, sync=bool(writes) or self._dirty.needs_sync(self.seconds))

    def _candidates(self) -> Iterator[tuple[Key, SessionRecord]]:
        """Yield sessions that are due, without those that did not fit lately or are not committed yet."""
        now = self._dirty.now()
        self._misfits = {key: until for key, until in self._misfits.items() if until > now and key in self._dirty}
        due = (key for key in self._dirty.due(self.seconds) if key not in self._misfits)
        # A list, because making space may change what is dirty. A key may come twice.
        for key in dict.fromkeys(islice(due, 2 * STEP_PAGES)):
            record = self._table.get(key)
            if record and key in self._dirty and key not in self._uncommitted and not record.is_corrupt:
                yield key, record

    def _disk_nbytes(self, pages: list[Page]) -> int:
        return sum(self._disk.page_nbytes(page.nbytes) for page in pages)

    def _ensure_space(self, record: SessionRecord, nbytes: int) -> None:
        """Make space for all of a session, so that no part of one that does not fit is written.

        Raises:
            InsufficientStorage: there is no space, or the disk cannot be used.
        """
        # Delete only sessions that were used before all of those in memory. A checkpoint must not cost a session that
        # memory has space for.
        oldest = min(each.last_used for _, each in self._table.lru_items(1))
        used_before = min(oldest, record.last_used)
        slack = min(int(self._disk.budget * SLACK_SHARE), MAX_SLACK_NBYTES)
        try:
            self._space.ensure(nbytes if self._has_space(nbytes) else nbytes + slack, (), used_before)
        except InsufficientStorage:
            self._space.ensure(nbytes, (), used_before)

    def _has_space(self, nbytes: int) -> bool:
        try:
            return nbytes <= self._disk.available
        except DiskStoreError:
            return False

    def _ended(self, batch: WriteBatch, nbytes: int, result: WrittenBatch | Exception) -> None:
        """Record what a transaction wrote. Called on the device thread."""
        self.write_seconds += monotonic() - self._began
        if isinstance(result, Exception):
            self._dirty.end(written=False)
            self.failures += 1
            self._failed(result)
            return
        for write, manifest in zip(batch.sessions, result.manifests, strict=True):
            if record := self._table.get(write.key):
                # It may have grown meanwhile. The manifest then is one of its beginning.
                self._table.set_manifest(write.key, record, manifest, clean=record.session is write.session)
        # No manifest refers to these pages yet.
        self._writer.mark_garbage(batch.pages)
        self._dirty.end(written=True)
        if batch.sync:
            self._dirty.synced()
        self.sessions += len(batch.sessions)
        self.nbytes += nbytes
        if batch.sessions:
            self.completed = monotonic()
        if self._is_failing and not self._misfits:
            self._is_failing = False
            log.info("checkpoints are written again")

    def _failed(self, error: Exception) -> None:
        """Log the first of consecutive failures, and wait before the next try."""
        self._retry_at = self._dirty.now() + max(self.seconds, RETRY_SECONDS)
        if not self._is_failing:
            self._is_failing = True
            log.warning(
                "checkpoint not written: %s; sessions stay in memory, and a crash loses their latest tokens; "
                "free disk space or repair the disk",
                str(error),
            )


def _first(pages: list[Page], nbytes: int, count: int) -> list[Page]:
    """Return the first pages, until one reaches the bytes or the count. At least one page is returned, if there is."""
    step = list[Page]()
    for page in pages:
        step.append(page)
        nbytes -= page.nbytes
        if nbytes <= 0 or len(step) >= count:
            break
    return step

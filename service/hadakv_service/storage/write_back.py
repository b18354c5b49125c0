"""What has to be in the tier, or out of it, before anybody is told: written for a whole batch at once."""

import logging
import time
from collections.abc import Generator, Iterable, Sequence

from hadakv_kernels import Backend
from hadakv_service.errors import InsufficientStorage, ServiceError
from hadakv_service.sessions.layer_run import join
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session, page_diff
from hadakv_service.storage.buffer_pool import BufferPool, SessionWrite, group_by_parent
from hadakv_service.storage.disk.interface import DiskStoreError, DiskUnavailable, Key, Manifest, display_key
from hadakv_service.storage.eviction import SPILL_NBYTES, Evictor
from hadakv_service.storage.memory_budget import MemoryBudget
from hadakv_service.storage.session_table import SessionRecord, SessionTable
from hadakv_service.tenants.quotas import TenantUsage

log = logging.getLogger(__name__)
# And so many at most in one transaction, however small they are.
PORTION_PAGES = 512


class WriteBack:
    """Brings the tier up to date.

    Args:
        ledger: counts memory.
        entries: the sessions in memory.
        residence: moves their pages.
        room: makes room.
        owners: whom sessions belong to.
    """

    def __init__(
        self, ledger: MemoryBudget, entries: SessionTable, residence: BufferPool, room: Evictor, owners: TenantUsage
    ) -> None:
        self._ledger = ledger
        self._entries = entries
        self._residence = residence
        self._room = room
        self._owners = owners
        # Who has changed so that the tier must know, as they were before.
        self._before: dict[Key, SessionRecord | None] = {}

    def mark_dirty(self, key: Key, old: SessionRecord | None, new: SessionRecord) -> None:
        """Note that a session has changed, if the tier must know before anybody is told."""
        if new.session.durability == "ack" or (new.manifest is not None and not is_prefix(new.manifest, new.session)):
            self._before.setdefault(key, old)

    def group_commit(self) -> dict[Key, Exception]:
        """Write what was noted; whom that failed for, and why. Those are as they were before."""
        failed: dict[Key, Exception] = {}
        if self._before:
            noted, self._before = self._before, {}
            try:
                self._write_dirty(noted)
            except Exception as error:
                failed = dict.fromkeys(noted, _refusal(error))
                for key, old in noted.items():
                    self._roll_back(key, old)
        try:
            self._residence.collect_garbage(everything=False)
        except DiskUnavailable as error:
            log.warning("rows that nobody needs stay for now: %s", error)
        return failed

    def _write_dirty(self, noted: dict[Key, SessionRecord | None]) -> None:
        alive = {key: entry for key in noted if (entry := self._entries.get(key))}
        stale = [key for key, entry in alive.items() if entry.session.durability != "ack"]
        savings = [_saving(key, entry) for key, entry in alive.items() if entry.session.durability == "ack"]
        new = {page for saving in savings for page in saving.session.all_pages() if page.page_id is None}
        self._room.ensure_disk(self._cost(new), alive)
        manifests = self._residence.write(savings, removed=stale, sync=bool(savings or stale))
        for saving, manifest in zip(savings, manifests, strict=True):
            self._entries.set_manifest(alive[saving.key], manifest, clean=True)
        for key in stale:
            self._entries.set_manifest(alive[key], None, clean=False)

    def _roll_back(self, key: Key, old: SessionRecord | None) -> None:
        new = self._entries.get(key)
        if new is None:
            return
        gained, lost = page_diff(new.session, old.session) if old else (set(), set(new.session.all_pages()))
        self._entries.remove(key)
        if old:
            self._entries.add(key, old)
        self._owners.add(key[0], (old.session.nbytes if old else 0) - new.session.nbytes, 0 if old else -1)
        self._ledger.hold(gained)
        self._residence.let_go(lost)

    def checkpoint(self, until: float) -> int:
        """Write every session that may outlive the process, most recently used first; how many were not.

        Where there is no room for all of them, none is ended for another that was used before it.

        Args:
            until: when to stop, by `time.monotonic`.
        """
        try:
            self.note_uses(self._entries.items())
        except DiskUnavailable as error:
            log.warning("when sessions were used last was not written: %s", error)
        left = 0
        for key in self._entries.mru_keys():
            entry = self._entries.get(key)
            # Whoever was ended to make room is not to come back.
            if entry and self._room.can_spill(entry.session) and not entry.is_clean:
                try:
                    written = all(time.monotonic() < until for _ in self._save_in_steps(key, entry))
                except (DiskStoreError, ServiceError) as error:
                    log.error("session %s was not written: %s", display_key(key), str(error))
                    written = False
                left += not written
        return left

    def note_uses(self, used: Iterable[tuple[Key, SessionRecord]]) -> None:
        """Tell the tier when those of the sessions that it has were used last.

        Raises:
            TierFailed: it was not told.
        """
        late = [(key, entry) for key, entry in used if entry.manifest and entry.manifest.last_used != entry.last_used]
        if late:
            self._residence.update_last_used(late)

    def flush_early(self, key: Key, session: Session) -> Generator[None, None, None]:
        """Of what `settle` will have to write, write most before, if it is so much that others should have their turn.

        Raises:
            InsufficientStorage: the disk takes it not.
        """
        if session.durability != "ack":
            return
        new = [page for page in session.all_pages() if page.page_id is None]
        if sum(page.nbytes for page in new) <= SPILL_NBYTES:
            return
        # As a whole first: nobody is ended for a part of it.
        self._room.ensure_disk(self._cost(new), {key})
        for pages in _write_chunks(new):
            self._write_pages(key, pages)
            yield

    def materialize_slices(
        self, key: Key, session: Session, backend: Backend, *, in_memory: bool
    ) -> Generator[None, None, None]:
        """Give parts of pages bytes of their own, a page at a time.

        Args:
            key: whose value it will be.
            session: that value.
            backend: whose memory pages lie in.
            in_memory: whether there is room for those of pages that are in memory. Others are written.

        Raises:
            InsufficientStorage: the disk takes it not.
            SessionDamaged, TierUnavailable: a page cannot be read.
        """
        parts = [page for page in session.all_pages() if page.parent]
        wholes = {page.parent[0] for page in parts if page.parent}
        self._room.under_way[key] = wholes
        try:
            written = [page for page in parts if not (in_memory and _can_be_copied(page))]
            self._room.ensure_disk(self._cost(written), {key})
            for pages in _write_chunks(parts):
                copied = [page for page in pages if in_memory and _can_be_copied(page)]
                for page in copied:
                    page.set_resident(*join([page], 0, backend).streams)
                if len(copied) < len(pages):
                    self._write_pages(key, [page for page in pages if page.parent])
                yield
        finally:
            del self._room.under_way[key]

    def _cost(self, pages: Iterable[Page]) -> int:
        return sum(self._residence.tier.page_nbytes(page.nbytes) for page in pages)

    def write_through(self, key: Key, pages: Sequence[Page]) -> None:
        """Let pages that no session has yet leave memory.

        Args:
            key: of the session that will.
            pages: such pages.

        Raises:
            InsufficientStorage: the disk takes them not. They stay.
        """
        self._write_pages(key, pages)
        for page in pages:
            page.clear_resident()

    def _write_pages(self, key: Key, pages: Sequence[Page]) -> None:
        # Others may have taken what room there was.
        self._room.ensure_disk(self._cost(pages), {key})
        try:
            self._residence.write([], pages)
        except DiskUnavailable as error:
            raise InsufficientStorage(f"The disk cannot be written: {error}.") from error
        # If they are not stored after all, nobody else says that they can go.
        self._residence.mark_garbage(pages)

    def _save_in_steps(self, key: Key, entry: SessionRecord) -> Generator[None, None, None]:
        for pages in _write_chunks([page for page in entry.session.all_pages() if page.page_id is None]):
            yield
            self._room.ensure_disk(self._cost(pages), {key}, entry.last_used)
            self._residence.write([], pages)
        yield
        (manifest,) = self._residence.write([_saving(key, entry)])
        self._entries.set_manifest(entry, manifest, clean=True)


def _refusal(error: Exception) -> Exception:
    """What the caller is told."""
    if not isinstance(error, DiskStoreError):
        return error
    return InsufficientStorage(
        f"What is acknowledged must be on disk, which cannot be written: {error}. Nothing was stored."
    )


def _saving(key: Key, entry: SessionRecord) -> SessionWrite:
    return SessionWrite(key, entry.session, entry.created, entry.last_used, entry.manifest)


def _can_be_copied(page: Page) -> bool:
    """Whether what a page is a part of is in memory."""
    return page.parent is not None and page.parent[0].is_resident


def _write_chunks(pages: list[Page]) -> Generator[list[Page], None, None]:
    """Pages in portions of about as much as is worth a step, parts of one page together, which then is read once."""
    portion: list[Page] = []
    nbytes, last = 0, None
    for page in group_by_parent(pages):
        whole = page.parent and page.parent[0]
        if (nbytes >= SPILL_NBYTES or len(portion) >= PORTION_PAGES) and (whole is None or whole is not last):
            yield portion
            portion, nbytes = [], 0
        portion.append(page)
        nbytes += page.nbytes
        last = whole
    if portion:
        yield portion


def is_prefix(saved: Manifest, session: Session) -> bool:
    """Whether what the tier has of a session still is a beginning of it: layer by layer no longer than that."""
    lengths = [length for _, _, length in session.spans()]
    stored = [run.length for run in saved.runs for _ in range(run.layers)]
    return len(stored) <= len(lengths) and all(a <= b for a, b in zip(stored, lengths, strict=False))

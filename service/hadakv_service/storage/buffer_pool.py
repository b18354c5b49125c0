"""Where pages are: in memory, in the tier below it, or both. Moves them, and what ties them together."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from hadakv_kernels import Backend, Codec, Encoded
from hadakv_service.errors import SessionCorrupt, StorageUnavailable
from hadakv_service.sessions.layer_run import PAGE_TOKENS, LayerRun
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.corrupt_pages import CorruptPages
from hadakv_service.storage.disk.interface import (
    CorruptData,
    DiskStore,
    DiskUnavailable,
    Key,
    Manifest,
    PageContent,
    PageInfo,
    RunManifest,
    display_key,
)
from hadakv_service.storage.memory_budget import EVICTED_PAGE_NBYTES, PAGE_OVERHEAD_NBYTES, MemoryBudget
from hadakv_service.storage.session_table import SessionRecord, SessionTable

log = logging.getLogger(__name__)
# Rows that are removed in one transaction, so that nobody waits for long.
DROP = 64
_OPTIONS = ("layers", "kv_heads", "head_dim", "window", "ttl_seconds", "durability")


class SessionWrite(NamedTuple):
    """A session to write.

    Attributes:
        old: what the tier has of it; None if nothing.
    """

    key: Key
    session: Session
    created: float
    last_used: float
    old: Manifest | None


class BufferPool:
    """Moves pages between memory and a tier.

    Args:
        ledger: counts memory.
        tier: takes what has no room there.
        backend: whose memory it is; needed with a tier that takes anything.

    Attributes:
        spills: pages that were written to make room.
        restores: pages that were read back.
        make_room: tries to make so many bytes of memory free without ending any session.
        damage: what was found not to be what was written.
    """

    def __init__(self, ledger: MemoryBudget, tier: DiskStore, backend: Backend | None) -> None:
        self.ledger = ledger
        self.tier = tier
        self.spills = 0
        self.restores = 0
        self.make_room: Callable[[int], object] = lambda nbytes: nbytes
        self.damage = CorruptPages(tier)
        self._backend = backend
        # Every page that has a row, so that sessions read back share pages as they did.
        self._pages_by_id: WeakValueDictionary[int, Page] = WeakValueDictionary()
        # Rows that nobody may need any longer.
        self._garbage_candidates: set[int] = set()

    def load(self, page: Page) -> tuple[Encoded, Encoded]:
        """K and V of a page that is not in memory; it stays there from now on, if there is room."""
        content = self._read_from_disk(page)
        assert self._backend is not None
        to_device = self._backend.to_device
        k, v = (Encoded(to_device(stream.packed), to_device(stream.norms)) for stream in content)
        self.restores += 1
        more = page.nbytes + PAGE_OVERHEAD_NBYTES - EVICTED_PAGE_NBYTES
        if page.ref_count and self.ledger.available < more:
            self.make_room(more)
        if page.ref_count and self.ledger.available >= more:
            page.set_resident(k, v)
            self.ledger.stored += more
        return k, v

    def _read_from_disk(self, page: Page) -> PageContent:
        assert page.page_id is not None
        try:
            return self.tier.read_page(page.page_id)
        except CorruptData as error:
            self.damage.record(page.page_id, error)
            raise SessionCorrupt(f"Stored tokens are damaged: {error}.") from error
        except DiskUnavailable as error:
            raise StorageUnavailable(f"Stored tokens cannot be read now: {error}.") from error

    def let_go(self, pages: Iterable[Page]) -> None:
        """Count pages out; rows that nobody holds any longer go with the next `drop_loose`."""
        self._garbage_candidates.update(page.page_id for page in self.ledger.let_go(pages) if page.page_id is not None)

    def mark_garbage(self, pages: Iterable[Page]) -> None:
        """Have the rows of pages removed once nobody needs them."""
        self._garbage_candidates.update(page.page_id for page in pages if page.page_id is not None)

    def garbage_in_use(self) -> set[Page]:
        """Pages whose rows have to stay though no session has them: work under way does."""
        pages = (self._pages_by_id.get(row) for row in self._garbage_candidates)
        return {page for page in pages if page is not None and not page.ref_count}

    def collect_garbage(self, *, everything: bool = True) -> None:
        """Remove rows that neither a manifest nor anything in memory needs; some of them, or everything.

        Raises:
            TierFailed: they are still there.
        """
        alive = {row: page for row in self._garbage_candidates if (page := self._pages_by_id.get(row)) is not None}
        # Who lets go of them says so again.
        self._garbage_candidates -= {row for row, page in alive.items() if page.ref_count}
        # Work under way may have a value of a session that nobody else has any longer.
        rows = [row for row in self._garbage_candidates if row not in alive]
        for some in (rows[i : i + DROP] for i in range(0, len(rows), DROP)):
            with self.tier.transaction() as change:
                change.remove_pages(some)
            self._garbage_candidates.difference_update(some)
            if not everything:
                return

    def write(
        self,
        savings: Sequence[SessionWrite],
        pages: Iterable[Page] = (),
        removed: Iterable[Key] = (),
        *,
        sync: bool = False,
    ) -> list[Manifest]:
        """Write sessions, and of their pages and of some more those that have no row yet; all together.

        Args:
            savings: the sessions.
            pages: further pages, which no manifest holds for now.
            removed: sessions whose manifests go; rows of theirs go with the next `drop_loose`.
            sync: whether they are to outlive a loss of power from then on.

        Raises:
            TierFailed: nothing was written.
            SessionDamaged, TierUnavailable: nor if they are parts of a page that cannot be read.
        """
        rows: dict[Page, int] = {}
        manifests: list[Manifest] = []
        gone: list[int] = []
        new = (
            page for page in chain(pages, *(saving.session.all_pages() for saving in savings)) if page.page_id is None
        )
        with self.tier.transaction(sync=sync) as change:
            for page, content in self._contents(dict.fromkeys(new)):
                rows[page] = change.add_page(content)
            for saving in savings:
                manifests.append(_manifest(saving, rows))
                gone += change.put(saving.key, manifests[-1], saving.old)
            for key in removed:
                gone += change.remove(key)
        for page, row in rows.items():
            page.set_on_disk(self, row)
            self._pages_by_id[row] = page
        self._garbage_candidates.update(gone)
        return manifests

    def _contents(self, pages: Iterable[Page]) -> Iterator[tuple[Page, PageContent]]:
        """Each page with its bytes in host memory. What is read for one part of a page is read for all."""
        whole, read = None, None
        for page in group_by_parent(pages):
            if page.is_resident:
                yield page, self._on_host(page)
                continue
            assert page.parent is not None
            if read is None or page.parent[0] is not whole:
                whole = page.parent[0]
                read = self._on_host(whole) if whole.is_resident else self._read_from_disk(whole)
            yield page, _part(read, page.parent[1])

    def _on_host(self, page: Page) -> PageContent:
        assert self._backend is not None
        to_host = self._backend.to_host
        return PageContent(*(Encoded(to_host(stream.packed), to_host(stream.norms)) for stream in page.streams))

    def update_last_used(self, used: Sequence[tuple[Key, SessionRecord]]) -> None:
        """Tell the tier when sessions that it has were used last.

        Raises:
            TierFailed: it was not told.
        """
        manifests = [SessionTable.manifest_with_last_used(entry) for _, entry in used]
        with self.tier.transaction() as change:
            for (key, _), manifest in zip(used, manifests, strict=True):
                change.touch(key, manifest.last_used, manifest.expires)
        for (_, entry), manifest in zip(used, manifests, strict=True):
            entry.manifest = manifest

    def find(self, key: Key) -> tuple[Session, Manifest] | None:
        """A session that the tier has, none of whose pages need be in memory.

        Raises:
            SessionDamaged: its manifest is.
            TierUnavailable: it cannot be read now.
        """
        try:
            found = self.tier.find(key)
        except CorruptData as error:
            log.error("session %s: %s; delete it and send it again", display_key(key), str(error))
            raise SessionCorrupt(f"The session is damaged: {error}.") from error
        except DiskUnavailable as error:
            raise StorageUnavailable(f"The session cannot be read now: {error}.") from error
        if found is None:
            return None
        manifest, known = found
        pages = [tuple(self._page(row, known[row]) for row in run.pages) for run in manifest.runs]
        runs = zip(session_from_manifest(manifest).runs, pages, strict=True)
        session = replace(session_from_manifest(manifest), runs=tuple(replace(run, pages=held) for run, held in runs))
        return session, manifest

    def _page(self, row: int, known: PageInfo) -> Page:
        page = self._pages_by_id.get(row)
        if page is None:
            page = self._pages_by_id[row] = Page.at(self, row, *known)
        return page


def group_by_parent(pages: Iterable[Page]) -> list[Page]:
    """Pages in an order in which parts of one page follow each other, so that it need not be read again for each."""
    groups: dict[Page | None, list[Page]] = {}
    for page in pages:
        groups.setdefault(page.parent[0] if page.parent else None, []).append(page)
    return list(chain.from_iterable(groups.values()))


def _part(content: PageContent, layers: slice) -> PageContent:
    """Some layers of a page's content: a copy, so that they do not keep all of it."""
    return PageContent(*(Encoded(s.packed[layers].copy(), s.norms[layers].copy()) for s in content))


def session_from_manifest(manifest: Manifest) -> Session:
    """A session as its manifest has it, without pages."""
    options = dict(manifest.options)
    codecs = options.pop("codecs")
    both = None if codecs is None else (Codec.from_mapping(codecs[0]), Codec.from_mapping(codecs[1]))
    runs = tuple(LayerRun(run.layers, run.base, run.length, (), run.full) for run in manifest.runs)
    return Session(codecs=both, runs=runs, **options)


def _manifest(saving: SessionWrite, rows: dict[Page, int]) -> Manifest:
    session = saving.session
    options: dict[str, Any] = {name: getattr(session, name) for name in _OPTIONS}
    options["codecs"] = None if session.codecs is None else [codec.to_mapping() for codec in session.codecs]

    def row(page: Page) -> int:
        number = page.page_id if page.page_id is not None else rows[page]
        assert number is not None
        return number

    runs = tuple(
        RunManifest(
            run.layers, run.start, run.stop, run.full_pages, run.start // PAGE_TOKENS, tuple(map(row, run.pages))
        )
        for run in session.runs
    )
    expires = None if session.ttl_seconds is None else saving.last_used + session.ttl_seconds
    permanent = session.durability == "ack"
    return Manifest(options, runs, session.nbytes, saving.created, saving.last_used, expires, permanent)

"""Where pages are: in memory, in the tier below it, or both. Moves them, and what ties them together."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from hadakv_kernels import Backend, Codec, Encoded
from hadakv_service.errors import SessionDamaged, TierUnavailable
from hadakv_service.sessions.layer_run import PAGE_TOKENS, Run
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.corrupt_pages import Damage
from hadakv_service.storage.disk.interface import (
    Content,
    Damaged,
    Key,
    Manifest,
    PageRow,
    RunRows,
    Tier,
    TierFailed,
    called,
)
from hadakv_service.storage.memory_budget import AWAY_NBYTES, PAGE_NBYTES, Ledger
from hadakv_service.storage.session_table import Entries, Entry

log = logging.getLogger(__name__)
# Rows that are removed in one transaction, so that nobody waits for long.
DROP = 64
_OPTIONS = ("layers", "kv_heads", "head_dim", "window", "ttl_seconds", "durability")


class Saving(NamedTuple):
    """A session to write.

    Attributes:
        old: what the tier has of it; None if nothing.
    """

    key: Key
    session: Session
    created: float
    last_used: float
    old: Manifest | None


class Residence:
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

    def __init__(self, ledger: Ledger, tier: Tier, backend: Backend | None) -> None:
        self.ledger = ledger
        self.tier = tier
        self.spills = 0
        self.restores = 0
        self.make_room: Callable[[int], object] = lambda nbytes: nbytes
        self.damage = Damage(tier)
        self._backend = backend
        # Every page that has a row, so that sessions read back share pages as they did.
        self._known: WeakValueDictionary[int, Page] = WeakValueDictionary()
        # Rows that nobody may need any longer.
        self._loose: set[int] = set()

    def fetch(self, page: Page) -> tuple[Encoded, Encoded]:
        """K and V of a page that is not in memory; it stays there from now on, if there is room."""
        content = self._content(page)
        assert self._backend is not None
        to_device = self._backend.to_device
        k, v = (Encoded(to_device(stream.packed), to_device(stream.norms)) for stream in content)
        self.restores += 1
        more = page.nbytes + PAGE_NBYTES - AWAY_NBYTES
        if page.holders and self.ledger.free < more:
            self.make_room(more)
        if page.holders and self.ledger.free >= more:
            page.come(k, v)
            self.ledger.stored += more
        return k, v

    def _content(self, page: Page) -> Content:
        assert page.row is not None
        try:
            return self.tier.content(page.row)
        except Damaged as error:
            self.damage.note(page.row, error)
            raise SessionDamaged(f"Stored tokens are damaged: {error}.") from error
        except TierFailed as error:
            raise TierUnavailable(f"Stored tokens cannot be read now: {error}.") from error

    def let_go(self, pages: Iterable[Page]) -> None:
        """Count pages out; rows that nobody holds any longer go with the next `drop_loose`."""
        self._loose.update(page.row for page in self.ledger.let_go(pages) if page.row is not None)

    def loosen(self, pages: Iterable[Page]) -> None:
        """Have the rows of pages removed once nobody needs them."""
        self._loose.update(page.row for page in pages if page.row is not None)

    def pinned(self) -> set[Page]:
        """Pages whose rows have to stay though no session has them: work under way does."""
        pages = (self._known.get(row) for row in self._loose)
        return {page for page in pages if page is not None and not page.holders}

    def drop_loose(self, *, everything: bool = True) -> None:
        """Remove rows that neither a manifest nor anything in memory needs; some of them, or everything.

        Raises:
            TierFailed: they are still there.
        """
        alive = {row: page for row in self._loose if (page := self._known.get(row)) is not None}
        # Who lets go of them says so again.
        self._loose -= {row for row, page in alive.items() if page.holders}
        # Work under way may have a value of a session that nobody else has any longer.
        rows = [row for row in self._loose if row not in alive]
        for some in (rows[i : i + DROP] for i in range(0, len(rows), DROP)):
            with self.tier.transaction() as change:
                change.remove_pages(some)
            self._loose.difference_update(some)
            if not everything:
                return

    def write(
        self, savings: Sequence[Saving], pages: Iterable[Page] = (), removed: Iterable[Key] = (), *, sync: bool = False
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
        new = (page for page in chain(pages, *(saving.session.all_pages() for saving in savings)) if page.row is None)
        with self.tier.transaction(sync=sync) as change:
            for page, content in self._contents(dict.fromkeys(new)):
                rows[page] = change.add_page(content)
            for saving in savings:
                manifests.append(_manifest(saving, rows))
                gone += change.put(saving.key, manifests[-1], saving.old)
            for key in removed:
                gone += change.remove(key)
        for page, row in rows.items():
            page.stay_at(self, row)
            self._known[row] = page
        self._loose.update(gone)
        return manifests

    def _contents(self, pages: Iterable[Page]) -> Iterator[tuple[Page, Content]]:
        """Each page with its bytes in host memory. What is read for one part of a page is read for all."""
        whole, read = None, None
        for page in by_whole(pages):
            if page.is_here:
                yield page, self._on_host(page)
                continue
            assert page.whole is not None
            if read is None or page.whole[0] is not whole:
                whole = page.whole[0]
                read = self._on_host(whole) if whole.is_here else self._content(whole)
            yield page, _part(read, page.whole[1])

    def _on_host(self, page: Page) -> Content:
        assert self._backend is not None
        to_host = self._backend.to_host
        return Content(*(Encoded(to_host(stream.packed), to_host(stream.norms)) for stream in page.streams))

    def note_uses(self, used: Sequence[tuple[Key, Entry]]) -> None:
        """Tell the tier when sessions that it has were used last.

        Raises:
            TierFailed: it was not told.
        """
        manifests = [Entries.as_used(entry) for _, entry in used]
        with self.tier.transaction() as change:
            for (key, _), manifest in zip(used, manifests, strict=True):
                change.touch(key, manifest.last_used, manifest.expires)
        for (_, entry), manifest in zip(used, manifests, strict=True):
            entry.saved = manifest

    def find(self, key: Key) -> tuple[Session, Manifest] | None:
        """A session that the tier has, none of whose pages need be in memory.

        Raises:
            SessionDamaged: its manifest is.
            TierUnavailable: it cannot be read now.
        """
        try:
            found = self.tier.find(key)
        except Damaged as error:
            log.error("session %s: %s; delete it and send it again", called(key), str(error))
            raise SessionDamaged(f"The session is damaged: {error}.") from error
        except TierFailed as error:
            raise TierUnavailable(f"The session cannot be read now: {error}.") from error
        if found is None:
            return None
        manifest, known = found
        pages = [tuple(self._page(row, known[row]) for row in run.pages) for run in manifest.runs]
        runs = zip(outline(manifest).runs, pages, strict=True)
        session = replace(outline(manifest), runs=tuple(replace(run, pages=held) for run, held in runs))
        return session, manifest

    def _page(self, row: int, known: PageRow) -> Page:
        page = self._known.get(row)
        if page is None:
            page = self._known[row] = Page.at(self, row, *known)
        return page


def by_whole(pages: Iterable[Page]) -> list[Page]:
    """Pages in an order in which parts of one page follow each other, so that it need not be read again for each."""
    groups: dict[Page | None, list[Page]] = {}
    for page in pages:
        groups.setdefault(page.whole[0] if page.whole else None, []).append(page)
    return list(chain.from_iterable(groups.values()))


def _part(content: Content, layers: slice) -> Content:
    """Some layers of a page's content: a copy, so that they do not keep all of it."""
    return Content(*(Encoded(s.packed[layers].copy(), s.norms[layers].copy()) for s in content))


def outline(manifest: Manifest) -> Session:
    """A session as its manifest has it, without pages."""
    options = dict(manifest.options)
    codecs = options.pop("codecs")
    both = None if codecs is None else (Codec.from_mapping(codecs[0]), Codec.from_mapping(codecs[1]))
    runs = tuple(Run(run.layers, run.base, run.length, (), run.full) for run in manifest.runs)
    return Session(codecs=both, runs=runs, **options)


def _manifest(saving: Saving, rows: dict[Page, int]) -> Manifest:
    session = saving.session
    options: dict[str, Any] = {name: getattr(session, name) for name in _OPTIONS}
    options["codecs"] = None if session.codecs is None else [codec.to_mapping() for codec in session.codecs]

    def row(page: Page) -> int:
        number = page.row if page.row is not None else rows[page]
        assert number is not None
        return number

    runs = tuple(
        RunRows(run.layers, run.base, run.length, run.full, run.base // PAGE_TOKENS, tuple(map(row, run.pages)))
        for run in session.runs
    )
    expires = None if session.ttl_seconds is None else saving.last_used + session.ttl_seconds
    permanent = session.durability == "ack"
    return Manifest(options, runs, session.nbytes, saving.created, saving.last_used, expires, permanent)

"""page_diff: pages that one value of a session has and another one has not."""

from itertools import zip_longest

from hadakv_service.sessions.layer_run import LayerRun
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session

_NO_LAYERS = LayerRun(0)


def page_diff(old: Session | None, new: Session) -> tuple[set[Page], set[Page]]:
    """Return the pages that only the new value of a session has, and those that only the old one has."""
    if old is None:
        return set(new.all_pages()), set()
    gained: set[Page] = set()
    lost: set[Page] = set()
    for a, b in zip_longest(old.runs, new.runs, fillvalue=_NO_LAYERS):
        if a is not b:
            # Long runs mostly keep their pages in an append. Skip the common prefix.
            common = _common_prefix(a, b)
            lost.update(a.pages[common:])
            gained.update(b.pages[common:])
    return gained - lost, lost - gained


def _common_prefix(a: LayerRun, b: LayerRun) -> int:
    """Return how many leading pages two runs certainly share: all pages of the shorter one, or its full pages."""
    if a.start != b.start:
        return 0
    every, full = min(len(a.pages), len(b.pages)), min(a.full_pages, b.full_pages)
    if a.pages[:every] == b.pages[:every]:
        return every
    return full if a.pages[:full] == b.pages[:full] else 0

"""Links and file names in README and docs lead somewhere."""

import re
from pathlib import Path

import pytest

from docs.markdown import PAGES, ROOT, anchors, links, prose

_NAMED_PATH = re.compile(r"`((?:clients|kernels|service|tests|docs)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_resolve(page: Path) -> None:
    broken = []
    for line, target in links(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists() or (anchor and anchor not in anchors(other.read_text("utf-8"))):
            broken.append(f"{line}: {target}")

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_files_exist(page: Path) -> None:
    lines = prose(page.read_text("utf-8"))
    missing = [
        f"{line}: {path}" for line, text in lines for path in _NAMED_PATH.findall(text) if not (ROOT / path).exists()
    ]

    assert missing == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {target.partition("#")[0] for _, target in links(PAGES[0].read_text("utf-8"))}

    assert {f"docs/{page.name}" for page in PAGES if page.parent == ROOT / "docs"} <= linked

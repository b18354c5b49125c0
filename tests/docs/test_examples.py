"""Every example of README and docs, executed in the order of its page, twice."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from docs.execution import Runner
from docs.markdown import PAGES, blocks

WITH_EXAMPLES = [page for page in PAGES if any(block.is_executed for block in blocks(page.read_text("utf-8")))]
PROGRAMS = ("bash", "curl", "openssl")

# The pages that a new user reads one after the other, with one data directory.
FIRST_STEPS = ("README", "getting-started", "python-client", "command-line")
_BY_NAME = {page.stem: page for page in WITH_EXAMPLES}
READING_ORDERS = [
    [_BY_NAME[name] for name in FIRST_STEPS],
    *([page] for name, page in _BY_NAME.items() if name not in FIRST_STEPS),
]


@pytest.mark.parametrize("pages", READING_ORDERS, ids=lambda pages: "-".join(page.stem for page in pages))
def test_examples_work_twice(pages: Sequence[Path], tmp_path: Path) -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    assert not missing, f"the examples need {', '.join(missing)}"

    for page in [*pages, *pages]:
        _execute(page, tmp_path)


def _execute(page: Path, directory: Path) -> None:
    """Execute all blocks of a page, and check that a block is skipped only with a marker that says why."""
    listed = list(blocks(page.read_text("utf-8")))
    runner = Runner(page, directory)
    try:
        runner.run(listed)
    finally:
        runner.close()

    executable = [block for block in listed if block.language in ("sh", "python", "console")]
    skipped = [block.line for block in executable if block.line not in runner.executed]
    assert skipped == [
        block.line
        for block in executable
        if block.marker.startswith(("needs", "not executed")) and not block.is_executed
    ]


def test_the_main_pages_have_examples() -> None:
    expected = {*FIRST_STEPS, "running", "http-api"}

    assert expected <= _BY_NAME.keys()

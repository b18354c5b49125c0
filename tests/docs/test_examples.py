"""Every example of README and docs, executed in the order of its page, twice."""

import shutil
from pathlib import Path

import pytest

from docs.execution import Runner
from docs.markdown import PAGES, blocks

WITH_EXAMPLES = [page for page in PAGES if any(block.is_executed for block in blocks(page.read_text("utf-8")))]
PROGRAMS = ("bash", "curl", "openssl")


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_work_twice(page: Path, tmp_path: Path) -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    assert not missing, f"the examples need {', '.join(missing)}"
    listed = list(blocks(page.read_text("utf-8")))
    runner = Runner(page, tmp_path)

    try:
        runner.run(listed)
        runner.run(listed)
    finally:
        runner.close()

    # A block that is skipped without a marker would be an example that nothing tests.
    without_marker = [block.line for block in listed if block.language in ("sh", "python", "console")]
    marked = [block.line for block in listed if block.marker.startswith(("needs", "not executed"))]
    assert sorted([*runner.executed, *marked, *marked]) == sorted(without_marker * 2)


def test_the_main_pages_have_examples() -> None:
    expected = {"README", "getting-started", "python-client", "command-line", "running", "http-api"}

    assert expected <= {page.stem for page in WITH_EXAMPLES}

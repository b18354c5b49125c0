"""Fenced blocks of README and docs: known languages and known markers."""

import json
from pathlib import Path

import pytest

from docs.markdown import PAGES, blocks

# Blocks that are not executed, at most. Each one has its reason in its marker.
MOST_NOT_EXECUTED = 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_have_known_languages_and_markers(page: Path) -> None:
    problems = [f"{block.line}: {block.marker_problem}" for block in blocks(page.read_text("utf-8"))]

    assert [problem for problem in problems if not problem.endswith(": ")] == []


def test_few_blocks_are_not_executed() -> None:
    listed = [block for page in PAGES for block in blocks(page.read_text("utf-8"))]

    assert sum(block.marker.startswith("not executed") for block in listed) <= MOST_NOT_EXECUTED


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_json_blocks_are_json(page: Path) -> None:
    for block in blocks(page.read_text("utf-8")):
        if block.language == "json":
            for document in block.text.strip().split("\n\n"):
                json.loads(document)


def test_readme_is_short() -> None:
    assert len(PAGES[0].read_text("utf-8").splitlines()) <= 120

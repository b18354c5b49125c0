"""The runner of the examples sees what is wrong with an example."""

from pathlib import Path

import pytest

from docs import markdown
from docs.execution import ExampleFailed, Runner
from docs.markdown import Block, anchors, blocks, links
from docs.output import matches


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    runner = Runner(Path("page.md"), tmp_path)
    monkeypatch.setattr(runner, "_start", lambda command: command)
    return runner


@pytest.mark.parametrize(
    "block",
    [
        Block("sh", "false\n", 1),
        Block("sh", "false | true\n", 1),
        Block("console", "$ echo one\ntwo\n", 1),
        Block("console", "$ echo one\none\n$ echo two\n", 1),
        Block("console", "echo one\n", 1),
    ],
)
def test_wrong_block_fails(runner: Runner, block: Block) -> None:
    with pytest.raises(ExampleFailed, match=r"page\.md:1"):
        runner.run([block])


def test_exception_of_a_snippet_is_raised(runner: Runner) -> None:
    with pytest.raises(ZeroDivisionError):
        runner.run([Block("python", "1 / 0\n", 1)])


@pytest.mark.parametrize(("language", "text"), [("sh", "echo 1\n"), ("python", "print(1)\n")])
def test_output_of_a_block_is_compared(runner: Runner, language: str, text: str) -> None:
    runner.run([Block(language, text, 1), Block("text", "1\n", 5)])

    with pytest.raises(ExampleFailed, match=r"page\.md:5"):
        runner.run([Block(language, text, 1), Block("text", "2\n", 5)])


def test_output_marked_as_varying_is_not_compared(runner: Runner) -> None:
    runner.run([Block("sh", "echo 1\n", 1), Block("text", "2\n", 5, "output varies")])


def test_snippets_share_names_and_directory(runner: Runner, tmp_path: Path) -> None:
    write = "from pathlib import Path\nPath('a').write_text('x')\n"

    runner.run([Block("python", write, 1), Block("python", "Path('a').rename('b')\n", 5), Block("sh", "cat b", 9)])

    assert (tmp_path / "b").read_text() == "x"
    assert runner.executed == [1, 5, 9]


def test_marked_blocks_are_not_executed(runner: Runner) -> None:
    runner.run([Block("sh", "false\n", 1, "needs: docker"), Block("sh", "false\n", 5, "not executed: takes minutes")])

    assert runner.executed == []


@pytest.mark.parametrize("installed", [True, False])
def test_mlx_lm_block_is_executed_if_installed(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "HAS_MLX_LM", installed)

    assert Block("python", "", 1, "needs: mlx-lm").is_executed is installed


@pytest.mark.parametrize("marker", ["need: mac", "needs: luck", "needs", "not executed", "background: x", "todo"])
def test_unknown_marker_is_a_problem(marker: str) -> None:
    assert Block("sh", "", 1, marker).marker_problem


@pytest.mark.parametrize("marker", ["", "background", "needs: mac", "needs: mlx-lm", "not executed: takes minutes"])
def test_known_marker_is_no_problem(marker: str) -> None:
    assert Block("sh", "", 1, marker).marker_problem == ""


def test_unknown_language_is_a_problem() -> None:
    assert Block("ruby", "", 1).marker_problem
    assert Block("", "", 1).marker_problem


def test_blocks_are_parsed() -> None:
    text = "a\n\n<!-- needs: mac -->\n```sh\nls\n```\nb\n```text\n# no heading\n```\n"

    assert list(blocks(text)) == [Block("sh", "ls\n", 4, "needs: mac"), Block("text", "# no heading\n", 8)]
    assert anchors(text) == set()


def test_open_fence_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 1"):
        list(blocks("```sh\nls\n"))


def test_anchors_are_those_of_github() -> None:
    assert anchors("# Read: `GET /kv`\n## A b\n## A b\n### [x](y) z\n") == {"read-get-kv", "a-b", "a-b-1", "x-z"}


def test_links_are_found() -> None:
    assert list(links("[a](b.md#c) and `[d](e)`\n\n[f\nf](g)")) == [(1, "b.md#c"), (4, "g")]


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ("a ... c", "a b c", True),
        ("a ... c", "a b d", False),
        ("2026-11-26 08:26:16+00:00", "2027-01-01 00:00:00+00:00", True),
        ("cpu backend (avx2, 2 threads), x", "cpu backend (avx512, 16 threads), x", True),
        ("budget 1GiB", "budget 11.8GiB", True),
        ("a.c", "abc", False),
        ("", "x", False),
    ],
)
def test_output_is_compared_where_it_does_not_vary(expected: str, got: str, same: bool) -> None:
    assert matches(expected, got) is same

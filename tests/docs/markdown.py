"""Parser of the Markdown that README and docs use: fenced blocks with their markers, headings, links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

# Languages of fenced blocks. The first group is executed, the second one is data.
EXECUTED = {"sh", "python", "console"}
DATA = {"text", "json", "yaml", "ini", "mermaid"}

# What a block needs that the machine may not have.
NEEDS = {"mac", "docker", "gpu", "mlx-lm"}
HAS_MLX_LM = find_spec("mlx_lm") is not None

_FENCE = re.compile(r"^```(\S*)\s*$")
_MARKER = re.compile(r"^<!--\s*(.*?)\s*-->$")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`]*`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        language: word after the opening fence.
        text: lines between the fences.
        line: line number of the opening fence, from 1.
        marker: text of the HTML comment on the line before the block; empty without one.
    """

    language: str
    text: str
    line: int
    marker: str = ""

    @property
    def is_executed(self) -> bool:
        """Whether the examples' test runs the block."""
        markers = {"", "background"} | ({"needs: mlx-lm"} if HAS_MLX_LM else set())
        return self.language in EXECUTED and self.marker in markers

    @property
    def marker_problem(self) -> str:
        """What is wrong with language or marker; empty if nothing is."""
        if self.language not in EXECUTED | DATA:
            return f"unknown language {self.language!r}"
        name, _, value = (part.strip() for part in self.marker.partition(":"))
        known = {
            "": not value,
            "background": self.language == "sh" and not value,
            "output varies": self.language == "text" and not value,
            "needs": self.language in EXECUTED and value in NEEDS,
            "not executed": self.language in EXECUTED and bool(value),
        }
        return "" if known.get(name) else f"unknown marker {self.marker!r} for {self.language!r}"


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks in order.

    Raises:
        ValueError: a fence is not closed.
    """
    marker, opened, language = "", 0, ""
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if opened:
            if line.strip() == "```":
                yield Block(language, "".join(f"{each}\n" for each in lines), opened, marker)
                marker, opened = "", 0
            else:
                lines.append(line)
        elif fence:
            opened, language, lines = number, fence[1], []
        else:
            comment = _MARKER.match(line)
            marker = comment[1] if comment else ""
    if opened:
        raise ValueError(f"line {opened}: the fence is not closed")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line outside fenced blocks."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of the headings."""
    found: dict[str, int] = {}
    result = set()
    for _, line in prose(text):
        if heading := _HEADING.match(line):
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "")
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            times = found.get(slug, 0)
            found[slug] = times + 1
            result.add(f"{slug}-{times}" if times else slug)
    return result


def links(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and target of each link; a link may go on in the next line."""
    lines = dict(prose(text))
    joined = "\n".join(lines.get(number, "") for number in range(1, max(lines, default=0) + 1))
    # Code is blanked rather than removed, so that the numbers of lines stay.
    joined = _CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), joined)
    for link in _LINK.finditer(joined):
        yield joined.count("\n", 0, link.start(1)) + 1, link[1]

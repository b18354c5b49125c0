"""Comparison of real output with the output that a page shows."""

import re

# Parts of an output that differ between runs and machines, and what stands for them.
_MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"), "<time>"),
    (re.compile(r"\b\w+ backend \([^)]*\)"), "<backend>"),
    (re.compile(r"budget [\d.]+[KMGT]iB"), "budget <size>"),
    (re.compile(r"\b[0-9a-f]{16}-[0-9a-f]+\b"), "<request id>"),
)


def masked(text: str) -> str:
    """Return the text with times, sizes of budgets, names of backends and request ids replaced."""
    for pattern, name in _MASKS:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def matches(expected: str, got: str) -> bool:
    """Whether an output is the expected one; `...` in the expected one stands for any text."""
    pattern = ".*?".join(map(re.escape, masked(expected).split("...")))
    return re.fullmatch(pattern, masked(got), re.DOTALL) is not None

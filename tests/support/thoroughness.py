"""How many examples tests try: few in `make test`, all in `make test-all`."""

# Set by `tests/conftest.py` before any test module is imported.
is_exhaustive = False


def examples(usual: int, *, exhaustive: int) -> int:
    """Return the number of examples to try in this run."""
    return exhaustive if is_exhaustive else usual

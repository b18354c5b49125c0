"""One target under atheris: `python tests/fuzzing/guided.py TARGET FILE <options of libFuzzer> CORPUS`.

What it imports is compiled anew with counters in it, so that libFuzzer keeps the inputs that reach something new. The
outcomes are written to FILE, as JSON; whatever nobody expects ends the process with a trace.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import atheris

# libFuzzer ends the process without asking anybody, so it is written time and again.
WRITE_EVERY = 64


def main() -> None:
    """The command line."""
    name, told = sys.argv[1], Path(sys.argv[2])
    _let_sources_be_found()
    with atheris.instrument_imports(include=["hadakv_service", "uvicorn.protocols"]):
        from fuzzing import parse, protocol  # noqa: F401 - what is imported later gets no counters
        from fuzzing.in_process import target

    with target(name) as (outcome, mutated):
        fuzz(outcome, mutated, told)


def fuzz(outcome: Callable[[bytes], str], mutated: Callable[[bytes, random.Random], bytes], told: Path) -> None:
    """Let libFuzzer try inputs; it ends the process."""
    seen: Counter[str] = Counter()

    def one(data: bytes) -> None:
        seen[outcome(data)] += 1
        if seen.total() % WRITE_EVERY == 0:
            told.write_text(json.dumps(seen), "utf-8")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        made = mutated(data, rng) if rng.random() < 0.8 else atheris.Mutate(data, most)
        return bytes(made[:most])

    atheris.Setup([sys.argv[0], *sys.argv[3:]], one, custom_mutator=mutate)
    atheris.Fuzz()


def _let_sources_be_found() -> None:
    """Have modules found in their folder: those that an editable install's own finder finds get no counters."""
    found = find_spec("hadakv_service")
    assert found is not None
    assert found.origin is not None
    sys.path.append(str(Path(found.origin).parents[1]))
    sys.meta_path.insert(0, PathFinder)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    main()

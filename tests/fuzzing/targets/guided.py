"""Run a target under atheris: `python tests/fuzzing/targets/guided.py TARGET FILE <options of libFuzzer> CORPUS`.

Imported modules are instrumented, so that libFuzzer keeps inputs that reach new code. The outcomes are written to FILE
as JSON. An unexpected exception ends the process with a traceback.
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

# libFuzzer ends the process without notice, so the outcomes are written regularly.
WRITE_EVERY = 64


def main() -> None:
    """Run the command line."""
    name, told = sys.argv[1], Path(sys.argv[2])
    _let_sources_be_found()
    with atheris.instrument_imports(include=["hadakv_service", "uvicorn.protocols"]):
        from fuzzing.targets import protocol  # noqa: F401 - later imports are not instrumented
        from fuzzing.targets.in_process import target

    with target(name) as (outcome, mutated):
        fuzz(outcome, mutated, told)


def fuzz(outcome: Callable[[bytes], str], mutated: Callable[[bytes, random.Random], bytes], told: Path) -> None:
    """Run libFuzzer. It ends the process."""
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
    """Let modules be found in their folder. Modules found by an editable install's finder are not instrumented."""
    found = find_spec("hadakv_service")
    assert found is not None
    assert found.origin is not None
    sys.path.append(str(Path(found.origin).parents[1]))
    sys.meta_path.insert(0, PathFinder)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    main()

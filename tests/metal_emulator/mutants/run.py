"""Deliberate faults in the kernels and their launches, and the proofs that detect each of them.

`python tests/metal_emulator/mutants/run.py` prints a table. A fault replaces one passage of a file, in memory.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from metal_emulator.compile.compiler import CompileError
from metal_emulator.compile.metal_source import KernelText
from metal_emulator.compile.mlx_capture import mlx_texts
from metal_emulator.executor import Dispatch, Executor, executing
from metal_emulator.launch import KernelFault, Pass
from metal_emulator.lint.lint import lint
from metal_emulator.mutants.mutated_modules import (
    DECODINGS,
    ENCODINGS,
    ON_BOUNDARIES,
    UNROTATED,
    changed,
    changed_backend,
    must_be_same,
)
from metal_emulator.mutants.mutations import MUTATIONS, Mutation
from metal_emulator.proofs import kernel_calls as calls
from metal_emulator.proofs.batching import must_gather
from metal_emulator.proofs.expected_text import contractions, expected_text
from metal_emulator.proofs.far_rows import must_be_same_far
from metal_emulator.proofs.hard_vectors import boundary_vectors
from metal_emulator.proofs.kernel_calls import Call
from metal_emulator.proofs.outputs import check_encoding

PROOFS = ("text", "lint", "execution")
# These calls use every multiplication of a row number.
FAR = {"encode": ENCODINGS[-2:], "decode": DECODINGS[-1:]}
EXCEPTIONS = (AssertionError, KernelFault, CompileError, ValueError)


@dataclass(frozen=True)
class Verdict:
    """Message of each proof; empty if the proof detects no fault."""

    text: str
    lint: str
    execution: str

    @property
    def seen_by(self) -> str:
        """Names of the proofs that detect a fault."""
        return ", ".join(name for name in PROOFS if getattr(self, name))


def verdict(mutation: Mutation | None) -> Verdict:
    """Run all three proofs on the kernels with a fault, or without one."""
    if mutation and mutation.file in ("backend.py", "batching.py"):
        return Verdict("", "", _gathering(mutation))
    mlx_kernels = changed(mutation)
    kinds = mutation.kinds if mutation else ("encode", "decode")
    some: dict[str, Sequence[Call]] = {"encode": ENCODINGS, "decode": DECODINGS}
    with executing() as executor:
        text = "; ".join(filter(None, (_text(executor, mlx_kernels, kind, some[kind]) for kind in kinds)))
        found = "; ".join(filter(None, (_lint(executor, mlx_kernels, some[kind]) for kind in kinds)))
        executed = _execution(executor, mlx_kernels, [call for kind in kinds for call in some[kind]])
    executed = executed or _far(mlx_kernels, [call for kind in kinds for call in FAR[kind]])
    if mutation is None:
        executed = executed or _gathering(None)
    return Verdict(text, found, executed)


def _text(executor: Executor, mlx_kernels: ModuleType, kind: str, some: Sequence[Call]) -> str:
    dispatches = _planned(executor, mlx_kernels, some)
    unlike = [
        str(call)
        for call, text in zip(some, mlx_texts(dispatches), strict=bool(dispatches))
        if text != expected_text(mlx_kernels, call)
    ]
    return "; ".join(
        [*(f"not as expected: {call}" for call in unlike), *contractions(mlx_kernels.header("metal", kind))]
    )


def _lint(executor: Executor, mlx_kernels: ModuleType, some: Sequence[Call]) -> str:
    return _first_finding(tuple(dict.fromkeys(dispatch.text for dispatch in _planned(executor, mlx_kernels, some))))


@cache
def _first_finding(texts: tuple[KernelText, ...]) -> str:
    """Return the first lint finding. Cached, because many faults of a launch do not change the text."""
    return str(next(iter(lint(texts[0], texts[1:])), "")) if texts else ""


def _planned(executor: Executor, mlx_kernels: ModuleType, some: Sequence[Call]) -> list[Dispatch]:
    try:
        return calls.planned(executor, mlx_kernels, some)
    except ValueError:  # MLX or Metal rejects the call, which execution reports
        return []


def _execution(executor: Executor, mlx_kernels: ModuleType, some: Sequence[Call]) -> str:
    encodes = ENCODINGS[0] in some
    try:
        executor.prepare(calls.planned(executor, mlx_kernels, [ON_BOUNDARIES, *some] if encodes else some))
        if encodes:
            check_encoding(mlx_kernels, ON_BOUNDARIES, boundary_vectors(UNROTATED), boundary_vectors(UNROTATED))
        must_be_same(mlx_kernels, some)
    except EXCEPTIONS as error:
        return _first_line(error)
    return ""


def _far(mlx_kernels: ModuleType, some: Sequence[Call]) -> str:
    try:
        with executing(Executor(passes=(Pass(),))):
            for call in some:
                must_be_same_far(mlx_kernels, call)
    except EXCEPTIONS as error:
        return _first_line(error)
    return ""


def _gathering(mutation: Mutation | None) -> str:
    try:
        with executing(Executor(passes=(Pass(),))) as executor:
            must_gather(changed_backend(mutation), executor)
    except EXCEPTIONS as error:
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def main() -> int:
    """Print a table of all faults. The exit status is 1 if a fault is not detected."""
    argparse.ArgumentParser(prog="make mutants", description=__doc__).parse_args()
    missed = 0
    for name, mutation in MUTATIONS.items():
        found = verdict(mutation)
        missed += not found.seen_by
        print(f"{mutation.file:18} {name:46} {found.seen_by or '-'}", flush=True)  # noqa: T201 - the table
    print(f"{len(MUTATIONS)} faults, {len(MUTATIONS) - missed} detected")  # noqa: T201 - the table's last line
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

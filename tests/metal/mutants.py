"""Deliberate faults in the kernels and in what launches them, and which proof sees each.

`python tests/metal/mutants.py` prints the table. A fault replaces one passage of a file, in memory.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from metal import calls
from metal.build import CompileError
from metal.calls import Call
from metal.capture import mlx_texts
from metal.checks import check_encoding
from metal.executor import Dispatch, Executor, executing
from metal.expected_text import contractions, expected_text
from metal.far import must_be_same_far
from metal.gathering import must_gather
from metal.launch import KernelFault, Pass
from metal.lint import lint
from metal.mutations import MUTATIONS, Mutation
from metal.planted import DECODINGS, ENCODINGS, ON_BOUNDARIES, UNROTATED, changed, changed_backend, must_be_same
from metal.source import KernelText
from metal.vectors import boundary_vectors

PROOFS = ("text", "lint", "execution")
# Every product of a row's number is in them.
FAR = {"encode": ENCODINGS[-2:], "decode": DECODINGS[-1:]}
EXCEPTIONS = (AssertionError, KernelFault, CompileError, ValueError)


@dataclass(frozen=True)
class Verdict:
    """What each proof says; nothing where it sees no fault."""

    text: str
    lint: str
    execution: str

    @property
    def seen_by(self) -> str:
        """The proofs that see a fault."""
        return ", ".join(name for name in PROOFS if getattr(self, name))


def verdict(mutation: Mutation | None) -> Verdict:
    """All three proofs of the kernels with that fault, or as they are."""
    if mutation and mutation.file == "gpu.py":
        return Verdict("", "", _gathering(mutation))
    launch = changed(mutation)
    kinds = mutation.kinds if mutation else ("encode", "decode")
    some: dict[str, Sequence[Call]] = {"encode": ENCODINGS, "decode": DECODINGS}
    with executing() as executor:
        text = "; ".join(filter(None, (_text(executor, launch, kind, some[kind]) for kind in kinds)))
        found = "; ".join(filter(None, (_lint(executor, launch, some[kind]) for kind in kinds)))
        executed = _execution(executor, launch, [call for kind in kinds for call in some[kind]])
    executed = executed or _far(launch, [call for kind in kinds for call in FAR[kind]])
    if mutation is None:
        executed = executed or _gathering(None)
    return Verdict(text, found, executed)


def _text(executor: Executor, launch: ModuleType, kind: str, some: Sequence[Call]) -> str:
    dispatches = _planned(executor, launch, some)
    unlike = [
        str(call)
        for call, text in zip(some, mlx_texts(dispatches), strict=bool(dispatches))
        if text != expected_text(launch, call)
    ]
    return "; ".join([*(f"not as expected: {call}" for call in unlike), *contractions(launch.header("metal", kind))])


def _lint(executor: Executor, launch: ModuleType, some: Sequence[Call]) -> str:
    return _first_finding(tuple(dict.fromkeys(dispatch.text for dispatch in _planned(executor, launch, some))))


@cache
def _first_finding(texts: tuple[KernelText, ...]) -> str:
    """Cached, as many faults of a launch change no text."""
    return str(next(iter(lint(texts[0], texts[1:])), "")) if texts else ""


def _planned(executor: Executor, launch: ModuleType, some: Sequence[Call]) -> list[Dispatch]:
    try:
        return calls.planned(executor, launch, some)
    except ValueError:  # MLX or Metal refuses the call: that is for execution to see
        return []


def _execution(executor: Executor, launch: ModuleType, some: Sequence[Call]) -> str:
    encodes = ENCODINGS[0] in some
    try:
        executor.prepare(calls.planned(executor, launch, [ON_BOUNDARIES, *some] if encodes else some))
        if encodes:
            check_encoding(launch, ON_BOUNDARIES, boundary_vectors(UNROTATED), boundary_vectors(UNROTATED))
        must_be_same(launch, some)
    except EXCEPTIONS as error:
        return _first_line(error)
    return ""


def _far(launch: ModuleType, some: Sequence[Call]) -> str:
    try:
        with executing(Executor(passes=(Pass(),))):
            for call in some:
                must_be_same_far(launch, call)
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


def main() -> None:
    """Print the table."""
    missed = 0
    for name, mutation in MUTATIONS.items():
        found = verdict(mutation)
        missed += not found.seen_by
        print(f"{mutation.file:18} {name:46} {found.seen_by or '-'}", flush=True)  # noqa: T201 - the table
    print(f"{len(MUTATIONS)} faults, {len(MUTATIONS) - missed} seen")  # noqa: T201 - the table's last line


if __name__ == "__main__":
    main()

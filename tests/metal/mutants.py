"""Deliberate faults in the kernels and in what launches them, and which proof sees each.

`python tests/metal/mutants.py` prints the table, `python tests/metal/mutants.py cuda NAME` what a CUDA device makes of
a fault in its prelude. A fault replaces one passage of a file, in memory.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import hadakv_kernels
from hadakv_kernels import Codec
from metal import calls
from metal.build import CompileError
from metal.calls import Call, Decoding, Encoding
from metal.capture import mlx_texts
from metal.checks import check_encoding, every_way
from metal.executor import Dispatch, Executor, executing
from metal.expected_text import contractions, expected_text
from metal.launch import KernelFault
from metal.lint import lint
from metal.mutations import CUDA_MUTATIONS, MUTATIONS, Mutation
from metal.source import KernelText
from metal.vectors import boundary_vectors, unrotated_bytes

UNROTATED = unrotated_bytes(4, "mlx-native", 128)
ON_BOUNDARIES = Encoding("float32", UNROTATED)
ENCODINGS = (
    Encoding("float32", Codec(4).at(256)),
    Encoding("float32", Codec(3, norm="unbiased").at(64), Codec(8, rotation="none").at(64)),
    Encoding("bfloat16", Codec(5, norm="unbiased").at(512), Codec(6).at(512)),
    Encoding("float16", Codec(kind="float16").at(128), Codec(2, rotation="none", layout="byte").at(128)),
    Encoding("float32", Codec(5).at(128), diagnose=True),
)
DECODINGS = (
    Decoding("float32", Codec(3).at(64)),
    Decoding("bfloat16", Codec(6).at(256)),
    Decoding("float16", Codec(5).at(512)),
    Decoding("float32", Codec(8).at(128), inverse=False),
)
PROOFS = ("text", "lint", "execution")
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
    launch = changed(mutation)
    kinds = mutation.kinds if mutation else ("encode", "decode")
    some: dict[str, Sequence[Call]] = {"encode": ENCODINGS, "decode": DECODINGS}
    with executing() as executor:
        text = "; ".join(filter(None, (_text(executor, launch, kind, some[kind]) for kind in kinds)))
        found = "; ".join(filter(None, (_lint(executor, launch, some[kind]) for kind in kinds)))
        executed = _execution(executor, launch, [call for kind in kinds for call in some[kind]])
    return Verdict(text, found, executed)


def changed(mutation: Mutation | None) -> ModuleType:
    """A module like `hadakv_kernels.launch`, with the fault in it or in the sources it reads."""
    folder = files("hadakv_kernels")
    code = folder.joinpath("launch.py").read_text("utf-8")
    launch = ModuleType("hadakv_kernels.launch")
    launch.__package__ = hadakv_kernels.__name__
    text = ""
    if mutation:
        text = folder.joinpath(mutation.file).read_text("utf-8")
        if text.count(mutation.right) != 1:
            raise LookupError(f"{mutation.file} has {text.count(mutation.right)} times {mutation.right!r}")
        text = text.replace(mutation.right, mutation.wrong)
        code = text if mutation.file == "launch.py" else code
    exec(compile(code, "launch.py", "exec"), vars(launch))
    if mutation and mutation.file != "launch.py":
        read = launch.source
        vars(launch)["source"] = lambda name: text if f"{name}.msl" == mutation.file else read(name)
    return launch


def _text(executor: Executor, launch: ModuleType, kind: str, some: Sequence[Call]) -> str:
    dispatches = _planned(executor, launch, some)
    unlike = [
        str(call)
        for call, text in zip(some, mlx_texts(dispatches), strict=bool(dispatches))
        if text != expected_text(launch, call)
    ]
    return "; ".join([*(f"not as expected: {call}" for call in unlike), *contractions(launch.header("metal", kind))])


def _lint(executor: Executor, launch: ModuleType, some: Sequence[Call]) -> str:
    return _first_finding(tuple(dispatch.text for dispatch in _planned(executor, launch, some)))


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
    try:
        executor.prepare(calls.planned(executor, launch, [ON_BOUNDARIES, *some] if ENCODINGS[0] in some else some))
        if ENCODINGS[0] in some:
            check_encoding(launch, ON_BOUNDARIES, boundary_vectors(UNROTATED), boundary_vectors(UNROTATED))
        _must_be_same(launch, some, "metal")
    except EXCEPTIONS as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _must_be_same(launch: ModuleType, some: Sequence[Call], platform: str) -> None:
    for call in some:
        for output in chain.from_iterable(every_way(launch, call, platform=platform)):
            output.must_be_same()


def seen_by_cuda(name: str) -> str:
    """What a CUDA device makes of a fault; nothing where it sees none.

    Asked once in a process: MLX keeps the kernels it has compiled by their names, and a fault may break the device.
    """
    try:
        _must_be_same(changed(CUDA_MUTATIONS[name] if name else None), [*ENCODINGS, *DECODINGS], "cuda")
    except (AssertionError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def main() -> None:
    """Print the table."""
    missed = 0
    for name, mutation in MUTATIONS.items():
        found = verdict(mutation)
        missed += not found.seen_by
        print(f"{mutation.file:18} {name:46} {found.seen_by or '-'}", flush=True)  # noqa: T201 - the table
    print(f"{len(MUTATIONS)} faults, {len(MUTATIONS) - missed} seen")  # noqa: T201 - the table's last line


if __name__ == "__main__":
    if sys.argv[1:2] == ["cuda"]:
        print(seen_by_cuda(sys.argv[2]))  # noqa: T201 - the answer
    else:
        main()

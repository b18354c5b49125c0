"""Copies of the modules with a fault in them, in memory, and the calls that must show the fault."""

from collections.abc import Iterable
from importlib.resources import files
from itertools import chain
from types import ModuleType

import hadakv_kernels.gpu
from hadakv_kernels import Codec
from metal_emulator.mutants.mutations import Mutation
from metal_emulator.proofs.hard_vectors import unrotated_bytes
from metal_emulator.proofs.kernel_calls import Call, Decoding, Encoding
from metal_emulator.proofs.outputs import every_way

# Functions of batching.py that backend.py uses.
BATCHING = ("plan_launches", "concatenate", "split")

UNROTATED = unrotated_bytes(4, "mlx-native", 128)
ON_BOUNDARIES = Encoding("float32", UNROTATED)
ENCODINGS = (
    Encoding("float32", Codec(4).at(256)),
    Encoding("float32", Codec(3, norm="unbiased").at(64), Codec(8, rotation="none").at(64)),
    Encoding("bfloat16", Codec(5, norm="unbiased").at(512), Codec(6).at(512)),
    # This factor gives every value the same index: half of the projections are negative, and some are zero.
    Encoding("bfloat16", Codec(5, norm="unbiased", d512_scale=1e-30).at(512), Codec(6).at(512)),
    Encoding("float16", Codec(kind="float16").at(128), Codec(2, rotation="none", layout="byte").at(128)),
    Encoding("float32", Codec(5).at(128), diagnose=True),
)
DECODINGS = (
    Decoding("float32", Codec(3).at(64)),
    Decoding("bfloat16", Codec(6).at(256)),
    Decoding("float16", Codec(5).at(512)),
    Decoding("float32", Codec(8).at(128), inverse=False),
)


def changed(mutation: Mutation | None) -> ModuleType:
    """Return a copy of `hadakv_kernels.gpu.mlx_kernels` with the fault in it, or in the sources that it reads."""
    if mutation and mutation.file == "mlx_kernels.py":
        return _module("mlx_kernels", _faulty(mutation))
    mlx_kernels = _module("mlx_kernels", _text("mlx_kernels.py"))
    if mutation:
        faulty, read = _faulty(mutation), mlx_kernels.source
        vars(mlx_kernels)["source"] = lambda name: faulty if f"{name}.msl" == mutation.file else read(name)
    return mlx_kernels


def changed_backend(mutation: Mutation | None) -> ModuleType:
    """Return a copy of `hadakv_kernels.gpu.backend` with the fault in it, or in the batching that it uses."""
    if mutation and mutation.file == "batching.py":
        backend = _module("backend", _text("backend.py"))
        batching = vars(_module("batching", _faulty(mutation)))
        vars(backend).update({name: batching[name] for name in BATCHING})
        return backend
    return _module("backend", _faulty(mutation) if mutation else _text("backend.py"))


def must_be_same(mlx_kernels: ModuleType, some: Iterable[Call], platform: str = "metal") -> None:
    """Check all outputs of the calls, in every way to run them."""
    for call in some:
        for output in chain.from_iterable(every_way(mlx_kernels, call, platform=platform)):
            output.must_be_same()


def _text(file: str) -> str:
    folder = files("hadakv_kernels.gpu")
    return (folder / "msl" / file if file.endswith(".msl") else folder / file).read_text("utf-8")


def _faulty(mutation: Mutation) -> str:
    text = _text(mutation.file)
    if text.count(mutation.right) != 1:
        raise LookupError(
            f"{mutation.file} contains {mutation.right!r} {text.count(mutation.right)} times, must be once"
        )
    return text.replace(mutation.right, mutation.wrong)


def _module(name: str, code: str) -> ModuleType:
    module = ModuleType(f"hadakv_kernels.gpu.{name}")
    module.__package__ = hadakv_kernels.gpu.__name__
    exec(compile(code, f"{name}.py", "exec"), vars(module))
    return module

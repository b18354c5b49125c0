"""Contenders that encode the same values: this project's codec, its NumPy reference, MLX's and gguf's quantizers.

Each contender runs in a process of its own and times one operation at a time, on request of its parent.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20_240_229
# Slow contenders get fewer elements, still far more than caches hold.
REFERENCE_SHARE = 64

Operation = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Contender. `dtype` is the dtype of the decoded values."""

    kind: str
    elements: int
    bits: int = 4
    head_dim: int = 256
    dtype: str = "float32"
    threads: int = 1

    def to_json(self) -> str:
        """Return the argument for the command line of its process."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Contender:
    """Operations by name. `coded_bytes` is the size of the result of `encode`."""

    elements: int
    value_bytes: int
    coded_bytes: int
    operations: dict[str, Operation]


def values(case: Case) -> NDArray[Any]:
    """Return seeded normal values `[rows, head_dim]`."""
    block = np.random.default_rng(SEED).standard_normal(1 << 20, dtype=np.float32)
    x = np.resize(block, (case.elements // case.head_dim, case.head_dim))
    if case.dtype == "float32":
        return x
    from hadakv_kernels.reference import DTYPES

    return x.astype(DTYPES[case.dtype])


def engine(case: Case) -> Contender:
    """C++ codec with preallocated output, and a loop that only moves as many bytes."""
    from hadakv_kernels import Codec
    from hadakv_kernels.cpu import CpuBackend, native_plan

    native = CpuBackend(case.threads).engine
    if native is None:
        raise SystemExit("the C++ path is not built")
    spec = Codec(bits=case.bits).at(case.head_dim)
    plan, code = native_plan(spec), ("float32", "float16", "bfloat16").index(case.dtype)
    x = values(case)
    x = x.view(np.uint16) if case.dtype == "bfloat16" else x
    out, packed = np.ones_like(x), np.ones((len(x), spec.row_bytes), np.uint8)
    norms = np.ones((len(x), spec.norms), np.float32)
    coded = np.ones(packed.nbytes + norms.nbytes, np.uint8)
    operations: dict[str, Operation] = {
        "encode bound": lambda: native.memory_loop(x, coded),
        "encode": lambda: native.encode(plan, code, x, packed, norms),
        "decode bound": lambda: native.memory_loop(coded, out),
        "decode": lambda: native.decode(plan, code, True, packed, norms, out),
    }
    return Contender(x.size, x.nbytes, coded.nbytes, operations)


def backend(case: Case) -> Contender:
    """C++ codec as the service calls it, with new output memory."""
    from hadakv_kernels import Codec, Stream
    from hadakv_kernels.cpu import CpuBackend

    cpu, x, spec = CpuBackend(case.threads), values(case), Codec(bits=case.bits).at(case.head_dim)
    streams = [Stream(x, spec)]
    coded = cpu.encode(streams)[0]
    operations: dict[str, Operation] = {
        "encode": lambda: cpu.encode(streams),
        "decode": lambda: cpu.decode(coded, spec, case.dtype),
    }
    return Contender(x.size, x.nbytes, coded.packed.nbytes + coded.norms.nbytes, operations)


def reference(case: Case) -> Contender:
    """NumPy reference."""
    from hadakv_kernels import Codec
    from hadakv_kernels.reference import decode, encode

    x, spec = values(case), Codec(bits=case.bits).at(case.head_dim)
    x = x[: len(x) // REFERENCE_SHARE]
    coded = encode(x, spec)
    operations: dict[str, Operation] = {
        "encode": lambda: encode(x, spec),
        "decode": lambda: decode(coded, spec, case.dtype),
    }
    return Contender(x.size, x.nbytes, coded.packed.nbytes + coded.norms.nbytes, operations)


def mlx(case: Case) -> Contender:
    """`mx.quantize` and `mx.dequantize`: affine, groups of 64, on the CPU."""
    import mlx.core as mx

    mx.set_default_device(mx.Device(mx.cpu))
    x = mx.array(values(case))
    coded = mx.quantize(x, group_size=64, bits=case.bits)
    mx.eval(x, *coded)
    operations: dict[str, Operation] = {
        "encode": lambda: mx.eval(mx.quantize(x, group_size=64, bits=case.bits)),
        "decode": lambda: mx.eval(mx.dequantize(*coded, group_size=64, bits=case.bits)),
    }
    return Contender(x.size, x.nbytes, sum(part.nbytes for part in coded), operations)


def gguf(case: Case) -> Contender:
    """Q4_0 and Q8_0 of llama.cpp, blocks of 32, computed in NumPy by the gguf package."""
    from gguf import GGMLQuantizationType, quants

    scheme = GGMLQuantizationType.Q4_0 if case.bits == 4 else GGMLQuantizationType.Q8_0
    x = values(case)
    coded = quants.quantize(x, scheme)
    operations: dict[str, Operation] = {
        "encode": lambda: quants.quantize(x, scheme),
        "decode": lambda: quants.dequantize(coded, scheme),
    }
    return Contender(x.size, x.nbytes, coded.nbytes, operations)


KINDS = {"engine": engine, "backend": backend, "reference": reference, "mlx": mlx, "gguf": gguf}


def serve(case: Case) -> None:
    """Run as a contender: print its description, then time each operation named on stdin."""
    contender = KINDS[case.kind](case)
    for operation in contender.operations.values():
        operation()
    sizes = {"elements": contender.elements, "value_bytes": contender.value_bytes}
    print(json.dumps(sizes | {"coded_bytes": contender.coded_bytes, "operations": [*contender.operations]}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        contender.operations[line.strip()]()
        print(time.perf_counter() - start, flush=True)

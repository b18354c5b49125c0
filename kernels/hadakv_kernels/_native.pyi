"""The codec in C++. Buffers are contiguous NumPy arrays of any element type and alignment; sizes are checked."""

from typing import Any

from numpy.typing import NDArray

def isas() -> list[str]:
    """Instruction sets this processor has kernels for, best first."""

class Plan:
    """A codec at a head_dim, with its tables."""

    def __init__(
        self,
        *,
        head_dim: int,
        bits: int,
        field_bits: int,
        rotated: bool,
        unbiased: bool,
        inv_sqrt: float,
        gain: float,
        centroids: NDArray[Any],
        boundaries: NDArray[Any],
        sign_bits: NDArray[Any],
    ) -> None: ...

class Engine:
    """Kernels for one instruction set, and the threads that run them.

    Element types are 0, 1, 2 for float32, float16, bfloat16.
    """

    def __init__(self, isa: str, threads: int) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def encode(self, plan: Plan, dtype: int, x: NDArray[Any], packed: NDArray[Any], norms: NDArray[Any]) -> None: ...
    def decode(
        self,
        plan: Plan,
        dtype: int,
        inverse: bool,
        packed: NDArray[Any],
        norms: NDArray[Any],
        out: NDArray[Any],
    ) -> None: ...
    def convert(self, from_dtype: int, to_dtype: int, x: NDArray[Any], out: NDArray[Any]) -> None: ...
    def memory_loop(self, x: NDArray[Any], out: NDArray[Any]) -> None:
        """Read all of x and write all of out, computing nothing: the bound that benchmarks compare with."""

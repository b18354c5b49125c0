"""The codec in C++. Buffers are contiguous NumPy arrays of any element type and alignment. Sizes are checked."""

from typing import Any

from numpy.typing import NDArray

def isas() -> list[str]:
    """Return the instruction sets with kernels for this processor, fastest first."""

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

    Element types are 0 for float32, 1 for float16 and 2 for bfloat16.
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
        """Read all of x and write all of out without computing. Benchmarks use it as the upper bound."""

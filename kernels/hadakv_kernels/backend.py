"""Where the codec runs: one interface over the processors it has an implementation for."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from hadakv_kernels.codec import CodecSpec
from hadakv_kernels.errors import BackendUnavailable
from hadakv_kernels.reference import Diagnostics, Encoded


class Stream(NamedTuple):
    """One array to encode: float32, float16 or bfloat16, shape [..., head_dim], C order."""

    x: Any
    spec: CodecSpec


class Backend(Protocol):
    """What the service asks of a device. Bytes are the same on every backend.

    Encoded arrays live wherever the backend keeps them; `concatenate` and `to_host` are the only ways to touch
    them besides slicing.

    Attributes:
        name: "cpu".
        detail: what of it was picked, for people to read.
    """

    name: str
    detail: str

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        """Encode every stream, those that are alike in one launch."""
        ...

    def all_finite(self, encoded: Encoded, spec: CodecSpec) -> bool:
        """Whether every norm (for float16, every value) is finite."""
        ...

    def decode(self, encoded: Encoded, spec: CodecSpec, dtype: str, *, inverse: bool = True) -> Any:
        """Values [..., head_dim] of that dtype, in host memory."""
        ...

    def diagnose(self, x: Any, spec: CodecSpec) -> Diagnostics:
        """Encode, keeping the scaled values and the RMS of each block."""
        ...

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """A new array of the backend's own, joined along an axis."""
        ...

    def to_host(self, array: Any) -> Any:
        """The same values as a C-order NumPy array."""
        ...


def open_backend(name: str = "auto", threads: int | None = None) -> Backend:
    """The backend of that name, or the best there is.

    Args:
        name: "auto" or "cpu".
        threads: worker threads of the CPU path; None uses every processor.

    Raises:
        BackendUnavailable: that backend cannot run here.
    """
    if name in ("auto", "cpu"):
        from hadakv_kernels.cpu import CpuBackend

        return CpuBackend(threads)
    raise BackendUnavailable(f"no backend named {name!r}: there is cpu")

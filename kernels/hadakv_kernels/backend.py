"""Interface that every backend of the codec implements, and the types it uses."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from hadakv_kernels.codec import CodecSpec
from hadakv_kernels.reference import Diagnostics, Encoded

# Names of the GPU backends, in order of preference.
GPUS = ("metal", "cuda")


class Stream(NamedTuple):
    """One array to encode: float32, float16 or bfloat16, shape [..., head_dim], C order."""

    x: Any
    spec: CodecSpec


class Backend(Protocol):
    """The codec on one device. All backends give the same bytes.

    A backend chooses where its encoded arrays live. Use only `concatenate`, `to_device`, `to_host`, slicing and
    reshaping on them.

    Attributes:
        name: "metal", "cuda" or "cpu".
        detail: description of the device, for users.
        memory_nbytes: memory in bytes that the device can hold before the machine swaps or allocation fails.
        slice_nbytes: maximum input in bytes for one call of `encode` while other jobs wait; None if the backend is
            fastest with all input in one call.
        encoded_rows: rows encoded so far, by the name of the processor that encoded them ("metal", "cuda" or "cpu").
    """

    name: str
    detail: str
    memory_nbytes: int
    slice_nbytes: int | None
    encoded_rows: dict[str, int]

    def limit_memory(self, stored: int, working: int) -> None:
        """Reserve device memory: `stored` bytes for encoded arrays, and `working` bytes for requests in progress.

        Raises:
            BackendUnavailable: the device has less memory than `stored + working`.
        """
        ...

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        """Encode every stream. Streams of the same codec, head_dim and dtype share a launch."""
        ...

    def encodes_on_cpu(self, rows: int) -> bool:
        """Whether `encode` of this many rows uses the CPU only, so that any thread may call it, one at a time."""
        ...

    def all_finite(self, encoded: Encoded, spec: CodecSpec) -> bool:
        """Whether every norm (for float16, every value) is finite."""
        ...

    def decode(self, encoded: Encoded, spec: CodecSpec, dtype: str, *, inverse: bool = True) -> Any:
        """Decode to values [..., head_dim] of `dtype`, in host memory."""
        ...

    def diagnose(self, x: Any, spec: CodecSpec) -> Diagnostics:
        """Encode x, and keep the scaled values and the RMS of each block."""
        ...

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Join arrays along an axis into a new array of the backend, which shares no memory with them."""
        ...

    def to_device(self, array: Any) -> Any:
        """Copy a NumPy array to where the backend keeps encoded arrays of that size, in C order."""
        ...

    def to_host(self, array: Any) -> Any:
        """Return the values as a C-order NumPy array."""
        ...


def host_memory_nbytes() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

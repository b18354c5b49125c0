"""Where the codec runs: one interface over the processors it has an implementation for."""

import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from hadakv_kernels.codec import CodecSpec
from hadakv_kernels.errors import BackendUnavailable
from hadakv_kernels.reference import Diagnostics, Encoded

_log = logging.getLogger(__name__)
# In the order of preference.
GPUS = ("metal", "cuda")


class Stream(NamedTuple):
    """One array to encode: float32, float16 or bfloat16, shape [..., head_dim], C order."""

    x: Any
    spec: CodecSpec


class Backend(Protocol):
    """What the service asks of a device. Bytes are the same on every backend.

    Encoded arrays live wherever the backend keeps them; `concatenate`, `to_device` and `to_host` are the only ways to
    touch them besides slicing and reshaping.

    Attributes:
        name: "metal", "cuda" or "cpu".
        detail: what of it was picked, for people to read.
        memory_nbytes: how much the device can hold before the machine swaps or refuses.
        slice_nbytes: input that a call to encode should not exceed where others wait; None where all at once is best.
    """

    name: str
    detail: str
    memory_nbytes: int
    slice_nbytes: int | None

    def limit_memory(self, stored: int, working: int) -> None:
        """Make room for so many bytes of encoded arrays, and beside them for so many that come and go with requests.

        Raises:
            BackendUnavailable: the device cannot hold so much.
        """
        ...

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

    def to_device(self, array: Any) -> Any:
        """A NumPy array's values where encoded arrays of that size are kept: in C order, in memory of their own."""
        ...

    def to_host(self, array: Any) -> Any:
        """The same values as a C-order NumPy array."""
        ...


def open_backend(name: str = "auto", threads: int | None = None) -> Backend:
    """The backend of that name, or the best there is.

    Args:
        name: "metal", "cuda", "cpu", or "auto" for the first of them that this machine has.
        threads: worker threads of the CPU path; None uses every processor.

    Raises:
        BackendUnavailable: that backend cannot run here.
    """
    if name == "auto":
        return _best(threads)
    if name == "cpu":
        from hadakv_kernels.cpu import CpuBackend

        return CpuBackend(threads)
    if name not in GPUS:
        raise BackendUnavailable(f"no backend named {name!r}: there are {', '.join((*GPUS, 'cpu'))}")
    try:
        from hadakv_kernels.gpu import GpuBackend
    except ImportError as error:
        raise BackendUnavailable(f"the {name} backend needs MLX: {error}") from error
    backend = GpuBackend(name)
    backend.check()
    return backend


def _best(threads: int | None) -> Backend:
    for name in GPUS:
        try:
            if not _is_there(name):
                continue
            return open_backend(name)
        except BackendUnavailable as error:
            _log.warning("%s; the CPU does the work", error)
    return open_backend("cpu", threads)


def _is_there(gpu: str) -> bool:
    try:
        from hadakv_kernels.gpu import is_available
    except ImportError:
        return False
    return is_available(gpu)


def host_memory_nbytes() -> int:
    """The memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

"""GPU backend: the kernel sources run through `mx.fast.metal_kernel` or `mx.fast.cuda_kernel`.

Small results stay in host memory, because responses need them there. Large results stay on the device until `to_host`
copies them. A few rows are encoded and decoded by the CPU, which takes less time than a launch. The bytes are the same.
"""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels.backend import Stream, host_memory_nbytes
from hadakv_kernels.codec import Codec, CodecSpec
from hadakv_kernels.cpu import CpuBackend
from hadakv_kernels.errors import BackendUnavailable
from hadakv_kernels.gpu import mlx_kernels
from hadakv_kernels.gpu.batching import concatenate, plan_launches, split
from hadakv_kernels.gpu.min_rows import measure_min_rows
from hadakv_kernels.reference import (
    DTYPES,
    Diagnostics,
    Encoded,
    check_decode,
    check_diagnose,
    check_input,
    decode,
    diagnose,
    encode,
)

# Maximum freed device memory that MLX keeps for the next launch. One bulk request needs at most this much, and other
# programs cannot use memory that MLX keeps.
CACHE_NBYTES = 1 << 30
# Results below this size are copied to the host at once. That takes one transfer, and no device memory is held by small
# slices.
SMALL_NBYTES = 1 << 20


class GpuBackend:
    """The codec on a GPU. Large arrays are `mx.array`s on the device.

    Attributes:
        detail: name of the GPU.
        memory_nbytes: maximum memory in bytes that the system recommends to use (Metal), or the GPU's memory (CUDA).
        min_rows: rows from which the GPU encodes and decodes. The CPU does calls with fewer rows. At first 0.
        encoded_rows: rows encoded so far, by the name of the processor that encoded them.

    Args:
        name: "metal" or "cuda".
        cpu: encodes and decodes calls with fewer than `min_rows` rows.

    Raises:
        BackendUnavailable: the machine has no such GPU, or this build of MLX does not support it.
    """

    # Encoding a whole body on a GPU is faster than a second kernel launch.
    slice_nbytes: int | None = None

    def __init__(self, name: str, cpu: CpuBackend | None = None) -> None:
        if not is_available(name):
            raise BackendUnavailable(f"the {name} backend needs a GPU that this build of MLX supports")
        try:
            info = mx.device_info()
        except (AttributeError, RuntimeError) as error:
            raise BackendUnavailable(f"the {name} backend does not work on this machine: {error}") from error
        self.name = name
        self.detail = str(info.get("device_name", "GPU"))
        recommended = info.get("max_recommended_working_set_size") or info.get("total_memory")
        self.memory_nbytes = int(recommended or host_memory_nbytes())
        self.min_rows = 0
        self.encoded_rows = {name: 0, CpuBackend.name: 0}
        self._cpu = cpu or CpuBackend()

    def limit_memory(self, stored: int, working: int) -> None:
        """Keep `stored + working` bytes resident, and tell MLX how much memory the device has in total.

        Raises:
            BackendUnavailable: the device has less memory than `stored + working`.
        """
        if stored + working > self.memory_nbytes:
            raise BackendUnavailable(
                f"{self.detail} has {self.memory_nbytes} bytes of memory. A memory budget of {stored} bytes leaves "
                f"less than the {working} bytes that requests need: lower the memory budget"
            )
        # This is a soft limit. Above it, MLX waits until running work frees memory, and then continues.
        mx.set_memory_limit(self.memory_nbytes)
        mx.set_cache_limit(min(CACHE_NBYTES, working // 2))
        if self.name == "metal":
            # The system would swap out pages that have not been read for a while. The limit counts all memory of MLX.
            mx.set_wired_limit(stored + working)

    def check(self) -> None:
        """Encode and decode a few vectors, because a GPU may reject the kernels or compute wrong results.

        Raises:
            BackendUnavailable: the kernels do not run, or their results differ from the reference.
        """
        spec = Codec().at(128)
        x = np.random.default_rng(0).standard_normal((33, 128)).astype(np.float16)
        expected = encode(x, spec)
        try:
            (got,) = self.encode([Stream(x, spec)])
            values = self.decode(expected, spec, "float32")
        except (RuntimeError, ValueError) as error:
            raise BackendUnavailable(f"the {self.name} backend does not work on this machine: {error}") from error
        computed = (self.to_host(got.packed), self.to_host(got.norms), values)
        if not all(map(np.array_equal, computed, (expected.packed, expected.norms, decode(expected, spec)))):
            raise BackendUnavailable(f"the {self.name} backend computes wrong results on this machine")

    def measure_min_rows(self) -> int:
        """Return the number of rows from which the GPU is faster than the CPU on this machine."""
        return measure_min_rows(self._encode_on_gpu, self._cpu.encode)

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        """Encode every stream: all of them on the CPU if they have few rows together, otherwise on the GPU."""
        rows = sum(x.size // spec.head_dim for x, spec in streams)
        if self.encodes_on_cpu(rows):
            encoded = self._cpu.encode(streams)
            self.encoded_rows[CpuBackend.name] += rows
        else:
            encoded = self._encode_on_gpu(streams)
            self.encoded_rows[self.name] += rows
        return encoded

    def encodes_on_cpu(self, rows: int) -> bool:
        """Whether `encode` of this many rows uses the CPU only."""
        return rows < self.min_rows

    def _encode_on_gpu(self, streams: Sequence[Stream]) -> list[Encoded]:
        """Encode every stream. `plan_launches` says which of them share a launch."""
        for x, spec in streams:
            check_input(x, spec)
        results: dict[int, Encoded] = {}
        for first, second in plan_launches(streams):
            whole = self._launch(*(concatenate(indices, streams) for indices in (first, second) if indices))
            for indices, encoded in zip((first, second), whole, strict=False):
                parts = split(encoded, [streams[i] for i in indices])
                results.update(zip(indices, [self._copy_if_view(part, encoded) for part in parts], strict=True))
        return [results[i] for i in range(len(streams))]

    def all_finite(self, encoded: Encoded, spec: CodecSpec) -> bool:
        """Whether every norm (for float16, every value) is finite."""
        values: Any = encoded.norms
        if spec.codec.kind == "float16":
            packed = encoded.packed
            values = packed.view(np.float16) if isinstance(packed, np.ndarray) else packed.view(mx.float16)
        if isinstance(values, np.ndarray):
            return bool(np.isfinite(values).all())
        return bool(mx.isfinite(values).all().item())

    def decode(self, encoded: Encoded, spec: CodecSpec, dtype: str, *, inverse: bool = True) -> NDArray[Any]:
        """Decode to values [..., head_dim] of `dtype`, in host memory."""
        check_decode(encoded, spec, dtype)
        lead = encoded.packed.shape[:-1]
        rows = int(np.prod(lead))
        if rows == 0:
            return np.empty((*lead, spec.head_dim), DTYPES[dtype])
        if self.encodes_on_cpu(rows) and isinstance(encoded.packed, np.ndarray):
            return self._cpu.decode(encoded, spec, dtype, inverse=inverse)
        if spec.codec.kind == "float16":
            return self.to_host(encoded.packed).view(np.float16).astype(DTYPES[dtype])
        packed = _on_device(encoded.packed).reshape(rows, spec.row_bytes)
        norms = _on_device(encoded.norms).reshape(rows, spec.norms)
        values = mlx_kernels.decode(self.name, packed, norms, spec, dtype, inverse=inverse)
        return self.to_host(values).reshape(*lead, spec.head_dim)

    def diagnose(self, x: NDArray[Any], spec: CodecSpec) -> Diagnostics:
        """Encode x, and keep the scaled values and the RMS of each block. All results are in host memory."""
        check_diagnose(x, spec)
        if x.size == 0:
            return diagnose(x, spec)
        lead = x.shape[:-1]
        flat = _on_device(np.ascontiguousarray(x).reshape(-1, spec.head_dim))
        outputs = mlx_kernels.encode(self.name, flat, spec, diagnose=True)
        packed, norms, _, _, scaled, rms = (self.to_host(array) for array in outputs)
        encoded = Encoded(packed.reshape(*lead, -1), norms.reshape(*lead, -1))
        return Diagnostics(encoded, scaled.reshape(x.shape), rms.reshape(*lead, -1))

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Join arrays along an axis into a new array: on the device, or in host memory if it is small."""
        if sum(array.nbytes for array in arrays) < SMALL_NBYTES:
            return np.concatenate([self.to_host(array) for array in arrays], axis)
        joined = mx.concatenate([_on_device(array) for array in arrays], axis)
        if len(arrays) == 1:
            # MLX returns a single array unchanged, and a slice shares memory. An addition makes a new array.
            joined = joined + mx.array(0, joined.dtype)
        mx.eval(joined)
        return joined

    def to_device(self, array: NDArray[Any]) -> Any:
        """Copy an array to the device, or to host memory if it is small."""
        if array.nbytes < SMALL_NBYTES:
            return np.array(array, order="C")
        # MLX copies the array but keeps its order of axes in memory. Make it C order first.
        copy = _on_device(np.ascontiguousarray(array))
        mx.eval(copy)
        return copy

    def to_host(self, array: Any) -> NDArray[Any]:
        """Return the values as a C-order NumPy array."""
        if isinstance(array, np.ndarray):
            return np.ascontiguousarray(array)
        if array.dtype == mx.bfloat16:
            return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
        return np.array(array)

    def _launch(self, *streams: Stream) -> list[Encoded]:
        """Encode one or two host streams `[rows, head_dim]` of one shape and dtype in one launch."""
        rows = len(streams[0].x)
        specs = [spec for _, spec in streams]
        if rows == 0:
            return [Encoded(np.empty((0, s.row_bytes), np.uint8), np.empty((0, s.norms), np.float32)) for s in specs]
        arrays = [_on_device(x) for x, _ in streams]
        if len(streams) == 1:
            outputs = mlx_kernels.encode(self.name, arrays[0], specs[0])
        else:
            outputs = mlx_kernels.encode(self.name, arrays[0], specs[0], arrays[1], specs[1])
        mx.eval(outputs)
        return [self._choose_memory(outputs[2 * i], outputs[2 * i + 1], spec) for i, spec in enumerate(specs)]

    def _choose_memory(self, packed: mx.array, norms: mx.array, spec: CodecSpec) -> Encoded:
        """Move small results to host memory, and leave others on the device."""
        kept: Any = norms if spec.norms else np.empty((packed.shape[0], 0), np.float32)
        if packed.nbytes < SMALL_NBYTES:
            return Encoded(self.to_host(packed), self.to_host(kept))
        return Encoded(packed, kept)

    def _copy_if_view(self, part: Encoded, whole: Encoded) -> Encoded:
        """Copy a part that is a view of a batch, so that keeping it does not keep the whole batch."""
        if part.packed.size == whole.packed.size or isinstance(part.packed, np.ndarray):
            return part
        keep = self.to_host if part.packed.nbytes < SMALL_NBYTES else self._copied
        return Encoded(keep(part.packed), keep(part.norms))

    def _copied(self, array: Any) -> Any:
        return self.concatenate([array], 0)


def is_available(name: str) -> bool:
    """Whether this machine has that GPU and this build of MLX supports it."""
    return bool({"metal": mx.metal.is_available, "cuda": mx.cuda.is_available}[name]())


def _on_device(array: NDArray[Any] | mx.array) -> mx.array:
    if isinstance(array, mx.array):
        return array
    if min(array.strides, default=0) < 0:
        array = array.copy()  # MLX does not support negative strides, even on an axis of length 1
    if array.dtype == DTYPES["bfloat16"]:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)

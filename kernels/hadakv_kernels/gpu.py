"""The GPU backend: the same kernel bodies through `mx.fast.metal_kernel` or `mx.fast.cuda_kernel`.

What is small stays in host memory, where its answer needs it anyway; large results stay on the device and come back
only where `to_host` asks for them.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import launch
from hadakv_kernels.backend import Stream, host_memory_nbytes
from hadakv_kernels.codec import Codec, CodecSpec
from hadakv_kernels.errors import BackendUnavailable
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

# Freed device memory that MLX keeps for the next launch. One bulk request needs no more at a time, and what is kept
# here other programs do without.
CACHE_NBYTES = 1 << 30
# Results below this come to the host at once: one transfer, and no device memory held by slivers.
SMALL_NBYTES = 1 << 20


class GpuBackend:
    """The codec on a GPU; large arrays are `mx.array`s on the device.

    Attributes:
        detail: the GPU.
        memory_nbytes: what the system recommends to use at most (Metal), or the memory of the GPU (CUDA).

    Args:
        name: "metal" or "cuda".

    Raises:
        BackendUnavailable: this machine or this build of MLX has no such GPU.
    """

    # A GPU encodes a whole body sooner than it launches a second kernel.
    slice_nbytes: int | None = None

    def __init__(self, name: str) -> None:
        if not is_available(name):
            raise BackendUnavailable(f"the {name} backend needs a GPU that this build of MLX can use")
        try:
            info = mx.device_info()
        except (AttributeError, RuntimeError) as error:
            raise BackendUnavailable(f"the {name} backend does not work here: {error}") from error
        self.name = name
        self.detail = str(info.get("device_name", "GPU"))
        recommended = info.get("max_recommended_working_set_size") or info.get("total_memory")
        self.memory_nbytes = int(recommended or host_memory_nbytes())

    def limit_memory(self, stored: int, working: int) -> None:
        """Keep what is stored resident, and tell MLX what there is for everything together.

        Raises:
            BackendUnavailable: the device cannot hold so much.
        """
        if stored + working > self.memory_nbytes:
            raise BackendUnavailable(
                f"{self.detail} holds {self.memory_nbytes} bytes: a budget of {stored} leaves less than the {working} "
                "that requests need while they are worked on"
            )
        # A guideline: beyond it MLX waits for work under way to free something, and only then goes on.
        mx.set_memory_limit(self.memory_nbytes)
        mx.set_cache_limit(min(CACHE_NBYTES, working // 2))
        if self.name == "metal":
            # Pages that nobody has read for a while would be swapped out first. All of MLX's memory counts.
            mx.set_wired_limit(stored + working)

    def check(self) -> None:
        """Encode and decode a little, as a GPU can be there and still refuse the kernels or compute something else.

        Raises:
            BackendUnavailable: it does not give what the reference gives.
        """
        spec = Codec().at(128)
        x = np.random.default_rng(0).standard_normal((33, 128)).astype(np.float16)
        expected = encode(x, spec)
        try:
            (got,) = self.encode([Stream(x, spec)])
            values = self.decode(expected, spec, "float32")
        except (RuntimeError, ValueError) as error:
            raise BackendUnavailable(f"the {self.name} backend does not work here: {error}") from error
        computed = (self.to_host(got.packed), self.to_host(got.norms), values)
        if not all(map(np.array_equal, computed, (expected.packed, expected.norms, decode(expected, spec)))):
            raise BackendUnavailable(f"the {self.name} backend does not compute here what it should")

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        """Encode every stream; those alike share a launch, and two of one shape are a launch's two streams."""
        for x, spec in streams:
            check_input(x, spec)
        results: dict[int, Encoded] = {}
        for one, two in _launches(streams):
            whole = self._launch(*(_gathered(indices, streams) for indices in (one, two) if indices))
            for indices, encoded in zip((one, two), whole, strict=False):
                parts = _scattered(encoded, [streams[i] for i in indices])
                results.update(zip(indices, [self._owned(part, encoded) for part in parts], strict=True))
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
        """Values [..., head_dim] of that dtype, in host memory."""
        check_decode(encoded, spec, dtype)
        lead = encoded.packed.shape[:-1]
        rows = int(np.prod(lead))
        if rows == 0:
            return np.empty((*lead, spec.head_dim), DTYPES[dtype])
        if spec.codec.kind == "float16":
            return self.to_host(encoded.packed).view(np.float16).astype(DTYPES[dtype])
        packed = _on_device(encoded.packed).reshape(rows, spec.row_bytes)
        norms = _on_device(encoded.norms).reshape(rows, spec.norms)
        values = launch.decode(self.name, packed, norms, spec, dtype, inverse=inverse)
        return self.to_host(values).reshape(*lead, spec.head_dim)

    def diagnose(self, x: NDArray[Any], spec: CodecSpec) -> Diagnostics:
        """Encode, keeping the scaled values and the RMS of each block; all in host memory."""
        check_diagnose(x, spec)
        if x.size == 0:
            return diagnose(x, spec)
        lead = x.shape[:-1]
        flat = _on_device(np.ascontiguousarray(x).reshape(-1, spec.head_dim))
        outputs = launch.encode(self.name, flat, spec, diagnose=True)
        packed, norms, _, _, scaled, rms = (self.to_host(array) for array in outputs)
        encoded = Encoded(packed.reshape(*lead, -1), norms.reshape(*lead, -1))
        return Diagnostics(encoded, scaled.reshape(x.shape), rms.reshape(*lead, -1))

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """A new array, joined along an axis: on the device, or in host memory where it is small."""
        if sum(array.nbytes for array in arrays) < SMALL_NBYTES:
            return np.concatenate([self.to_host(array) for array in arrays], axis)
        joined = mx.concatenate([_on_device(array) for array in arrays], axis)
        if len(arrays) == 1:
            # MLX gives one array back as it is, and a slice shares its memory; a sum is a new array.
            joined = joined + mx.array(0, joined.dtype)
        mx.eval(joined)
        return joined

    def to_device(self, array: NDArray[Any]) -> Any:
        """A copy on the device, or in host memory where it is small."""
        if array.nbytes < SMALL_NBYTES:
            return np.array(array, order="C")
        # MLX copies, but keeps the order of axes in memory.
        copy = _on_device(np.ascontiguousarray(array))
        mx.eval(copy)
        return copy

    def to_host(self, array: Any) -> NDArray[Any]:
        """The same values as a C-order NumPy array."""
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
            outputs = launch.encode(self.name, arrays[0], specs[0])
        else:
            outputs = launch.encode(self.name, arrays[0], specs[0], arrays[1], specs[1])
        mx.eval(outputs)
        return [self._placed(outputs[2 * i], outputs[2 * i + 1], spec) for i, spec in enumerate(specs)]

    def _placed(self, packed: mx.array, norms: mx.array, spec: CodecSpec) -> Encoded:
        """Small results in host memory, others where they are."""
        kept: Any = norms if spec.norms else np.empty((packed.shape[0], 0), np.float32)
        if packed.nbytes < SMALL_NBYTES:
            return Encoded(self.to_host(packed), self.to_host(kept))
        return Encoded(packed, kept)

    def _owned(self, part: Encoded, whole: Encoded) -> Encoded:
        """A part that does not keep the memory of all that was encoded with it."""
        if part.packed.size == whole.packed.size or isinstance(part.packed, np.ndarray):
            return part
        keep = self.to_host if part.packed.nbytes < SMALL_NBYTES else self._copied
        return Encoded(keep(part.packed), keep(part.norms))

    def _copied(self, array: Any) -> Any:
        return self.concatenate([array], 0)


def is_available(name: str) -> bool:
    """Whether this machine has that GPU and this build of MLX can use it."""
    return bool({"metal": mx.metal.is_available, "cuda": mx.cuda.is_available}[name]())


def _likeness(stream: Stream) -> tuple[Any, ...]:
    """What streams must have in common to be one array."""
    spec = stream.spec
    return (spec.head_dim, str(stream.x.dtype), *map(str, spec.codec.to_mapping().values()))


def _launches(streams: Sequence[Stream]) -> list[tuple[list[int], list[int]]]:
    """Which streams are encoded together: alike ones as one array, two of one shape as a launch's two streams."""
    order = sorted(range(len(streams)), key=lambda i: _likeness(streams[i]))
    groups = [list(same) for _, same in groupby(order, key=lambda i: _likeness(streams[i]))]
    pairs: list[tuple[list[int], list[int]]] = []
    waiting: dict[Any, list[int]] = {}
    for group in groups:
        size = sum(streams[i].x.size for i in group)
        shape = (size, *_likeness(streams[group[0]])[:2])
        if shape in waiting:
            pairs.append((waiting.pop(shape), group))
        else:
            waiting[shape] = group
    return pairs + [_halves(group, streams) for group in waiting.values()]


def _halves(group: list[int], streams: Sequence[Stream]) -> tuple[list[int], list[int]]:
    """Two alike arrays of one size need no joining: they are a launch's two streams."""
    if len(group) == 2 and streams[group[0]].x.size == streams[group[1]].x.size:
        return group[:1], group[1:]
    return group, []


def _gathered(indices: list[int], streams: Sequence[Stream]) -> Stream:
    """Alike streams as one `[rows, head_dim]`."""
    spec = streams[indices[0]].spec
    arrays = [np.ascontiguousarray(streams[i].x).reshape(-1, spec.head_dim) for i in indices]
    return Stream(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), spec)


def _scattered(whole: Encoded, streams: Sequence[Stream]) -> list[Encoded]:
    """What was encoded together, each stream's own part in its own shape."""
    parts, start = [], 0
    for x, spec in streams:
        stop = start + x.size // spec.head_dim
        lead = x.shape[:-1]
        packed = whole.packed[start:stop].reshape(*lead, spec.row_bytes)
        parts.append(Encoded(packed, whole.norms[start:stop].reshape(*lead, spec.norms)))
        start = stop
    return parts


def _on_device(array: NDArray[Any] | mx.array) -> mx.array:
    if isinstance(array, mx.array):
        return array
    if min(array.strides, default=0) < 0:
        array = array.copy()  # MLX takes no negative strides, not even of an axis of length 1
    if array.dtype == DTYPES["bfloat16"]:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)

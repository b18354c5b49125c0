"""Small kernels for the tests of the emulator itself. One of them uses every feature."""

from typing import Any

import mlx.core as mx
import numpy as np

from metal_emulator.compile.metal_source import ArrayType, Definition, Dtype, KernelText, Variant, metal_source
from metal_emulator.executor import Executor

HEADER = """
#define SHARED threadgroup
constant float signs[4] = {1.0f, -1.0f, -1.0f, 1.0f};

template <int E>
inline void butterfly(thread float* v, uint lane) {
    for (int h = 1; h < E; h <<= 1)
        for (int i = 0; i < E; i++)
            if (!(i & h)) { float a = v[i], b = v[i | h]; v[i] = a + b; v[i | h] = a - b; }
    for (ushort d = 1; d < 32; d <<= 1)
        for (int i = 0; i < E; i++) { float o = simd_shuffle_xor(v[i], d); v[i] = (lane & d) ? o - v[i] : v[i] + o; }
}
"""

# Rotates rows of D elements, one simdgroup per row. `largest` gets the largest absolute value of each threadgroup.
SOURCE = """
    uint lane = thread_index_in_simdgroup;
    uint row = threadgroup_position_in_grid.x * simdgroups_per_threadgroup + simdgroup_index_in_threadgroup;
    constexpr int E = D / 32;
    SHARED float part[32];
    float v[E];
    for (int i = 0; i < E; i++)
        v[i] = static_cast<float>(x[row * x_shape[1] + lane * E + i]) * signs[(lane * E + i) & 3];
    butterfly<E>(v, lane);
    float top = 0.0f;
    for (int i = 0; i < E; i++) {
        v[i] *= 1.0f / metal::precise::sqrt(static_cast<float>(D));
        top = metal::max(top, metal::fabs(v[i]));
    }
    top = simd_max(top);
    if (lane == 0) part[simdgroup_index_in_threadgroup] = top;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index_in_threadgroup == 0) {
        float all = 0.0f;
        for (uint k = 0; k < simdgroups_per_threadgroup; k++) all = metal::max(all, part[k]);
        largest[threadgroup_position_in_grid.x] = all;
    }
    for (int i = 0; i < E; i++) y[row * D + lane * E + i] = static_cast<T>(v[i]);
"""


def definition(source: str = SOURCE, header: str = HEADER) -> Definition:
    """Return the definition of the sample kernel, or of a variation."""
    return Definition("rotate", ("x",), ("y", "largest"), source, header)


def text(source: str = SOURCE, header: str = HEADER, dtype: str = "float16") -> KernelText:
    """Return the text of the sample kernel for rows of 64."""
    element = Dtype(dtype)
    variant = Variant((ArrayType((4, 64), element),), (element, Dtype("float32")), (("T", element), ("D", 64)))
    return metal_source(definition(source, header), variant)


def rotate(executor: Executor, x: mx.array, source: str = SOURCE, header: str = HEADER) -> tuple[mx.array, mx.array]:
    """Run the sample kernel on `[rows, head_dim]`. The number of rows is even."""
    rows, head_dim = x.shape
    kernel = executor.metal_kernel("rotate", ["x"], ["y", "largest"], source, header)
    y, largest = kernel(
        inputs=[x],
        template=[("T", x.dtype), ("D", head_dim)],
        grid=(32 * rows, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[x.shape, (rows // 2,)],
        output_dtypes=[x.dtype, mx.float32],
    )
    return y, largest


def reference(x: np.ndarray[Any, Any]) -> Any:
    """Compute the same rotation in float64."""
    head_dim = x.shape[1]
    matrix = np.ones((1, 1))
    while len(matrix) < head_dim:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (x.astype(np.float64) * np.tile([1.0, -1.0, -1.0, 1.0], head_dim // 4)) @ matrix / np.sqrt(head_dim)


def run(
    executor: Executor,
    source: str,
    x: mx.array | None = None,
    *,
    header: str = "",
    threads: int = 32,
    threadgroup: int = 32,
    size: int | None = None,
    dtype: mx.Dtype = mx.float32,
    init_value: float | None = None,
    atomic: bool = False,
) -> mx.array:
    """Run a kernel from `x` to `out`. By default, `out` has one element per thread."""
    kernel = executor.metal_kernel("toy", ["x"], ["out"], source, header, atomic_outputs=atomic)
    (out,) = kernel(
        inputs=[mx.arange(32, dtype=mx.float32) if x is None else x],
        grid=(threads, 1, 1),
        threadgroup=(threadgroup, 1, 1),
        output_shapes=[(threads if size is None else size,)],
        output_dtypes=[dtype],
        init_value=init_value,
    )
    return out


def rows(dtype: mx.Dtype = mx.float32, head_dim: int = 64, count: int = 6) -> mx.array:
    """Return rows for `rotate`, the same on every call."""
    return mx.random.normal((count, head_dim), key=mx.random.key(1)).astype(dtype)

"""MLX kernels for Metal and CUDA: sources, constants, template arguments, grids and outputs of each launch."""

from functools import cache
from importlib.resources import files
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import tables
from hadakv_kernels.codec import CodecSpec
from hadakv_kernels.errors import UnsupportedShape
from hadakv_kernels.gpu.quantizer import quantizer

SIMDGROUP = 32
THREADGROUP = 128
# Maximum threadgroups of a launch, enough to fill any GPU. Each of them loops over its share of the vectors.
MAX_THREADGROUPS = 4096
# Maximum vectors of a launch, because kernels count vectors in 32 bits.
MAX_ROWS = 2**31 - 1

ENCODE_INPUTS = ["k", "v", "k_table", "v_table", "signs", "rows"]
ENCODE_OUTPUTS = ["k_packed", "k_norms", "v_packed", "v_norms", "scaled", "rms"]
DECODE_INPUTS = ["packed", "norms", "table", "signs", "rows"]
MX_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@cache
def source(name: str) -> str:
    """Read a kernel source file from the folder `msl`."""
    return files(__package__).joinpath("msl", f"{name}.msl").read_text("utf-8")


def header(platform: str, part: str) -> str:
    """Return the header of a kernel: the platform's prelude, the shared functions, and those of the part."""
    return "\n".join([source(f"prelude_{platform}"), source("codec"), source(part)])


@cache
def table(spec: CodecSpec) -> NDArray[np.float32]:
    """Return the constants of a kernel as float32: `Constants` and `Cells` of codec.msl, then the centroids."""
    codec = spec.codec
    fitted = quantizer(codec.bits, codec.codebook)
    constants = np.array([float(spec.inv_sqrt), float(spec.gain), 1 / spec.block_dim, fitted.scale], np.float32)
    cells = np.stack([fitted.boundary, fitted.below.astype(np.float32)], axis=1).ravel()
    return np.concatenate([constants, cells, tables.centroids(codec.bits, codec.codebook)])


def elements_per_lane(head_dim: int) -> int:
    """Return the number of elements of a vector in one lane. It must equal `Layout::elements` in codec.msl."""
    return 32 if head_dim == 512 else 16


def grid(rows: int, spec: CodecSpec, streams: int = 1) -> tuple[int, int, int]:
    """Return the grid for a number of vectors: threads in whole threadgroups, and one z index per stream.

    Raises:
        UnsupportedShape: rows is more than `MAX_ROWS`.
    """
    if rows > MAX_ROWS:
        raise UnsupportedShape(f"{rows} vectors exceed the maximum of {MAX_ROWS} per launch")
    vectors = SIMDGROUP * elements_per_lane(spec.head_dim) // spec.head_dim
    simdgroups = -(-rows // vectors)
    threadgroups = -(-simdgroups * SIMDGROUP // THREADGROUP)
    return (min(threadgroups, MAX_THREADGROUPS) * THREADGROUP, 1, streams)


def stream_template(prefix: str, spec: CodecSpec) -> list[tuple[str, Any]]:
    """Return the template arguments of a stream. `BITS` 0 means kind float16."""
    codec = spec.codec
    if codec.kind == "float16":
        return [(f"{prefix}BITS", 0), (f"{prefix}WIDTH", 1), (f"{prefix}ROTATE", False), (f"{prefix}UNBIASED", False)]
    return [
        (f"{prefix}BITS", codec.bits),
        (f"{prefix}WIDTH", index_width(spec)),
        (f"{prefix}ROTATE", codec.rotation == "hadamard"),
        (f"{prefix}UNBIASED", codec.norm == "unbiased"),
    ]


def index_width(spec: CodecSpec) -> int:
    """Return the bits per index in a packed row."""
    return 8 if spec.codec.layout == "byte" else spec.codec.bits


def encode(
    platform: str,
    k: mx.array,
    k_spec: CodecSpec,
    v: mx.array | None = None,
    v_spec: CodecSpec | None = None,
    *,
    diagnose: bool = False,
) -> list[mx.array]:
    """Encode one or two device arrays `[rows, head_dim]` of one shape and dtype in one launch.

    Returns:
        packed and norms of k, packed and norms of v, scaled values and RMS of k, not yet evaluated. Outputs that were
        not requested are placeholders of one element.
    """
    v_spec = v_spec or k_spec
    rows = k.shape[0]
    placeholders: list[tuple[int, ...]] = [(1,), (1,)]
    shapes = _output_shapes(rows, k_spec) + (placeholders if v is None else _output_shapes(rows, v_spec))
    shapes += [(rows, k_spec.head_dim), (rows, k_spec.blocks)] if diagnose else placeholders
    k_table, signs = constant_inputs(k_spec)
    v_table, _ = constant_inputs(v_spec)
    outputs: list[mx.array] = encode_kernel(platform, str(k.dtype).rpartition(".")[2])(
        inputs=[k, k if v is None else v, k_table, v_table, signs, mx.array([rows], mx.uint32)],
        template=[
            ("D", k_spec.head_dim),
            ("STREAMS", 1 if v is None else 2),
            *stream_template("K_", k_spec),
            *stream_template("V_", v_spec),
            ("DIAGNOSE", diagnose),
            ("T", k.dtype),
        ],
        grid=grid(rows, k_spec, 1 if v is None else 2),
        threadgroup=(THREADGROUP, 1, 1),
        output_shapes=shapes,
        output_dtypes=[mx.uint8, mx.float32] * 2 + [mx.float32] * 2,
    )
    return outputs


def _output_shapes(rows: int, spec: CodecSpec) -> list[tuple[int, ...]]:
    return [(rows, spec.row_bytes), (rows, spec.norms) if spec.norms else (1,)]


def decode(
    platform: str, packed: mx.array, norms: mx.array, spec: CodecSpec, dtype: str, *, inverse: bool = True
) -> mx.array:
    """Decode device arrays `[rows, row_bytes]` and `[rows, norms]` to `[rows, head_dim]`, not yet evaluated."""
    rows = packed.shape[0]
    constants, signs = constant_inputs(spec)
    values: mx.array = decode_kernel(platform, dtype)(
        inputs=[packed, norms, constants, signs, mx.array([rows], mx.uint32)],
        template=[
            ("D", spec.head_dim),
            ("BITS", spec.codec.bits),
            ("WIDTH", index_width(spec)),
            ("ROTATE", inverse and spec.codec.rotation == "hadamard"),
            ("T", MX_DTYPES[dtype]),
        ],
        grid=grid(rows, spec),
        threadgroup=(THREADGROUP, 1, 1),
        output_shapes=[(rows, spec.head_dim)],
        output_dtypes=[MX_DTYPES[dtype]],
    )[0]
    return values


@cache
def constant_inputs(spec: CodecSpec) -> tuple[mx.array, mx.array]:
    """Return the constants and the sign bits as device arrays."""
    return mx.array(table(spec)), mx.array(tables.sign_bits(spec.head_dim))


@cache
def encode_kernel(platform: str, dtype: str) -> Any:
    """Create the encode kernel. MLX compiles each variant on its first launch."""
    # MLX caches compiled CUDA kernels by name and template only, so the name must contain the dtype.
    make = mx.fast.metal_kernel if platform == "metal" else mx.fast.cuda_kernel
    return make(
        name=f"hadakv_encode_{dtype}",
        input_names=ENCODE_INPUTS,
        output_names=ENCODE_OUTPUTS,
        source=source("encode_kernel"),
        header=header(platform, "encode"),
    )


@cache
def decode_kernel(platform: str, dtype: str) -> Any:
    """Create the decode kernel. MLX compiles each variant on its first launch."""
    make = mx.fast.metal_kernel if platform == "metal" else mx.fast.cuda_kernel
    return make(
        name=f"hadakv_decode_{dtype}",
        input_names=DECODE_INPUTS,
        output_names=["values"],
        source=source("decode_kernel"),
        header=header(platform, "decode"),
    )

"""Kernels built and launched: sources, constants, template arguments, grid and outputs, for Metal and CUDA alike."""

from functools import cache
from importlib.resources import files
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import tables
from hadakv_kernels.codec import CodecSpec
from hadakv_kernels.errors import UnsupportedShape
from hadakv_kernels.quantizer import quantizer

SIMDGROUP = 32
THREADGROUP = 128
# Enough simdgroups to fill any GPU; each works through its share of the vectors.
MOST_THREADGROUPS = 4096
# Kernels count vectors in 32 bits.
MOST_ROWS = 2**31 - 1

ENCODE_INPUTS = ["k", "v", "k_table", "v_table", "signs", "rows"]
ENCODE_OUTPUTS = ["k_packed", "k_norms", "v_packed", "v_norms", "scaled", "rms"]
DECODE_INPUTS = ["packed", "norms", "table", "signs", "rows"]
MX_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@cache
def source(name: str) -> str:
    """A kernel source file of this package."""
    return files(__package__).joinpath(f"{name}.msl").read_text("utf-8")


def header(platform: str, part: str) -> str:
    """What stands before a kernel: the platform's prelude and the shared functions."""
    return "\n".join([source(f"prelude_{platform}"), source("codec"), source(part)])


@cache
def table(spec: CodecSpec) -> NDArray[np.float32]:
    """What a kernel computes with, float32: `Constants` and `Cells` of codec.msl, then the centroids."""
    codec = spec.codec
    fitted = quantizer(codec.bits, codec.codebook)
    constants = np.array([float(spec.inv_sqrt), float(spec.gain), 1 / spec.block_dim, fitted.scale], np.float32)
    cells = np.stack([fitted.boundary, fitted.below.astype(np.float32)], axis=1).ravel()
    return np.concatenate([constants, cells, tables.centroids(codec.bits, codec.codebook)])


def elements_per_lane(head_dim: int) -> int:
    """How many elements of a vector a lane holds; `Layout` in codec.msl says the same."""
    return 32 if head_dim == 512 else 16


def grid(rows: int, spec: CodecSpec, streams: int = 1) -> tuple[int, int, int]:
    """Threads to launch for a number of vectors, in whole threadgroups; z is the stream.

    Raises:
        UnsupportedShape: there are more vectors than a kernel can count.
    """
    if rows > MOST_ROWS:
        raise UnsupportedShape(f"{rows} vectors are more than the {MOST_ROWS} of one launch")
    vectors = SIMDGROUP * elements_per_lane(spec.head_dim) // spec.head_dim
    simdgroups = -(-rows // vectors)
    threadgroups = -(-simdgroups * SIMDGROUP // THREADGROUP)
    return (min(threadgroups, MOST_THREADGROUPS) * THREADGROUP, 1, streams)


def stream_template(prefix: str, spec: CodecSpec) -> list[tuple[str, Any]]:
    """A stream's template arguments; `BITS` 0 stands for kind float16."""
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
    """Bits an index takes in the packed row."""
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
    """Encode one or two device arrays `[rows, head_dim]` of one shape and dtype in one launch, not yet evaluated.

    Returns:
        packed and norms of k, packed and norms of v, scaled values and RMS of k; those of what is not asked for are
        stand-ins of one element.
    """
    v_spec = v_spec or k_spec
    rows = k.shape[0]
    stand_ins: list[tuple[int, ...]] = [(1,), (1,)]
    shapes = _output_shapes(rows, k_spec) + (stand_ins if v is None else _output_shapes(rows, v_spec))
    shapes += [(rows, k_spec.head_dim), (rows, k_spec.blocks)] if diagnose else stand_ins
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
    """The table and the signs on the device."""
    return mx.array(table(spec)), mx.array(tables.sign_bits(spec.head_dim))


@cache
def encode_kernel(platform: str, dtype: str) -> Any:
    """What MLX makes of the encode kernel: a callable that compiles each variant when it is first launched."""
    # The dtype is part of the name because MLX keys compiled CUDA kernels by name and template alone.
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
    """The same of the decode kernel."""
    make = mx.fast.metal_kernel if platform == "metal" else mx.fast.cuda_kernel
    return make(
        name=f"hadakv_decode_{dtype}",
        input_names=DECODE_INPUTS,
        output_names=["values"],
        source=source("decode_kernel"),
        header=header(platform, "decode"),
    )

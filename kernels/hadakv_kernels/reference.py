"""Specification of the codec: NumPy float32, written to be read. Every backend equals it to the bit.

All arithmetic is float32, rounded to nearest after each operation, in exactly the order written here.
A vector is the last axis of an array; `n` stands for all axes before it, `d` for head_dim.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import tables
from hadakv_kernels.codec import CodecSpec
from hadakv_kernels.errors import UnsupportedCodec, UnsupportedDtype, UnsupportedShape

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LANES = 32
SMALLEST_NORM = np.float32(1e-10)
FLOAT16_MAX = np.float32(65504)
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Encoded:
    """Encoded vectors, as arrays of their backend. Here they are NumPy arrays.

    Attributes:
        packed: uint8 `[..., row_bytes]`; for `kind: "float16"`, the bytes of the values.
        norms: float32 `[..., norms]`.
    """

    packed: Any
    norms: Any


@dataclass(frozen=True)
class Diagnostics:
    """Encoded vectors with intermediate results.

    Attributes:
        encoded: the encoded vectors.
        scaled: the values that are compared with the boundaries, float32 `[..., head_dim]`.
        rms: root mean square of `scaled` over each block, float32 `[..., blocks]`; near 1 for a healthy vector.
    """

    encoded: Encoded
    scaled: Float32
    rms: Float32


def check_input(x: NDArray[np.generic], spec: CodecSpec) -> None:
    """Check that x can be encoded.

    Raises:
        UnsupportedDtype: x is not float32, float16 or bfloat16.
        UnsupportedShape: the last axis is not `spec.head_dim`.
    """
    if x.dtype not in DTYPES.values():
        raise UnsupportedDtype(f"dtype must be one of {', '.join(DTYPES)}, not {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != spec.head_dim:
        raise UnsupportedShape(f"the last axis must have {spec.head_dim} elements, but the shape is {x.shape}")


def check_diagnose(x: NDArray[np.generic], spec: CodecSpec) -> None:
    """Check that x can be diagnosed.

    Raises:
        UnsupportedCodec: the codec does not quantize, so it has no intermediate results.
        UnsupportedDtype: x is not float32, float16 or bfloat16.
        UnsupportedShape: the last axis is not `spec.head_dim`.
    """
    if spec.codec.kind != "quantized":
        raise UnsupportedCodec("kind", f'must be "quantized" to be diagnosed, not "{spec.codec.kind}"')
    check_input(x, spec)


def check_decode(encoded: Encoded, spec: CodecSpec, dtype: str) -> None:
    """Check that `encoded` can be decoded. Its arrays may be on a device.

    Raises:
        UnsupportedDtype: packed is not uint8, norms are not float32, or dtype is not one of `DTYPES`.
        UnsupportedShape: packed is not `[..., row_bytes]`, or norms are not `[..., norms]` with the same leading axes.
    """
    if dtype not in DTYPES:
        raise UnsupportedDtype(f"dtype must be one of {', '.join(DTYPES)}, not {dtype}")
    _check_dtype("packed", encoded.packed.dtype, "uint8")
    _check_dtype("norms", encoded.norms.dtype, "float32")
    packed, norms = tuple(encoded.packed.shape), tuple(encoded.norms.shape)
    if packed[-1:] != (spec.row_bytes,):
        raise UnsupportedShape(f"the last axis of packed must have {spec.row_bytes} bytes, but the shape is {packed}")
    expected = (*packed[:-1], spec.norms)
    if norms != expected:
        raise UnsupportedShape(f"norms must have the shape {expected} to match packed of shape {packed}, not {norms}")


def _check_dtype(name: str, dtype: Any, expected: str) -> None:
    # A device dtype never equals a NumPy dtype. Compare its name, for example "mlx.core.uint8".
    if dtype != np.dtype(expected) and not str(dtype).endswith(f".{expected}"):
        raise UnsupportedDtype(f"{name} must be {expected}, not {dtype}")


def transform(y: Float32) -> Float32:
    """Apply the unnormalised Walsh-Hadamard transform in natural order: float32 `[n, d]` to `[n, d]`."""
    count, dim = y.shape
    half = 1
    while half < dim:
        pairs = y.reshape(count, dim // (2 * half), 2, half)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        y = np.stack([a + b, a - b], axis=2).reshape(count, dim)
        half *= 2
    return y


def block_sums(terms: Float32, spec: CodecSpec) -> Float32:
    """Sum each block in the order of 32 lanes: float32 `[n, d]` to `[n, blocks]`.

    Lane `l` owns the `d / 32` consecutive elements from `l * d / 32` and adds them in order. Then lanes are added
    pairwise at distance 1, 2, 4, ...
    """
    lanes = terms.reshape(len(terms), LANES, spec.head_dim // LANES)
    sums = np.zeros(lanes.shape[:2], np.float32)
    for i in range(lanes.shape[2]):
        sums = sums + lanes[:, :, i]
    while sums.shape[1] > spec.blocks:
        sums = sums[:, 0::2] + sums[:, 1::2]
    return sums


def per_element(blocks: Float32, spec: CodecSpec) -> Float32:
    """Repeat each block's value for all elements of the block: float32 `[n, blocks]` to `[n, d]`."""
    return np.repeat(blocks, spec.block_dim, axis=1)


def rotated(x: Float32, spec: CodecSpec) -> Float32:
    """Do steps 1 to 3: random signs, transform, orthogonal scale. Float32 `[n, d]` to `[n, d]`."""
    if spec.codec.rotation == "none":
        return x
    return transform(tables.signs(spec.head_dim) * x) * spec.inv_sqrt


def exact_norms(y: Float32, spec: CodecSpec) -> Float32:
    """Do step 4: the L2 norm of each vector, or at d = 512 the RMS of each 256-element block."""
    sums = block_sums(y * y, spec)
    return np.sqrt(sums / np.float32(spec.block_dim)) if spec.blocks == 2 else np.sqrt(sums)


def scaled_values(y: Float32, norms: Float32, spec: CodecSpec) -> Float32:
    """Do step 5: scale each block to unit variance. A block with a norm of at most `SMALLEST_NORM` becomes zero."""
    inverse = np.where(norms > SMALLEST_NORM, np.float32(1) / norms, np.float32(0))
    return y * per_element(inverse * spec.gain, spec)


def indices(v: Float32, spec: CodecSpec) -> Bytes:
    """Do step 6: count the boundaries below each value. NaN is above no boundary."""
    index = np.zeros(v.shape, np.uint8)
    for boundary in tables.boundaries(spec.codec.bits, spec.codec.codebook):
        index += v > boundary
    return index


def unbiased_norms(y: Float32, index: Bytes, norms: Float32, spec: CodecSpec) -> Float32:
    """Return the norms for which the projection of the decoded vector on the original is exact.

    With `c` the centroids of the indices, decoding gives `c * norm`. The norm is chosen so that
    `<y, decoded> = <y, y>`.
    """
    c = tables.centroids(spec.codec.bits, spec.codec.codebook)[index]
    zz, zc = block_sums(y * y, spec), block_sums(y * c, spec)
    keep_exact = (norms <= SMALLEST_NORM) | (zc <= 0)
    return np.where(keep_exact, norms, zz / zc * spec.gain)


def pack(index: Bytes, spec: CodecSpec) -> Bytes:
    """Do step 7: pack uint8 indices `[n, d]` into rows `[n, row_bytes]`."""
    if spec.codec.layout == "byte":
        return index
    bits = np.unpackbits(index[..., None], axis=-1, bitorder="little")[..., : spec.codec.bits]
    return np.packbits(bits.reshape(len(index), spec.head_dim * spec.codec.bits), axis=-1, bitorder="little")


def unpack(packed: Bytes, spec: CodecSpec) -> Bytes:
    """Unpack rows `[n, row_bytes]` to indices `[n, d]`. In the byte layout, the bits above an index are ignored."""
    if spec.codec.layout == "byte":
        return packed & np.uint8(2**spec.codec.bits - 1)
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    bits = bits.reshape(len(packed), spec.head_dim, spec.codec.bits)
    return np.packbits(bits, axis=-1, bitorder="little")[..., 0]


def diagnose(x: NDArray[np.generic], spec: CodecSpec) -> Diagnostics:
    """Encode the last axis, and keep the intermediate results.

    Args:
        x: float32, float16 or bfloat16, shape [..., head_dim].
        spec: a quantizing codec at that head_dim.

    Raises:
        UnsupportedCodec: the codec does not quantize.
        UnsupportedDtype: x is not float32, float16 or bfloat16.
        UnsupportedShape: the last axis is not the codec's head_dim.
    """
    check_diagnose(x, spec)
    lead = x.shape[:-1]
    with np.errstate(all="ignore"):
        y = rotated(x.reshape(-1, spec.head_dim).astype(np.float32), spec)
        norms = exact_norms(y, spec)
        v = scaled_values(y, norms, spec)
        index = indices(v, spec)
        rms = np.sqrt(block_sums(v * v, spec) / np.float32(spec.block_dim))
        if spec.codec.norm == "unbiased":
            norms = unbiased_norms(y, index, norms, spec)
    # The shapes are explicit, because -1 is not defined for arrays without vectors.
    encoded = Encoded(pack(index, spec).reshape(*lead, spec.row_bytes), norms.reshape(*lead, spec.norms))
    return Diagnostics(encoded, v.reshape(x.shape), rms.reshape(*lead, spec.blocks))


def encode(x: NDArray[np.generic], spec: CodecSpec) -> Encoded:
    """Rotate, normalise and quantize the last axis.

    Args:
        x: float32, float16 or bfloat16, shape [..., head_dim].
        spec: the codec at that head_dim.

    Returns:
        packed uint8 [..., row_bytes] and norms float32 [..., norms], the same bytes on every backend. If a vector
        contains NaN or infinity, or overflows, one of its norms (for float16, a value) is not finite.

    Raises:
        UnsupportedDtype: x is not float32, float16 or bfloat16.
        UnsupportedShape: the last axis is not the codec's head_dim.
    """
    if spec.codec.kind == "quantized":
        return diagnose(x, spec).encoded
    check_input(x, spec)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(x).astype(np.float16)
    return Encoded(values.view(np.uint8), np.zeros((*x.shape[:-1], 0), np.float32))


def decode(encoded: Encoded, spec: CodecSpec, dtype: str = "float32", *, inverse: bool = True) -> NDArray[np.generic]:
    """Decode stored vectors to values.

    Args:
        encoded: result of `encode` for the same spec.
        spec: the codec at its head_dim.
        dtype: "float32", "float16" or "bfloat16".
        inverse: whether to do the inverse rotation; without it, values are in the rotated domain.

    Returns:
        values [..., head_dim] of that dtype, rounded to nearest even. A value that does not fit float16 becomes the
        largest float16 of its sign, 65504. NaN stays NaN.

    Raises:
        UnsupportedDtype: dtype is not supported, or the arrays do not have the dtypes that `encode` returns.
        UnsupportedShape: the arrays do not match the codec, or each other.
    """
    check_decode(encoded, spec, dtype)
    lead = encoded.packed.shape[:-1]
    if spec.codec.kind == "float16":
        return np.ascontiguousarray(encoded.packed).view(np.float16).astype(DTYPES[dtype])
    index = unpack(encoded.packed.reshape(-1, spec.row_bytes), spec)
    norms = encoded.norms.reshape(-1, spec.norms)
    with np.errstate(all="ignore"):
        scale = norms / spec.gain if spec.blocks == 2 else norms * spec.inv_sqrt
        r = tables.centroids(spec.codec.bits, spec.codec.codebook)[index] * per_element(scale, spec)
        if inverse and spec.codec.rotation == "hadamard":
            r = transform(r) * spec.inv_sqrt * tables.signs(spec.head_dim)
        if dtype == "float16":
            # NumPy's clip keeps NaN.
            r = r.clip(-FLOAT16_MAX, FLOAT16_MAX)
        return r.reshape(*lead, spec.head_dim).astype(DTYPES[dtype])

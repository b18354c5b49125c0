"""Recorded inputs and outputs of the reference Metal kernels: the files in `data/golden`.

The kernels are those of `mlx-native` 0.9.0. A file holds one kernel at one head_dim. A case is one dispatch, which
writes one row of a cache: one stream for K, or one for K and one for V.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import Codec

FOLDER = Path(__file__).parents[2] / "data" / "golden"
KERNELS = tuple(sorted(path.stem for path in FOLDER.glob("*.npz")))


@dataclass(frozen=True)
class GoldenStream:
    """One array that a kernel encoded.

    Attributes:
        codec: the codec that does what the kernel does.
        x: the input, float32 `[kv_heads, head_dim]`.
        packed: the row of the cache that the kernel wrote, uint8 `[kv_heads, row_bytes]`.
        norms: float32 `[kv_heads, norms]`; `norms` is 0 for a float16 stream.
    """

    codec: Codec
    x: NDArray[np.float32]
    packed: NDArray[np.uint8]
    norms: NDArray[np.float32]


@dataclass(frozen=True)
class GoldenCase:
    """One dispatch: its streams, K first, and a readable name.

    Attributes:
        position: position of the token.
        ring: number of rows of the ring buffer; None if the cache is not a ring buffer.
    """

    id: str
    streams: tuple[GoldenStream, ...]
    position: int
    ring: int | None


def cases(kernel: str) -> Iterator[GoldenCase]:
    """Yield every recorded dispatch of one of `KERNELS`."""
    arrays = _arrays(kernel)
    for index, meta in enumerate(json.loads(str(arrays["meta"]))):
        place = f"{'ring' if meta['is_sliding'] else 'linear'}{meta['write_pos']}"
        name = f"{kernel}-{meta['kind']}-{meta['bits']}bit-{place}-scale{meta['scale_factor_d512']:g}"
        ring = meta["cache_capacity"] if meta["is_sliding"] else None
        yield GoldenCase(name, _streams(kernel, arrays, index, meta), meta["write_pos"], ring)


@cache
def _arrays(kernel: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / f"{kernel}.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _streams(
    kernel: str, arrays: dict[str, NDArray[Any]], index: int, meta: dict[str, Any]
) -> tuple[GoldenStream, ...]:
    row = meta["write_pos"] % meta["cache_capacity"] if meta["is_sliding"] else meta["write_pos"]
    x, y = arrays[f"x_{meta['kind']}"], arrays.get(f"y_{meta['kind']}")
    codec = Codec(
        bits=meta["bits"],
        rotation="none" if "no_fwht" in kernel else "hadamard",
        layout="dense" if meta["bits"] == 4 else "byte",
        d512_scale=meta["scale_factor_d512"],
    )

    def quantized(values: NDArray[np.float32], suffix: str) -> GoldenStream:
        norms = arrays[f"norms{suffix}"][index].reshape(meta["num_kv_heads"], meta["cache_capacity"], -1)
        return GoldenStream(codec, values, arrays[f"packed{suffix}"][index][:, row], norms[:, row])

    if y is None:
        return (quantized(x, ""),)
    if "cache_k" not in arrays:
        return quantized(x, ""), quantized(y, "_v")
    values = np.ascontiguousarray(arrays["cache_k"][index][:, row])
    no_norms = np.zeros((len(x), 0), np.float32)
    return GoldenStream(Codec(kind="float16"), x, values.view(np.uint8), no_norms), quantized(y, "")

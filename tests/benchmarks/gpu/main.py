"""The GPU kernels against copying: fractions of the bandwidth of `x * 2` on the same array, one run, medians.

    python tests/benchmarks/gpu/main.py [--json FILE] [--quick]

Bytes are those read plus those written. Needs a GPU that MLX can use.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx

from hadakv_kernels import Codec, CodecSpec, Encoded
from hadakv_kernels.gpu import GpuBackend, mlx_kernels

ELEMENTS = 1 << 29
# Launches evaluated together, so that the time is the device's and not the host's between them.
TOGETHER = 4
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

Work = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One case. Ratios are medians over rounds in which each contender ran once."""

    case: str
    gbytes_per_second: float
    gelements_per_second: float
    of_copy: float | None
    of_mlx: float | None
    of_one_array: float | None = None


@dataclass(frozen=True)
class Bench:
    """How to measure: on which backend, with how many elements, in how many rounds."""

    backend: GpuBackend
    elements: int
    rounds: int

    def vectors(self, head_dim: int, dtype: str) -> mx.array:
        """Gaussian vectors `[rows, head_dim]` on the device."""
        x = mx.random.normal((self.elements // head_dim, head_dim)).astype(DTYPES[dtype])
        mx.eval(x)
        return x

    def seconds(self, *contenders: Work) -> list[list[float]]:
        """For each contender its time in each round, after two rounds of warming up."""
        rounds = [[_seconds(work) for work in contenders] for _ in range(self.rounds + 2)]
        return [list(times) for times in zip(*rounds[2:], strict=True)]

    def encode(self, spec: CodecSpec, dtype: str) -> Row:
        """Encode one array; MLX's own is quantize at the same width, group 64."""
        x = self.vectors(spec.head_dim, dtype)
        bits, nbytes = spec.codec.bits, x.nbytes + x.shape[0] * spec.nbytes
        copy, ours, mlx = self.seconds(
            lambda: x * 2,
            lambda: mlx_kernels.encode(self.backend.name, x, spec)[:2],
            lambda: mx.quantize(x, group_size=64, bits=bits),
        )
        return self._row(f"encode {_label(spec)} {dtype} D={spec.head_dim}", nbytes, 2 * x.nbytes, copy, ours, mlx)

    def decode(self, spec: CodecSpec, dtype: str) -> Row:
        """Decode one array; MLX's own is dequantize, group 64."""
        x = self.vectors(spec.head_dim, dtype)
        bits, nbytes = spec.codec.bits, x.nbytes + x.shape[0] * spec.nbytes
        encoded = Encoded(*mlx_kernels.encode(self.backend.name, x, spec)[:2])
        quantized = mx.quantize(x, group_size=64, bits=bits)
        mx.eval(encoded.packed, encoded.norms, quantized)
        copy, ours, mlx = self.seconds(
            lambda: x * 2,
            lambda: mlx_kernels.decode(self.backend.name, encoded.packed, encoded.norms, spec, dtype),
            lambda: mx.dequantize(*quantized, group_size=64, bits=bits),
        )
        return self._row(f"decode {_label(spec)} to {dtype} D={spec.head_dim}", nbytes, 2 * x.nbytes, copy, ours, mlx)

    def pair(self, spec: CodecSpec, dtype: str) -> Row:
        """K and V in one launch against the same vectors as one array."""
        both = self.vectors(spec.head_dim, dtype)
        k, v = (mx.contiguous(half) for half in mx.split(both, 2))
        mx.eval(k, v)
        one, pair = self.seconds(
            lambda: mlx_kernels.encode(self.backend.name, both, spec)[:2],
            lambda: mlx_kernels.encode(self.backend.name, k, spec, v, spec)[:4],
        )
        nbytes, seconds = both.nbytes + both.shape[0] * spec.nbytes, statistics.median(pair)
        case = f"K and V in one launch, {dtype} D={spec.head_dim}"
        speed, elements = nbytes / seconds / 1e9, self.elements / seconds / 1e9
        return Row(case, speed, elements, None, None, _median_ratio(one, pair))

    def _row(self, case: str, nbytes: int, copied: int, copy: list[float], ours: list[float], mlx: list[float]) -> Row:
        seconds = statistics.median(ours)
        of_copy = _median_ratio(copy, ours) * nbytes / copied
        return Row(case, nbytes / seconds / 1e9, self.elements / seconds / 1e9, of_copy, _median_ratio(mlx, ours))


def _seconds(work: Work) -> float:
    mx.synchronize()
    start = time.perf_counter()
    mx.eval([work() for _ in range(TOGETHER)])
    mx.synchronize()
    return (time.perf_counter() - start) / TOGETHER


def _median_ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def _label(spec: CodecSpec) -> str:
    plain = Codec(spec.codec.bits)
    marks = [
        value for value, usual in zip(vars(spec.codec).values(), vars(plain).values(), strict=True) if value != usual
    ]
    return " ".join([f"{spec.codec.bits}-bit", *map(str, marks)])


def cases(bench: Bench) -> Iterator[Row]:
    """Every row of the table."""
    for dtype, head_dim in product(DTYPES, (64, 128, 256, 512)):
        yield bench.encode(Codec().at(head_dim), dtype)
    for bits, head_dim in product((2, 3, 6, 8), (128, 256)):
        yield bench.encode(Codec(bits).at(head_dim), "float32")
    yield bench.encode(Codec(8).at(128), "float16")
    yield bench.encode(Codec(norm="unbiased").at(256), "float32")
    yield bench.encode(Codec(rotation="none").at(256), "float32")
    for dtype, bits, head_dim in product(("float16", "float32", "bfloat16"), (4, 8), (128, 256)):
        yield bench.decode(Codec(bits).at(head_dim), dtype)
    yield bench.decode(Codec().at(512), "float16")
    for dtype, head_dim in product(("float32", "float16"), (128, 256)):
        yield bench.pair(Codec().at(head_dim), dtype)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    parser.add_argument("--quick", action="store_true", help="small arrays, few rounds")
    options = parser.parse_args()
    backend = GpuBackend("metal" if mx.metal.is_available() else "cuda")
    bench = Bench(backend, ELEMENTS >> (5 if options.quick else 0), 5 if options.quick else 15)
    mx.random.seed(0)
    print(f"{backend.name}: {backend.detail}; MLX {mx.__version__}; {bench.elements / 1e6:.0f} M elements")
    print(f"{'case':46} {'GB/s':>6} {'G el/s':>7} {'of copy':>8} {'of mx':>6} {'of one':>7}")
    rows = []
    for row in cases(bench):
        ratios = [row.of_copy, row.of_mlx, row.of_one_array]
        shown = [" " * width if r is None else f"{r:{width}.2f}" for r, width in zip(ratios, (8, 6, 7), strict=True)]
        print(f"{row.case:46} {row.gbytes_per_second:6.0f} {row.gelements_per_second:7.0f}", *shown, flush=True)
        rows.append(asdict(row))
    if options.json:
        options.json.write_text(json.dumps({"device": backend.detail, "mlx": mx.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

"""Number of rows from which the GPU encodes faster than the CPU: below it, a launch costs more than the work."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from hadakv_kernels.backend import Stream
from hadakv_kernels.codec import Codec

# The GPU always gets at least this many rows at once, however fast the CPU is, so that bulk leaves the CPU free.
MAX_MIN_ROWS = 4096
_REPETITIONS = 5

Encode = Callable[[Sequence[Stream]], object]


def measure_min_rows(gpu: Encode, cpu: Encode) -> int:
    """Return the number of rows from which the GPU is faster, between 1 and `MAX_MIN_ROWS`.

    It measures powers of four with K and V of the default codec in float16 at head_dim 128, and interpolates nothing.

    Args:
        gpu: encodes streams on the GPU, results in host memory.
        cpu: encodes streams on the CPU.
    """
    spec = Codec().at(128)
    rows = 1
    while rows < MAX_MIN_ROWS:
        x = np.random.default_rng(0).standard_normal((rows, spec.head_dim)).astype(np.float16)
        streams = [Stream(x[: rows - rows // 2], spec), Stream(x[rows - rows // 2 :], spec)]
        if _seconds(gpu, streams) <= _seconds(cpu, streams):
            return rows
        rows *= 4
    return MAX_MIN_ROWS


def _seconds(encode: Encode, streams: Sequence[Stream]) -> float:
    """Return the median time of a call, after one to warm up."""
    encode(streams)
    times = []
    for _ in range(_REPETITIONS):
        start = time.perf_counter()
        encode(streams)
        times.append(time.perf_counter() - start)
    return median(times)

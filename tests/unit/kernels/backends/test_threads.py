"""Results do not depend on the number of threads, or on concurrent callers."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import Backend, Codec, CodecSpec, Encoded, Stream, reference
from hadakv_kernels.cpu import CpuBackend
from support.backends import assert_same_bits, assert_same_encoded, on_host

SPECS = [
    Codec(3, norm="unbiased").at(64),
    Codec(4).at(128),
    Codec(5, rotation="none", layout="byte").at(256),
    Codec(8).at(512),
    Codec(kind="float16").at(128),
]


def vectors(spec: CodecSpec, count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, spec.head_dim), dtype=np.float32)


@lru_cache
def many(spec: CodecSpec) -> tuple[NDArray[np.float32], Encoded, NDArray[Any]]:
    """Return vectors for every thread, in a number that no thread count divides, and their reference results."""
    x = vectors(spec, 2**20 // spec.head_dim + 19)
    encoded = reference.encode(x, spec)
    return x, encoded, reference.decode(encoded, spec, "float16")


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"d{spec.head_dim}-{spec.codec.kind}-{spec.codec.bits}bit")
def test_result_does_not_depend_on_the_number_of_threads(spec: CodecSpec, threads: int) -> None:
    backend = CpuBackend(threads)
    x, expected, decoded = many(spec)

    (got,) = backend.encode([Stream(x, spec)])

    assert_same_encoded(got, expected)
    assert_same_bits(backend.decode(got, spec, "float16"), decoded)
    assert backend.all_finite(got, spec)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 8, 13])
def test_more_threads_than_vectors_equals_reference(count: int) -> None:
    spec = Codec(6).at(128)
    backend = CpuBackend(7)
    x = vectors(spec, count)

    (got,) = backend.encode([Stream(x, spec)])

    assert_same_encoded(got, reference.encode(x, spec))
    assert_same_bits(backend.decode(got, spec, "float32"), reference.decode(got, spec))


def test_concurrent_callers_get_their_own_results(backend: Backend) -> None:
    asked = [(spec, vectors(spec, 500 + seed, seed)) for seed in range(8) for spec in SPECS]
    expected = [reference.encode(x, spec) for spec, x in asked]

    def answer(spec: CodecSpec, x: NDArray[np.float32]) -> tuple[Any, NDArray[Any]]:
        (encoded,) = backend.encode([Stream(x, spec)])
        return on_host(backend, encoded), backend.decode(encoded, spec, "float32")

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda pair: answer(*pair), asked))

    for (spec, _), (encoded, decoded), right in zip(asked, got, expected, strict=True):
        assert_same_encoded(encoded, right)
        assert_same_bits(decoded, reference.decode(right, spec))


HURRIED = """
import sys
import numpy as np
from hadakv_kernels import Codec, Stream
from hadakv_kernels.cpu import CpuBackend

backend = CpuBackend(int(sys.argv[1]))
streams = [Stream(np.ones((2, 1, 300, 64), np.float32), Codec().at(64))] * 2
for _ in range(int(sys.argv[2])):
    backend.encode(streams)
"""


@pytest.mark.parametrize(("threads", "rounds"), [(8, 4000), pytest.param(32, 20000, marks=pytest.mark.exhaustive)])
def test_late_workers_do_not_disturb_the_next_job(threads: int, rounds: int) -> None:
    command = [sys.executable, "-c", HURRIED, str(threads), str(rounds)]

    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr

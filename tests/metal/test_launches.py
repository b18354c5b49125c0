"""Streams of one call are encoded in one launch."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import Codec, Stream, reference
from hadakv_kernels.gpu import GpuBackend
from hadakv_service.device.batch import CHUNKED_JOB_NBYTES
from hadakv_service.device.jobs import encode_chunked, run_to_completion
from metal_emulator.executor import Executor, executing
from metal_emulator.launch import Pass
from support.backends import assert_same_encoded, on_host


@pytest.fixture
def executor() -> Iterator[Executor]:
    with executing(Executor(passes=(Pass(),))) as executor:
        yield executor


def gaussian(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_k_and_v_of_32_layers_share_one_launch(executor: Executor) -> None:
    spec = Codec().at(128)
    streams = [Stream(gaussian(32, 8, 1, 128, seed=seed), spec) for seed in range(2)]

    got = GpuBackend("metal").encode(streams)

    assert len(executor.dispatches) == 1
    for encoded, (x, _) in zip(got, streams, strict=True):
        assert_same_encoded(on_host(GpuBackend("metal"), encoded), reference.encode(x, spec))


@pytest.mark.parametrize(
    ("k", "v"),
    [(Codec(), Codec()), (Codec(8), Codec(3)), (Codec(kind="float16"), Codec(rotation="none"))],
    ids=["alike", "of two codecs", "hybrid"],
)
def test_streams_of_many_requests_share_one_launch(k: Codec, v: Codec, executor: Executor) -> None:
    backend = GpuBackend("metal")
    streams = [
        Stream(gaussian(6, 2, tokens, 64, seed=tokens), codec.at(64)) for tokens in (1, 5, 2) for codec in (k, v)
    ]

    got = backend.encode(streams)

    assert len(executor.dispatches) == 1
    for encoded, (x, spec) in zip(got, streams, strict=True):
        assert_same_encoded(on_host(backend, encoded), reference.encode(x, spec))


def test_long_body_is_one_launch(executor: Executor) -> None:
    backend, spec = GpuBackend("metal"), Codec().at(64)
    x = gaussian(1, 1, (CHUNKED_JOB_NBYTES >> 8) + 1, 64)

    k, v = run_to_completion(encode_chunked(backend, [Stream(x, spec), Stream(-x, spec)]))

    assert len(executor.dispatches) == 1
    assert_same_encoded(on_host(backend, k), reference.encode(x, spec))
    assert_same_encoded(on_host(backend, v), reference.encode(-x, spec))

"""Test of batching: the GPU backend encodes streams in few launches, and returns to each stream its own part."""

import gc
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np

from hadakv_kernels import DTYPES, Codec, CodecSpec, Encoded, Stream, reference
from metal_emulator.executor import Executor
from support.backends import assert_same_bits, assert_same_encoded, on_host

KEEPS_ALL_ON_THE_DEVICE, KEEPS_NONE = 0, 1 << 30


def stream(spec: CodecSpec, *lead: int, dtype: str = "float32") -> Stream:
    """Return Gaussian vectors that depend on the shape."""
    x = np.random.default_rng(lead).standard_normal((*lead, spec.head_dim))
    return Stream(x.astype(DTYPES[dtype]), spec)


def requests() -> Iterator[tuple[list[Stream], int]]:
    """Yield streams that are encoded in one call, with the expected number of launches."""
    four, eight, half = Codec().at(64), Codec(8).at(64), Codec(kind="float16").at(64)
    yield [stream(spec, 2, tokens) for tokens in (1, 5, 2) for spec in (eight, four)], 1
    yield [stream(half, 3, 2), stream(four, 3, 2)], 1
    yield [stream(four, 3), stream(four, 3)], 1
    yield [stream(four, 3), stream(four, 4)], 1
    yield [stream(spec, 2, tokens) for tokens in (1, 1) for spec in (eight, four)], 1
    yield [stream(four, 2), stream(four, 1), stream(four, 3)], 1
    yield [stream(four, 5, dtype=dtype) for dtype in DTYPES], 3
    yield [stream(four, 4), stream(Codec().at(128), 2)], 2
    yield [stream(four, 0), stream(eight, 2, 0), stream(four, 2)], 1
    yield [Stream(stream(four, 3).x[::-1], four), Stream(stream(four, 1).x[::-1], four)], 1


def must_gather(module: ModuleType, executor: Executor) -> None:
    """Check the bits, the number of launches, and that a part does not keep the memory of its batch.

    Raises:
        AssertionError: a check fails.
    """
    backend = module.GpuBackend("metal")
    for small in (KEEPS_NONE, KEEPS_ALL_ON_THE_DEVICE):
        vars(module)["SMALL_NBYTES"] = small
        for streams, launches in requests():
            executor.dispatches.clear()
            got = backend.encode(streams)
            made = len(executor.dispatches)
            assert made == launches, f"{made} launches, not {launches}"
            must_be_its_own(backend, streams, got)
            hosted = {isinstance(encoded.packed, np.ndarray) for encoded in got if encoded.packed.size}
            assert hosted == {small == KEEPS_NONE}, f"in host memory: {hosted}"
        keeps_only_its_own(backend)
    vars(module)["SMALL_NBYTES"] = 1 << 20
    keeps_only_its_own(backend)


def must_be_its_own(backend: Any, streams: Sequence[Stream], got: Sequence[Any]) -> None:
    """Check that each stream got its own part, and that the part can be decoded, also in reverse order."""
    for (x, spec), encoded in zip(streams, got, strict=True):
        expected = reference.encode(x, spec)
        values = reference.decode(expected, spec, "float32")
        assert_same_encoded(on_host(backend, encoded), expected)
        assert_same_bits(backend.decode(encoded, spec, "float32"), values)
        backwards = Encoded(expected.packed[::-1], expected.norms[::-1])
        assert_same_bits(backend.decode(backwards, spec, "float32"), values[::-1])


def keeps_only_its_own(backend: Any) -> None:
    """Check that keeping one part does not keep the memory of the other parts."""
    spec = Codec(8).at(512)
    long, short = stream(spec, 3000), stream(spec, 4)
    gc.collect()
    before = mx.get_active_memory()
    kept = [backend.encode([long, part, part])[1] for part in [short]]
    gc.collect()
    grown = mx.get_active_memory() - before
    assert len(kept) == 1
    assert grown < 1 << 20, f"{grown} bytes are kept for a part of {4 * spec.nbytes} bytes"

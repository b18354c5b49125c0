"""Which calls the CPU does for a GPU backend, and that the bytes are the same."""

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import numpy as np
import pytest

from hadakv_kernels import Codec, Stream, reference
from hadakv_kernels.gpu import GpuBackend, min_rows
from hadakv_kernels.gpu.min_rows import MAX_MIN_ROWS, measure_min_rows
from metal_emulator.executor import Executor, executing
from support.backends import assert_same_encoded

SPEC = Codec().at(64)
MIN_ROWS = 10


@pytest.fixture
def executor() -> Iterator[Executor]:
    with executing() as running:
        yield running


@pytest.fixture
def backend(executor: Executor) -> GpuBackend:  # noqa: ARG001 - it makes Metal available
    opened = GpuBackend("metal")
    opened.min_rows = MIN_ROWS
    return opened


def stream(rows: int, dtype: str = "float16") -> Stream:
    x = np.random.default_rng(rows).standard_normal((1, rows, 64)).astype(reference.DTYPES[dtype])
    return Stream(x, SPEC)


@pytest.mark.parametrize("dtype", reference.DTYPES)
@pytest.mark.parametrize(("rows", "launches"), [((9,), 0), ((10,), 1), ((5, 4), 0), ((5, 5), 1), ((0,), 0)])
def test_encode_launches_from_min_rows_on(
    backend: GpuBackend, executor: Executor, rows: Sequence[int], launches: int, dtype: str
) -> None:
    streams = [stream(count, dtype) for count in rows]

    encoded = backend.encode(streams)

    assert len(executor.dispatches) == launches
    on_gpu = sum(rows) if launches else 0
    assert backend.encoded_rows == {"metal": on_gpu, "cpu": sum(rows) - on_gpu}
    for got, (x, spec) in zip(encoded, streams, strict=True):
        assert_same_encoded(got, reference.encode(x, spec))


@pytest.mark.parametrize(("rows", "launches"), [(9, 0), (10, 1)])
def test_decode_launches_from_min_rows_on(backend: GpuBackend, executor: Executor, rows: int, launches: int) -> None:
    encoded = reference.encode(*stream(rows))

    values = backend.decode(encoded, SPEC, "float32")

    assert len(executor.dispatches) == launches
    np.testing.assert_array_equal(values, reference.decode(encoded, SPEC, "float32"))


def test_decode_launches_for_few_rows_on_the_device(backend: GpuBackend, executor: Executor) -> None:
    encoded = reference.encode(*stream(3))
    on_device = reference.Encoded(mx.array(encoded.packed), mx.array(encoded.norms))

    values = backend.decode(on_device, SPEC, "float32")

    assert len(executor.dispatches) == 1
    np.testing.assert_array_equal(values, reference.decode(encoded, SPEC, "float32"))


def test_open_backend_measures_min_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from hadakv_kernels import open_backend

    monkeypatch.setattr("hadakv_kernels.gpu.backend.measure_min_rows", lambda *_: 7)
    with executing():
        measured, given = open_backend("metal"), open_backend("metal", gpu_min_rows=5)

    assert isinstance(measured, GpuBackend)
    assert isinstance(given, GpuBackend)
    assert (measured.min_rows, given.min_rows) == (7, 5)


@pytest.mark.parametrize(("faster_from", "expected"), [(1, 1), (2, 4), (64, 64), (65, 256), (10**6, MAX_MIN_ROWS)])
def test_measure_min_rows_finds_where_the_gpu_is_faster(
    monkeypatch: pytest.MonkeyPatch, faster_from: int, expected: int
) -> None:
    now = 0.0
    monkeypatch.setattr(min_rows.time, "perf_counter", lambda: now)

    def takes(seconds: Callable[[int], float]) -> Callable[[Sequence[Stream]], None]:
        def encode(streams: Sequence[Stream]) -> None:
            nonlocal now
            now += seconds(sum(len(x) for x, _ in streams))

        return encode

    assert measure_min_rows(takes(lambda _: faster_from), takes(float)) == expected

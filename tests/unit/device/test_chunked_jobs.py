"""Chunked jobs: which jobs run between chunks, failures, and results equal to those of one chunk."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadakv_kernels import Codec, Encoded, Stream, reference
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.device.batch import CHUNKED_JOB_NBYTES
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.device.jobs import ChunkedJob, FunctionJob, encode_chunked, run_to_completion
from hadakv_service.errors import InsufficientStorage
from hadakv_service.operations.append import AppendOperation, AppendRequest
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session, Shape
from hadakv_service.storage.session_store import SessionStore
from support.inputs.sized_sessions import commit

SPEC = Codec().at(64)
ROWS = CHUNKED_JOB_NBYTES // (64 * 4)
T = TypeVar("T")


class PacedBackend(CpuBackend):
    """A backend that waits for the test before each launch, and fails if a value is negative."""

    def __init__(self) -> None:
        super().__init__(1)
        self.launched, self.proceed = threading.Semaphore(0), threading.Semaphore(0)
        self.launches: list[int] = []

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        self.launches.append(sum(len(stream.x) for stream in streams))
        self.launched.release()
        assert self.proceed.acquire(timeout=30)
        if any((stream.x < 0).any() for stream in streams):
            raise RuntimeError("the launch failed")
        return super().encode(streams)


class EncodeChunks(ChunkedJob[list[Encoded]]):
    """A job that encodes some chunks of each of two streams, with one more chunk to complete."""

    def __init__(self, steps: list[str], chunks: int = 2, key: Hashable = "long", fails: str = "") -> None:
        rows = np.arange(ROWS * chunks - 1, dtype=np.float32)[:, None] + np.ones(64, np.float32)
        if fails == "encode":
            rows[-1] = -1
        self.key, self.nbytes = key, 2 * rows.nbytes
        self.streams = [Stream(rows, SPEC), Stream(rows[::-1].copy(), SPEC)]
        self._notes = steps
        self._fails = fails

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        assert batch == frozenset([self.key])
        self._step("prepare")
        return self.streams

    def complete(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        return run_to_completion(self.complete_chunked(encoded))

    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, list[Encoded]]:
        yield
        self._step("complete")
        return list(encoded)

    def roll_back(self) -> None:
        self._notes.append(f"{self.key} roll back")

    def _step(self, step: str) -> None:
        self._notes.append(f"{self.key} {step}")
        if self._fails == step:
            raise ValueError(step)


def on_device(work: Callable[[DeviceExecutor, PacedBackend], Awaitable[T]]) -> T:
    """Run a function with a device. Afterwards, let all launches continue."""
    backend = PacedBackend()

    async def run() -> T:
        device = DeviceExecutor(backend, 100)
        device.start(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(work(device, backend), 60)
        finally:
            backend.proceed.release(1000)
            device.stop()

    return asyncio.run(run())


async def launched(backend: PacedBackend) -> None:
    """Wait until the device is in a launch."""
    assert await asyncio.to_thread(backend.launched.acquire, timeout=30)


def test_chunked_encoding_equals_one_call() -> None:
    x = np.random.default_rng(1).standard_normal((3, ROWS // 2 + 1, 1, 64), np.float32)

    encoded = run_to_completion(encode_chunked(CpuBackend(1), [Stream(x, SPEC)]))[0]

    whole = CpuBackend(1).encode([Stream(x, SPEC)])[0]
    assert np.array_equal(encoded.packed, whole.packed)
    assert np.array_equal(encoded.norms, whole.norms)


def test_chunks_have_the_size_of_the_backend() -> None:
    async def work(device: DeviceExecutor, backend: PacedBackend) -> list[int]:
        backend.proceed.release(1000)
        await device.run(EncodeChunks([], chunks=3))
        return backend.launches

    assert on_device(work) == [ROWS, ROWS, ROWS - 1] * 2


def test_other_jobs_run_between_chunks_except_same_key() -> None:
    steps: list[str] = []

    async def work(device: DeviceExecutor, backend: PacedBackend) -> list[Encoded]:
        long = asyncio.ensure_future(device.run(EncodeChunks(steps)))
        await launched(backend)
        same = asyncio.ensure_future(device.call(lambda: steps.append("same"), "long"))
        other = asyncio.ensure_future(device.call(lambda: steps.append("other"), "other"))
        await asyncio.sleep(0)
        backend.proceed.release()
        await other
        assert not long.done()
        backend.proceed.release(1000)
        await same
        return await long

    encoded = on_device(work)

    assert steps == ["long prepare", "other", "long complete", "same"]
    expected = [reference.encode(x[:1], SPEC).norms[0, 0] for x, _ in EncodeChunks([]).streams]
    assert [part.norms[0, 0] for part in encoded] == expected


def test_jobs_between_chunks_get_key_of_chunked_job() -> None:
    class BatchRecorder(FunctionJob[None]):
        def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
            self.batch = batch
            return ()

    recorder = BatchRecorder(lambda: None, "recorder")

    async def work(device: DeviceExecutor, backend: PacedBackend) -> None:
        long = asyncio.ensure_future(device.run(EncodeChunks([])))
        await launched(backend)
        other = asyncio.ensure_future(device.run(recorder))
        await asyncio.sleep(0)
        backend.proceed.release(1000)
        await asyncio.gather(long, other)

    on_device(work)

    assert recorder.batch == {"recorder", "long"}


def test_chunked_jobs_run_one_after_another() -> None:
    steps: list[str] = []

    async def work(device: DeviceExecutor, backend: PacedBackend) -> None:
        first = asyncio.ensure_future(device.run(EncodeChunks(steps, key="a")))
        await launched(backend)
        others = [asyncio.ensure_future(device.run(EncodeChunks(steps, key=key))) for key in "bac"]
        await asyncio.sleep(0)
        backend.proceed.release(1000)
        await asyncio.gather(first, *others)

    on_device(work)

    assert steps == [f"{key} {step}" for key in "abac" for step in ("prepare", "complete")]


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        ("prepare", ["prepare"]),
        ("encode", ["prepare", "roll back"]),
        ("complete", ["prepare", "complete", "roll back"]),
    ],
)
def test_failing_chunked_job_rolls_back(fails: str, expected: list[str]) -> None:
    steps: list[str] = []

    async def work(device: DeviceExecutor, backend: PacedBackend) -> int:
        backend.proceed.release(1000)
        with pytest.raises((ValueError, RuntimeError)):
            await device.run(EncodeChunks(steps, fails=fails))
        return await device.call(lambda: 7, "long")

    assert on_device(work) == 7
    assert steps == [f"long {step}" for step in expected]


def test_job_without_space_is_retried_after_chunked_job() -> None:
    steps: list[str] = []

    class NeedsSpace(FunctionJob[None]):
        def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
            steps.append(f"{len(batch)} in progress")
            if len(batch) > 1:
                raise InsufficientStorage("no space", needed=1, budget=0)
            return ()

    async def work(device: DeviceExecutor, backend: PacedBackend) -> None:
        long = asyncio.ensure_future(device.run(EncodeChunks(steps)))
        await launched(backend)
        needs_space = asyncio.ensure_future(device.run(NeedsSpace(lambda: None, "needs_space")))
        await asyncio.sleep(0)
        backend.proceed.release(1000)
        await asyncio.gather(long, needs_space)

    on_device(work)

    assert steps == ["long prepare", "2 in progress", "long complete", "1 in progress"]


def test_stop_completes_a_chunked_job() -> None:
    async def run() -> list[Encoded]:
        backend = PacedBackend()
        device = DeviceExecutor(backend, 100)
        device.start(asyncio.get_running_loop())
        long = asyncio.ensure_future(device.run(EncodeChunks([])))
        await launched(backend)
        stopping = asyncio.ensure_future(asyncio.to_thread(device.stop))
        backend.proceed.release(1000)
        await stopping
        return await long

    assert len(asyncio.run(run())) == 2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3 * PAGE_TOKENS) | st.sampled_from([255, 256, 257, 512]), min_size=1, max_size=5),
    st.none() | st.integers(1, 700),
)
def test_chunked_append_equals_append_in_one_go(lengths: list[int], window: int | None) -> None:
    backend, store = CpuBackend(1), SessionStore(1 << 30)
    random = np.random.default_rng(len(lengths))
    expected, key = Session(window=window), ("", "s")
    commit(store, key, expected)
    for tokens in lengths:
        k, v = random.standard_normal((2, 2, 1, tokens, 64)).astype(np.float32)
        shape = Shape(0, 2, 1, tokens, 64)
        expected = expected.with_shape(shape, None)
        page = Page(*backend.encode([Stream(k, SPEC), Stream(v, SPEC)]))
        expected = expected.append(0, page, backend)
        job = AppendOperation(key, AppendRequest(k, v, shape, None), store, backend, Session())
        run_to_completion(job.complete_chunked(backend.encode(job.prepare(frozenset([key])))))

    run, wanted = store.get(key).session.runs[0], expected.runs[0]
    assert (run.start, run.stop, run.full_pages) == (wanted.start, wanted.stop, wanted.full_pages)
    assert [page.tokens for page in run.pages] == [page.tokens for page in wanted.pages]
    for array, other in zip(_arrays(run.pages), _arrays(wanted.pages), strict=True):
        assert np.array_equal(array, other)
        assert array.base is None or array.base.nbytes == array.nbytes, "a view would keep the whole append in memory"


def _arrays(pages: Sequence[Page]) -> list[Any]:
    streams = [stream for page in pages for stream in page.load()]
    return [array for stream in streams for array in (stream.packed, stream.norms)]

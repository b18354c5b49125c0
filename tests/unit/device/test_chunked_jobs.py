"""Long jobs go in steps: who has a turn between two of them, what fails, and that the result is that of one step."""

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
from support.sized_sessions import commit

SPEC = Codec().at(64)
ROWS = CHUNKED_JOB_NBYTES // (64 * 4)
T = TypeVar("T")


class Paced(CpuBackend):
    """A backend that lets a test look on between two launches, and fails where a value is negative."""

    def __init__(self) -> None:
        super().__init__(1)
        self.launched, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.launches: list[int] = []

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        self.launches.append(sum(len(stream.x) for stream in streams))
        self.launched.release()
        assert self.go_on.acquire(timeout=30)
        if any((stream.x < 0).any() for stream in streams):
            raise RuntimeError("the launch failed")
        return super().encode(streams)


class Long(ChunkedJob[list[Encoded]]):
    """Encodes that many slices of rows in each of two streams, with one more step to finish."""

    def __init__(self, notes: list[str], slices: int = 2, key: Hashable = "long", fails: str = "") -> None:
        rows = np.arange(ROWS * slices - 1, dtype=np.float32)[:, None] + np.ones(64, np.float32)
        if fails == "encode":
            rows[-1] = -1
        self.key, self.nbytes = key, 2 * rows.nbytes
        self.streams = [Stream(rows, SPEC), Stream(rows[::-1].copy(), SPEC)]
        self._notes = notes
        self._fails = fails

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        assert batch == frozenset([self.key])
        self._step("begin")
        return self.streams

    def complete(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        return run_to_completion(self.complete_chunked(encoded))

    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, list[Encoded]]:
        yield
        self._step("finish")
        return list(encoded)

    def roll_back(self) -> None:
        self._notes.append(f"{self.key} abandon")

    def _step(self, step: str) -> None:
        self._notes.append(f"{self.key} {step}")
        if self._fails == step:
            raise ValueError(step)


def on_device(work: Callable[[DeviceExecutor, Paced], Awaitable[T]]) -> T:
    """Run something with a device; what it leaves behind is let go on."""
    backend = Paced()

    async def run() -> T:
        device = DeviceExecutor(backend, 100)
        device.start(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(work(device, backend), 60)
        finally:
            backend.go_on.release(1000)
            device.stop()

    return asyncio.run(run())


async def launched(backend: Paced) -> None:
    """Wait for the device to be within a launch."""
    assert await asyncio.to_thread(backend.launched.acquire, timeout=30)


def test_slices_are_encoded_as_the_whole_is() -> None:
    x = np.random.default_rng(1).standard_normal((3, ROWS // 2 + 1, 1, 64), np.float32)

    encoded = run_to_completion(encode_chunked(CpuBackend(1), [Stream(x, SPEC)]))[0]

    whole = CpuBackend(1).encode([Stream(x, SPEC)])[0]
    assert np.array_equal(encoded.packed, whole.packed)
    assert np.array_equal(encoded.norms, whole.norms)


def test_a_slice_has_a_size() -> None:
    async def work(device: DeviceExecutor, backend: Paced) -> list[int]:
        backend.go_on.release(1000)
        await device.run(Long([], slices=3))
        return backend.launches

    assert on_device(work) == [ROWS, ROWS, ROWS - 1] * 2


def test_others_have_their_turn_between_steps_but_none_of_the_same_key() -> None:
    notes: list[str] = []

    async def work(device: DeviceExecutor, backend: Paced) -> list[Encoded]:
        long = asyncio.ensure_future(device.run(Long(notes)))
        await launched(backend)
        same = asyncio.ensure_future(device.call(lambda: notes.append("same"), "long"))
        other = asyncio.ensure_future(device.call(lambda: notes.append("other"), "other"))
        await asyncio.sleep(0)
        backend.go_on.release()
        await other
        assert not long.done()
        backend.go_on.release(1000)
        await same
        return await long

    encoded = on_device(work)

    assert notes == ["long begin", "other", "long finish", "same"]
    expected = [reference.encode(x[:1], SPEC).norms[0, 0] for x, _ in Long([]).streams]
    assert [part.norms[0, 0] for part in encoded] == expected


def test_what_runs_between_steps_is_told_the_key_of_the_long_job() -> None:
    class Told(FunctionJob[None]):
        def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
            self.batch = batch
            return ()

    told = Told(lambda: None, "told")

    async def work(device: DeviceExecutor, backend: Paced) -> None:
        long = asyncio.ensure_future(device.run(Long([])))
        await launched(backend)
        other = asyncio.ensure_future(device.run(told))
        await asyncio.sleep(0)
        backend.go_on.release(1000)
        await asyncio.gather(long, other)

    on_device(work)

    assert told.batch == {"told", "long"}


def test_long_jobs_go_one_after_another() -> None:
    notes: list[str] = []

    async def work(device: DeviceExecutor, backend: Paced) -> None:
        first = asyncio.ensure_future(device.run(Long(notes, key="a")))
        await launched(backend)
        others = [asyncio.ensure_future(device.run(Long(notes, key=key))) for key in "bac"]
        await asyncio.sleep(0)
        backend.go_on.release(1000)
        await asyncio.gather(first, *others)

    on_device(work)

    assert notes == [f"{key} {step}" for key in "abac" for step in ("begin", "finish")]


@pytest.mark.parametrize(
    ("fails", "expected"),
    [("begin", ["begin"]), ("encode", ["begin", "abandon"]), ("finish", ["begin", "finish", "abandon"])],
)
def test_a_long_job_that_fails_is_abandoned_and_the_device_goes_on(fails: str, expected: list[str]) -> None:
    notes: list[str] = []

    async def work(device: DeviceExecutor, backend: Paced) -> int:
        backend.go_on.release(1000)
        with pytest.raises((ValueError, RuntimeError)):
            await device.run(Long(notes, fails=fails))
        return await device.call(lambda: 7, "long")

    assert on_device(work) == 7
    assert notes == [f"long {step}" for step in expected]


def test_who_finds_no_room_beside_a_long_job_tries_again_after_it() -> None:
    notes: list[str] = []

    class Crowded(FunctionJob[None]):
        def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
            notes.append(f"{len(batch)} under way")
            if len(batch) > 1:
                raise InsufficientStorage("no room", needed=1, budget=0)
            return ()

    async def work(device: DeviceExecutor, backend: Paced) -> None:
        long = asyncio.ensure_future(device.run(Long(notes)))
        await launched(backend)
        crowded = asyncio.ensure_future(device.run(Crowded(lambda: None, "crowded")))
        await asyncio.sleep(0)
        backend.go_on.release(1000)
        await asyncio.gather(long, crowded)

    on_device(work)

    assert notes == ["long begin", "2 under way", "long finish", "1 under way"]


def test_stop_finishes_a_long_job() -> None:
    async def run() -> list[Encoded]:
        backend = Paced()
        device = DeviceExecutor(backend, 100)
        device.start(asyncio.get_running_loop())
        long = asyncio.ensure_future(device.run(Long([])))
        await launched(backend)
        stopping = asyncio.ensure_future(asyncio.to_thread(device.stop))
        backend.go_on.release(1000)
        await stopping
        return await long

    assert len(asyncio.run(run())) == 2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3 * PAGE_TOKENS) | st.sampled_from([255, 256, 257, 512]), min_size=1, max_size=5),
    st.none() | st.integers(1, 700),
)
def test_an_append_in_steps_is_stored_as_one_in_one_step(lengths: list[int], window: int | None) -> None:
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
        assert array.base is None or array.base.nbytes == array.nbytes, "a view would keep all of the append"


def _arrays(pages: Sequence[Page]) -> list[Any]:
    streams = [stream for page in pages for stream in page.load()]
    return [array for stream in streams for array in (stream.packed, stream.norms)]

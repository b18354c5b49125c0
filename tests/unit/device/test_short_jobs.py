"""DeviceExecutor.run_short: which jobs run on the event loop's thread."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from hadakv_kernels import Encoded, Stream
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.errors import Busy
from hadakv_service.observability.counters import DeviceCounters
from hadakv_service.observability.request_record import RequestRecord, current


class ThreadJob:
    """A job that returns the name of the thread that completes it."""

    key = "session"

    def __init__(self, *, is_short: bool = True, refuses: bool = False, error: Exception | None = None) -> None:
        self.is_short = is_short
        self._refuses = refuses
        self.steps: list[str] = []
        self._error = error

    def prepare(self, batch: frozenset[object]) -> Sequence[Stream]:
        assert batch == {"session"}
        if self._refuses:
            raise ValueError("no")
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> str:  # noqa: ARG002 - nothing was encoded
        if self._error:
            raise self._error
        return threading.current_thread().name

    def roll_back(self) -> None:
        self.steps.append("roll back")


class RunningDevice:
    """A running device, and the group commits that it has made."""

    def __init__(self, limit: int = 10) -> None:
        self.counters = DeviceCounters()
        self.commits: list[str] = []
        self.failing: dict[object, Exception] = {}
        self.executor = DeviceExecutor(CpuBackend(1), limit, self.counters, self._commit)

    def _commit(self) -> dict[object, Exception]:
        self.commits.append(threading.current_thread().name)
        return self.failing

    async def __aenter__(self) -> "RunningDevice":
        self.executor.start(asyncio.get_running_loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.executor.stop()


HERE, DEVICE = threading.main_thread().name, "hadakv-device"


@pytest.mark.parametrize(("is_short", "thread"), [(True, HERE), (False, DEVICE)])
def test_idle_device_leaves_short_jobs_to_the_event_loop(is_short: bool, thread: str) -> None:
    async def run() -> None:
        async with RunningDevice() as device:
            assert await device.executor.run_short(ThreadJob(is_short=is_short)) == thread
            assert device.commits == [thread]
            assert device.executor.depth == 0
            assert list(device.counters.job.buckets())[-1] == ("+Inf", 1)

    asyncio.run(run())


def test_short_job_waits_for_jobs_that_came_first() -> None:
    async def run() -> None:
        async with RunningDevice() as device:
            gate = threading.Event()
            held = asyncio.ensure_future(device.executor.call(lambda: gate.wait(30)))
            await asyncio.sleep(0)

            short = asyncio.ensure_future(device.executor.run_short(ThreadJob()))
            await asyncio.sleep(0)
            assert not short.done()
            gate.set()

            assert await held
            assert await short == DEVICE

    asyncio.run(run())


def test_short_job_is_rejected_if_the_queue_is_full() -> None:
    async def run() -> None:
        async with RunningDevice(limit=1) as device:
            gate = threading.Event()
            held = asyncio.ensure_future(device.executor.call(lambda: gate.wait(30)))
            await asyncio.sleep(0)

            with pytest.raises(Busy):
                await device.executor.run_short(ThreadJob())

            gate.set()
            await held

    asyncio.run(run())


def test_failed_short_job_rolls_back_and_raises() -> None:
    job = ThreadJob(error=ValueError("no"))

    async def run() -> None:
        async with RunningDevice() as device:
            with pytest.raises(ValueError, match="no"):
                await device.executor.run_short(job)
            assert await device.executor.run_short(ThreadJob()) == HERE

    asyncio.run(run())

    assert job.steps == ["roll back"]


def test_short_job_fails_with_its_group_commit() -> None:
    async def run() -> None:
        async with RunningDevice() as device:
            device.failing["session"] = OSError("disk full")
            with pytest.raises(OSError, match="disk full"):
                await device.executor.run_short(ThreadJob())

    asyncio.run(run())


def test_event_loop_does_not_wait_for_the_device() -> None:
    async def run() -> None:
        async with RunningDevice() as device:
            running, gate = threading.Event(), threading.Event()

            def work() -> bool:
                running.set()
                return gate.wait(30)

            # A job without a caller does not count as waiting, but the device thread holds the lock.
            held = asyncio.ensure_future(device.executor.call(work))
            await asyncio.to_thread(running.wait, 30)
            device.executor.depth = 0

            short = asyncio.ensure_future(device.executor.run_short(ThreadJob()))
            await asyncio.sleep(0)
            assert not short.done()

            gate.set()
            assert await short == DEVICE
            assert await held

    asyncio.run(run())


def test_failed_short_job_keeps_the_context_of_its_request() -> None:
    async def run() -> None:
        async with RunningDevice() as device:
            record = RequestRecord({"headers": (), "method": "POST"}, _send)
            current.set(record)
            with pytest.raises(ValueError, match="no"):
                await device.executor.run_short(ThreadJob(refuses=True))
            assert current.get() is record

    asyncio.run(run())


async def _send(_: object) -> None:
    """Send nothing."""

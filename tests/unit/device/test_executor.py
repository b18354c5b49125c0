"""DeviceExecutor: order, batches, failures, full queue, stop."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import ref

import numpy as np
import pytest
from starlette.types import Message

from hadakv_kernels import Codec, Encoded, Stream, reference
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.device.batch import MAX_BATCH_JOBS
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.errors import Busy
from hadakv_service.observability.device_timings import DeviceObserver
from hadakv_service.observability.request_record import RequestRecord, current, current_id

SPEC = Codec().at(64)
T = TypeVar("T")


class RecordingBackend(CpuBackend):
    """A backend that records each call of encode, and fails if a value is negative."""

    def __init__(self) -> None:
        super().__init__(1)
        self.launches: list[list[float]] = []

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        self.launches.append([float(stream.x[0, 0]) for stream in streams])
        if any(stream.x[0, 0] < 0 for stream in streams):
            raise RuntimeError("the launch failed")
        return super().encode(streams)


def stream(number: float) -> Stream:
    return Stream(np.full((1, 64), number, np.float32), SPEC)


@dataclass(eq=False)
class RecordingJob:
    """A job that encodes some streams and records its steps."""

    name: str
    steps: list[str]
    key: Hashable = None
    numbers: Sequence[float] = ()
    fails: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    blocks: bool = False
    batch: Collection[Hashable] = ()

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        self.batch = batch
        self._step("prepare")
        self.entered.set()
        if self.blocks:
            assert self.gate.wait(30)
        return [stream(number) for number in self.numbers]

    def complete(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        self._step("complete")
        return list(encoded)

    def roll_back(self) -> None:
        self.steps.append(f"{self.name} roll back")

    def _step(self, step: str) -> None:
        self.steps.append(f"{self.name} {step}")
        if self.fails == step:
            raise ValueError(f"{self.name} fails to {step}")


def on_device(
    work: Callable[[DeviceExecutor], Awaitable[T]], limit: int = 100, observer: DeviceObserver | None = None
) -> tuple[T, list[list[float]]]:
    """Run a function with a device. Return its result and the recorded launches."""
    backend = RecordingBackend()

    async def run() -> T:
        device = DeviceExecutor(backend, limit, observer)
        device.start(asyncio.get_running_loop())
        try:
            return await work(device)
        finally:
            device.stop()

    return asyncio.run(run()), backend.launches


async def run_queued(device: DeviceExecutor, jobs: Sequence[RecordingJob]) -> list[Any]:
    """Queue jobs behind one that blocks the device, then unblock it. Return their results and errors."""
    first = RecordingJob("first", [], blocks=True)
    tasks = [asyncio.ensure_future(device.run(first))]
    await asyncio.to_thread(first.entered.wait, 30)
    tasks += [asyncio.ensure_future(device.run(job)) for job in jobs]
    await asyncio.sleep(0)
    first.gate.set()
    return (await asyncio.gather(*tasks, return_exceptions=True))[1:]


def test_job_gets_its_encoded_streams() -> None:
    async def work(device: DeviceExecutor) -> list[Encoded]:
        return await device.run(RecordingJob("a", [], numbers=[1.0, 2.0]))

    encoded, launches = on_device(work)

    for got, number in zip(encoded, (1.0, 2.0), strict=True):
        expected = reference.encode(stream(number).x, SPEC)
        assert got.packed.tobytes() == expected.packed.tobytes()
        assert got.norms.tobytes() == expected.norms.tobytes()
    assert launches == [[1.0, 2.0]]


def test_waiting_jobs_are_encoded_in_one_launch() -> None:
    jobs = [RecordingJob(f"{n}", [], key=n, numbers=[float(n), n + 0.5][: n % 3]) for n in range(20)]

    results, launches = on_device(lambda device: run_queued(device, jobs))

    assert launches == [[number for job in jobs for number in job.numbers]]
    for job, encoded in zip(jobs, results, strict=True):
        norms = [float(part.norms[0, 0]) for part in encoded]
        assert norms == [float(reference.encode(stream(number).x, SPEC).norms[0, 0]) for number in job.numbers]


def test_batch_has_a_limit() -> None:
    jobs = [RecordingJob(f"{n}", [], numbers=[float(n)]) for n in range(MAX_BATCH_JOBS + 5)]

    _, launches = on_device(lambda device: run_queued(device, jobs))

    assert [len(launch) for launch in launches] == [MAX_BATCH_JOBS, 5]


def test_jobs_with_one_key_run_in_order() -> None:
    steps: list[str] = []
    jobs = [RecordingJob(f"{key}{n}", steps, key=key, numbers=[1.0]) for n in range(4) for key in "ab"]

    on_device(lambda device: run_queued(device, jobs))

    for key in "ab":
        mine = [note for note in steps if note.startswith(key)]
        assert mine == [f"{key}{n} {step}" for n in range(4) for step in ("prepare", "complete")]


def test_jobs_with_other_keys_do_not_wait_for_a_busy_key() -> None:
    crowd = [RecordingJob(f"crowd{n}", [], key="crowd", numbers=[1.0]) for n in range(10)]
    other = RecordingJob("other", [], key="other", numbers=[2.0])

    _, launches = on_device(lambda device: run_queued(device, [*crowd, other]))

    assert launches == [[1.0, 2.0], *[[1.0]] * 9]


def test_prepare_gets_the_keys_of_the_batch() -> None:
    jobs = [RecordingJob(f"{key}", [], key=key) for key in ("a", "b", None)]

    on_device(lambda device: run_queued(device, jobs))

    assert [job.batch for job in jobs] == [frozenset("ab")] * 3


def test_jobs_without_key_share_a_batch() -> None:
    jobs = [RecordingJob(f"{n}", [], numbers=[float(n)]) for n in range(3)]

    _, launches = on_device(lambda device: run_queued(device, jobs))

    assert launches == [[0.0, 1.0, 2.0]]


def test_call_runs_on_device_thread_after_earlier_jobs() -> None:
    steps: list[str] = []

    def note_call() -> str:
        steps.append("call")
        return threading.current_thread().name

    async def work(device: DeviceExecutor) -> str:
        job = asyncio.ensure_future(device.run(RecordingJob("job", steps, key="a", numbers=[1.0])))
        await asyncio.sleep(0)
        name = await device.call(note_call, "a")
        await job
        return name

    name, _ = on_device(work)

    assert name == "hadakv-device"
    assert steps == ["job prepare", "job complete", "call"]


def test_failing_call_fails_only_its_caller() -> None:
    async def work(device: DeviceExecutor) -> int:
        with pytest.raises(ZeroDivisionError):
            await device.call(lambda: 1 // 0)
        return await device.call(lambda: 7)

    assert on_device(work)[0] == 7


@pytest.mark.parametrize(
    ("step", "expected"), [("prepare", ["bad prepare"]), ("complete", ["bad prepare", "bad complete", "bad roll back"])]
)
def test_failing_job_fails_alone_in_its_batch(step: str, expected: list[str]) -> None:
    steps: list[str] = []
    jobs = [
        RecordingJob(name, steps, key=name, numbers=[number]) for name, number in (("x", 1.0), ("bad", 2.0), ("y", 3.0))
    ]
    jobs[1].fails = step

    results, _ = on_device(lambda device: run_queued(device, jobs))

    assert [note for note in steps if note.startswith("bad")] == expected
    assert isinstance(results[1], ValueError)
    norms = [float(results[i][0].norms[0, 0]) for i in (0, 2)]
    assert norms == [float(reference.encode(stream(number).x, SPEC).norms[0, 0]) for number in (1.0, 3.0)]


def test_failed_encode_fails_only_its_own_job() -> None:
    steps: list[str] = []
    numbers = {"x": [1.0], "bad": [2.0, -1.0], "idle": [], "y": [3.0]}
    jobs = [RecordingJob(name, steps, key=name, numbers=own) for name, own in numbers.items()]

    results, _ = on_device(lambda device: run_queued(device, jobs))

    failed = [job.name for job, result in zip(jobs, results, strict=True) if isinstance(result, Exception)]
    assert [note for note in steps if note.endswith("roll back")] == ["bad roll back"]
    assert failed == ["bad"]


def test_executor_continues_after_failed_launch() -> None:
    async def work(device: DeviceExecutor) -> list[Encoded]:
        with pytest.raises(RuntimeError, match="the launch failed"):
            await device.run(RecordingJob("bad", [], numbers=[-1.0]))
        return await device.run(RecordingJob("good", [], numbers=[1.0]))

    assert len(on_device(work)[0]) == 1


def test_full_queue_rejects_jobs_until_one_is_done() -> None:
    async def work(device: DeviceExecutor) -> tuple[list[Any], list[Any]]:
        first = RecordingJob("first", [], blocks=True)
        held = asyncio.ensure_future(device.run(first))
        await asyncio.to_thread(first.entered.wait, 30)
        waiting = [asyncio.ensure_future(device.run(RecordingJob("waiting", []))) for _ in range(2)]
        await asyncio.sleep(0)
        rejected = await asyncio.gather(
            *(device.run(RecordingJob("late", [])) for _ in range(3)), return_exceptions=True
        )
        first.gate.set()
        served = await asyncio.gather(held, *waiting, return_exceptions=True)
        return rejected, [*served, await device.run(RecordingJob("afterwards", []))]

    (rejected, served), _ = on_device(work, limit=3)

    assert [type(error) for error in rejected] == [Busy] * 3
    assert rejected[0].headers["Retry-After"] == "1"
    assert served == [[]] * 4


def test_call_unbounded_ignores_the_queue_limit() -> None:
    async def work(device: DeviceExecutor) -> list[str]:
        first = RecordingJob("first", [], blocks=True)
        held = asyncio.ensure_future(device.run(first))
        await asyncio.to_thread(first.entered.wait, 30)
        goes_on = [
            asyncio.ensure_future(device.call_unbounded(lambda: threading.current_thread().name)) for _ in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match=r"^The device queue is full: \d+ jobs are queued or running\.$"):
            await device.run(RecordingJob("late", []))
        first.gate.set()
        await held
        names = await asyncio.gather(*goes_on)
        return [*names, *await device.run(RecordingJob("afterwards", []))]

    names, _ = on_device(work, limit=1)

    assert names == ["hadakv-device"] * 3


def test_cancelled_caller_does_not_affect_others() -> None:
    steps: list[str] = []

    async def work(device: DeviceExecutor) -> list[Encoded]:
        first = RecordingJob("first", [], blocks=True)
        held = asyncio.ensure_future(device.run(first))
        await asyncio.to_thread(first.entered.wait, 30)
        gone = asyncio.ensure_future(device.run(RecordingJob("gone", steps, numbers=[1.0])))
        stays = asyncio.ensure_future(device.run(RecordingJob("stays", [], numbers=[2.0])))
        await asyncio.sleep(0)
        gone.cancel()
        first.gate.set()
        await held
        return await stays

    encoded, launches = on_device(work, limit=3)

    assert len(encoded) == 1
    assert steps == ["gone prepare", "gone complete"], "a cancelled job still runs"
    assert launches == [[1.0, 2.0]]


def test_stop_completes_queued_jobs() -> None:
    backend = RecordingBackend()

    async def run() -> list[Any]:
        device = DeviceExecutor(backend, 100)
        device.start(asyncio.get_running_loop())
        first = RecordingJob("first", [], blocks=True)
        tasks = [asyncio.ensure_future(device.run(first))]
        await asyncio.to_thread(first.entered.wait, 30)
        jobs = [RecordingJob(f"{n}", [], key=n % 2, numbers=[float(n)]) for n in range(6)]
        tasks += [asyncio.ensure_future(device.run(job)) for job in jobs]
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(asyncio.to_thread(device.stop))
        first.gate.set()
        await stopping
        return await asyncio.gather(*tasks)

    results = asyncio.run(run())

    assert [len(encoded) for encoded in results[1:]] == [1] * 6
    assert sorted(number for launch in backend.launches for number in launch) == [0, 1, 2, 3, 4, 5]


class WeakRecord(RequestRecord):
    """A record that can be referenced weakly."""


async def nowhere(_: Message) -> None:
    """Send nothing."""


def test_job_runs_in_its_request_context_and_releases_it() -> None:
    async def work(device: DeviceExecutor) -> bool:
        record = WeakRecord({"headers": []}, nowhere)
        kept, name = ref(record), record.id.decode()
        current.set(record)
        assert await device.call(current_id) == name
        current.set(None)
        del record
        # The job ends shortly after its result is delivered.
        for _ in range(1000):
            if kept() is None:
                return True
            await asyncio.sleep(0.001)
        return False

    assert on_device(work)[0]

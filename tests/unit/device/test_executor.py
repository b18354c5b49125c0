"""The device by itself: order, batches, failures, a full queue, and the end."""

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


class Recording(CpuBackend):
    """A backend that notes what it was asked to encode together, and fails where a value is negative."""

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
class Noted:
    """A job that encodes some streams and notes what became of it."""

    name: str
    notes: list[str]
    key: Hashable = None
    numbers: Sequence[float] = ()
    fails: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    holds: bool = False
    batch: Collection[Hashable] = ()

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        self.batch = batch
        self._step("begin")
        self.entered.set()
        if self.holds:
            assert self.gate.wait(30)
        return [stream(number) for number in self.numbers]

    def complete(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        self._step("finish")
        return list(encoded)

    def roll_back(self) -> None:
        self.notes.append(f"{self.name} abandon")

    def _step(self, step: str) -> None:
        self.notes.append(f"{self.name} {step}")
        if self.fails == step:
            raise ValueError(f"{self.name} fails to {step}")


def on_device(
    work: Callable[[DeviceExecutor], Awaitable[T]], limit: int = 100, observer: DeviceObserver | None = None
) -> tuple[T, list[list[float]]]:
    """Run something with a device; its result and the launches."""
    backend = Recording()

    async def run() -> T:
        device = DeviceExecutor(backend, limit, observer)
        device.start(asyncio.get_running_loop())
        try:
            return await work(device)
        finally:
            device.stop()

    return asyncio.run(run()), backend.launches


async def held_back(device: DeviceExecutor, jobs: Sequence[Noted]) -> list[Any]:
    """Let jobs gather behind one that holds the device, then let all go: their results and errors."""
    first = Noted("first", [], holds=True)
    tasks = [asyncio.ensure_future(device.run(first))]
    await asyncio.to_thread(first.entered.wait, 30)
    tasks += [asyncio.ensure_future(device.run(job)) for job in jobs]
    await asyncio.sleep(0)
    first.gate.set()
    return (await asyncio.gather(*tasks, return_exceptions=True))[1:]


def test_a_job_gets_back_what_it_asked_to_encode() -> None:
    async def work(device: DeviceExecutor) -> list[Encoded]:
        return await device.run(Noted("a", [], numbers=[1.0, 2.0]))

    encoded, launches = on_device(work)

    for got, number in zip(encoded, (1.0, 2.0), strict=True):
        expected = reference.encode(stream(number).x, SPEC)
        assert got.packed.tobytes() == expected.packed.tobytes()
        assert got.norms.tobytes() == expected.norms.tobytes()
    assert launches == [[1.0, 2.0]]


def test_what_waits_together_is_encoded_in_one_launch_and_each_gets_its_own() -> None:
    jobs = [Noted(f"{n}", [], key=n, numbers=[float(n), n + 0.5][: n % 3]) for n in range(20)]

    results, launches = on_device(lambda device: held_back(device, jobs))

    assert launches == [[number for job in jobs for number in job.numbers]]
    for job, encoded in zip(jobs, results, strict=True):
        norms = [float(part.norms[0, 0]) for part in encoded]
        assert norms == [float(reference.encode(stream(number).x, SPEC).norms[0, 0]) for number in job.numbers]


def test_a_batch_has_a_limit() -> None:
    jobs = [Noted(f"{n}", [], numbers=[float(n)]) for n in range(MAX_BATCH_JOBS + 5)]

    _, launches = on_device(lambda device: held_back(device, jobs))

    assert [len(launch) for launch in launches] == [MAX_BATCH_JOBS, 5]


def test_jobs_of_one_key_run_one_after_another_in_order() -> None:
    notes: list[str] = []
    jobs = [Noted(f"{key}{n}", notes, key=key, numbers=[1.0]) for n in range(4) for key in "ab"]

    on_device(lambda device: held_back(device, jobs))

    for key in "ab":
        mine = [note for note in notes if note.startswith(key)]
        assert mine == [f"{key}{n} {step}" for n in range(4) for step in ("begin", "finish")]


def test_jobs_of_other_keys_do_not_wait_for_a_crowded_one() -> None:
    crowd = [Noted(f"crowd{n}", [], key="crowd", numbers=[1.0]) for n in range(10)]
    other = Noted("other", [], key="other", numbers=[2.0])

    _, launches = on_device(lambda device: held_back(device, [*crowd, other]))

    assert launches == [[1.0, 2.0], *[[1.0]] * 9]


def test_every_job_is_told_the_keys_of_its_batch() -> None:
    jobs = [Noted(f"{key}", [], key=key) for key in ("a", "b", None)]

    on_device(lambda device: held_back(device, jobs))

    assert [job.batch for job in jobs] == [frozenset("ab")] * 3


def test_jobs_without_a_key_share_a_batch() -> None:
    jobs = [Noted(f"{n}", [], numbers=[float(n)]) for n in range(3)]

    _, launches = on_device(lambda device: held_back(device, jobs))

    assert launches == [[0.0, 1.0, 2.0]]


def test_a_call_runs_on_the_devices_thread_after_earlier_jobs_of_its_key() -> None:
    notes: list[str] = []

    def note_call() -> str:
        notes.append("call")
        return threading.current_thread().name

    async def work(device: DeviceExecutor) -> str:
        job = asyncio.ensure_future(device.run(Noted("job", notes, key="a", numbers=[1.0])))
        await asyncio.sleep(0)
        name = await device.call(note_call, "a")
        await job
        return name

    name, _ = on_device(work)

    assert name == "hadakv-device"
    assert notes == ["job begin", "job finish", "call"]


def test_a_call_that_raises_raises_for_its_caller_alone() -> None:
    async def work(device: DeviceExecutor) -> int:
        with pytest.raises(ZeroDivisionError):
            await device.call(lambda: 1 // 0)
        return await device.call(lambda: 7)

    assert on_device(work)[0] == 7


@pytest.mark.parametrize(
    ("step", "expected"), [("begin", ["bad begin"]), ("finish", ["bad begin", "bad finish", "bad abandon"])]
)
def test_one_jobs_failure_harms_no_other_of_its_batch(step: str, expected: list[str]) -> None:
    notes: list[str] = []
    jobs = [Noted(name, notes, key=name, numbers=[number]) for name, number in (("x", 1.0), ("bad", 2.0), ("y", 3.0))]
    jobs[1].fails = step

    results, _ = on_device(lambda device: held_back(device, jobs))

    assert [note for note in notes if note.startswith("bad")] == expected
    assert isinstance(results[1], ValueError)
    norms = [float(results[i][0].norms[0, 0]) for i in (0, 2)]
    assert norms == [float(reference.encode(stream(number).x, SPEC).norms[0, 0]) for number in (1.0, 3.0)]


def test_a_failed_launch_is_abandoned_by_who_caused_it_and_harms_no_other_of_its_batch() -> None:
    notes: list[str] = []
    numbers = {"x": [1.0], "bad": [2.0, -1.0], "idle": [], "y": [3.0]}
    jobs = [Noted(name, notes, key=name, numbers=own) for name, own in numbers.items()]

    results, _ = on_device(lambda device: held_back(device, jobs))

    failed = [job.name for job, result in zip(jobs, results, strict=True) if isinstance(result, Exception)]
    assert [note for note in notes if note.endswith("abandon")] == ["bad abandon"]
    assert failed == ["bad"]


def test_the_device_goes_on_after_a_failed_launch() -> None:
    async def work(device: DeviceExecutor) -> list[Encoded]:
        with pytest.raises(RuntimeError, match="the launch failed"):
            await device.run(Noted("bad", [], numbers=[-1.0]))
        return await device.run(Noted("good", [], numbers=[1.0]))

    assert len(on_device(work)[0]) == 1


def test_a_full_queue_is_busy_until_there_is_room() -> None:
    async def work(device: DeviceExecutor) -> tuple[list[Any], list[Any]]:
        first = Noted("first", [], holds=True)
        held = asyncio.ensure_future(device.run(first))
        await asyncio.to_thread(first.entered.wait, 30)
        waiting = [asyncio.ensure_future(device.run(Noted("waiting", []))) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await asyncio.gather(*(device.run(Noted("late", [])) for _ in range(3)), return_exceptions=True)
        first.gate.set()
        served = await asyncio.gather(held, *waiting, return_exceptions=True)
        return refused, [*served, await device.run(Noted("afterwards", []))]

    (refused, served), _ = on_device(work, limit=3)

    assert [type(error) for error in refused] == [Busy] * 3
    assert refused[0].headers["Retry-After"] == "1"
    assert served == [[]] * 4


def test_who_has_begun_to_answer_is_not_told_that_there_are_too_many() -> None:
    async def work(device: DeviceExecutor) -> list[str]:
        first = Noted("first", [], holds=True)
        held = asyncio.ensure_future(device.run(first))
        await asyncio.to_thread(first.entered.wait, 30)
        goes_on = [
            asyncio.ensure_future(device.call_unbounded(lambda: threading.current_thread().name)) for _ in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await device.run(Noted("late", []))
        first.gate.set()
        await held
        names = await asyncio.gather(*goes_on)
        return [*names, *await device.run(Noted("afterwards", []))]

    names, _ = on_device(work, limit=1)

    assert names == ["hadakv-device"] * 3


def test_a_caller_who_gave_up_is_no_trouble_to_the_others() -> None:
    notes: list[str] = []

    async def work(device: DeviceExecutor) -> list[Encoded]:
        first = Noted("first", [], holds=True)
        held = asyncio.ensure_future(device.run(first))
        await asyncio.to_thread(first.entered.wait, 30)
        gone = asyncio.ensure_future(device.run(Noted("gone", notes, numbers=[1.0])))
        stays = asyncio.ensure_future(device.run(Noted("stays", [], numbers=[2.0])))
        await asyncio.sleep(0)
        gone.cancel()
        first.gate.set()
        await held
        return await stays

    encoded, launches = on_device(work, limit=3)

    assert len(encoded) == 1
    assert notes == ["gone begin", "gone finish"], "what was asked for is done, though nobody waits for it"
    assert launches == [[1.0, 2.0]]


def test_stop_finishes_what_waits() -> None:
    backend = Recording()

    async def run() -> list[Any]:
        device = DeviceExecutor(backend, 100)
        device.start(asyncio.get_running_loop())
        first = Noted("first", [], holds=True)
        tasks = [asyncio.ensure_future(device.run(first))]
        await asyncio.to_thread(first.entered.wait, 30)
        jobs = [Noted(f"{n}", [], key=n % 2, numbers=[float(n)]) for n in range(6)]
        tasks += [asyncio.ensure_future(device.run(job)) for job in jobs]
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(asyncio.to_thread(device.stop))
        first.gate.set()
        await stopping
        return await asyncio.gather(*tasks)

    results = asyncio.run(run())

    assert [len(encoded) for encoded in results[1:]] == [1] * 6
    assert sorted(number for launch in backend.launches for number in launch) == [0, 1, 2, 3, 4, 5]


class Kept(RequestRecord):
    """One that may be referred to weakly."""


async def nowhere(_: Message) -> None:
    """Nothing is sent."""


def test_the_device_knows_whose_request_it_works_on_and_keeps_none() -> None:
    async def story(device: DeviceExecutor) -> bool:
        exchange = Kept({"headers": []}, nowhere)
        kept, name = ref(exchange), exchange.id.decode()
        current.set(exchange)
        assert await device.call(current_id) == name
        current.set(None)
        del exchange
        # Its turn ends a moment after the answer.
        for _ in range(1000):
            if kept() is None:
                return True
            await asyncio.sleep(0.001)
        return False

    assert on_device(story)[0]

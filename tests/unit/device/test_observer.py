"""What an observer is told of the device's work, and how it is counted."""

from collections.abc import Collection, Generator, Hashable, Sequence
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest

from hadakv_kernels import Encoded, Stream
from hadakv_service.device.batch import CHUNKED_JOB_NBYTES
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.device.jobs import ChunkedJob, run_to_completion
from hadakv_service.errors import InsufficientStorage
from hadakv_service.observability.counters import DeviceCounters, Histogram
from hadakv_service.observability.device_timings import BatchTimings
from unit.device.test_executor import SPEC, Noted, held_back, on_device


class Watching:
    """An observer that keeps what it is told; jobs are noted by number."""

    def __init__(self) -> None:
        self.told: list[BatchTimings] = []
        self._numbers = count()

    def on_enqueue(self) -> int:
        return next(self._numbers)

    def on_batch_done(self, work: BatchTimings) -> None:
        self.told.append(work)


class Long(ChunkedJob[int]):
    """A long job of some steps."""

    key: Hashable = "long"
    nbytes = CHUNKED_JOB_NBYTES + 1

    def __init__(self, steps: int, fails: bool = False) -> None:
        self._steps = steps
        self._fails = fails

    def prepare(self, batch: Collection[Hashable]) -> Sequence[Stream]:  # noqa: ARG002
        if self._fails:
            raise ValueError
        return [Stream(np.ones((4, 64), np.float32), SPEC)] * 2

    def complete(self, encoded: Sequence[Encoded]) -> int:
        return run_to_completion(self.complete_chunked(encoded))

    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, int]:
        for _ in range(self._steps):
            yield
        return len(encoded)

    def roll_back(self) -> None:
        """Nothing to undo."""


class Crowded(Noted):
    """Finds no room the first time."""

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        if not self.batch:
            self.batch = batch
            raise InsufficientStorage("full")
        return super().prepare(batch)


def observed(*jobs: Any) -> list[BatchTimings]:
    """What is told of jobs that waited together."""
    watching = Watching()
    on_device(lambda device: held_back(device, jobs), observer=watching)
    return watching.told[1:]


def assert_in_order(work: BatchTimings) -> None:
    assert 0 < work.begun <= work.encoding <= work.encoded <= work.ended
    assert 0 <= work.encode_seconds <= work.busy_seconds <= work.ended - work.begun + 1e-6


def test_a_batch_is_told_once_with_all_its_jobs() -> None:
    (work,) = observed(*(Noted(f"{n}", [], key=n, numbers=[1.0] * n) for n in range(4)))

    assert work.notes == [1, 2, 3, 4]
    assert work.streams == 0 + 1 + 2 + 3
    assert work.encode_seconds > 0
    assert_in_order(work)


def test_jobs_of_one_key_are_told_one_after_another() -> None:
    told = observed(*(Noted(f"{n}", [], key="a") for n in range(3)))

    assert [work.notes for work in told] == [[1], [2], [3]]
    assert [before.ended <= after.begun for before, after in pairwise(told)] == [True] * 2


def test_a_job_that_fails_is_told_all_the_same() -> None:
    (work,) = observed(Noted("x", [], fails="begin"), Noted("y", [], numbers=[1.0], fails="finish"))

    assert (work.notes, work.streams) == ([1, 2], 1)


def test_a_job_that_is_tried_once_more_is_told_once() -> None:
    told = observed(Crowded("x", [], key="x", numbers=[1.0, 2.0]), Noted("y", [], numbers=[3.0]))

    assert [work.notes for work in told] == [[2], [1]]
    for work in told:
        assert_in_order(work)


@pytest.mark.parametrize("steps", [0, 5])
def test_a_long_job_is_told_once_by_itself(steps: int) -> None:
    told = observed(Long(steps), Noted("x", []), Noted("y", []))

    assert sorted(work.notes for work in told) == [[1], [2, 3]]
    (long,) = (work for work in told if work.notes == [1])
    assert long.streams == 2
    assert_in_order(long)


def test_a_long_job_that_is_refused_is_told_without_encoding() -> None:
    (work,) = observed(Long(3, fails=True))

    assert (work.notes, work.streams, work.encoded) == ([1], 0, 0)
    assert work.begun < work.ended


def test_batches_are_counted_by_their_size() -> None:
    tally = DeviceCounters()

    async def work(device: DeviceExecutor) -> None:
        await held_back(device, [Noted(f"{n}", [], numbers=[1.0]) for n in range(5)])
        await held_back(device, [Noted(f"{n}", [], key=n % 2) for n in range(4)])

    on_device(work, observer=tally)

    # Those that hold the device by themselves, two; five; and two of each key, one after the other.
    assert dict(tally.batches.buckets()) == {"1.0": 2, "2.0": 4, "4.0": 4, "8.0": 5, "16.0": 5, "32.0": 5, "+Inf": 5}
    assert tally.batches.sum == 1 + 5 + 1 + 2 + 2
    assert sum(tally.wait.counts) == sum(tally.job.counts) == 11
    assert sum(tally.encode.counts) == 1
    assert 0 < tally.encode.sum < tally.busy


def test_a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    histogram = Histogram((1, 2, 4))

    for value in (0, 1, 1.5, 2, 4, 4.5, 100):
        histogram.observe(value)
    histogram.observe(3, 10)

    assert list(histogram.buckets()) == [("1.0", 2), ("2.0", 4), ("4.0", 15), ("+Inf", 17)]
    assert histogram.sum == 113 + 30

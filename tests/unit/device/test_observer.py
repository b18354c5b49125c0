"""DeviceObserver and the device counters."""

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
from unit.device.test_executor import SPEC, RecordingJob, on_device, run_queued


class KeepingObserver:
    """An observer that keeps all timings. Its note of a job is a number."""

    def __init__(self) -> None:
        self.timings: list[BatchTimings] = []
        self._numbers = count()

    def on_enqueue(self) -> int:
        return next(self._numbers)

    def on_batch_done(self, work: BatchTimings) -> None:
        self.timings.append(work)


class ChunksOnly(ChunkedJob[int]):
    """A chunked job with some chunks."""

    key: Hashable = "long"
    nbytes = CHUNKED_JOB_NBYTES + 1

    def __init__(self, chunks: int, fails: bool = False) -> None:
        self._steps = chunks
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
        """Do nothing."""


class NeedsSpace(RecordingJob):
    """A job that finds no space the first time."""

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        if not self.batch:
            self.batch = batch
            raise InsufficientStorage("full")
        return super().prepare(batch)


def observed(*jobs: Any) -> list[BatchTimings]:
    """Return the observed timings of jobs that were queued together."""
    observer = KeepingObserver()
    on_device(lambda device: run_queued(device, jobs), observer=observer)
    return observer.timings[1:]


def assert_in_order(work: BatchTimings) -> None:
    assert 0 < work.started <= work.encode_started <= work.encode_ended <= work.ended
    assert 0 <= work.encode_seconds <= work.busy_seconds <= work.ended - work.started + 1e-6


def test_batch_is_observed_once_with_all_jobs() -> None:
    (work,) = observed(*(RecordingJob(f"{n}", [], key=n, numbers=[1.0] * n) for n in range(4)))

    assert work.notes == [1, 2, 3, 4]
    assert work.streams == 0 + 1 + 2 + 3
    assert work.encode_seconds > 0
    assert_in_order(work)


def test_jobs_with_one_key_are_observed_separately() -> None:
    timings = observed(*(RecordingJob(f"{n}", [], key="a") for n in range(3)))

    assert [work.notes for work in timings] == [[1], [2], [3]]
    assert [before.ended <= after.started for before, after in pairwise(timings)] == [True] * 2


def test_failing_job_is_observed() -> None:
    (work,) = observed(RecordingJob("x", [], fails="prepare"), RecordingJob("y", [], numbers=[1.0], fails="complete"))

    assert (work.notes, work.streams) == ([1, 2], 1)


def test_retried_job_is_observed_once() -> None:
    timings = observed(NeedsSpace("x", [], key="x", numbers=[1.0, 2.0]), RecordingJob("y", [], numbers=[3.0]))

    assert [work.notes for work in timings] == [[2], [1]]
    for work in timings:
        assert_in_order(work)


@pytest.mark.parametrize("chunks", [0, 5])
def test_chunked_job_is_observed_alone(chunks: int) -> None:
    timings = observed(ChunksOnly(chunks), RecordingJob("x", []), RecordingJob("y", []))

    assert sorted(work.notes for work in timings) == [[1], [2, 3]]
    (long,) = (work for work in timings if work.notes == [1])
    assert long.streams == 2
    assert_in_order(long)


def test_rejected_chunked_job_has_no_encoding() -> None:
    (work,) = observed(ChunksOnly(3, fails=True))

    assert (work.notes, work.streams, work.encode_ended) == ([1], 0, 0)
    assert work.started < work.ended


def test_batches_are_counted_by_size() -> None:
    counters = DeviceCounters()

    async def work(device: DeviceExecutor) -> None:
        await run_queued(device, [RecordingJob(f"{n}", [], numbers=[1.0]) for n in range(5)])
        await run_queued(device, [RecordingJob(f"{n}", [], key=n % 2) for n in range(4)])

    on_device(work, observer=counters)

    # Two jobs that block the device, a batch of five, and two batches of two keys.
    assert dict(counters.batches.buckets()) == {"1.0": 2, "2.0": 4, "4.0": 4, "8.0": 5, "16.0": 5, "32.0": 5, "+Inf": 5}
    assert counters.batches.sum == 1 + 5 + 1 + 2 + 2
    assert sum(counters.wait.counts) == sum(counters.job.counts) == 11
    assert sum(counters.encode.counts) == 1
    assert 0 < counters.encode.sum < counters.busy


def test_histogram_buckets_have_inclusive_bounds() -> None:
    histogram = Histogram((1, 2, 4))

    for value in (0, 1, 1.5, 2, 4, 4.5, 100):
        histogram.observe(value)
    histogram.observe(3, 10)

    assert list(histogram.buckets()) == [("1.0", 2), ("2.0", 4), ("4.0", 15), ("+Inf", 17)]
    assert histogram.sum == 113 + 30

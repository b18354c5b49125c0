"""Counters and histograms as plain numbers. The metrics collector reads them.

They are updated thousands of times a second. The objects of prometheus_client take a lock for each update: 0.6 µs for a
counter and 1.8 µs for a histogram, a dozen times per request. Here each number has a single writer and needs no lock,
which takes a fifth of the time.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from time import perf_counter

from hadakv_service.observability.device_timings import BatchTimings
from hadakv_service.observability.request_record import OTHER, RequestRecord

# Bucket bounds of durations, from 0.1 ms (half of a small append) to 30 s (bulk transfers).
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Bucket bounds of the number of jobs in a batch.
JOBS = (1, 2, 4, 8, 16, 32)
# Clients can send any method, but the number of label values must be bounded. Others are counted as OTHER.
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class Histogram:
    """Counts of values by bucket, and their sum.

    Attributes:
        bounds: upper bounds of the buckets, ascending. One more bucket has no bound.
        counts: number of values in each bucket, not cumulative.
        sum: sum of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, several times if `times` is more than 1."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Yield each bound as a label, and the number of values up to that bound."""
        total = 0
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            total += count
            yield bound, total


class RouteCounters:
    """Counters of the requests of one route and method.

    Attributes:
        statuses: number of requests by HTTP status.
        seconds: durations in seconds, from the request headers to the last byte passed to the connection.
        received: bytes of request bodies.
        sent: bytes of response bodies passed to the connection.
    """

    __slots__ = ("received", "seconds", "sent", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.seconds = Histogram(SECONDS)
        self.received = 0
        self.sent = 0


class RequestCounters:
    """Counters of all requests. Only the thread of the event loop may write them.

    Attributes:
        in_flight: number of requests in progress.
        calls: counters by route and method.
        rejected: number of requests by the last part of the type of the problem in their response.
        appended: number of tokens stored by appends.
        appended_raw_nbytes: bytes of these tokens as float16.
        appended_packed_nbytes: bytes of these tokens as they were stored.
        read: number of tokens read.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.calls: dict[tuple[str, str], RouteCounters] = {}
        self.rejected: dict[str, int] = {}
        self.appended = self.appended_raw_nbytes = self.appended_packed_nbytes = 0
        self.read = 0

    def count(self, record: RequestRecord, status: int, seconds: float) -> None:
        """Count a completed request.

        Args:
            record: record of the request.
            status: HTTP status to count.
            seconds: duration of the request.
        """
        route, method = record.route, record.scope["method"]
        calls = self.calls.get((route, method))
        if calls is None:
            key = route, method if method in METHODS else OTHER
            calls = self.calls.setdefault(key, RouteCounters())
        calls.statuses[status] = calls.statuses.get(status, 0) + 1
        calls.seconds.observe(seconds)
        calls.received += record.received
        calls.sent += record.sent
        if record.problem:
            self.rejected[record.problem] = self.rejected.get(record.problem, 0) + 1


class DeviceCounters:
    """Device observer that counts. Only the device thread writes the numbers; other threads read them.

    Attributes:
        wait: seconds each job waited in the queue.
        batches: number of jobs in each batch.
        encode: seconds each batch spent encoding; batches without tensors to encode are not counted.
        job: seconds from the start to the end of the batch, counted for each job.
        busy: total seconds the device thread worked.
    """

    # The note of a job is the time it was enqueued at.
    on_enqueue = staticmethod(perf_counter)

    def __init__(self) -> None:
        self.wait = Histogram(SECONDS)
        self.batches = Histogram(JOBS)
        self.encode = Histogram(SECONDS)
        self.job = Histogram(SECONDS)
        self.busy = 0.0

    def on_batch_done(self, timings: BatchTimings) -> None:
        """Count a batch and its jobs."""
        started, jobs = timings.started, len(timings.notes)
        for enqueued in timings.notes:
            self.wait.observe(started - enqueued)
        self.batches.observe(jobs)
        if timings.streams:
            self.encode.observe(timings.encode_seconds)
        self.job.observe(timings.ended - started, jobs)
        self.busy += timings.busy_seconds

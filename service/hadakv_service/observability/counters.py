"""Counting, where it happens thousands of times a second: plain numbers, which the metrics' collector reads.

The metrics' library has objects for it, each with a lock: 0.6 µs for a counter, 1.8 µs for a histogram, a dozen times a
request. Here each number has one writer, needs no lock, and takes a fifth of that.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from time import perf_counter

from hadakv_service.observability.device_timings import BatchTimings
from hadakv_service.observability.request_record import OTHER, RequestRecord

# From a tenth of a millisecond, half of a small append, to what only bulk takes.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
JOBS = (1, 2, 4, 8, 16, 32)
# A request can have any method, and a label must not.
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class Histogram:
    """How many values there were up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Each bound, and how many values are not above it."""
        total = 0
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            total += count
            yield bound, total


class RouteCounters:
    """The requests of one route and method.

    Attributes:
        statuses: how many were answered with each status.
        seconds: from the first look at the head to the last of the answer handed over.
        received: bytes of bodies read.
        sent: bytes of answers' bodies handed over.
    """

    __slots__ = ("received", "seconds", "sent", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.seconds = Histogram(SECONDS)
        self.received = 0
        self.sent = 0


class RequestCounters:
    """What requests there were. Belongs to the event loop's thread.

    Attributes:
        in_flight: how many are not answered yet.
        calls: by route and method.
        appended: tokens stored by appends.
        read: tokens read.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.calls: dict[tuple[str, str], RouteCounters] = {}
        self.appended = 0
        self.read = 0

    def count(self, exchange: RequestRecord, status: int, seconds: float) -> None:
        """Count a request that is over."""
        route, method = exchange.route, exchange.scope["method"]
        calls = self.calls.get((route, method))
        if calls is None:
            key = route, method if method in METHODS else OTHER
            calls = self.calls.setdefault(key, RouteCounters())
        calls.statuses[status] = calls.statuses.get(status, 0) + 1
        calls.seconds.observe(seconds)
        calls.received += exchange.received
        calls.sent += exchange.sent


class DeviceCounters:
    """What the device did: an observer. Its numbers are written by the device's thread and read by others.

    Attributes:
        wait: seconds from asking for a job to its beginning.
        batches: jobs done in one go.
        encode: seconds of encoding, where there was something to encode.
        job: seconds from the beginning of each job's batch to its end.
        busy: seconds in which the device's thread worked.
    """

    # The note of a job is the time at which it was enqueued.
    on_enqueue = staticmethod(perf_counter)

    def __init__(self) -> None:
        self.wait = Histogram(SECONDS)
        self.batches = Histogram(JOBS)
        self.encode = Histogram(SECONDS)
        self.job = Histogram(SECONDS)
        self.busy = 0.0

    def on_batch_done(self, work: BatchTimings) -> None:
        """Count a batch."""
        begun, jobs = work.begun, len(work.notes)
        for enqueued in work.notes:
            self.wait.observe(begun - enqueued)
        self.batches.observe(jobs)
        if work.streams:
            self.encode.observe(work.encode_seconds)
        self.job.observe(work.ended - begun, jobs)
        self.busy += work.busy_seconds

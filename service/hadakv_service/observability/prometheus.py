"""Collector of the Prometheus metrics of `/metrics`. They are totals only, without names of sessions or tenants."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from hadakv_kernels import Backend
from hadakv_service import __version__
from hadakv_service.observability.counters import DeviceCounters, Histogram, RequestCounters
from hadakv_service.observability.tier_gauges import CheckpointFigures, Store, TierGauges


class Device(Protocol):
    """Figures of the device queue."""

    @property
    def backend(self) -> Backend:
        """Backend that runs the codec."""
        ...

    @property
    def depth(self) -> int:
        """Number of jobs queued or running."""
        ...

    @property
    def limit(self) -> int:
        """Maximum number of jobs queued or running."""
        ...


class Sending(Protocol):
    """Figures of the memory for responses."""

    @property
    def limit(self) -> int:
        """Bytes that responses under way may take."""
        ...

    @property
    def used(self) -> int:
        """Bytes that responses under way take."""
        ...

    @property
    def waiting(self) -> int:
        """Number of responses that wait for memory."""
        ...

    @property
    def rejected(self) -> int:
        """Number of responses rejected for lack of memory."""
        ...


@dataclass(frozen=True, slots=True)
class MetricSources:
    """Objects that the metrics are read from at each scrape.

    Attributes:
        requests: counters of the requests.
        jobs: counters of the jobs on the device.
        device: device queue.
        store: session store.
        tiers: gauges of memory and, if enabled, disk.
        sending: memory for responses.
        connections: returns the number of open connections.
    """

    requests: RequestCounters
    jobs: DeviceCounters
    device: Device
    store: Store
    tiers: Sequence[TierGauges]
    sending: Sending
    connections: Callable[[], int] = lambda: 0


class Metrics(Collector):
    """Collector of the service's metrics, with a registry of its own."""

    def __init__(self, sources: MetricSources) -> None:
        self._sources = sources
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._registry.register(_process_collector())
        PlatformCollector(self._registry)
        GCCollector(self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type: the text format or OpenMetrics, as the Accept header asks."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Yield the service's metrics."""
        yield _info(self._sources.device.backend)
        yield from _requests(self._sources.requests)
        yield from _rejections(self._sources.requests, self._sources.connections())
        yield from _tokens(self._sources.requests)
        yield from _jobs(self._sources.jobs)
        yield from _queue(self._sources.device)
        yield _encoded_rows(self._sources.device.backend)
        yield from _store(self._sources.store)
        yield from _tiers(self._sources.tiers)
        yield from _checkpoints(self._sources.store.checkpoints)
        yield from _sending(self._sources.sending)


def _info(backend: Backend) -> Metric:
    labels = ("version", "backend", "detail")
    family = GaugeMetricFamily("hadakv_info", "Version and backend of the service. Always 1.", labels=labels)
    family.add_metric((__version__, backend.name, backend.detail), 1)
    return family


def _requests(counters: RequestCounters) -> Iterator[Metric]:
    by = ("route", "method")
    completed = CounterMetricFamily("hadakv_http_requests", "Finished requests.", labels=(*by, "status"))
    seconds = HistogramMetricFamily(
        "hadakv_http_request_seconds",
        "Seconds from the end of the request headers to the end of the response",
        labels=by,
    )
    received = CounterMetricFamily("hadakv_http_received_bytes", "Bytes of request bodies received.", labels=by)
    sent = CounterMetricFamily("hadakv_http_sent_bytes", "Bytes of response bodies sent.", labels=by)
    for labels, calls in counters.calls.items():
        for status, count in calls.statuses.items():
            completed.add_metric((*labels, str(status)), count)
        seconds.add_metric(labels, list(calls.seconds.buckets()), calls.seconds.sum)
        received.add_metric(labels, calls.received)
        sent.add_metric(labels, calls.sent)
    yield from (completed, seconds, received, sent)
    yield GaugeMetricFamily(
        "hadakv_http_requests_in_flight", "Requests in progress, including the one for this page.", counters.in_flight
    )


def _rejections(counters: RequestCounters, connections: int) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "hadakv_rejected_requests",
        "Requests answered with an error, by the last part of the type in the problem document.",
        labels=("reason",),
    )
    for reason, count in counters.rejected.items():
        family.add_metric((reason,), count)
    yield family
    yield GaugeMetricFamily("hadakv_open_connections", "Open connections, including this one.", connections)


def _tokens(counters: RequestCounters) -> Iterator[Metric]:
    yield CounterMetricFamily("hadakv_appended_tokens", "Tokens stored by appends.", counters.appended)
    yield CounterMetricFamily(
        "hadakv_appended_raw_bytes", "Size of the tokens stored by appends, as float16.", counters.appended_raw_nbytes
    )
    yield CounterMetricFamily(
        "hadakv_appended_packed_bytes",
        "Size of the tokens stored by appends, as the codec packed them.",
        counters.appended_packed_nbytes,
    )
    yield CounterMetricFamily("hadakv_read_tokens", "Tokens returned by reads.", counters.read)


def _jobs(counters: DeviceCounters) -> Iterator[Metric]:
    yield _histogram("hadakv_device_wait_seconds", "Seconds a job waited until the device started it.", counters.wait)
    yield _histogram("hadakv_device_batch_jobs", "Number of jobs that the device ran as one batch.", counters.batches)
    yield _histogram("hadakv_device_encode_seconds", "Seconds a batch spent encoding.", counters.encode)
    yield _histogram(
        "hadakv_device_job_seconds", "Seconds from the start of a job's batch to the end of the job.", counters.job
    )
    yield CounterMetricFamily(
        "hadakv_device_busy_seconds", "Seconds the device thread worked. Its rate is the utilization.", counters.busy
    )


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, documentation, buckets=list(histogram.buckets()), sum_value=histogram.sum)


def _queue(device: Device) -> Iterator[Metric]:
    yield GaugeMetricFamily("hadakv_device_queue_jobs", "Jobs waiting for the device or running on it.", device.depth)
    yield GaugeMetricFamily(
        "hadakv_device_queue_limit_jobs",
        "Maximum of hadakv_device_queue_jobs. Further requests are rejected with 503.",
        device.limit,
    )


def _encoded_rows(backend: Backend) -> Metric:
    documentation = "Vectors of K and V encoded. With a GPU, the CPU encodes calls with few of them."
    family = CounterMetricFamily("hadakv_encoded_rows", documentation, labels=("processor",))
    for processor, rows in backend.encoded_rows.items():
        family.add_metric((processor,), rows)
    return family


def _store(store: Store) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "hadakv_reserved_bytes", "Memory reserved by appends and imports in progress.", store.memory.reserved
    )
    yield CounterMetricFamily(
        "hadakv_evictions", "Sessions deleted to make space. Spilled sessions do not count.", store.evictions
    )
    yield CounterMetricFamily(
        "hadakv_expired_sessions", "Sessions deleted because they were not used for their TTL.", store.expirations
    )
    pages = CounterMetricFamily(
        "hadakv_read_pages", "Pages used by reads, by where they were: in memory or on disk only.", labels=("source",)
    )
    pages.add_metric(("memory",), store.pool.reads_from_memory)
    pages.add_metric(("disk",), store.pool.reads_from_disk)
    yield pages


_TIER_METRICS: tuple[tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str, str], ...] = (
    (GaugeMetricFamily, "budget_bytes", "Maximum size of the stored sessions.", "budget"),
    (GaugeMetricFamily, "stored_bytes", "Size of the stored sessions, as the budget counts it.", "used"),
    (GaugeMetricFamily, "sessions", "Number of stored sessions.", "sessions"),
    (CounterMetricFamily, "spills", "Pages moved from memory to this tier to make space.", "spills"),
    (CounterMetricFamily, "restores", "Pages loaded from this tier into memory.", "restores"),
    (CounterMetricFamily, "read_bytes", "Bytes read from this tier.", "read_nbytes"),
    (CounterMetricFamily, "written_bytes", "Bytes written to this tier.", "written_nbytes"),
    (CounterMetricFamily, "failures", "Reads and writes of this tier that failed.", "failures"),
)


def _tiers(tiers: Sequence[TierGauges]) -> Iterator[Metric]:
    for kind, name, documentation, attribute in _TIER_METRICS:
        family = kind(f"hadakv_tier_{name}", documentation, labels=("tier",))
        for tier in tiers:
            family.add_metric((tier.name,), getattr(tier, attribute))
        yield family


_CHECKPOINT_METRICS: tuple[tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str, str], ...] = (
    (GaugeMetricFamily, "lag_seconds", "Age of the oldest change that is not on disk.", "lag_seconds"),
    (CounterMetricFamily, "sessions", "Sessions written by checkpoints.", "sessions"),
    (CounterMetricFamily, "bytes", "Packed bytes written by checkpoints.", "nbytes"),
    (CounterMetricFamily, "seconds", "Time checkpoints spent writing.", "write_seconds"),
    (CounterMetricFamily, "failures", "Checkpoint writes that failed.", "failures"),
)


def _checkpoints(figures: CheckpointFigures) -> Iterator[Metric]:
    """Yield the metrics of checkpoints, without values if there are none."""
    for kind, name, documentation, attribute in _CHECKPOINT_METRICS:
        family = kind(f"hadakv_checkpoint_{name}", documentation)
        if figures.seconds:
            family.add_metric((), getattr(figures, attribute))
        yield family
    age = GaugeMetricFamily("hadakv_checkpoint_age_seconds", "Time since the last checkpoint of a session.")
    if figures.completed is not None:
        age.add_metric((), time.monotonic() - figures.completed)
    yield age


def _sending(sending: Sending) -> Iterator[Metric]:
    yield GaugeMetricFamily("hadakv_sending_bytes", "Memory of responses being sent.", sending.used)
    yield GaugeMetricFamily("hadakv_sending_limit_bytes", "Maximum memory of responses being sent.", sending.limit)
    yield GaugeMetricFamily("hadakv_sending_waiting", "Responses that wait for memory.", sending.waiting)
    yield CounterMetricFamily(
        "hadakv_sending_rejected", "Responses rejected with 503 because there was no memory in time.", sending.rejected
    )


def _process_collector() -> Collector:
    """Return prometheus_client's collector, which reads `/proc`, or RusageCollector without `/proc` (macOS)."""
    return ProcessCollector(registry=None) if Path("/proc/self/stat").exists() else RusageCollector()


class RusageCollector(Collector):
    """Collector of the main process metrics, with the names of prometheus_client. Memory is the peak only."""

    def __init__(self) -> None:
        self._started = time.time()

    def collect(self) -> Iterator[Metric]:
        """Yield CPU time, start time and peak memory."""
        # ru_maxrss is in bytes on macOS, in KiB on Linux.
        peak_nbytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        yield CounterMetricFamily("process_cpu_seconds", "Total user and system CPU time.", time.process_time())
        yield GaugeMetricFamily("process_start_time_seconds", "Start time in Unix seconds.", self._started)
        yield GaugeMetricFamily("process_resident_memory_peak_bytes", "Peak resident memory.", peak_nbytes)

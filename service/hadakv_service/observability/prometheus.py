"""What `/metrics` tells: the tallies, the store and the process, as Prometheus has them. Totals only, no names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from hadakv_kernels import Backend
from hadakv_service import __version__
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.observability.counters import DeviceCounters, Histogram, RequestCounters
from hadakv_service.observability.process_metrics import process_collector
from hadakv_service.storage.session_store import SessionStore


class Tier(Protocol):
    """Where sessions are kept. Read while the device's thread writes: each figure is a plain number, or some `len`."""

    @property
    def name(self) -> str:
        """As metrics call it: "memory", "disk", ..."""
        ...

    @property
    def budget(self) -> int:
        """Bytes it may hold."""
        ...

    @property
    def used(self) -> int:
        """Bytes it holds."""
        ...

    @property
    def sessions(self) -> int:
        """How many it holds."""
        ...

    @property
    def spills(self) -> int:
        """Pages that left the tier above for it."""
        ...

    @property
    def restores(self) -> int:
        """Pages that were read back."""
        ...

    @property
    def failures(self) -> int:
        """What it was asked to do and could not."""
        ...


class MemoryTierGauges:
    """The store as the uppermost tier: nothing is moved into it from above, and nothing fails in it."""

    name = "memory"
    spills = restores = failures = 0

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    @property
    def budget(self) -> int:
        """Bytes that sessions may take."""
        return self._store.memory.limit

    @property
    def used(self) -> int:
        """Bytes they take, without what is reserved."""
        return self._store.memory.stored

    @property
    def sessions(self) -> int:
        """How many there are, though their pages may be below."""
        return self._store.in_memory


class DiskTierGauges:
    """What lies below memory."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.name = store.disk.name

    @property
    def budget(self) -> int:
        """Bytes that sessions may take there."""
        return self._store.disk.budget

    @property
    def used(self) -> int:
        """Bytes they take."""
        return self._store.disk.used

    @property
    def sessions(self) -> int:
        """How many have a manifest there, whether they are in memory too or not."""
        return self._store.disk.sessions

    @property
    def spills(self) -> int:
        """Pages that left memory for it."""
        return self._store.pool.spills

    @property
    def restores(self) -> int:
        """Pages that were read back."""
        return self._store.pool.restores

    @property
    def failures(self) -> int:
        """Changes that could not be made, and reads that failed."""
        return self._store.disk.failures


@dataclass(frozen=True, slots=True)
class Service:
    """What the metrics look at when they are asked."""

    requests: RequestCounters
    work: DeviceCounters
    device: DeviceExecutor
    store: SessionStore
    tiers: Sequence[Tier]


class Metrics(Collector):
    """A registry of our own, and what it has."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._registry.register(process_collector())
        PlatformCollector(self._registry)
        GCCollector(self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """All of it, and its content type: the text format or OpenMetrics, as an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """The service's metrics."""
        yield _info(self._service.device.backend)
        yield from _requests(self._service.requests)
        yield from _work(self._service.work)
        yield from _queue(self._service.device)
        yield from _store(self._service.store)
        yield from _tiers(self._service.tiers)


def _info(backend: Backend) -> Metric:
    family = GaugeMetricFamily("hadakv_info", "Always 1.", labels=("version", "backend", "detail"))
    family.add_metric((__version__, backend.name, backend.detail), 1)
    return family


def _requests(tally: RequestCounters) -> Iterator[Metric]:
    by = ("route", "method")
    answered = CounterMetricFamily("hadakv_http_requests", "Requests that are over.", labels=(*by, "status"))
    seconds = HistogramMetricFamily("hadakv_http_request_seconds", "From its head to the answer's end.", labels=by)
    received = CounterMetricFamily("hadakv_http_received_bytes", "Bytes of bodies that were read.", labels=by)
    sent = CounterMetricFamily("hadakv_http_sent_bytes", "Bytes of answers' bodies.", labels=by)
    for labels, calls in tally.calls.items():
        for status, count in calls.statuses.items():
            answered.add_metric((*labels, str(status)), count)
        seconds.add_metric(labels, list(calls.seconds.buckets()), calls.seconds.sum)
        received.add_metric(labels, calls.received)
        sent.add_metric(labels, calls.sent)
    yield from (answered, seconds, received, sent)
    yield GaugeMetricFamily("hadakv_http_requests_in_flight", "Requests under way, this one too.", tally.in_flight)
    yield CounterMetricFamily("hadakv_appended_tokens", "Tokens that appends stored.", tally.appended)
    yield CounterMetricFamily("hadakv_read_tokens", "Tokens that reads answered.", tally.read)


def _work(tally: DeviceCounters) -> Iterator[Metric]:
    yield _histogram("hadakv_device_wait_seconds", "From asking for a job to its beginning.", tally.wait)
    yield _histogram("hadakv_device_batch_jobs", "Jobs that were done in one go.", tally.batches)
    yield _histogram("hadakv_device_encode_seconds", "Encoding of what a batch has to encode.", tally.encode)
    yield _histogram("hadakv_device_job_seconds", "From the beginning of a job's batch to its end.", tally.job)
    yield CounterMetricFamily("hadakv_device_busy_seconds", "Time in which the device's thread worked.", tally.busy)


def _histogram(name: str, documentation: str, tally: Histogram) -> Metric:
    return HistogramMetricFamily(name, documentation, buckets=list(tally.buckets()), sum_value=tally.sum)


def _queue(device: DeviceExecutor) -> Iterator[Metric]:
    yield GaugeMetricFamily("hadakv_device_queue_jobs", "Jobs that wait for the device or run on it.", device.depth)
    yield GaugeMetricFamily("hadakv_device_queue_limit_jobs", "So many may; more are refused (503).", device.limit)


def _store(store: SessionStore) -> Iterator[Metric]:
    reserved = store.memory.reserved
    yield GaugeMetricFamily("hadakv_reserved_bytes", "Bytes of memory that appends under way will store.", reserved)
    yield CounterMetricFamily("hadakv_evictions", "Sessions that were ended to make room.", store.evictions)


_OF_A_TIER: tuple[tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str, str], ...] = (
    (GaugeMetricFamily, "budget_bytes", "Bytes that may be stored.", "budget"),
    (GaugeMetricFamily, "stored_bytes", "Bytes that are stored.", "used"),
    (GaugeMetricFamily, "sessions", "Sessions that are stored.", "sessions"),
    (CounterMetricFamily, "spills", "Pages that left the tier above for it.", "spills"),
    (CounterMetricFamily, "restores", "Pages that were read back.", "restores"),
    (CounterMetricFamily, "failures", "What it was asked to do and could not.", "failures"),
)


def _tiers(tiers: Sequence[Tier]) -> Iterator[Metric]:
    for kind, name, documentation, figure in _OF_A_TIER:
        family = kind(f"hadakv_tier_{name}", documentation, labels=("tier",))
        for tier in tiers:
            family.add_metric((tier.name,), getattr(tier, figure))
        yield family

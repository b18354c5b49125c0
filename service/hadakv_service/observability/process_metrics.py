"""The process's own metrics."""

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


def process_collector() -> Collector:
    """The library's collector, which reads `/proc`; where there is none, on a Mac, what the system tells of it."""
    return ProcessCollector(registry=None) if Path("/proc/self/stat").exists() else RusageCollector()


class RusageCollector(Collector):
    """The most important of the library's figures, by the same names; of memory only the peak is told."""

    def __init__(self) -> None:
        self._started = time.time()

    def collect(self) -> Iterator[Metric]:
        """Processor time, start, peak of memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        yield CounterMetricFamily("process_cpu_seconds", "Total user and system CPU time.", time.process_time())
        yield GaugeMetricFamily("process_start_time_seconds", "Start time in unix seconds.", self._started)
        yield GaugeMetricFamily("process_resident_memory_peak_bytes", "Most memory that was resident so far.", peak)

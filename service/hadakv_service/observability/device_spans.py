"""Trace spans of queueing, encoding and finishing on the device thread."""

import time
from time import perf_counter
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context

from hadakv_service.observability.device_timings import BatchTimings, DeviceObserver


class SpanObserver:
    """An observer that makes spans of what another is told.

    Args:
        observer: the other.
        tracer: makes them.
    """

    def __init__(self, observer: DeviceObserver, tracer: trace.Tracer) -> None:
        self._observer = observer
        self._tracer = tracer

    def on_enqueue(self) -> tuple[Any, trace.Span, float]:
        """What the other notes, the span of the request that asks, and when."""
        return self._observer.on_enqueue(), trace.get_current_span(), perf_counter()

    def on_batch_done(self, work: BatchTimings) -> None:
        """Make the spans of every request whose trace is kept."""
        notes, work.notes = work.notes, [note for note, _, _ in work.notes]
        self._observer.on_batch_done(work)
        encoded = work.encoded or work.begun
        for _, span, asked in notes:
            if span.is_recording():
                parent = trace.set_span_in_context(span)
                self._span("waiting", parent, asked, work.begun)
                if work.streams:
                    self._span("encoding", parent, work.encoding, work.encoded)
                self._span("finishing", parent, encoded, work.ended)

    def _span(self, name: str, parent: Context, start: float, end: float) -> None:
        unix = time.time_ns() - time.perf_counter_ns()
        span = self._tracer.start_span(name, parent, start_time=unix + int(start * 1e9))
        span.end(unix + int(end * 1e9))

"""Trace spans of queueing, encoding and finishing on the device thread."""

import time
from time import perf_counter
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context

from hadakv_service.observability.device_timings import BatchTimings, DeviceObserver


class SpanObserver:
    """Device observer that creates trace spans and passes each event on to another observer.

    Args:
        observer: next observer.
        tracer: tracer that creates the spans.
    """

    def __init__(self, observer: DeviceObserver, tracer: trace.Tracer) -> None:
        self._observer = observer
        self._tracer = tracer

    def on_enqueue(self) -> tuple[Any, trace.Span, float]:
        """Return the note of the next observer, the span of the current request, and the time."""
        return self._observer.on_enqueue(), trace.get_current_span(), perf_counter()

    def on_batch_done(self, timings: BatchTimings) -> None:
        """Create the spans of every job whose request is traced."""
        notes, timings.notes = timings.notes, [note for note, _, _ in timings.notes]
        self._observer.on_batch_done(timings)
        encode_ended = timings.encode_ended or timings.started
        for _, span, enqueued in notes:
            if span.is_recording():
                parent = trace.set_span_in_context(span)
                self._add_span("waiting", parent, enqueued, timings.started)
                if timings.streams:
                    self._add_span("encoding", parent, timings.encode_started, timings.encode_ended)
                self._add_span("finishing", parent, encode_ended, timings.ended)

    def _add_span(self, name: str, parent: Context, start: float, end: float) -> None:
        """Create a span between two values of perf_counter. Spans need Unix time."""
        offset = time.time_ns() - time.perf_counter_ns()
        span = self._tracer.start_span(name, parent, start_time=offset + int(start * 1e9))
        span.end(offset + int(end * 1e9))

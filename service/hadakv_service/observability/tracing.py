"""OpenTelemetry tracing, enabled if `hadakv[otel]` is installed and the environment names a collector.

Otherwise neither OpenTelemetry's SDK nor its exporter is imported. OpenTelemetry itself reads its other environment
variables, for example those of sampling.
"""

import asyncio
import logging
import os
import threading
from typing import TYPE_CHECKING

from hadakv_service import __version__
from hadakv_service.observability.device_timings import DeviceObserver

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
TRACER_NAME = "hadakv"
# Maximum time that a collector without a response delays the shutdown.
CLOSE_SECONDS = 2.0
log = logging.getLogger(__name__)


def provider_from_environment() -> "TracerProvider | None":
    """Return a provider that exports spans to the collector named in the environment, or None if there is none."""
    named = [name for name in ENDPOINTS if os.environ.get(name)]
    if not named:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("tracing disabled: %s is set but hadakv[otel] is not installed", named[0])
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "hadakv")
    resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


async def close(traces: "TracerProvider") -> None:
    """Export the remaining spans, for at most CLOSE_SECONDS."""
    exporting = threading.Thread(target=traces.shutdown, daemon=True)
    exporting.start()
    await asyncio.to_thread(exporting.join, CLOSE_SECONDS)


def observe_device(observer: DeviceObserver, traces: "TracerProvider | None") -> DeviceObserver:
    """Wrap a device observer so that it also creates spans, if tracing is enabled."""
    if traces is None:
        return observer
    from hadakv_service.observability.device_spans import SpanObserver

    return SpanObserver(observer, traces.get_tracer(TRACER_NAME))

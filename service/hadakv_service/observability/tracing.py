"""Whether there are traces: only with `hadakv[otel]` installed and a collector named in the environment.

Otherwise neither OpenTelemetry's SDK nor its exporter is imported. What else the environment says of traces, their
sampling for example, OpenTelemetry reads itself.
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
# How long a collector that does not answer may keep the process from ending.
CLOSE_SECONDS = 2.0
log = logging.getLogger(__name__)


def provider_from_environment() -> "TracerProvider | None":
    """What makes spans and sends them to the collector that the environment names, if it names one."""
    named = [name for name in ENDPOINTS if os.environ.get(name)]
    if not named:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("There are no traces, though %s is set: hadakv[otel] is not installed.", named[0])
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "hadakv")
    resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


async def close(traces: "TracerProvider") -> None:
    """Send what spans there still are, unless that takes too long."""
    sending = threading.Thread(target=traces.shutdown, daemon=True)
    sending.start()
    await asyncio.to_thread(sending.join, CLOSE_SECONDS)


def observe_device(observer: DeviceObserver, traces: "TracerProvider | None") -> DeviceObserver:
    """An observer that makes spans beside what another does, if there are traces."""
    if traces is None:
        return observer
    from hadakv_service.observability.device_spans import SpanObserver

    return SpanObserver(observer, traces.get_tracer(TRACER_NAME))

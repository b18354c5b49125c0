"""One trace span per request. Spans of the device thread are its children."""

from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.observability.request_record import SCOPE_KEY, RequestRecord, RouteTemplates

_CONTEXT_HEADERS = (b"traceparent", b"tracestate")


class TracingMiddleware:
    """ASGI middleware that makes a span for each request, in the client's trace if it sends one (W3C Trace Context).

    Args:
        app: the next ASGI app.
        templates: the templates of the app's paths.
        tracer: makes the spans.
    """

    def __init__(self, app: ASGIApp, templates: RouteTemplates, tracer: trace.Tracer) -> None:
        self._app = app
        self._templates = templates
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope[SCOPE_KEY]
        record.route = self._templates.match(scope["path"])
        attributes = {"http.request.method": scope["method"], "http.route": record.route}
        with self._tracer.start_as_current_span(
            f"{scope['method']} {record.route}",
            _remote_context(scope["headers"]),
            trace.SpanKind.SERVER,
            attributes | {"hadakv.request_id": record.id.decode()},
        ) as span:
            record.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
            try:
                await self._app(scope, receive, send)
            finally:
                _set_result(span, record)


def _remote_context(headers: Iterable[tuple[bytes, bytes]]) -> Context:
    carrier: dict[str, str] = {}
    for name, value in headers:
        if name in _CONTEXT_HEADERS:
            # Several tracestate headers mean the same as one with their values joined.
            carrier[name.decode()] = ",".join(filter(None, (carrier.get(name.decode()), value.decode("latin-1"))))
    return TraceContextTextMapPropagator().extract(carrier)


def _set_result(span: trace.Span, record: RequestRecord) -> None:
    status = record.outcome
    span.set_attributes(
        {
            "http.response.status_code": status,
            "http.request.body.size": record.received,
            "http.response.body.size": record.sent,
        }
    )
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)

"""The spans of a request: one for all of it, and in that its waiting for the device, its encoding and its finishing."""

from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Receive, Scope, Send

from hadakv_service.observability.request_record import SCOPE_KEY, RequestRecord, RouteTemplates

_CONTEXT_HEADERS = (b"traceparent", b"tracestate")


class TracingMiddleware:
    """ASGI middleware: a span for each request, in the caller's trace if it names one (W3C Trace Context)."""

    def __init__(self, app: ASGIApp, templates: RouteTemplates, tracer: trace.Tracer) -> None:
        self._app = app
        self._templates = templates
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange: RequestRecord = scope[SCOPE_KEY]
        exchange.route = self._templates.match(scope["path"])
        attributes = {"http.request.method": scope["method"], "http.route": exchange.route}
        with self._tracer.start_as_current_span(
            f"{scope['method']} {exchange.route}",
            _remote_context(scope["headers"]),
            trace.SpanKind.SERVER,
            attributes | {"hadakv.request_id": exchange.id.decode()},
        ) as span:
            exchange.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
            try:
                await self._app(scope, receive, send)
            finally:
                _set_result(span, exchange)


def _remote_context(headers: Iterable[tuple[bytes, bytes]]) -> Context:
    carrier: dict[str, str] = {}
    for name, value in headers:
        if name in _CONTEXT_HEADERS:
            # A tracestate may come in several headers, and means the same as one.
            carrier[name.decode()] = ",".join(filter(None, (carrier.get(name.decode()), value.decode("latin-1"))))
    return TraceContextTextMapPropagator().extract(carrier)


def _set_result(span: trace.Span, exchange: RequestRecord) -> None:
    status = exchange.outcome
    span.set_attributes(
        {
            "http.response.status_code": status,
            "http.request.body.size": exchange.received,
            "http.response.body.size": exchange.sent,
        }
    )
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)

"""Spans of requests, from the real service over real connections."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import uvicorn
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from hadakv_kernels.cpu import CpuBackend
from hadakv_service.app import create_app
from hadakv_service.server.connection_monitor import ConnectionMonitor
from hadakv_service.server.protocol import HttpProtocol
from hadakv_service.server.timeouts import Limits
from hadakv_service.settings import Settings
from support.assertions import PACKED, K, V
from support.contract import Caller, tensor
from support.services.prometheus import moved

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
KV = "/sessions/{id}/kv"
# Large enough for a chunked job.
LONG = np.ones((8, 8, 1024, 64), np.float16)


class Failing(CpuBackend):
    """Backend that fails to decode."""

    def decode(self, *_: object, **__: object) -> object:
        raise RuntimeError("out of order")


@dataclass
class Traced:
    """Service in this process, with tracing.

    Attributes:
        url: base URL.
        exporter: exporter that collects the ended spans.
    """

    url: str
    exporter: InMemorySpanExporter

    def spans(self) -> list[tuple[ReadableSpan, dict[str, ReadableSpan]]]:
        """Return each request's span with its child spans by name, for requests since the last call."""
        ended = self.exporter.get_finished_spans()
        self.exporter.clear()
        inner = {
            span.context.span_id: {each.name: each for each in ended if each.parent == span.context} for span in ended
        }
        return [(span, inner[span.context.span_id]) for span in ended if span.kind is SpanKind.SERVER]


class Protocol(HttpProtocol):
    """The service's protocol, without timeouts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        limits = Limits(1 << 16, 1000, 60, 60, 60, 1)
        monitor = ConnectionMonitor(set(), limits, asyncio.get_running_loop())
        super().__init__(*args, monitor=monitor, **options)


@contextmanager
def served(provider: TracerProvider) -> Iterator[str]:
    """Run the service on a free port in this process, and yield its URL."""
    app = create_app(Settings(memory_budget=1 << 28, disk_budget=0), Failing(2), provider)
    config = uvicorn.Config(app, http=Protocol, loop="uvloop", log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with served(provider) as url:
        yield Traced(url, exporter)


@pytest.fixture
def tracing(traced: Traced) -> Iterator[Caller]:
    traced.exporter.clear()
    with Caller(traced.url) as caller:
        yield caller


def test_append_span_has_waiting_encoding_and_finishing(traced: Traced, tracing: Caller, session: str) -> None:
    response = tracing.send("POST", f"/sessions/{session}/kv", PACKED)
    ((span, inner),) = traced.spans()

    assert (span.name, span.kind, span.parent) == (f"POST {KV}", SpanKind.SERVER, None)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": KV,
        "hadakv.request_id": response.headers["x-request-id"],
        "http.response.status_code": 201,
        "http.request.body.size": len(PACKED),
        "http.response.body.size": len(response.content),
    }
    assert set(inner) == {"waiting", "encoding", "finishing"}
    assert_in_order([inner[name] for name in ("waiting", "encoding", "finishing")])


def assert_in_order(spans: list[ReadableSpan]) -> None:
    """Check that each span starts after the one before it ended, except for rounding errors."""
    for span in spans:
        assert (span.start_time or 0) <= (span.end_time or 0)
    for before, after in pairwise(spans):
        assert (before.end_time or 0) <= (after.start_time or 0) + 1000


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda c, s: c.get(f"/sessions/{s}/kv"), (KV, 404, {"waiting", "finishing"})),
        (lambda c, s: c.post(f"/sessions/{s}/kv", {}), (KV, 422, set())),
        (lambda c, s: c.put(f"/sessions/{s}", {}), ("/sessions/{id}", 201, {"waiting", "finishing"})),
        (lambda c, _: c.post("/encode", {"x": tensor(K)}), ("/encode", 200, {"waiting", "encoding", "finishing"})),
        (lambda c, _: c.get("/healthz"), ("/healthz", 200, set())),
        (lambda c, s: c.get(f"/{s}"), ("other", 404, set())),
        (lambda c, s: c.append(s, LONG, LONG), (KV, 201, {"waiting", "encoding", "finishing"})),
    ],
    ids=["read", "rejected", "create", "encode", "probe", "unknown path", "long append"],
)
def test_span_has_its_route_and_device_spans(
    traced: Traced,
    tracing: Caller,
    session: str,
    act: Callable[[Caller, str], object],
    expected: tuple[str, int, set[str]],
) -> None:
    route, status, inner = expected

    act(tracing, session)
    ((span, within),) = traced.spans()

    assert span.name.partition(" ")[2] == route
    assert (span.attributes or {})["http.response.status_code"] == status
    assert span.status.status_code is StatusCode.UNSET
    assert set(within) == inner
    assert session not in span.to_json()


def test_internal_error_sets_the_span_status(traced: Traced, tracing: Caller, session: str) -> None:
    tracing.append(session, K, V)
    traced.spans()

    tracing.get(f"/sessions/{session}/kv", form="float32").problem(500, "internal-error")
    ((span, _),) = traced.spans()

    assert span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("state", [(), ("a=1",), ("a=1", "b=2")], ids=["", "one tracestate", "two tracestate headers"])
def test_request_joins_the_trace_of_its_traceparent(
    traced: Traced, tracing: Caller, session: str, state: tuple[str, ...]
) -> None:
    headers = [("traceparent", f"00-{TRACE}-{SPAN}-01"), *(("tracestate", each) for each in state)]

    tracing.http.get(f"/sessions/{session}/kv", headers=headers)
    ((span, inner),) = traced.spans()

    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert {f"{each.context.trace_id:032x}" for each in (span, *inner.values())} == {TRACE}
    assert span.context.trace_state.to_header() == ",".join(state)


@pytest.mark.parametrize("parent", ["nonsense", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01"])
def test_invalid_traceparent_is_ignored(traced: Traced, tracing: Caller, parent: str) -> None:
    tracing.http.get("/healthz", headers={"traceparent": parent})
    ((span, _),) = traced.spans()

    assert span.parent is None


def test_unsampled_trace_has_no_spans(traced: Traced, tracing: Caller, session: str) -> None:
    response = tracing.send("POST", f"/sessions/{session}/kv", PACKED, traceparent=f"00-{TRACE}-{SPAN}-00")

    assert response.status == 201
    assert traced.spans() == []


def test_concurrent_requests_keep_their_spans(traced: Traced, tracing: Caller, session: str) -> None:  # noqa: ARG001 - clears
    def append(n: int) -> None:
        with Caller(traced.url) as caller:
            for _ in range(10):
                parent = f"00-{n:032x}-{SPAN}-01"
                assert caller.send("POST", f"/sessions/{session}-{n}/kv", PACKED, traceparent=parent).status in (
                    200,
                    201,
                )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(1, 9)))
    spans = traced.spans()

    assert sorted(span.context.trace_id for span, _ in spans) == sorted(10 * list(range(1, 9)))
    for span, inner in spans:
        assert set(inner) == {"waiting", "encoding", "finishing"}
        assert {each.context.trace_id for each in inner.values()} == {span.context.trace_id}


def test_metrics_are_exact_with_tracing(traced: Traced, tracing: Caller, session: str) -> None:
    found = moved(traced.url, lambda: [tracing.append(session, K, V) for _ in range(3)])

    assert found["hadakv_device_job_seconds_count", ""] == 3
    assert found["hadakv_http_requests_total", f"method=POST route={KV} status=200"] == 2

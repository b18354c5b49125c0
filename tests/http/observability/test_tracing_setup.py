"""Export of spans: to the collector named in the environment, if the extra is installed, and otherwise not at all."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from hadakv_service.observability.tracing import ENDPOINTS
from hadakv_service.testing import running_service
from support.assertions import K, V
from support.contract import Caller

KV = "/sessions/{id}/kv"


class Collector(BaseHTTPRequestHandler):
    """Collector that keeps the exported spans."""

    requests: ClassVar[list[ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_spans_are_exported_to_the_collector(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")

        with running_service("--access-log") as service, Caller(service.url) as caller:
            caller.append("a", K, V)
        collector.shutdown()
    line = json.loads(capfd.readouterr().err)

    (sent,) = [spans for request in Collector.requests for spans in request.resource_spans]
    resource = {each.key: each.value.string_value for each in sent.resource.attributes}
    (scope,) = sent.scope_spans
    assert resource["service.name"] == "hadakv"
    assert [span.name for span in scope.spans] == ["waiting", "encoding", "finishing", f"POST {KV}"]
    assert {span.trace_id.hex() for span in scope.spans} == {line["trace_id"]}


def test_unreachable_collector_does_not_delay_requests(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{port}/v1/traces")

    with running_service() as service:
        with Caller(service.url) as caller:
            status = caller.append("a", K, V).status
        service.process.terminate()
        code = service.process.wait(30)

    assert (status, code) == (201, 0)
    assert "Transient error" in json.loads(capfd.readouterr().err.splitlines()[0])["message"]


# Print the modules that were imported for tracing on stderr at exit. The API alone comes with FastAPI.
PRINT_IMPORTS = """
import atexit, sys
from hadakv_service.__main__ import main
TRACING_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter", "hadakv_service.http.middleware.tracing")
atexit.register(lambda: print([name for name in sys.modules if name.startswith(TRACING_MODULES)], file=sys.stderr))
main()
"""


def test_without_a_collector_no_sdk_is_imported(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)

    with running_service(program=("-c", PRINT_IMPORTS)) as service, Caller(service.url) as caller:
        status = caller.append("a", K, V).status

    assert status == 201
    assert capfd.readouterr().err == "[]\n"


# Start the service as if the extra were not installed.
WITHOUT_EXTRA = "import sys; sys.modules['opentelemetry.sdk'] = None; from hadakv_service.__main__ import main; main()"


def test_collector_without_the_extra_logs_a_warning(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")

    with running_service(program=("-c", WITHOUT_EXTRA)) as service, Caller(service.url) as caller:
        status = caller.append("a", K, V).status

    assert status == 201
    assert "hadakv[otel] is not installed" in json.loads(capfd.readouterr().err)["message"]

"""Where spans are sent: to the collector that the environment names, with the extra; and else nowhere, at no cost."""

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
    """Takes in what is exported."""

    taken: ClassVar[list[ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_spans_are_sent_to_the_collector_that_the_environment_names(
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

    (sent,) = [spans for request in Collector.taken for spans in request.resource_spans]
    resource = {each.key: each.value.string_value for each in sent.resource.attributes}
    (scope,) = sent.scope_spans
    assert resource["service.name"] == "hadakv"
    assert [span.name for span in scope.spans] == ["waiting", "encoding", "finishing", f"POST {KV}"]
    assert {span.trace_id.hex() for span in scope.spans} == {line["trace_id"]}


def test_a_collector_that_is_not_there_holds_nothing_up(
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


# Writes on stderr, at the end, what was imported for the sake of traces; the API alone comes with FastAPI.
TELLING = """
import atexit, sys
from hadakv_service.__main__ import main
FOR_TRACES = ("opentelemetry.sdk", "opentelemetry.exporter", "hadakv_service.http.middleware.tracing")
atexit.register(lambda: print([name for name in sys.modules if name.startswith(FOR_TRACES)], file=sys.stderr))
main()
"""


def test_without_a_collector_nothing_is_imported_for_traces(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)

    with running_service(program=("-c", TELLING)) as service, Caller(service.url) as caller:
        status = caller.append("a", K, V).status

    assert status == 201
    assert capfd.readouterr().err == "[]\n"


# As if the extra were not installed.
WITHOUT = "import sys; sys.modules['opentelemetry.sdk'] = None; from hadakv_service.__main__ import main; main()"


def test_a_collector_is_no_use_without_the_extra_and_no_harm(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")

    with running_service(program=("-c", WITHOUT)) as service, Caller(service.url) as caller:
        status = caller.append("a", K, V).status

    assert status == 201
    assert "hadakv[otel] is not installed" in json.loads(capfd.readouterr().err)["message"]

"""Backend failures: the responses, and that the service continues."""

import json

import numpy as np
import pytest

from hadakv_service.testing import running_service
from support.contract import Caller, append_body, connect
from support.services.failing_backend import PROGRAM, WRONG_PROGRAM

K = np.ones((1, 1, 13, 64), np.float16)


def test_backend_failure_is_a_problem_and_changes_nothing() -> None:
    with running_service("--backend", "cpu", program=PROGRAM) as service, Caller(service.url) as caller:
        caller.append("a", K[:, :, 1:], K[:, :, 1:])
        before = caller.snapshot("a")

        responses = [
            caller.get("/sessions/a/kv", form="float32"),
            caller.append("a", K, K),
            caller.post("/sessions/a/kv", append_body(K, K), prefer="return=minimal"),
        ]

        for response in responses:
            response.problem(500, "internal-error")
        assert caller.snapshot("a") == before


def test_failed_self_test_is_reported_as_such() -> None:
    with running_service("--backend", "cpu", program=WRONG_PROGRAM) as service, Caller(service.url) as caller:
        refused = caller.get("/readyz")

    assert "wrong bytes" in refused.problem(503, "self-test-failed")["detail"]


@pytest.mark.parametrize("failures", [1, 3])
def test_connection_is_kept_after_a_failure(capfd: pytest.CaptureFixture[str], failures: int) -> None:
    requests = ["GET /sessions/a/kv?form=float32"] * failures + ["GET /healthz"]
    responses = []

    with running_service("--backend", "cpu", program=PROGRAM) as service:
        with Caller(service.url) as caller:
            caller.append("a", K[:, :, 1:], K[:, :, 1:])
        with connect(service.url) as connection, connection.makefile("rb") as stream:
            for request in requests:
                connection.sendall(f"{request} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                lines = iter(stream.readline, b"\r\n")
                head = dict(line.strip().lower().split(b": ") for line in lines if b": " in line)
                responses.append(json.loads(stream.read(int(head[b"content-length"]))))

    assert [response["status"] for response in responses] == [500] * failures + ["ok"]
    log = capfd.readouterr().err
    assert (log.count("unexpected error"), log.count("Traceback")) == (failures, failures), "each is logged, and once"

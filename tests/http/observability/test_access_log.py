"""What the service logs, to stderr: one line a request where that is asked for, failures always, and no secrets."""

import hashlib
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from hadakv_service.testing import running_service
from support.assertions import PACKED, K, V
from support.contract import MSGPACK, Caller, append_body, connect, status_line
from support.failing_backend import PROGRAM as FAILING
from support.prometheus import eventually, scrape

KV = "/sessions/{id}/kv"
FIELDS = ["time", "level", "logger", "message", "request_id", "tenant", "method", "route", "status"]
FIELDS += ["duration_seconds", "bytes_in", "bytes_out", "client"]

Entry = dict[str, Any]


def entries(text: str) -> list[Entry]:
    """A log in JSON: an object a line, and nothing else."""
    return [json.loads(line) for line in text.splitlines()]


def of_requests(log: list[Entry]) -> list[Entry]:
    return [entry for entry in log if entry["logger"] == "hadakv_service.requests"]


def test_each_request_is_logged_once_with_all_there_is_to_know(capfd: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC)
    with running_service("--access-log") as service, Caller(service.url) as caller:
        answer = caller.send("POST", "/sessions/a/kv", PACKED, **{"x-request-id": "first"})
        client = caller.http._transport._pool.connections[0]._connection._network_stream  # type: ignore[attr-defined]
        address = client.get_extra_info("client_addr")
    (entry,) = entries(capfd.readouterr().err)

    assert list(entry) == FIELDS
    assert before <= datetime.fromisoformat(entry["time"]) <= datetime.now(UTC)
    assert (entry["level"], entry["request_id"], entry["tenant"]) == ("info", "first", None)
    assert (entry["method"], entry["route"], entry["status"]) == ("POST", KV, 201)
    assert (entry["bytes_in"], entry["bytes_out"]) == (len(PACKED), len(answer.content))
    assert 0 < entry["duration_seconds"] < 60
    assert entry["client"] == "{}:{}".format(*address)


def test_requests_of_every_outcome_have_a_line_each(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann:{hashlib.sha256(b'secret').hexdigest()}", "utf-8")
    k = np.ones((1, 1, 13, 64), np.float16)
    flags = ("--access-log", "--backend", "cpu", "--token-file", str(tokens), "--max-body", "1MiB")
    gone = ("hadakv_http_requests_total", f"method=POST route={KV} status=499")

    with running_service(*flags, program=FAILING) as service:
        with Caller(service.url, "secret") as ann, Caller(service.url) as stranger:
            answers = [
                ann.append("a", K, V),
                ann.append("f", k, k),
                ann.append("a", K, V, position=1),
                ann.send("POST", "/sessions/a/kv", b"\xc1"),
                ann.send("POST", "/sessions/a/kv", bytes(2 << 20)),
                ann.post("/sessions/b/kv", append_body(K, V), prefer="return=minimal"),
                ann.get("/sessions/a/kv"),
                ann.get("/sessions/a/kv", form="float32"),
                ann.get("/sessions/a/kv", start=-1),
                ann.get("/sessions/c"),
                ann.get("/nowhere"),
                ann.delete("/sessions/a"),
                stranger.get("/sessions/a"),
                stranger.get("/healthz"),
            ]
        start = "POST /sessions/d/kv HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
        head = f"{start}Content-Type: {MSGPACK}\r\n"
        for length in (1000, 1_000_000):
            with connect(service.url) as connection:
                connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + bytes(100))
                connection.shutdown(socket.SHUT_RDWR)
        with connect(service.url) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            status_line(connection)
        eventually(lambda: scrape(service.url, "secret").get(gone) == 2)
    log = entries(capfd.readouterr().err)
    lines = [entry for entry in of_requests(log) if entry["route"] != "/metrics"]

    seen = [(entry["request_id"], entry["status"], entry["bytes_out"]) for entry in lines]
    expected = [(answer.headers["x-request-id"], answer.status, len(answer.content)) for answer in answers]
    assert seen[: len(answers)] == expected
    assert [status for _, status, _ in expected] == [
        201,
        500,
        409,
        400,
        413,
        201,
        200,
        500,
        422,
        404,
        404,
        204,
        401,
        200,
    ]
    assert sorted((entry["route"], entry["status"]) for entry in lines[len(answers) :]) == [
        (KV, 499),
        (KV, 499),
        ("unreadable", 400),
    ]
    assert [entry["tenant"] for entry in lines[: len(answers)]] == ["ann"] * 12 + [None] * 2
    assert {entry["level"] for entry in lines if entry["status"] >= 500} == {"warning"}
    failures = [entry for entry in log if "exception" in entry]
    assert [entry["request_id"] for entry in failures] == [lines[1]["request_id"], lines[7]["request_id"]]
    assert all("RuntimeError: out of order" in entry["exception"] for entry in failures)


def test_neither_tokens_nor_bodies_nor_ids_nor_queries_are_logged(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann:{hashlib.sha256(b'my-secret').hexdigest()}", "utf-8")
    k = np.ones((1, 1, 13, 64), np.float16)
    flags = ("--access-log", "--log-level", "debug", "--backend", "cpu", "--token-file", str(tokens))

    with running_service(*flags, program=FAILING) as service:
        with Caller(service.url, "my-secret") as ann, Caller(service.url, "wrong-secret") as stranger:
            ann.append("my-secret-session", k, k)
            ann.append("my-secret-session", K, V, codec={"my-secret-option": 1})
            ann.get("/sessions/my-secret-session/kv", form="my-secret-form")
            ann.get("/sessions", prefix="my-secret-prefix")
            ann.send("PUT", "/sessions/a", b'{"my-secret-field": 1}', "application/json")
            stranger.get("/sessions/my-secret-session")
        with connect(service.url) as connection:
            connection.sendall(b"GET /my-secret HTTP/1.1\r\nmy-secret\r\n\r\n")
            status_line(connection)
    log = capfd.readouterr().err

    assert len(of_requests(entries(log))) == 7
    assert "secret" not in log


def test_a_service_that_is_not_asked_to_logs_no_request(capfd: pytest.CaptureFixture[str]) -> None:
    with running_service() as service, Caller(service.url) as caller:
        caller.append("a", K, V)
        caller.get("/nowhere")

    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("level", "statuses"), [("info", [201, 500]), ("warning", [500]), ("error", [])])
def test_the_level_is_that_of_the_least_that_is_logged(
    capfd: pytest.CaptureFixture[str], level: str, statuses: list[int]
) -> None:
    k = np.ones((1, 1, 13, 64), np.float16)
    flags = ("--access-log", "--backend", "cpu", "--log-level", level)

    with running_service(*flags, program=FAILING) as service, Caller(service.url) as caller:
        caller.append("a", K, V)
        caller.append("f", k, k)
        with connect(service.url) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            status_line(connection)
    log = entries(capfd.readouterr().err)

    assert [entry["status"] for entry in of_requests(log) if entry["status"] != 400] == statuses
    assert [entry["message"] for entry in log if "exception" in entry] == ["unexpected error"]
    assert not [entry for entry in log if entry["logger"].startswith("uvicorn")], "nonsense is no news"


def test_a_console_gets_lines_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    k = np.ones((1, 1, 13, 64), np.float16)
    flags = ("--access-log", "--backend", "cpu", "--log-format", "console")

    with running_service(*flags, program=FAILING) as service, Caller(service.url) as caller:
        caller.send("POST", "/sessions/a/kv", PACKED, **{"x-request-id": "first"})
        caller.send("POST", "/sessions/f/kv", msgpack.packb(append_body(k, k)), **{"x-request-id": "second"})
    lines = capfd.readouterr().err.splitlines()
    first, third = (line for line in lines if "hadakv_service.requests" in line)
    second, *traceback = (line for line in lines if "hadakv_service.requests" not in line)

    assert " info    hadakv_service.requests: POST /sessions/{id}/kv 201 request_id=first duration_seconds=" in first
    assert " error   hadakv_service.problem_details: unexpected error request_id=second" in second
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == "RuntimeError: out of order"
    assert " warning hadakv_service.requests: POST /sessions/{id}/kv 500 request_id=second" in third


def test_the_form_is_that_of_a_console_at_a_terminal() -> None:
    ours, theirs = os.openpty()

    with running_service("--access-log", log=theirs) as service, Caller(service.url) as caller:
        caller.get("/healthz")
        seen = os.read(ours, 10_000).decode()
    os.close(theirs)
    os.close(ours)

    assert "hadakv_service.requests: GET /healthz 200 " in seen


def test_a_log_that_nobody_reads_any_more_is_no_failure() -> None:
    ours, theirs = os.pipe()

    with running_service("--access-log", log=theirs) as service, Caller(service.url) as caller:
        os.close(theirs)
        os.close(ours)
        statuses = [caller.append("a", K, V).status for _ in range(3)]

    assert statuses == [201, 200, 200]

"""Log on stderr: one line per request if enabled, failures always, and no secrets."""

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
from support.polling import eventually
from support.services.failing_backend import PROGRAM as FAILING
from support.services.prometheus import scrape

KV = "/sessions/{id}/kv"
FIELDS = ["time", "level", "logger", "message", "request_id", "tenant", "method", "route", "status"]
FIELDS += ["duration_seconds", "bytes_in", "bytes_out", "client"]

Line = dict[str, Any]


def parse(text: str) -> list[Line]:
    """Parse a log with one JSON object per line."""
    return [json.loads(line) for line in text.splitlines()]


def access_lines(log: list[Line]) -> list[Line]:
    return [line for line in log if line["logger"] == "hadakv_service.requests"]


def test_request_is_logged_once_with_all_fields(capfd: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC)
    with running_service("--access-log") as service, Caller(service.url) as caller:
        response = caller.send("POST", "/sessions/a/kv", PACKED, **{"x-request-id": "first"})
        client = caller.http._transport._pool.connections[0]._connection._network_stream  # type: ignore[attr-defined]
        address = client.get_extra_info("client_addr")
    (line,) = parse(capfd.readouterr().err)

    assert list(line) == FIELDS
    assert before <= datetime.fromisoformat(line["time"]) <= datetime.now(UTC)
    assert (line["level"], line["request_id"], line["tenant"]) == ("info", "first", None)
    assert (line["method"], line["route"], line["status"]) == ("POST", KV, 201)
    assert (line["bytes_in"], line["bytes_out"]) == (len(PACKED), len(response.content))
    assert 0 < line["duration_seconds"] < 60
    assert line["client"] == "{}:{}".format(*address)


def test_every_outcome_is_logged_once(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann:{hashlib.sha256(b'secret').hexdigest()}", "utf-8")
    k = np.ones((1, 1, 13, 64), np.float16)
    flags = ("--access-log", "--backend", "cpu", "--token-file", str(tokens), "--max-body", "1MiB")
    disconnected = ("hadakv_http_requests_total", f"method=POST route={KV} status=499")

    with running_service(*flags, program=FAILING) as service:
        with Caller(service.url, "secret") as ann, Caller(service.url) as stranger:
            responses = [
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
        eventually(lambda: scrape(service.url, "secret").get(disconnected) == 2)
    log = parse(capfd.readouterr().err)
    lines = [line for line in access_lines(log) if line["route"] != "/metrics"]

    seen = [(line["request_id"], line["status"], line["bytes_out"]) for line in lines]
    expected = [(response.headers["x-request-id"], response.status, len(response.content)) for response in responses]
    assert seen[: len(responses)] == expected
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
    assert sorted((line["route"], line["status"]) for line in lines[len(responses) :]) == [
        (KV, 499),
        (KV, 499),
        ("unreadable", 400),
    ]
    assert [line["tenant"] for line in lines[: len(responses)]] == ["ann"] * 12 + [None] * 2
    assert {line["level"] for line in lines if line["status"] >= 500} == {"warning"}
    failures = [line for line in log if "exception" in line]
    assert [line["request_id"] for line in failures] == [lines[1]["request_id"], lines[7]["request_id"]]
    assert all("RuntimeError: out of order" in line["exception"] for line in failures)


def test_log_has_no_tokens_bodies_ids_or_queries(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
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

    assert len(access_lines(parse(log))) == 7
    assert "secret" not in log


def test_access_log_is_off_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    with running_service() as service, Caller(service.url) as caller:
        caller.append("a", K, V)
        caller.get("/nowhere")

    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("level", "statuses"), [("info", [201, 500]), ("warning", [500]), ("error", [])])
def test_log_level_filters_the_access_log(capfd: pytest.CaptureFixture[str], level: str, statuses: list[int]) -> None:
    k = np.ones((1, 1, 13, 64), np.float16)
    flags = ("--access-log", "--backend", "cpu", "--log-level", level)

    with running_service(*flags, program=FAILING) as service, Caller(service.url) as caller:
        caller.append("a", K, V)
        caller.append("f", k, k)
        with connect(service.url) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            status_line(connection)
    log = parse(capfd.readouterr().err)

    assert [line["status"] for line in access_lines(log) if line["status"] != 400] == statuses
    assert [line["message"] for line in log if "exception" in line] == ["unexpected error"]
    assert not [line for line in log if line["logger"].startswith("uvicorn")], "uvicorn logs no malformed request"


def test_console_format_writes_lines_of_text(capfd: pytest.CaptureFixture[str]) -> None:
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


def test_default_format_on_a_terminal_is_console() -> None:
    reader, writer = os.openpty()

    with running_service("--access-log", log=writer) as service, Caller(service.url) as caller:
        caller.get("/healthz")
        text = os.read(reader, 10_000).decode()
    os.close(writer)
    os.close(reader)

    assert "hadakv_service.requests: GET /healthz 200 " in text


def test_closed_log_does_not_fail_requests() -> None:
    reader, writer = os.pipe()

    with running_service("--access-log", log=writer) as service, Caller(service.url) as caller:
        os.close(writer)
        os.close(reader)
        statuses = [caller.append("a", K, V).status for _ in range(3)]

    assert statuses == [201, 200, 200]

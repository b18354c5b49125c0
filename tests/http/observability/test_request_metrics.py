"""Request metrics: exact counts by route, method and status, with bytes, durations and tokens."""

from collections.abc import Callable

import msgpack
import numpy as np
import pytest

from hadakv_service.testing import RunningService
from support.assertions import PACKED, K, V
from support.contract import MSGPACK, Answer, Caller, append_body, connect, status_line
from support.polling import eventually
from support.services.prometheus import METHODS, a_call, counts, moved, of_http, scrape

KV = "/sessions/{id}/kv"

CALLS = {
    "small append": ("POST", "/sessions/{}/kv", PACKED, KV, 201),
    "rejected append": ("POST", "/sessions/{}/kv", b"\x80", KV, 422),
    "malformed append": ("POST", "/sessions/{}/kv", b"\xc1", KV, 400),
    "encode": ("POST", "/encode", b"\x80", "/encode", 422),
    "create": ("PUT", "/sessions/{}", b"\x80", "/sessions/{id}", 201),
    "get": ("GET", "/sessions/{}", b"", "/sessions/{id}", 404),
    "invalid id": ("GET", "/sessions/{}%20", b"", "/sessions/{id}", 422),
    "id with a slash": ("GET", "/sessions/{}%2Fx", b"", "other", 422),
    "read": ("GET", "/sessions/{}/kv", b"", KV, 404),
    "delete": ("DELETE", "/sessions/{}", b"", "/sessions/{id}", 404),
    "fork": ("POST", "/sessions/{}/fork", msgpack.packb({"id": "x"}), "/sessions/{id}/fork", 404),
    "list": ("GET", "/sessions?prefix={}", b"", "/sessions", 200),
    "probe": ("GET", "/healthz", b"", "/healthz", 200),
    "document": ("GET", "/openapi.json", b"", "/openapi.json", 200),
    "unsupported method": ("PATCH", "/sessions/{}", b"", "/sessions/{id}", 405),
    "unknown method": ("PURGE", "/sessions/{}", b"", "/sessions/{id}", 405),
    "unknown path": ("GET", "/{}", b"", "other", 404),
    "longer unknown path": ("POST", "/sessions/{}/kv/more", b"", "other", 404),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_request_is_counted_once_by_its_route(
    watched: RunningService, asking: Caller, session: str, call: tuple[str, str, bytes, str, int]
) -> None:
    method, path, body, route, status = call
    responses: list[Answer] = []

    found = moved(watched.url, lambda: responses.append(asking.send(method, path.format(session), body)))

    assert responses[0].status == status
    label = method if method in METHODS else "other"
    expected = a_call(route, label, status, received=len(body), sent=len(responses[0].content))
    assert counts(of_http(found)) == expected


@pytest.mark.parametrize("tokens", [1, 20, 3000], ids=["tiny", "small", "received into a buffer"])
@pytest.mark.parametrize("prefer", ["", "return=minimal"])
def test_body_bytes_are_counted_exactly(
    watched: RunningService, asking: Caller, session: str, tokens: int, prefer: str
) -> None:
    x = np.ones((1, 2, tokens, 64), np.float16)
    body = msgpack.packb(append_body(x, x))
    headers = {"prefer": prefer} if prefer else {}
    responses: list[Answer] = []

    def act() -> None:
        responses.append(asking.send("POST", f"/sessions/{session}/kv", body, **headers))
        responses.append(asking.get(f"/sessions/{session}/kv", form="float32"))

    found = of_http(moved(watched.url, act))

    appended, read = (len(response.content) for response in responses)
    assert counts(found) == a_call(KV, "POST", 201, received=len(body), sent=appended) | a_call(
        KV, "GET", 200, sent=read
    )


def test_chunked_body_counts_without_chunk_headers(watched: RunningService, asking: Caller, session: str) -> None:
    def act() -> None:
        parts = (PACKED[start : start + 100] for start in range(0, len(PACKED), 100))
        asking.http.post(f"/sessions/{session}/kv", content=parts, headers={"content-type": MSGPACK})

    found = moved(watched.url, act)

    assert found["hadakv_http_received_bytes_total", f"method=POST route={KV}"] == len(PACKED)


def test_head_response_counts_no_body(watched: RunningService, asking: Caller) -> None:
    found = moved(watched.url, lambda: asking.http.head("/sessions/a"))

    assert counts(of_http(found)) == a_call("/sessions/{id}", "HEAD", 404)


def test_duration_buckets_are_cumulative(watched: RunningService, asking: Caller) -> None:
    def act() -> None:
        for _ in range(20):
            asking.get("/healthz")

    found = moved(watched.url, act)

    name, call = "hadakv_http_request_seconds", "method=GET route=/healthz"
    buckets = [value for (each, text), value in found.items() if each == f"{name}_bucket" and text.endswith(call)]
    assert buckets == sorted(buckets)
    assert found[f"{name}_bucket", f"le=+Inf {call}"] == found[f"{name}_count", call] == 20
    assert 0 < found[f"{name}_sum", call] < 20 * 30


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"]
)
def test_unparsable_request_is_counted(watched: RunningService, sent: bytes) -> None:
    def act() -> None:
        with connect(watched.url) as connection:
            connection.sendall(sent)
            assert status_line(connection).startswith(b"HTTP/1.1 400 ")

    found = moved(watched.url, act)

    assert counts(of_http(found)) == a_call("unreadable", "other", 400)


def test_in_flight_gauge_counts_unfinished_requests(watched: RunningService, session: str) -> None:
    in_flight = ("hadakv_http_requests_in_flight", "")
    head = f"POST /sessions/{session}/kv HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\n"

    with connect(watched.url) as connection:
        connection.sendall(f"{head}Content-Length: {len(PACKED)}\r\n\r\n".encode())
        eventually(lambda: scrape(watched.url)[in_flight] == 2)
        connection.sendall(PACKED)
        line = status_line(connection)
        afterwards = scrape(watched.url)[in_flight]

    assert line.startswith(b"HTTP/1.1 201 ")
    assert afterwards == 1, "the scrape itself"


def test_stored_and_read_tokens_are_counted(watched: RunningService, asking: Caller, session: str) -> None:
    appended, read = ("hadakv_appended_tokens_total", ""), ("hadakv_read_tokens_total", "")
    path = f"/sessions/{session}/kv"

    def tokens(act: Callable[[], object]) -> tuple[float, float]:
        found = moved(watched.url, act)
        return found.get(appended, 0), found.get(read, 0)

    assert tokens(lambda: asking.append(session, K, V, position=0)) == (5, 0)
    assert tokens(lambda: asking.append(session, K, V, position=0)) == (0, 0), "a repeated append stores nothing"
    assert tokens(lambda: asking.append(session, K, V, position=3)) == (0, 0), "a rejected append stores nothing"
    assert tokens(lambda: asking.post(path, append_body(K, V), prefer="return=minimal")) == (5, 0)
    assert tokens(lambda: asking.get(path)) == (0, 10)
    assert tokens(lambda: asking.get(path, start=2, stop=5, form="float32")) == (0, 3)
    assert tokens(lambda: asking.get(path, start=99)) == (0, 0)
    assert tokens(lambda: asking.get(f"{path}x")) == (0, 0)

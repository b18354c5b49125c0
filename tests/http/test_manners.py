"""Mistakes of users: misspelt parameters, JSON in place of msgpack; and HEAD requests."""

import json
from typing import Any

import msgpack
import pytest

from hadakv_service.testing import RunningService, running_service
from support.contract import JSON, MSGPACK, Answer, Caller, connect, status_line
from support.inputs.arrays import pair

GETS = (
    *("/sessions", "/sessions/{}", "/sessions/{}/kv", "/sessions/{}/kv?form=float32&start=1", "/sessions/{}/export"),
    *("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/start.js", "/"),
    *("/nowhere", "/sessions/{}/kv?form=x", "/sessions/none.such"),
)
VARYING = {"x-request-id", "date"}


def answer(caller: Caller, method: str, path: str) -> Answer:
    response = caller.http.request(method, path)
    return Answer(response.status_code, response.headers, response.content)


@pytest.mark.parametrize("path", GETS)
def test_head_responds_as_get_without_a_body(caller: Caller, kept: str, path: str) -> None:
    get, head = (answer(caller, method, path.format(kept)) for method in ("GET", "HEAD"))

    varying = VARYING | ({"content-length"} if path in ("/metrics", "/readyz", "/sessions") else set())
    varying |= {"content-length"} if get.status >= 400 else set()
    assert (head.status, head.content) == (get.status, b"")
    constant = [sorted(pair for pair in each.headers.items() if pair[0] not in varying) for each in (head, get)]
    assert constant[0] == constant[1]


def test_head_of_a_large_read_makes_no_tensors(caller: Caller, session: str) -> None:
    caller.append(session, *pair(8, 8, 512, 128))
    path = f"/sessions/{session}/kv?form=float32"

    head, get = (answer(caller, method, path) for method in ("HEAD", "GET"))

    assert int(head.headers["content-length"]) == len(get.content) > 32 << 20
    assert head.content == b""


def test_head_of_a_call_without_get_is_not_allowed(caller: Caller, session: str) -> None:
    refused = answer(caller, "HEAD", f"/sessions/{session}/import")

    assert (refused.status, refused.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/sessions/{}/kv?strat=1", "strat"),
        ("GET", "/sessions/{}/kv?start=0&Stop=2", "Stop"),
        ("GET", "/sessions/{}?start=0", "start"),
        ("GET", "/sessions?limits=3", "limits"),
        ("GET", "/sessions/{}/export?form=norms", "form"),
        ("POST", "/sessions/{}/kv?layer=3", "layer"),
        ("POST", "/sessions/{}%2Dx/kv?layer=3", "layer"),
        ("PUT", "/sessions/{}?window=4", "window"),
        ("DELETE", "/sessions/{}?force", "force"),
        ("POST", "/encode?bits=4", "bits"),
        ("GET", "/healthz?x=1", "x"),
        ("GET", "/metrics?x=1", "x"),
        ("GET", "/openapi.json?x=1", "x"),
        ("GET", "/docs?x=1", "x"),
        ("HEAD", "/sessions/{}/kv?strat=1", "strat"),
    ],
)
def test_unknown_query_parameter_is_named(caller: Caller, kept: str, method: str, path: str, name: str) -> None:
    refused = caller.send(method, path.format(kept), b"\x80")

    if method == "HEAD":
        assert refused.status == 422
        return
    assert [error["field"] for error in refused.problem(422, "invalid-request")["errors"]] == [name]
    assert caller.info(kept)["window"] is None


@pytest.mark.parametrize("value", ["true", "True", "1.0", "1_0", " 1", "+1", "1e2", "", "-1", "9" * 200])
@pytest.mark.parametrize("name", ["start", "stop"])
def test_query_integers_are_decimal_digits(caller: Caller, kept: str, name: str, value: str) -> None:
    refused = caller.get(f"/sessions/{kept}/kv", **{name: value})

    error = refused.problem(422, "invalid-request")["errors"][0]
    assert error["field"] == name
    assert not error["reason"].startswith("Value error")


@pytest.mark.parametrize("value", [True, False, 1.0, "1", [1]])
@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("POST", "/sessions/{}/kv", "position"),
        ("POST", "/sessions/{}/kv", "layer"),
        ("PUT", "/sessions/{}", "layers"),
        ("PUT", "/sessions/{}", "window"),
        ("PUT", "/sessions/{}", "head_dim"),
        ("POST", "/sessions/{}/truncate", "length"),
        ("POST", "/sessions/{}/fork", "length"),
        ("POST", "/decode", "head_dim"),
    ],
)
def test_other_types_are_no_integers(caller: Caller, kept: str, method: str, path: str, field: str, value: Any) -> None:
    k = {"dtype": "float16", "shape": [1, 1, 64], "data": bytes(128)}
    others = {"/sessions/{}/kv": {"k": k, "v": k}, "/sessions/{}/fork": {"id": "x"}}.get(path, {})

    refused = caller.send(method, path.format(kept), msgpack.packb({**others, field: value}))

    assert refused.problem(422, "invalid-request")["errors"][0]["field"] == field


@pytest.mark.parametrize("text", ['{"length": 3}', ' \n{"length": 3}', "{}", "[1, 2]", '\ufeff{"length": 3}', "{" * 99])
@pytest.mark.parametrize("path", ["/sessions/{}/truncate", "/sessions/{}/kv", "/encode"])
def test_json_sent_as_msgpack_is_named(caller: Caller, kept: str, path: str, text: str) -> None:
    refused = caller.send("POST", path.format(kept), text.encode(), MSGPACK)

    assert "this looks like JSON" in refused.problem(400, "malformed-body")["detail"]


def test_missing_content_type_is_named(caller: Caller, kept: str) -> None:
    refused = caller.http.post(f"/sessions/{kept}/truncate", content=json.dumps({"length": 3}).encode())

    detail = refused.json()["detail"]
    assert (refused.status_code, detail.partition(".")[0]) == (415, "The request has no Content-Type header")
    assert MSGPACK in detail
    assert JSON in detail


def test_root_redirects_to_the_documentation(caller: Caller) -> None:
    response = caller.http.get("/", follow_redirects=False)

    assert (response.status_code, response.headers["location"]) == (307, "/docs")


@pytest.mark.hadakv_protocol
@pytest.mark.parametrize(
    "coding",
    [
        b"gzip, chunked",
        b"gzip",
        b"identity",
        b"gzip\r\nTransfer-Encoding: chunked",
        b"deflate,chunked",
    ],
)
def test_other_transfer_codings_are_not_implemented(server: RunningService, coding: bytes) -> None:
    head = b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/msgpack\r\n"
    with connect(server.url) as connection:
        connection.sendall(head + b"Transfer-Encoding: " + coding + b"\r\n\r\n1\r\n\x80\r\n0\r\n\r\n")

        assert status_line(connection) == b"HTTP/1.1 501 Not Implemented"


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "chunked "])
def test_chunked_coding_is_accepted(server: RunningService, coding: str) -> None:
    head = b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/msgpack\r\n"
    with connect(server.url) as connection:
        connection.sendall(head + b"Transfer-Encoding: " + coding.encode() + b"\r\n\r\n1\r\n\x80\r\n0\r\n\r\n")

        assert status_line(connection).startswith(b"HTTP/1.1 422 ")


@pytest.mark.hadakv_protocol
@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("begun", [b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 8000, b"GET /" + b"x" * 8000])
def test_incomplete_header_line_counts_at_once(small: str, before: bytes, begun: bytes) -> None:
    with connect(small) as connection, connection.makefile("rb") as stream:
        connection.sendall(before + begun)

        response = stream.read()

    # A response would be taken for that of the earlier request, which is not answered yet.
    assert b"HTTP/1.1 431 " in response if not before else b"431" not in response


@pytest.fixture(scope="module")
def small() -> Any:
    """Start a service that accepts headers of 4 KiB."""
    with running_service("--max-header-size", "4KiB") as service:
        yield service.url

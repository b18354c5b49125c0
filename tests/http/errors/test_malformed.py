"""Bodies that cannot be parsed, have the wrong content type or invalid framing are rejected; nothing changes."""

import gzip
import socket

import msgpack
import pytest

from hadakv_kernels import Codec
from hadakv_service.testing import RunningService
from support.assertions import PACKED, K
from support.contract import JSON, MSGPACK, Answer, Caller, connect, status_line, stream
from support.inputs.session_files import OCTETS

# 400: the body cannot be parsed


def nested(levels: int, opening: bytes) -> bytes:
    return opening * levels + b"\xc0"


MALFORMED = {
    "nothing": b"",
    "text": b"hello",
    "JSON": b'{"k": 1}',
    "the one byte msgpack never uses": b"\xc1",
    "a byte after the end": PACKED + b"\x00",
    "the same body twice": PACKED * 2,
    "arrays in arrays": nested(100, b"\x91"),
    "maps in maps": nested(100, b"\x81\xa1k"),
    "arrays nested beyond any stack": nested(200_000, b"\x91"),
    "maps nested beyond any stack": nested(200_000, b"\x81\xa1k"),
    "a deep value of an unknown key": b"\x81\xa1x" + nested(20, b"\x91"),
    "a deep map inside a tensor": b"\x81\xa1k\x81\xa4data" + nested(20, b"\x81\xa1k"),
    "a map of ten thousand keys": msgpack.packb({f"key{i}": i for i in range(10_000)}),
    "an array that says it has four billion items": b"\xdd\xff\xff\xff\xff",
    "a map that says it has four billion keys": b"\xdf\xff\xff\xff\xff",
    "a string that says it has four billion bytes": b"\xdb\xff\xff\xff\xff",
    "a bin that says it has four billion bytes": b"\xc6\xff\xff\xff\xff",
    "an ext that says it has four billion bytes": b"\xc9\xff\xff\xff\xff\x01",
    "a shape that says it has four billion axes": b"\x81\xa1k\x83\xa5dtype\xa7float32\xa5shape\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_body_that_is_not_one_msgpack_value_is_malformed(caller: Caller, kept: str, body: bytes) -> None:
    before = caller.snapshot(kept)

    responses = [
        caller.send("POST", f"/sessions/{kept}/kv", body),
        caller.send("POST", "/encode", body),
        caller.send("POST", "/decode", body),
        caller.send("PUT", f"/sessions/{kept}", body) if body else None,
    ]

    for response in filter(None, responses):
        response.problem(400, "malformed-body")
    assert caller.snapshot(kept) == before


def test_truncated_body_is_malformed(caller: Caller, kept: str) -> None:
    before = caller.snapshot(kept)
    cuts = [*range(120), *range(120, len(PACKED), 97), len(PACKED) - 1]

    responses = [caller.send("POST", f"/sessions/{kept}/kv", PACKED[:cut]) for cut in cuts]

    for response in responses:
        response.problem(400, "malformed-body")
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("body", [b"{", b"nothing", b'{"layers": 1} 2', b'{"layers": 1,}', b"\xff"])
def test_invalid_json_is_malformed(caller: Caller, kept: str, body: bytes) -> None:
    before = caller.snapshot(kept)

    response = caller.send("PUT", f"/sessions/{kept}", body, JSON)

    response.problem(400, "malformed-body")
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"layers": ' * 100_000, b'{"x": ' + b"[" * 100_000])
def test_deeply_nested_json_is_rejected(caller: Caller, kept: str, body: bytes) -> None:
    before = caller.snapshot(kept)

    response = caller.send("PUT", f"/sessions/{kept}", body, JSON)

    assert response.status in (400, 422)
    assert caller.snapshot(kept) == before


# 415: the body is of another content type


@pytest.mark.parametrize("content_type", ["text/plain", JSON, "application/octet-stream", "multipart/form-data", ""])
def test_append_of_another_content_type_is_rejected(caller: Caller, kept: str, content_type: str) -> None:
    before = caller.snapshot(kept)

    responses = [
        caller.send("POST", f"/sessions/{kept}/kv", PACKED, content_type),
        caller.send("POST", "/encode", PACKED, content_type),
        caller.send("POST", "/decode", PACKED, content_type),
    ]

    for response in responses:
        response.problem(415, "unsupported-media-type")
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_put_of_another_content_type_is_rejected(caller: Caller, session: str, content_type: str) -> None:
    response = caller.send("PUT", f"/sessions/{session}", b'{"layers": 1}', content_type)

    response.problem(415, "unsupported-media-type")
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_append_without_content_type_is_rejected(caller: Caller, session: str) -> None:
    response = caller.http.post(f"/sessions/{session}/kv", content=PACKED)

    assert response.status_code == 415


@pytest.mark.parametrize("coding", ["gzip", "identity, br", "x"])
@pytest.mark.parametrize(
    ("method", "path", "content_type"),
    [
        ("POST", "/sessions/{id}/kv", MSGPACK),
        ("PUT", "/sessions/{id}", MSGPACK),
        ("PUT", "/sessions/{id}", ""),
        ("POST", "/sessions/{id}/truncate", JSON),
        ("POST", "/sessions/{id}/fork", MSGPACK),
        ("POST", "/sessions/{id}/import", OCTETS),
        ("POST", "/encode", MSGPACK),
        ("POST", "/decode", MSGPACK),
    ],
)
def test_compressed_body_is_rejected(
    caller: Caller, kept: str, method: str, path: str, content_type: str, coding: str
) -> None:
    before = caller.snapshot(kept)
    headers = {"content-encoding": coding} | ({"content-type": content_type} if content_type else {})

    response = caller.http.request(method, path.format(id=kept), content=gzip.compress(PACKED), headers=headers)

    problem = Answer(response.status_code, response.headers, response.content).problem(415, "unsupported-media-type")
    assert f"Content-Encoding is not supported: '{coding}'" in problem["detail"]
    assert caller.snapshot(kept) == before


def test_identity_encoding_is_accepted(caller: Caller, session: str) -> None:
    response = caller.send("POST", f"/sessions/{session}/kv", PACKED, **{"content-encoding": "Identity"})

    assert response.status == 201


@pytest.mark.parametrize(
    "content_type", ["application/x-msgpack", "application/vnd.msgpack", "Application/MsgPack; charset=binary"]
)
def test_every_msgpack_content_type_is_accepted(caller: Caller, session: str, content_type: str) -> None:
    response = caller.send("POST", f"/sessions/{session}/kv", PACKED, content_type)

    assert response.status == 201
    assert response.body["k"] == stream(K, Codec())


# Requests that no HTTP library sends


@pytest.mark.parametrize("dots", [".", ".."])
@pytest.mark.parametrize("kind", [MSGPACK, f"{MSGPACK}; v=1"], ids=["plain", "with a parameter"])
def test_append_to_an_id_of_dots_is_rejected(server: RunningService, dots: str, kind: str) -> None:
    lines = [f"POST /sessions/{dots}/kv HTTP/1.1", "Host: localhost", f"Content-Type: {kind}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(PACKED)}", "", ""])

    with connect(server.url) as connection:
        connection.sendall(head.encode() + PACKED)
        line = status_line(connection)

    # The reason phrase depends on the Python version.
    assert line.startswith(b"HTTP/1.1 422 ")


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", "+5", "0x10", "9" * 5000, ""])
def test_content_length_that_is_not_a_number_is_rejected(server: RunningService, caller: Caller, length: str) -> None:
    head = f"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\nContent-Length: {length}\r\n\r\n"

    with connect(server.url) as connection:
        connection.sendall(head.encode() + PACKED)
        connection.shutdown(socket.SHUT_WR)
        line = status_line(connection)

    assert line.split(b" ")[1:2] in ([b"400"], [b"413"])
    assert caller.get("/healthz").status == 200

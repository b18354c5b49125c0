"""Bodies nobody meant: whatever arrives is refused or understood, in little memory, and the service goes on."""

import math
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import check_output
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest

from contract import MSGPACK, Caller, append_body, connect, status_line, stream, tensor
from hadakv_kernels import Codec
from hadakv_service.spawn import RunningService, running_service

BODIES = 2_000
EXTRA_NBYTES = 64 << 20

K = np.random.default_rng(7).standard_normal((2, 1, 2, 64)).astype(np.float16)
ROWS = {"dtype": "uint8", "shape": [2, 32], "data": bytes(range(64))}
NORMS = {"dtype": "float32", "shape": [2, 1], "data": struct.pack("<2f", 1.0, 2.0)}
# A number in place of the braces makes several sessions.
VALID = {
    "POST /sessions/fuzz{}/kv": append_body(K, K, layer=0, position=0, codec={"k": {"bits": 4}, "v": {"bits": 4}}),
    "PUT /sessions/put{}": {"codec": {"bits": 4}, "layers": 2, "kv_heads": 2, "head_dim": 64, "ttl_seconds": 60.5},
    "POST /encode": {"x": tensor(K), "codec": {"bits": 3, "norm": "unbiased"}, "diagnostics": True},
    "POST /decode": {"packed": ROWS, "norms": NORMS, "codec": {"bits": 4}, "head_dim": 64, "form": "rotated"},
}

Mutation = Callable[[random.Random, bytes], bytes]


def flip_bytes(rng: random.Random, body: bytes) -> bytes:
    mutated = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def flip_headers(rng: random.Random, body: bytes) -> bytes:
    """Like flip_bytes, but in the first bytes, where the structure is."""
    front = min(len(body), 80)
    return flip_bytes(rng, body[:front]) + body[front:]


def cut_short(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body))]


def insert_bytes(rng: random.Random, body: bytes) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.randbytes(rng.randint(1, 8)) + body[at:]


def splice(rng: random.Random, body: bytes) -> bytes:
    other: bytes = msgpack.packb(rng.choice(list(VALID.values())))
    return body[: rng.randrange(len(body))] + other[rng.randrange(len(other)) :]


# Every header that says how much follows: code, then a length of 1, 2 or 4 bytes.
SIZED = {
    **dict(zip((0xC4, 0xC5, 0xC6), (1, 2, 4), strict=True)),
    **dict(zip((0xC7, 0xC8, 0xC9), (1, 2, 4), strict=True)),
    **dict(zip((0xD9, 0xDA, 0xDB), (1, 2, 4), strict=True)),
    **dict(zip((0xDC, 0xDD), (2, 4), strict=True)),
    **dict(zip((0xDE, 0xDF), (2, 4), strict=True)),
}


def declare_much(rng: random.Random, body: bytes) -> bytes:
    """Put a header that declares far more than there is in place of some byte, in the front mostly."""
    code, width = rng.choice(list(SIZED.items()))
    length = rng.choice([(1 << 8 * width) - 1, 1 << (8 * width - 1), (1 << 8 * width) - rng.randint(1, 200)])
    at = rng.randrange(min(len(body), rng.choice([2, 40, 1000])))
    return body[:at] + bytes([code]) + length.to_bytes(width, "big") + body[at + 1 :]


def nest(rng: random.Random, body: bytes) -> bytes:
    """Put arrays or maps in each other in place of a byte, shallow or beyond any stack."""
    levels = rng.choice([1, 15, 16, 17, 40, 1_000, 50_000])
    opening = rng.choice([b"\x91", b"\x81\xa1k", b"\x81\x90", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"])
    at = rng.randrange(len(body) + 1)
    return body[:at] + opening * levels + body[at + 1 :]


WRONG: list[Any] = [
    None,
    True,
    -1,
    2**63,
    2**64 - 1,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 300,
    b"",
    b"\x00" * 70,
    [],
    {},
]
WRONG += [[[[]]], {"k": {"k": 1}}, {1: 2}, [2**62] * 4, [0] * 9, msgpack.ExtType(5, b"xyz"), msgpack.Timestamp(1, 2)]


def replace_value(rng: random.Random, body: bytes) -> bytes:
    """Take a value anywhere in the body's maps for another one, or give it a key it should not have."""
    value = msgpack.unpackb(body)
    place = value
    while True:
        inner = [item for item in place.values() if isinstance(item, dict)]
        if not inner or rng.random() < 0.5:
            break
        place = rng.choice(inner)
    place[rng.choice([*place, "unknown"])] = rng.choice(WRONG)
    return bytes(msgpack.packb(value))


AXES = [0, 0, 1, 2, 3, 64, 128, 1 << 16, 1 << 31, 1 << 39, 1 << 62, 1 << 63, (1 << 64) - 1]


def reshape(rng: random.Random, body: bytes) -> bytes:
    """Give every tensor the same odd shape, with as much data as that asks for where that is little."""
    shape = [rng.choice(AXES) for _ in range(rng.randint(0, 5))] + [rng.choice([0, 1, 32, 64, 64, 64])]
    value = msgpack.unpackb(body)
    for inner in value.values():
        if isinstance(inner, dict) and "data" in inner:
            nbytes = math.prod(shape) * (1 if inner["dtype"] == "uint8" else 2)
            inner |= {"shape": shape, "data": bytes(nbytes if nbytes < 100_000 else 0)}
    return bytes(msgpack.packb(value))


def random_bytes(rng: random.Random, _: bytes) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 2, 10, 1000]))


def unchanged(_: random.Random, body: bytes) -> bytes:
    return body


MUTATIONS: list[Mutation] = [
    flip_bytes,
    flip_headers,
    cut_short,
    insert_bytes,
    splice,
    declare_much,
    nest,
    replace_value,
    reshape,
    random_bytes,
    unchanged,
]


def requests(seed: int, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Which call, which mutation, and the body."""
    rng = random.Random(seed)
    for _ in range(count):
        call, valid = rng.choice(list(VALID.items()))
        mutation = rng.choice(MUTATIONS)
        body = mutation(rng, msgpack.packb(valid))
        if rng.random() < 0.2:
            body = rng.choice(MUTATIONS[:6])(rng, body or b"\xc0")
        yield call.format(rng.randrange(50)), mutation.__name__, body


def memory_nbytes(pid: int) -> int:
    """The most memory a process ever had, where the system keeps that (Linux), else what it has now."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        line = next(line for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    return int(check_output(["ps", "-o", "rss=", "-p", str(pid)])) << 10


@pytest.fixture
def fresh() -> Iterator[RunningService]:
    """A service of the test's own, whose memory nobody else uses, warmed up by every valid call."""
    with running_service("--memory-budget", "64MiB") as service:
        with Caller(service.url) as caller:
            for call, body in VALID.items():
                assert status_of(caller, call.format("warm"), msgpack.packb(body)) in (200, 201)
        yield service


def status_of(caller: Caller, call: str, body: bytes) -> int:
    """The status, or 599 where no answer came."""
    method, path = call.split(" ")
    try:
        return caller.send(method, path, body).status
    except httpx.TransportError:
        return 599


def test_two_thousand_mutated_bodies_are_refused_or_understood_in_little_memory(fresh: RunningService) -> None:
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    before = most = memory_nbytes(fresh.process.pid)

    with Caller(fresh.url) as caller:
        for number, (call, mutation, body) in enumerate(requests(20260101, BODIES)):
            status = status_of(caller, call, body)
            statuses[status] += 1
            if status >= 500:
                failures.append(f"{status}: {call} {mutation} {len(body)} bytes {body[:200].hex()}")
            if number % 100 == 99:
                most = max(most, memory_nbytes(fresh.process.pid))
        answer = caller.append("afterwards", K, K)

    assert statuses.total() == BODIES
    assert failures == [], f"{dict(statuses)}; {len(failures)} failures, the first: {failures[:3]}"
    assert set(statuses) <= {200, 201, 400, 409, 422}, statuses
    assert min(statuses[status] for status in (200, 400, 422)) > BODIES / 50, f"the bodies are one-sided: {statuses}"
    assert most - before <= EXTRA_NBYTES, f"{(most - before) >> 20} MiB more; {dict(statuses)}"
    assert answer.status == 201
    assert answer.body["k"] == stream(K, Codec())


def test_a_header_of_every_kind_that_declares_much_takes_no_memory(fresh: RunningService) -> None:
    before = memory_nbytes(fresh.process.pid)
    headers = [bytes([code]) + b"\xff" * width for code, width in SIZED.items()]
    # As the whole body, as the value of each key, as a key, and as data or shape of a tensor.
    fronts = [
        b"",
        b"\x81\xa1k",
        b"\x81\xa1x",
        b"\x81\xa5codec",
        b"\x81",
        b"\x81\xa1k\x81\xa4data",
        b"\x81\xa1k\x81\xa5shape",
    ]

    with Caller(fresh.url) as caller:
        statuses = {
            status_of(caller, call.format("header"), front + header)
            for call in VALID
            for front in fronts
            for header in headers
        }

    assert statuses <= {400, 422}
    assert memory_nbytes(fresh.process.pid) - before <= EXTRA_NBYTES


def request_head(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {MSGPACK}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("tokens", [1, 3000], ids=["a small body", "a large body"])
def test_a_connection_closed_in_the_middle_of_a_body_stores_nothing(
    server: RunningService, caller: Caller, session: str, share: float, tokens: int
) -> None:
    values = np.ones((1, 1, tokens, 64), np.float16)
    body = msgpack.packb(append_body(values, values))
    head = request_head(f"/sessions/{session}/kv", f"Content-Length: {len(body)}")

    with connect(server.url) as connection:
        connection.sendall(head + body[: int(share * len(body))])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the service has seen the end: it closes, or says what it thinks of it

    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_a_chunked_body_that_breaks_off_stores_nothing(server: RunningService, caller: Caller, session: str) -> None:
    body = msgpack.packb(append_body(K, K))
    head = request_head(f"/sessions/{session}/kv", "Transfer-Encoding: chunked")

    with connect(server.url) as connection:
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(body), body))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_a_large_content_length_alone_takes_no_memory(fresh: RunningService) -> None:
    before = memory_nbytes(fresh.process.pid)
    head = request_head("/sessions/large/kv", f"Content-Length: {1 << 30}")
    connections = [connect(fresh.url) for _ in range(8)]

    for connection in connections:
        connection.sendall(head + b"ten bytes!")
    with Caller(fresh.url) as caller:
        while_they_wait = caller.get("/readyz").status
        for connection in connections:
            connection.close()
        afterwards = caller.append("small", K, K).status

    assert (while_they_wait, afterwards) == (200, 201)
    assert memory_nbytes(fresh.process.pid) - before <= EXTRA_NBYTES


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"POST /encode\r\n\r\n",
        b"POST /encode HTTP/9.9\r\n\r\n",
        request_head("/encode", "Content-Length: 5", "Content-Length: 6") + b"12345",
        request_head("/encode", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        request_head("/encode", "Transfer-Encoding: chunked") + b"zz\r\n\r\n",
        request_head("/encode", "Transfer-Encoding: chunked") + b"-5\r\nhello\r\n0\r\n\r\n",
        request_head("/encode", "Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n",
    ],
    ids=[
        "bytes that are no request",
        "no version",
        "an unknown version",
        "two lengths",
        "a length and chunks",
        "a chunk size that is no number",
        "a negative chunk size",
        "a chunk size beyond all numbers",
    ],
)
def test_what_is_not_http_is_refused(server: RunningService, caller: Caller, request_bytes: bytes) -> None:
    with connect(server.url) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        line = status_line(connection)

    assert line == b"" or b" 4" in line, "closed, or a refusal"
    assert caller.get("/healthz").status == 200

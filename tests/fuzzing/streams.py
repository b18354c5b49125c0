"""Byte streams for a connection: pipelined requests in every allowed form, and ways to corrupt them."""

import random
import re
from collections.abc import Callable
from itertools import pairwise

import msgpack
import numpy as np

from support.contract import MSGPACK, append_body

CANARY = "canary"
SMALL = bytes(msgpack.packb(append_body(*[np.ones((1, 1, 1, 64), np.float16)] * 2)))
# Larger than one read, so that it is received directly into the buffer.
LARGE = bytes(msgpack.packb(append_body(*[np.ones((1, 1, 700, 64), np.float16)] * 2)))
DELETE = f"DELETE /sessions/{CANARY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
OFFERS = [
    ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"],
    ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {'A' * 22}=="],
    ["connection: keep-alive,upgrade", "UPGRADE: TLS/1.0"],
]
SPACES = ["", " ", "  ", "\t", " \t "]


def request(rng: random.Random, method: str, path: str, lines: list[str], body: bytes | None = None) -> bytes:
    """Return a request in one of the allowed forms: any case, order and spacing of headers."""
    lines = ["Host: localhost", *lines]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    rng.shuffle(lines)
    shown = [_to_base64(rng, *line.split(": ", 1)) for line in lines]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *shown, "", ""]).encode() + (body or b"")


def _to_base64(rng: random.Random, name: str, value: str) -> str:
    cased = rng.choice([str, str.lower, str.upper])(name)
    # The parser wants no space after "chunked", which is right: it decides where a request ends.
    behind = "" if value == "chunked" else rng.choice(SPACES)
    return f"{cased}:{rng.choice(SPACES)}{value}{behind}"


def chunked(rng: random.Random, body: bytes) -> bytes:
    """Return a body in chunks of odd sizes, sometimes with extensions and trailers."""
    cuts = sorted({0, len(body), *(rng.randrange(len(body)) for _ in range(rng.randint(0, 5)))})
    extension = rng.choice([b"", b"", b";a=b", b';a="b c"'])
    size = rng.choice([b"%X", b"000%x"])
    framed = [size % (b - a) + extension + b"\r\n%b\r\n" % body[a:b] for a, b in pairwise(cuts)]
    return b"".join(framed) + b"0\r\n" + rng.choice([b"", b"X-Trailer: 1\r\n"]) + b"\r\n"


def valid_stream(rng: random.Random, session: str) -> tuple[bytes, list[set[int]]]:
    """Return pipelined requests, and the allowed statuses of each response."""
    made = [_one(rng, session) for _ in range(rng.randint(1, 5))]
    return b"".join(sent for sent, _ in made), [wanted for _, wanted in made]


def _one(rng: random.Random, session: str) -> tuple[bytes, set[int]]:
    offer = rng.choice(OFFERS) if rng.random() < 0.3 else []
    append, stored = f"/sessions/{session}/kv", {200, 201, 503}
    match rng.randrange(7):
        case 0:
            return request(rng, "GET", rng.choice(["/healthz", f"/sessions/{CANARY}"]), offer), {200}
        case 1 if not offer:
            lines = [f"Content-Type: {MSGPACK}", "Transfer-Encoding: chunked"]
            return request(rng, "POST", append, lines) + chunked(rng, rng.choice([SMALL, LARGE])), stored
        case 2:
            # Rejected by its content type. The body contains a request.
            hidden = rng.choice([DELETE, DELETE * 3, DELETE + LARGE])
            return request(rng, "POST", "/encode", ["Content-Type: text/plain", *offer], hidden), {415}
        case 3:
            return request(rng, "GET", f"/sessions/{CANARY}/none", offer, DELETE), {404}
        case _:
            body = rng.choice([SMALL, SMALL, LARGE])
            return request(rng, "POST", append, [f"Content-Type: {MSGPACK}", *offer], body), stored


def cut(rng: random.Random, sent: bytes) -> bytes:
    return sent[: rng.randrange(rng.choice([len(sent), min(len(sent), 300)]) + 1)]


def flip(rng: random.Random, sent: bytes) -> bytes:
    changed = bytearray(sent)
    for _ in range(rng.randint(1, 3) if sent else 0):
        changed[rng.randrange(min(len(changed), rng.choice([40, 300, len(changed)])))] = rng.randrange(256)
    return bytes(changed)


ODD = [
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b":", b"\t", b"\xff", b"\r\n ", b"\x0b"),
    *(b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/0.9\r\n\r\n"),
    *(b"\r\nContent-Length: %b" % length for length in (b"5", b"0", b"-1", b"+5", b"3000000000", b"9" * 23)),
    *(b"\r\nTransfer-Encoding: %b" % kind for kind in (b"chunked", b"gzip, chunked", b"identity")),
    b"\r\nTransfer-Encoding : chunked",
    b"\r\nConnection: close",
    b"\r\nExpect: 100-continue",
    b"\r\nExpect: something",
    b"\r\nUpgrade: websocket\r\nConnection: upgrade",
    b"\r\nX: " + b"x" * 70_000,
    b"\r\nX: y" * 2_000,
    b"\r\n: no name",
    b"\r\nHost: a\r\nHost: b",
    b"CONNECT localhost:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%00?\xff=%zz#f HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"5\nhello\n",
]


def insert(rng: random.Random, sent: bytes) -> bytes:
    """Insert odd bytes anywhere, mostly between header lines."""
    ends = [match.start() for match in re.finditer(rb"\r\n", sent[:2000])] or [0]
    at = rng.choice([rng.choice(ends), rng.choice(ends), rng.randrange(len(sent) + 1)])
    return sent[:at] + rng.choice(ODD) + sent[at:]


def drop_line(rng: random.Random, sent: bytes) -> bytes:
    lines = sent.split(b"\r\n")
    del lines[rng.randrange(min(len(lines), 8))]
    return b"\r\n".join(lines)


def other_length(rng: random.Random, sent: bytes) -> bytes:
    beside = [size + more for size in (len(SMALL), len(LARGE)) for more in (-1, 1)]
    length = b"%d" % rng.choice([0, 1, 65_536, 65_537, 1 << 24, *beside])
    return re.sub(rb"(?i)(content-length:\s*)\d+", lambda found: found[1] + length, sent, count=1)


def repeat(rng: random.Random, sent: bytes) -> bytes:
    at = rng.randrange(len(sent) + 1)
    return sent[:at] * rng.randint(1, 4) + sent[at:]


def noise(rng: random.Random, _: bytes) -> bytes:
    return rng.randbytes(rng.choice([1, 10, 1000, 100_000]))


CORRUPTIONS: list[Callable[[random.Random, bytes], bytes]] = [
    *(cut, flip, flip, insert, insert, insert, drop_line, other_length, repeat, noise)
]


class InvalidHttp(AssertionError):
    """The bytes received are not a sequence of HTTP responses."""


def statuses(received: bytes) -> list[int]:
    """Return the statuses of the responses on a connection, without 100. The last response may be incomplete.

    Raises:
        InvalidHttp: the bytes are not HTTP.
    """
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        line = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        if line is None:
            raise InvalidHttp(f"not an HTTP response: {received[:80]!r}")
        if line[1] != b"100":
            found.append(int(line[1]))
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if re.search(rb"(?i)\r\ntransfer-encoding: chunked", head):
            rest = rest.partition(b"0\r\n\r\n")[2]
        received = rest[int(length[1]) if length else 0 :]
    return found

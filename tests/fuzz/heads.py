"""Bytes on a connection: requests one behind another, spoiled, cut, badly framed, offered as something else.

Two kinds of streams. What is meant, in an unusual form, has one right list of answers. Of what is spoiled only this is
asked: whatever is answered is HTTP, nothing is answered with a failure of ours, and the connection ends.
"""

import random
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import msgpack
import numpy as np

from contract import MSGPACK, Caller, append_body, connect
from fuzz.tally import Limit, Tally
from hadakv_service.spawn import RunningService
from memory import resident_nbytes

TIMEOUT_SECONDS = 20.0
# Who gets nothing for so long ends the connection; only what is told of the answers depends on it.
QUIET_SECONDS = 0.03
CANARY = "canary"
ONE = np.ones((1, 1, 1, 64), np.float16)
SMALL = bytes(msgpack.packb(append_body(ONE, ONE)))
# More than is read at once, so that it goes straight into the buffer.
LARGE = bytes(msgpack.packb(append_body(np.ones((1, 1, 700, 64), np.float16), np.ones((1, 1, 700, 64), np.float16))))
DELETE = f"DELETE /sessions/{CANARY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
OFFERS = [
    ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"],
    ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="],
    ["connection: keep-alive,upgrade", "UPGRADE: TLS/1.0"],
]


def request(method: str, path: str, lines: list[str], body: bytes | None, rng: random.Random) -> bytes:
    """A request in one of the forms that are allowed: any case, any order, any space around values."""
    lines = ["Host: localhost", *lines]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    rng.shuffle(lines)
    parted = [line.split(": ", 1) for line in lines]
    spaces = ["", " ", "  ", "\t", " \t "]
    # The parser wants no space after "chunked", which is right: it decides where a request ends.
    shown = [
        f"{_cased(rng, name)}:{rng.choice(spaces)}{value}{'' if value == 'chunked' else rng.choice(spaces)}"
        for name, value in parted
    ]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *shown, "", ""]).encode() + (body or b"")


def _cased(rng: random.Random, name: str) -> str:
    return rng.choice([str, str.lower, str.upper])(name)


def chunked(body: bytes, rng: random.Random) -> bytes:
    """A body in chunks of odd sizes, with extensions and trailers now and then."""
    cuts = sorted({0, len(body), *(rng.randrange(len(body)) for _ in range(rng.randint(0, 5)))})
    pieces = [body[a:b] for a, b in pairwise(cuts)]
    extension = rng.choice([b"", b"", b";a=b", b';a="b c"'])
    framed = [(b"%X" if rng.random() < 0.5 else b"000%x") % len(piece) + extension + b"\r\n%b\r\n" % piece for piece in pieces]
    return b"".join(framed) + b"0\r\n" + rng.choice([b"", b"X-Trailer: 1\r\n"]) + b"\r\n"


def meant(rng: random.Random, name: str) -> tuple[bytes, list[set[int]]]:
    """Requests one behind another, and which statuses each may be answered with."""
    sent, wanted = [], []
    for _ in range(rng.randint(1, 5)):
        body = rng.choice([SMALL, SMALL, LARGE])
        offer = rng.choice(OFFERS) if rng.random() < 0.3 else []
        match rng.randrange(7):
            case 0:
                sent.append(request("GET", rng.choice(["/healthz", f"/sessions/{CANARY}"]), offer, None, rng))
                wanted.append({200})
            case 1 if not offer:
                lines = [f"Content-Type: {MSGPACK}", "Transfer-Encoding: chunked"]
                sent.append(request("POST", f"/sessions/{name}/kv", lines, None, rng) + chunked(body, rng))
                wanted.append({200, 201, 503})
            case 2:
                # Refused by its type, and the body has a request in it.
                hidden = rng.choice([DELETE, DELETE * 3, DELETE + LARGE])
                sent.append(request("POST", "/encode", ["Content-Type: text/plain", *offer], hidden, rng))
                wanted.append({415})
            case 3:
                sent.append(request("GET", f"/sessions/{CANARY}/none", offer, DELETE, rng))
                wanted.append({404})
            case _:
                lines = [f"Content-Type: {MSGPACK}", *offer]
                sent.append(request("POST", f"/sessions/{name}/kv", lines, body, rng))
                wanted.append({200, 201, 503})
    return b"".join(sent), wanted


SPOILS: list[Callable[[random.Random, bytes], bytes]] = []


def spoil(function: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, bytes], bytes]:
    """Note a way to spoil a stream."""
    SPOILS.append(function)
    return function


@spoil
def cut(rng: random.Random, sent: bytes) -> bytes:
    return sent[: rng.randrange(len(sent) + 1)]


@spoil
def cut_in_head(rng: random.Random, sent: bytes) -> bytes:
    return sent[: rng.randrange(min(len(sent), 300) + 1)]


@spoil
def flip(rng: random.Random, sent: bytes) -> bytes:
    spoiled = bytearray(sent)
    for _ in range(rng.randint(1, 3)):
        if spoiled:
            spoiled[rng.randrange(min(len(spoiled), rng.choice([40, 300, len(spoiled)])))] = rng.randrange(256)
    return bytes(spoiled)


ODD = [
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b":", b"\t", b"\xff", b"\r\n ", b"\x0b", b"HTTP/1.1", b"HTTP/1.0"),
    b"HTTP/2.0",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/0.9\r\n\r\n",
    b"\r\nContent-Length: 5",
    b"\r\nContent-Length: 0",
    b"\r\nContent-Length: -1",
    b"\r\nContent-Length: +5",
    b"\r\nContent-Length: 99999999999999999999999",
    b"\r\nContent-Length: 3000000000",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nTransfer-Encoding: gzip, chunked",
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


@spoil
def insert(rng: random.Random, sent: bytes) -> bytes:
    """Put something odd anywhere, mostly in a head and there mostly between lines."""
    ends = [match.start() for match in re.finditer(rb"\r\n", sent[:2000])] or [0]
    at = rng.choice([rng.choice(ends), rng.choice(ends), rng.randrange(len(sent) + 1)])
    return sent[:at] + rng.choice(ODD) + sent[at:]


@spoil
def drop_line(rng: random.Random, sent: bytes) -> bytes:
    lines = sent.split(b"\r\n")
    del lines[rng.randrange(min(len(lines), 8))]
    return b"\r\n".join(lines)


@spoil
def other_length(rng: random.Random, sent: bytes) -> bytes:
    lengths = [0, 1, len(SMALL) - 1, len(SMALL) + 1, len(LARGE) - 1, len(LARGE) + 1, 65_536, 65_537, 1 << 24]
    return re.sub(rb"(?i)(content-length:\s*)\d+", lambda found: found[1] + b"%d" % rng.choice(lengths), sent, count=1)


@spoil
def repeat(rng: random.Random, sent: bytes) -> bytes:
    at = rng.randrange(len(sent) + 1)
    return sent[:at] * rng.randint(1, 4) + sent[at:]


@spoil
def noise(rng: random.Random, _: bytes) -> bytes:
    return rng.randbytes(rng.choice([1, 10, 1000, 100_000]))


class Unanswered(AssertionError):
    """What came back is no list of answers."""


def statuses(received: bytes) -> list[int]:
    """The statuses of the answers on a connection, those of 100 aside; the last may have been broken off.

    Raises:
        Unanswered: it is not HTTP.
    """
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        line = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        if line is None:
            raise Unanswered(f"no answer begins with {received[:80]!r}")
        status = int(line[1])
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if status != 100:
            found.append(status)
        if re.search(rb"(?i)\r\ntransfer-encoding: chunked", head):
            rest = rest.partition(b"0\r\n\r\n")[2]
        received = rest[int(length[1]) if length else 0 :]
    return found


def exchange(url: str, sent: bytes, rng: random.Random) -> bytes:
    """Send a stream, at once or in pieces; everything that comes back until the service closes.

    Raises:
        TimeoutError: it does not, once it is told that no more will come.
    """
    with connect(url) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        received = bytearray()
        # What the service has refused it may not read to the end; what it said of that can still be read.
        with suppress(ConnectionError):
            _send(connection, sent, rng)
        with suppress(ConnectionError):
            connection.settimeout(QUIET_SECONDS)
            with suppress(TimeoutError):
                while part := connection.recv(1 << 20):
                    received += part
            connection.settimeout(TIMEOUT_SECONDS)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 20):
                received += part
        return bytes(received)


def _send(connection: socket.socket, sent: bytes, rng: random.Random) -> None:
    connection.settimeout(TIMEOUT_SECONDS)
    piece = rng.choice([1 << 30, 1 << 30, 50_000, 700])
    for start in range(0, len(sent), piece):
        connection.sendall(sent[start : start + piece])


def ask(url: str, sent: bytes, answers: int, rng: random.Random) -> list[int]:
    """Send what is meant, and read as many answers before the connection is ended."""
    found: list[int] = []
    with connect(url) as connection:
        _send(connection, sent, rng)
        with connection.makefile("rb") as stream, suppress(ConnectionError):
            while len(found) < answers and (line := stream.readline()):
                found.append(int(line.split()[1]))
                length = 0
                while (header := stream.readline().strip().lower()) != b"":
                    if header.startswith(b"content-length:"):
                        length = int(header.partition(b":")[2])
                stream.read(length)
    return found


def run(service: RunningService, limit: Limit) -> Tally:
    """Send streams."""
    tally, rng = Tally("connections"), random.Random(limit.seed)
    before: int | None = None
    with Caller(service.url) as caller:
        caller.append(CANARY, ONE, ONE)
        for number in limit.numbers():
            if number == min(200, (limit.cases or 400) // 2):
                before = resident_nbytes(service.process.pid)
            sent, wanted = meant(rng, f"h{rng.randrange(10)}")
            if rng.random() < 0.4:
                _meant_case(tally, service.url, sent, wanted, rng)
                if caller.get(f"/sessions/{CANARY}").status != 200:
                    tally.failures.append(f"a request was found in a body: {sent[:400]!r}")
                    caller.append(CANARY, ONE, ONE)
            else:
                for _ in range(rng.randint(1, 3)):
                    sent = rng.choice(SPOILS)(rng, sent)
                _spoiled_case(tally, service.url, sent, rng)
                caller.append(CANARY, ONE, ONE)
        if caller.get("/readyz").status != 200:
            tally.failures.append("the service is not ready any more")
    if before is not None:
        tally.note_grown(resident_nbytes(service.process.pid) - before)
    return tally


def _meant_case(tally: Tally, url: str, sent: bytes, wanted: list[set[int]], rng: random.Random) -> None:
    try:
        found = ask(url, sent, len(wanted), rng)
    except TimeoutError:
        tally.note_hang(f"meant: {sent[:400]!r}")
        return
    for status in found:
        tally.outcomes[str(status)] += 1
    tally.cases += 1
    if len(found) != len(wanted) or any(status not in each for status, each in zip(found, wanted, strict=True)):
        tally.failures.append(f"answered {found} in place of {wanted}: {sent[:400]!r}")


def _spoiled_case(tally: Tally, url: str, sent: bytes, rng: random.Random) -> None:
    tally.cases += 1
    try:
        for status in statuses(exchange(url, sent, rng)):
            tally.outcomes[str(status)] += 1
            if status >= 500 and status not in (503, 507):
                tally.failures.append(f"{status}: {sent[:400]!r}")
    except TimeoutError:
        tally.cases -= 1
        tally.note_hang(f"spoiled: {sent[:400]!r}")
    except Unanswered as error:
        tally.failures.append(f"{error}: {sent[:400]!r}")

"""Requests that two parsers may read differently, and offers of other protocols."""

from attacks.attack import BODY, Outcome, Target, attack, described, head, statuses
from support.contract import MSGPACK

CANARY = "canary"


def smuggled(target: Target, sent: str, *requests: bytes) -> Outcome:
    """Send requests with a DELETE hidden in the body. It must not be executed, and each request gets one response."""
    with target.caller("mallory") as mallory:
        mallory.send("POST", f"/sessions/{CANARY}/kv", BODY)
        received = [target.exchange(request) for request in requests]
        alive = mallory.get(f"/sessions/{CANARY}").status == 200
        mallory.delete(f"/sessions/{CANARY}")
    refused = all(statuses(each) in ([400], [431], [501]) for each in received)

    return Outcome(sent, described(*received), alive and refused)


HIDDEN = head("DELETE", f"/sessions/{CANARY}")
IN_CHUNKS = b"0\r\n\r\n" + HIDDEN


def post(*lines: str, body: bytes) -> bytes:
    return head("POST", "/encode", f"Content-Type: {MSGPACK}", *lines) + body


@attack("smuggling: both lengths")
def both_lengths(target: Target) -> Outcome:
    chunked, length = "Transfer-Encoding: chunked", f"Content-Length: {len(IN_CHUNKS)}"

    return smuggled(
        target,
        "Content-Length and Transfer-Encoding",
        post(chunked, length, body=IN_CHUNKS),
        post(length, chunked, body=IN_CHUNKS),
        post("Content-Length: 5", chunked, body=IN_CHUNKS),
    )


@attack("smuggling: two Content-Lengths")
def two_lengths(target: Target) -> Outcome:
    lengths = [("5", "0"), ("0", str(len(HIDDEN))), ("5", "5")]
    pairs = [post(f"Content-Length: {a}", f"Content-Length: {b}", body=b"hello" + HIDDEN) for a, b in lengths]
    odd = [
        post(f"Content-Length: {n}", body=b"hello" + HIDDEN) for n in ("5, 5", "+5", "5 5", "-5", "0x5", "", "5\x0b")
    ]

    return smuggled(target, "twice; 5, 5; +5; 0x5; -5", *pairs, *odd)


@attack("smuggling: Transfer-Encoding in disguise")
def disguised(target: Target) -> Outcome:
    lines = [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "X: a\r\n Transfer-Encoding: chunked",
        "X: a\nTransfer-Encoding: chunked",
        "X: a\rTransfer-Encoding: chunked",
    ]

    return smuggled(target, "xchunked, folded, bare LF, ...", *(post(line, body=IN_CHUNKS) for line in lines))


@attack("smuggling: chunk sizes")
def chunk_sizes(target: Target) -> Outcome:
    sizes = [
        b"0x5\r\n",
        b"5 \r\n",
        b" 5\r\n",
        b"+5\r\n",
        b"-1\r\n",
        b"5;a\n",
        b"5\n",
        b"F" * 17 + b"\r\n",
        b"\r\n",
        b"5\r\nhello\n",
    ]
    chunked = "Transfer-Encoding: chunked"
    tricks = [post(chunked, body=size + b"hello\r\n" + IN_CHUNKS) for size in sizes]

    return smuggled(target, "0x5, ` 5`, +5, -1, 17 digits, bare LF", *tricks)


@attack("smuggling: headers as trailers")
def trailers(target: Target) -> Outcome:
    """Send a token after the body. It must not count."""
    late = post_without_token("Transfer-Encoding: chunked", body=b"0\r\n" + head("X", "/").split(b"\r\n", 2)[2])
    received = target.exchange(late)

    return Outcome("a token after the body", described(received), statuses(received) == [401])


def post_without_token(*lines: str, body: bytes) -> bytes:
    return head("POST", "/encode", f"Content-Type: {MSGPACK}", *lines, tenant=None) + body


@attack("no HTTP")
def no_http(target: Target) -> Outcome:
    requests = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"*1\r\n$4\r\nPING\r\n",
        b"GET /sessions\r\n\r\n",
        b"GET /sessions HTTP/1.1\nHost: localhost\n\n",
        b"GET  /sessions HTTP/9.9\r\n\r\n",
        b"\0" * 100,
    ]
    received = [target.exchange(request) for request in requests]

    return Outcome(
        "HTTP/2, CONNECT, TLS, Redis, HTTP/0.9, ...",
        described(*received),
        all(statuses(each) in ([400], [421]) for each in received),
    )


def offered(target: Target, end: str, *offer: str) -> Outcome:
    """Send an upgrade offer. It must be ignored, and the rest read as HTTP/1.1."""
    with target.caller("mallory") as mallory:
        mallory.send("POST", f"/sessions/{CANARY}/kv", BODY)
        body = HIDDEN + b"x"
        lines = (f"Content-Type: {MSGPACK}", f"Content-Length: {len(body)}", *offer)
        received = target.exchange(head("POST", "/encode", *lines, end=end) + body)
        alive = mallory.get(f"/sessions/{CANARY}").status == 200
        mallory.delete(f"/sessions/{CANARY}")

    return Outcome(f"{offer[-1]}, a DELETE behind it", described(received), alive and statuses(received) == [400])


@attack("upgrade to h2c")
def h2c(target: Target) -> Outcome:
    return offered(
        target, "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", "Upgrade: h2c"
    )


@attack("upgrade to WebSocket")
def websocket(target: Target) -> Outcome:
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="

    return offered(target, "Upgrade, close", key, "Sec-WebSocket-Version: 13", "Upgrade: websocket")


@attack("answers asked for far ahead")
def far_ahead(target: Target) -> Outcome:
    received = target.exchange(head("GET", "/sessions", end="keep-alive") * 10_000, seconds=3)

    return Outcome(
        "10,000 requests at once", f"{len(statuses(received))} answers, then closed", len(statuses(received)) < 10_000
    )

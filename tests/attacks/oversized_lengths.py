"""Declared lengths that are larger than the data. Declaring is free, so it must not allocate memory."""

import struct
from contextlib import ExitStack

import msgpack

from attacks.attack import BODY, Outcome, Target, append_head, attack, described, head, statuses, summary
from support.contract import MSGPACK

GIB = 1 << 30
# Memory that requests may use for a moment. It is far less than any declared length.
SLACK = GIB // 2
SHAPES = [[1 << 40], [1 << 31, 1 << 31, 2, 64], [-1, 64], [1 << 62, 1 << 62, 64], [0, 1 << 62, 1, 64], [1] * 10_000]


@attack("oversized shape")
def oversized_shape(target: Target) -> Outcome:
    before = target.nbytes()
    tensors = [{"dtype": "float16", "shape": shape, "data": bytes(128)} for shape in SHAPES]
    with target.caller("mallory") as mallory:
        answers = [mallory.post("/sessions/claims/kv", {"k": each, "v": each}) for each in tensors]
        answers += [mallory.post("/encode", {"x": each}) for each in tensors]
    held = {answer.status for answer in answers} <= {400, 422} and target.nbytes() - before < SLACK

    return Outcome("[2^40], [2^31, 2^31, 2, 64], [-1, 64], ...", summary(answers), held)


@attack("oversized window")
def oversized_window(target: Target) -> Outcome:
    before = target.nbytes()
    with target.caller("mallory") as mallory:
        made = mallory.put("/sessions/ring", {"window": 1 << 50, "layers": 2, "kv_heads": 2, "head_dim": 64})
        mallory.send("POST", "/sessions/ring/kv", BODY)
        read = mallory.get("/sessions/ring/kv", layout="ring", form="float32")
        mallory.delete("/sessions/ring")
    held = read.status == 422 and target.nbytes() - before < SLACK

    return Outcome("a window of 2^50, read as a ring", summary([made, read]), held)


@attack("oversized Content-Length")
def oversized_length(target: Target) -> Outcome:
    before = target.nbytes()
    received = [target.exchange(append_head("a", n) + BODY) for n in (10**12, 2**63 - 1, 2**64, 10**30)]
    held = set(statuses(*received)) <= {400, 413} and target.nbytes() - before < SLACK

    return Outcome("10^12, 2^63 - 1, 2^64, 10^30", described(*received), held)


@attack("oversized Content-Length, 100 times")
def many_claims(target: Target) -> Outcome:
    before = target.nbytes()
    with ExitStack() as stack:
        connections = [stack.enter_context(target.connect()) for _ in range(100)]
        for connection in connections:
            connection.sendall(append_head("a", GIB) + bytes(70_000))
        received = [connection.recv(1 << 16) for connection in connections[2:]]
        grown = target.nbytes() - before
    refused = statuses(*received).count(503)
    others = len(received) - refused

    return Outcome(
        "100 connections that declare 1 GiB each",
        f"{refused} x 503 busy, {100 - refused} waited for",
        others == 0 and grown < 2 * GIB + SLACK,
    )


@attack("oversized msgpack lengths")
def oversized_msgpack(target: Target) -> Outcome:
    before = target.nbytes()
    most = struct.pack(">I", 2**32 - 1)
    bodies = [b"\xc6" + most, b"\xdd" + most, b"\xdf" + most, b"\xdb" + most, b"\xc9" + most + b"\x01"]
    bodies += [b"\x81\xa1k" + body for body in bodies] + [
        b"\x91" * 100_000,
        b"\x81\xa1k" * 30_000,
        b"\xdd" + most + BODY,
    ]
    bodies += [BODY[:-1], BODY + b"\0", msgpack.packb({"k": 1 << 63, "v": -(1 << 63)})]
    with target.caller("mallory") as mallory:
        answers = [mallory.send("POST", "/sessions/claims/kv", body) for body in bodies]
    held = {answer.status for answer in answers} <= {400, 422} and target.nbytes() - before < SLACK

    return Outcome("bins, arrays, maps of 2^32 - 1, 100,000 deep", summary(answers), held)


@attack("endless body in chunks")
def endless_chunks(target: Target) -> Outcome:
    before = target.nbytes()
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with target.connect() as connection:
        connection.sendall(
            head("POST", "/encode", f"Content-Type: {MSGPACK}", "Transfer-Encoding: chunked", end="keep-alive")
        )
        for _ in range(1100):
            connection.sendall(chunk)
        received = connection.recv(1 << 16)
    held = statuses(received) == [413] and target.nbytes() - before < 2 * GIB + SLACK

    return Outcome("1,100 MiB", described(received), held)


@attack("endless head")
def endless_head(target: Target) -> Outcome:
    before = target.nbytes()
    line = b"X-%d: " + b"a" * 1000 + b"\r\n"
    requests = [
        head("GET", "/healthz")[:-2] + b"".join(line % i for i in range(10_000)) + b"\r\n",
        head("GET", "/healthz")[:-2] + b"X: " + b"a" * 10_000_000,
        b"GET /" + b"a" * 10_000_000,
    ]
    received = [target.exchange(request) for request in requests]
    held = set(statuses(*received)) <= {431} and target.nbytes() - before < SLACK

    return Outcome("10 MB of headers, in one header, in the path", described(*received), held)


@attack("endless trailers")
def endless_trailers(target: Target) -> Outcome:
    before = target.nbytes()
    start = head("POST", "/encode", f"Content-Type: {MSGPACK}", "Transfer-Encoding: chunked") + b"1\r\n\xc0\r\n0\r\n"
    received = [target.exchange(start + b"X: " + b"a" * 30_000_000), target.exchange(start + b"X: y\r\n" * 3_000_000)]
    held = not any(200 in statuses(each) for each in received) and target.nbytes() - before < SLACK

    return Outcome("30 MB after the last chunk", described(*received), held)

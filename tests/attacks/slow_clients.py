"""Slow or silent clients that occupy connections and memory."""

import socket
import time
from contextlib import ExitStack

from attacks.attack import (
    BODY,
    PATIENCE_SECONDS,
    Outcome,
    Target,
    append_head,
    attack,
    described,
    head,
    large,
    statuses,
)
from support.contract import MSGPACK

IDLE = 1000
# Longer than the timeout of a response, plus the time to detect it.
STOPPED_SECONDS = 4


def drip(target: Target, start: bytes, rest: bytes) -> tuple[bytes, float]:
    """Send ten bytes a second until the service ends the connection; return the response and the seconds taken."""
    began = time.monotonic()
    received = b""
    with target.connect() as connection:
        connection.sendall(start)
        connection.settimeout(0.1)
        for byte in rest[: 10 * PATIENCE_SECONDS]:
            try:
                connection.sendall(bytes([byte]))
                chunk = connection.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if not chunk:
                break
            received += chunk
    return received, time.monotonic() - began


@attack("slow header")
def slow_header(target: Target) -> Outcome:
    received, seconds = drip(target, head("GET", "/sessions")[:-2], b"X: " + b"a" * 1000)

    return Outcome("10 bytes a second", f"{described(received)} after {seconds:.1f} s", statuses(received) == [408])


@attack("slow body")
def slow_body(target: Target) -> Outcome:
    received, seconds = drip(target, append_head("slow", 1 << 20), BODY)

    return Outcome("10 bytes a second", f"{described(received)} after {seconds:.1f} s", statuses(received) == [408])


@attack("slow body in chunks")
def slow_chunks(target: Target) -> Outcome:
    start = head("POST", "/encode", f"Content-Type: {MSGPACK}", "Transfer-Encoding: chunked") + b"FFFF\r\n"
    received, seconds = drip(target, start, BODY)

    return Outcome("10 bytes a second", f"{described(received)} after {seconds:.1f} s", statuses(received) == [408])


@attack("slow body after a rejection")
def slow_after_refusal(target: Target) -> Outcome:
    received, seconds = drip(target, append_head("slow", 1 << 20, tenant=None, end="keep-alive"), BODY)

    return Outcome(
        "no token, 10 bytes a second",
        f"{described(received)}, closed after {seconds:.1f} s",
        statuses(received) == [401] and seconds < 15,
    )


@attack("slow reader")
def slow_reader(target: Target) -> Outcome:
    with target.caller("mallory") as mallory:
        mallory.send("POST", "/sessions/large/kv", large())
        nbytes = len(mallory.get("/sessions/large/kv", accept=MSGPACK, form="float32").content)
        received = 0
        with target.connect() as connection:
            connection.sendall(head("GET", "/sessions/large/kv?form=float32"))
            time.sleep(STOPPED_SECONDS)
            try:
                while chunk := connection.recv(1 << 20):
                    received += len(chunk)
            except ConnectionError:
                pass
        mallory.delete("/sessions/large")

    return Outcome(
        f"reads nothing of {nbytes >> 20} MiB for {STOPPED_SECONDS} s",
        f"closed; {received >> 20} MiB had been sent",
        received < nbytes // 2,
    )


@attack("1,000 idle connections while a client works")
def idle_connections(target: Target) -> Outcome:
    with ExitStack() as stack:
        idle, worked = [], 0
        for i in range(IDLE):
            idle.append(stack.enter_context(target.connect()))
            if i % 100 == 99:
                worked += target.works()
        open_ = sum(is_open(connection) for connection in idle)

    return Outcome(
        f"{IDLE} silent connections",
        f"the client was served {worked} times of {IDLE // 100}; {open_} were left open",
        worked == IDLE // 100 and open_ <= 300,
    )


@attack("1,000 unfinished heads while a client works")
def unfinished_heads(target: Target) -> Outcome:
    with ExitStack() as stack:
        worked = 0
        for i in range(IDLE):
            stack.enter_context(target.connect()).sendall(b"GET /sessions HTTP/1.1\r\nHost: ")
            if i % 100 == 99:
                worked += target.works()

    return Outcome(
        f"{IDLE} half heads", f"the client was served {worked} times of {IDLE // 100}", worked == IDLE // 100
    )


def is_open(connection: socket.socket) -> bool:
    """Return whether the service has not closed an idle connection."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False

"""Clients that disconnect before the response is complete: counted once, with status 499 and the bytes transferred."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from hadakv_service.testing import RunningService, running_service
from support.assertions import PACKED
from support.contract import MSGPACK, Caller, connect
from support.polling import eventually
from support.services.blocked_device import HELD
from support.services.prometheus import a_call, counts, moved, of_http, scrape

pytestmark = pytest.mark.hadakv_protocol

KV = "/sessions/{id}/kv"


def test_disconnect_during_the_body_counts_as_499(watched: RunningService, session: str) -> None:
    gone = ("hadakv_http_requests_total", f"method=POST route={KV} status=499")
    head = f"POST /sessions/{session}/kv HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\n"

    def act() -> None:
        before = scrape(watched.url).get(gone, 0)
        for length in (1000, 1_000_000):
            with connect(watched.url) as connection:
                connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + bytes(100))
                connection.shutdown(socket.SHUT_RDWR)
        eventually(lambda: scrape(watched.url).get(gone, 0) == before + 2)

    found = moved(watched.url, act)

    # A body received straight into a buffer is counted only if it is complete.
    assert counts(of_http(found)) == a_call(KV, "POST", 499, 499, received=100)


def test_disconnect_before_the_response_counts_as_499(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    head = (
        f"POST /sessions/a/kv HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\nContent-Length: {len(PACKED)}"
    )

    with running_service("--backend", "cpu", program=("-c", HELD, str(gate))) as service:
        with connect(service.url) as connection:
            connection.sendall(f"{head}\r\n\r\n".encode() + PACKED)
            eventually(lambda: scrape(service.url)["hadakv_device_queue_jobs", ""] == 1)
        gate.write_bytes(b"go on")
        eventually(lambda: scrape(service.url)["hadakv_device_queue_jobs", ""] == 0)
        found = scrape(service.url)

    call = f"method=POST route={KV}"
    assert found["hadakv_http_requests_total", f"{call} status=499"] == 1
    assert found["hadakv_http_request_seconds_count", call] == 1
    assert found["hadakv_http_received_bytes_total", call] == len(PACKED)
    assert found["hadakv_http_sent_bytes_total", call] == 0
    assert found["hadakv_appended_tokens_total", ""] == 5


def test_disconnect_during_the_response_counts_as_499(watched: RunningService, asking: Caller, session: str) -> None:
    call = f"method=GET route={KV}"
    gone = ("hadakv_http_requests_total", f"{call} status=499")
    x = np.zeros((8, 8, 1024, 128), np.float16)
    asking.append(session, x, x)

    def act() -> None:
        before = scrape(watched.url).get(gone, 0)
        with connect(watched.url) as connection:
            connection.sendall(f"GET /sessions/{session}/kv?form=float32 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.recv(1000)
        eventually(lambda: scrape(watched.url).get(gone, 0) == before + 1)

    found = moved(watched.url, act)

    assert found[gone] == found["hadakv_http_request_seconds_count", call] == 1
    assert found.get(("hadakv_http_sent_bytes_total", call), 0) < 2 * 4 * x.size, "only sent bytes are counted"

"""Shutdown by one or two signals, with requests in progress, and the sessions that are kept."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import msgpack
import msgspec
import numpy as np
import pytest

from hadakv_kernels import Codec
from hadakv_service.testing import running_service
from support.contract import MSGPACK, Caller, append_body, connect, stream

PROGRAM = [sys.executable, "-m", "hadakv_service"]


def test_shutdown_completes_requests_in_progress() -> None:
    k = np.random.default_rng(5).standard_normal((1, 1, 2, 64)).astype(np.float16)
    body = msgpack.packb(append_body(k, k))
    lines = ["POST /sessions/last/kv HTTP/1.1", "Host: localhost", f"Content-Type: {MSGPACK}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])

    with running_service() as service, connect(service.url) as connection:
        connection.sendall(head.encode() + body[:100])
        assert httpx.get(f"{service.url}/healthz").status_code == 200, "the earlier bytes were received"
        service.process.send_signal(signal.SIGTERM)
        closed = wait_until_closed(service.url)
        connection.sendall(body[100:])
        with connection.makefile("rb") as response:
            status, _, content = response.read().partition(b"\r\n\r\n")
        code = service.process.wait(30)

    assert closed
    assert status.startswith(b"HTTP/1.1 201 ")
    assert msgpack.unpackb(content)["k"] == stream(k, Codec())
    assert code == 0


def wait_until_closed(url: str) -> bool:
    """Connect until the connection is refused: the service has started to shut down then."""
    for _ in range(100_000):
        try:
            connect(url).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            continue  # this connection was in the backlog when the socket was closed
    return False


def test_sigterm_exits_cleanly_with_an_open_connection() -> None:
    with running_service() as service, Caller(service.url) as caller:
        caller.get("/healthz")

        service.process.send_signal(signal.SIGTERM)
        code = service.process.wait(30)

    assert code == 0


def interrupted(directory: Path, times: int, *, ignoring: bool = False) -> tuple[int, str, int]:
    """Send SIGINT to a service that has a session.

    Args:
        directory: data directory.
        times: number of signals.
        ignoring: whether to start the service with SIGINT ignored, as shells do with background processes.

    Returns:
        exit status, stderr, and the number of sessions after a restart.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignoring else signal.default_int_handler)
    k = np.ones((1, 1, 2, 64), np.float16)
    command = [*PROGRAM, "--port", "0", "--disk-budget", "1GiB", "--data-dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None
        url = next(part for part in process.stdout.readline().split(", ") if part.startswith("http"))
        with Caller(url) as caller:
            caller.append("a", k, k)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        _, stderr = process.communicate(timeout=60)
    with running_service("--disk-budget", "1GiB", "--data-dir", str(directory)) as service:
        kept = len(httpx.get(f"{service.url}/sessions").json()["sessions"])
    return process.returncode, stderr, kept


@pytest.mark.parametrize("ignoring", [False, True], ids=["foreground", "background"])
def test_sigint_exits_cleanly(tmp_path: Path, ignoring: bool) -> None:
    assert interrupted(tmp_path, 1, ignoring=ignoring) == (130, "", 1)


def test_second_sigint_exits_at_once_with_a_warning(tmp_path: Path) -> None:
    """The service may exit before the second signal."""
    code, stderr, _ = interrupted(tmp_path, 2)

    assert code == 130
    assert "Traceback" not in stderr
    assert stderr == "" or "second interrupt" in stderr


def test_shutdown_timeout_rejects_an_incomplete_body_with_503(tmp_path: Path) -> None:
    headers = f"Content-Type: {MSGPACK}\r\nContent-Length: 9000000"
    head = f"POST /sessions/a/kv HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n"
    with (tmp_path / "log").open("w+") as log:
        with running_service("--shutdown-timeout", "2", "--log-format", "json", "--access-log", log=log) as service:
            with connect(service.url) as connection:
                connection.sendall(head.encode() + bytes(1 << 20))
                assert httpx.get(f"{service.url}/healthz").status_code == 200, "the earlier bytes were received"
                service.process.send_signal(signal.SIGTERM)
                with connection.makefile("rb") as response:
                    status, _, rest = response.read().partition(b"\r\n")
            code = service.process.wait(30)
        log.seek(0)
        text = log.read()

    lines = [msgspec.json.decode(line) for line in text.splitlines()]
    assert status.startswith(b"HTTP/1.1 503 ")
    assert b"application/problem+json" in rest
    assert b"x-request-id: " in rest
    assert b"urn:hadakv:problem:busy" in rest
    assert code == 0
    assert "Traceback" not in text
    assert 503 in [line.get("status") for line in lines]

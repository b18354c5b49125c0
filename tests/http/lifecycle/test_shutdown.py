"""How the program ends: by a signal or two, with requests under way, and what is kept of them."""

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


def test_a_request_under_way_is_answered_before_the_program_ends() -> None:
    k = np.random.default_rng(5).standard_normal((1, 1, 2, 64)).astype(np.float16)
    body = msgpack.packb(append_body(k, k))
    lines = ["POST /sessions/last/kv HTTP/1.1", "Host: localhost", f"Content-Type: {MSGPACK}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])

    with running_service() as service, connect(service.url) as connection:
        connection.sendall(head.encode() + body[:100])
        assert httpx.get(f"{service.url}/healthz").status_code == 200, "what was sent before has arrived"
        service.process.send_signal(signal.SIGTERM)
        refused = wait_until_nobody_listens(service.url)
        connection.sendall(body[100:])
        with connection.makefile("rb") as answer:
            status, _, content = answer.read().partition(b"\r\n\r\n")
        code = service.process.wait(30)

    assert refused
    assert status.startswith(b"HTTP/1.1 201 ")
    assert msgpack.unpackb(content)["k"] == stream(k, Codec())
    assert code == 0


def wait_until_nobody_listens(url: str) -> bool:
    """Connect until that is refused: then the service has noticed that it is to end."""
    for _ in range(100_000):
        try:
            connect(url).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            continue  # it stopped listening with this connection in its backlog
    return False


def test_a_signal_ends_the_program_in_order_though_a_connection_is_open() -> None:
    with running_service() as service, Caller(service.url) as caller:
        caller.get("/healthz")

        service.process.send_signal(signal.SIGTERM)
        code = service.process.wait(30)

    assert code == 0


def interrupted(directory: Path, times: int, *, ignoring: bool = False) -> tuple[int, str, int]:
    """Ctrl-C so many times at a program that has a session: its exit code, what it says, and what is kept.

    It may have been started so that it ignores that, as shells do with what runs in the background.
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
        _, said = process.communicate(timeout=60)
    with running_service("--disk-budget", "1GiB", "--data-dir", str(directory)) as service:
        kept = len(httpx.get(f"{service.url}/sessions").json()["sessions"])
    return process.returncode, said, kept


@pytest.mark.parametrize("ignoring", [False, True], ids=["in front", "in the background"])
def test_ctrl_c_ends_the_program_in_order(tmp_path: Path, ignoring: bool) -> None:
    assert interrupted(tmp_path, 1, ignoring=ignoring) == (130, "", 1)


def test_a_second_ctrl_c_ends_it_at_once_and_says_what_that_costs(tmp_path: Path) -> None:
    """Unless it has ended before the second."""
    code, said, _ = interrupted(tmp_path, 2)

    assert code == 130
    assert "Traceback" not in said
    assert said == "" or "second interrupt" in said


def test_a_sender_that_is_not_done_when_the_time_is_up_is_told_so(tmp_path: Path) -> None:
    about = f"Content-Type: {MSGPACK}\r\nContent-Length: 9000000"
    head = f"POST /sessions/a/kv HTTP/1.1\r\nHost: localhost\r\n{about}\r\n\r\n"
    with (tmp_path / "log").open("w+") as log:
        with running_service("--grace", "2", "--log-format", "json", "--access-log", log=log) as service:
            with connect(service.url) as connection:
                connection.sendall(head.encode() + bytes(1 << 20))
                assert httpx.get(f"{service.url}/healthz").status_code == 200, "what was sent before has arrived"
                service.process.send_signal(signal.SIGTERM)
                with connection.makefile("rb") as answer:
                    status, _, rest = answer.read().partition(b"\r\n")
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

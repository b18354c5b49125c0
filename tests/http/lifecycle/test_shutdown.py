"""Shutdown by one or two signals, with requests in progress, and the sessions that are kept."""

import re
import signal
import socket
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
from support.polling import eventually

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
        eventually(lambda: is_closed(service.url))
        connection.sendall(body[100:])
        with connection.makefile("rb") as response:
            status, _, content = response.read().partition(b"\r\n\r\n")
        code = service.process.wait(30)

    assert status.startswith(b"HTTP/1.1 201 ")
    assert msgpack.unpackb(content)["k"] == stream(k, Codec())
    assert code == 0


def is_closed(url: str) -> bool:
    """Whether connections are refused: the service has started to shut down then."""
    try:
        connect(url).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # this connection was in the backlog when the socket was closed
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
        _, stderr = output_of(process)
    with running_service("--disk-budget", "1GiB", "--data-dir", str(directory)) as service:
        kept = len(httpx.get(f"{service.url}/sessions").json()["sessions"])
    return process.returncode, stderr, kept


def output_of(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return stdout and stderr of a service that is about to end. Kill it if it does not end."""
    try:
        return process.communicate(timeout=60)
    finally:
        # Without this, the end of the block that started it would wait forever.
        process.kill()


@pytest.mark.parametrize("ignoring", [False, True], ids=["foreground", "background"])
def test_sigint_exits_cleanly(tmp_path: Path, ignoring: bool) -> None:
    assert interrupted(tmp_path, 1, ignoring=ignoring) == (130, "", 1)


def test_second_sigint_exits_at_once_with_a_warning(tmp_path: Path) -> None:
    """The service may exit before the second signal."""
    code, stderr, _ = interrupted(tmp_path, 2)

    assert code == 130
    assert "Traceback" not in stderr
    assert stderr == "" or "second interrupt" in stderr


# Sends a signal while the app is built, in a place where Python ignores exceptions, as some libraries have them.
SIGNALLED_IN_A_CALLBACK = """
import signal, sys
from hadakv_service.__main__ import main
from hadakv_service.startup import serve

number = int(sys.argv.pop(1))

class Callback:
    def __del__(self):
        signal.raise_signal(number)

def create_app(*arguments, build=serve.create_app, **options):
    Callback()
    return build(*arguments, **options)

serve.create_app = create_app
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signal_during_the_start_ends_the_service(tmp_path: Path, number: signal.Signals, code: int) -> None:
    flags = ["--port", "0", "--data-dir", str(tmp_path)]
    command = [sys.executable, "-c", SIGNALLED_IN_A_CALLBACK, str(int(number)), *flags]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


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


def test_start_and_end_say_what_was_found_and_written(tmp_path: Path) -> None:
    flags = ("--disk-budget", "1GiB", "--data-dir", str(tmp_path))
    k = np.ones((1, 4, 1024, 128), np.float16)

    outputs = []
    for number in range(2):
        with running_service(*flags) as service, Caller(service.url) as caller:
            for name in "ab" if number == 0 else ():
                caller.append(name, k, k)
            outputs.append((service, output_at_end(service.process)))

    (first, first_lines), (_, second_lines) = outputs
    assert first_lines == [
        f"data directory {tmp_path}: 0 sessions (0B) found",
        f"API documentation: {first.url}/docs",
        "writing 2 sessions (1.1MiB) ... done",
    ]
    assert re.fullmatch(rf"data directory {tmp_path}: 2 sessions \(1\.\dMiB\) found", second_lines[0])
    assert second_lines[2] == "no sessions left to write"


def output_at_end(process: "subprocess.Popen[str]") -> list[str]:
    """Stop a service. Return what it printed after its first line."""
    process.terminate()
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    assert process.wait(30) == 0
    return lines


def test_quiet_service_prints_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*PROGRAM, "--quiet", "--port", str(port), "--disk-budget", "1GiB", "--data-dir", str(tmp_path)]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: is_listening(port))
            with Caller(f"http://127.0.0.1:{port}") as caller:
                caller.append("a", np.ones((1, 1, 2, 64), np.float16), np.ones((1, 1, 2, 64), np.float16))
        finally:
            process.terminate()
            output = output_of(process)

    assert (output, process.returncode) == (("", ""), 0)


def is_listening(port: int) -> bool:
    """Whether connections to a port are accepted."""
    with socket.socket() as probe:
        # A socket without an address could get this port, and then connect to itself.
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1] != port and probe.connect_ex(("127.0.0.1", port)) == 0


def test_interrupt_says_what_it_waits_for_and_logs_no_error(tmp_path: Path) -> None:
    """A reader that stalls is cut after half of the shutdown timeout, which is no error."""
    k = np.zeros((8, 8, 512, 128), np.float16)
    with (tmp_path / "log").open("w+") as log:
        flags = ("--disk-budget", "1GiB", "--data-dir", str(tmp_path), "--shutdown-timeout", "2")
        with running_service(*flags, log=log) as service, Caller(service.url) as caller:
            caller.append("a", k, k)
            with connect(service.url) as connection:
                connection.sendall(b"GET /sessions/a/kv?form=float32 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                connection.recv(1)
                service.process.send_signal(signal.SIGINT)
                assert service.process.stdout is not None
                lines = service.process.stdout.read().splitlines()
                code = service.process.wait(30)
        log.seek(0)
        logged = [msgspec.json.decode(line) for line in log.read().splitlines()]

    waiting = "waiting for 1 request in progress, at most 1 s; Ctrl-C again ends at once, without writing"
    assert (code, lines[2:]) == (130, [waiting, "writing 1 session (4.2MiB) ... done"])
    assert [(line["level"], line["message"]) for line in logged] == [
        ("warning", "requests cancelled at shutdown, not finished within 1 s: 1")
    ]

"""Unix domain sockets: owner, permissions, stale sockets, and removal at shutdown."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from hadakv_client import Client
from hadakv_service.server.sockets import bind_unix
from support.assertions import K, V

PROGRAM = [sys.executable, "-m", "hadakv_service"]


@pytest.fixture
def path() -> Iterator[Path]:
    """Yield a path that is short enough for a socket, wherever temporary files are."""
    with TemporaryDirectory() as folder:
        yield Path(folder) / "s"


@contextmanager
def served(path: Path, *flags: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a service on a path. Yield its process and its startup line."""
    process = subprocess.Popen([*PROGRAM, "--uds", str(path), *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=30)


def status(path: Path, **headers: str) -> int:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://hadakv") as client:
        return client.get("/sessions", headers=headers).status_code


def test_service_listens_on_a_unix_socket(path: Path) -> None:
    with served(path) as (process, line), Client("http://anything.example", uds=str(path)) as client:
        placed = client.session("a").append(K, V)
        process.terminate()
        assert process.stdout is not None
        further_lines = process.stdout.read()

    assert f"unix:{path}" in line
    assert "API documentation" not in further_lines
    assert placed.length == K.shape[2]


@pytest.mark.parametrize(("flags", "mode"), [((), 0o600), (("--uds-mode", "0660"), 0o660)])
def test_socket_mode_is_private_by_default(path: Path, flags: tuple[str, ...], mode: int) -> None:
    with served(path, *flags):
        found = path.stat().st_mode

    assert stat.S_ISSOCK(found)
    assert stat.S_IMODE(found) == mode


def test_socket_checks_origin_but_not_host(path: Path) -> None:
    with served(path):
        assert status(path, host="evil.example") == 200
        assert status(path, origin="http://evil.example") == 403


def test_clean_shutdown_removes_the_socket(path: Path) -> None:
    with served(path) as (process, _):
        process.terminate()
        assert process.wait(30) == 0

    assert not path.exists()


def test_socket_of_a_killed_process_is_replaced(path: Path) -> None:
    with served(path) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert path.is_socket()

    with served(path) as (_, line):
        assert f"unix:{path}" in line
        assert status(path) == 200


def startup_error(path: Path) -> str:
    """Return the message of a service that cannot start on a path."""
    finished = subprocess.run([*PROGRAM, "--uds", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("hadakv: "), finished.stderr
    assert finished.stderr.count("\n") == 1, finished.stderr
    return finished.stderr


def test_socket_of_a_running_process_is_kept(path: Path) -> None:
    with served(path):
        why = startup_error(path)

        assert f"another process already listens on {path}" in why
        assert status(path) == 200


def test_shutdown_keeps_the_socket_of_another_service(path: Path) -> None:
    with served(path) as (process, _):
        path.unlink()
        with served(path):
            process.terminate()
            process.wait(30)
            assert status(path) == 200


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_path_that_is_not_a_socket_is_kept(path: Path, what: str) -> None:
    target = path.with_name("target")
    {"file": path.touch, "folder": path.mkdir, "link": lambda: path.symlink_to(target)}[what]()
    if what == "link":
        target.write_text("precious", "utf-8")

    why = startup_error(path)

    assert "exists and is not a socket" in why
    assert os.path.lexists(path)
    assert what != "link" or target.read_text("utf-8") == "precious"


@pytest.mark.parametrize("name", ["no-such-folder/s", "s" * 200])
def test_path_that_cannot_be_bound_is_named(path: Path, name: str) -> None:
    assert name in startup_error(path.parent / name)


def test_socket_with_a_full_queue_is_kept(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))

        with pytest.raises(OSError, match=str(path)):
            bind_unix(path, 0o600)

    assert path.is_socket()

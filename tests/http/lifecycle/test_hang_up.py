"""SIGHUP and closed terminals: an orderly end, a reload of the tokens, or nothing after nohup."""

import hashlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from hadakv_service.testing import running_service
from support.contract import Caller
from support.polling import eventually

K = np.ones((1, 1, 2, 64), np.float16)
# Makes a pseudo-terminal the terminal of the service, as a terminal window does. The last argument is SIGHUP's action.
ON_TERMINAL = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "hadakv_service", *sys.argv[2:]])
"""


class Terminal:
    """Service that runs on a pseudo-terminal.

    Attributes:
        process: the service.
        url: its URL.
    """

    def __init__(self, *flags: str, action: str = "default") -> None:
        self._fd, slave = pty.openpty()
        command = [sys.executable, "-c", ON_TERMINAL, action, "--port", "0", "--disk-budget", "1GiB", *flags]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        text = b""
        while not (found := re.search(rb"(http://\S+?),.*\n", text)):
            text += os.read(self._fd, 4096)
        self.url = found[1].decode()

    def close(self) -> None:
        """Close the terminal: the service gets SIGHUP and has no terminal any longer."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


@contextmanager
def on_terminal(directory: Path, *flags: str, action: str = "default") -> Iterator[Terminal]:
    terminal = Terminal("--data-dir", str(directory), *flags, action=action)
    try:
        yield terminal
    finally:
        terminal.close()
        terminal.process.kill()
        terminal.process.wait(30)


def tokens_of(path: Path, *names: str) -> Path:
    lines = [f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in names]
    path.write_text("\n".join(lines), "utf-8")
    path.chmod(0o600)
    return path


def kept(directory: Path, *flags: str, token: str | None = None) -> list[str]:
    """Return the sessions after a restart."""
    flags = ("--disk-budget", "1GiB", "--data-dir", str(directory), *flags)
    with running_service(*flags) as service, Caller(service.url, token) as caller:
        return [info["session"] for info in caller.get("/sessions").body["sessions"]]


def test_closed_terminal_ends_in_good_order(tmp_path: Path) -> None:
    with on_terminal(tmp_path) as terminal:
        with Caller(terminal.url) as caller:
            caller.append("a", K, K)
        terminal.close()
        code = terminal.process.wait(30)

    assert code == 0
    assert kept(tmp_path) == ["a"]


def test_closed_terminal_ends_a_service_with_tokens(tmp_path: Path) -> None:
    """SIGHUP reloads the tokens while the terminal is there."""
    flags = ("--token-file", str(tokens_of(tmp_path / "tokens", "ann")))
    with on_terminal(tmp_path / "data", *flags) as terminal:
        with Caller(terminal.url, "ann") as caller:
            caller.append("a", K, K)
        tokens_of(tmp_path / "tokens", "ann", "bob")
        terminal.process.send_signal(signal.SIGHUP)
        with Caller(terminal.url, "bob") as caller:
            eventually(lambda: caller.get("/sessions").status == 200)
        assert terminal.process.poll() is None
        terminal.close()
        code = terminal.process.wait(30)

    assert code == 0
    assert kept(tmp_path / "data", *flags, token="ann") == ["a"]


@pytest.mark.parametrize("with_tokens", [False, True])
def test_ignored_sighup_stays_ignored(tmp_path: Path, with_tokens: bool) -> None:
    flags = ("--token-file", str(tokens_of(tmp_path / "tokens", "ann"))) if with_tokens else ()
    with on_terminal(tmp_path / "data", *flags, action="nohup") as terminal, Caller(terminal.url, "ann") as caller:
        caller.append("a", K, K)
        terminal.process.send_signal(signal.SIGHUP)
        terminal.close()
        status = caller.get("/sessions").status
        terminal.process.terminate()
        code = terminal.process.wait(30)

    assert (status, code) == (200, 0)
    assert kept(tmp_path / "data", *flags, token="ann") == ["a"]


def test_sighup_without_terminal_ends_in_good_order(tmp_path: Path) -> None:
    with (
        running_service("--disk-budget", "1GiB", "--data-dir", str(tmp_path)) as service,
        Caller(service.url) as caller,
    ):
        caller.append("a", K, K)
        service.process.send_signal(signal.SIGHUP)
        code = service.process.wait(30)

    assert code == 0
    assert kept(tmp_path) == ["a"]


# Sends SIGHUP while the service opens its store, and then again while it writes its sessions.
HUNG_UP_TWICE = """
import os, signal, sys
from hadakv_service import __main__, app, maintenance
from hadakv_service.storage.session_store import SessionStore

def send(function):
    def sending(*args, **options):
        os.kill(os.getpid(), signal.SIGHUP)
        return function(*args, **options)
    return sending

if sys.argv[1] == "start":
    app.open_disk_store = send(app.open_disk_store)
SessionStore.close = send(SessionStore.close)
sys.argv[1:] = sys.argv[2:]
__main__.main()
"""


def test_sighup_during_the_start_ends_after_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HUNG_UP_TWICE, "start", "--port", "0", "--data-dir", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("hadakv ")


def test_second_sighup_does_not_interrupt_the_writing(tmp_path: Path) -> None:
    program = ("-c", HUNG_UP_TWICE, "end")
    flags = ("--disk-budget", "1GiB", "--data-dir", str(tmp_path))
    with running_service(*flags, program=program) as service, Caller(service.url) as caller:
        caller.append("a", K, K)
        service.process.send_signal(signal.SIGHUP)
        code = service.process.wait(30)

    assert code == 0
    assert kept(tmp_path) == ["a"]


def test_sighup_during_the_start_reloads_tokens_only(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path / "tokens", "ann")
    flags = ("--disk-budget", "1GiB", "--data-dir", str(tmp_path / "data"), "--token-file", str(tokens))
    with running_service(*flags, program=("-c", HUNG_UP_TWICE, "start")) as service:
        status = httpx.get(f"{service.url}/sessions", headers={"authorization": "Bearer ann"}).status_code
        service.process.terminate()
        code = service.process.wait(30)

    assert (status, code) == (200, 0)

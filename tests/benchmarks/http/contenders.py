"""Contenders: servers in processes of their own, and the clients that call them."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.http.clients import Caller, connect

TESTS = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Server:
    """Running server.

    Attributes:
        url: URL of the server.
        pid: process id.
    """

    url: str
    pid: int


@contextmanager
def servers(*names: str, budget: str = "128MiB") -> Iterator[dict[str, Server]]:
    """Start several servers and stop them at the end of the block.

    Args:
        names: "raw", "ceiling", "bare", "naive", "null" (the service without a codec), "service" or "redis". Redis is
            skipped if it is not installed.
        budget: memory budget of the service. Appends to new sessions evict the least recently used ones.
    """
    with ExitStack() as stack:
        starting = {name: _start(name, budget) for name in names if name != "redis" or has_redis()}
        for process, _ in starting.values():
            stack.enter_context(_stopping(process))
        yield {name: Server(_address(process, port), process.pid) for name, (process, port) in starting.items()}


def has_redis() -> bool:
    """Return whether redis-server is installed."""
    return shutil.which("redis-server") is not None


def _start(name: str, budget: str) -> tuple["subprocess.Popen[str]", int]:
    """Start a server; return its process, and its port if the port was chosen here."""
    port = 0
    if name == "redis":
        port = _free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    else:
        module = ["hadakv_service"] if name == "service" else ["benchmarks.http.servers", name]
        # Without a disk, and not on sessions that the default directory may have.
        disk = ["--disk-budget", "0", "--data-dir", os.devnull]
        flags = ["--port", "0", *disk, "--memory-budget", budget] if name in ("null", "service") else []
        command = [sys.executable, "-m", *module, *flags]
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    output = subprocess.DEVNULL if port else subprocess.PIPE
    return subprocess.Popen(command, stdout=output, text=True, env=os.environ | {"PYTHONPATH": paths}), port


def _address(process: "subprocess.Popen[str]", port: int) -> str:
    """Wait until a server listens; return its URL."""
    if port:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url)
        return url
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.search(r"http://\S+?(?=,)", line)
    if address is None:
        raise RuntimeError(f"a server did not start: {process.args}: {line}")
    return address[0]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(url: str) -> None:
    for _ in range(100):
        try:
            return connect(url).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing listens at {url}")


@contextmanager
def _stopping(process: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@dataclass(frozen=True, slots=True)
class Contender:
    """Contender: a row of a table.

    Attributes:
        label: first column of the row.
        server: name of its server.
        open: connects a client to the URL of the server.
    """

    label: str
    server: str
    open: Callable[[str], Caller]

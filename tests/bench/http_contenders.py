"""The contenders: each server in its own process, and the client it is called by."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.http_clients import Caller, connect

TESTS = Path(__file__).resolve().parents[1]
# Appends to ever new sessions stay within this; the least recently used ones are evicted.
BUDGET = "128MiB"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: its address.
        pid: its process.
    """

    url: str
    pid: int


@contextmanager
def server(name: str) -> Iterator[Server]:
    """Start the server of that name and stop it at the end of the block.

    Args:
        name: "raw", "bare", "naive", "null" (the service without a codec), "service" or "redis".
    """
    if name == "redis":
        with _redis() as running:
            yield running
        return
    flags = ["--port", "0", "--memory-budget", BUDGET] if name in ("null", "service") else []
    module = ["hadakv_service"] if name == "service" else ["bench.http_servers", name]
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", *module, *flags],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    with _stopping(process):
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://\S+?(?=,)", line)
        if address is None:
            raise RuntimeError(f"{name} did not start: {line}")
        yield Server(address[0], process.pid)


@contextmanager
def servers(*names: str) -> Iterator[dict[str, Server]]:
    """Several servers at once; redis is left out where it is not installed."""
    with ExitStack() as stack:
        installed = [name for name in names if name != "redis" or has_redis()]
        yield {name: stack.enter_context(server(name)) for name in installed}


def has_redis() -> bool:
    """Whether there is a redis-server to compare with."""
    return shutil.which("redis-server") is not None


@contextmanager
def _redis() -> Iterator[Server]:
    url = f"http://127.0.0.1:{_free_port()}"
    command = ["redis-server", "--port", url.rpartition(":")[2], "--bind", "127.0.0.1"]
    command += ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    with _stopping(process):
        _wait_until(lambda: connect(url).close())
        yield Server(url, process.pid)


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until(attempt: Callable[[], None]) -> None:
    for _ in range(100):
        try:
            return attempt()
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise RuntimeError("redis-server did not start")


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
    """A row of a table.

    Attributes:
        label: as people read it.
        server: its server's name.
        open: connects a caller to the server's address.
    """

    label: str
    server: str
    open: Callable[[str], Caller]

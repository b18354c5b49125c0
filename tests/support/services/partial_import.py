"""Imports that are under way: a part of the file was sent, and the rest can follow."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from support.contract import Caller, connect

SECONDS = 30


@contextmanager
def partial_import(
    caller: Caller, session: str, sent: bytes, nbytes: int, token: str | None = None
) -> Iterator[socket.socket]:
    """Send the beginning of a file, and keep the connection open until the end of the block.

    Args:
        caller: client of the service.
        session: id of the new session.
        sent: bytes to send now.
        nbytes: declared size of the file.
        token: token of the tenant.
    """
    with connect(str(caller.http.base_url)) as connection:
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        connection.sendall(
            f"POST /sessions/{session}/import HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}"
            f"Content-Type: application/octet-stream\r\nContent-Length: {nbytes}\r\n\r\n".encode()
        )
        connection.sendall(sent)
        yield connection


def disk_used(caller: Caller) -> int:
    """Return the bytes that the service counts on disk."""
    metrics = caller.get("/metrics").content.decode()
    (line,) = [each for each in metrics.splitlines() if each.startswith('hadakv_tier_stored_bytes{tier="disk"}')]
    return int(float(line.split()[-1]))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: it does not become true.
    """
    until = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the condition did not become true")
        time.sleep(0.01)

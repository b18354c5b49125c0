"""Imports that are under way: a part of the file was sent, and the rest can follow."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from support.contract import Caller, connect
from support.services.prometheus import metric


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
    return int(metric(caller, "hadakv_tier_stored_bytes", "tier=disk"))

"""Network streams for the synchronous client."""

import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpcore


class BlockingStream(httpcore.NetworkStream):
    """Stream over one socket, or one TLS socket."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return at least one byte; nothing at the end of the stream."""
        with _errors(httpcore.ReadTimeout, httpcore.ReadError):
            self._set_timeout(timeout)
            return self.socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all bytes. The timeout is for each part that the peer accepts."""
        rest = memoryview(buffer)
        with _errors(httpcore.WriteTimeout, httpcore.WriteError):
            self._set_timeout(timeout)
            while rest:
                rest = rest[self.socket.send(rest) :]

    def _set_timeout(self, timeout: float | None) -> None:
        # Each change costs a system call.
        if self.socket.gettimeout() != timeout:
            self.socket.settimeout(timeout)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Return `"is_readable"` or `"socket"`; None for everything else."""
        if info == "is_readable":
            return is_readable(self.socket)
        return self.socket if info == "socket" else None


def connect(host: str, port: int, uds: str | None, tls: ssl.SSLContext | None, timeout: float | None) -> BlockingStream:
    """Connect to the first address of a host that accepts, or to a Unix socket.

    Args:
        host: host name, also for the certificate.
        port: port of the host.
        uds: path of the Unix socket; None for TCP.
        tls: TLS context; None for no TLS.
        timeout: seconds for each step.

    Raises:
        httpcore.ConnectError, httpcore.ConnectTimeout: no address accepts, or TLS failed.
    """
    with _errors(httpcore.ConnectTimeout, httpcore.ConnectError):
        connected = _connect_unix(uds, timeout) if uds else socket.create_connection((host, port), timeout)
        try:
            if not uds:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return BlockingStream(tls.wrap_socket(connected, server_hostname=host) if tls else connected)
        except BaseException:
            connected.close()
            raise


def _connect_unix(path: str, timeout: float | None) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout)
        connected.connect(path)
    except BaseException:
        connected.close()
        raise
    return connected


def is_readable(connected: socket.socket) -> bool:
    """Return whether data or the end of the stream has arrived. Both mean that an idle connection is of no use."""
    if connected.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def _errors(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """Convert errors to those of httpcore."""
    try:
        yield
    except TimeoutError as error:
        raise late(error) from error
    except OSError as error:
        raise failed(error) from error

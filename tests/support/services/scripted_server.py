"""Server that follows a script: it stalls, hangs up or responds as a test tells it to."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import msgpack
import pytest


class Exchange:
    """One request that the server received, and its connection."""

    def __init__(self, connection: socket.socket, head: bytes, rest: bytes) -> None:
        self._connection = connection
        self._rest = bytearray(rest)
        line, *fields = head.decode().split("\r\n")
        self.method, self.path, _ = line.split(" ")
        self.headers = dict(field.lower().split(": ", 1) for field in fields)

    def body(self, nbytes: int | None = None) -> bytes:
        """Read the body, or at least its first `nbytes` bytes."""
        wanted = int(self.headers.get("content-length", 0)) if nbytes is None else nbytes
        while len(self._rest) < wanted:
            self._rest += self._connection.recv(1 << 20)
        return bytes(self._rest)

    def message(self) -> Any:
        """Read the body and unpack it."""
        return msgpack.unpackb(self.body())

    def respond(self, status: int, document: Mapping[str, Any], cut: int | None = None, **headers: object) -> None:
        """Send a response, or only its bytes up to index `cut`."""
        body = json.dumps(document).encode() if status >= 400 else msgpack.packb(document)
        named = {"content_length": len(body), **headers}
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items()]
        response = f"HTTP/1.1 {status} Scripted\r\n{''.join(lines)}\r\n".encode() + body
        self._connection.sendall(response[:cut])

    def send(self, raw: bytes) -> None:
        """Send raw bytes."""
        self._connection.sendall(raw)

    def hang_up(self) -> None:
        """Close the connection."""
        self._connection.close()


class ScriptedServer:
    """Server that handles each request with the next action of its script, and records the requests."""

    def __init__(self, actions: tuple[Callable[[Exchange], object], ...], port: int) -> None:
        self._actions = iter(actions)
        self.exchanges: list[Exchange] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._spawn(self._accept)

    @property
    def calls(self) -> list[str]:
        """Return method and path of each request."""
        return [f"{exchange.method} {exchange.path}" for exchange in self.exchanges]

    def close(self) -> None:
        """Close every connection and join every thread."""
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def _spawn(self, work: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._sockets.append(connection)
                self._spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while received := connection.recv(1 << 16):
                while b"\r\n\r\n" not in received:
                    received += connection.recv(1 << 16)
                head, _, rest = received.partition(b"\r\n\r\n")
                self.exchanges.append(Exchange(connection, head, rest))
                next(self._actions, Exchange.hang_up)(self.exchanges[-1])


@pytest.fixture
def scripted_server() -> Iterator[Callable[..., ScriptedServer]]:
    """Return a function that starts servers with a script. They are closed after the test."""
    with ExitStack() as stack:

        def start(*actions: Callable[[Exchange], object], port: int = 0) -> ScriptedServer:
            server = ScriptedServer(actions, port)
            stack.callback(server.close)
            return server

        yield start

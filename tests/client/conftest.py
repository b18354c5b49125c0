"""Both clients behind one face, so that every test of one is a test of the other; and servers that misbehave."""

import asyncio
import inspect
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import msgpack
import numpy as np
import pytest

from hadakv_client import AsyncClient, AsyncSession, Client


class Blocking:
    """An asynchronous client or session whose methods wait for their results."""

    def __init__(self, inner: Any, runner: asyncio.Runner) -> None:
        self._inner = inner
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        return (
            (lambda *args, **options: self._finish(attribute(*args, **options))) if callable(attribute) else attribute
        )

    def _finish(self, result: Any) -> Any:
        if inspect.isasyncgen(result):
            return self._runner.run(_collected(result))
        if inspect.iscoroutine(result):
            result = self._runner.run(result)
        return Blocking(result, self._runner) if isinstance(result, AsyncSession) else result


async def _collected(items: Any) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of one of the two kinds, and closes them."""
    with ExitStack() as stack:

        def connect_sync(*args: Any, **options: Any) -> Client:
            return stack.enter_context(Client(*args, **options))

        def connect_async(*args: Any, **options: Any) -> Blocking:
            runner = stack.enter_context(asyncio.Runner())
            client = AsyncClient(*args, **options)
            stack.callback(lambda: runner.run(client.aclose()))
            return Blocking(client, runner)

        yield connect_sync if request.param == "sync" else connect_async


@pytest.fixture
def client(connect: Callable[..., Any], server: Any) -> Any:
    """A client of the real service."""
    return connect(server.url)


@pytest.fixture
def session_id(request: pytest.FixtureRequest) -> str:
    """An id of the test's own."""
    return str(request.node.name).replace("[", ":").replace("]", "")[-128:]


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded."""
    return np.random.default_rng(20)


@pytest.fixture
def k(rng: np.random.Generator) -> Any:
    """Keys of two layers, three heads and five tokens."""
    return rng.standard_normal((2, 3, 5, 64)).astype(np.float16)


@pytest.fixture
def v(rng: np.random.Generator) -> Any:
    """Values beside them."""
    return 3 * rng.standard_normal((2, 3, 5, 64)).astype(np.float16)


@pytest.fixture
def session(client: Any, session_id: str) -> Any:
    """A session of the test's own in the real service, not yet made."""
    return client.session(session_id)


class Exchange:
    """One request as a misbehaving server sees it."""

    def __init__(self, connection: socket.socket, head: bytes, rest: bytes) -> None:
        self._connection = connection
        self._rest = bytearray(rest)
        line, *fields = head.decode().split("\r\n")
        self.method, self.path, _ = line.split(" ")
        self.headers = dict(field.lower().split(": ", 1) for field in fields)

    def body(self, nbytes: int | None = None) -> bytes:
        """Read the body, or so much of it."""
        wanted = int(self.headers.get("content-length", 0)) if nbytes is None else nbytes
        while len(self._rest) < wanted:
            self._rest += self._connection.recv(1 << 20)
        return bytes(self._rest)

    def message(self) -> Any:
        """Read the body and unpack it."""
        return msgpack.unpackb(self.body())

    def answer(self, status: int, document: Mapping[str, Any], cut: int | None = None, **headers: object) -> None:
        """Send an answer, or only its first bytes."""
        body = json.dumps(document).encode() if status >= 400 else msgpack.packb(document)
        named = {"content_length": len(body), **headers}
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items()]
        whole = f"HTTP/1.1 {status} Rigged\r\n{''.join(lines)}\r\n".encode() + body
        self._connection.sendall(whole[:cut])

    def send(self, raw: bytes) -> None:
        """Send bytes as they are."""
        self._connection.sendall(raw)

    def hang_up(self) -> None:
        """Close the connection."""
        self._connection.close()


class Rigged:
    """A server that treats each request with the next of its acts, and keeps the requests it got."""

    def __init__(self, acts: tuple[Callable[[Exchange], object], ...], port: int) -> None:
        self._acts = iter(acts)
        self.exchanges: list[Exchange] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._spawn(self._accept)

    @property
    def calls(self) -> list[str]:
        """Method and path of each request."""
        return [f"{exchange.method} {exchange.path}" for exchange in self.exchanges]

    def close(self) -> None:
        """End every connection and thread."""
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
                next(self._acts, Exchange.hang_up)(self.exchanges[-1])


@pytest.fixture
def rigged() -> Iterator[Callable[..., Rigged]]:
    """Makes servers that act as told."""
    with ExitStack() as stack:

        def start(*acts: Callable[[Exchange], object], port: int = 0) -> Rigged:
            server = Rigged(acts, port)
            stack.callback(server.close)
            return server

        yield start

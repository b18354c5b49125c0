"""HttpProtocol with a small application: connections with open requests stay open, lost connections are freed."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from hadakv_service.asgi_extensions import is_disconnected, receive_into, send_response
from hadakv_service.server.connection_monitor import ConnectionMonitor
from hadakv_service.server.protocol import HttpProtocol
from hadakv_service.server.timeouts import Limits

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@asynccontextmanager
async def listening(app: ASGIApp, made: list[weakref.ref[HttpProtocol]], max_connections: int) -> AsyncIterator[int]:
    """Serve an application on a free port. Add a reference for each connection to `made`."""
    loop, state = asyncio.get_running_loop(), ServerState()
    config = uvicorn.Config(app, lifespan="off", log_level="warning")
    config.load()
    limits = Limits(10_000, max_connections, 60, 60, 60, 1)
    monitor = ConnectionMonitor(state.connections, limits, loop)  # type: ignore[arg-type]

    def connection() -> asyncio.Protocol:
        protocol = HttpProtocol(config=config, server_state=state, app_state={}, _loop=loop, monitor=monitor)
        made.append(weakref.ref(protocol))
        return protocol

    server = await loop.create_server(connection, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def status_lines(sent: bytes) -> tuple[bytes, bytes]:
    """Return the status lines on two connections, of which only one is allowed.

    The first request gets its response after the second connection was made.
    """
    entered, may_respond = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's signature
        entered.set()
        await may_respond.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with listening(app, [], max_connections=1) as port:
        first_reader, first = await asyncio.open_connection("127.0.0.1", port)
        first.write(sent)
        await entered.wait()
        second_reader, second = await asyncio.open_connection("127.0.0.1", port)
        second.write(GET + b"\r\n")
        second_line = await second_reader.readline()
        may_respond.set()
        first_line = await first_reader.readline()
        first.close()
        second.close()
    return first_line.strip(), second_line.strip()


@pytest.mark.parametrize(
    "next_bytes",
    [b"", GET, b"GET", GET + b"\r\n" + GET],
    ids=["nothing", "half a head", "a word", "a request and half a head"],
)
@pytest.mark.parametrize("head", [GET + b"\r\n", GET + b"Content-Length: 2\r\n\r\n12"], ids=["head", "body"])
def test_open_request_keeps_its_connection(head: bytes, next_bytes: bytes) -> None:
    lines = uvloop.run(status_lines(head + next_bytes))

    assert lines == (b"HTTP/1.1 204 No Content", b"HTTP/1.1 503 Service Unavailable")


# Memory


async def receive_and_respond(scope: Scope, receive: Receive, send: Send) -> None:
    """Use all extensions, as the service does, and drop them at the end of the request."""
    length = int(dict(scope["headers"]).get(b"content-length", b"0"))
    if await receive_into(scope, receive, memoryview(bytearray(length))) and not is_disconnected(scope):
        await send_response(scope, send, 200, [(b"content-length", b"2")], b"ok")
    scope.pop("extensions")


POST = GET.replace(b"GET", b"POST") + b"Content-Length: 200000\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "responses"),
    [
        (b"", 0),
        (GET, 0),
        ((GET + b"\r\n") * 2, 2),
        (POST + bytes(200_000) + GET + b"\r\n", 2),
        (POST + bytes(100_000), 0),
        (b"nonsense\r\n\r\n", 1),
        (GET + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 1),
    ],
    ids=["nothing", "half a head", "two requests", "large body", "half a body", "not HTTP", "large head"],
)
def test_lost_connection_is_freed_without_gc(sent: bytes, responses: int) -> None:
    made: list[weakref.ref[HttpProtocol]] = []

    async def connect_and_disconnect() -> int:
        async with listening(receive_and_respond, made, max_connections=10) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            received = b""
            while received.count(b"HTTP/1.1 ") < responses:
                chunk = await reader.read(1 << 16)
                assert chunk, received
                received += chunk
            await asyncio.sleep(0 if responses else 0.05)
            writer.close()
            for _ in range(200):
                if made[0]() is None:
                    break
                await asyncio.sleep(0.01)
        return received.count(b"HTTP/1.1 ")

    gc.collect()
    gc.disable()
    try:
        received = uvloop.run(asyncio.wait_for(connect_and_disconnect(), 60))
        lost = [reference() is None for reference in made]
    finally:
        gc.enable()

    assert received == responses
    assert lost == [True]

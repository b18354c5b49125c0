"""A connection with a request under way does not make room for others, whatever else comes on it."""

import asyncio

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from hadakv_service.server.connection_monitor import ConnectionMonitor, Limits
from hadakv_service.server.protocol import HttpProtocol

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def first_and_second(sent: bytes) -> tuple[bytes, bytes]:
    """What two connections are told where there may be one; the app answers the first request after the second came."""
    entered, may_answer = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's signature
        entered.set()
        await may_answer.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    loop, state = asyncio.get_running_loop(), ServerState()
    config = uvicorn.Config(app, lifespan="off", log_level="warning")
    config.load()
    watch = ConnectionMonitor(state.connections, Limits(10_000, 1, 60, 60, 60, 1), loop)  # type: ignore[arg-type]

    def connection() -> asyncio.Protocol:
        return HttpProtocol(config=config, server_state=state, app_state={}, _loop=loop, watch=watch)

    server = await loop.create_server(connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    first_reader, first = await asyncio.open_connection("127.0.0.1", port)
    first.write(sent)
    await entered.wait()
    second_reader, second = await asyncio.open_connection("127.0.0.1", port)
    second.write(GET + b"\r\n")
    told_second = await second_reader.readline()
    may_answer.set()
    told_first = await first_reader.readline()
    first.close()
    second.close()
    server.close()
    await server.wait_closed()
    return told_first.strip(), told_second.strip()


@pytest.mark.parametrize(
    "behind",
    [b"", GET, b"GET", GET + b"\r\n" + GET],
    ids=["nothing", "half a head", "a word", "a request and half a head"],
)
@pytest.mark.parametrize("head", [GET + b"\r\n", GET + b"Content-Length: 2\r\n\r\n12"], ids=["head", "body"])
def test_what_comes_behind_a_request_does_not_end_it(head: bytes, behind: bytes) -> None:
    told = uvloop.run(first_and_second(head + behind))

    assert told == (b"HTTP/1.1 204 No Content", b"HTTP/1.1 503 Service Unavailable")

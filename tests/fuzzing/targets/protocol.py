"""Target "protocol", in this process: any bytes in any pieces on a connection, with an app that reads and responds.

The output must be HTTP. No exception may reach the event loop. No request may be in progress after the connection has
ended.
"""

import asyncio
import logging
import random
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from fuzzing import streams
from hadakv_service.asgi_extensions import SEND_RESPONSE
from hadakv_service.errors import ServiceError
from hadakv_service.http.content import MsgpackResponse
from hadakv_service.http.request_body import BodyReader
from hadakv_service.problem_details import problem_response
from hadakv_service.server.connection_monitor import ConnectionMonitor
from hadakv_service.server.protocol import HttpProtocol
from hadakv_service.server.timeouts import Limits
from support.contract import MSGPACK

LIMIT = 1 << 20
LIMITS = Limits(
    1 << 16, max_connections=10, idle_seconds=1.0, header_timeout=1.0, stall_timeout=1.0, min_bytes_per_second=1 << 18
)
# Buffered output, in bytes, above which the protocol waits for the peer.
HIGH_WATER = 1 << 16
BODIES = BodyReader(LIMIT)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read a body as the service does, and respond with its size and as many zeros.

    The response to a path that begins with /w is sent in one write.
    """
    try:
        if scope["path"].startswith("/w"):
            answer = scope["extensions"][SEND_RESPONSE]
            await answer(200, [(b"content-type", MSGPACK.encode()), (b"content-length", b"1")], b"\x80")
            return
        async with BODIES.read(Request(scope, receive)) as body:
            zeros = np.zeros(len(body), np.uint8)
            await MsgpackResponse({"nbytes": len(body), "zeros": zeros})(scope, receive, send)
    except ServiceError as error:
        await problem_response(error)(scope, receive, send)
    except ClientDisconnect:
        pass


class Wire(asyncio.Transport):
    """Transport in memory: records written bytes, and feeds bytes to the current protocol."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: HttpProtocol, *, stalls: bool) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._connection = protocol
        self._stalls = stalls
        self._unread = 0
        self.written = bytearray()
        self.closed = False
        self._loop = loop
        self._protocol = protocol
        self._paused = False
        self._waiting = bytearray()

    def feed(self, data: bytes) -> None:
        """Deliver bytes from the peer."""
        self._waiting += data
        self._pump()

    def _pump(self) -> None:
        while self._waiting and not (self._paused or self.closed):
            protocol = self._protocol
            if isinstance(protocol, asyncio.BufferedProtocol):
                buffer = protocol.get_buffer(-1)
                nbytes = min(len(buffer), len(self._waiting))
                buffer[:nbytes] = self._waiting[:nbytes]  # type: ignore[index]  # it is a memoryview
                del self._waiting[:nbytes]
                protocol.buffer_updated(nbytes)
            else:
                data = bytes(self._waiting)
                self._waiting.clear()
                protocol.data_received(data)  # type: ignore[attr-defined]  # it is none of the other kind

    def end(self) -> None:
        """Close the connection from the peer's side."""
        if not self.closed:
            self.closed = True
            self._protocol.connection_lost(None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed:
            return
        self.written += data
        self._unread += len(data)
        if self._unread > HIGH_WATER:
            self._connection.pause_writing()
            if not self._stalls:
                self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Let the peer read what was written."""
        self._unread = 0
        self._connection.resume_writing()

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._pump)

    def get_write_buffer_size(self) -> int:
        return self._unread if self._unread > HIGH_WATER else 0

    def is_reading(self) -> bool:
        return not self._paused


class Peer:
    """Peer that opens connections on an event loop of its own."""

    def __init__(self) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._note)
        self._config = Config(app, log_config=None, server_header=False, proxy_headers=False)
        self._config.load()
        self._state = ServerState()
        self._watch = ConnectionMonitor(self._state.connections, LIMITS, self._loop)  # type: ignore[arg-type]  # all are patient
        self._errors: list[dict[str, Any]] = []

    def close(self) -> None:
        """Close the loop."""
        self._loop.close()

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._errors.append(context)

    def outcome(self, data: bytes) -> str:
        """Send an input in pieces that its first byte selects; return the statuses of the responses.

        Raises:
            Exception: an unexpected failure.
        """
        return self._loop.run_until_complete(self._outcome(data))

    async def _outcome(self, data: bytes) -> str:
        protocol = HttpProtocol(self._config, self._state, {}, self._loop, monitor=self._watch)
        wire = Wire(self._loop, protocol, stalls=bool(data) and data[0] % 4 == 3)
        protocol.connection_made(wire)
        for piece in _pieces(data):
            wire.feed(piece)
            await asyncio.sleep(0)
        await self._settle()
        # For some inputs the second time is far beyond every timeout.
        for now in (0.0, 100.0 if data and data[0] % 2 else 0.5):
            protocol.check_timeouts(now)
            await self._settle()
        wire.end()
        await self._settle()
        if self._errors or self._state.tasks or self._state.connections:
            raise AssertionError(f"left behind: {self._errors} {self._state.tasks} {self._state.connections}")
        return " ".join(map(str, streams.statuses(bytes(wire.written))))

    async def _settle(self) -> None:
        """Run the event loop until every task waits for bytes."""
        for turn in range(200):
            if turn > 5 and not self._state.tasks:
                break
            await asyncio.sleep(0)


def _pieces(data: bytes) -> list[bytes]:
    kind, sent = (data[0] if data else 0), data[1:]
    size = [1 << 30, 1, 7, 100, 65_536, 1000][kind % 6]
    # Single bytes are for headers. A long body would take too long.
    size = max(size, len(sent) // 500)
    return [sent[start : start + size] for start in range(0, len(sent), size)]


def seeds(seed: int) -> list[bytes]:
    """Return streams of requests, each with a piece size."""
    rng = random.Random(seed)
    sent = [streams.valid_stream(rng, "w" if number % 2 else "s")[0] for number in range(24)]
    sent = [stream.replace(b"/sessions/w/kv", b"/w") for stream in sent]
    return [bytes([number % 6]) + stream for number, stream in enumerate(sent)]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Mutate an input as a stream of requests."""
    kind = bytes([rng.randrange(6)]) if rng.random() < 0.2 else data[:1] or b"\0"
    sent = data[1:] or streams.DELETE
    return kind + rng.choice(streams.CORRUPTIONS)(rng, sent)

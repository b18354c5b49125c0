"""Servers to compare with, each in a process of its own: `python -m benchmarks.http.servers NAME`.

Every server binds a free loopback port and prints a line with its URL when it listens.
"""

import asyncio
import functools
import socket
import sys
from collections.abc import Sequence
from typing import Any, cast

import msgpack
import numpy as np
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from benchmarks.http.payloads import BULK, STEP, answer_nbytes
from hadakv_kernels import CodecSpec, Encoded, Stream
from hadakv_kernels.cpu import CpuBackend
from hadakv_service import __main__
from hadakv_service.app import create_app
from hadakv_service.startup import serve


class NullBackend(CpuBackend):
    """Backend whose encoding costs nothing. The rest is the cost of the service."""

    name = "null"
    detail = "no codec"

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        """Return arrays of the right shapes, the same ones each time."""
        return [_constant(x.shape[:-1], spec) for x, spec in streams]


@functools.cache
def _constant(lead: tuple[int, ...], spec: CodecSpec) -> Encoded:
    return Encoded(np.ones((*lead, spec.row_bytes), np.uint8), np.ones((*lead, spec.norms), np.float32))


def raw_sockets() -> None:
    """Receive and send as many bytes as a bulk append, without a protocol."""
    body, answer = memoryview(bytearray(len(BULK.body))), bytes(answer_nbytes(len(BULK.body)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]},", flush=True)
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                _answer_all(connection, body, answer)


def _answer_all(connection: socket.socket, body: memoryview, answer: bytes) -> None:
    while True:
        filled = 0
        while filled < len(body):
            received = connection.recv_into(body[filled:])
            if not received:
                return
            filled += received
        connection.sendall(answer)


async def bare(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI's signature
    """Discard the body, and respond with as many bytes as the service."""
    more, nbytes = True, 0
    while more:
        message = await receive()
        nbytes += len(message["body"])
        more = message["more_body"]
    answer = _answer(nbytes)
    headers = [(b"content-type", b"application/msgpack"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@functools.cache
def _answer(body_nbytes: int) -> bytes:
    return bytes(answer_nbytes(body_nbytes))


def naive() -> FastAPI:
    """Run the obvious implementation: a FastAPI route that reads and unpacks the whole body."""
    app = FastAPI()

    @app.post("/sessions/{session}/kv")
    async def append(request: Request, session: str) -> Response:  # noqa: ARG001 - a route has its path's parameters
        body = await request.body()
        message: dict[str, dict[str, Any]] = msgpack.unpackb(body)
        arrays: list[NDArray[Any]] = [
            np.frombuffer(message[name]["data"], message[name]["dtype"]).reshape(message[name]["shape"])
            for name in "kv"
        ]
        assert arrays[0].shape == arrays[1].shape
        return Response(_answer(len(body)), media_type="application/msgpack")

    return app


class _Ceiling(asyncio.Protocol):
    """Count the bytes of one-token requests and respond at once. No server can be faster."""

    _answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % STEP.packed_nbytes + bytes(STEP.packed_nbytes)
    _missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, chunk: bytes) -> None:
        if not self._missing:
            self._missing = chunk.index(b"\r\n\r\n") + 4 + len(STEP.body)
        self._missing -= len(chunk)
        if not self._missing:
            self._transport.write(self._answer)


async def _ceiling() -> None:
    server = await asyncio.get_running_loop().create_server(_Ceiling, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]},", flush=True)
    await server.serve_forever()


def _serve(app: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]},", flush=True)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        # As in the service: a connection is idle while other contenders are measured.
        timeout_keep_alive=75,
    )
    uvicorn.Server(config).run([listener])


def main() -> None:
    """Run the server that the first argument names. The other arguments are flags of the service."""
    name, *flags = sys.argv[1:]
    if name == "raw":
        raw_sockets()
    elif name == "ceiling":
        uvloop.run(_ceiling())
    elif name == "bare":
        _serve(bare)
    elif name == "naive":
        _serve(naive())
    elif name == "null":
        sys.argv[1:] = flags
        serve.create_app = functools.partial(create_app, backend=NullBackend())
        __main__.main()


if __name__ == "__main__":
    main()

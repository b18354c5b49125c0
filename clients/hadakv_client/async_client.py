"""The asynchronous client: runs the same flows over `httpx.AsyncClient`, on asyncio."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from hadakv_client.async_session import AsyncSession
from hadakv_client.errors import HadakvError, TransportError
from hadakv_client.flow import Flow, Pause, Retries, SessionFlows, Step, attempts
from hadakv_client.http import calls
from hadakv_client.http.body import PIECE_NBYTES, Body
from hadakv_client.http.calls import CodecOptions
from hadakv_client.http.files import FileBody, PathLike, Progress, Target, session_in
from hadakv_client.http.responses import ValueForm
from hadakv_client.http.tensors import Array
from hadakv_client.http.transport import (
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    Address,
    Arrival,
    declared_nbytes,
    transport_errors,
)
from hadakv_client.protocol import Call, Request, Response
from hadakv_client.results import SessionInfo
from hadakv_kernels import Diagnostics, Encoded

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio: the same arguments, results and errors. Belongs to one event loop.

    Args:
        base_url: where the service is, `unix:` and a path for a Unix domain socket.
        token: the caller's, if the service wants one.
        timeout: seconds, or an `httpx.Timeout`.
        retries: how often a call is tried again where that is safe, or `Retries`.
        transport: of httpx, instead of TCP connections of the client's own.
        uds: path of the Unix domain socket to connect to; with TLS if `base_url` is one of https.
        ca_file: certificates in PEM to trust, in place of the usual authorities'; without effect where there is no TLS.
        http: an httpx client to use, which the caller closes.

    Raises:
        ValueError: the URL is neither one of http or https nor `unix:` with a path, or the token cannot stand in a
            header, or `ca_file` has no certificate, or one that cannot be used.
        OSError: `ca_file` cannot be read.
    """

    def __init__(  # noqa: PLR0913 - settings, all but one by keyword
        self,
        base_url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        timeout: float | httpx.Timeout | None = DEFAULT_TIMEOUT,
        retries: int | Retries = 3,
        transport: httpx.AsyncBaseTransport | None = None,
        uds: str | None = None,
        ca_file: PathLike | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._address = Address(base_url, token, retries, uds)
        self._owns_http = http is None
        if http is None:
            options = self._address.connecting(ca_file)
            if self._address.uds is not None:
                transport = httpx.AsyncHTTPTransport(uds=self._address.uds, **options)
            http = httpx.AsyncClient(transport=transport, timeout=timeout, **options)
        self._http = http

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless they are another's."""
        if self._owns_http:
            await self._http.aclose()

    def session(self, session_id: str, codec: CodecOptions | None = None) -> AsyncSession:
        """A handle on a session: see `Client.session`."""
        return AsyncSession(self._run, SessionFlows(session_id, codec, self._address.retries))

    async def sessions(self, prefix: str | None = None) -> AsyncIterator[SessionInfo]:
        """The caller's sessions in order of id: see `Client.sessions`."""
        after = None
        while True:
            page = await self._call(calls.sessions(prefix, after))
            for info in page.sessions:
                yield info
            after = page.next
            if after is None:
                return

    async def import_session(
        self, path: PathLike, session_id: str | None = None, progress: Progress | None = None
    ) -> AsyncSession:
        """Make a session of a file: see `Client.import_session`."""
        flows = SessionFlows(session_in(path) if session_id is None else session_id, None, self._address.retries)
        await self._run(flows.import_(FileBody(path, progress)))
        return AsyncSession(self._run, flows)

    @overload
    async def encode(
        self, x: Any, codec: CodecOptions | None = None, diagnostics: Literal[False] = False
    ) -> Encoded: ...
    @overload
    async def encode(self, x: Any, codec: CodecOptions | None, diagnostics: Literal[True]) -> Diagnostics: ...
    async def encode(
        self, x: Any, codec: CodecOptions | None = None, diagnostics: bool = False
    ) -> Encoded | Diagnostics:
        """Encode the last axis of an array: see `Client.encode`."""
        return await self._call(calls.encode(x, codec, diagnostics=diagnostics))

    async def decode(
        self, encoded: Encoded, codec: CodecOptions | None, head_dim: int, form: ValueForm = "float32"
    ) -> Array:
        """Decode what `encode`, `append` or `read` gave: see `Client.decode`."""
        return await self._call(calls.decode(encoded, codec, head_dim, form))

    async def healthy(self) -> bool:
        """Whether a service answers. Tried once."""
        return await self._probe("/healthz")

    async def ready(self) -> bool:
        """Whether a service answers and its device computes what it should. Tried once."""
        return await self._probe("/readyz")

    async def _probe(self, path: str) -> bool:
        try:
            await self._run(attempts(calls.probe(path), Retries(0)))
        except HadakvError:
            return False
        return True

    async def _call(self, call: Call[T]) -> T:
        return await self._run(attempts(call, self._address.retries))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    response = await self._take(step)
                except TransportError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _take(self, step: Step) -> Response | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        return await self._send(step)

    async def _send(self, request: Request) -> Response:
        with transport_errors(request, self._address):
            async with self._http.stream(
                request.method,
                self._address.url(request),
                headers=self._address.headers(request),
                content=_content(request.body),
                follow_redirects=False,
            ) as head:
                target = request.target_of(head.status_code, head.headers)
                if target is not None:
                    return await _landed(target, head)
                arrival = Arrival(head)
                async for chunk in head.aiter_raw():
                    arrival.add(chunk)
        return arrival.response()


async def _landed(target: Target, head: httpx.Response) -> Response:
    """The response, once its body is a file; the disk keeps no other task waiting."""
    with target.open(declared_nbytes(head)) as landing:
        async for piece in head.aiter_raw(PIECE_NBYTES):
            await asyncio.to_thread(landing.write, piece)
        await asyncio.to_thread(landing.land)
    return Response(head.status_code, head.headers, b"")


def _content(body: Body | FileBody | None) -> bytes | AsyncIterator[bytes] | None:
    return None if body is None else body.joined or _pieces(body)


async def _pieces(body: Body | FileBody) -> AsyncIterator[bytes]:
    if isinstance(body, Body):
        for piece in body:
            yield piece
        return
    pieces = iter(body)
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece

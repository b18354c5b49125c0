"""Asynchronous client. It runs the flows over an asynchronous transport of httpx, on asyncio."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from hadakv_client.async_session import AsyncSession
from hadakv_client.errors import HadakvError, TransportError
from hadakv_client.flow import SessionFlows
from hadakv_client.http import calls
from hadakv_client.http.arguments import CodecOptions
from hadakv_client.http.body import CHUNK_NBYTES, Body
from hadakv_client.http.connections.exchanges import AsyncExchanges
from hadakv_client.http.connections.forks import OneProcess
from hadakv_client.http.connections.tls import Tls
from hadakv_client.http.connections.transports import AsyncPooledTransport
from hadakv_client.http.files import FileBody, FileDestination, PathLike, Progress, exported_session_id
from hadakv_client.http.responses import ValueForm
from hadakv_client.http.tensors import Array
from hadakv_client.http.transport import (
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    Endpoint,
    ResponseBuffer,
    content_length,
    transport_errors,
)
from hadakv_client.parts.body_limit import BodyLimit
from hadakv_client.protocol import Call, Request, Response
from hadakv_client.results import ServiceStatus, SessionInfo
from hadakv_client.retries import Flow, Retries, Sleep, Step, with_retries
from hadakv_kernels import Diagnostics, Encoded

T = TypeVar("T")


class AsyncClient:
    """Asynchronous client of a service: arguments, results and errors of `Client`. Tasks may share it.

    A cancelled call closes its connection. Nothing else is affected. Calls outside asyncio raise RuntimeError.

    Args:
        base_url: URL of the service, or `unix:` and the path of a Unix domain socket. `host:port` is http.
        token: the caller's token, if the service requires one.
        timeout: seconds to wait for the connection and for each part of a response, or an `httpx.Timeout`.
        retries: maximum number of retries for a call that can be retried safely, or a `Retries` policy.
        transport: transport of httpx to use instead of TCP connections.
        uds: path of a Unix domain socket to connect to; with TLS if `base_url` is https.
        ca_file: certificates in PEM to trust instead of the default certificate authorities. It has no effect without
            TLS.
        http: httpx client to use. The caller closes it.

    Raises:
        ValueError: the URL is not http, https or `unix:` with a path; or the token is not printable ASCII; or `ca_file`
            has no certificate, or an invalid one.
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
        self._endpoint = Endpoint(base_url, token, uds)
        self._retries = Retries.of(retries)
        self._body_limit = BodyLimit()
        if self._endpoint.uds is not None:
            transport = None
        # The caller's transport or httpx client cannot be replaced after a fork.
        self._process = None if http is None and transport is None else OneProcess()
        self._owns_http = http is None
        pooled = transport or AsyncPooledTransport(self._endpoint.uds, Tls(ca_file))
        self._http: httpx.AsyncClient | AsyncExchanges = http or AsyncExchanges(pooled, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. An httpx client that was passed in is not closed."""
        if self._owns_http and not (self._process and self._process.is_foreign):
            await self._http.aclose()

    def session(self, session_id: str, codec: CodecOptions | None = None) -> AsyncSession:
        """Return a handle on a session. See `Client.session`."""
        return AsyncSession(self._run, SessionFlows(session_id, codec, self._retries, self._body_limit))

    async def sessions(self, prefix: str | None = None) -> AsyncIterator[SessionInfo]:
        """Yield the caller's sessions in order of id. See `Client.sessions`."""
        after = None
        while True:
            page = await self._call(calls.list_sessions(prefix, after))
            for info in page.sessions:
                yield info
            after = page.next
            if after is None:
                return

    async def import_session(
        self, path: PathLike, session_id: str | None = None, progress: Progress | None = None
    ) -> AsyncSession:
        """Create a session from a file. See `Client.import_session`."""
        flows = SessionFlows(
            exported_session_id(path) if session_id is None else session_id, None, self._retries, self._body_limit
        )
        await self._run(flows.import_from(FileBody(path, progress)))
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
        """Encode the last axis of an array. See `Client.encode`."""
        return await self._call(calls.encode(x, codec, diagnostics=diagnostics))

    async def decode(
        self, encoded: Encoded, codec: CodecOptions | None, head_dim: int, form: ValueForm = "float32"
    ) -> Array:
        """Decode a result of `encode`, `append` or `read`. See `Client.decode`."""
        return await self._call(calls.decode(encoded, codec, head_dim, form))

    async def healthy(self) -> bool:
        """Return whether the service responds. Makes one attempt."""
        return await self._probe("/healthz")

    async def ready(self) -> bool:
        """Return whether the service responds and its device passes the self-test. Makes one attempt."""
        return await self._probe("/readyz")

    async def status(self) -> ServiceStatus:
        """Get version, backend, budgets, number of sessions and uptime of the service.

        Raises:
            Busy: the device or the disk store fails its self-test.
        """
        return await self._call(calls.status())

    async def _probe(self, path: str) -> bool:
        try:
            await self._run(with_retries(calls.probe(path), Retries(0)))
        except HadakvError:
            return False
        return True

    async def _call(self, call: Call[T]) -> T:
        return await self._run(with_retries(call, self._retries))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    response = await self._perform(step)
                except TransportError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            # An exception that is not for the flow, for example a cancellation, has not ended it.
            flow.close()

    async def _perform(self, step: Step) -> Response | None:
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        return await self._send(step)

    async def _send(self, request: Request) -> Response:
        if self._process:
            self._process.check()
        with transport_errors(request, self._endpoint):
            async with self._http.stream(
                request.method,
                self._endpoint.url(request),
                headers=self._endpoint.headers(request),
                content=_content(request.body),
                follow_redirects=False,
            ) as received:
                destination = request.destination_for(received.status_code, received.headers)
                if destination is not None:
                    return await _save_body(destination, received)
                buffer = ResponseBuffer(received)
                async for chunk in received.aiter_raw():
                    buffer.add(chunk)
        return buffer.response()


async def _save_body(destination: FileDestination, received: httpx.Response) -> Response:
    """Write the body to the destination, and return the response without it. Disk I/O does not block the event loop."""
    with destination.open(content_length(received)) as writer:
        async for chunk in received.aiter_raw(CHUNK_NBYTES):
            await asyncio.to_thread(writer.write, chunk)
        await asyncio.to_thread(writer.commit)
    return Response(received.status_code, received.headers, b"")


def _content(body: Body | FileBody | None) -> bytes | AsyncIterator[bytes] | None:
    return None if body is None else body.as_bytes or _chunks(body)


async def _chunks(body: Body | FileBody) -> AsyncIterator[bytes]:
    if isinstance(body, Body):
        for chunk in body:
            yield chunk
        return
    chunks = iter(body)
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk

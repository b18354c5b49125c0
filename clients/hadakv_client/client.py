"""Synchronous client. It runs the flows over a transport of httpx."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from hadakv_client.errors import HadakvError, TransportError
from hadakv_client.flow import SessionFlows
from hadakv_client.http import calls
from hadakv_client.http.arguments import CodecOptions
from hadakv_client.http.body import CHUNK_NBYTES, Body
from hadakv_client.http.connections.exchanges import Exchanges
from hadakv_client.http.connections.forks import OneProcess
from hadakv_client.http.connections.tls import Tls
from hadakv_client.http.connections.transports import PooledTransport
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
from hadakv_client.session import Session
from hadakv_kernels import Diagnostics, Encoded

T = TypeVar("T")


class Client:
    """Synchronous client of a service. Close it, or use it in a `with` statement.

    Threads may share it, and a forked child may go on to use it, with connections of its own.

    Args:
        base_url: URL of the service, or `unix:` and the path of a Unix domain socket. `host:port` is http.
        token: the caller's token, if the service requires one.
        timeout: seconds to wait for the connection and for each part of a response, or an `httpx.Timeout`.
        retries: maximum number of retries for a call that can be retried safely, or a `Retries` policy.
        transport: transport of httpx to use instead of TCP connections.
        uds: path of a Unix domain socket to connect to. `base_url` then gives only the host name: for the Host header
            and, with https, for the certificate.
        ca_file: certificates in PEM to trust instead of the default certificate authorities. It has no effect with a
            `transport`, which has its own, and without TLS: with http and with `unix:`, which is always http.
        http: httpx client to use. It has its own timeout, transport and certificates, and the caller closes it.

    A call raises RuntimeError in a forked child if its parent has used the same `transport` or `http`.

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
        transport: httpx.BaseTransport | None = None,
        uds: str | None = None,
        ca_file: PathLike | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        self._endpoint = Endpoint(base_url, token, uds)
        self._retries = Retries.of(retries)
        self._body_limit = BodyLimit()
        if self._endpoint.uds is not None:
            transport = None
        # The caller's transport or httpx client cannot be replaced after a fork.
        self._process = None if http is None and transport is None else OneProcess()
        self._owns_http = http is None
        pooled = transport or PooledTransport(self._endpoint.uds, Tls(ca_file))
        self._http: httpx.Client | Exchanges = http or Exchanges(pooled, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. An httpx client that was passed in is not closed."""
        if self._owns_http and not (self._process and self._process.is_foreign):
            self._http.close()

    def session(self, session_id: str, codec: CodecOptions | None = None) -> Session:
        """Return a handle on a session. Sends nothing; the session need not exist.

        Args:
            session_id: 1 to 128 of A-Z a-z 0-9 . _ : -
            codec: codec for both streams, or `{"k": ..., "v": ...}`. A new session takes it. It must equal the codec of
                an existing session (`CodecMismatch`). None takes the session's codec, or the service's default.

        Raises:
            ValueError: the id is not valid, or the codec is not supported.
        """
        return Session(self._run, SessionFlows(session_id, codec, self._retries, self._body_limit))

    def sessions(self, prefix: str | None = None) -> Iterator[SessionInfo]:
        """Yield the caller's sessions in order of id. Fetches them page by page.

        Args:
            prefix: yield only sessions whose id starts with it.

        Raises:
            ValueError: the prefix is longer than a session id.
        """
        after = None
        while True:
            page = self._call(calls.list_sessions(prefix, after))
            yield from page.sessions
            after = page.next
            if after is None:
                return

    def import_session(
        self, path: PathLike, session_id: str | None = None, progress: Progress | None = None
    ) -> Session:
        """Create a session from a file that `Session.export` wrote. On an error nothing is created.

        The file is read while it is sent. It must not change until this returns.

        Args:
            path: path of the file.
            session_id: id of the new session; None is the id of the exported session.
            progress: called after each chunk with the bytes sent so far and the size of the file.

        Returns:
            a handle on the new session.

        Raises:
            OSError: the file cannot be read.
            ValueError: `session_id` is not valid; or it is None and the file is not a hadakv session file.
            SessionExists: the id is taken.
            FileCorrupt: the file is damaged.
            MalformedBody, InvalidRequest: it is not a session file, or another version of hadakv wrote it.
            BodyTooLarge, InsufficientStorage: the file or the session is too large.
        """
        flows = SessionFlows(
            exported_session_id(path) if session_id is None else session_id, None, self._retries, self._body_limit
        )
        self._run(flows.import_from(FileBody(path, progress)))
        return Session(self._run, flows)

    @overload
    def encode(self, x: Any, codec: CodecOptions | None = None, diagnostics: Literal[False] = False) -> Encoded: ...
    @overload
    def encode(self, x: Any, codec: CodecOptions | None, diagnostics: Literal[True]) -> Diagnostics: ...
    def encode(self, x: Any, codec: CodecOptions | None = None, diagnostics: bool = False) -> Encoded | Diagnostics:
        """Encode the last axis of an array. Stores nothing.

        Args:
            x: NumPy or MLX array of float32, float16 or bfloat16, `[..., head_dim]`.
            codec: one codec; None is the default codec.
            diagnostics: also return the scaled values that the codec compares with its boundaries, and their RMS.

        Returns:
            packed uint8 [..., row_bytes] and norms float32 [..., norms], read-only. For a codec of kind float16, the
            bytes of the float16 values, and no norms.

        Raises:
            TypeError, ValueError: x cannot be sent, or the codec is not supported.
            InvalidRequest: no codec supports this head_dim.
            NonFinite: a vector has NaN, infinity or overflow.
        """
        return self._call(calls.encode(x, codec, diagnostics=diagnostics))

    def decode(self, encoded: Encoded, codec: CodecOptions | None, head_dim: int, form: ValueForm = "float32") -> Array:
        """Decode a result of `encode`, `append` or `read`.

        Args:
            encoded: packed uint8 `[..., row_bytes]` and norms float32 `[..., norms]`.
            codec: codec of the encoded vectors.
            head_dim: number of elements of one vector.
            form: dtype of the result, or `"rotated"` for float32 before the inverse rotation.

        Returns:
            values [..., head_dim], read-only.

        Raises:
            TypeError, ValueError: an array cannot be sent, or the codec is not supported.
            InvalidRequest: the shapes do not fit the codec.
        """
        return self._call(calls.decode(encoded, codec, head_dim, form))

    def healthy(self) -> bool:
        """Return whether the service responds. Makes one attempt."""
        return self._probe("/healthz")

    def ready(self) -> bool:
        """Return whether the service responds and its device passes the self-test. Makes one attempt."""
        return self._probe("/readyz")

    def status(self) -> ServiceStatus:
        """Get version, backend, budgets, number of sessions and uptime of the service.

        Raises:
            Busy: the device or the disk store fails its self-test.
        """
        return self._call(calls.status())

    def _probe(self, path: str) -> bool:
        try:
            self._run(with_retries(calls.probe(path), Retries(0)))
        except HadakvError:
            return False
        return True

    def _call(self, call: Call[T]) -> T:
        return self._run(with_retries(call, self._retries))

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    response = self._perform(step)
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

    def _perform(self, step: Step) -> Response | None:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return None
        return self._send(step)

    def _send(self, request: Request) -> Response:
        if self._process:
            self._process.check()
        with (
            transport_errors(request, self._endpoint),
            self._http.stream(
                request.method,
                self._endpoint.url(request),
                headers=self._endpoint.headers(request),
                content=_content(request.body),
                follow_redirects=False,
            ) as received,
        ):
            destination = request.destination_for(received.status_code, received.headers)
            if destination is not None:
                return _save_body(destination, received)
            buffer = ResponseBuffer(received)
            for chunk in received.iter_raw():
                buffer.add(chunk)
        return buffer.response()


def _save_body(destination: FileDestination, received: httpx.Response) -> Response:
    """Write the body to the destination, and return the response without it."""
    with destination.open(content_length(received)) as writer:
        for chunk in received.iter_raw(CHUNK_NBYTES):
            writer.write(chunk)
        writer.commit()
    return Response(received.status_code, received.headers, b"")


def _content(body: Body | FileBody | None) -> bytes | Iterator[bytes] | None:
    return None if body is None else body.as_bytes or iter(body)

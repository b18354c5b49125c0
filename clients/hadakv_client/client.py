"""The synchronous client: runs flows over `httpx.Client`."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import httpx

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
from hadakv_client.session import Session
from hadakv_kernels import Diagnostics, Encoded

T = TypeVar("T")


class Client:
    """Talks to a service. May be used from several threads; `close` it, or use it in a `with` statement.

    Args:
        base_url: where the service is, `unix:` and a path for a Unix domain socket.
        token: the caller's, if the service wants one.
        timeout: seconds to wait for the connection and for each part of an answer, or an `httpx.Timeout`.
        retries: how often a call is tried again where that is safe, or `Retries` for more to say.
        transport: of httpx, instead of TCP connections of the client's own.
        uds: path of the Unix domain socket to connect to; `base_url` then only names the host in the requests and, with
            https, in the certificate of a service that speaks TLS there.
        ca_file: certificates in PEM; whoever speaks TLS must be vouched for by one of these, and no longer by one of
            the usual authorities. Not for a `transport`, which brings its own, and without effect where there is no
            TLS: with http, and with `unix:`, which is http always.
        http: an httpx client to use, which the caller closes; it brings its own timeout, transport and authorities.

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
        transport: httpx.BaseTransport | None = None,
        uds: str | None = None,
        ca_file: PathLike | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        self._address = Address(base_url, token, retries, uds)
        self._owns_http = http is None
        if http is None:
            options = self._address.connecting(ca_file)
            if self._address.uds is not None:
                transport = httpx.HTTPTransport(uds=self._address.uds, **options)
            http = httpx.Client(transport=transport, timeout=timeout, **options)
        self._http = http

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless they are another's."""
        if self._owns_http:
            self._http.close()

    def session(self, session_id: str, codec: CodecOptions | None = None) -> Session:
        """A handle on a session, which need not exist yet. Sends nothing.

        Args:
            session_id: 1 to 128 of A-Z a-z 0-9 . _ : -
            codec: for both streams, or `{"k": ..., "v": ...}`. It decides when an append creates the session, and must
                be the session's otherwise (`CodecMismatch`). None takes the session's, or the service's default.

        Raises:
            ValueError: the id is not valid, or there is no such codec.
        """
        return Session(self._run, SessionFlows(session_id, codec, self._address.retries))

    def sessions(self, prefix: str | None = None) -> Iterator[SessionInfo]:
        """The caller's sessions in order of id, fetched as the iteration goes.

        Args:
            prefix: only those whose id begins so.
        """
        after = None
        while True:
            page = self._call(calls.sessions(prefix, after))
            yield from page.sessions
            after = page.next
            if after is None:
                return

    def import_session(
        self, path: PathLike, session_id: str | None = None, progress: Progress | None = None
    ) -> Session:
        """Make a session of a file that `Session.export` wrote, all of it or nothing.

        The file is read as it is sent, and must not change until this returns.

        Args:
            path: of the file.
            session_id: of the new session; None is the id of the session that was exported.
            progress: called again and again with the bytes sent so far and those of the whole file.

        Returns:
            a handle on the new session.

        Raises:
            OSError: the file cannot be read.
            ValueError: no session was exported to it, if there is no id; or the id is not valid.
            SessionExists: there is a session of that id.
            MalformedBody, InvalidRequest: the file is damaged, or of another version.
            BodyTooLarge, InsufficientStorage: it does not fit.
        """
        flows = SessionFlows(session_in(path) if session_id is None else session_id, None, self._address.retries)
        self._run(flows.import_(FileBody(path, progress)))
        return Session(self._run, flows)

    @overload
    def encode(self, x: Any, codec: CodecOptions | None = None, diagnostics: Literal[False] = False) -> Encoded: ...
    @overload
    def encode(self, x: Any, codec: CodecOptions | None, diagnostics: Literal[True]) -> Diagnostics: ...
    def encode(self, x: Any, codec: CodecOptions | None = None, diagnostics: bool = False) -> Encoded | Diagnostics:
        """Encode the last axis of an array; nothing is stored.

        Args:
            x: float32, float16 or bfloat16 `[..., head_dim]`, of NumPy or MLX.
            codec: one codec; None is the default one.
            diagnostics: also give what the codec compared with its boundaries, and its RMS.

        Returns:
            packed uint8 [..., row_bytes] and norms float32 [..., norms], read-only; for a float16 codec
            the float16 values' bytes and no norms.

        Raises:
            TypeError, ValueError: x cannot be sent, or there is no such codec.
            InvalidRequest: there is no codec for that head_dim.
            NonFinite: a vector has NaN, infinity or overflow.
        """
        return self._call(calls.encode(x, codec, diagnostics=diagnostics))

    def decode(self, encoded: Encoded, codec: CodecOptions | None, head_dim: int, form: ValueForm = "float32") -> Array:
        """Decode what `encode`, `append` or `read` gave.

        Args:
            encoded: packed uint8 `[..., row_bytes]` and norms float32 `[..., norms]`.
            codec: the one it was encoded with.
            head_dim: elements of one vector.
            form: the dtype to give, or `"rotated"` for float32 before the inverse rotation.

        Returns:
            values [..., head_dim], read-only.

        Raises:
            TypeError, ValueError: an array cannot be sent, or there is no such codec.
            InvalidRequest: the shapes are not those of the codec.
        """
        return self._call(calls.decode(encoded, codec, head_dim, form))

    def healthy(self) -> bool:
        """Whether a service answers. Tried once."""
        return self._probe("/healthz")

    def ready(self) -> bool:
        """Whether a service answers and its device computes what it should. Tried once."""
        return self._probe("/readyz")

    def _probe(self, path: str) -> bool:
        try:
            self._run(attempts(calls.probe(path), Retries(0)))
        except HadakvError:
            return False
        return True

    def _call(self, call: Call[T]) -> T:
        return self._run(attempts(call, self._address.retries))

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    response = self._take(step)
                except TransportError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as done:
            result: T = done.value
            return result

    def _take(self, step: Step) -> Response | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        return self._send(step)

    def _send(self, request: Request) -> Response:
        with (
            transport_errors(request, self._address),
            self._http.stream(
                request.method,
                self._address.url(request),
                headers=self._address.headers(request),
                content=_content(request.body),
                follow_redirects=False,
            ) as head,
        ):
            target = request.target_of(head.status_code, head.headers)
            if target is not None:
                return _landed(target, head)
            arrival = Arrival(head)
            for chunk in head.iter_raw():
                arrival.add(chunk)
        return arrival.response()


def _landed(target: Target, head: httpx.Response) -> Response:
    """The response, once its body is a file."""
    with target.open(declared_nbytes(head)) as landing:
        for piece in head.iter_raw(PIECE_NBYTES):
            landing.write(piece)
        landing.land()
    return Response(head.status_code, head.headers, b"")


def _content(body: Body | FileBody | None) -> bytes | Iterator[bytes] | None:
    return None if body is None else body.joined or iter(body)

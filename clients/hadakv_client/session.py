"""Synchronous handle on one session."""

from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from hadakv_client.flow import SessionFlows
from hadakv_client.http.arguments import Position, SessionOptions, TokenProgress
from hadakv_client.http.files import FileDestination, PathLike, Progress
from hadakv_client.http.kv import keys_values
from hadakv_client.http.responses import Form, Layout, ValueForm
from hadakv_client.http.tensors import Array
from hadakv_client.parts.read import Read
from hadakv_client.results import AppendResult, Range, SessionInfo, StoredAppend
from hadakv_client.retries import Flow
from hadakv_client.turns import Turns
from hadakv_kernels import Encoded

T = TypeVar("T")


class _Runner(Protocol):
    def __call__(self, flow: Flow[T]) -> T: ...


class Session:
    """Handle on one session. It tracks the position of the next append.

    Threads may share a handle. Calls that change the session run one after the other, in no certain order.

    Every method can also raise the errors of every call: `Unauthorized`, `Busy`, `InternalError`, `ProtocolError`,
    `ConnectionLost`, `Timeout`.
    """

    def __init__(self, run: _Runner, flows: SessionFlows) -> None:
        self._run = run
        self._flows = flows
        self._turns = Turns()

    def _change(self, flow: Flow[T]) -> T:
        """Run a flow that changes the session, when no other caller of this handle runs one."""
        return self._turns.run(lambda: self._run(self._flows.changing(flow)))

    @property
    def id(self) -> str:
        """Return the session id."""
        return self._flows.id

    @overload
    def append(
        self,
        k: Any,
        v: Any = None,
        *,
        layer: int = 0,
        position: Position | None = None,
        minimal: Literal[False] = False,
        allow_zeros: bool = False,
        progress: TokenProgress | None = None,
    ) -> StoredAppend: ...
    @overload
    def append(
        self,
        k: Any,
        v: Any = None,
        *,
        layer: int = 0,
        position: Position | None = None,
        minimal: bool,
        allow_zeros: bool = False,
        progress: TokenProgress | None = None,
    ) -> AppendResult: ...
    def append(  # noqa: PLR0913 - options, by keyword
        self,
        k: Any,
        v: Any = None,
        *,
        layer: int = 0,
        position: Position | None = None,
        minimal: bool = False,
        allow_zeros: bool = False,
        progress: TokenProgress | None = None,
    ) -> AppendResult:
        """Encode keys and values and append them to the session.

        All tokens are stored or none, if they fit one request of the service (`--max-body`). Otherwise the tokens are
        sent in parts, and a part is stored whole or not at all. If a part fails, the exception has `stored_tokens` and
        `next_position`; the same call with the same `position` stores the rest.

        The call is retried when the connection breaks. This never stores a token twice, as the service recognises the
        position. The arrays must not change until this returns.

        Args:
            k: keys in one of these forms: NumPy or MLX array of float32, float16 or bfloat16,
                `[layers, kv_heads, tokens, head_dim]`, where the first axis can be omitted for one layer; a list with
                an array `[kv_heads, tokens, head_dim]` for each layer, also with a batch axis of 1; or, without v, a
                cache like mlx-lm's `KVCache`, or a list of these. Arrays in a list are sent one by one, without a copy.
            v: values in the same form, shape and dtype as k; None for caches.
            layer: index of the first layer.
            position: position of the first token. None is the end that this handle knows from its appends; on first use
                it asks the service. `"end"` is the end in the service, also with other writers. Such an append is not
                retried when the connection breaks. Of a cache, the tokens from `position` on are appended: None appends
                those that the session does not have yet.
            minimal: omit the stored streams from the response.
            allow_zeros: accept arrays whose last token is zero in k and v of every layer and head. Such rows usually
                are the unused end of a cache.
            progress: called after each part as `progress(tokens_stored, tokens)`. Both count tokens of this call.

        Returns:
            the position of the tokens, and unless `minimal` the stored streams.

        Raises:
            TypeError, ValueError: k or v cannot be sent, or their last token is zero.
            InvalidRequest: k and v do not fit each other, or no codec supports their head_dim.
            NonFinite: k or v has NaN, infinity or overflow.
            ShapeMismatch, CodecMismatch: k, v or the codec does not fit the session.
            PositionConflict: the position is not the end of the session. The next append without a position asks the
                service for the end.
            BodyTooLarge, InsufficientStorage: one token is too large for a request, or the service has no space.
        """
        kv = keys_values(k, v, allow_zeros=allow_zeros)
        return self._change(self._flows.append(kv, layer, position, minimal=minimal, progress=progress))

    @overload
    def read(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: Literal["packed"] = "packed",
        layout: Layout = "linear",
        out: tuple[Encoded, Encoded] | None = None,
        progress: TokenProgress | None = None,
    ) -> Range[Encoded]: ...
    @overload
    def read(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: ValueForm,
        layout: Layout = "linear",
        out: tuple[Array, Array] | None = None,
        progress: TokenProgress | None = None,
    ) -> Range[Array]: ...
    def read(  # noqa: PLR0913 - options, most by keyword
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: Form = "packed",
        layout: Layout = "linear",
        out: tuple[Any, Any] | None = None,
        progress: TokenProgress | None = None,
    ) -> Range[Any]:
        """Read a range of tokens.

        If the response would be too large for the service (`--max-body`), the tokens are read in parts, into arrays
        that are allocated once. All parts are of one state of the session, except that tokens may be appended
        meanwhile.

        Args:
            start: position of the first token; None is the first token that the session still has.
            stop: position after the last token; None, or any position after the end, is the end.
            layers: first layer, and the layer after the last; None is all layers that the session has.
            form: `"packed"`; or the dtype of the values; or `"rotated"` for float32 before the inverse rotation.
            layout: `"linear"` sorts tokens by position. `"ring"` returns a whole window, with the token of position p
                in row p % window.
            out: arrays for k and v, which are filled and returned: arrays, for example `numpy.memmap`, of the shape and
                dtype of the result, or two `Encoded` for "packed". After an error their content is undefined.
            progress: called after each part as `progress(tokens_read, tokens)`.

        Returns:
            k and v: `Encoded` for "packed", else arrays [layers, kv_heads, tokens, head_dim]. `layers` names the layers
            of the first axis.

        Raises:
            SessionNotFound: the session does not exist.
            InvalidRequest: the session does not have these tokens or layers.
            CodecMismatch: the handle was made with another codec than the session has.
            SessionChanged: tokens were deleted or replaced between two parts.
            ResponseTooLarge: one token of one layer does not fit a response.
            TypeError, ValueError: `out` does not fit the result.
        """
        return self._run(self._flows.read(Read(self.id, start, stop, layers, form, layout, out, progress)))

    def truncate(self, length: int) -> SessionInfo:
        """Delete tokens from a position on, in all layers. The next append continues there.

        Args:
            length: number of tokens to keep. Layers with fewer tokens do not change.

        Raises:
            SessionNotFound: the session does not exist.
            InvalidRequest: no layer has this many tokens, or the window no longer has the last of them.
        """
        return self._change(self._flows.truncate(length))

    def fork(self, session_id: str, length: int | None = None) -> "Session":
        """Create a session with tokens of this one. Both share the storage of common tokens, but not later changes.

        Args:
            session_id: id of the new session.
            length: number of tokens to take; None is all tokens.

        Returns:
            a handle on the new session.

        Raises:
            SessionNotFound: the session does not exist.
            SessionExists: the new id is taken.
            InvalidRequest: no layer has this many tokens, or the window no longer has the last of them.
        """
        return Session(self._run, self._run(self._flows.fork(session_id, length)))

    def export(self, path: PathLike, progress: Progress | None = None) -> None:
        """Write the session to one safetensors file. `Client.import_session` creates a session from it.

        The file has the state of the session when the request arrived; later appends are not in it. If the connection
        breaks or the disk is full, the previous file stays as it was.

        Args:
            path: path of the file, which is replaced.
            progress: called after each chunk with the bytes received so far and the size of the file.

        Raises:
            SessionNotFound: the session does not exist.
            OSError: the file cannot be written.
        """
        self._run(self._flows.export_to(FileDestination(path, progress)))

    def info(self) -> SessionInfo:
        """Get the description of the session.

        Raises:
            SessionNotFound: the session does not exist.
        """
        return self._run(self._flows.info())

    def create(self, **options: Unpack[SessionOptions]) -> SessionInfo:
        """Create the session without tokens. Every later append is checked against the options.

        Args:
            options: see `SessionOptions`.

        Raises:
            InvalidRequest: an option is invalid.
            SessionExists: the session exists with other options.
        """
        return self._change(self._flows.create(options))

    def delete(self) -> None:
        """Delete the session.

        Raises:
            SessionNotFound: the session does not exist.
        """
        self._change(self._flows.delete())

"""The handle on one session, synchronous."""

from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from hadakv_client.flow import Flow, SessionFlows
from hadakv_client.http.calls import Position, SessionOptions
from hadakv_client.http.files import PathLike, Progress, Target
from hadakv_client.http.responses import Form, Layout, ValueForm
from hadakv_client.http.tensors import Array
from hadakv_client.results import Appended, Placed, Range, SessionInfo
from hadakv_kernels import Encoded

T = TypeVar("T")


class _Runner(Protocol):
    def __call__(self, flow: Flow[T]) -> T: ...


class Session:
    """A handle on one session, for one writer at a time: it knows where its next append goes.

    Every method also raises what any call may: `Unauthorized`, `Busy`, `InternalError`, `ProtocolError`,
    `ConnectionLost`, `Timeout`.
    """

    def __init__(self, run: _Runner, flows: SessionFlows) -> None:
        self._run = run
        self._flows = flows

    @property
    def id(self) -> str:
        """The session's id."""
        return self._flows.id

    @overload
    def append(
        self, k: Any, v: Any, *, layer: int = 0, position: Position | None = None, minimal: Literal[False] = False
    ) -> Appended: ...
    @overload
    def append(self, k: Any, v: Any, *, layer: int = 0, position: Position | None = None, minimal: bool) -> Placed: ...
    def append(
        self, k: Any, v: Any, *, layer: int = 0, position: Position | None = None, minimal: bool = False
    ) -> Placed:
        """Encode keys and values and keep them at the end of the session, all of them or none.

        Sent again when the connection breaks, which never stores a token twice: the position tells the service what
        it has already. The arrays must not change until this returns.

        Args:
            k: float32, float16 or bfloat16 `[layers, kv_heads, tokens, head_dim]`, or without the first axis for
                one layer; of NumPy or MLX.
            v: likewise, of k's shape and dtype.
            layer: index of the first layer.
            position: of the first token. None is the end as this handle knows it from its appends, or asks for it
                the first time. `"end"` is the end as the service has it, whoever else appends; such an append is not
                sent again when the connection breaks.
            minimal: leave out what was stored.

        Returns:
            where the tokens went, and unless minimal what was stored.

        Raises:
            TypeError, ValueError: k or v cannot be sent.
            InvalidRequest: they disagree with each other, or there is no codec for their head_dim.
            NonFinite: they have NaN, infinity or overflow.
            ShapeMismatch, CodecMismatch: they disagree with the session.
            PositionConflict: the session ends elsewhere; the next append without a position asks where.
            BodyTooLarge, InsufficientStorage: they do not fit.
        """
        return self._run(self._flows.append(k, v, layer, position, minimal=minimal))

    @overload
    def read(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: Literal["packed"] = "packed",
        layout: Layout = "linear",
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
    ) -> Range[Array]: ...
    def read(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: Form = "packed",
        layout: Layout = "linear",
    ) -> Range[Any]:
        """Read a range of tokens back.

        Args:
            start: position of the first token; None is the first the session still has.
            stop: position after the last; None, and whatever lies beyond, is the end.
            layers: the first layer and the one after the last; None is all.
            layout: `"ring"` gives all of a window, the token of position p in row p % window.
            form: `"packed"`; or the dtype of the values; or `"rotated"` for float32 before the inverse rotation.

        Returns:
            k and v, `Encoded` for "packed", else arrays [layers, kv_heads, tokens, head_dim].

        Raises:
            SessionNotFound: there is no such session.
            InvalidRequest: the session does not have those tokens or layers.
            AnswerTooLarge: they do not fit one answer.
        """
        return self._run(self._flows.read(start, stop, layers, form, layout))

    def truncate(self, length: int) -> SessionInfo:
        """Forget every token from a position on, in all layers; the next append goes there.

        Args:
            length: tokens to keep; layers that have fewer stay as they are.

        Raises:
            SessionNotFound: there is no such session.
            InvalidRequest: no layer has so many tokens, or the last of them has left the window.
        """
        return self._run(self._flows.truncate(length))

    def fork(self, session_id: str, length: int | None = None) -> "Session":
        """Make a session of this one's tokens. What both hold is stored once, whatever becomes of either.

        Args:
            session_id: of the new session.
            length: tokens to take; None is all.

        Returns:
            a handle on the new session.

        Raises:
            SessionNotFound: there is no such session.
            SessionExists: there is a session of the new id.
            InvalidRequest: as for `truncate`.
        """
        return Session(self._run, self._run(self._flows.fork(session_id, length)))

    def export(self, path: PathLike, progress: Progress | None = None) -> None:
        """Write the session to one safetensors file, which `Client.import_session` makes a session of again.

        The file is what the session was when the call arrived, whatever is appended meanwhile. Whether the connection
        breaks or the disk is full: it is there as a whole, or what was there before is.

        Args:
            path: of the file; it is replaced.
            progress: called again and again with the bytes so far and those of the whole file.

        Raises:
            SessionNotFound: there is no such session.
            OSError: the file cannot be written.
        """
        self._run(self._flows.export(Target(path, progress)))

    def info(self) -> SessionInfo:
        """Describe the session.

        Raises:
            SessionNotFound: there is no such session.
        """
        return self._run(self._flows.info())

    def create(self, **options: Unpack[SessionOptions]) -> SessionInfo:
        """Create the session before anything is appended; what is given is checked from then on.

        Args:
            options: see `SessionOptions`.

        Raises:
            InvalidRequest: an option is wrong.
            SessionExists: the session exists and disagrees.
        """
        return self._run(self._flows.create(options))

    def delete(self) -> None:
        """Forget the session.

        Raises:
            SessionNotFound: there is no such session.
        """
        self._run(self._flows.delete())

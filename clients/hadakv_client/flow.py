"""Flows of a session, which both clients run: calls with retries, and the position of the next append."""

from collections.abc import Mapping
from typing import Any, TypeVar

from hadakv_client.errors import SessionNotFound
from hadakv_client.http import calls
from hadakv_client.http.arguments import (
    CodecOptions,
    Position,
    TokenProgress,
    check_session_codec,
    check_session_id,
    session_codec,
)
from hadakv_client.http.connections import forks
from hadakv_client.http.files import FileBody, FileDestination
from hadakv_client.http.kv import KeysValues
from hadakv_client.parts.append import Append, append
from hadakv_client.parts.body_limit import BodyLimit
from hadakv_client.parts.read import Read, read
from hadakv_client.protocol import Call
from hadakv_client.results import AppendResult, Range, SessionInfo
from hadakv_client.retries import Flow, Retries, with_retries
from hadakv_client.turns import Changes

T = TypeVar("T")


class SessionFlows:
    """Flows of one session handle. It tracks the lengths of the session's layers.

    Args:
        session_id: session id.
        codec: codec for every append and for the creation of the session; None leaves it to the service.
        retries: retry policy for every call.
        body_limit: what the client knows of the limit for bodies.

    Raises:
        ValueError: the id is not valid, or the codec is not supported.
    """

    def __init__(
        self, session_id: str, codec: CodecOptions | None, retries: Retries, body_limit: BodyLimit | None = None
    ) -> None:
        self.id = check_session_id(session_id)
        self._codec = session_codec(codec)
        self._retries = retries
        self._body_limit = body_limit or BodyLimit()
        # Whether the codec of this handle is known to be that of the session.
        self._codec_is_checked = codec is None
        # Number of tokens of each layer that has any. None if only the service knows them.
        self._lengths: dict[int, int] | None = None
        self._changes = Changes()
        forks.register(self)

    def reset_after_fork(self) -> None:
        """Forget the lengths, as the parent may append, too."""
        self._lengths = None
        self._changes = Changes()

    def changing(self, flow: Flow[T]) -> Flow[T]:
        """Run a flow that changes the session. Only one may run at a time."""
        with self._changes.change():
            return (yield from flow)

    def append(
        self,
        kv: KeysValues,
        layer: int,
        position: Position | None,
        *,
        minimal: bool,
        progress: TokenProgress | None = None,
    ) -> Flow[AppendResult]:
        """Append tokens at a position. None is the end that this handle knows, or else the end in the service."""
        layers = range(layer, layer + kv.layers)
        if position is None:
            lengths = yield from self._known_lengths()
            end: int = min((lengths.get(each, 0) for each in layers), default=0)
            position = end
        if kv.is_cache:
            kv = kv.from_position(position)
        # Forget the lengths until the response arrives. If none arrives, only the service knows them.
        before, self._lengths = self._lengths, None
        arguments = Append(self.id, kv, layer, self._codec, minimal, progress)
        result = yield from append(arguments, position, self._body_limit, self._retries)
        self._codec_is_checked = True
        if before is not None:
            # A repeated append of tokens that are stored already may end before the end of the layer.
            self._lengths = before | {each: max(before.get(each, 0), result.length) for each in layers}
        return result

    def _known_lengths(self) -> Flow[dict[int, int]]:
        if self._lengths is None:
            try:
                yield from self._update_lengths(calls.info(self.id))
            except SessionNotFound:
                self._lengths = {}
        assert self._lengths is not None
        return self._lengths

    def read(self, arguments: Read) -> Flow[Range[Any]]:
        """Read a range of tokens. Check the codec of the handle first, as the response does not name the codec."""
        if not self._codec_is_checked:
            info = yield from with_retries(calls.info(self.id), self._retries)
            check_session_codec(self._codec, info.codec)
            self._codec_is_checked = info.codec is not None
        return (yield from read(arguments, self._retries))

    def truncate(self, length: int) -> Flow[SessionInfo]:
        """Delete tokens from a position on, and update the lengths."""
        call = calls.truncate(self.id, length)
        self._lengths = None
        return (yield from self._update_lengths(call))

    def fork(self, new_id: str, length: int | None) -> Flow["SessionFlows"]:
        """Create a session with tokens of this one, and return its flows."""
        flows = SessionFlows(new_id, None, self._retries, self._body_limit)
        flows._codec, flows._codec_is_checked = self._codec, self._codec_is_checked
        yield from flows._update_lengths(calls.fork(self.id, flows.id, length))
        return flows

    def export_to(self, destination: FileDestination) -> Flow[None]:
        """Write the session to a file."""
        return with_retries(calls.export_session(self.id, destination), self._retries)

    def import_from(self, file: FileBody) -> Flow[SessionInfo]:
        """Create the session from a file, and update the lengths."""
        return self._update_lengths(calls.import_session(self.id, file))

    def info(self) -> Flow[SessionInfo]:
        """Get the description of the session. Update the lengths, unless they changed meanwhile."""
        version = self._changes.version()
        info = yield from with_retries(calls.info(self.id), self._retries)
        if version is not None and version == self._changes.version():
            self._set_lengths(info)
        return info

    def create(self, options: Mapping[str, Any]) -> Flow[SessionInfo]:
        """Create the session, and update the lengths."""
        return self._update_lengths(calls.create(self.id, {"codec": self._codec, **options}))

    def _update_lengths(self, call: Call[SessionInfo]) -> Flow[SessionInfo]:
        """Make a call, and take the lengths from the description that it returns."""
        info = yield from with_retries(call, self._retries)
        self._set_lengths(info)
        return info

    def _set_lengths(self, info: SessionInfo) -> None:
        self._lengths = {span.layer: span.length for span in info.layers}

    def delete(self) -> Flow[None]:
        """Delete the session."""
        self._lengths = None
        self._codec_is_checked = self._codec is None
        return (yield from with_retries(calls.delete(self.id), self._retries))

"""What a client does in which order, without doing it: retries, and where the next append goes.

A flow is a generator. It yields a `Request` and is sent the `Response`, or is thrown a `TransportError`; it yields a
`Pause` and is sent nothing; it returns the result. The synchronous and the asynchronous client run the same flows.
"""

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hadakv_client.errors import Busy, SessionNotFound, TransportError
from hadakv_client.http import calls
from hadakv_client.http.calls import CodecOptions, Position
from hadakv_client.http.files import FileBody, Target
from hadakv_client.http.responses import Form, Layout
from hadakv_client.protocol import Call, Request, Response
from hadakv_client.results import Placed, Range, SessionInfo

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so long before going on."""

    seconds: float


Step = Request | Pause
Flow = Generator[Step, Response | None, T]


@dataclass(frozen=True, slots=True)
class Retries:
    """When a call is tried again, and after how long.

    A call that never left, or that the service was too busy for and said when to come back, is tried again. One whose
    connection broke or that timed out on the way is too, if doing it twice is the same as doing it once.

    Attributes:
        limit: how often, after the first attempt.
        first_seconds: the longest first pause; each further one may be twice as long.
        most_seconds: the longest pause of all; a service that wants to be left alone for longer is.
        random: gives a number from 0 to 1, which spreads clients that were turned away together.
    """

    limit: int = 3
    first_seconds: float = 0.1
    most_seconds: float = 10.0
    random: Callable[[], float] = random.random

    def pause(self, error: TransportError | Busy, attempt: int, request: Request) -> float | None:
        """Seconds before the next attempt; None where there is to be none.

        Args:
            error: what became of the attempt.
            attempt: which one it was, from 0.
            request: what was tried.
        """
        if attempt >= self.limit:
            return None
        longest = min(self.first_seconds * 2.0 ** min(attempt, 64), self.most_seconds)
        # Half of a pause is fixed, so that a service which restarts is given time.
        backoff = longest * (0.5 + self.random() / 2)
        if isinstance(error, TransportError):
            return backoff if request.idempotent or not error.sent else None
        if error.retry_after is None or error.retry_after > self.most_seconds:
            return None
        return error.retry_after + backoff


def attempts(call: Call[T], retries: Retries) -> Flow[T]:
    """Make a call, again and again where that is safe.

    Raises:
        HadakvError: what the last attempt failed with.
    """
    parse, attempt = call.parse, 0
    while True:
        try:
            response = yield call.request
            assert response is not None
            return parse(response)
        except (TransportError, Busy) as error:
            pause = retries.pause(error, attempt, call.request)
            if pause is None:
                raise
            if isinstance(error, TransportError) and error.sent:
                parse = call.parse_repetition or call.parse
        yield Pause(pause)
        attempt += 1


class SessionFlows:
    """What one session's handle does, and what it knows of the session's length.

    Args:
        session: the session's id.
        codec: sent with every append and when the session is created; None leaves it to the service.
        retries: for every call.

    Raises:
        ValueError: the id is not valid, or there is no such codec.
    """

    def __init__(self, session: str, codec: CodecOptions | None, retries: Retries) -> None:
        self.id = calls.checked_id(session)
        self._codec = calls.session_codec(codec)
        self._retries = retries
        # Tokens of each layer, those without any left out; None while only the service knows.
        self._lengths: dict[int, int] | None = None

    def append(self, k: Any, v: Any, layer: int, position: Position | None, *, minimal: bool) -> Flow[Placed]:
        """Append at a position; None is the end as far as this handle, or else the service, knows."""
        kv = calls.streams(k, v)
        layers = range(layer, layer + (kv[0].shape[0] if kv[0].ndim == 4 else 1))
        if position is None:
            lengths = yield from self._known_lengths()
            end: int = min((lengths.get(each, 0) for each in layers), default=0)
            position = end
        call = calls.append(self.id, kv, layer, position, self._codec, minimal=minimal)
        # Until the answer is here, and if none comes, only the service knows.
        before, self._lengths = self._lengths, None
        placed = yield from attempts(call, self._retries)
        if before is not None:
            # An append that was stored before ends before the end.
            self._lengths = before | {each: max(before.get(each, 0), placed.length) for each in layers}
        return placed

    def _known_lengths(self) -> Flow[dict[int, int]]:
        if self._lengths is None:
            try:
                yield from self.info()
            except SessionNotFound:
                self._lengths = {}
        assert self._lengths is not None
        return self._lengths

    def read(
        self,
        start: int | None,
        stop: int | None,
        layers: tuple[int, int] | None,
        form: Form,
        layout: Layout,
    ) -> Flow[Range[Any]]:
        """Read a range of tokens back."""
        return attempts(calls.read(self.id, start, stop, layers, form, layout), self._retries)

    def truncate(self, length: int) -> Flow[SessionInfo]:
        """Forget tokens, and learn the lengths that are left."""
        self._lengths = None
        return self._described(calls.truncate(self.id, length))

    def fork(self, new: str, length: int | None) -> Flow["SessionFlows"]:
        """Make a session of this one's tokens, and what a handle on it needs."""
        flows = SessionFlows(new, None, self._retries)
        flows._codec = self._codec  # checked already
        yield from flows._described(calls.fork(self.id, flows.id, length))
        return flows

    def export(self, target: Target) -> Flow[None]:
        """Write the session to a file."""
        return attempts(calls.export(self.id, target), self._retries)

    def import_(self, file: FileBody) -> Flow[SessionInfo]:
        """Make the session of a file, and learn its lengths."""
        return self._described(calls.import_(self.id, file))

    def info(self) -> Flow[SessionInfo]:
        """Ask for the session's description, and learn its lengths from it."""
        return self._described(calls.info(self.id))

    def create(self, options: Mapping[str, Any]) -> Flow[SessionInfo]:
        """Create the session."""
        return self._described(calls.create(self.id, {"codec": self._codec, **options}))

    def _described(self, call: Call[SessionInfo]) -> Flow[SessionInfo]:
        info = yield from attempts(call, self._retries)
        self._lengths = {span.layer: span.length for span in info.layers}
        return info

    def delete(self) -> Flow[None]:
        """Delete the session."""
        self._lengths = None
        return attempts(calls.delete(self.id), self._retries)

"""Append in one request if it fits, else in several."""

from dataclasses import dataclass
from typing import Any, Literal

from hadakv_client.errors import HadakvError, NonFinite, PositionConflict, Problem
from hadakv_client.http import calls
from hadakv_client.http.arguments import Position, TokenProgress
from hadakv_client.http.body import MAX_TENSOR_NBYTES
from hadakv_client.http.kv import KeysValues
from hadakv_client.parts.body_limit import PART_NBYTES, BodyLimit
from hadakv_client.parts.joined import JoinedStream
from hadakv_client.protocol import Call
from hadakv_client.results import AppendResult, StoredAppend
from hadakv_client.retries import Flow, Retries, with_retries

# More than the bytes of a body besides the elements of its tensors.
_ENVELOPE_NBYTES = 1024


@dataclass(frozen=True, slots=True)
class Append:
    """Arguments of an append, without its position.

    Attributes:
        session: valid session id.
        kv: keys and values.
        layer: index of the first layer.
        codec: result of `session_codec`.
        minimal: omit the stored streams.
        progress: called after each part with the tokens that are stored, and the number of all tokens.
    """

    session: str
    kv: KeysValues
    layer: int
    codec: dict[str, Any] | None
    minimal: bool
    progress: TokenProgress | None

    def call(self, position: Position, layers: slice = slice(None), tokens: slice = slice(None)) -> Call[AppendResult]:
        """Build the request that appends some tokens of some layers."""
        part = self.kv.part(layers, tokens)
        layer = self.layer + (layers.start or 0)
        return calls.append(self.session, (part.k, part.v), layer, position, self.codec, minimal=self.minimal)

    def report(self, tokens: int) -> None:
        """Call `progress`."""
        if self.progress is not None:
            self.progress(tokens, self.kv.tokens)


def append(arguments: Append, position: Position, limit: BodyLimit, retries: Retries) -> Flow[AppendResult]:
    """Append in one request, which stores all or nothing. Send parts only if the request would be too large.

    Args:
        arguments: what to append.
        position: position of the first token.
        limit: the client's knowledge of the limit for bodies.
        retries: retry policy for each request.
    """
    kv = arguments.kv
    is_possible = max(kv.k.nbytes, kv.v.nbytes) <= MAX_TENSOR_NBYTES
    max_nbytes = yield from limit.for_body(kv.nbytes, retries)
    if is_possible and kv.nbytes <= max_nbytes:
        call = arguments.call(position)
        try:
            result = yield from with_retries(call, retries)
        except Problem as error:
            limit.learn(error, _body_nbytes(call))
            if not 0 < kv.nbytes <= kv.layers * kv.tokens * _capacity(limit):
                # Not even one token of one layer fits.
                raise
        else:
            arguments.report(kv.tokens)
            return result
    return (yield from _PartwiseAppend(arguments, position, limit, retries).run())


def _capacity(limit: BodyLimit) -> int:
    """Return the bytes of elements that a part may have."""
    return max(0, min(limit.nbytes, PART_NBYTES) - _ENVELOPE_NBYTES)


def _body_nbytes(call: Call[AppendResult]) -> int:
    assert call.request.body is not None
    return call.request.body.nbytes


class _PartwiseAppend:
    """Append in several requests, in order of tokens. Each request but the first has a position, so it is repeatable.

    A part has all layers if one token of them fits a request, else some of them.
    """

    def __init__(self, arguments: Append, position: Position, limit: BodyLimit, retries: Retries) -> None:
        self._arguments = arguments
        self._kv = arguments.kv
        self._position: int | Literal["end"] = position
        self._limit = limit
        self._retries = retries
        # Tokens that are stored in all layers.
        self._done = 0
        self._created = False
        axes = (self._kv.layers, self._kv.tokens)
        self._streams = None if arguments.minimal else tuple(JoinedStream(name, *axes) for name in "kv")
        self._body_nbytes = 0

    def run(self) -> Flow[AppendResult]:
        """Append all parts.

        Raises:
            HadakvError: a part failed. The error says what is stored.
        """
        self._check_shapes()
        try:
            while self._done < self._kv.tokens:
                yield from self._append_next()
                self._arguments.report(self._done)
        except HadakvError as error:
            self._describe_rest(error)
            raise
        return self._result()

    def _check_shapes(self) -> None:
        k, v = self._kv.k.shape, self._kv.v.shape
        if (k[0], k[2]) != (v[0], v[2]):
            raise ValueError(f"k and v must have the same layers and tokens, but are {list(k)} and {list(v)}")

    def _append_next(self) -> Flow[None]:
        """Append the next tokens to all layers: as many as fit."""
        layers, tokens = self._part_size()
        while True:
            try:
                yield from self._append_tokens(layers, tokens)
            except PositionConflict as error:
                tokens = yield from self._without_stored(error, tokens)
            except Problem as error:
                self._limit.learn(error, self._body_nbytes)
                before, (layers, tokens) = layers * tokens, self._part_size()
                if layers * tokens >= before:
                    raise
            else:
                self._done += tokens
                return

    def _part_size(self) -> tuple[int, int]:
        """Return how many layers and tokens the next part has."""
        kv, capacity = self._kv, _capacity(self._limit)
        token_nbytes = kv.nbytes // kv.tokens
        if token_nbytes <= capacity:
            return kv.layers, min(capacity // token_nbytes, kv.tokens - self._done)
        return max(1, capacity // (token_nbytes // kv.layers)), 1

    def _append_tokens(self, layers: int, tokens: int) -> Flow[None]:
        """Append the next tokens, with at most `layers` layers in each request."""
        span = slice(self._done, self._done + tokens)
        for first in range(0, self._kv.layers, layers):
            part = slice(first, min(first + layers, self._kv.layers))
            position = self._position if self._position == "end" else self._position + self._done
            call = self._arguments.call(position, part, span)
            self._body_nbytes = _body_nbytes(call)
            result = yield from with_retries(call, self._retries)
            self._position = result.position - self._done
            self._created |= result.created
            if self._streams is not None:
                assert isinstance(result, StoredAppend)
                for stream, stored in zip(self._streams, (result.k, result.v), strict=True):
                    stream.add(stored, part, span)

    def _without_stored(self, error: PositionConflict, tokens: int) -> Flow[int]:
        """Return how many tokens to send instead, if the session has some of these tokens already.

        This happens when an append is repeated that failed half-way, with parts of another size.

        Raises:
            PositionConflict: the conflict is another one.
        """
        if self._position == "end":
            raise error
        start = self._position + self._done
        if start < error.length < start + tokens:
            # The service compares tokens that end where the session ends.
            return error.length - start
        if self._arguments.minimal and error.length >= start + tokens:
            window_start = yield from self._window_start()
            if start + tokens <= window_start < self._position + self._kv.tokens:
                # These tokens were stored, and have left the window since. Compare those that are still in it.
                self._done = window_start - self._position
                return self._part_size()[1]
        raise error

    def _window_start(self) -> Flow[int]:
        """Return the first position that all layers of the append still hold."""
        layers = range(self._arguments.layer, self._arguments.layer + self._kv.layers)
        info = yield from with_retries(calls.info(self._arguments.session), self._retries)
        return max((span.start for span in info.layers if span.layer in layers), default=0)

    def _describe_rest(self, error: HadakvError) -> None:
        error.stored_tokens = self._done
        if isinstance(error, NonFinite) and error.token is not None:
            # The service counts from the start of the part.
            error.token += self._done
        if self._position == "end":
            return
        error.next_position = self._position + self._done
        error.add_note(
            f"{self._done} of {self._kv.tokens} tokens are stored. Repeat the append with position={self._position}, "
            f"or append the rest at position {error.next_position}."
        )

    def _result(self) -> AppendResult:
        assert self._position != "end"
        tokens = self._kv.tokens
        result = (self._arguments.session, self._position, tokens, self._position + tokens, self._created)
        if self._streams is None:
            return AppendResult(*result)
        return StoredAppend(*result, *(stream.result() for stream in self._streams))

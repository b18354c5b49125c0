"""Read in one request if the response is small enough, else in several."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_client.errors import InvalidRequest, ResponseTooLarge, SessionChanged
from hadakv_client.http import calls
from hadakv_client.http.arguments import TokenProgress
from hadakv_client.http.responses import Form, Layout
from hadakv_client.parts.body_limit import PART_NBYTES
from hadakv_client.parts.joined import JoinedStream
from hadakv_client.protocol import Call
from hadakv_client.results import Range
from hadakv_client.retries import Flow, Retries, with_retries


@dataclass(frozen=True, slots=True)
class Read:
    """Arguments of a read.

    Attributes:
        session: valid session id.
        start: position of the first token; None for the first that is stored.
        stop: position after the last token; None for the end.
        layers: first layer, and the layer after the last; None for all.
        form: packed, or the dtype of the values.
        layout: linear, or the rows of a ring.
        out: pair of streams to write to; None allocates them.
        progress: called after each part with the tokens that have arrived, and the number of all tokens.
    """

    session: str
    start: int | None
    stop: int | None
    layers: tuple[int, int] | None
    form: Form
    layout: Layout
    out: tuple[Any, Any] | None
    progress: TokenProgress | None

    def call(self) -> Call[Range[Any]]:
        """Build the request that reads everything."""
        return calls.read(self.session, self.start, self.stop, self.layers, self.form, self.layout)

    def part(self, start: int, stop: int, layers: tuple[int, int] | None) -> Call[Range[Any]]:
        """Build the request that reads some tokens of some layers, in linear order."""
        return calls.read(self.session, start, stop, layers, self.form)

    def joined(self, layers: int, tokens: int) -> tuple[JoinedStream, JoinedStream]:
        """Return streams for this number of layers and tokens, or rows of a ring."""
        k, v = self.out or (None, None)
        return JoinedStream("k", layers, tokens, k), JoinedStream("v", layers, tokens, v)

    def report(self, tokens: int, total: int) -> None:
        """Call `progress`."""
        if self.progress is not None:
            self.progress(tokens, total)


def read(arguments: Read, retries: Retries) -> Flow[Range[Any]]:
    """Read in one request. Read in parts only if the service rejects that as too large.

    Raises:
        SessionChanged: tokens were deleted or replaced between two parts.
    """
    try:
        found = yield from with_retries(arguments.call(), retries)
    except ResponseTooLarge as error:
        extent = _Extent.of(error)
        if extent is None:
            raise
        return (yield from _PartwiseRead(arguments, extent, error, retries).run())
    arguments.report(found.stop - found.start, found.stop - found.start)
    return found if arguments.out is None else _copied(arguments, found)


def _copied(arguments: Read, found: Range[Any]) -> Range[Any]:
    """Return the range in the arrays of `out`."""
    layers, _, tokens, _ = (found.k.packed if arguments.form == "packed" else found.k).shape
    streams = arguments.joined(layers, tokens)
    for stream, part in zip(streams, (found.k, found.v), strict=True):
        stream.add(part, slice(None), slice(None))
    return replace(found, k=streams[0].result(), v=streams[1].result())


@dataclass(frozen=True, slots=True)
class _Extent:
    """Range of a read whose response was too large, as the service reports it with the rejection.

    Attributes:
        start: position of the first token.
        stop: position after the last token.
        length: number of tokens in these layers.
        layers: indices of the layers.
        window: number of rows of a ring; None for linear layout.
    """

    start: int
    stop: int
    length: int
    layers: tuple[int, ...]
    window: int | None

    @classmethod
    def of(cls, error: ResponseTooLarge) -> "_Extent | None":
        """Return the extent; None if the service does not report it."""
        fields, layers = error.fields, error.fields.get("layers")
        if error.tokens is None or not isinstance(layers, list):
            return None
        start, stop, length, window = (fields.get(name, 0) for name in ("start", "stop", "length", "window"))
        if not all(isinstance(number, int) for number in (start, stop, length, *layers)):
            return None
        return cls(start, stop, length, tuple(layers), window or None)


class _PartwiseRead:
    """Read in several requests, in order of tokens, into arrays that are allocated once.

    A part has all layers if one token of them fits a response, else some of them.
    """

    def __init__(self, arguments: Read, extent: _Extent, error: ResponseTooLarge, retries: Retries) -> None:
        self._arguments = arguments
        self._extent = extent
        self._retries = retries
        self._revision: str | None = None
        # Tokens and layers in one request.
        self._tokens = extent.stop - extent.start
        self._layers = len(extent.layers)
        rows = self._tokens if extent.window is None else extent.window
        self._streams = arguments.joined(self._layers, rows)
        self._make_smaller(error, rows)

    def run(self) -> Flow[Range[Any]]:
        """Read all parts."""
        extent, arguments = self._extent, self._arguments
        done, total = 0, extent.stop - extent.start
        is_first = True
        # A ring without tokens is one empty part, which says how many heads and elements there are.
        while is_first or done < total:
            tokens = min(self._tokens, total - done)
            try:
                yield from self._read_tokens(extent.start + done, extent.start + done + tokens)
            except ResponseTooLarge as error:
                # Not one token of these layers fits, or the service was restarted with a smaller limit.
                self._make_smaller(error, tokens)
                continue
            is_first = False
            done += tokens
            arguments.report(done, total)
        k, v = (stream.result() for stream in self._streams)
        return Range(
            extent.start,
            extent.stop,
            extent.length,
            k,
            v,
            session=arguments.session,
            layers=extent.layers,
            revision=self._revision,
        )

    def _make_smaller(self, error: ResponseTooLarge, tokens: int) -> None:
        """Reduce the size of parts, because a part of `tokens` tokens was too large.

        Raises:
            ResponseTooLarge: a part cannot be smaller.
        """
        # Halve a part that was too large although the service said that it fits.
        fitting = min(error.tokens or 0, max(tokens // 2, 1))
        if fitting and tokens > 1:
            # `fitting` tokens take about `limit` bytes, so this number of tokens takes about `PART_NBYTES`.
            self._tokens = max(1, min(fitting, fitting * PART_NBYTES // max(error.limit, 1)))
        elif self._layers > 1:
            self._tokens, self._layers = 1, (self._layers + 1) // 2
        else:
            raise error

    def _read_tokens(self, start: int, stop: int) -> Flow[None]:
        """Read some tokens of all layers."""
        for first, layers in self._layer_groups():
            try:
                part = yield from with_retries(self._arguments.part(start, stop, self._range(layers)), self._retries)
            except ResponseTooLarge:
                raise
            except InvalidRequest as error:
                raise self._changed(str(error)) from error
            self._check(part, start, stop, layers)
            for stream, found in zip(self._streams, (part.k, part.v), strict=True):
                stream.add(found, slice(first, first + len(layers)), self._rows(start, stop))

    def _layer_groups(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield the place of the first layer of each request, and the indices of its layers."""
        for first in range(0, len(self._extent.layers), self._layers):
            yield first, self._extent.layers[first : first + self._layers]

    def _range(self, layers: tuple[int, ...]) -> tuple[int, int] | None:
        is_all = len(layers) == len(self._extent.layers)
        return self._arguments.layers if is_all else (layers[0], layers[-1] + 1)

    def _rows(self, start: int, stop: int) -> slice | NDArray[np.intp]:
        """Return the rows of the result for these positions."""
        window = self._extent.window
        if window is None:
            return slice(start - self._extent.start, stop - self._extent.start)
        return np.arange(start, stop) % window

    def _check(self, part: Range[Any], start: int, stop: int, layers: tuple[int, ...]) -> None:
        """Check that a part is of the same session as the parts before it."""
        if self._revision is None:
            self._revision = part.revision
        if part.revision != self._revision:
            raise self._changed("tokens were deleted or replaced")
        if (part.start, part.stop, part.layers) != (start, stop, layers):
            raise self._changed(f"tokens {start} to {stop} of layers {list(layers)} are no longer there")

    def _changed(self, reason: str) -> SessionChanged:
        return SessionChanged(f"session {self._arguments.session!r} changed while it was read in parts: {reason}")

"""RangeTensor: one tensor of a range of a session, decoded as a whole or piece by piece."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Backend, Encoded
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session

ReadForm = Literal["packed", "norms", "float16", "float32", "bfloat16", "rotated"]
# Size of one piece. A larger one would delay other jobs of the device, and take more memory for a slow client.
PIECE_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of a session in consecutive rows of a response.

    Attributes:
        row: first row.
        start: position of the token in that row.
        tokens: number of tokens.
    """

    row: int
    start: int
    tokens: int

    def clip(self, first: int, last: int) -> "Segment":
        """Return the part in rows `first` to `last`; it may have no tokens."""
        a, b = max(self.row, first), min(self.row + self.tokens, last)
        return Segment(a, self.start + a - self.row, max(b - a, 0))


@dataclass(frozen=True, slots=True)
class Range:
    """Tokens of a response: layers of one value of a session, and the row of each token.

    Attributes:
        session: value of the session. Later changes of the session do not affect the response.
        first_layer: first layer.
        layers: number of layers.
        rows: number of rows of each layer and head. Rows without a segment are zero.
        segments: tokens of the rows, in order.
        backend: backend that decodes.
    """

    session: Session
    first_layer: int
    layers: int
    rows: int
    segments: tuple[Segment, ...]
    backend: Backend

    def pages(self) -> list[Page]:
        """Return every page that has one of the tokens."""
        parts = self.session.parts(self.first_layer, self.first_layer + self.layers)
        runs = [run for _, run, _ in parts]
        stops = [(each.start, each.start + each.tokens) for each in self.segments]
        return list(dict.fromkeys(chain.from_iterable(run.pages_between(*stop) for run in runs for stop in stops)))


@dataclass(frozen=True, slots=True)
class RangeTensor:
    """One tensor of a response, `[layers, kv_heads, rows, width]`.

    Attributes:
        range_: the tokens.
        stream: 0 for K, 1 for V.
        form: form of the response.
        name: name of the tensor: `packed`, `norms` or `values`.
        width: elements of a row.
        dtype: type of an element.
    """

    range_: Range
    stream: int
    form: ReadForm
    name: str
    width: int
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor."""
        range_ = self.range_
        return range_.layers, range_.session.kv_heads or 0, range_.rows, self.width

    def array(self) -> NDArray[Any]:
        """Return the whole tensor. It shares no memory with a page. Runs on the device thread."""
        layers, heads, rows, _ = self.shape
        array = self._read(slice(0, layers), slice(0, heads), slice(0, rows))
        return array.copy() if self.form in ("packed", "norms") else array

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[Callable[[], memoryview]]:
        """Yield functions that return the bytes of the tensor piece by piece, in C order, on the device thread."""
        for box in boxes(self.shape[:3], self.width * self.dtype.itemsize):
            yield partial(self._bytes, *box)

    def _bytes(self, layers: slice, heads: slice, rows: slice) -> memoryview:
        array = np.ascontiguousarray(self._read(layers, heads, rows))
        return array.reshape(-1).view(np.uint8).data

    def _read(self, layers: slice, heads: slice, rows: slice) -> NDArray[Any]:
        shape = (*(part.stop - part.start for part in (layers, heads, rows)), self.width)
        parts = list(self._parts(layers, heads, rows))
        if len(parts) == 1 and parts[0][2].shape == shape:
            # Nothing else goes into this part of the tensor, so it needs no copy.
            return parts[0][2]
        array = np.zeros(shape, self.dtype)
        for layer, row, values in parts:
            array[layer : layer + values.shape[0], :, row : row + values.shape[2]] = values
        return array

    def _parts(self, layers: slice, heads: slice, rows: slice) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Yield the values of each run of layers and each segment, after their first layer and first row."""
        first, last = (self.range_.first_layer + layer for layer in (layers.start, layers.stop))
        for segment in (each.clip(rows.start, rows.stop) for each in self.range_.segments):
            if not segment.tokens:
                continue
            for layer, run, part in self.range_.session.parts(first, last):
                pages = run.read(part, segment.start, segment.start + segment.tokens)
                values = self._values([page.load()[self.stream] for page in pages], heads)
                yield layer - first, segment.row - rows.start, values

    def _values(self, streams: Sequence[Encoded], heads: slice) -> NDArray[Any]:
        """Return the rows of consecutive encoded tokens, as the response has them."""
        backend, spec = self.range_.backend, self.range_.session.specs[self.stream]

        def joined(arrays: list[Any]) -> Any:
            return arrays[0] if len(arrays) == 1 else backend.concatenate(arrays, 2)

        def packed() -> Any:
            return joined([encoded.packed[:, heads] for encoded in streams])

        def norms() -> Any:
            return joined([encoded.norms[:, heads] for encoded in streams])

        if self.name == "values" and self.form != "packed":
            encoded = Encoded(packed(), norms())
            dtype = "float32" if self.form == "rotated" else self.form
            values: NDArray[Any] = backend.decode(encoded, spec, dtype, inverse=self.form != "rotated")
            return values
        stored: NDArray[Any] = backend.to_host(norms() if self.name == "norms" else packed())
        return stored.view(self.dtype)


def range_tensors(range_: Range, stream: int, form: ReadForm) -> list[RangeTensor]:
    """Return the tensors of a stream in the response."""
    spec = range_.session.specs[stream]
    norms: tuple[str, int, np.dtype[Any]] = ("norms", spec.norms, np.dtype(np.float32))
    if form == "norms":
        named = [norms]
    elif form != "packed":
        named = [("values", spec.head_dim, DTYPES["float32" if form == "rotated" else form])]
    elif spec.codec.kind == "float16":
        named = [("values", spec.head_dim, DTYPES["float16"])]
    else:
        named = [("packed", spec.row_bytes, np.dtype(np.uint8)), norms]
    return [RangeTensor(range_, stream, form, *each) for each in named]


def boxes(shape: Sequence[int], row_nbytes: int) -> Iterator[tuple[slice, slice, slice]]:
    """Divide a tensor into parts that are contiguous in C order, of about `PIECE_NBYTES`.

    Args:
        shape: layers, heads and rows.
        row_nbytes: bytes of a row.

    Yields:
        Layers, heads and rows of each part, in order.
    """
    layers, heads, rows = shape
    if not layers * heads * rows * row_nbytes:
        return
    head_nbytes = rows * row_nbytes
    if heads * head_nbytes <= PIECE_NBYTES:
        for part in _spans(layers, PIECE_NBYTES // (heads * head_nbytes)):
            yield part, slice(0, heads), slice(0, rows)
        return
    row_step = max(PIECE_NBYTES // row_nbytes, 1)
    if row_step > PAGE_TOKENS:
        # Pieces of whole pages need fewer copies.
        row_step -= row_step % PAGE_TOKENS
    for layer in _spans(layers, 1):
        for head in _spans(heads, max(PIECE_NBYTES // head_nbytes, 1)):
            for row in _spans(rows, rows if head_nbytes <= PIECE_NBYTES else row_step):
                yield layer, head, row


def _spans(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))

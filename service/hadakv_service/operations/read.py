"""Reading back: a range of tokens, packed or decoded, put together piece by piece as a job of the device."""

from collections.abc import Collection, Generator, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Backend, CodecSpec, Encoded, Stream
from hadakv_service.device.chunks import run_to_completion
from hadakv_service.device.jobs import ChunkedJob
from hadakv_service.errors import InvalidRequest, ResponseTooLarge, ServiceError
from hadakv_service.sessions.page import Page, on_host
from hadakv_service.sessions.session import Session
from hadakv_service.storage.session_store import Key, SessionStore
from hadakv_service.wire import responses, serialization

ReadForm = Literal["packed", "float16", "float32", "bfloat16", "rotated"]
# What is decoded at a time where the backend does not say: a launch should be worth it.
CHUNK_NBYTES = 64 << 20


class ReadRequest(NamedTuple):
    """What is to be read.

    Attributes:
        start, stop: positions; None for the first or last there is.
        layers: the first, and the one after the last; None for all.
        form: how.
        ring: whether all of the window, in the order of a ring buffer.
    """

    start: int | None = None
    stop: int | None = None
    layers: tuple[int, int] | None = None
    form: ReadForm = "packed"
    ring: bool = False


class ReadOperation(ChunkedJob[responses.Range]):
    """Reads a range of a session.

    Args:
        key: whose.
        wanted: what.
        store: where it is.
        backend: decodes it.
        limit: bytes that an answer may have.
    """

    def __init__(self, key: Key, wanted: ReadRequest, store: SessionStore, backend: Backend, limit: int) -> None:
        self.key: Hashable = key
        self._key = key
        self._request = wanted
        self._store = store
        self._backend = backend
        self._limit = limit
        self._nbytes: int | None = None

    @property
    def nbytes(self) -> int:  # type: ignore[override]  # known only once it is asked for
        """About what the answer will have, as far as that can be told beforehand."""
        if self._nbytes is None:
            try:
                entry = self._store.find(self._key)
                self._nbytes = self._size(entry.session)[1] if entry else 0
            except ServiceError:
                # It will be told when it begins.
                self._nbytes = 0
        return self._nbytes

    def _size(self, session: Session) -> tuple[int, int]:
        """Vectors of each stream, and bytes of the answer."""
        a, b, start, stop = session.range(*self._request[:3])
        if not session.has_shape:
            return 0, 0
        tokens = session.window or 0 if self._request.ring else stop - start
        rows = (b - a) * (session.kv_heads or 0) * tokens
        # An answer without layers has axes all the same, which NumPy must be able to count.
        rows = rows or (session.kv_heads or 0) * tokens
        return rows, rows * sum(row_nbytes(spec, self._request.form) for spec in session.specs)

    def prepare(self, batch: Collection[Hashable]) -> Sequence[Stream]:  # noqa: ARG002 - nothing is stored
        """Check the range. Pages of the value that is read stay wherever they are until that is done."""
        session = self._store.get(self._key).session
        self._store.touch(self._key)
        if self._request.ring and session.window is None:
            raise InvalidRequest([("layout", "the session has no window to make a ring of")])
        check_response_size("layout" if self._request.ring else "stop", self._size(session)[1], self._limit)
        self._session = session
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> responses.Range:
        """Read all of it at once."""
        return run_to_completion(self.complete_chunked(encoded))

    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, responses.Range]:  # noqa: ARG002 - none was
        """The same, pausing after each piece."""
        session, ring = self._session, self._request.ring
        a, b, start, stop = session.range(*self._request[:3])
        _, length, _ = session.common_range(a, b - a) if a < b else (0, 0, 0)
        answer: responses.Range = {"start": start, "stop": stop, "length": length, "k": None, "v": None}
        if session.has_shape:
            tokens = session.window or 0 if ring else stop - start
            target = _OutputArrays(session, (b - a, tokens), self._request.form, self._backend)
            nbytes = self._backend.slice_nbytes or CHUNK_NBYTES
            for layer, position, page in session.iter_chunks(a, b, start, stop, nbytes, self._backend):
                first = position - start
                rows = (position + np.arange(page.tokens)) % tokens if ring else slice(first, first + page.tokens)
                target.add(layer - a, rows, page)
                yield
            answer["k"], answer["v"] = target.to_response()
        return answer

    def roll_back(self) -> None:
        """Nothing to undo."""


class _OutputArrays:
    """The arrays of an answer, filled piece by piece."""

    def __init__(self, session: Session, axes: tuple[int, int], form: ReadForm, backend: Backend) -> None:
        self._form = form
        self._backend = backend
        self._specs = session.specs
        layers, tokens = axes
        lead = (layers, session.kv_heads or 0, tokens)
        # Zeros, as a ring may have rows that no token is in yet.
        self._arrays = [
            {name: np.zeros((*lead, width), dtype) for name, width, dtype in _columns(spec, form)}
            for spec in session.specs
        ]

    def add(self, layer: int, tokens: slice | NDArray[Any], page: Page) -> None:
        """Put a page where it belongs."""
        layers = slice(layer, layer + page.layers)
        for stream, spec, arrays in zip(page.streams, self._specs, self._arrays, strict=True):
            for name, values in self._in_form(stream, spec).items():
                arrays[name][layers, :, tokens] = values

    def _in_form(self, stream: Encoded, spec: CodecSpec) -> dict[str, NDArray[Any]]:
        if self._form == "packed":
            return serialization.stream_arrays(on_host(stream, self._backend), spec)
        dtype = "float32" if self._form == "rotated" else self._form
        return {"values": self._backend.decode(stream, spec, dtype, inverse=self._form != "rotated")}

    def to_response(self) -> list[dict[str, Any]]:
        """Both streams as they stand in an answer."""
        return [{part: serialization.tensor(array) for part, array in arrays.items()} for arrays in self._arrays]


def _columns(spec: CodecSpec, form: ReadForm) -> list[tuple[str, int, np.dtype[Any]]]:
    """Name, width and dtype of the arrays that a stream is answered as."""
    if form != "packed":
        return [("values", spec.head_dim, DTYPES["float32" if form == "rotated" else form])]
    if spec.codec.kind == "float16":
        return [("values", spec.head_dim, DTYPES["float16"])]
    return [("packed", spec.row_bytes, np.dtype(np.uint8)), ("norms", spec.norms, np.dtype(np.float32))]


def row_nbytes(spec: CodecSpec, form: str) -> int:
    """Bytes one vector takes in an answer."""
    return spec.nbytes if form == "packed" else spec.head_dim * (2 if form in ("float16", "bfloat16") else 4)


def check_response_size(field: str, nbytes: int, limit: int) -> None:
    """Refuse an answer larger than any request could be, before its memory is allocated.

    Raises:
        AnswerTooLarge: it is.
    """
    if nbytes > limit:
        raise ResponseTooLarge(field, nbytes, limit)

"""ReadOperation: read a range of tokens, packed or decoded."""

from collections.abc import Collection, Generator, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Backend, CodecSpec, Encoded, Stream
from hadakv_service.device.jobs import ChunkedJob, run_to_completion
from hadakv_service.errors import InvalidRequest, ResponseTooLarge, ServiceError
from hadakv_service.sessions.page import Page, on_host
from hadakv_service.sessions.session import Session
from hadakv_service.storage.session_store import Key, SessionStore
from hadakv_service.wire import responses, serialization

ReadForm = Literal["packed", "norms", "float16", "float32", "bfloat16", "rotated"]
# Bytes to decode in one call, if the backend states no preference: enough to be worth a kernel launch.
CHUNK_NBYTES = 64 << 20


class ReadRequest(NamedTuple):
    """Parameters of a read.

    Attributes:
        start: first position; None for the first that is stored.
        stop: position after the last; None for the end.
        layers: first layer, and layer after the last; None for all.
        form: packed, the norms alone, or the dtype to decode to; `rotated` is float32 without the inverse rotation.
        ring: whether to read the whole window in the order of a ring buffer.
    """

    start: int | None = None
    stop: int | None = None
    layers: tuple[int, int] | None = None
    form: ReadForm = "packed"
    ring: bool = False


class ReadOperation(ChunkedJob[responses.Range]):
    """Read a range of a session.

    Args:
        key: key of the session.
        request: range to read.
        store: store of the session.
        backend: backend that decodes the tokens.
        limit: maximum bytes of the response.
    """

    def __init__(self, key: Key, request: ReadRequest, store: SessionStore, backend: Backend, limit: int) -> None:
        self.key: Hashable = key
        self._key = key
        self._request = request
        self._store = store
        self._backend = backend
        self._limit = limit
        self._nbytes: int | None = None

    @property
    def nbytes(self) -> int:  # type: ignore[override]  # computed on first use
        """Estimated bytes of the response; 0 if the range is invalid."""
        if self._nbytes is None:
            try:
                record = self._store.find(self._key)
                self._nbytes = self._size(record.session)[1] if record else 0
            except ServiceError:
                # `prepare` reports the error.
                self._nbytes = 0
        return self._nbytes

    def _size(self, session: Session) -> tuple[int, int]:
        """Return the number of vectors of each stream, and the bytes of the response."""
        a, b, start, stop = session.range(*self._request[:3])
        if not session.has_shape:
            return 0, 0
        tokens = session.window or 0 if self._request.ring else stop - start
        rows = (b - a) * (session.kv_heads or 0) * tokens
        # NumPy must be able to represent the axes of a response without layers or elements too.
        rows = rows or (session.kv_heads or 0) * tokens
        return rows, rows * (sum(row_nbytes(spec, self._request.form) for spec in session.specs) or 1)

    def prepare(self, batch: Collection[Hashable]) -> Sequence[Stream]:  # noqa: ARG002 - nothing is reserved
        """Check the range. Return no streams.

        The session value is kept until the read is complete, so its pages stay in memory or on disk.
        """
        session = self._store.get(self._key).session
        self._store.touch(self._key)
        if self._request.ring and session.window is None:
            raise InvalidRequest([("layout", "cannot be a ring: the session has no window")])
        self._check_size(session)
        self._session = session
        self._store.pool.count_read(session.pages_in(*session.range(*self._request[:3])))
        return ()

    def _check_size(self, session: Session) -> None:
        """Reject a read whose response would be too large. The problem says what was asked for, and what fits.

        Raises:
            ResponseTooLarge: the response would be larger than the limit.
        """
        nbytes = self._size(session)[1]
        if nbytes <= self._limit:
            return
        a, b, start, stop = session.range(*self._request[:3])
        window = session.window if self._request.ring else None
        tokens = self._limit // (nbytes // (window or stop - start))
        advice = f"{tokens} tokens of these layers fit" if tokens else "no token of all these layers fits"
        raise ResponseTooLarge(
            "stop" if window is None else "layout",
            nbytes,
            self._limit,
            f"{advice} one response",
            tokens=tokens,
            layers=session.layer_numbers(a, b),
            start=start,
            stop=stop,
            length=session.common_range(a, b - a)[1] if a < b else 0,
            **({} if window is None else {"window": window}),
        )

    @property
    def revision(self) -> int:
        """Revision of the session that was read. It is known once `prepare` has run."""
        return self._session.revision

    def complete(self, encoded: Sequence[Encoded]) -> responses.Range:
        """Read the range in one go."""
        return run_to_completion(self.complete_chunked(encoded))

    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, responses.Range]:  # noqa: ARG002 - nothing was encoded
        """Read the range in chunks."""
        session, ring = self._session, self._request.ring
        a, b, start, stop = session.range(*self._request[:3])
        _, length, _ = session.common_range(a, b - a) if a < b else (0, 0, 0)
        response: responses.Range = {
            "session": self._key[1],
            "group": 0,
            "layers": session.layer_numbers(a, b),
            "start": start,
            "stop": stop,
            "length": length,
            "k": None,
            "v": None,
        }
        if session.has_shape:
            tokens = session.window or 0 if ring else stop - start
            arrays = _OutputArrays(session, (len(response["layers"]), tokens), self._request.form, self._backend)
            nbytes = self._backend.slice_nbytes or CHUNK_NBYTES
            for row, position, page in session.iter_chunks(a, b, start, stop, nbytes, self._backend):
                first = position - start
                columns = (position + np.arange(page.tokens)) % tokens if ring else slice(first, first + page.tokens)
                arrays.add(row, columns, page)
                yield
            response["k"], response["v"] = arrays.to_response()
        return response

    def roll_back(self) -> None:
        """Do nothing: nothing was reserved."""


class _OutputArrays:
    """Arrays of the response, filled page by page."""

    def __init__(self, session: Session, axes: tuple[int, int], form: ReadForm, backend: Backend) -> None:
        self._form = form
        self._backend = backend
        self._specs = session.specs
        layers, tokens = axes
        lead = (layers, session.kv_heads or 0, tokens)
        # Zeros, because a ring may have rows without a token yet.
        self._arrays = [
            {name: np.zeros((*lead, width), dtype) for name, width, dtype in _columns(spec, form)}
            for spec in session.specs
        ]

    def add(self, row: int, tokens: slice | NDArray[Any], page: Page) -> None:
        """Copy a page to its place, from `row` on along the first axis."""
        layers = slice(row, row + page.layers)
        for stream, spec, arrays in zip(page.load(), self._specs, self._arrays, strict=True):
            for name, values in self._in_form(stream, spec).items():
                arrays[name][layers, :, tokens] = values

    def _in_form(self, stream: Encoded, spec: CodecSpec) -> dict[str, NDArray[Any]]:
        if self._form == "packed":
            return serialization.stream_arrays(on_host(stream, self._backend), spec)
        if self._form == "norms":
            return {"norms": self._backend.to_host(stream.norms)}
        dtype = "float32" if self._form == "rotated" else self._form
        return {"values": self._backend.decode(stream, spec, dtype, inverse=self._form != "rotated")}

    def to_response(self) -> list[dict[str, Any]]:
        """Return both streams as fields of the response."""
        return [{part: serialization.tensor(array) for part, array in arrays.items()} for arrays in self._arrays]


def _columns(spec: CodecSpec, form: ReadForm) -> list[tuple[str, int, np.dtype[Any]]]:
    """Return name, width and dtype of the arrays of a stream in the response."""
    norms = ("norms", spec.norms, np.dtype(np.float32))
    if form == "norms":
        return [norms]
    if form != "packed":
        return [("values", spec.head_dim, DTYPES["float32" if form == "rotated" else form])]
    if spec.codec.kind == "float16":
        return [("values", spec.head_dim, DTYPES["float16"])]
    return [("packed", spec.row_bytes, np.dtype(np.uint8)), norms]


def row_nbytes(spec: CodecSpec, form: str) -> int:
    """Return the bytes of one vector in the response."""
    if form in ("packed", "norms"):
        return spec.nbytes if form == "packed" else 4 * spec.norms
    return spec.head_dim * (2 if form in ("float16", "bfloat16") else 4)


def check_response_size(field: str, nbytes: int, limit: int) -> None:
    """Reject a read whose response would be too large, before memory is allocated.

    Args:
        field: request field that could make the response smaller.
        nbytes: bytes of the response.
        limit: maximum bytes.

    Raises:
        ResponseTooLarge: the response would be larger than the limit.
    """
    if nbytes > limit:
        raise ResponseTooLarge(field, nbytes, limit)

"""ReadOperation: read a range of tokens, packed or decoded."""

from collections.abc import Collection, Hashable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hadakv_kernels import Backend, CodecSpec, Encoded, Stream
from hadakv_service.errors import InvalidRequest, ResponseTooLarge
from hadakv_service.sessions.existing_layers import existing_layers
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.range_tensor import Range, RangeTensor, ReadForm, Segment, range_tensors
from hadakv_service.sessions.session import Session
from hadakv_service.storage.pages.held_pages import PageHold
from hadakv_service.storage.session_store import Key, SessionStore
from hadakv_service.wire import responses, serialization


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


class ReadResult(NamedTuple):
    """Result of a read.

    Attributes:
        content: the response. Its tensors are arrays, or deferred.
        pages: if they are deferred, the pages to hold while they are made; else None.
    """

    content: responses.Range
    pages: list[Page] | None


class ReadOperation:
    """Read a range of a session. A small one is read at once, a large one while it is sent.

    Args:
        key: key of the session.
        request: range to read.
        store: store of the session.
        backend: backend that decodes the tokens.
        limit: maximum bytes of the response.
        whole_nbytes: maximum bytes of a response that is read at once.
    """

    def __init__(
        self, key: Key, request: ReadRequest, store: SessionStore, backend: Backend, *, limit: int, whole_nbytes: int
    ) -> None:
        self.key: Hashable = key
        self._key = key
        self._request = request
        self._store = store
        self._backend = backend
        self._limit = min(limit, serialization.MAX_TENSOR_NBYTES)
        self._whole_nbytes = whole_nbytes

    def _nbytes(self, session: Session) -> int:
        """Return the bytes of the response."""
        a, b, start, stop = session.range(*self._request[:2], self._places)
        if not session.has_shape:
            return 0
        tokens = session.window or 0 if self._request.ring else stop - start
        rows = (b - a) * (session.kv_heads or 0) * tokens
        # NumPy must be able to represent the axes of a response without layers or elements too.
        rows = rows or (session.kv_heads or 0) * tokens
        return rows * (sum(row_nbytes(spec, self._request.form) for spec in session.specs) or 1)

    def prepare(self, batch: Collection[Hashable]) -> Sequence[Stream]:  # noqa: ARG002 - nothing is reserved
        """Check the range. Return no streams.

        The session value is kept until the read is complete, so its pages stay in memory or on disk.
        """
        existing = existing_layers(self._store.get(self._key).session, self._request.layers)
        session, self._places, self._numbers = existing
        self._store.touch(self._key)
        if self._request.ring and session.window is None:
            raise InvalidRequest([("layout", "cannot be a ring: the session has no window")])
        self._check_size(session)
        self._session = session
        return ()

    def _check_size(self, session: Session) -> None:
        """Reject a read whose response would be too large. The problem says what was asked for, and what fits.

        Raises:
            ResponseTooLarge: the response would be larger than the limit.
        """
        nbytes = self._nbytes(session)
        if nbytes <= self._limit:
            return
        a, b, start, stop = session.range(*self._request[:2], self._places)
        window = session.window if self._request.ring else None
        tokens = self._limit // (nbytes // (window or stop - start))
        advice = f"{tokens} tokens of these layers fit" if tokens else "no token of all these layers fits"
        raise ResponseTooLarge(
            "stop" if window is None else "layout",
            nbytes,
            self._limit,
            f"{advice} one response",
            tokens=tokens,
            layers=self._numbers,
            start=start,
            stop=stop,
            length=session.common_range(a, b - a)[1] if a < b else 0,
            **({} if window is None else {"window": window}),
        )

    @property
    def revision(self) -> int:
        """Revision of the session that was read. It is known once `prepare` has run."""
        return self._session.revision

    def complete(self, encoded: Sequence[Encoded]) -> ReadResult:  # noqa: ARG002 - nothing was encoded
        """Read a small range. Of a large one, return tensors that are deferred."""
        session, form = self._session, self._request.form
        a, b, start, stop = session.range(*self._request[:2], self._places)
        _, length, _ = session.common_range(a, b - a) if a < b else (0, 0, 0)
        content: responses.Range = {
            "session": self._key[1],
            "group": 0,
            "layers": self._numbers,
            "start": start,
            "stop": stop,
            "length": length,
            "k": None,
            "v": None,
        }
        if not session.has_shape:
            return ReadResult(content, None)
        rows = session.window or 0 if self._request.ring else stop - start
        range_ = Range(session, a, b - a, rows, self._segments(start, stop, rows), self._backend)
        pages = range_.pages()
        self._store.pool.count_read(pages)
        if self._nbytes(session) > self._whole_nbytes:
            content["k"], content["v"] = (_deferred(range_tensors(range_, stream, form)) for stream in (0, 1))
            return ReadResult(content, pages)
        # Each page is loaded once, also if there is no space in memory for all of them.
        hold = PageHold(self._store.pool.held, pages)
        try:
            while hold.extend():
                pass
            content["k"], content["v"] = (_arrays(range_tensors(range_, stream, form)) for stream in (0, 1))
        finally:
            hold.release()
        return ReadResult(content, None)

    def _segments(self, start: int, stop: int, rows: int) -> tuple[Segment, ...]:
        """Return which tokens go to which rows. In a ring, position p goes to row `p % rows`."""
        if not self._request.ring:
            return (Segment(0, start, stop - start),) if start < stop else ()
        edges = sorted({start, stop, stop - stop % rows} if start < stop - stop % rows < stop else {start, stop})
        return tuple(Segment(p % rows, p, q - p) for p, q in pairwise(edges))

    def roll_back(self) -> None:
        """Do nothing: nothing was reserved."""


def _arrays(tensors: Sequence[RangeTensor]) -> dict[str, Any]:
    return {each.name: serialization.tensor(each.array()) for each in tensors}


def _deferred(tensors: Sequence[RangeTensor]) -> dict[str, Any]:
    def tensor(each: RangeTensor) -> dict[str, Any]:
        data = serialization.Deferred(each.nbytes, each.pieces)
        return serialization.deferred_tensor(each.dtype, each.shape, data)

    return {each.name: tensor(each) for each in tensors}


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
        ResponseTooLarge: the response would be larger than the limit, or than a msgpack tensor can be.
    """
    limit = min(limit, serialization.MAX_TENSOR_NBYTES)
    if nbytes > limit:
        raise ResponseTooLarge(field, nbytes, limit)

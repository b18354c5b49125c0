"""Long encoding in slices, so that others have their turn between two of them."""

import math
from collections.abc import Generator
from typing import Any, TypeVar

from hadakv_kernels import Backend, Encoded, Stream

# Of input to one call of the backend. Two cores encode as much in a millisecond.
SLICE_NBYTES = 4 << 20

T = TypeVar("T")


def encode_in_slices(backend: Backend, stream: Stream) -> Generator[None, None, Encoded]:
    """Encode a stream, pausing after each slice."""
    x, spec = stream
    lead = x.shape[:-1]
    rows = x.reshape(math.prod(lead), spec.head_dim)
    count = SLICE_NBYTES // (spec.head_dim * x.itemsize)
    if len(rows) <= count:
        (encoded,) = backend.encode([stream])
        yield
        return encoded
    parts: list[Encoded] = []
    for start in range(0, len(rows), count):
        parts += backend.encode([Stream(rows[start : start + count], spec)])
        yield
    packed = _joined(backend, [part.packed for part in parts], lead)
    yield
    return Encoded(packed, _joined(backend, [part.norms for part in parts], lead))


def _joined(backend: Backend, parts: list[Any], lead: tuple[int, ...]) -> Any:
    return backend.concatenate(parts, 0).reshape((*lead, parts[0].shape[-1]))


def to_the_end(steps: Generator[None, None, T]) -> T:
    """Take all steps without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result

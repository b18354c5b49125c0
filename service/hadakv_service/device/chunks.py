"""Long encoding in slices, so that others have their turn between two of them."""

import math
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from hadakv_kernels import Backend, Encoded, Stream

T = TypeVar("T")


def encode_chunked(backend: Backend, streams: Sequence[Stream]) -> Generator[None, None, list[Encoded]]:
    """Encode streams, pausing after each slice; all in one call where the backend has no use for slices."""
    if backend.slice_nbytes is None:
        encoded = backend.encode(streams)
        yield
        return encoded
    encoded = []
    for stream in streams:
        encoded.append((yield from _encode_stream_chunked(backend, stream, backend.slice_nbytes)))
    return encoded


def _encode_stream_chunked(backend: Backend, stream: Stream, nbytes: int) -> Generator[None, None, Encoded]:
    x, spec = stream
    lead = x.shape[:-1]
    rows = x.reshape(math.prod(lead), spec.head_dim)
    count = nbytes // (spec.head_dim * x.itemsize)
    if len(rows) <= count:
        (encoded,) = backend.encode([stream])
        yield
        return encoded
    parts: list[Encoded] = []
    for start in range(0, len(rows), count):
        parts += backend.encode([Stream(rows[start : start + count], spec)])
        yield
    packed = _concatenate(backend, [part.packed for part in parts], lead)
    yield
    return Encoded(packed, _concatenate(backend, [part.norms for part in parts], lead))


def _concatenate(backend: Backend, parts: list[Any], lead: tuple[int, ...]) -> Any:
    return backend.concatenate(parts, 0).reshape((*lead, parts[0].shape[-1]))


def run_to_completion(steps: Generator[None, None, T]) -> T:
    """Take all steps without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result

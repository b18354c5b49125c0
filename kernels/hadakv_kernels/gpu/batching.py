"""Batching of streams: which streams are encoded in one launch, and how results are split again."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from hadakv_kernels.backend import Stream
from hadakv_kernels.reference import Encoded


def plan_launches(streams: Sequence[Stream]) -> list[tuple[list[int], list[int]]]:
    """Plan the launches for some streams.

    Streams with the same batch key form one array. Two arrays of one shape and dtype share a launch, as its K and its V
    stream.

    Returns:
        for each launch, the indices of the streams in its first array and in its second array.
    """
    order = sorted(range(len(streams)), key=lambda i: _batch_key(streams[i]))
    groups = [list(same) for _, same in groupby(order, key=lambda i: _batch_key(streams[i]))]
    pairs: list[tuple[list[int], list[int]]] = []
    waiting: dict[Any, list[int]] = {}
    for group in groups:
        size = sum(streams[i].x.size for i in group)
        shape = (size, *_batch_key(streams[group[0]])[:2])
        if shape in waiting:
            pairs.append((waiting.pop(shape), group))
        else:
            waiting[shape] = group
    return pairs + [_pair(group, streams) for group in waiting.values()]


def concatenate(indices: Sequence[int], streams: Sequence[Stream]) -> Stream:
    """Join streams with the same batch key into one of shape `[rows, head_dim]`."""
    spec = streams[indices[0]].spec
    arrays = [np.ascontiguousarray(streams[i].x).reshape(-1, spec.head_dim) for i in indices]
    return Stream(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), spec)


def split(whole: Encoded, streams: Sequence[Stream]) -> list[Encoded]:
    """Split an encoded batch into the parts of its streams, each in the stream's own shape."""
    parts, start = [], 0
    for x, spec in streams:
        stop = start + x.size // spec.head_dim
        lead = x.shape[:-1]
        packed = whole.packed[start:stop].reshape(*lead, spec.row_bytes)
        parts.append(Encoded(packed, whole.norms[start:stop].reshape(*lead, spec.norms)))
        start = stop
    return parts


def _batch_key(stream: Stream) -> tuple[Any, ...]:
    """Return the key that streams must share to be joined into one array."""
    spec = stream.spec
    return (spec.head_dim, str(stream.x.dtype), *map(str, spec.codec.to_mapping().values()))


def _pair(group: list[int], streams: Sequence[Stream]) -> tuple[list[int], list[int]]:
    """Make two streams of one size the two streams of a launch, which avoids joining them."""
    if len(group) == 2 and streams[group[0]].x.size == streams[group[1]].x.size:
        return group[:1], group[1:]
    return group, []

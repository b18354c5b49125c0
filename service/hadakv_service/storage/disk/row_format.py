"""Pages and manifests as the columns of a row, and back; each has a checksum."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import xxhash

from hadakv_kernels import Encoded
from hadakv_service.storage.disk.interface import CorruptData, Manifest, PageContent, PageInfo, RunManifest


def digest(*parts: bytes) -> bytes:
    """Eight bytes of XXH3 over all parts."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.digest()


def is_sound(checksum: object, *parts: object) -> bool:
    """Whether columns are what was written; SQLite itself lets them be of any type."""
    return all(isinstance(part, bytes) for part in parts) and digest(*parts) == checksum  # type: ignore[arg-type]  # just seen to be


def fixed_columns(nbytes: object, created: object, permanent: object) -> bytes:
    """The columns beside the header that a checksum is for."""
    return f"{nbytes!r} {created!r} {permanent!r}".encode()


def numbers_of(run: RunManifest) -> list[int]:
    """A run of layers as its header has it, without its pages."""
    return [run.layers, run.base, run.length, run.full, run.place]


def _run(numbers: Sequence[int], pages: Iterable[int]) -> RunManifest:
    layers, base, length, full, place = numbers
    return RunManifest(layers, base, length, full, place, tuple(pages))


def places_of(manifest: Manifest, same: Collection[int]) -> dict[tuple[int, int], int]:
    """Where each page belongs, but for those of runs that are the same."""
    runs = [(i, run) for i, run in enumerate(manifest.runs) if i not in same]
    return {(i, place): page for i, run in runs for place, page in enumerate(run.pages, run.place)}


def manifest_of(row: Sequence[Any], pages: Mapping[int, list[int]]) -> Manifest:
    """What a row says, checked against its checksum."""
    _, _, nbytes, created, last_used, expires, permanent, checksum, header = row[:9]
    sound = is_sound(checksum, header, fixed_columns(nbytes, created, bool(permanent)))
    # When it was used last changes more often than the rest, and has no checksum.
    if not (sound and isinstance(last_used, float) and isinstance(expires, float | None)):
        raise CorruptData("its manifest has another checksum than when it was written")
    content = json.loads(header)
    runs = tuple(_run(numbers, pages.get(i, ())) for i, numbers in enumerate(content["runs"]))
    return Manifest(content["options"], runs, nbytes, created, last_used, expires, bool(permanent))


def check_pages(manifest: Manifest, known: Mapping[int, PageInfo]) -> None:
    """Whether the pages are those of the manifest.

    Raises:
        Damaged: one is missing, or together they are not its tokens.
    """
    for run in manifest.runs:
        rows = [known.get(page) for page in run.pages]
        if not all(row and all(isinstance(part, int) and part > 0 for part in row) for row in rows):
            raise CorruptData("it lacks pages that its manifest names")
        if sum(row.tokens for row in rows if row) != run.length - run.base:
            raise CorruptData("its pages have other tokens than its manifest says")


def packed(content: PageContent) -> tuple[bytes, bytes]:
    """A page's header and bytes."""
    arrays = [array for stream in content for array in (stream.packed, stream.norms)]
    header = json.dumps([array.shape for array in arrays]).encode()
    return header, b"".join(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays)


def unpacked(header: bytes, blob: bytes) -> PageContent:
    """A page of its header and bytes, which it shares."""
    shapes = json.loads(header)
    dtypes: tuple[np.dtype[Any], ...] = (np.dtype(np.uint8), np.dtype(np.float32)) * 2
    sizes = [prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    starts = accumulate(sizes, initial=0)
    parts = [
        np.frombuffer(blob, dtype, prod(shape), start).reshape(shape)
        for shape, dtype, start in zip(shapes, dtypes, starts, strict=False)
    ]
    return PageContent(Encoded(parts[0], parts[1]), Encoded(parts[2], parts[3]))

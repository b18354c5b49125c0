"""Pages and manifests as columns with checksums."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hadakv_kernels import Encoded
from hadakv_service.storage.disk.interface import CorruptData, Manifest, PageContent, PageInfo, RunManifest


def digest(*parts: bytes | memoryview) -> bytes:
    """Return the 8-byte XXH3 hash of all parts."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.digest()


def is_valid(checksum: object, *parts: object) -> bool:
    """Whether columns match their checksum. SQLite itself allows columns of any type."""
    return all(isinstance(part, bytes) for part in parts) and digest(*parts) == checksum  # type: ignore[arg-type]  # checked to be bytes


def fixed_columns(nbytes: object, created: object, protected: object) -> bytes:
    """Return the columns besides the header that the checksum covers."""
    return f"{nbytes!r} {created!r} {protected!r}".encode()


def run_to_numbers(run: RunManifest) -> list[int]:
    """Return a run of layers as the header stores it, without its pages."""
    return [run.layers, run.start, run.stop, run.full_pages, run.first_page, int(run.is_gap)]


def _run_from_numbers(numbers: Sequence[int], pages: Iterable[int]) -> RunManifest:
    layers, start, stop, full_pages, first_page, *gap = numbers
    # Files of older versions do not say which layers without tokens were appended to.
    is_gap = bool(gap[0]) if gap else not stop
    return RunManifest(layers, start, stop, full_pages, first_page, tuple(pages), is_gap)


def page_places(manifest: Manifest, unchanged: Collection[int]) -> dict[tuple[int, int], int]:
    """Return the page id at each place, a run and an index within it. Unchanged runs are left out."""
    runs = [(i, run) for i, run in enumerate(manifest.runs) if i not in unchanged]
    return {(i, place): page for i, run in runs for place, page in enumerate(run.pages, run.first_page)}


def manifest_from_row(row: Sequence[Any], pages: Mapping[int, list[int]]) -> Manifest:
    """Return the manifest in a row.

    Args:
        row: columns of the table `sessions`.
        pages: ids of the pages of each run.

    Raises:
        CorruptData: the checksum does not match.
    """
    _, _, nbytes, created, last_used, expires, protected, checksum, header = row[:9]
    matches = is_valid(checksum, header, fixed_columns(nbytes, created, bool(protected)))
    # The checksum does not cover the time of last use, which changes more often than the rest.
    if not (matches and isinstance(last_used, float) and isinstance(expires, float | None)):
        raise CorruptData("manifest: checksum mismatch")
    content = json.loads(header)
    runs = tuple(_run_from_numbers(numbers, pages.get(i, ())) for i, numbers in enumerate(content["runs"]))
    return Manifest(content["options"], runs, nbytes, created, last_used, expires, bool(protected))


def check_pages(manifest: Manifest, known: Mapping[int, PageInfo]) -> None:
    """Check that the pages on disk are those of the manifest.

    Raises:
        CorruptData: a page is missing, or the pages have another number of tokens.
    """
    for run in manifest.runs:
        infos = [known.get(page) for page in run.pages]
        if not all(info and all(isinstance(value, int) and value > 0 for value in info) for info in infos):
            raise CorruptData("pages of the manifest are missing")
        if sum(info.tokens for info in infos if info) != run.stop - run.start:
            raise CorruptData("pages and manifest have different numbers of tokens")


def pack_page(content: PageContent) -> tuple[bytes, bytes | memoryview]:
    """Return the header and the bytes of a page."""
    arrays = [array for stream in content for array in (stream.packed, stream.norms)]
    header = json.dumps([array.shape for array in arrays]).encode()
    adjacent = _adjacent_bytes(arrays)
    if adjacent is not None:
        return header, adjacent
    return header, b"".join(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays)


def _adjacent_bytes(arrays: Sequence[NDArray[Any]]) -> memoryview | None:
    """Return the bytes of arrays without a copy, if they follow each other in one array of bytes; None if not."""
    whole = arrays[0].base
    if not isinstance(whole, np.ndarray) or whole.dtype != np.uint8 or whole.ndim != 1:
        return None
    start = end = arrays[0].ctypes.data
    for array in arrays:
        if array.nbytes and not (array.base is whole and array.flags.c_contiguous and array.ctypes.data == end):
            return None
        end += array.nbytes
    first = start - whole.ctypes.data
    return whole[first : first + end - start].data


def unpack_page(header: bytes, blob: bytes) -> PageContent:
    """Return the page with a header and bytes, as views of the bytes."""
    whole, at, arrays = np.frombuffer(blob, np.uint8), 0, []
    dtypes: tuple[np.dtype[Any], ...] = (np.dtype(np.uint8), np.dtype(np.float32)) * 2
    for shape, dtype in zip(json.loads(header), dtypes, strict=True):
        end = at + prod(shape) * dtype.itemsize
        arrays.append(whole[at:end].view(dtype).reshape(shape))
        at = end
    return PageContent(Encoded(arrays[0], arrays[1]), Encoded(arrays[2], arrays[3]))

"""No backend reads past the end of an array, although it loads wide vectors."""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import BITS, DTYPES, HEAD_DIMS, Backend, Codec, Encoded, Stream, reference
from support.backends import assert_same_bits, assert_same_encoded, on_host

AtEnd = Callable[[NDArray[Any]], NDArray[Any]]


@pytest.fixture
def at_the_end_of_memory() -> Iterator[AtEnd]:
    """Return a function that moves an array to the end of a page, with an unreadable page after it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def protect(memory: mmap.mmap, offset: int, nbytes: int, access: int) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + offset
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), access) == 0

    mapped: list[tuple[mmap.mmap, int]] = []

    def moved(array: NDArray[Any]) -> NDArray[Any]:
        readable = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, readable + mmap.PAGESIZE)
        start = readable - array.nbytes
        memory[start:readable] = array.tobytes()
        protect(memory, readable, mmap.PAGESIZE, 0)
        mapped.append((memory, readable))
        return np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)

    yield moved
    for memory, readable in mapped:
        protect(memory, readable, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_encode_reads_nothing_past_its_input(
    head_dim: int, dtype: str, backend: Backend, at_the_end_of_memory: AtEnd
) -> None:
    for count in (1, 2, 3, 5, 8, 16, 17):
        x = np.random.default_rng(count).standard_normal((count, head_dim)).astype(DTYPES[dtype])
        for spec in (Codec().at(head_dim), Codec(kind="float16").at(head_dim)):
            (got,) = backend.encode([Stream(at_the_end_of_memory(x), spec)])

            assert_same_encoded(on_host(backend, got), reference.encode(x, spec))


@pytest.mark.parametrize("layout", ["dense", "byte"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_decode_reads_nothing_past_its_input(
    head_dim: int, layout: str, backend: Backend, at_the_end_of_memory: AtEnd
) -> None:
    for bits, count in product(BITS, (1, 2, 3, 5, 8, 16, 17)):
        spec = Codec(bits, layout=layout).at(head_dim)
        x = np.random.default_rng(count).standard_normal((count, head_dim)).astype(np.float32)
        stored = reference.encode(x, spec)

        packed, norms = at_the_end_of_memory(stored.packed), at_the_end_of_memory(stored.norms)
        got = backend.decode(Encoded(packed, norms), spec, "float32")

        assert_same_bits(got, reference.decode(stored, spec))


def test_guard_page_follows_the_array(at_the_end_of_memory: AtEnd) -> None:
    array = at_the_end_of_memory(np.arange(5, dtype=np.float32))
    path = b"/dev/zero"
    libc = ctypes.CDLL(None, use_errno=True)

    # The system call fails with EFAULT, where a load in this process would end it.
    file = libc.open(path, 0)
    inside = libc.read(file, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
    beyond = libc.read(file, ctypes.c_void_p(array.ctypes.data + array.nbytes), ctypes.c_size_t(1))
    libc.close(file)

    assert (inside, beyond) == (array.nbytes, -1)

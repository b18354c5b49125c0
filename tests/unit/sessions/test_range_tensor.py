"""Tensors of a range: made piece by piece they have the same bytes as made at once."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadakv_kernels import DTYPES, Codec, Stream
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.sessions import range_tensor
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.range_tensor import Range, Segment, boxes, range_tensors
from hadakv_service.sessions.session import Session
from support.thoroughness import examples

BACKEND = CpuBackend(1)
LAYERS, HEADS, TOKENS = 3, 2, 600
FORMS = ("packed", "float16", "float32", "bfloat16", "rotated")


def session_of(codec: Codec, cuts: list[int], layer: int) -> tuple[Session, np.ndarray]:
    """Return a session whose tokens were appended in parts, and its values; from `layer` on in another run."""
    x = np.random.default_rng(7).standard_normal((LAYERS, HEADS, TOKENS, 64)).astype(np.float16)
    session = Session(codecs=(codec, codec), kv_heads=HEADS, head_dim=64)
    for a, b in pairwise(sorted({0, *cuts, TOKENS})):
        for first, last in pairwise(sorted({0, layer, LAYERS})):
            streams = [Stream(np.ascontiguousarray(x[first:last, :, a:b]), codec.at(64))] * 2
            session = session.append(first, Page(*BACKEND.encode(streams)), BACKEND)
    return session, x


@settings(max_examples=examples(25, exhaustive=400))
@given(
    st.sampled_from([Codec(), Codec(bits=2), Codec(kind="float16")]),
    st.lists(st.integers(1, TOKENS - 1), max_size=4),
    st.integers(0, LAYERS - 1),
    st.sampled_from(FORMS),
    st.sampled_from([1, 500, 9_000, 40_000, 1 << 20]),
    st.data(),
)
def test_pieces_equal_the_whole(
    codec: Codec, cuts: list[int], layer: int, form: range_tensor.ReadForm, piece_nbytes: int, data: st.DataObject
) -> None:
    session, x = session_of(codec, cuts, layer)
    a, b = sorted(data.draw(st.tuples(st.integers(0, LAYERS), st.integers(0, LAYERS))))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, TOKENS), st.integers(0, TOKENS))))
    row = data.draw(st.integers(0, 5))
    # The first rows have no tokens, as in a ring.
    segments = (Segment(row, start, stop - start),) if start < stop else ()
    range_ = Range(session, a, b - a, row + stop - start, segments, BACKEND)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(range_tensor, "PIECE_NBYTES", piece_nbytes)
        for tensor in range_tensors(range_, 1, form):
            whole = tensor.array()
            pieces = [bytes(make()) for make in tensor.pieces()]

            assert (whole.shape, whole.dtype, whole.nbytes) == (tensor.shape, tensor.dtype, tensor.nbytes)
            assert b"".join(pieces) == whole.tobytes()
            width = tensor.width * tensor.dtype.itemsize
            assert all(len(piece) <= max(piece_nbytes, width) for piece in pieces)
            assert not whole[:, :, :row].any()
            if form == "float32":
                expected = BACKEND.encode([Stream(np.ascontiguousarray(x[a:b, :, start:stop]), codec.at(64))])[0]
                decoded = BACKEND.decode(expected, codec.at(64), "float32")
                np.testing.assert_array_equal(whole[:, :, row:], decoded)
    assert set(range_.pages()) == pages_of(session, a, b, start, stop)


def pages_of(session: Session, a: int, b: int, start: int, stop: int) -> set[Page]:
    """Return the pages that have a token of the range."""
    found, layer = set(), 0
    for run in session.runs:
        position = run.start
        for page in run.pages:
            if max(layer, a) < min(layer + run.layers, b) and max(position, start) < min(position + page.tokens, stop):
                found.add(page)
            position += page.tokens
        layer += run.layers
    return found


def test_arrays_read_at_once_share_no_memory_with_pages() -> None:
    session, _ = session_of(Codec(), [], 0)
    range_ = Range(session, 0, LAYERS, TOKENS, (Segment(0, 0, TOKENS),), BACKEND)
    page = next(session.all_pages())

    for tensor, stored in zip(range_tensors(range_, 0, "packed"), ("packed", "norms"), strict=True):
        assert not np.shares_memory(tensor.array(), getattr(page.load()[0], stored))


@given(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 50)), st.integers(1, 200), st.integers(1, 20_000))
def test_boxes_cover_a_tensor_in_order(shape: tuple[int, int, int], row_nbytes: int, piece_nbytes: int) -> None:
    index = np.arange(int(np.prod(shape))).reshape(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(range_tensor, "PIECE_NBYTES", piece_nbytes)
        parts = [index[box] for box in boxes(shape, row_nbytes)]

    assert [int(i) for part in parts for i in part.ravel()] == list(range(index.size))


def test_every_form_has_a_dtype() -> None:
    session, _ = session_of(Codec(), [], 0)
    range_ = Range(session, 0, 1, 1, (Segment(0, 0, 1),), BACKEND)

    for form in FORMS[1:4]:
        assert [each.dtype for each in range_tensors(range_, 0, form)] == [DTYPES[form]]

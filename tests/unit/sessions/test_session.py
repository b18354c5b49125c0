"""Session values: pages, runs and windows against plain lists of tokens."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadakv_kernels import Codec, Encoded
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.errors import CodecMismatch, InvalidRequest, PositionConflict, ShapeMismatch
from hadakv_service.sessions.existing_layers import existing_layers
from hadakv_service.sessions.layer_run import PAGE_TOKENS, same_bytes
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session, Shape
from support.thoroughness import examples

EXAMPLES = settings(derandomize=True, database=None, deadline=None, max_examples=examples(60, exhaustive=150))
BACKEND = CpuBackend()
HEADS = 2
SPEC = Codec().at(64)
TOKEN_NBYTES = 2 * HEADS * SPEC.nbytes


def page(tokens: list[list[int]]) -> Page:
    """Return a page whose bytes are the numbers of its tokens: one list for each layer, all of equal length."""
    numbers = np.array(tokens, np.uint32).reshape(len(tokens), 1, -1, 1)
    shape = (len(tokens), HEADS, numbers.shape[2])
    packed = np.broadcast_to(numbers, (*shape, SPEC.row_bytes // 4)).copy().view(np.uint8)
    norms = np.broadcast_to(numbers.astype(np.float32), (*shape, 1)).copy()
    return Page(Encoded(packed, norms), Encoded(packed[..., ::-1].copy(), -norms))


def numbers(held: Page) -> list[list[int]]:
    """Return the tokens in a page, after checking all of its bytes."""
    found = np.ascontiguousarray(held.load()[0].packed).view(np.uint32)
    assert same_bytes(held, page(found[:, 0, :, 0].tolist()) if held.tokens else held, BACKEND)
    listed: list[list[int]] = found[:, 0, :, 0].tolist()
    return listed


def opened(window: int | None = None) -> Session:
    return Session(codecs=(Codec(), Codec()), kv_heads=HEADS, head_dim=64, window=window)


@dataclass
class Model:
    """Expected content of a session: a list of tokens for each layer, and the layers that were appended to."""

    window: int | None
    layers: list[list[int]] = field(default_factory=list)
    existing: set[int] = field(default_factory=set)

    def append(self, layer: int, tokens: list[list[int]]) -> None:
        while len(self.layers) < layer + len(tokens):
            self.layers.append([])
        for i, new in enumerate(tokens, layer):
            self.layers[i] += new
            self.existing.add(i)

    def first(self, layer: int) -> int:
        return max(0, len(self.layers[layer]) - self.window) if self.window else 0


COUNTS = st.sampled_from([0, 1, 2, 3, 100, PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1, 2 * PAGE_TOKENS, 600])
APPENDS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), COUNTS), max_size=12)


def filled(window: int | None, appends: list[tuple[int, int, int]]) -> tuple[Session, Model]:
    """Return a session and its model after appends of (layer, layers, tokens). Unequal lengths are rejected."""
    session, model, fresh = opened(window), Model(window), 1
    for layer, layers, count in appends:
        shape = Shape(layer, layers, HEADS, count, 64)
        lengths = {len(own) for own in model.layers[layer : layer + layers]}
        lengths |= {0} if len(model.layers) < layer + layers else set()
        if len(lengths) > 1:
            with pytest.raises(PositionConflict) as rejected:
                session.append_position(shape)
            assert rejected.value.fields["length"] == min(lengths)
            continue
        assert session.append_position(shape) == (lengths.pop(), True)
        tokens = [list(range(fresh + i * count, fresh + (i + 1) * count)) for i in range(layers)]
        fresh += layers * count
        ready = session.split_runs(layer, layers)
        expected = ready.pages + ready.new_pages(layer, layers, count)
        session = session.append(layer, page(tokens), BACKEND)
        assert session.runs == () or len(session.runs) == len(ready.runs)
        assert session.pages <= expected if window else session.pages == expected
        model.append(layer, tokens)
    return session, model


@EXAMPLES
@given(st.sampled_from([None, None, 1, 10, 300, 5000]), APPENDS)
def test_session_holds_what_plain_lists_hold(window: int | None, appends: list[tuple[int, int, int]]) -> None:
    session, model = filled(window, appends)

    assert session.stored_layers == len(model.layers)
    assert list(session.spans()) == [
        (layer, model.first(layer), len(model.layers[layer])) for layer in sorted(model.existing)
    ]
    for layer, own in enumerate(model.layers):
        first = model.first(layer)
        held = session.read(layer, layer + 1, first, len(own), BACKEND)
        assert numbers(held) == [own[first:]]
    readable = sum(len(own) - model.first(layer) for layer, own in enumerate(model.layers))
    spare = len(model.layers) * PAGE_TOKENS if window else 0
    assert readable * TOKEN_NBYTES <= session.nbytes <= (readable + spare) * TOKEN_NBYTES
    assert session.raw_nbytes * SPEC.nbytes == session.nbytes * 64 * 2


@EXAMPLES
@given(APPENDS, st.data())
def test_any_range_of_layers_and_tokens_can_be_read(appends: list[tuple[int, int, int]], data: st.DataObject) -> None:
    session, model = filled(None, appends)
    a = data.draw(st.integers(0, len(model.layers)), label="first layer")
    b = data.draw(st.integers(a, len(model.layers)), label="layer after the last")
    shortest = min((len(own) for own in model.layers[a:b]), default=0)
    borders = st.sampled_from([0, 1, PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1, shortest])
    start, stop = sorted(min(data.draw(borders), shortest) for _ in "ab")

    asked = session.range(start, stop, (a, b))
    held = session.read(*asked, BACKEND)

    assert asked == (a, b, start, stop)
    assert (held.layers, held.tokens) == (b - a, stop - start if a < b else 0)
    if a < b:
        assert numbers(held) == [own[start:stop] for own in model.layers[a:b]]


@EXAMPLES
@given(APPENDS, APPENDS)
def test_append_does_not_change_the_old_value(
    before: list[tuple[int, int, int]], after: list[tuple[int, int, int]]
) -> None:
    session, model = filled(None, before)
    grown = session

    for layer, layers, count in after:
        if grown.common_range(layer, layers)[1] == grown.common_range(layer, layers)[2]:
            grown = grown.append(layer, page([[9] * count] * layers), BACKEND)

    assert {layer: len(model.layers[layer]) for layer in model.existing} == {
        layer: length for layer, _, length in session.spans()
    }
    for layer, own in enumerate(model.layers):
        assert numbers(session.read(layer, layer + 1, 0, len(own), BACKEND)) == [own]


@pytest.mark.parametrize("step", [1, 3, 255, 256, 257])
def test_all_pages_but_the_last_are_full(step: int) -> None:
    session = opened()

    for _ in range(0, 1500, step):
        session = session.append(0, page([[7] * step]), BACKEND)

    (run,) = session.runs
    assert run.full_pages == run.stop // PAGE_TOKENS
    assert {piece.tokens for piece in run.pages[: run.full_pages]} == {PAGE_TOKENS}
    assert sum(piece.tokens for piece in run.pages[run.full_pages :]) == run.stop % PAGE_TOKENS


def test_full_page_is_shared_by_later_values() -> None:
    session = opened().append(0, page([[1] * 600]), BACKEND)

    grown = session.append(0, page([[2] * 600]), BACKEND)

    assert [a is b for a, b in zip(session.runs[0].pages[:2], grown.runs[0].pages[:2], strict=True)] == [True] * 2


def test_full_pages_are_not_views_of_the_append() -> None:
    large = page([[1] * 2 * PAGE_TOKENS] * 3)

    session = opened(window=5).append(0, large, BACKEND)

    for piece in session.runs[0].pages:
        assert not np.shares_memory(piece.load()[0].packed, large.load()[0].packed)


def test_pages_outside_the_window_are_dropped() -> None:
    session = opened(window=10)

    for _ in range(50):
        session = session.append(0, page([[1] * 100] * 2), BACKEND)

    assert sum(piece.tokens for piece in session.runs[0].pages) <= 10 + PAGE_TOKENS
    assert session.runs[0].stop == 5000


def test_append_without_tokens_adds_no_page() -> None:
    session = opened().append(0, page([[1, 2]]), BACKEND)

    grown = session
    for _ in range(1000):
        grown = grown.append(0, page([[]]), BACKEND)

    assert len(grown.runs[0].pages) == len(session.runs[0].pages)


def test_layers_appended_together_stay_one_run() -> None:
    session = opened()

    for _ in range(3):
        session = session.append(0, page([[1] * 100] * 32), BACKEND)

    assert len(session.runs) == 1


def test_layers_below_the_first_append_do_not_exist() -> None:
    session = opened().append(3, page([[1, 2]]), BACKEND)

    assert list(session.spans()) == [(3, 0, 2)]
    assert session.append_position(Shape(0, 3, HEADS, 1, 64)) == (0, True)
    with pytest.raises(PositionConflict):
        session.append_position(Shape(2, 2, HEADS, 1, 64))


def test_append_without_tokens_makes_layers_exist() -> None:
    session = opened().append(3, page([[1, 2]]), BACKEND).append(1, page([[]]), BACKEND)

    assert list(session.spans()) == [(1, 0, 0), (3, 0, 2)]


def test_truncated_layers_still_exist() -> None:
    session = opened().append(1, page([[1, 2]]), BACKEND).truncate(0, BACKEND)

    assert list(session.spans()) == [(1, 0, 0)]


def test_declared_layers_exist() -> None:
    session = opened().append(1, page([[1, 2]]), BACKEND)

    declared = replace(session, layers=4).with_declared_layers()

    assert list(declared.spans()) == [(0, 0, 0), (1, 0, 2), (2, 0, 0), (3, 0, 0)]


@EXAMPLES
@given(APPENDS, st.data())
def test_existing_layers_are_read_in_their_order(appends: list[tuple[int, int, int]], data: st.DataObject) -> None:
    session, model = filled(None, appends)
    a = data.draw(st.integers(0, len(model.layers)), label="first layer")
    b = data.draw(st.integers(a, len(model.layers)), label="layer after the last")

    compact, places, names = existing_layers(session, (a, b))
    first, last, start, stop = compact.range(None, None, places)

    assert names == [layer for layer in range(a, b) if layer in model.existing]
    assert (last - first, start, stop) == (len(names), 0, min((len(model.layers[each]) for each in names), default=0))
    if names:
        assert numbers(compact.read(first, last, 0, stop, BACKEND)) == [model.layers[each][:stop] for each in names]


# Rejected requests


@pytest.mark.parametrize(
    ("position", "count", "place"),
    [(None, 5, (10, True)), (10, 5, (10, True)), (0, 10, (0, False)), (3, 4, (3, False)), (9, 1, (9, False))],
)
def test_append_is_at_the_end_or_a_repetition(position: int | None, count: int, place: tuple[int, bool]) -> None:
    session = opened().append(0, page([[1] * 10]), BACKEND)

    assert session.append_position(Shape(0, 1, HEADS, count, 64, position)) == place


@pytest.mark.parametrize(
    ("position", "count", "detail"),
    [
        (11, 1, ": the next append must be at position 10, not 11."),
        (2**63, 1, f": the next append must be at position 10, not {2**63}."),
        (0, 11, ". The append at position 0 reaches beyond them, to 11: append the rest at position 10."),
        (9, 2, ". The append at position 9 reaches beyond them, to 11: append the rest at position 10."),
    ],
)
def test_append_elsewhere_is_a_conflict(position: int, count: int, detail: str) -> None:
    session = opened().append(0, page([[1] * 10]), BACKEND)

    with pytest.raises(PositionConflict) as rejected:
        session.append_position(Shape(0, 1, HEADS, count, 64, position))

    assert rejected.value.fields == {"length": 10}
    assert rejected.value.detail == "The layers have 10 tokens" + detail


@pytest.mark.parametrize(("position", "count"), [(0, 10), (0, 7), (5, 2), (5, 3), (6, 3), (6, 0), (9, 1)])
def test_repetition_partly_in_the_window_is_accepted(position: int, count: int) -> None:
    session = opened(window=4).append(0, page([[1] * 10]), BACKEND)

    assert session.append_position(Shape(0, 1, HEADS, count, 64, position)) == (position, False)


@pytest.mark.parametrize(("position", "count"), [(0, 6), (5, 1), (5, 0), (0, 11), (6, 5)])
def test_repetition_outside_window_or_past_end_is_a_conflict(position: int, count: int) -> None:
    session = opened(window=4).append(0, page([[1] * 10]), BACKEND)

    with pytest.raises(PositionConflict) as rejected:
        session.append_position(Shape(0, 1, HEADS, count, 64, position))

    assert rejected.value.fields == {"length": 10}
    assert ("window" in rejected.value.detail) == (position < 6)
    assert "differs" not in rejected.value.detail


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        (Shape(0, 1, 3, 1, 64), {"kv_heads": HEADS}),
        (Shape(0, 1, HEADS, 1, 128), {"head_dim": 64}),
        (Shape(3, 2, HEADS, 1, 64), {"layers": 4}),
        (Shape(4, 1, HEADS, 1, 64), {"layers": 4}),
    ],
)
def test_shape_mismatch_reports_the_shape_of_the_session(shape: Shape, fields: dict[str, int]) -> None:
    session = Session(kv_heads=HEADS, head_dim=64, layers=4)

    with pytest.raises(ShapeMismatch) as rejected:
        session.with_shape(shape, None)

    assert rejected.value.fields == fields


def test_first_append_decides_undecided_fields() -> None:
    chosen = (Codec(bits=2), Codec(kind="float16"))

    session = Session(layers=4).with_shape(Shape(0, 4, 3, 1, 128), chosen)

    assert (session.codecs, session.kv_heads, session.head_dim, session.layers) == (chosen, 3, 128, 4)


def test_codec_mismatch_reports_the_codec_of_the_session() -> None:
    session = opened()

    with pytest.raises(CodecMismatch) as rejected:
        session.with_shape(Shape(0, 1, HEADS, 1, 64), (Codec(), Codec(bits=8)))

    assert rejected.value.fields["codec"]["v"]["bits"] == 4
    assert session.with_shape(Shape(0, 1, HEADS, 1, 64), (Codec(), Codec())) == session


@pytest.mark.parametrize(
    ("start", "stop", "layers", "field"),
    [
        (None, None, (0, 3), "layers"),
        (None, None, (2, 1), "layers"),
        (11, None, None, "start"),
        (5, 4, None, "start"),
        (3, None, (0, 1), "start"),
    ],
)
def test_range_outside_the_session_is_rejected(
    start: int | None, stop: int | None, layers: tuple[int, int] | None, field: str
) -> None:
    session = opened(window=6).append(0, page([[1] * 10] * 2), BACKEND)

    with pytest.raises(InvalidRequest) as rejected:
        session.range(start, stop, layers)

    assert rejected.value.fields["errors"][0]["field"] == field


def test_same_bytes_compares_packed_bytes_and_norms() -> None:
    one, other = page([[1, 2, 3]]), page([[1, 2, 3]])
    k, v = one.load()
    minus_zero = Encoded(k.packed, -np.zeros_like(k.norms))
    zero = Encoded(k.packed, np.zeros_like(k.norms))

    assert same_bytes(one, other, BACKEND)
    assert not same_bytes(one, page([[1, 2, 4]]), BACKEND)
    assert not same_bytes(one, page([[1, 2]]), BACKEND)
    assert not same_bytes(Page(zero, v), Page(minus_zero, v), BACKEND)
    assert not same_bytes(one, Page(k, Encoded(v.packed, k.norms)), BACKEND)


def test_codec_mismatch_names_the_options_that_differ() -> None:
    codecs = Codec(bits=4), Codec(bits=4)
    session = Session(codecs=codecs, kv_heads=HEADS, head_dim=64)

    with pytest.raises(CodecMismatch) as rejected:
        session.with_shape(Shape(0, 1, HEADS, 1, 64), (codecs[0], Codec(bits=8)))

    assert rejected.value.detail == "The session was created with another codec: v has bits 4, not bits 8."

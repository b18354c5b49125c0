"""Reads whose response would be larger than the service's limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hadakv_client import Codec, CodecMismatch, Encoded, InvalidRequest, SessionChanged, SessionNotFound
from hadakv_kernels import DTYPES
from support.inputs.codecs import CODECS, assert_same
from support.inputs.long_sessions import expected

EVERYTHING = slice(None)
FORMS = ("float16", "float32", "bfloat16", "rotated")


@pytest.mark.parametrize(
    ("codec", "form"), [*((codec, "packed") for codec in CODECS), *((Codec(), form) for form in FORMS)]
)
def test_read_over_the_limit_returns_all_tokens(
    client: Any, session_id: str, long_k: Any, long_v: Any, codec: Codec, form: Any
) -> None:
    session = client.session(session_id, {"k": codec, "v": Codec(kind="float16")})
    session.append(long_k, long_v, minimal=True)

    found = session.read(form=form)

    assert (found.start, found.stop, found.length) == (0, 10_000, 10_000)
    assert (found.session, found.group, found.layers) == (session_id, 0, (0, 1))
    assert_same(found.k, expected("k", EVERYTHING, codec, form))
    assert_same(found.v, expected("v", EVERYTHING, Codec(kind="float16"), form))
    for stream in (found.k, found.v):
        assert not (stream.packed if form == "packed" else stream).flags.writeable


def test_range_over_the_limit_may_start_anywhere(session: Any, long_k: Any, long_v: Any) -> None:
    session.append(long_k, long_v, minimal=True)

    found = session.read(1234, 99_999, layers=(1, 2), form="float32")

    assert (found.start, found.stop, found.length, found.layers) == (1234, 10_000, 10_000, (1,))
    assert_same(found.k, expected("k", slice(1234, None), form="float32")[1:])


def test_parts_name_the_layers_that_exist(session: Any, long_k: Any, long_v: Any) -> None:
    for layer in (3, 7, 11):
        session.append(long_k[layer % 2], long_v[layer % 2], layer=layer, minimal=True)

    found = session.read(form="float32")

    assert (found.layers, found.length) == ((3, 7, 11), 10_000)
    assert_same(found.k[1:2], expected("k", EVERYTHING, form="float32")[1:])


def test_layers_with_gaps_may_be_read_one_by_one(session: Any) -> None:
    k, v = np.random.default_rng(4).standard_normal((2, 3, 128, 2, 512)).astype(np.float32)
    for row, layer in enumerate((3, 7, 11)):
        session.append(k[row], v[row], layer=layer, minimal=True)

    found = session.read(form="float32")
    alone = [session.read(layers=(layer, layer + 1), form="float32") for layer in (3, 7, 11)]

    assert found.layers == (3, 7, 11)
    assert_same(found.k, np.concatenate([each.k for each in alone]))
    assert_same(found.v, np.concatenate([each.v for each in alone]))


def test_progress_counts_the_tokens_read(session: Any, long_k: Any, long_v: Any) -> None:
    session.append(long_k, long_v, minimal=True)
    calls: list[tuple[int, int]] = []

    session.read(10, form="float32", progress=lambda done, total: calls.append((done, total)))
    session.read(10, 20, form="float32", progress=lambda done, total: calls.append((done, total)))

    *parts, last, small = calls
    assert len(parts) >= 4
    assert [done for done, _ in parts] == sorted({done for done, _ in parts})
    assert (last, small) == ((9990, 9990), (10, 10))


@pytest.mark.parametrize("form", ["packed", "float32"])
@pytest.mark.parametrize("tokens", [10_000, 20], ids=["wrapped", "not-full"])
def test_ring_over_the_limit_has_each_token_in_its_row(
    session: Any, long_k: Any, long_v: Any, form: Any, tokens: int
) -> None:
    session.create(window=9000)
    session.append(long_k[:, :, :tokens], long_v[:, :, :tokens], minimal=True)

    found = session.read(form=form, layout="ring")
    linear = session.read(form=form)

    positions = np.arange(max(0, tokens - 9000), tokens)
    rows = np.setdiff1d(np.arange(9000), positions % 9000)
    for ring, row in ((found.k, linear.k), (found.v, linear.v)):
        parts = [(ring.packed, row.packed), (ring.norms, row.norms)] if form == "packed" else [(ring, row)]
        for whole, values in parts:
            assert whole.shape[2] == 9000
            assert np.array_equal(whole[:, :, positions % 9000], values)
            assert not whole[:, :, rows].any()
    assert (found.start, found.stop) == (linear.start, linear.stop)


def test_ring_over_the_limit_may_be_empty(session: Any, long_k: Any, long_v: Any) -> None:
    session.create(window=100_000, codec={"bits": 4})
    session.append(long_k[:, :, :0], long_v[:, :, :0])

    found = session.read(form="float16", layout="ring")

    assert (found.start, found.stop, found.k.shape) == (0, 0, (2, 1, 100_000, 64))
    assert not found.v.any()


@pytest.mark.parametrize("tokens", [10, 10_000], ids=["one-response", "parts"])
@pytest.mark.parametrize("form", ["float16", "bfloat16", "packed"])
def test_read_fills_the_arrays_of_the_caller(
    session: Any, tmp_path: Path, long_k: Any, long_v: Any, form: Any, tokens: int
) -> None:
    session.append(long_k, long_v, minimal=True)
    axes = (2, 1, tokens)
    if form == "packed":
        out = tuple(Encoded(np.ones((*axes, 32), np.uint8), np.ones((*axes, 1), np.float32)) for _ in "kv")
    else:
        out = tuple(np.memmap(tmp_path / name, DTYPES[form], "w+", shape=(*axes, 64)) for name in "kv")

    found = session.read(0, tokens, form=form, out=out)

    assert found.k is out[0]
    assert found.v is out[1]
    for stream, name in ((found.k, "k"), (found.v, "v")):
        assert_same(stream if form == "packed" else np.asarray(stream), expected(name, slice(tokens), form=form))


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((2, 1, 9999, 64), np.float16), ValueError, r"out for k must be float16 \[2, 1, 10000, 64\]"),
        (np.zeros((2, 1, 10_000, 64), np.float32), ValueError, "not float32"),
        (np.broadcast_to(np.float16(0), (2, 1, 10_000, 64)), ValueError, "out for k is read-only"),
        ([1], TypeError, "out for k must be ndarray, not list"),
    ],
    ids=["shape", "dtype", "read-only", "type"],
)
def test_arrays_that_do_not_fit_raise(
    session: Any, long_k: Any, long_v: Any, out: Any, error: type[Exception], message: str
) -> None:
    session.append(long_k, long_v, minimal=True)

    with pytest.raises(error, match=message):
        session.read(form="float16", out=(out, out))


Action = Callable[[Any, Any, Any], object]


def read_with_interruption(session: Any, other: Any, long_k: Any, long_v: Any, action: Action, **options: Any) -> Any:
    """Read a session in parts. Run the action after the third part."""
    session.append(long_k, long_v, minimal=True)
    calls: list[int] = []

    def interrupt(done: int, _: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            action(other, long_k, long_v)

    return session.read(form="float32", progress=interrupt, **options)


def truncate_and_append(other: Any, k: Any, v: Any) -> None:
    other.truncate(9000)
    other.append(v[:, :, 9000:], k[:, :, 9000:], minimal=True)


def delete_and_append(other: Any, k: Any, v: Any) -> None:
    other.delete()
    other.append(v, k, minimal=True)


def replace_by_fork(other: Any, *_: Any) -> None:
    fork = other.fork(f"{other.id}.fork"[-128:])
    other.delete()
    fork.fork(other.id)


@pytest.mark.parametrize(
    "action",
    [truncate_and_append, delete_and_append, replace_by_fork, lambda other, *_: other.truncate(100)],
    ids=["other-tokens", "other-session", "fork", "fewer-tokens"],
)
def test_session_that_changes_between_parts_raises(
    session: Any, other: Any, long_k: Any, long_v: Any, action: Action
) -> None:
    with pytest.raises(SessionChanged, match="changed while it was read in parts"):
        read_with_interruption(session, other, long_k, long_v, action)


def test_window_that_moves_between_parts_raises(session: Any, other: Any, long_k: Any, long_v: Any) -> None:
    session.create(window=10_000)

    with pytest.raises(SessionChanged, match="have left the window"):
        read_with_interruption(session, other, long_k, long_v, lambda *_: other.append(long_v, long_k, minimal=True))


def test_session_that_is_deleted_between_parts_raises(session: Any, other: Any, long_k: Any, long_v: Any) -> None:
    with pytest.raises(SessionNotFound):
        read_with_interruption(session, other, long_k, long_v, lambda *_: other.delete())


def test_appends_between_parts_do_not_matter(session: Any, other: Any, long_k: Any, long_v: Any) -> None:
    found = read_with_interruption(
        session, other, long_k, long_v, lambda *_: other.append(long_v, long_k, minimal=True)
    )

    assert (found.stop, found.length) == (10_000, 10_000)
    assert_same(found.k, expected("k", EVERYTHING, form="float32"))


def test_revision_changes_with_truncation_only(session: Any, k: Any, v: Any) -> None:
    revisions = []
    for change in (lambda: session.append(k, v), lambda: session.append(k, v), lambda: session.truncate(7)):
        change()
        revisions.append(session.read().revision)

    assert revisions[0] == revisions[1] != revisions[2]


def test_range_outside_the_session_is_refused_as_before(session: Any, long_k: Any, long_v: Any) -> None:
    session.append(long_k, long_v, minimal=True)

    for wanted in ({"start": 10_001}, {"layers": (0, 3)}):
        with pytest.raises(InvalidRequest) as raised:
            session.read(form="float32", **wanted)
        assert [error.field for error in raised.value.errors] == list(wanted)


def test_read_with_another_codec_raises(client: Any, session_id: str, k: Any, v: Any) -> None:
    client.session(session_id, {"k": {"bits": 3}}).append(k, v)

    for codec in ({"bits": 3}, {"k": {"bits": 3}, "v": {"bits": 3}}, Codec(bits=4)):
        with pytest.raises(CodecMismatch, match="created with another codec") as raised:
            client.session(session_id, codec).read()
        assert raised.value.fields["codec"]["k"]["bits"] == 3
    for codec in (None, {"k": {"bits": 3}}, {"k": Codec(bits=3), "v": Codec()}):
        assert client.session(session_id, codec).read().stop == 5


def test_read_before_the_first_append_has_no_codec_to_check(client: Any, session_id: str) -> None:
    client.session(session_id).create()

    assert client.session(session_id, {"bits": 3}).read().stop == 0


def test_smaller_limit_after_a_restart_is_taken(
    connect: Any, restartable: Any, restart_once: Any, long_k: Any, long_v: Any
) -> None:
    session = connect(restartable.url).session("a")
    session.append(long_k, long_v, minimal=True)
    found = session.read(form="float32", progress=restart_once)

    assert restart_once.calls > 20
    assert_same(found.k, expected("k", EVERYTHING, form="float32"))
    assert_same(found.v, expected("v", EVERYTHING, form="float32"))

"""Appends of both clients to the real service, and reads of the stored tokens."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hadakv_client import (
    Codec,
    PositionConflict,
)
from hadakv_kernels import DTYPES, reference
from support.inputs.codecs import CODECS, assert_same

pytestmark = pytest.mark.every_backend


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}")
def test_append_stores_the_bits_of_the_reference(
    client: Any, session_id: str, k: Any, v: Any, dtype: str, codec: Codec
) -> None:
    k, v = k.astype(DTYPES[dtype]), v.astype(DTYPES[dtype])
    spec = codec.at(64)

    appended = client.session(session_id, codec).append(k, v)
    found = client.session(session_id).read()

    for x, returned, stored in ((k, appended.k, found.k), (v, appended.v, found.v)):
        assert_same(returned, reference.encode(x, spec))
        assert_same(stored, returned)


@pytest.mark.parametrize("form", ["float16", "float32", "bfloat16", "rotated"])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}")
def test_read_returns_the_decoded_values_of_the_reference(
    client: Any, session_id: str, k: Any, v: Any, form: str, codec: Codec
) -> None:
    spec, dtype = codec.at(64), "float32" if form == "rotated" else form
    session = client.session(session_id, codec)
    session.append(k, v, minimal=True)

    found = session.read(1, 4, layers=(1, 2), form=form)

    assert (found.start, found.stop, found.length) == (1, 4, 5)
    for x, values in ((k, found.k), (v, found.v)):
        encoded = reference.encode(np.ascontiguousarray(x[1:2, :, 1:4]), spec)
        assert_same(values, reference.decode(encoded, spec, dtype, inverse=form != "rotated"))


def test_keys_and_values_can_have_different_codecs(client: Any, session_id: str, k: Any, v: Any) -> None:
    appended = client.session(session_id, {"k": {"bits": 8}, "v": Codec(bits=2)}).append(k, v)

    assert_same(appended.k, reference.encode(k, Codec(bits=8).at(64)))
    assert_same(appended.v, reference.encode(v, Codec(bits=2).at(64)))
    assert client.session(session_id).info().codec == (Codec(bits=8), Codec(bits=2))


def test_each_append_continues_at_the_end(session: Any, k: Any, v: Any) -> None:
    results = [session.append(k, v) for _ in range(3)]

    assert [each.position for each in results] == [0, 5, 10]
    assert [each.length for each in results] == [5, 10, 15]
    assert [each.created for each in results] == [True, False, False]
    assert session.info().length == 15


def test_array_layout_in_memory_does_not_change_the_result(session: Any, k: Any, v: Any) -> None:
    token_first = np.ascontiguousarray(k.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3)

    appended = session.append(token_first, v[:, :, ::-1])

    assert_same(appended.k, reference.encode(k, Codec().at(64)))
    assert_same(appended.v, reference.encode(np.ascontiguousarray(v[:, :, ::-1]), Codec().at(64)))


def test_mlx_arrays_are_stored_like_numpy_arrays(session: Any, k: Any, v: Any) -> None:
    mx = pytest.importorskip("mlx.core")

    appended = session.append(*(mx.array(x).astype(mx.bfloat16) for x in (k, v)))

    assert_same(appended.k, reference.encode(k.astype(ml_dtypes.bfloat16), Codec().at(64)))


def test_one_layer_can_be_appended_without_its_axis(session: Any, k: Any, v: Any) -> None:
    first = session.append(k[0], v[0])
    second = session.append(k[1], v[1], layer=1)

    assert first.k.packed.shape == (1, 3, 5, 32)
    assert (first.position, second.position) == (0, 0)
    assert [span.length for span in session.info().layers] == [5, 5]


def test_handle_tracks_the_end_of_each_layer(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)
    for layer in (0, 1):
        assert session.append(k[layer], v[layer], layer=layer).position == 5

    assert session.append(k, v).position == 10


def test_new_handle_continues_at_the_end(client: Any, session_id: str, k: Any, v: Any) -> None:
    client.session(session_id).append(k, v)

    assert client.session(session_id).append(k, v).position == 5


def test_stale_handle_conflicts_once_and_then_continues(client: Any, session_id: str, k: Any, v: Any) -> None:
    first, second = client.session(session_id), client.session(session_id)
    first.append(k, v)
    second.append(v, k)

    with pytest.raises(PositionConflict) as raised:
        first.append(k, v)

    assert raised.value.length == 10
    assert first.append(k, v).position == 10


def test_append_at_end_works_with_several_writers(client: Any, session_id: str, k: Any, v: Any) -> None:
    handles = [client.session(session_id) for _ in range(3)]

    assert [each.append(k, v, position="end").position for each in handles] == [0, 5, 10]
    assert handles[0].append(k, v).position == 15


def test_repeated_append_returns_the_same_and_stores_nothing(session: Any, k: Any, v: Any) -> None:
    first = session.append(k, v, position=0)
    session.append(v, k)
    again = session.append(k, v, position=0)

    assert_same(again.k, first.k)
    assert (again.position, again.length, again.created) == (0, 5, False)
    assert session.append(k, v).position == 10


def test_minimal_append_stores_the_same_tokens(session: Any, k: Any, v: Any) -> None:
    result = session.append(k, v, minimal=True)

    assert (result.position, result.tokens, result.created) == (0, 5, True)
    assert_same(session.read().k, reference.encode(k, Codec().at(64)))


def test_append_of_no_tokens_changes_nothing(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    result = session.append(k[:, :, :0], v[:, :, :0])

    assert (result.position, result.length) == (5, 5)
    assert result.k.packed.shape == (2, 3, 0, 32)


def test_received_arrays_are_read_only(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    with pytest.raises(ValueError, match="read-only"):
        session.read(form="float32").k[:] = 0

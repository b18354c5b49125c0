"""What the real clients store in the real service, and read back."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hadakv_client import (
    Codec,
    PositionConflict,
)
from hadakv_kernels import DTYPES, reference
from support.codecs import CODECS, assert_same

pytestmark = pytest.mark.every_backend


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}")
def test_what_is_stored_is_what_the_reference_gives(
    client: Any, session_id: str, k: Any, v: Any, dtype: str, codec: Codec
) -> None:
    k, v = k.astype(DTYPES[dtype]), v.astype(DTYPES[dtype])
    spec = codec.at(64)

    appended = client.session(session_id, codec).append(k, v)
    found = client.session(session_id).read()

    for x, answered, stored in ((k, appended.k, found.k), (v, appended.v, found.v)):
        assert_same(answered, reference.encode(x, spec))
        assert_same(stored, answered)


@pytest.mark.parametrize("form", ["float16", "float32", "bfloat16", "rotated"])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}")
def test_what_is_read_back_is_what_the_reference_decodes(
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


def test_keys_and_values_may_have_codecs_of_their_own(client: Any, session_id: str, k: Any, v: Any) -> None:
    appended = client.session(session_id, {"k": {"bits": 8}, "v": Codec(bits=2)}).append(k, v)

    assert_same(appended.k, reference.encode(k, Codec(bits=8).at(64)))
    assert_same(appended.v, reference.encode(v, Codec(bits=2).at(64)))
    assert client.session(session_id).info().codec == (Codec(bits=8), Codec(bits=2))


def test_appends_follow_one_another(session: Any, k: Any, v: Any) -> None:
    placed = [session.append(k, v) for _ in range(3)]

    assert [each.position for each in placed] == [0, 5, 10]
    assert [each.length for each in placed] == [5, 10, 15]
    assert [each.created for each in placed] == [True, False, False]
    assert session.info().length == 15


def test_arrays_that_lie_otherwise_in_memory_are_stored_the_same(session: Any, k: Any, v: Any) -> None:
    token_first = np.ascontiguousarray(k.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3)

    appended = session.append(token_first, v[:, :, ::-1])

    assert_same(appended.k, reference.encode(k, Codec().at(64)))
    assert_same(appended.v, reference.encode(np.ascontiguousarray(v[:, :, ::-1]), Codec().at(64)))


def test_mlx_arrays_are_stored_as_numpy_arrays_are(session: Any, k: Any, v: Any) -> None:
    mx = pytest.importorskip("mlx.core")

    appended = session.append(*(mx.array(x).astype(mx.bfloat16) for x in (k, v)))

    assert_same(appended.k, reference.encode(k.astype(ml_dtypes.bfloat16), Codec().at(64)))


def test_one_layer_is_appended_without_its_axis(session: Any, k: Any, v: Any) -> None:
    first = session.append(k[0], v[0])
    second = session.append(k[1], v[1], layer=1)

    assert first.k.packed.shape == (1, 3, 5, 32)
    assert (first.position, second.position) == (0, 0)
    assert [span.length for span in session.info().layers] == [5, 5]


def test_layers_are_followed_each_by_itself(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)
    for layer in (0, 1):
        assert session.append(k[layer], v[layer], layer=layer).position == 5

    assert session.append(k, v).position == 10


def test_a_handle_goes_on_where_another_stopped(client: Any, session_id: str, k: Any, v: Any) -> None:
    client.session(session_id).append(k, v)

    assert client.session(session_id).append(k, v).position == 5


def test_a_handle_that_was_overtaken_conflicts_once(client: Any, session_id: str, k: Any, v: Any) -> None:
    slow, quick = client.session(session_id), client.session(session_id)
    slow.append(k, v)
    quick.append(v, k)

    with pytest.raises(PositionConflict) as refused:
        slow.append(k, v)

    assert refused.value.length == 10
    assert slow.append(k, v).position == 10


def test_everyone_may_append_to_wherever_the_end_is(client: Any, session_id: str, k: Any, v: Any) -> None:
    handles = [client.session(session_id) for _ in range(3)]

    assert [each.append(k, v, position="end").position for each in handles] == [0, 5, 10]
    assert handles[0].append(k, v).position == 15


def test_a_repeated_append_gives_the_same_answer_and_stores_nothing(session: Any, k: Any, v: Any) -> None:
    first = session.append(k, v, position=0)
    session.append(v, k)
    again = session.append(k, v, position=0)

    assert_same(again.k, first.k)
    assert (again.position, again.length, again.created) == (0, 5, False)
    assert session.append(k, v).position == 10


def test_a_minimal_append_stores_all_the_same(session: Any, k: Any, v: Any) -> None:
    placed = session.append(k, v, minimal=True)

    assert (placed.position, placed.tokens, placed.created) == (0, 5, True)
    assert_same(session.read().k, reference.encode(k, Codec().at(64)))


def test_no_tokens_are_appended_to_no_effect(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    nothing = session.append(k[:, :, :0], v[:, :, :0])

    assert (nothing.position, nothing.length) == (5, 5)
    assert nothing.k.packed.shape == (2, 3, 0, 32)


def test_what_is_received_is_read_only(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    with pytest.raises(ValueError, match="read-only"):
        session.read(form="float32").k[:] = 0

"""Non-finite values are rejected with their place, and nothing changes."""

import struct

import numpy as np
import pytest

from support.assertions import K, V, spoiled
from support.contract import Caller, Json, array, tensor

NOT_FINITE = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "a norm that overflows": 1e20}
QUANTIZED: Json = {}
FLOAT16: Json = {"kind": "float16"}


@pytest.mark.parametrize("name", "kv")
@pytest.mark.parametrize("codec", [QUANTIZED, FLOAT16, {"rotation": "none"}, {"norm": "unbiased", "bits": 2}], ids=str)
@pytest.mark.parametrize("value", NOT_FINITE.values(), ids=NOT_FINITE)
def test_non_finite_vector_is_rejected_with_its_place(
    caller: Caller, session: str, name: str, codec: Json, value: float
) -> None:
    caller.append(session, K, V, codec=codec)
    before = caller.snapshot(session)
    tensors = {"k": K.astype(np.float32), "v": V.astype(np.float32)}
    tensors[name] = spoiled(tensors[name], [(1, 1, 3, 17), (1, 1, 4, 0), (2, 0, 0, 0)], value)

    response = caller.append(session, **tensors)

    problem = response.problem(422, "non-finite")
    assert {axis: problem[axis] for axis in ("stream", "layer", "head", "token")} == {
        "stream": name,
        "layer": 1,
        "head": 1,
        "token": 3,
    }
    assert [error["field"] for error in problem["errors"]] == [name]
    assert problem["detail"].endswith("at layer 1, head 1, token 3; nothing was stored")
    assert caller.snapshot(session) == before


def test_place_counts_layers_from_the_first_of_the_session(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"layers": 32})
    before = caller.snapshot(session)

    response = caller.append(session, spoiled(K, [(2, 0, 1, 0)], np.nan), V.astype(np.float32), layer=20)

    problem = response.problem(422, "non-finite")
    assert (problem["stream"], problem["layer"], problem["head"], problem["token"]) == ("k", 22, 0, 1)
    assert caller.snapshot(session) == before


def test_place_is_named_for_a_single_layer(caller: Caller, session: str) -> None:
    response = caller.append(session, K[0].astype(np.float32), spoiled(V[0], [(1, 4, 63)], np.inf), layer=3)

    problem = response.problem(422, "non-finite")
    assert (problem["stream"], problem["layer"], problem["head"], problem["token"]) == ("v", 3, 1, 4)
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_k_is_named_if_both_streams_are_not_finite(caller: Caller, session: str) -> None:
    response = caller.append(session, spoiled(K, [(2, 1, 4, 9)], np.nan), spoiled(V, [(0, 0, 0, 0)], np.nan))

    assert response.problem(422, "non-finite")["stream"] == "k"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_above_float16_is_rejected_for_float16_codec(caller: Caller, session: str, dtype: str) -> None:
    size = {"float32": 4, "bfloat16": 2}[dtype]
    k: Json = {"dtype": dtype, "shape": [1, 1, 2, 64], "data": bytes(2 * 64 * size)}
    beyond = struct.pack("<f", 65536.0)[-size:]
    v = k | {"data": k["data"][: -len(beyond)] + beyond}

    response = caller.post(f"/sessions/{session}/kv", {"k": k, "v": v, "codec": {"v": {"kind": "float16"}}})

    problem = response.problem(422, "non-finite")
    assert (problem["stream"], problem["token"]) == ("v", 1)
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_largest_float16_is_stored(caller: Caller, session: str) -> None:
    k = np.full((1, 1, 1, 64), 65504, np.float16)

    response = caller.append(session, k, -k, codec=FLOAT16)

    assert response.status == 201
    assert array(response.body["v"]["values"]).tobytes() == (-k).tobytes()


@pytest.mark.parametrize("value", NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize("more", [{}, {"codec": FLOAT16}, {"diagnostics": True}], ids=str)
def test_encode_rejects_non_finite_values_with_their_place(caller: Caller, more: Json, value: float) -> None:
    x = spoiled(K, [(1, 0, 2, 5)], value)

    response = caller.post("/encode", {"x": tensor(x), **more})

    assert response.problem(422, "non-finite")["stream"] == "x"
    # Row 12, counted from 0 over all leading axes.
    assert response.body["detail"] == "x: has NaN, infinity or overflow at row 12"

"""Sessions in which only some layers have K and V, as in hybrid models, over HTTP."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.contract import Caller, Json, stream
from support.inputs.arrays import DEFAULT, FORMS, decoded, pair
from support.inputs.session_files import exported, imported
from support.services.restarted_service import service

LAYERS = (3, 7, 11)
K, V = pair(3, 2, 300)


def fill(caller: Caller, session: str, stop: int = 300) -> None:
    for row, layer in enumerate(LAYERS):
        assert caller.append(session, K[row, :, :stop], V[row, :, :stop], layer=layer).status in (200, 201)


def lengths(info: Json) -> dict[int, int]:
    return {layer["layer"]: layer["length"] for layer in info["layers"]}


def assert_holds(caller: Caller, session: str, stop: int) -> None:
    """Check the description of a session and a read of everything."""
    info, held = caller.info(session), caller.read(session)
    assert (lengths(info), info["length"]) == (dict.fromkeys(LAYERS, stop), stop)
    assert (held["layers"], held["start"], held["stop"], held["length"]) == (list(LAYERS), 0, stop, stop)
    assert held["k"] == stream(K[:, :, :stop], DEFAULT)
    assert held["v"] == stream(V[:, :, :stop], DEFAULT)


def test_layers_without_an_append_do_not_exist(caller: Caller, session: str) -> None:
    fill(caller, session)

    assert_holds(caller, session, 300)
    assert caller.info(session)["nbytes"] == 3 * caller.read(session, layers="3:4", form="norms")["k"]["norms"][
        "shape"
    ][1] * 300 * 2 * (32 + 4)


@pytest.mark.parametrize(
    ("layers", "rows"),
    [("3:4", [0]), ("0:8", [0, 1]), ("4:12", [1, 2]), ("7:8", [1]), ("0:3", []), ("4:7", []), ("0:12", [0, 1, 2])],
)
@pytest.mark.parametrize("form", ["packed", "float32"])
def test_layer_range_has_its_existing_layers(
    caller: Caller, session: str, layers: str, rows: list[int], form: str
) -> None:
    fill(caller, session, 20)

    held = caller.read(session, layers=layers, start=0, form=form)

    expected = stream(K[rows, :, :20], DEFAULT) if form == "packed" else decoded(K[rows, :, :20], DEFAULT, form)
    assert held["layers"] == [LAYERS[row] for row in rows]
    assert (held["stop"], held["length"]) == ((20, 20) if rows else (0, 0))
    if rows:
        assert held["k"] == expected


@pytest.mark.parametrize("form", FORMS)
def test_ring_leaves_out_layers_that_do_not_exist(caller: Caller, session: str, form: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 7})
    fill(caller, session)

    ring = caller.read(session, layout="ring", form=form)

    order = [next(p for p in range(293, 300) if p % 7 == row) for row in range(7)]
    assert ring["layers"] == list(LAYERS)
    assert ring["k"] == decoded(np.ascontiguousarray(K[:, :, order]), DEFAULT, form)


def test_layer_range_beyond_the_last_layer_is_rejected(caller: Caller, session: str) -> None:
    fill(caller, session, 2)

    rejected = caller.get(f"/sessions/{session}/kv", layers="3:13").problem(422, "invalid-request")

    assert rejected["errors"] == [{"field": "layers", "reason": "must lie within 0:12, not 3:13"}]


def test_declared_layers_exist_from_the_start(caller: Caller, session: str) -> None:
    made = caller.put(f"/sessions/{session}", {"layers": 12}).body
    before = caller.read(session)
    fill(caller, session, 5)
    after = caller.read(session)

    assert lengths(made) == dict.fromkeys(range(12), 0)
    assert (before["layers"], before["k"]) == (list(range(12)), None)
    assert lengths(caller.info(session)) == {layer: 5 if layer in LAYERS else 0 for layer in range(12)}
    assert (after["layers"], after["length"]) == (list(range(12)), 0)
    assert caller.info(session)["length"] == 0


def test_layers_declared_later_exist_from_then_on(caller: Caller, session: str) -> None:
    fill(caller, session, 5)

    described = caller.put(f"/sessions/{session}", {"layers": 13}).body

    assert lengths(described) == {layer: 5 if layer in LAYERS else 0 for layer in range(13)}


def test_append_without_tokens_makes_layers_exist(caller: Caller, session: str) -> None:
    fill(caller, session, 5)

    caller.append(session, K[:2, :, :0], V[:2, :, :0], layer=1)

    assert lengths(caller.info(session)) == {1: 0, 2: 0, 3: 5, 7: 5, 11: 5}
    assert caller.read(session)["length"] == 0


def test_append_over_a_gap_is_a_conflict(caller: Caller, session: str) -> None:
    fill(caller, session, 5)

    rejected = caller.append(session, K[:2, :, :1], V[:2, :, :1], layer=2)
    filled = caller.append(session, K[:, :, :5], V[:, :, :5], layer=4)

    assert rejected.problem(409, "position-conflict")["length"] == 0
    assert filled.status == 200
    assert lengths(caller.info(session)) == dict.fromkeys((3, 4, 5, 6, 7, 11), 5)


def test_truncate_and_fork_keep_gaps(caller: Caller, session: str) -> None:
    fill(caller, session)

    forked = caller.post(f"/sessions/{session}/fork", {"id": f"{session}.fork", "length": 257})
    truncated = caller.post(f"/sessions/{session}/truncate", {"length": 20})

    assert (forked.status, truncated.status) == (201, 200)
    assert_holds(caller, f"{session}.fork", 257)
    assert_holds(caller, session, 20)
    caller.post(f"/sessions/{session}/truncate", {"length": 0})
    assert_holds(caller, session, 0)


@pytest.mark.parametrize("stop", [300, 0])
def test_export_and_import_keep_gaps(caller: Caller, session: str, stop: int) -> None:
    fill(caller, session, stop)

    file = exported(caller, session)
    response = imported(caller, f"{session}.copy", file)

    assert response.status == 201, response
    assert_holds(caller, f"{session}.copy", stop)
    rejected = caller.append(f"{session}.copy", K[:2, :, :1], V[:2, :, :1], layer=2)
    assert rejected.status == (409 if stop else 200)


@pytest.mark.parametrize("options", [{"layers": 5}, {"layers": 5, "codec": {}, "kv_heads": 2, "head_dim": 64}])
def test_export_and_import_keep_declared_layers(caller: Caller, session: str, options: dict[str, Any]) -> None:
    caller.put(f"/sessions/{session}", options)

    response = imported(caller, f"{session}.copy", exported(caller, session))

    assert response.status == 201, response
    assert lengths(response.body) == dict.fromkeys(range(5), 0)
    assert caller.append(f"{session}.copy", K, V).status == 200


@pytest.mark.parametrize("durability", ["ack", "spill"])
def test_restored_session_keeps_gaps(tmp_path: Path, durability: str) -> None:
    with service(tmp_path, kill=durability == "ack") as caller:
        for name, options in {"gaps": {}, "declared": {"layers": 12}, "empty": {"layers": 2}}.items():
            caller.put(f"/sessions/{name}", {"durability": durability, **options})
        fill(caller, "gaps")
        fill(caller, "declared")
        caller.append("zero", K[:, :, :0], V[:, :, :0], layer=1)

    with service(tmp_path) as caller:
        assert_holds(caller, "gaps", 300)
        assert lengths(caller.info("declared")) == {layer: 300 if layer in LAYERS else 0 for layer in range(12)}
        assert lengths(caller.info("empty")) == {0: 0, 1: 0}
        if durability == "spill":
            assert lengths(caller.info("zero")) == {1: 0, 2: 0, 3: 0}
        k, v = pair(3, 2, 1)
        statuses = [caller.append("gaps", k[row], v[row], layer=layer).status for row, layer in enumerate(LAYERS)]
        assert statuses == [200] * 3
        assert caller.read("gaps", start=300)["k"] == stream(k, DEFAULT)

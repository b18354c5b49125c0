"""Creating, showing, listing, deleting and expiring sessions, over HTTP."""

import json
from datetime import UTC, datetime, timedelta

from hadakv_kernels import Codec
from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, RUN_OVERHEAD_NBYTES, SESSION_OVERHEAD_NBYTES
from support.contract import JSON, MSGPACK, Caller, Json, stream
from support.inputs.arrays import DEFAULT, RNG, TTL_SECONDS, pair, row_nbytes

# PUT


def test_session_may_be_created_before_its_first_append(caller: Caller, session: str) -> None:
    requested = {
        "codec": {"bits": 6},
        "layers": 4,
        "kv_heads": 2,
        "head_dim": 128,
        "window": 100,
        "ttl_seconds": 3600.0,
    }
    k, v = pair(4, 2, 3, 128)

    made = caller.put(f"/sessions/{session}", requested)
    again = caller.put(f"/sessions/{session}", requested)
    appended = caller.append(session, k, v)
    afterwards = caller.put(f"/sessions/{session}", requested)

    assert [response.status for response in (made, again, appended, afterwards)] == [201, 200, 200, 200]
    info = made.body
    assert info["codec"]["k"]["bits"] == info["codec"]["v"]["bits"] == 6
    assert info["declared_layers"] == 4
    assert {name: info[name] for name in ("kv_heads", "head_dim", "window", "ttl_seconds")} == {
        "kv_heads": 2,
        "head_dim": 128,
        "window": 100,
        "ttl_seconds": 3600.0,
    }
    assert info["layers"] == [{"layer": layer, "start": 0, "length": 0} for layer in range(4)]
    assert (info["length"], info["nbytes"]) == (0, 0)
    assert appended.body["k"] == stream(k, Codec(bits=6))


def test_empty_put_leaves_every_field_open(caller: Caller, session: str) -> None:
    made = caller.send("PUT", f"/sessions/{session}")

    info = made.body
    open_fields = ("codec", "kv_heads", "head_dim", "declared_layers", "window", "ttl_seconds", "expires")
    assert made.status == 201
    assert [info[name] for name in open_fields] == [None] * 7
    assert caller.append(session, *pair(1, 3, 1, 256), codec={"bits": 2}).status == 200


def test_open_fields_may_be_set_later(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"layers": 2})

    statuses = [
        caller.put(f"/sessions/{session}", body).status
        for body in ({"head_dim": 64}, {"kv_heads": 1}, {"codec": {"bits": 3}}, {})
    ]
    k, v = pair(2, 1, 2)
    response = caller.append(session, k, v)

    assert statuses == [200] * 4
    assert response.body["v"] == stream(v, Codec(bits=3))


def test_put_of_the_same_fields_keeps_the_tokens(caller: Caller, session: str) -> None:
    caller.append(session, *pair(2, 1, 5))
    before = caller.read(session)

    response = caller.put(f"/sessions/{session}", {"codec": {"bits": 4}, "kv_heads": 1, "head_dim": 64, "layers": 2})

    assert (response.status, response.body["length"], response.body["declared_layers"]) == (200, 5, 2)
    assert caller.read(session) == before


# Description, list, deletion


def test_description_counts_tokens_and_bytes(caller: Caller, session: str) -> None:
    started = datetime.now(UTC)
    responses = [caller.append(session, *pair(3, 2, tokens, 256)) for tokens in (100, 200, 1)]
    sent = sum(len(part["data"]) for response in responses for name in "kv" for part in response.body[name].values())

    info = caller.info(session)

    moments = [datetime.fromisoformat(info[name]) for name in ("created", "last_used")]
    assert info["nbytes"] == sent
    assert info["raw_nbytes"] == 2 * 3 * 2 * 301 * 256 * 2
    assert info["layers"] == [{"layer": layer, "start": 0, "length": 301} for layer in range(3)]
    assert (info["session"], info["length"], info["tier"]) == (session, 301, "memory")
    assert (info["kv_heads"], info["head_dim"], info["declared_layers"]) == (2, 256, None)
    assert started - timedelta(seconds=1) <= moments[0] <= moments[1] <= datetime.now(UTC) + timedelta(seconds=1)


def test_append_and_read_update_last_used_and_show_does_not(caller: Caller, session: str) -> None:
    def last_used() -> datetime:
        return datetime.fromisoformat(caller.info(session)["last_used"])

    caller.append(session, *pair(1, 1, 1))
    made = last_used()
    caller.get("/sessions", prefix=session)
    looked = last_used()
    caller.read(session)
    read = last_used()
    caller.append(session, *pair(1, 1, 1))
    appended = last_used()

    assert made == looked < read < appended


# Fields of /readyz that differ between two calls.
GROWING = ("uptime_seconds", "checkpoint_lag_seconds")


def test_metadata_is_msgpack_on_request_and_json_otherwise(caller: Caller, session: str) -> None:
    caller.append(session, *pair(1, 1, 1))

    for path in (f"/sessions/{session}", "/sessions", "/healthz", "/readyz"):
        in_json, in_msgpack = caller.get(path), caller.get(path, accept=MSGPACK)
        assert in_json.headers["content-type"] == JSON
        assert in_msgpack.headers["content-type"] == MSGPACK
        assert {**in_msgpack.body, **dict.fromkeys(GROWING)} == {**in_json.body, **dict.fromkeys(GROWING)}


def test_session_may_be_created_with_json_or_msgpack(caller: Caller, session: str) -> None:
    body = {"layers": 2, "codec": {"bits": 5}}

    by_json = caller.send("PUT", f"/sessions/{session}.json", json.dumps(body).encode(), JSON, accept=MSGPACK)
    by_msgpack = caller.put(f"/sessions/{session}.msgpack", body)

    assert (by_json.headers["content-type"], by_msgpack.headers["content-type"]) == (MSGPACK, JSON)
    assert by_json.body["codec"] == by_msgpack.body["codec"] == {name: Codec(bits=5).to_mapping() for name in "kv"}


def test_list_has_every_session_of_a_prefix_in_order(caller: Caller, session: str) -> None:
    ids = [f"{session}.{number}" for number in RNG.permutation(230)]
    for id_ in ids:
        caller.put(f"/sessions/{id_}", {})
    caller.put(f"/sessions/other-{session}", {})
    listed: list[str] = []
    sizes: list[int] = []
    page: Json = {"next": ""}

    while page["next"] is not None:
        page = caller.get("/sessions", prefix=f"{session}.", limit=50, after=page["next"]).body
        listed += [record["session"] for record in page["sessions"]]
        sizes.append(len(page["sessions"]))

    assert listed == sorted(ids)
    assert sizes == [50, 50, 50, 50, 30]


def test_full_last_page_has_no_next(caller: Caller, session: str) -> None:
    for number in range(3):
        caller.put(f"/sessions/{session}.{number}", {})

    page = caller.get("/sessions", prefix=session, limit=3).body

    assert (len(page["sessions"]), page["next"]) == (3, None)
    assert page["sessions"][1] == caller.info(f"{session}.1")


def test_list_without_matches_is_empty(caller: Caller, session: str) -> None:
    assert caller.get("/sessions", prefix=session).body == {"sessions": [], "next": None}
    assert caller.get("/sessions", after="~").body == {"sessions": [], "next": None}


def test_delete_frees_the_bytes_and_the_id(alone: Caller, session: str) -> None:
    k, v = pair(2, 2, 600)
    before = alone.used_nbytes()
    alone.append(session, k, v)
    with_it = alone.used_nbytes()

    deleted = alone.delete(f"/sessions/{session}")

    assert (deleted.status, deleted.content) == (204, b"")
    packed = 2 * 2 * 2 * 600 * row_nbytes(DEFAULT, 64)
    assert with_it - before == packed + SESSION_OVERHEAD_NBYTES + RUN_OVERHEAD_NBYTES + 3 * PAGE_OVERHEAD_NBYTES
    assert alone.used_nbytes() == before
    again = alone.append(session, v[:, :1], k[:, :1], codec={"bits": 8})
    assert again.status == 201
    assert again.body["k"] == stream(v[:, :1], Codec(bits=8))


# TTL: the store's tests check the exact time; these check that the service reports and applies it


def test_ttl_sets_the_expiry_time(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"ttl_seconds": 100})
    caller.append(session, *pair(1, 1, 1))

    info = caller.info(session)

    lives = datetime.fromisoformat(info["expires"]) - datetime.fromisoformat(info["last_used"])
    assert lives == timedelta(seconds=100)


def test_expired_session_is_gone_and_its_id_is_free(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"ttl_seconds": 1e-6})

    responses = [caller.get(f"/sessions/{session}"), caller.delete(f"/sessions/{session}")]
    listed = caller.get("/sessions", prefix=session).body["sessions"]
    made = caller.append(session, *pair(1, 1, 1))

    for response in responses:
        response.problem(404, "session-not-found")
    assert listed == []
    assert made.status == 201
    assert caller.info(session)["ttl_seconds"] is None


def test_session_without_ttl_has_the_default_ttl(alone: Caller, session: str) -> None:
    alone.append(f"{session}.default", *pair(1, 1, 1))
    alone.put(f"/sessions/{session}.open", {})
    alone.put(f"/sessions/{session}.own", {"ttl_seconds": 7200})

    ttls = [alone.info(f"{session}.{name}")["ttl_seconds"] for name in ("default", "open", "own")]

    assert ttls == [TTL_SECONDS, TTL_SECONDS, 7200.0]

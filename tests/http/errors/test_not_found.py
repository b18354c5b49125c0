"""Missing sessions, paths and methods, and invalid session ids."""

from uuid import uuid4

import numpy as np
import pytest

from support.assertions import PACKED, K, V, assert_names_field
from support.contract import Caller

# 404 and 405


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/sessions/{}"), ("DELETE", "/sessions/{}"), ("GET", "/sessions/{}/kv")]
)
def test_session_never_created_is_not_found(caller: Caller, session: str, method: str, path: str) -> None:
    response = caller.send(method, path.format(session))

    assert response.problem(404, "session-not-found")["session"] == session


def test_deleted_session_is_not_found(caller: Caller, kept: str) -> None:
    caller.delete(f"/sessions/{kept}")

    responses = [
        caller.delete(f"/sessions/{kept}"),
        caller.get(f"/sessions/{kept}"),
        caller.get(f"/sessions/{kept}/kv"),
    ]

    for response in responses:
        response.problem(404, "session-not-found")


@pytest.mark.parametrize("path", ["/nowhere", "/sessions/", "/sessions/a/b/c", "/encode/", "/sessions/a/kv/"])
def test_unknown_path_is_not_found(caller: Caller, path: str) -> None:
    response = caller.get(path)

    response.problem(404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/sessions/a/kv", {"GET", "HEAD", "POST"}),
        ("DELETE", "/sessions/a/kv", {"GET", "HEAD", "POST"}),
        ("POST", "/sessions/a", {"GET", "HEAD", "PUT", "DELETE"}),
        ("DELETE", "/sessions", {"GET", "HEAD"}),
        ("GET", "/encode", {"POST"}),
        ("PUT", "/decode", {"POST"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
    ],
)
def test_wrong_method_is_rejected_with_the_allowed_ones(
    caller: Caller, method: str, path: str, allowed: set[str]
) -> None:
    response = caller.send(method, path)

    response.problem(405, "method-not-allowed")
    assert set(response.headers["allow"].replace(" ", "").split(",")) == allowed


# 422: session ids

BAD_IDS = {
    "a space": "a%20b",
    "a slash": "a%2Fb",
    "a slash before kv": "a%2Fkv",
    "a backslash": "a%5Cb",
    "an umlaut": "%C3%BC",
    "a percent sign": "a%25b",
    "a question mark": "a%3Fb",
    "an exclamation mark": "a!b",
    "a zero byte": "a%00",
    "a line end": "a%0A",
    "bytes that are no text": "%FF%FE",
    "a letter too many": "x" * 129,
    "one dot and no more": "%2E",
    "two dots and no more": "%2E%2E",
}


@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/sessions/{}/kv"),
        ("GET", "/sessions/{}/kv"),
        ("PUT", "/sessions/{}"),
        ("GET", "/sessions/{}"),
        ("DELETE", "/sessions/{}"),
    ],
)
def test_session_id_is_rejected(caller: Caller, method: str, path: str, bad: str) -> None:
    body = PACKED if method == "POST" else b""

    response = caller.send(method, path.format(bad), body)

    assert_names_field(response, "id")


def test_id_may_have_every_allowed_character(caller: Caller) -> None:
    signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
    ids = [signs, uuid4().hex * 4, f"z{uuid4().hex}:a.b_c-d", "...", ".a", "..a"]

    statuses = [caller.append(id_, K, V).status for id_ in ids]

    assert statuses == [201] * len(ids)
    assert [caller.info(id_)["session"] for id_ in ids] == ids


# All errors


def test_every_error_has_its_own_title(caller: Caller, kept: str) -> None:
    responses = [
        caller.send("POST", "/encode", b""),
        caller.get("/nowhere"),
        caller.get("/sessions/never-made"),
        caller.send("PATCH", "/sessions"),
        caller.append(kept, V, K, position=0),
        caller.append(kept, K[:, :1], V[:, :1]),
        caller.append(kept, K, V, codec={"bits": 2}),
        caller.put(f"/sessions/{kept}", {"layers": 1}),
        caller.send("POST", "/encode", PACKED, "text/plain"),
        caller.post("/encode", {}),
        caller.append(kept, K * np.float16(np.nan), V),
    ]

    kinds = {(response.body["type"], response.body["title"]) for response in responses}

    assert len({kind for kind, _ in kinds}) == len({title for _, title in kinds}) == len(responses)

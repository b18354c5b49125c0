"""Bearer tokens, and the separation of tenants."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hadakv_kernels import Codec
from hadakv_service.testing import running_service
from support.assertions import PACKED, K, V
from support.contract import MSGPACK, Caller, connect, status_line, stream
from support.inputs.session_files import exported, imported


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a service with two tenants, with the tokens `token-of-ann` and `token-of-bob`."""
    path: Path = tmp_path_factory.mktemp("tokens") / "tokens"
    digests = [f"{name}:{hashlib.sha256(f'token-of-{name}'.encode()).hexdigest()}" for name in ("ann", "bob")]
    path.write_text("\n".join(["# tokens", "", *digests, ""]), "utf-8")
    with running_service("--token-file", str(path)) as service:
        yield service.url


CALLS = [
    ("POST", "/sessions/hers/kv"),
    ("GET", "/sessions/hers/kv"),
    ("PUT", "/sessions/hers"),
    ("GET", "/sessions/hers"),
    ("DELETE", "/sessions/hers"),
    ("GET", "/sessions/hers/export"),
    ("POST", "/sessions/hers/import"),
    ("GET", "/sessions"),
    ("POST", "/encode"),
    ("POST", "/decode"),
    ("GET", "/metrics"),
    ("GET", "/docs/other"),
    ("GET", "/openapi.json/"),
    ("GET", "/nowhere"),
]
CREDENTIALS = ["", "Bearer", "Bearer wrong", "Basic token-of-ann", "token-of-ann", "Bearer token-of-ann2"]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_request_without_a_valid_token_is_rejected(guarded: str, method: str, path: str) -> None:
    with Caller(guarded, "token-of-ann") as ann, Caller(guarded) as stranger:
        ann.append("hers", K, V, position=0)
        before = ann.snapshot("hers")

        responses = [stranger.send(method, path, PACKED, authorization=credentials) for credentials in CREDENTIALS]
        responses.append(stranger.send(method, path, PACKED))

        for response in responses:
            response.problem(401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        assert ann.snapshot("hers") == before


def test_token_is_checked_before_the_body_is_read(guarded: str) -> None:
    head = f"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\nContent-Length: 1000000\r\n\r\n"

    with connect(guarded) as connection:
        connection.sendall(head.encode())
        line = status_line(connection)

    assert line.startswith(b"HTTP/1.1 401 ")


def test_probes_need_no_token(guarded: str) -> None:
    with Caller(guarded) as stranger:
        responses = [stranger.get("/healthz"), stranger.get("/readyz")]

    assert [response.status for response in responses] == [200, 200]


def test_session_of_another_tenant_is_not_found(guarded: str) -> None:
    with Caller(guarded, "token-of-ann") as ann, Caller(guarded, "token-of-bob") as bob:
        ann.append("secret", K, V)
        before = ann.snapshot("secret")

        responses = [bob.get("/sessions/secret"), bob.get("/sessions/secret/kv"), bob.delete("/sessions/secret")]
        created = bob.append("secret", V, K)

        for response in responses:
            response.problem(404, "session-not-found")
        assert created.status == 201, "the same name is free for another tenant"
        assert created.body["k"] == stream(V, Codec())
        assert ann.snapshot("secret") == before


def test_imported_session_belongs_to_the_importing_tenant(guarded: str) -> None:
    with Caller(guarded, "token-of-ann") as ann, Caller(guarded, "token-of-bob") as bob:
        ann.append("filed", K, V)
        before = ann.snapshot("filed")
        file = exported(ann, "filed")

        bob.get("/sessions/filed/export").problem(404, "session-not-found")
        created = imported(bob, "filed", file)
        bob.append("filed", V, K)

        assert created.status == 201, "the same name is free for another tenant"
        assert ann.snapshot("filed") == before


def test_list_has_only_sessions_of_the_tenant(guarded: str) -> None:
    with Caller(guarded, "token-of-ann") as ann, Caller(guarded, "token-of-bob") as bob:
        ann.append("list-of-ann", K, V)
        bob.append("list-of-bob", K, V)

        lists = [caller.get("/sessions", prefix="list-").body["sessions"] for caller in (ann, bob)]

    assert [[entry["session"] for entry in found] for found in lists] == [["list-of-ann"], ["list-of-bob"]]

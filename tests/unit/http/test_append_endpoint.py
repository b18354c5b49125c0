"""The append dispatcher: which requests go straight to the endpoint, and which go to the next app."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from hadakv_service.http.append_endpoint import AppendDispatcher


def reached(method: str, raw_path: bytes | None, kind: str = "http") -> tuple[str, str | None]:
    """Return which app gets a request, and the session id in its path parameters."""
    calls: list[tuple[str, str | None]] = []

    async def next_app(scope: Scope, _: Receive, __: Send) -> None:
        calls.append(("next app", scope.get("path_params", {}).get("id")))

    async def endpoint(scope: Scope, _: Receive, __: Send) -> None:
        calls.append(("endpoint", scope["path_params"]["id"]))

    async def unused() -> None:
        raise AssertionError

    dispatcher = AppendDispatcher(next_app, endpoint)
    scope = {"type": kind, "method": method, "raw_path": raw_path}
    asyncio.run(dispatcher(scope, unused, unused))  # type: ignore[arg-type]  # neither is called
    (call,) = calls
    return call


@pytest.mark.parametrize("session", ["a", "chat-1", "..", "a b", "A.b_c:d", "x" * 200])
def test_append_goes_to_the_endpoint(session: str) -> None:
    # The endpoint checks the id.
    assert reached("POST", f"/sessions/{session}/kv".encode()) == ("endpoint", session)


@pytest.mark.parametrize(
    "raw_path",
    [
        b"/sessions/a",
        b"/sessions//kv",
        b"/sessions/a/kv/",
        b"/sessions/a/b/kv",
        b"/sessions/a/fork",
        b"//sessions/a/kv",
        b"/sessions/a%2Fb/kv",
        b"/sessions/%61/kv",
        b"/sessions/a/k%76",
        b"/sessions%2Fa/kv",
        b"",
        None,
    ],
)
def test_other_paths_go_to_the_next_app(raw_path: bytes | None) -> None:
    assert reached("POST", raw_path) == ("next app", None)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "HEAD", "post"])
def test_other_methods_go_to_the_next_app(method: str) -> None:
    assert reached(method, b"/sessions/a/kv") == ("next app", None)


def test_lifespan_goes_to_the_next_app() -> None:
    assert reached("POST", b"/sessions/a/kv", "lifespan") == ("next app", None)

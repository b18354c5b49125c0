"""The functions for ASGI extensions, with servers that offer them and with servers that do not."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope

from hadakv_service import asgi_extensions
from hadakv_service.observability.request_record import RequestRecord

HEADERS = [(b"content-length", b"2")]
# Scopes of servers without extensions.
STOCK: list[dict[str, Any]] = [{}, {"extensions": None}, {"extensions": {}}, {"extensions": {"http.response.push": {}}}]


def receive_of(*messages: Message) -> Receive:
    remaining = iter(messages)

    async def receive() -> Message:
        return next(remaining)

    return receive


def body(content: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


async def unused(*_: object) -> Any:
    raise AssertionError("the extension replaces this function")


# receive_into


@pytest.mark.parametrize("scope", STOCK)
def test_receive_into_fallback_joins_messages(scope: Scope) -> None:
    buffer = bytearray(6)
    receive = receive_of(body(b"abc", more=True), {"type": "http.request", "more_body": True}, body(b"def", more=False))

    filled = asyncio.run(asgi_extensions.receive_into(scope, receive, memoryview(buffer)))

    assert filled
    assert buffer == b"abcdef"


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.disconnect"}],
        [body(b"abc", more=True), {"type": "http.disconnect"}],
        [body(b"abc", more=False)],
        [body(b"abc", more=True), body(b"defg", more=False)],
    ],
    ids=["disconnected", "disconnected later", "too short", "too long"],
)
def test_receive_into_fallback_reports_incomplete_body(messages: list[Message]) -> None:
    buffer = bytearray(8)

    filled = asyncio.run(asgi_extensions.receive_into({}, receive_of(*messages), memoryview(buffer)[:6]))

    assert not filled
    assert buffer[6:] == bytes(2)


@pytest.mark.parametrize("filled", [True, False])
def test_receive_into_uses_the_extension(filled: bool) -> None:
    buffers: list[memoryview] = []

    async def extension(buffer: memoryview) -> bool:
        buffers.append(buffer)
        return filled

    scope = {"extensions": {asgi_extensions.RECEIVE_INTO: extension}}
    buffer = memoryview(bytearray(6))

    assert asyncio.run(asgi_extensions.receive_into(scope, unused, buffer)) is filled
    assert buffers == [buffer]


# send_response


def sent_by(scope: Scope) -> list[Message]:
    """Messages that `send_response` passes to `send`."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(asgi_extensions.send_response(scope, send, 201, HEADERS, b"ok"))
    return sent


TWO_MESSAGES = [
    {"type": "http.response.start", "status": 201, "headers": HEADERS},
    {"type": "http.response.body", "body": b"ok", "more_body": False},
]


@pytest.mark.parametrize("scope", STOCK)
def test_send_response_fallback_sends_two_messages(scope: Scope) -> None:
    assert sent_by(scope) == TWO_MESSAGES


def scope_with_send_response(calls: list[tuple[Any, ...]], *, connected: bool = True) -> Scope:
    async def extension(*response: Any) -> bool:
        calls.append(response)
        return connected

    return {"extensions": {asgi_extensions.SEND_RESPONSE: extension}, "headers": [], "method": "POST"}


def test_send_response_uses_the_extension() -> None:
    calls: list[tuple[Any, ...]] = []

    assert sent_by(scope_with_send_response(calls)) == []
    assert calls == [(201, HEADERS, b"ok")]


def test_removed_send_response_falls_back() -> None:
    calls: list[tuple[Any, ...]] = []
    scope = scope_with_send_response(calls)

    asgi_extensions.remove_send_response(scope)

    assert sent_by(scope) == TWO_MESSAGES
    assert calls == []


@pytest.mark.parametrize("scope", STOCK)
def test_nothing_is_replaced_without_the_extension(scope: Scope) -> None:
    asgi_extensions.remove_send_response(scope)

    assert asgi_extensions.replace_send_response(scope, unused) is None
    assert sent_by(scope) == TWO_MESSAGES


@pytest.mark.parametrize(("connected", "outcome", "nbytes"), [(True, 201, 2), (False, 499, 0)])
def test_request_record_sees_a_single_write(connected: bool, outcome: int, nbytes: int) -> None:
    calls: list[tuple[Any, ...]] = []
    scope = scope_with_send_response(calls, connected=connected)
    record = RequestRecord(scope, unused)

    sent = sent_by(scope)

    assert sent == []
    assert calls == [(201, [*HEADERS, (b"x-request-id", record.id)], b"ok")]
    assert (record.outcome, record.sent) == (outcome, nbytes)


# is_disconnected


@pytest.mark.parametrize("scope", STOCK)
def test_is_disconnected_fallback_is_false(scope: Scope) -> None:
    assert asgi_extensions.is_disconnected(scope) is False


@pytest.mark.parametrize("disconnected", [True, False])
def test_is_disconnected_uses_the_extension(disconnected: bool) -> None:
    scope = {"extensions": {asgi_extensions.CLIENT_DISCONNECTED: lambda: disconnected}}

    assert asgi_extensions.is_disconnected(scope) is disconnected


# record_rejected


def test_record_rejected_fallback_is_empty() -> None:
    assert asgi_extensions.record_rejected({}, ("127.0.0.1", 1), None, 408, "request-timeout") == b""


def test_record_rejected_returns_the_request_id() -> None:
    calls: list[tuple[Any, ...]] = []

    def record(*rejected: Any) -> bytes:
        calls.append(rejected)
        return b"id"

    hook: dict[str, Callable[..., bytes]] = {asgi_extensions.RECORD_REJECTED: record}

    assert asgi_extensions.record_rejected(hook, ("127.0.0.1", 1), {"type": "http"}, 408, "request-timeout") == b"id"
    assert calls == [(("127.0.0.1", 1), {"type": "http"}, 408, "request-timeout")]


def test_extensions_import_no_server() -> None:
    program = "import sys, hadakv_service.asgi_extensions; print({'uvicorn', 'httptools'} & set(sys.modules))"

    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert finished.stdout.strip() == "set()"

"""The request log middleware: labels of requests, and errors that no other layer handles."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from hadakv_service.errors import SessionCorrupt
from hadakv_service.http.middleware.request_log import RequestLogMiddleware
from hadakv_service.http.request_body import read_small
from hadakv_service.observability.counters import RequestCounters
from hadakv_service.observability.request_record import OTHER, RequestRecord, RouteTemplates, current_id, format_address


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/a", "/a"),
        ("/a/x", "/a/{id}"),
        ("/a/{id}", "/a/{id}"),
        ("/a/x/b.c", "/a/{id}/b.c"),
        ("/a/x/bxc", OTHER),
        ("/a/x/y", OTHER),
        ("/a/", OTHER),
        ("/a\n", OTHER),
        ("", OTHER),
        ("/other", OTHER),
    ],
)
def test_path_matches_its_route_template(path: str, template: str) -> None:
    templates = RouteTemplates(["/a", "/a/{id}", "/a", "/a/{id}/b.c"])

    assert templates.match(path) == template


async def nowhere(_: Message) -> None:
    """Ignore a message."""


def test_unknown_method_is_counted_as_other() -> None:
    counters = RequestCounters()

    for method in ("GET", "PURGE", "GET", "BREW"):
        record = RequestRecord({"method": method, "headers": []}, nowhere)
        record.record_response("/a", 200, 3)
        counters.count(record, 200, 0.1)

    assert {key: calls.statuses for key, calls in counters.calls.items()} == {
        ("/a", "GET"): {200: 2},
        ("/a", OTHER): {200: 2},
    }


class OutOfOrder(Exception):
    """An unexpected error."""


async def reject(_: Scope, __: Receive, ___: Send) -> None:
    raise OutOfOrder


async def refuse_halfway(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise OutOfOrder


async def lack_halfway(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise SessionCorrupt("It is.")


async def be_cancelled(_: Scope, __: Receive, ___: Send) -> None:
    raise asyncio.CancelledError


async def be_cancelled_while_receiving(_: Scope, __: Receive, ___: Send) -> None:
    async def interrupted() -> Message:
        raise asyncio.CancelledError

    await read_small(interrupted, 1000)


async def be_cancelled_halfway(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise asyncio.CancelledError


async def do_nothing(_: Scope, __: Receive, ___: Send) -> None:
    """Send no response."""


def watched(app: Any, *, ending: bool = True) -> tuple[list[Message], dict[int, int], str]:
    """Send a request to an app. Return the messages sent, the counted statuses, and the request id at an error."""
    sent: list[Message] = []
    counters = RequestCounters()

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/a", "headers": [(b"x-request-id", b"mine")]}

    async def run() -> str:
        try:
            await RequestLogMiddleware(app, RouteTemplates(["/a"]), counters, None, lambda: ending)(
                scope, receive, send
            )
        except OutOfOrder:
            return current_id()
        return ""

    named = asyncio.run(run())
    assert counters.in_flight == 0
    return sent, counters.calls["/a", "GET"].statuses, named


def test_unhandled_error_becomes_a_problem() -> None:
    (head, body), statuses, named = watched(reject)

    assert (head["status"], statuses, named) == (500, {500: 1}, "")
    assert (b"x-request-id", b"mine") in head["headers"]
    assert json.loads(body["body"])["request_id"] == "mine"


def test_error_after_response_start_is_raised_and_counted() -> None:
    sent, statuses, named = watched(refuse_halfway)

    assert (len(sent), statuses, named) == (1, {500: 1}, "mine")


def test_service_error_after_response_start_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    sent, statuses, named = watched(lack_halfway)

    assert (len(sent), statuses, named) == (1, {410: 1}, "")
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("ERROR", None)]
    assert "It is." in caplog.text


@pytest.mark.parametrize(
    ("app", "slug", "again"), [(be_cancelled_while_receiving, "busy", True), (be_cancelled, "shutting-down", False)]
)
def test_shutdown_sends_retry_after_for_incomplete_bodies(app: Any, slug: str, again: bool) -> None:
    (head, body), statuses, _ = watched(app)

    assert (head["status"], statuses) == (503, {503: 1})
    assert json.loads(body["body"])["type"] == f"urn:hadakv:problem:{slug}"
    assert (b"retry-after" in dict(head["headers"])) == again


def test_cancellation_without_shutdown_is_raised() -> None:
    with pytest.raises(asyncio.CancelledError):
        watched(be_cancelled, ending=False)


def test_response_interrupted_by_shutdown_is_counted_as_499() -> None:
    sent, statuses, _ = watched(be_cancelled_halfway)

    assert (len(sent), statuses) == (1, {499: 1})


def test_request_without_response_is_counted_as_499() -> None:
    assert watched(do_nothing) == ([], {499: 1}, "")


@pytest.mark.parametrize(
    ("client", "reported"), [(("127.0.0.1", 5), "127.0.0.1:5"), (("::1", 5), "[::1]:5"), (None, None)]
)
def test_client_address_is_formatted(client: tuple[str, int] | None, reported: str | None) -> None:
    assert format_address(client) == reported

"""What every request meets first, by itself: the labels it may get, and errors that nothing behind it answers."""

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
def test_a_path_has_the_template_that_fits_it(path: str, template: str) -> None:
    templates = RouteTemplates(["/a", "/a/{id}", "/a", "/a/{id}/b.c"])

    assert templates.match(path) == template


async def nowhere(_: Message) -> None:
    """Nothing is sent."""


def test_a_method_that_is_not_known_is_counted_as_other() -> None:
    tally = RequestCounters()

    for method in ("GET", "PURGE", "GET", "BREW"):
        exchange = RequestRecord({"method": method, "headers": []}, nowhere)
        exchange.record_response("/a", 200, 3)
        tally.count(exchange, 200, 0.1)

    assert {key: calls.statuses for key, calls in tally.calls.items()} == {
        ("/a", "GET"): {200: 2},
        ("/a", OTHER): {200: 2},
    }


class OutOfOrder(Exception):
    """What nobody expected."""


async def refuse(_: Scope, __: Receive, ___: Send) -> None:
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
    """Answer nothing at all."""


def watched(app: Any, *, ending: bool = True) -> tuple[list[Message], dict[int, int], str]:
    """What is sent for a request to an app, how it is counted, and which request is named where an error ends up."""
    sent: list[Message] = []
    tally = RequestCounters()

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/a", "headers": [(b"x-request-id", b"mine")]}

    async def run() -> str:
        try:
            await RequestLogMiddleware(app, RouteTemplates(["/a"]), tally, None, lambda: ending)(scope, receive, send)
        except OutOfOrder:
            return current_id()
        return ""

    named = asyncio.run(run())
    assert tally.in_flight == 0
    return sent, tally.calls["/a", "GET"].statuses, named


def test_an_error_that_nothing_answered_is_a_problem() -> None:
    (head, body), statuses, named = watched(refuse)

    assert (head["status"], statuses, named) == (500, {500: 1}, "")
    assert (b"x-request-id", b"mine") in head["headers"]
    assert json.loads(body["body"])["request_id"] == "mine"


def test_an_error_in_the_midst_of_an_answer_is_raised_for_the_server_and_counted_as_a_failure() -> None:
    sent, statuses, named = watched(refuse_halfway)

    assert (len(sent), statuses, named) == (1, {500: 1}, "mine")


def test_an_answer_that_breaks_off_for_a_reason_is_counted_and_logged_as_that(caplog: pytest.LogCaptureFixture) -> None:
    sent, statuses, named = watched(lack_halfway)

    assert (len(sent), statuses, named) == (1, {410: 1}, "")
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("ERROR", None)]
    assert "It is." in caplog.text


@pytest.mark.parametrize(
    ("app", "slug", "again"), [(be_cancelled_while_receiving, "busy", True), (be_cancelled, "shutting-down", False)]
)
def test_only_who_the_end_of_the_service_kept_from_sending_all_is_told_to_come_again(
    app: Any, slug: str, again: bool
) -> None:
    (head, body), statuses, _ = watched(app)

    assert (head["status"], statuses) == (503, {503: 1})
    assert json.loads(body["body"])["type"] == f"urn:hadakv:problem:{slug}"
    assert (b"retry-after" in dict(head["headers"])) == again


def test_whoever_else_cancels_a_request_is_obeyed() -> None:
    with pytest.raises(asyncio.CancelledError):
        watched(be_cancelled, ending=False)


def test_an_answer_that_the_end_of_the_service_cuts_short_is_counted_as_one_that_did_not_arrive() -> None:
    sent, statuses, _ = watched(be_cancelled_halfway)

    assert (len(sent), statuses) == (1, {499: 1})


def test_a_request_without_an_answer_is_counted_as_gone() -> None:
    assert watched(do_nothing) == ([], {499: 1}, "")


@pytest.mark.parametrize(("client", "told"), [(("127.0.0.1", 5), "127.0.0.1:5"), (("::1", 5), "[::1]:5"), (None, None)])
def test_an_address_is_told_as_people_write_it(client: tuple[str, int] | None, told: str | None) -> None:
    assert format_address(client) == told

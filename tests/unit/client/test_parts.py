"""Appends and reads in parts, driven step by step: how the client learns the limit, and what a failed part leaves."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack
import numpy as np
import pytest

from hadakv_client import BodyTooLarge, ConnectionLost, Problem, ResponseTooLarge, Retries
from hadakv_client.http.kv import keys_values
from hadakv_client.parts.append import Append, append
from hadakv_client.parts.body_limit import PART_NBYTES, BodyLimit
from hadakv_client.parts.read import Read, read
from hadakv_client.protocol import Request, Response
from hadakv_client.retries import Flow, Sleep
from support.services.server_actions import LARGE, problem_document, store

NO_RETRIES = Retries(0)
# 1 layer, 1 head: 256 bytes a token, K and V together.
K = np.arange(1, 64_001, dtype=np.float16).reshape(1, 1, 1000, 64)
TOKEN_NBYTES = 256
Respond = Callable[[Request], Response]


def run(flow: Flow[Any], respond: Respond) -> tuple[Any, list[Request]]:
    """Run a flow. Return its result and the requests that it made."""
    requests = list[Request]()
    step = next(flow)
    try:
        while True:
            if isinstance(step, Sleep):
                step = flow.send(None)
                continue
            requests.append(step)
            try:
                response = respond(step)
            except ConnectionLost as error:
                step = flow.throw(error)
            else:
                step = flow.send(response)
    except StopIteration as done:
        return done.value, requests


def problem(status: int, slug: str, **fields: Any) -> Response:
    return Response(status, {}, json.dumps(problem_document(slug, **fields)).encode())


def stored(request: Request) -> Response:
    """Respond to an append like the service."""
    assert request.body is not None
    message = msgpack.unpackb(b"".join(request.body))
    position, tokens = message.get("position", 0), message["k"]["shape"][-2]
    result = {"session": "a", "position": position, "tokens": tokens, "length": position + tokens}
    return Response(200, {}, msgpack.packb(result))


def limited(limit: int) -> Respond:
    """Return a service that rejects larger bodies."""

    def respond(request: Request) -> Response:
        if request.path == "/healthz":
            return Response(200, {}, msgpack.packb({"status": "ok", "max_body_nbytes": limit}))
        assert request.body is not None
        return stored(request) if request.body.nbytes <= limit else problem(413, "body-too-large", limit=limit)

    return respond


def appending(
    k: Any = K, limit: BodyLimit | None = None, retries: Retries = NO_RETRIES, position: Any = 0
) -> Flow[Any]:
    arguments = Append("a", keys_values(k, k), 0, None, minimal=True, progress=None)
    return append(arguments, position, limit or BodyLimit(), retries)


def sizes(requests: list[Request]) -> list[int]:
    return [request.body.nbytes for request in requests if request.body is not None]


def test_rejection_names_the_limit_for_all_parts() -> None:
    limit = 100 * TOKEN_NBYTES

    result, requests = run(appending(), limited(limit))

    assert (result.tokens, result.length) == (1000, 1000)
    assert sizes(requests)[0] > 1000 * TOKEN_NBYTES
    assert max(sizes(requests)[1:]) <= limit
    assert len(requests) == 1 + 11


def test_sessions_of_a_client_share_the_limit() -> None:
    known = BodyLimit()
    run(appending(limit=known), limited(100 * TOKEN_NBYTES))

    _, requests = run(appending(limit=known), limited(100 * TOKEN_NBYTES))

    assert max(sizes(requests)) <= 100 * TOKEN_NBYTES


@pytest.mark.parametrize("position", [0, "end"])
def test_limit_that_shrinks_between_parts_is_taken(position: Any) -> None:
    calls = 0

    def respond(request: Request) -> Response:
        nonlocal calls
        calls += 1
        return limited(500 * TOKEN_NBYTES if calls < 3 else 20 * TOKEN_NBYTES)(request)

    result, requests = run(appending(position=position), respond)

    assert result.length == 1000
    assert max(sizes(requests)[4:]) <= 20 * TOKEN_NBYTES


@pytest.mark.parametrize("text", [b"<html>413 Request Entity Too Large</html>", b""], ids=["page", "empty"])
def test_proxy_that_names_no_limit_is_tried_with_halves(text: bytes) -> None:
    def respond(request: Request) -> Response:
        assert request.body is not None
        return stored(request) if request.body.nbytes <= 100_000 else Response(413, {}, text)

    result, requests = run(appending(), respond)

    assert result.length == 1000
    assert len([size for size in sizes(requests) if size > 100_000]) <= 2
    assert len(requests) <= 8


def test_proxy_that_rejects_everything_is_given_up() -> None:
    with pytest.raises(Problem) as raised:
        run(appending(), lambda _: Response(413, {}, b"no"))

    assert raised.value.status == 413


@pytest.mark.parametrize("limit", [0, 5, 1000, TOKEN_NBYTES])
def test_limit_below_one_token_is_raised(limit: int) -> None:
    with pytest.raises(BodyTooLarge) as raised:
        run(appending(), limited(limit))

    assert (raised.value.limit, raised.value.stored_tokens) == (limit, 0)


def test_rejection_of_a_small_enough_body_is_raised() -> None:
    with pytest.raises(BodyTooLarge):
        run(appending(), lambda _: problem(413, "body-too-large", limit=1 << 30))


def test_client_asks_for_the_limit_before_it_sends_much() -> None:
    result, requests = run(appending(limit=BodyLimit(10_000)), limited(100 * TOKEN_NBYTES))

    assert result.length == 1000
    assert [request.path for request in requests].count("/healthz") == 1
    assert requests[0].path == "/healthz"
    assert max(sizes(requests)) <= 100 * TOKEN_NBYTES


def test_parts_are_smaller_than_a_large_limit() -> None:
    layers = [np.ones((1, 1 << 16, 64), np.float16)] * 8

    result, requests = run(appending(layers, BodyLimit(10_000)), limited(100 << 20))

    assert result.length == 1 << 16
    assert max(sizes(requests)) <= PART_NBYTES


def test_body_below_the_reported_limit_is_sent_whole() -> None:
    _, requests = run(appending(limit=BodyLimit(10_000)), limited(1 << 20))

    assert [request.method for request in requests] == ["GET", "POST"]


@pytest.mark.parametrize(
    "answer", [Response(404, {}, b""), Response(200, {}, msgpack.packb({})), Response(200, {}, b"")]
)
def test_service_that_does_not_report_the_limit_gets_everything(answer: Response) -> None:
    result, requests = run(
        appending(limit=BodyLimit(10_000)), lambda request: answer if request.method == "GET" else stored(request)
    )

    assert result.length == 1000
    assert len(requests) == 2


def lose_fourth(calls: list[Request], request: Request) -> Response:
    """Respond to all requests but the fourth."""
    calls.append(request)
    if len(calls) == 4:
        raise ConnectionLost("lost")
    return limited(100 * TOKEN_NBYTES)(request)


def test_failed_part_says_where_to_go_on() -> None:
    with pytest.raises(ConnectionLost) as raised:
        run(appending(position=7), partial(lose_fourth, []))

    error = raised.value
    assert error.stored_tokens == 2 * 96
    assert error.next_position == 7 + 2 * 96
    assert "192 of 1000 tokens are stored" in error.__notes__[0]
    assert "position=7" in error.__notes__[0]


def test_part_is_retried_when_its_connection_breaks() -> None:
    result, requests = run(appending(retries=Retries(1)), partial(lose_fourth, []))

    assert result.length == 1000
    assert requests[3] is requests[4]


def test_parts_of_unequal_arrays_raise_before_anything_is_sent() -> None:
    known = BodyLimit()
    run(appending(limit=known), limited(100 * TOKEN_NBYTES))
    arguments = Append("a", keys_values(K, K[:, :, 1:]), 0, None, minimal=True, progress=None)

    with pytest.raises(ValueError, match="k and v must have the same layers and tokens"):
        run(append(arguments, 0, known, NO_RETRIES), limited(100 * TOKEN_NBYTES))


def reading() -> Flow[Any]:
    return read(Read("a", None, None, None, "float16", "linear", None, None), NO_RETRIES)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tokens": 5},
        {"tokens": 5, "start": 0, "stop": 10, "length": 10},
        {"tokens": 5, "start": "0", "stop": 10, "length": 10, "layers": [0]},
        {"tokens": 5, "start": 0, "stop": 10, "length": 10, "layers": [None]},
        {"tokens": 0, "start": 0, "stop": 10, "length": 10, "layers": [0]},
    ],
    ids=["nothing", "tokens", "no-layers", "string", "null", "nothing-fits"],
)
def test_read_that_cannot_be_split_raises(fields: dict[str, Any]) -> None:
    def respond(_: Request) -> Response:
        return problem(422, "response-too-large", limit=1000, errors=[], **fields)

    with pytest.raises(ResponseTooLarge):
        run(reading(), respond)


def test_service_that_rejects_every_part_is_given_up() -> None:
    extent = {"start": 0, "stop": 1000, "length": 1000, "layers": [0, 2, 5]}

    def respond(_: Request) -> Response:
        return problem(422, "response-too-large", limit=1000, errors=[], tokens=999, **extent)

    with pytest.raises(ResponseTooLarge):
        run(reading(), respond)


def test_append_of_a_handle_is_split(connect: Any, scripted_server: Any) -> None:
    def reject(exchange: Any) -> None:
        exchange.body()
        exchange.respond(413, problem_document("body-too-large", limit=40 << 20))

    server = scripted_server(reject, store, store)

    result = connect(server.url).session("a").append(LARGE, LARGE, position=0, minimal=True)

    assert result.length == LARGE.shape[2]
    assert server.calls == ["POST /sessions/a/kv"] * 3

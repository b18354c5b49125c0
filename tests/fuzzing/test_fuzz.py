"""A little of each target of `make fuzz`, always the same cases; and that a target sees what must not be."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from fuzzing import calls, connections, in_process, openapi_cases, parse, sessions
from fuzzing.deleted_sessions import Gone
from fuzzing.expected_state import Contradiction, Held
from fuzzing.report import Limit, Tally, table
from fuzzing.run import small_service
from fuzzing.streams import NoHttp, statuses
from hadakv_service.testing import RunningService
from support.contract import tensor


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with small_service() as running:
        yield running


def assert_clean(tally: Tally, *outcomes: str) -> None:
    """Nothing was found, and the cases are not one-sided."""
    assert tally.failures == []
    assert set(outcomes) <= set(tally.outcomes), tally


def test_the_service_answers_what_its_document_says(service: RunningService) -> None:
    tally = openapi_cases.run(service, Limit(cases=2), "fuzzing")

    assert_clean(tally, "200", "422")


def test_odd_calls_are_understood_or_refused_with_a_problem(service: RunningService) -> None:
    assert_clean(calls.run(service, Limit(cases=300)), "200", "201", "400", "404", "405", "409", "415", "422")


def test_odd_connections_are_answered_or_ended(service: RunningService) -> None:
    assert_clean(connections.run(service, Limit(cases=60)), "200", "201", "400", "404", "415")


def test_sessions_on_a_small_disk_hold_what_was_acknowledged() -> None:
    assert_clean(sessions.run(Limit(cases=60)), "200", "201", "404", "409", "422")


def test_inputs_of_the_parser_are_understood_or_refused() -> None:
    assert_clean(in_process.run("parse", Limit(cases=3_000)), "understood", "malformed-body", "invalid-request")


def test_inputs_of_a_connection_leave_nothing_behind() -> None:
    assert_clean(in_process.run("protocol", Limit(cases=300)), "200", "400", "nothing")


# That it would be seen


def test_an_answer_that_the_document_does_not_have_is_seen(service: RunningService, tmp_path: Path) -> None:
    document = httpx.get(f"{service.url}/openapi.json").json()
    document["paths"] = {"/healthz": document["paths"]["/healthz"]}
    health = document["components"]["schemas"]["Health"]
    del health["properties"]["version"], health["required"]
    changed = tmp_path / "openapi.json"
    changed.write_text(json.dumps(document), "utf-8")

    tally = openapi_cases.run(service, Limit(cases=1), "fuzzing", str(changed))

    assert len(tally.failures) == 1
    assert "version" in tally.failures[0]


def test_statuses_of_500_and_above_are_failures_but_for_busy_and_full() -> None:
    tally = Tally("x")

    tally.note_all([200, 503, 507, 500, 599], "GET /")
    tally.note_hang("GET /")
    tally.note_grown(1 << 30)

    assert (tally.cases, tally.faults, tally.hangs, len(tally.failures)) == (2, 2, 1, 4)
    assert "| x " in table([tally])


def appended(values: np.ndarray, position: int) -> dict[str, object]:
    stream = {"packed": tensor(values)}
    return {"position": position, "tokens": values.shape[2], "k": stream, "v": stream}


def test_a_session_that_does_not_hold_what_was_acknowledged_is_seen() -> None:
    held, values = Held(), np.arange(24, dtype=np.uint8).reshape(1, 1, 3, 8)
    held.append(0, appended(values, 0))
    read = {"start": 1, "stop": 3, **{name: {"packed": tensor(values[:, :, 1:])} for name in "kv"}}
    held.check(0, read)

    with pytest.raises(Contradiction, match="not what was stored"):
        held.check(0, {**read, "start": 0, "stop": 2})
    with pytest.raises(Contradiction, match="an append went to 4"):
        held.append(0, appended(values, 4))
    with pytest.raises(Contradiction, match="not what was stored"):
        held.truncated(2).check(0, read)


def test_a_session_that_is_there_though_it_was_deleted_is_seen() -> None:
    read, delete, fork = ("GET", "/sessions/{id}/kv"), ("DELETE", "/sessions/{id}"), ("POST", "/sessions/{id}/fork")
    gone = Gone()
    for call, session, body, status in [
        *[(read, "a", None, 200), (delete, "a", None, 204), (read, "a", None, 404), (delete, "a", None, 404)],
        *[(("POST", "/sessions/{id}/kv"), "a", {}, 201), (read, "a", None, 200), (delete, "a", None, 204)],
        *[
            (fork, "b", {"id": "a"}, 404),
            (fork, "b", {"id": "a"}, 201),
            (read, "a", None, 200),
            (delete, "a", None, 204),
        ],
    ]:
        gone.note(call, session, body, status)

    for call in (read, delete, fork):
        with pytest.raises(Contradiction, match="'a' was deleted"):
            gone.note(call, "a", {"id": "c"}, 200)


def test_what_is_no_answer_is_seen() -> None:
    assert statuses(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 400 B") == [204, 400]
    with pytest.raises(NoHttp):
        statuses(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxx")


def test_the_other_parser_knows_what_is_well_formed() -> None:
    bodies = (b"", b"\xc1", b"\x91", b"\xc4\x05abc", b"\x01\x01", b"\xc9\xff\xff\xff\xff\x00")
    refused = [parse.refusal(body) for body in bodies]

    assert None not in refused
    assert parse.refusal(b"\x82\x90\xc0\xc4\x01\xff\xc7\x01\x05z") is None
    # A time with more nanoseconds than a second has.
    assert parse.refusal(b"\xd7\xff" + b"\xff" * 8) is None

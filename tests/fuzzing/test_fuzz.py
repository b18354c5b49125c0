"""A few fixed cases of each target of `make fuzz`, and proof that each target detects failures."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from fuzzing.deleted_sessions import DeletedSessions
from fuzzing.expected_state import Contradiction, ExpectedSession
from fuzzing.report import Limit, Tally, table
from fuzzing.run import small_service
from fuzzing.streams import InvalidHttp, statuses
from fuzzing.targets import calls, connections, in_process, openapi_cases, parse, sessions
from hadakv_service.testing import RunningService
from support.contract import tensor


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with small_service() as running:
        yield running


def assert_clean(tally: Tally, *outcomes: str) -> None:
    """Assert that there were no failures, and that every outcome occurred."""
    assert tally.failures == []
    assert set(outcomes) <= set(tally.outcomes), tally


def test_responses_match_the_openapi_document(service: RunningService) -> None:
    tally = openapi_cases.run(service, Limit(cases=2), "fuzzing")

    assert_clean(tally, "200", "422")


def test_odd_requests_succeed_or_get_a_problem_document(service: RunningService) -> None:
    assert_clean(calls.run(service, Limit(cases=300)), "200", "201", "400", "404", "405", "409", "415", "422")


def test_odd_streams_are_answered_or_ended(service: RunningService) -> None:
    assert_clean(connections.run(service, Limit(cases=60)), "200", "201", "400", "404", "415")


def test_sessions_on_a_small_disk_keep_acknowledged_data() -> None:
    assert_clean(sessions.run(Limit(cases=60)), "200", "201", "404", "409", "422")


def test_parser_inputs_are_understood_or_rejected() -> None:
    assert_clean(in_process.run("parse", Limit(cases=3_000)), "understood", "malformed-body", "invalid-request")


def test_connection_inputs_leave_no_tasks() -> None:
    assert_clean(in_process.run("protocol", Limit(cases=300)), "200", "400", "nothing")


# Failures are detected


def test_undocumented_response_is_detected(service: RunningService, tmp_path: Path) -> None:
    document = httpx.get(f"{service.url}/openapi.json").json()
    document["paths"] = {"/healthz": document["paths"]["/healthz"]}
    health = document["components"]["schemas"]["Health"]
    del health["properties"]["version"], health["required"]
    changed = tmp_path / "openapi.json"
    changed.write_text(json.dumps(document), "utf-8")

    tally = openapi_cases.run(service, Limit(cases=1), "fuzzing", str(changed))

    assert len(tally.failures) == 1
    assert "version" in tally.failures[0]


def test_5xx_is_a_failure_except_busy_and_full() -> None:
    tally = Tally("x")

    tally.record_all([200, 503, 507, 500, 599], "GET /")
    tally.record_timeout("GET /")
    tally.record_growth(1 << 30)

    assert (tally.cases, tally.faults, tally.timeouts, len(tally.failures)) == (2, 2, 1, 4)
    assert "| x " in table([tally])


def appended(values: np.ndarray, position: int) -> dict[str, object]:
    stream = {"packed": tensor(values)}
    return {"position": position, "tokens": values.shape[2], "k": stream, "v": stream}


def test_wrong_session_content_is_detected() -> None:
    held, values = ExpectedSession(), np.arange(24, dtype=np.uint8).reshape(1, 1, 3, 8)
    held.append(0, appended(values, 0))
    read = {"layers": [0], "start": 1, "stop": 3, **{name: {"packed": tensor(values[:, :, 1:])} for name in "kv"}}
    held.check(read)

    with pytest.raises(Contradiction, match="not what was stored"):
        held.check({**read, "start": 0, "stop": 2})
    with pytest.raises(Contradiction, match="an append went to 4"):
        held.append(0, appended(values, 4))
    with pytest.raises(Contradiction, match="not what was stored"):
        held.truncated(2).check(read)


def test_deleted_session_that_is_found_is_detected() -> None:
    read, delete, fork = ("GET", "/sessions/{id}/kv"), ("DELETE", "/sessions/{id}"), ("POST", "/sessions/{id}/fork")
    gone = DeletedSessions()
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
        gone.record(call, session, body, status)

    for call in (read, delete, fork):
        with pytest.raises(Contradiction, match="'a' was deleted"):
            gone.record(call, "a", {"id": "c"}, 200)


def test_invalid_http_response_is_detected() -> None:
    assert statuses(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 400 B") == [204, 400]
    with pytest.raises(InvalidHttp):
        statuses(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxx")


def test_msgpack_rejects_malformed_values() -> None:
    bodies = (b"", b"\xc1", b"\x91", b"\xc4\x05abc", b"\x01\x01", b"\xc9\xff\xff\xff\xff\x00")
    refused = [parse.refusal(body) for body in bodies]

    assert None not in refused
    assert parse.refusal(b"\x82\x90\xc0\xc4\x01\xff\xc7\x01\x05z") is None
    # A timestamp with more nanoseconds than a second has.
    assert parse.refusal(b"\xd7\xff" + b"\xff" * 8) is None

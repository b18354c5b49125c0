"""Conversion of problem documents to exceptions, and the exception tree."""

import contextlib
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hadakv_client
from hadakv_client import (
    BodyTooLarge,
    Busy,
    CodecMismatch,
    Conflict,
    ConnectionLost,
    FileCorrupt,
    ForbiddenOrigin,
    HadakvError,
    HeadersTooLarge,
    InsufficientStorage,
    InternalError,
    InvalidRequest,
    MalformedBody,
    MalformedRequest,
    NonFinite,
    NotFound,
    PositionConflict,
    Problem,
    ProtocolError,
    QuotaExceeded,
    RequestTimeout,
    ResponseTooLarge,
    SessionCorrupt,
    SessionExists,
    SessionNotFound,
    ShapeMismatch,
    ShuttingDown,
    StorageUnavailable,
    Timeout,
    TransportError,
    Unauthorized,
    UnknownHost,
    UnsupportedMediaType,
)
from hadakv_client.http.problems import problem
from hadakv_client.protocol import Response

PROBLEMS = [
    (400, "malformed-body", {}, MalformedBody),
    (400, "malformed-request", {}, MalformedRequest),
    (401, "unauthorized", {}, Unauthorized),
    (403, "forbidden-origin", {}, ForbiddenOrigin),
    (404, "not-found", {}, NotFound),
    (404, "session-not-found", {"session": "a"}, SessionNotFound),
    (409, "shape-mismatch", {"kv_heads": 2}, ShapeMismatch),
    (409, "codec-mismatch", {}, CodecMismatch),
    (409, "session-exists", {}, SessionExists),
    (409, "position-conflict", {"length": 7}, PositionConflict),
    (408, "request-timeout", {}, RequestTimeout),
    (410, "session-corrupt", {}, SessionCorrupt),
    (413, "body-too-large", {"limit": 1024}, BodyTooLarge),
    (415, "unsupported-media-type", {}, UnsupportedMediaType),
    (421, "unknown-host", {"host": "box"}, UnknownHost),
    (422, "invalid-request", {"errors": [{"field": "k", "reason": "is missing"}]}, InvalidRequest),
    (422, "response-too-large", {"limit": 1024, "errors": []}, ResponseTooLarge),
    (422, "file-corrupt", {}, FileCorrupt),
    (422, "non-finite", {"stream": "v", "layer": 1, "head": 2, "token": 3}, NonFinite),
    (431, "headers-too-large", {"limit": 1024}, HeadersTooLarge),
    (500, "internal-error", {}, InternalError),
    (503, "busy", {}, Busy),
    (503, "storage-unavailable", {}, StorageUnavailable),
    (503, "shutting-down", {}, ShuttingDown),
    (507, "insufficient-storage", {}, InsufficientStorage),
    (507, "quota-exceeded", {"resource": "bytes", "needed": 7, "quota": 5}, QuotaExceeded),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
members = st.sampled_from(["type", "title", "status", "detail", "length", "limit", "stream", "layer", "errors"])
slugs = st.sampled_from([f"urn:hadakv:problem:{slug}" for _, slug, _, _ in PROBLEMS])


def document(slug: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"urn:hadakv:problem:{slug}", "title": "Title", "status": 0, "detail": "Detail.", **fields}


def raised_error(status: int, body: bytes, **headers: str) -> HadakvError:
    with pytest.raises(HadakvError) as raised:
        Response(status, headers, body).document()
    return raised.value


@pytest.mark.parametrize(("status", "slug", "fields", "kind"), PROBLEMS, ids=[kind[1] for kind in PROBLEMS])
def test_every_slug_maps_to_its_exception(status: int, slug: str, fields: dict[str, Any], kind: type[Problem]) -> None:
    error = raised_error(status, json.dumps(document(slug, **fields)).encode())

    assert type(error) is kind
    assert (error.status, error.slug, error.title, error.detail) == (status, slug, "Title", "Detail.")
    assert error.fields == fields
    assert str(error) == f"Detail. ({status} {slug})"


def test_members_become_attributes() -> None:
    conflict = problem(409, document("position-conflict", length=7))
    large = problem(413, document("body-too-large", limit=1024))
    value = problem(422, document("non-finite", stream="v", layer=1, head=2, token=3))
    invalid = problem(422, document("invalid-request", errors=[{"field": "k.shape", "reason": "is missing"}]))

    assert isinstance(conflict, PositionConflict)
    assert conflict.length == 7
    assert isinstance(large, BodyTooLarge)
    assert large.limit == 1024
    assert isinstance(value, NonFinite)
    assert (value.stream, value.layer, value.head, value.token, value.row) == ("v", 1, 2, 3, None)
    assert isinstance(invalid, InvalidRequest)
    assert invalid.errors == [("k.shape", "is missing")]


@pytest.mark.parametrize(
    ("members", "header", "expected"),
    [({"request_id": "a"}, "b", "a"), ({}, "b", "b"), ({"request_id": "a"}, None, "a"), ({}, None, "")],
)
def test_request_id_comes_from_the_body_or_the_header(
    members: dict[str, Any], header: str | None, expected: str
) -> None:
    headers = {} if header is None else {"x-request-id": header}

    error = raised_error(422, json.dumps(document("invalid-request", **members)).encode(), **headers)

    assert isinstance(error, Problem)
    assert error.request_id == expected


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, MalformedBody),
        (404, NotFound),
        (405, Problem),
        (409, Conflict),
        (418, Problem),
        (422, InvalidRequest),
        (502, InternalError),
        (503, Busy),
        (599, InternalError),
    ],
)
@pytest.mark.parametrize("type_", ["urn:hadakv:problem:unknown", "about:blank", 5])
def test_unknown_slug_maps_to_the_exception_of_its_status(status: int, kind: type[Problem], type_: object) -> None:
    error = raised_error(status, json.dumps({"type": type_, "title": "Title"}).encode())

    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize("length", [None, "7", 7.0])
def test_missing_member_maps_to_the_parent_exception(length: object) -> None:
    error = problem(409, document("position-conflict", length=length))

    assert type(error) is Conflict
    assert error.slug == "position-conflict"


@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_response_without_problem_document_is_a_problem(body: bytes) -> None:
    error = raised_error(502, body)

    assert type(error) is InternalError
    assert error.title == "Bad Gateway"


@pytest.mark.parametrize(
    ("header", "seconds"), [("0", 0.0), ("17", 17.0), ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("-1", None), ("", None)]
)
def test_retry_after_accepts_seconds_only(header: str, seconds: float | None) -> None:
    error = raised_error(503, b"{}", **{"retry-after": header})

    assert isinstance(error, Busy)
    assert error.retry_after == seconds


@pytest.mark.parametrize("status", [100, 204, 301, 304, 399])
def test_unexpected_status_raises_protocol_error(status: int) -> None:
    assert type(raised_error(status, b"")) is ProtocolError


@pytest.mark.parametrize("body", [b"", b"<html>Login</html>", b"\x92\x01\x02", b"\x81\xa1a", b"\xc1", b"\x80\x80"])
def test_body_that_is_not_a_map_raises_protocol_error(body: bytes) -> None:
    assert type(raised_error(200, body)) is ProtocolError


@given(st.integers(200, 599), st.binary(), st.text())
def test_any_response_is_a_map_or_raises_hadakv_error(status: int, body: bytes, header: str) -> None:
    with contextlib.suppress(HadakvError):
        assert isinstance(Response(status, {"retry-after": header}, body).document(), dict)


@given(st.integers(400, 599), st.dictionaries(members, slugs | json_values))
def test_any_problem_document_raises_a_problem_of_its_status(status: int, document: dict[str, Any]) -> None:
    error = raised_error(status, json.dumps(document).encode())

    assert isinstance(error, Problem)
    assert error.status == status
    assert str(error)
    assert not isinstance(error, InvalidRequest) or isinstance(error.errors, list)


@pytest.mark.parametrize(
    "error",
    [
        problem(409, document("position-conflict", length=7)),
        problem(503, document("busy"), 2.0),
        ConnectionLost("connection lost", sent=False),
        Timeout("timed out"),
        ProtocolError("invalid response"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled(error: HadakvError) -> None:
    again = pickle.loads(pickle.dumps(error))

    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_all_errors_derive_from_hadakv_error() -> None:
    exported = [getattr(hadakv_client, name) for name in hadakv_client.__all__]
    errors = {each for each in exported if isinstance(each, type) and issubclass(each, Exception)}

    assert {each for each in errors if not issubclass(each, HadakvError)} == {hadakv_client.UnsupportedCodec}
    assert {each for each in errors if issubclass(each, TransportError)} == {TransportError, ConnectionLost, Timeout}

"""Rejections of the real service, as exceptions of both clients."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hadakv_client import (
    BodyTooLarge,
    CodecMismatch,
    Encoded,
    InsufficientStorage,
    InvalidRequest,
    NonFinite,
    PositionConflict,
    ResponseTooLarge,
    SessionExists,
    SessionNotFound,
    ShapeMismatch,
    Unauthorized,
)
from hadakv_service.testing import running_service

pytestmark = pytest.mark.every_backend

DIGEST = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"


@pytest.fixture(scope="module")
def limited_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Run a service with small limits that requires a token."""
    tokens = tmp_path_factory.mktemp("limited_service") / "tokens"
    tokens.write_text(f"alice:{DIGEST}\n")
    with running_service("--token-file", str(tokens), "--max-body", "2MiB", "--memory-budget", "1MiB") as service:
        yield service


@pytest.mark.parametrize(("layer", "head", "token"), [(0, 0, 0), (1, 2, 4)])
def test_append_of_nan_raises_non_finite_with_its_place(
    session: Any, k: Any, v: Any, layer: int, head: int, token: int
) -> None:
    v[layer, head, token, 17] = np.nan

    with pytest.raises(NonFinite) as raised:
        session.append(k, v, layer=3)

    assert (raised.value.stream, raised.value.layer) == ("v", 3 + layer)
    assert (raised.value.head, raised.value.token) == (head, token)
    with pytest.raises(SessionNotFound):
        session.info()


def test_error_has_the_request_id(session: Any) -> None:
    with pytest.raises(SessionNotFound) as raised:
        session.info()

    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", raised.value.request_id)


def test_encode_of_infinity_raises_non_finite_with_its_row(client: Any, k: Any) -> None:
    k[0, 1, 2, 3] = np.inf

    with pytest.raises(NonFinite) as raised:
        client.encode(k)

    assert (raised.value.stream, raised.value.row, raised.value.layer) == ("x", 7, None)


def test_response_over_the_limit_raises_response_too_large(connect: Any, limited_service: Any) -> None:
    x = np.ones((1, 8, 200, 512), np.uint8)
    encoded = Encoded(x[..., :128], np.ones((1, 8, 200, 2), np.float32))

    with pytest.raises(ResponseTooLarge) as raised:
        connect(limited_service.url, token="secret").decode(encoded, {"bits": 2}, 512)

    assert raised.value.limit == 2 << 20


def test_mismatched_k_and_v_raise_invalid_request_with_field(session: Any, k: Any, v: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        session.append(k, v[:, :2])

    assert [error.field for error in raised.value.errors] == ["v.shape"]


def test_append_without_layers_raises_invalid_request(session: Any, k: Any, v: Any) -> None:
    with pytest.raises(InvalidRequest, match="at least one layer"):
        session.append(k[:0], v[:0])


def test_read_outside_the_session_raises_invalid_request(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    for wanted in ({"start": 6}, {"layers": (0, 3)}, {"start": -1}):
        with pytest.raises(InvalidRequest) as raised:
            session.read(**wanted)
        assert [error.field for error in raised.value.errors] == list(wanted)


def test_other_shape_raises_shape_mismatch(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    with pytest.raises(ShapeMismatch):
        session.append(k[:, :2], v[:, :2])
    with pytest.raises(SessionExists):
        session.create(head_dim=128)


def test_other_codec_raises_codec_mismatch(client: Any, session_id: str, k: Any, v: Any) -> None:
    client.session(session_id, {"bits": 4}).append(k, v)

    with pytest.raises(CodecMismatch):
        client.session(session_id, {"bits": 3}).append(k, v)


@pytest.mark.parametrize("token", [None, "wrong"])
def test_wrong_token_raises_unauthorized(connect: Any, limited_service: Any, token: str | None) -> None:
    large = np.ones((1, 8, 4096, 512), np.float16)
    client = connect(limited_service.url, token=token)

    with pytest.raises(Unauthorized):
        list(client.sessions())
    with pytest.raises(Unauthorized):
        client.session("a").append(large, large, position=0)
    assert client.healthy()


def test_one_token_over_the_limit_raises_body_too_large(connect: Any, limited_service: Any) -> None:
    one_token = np.ones((1, 1100, 1, 512), np.float16)

    with pytest.raises(BodyTooLarge, match="Send less at a time") as raised:
        connect(limited_service.url, token="secret").session("a").append(one_token, one_token)

    assert raised.value.limit == 2 << 20


def test_append_over_memory_budget_raises_insufficient_storage(connect: Any, limited_service: Any) -> None:
    x = np.ones((1, 1, 1800, 256), np.float16)
    session = connect(limited_service.url, token="secret").session("full", {"kind": "float16"})

    with pytest.raises(InsufficientStorage):
        session.append(x, x)
    with pytest.raises(SessionNotFound):
        session.info()


def test_append_to_evicted_session_raises_position_conflict(connect: Any, limited_service: Any) -> None:
    x = np.ones((1, 1, 800, 256), np.float16)
    client = connect(limited_service.url, token="secret")
    first, second = (client.session(name, {"kind": "float16"}) for name in ("first", "second"))

    first.append(x, x)
    second.append(x, x)

    with pytest.raises(PositionConflict) as raised:
        first.append(x, x)
    assert raised.value.length == 0

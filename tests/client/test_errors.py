"""What the real service refuses, as the exceptions of the real clients."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hadakv_client import (
    AnswerTooLarge,
    BodyTooLarge,
    CodecMismatch,
    Encoded,
    InsufficientStorage,
    InvalidRequest,
    NonFinite,
    PositionConflict,
    SessionExists,
    SessionNotFound,
    ShapeMismatch,
    Unauthorized,
)
from hadakv_service.spawn import running_service

pytestmark = pytest.mark.every_backend

DIGEST = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service with little room that wants a token."""
    tokens = tmp_path_factory.mktemp("narrow") / "tokens"
    tokens.write_text(f"alice:{DIGEST}\n")
    with running_service("--token-file", str(tokens), "--max-body", "1MiB", "--memory-budget", "256KiB") as service:
        yield service


@pytest.mark.parametrize(("layer", "head", "token"), [(0, 0, 0), (1, 2, 4)])
def test_what_is_not_finite_is_refused_by_its_place(
    session: Any, k: Any, v: Any, layer: int, head: int, token: int
) -> None:
    v[layer, head, token, 17] = np.nan

    with pytest.raises(NonFinite) as refused:
        session.append(k, v, layer=3)

    assert (refused.value.stream, refused.value.layer) == ("v", 3 + layer)
    assert (refused.value.head, refused.value.token) == (head, token)
    with pytest.raises(SessionNotFound):
        session.info()


def test_a_refusal_names_the_request_as_the_services_log_does(session: Any) -> None:
    with pytest.raises(SessionNotFound) as refused:
        session.info()

    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", refused.value.request_id)


def test_what_is_not_finite_is_not_encoded(client: Any, k: Any) -> None:
    k[0, 1, 2, 3] = np.inf

    with pytest.raises(NonFinite) as refused:
        client.encode(k)

    assert (refused.value.stream, refused.value.row, refused.value.layer) == ("x", 7, None)


def test_an_answer_larger_than_any_body_may_be_is_refused(connect: Any, narrow: Any) -> None:
    x = np.ones((1, 8, 200, 512), np.uint8)
    encoded = Encoded(x[..., :128], np.ones((1, 8, 200, 2), np.float32))

    with pytest.raises(AnswerTooLarge) as refused:
        connect(narrow.url, token="secret").decode(encoded, {"bits": 2}, 512)

    assert refused.value.limit == 1 << 20


def test_tensors_that_disagree_are_refused_by_field(session: Any, k: Any, v: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        session.append(k, v[:, :2])

    assert [error.field for error in refused.value.errors] == ["v.shape"]


def test_no_layers_are_refused(session: Any, k: Any, v: Any) -> None:
    with pytest.raises(InvalidRequest, match="at least one layer"):
        session.append(k[:0], v[:0])


def test_a_range_the_session_does_not_have_is_refused(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    for wanted in ({"start": 6}, {"layers": (0, 3)}, {"start": -1}):
        with pytest.raises(InvalidRequest) as refused:
            session.read(**wanted)
        assert [error.field for error in refused.value.errors] == list(wanted)


def test_another_shape_than_the_session_s_is_a_mismatch(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    with pytest.raises(ShapeMismatch):
        session.append(k[:, :2], v[:, :2])
    with pytest.raises(SessionExists):
        session.create(head_dim=128)


def test_another_codec_than_the_session_s_is_a_mismatch(client: Any, session_id: str, k: Any, v: Any) -> None:
    client.session(session_id, {"bits": 4}).append(k, v)

    with pytest.raises(CodecMismatch):
        client.session(session_id, {"bits": 3}).append(k, v)


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_the_token_nothing_is_answered(connect: Any, narrow: Any, token: str | None) -> None:
    large = np.ones((1, 8, 4096, 512), np.float16)
    client = connect(narrow.url, token=token)

    with pytest.raises(Unauthorized):
        list(client.sessions())
    with pytest.raises(Unauthorized):
        client.session("a").append(large, large, position=0)
    assert client.healthy()


def test_too_large_a_body_is_refused_with_the_limit(connect: Any, narrow: Any) -> None:
    large = np.ones((1, 8, 4096, 512), np.float16)

    with pytest.raises(BodyTooLarge) as refused:
        connect(narrow.url, token="secret").session("a").append(large, large)

    assert refused.value.limit == 1 << 20


def test_what_does_not_fit_the_memory_is_refused(connect: Any, narrow: Any) -> None:
    x = np.ones((1, 1, 600, 256), np.float16)
    session = connect(narrow.url, token="secret").session("full", {"kind": "float16"})

    with pytest.raises(InsufficientStorage):
        session.append(x, x)
    with pytest.raises(SessionNotFound):
        session.info()


def test_an_evicted_session_is_gone_and_its_handle_says_so(connect: Any, narrow: Any) -> None:
    x = np.ones((1, 1, 200, 256), np.float16)
    client = connect(narrow.url, token="secret")
    first, second = (client.session(name, {"kind": "float16"}) for name in ("first", "second"))

    first.append(x, x)
    second.append(x, x)

    with pytest.raises(PositionConflict) as refused:
        first.append(x, x)
    assert refused.value.length == 0

"""Appends that are larger than the service's limit for bodies."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hadakv_client import InsufficientStorage, NonFinite, PositionConflict, SessionNotFound
from hadakv_kernels import Codec, reference
from hadakv_service.testing import running_service
from support.inputs.codecs import assert_same
from support.inputs.long_sessions import expected

EVERYTHING = slice(None)


def assert_stored(session: Any, tokens: slice = EVERYTHING) -> None:
    """Check that a session has exactly these tokens of the long arrays."""
    found = session.read()
    assert_same(found.k, expected("k", tokens))
    assert_same(found.v, expected("v", tokens))


def test_append_over_the_limit_stores_and_returns_all_tokens(session: Any, long_k: Any, long_v: Any) -> None:
    result = session.append(long_k, long_v, position=0)

    assert (result.position, result.tokens, result.length, result.created) == (0, 10_000, 10_000, True)
    assert_same(result.k, expected("k", EVERYTHING))
    assert_same(result.v, expected("v", EVERYTHING))
    assert not result.k.packed.flags.writeable
    assert_stored(session)


def test_progress_counts_the_stored_tokens(session: Any, long_k: Any, long_v: Any) -> None:
    calls: list[tuple[int, int]] = []

    session.append(long_k, long_v, minimal=True, progress=lambda done, total: calls.append((done, total)))
    session.append(long_k[:, :, :10], long_v[:, :, :10], progress=lambda done, total: calls.append((done, total)))

    *parts, last, small = calls
    assert len(parts) >= 4
    assert [done for done, _ in parts] == sorted({done for done, _ in parts})
    assert {total for _, total in parts} == {10_000}
    assert (last, small) == ((10_000, 10_000), (10, 10))


def test_repeated_append_over_the_limit_stores_nothing(session: Any, long_k: Any, long_v: Any) -> None:
    first = session.append(long_k, long_v, position=0)
    again = session.append(long_k, long_v, position=0)

    assert_same(again.k, first.k)
    assert (again.position, again.length, again.created) == (0, 10_000, False)
    assert session.append(long_k[:, :, :1], long_v[:, :, :1]).position == 10_000


@pytest.mark.parametrize("position", [None, "end"])
def test_append_over_the_limit_continues_at_the_end(session: Any, long_k: Any, long_v: Any, position: Any) -> None:
    session.append(long_k[:, :, :7], long_v[:, :, :7])

    result = session.append(long_k[:, :, 7:], long_v[:, :, 7:], position=position)

    assert (result.position, result.length, result.created) == (7, 10_000, False)
    assert_stored(session)
    assert session.append(long_k[:, :, :1], long_v[:, :, :1]).position == 10_000


def test_layers_are_appended_over_the_limit_one_by_one(session: Any, long_k: Any, long_v: Any) -> None:
    for layer in range(2):
        assert session.append(long_k[layer], long_v[layer], layer=layer, minimal=True).position == 0

    assert_stored(session)


@pytest.mark.parametrize("position", [None, 0])
def test_padded_caches_are_appended_over_the_limit(session: Any, long_k: Any, long_v: Any, position: Any) -> None:
    padded = ((0, 0), (0, 0), (0, 200), (0, 0))
    caches = [
        SimpleNamespace(keys=np.pad(k[None], padded), values=np.pad(v[None], padded), offset=10_000)
        for k, v in zip(long_k, long_v, strict=True)
    ]

    session.append(caches, position=position, minimal=True)

    assert_stored(session)


def test_grown_cache_appends_only_the_new_tokens(session: Any, long_k: Any, long_v: Any) -> None:
    caches = [SimpleNamespace(keys=k[None], values=v[None], offset=600) for k, v in zip(long_k, long_v, strict=True)]
    session.append(caches)
    for cache in caches:
        cache.offset = 650

    result = session.append(caches)

    assert (result.position, result.tokens) == (600, 50)
    assert_stored(session, slice(650))


def test_one_token_of_all_layers_may_exceed_the_limit(session: Any) -> None:
    k, v = np.random.default_rng(3).standard_normal((2, 20, 16, 3, 512)).astype(np.float32)

    result = session.append(k, v)
    found = session.read(form="float32")

    spec = Codec().at(512)
    assert (result.tokens, result.length) == (3, 3)
    assert_same(result.k, reference.encode(k, spec))
    assert_same(result.v, reference.encode(v, spec))
    assert_same(found.k, reference.decode(result.k, spec, "float32"))
    assert found.layers == tuple(range(20))


def test_failed_part_says_what_is_stored(session: Any, long_k: Any, long_v: Any) -> None:
    spoiled = long_k.copy()
    spoiled[1, 0, 7000, 5] = np.nan

    with pytest.raises(NonFinite) as raised:
        session.append(spoiled, long_v, position=0)

    error = raised.value
    assert (error.layer, error.head, error.token) == (1, 0, 7000)
    assert 0 < error.stored_tokens <= 7000
    assert error.next_position == error.stored_tokens == session.info().length
    assert f"{error.stored_tokens} of 10000 tokens are stored" in error.__notes__[0]
    assert_stored(session, slice(error.stored_tokens))

    session.append(long_k, long_v, position=0, minimal=True)
    assert_stored(session)


def test_append_that_fits_one_request_is_all_or_nothing(session: Any, long_k: Any, long_v: Any) -> None:
    spoiled = long_k[:, :, :1000].copy()
    spoiled[1, 0, 999, 5] = np.nan

    with pytest.raises(NonFinite) as raised:
        session.append(spoiled, long_v[:, :, :1000], position=0)

    assert (raised.value.stored_tokens, raised.value.next_position) == (0, None)
    with pytest.raises(SessionNotFound):
        session.info()


def test_repeated_append_continues_within_a_part(session: Any, long_k: Any, long_v: Any) -> None:
    session.append(long_k[:, :, :777], long_v[:, :, :777], position=0)

    result = session.append(long_k, long_v, position=0)

    assert_same(result.k, expected("k", EVERYTHING))
    assert_stored(session)


def test_other_content_conflicts_and_stays(session: Any, long_k: Any, long_v: Any) -> None:
    session.append(long_v[:, :, :777], long_k[:, :, :777], position=0)

    with pytest.raises(PositionConflict) as raised:
        session.append(long_k, long_v, position=0)

    assert (raised.value.length, raised.value.stored_tokens) == (777, 0)
    assert_same(session.read().k, expected("v", slice(777)))


def test_second_writer_between_parts_conflicts(session: Any, other: Any, long_k: Any, long_v: Any) -> None:
    calls: list[int] = []

    def write_once(done: int, _: int) -> None:
        calls.append(done)
        if len(calls) == 2:
            other.append(long_k[:, :, :3], long_v[:, :, :3])

    with pytest.raises(PositionConflict) as raised:
        session.append(long_k, long_v, minimal=True, progress=write_once)

    assert raised.value.stored_tokens == calls[1]
    assert session.info().length == calls[1] + 3


def test_window_keeps_the_last_tokens_and_can_be_repeated(session: Any, long_k: Any, long_v: Any) -> None:
    session.create(window=1000)

    for _ in range(2):
        result = session.append(long_k, long_v, position=0, minimal=True)

        assert (result.position, result.length) == (0, 10_000)
        assert session.read().start == 9000
        assert_stored(session, slice(9000, None))


def test_full_service_stops_the_append_half_way(connect: Any, long_k: Any, long_v: Any) -> None:
    with running_service("--max-body", "1MiB", "--memory-budget", "1536KiB") as service:
        session = connect(service.url).session("a", {"kind": "float16"})

        with pytest.raises(InsufficientStorage) as raised:
            session.append(long_k, long_v)

        assert 0 < raised.value.stored_tokens < 10_000
        assert session.info().length == raised.value.stored_tokens


def test_smaller_limit_after_a_restart_is_taken(
    connect: Any, restartable: Any, restart_once: Any, long_k: Any, long_v: Any
) -> None:
    session = connect(restartable.url).session("a")
    session.append(long_k, long_v, minimal=True, progress=restart_once)

    assert restart_once.calls > 20
    assert_stored(session)

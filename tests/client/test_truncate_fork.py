"""Truncate, fork and ring reads of both clients, against the service on every backend."""

from typing import Any

import numpy as np
import pytest

from hadakv_client import InvalidRequest, SessionExists, SessionNotFound

pytestmark = pytest.mark.every_backend


def test_append_continues_at_the_truncated_length(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    info = session.truncate(3)
    result = session.append(k, v)

    assert (info.length, result.position, result.length) == (3, 3, 3 + k.shape[2])


def test_fork_and_original_change_independently(session: Any, client: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    fork = session.fork(f"{session.id}-fork", 2)
    result = fork.append(v, k)

    assert (fork.id, result.position) == (f"{session.id}-fork", 2)
    assert session.info().length == k.shape[2]
    both = client.session(fork.id).read().k.packed
    np.testing.assert_array_equal(both[:, :, :2], session.read().k.packed[:, :, :2])
    np.testing.assert_array_equal(both[:, :, 2:], result.k.packed)


def test_fork_without_length_copies_all_tokens(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    fork = session.fork(f"{session.id}-whole")

    np.testing.assert_array_equal(fork.read().v.packed, session.read().v.packed)
    with pytest.raises(SessionExists):
        session.fork(fork.id)


def test_ring_read_has_one_row_per_window_position(session: Any, k: Any, v: Any) -> None:
    session.create(window=3)
    session.append(k, v)
    linear = session.read()

    ring = session.read(layout="ring")

    assert (ring.start, ring.stop) == (linear.start, linear.stop)
    assert ring.k.packed.shape[2] == 3
    np.testing.assert_array_equal(ring.k.packed[:, :, linear.start % 3], linear.k.packed[:, :, 0])


def test_invalid_truncate_read_and_fork_raise(session: Any, k: Any, v: Any) -> None:
    with pytest.raises(SessionNotFound):
        session.truncate(0)
    session.append(k, v)
    with pytest.raises(InvalidRequest):
        session.truncate(k.shape[2] + 1)
    with pytest.raises(InvalidRequest):
        session.read(layout="ring")
    with pytest.raises(ValueError, match="id"):
        session.fork("a/b")

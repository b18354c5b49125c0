"""Truncating, forking and reading rings through the clients, against the service on every backend."""

from typing import Any

import numpy as np
import pytest

from hadakv_client import InvalidRequest, SessionExists, SessionNotFound

pytestmark = pytest.mark.every_backend


def test_an_append_after_truncating_goes_where_it_was_cut(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    info = session.truncate(3)
    placed = session.append(k, v)

    assert (info.length, placed.position, placed.length) == (3, 3, 3 + k.shape[2])


def test_a_fork_goes_its_own_way(session: Any, client: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    fork = session.fork(f"{session.id}-fork", 2)
    placed = fork.append(v, k)

    assert (fork.id, placed.position) == (f"{session.id}-fork", 2)
    assert session.info().length == k.shape[2]
    both = client.session(fork.id).read().k.packed
    np.testing.assert_array_equal(both[:, :, :2], session.read().k.packed[:, :, :2])
    np.testing.assert_array_equal(both[:, :, 2:], placed.k.packed)


def test_a_whole_fork_is_the_same(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    fork = session.fork(f"{session.id}-whole")

    np.testing.assert_array_equal(fork.read().v.packed, session.read().v.packed)
    with pytest.raises(SessionExists):
        session.fork(fork.id)


def test_a_ring_has_as_many_rows_as_the_window(session: Any, k: Any, v: Any) -> None:
    session.create(window=3)
    session.append(k, v)
    linear = session.read()

    ring = session.read(layout="ring")

    assert (ring.start, ring.stop) == (linear.start, linear.stop)
    assert ring.k.packed.shape[2] == 3
    np.testing.assert_array_equal(ring.k.packed[:, :, linear.start % 3], linear.k.packed[:, :, 0])


def test_what_cannot_be_is_refused(session: Any, k: Any, v: Any) -> None:
    with pytest.raises(SessionNotFound):
        session.truncate(0)
    session.append(k, v)
    with pytest.raises(InvalidRequest):
        session.truncate(k.shape[2] + 1)
    with pytest.raises(InvalidRequest):
        session.read(layout="ring")
    with pytest.raises(ValueError, match="id"):
        session.fork("a/b")

"""Fixtures for tests of both clients against the real service."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from support.client_pair import connect

__all__ = ["connect"]  # a fixture for this folder


@pytest.fixture
def client(connect: Callable[..., Any], server: Any) -> Any:
    """Return a client of the real service."""
    return connect(server.url)


@pytest.fixture
def session_id(request: pytest.FixtureRequest) -> str:
    """Return a session id that only this test uses."""
    return str(request.node.name).replace("[", ":").replace("]", "")[-128:]


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a seeded random generator."""
    return np.random.default_rng(20)


@pytest.fixture
def k(rng: np.random.Generator) -> Any:
    """Return keys: float16, 2 layers, 3 heads, 5 tokens, head_dim 64."""
    return rng.standard_normal((2, 3, 5, 64)).astype(np.float16)


@pytest.fixture
def v(rng: np.random.Generator) -> Any:
    """Return values with the shape of the keys."""
    return 3 * rng.standard_normal((2, 3, 5, 64)).astype(np.float16)


@pytest.fixture
def session(client: Any, session_id: str) -> Any:
    """Return a handle on a session of this test in the real service. The session does not exist yet."""
    return client.session(session_id)

"""Fixtures for client tests without a service."""

import numpy as np
import pytest

from support.client_pair import connect
from support.services.scripted_server import scripted_server

__all__ = ["connect", "scripted_server"]  # fixtures for this folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a seeded random generator."""
    return np.random.default_rng(20)

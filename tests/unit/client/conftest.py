"""Fixtures for client tests without a service."""

import numpy as np
import pytest

from client.conftest import connect, rigged

__all__ = ["connect", "rigged"]  # fixtures for this folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded random generator."""
    return np.random.default_rng(20)

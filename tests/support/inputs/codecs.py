"""Codecs for client tests, and a comparison of arrays or encoded vectors."""

from typing import Any

from hadakv_client import Codec, Encoded
from support.backends import assert_same_bits, assert_same_encoded

CODECS = [Codec(), Codec(bits=3, norm="unbiased"), Codec(bits=8, layout="byte", rotation="none"), Codec(kind="float16")]


def assert_same(a: Any, b: Any) -> None:
    """Assert that arrays or encoded vectors have the same dtype, shape and bits."""
    (assert_same_encoded if isinstance(a, Encoded) else assert_same_bits)(a, b)

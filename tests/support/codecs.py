"""Codecs the clients are tried with, and what it means that two arrays are the same."""

from typing import Any

from backends import assert_same_bits, assert_same_encoded
from hadakv_client import Codec, Encoded

CODECS = [Codec(), Codec(bits=3, norm="unbiased"), Codec(bits=8, layout="byte", rotation="none"), Codec(kind="float16")]


def assert_same(a: Any, b: Any) -> None:
    """Arrays, or encoded vectors, of the same dtype, shape and bits."""
    (assert_same_encoded if isinstance(a, Encoded) else assert_same_bits)(a, b)

"""Request bodies: valid ones, and mutations of them."""

import math
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np

from support.contract import append_body, tensor

K = np.random.default_rng(7).standard_normal((2, 1, 2, 64)).astype(np.float16)
ROWS = {"dtype": "uint8", "shape": [2, 32], "data": bytes(range(64))}
NORMS = {"dtype": "float32", "shape": [2, 1], "data": struct.pack("<2f", 1.0, 2.0)}
# The braces are replaced by a number, for several sessions.
VALID = {
    "POST /sessions/fuzz{}/kv": append_body(K, K, layer=0, position=0, codec={"k": {"bits": 4}, "v": {"bits": 4}}),
    "PUT /sessions/put{}": {"codec": {"bits": 4}, "layers": 2, "kv_heads": 2, "head_dim": 64, "ttl_seconds": 60.5},
    "POST /encode": {"x": tensor(K), "codec": {"bits": 3, "norm": "unbiased"}, "diagnostics": True},
    "POST /decode": {"packed": ROWS, "norms": NORMS, "codec": {"bits": 4}, "head_dim": 64, "form": "rotated"},
}

Mutation = Callable[[random.Random, bytes], bytes]


def flip_bytes(rng: random.Random, body: bytes) -> bytes:
    mutated = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def flip_headers(rng: random.Random, body: bytes) -> bytes:
    """Flip bits in the first bytes, where the structure is."""
    front = min(len(body), 80)
    return flip_bytes(rng, body[:front]) + body[front:]


def cut_short(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body))]


def insert_bytes(rng: random.Random, body: bytes) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.randbytes(rng.randint(1, 8)) + body[at:]


def splice(rng: random.Random, body: bytes) -> bytes:
    other: bytes = msgpack.packb(rng.choice(list(VALID.values())))
    return body[: rng.randrange(len(body))] + other[rng.randrange(len(other)) :]


# Width in bytes of the length that follows each msgpack type code.
SIZED = {
    **dict(zip((0xC4, 0xC5, 0xC6), (1, 2, 4), strict=True)),
    **dict(zip((0xC7, 0xC8, 0xC9), (1, 2, 4), strict=True)),
    **dict(zip((0xD9, 0xDA, 0xDB), (1, 2, 4), strict=True)),
    **dict(zip((0xDC, 0xDD), (2, 4), strict=True)),
    **dict(zip((0xDE, 0xDF), (2, 4), strict=True)),
}


def declare_much(rng: random.Random, body: bytes) -> bytes:
    """Replace a byte, mostly near the front, by a header that declares far more data than there is."""
    code, width = rng.choice(list(SIZED.items()))
    length = rng.choice([(1 << 8 * width) - 1, 1 << (8 * width - 1), (1 << 8 * width) - rng.randint(1, 200)])
    at = rng.randrange(min(len(body), rng.choice([2, 40, 1000])))
    return body[:at] + bytes([code]) + length.to_bytes(width, "big") + body[at + 1 :]


def nest(rng: random.Random, body: bytes) -> bytes:
    """Replace a byte by nested arrays or maps, up to far beyond the depth limit."""
    levels = rng.choice([1, 15, 16, 17, 40, 1_000, 50_000])
    opening = rng.choice([b"\x91", b"\x81\xa1k", b"\x81\x90", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"])
    at = rng.randrange(len(body) + 1)
    return body[:at] + opening * levels + body[at + 1 :]


WRONG: list[Any] = [
    None,
    True,
    -1,
    2**63,
    2**64 - 1,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 300,
    b"",
    b"\x00" * 70,
    [],
    {},
]
WRONG += [[[[]]], {"k": {"k": 1}}, {1: 2}, [2**62] * 4, [0] * 9, msgpack.ExtType(5, b"xyz"), msgpack.Timestamp(1, 2)]


def replace_value(rng: random.Random, body: bytes) -> bytes:
    """Replace a value anywhere in the body's maps, or add an unknown key."""
    value = msgpack.unpackb(body)
    place = value
    while True:
        inner = [item for item in place.values() if isinstance(item, dict)]
        if not inner or rng.random() < 0.5:
            break
        place = rng.choice(inner)
    place[rng.choice([*place, "unknown"])] = rng.choice(WRONG)
    return bytes(msgpack.packb(value))


AXES = [0, 0, 1, 2, 3, 64, 128, 1 << 16, 1 << 31, 1 << 39, 1 << 62, 1 << 63, (1 << 64) - 1]


def reshape(rng: random.Random, body: bytes) -> bytes:
    """Give every tensor the same odd shape, with matching data if that is small."""
    shape = [rng.choice(AXES) for _ in range(rng.randint(0, 5))] + [rng.choice([0, 1, 32, 64, 64, 64])]
    value = msgpack.unpackb(body)
    for inner in value.values():
        if isinstance(inner, dict) and "data" in inner:
            nbytes = math.prod(shape) * (1 if inner["dtype"] == "uint8" else 2)
            inner |= {"shape": shape, "data": bytes(nbytes if nbytes < 100_000 else 0)}
    return bytes(msgpack.packb(value))


def random_bytes(rng: random.Random, _: bytes) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 2, 10, 1000]))


def unchanged(_: random.Random, body: bytes) -> bytes:
    return body


MUTATIONS: list[Mutation] = [
    flip_bytes,
    flip_headers,
    cut_short,
    insert_bytes,
    splice,
    declare_much,
    nest,
    replace_value,
    reshape,
    random_bytes,
    unchanged,
]


def requests(seed: int, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield requests: the call, the name of the mutation, and the body."""
    rng = random.Random(seed)
    for _ in range(count):
        call, valid = rng.choice(list(VALID.items()))
        mutation = rng.choice(MUTATIONS)
        body = mutation(rng, msgpack.packb(valid))
        if rng.random() < 0.2:
            body = rng.choice(MUTATIONS[:6])(rng, body or b"\xc0")
        yield call.format(rng.randrange(50)), mutation.__name__, body

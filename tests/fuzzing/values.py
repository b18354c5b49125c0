"""Tensors whose shapes fit together, or almost. No schema says that, so cases built from it pass the first checks."""

import random
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, HEAD_DIMS, Codec, CodecError
from hadakv_service.operations.files import layout
from hadakv_service.sessions.layer_run import LayerRun
from hadakv_service.sessions.session import Session
from support.contract import Json, tensor
from support.inputs.session_files import DIGEST_NBYTES, as_version_1, sealed

TOKENS = [0, 1, 1, 2, 7, 33, 255, 256, 257, 300]
# The shape of a session follows from its id, so most appends to it are valid.
SESSIONS = [f"s{number}" for number in range(12)]


def shape_of(session: str) -> tuple[int, int]:
    """Return the usual kv_heads and head_dim of a session."""
    number = sum(session.encode())
    return 1 + number % 2, HEAD_DIMS[number // 2 % 4]


def values(rng: random.Random, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return normal values, sometimes with one that is hard to encode."""
    made = np.random.default_rng(rng.randrange(1 << 32)).standard_normal(shape).astype(DTYPES[dtype])
    if made.size and rng.random() < 0.1:
        made.flat[rng.randrange(made.size)] = rng.choice([np.nan, np.inf, 6e4, 1e-7, -0.0])
    elif rng.random() < 0.05:
        made *= 0
    return made


def append(rng: random.Random, session: str) -> Json:
    """Return K and V for a session."""
    heads, head_dim = shape_of(session)
    if rng.random() < 0.05:
        heads, head_dim = rng.randint(0, 3), rng.choice([*HEAD_DIMS, 32])
    # Sometimes enough tokens for a chunked job.
    tokens = 2_100 if rng.random() < 0.02 else rng.choice(TOKENS)
    axes = (rng.choice([1, 2, 2, 2, 3]), heads, tokens, head_dim)
    shape = axes[1:] if rng.random() < 0.2 else axes
    dtype = rng.choice(sorted(DTYPES))
    return {"k": tensor(values(rng, shape, dtype)), "v": tensor(values(rng, shape, dtype))}


def vectors(rng: random.Random) -> Json:
    """Return a tensor to encode."""
    shape = (*(rng.randint(0, 5) for _ in range(rng.randint(0, 3))), rng.choice(HEAD_DIMS))
    return tensor(values(rng, shape, rng.choice(sorted(DTYPES))))


def exported_session(rng: random.Random) -> bytes:
    """Return an exported session file."""
    kinds = (Codec(bits=3, layout="byte", d512_scale=0.5), Codec(kind="float16"), Codec())
    runs = tuple(LayerRun(rng.randint(1, 3), 0, rng.choice(TOKENS)) for _ in range(rng.randint(0, 2)))
    stored = Session((rng.choice(kinds), rng.choice(kinds)), kv_heads=1, head_dim=rng.choice(HEAD_DIMS), runs=runs)
    # Zeros are valid content in every codec.
    file = layout.header(stored, "chat-1", datetime.fromtimestamp(1, UTC)) + bytes(stored.nbytes + DIGEST_NBYTES)
    # Some are of version 1, which has no digest.
    return as_version_1(file) if rng.random() < 0.3 and stored.runs else sealed(file)


def encoded(rng: random.Random, options: Json, head_dim: int) -> Json:
    """Return random rows and norms to decode; nothing if the codec does not exist."""
    try:
        spec = Codec.from_mapping({name: value for name, value in options.items() if value is not None}).at(head_dim)
    except CodecError:
        return {}
    rows = rng.randint(0, 9)
    if spec.codec.kind == "float16":
        return {"values": tensor(values(rng, (rows, head_dim), "float16"))}
    packed = np.frombuffer(rng.randbytes(rows * spec.row_bytes), np.uint8).reshape(rows, spec.row_bytes)
    return {"packed": tensor(packed), "norms": tensor(values(rng, (rows, spec.norms), "float32"))}

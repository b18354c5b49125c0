"""A data directory that version 0.1.0 wrote, and what it contains.

`python tests/support/inputs/stored.py FOLDER` writes such a directory with the present version. When the format of the
file changes, add a file by the last version before it; never replace one.
"""

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from hadakv_service.testing import running_service
from support.contract import Caller

FILES = sorted((Path(__file__).parents[2] / "data" / "stored").glob("*.hadakv.gz"))
FILE = "sessions.hadakv"
# Fields of the PUT, and the seed, layers, heads and tokens of K and V, by session.
SESSIONS: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "spilled": ({"codec": {"bits": 4}}, (1, 2, 1, 300)),
    "acknowledged": ({"codec": {"k": {"bits": 8}, "v": {"bits": 3}}, "durability": "ack"}, (2, 1, 2, 3)),
    "raw": ({"codec": {"kind": "float16"}, "ttl_seconds": 1e9}, (3, 1, 1, 5)),
    "window": ({"window": 8}, (4, 1, 1, 20)),
}
FORK = "forked", "spilled", 260


def pair_of(seed: int, layers: int, heads: int, tokens: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return K and V as float16 `[layers, heads, tokens, 64]`, the same on every machine."""
    shape = (layers, heads, tokens, 64)
    k, v = ((np.arange(np.prod(shape)) * 7919 * (seed + i) % 1009 - 504) / 256 for i in (0, 10))
    return k.reshape(shape).astype(np.float16), v.reshape(shape).astype(np.float16)


def store(caller: Caller) -> None:
    """Store the sessions."""
    for name, (fields, numbers) in SESSIONS.items():
        assert caller.put(f"/sessions/{name}", fields).status == 201
        k, v = pair_of(*numbers)
        half = k.shape[2] // 2
        for start, stop in ((0, half), (half, k.shape[2])):
            parts = (np.ascontiguousarray(x[:, :, start:stop]) for x in (k, v))
            assert caller.append(name, *parts, position=start).status == 200
    name, source, length = FORK
    assert caller.post(f"/sessions/{source}/fork", {"id": name, "length": length}).status == 201


def unpack(file: Path, directory: Path) -> None:
    """Make a data directory of a file that an earlier version wrote."""
    (directory / FILE).write_bytes(gzip.decompress(file.read_bytes()))


if __name__ == "__main__":
    with running_service("--data-dir", sys.argv[1]) as service, Caller(service.url) as caller:
        store(caller)

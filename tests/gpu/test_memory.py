"""A session takes its packed bytes of a real GPU's memory, not the bytes that were sent."""

import asyncio
import gc

import httpx
import mlx.core as mx
import msgpack
import numpy as np
import pytest

from hadakv_kernels import Codec
from hadakv_service.app import create_app
from hadakv_service.settings import Settings
from support.backends import GPUS_HERE
from support.contract import MSGPACK, append_body

pytestmark = pytest.mark.skipif(not GPUS_HERE, reason="needs a GPU that MLX can use")

# Tables, and rounding of array sizes.
BESIDE_THE_PAGES = 4 << 20
SESSIONS = 16
# Norms of K and V, whose arrays are small enough for host memory.
ON_THE_HOST = SESSIONS * 2 * 8 * 8 * 1024 * 4


def active_nbytes() -> int:
    gc.collect()
    mx.synchronize()
    return mx.get_active_memory()


async def growth_and_packed(sessions: int) -> tuple[int, int]:
    """Append to a number of sessions. Return the growth of device memory and the bytes of the memory budget."""
    app = create_app(Settings(backend=GPUS_HERE[0], memory_budget="4GiB", disk_budget=0))
    x = np.random.default_rng(0).standard_normal((8, 8, 1024, 128)).astype(np.float16)
    codec = {"k": Codec().to_mapping(), "v": Codec(8).to_mapping()}
    body = msgpack.packb(append_body(x, x, codec=codec))
    calls = httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost", headers={"Content-Type": MSGPACK}
    )
    async with app.fastapi.router.lifespan_context(app.fastapi), calls as client:
        before = active_nbytes()
        for session in range(sessions):
            answer = await client.post(f"/sessions/{session}/kv", content=body)
            assert answer.status_code == 201, answer.text
        return active_nbytes() - before, app.state.context.store.memory.used


def test_device_memory_grows_by_the_packed_bytes() -> None:
    grown, packed = asyncio.run(growth_and_packed(SESSIONS))

    assert packed - ON_THE_HOST <= grown + BESIDE_THE_PAGES
    assert grown <= (packed - ON_THE_HOST) * 1.05 + BESIDE_THE_PAGES

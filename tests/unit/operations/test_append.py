"""AppendOperation on the device: batches, and how they share the memory budget."""

import asyncio
import threading
from typing import Any

import numpy as np

from hadakv_kernels import Codec
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.errors import NonFinite
from hadakv_service.operations.append import AppendOperation, AppendOutcome, AppendRequest
from hadakv_service.sessions.session import Session
from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, RUN_OVERHEAD_NBYTES, SESSION_OVERHEAD_NBYTES
from hadakv_service.storage.session_store import Key, SessionStore
from hadakv_service.wire import messages

BACKEND = CpuBackend(1)
SPEC = Codec().at(64)
TOKEN = 2 * SPEC.nbytes
# Overhead counted for a session after one small append, and for each further append.
FIRST, FURTHER = SESSION_OVERHEAD_NBYTES + RUN_OVERHEAD_NBYTES + PAGE_OVERHEAD_NBYTES, PAGE_OVERHEAD_NBYTES
ANN, BOB, CID = (("", name) for name in ("ann", "bob", "cid"))


def job(store: SessionStore, key: Key, tokens: int, value: float = 1.0) -> AppendOperation:
    x = np.full((1, 1, tokens, 64), value, np.float32)
    tensor = messages.Tensor("float32", list(x.shape), x.reshape(-1).view(np.uint8).data)
    return AppendOperation(key, AppendRequest.from_body(messages.AppendBody(tensor, tensor)), store, BACKEND, Session())


def together(*jobs: AppendOperation) -> list[Any]:
    """Run jobs in one batch. Return their results and errors."""

    async def run() -> list[Any]:
        device = DeviceExecutor(BACKEND, 100)
        device.start(asyncio.get_running_loop())
        gate = threading.Event()
        held = asyncio.ensure_future(device.call(lambda: gate.wait(30)))
        tasks = [asyncio.ensure_future(device.run(job)) for job in jobs]
        await asyncio.sleep(0)
        gate.set()
        await held
        results = await asyncio.gather(*tasks, return_exceptions=True)
        device.stop()
        return results

    return asyncio.run(run())


def test_concurrent_appends_are_all_stored() -> None:
    store = SessionStore(1 << 20)

    results = together(*[job(store, key, tokens) for tokens in (3, 4) for key in (ANN, BOB, CID)])

    assert [result.position for result in results] == [0, 0, 0, 3, 3, 3]
    assert [result.created for result in results] == [True] * 3 + [False] * 3
    assert [store.get(key).session.nbytes for key in (ANN, BOB, CID)] == [7 * TOKEN] * 3
    assert store.memory.used == 21 * TOKEN + 3 * (FIRST + FURTHER)


def test_rejected_append_releases_memory_and_fails_alone() -> None:
    store = SessionStore(1 << 20)

    good, bad, also_good = together(job(store, ANN, 3), job(store, BOB, 400, np.nan), job(store, CID, 4))

    assert isinstance(bad, NonFinite)
    assert [type(result) for result in (good, also_good)] == [AppendOutcome] * 2
    assert store.find(BOB) is None
    assert store.memory.used == 7 * TOKEN + 2 * FIRST


def test_append_after_rejected_one_takes_its_position() -> None:
    store = SessionStore(1 << 20)

    _, _, after = together(job(store, ANN, 3), job(store, ANN, 2, np.inf), job(store, ANN, 4))

    assert (after.position, after.tokens) == (3, 4)


def test_concurrent_appends_evict_as_if_sequential() -> None:
    store = SessionStore(100 * TOKEN + 2 * FIRST + FURTHER)
    together(job(store, ANN, 40))
    together(job(store, BOB, 40))

    results = together(job(store, ANN, 30), job(store, BOB, 30))

    assert [type(result) for result in results] == [AppendOutcome] * 2
    assert store.memory.used <= store.memory.limit


def test_rejected_append_evicts_nothing() -> None:
    store = SessionStore(100 * TOKEN + FIRST)
    together(job(store, ANN, 60))

    (bad,) = together(job(store, BOB, 80, np.nan))

    assert isinstance(bad, NonFinite)
    assert store.get(ANN).session.nbytes == 60 * TOKEN
    assert (store.evictions, store.memory.used) == (0, 60 * TOKEN + FIRST)


def test_append_evicts_only_for_its_own_bytes() -> None:
    store = SessionStore(100 * TOKEN + 2 * FIRST)
    together(job(store, ANN, 30))
    together(job(store, BOB, 30))

    good, bad = together(job(store, CID, 50), job(store, ("", "dan"), 45, np.nan))

    assert (type(good), type(bad)) == (AppendOutcome, NonFinite)
    assert [store.find(key) is not None for key in (ANN, BOB, CID)] == [False, True, True]
    assert store.memory.used == 80 * TOKEN + 2 * FIRST

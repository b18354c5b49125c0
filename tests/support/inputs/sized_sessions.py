"""Sessions of known size, for tests of the store."""

from collections.abc import Collection

import numpy as np

from hadakv_kernels import Codec, Stream
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.device.jobs import run_to_completion
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Durability, Session
from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, RUN_OVERHEAD_NBYTES, SESSION_OVERHEAD_NBYTES
from hadakv_service.storage.session_store import Key, SessionRecord, SessionStore

BACKEND = CpuBackend(1)
SPEC = Codec(bits=2).at(64)
TOKEN = 2 * SPEC.nbytes


def cost(tokens: int, pages: int = 1, runs: int = 1) -> int:
    """Return the memory that the store counts for a session, bytes."""
    return SESSION_OVERHEAD_NBYTES + runs * RUN_OVERHEAD_NBYTES + pages * PAGE_OVERHEAD_NBYTES + tokens * TOKEN


EMPTY = cost(0, 0, 0)


class Clock:
    """Clock that tests advance."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def grown(session: Session, tokens: int) -> Session:
    """Return the session with more tokens, each of TOKEN bytes."""
    stream = Stream(np.ones((1, 1, tokens, 64), np.float16), SPEC)
    return session.append(0, Page(*BACKEND.encode([stream, stream])), BACKEND)


def opened(ttl_seconds: float | None = None, window: int | None = None, durability: Durability = "memory") -> Session:
    codec = Codec(bits=2)
    axes = {"kv_heads": 1, "head_dim": 64}
    return Session((codec, codec), **axes, ttl_seconds=ttl_seconds, window=window, durability=durability)


def append(
    store: SessionStore, key: Key, tokens: int, ttl_seconds: float | None = None, durability: Durability = "memory"
) -> None:
    """Append tokens to a session of the store, as an append does."""
    entry = store.find(key)
    session = (entry.session if entry else opened(ttl_seconds, durability=durability)).split_runs(0, 1)
    pages = session.new_pages(0, 1, tokens)
    reservation = store.reserve(key, session, {key}, nbytes=tokens * TOKEN, pages=pages)
    run_to_completion(store.commit(reservation, grown(session, tokens)))


def create(store: SessionStore, key: Key, ttl_seconds: float | None = None) -> None:
    """Create a session in the store, as a PUT does."""
    session = opened(ttl_seconds)
    run_to_completion(store.commit(store.reserve(key, session, {key}), session))


def commit(store: SessionStore, key: Key, session: Session) -> SessionRecord:
    """Commit a value without a reservation."""
    return run_to_completion(store.commit(store.memory.reserve(key, 0), session))


def fork(store: SessionStore, source: Key, target: Key, session: Session, pinned: Collection[Key] = ()) -> None:
    """Store a value of a session as a new session."""
    run_to_completion(store.fork(source, target, session, pinned))


ANN, BOB, CID, DAN = (("", name) for name in ("ann", "bob", "cid", "dan"))

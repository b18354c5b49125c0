"""Sessions that share pages: the store against plain lists of tokens, and its counters against the pages."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from hadakv_kernels import Codec, Encoded
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.device.jobs import run_to_completion
from hadakv_service.errors import InsufficientStorage, InvalidRequest, SessionExists
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage import memory_budget
from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, RUN_OVERHEAD_NBYTES, SESSION_OVERHEAD_NBYTES
from hadakv_service.storage.session_store import Key, SessionStore
from support.inputs.sized_sessions import commit, fork
from support.thoroughness import examples

BACKEND = CpuBackend(1)
CODEC = Codec(kind="float16")
LAYERS = 3
WHICH = st.integers(0, 3)


@dataclass(frozen=True)
class Model:
    """Expected content of a session: the numbers of its tokens, layer by layer.

    Attributes:
        gone: position of each layer before which tokens have left the window. Some may still be stored, because only
            whole pages are dropped.
    """

    layers: tuple[tuple[int, ...], ...] = ((),) * LAYERS
    window: int | None = None
    gone: tuple[int, ...] = (0,) * LAYERS

    def held(self, layer: int) -> range:
        """Return the positions that can be read."""
        return range(self.gone[layer], max(self.gone[layer], len(self.layers[layer])))

    def grown(self, first: int, numbers: list[int]) -> "Model":
        """Return the model with tokens at the end of the layers from `first` on."""
        layers = tuple((*layer, *numbers) if i >= first else layer for i, layer in enumerate(self.layers))
        leaving = [0 if self.window is None else len(layer) - self.window for layer in layers]
        return Model(layers, self.window, tuple(map(max, self.gone, leaving)))

    def cut(self, length: int) -> "Model":
        """Return the model without the tokens from a position on."""
        return Model(tuple(layer[:length] for layer in self.layers), self.window, self.gone)


def numbered(numbers: list[int], layers: int) -> Page:
    """Return a page of tokens whose values are their numbers."""
    x = np.broadcast_to(np.array(numbers, np.float16)[None, None, :, None], (layers, 1, len(numbers), 64))
    none = np.empty((*x.shape[:3], 0), np.float32)
    return Page(Encoded(np.ascontiguousarray(x).view(np.uint8), none), Encoded((-x).view(np.uint8), none))


def numbers_of(page: Page) -> NDArray[np.float16]:
    """Return the numbers `[layers, tokens]` of a page."""
    k, v = (np.ascontiguousarray(stream.packed).view(np.float16)[:, 0, :, 0] for stream in page.load())
    np.testing.assert_array_equal(v, -k)
    return k


class Sharing(RuleBasedStateMachine):
    """Append, truncate, fork and delete, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.store = SessionStore(1 << 40, backend=BACKEND)
        self.models: dict[Key, Model] = {}
        self.next = 0

    @initialize(windows=st.lists(st.sampled_from([None, None, 5, 300]), min_size=1, max_size=2))
    def make(self, windows: list[int | None]) -> None:
        for key, window in zip((("", "a"), ("", "b")), windows, strict=False):
            commit(self.store, key, Session((CODEC, CODEC), kv_heads=1, head_dim=64, window=window))
            self.models[key] = Model(window=window)
            for _ in range(2):
                self._append(key, 150, 0)

    def _some(self, which: int) -> Key:
        return sorted(self.models)[which % len(self.models)]

    @rule(which=WHICH, tokens=st.sampled_from([1, 2, 100, 255, 256, 600]), first=st.integers(0, 2))
    def append(self, which: int, tokens: int, first: int) -> None:
        self._append(self._some(which), tokens, first)

    def _append(self, key: Key, tokens: int, first: int) -> None:
        model = self.models[key]
        if len(set(map(len, model.layers[first:]))) > 1:
            return
        self.next = (self.next + tokens) % 1000
        numbers = [(self.next + i) % 2048 for i in range(tokens)]
        session = self.store.get(key).session
        value = session.append(first, numbered(numbers, LAYERS - first), BACKEND)
        slices_nbytes = session.split_runs_nbytes(first, LAYERS - first)
        reservation = self.store.reserve(key, session, {key}, slices_nbytes=slices_nbytes)
        run_to_completion(self.store.commit(reservation, value))
        self.models[key] = model.grown(first, numbers)

    @rule(which=WHICH, back=st.integers(0, 700))
    def truncate(self, which: int, back: int) -> None:
        key = self._some(which)
        length = max(0, max(map(len, self.models[key].layers)) - back)
        model = self.models[key]
        allowed = all(model.held(i).start <= length for i in range(LAYERS) if len(model.layers[i]) > length)
        try:
            session = self.store.get(key).session.truncate(length, BACKEND)
        except InvalidRequest:
            assert not allowed
            return
        commit(self.store, key, session)
        self.models[key] = model.cut(length)

    @rule(which=WHICH, new=st.sampled_from([("", name) for name in "abcd"]), back=st.none() | st.integers(0, 400))
    def fork(self, which: int, new: Key, back: int | None) -> None:
        source = self._some(which)
        model, session = self.models[source], self.store.get(source).session
        if back is not None:
            length = max(0, max(map(len, model.layers)) - back)
            try:
                session = session.truncate(length, BACKEND)
            except InvalidRequest:
                return
            model = model.cut(length)
        try:
            fork(self.store, source, new, session)
        except SessionExists:
            assert new in self.models
            return
        assert new not in self.models
        self.models[new] = model

    @precondition(lambda self: len(self.models) > 1)
    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        key = self._some(which)
        self.store.delete(key)
        del self.models[key]

    @invariant()
    def each_session_holds_its_tokens(self) -> None:
        for key, model in self.models.items():
            session = self.store.get(key).session
            for layer in range(session.stored_layers):
                held = model.held(layer)
                a, b, start, stop = session.range(None, None, (layer, layer + 1))
                assert start <= held.start or not held
                assert stop == len(model.layers[layer])
                page = session.read(a, b, min(max(start, held.start), stop), stop, BACKEND)
                np.testing.assert_array_equal(
                    numbers_of(page)[0], np.array(model.layers[layer], np.float16)[held.start :]
                )

    @invariant()
    def every_page_is_counted_once(self) -> None:
        sessions = [self.store.get(key).session for key in self.models]
        pages = {id(page): page for session in sessions for page in session.all_pages()}
        metadata = sum(SESSION_OVERHEAD_NBYTES + len(session.runs) * RUN_OVERHEAD_NBYTES for session in sessions)
        assert self.store.memory.used == metadata + sum(page.nbytes + PAGE_OVERHEAD_NBYTES for page in pages.values())
        assert self.store.memory.reserved == 0


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=examples(50, exhaustive=120), stateful_step_count=30)


def filled(*keys: Key) -> tuple[SessionStore, int]:
    """Return a store filled with equal sessions of these keys, and the bytes counted for one of them."""
    empty = Session((CODEC, CODEC), kv_heads=1, head_dim=64)
    sessions = [empty.append(0, numbered(list(range(300)), LAYERS), BACKEND) for _ in keys]
    cost = memory_budget.resident_nbytes(sessions[0])
    store = SessionStore(len(keys) * cost)
    for key, session in zip(keys, sessions, strict=True):
        commit(store, key, session)
    return store, cost


def test_fork_evicts_the_lru_session() -> None:
    store, cost = filled(("", "old"), ("", "new"))

    fork(store, ("", "new"), ("", "fork"), store.get(("", "new")).session)

    assert store.find(("", "old")) is None
    assert len(store) == 2
    assert cost < store.memory.used < 1.1 * cost


def test_fork_does_not_evict_pinned_sessions() -> None:
    store, cost = filled(("", "old"), ("", "new"))

    with pytest.raises(InsufficientStorage):
        fork(store, ("", "new"), ("", "fork"), store.get(("", "new")).session, {("", "old")})

    assert store.find(("", "fork")) is None
    assert store.memory.used == 2 * cost

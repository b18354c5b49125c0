"""The store with a disk against plain lists of tokens, through spills, restarts and crashes."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hadakv_kernels.cpu import CpuBackend
from hadakv_service.device.jobs import run_to_completion
from hadakv_service.errors import InsufficientStorage, InvalidRequest, SessionExists
from hadakv_service.sessions.session import Durability, Session
from hadakv_service.storage.disk.sqlite_file import page_cost
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.memory_budget import EVICTED_PAGE_NBYTES, PAGE_OVERHEAD_NBYTES, metadata_nbytes
from hadakv_service.storage.session_store import Key, SessionStore
from support.inputs.sized_sessions import Clock, commit, fork
from support.thoroughness import examples
from unit.storage.test_page_sharing import CODEC, LAYERS, Model, numbered, numbers_of

BACKEND = CpuBackend(1)
# No shrinking: it takes many minutes here, and the printed steps show everything that happened.
PHASES = (Phase.explicit, Phase.generate)
WHICH = st.integers(0, 5)
PAGE = 256 * LAYERS * 2 * 128
MEMORY, DISK, LITTLE_DISK = 4 * PAGE, 1000 * PAGE, 9 * PAGE
CHECKPOINT_SECONDS = 0.5


@dataclass(frozen=True)
class Known:
    """Expected state of a session.

    Attributes:
        model: tokens of the session.
        durability: what is saved to disk.
        ttl: seconds without use until it expires.
        used: time of last use, Unix seconds.
    """

    model: Model
    durability: Durability
    ttl: float | None
    used: float


class DiskMachine(RuleBasedStateMachine):
    """All operations on sessions, in any order, with memory for a few pages only."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.known: dict[Key, Known] = {}
        self.next = 0
        # Lengths that the disk has of `spill` sessions, according to the store.
        self.saved: dict[Key, list[int]] = {}

    def _open(self) -> None:
        self.sqlite = SqliteStore(Path(self.directory.name) / "data", self.disk)
        self.store = SessionStore(
            MEMORY, self.clock, disk=self.sqlite, backend=BACKEND, checkpoint_seconds=self.checkpoint_seconds
        )
        self.store._table.dirty.now = self.clock
        self.store.checkpoints.step_nbytes = PAGE

    def teardown(self) -> None:
        if hasattr(self, "sqlite"):
            self.store._writer.close()
            self.sqlite.close()
        self.directory.cleanup()

    @initialize(
        disk=st.sampled_from([DISK, DISK, LITTLE_DISK]),
        checkpoint_seconds=st.sampled_from([CHECKPOINT_SECONDS, CHECKPOINT_SECONDS, 0.0]),
        sessions=st.lists(
            st.tuples(
                st.sampled_from([None, None, 5, 300]),
                st.sampled_from(["memory", "spill", "spill", "ack"]),
                st.sampled_from([None, None, 100.0]),
            ),
            min_size=2,
            max_size=4,
        ),
    )
    def make(
        self, disk: int, checkpoint_seconds: float, sessions: list[tuple[int | None, Durability, float | None]]
    ) -> None:
        self.disk = disk
        self.checkpoint_seconds = checkpoint_seconds
        self._open()
        for name, (window, durability, ttl) in zip("abcd", sessions, strict=False):
            key = ("", name)
            options = {"window": window, "durability": durability, "ttl_seconds": ttl}
            commit(self.store, key, Session((CODEC, CODEC), kv_heads=1, head_dim=64, **options))  # type: ignore[arg-type]  # each of its type
            self.known[key] = Known(Model(window=window), durability, ttl, self.clock.now)
            self._append(key, 150, 0)

    def _some(self, which: int) -> Key | None:
        """Choose a session, after those that have expired or were evicted are gone.

        For half of the choices, some sessions are being written in the background meanwhile.
        """
        if which % 2:
            self._begin_checkpoint()
        for key in list(self.known):
            self._is_there(key)
        return sorted(self.known)[which % len(self.known)] if self.known else None

    def _is_there(self, key: Key) -> bool:
        known = self.known[key]
        if self.store.find(key):
            return True
        expired = known.ttl is not None and known.used + known.ttl <= self.clock.now
        evictable = known.durability == "memory" or (known.durability == "spill" and self.disk == LITTLE_DISK)
        assert expired or (evictable and self.store.evictions), f"{key} is gone"
        del self.known[key]
        return False

    def _used(self, key: Key, model: Model) -> None:
        self.known[key] = replace(self.known[key], model=model, used=self.clock.now)

    @rule(which=WHICH, tokens=st.sampled_from([1, 2, 100, 255, 256, 600]), first=st.integers(0, 2))
    def append(self, which: int, tokens: int, first: int) -> None:
        key = self._some(which)
        if key:
            self._append(key, tokens, first)

    def _append(self, key: Key, tokens: int, first: int) -> None:
        model = self.known[key].model
        if len(set(map(len, model.layers[first:]))) > 1:
            return
        self.next = (self.next + tokens) % 1000
        numbers = [(self.next + i) % 2048 for i in range(tokens)]
        page = numbered(numbers, LAYERS - first)
        old = self.store.get(key).session
        slices_nbytes = old.split_runs_nbytes(first, LAYERS - first)
        session = old.split_runs(first, LAYERS - first)
        pages = session.new_pages(first, LAYERS - first, tokens)
        try:
            reservation = self.store.reserve(
                key, session, {key}, nbytes=page.nbytes, pages=pages, slices_nbytes=slices_nbytes
            )
        except InsufficientStorage:
            # A session that cannot be spilled, or whose pages are all in use, may not fit in memory.
            assert self.known[key].durability == "memory" or self.disk == LITTLE_DISK
            return
        # Also write slices to disk where memory would have space for them.
        reservation.bypasses_memory |= not self.next % 2
        value = session.append(first, page, BACKEND)
        try:
            run_to_completion(self.store.commit(reservation, value))
        except InsufficientStorage:
            assert self.disk == LITTLE_DISK
            reservation.release()
            return
        if not self.store.group_commit():
            self._used(key, model.grown(first, numbers))
        else:
            assert self.disk == LITTLE_DISK

    @rule(which=WHICH, back=st.integers(0, 700), then=st.sampled_from([0, 0, 3, 300]))
    def truncate(self, which: int, back: int, then: int) -> None:
        key = self._some(which)
        if key is None:
            return
        self._truncate(key, back)
        if then and key in self.known:
            self._append(key, then, 0)

    def _truncate(self, key: Key, back: int) -> None:
        model = self.known[key].model
        length = max(0, max(map(len, model.layers)) - back)
        try:
            session = self.store.get(key).session.truncate(length, BACKEND)
        except InvalidRequest:
            return
        try:
            commit(self.store, key, session)
        except InsufficientStorage:
            assert self.disk == LITTLE_DISK
            return
        if not self.store.group_commit():
            self._used(key, model.cut(length))
            if length < max(map(len, model.layers)):
                self.saved.pop(key, None)
        else:
            assert self.disk == LITTLE_DISK

    @rule(which=WHICH, new=st.sampled_from([("", name) for name in "abcdef"]))
    def fork(self, which: int, new: Key) -> None:
        source = self._some(which)
        if source is None:
            return
        try:
            fork(self.store, source, new, self.store.get(source).session)
        except SessionExists:
            assert new in self.known
            return
        except InsufficientStorage:
            return
        self._used(source, self.known[source].model)
        if not self.store.group_commit():
            assert new not in self.known
            self.known[new] = replace(self.known[source], used=self.clock.now)

    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        key = self._some(which)
        if key:
            assert self.store.delete(key)
            self.store.group_commit()
            del self.known[key]
            self.saved.pop(key, None)
            assert self.store.find(key) is None

    def _begin_checkpoint(self) -> None:
        """Begin to write sessions in the background. Other calls run before it is settled."""
        self.clock.now += CHECKPOINT_SECONDS
        self.store.checkpoints.begin()

    @rule()
    def checkpoint(self) -> None:
        """Write all sessions that are due."""
        self.clock.now += CHECKPOINT_SECONDS
        while self.store.checkpoints.begin():
            self.store.checkpoints.settle()
        if self.disk == DISK and self.checkpoint_seconds:
            assert not len(self.store._table.dirty)

    @rule(seconds=st.sampled_from([1.0, 60.0, 120.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.store.run_maintenance()

    @rule(nbytes=st.sampled_from([1000, PAGE, 3 * PAGE]))
    def need_memory(self, nbytes: int) -> None:
        """Evict for an operation that pins some sessions."""
        pinned = {key for key in self.known if key[1] in "ab"}
        run_to_completion(self.store._evictor.ensure(min(nbytes, MEMORY), pinned))

    @rule()
    def restart(self) -> None:
        """Everything that may be on disk is there after a clean shutdown."""
        for key in list(self.known):
            self._is_there(key)
        left = self.store.close(float("inf"))
        assert not left or self.disk == LITTLE_DISK
        self._open()
        for key, known in list(self.known.items()):
            if known.durability == "memory":
                assert self.store.find(key) is None
                del self.known[key]
            elif self.disk == LITTLE_DISK and known.durability == "spill" and not self.store.find(key):
                del self.known[key]

    @rule(in_checkpoint=st.booleans())
    def crash(self, in_checkpoint: bool) -> None:
        """After a crash acknowledged sessions are complete. Of other sessions a prefix is there, with saved tokens."""
        if in_checkpoint:
            self._begin_checkpoint()
        if self.store._writer._in_flight:
            self.store._writer._in_flight.future.result()
        self.sqlite.close()
        self._open()
        for key, known in list(self.known.items()):
            record = self.store.find(key)
            if record is None:
                expired = known.ttl is not None and known.used + known.ttl <= self.clock.now
                # The time of last use may not have been written.
                assert known.durability != "ack" or expired or known.ttl is not None, f"{key} is gone"
                assert key not in self.saved or expired or known.ttl is not None, f"{key} was saved, and is gone"
                self.saved.pop(key, None)
                del self.known[key]
                continue
            lengths = [length for _, _, length in record.session.spans()] + [0] * LAYERS
            assert all(a >= b for a, b in zip(lengths, self.saved.get(key, []), strict=False))
            if known.durability == "ack":
                assert lengths[:LAYERS] == [len(layer) for layer in known.model.layers]
            cut = tuple(layer[:length] for layer, length in zip(known.model.layers, lengths, strict=False))
            self.known[key] = replace(known, model=replace(known.model, layers=cut), used=record.last_used)

    @invariant()
    def clean_sessions_are_saved(self) -> None:
        """Note what a crash must not lose: all of the sessions without changes, and of none that may be evicted."""
        if not hasattr(self, "store"):
            return
        dirty = self.store._table.dirty
        if self.disk == LITTLE_DISK:
            self.saved.clear()
            return
        for key, known in self.known.items():
            if known.durability == "spill" and key not in dirty and key not in dirty._in_flight:
                self.saved[key] = [len(layer) for layer in known.model.layers]

    @precondition(lambda self: self.known)
    @invariant()
    def each_session_holds_its_tokens(self) -> None:
        for key in list(self.known):
            if not self._is_there(key):
                continue
            model, session = self.known[key].model, self.store.get(key).session
            for layer in range(session.stored_layers):
                held = model.held(layer)
                a, b, start, stop = session.range(None, None, (layer, layer + 1))
                assert stop == len(model.layers[layer])
                page = session.read(a, b, min(max(start, held.start), stop), stop, BACKEND)
                wanted = np.array(model.layers[layer], np.float16)[min(max(start, held.start), stop) :]
                np.testing.assert_array_equal(numbers_of(page)[0], wanted)

    @invariant()
    def counters_match_contents(self) -> None:
        if not hasattr(self, "store"):
            return
        records = list(self.store._table.items())
        pages = {page for _, record in records for page in record.session.all_pages()}
        resident = sum(page.nbytes + PAGE_OVERHEAD_NBYTES for page in pages if page.is_resident)
        evicted = sum(EVICTED_PAGE_NBYTES for page in pages if not page.is_resident)
        assert (
            self.store.memory.stored
            == sum(metadata_nbytes(record.session) for _, record in records) + resident + evicted
        )
        assert self.store.memory.stored <= MEMORY
        assert self.store.memory.reserved == 0
        names = {key for key, _ in records} | {("", id_) for id_, _ in self.sqlite.list_manifests("", "", "", 100)}
        assert len(self.store) == len(names)
        if self.store._writer._in_flight:
            # The counters do not have it yet.
            return
        on_disk = sum(page_cost(nbytes) for (nbytes,) in self.sqlite._sql.execute("SELECT nbytes FROM pages"))
        assert self.sqlite.used == on_disk + 512 * self.sqlite.sessions
        assert self.sqlite.used <= self.disk


TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = settings(max_examples=examples(50, exhaustive=150), stateful_step_count=40, phases=PHASES)

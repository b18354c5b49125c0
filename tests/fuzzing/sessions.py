"""Sessions through little memory and a little disk: appends, reads, forks, truncations of all shapes, and restarts.

Whatever is there must be what was acknowledged, and a session that was promised to be kept must be there.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgpack

from fuzzing import values
from fuzzing.expected_state import Contradiction, Held
from fuzzing.report import Limit, Tally
from hadakv_service.testing import running_service
from support.contract import Answer, Caller, Json
from support.mutated_bodies import MUTATIONS
from support.process_memory import resident_nbytes
from support.session_files import OCTETS

CALLERS = 3
FLAGS = ("--memory-budget", "1MiB", "--disk-budget", "3MiB", "--max-body", "16MiB")
# A service is stopped in order and started again after so many cases of each caller.
ROUND = 250
OPTIONS: list[Json] = [
    {},
    {},
    {"codec": {"bits": 3, "norm": "unbiased"}},
    {"codec": {"k": {"bits": 8}, "v": {"kind": "float16"}}},
    {"window": 5},
    {"window": 300},
    {"layers": 2},
    {"durability": "memory"},
    {"durability": "spill"},
    {"durability": "ack"},
    {"durability": "ack", "window": 40},
    {"durability": "ack", "ttl_seconds": 0.5},
    {"ttl_seconds": 0.2},
]
# Sessions of all callers, of which nobody knows what they hold.
SHARED = ["all.0", "all.1", "all.2"]


class Mind:
    """A caller with sessions of its own, who remembers what it was told.

    Attributes:
        held: what each session that may be there must hold.
        kept: sessions that must be there.
    """

    def __init__(self, name: str, rng: random.Random, tally: Tally) -> None:
        self._names = [f"{name}.{session}" for session in values.SESSIONS]
        self._rng = rng
        self._tally = tally
        self.held: dict[str, Held] = {}
        self.kept: set[str] = set()

    def act(self, caller: Caller) -> None:
        """Make one call, and see whether the answer can be."""
        session = self._rng.choice(self._names)
        action = self._rng.choice(
            [self.append] * 6
            + [self.read] * 4
            + [self.create, self.fork, self.shared] * 2
            + [self.truncate, self.delete, self.show, self.spoiled, self.list, self.copy]
        )
        what = f"{action.__name__} {session}"
        try:
            answer = action(caller, session)
            self._tally.note(answer.status, f"{what}: {answer.content[:300]!r}")
            if answer.status == 410:
                raise Contradiction(f"nobody damaged anything, but {answer.content[:300]!r}")
        except httpx.TimeoutException:
            self._tally.note_hang(what)
        except (Contradiction, httpx.HTTPError) as error:
            self._tally.failures.append(f"{what}: {error!r}")

    def missing(self, session: str) -> None:
        """Note that a session is not there."""
        self.held.pop(session, None)
        if session in self.kept:
            self.kept.discard(session)
            raise Contradiction("a session is gone that was to be kept")

    def create(self, caller: Caller, session: str) -> Answer:
        # What a session is can only be said before it is something.
        if self._rng.random() < 0.6:
            self.delete(caller, session)
        answer = caller.put(f"/sessions/{session}", self._rng.choice(OPTIONS))
        if answer.status == 201:
            self.missing(session)
        self._learn(session, answer)
        return answer

    def _learn(self, session: str, answer: Answer) -> None:
        """From a session's description, whether it must be kept."""
        if answer.status in (200, 201):
            self.held.setdefault(session, Held())
            is_kept = answer.body["durability"] == "ack" and answer.body["ttl_seconds"] is None
            (self.kept.add if is_kept else self.kept.discard)(session)

    def append(self, caller: Caller, session: str) -> Answer:
        body = values.append(self._rng, session)
        layer = self._rng.choice([0, 0, 0, 0, 1, 3])
        length = self.held.get(session, Held()).length(layer)
        if self._rng.random() < 0.5:
            body["position"] = self._rng.choice([length, length, length, max(length - 1, 0), 0, length + 1])
        answer = caller.post(f"/sessions/{session}/kv", body | ({"layer": layer} if layer else {}))
        if answer.status == 201:
            self.missing(session)
        if answer.status in (200, 201):
            self.held.setdefault(session, Held()).append(layer, answer.body)
        return answer

    def read(self, caller: Caller, session: str) -> Answer:
        params: dict[str, str | int] = {}
        if self._rng.random() < 0.4:
            params["start"] = self._rng.choice([0, 1, 100, 255, 256, 300])
            params["stop"] = self._rng.choice([0, 2, 101, 257, 1000])
        first = self._rng.choice([0, 0, 0, 1])
        if self._rng.random() < 0.4 or first:
            params["layers"] = f"{first}:{first + self._rng.randint(0, 2)}"
        if self._rng.random() < 0.3:
            params["form"] = self._rng.choice(["float32", "bfloat16", "rotated"])
        elif self._rng.random() < 0.1:
            params = {"layout": "ring"}
        answer = caller.get(f"/sessions/{session}/kv", **params)
        if answer.status == 404:
            self.missing(session)
        if answer.status == 200 and not params.keys() & {"form", "layout"}:
            self.held.setdefault(session, Held()).check(first, answer.body)
        return answer

    def truncate(self, caller: Caller, session: str) -> Answer:
        length = self._rng.choice([0, 1, 5, 100, 256, 290])
        answer = caller.post(f"/sessions/{session}/truncate", {"length": length})
        if answer.status == 404:
            self.missing(session)
        if answer.status == 200:
            self.held[session] = self.held.get(session, Held()).truncated(length)
        return answer

    def fork(self, caller: Caller, session: str) -> Answer:
        target = self._rng.choice(self._names)
        length = self._rng.choice([None, None, 0, 3, 256])
        answer = caller.post(f"/sessions/{session}/fork", {"id": target, "length": length})
        if answer.status == 404:
            self.missing(session)
        if answer.status == 201:
            shared = self.held.get(session, Held()).truncated(length)
            self.missing(target)
            self.held[target] = shared
            self._learn(target, answer)
        return answer

    def copy(self, caller: Caller, session: str) -> Answer:
        """Make another session of a session's file."""
        file = caller.get(f"/sessions/{session}/export")
        if file.status != 200:
            if file.status == 404:
                self.missing(session)
            return file
        target = self._rng.choice(self._names)
        answer = caller.send("POST", f"/sessions/{target}/import", file.content, OCTETS)
        if answer.status == 201:
            shared = self.held.get(session, Held()).truncated(None)
            self.missing(target)
            self.held[target] = shared
            self._learn(target, answer)
        elif answer.status == 422:
            raise Contradiction(f"what was exported is not imported: {answer.content[:300]!r}")
        return answer

    def delete(self, caller: Caller, session: str) -> Answer:
        answer = caller.delete(f"/sessions/{session}")
        if answer.status == 404:
            self.missing(session)
        if answer.status == 204:
            self.kept.discard(session)
            self.held.pop(session, None)
        return answer

    def show(self, caller: Caller, session: str) -> Answer:
        answer = caller.get(f"/sessions/{session}")
        if answer.status == 404:
            self.missing(session)
        for span in answer.body["layers"] if answer.status == 200 else ():
            if span["length"] != self.held.get(session, Held()).length(span["layer"]):
                raise Contradiction(f"has another length than was answered: {span}")
        return answer

    def list(self, caller: Caller, session: str) -> Answer:
        answer = caller.get("/sessions", prefix=session.partition(".")[0] + ".", limit=1000)
        found = {each["session"] for each in answer.body["sessions"]}
        for gone in (self.held.keys() | self.kept) - found:
            self.missing(gone)
        return answer

    def spoiled(self, caller: Caller, session: str) -> Answer:
        """A mutated append. It goes to a session that nobody remembers: it may be valid after all."""
        body = self._rng.choice(MUTATIONS)(self._rng, msgpack.packb(values.append(self._rng, session)))
        return caller.send("POST", f"/sessions/{session}.spoiled/kv", body)

    def shared(self, caller: Caller, session: str) -> Answer:
        """Something with a session that others may be at just now."""
        path, other = f"/sessions/{self._rng.choice(SHARED)}", self._rng.choice(SHARED)
        match self._rng.randrange(8):
            case 0:
                return caller.put(path, self._rng.choice(OPTIONS))
            case 1:
                return caller.post(f"{path}/truncate", {"length": self._rng.choice([0, 10, 256])})
            case 2:
                return caller.post(f"{path}/fork", {"id": other})
            case 3:
                return caller.delete(path)
            case 4:
                return caller.get(f"{path}/kv", form=self._rng.choice(["packed", "float32"]))
            case _:
                return caller.post(f"{path}/kv", values.append(self._rng, session))


def run(limit: Limit) -> Tally:
    """Let several callers act at once, through restarts."""
    tally = Tally("sessions on a disk")
    minds = [Mind(f"c{number}", random.Random(limit.seed * 1000 + number), tally) for number in range(CALLERS)]
    cases = limit.numbers()
    with TemporaryDirectory() as folder:
        while _round(minds, cases, Path(folder), tally):
            pass
    return tally


def _round(minds: list[Mind], cases: Iterator[int], folder: Path, tally: Tally) -> bool:
    """One life of the service; whether there are to be more."""
    with _callers(folder) as (callers, pid):
        before = None
        for number in range(ROUND):
            if next(cases, None) is None:
                return False
            threads = [
                threading.Thread(target=mind.act, args=(caller,)) for mind, caller in zip(minds, callers, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if number == ROUND // 2:
                before = resident_nbytes(pid)
        if before is not None:
            tally.note_grown(max(resident_nbytes(pid) - before, tally.grown_nbytes or 0))
    return True


@contextmanager
def _callers(folder: Path) -> Iterator[tuple[list[Caller], int]]:
    with running_service("--data-dir", str(folder), *FLAGS) as service:
        callers = [Caller(service.url) for _ in range(CALLERS)]
        try:
            yield callers, service.process.pid
        finally:
            for caller in callers:
                caller.http.close()

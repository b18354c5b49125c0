"""Target "sessions": all operations on a service with little memory and a small disk, through restarts.

The content of every session must be what was acknowledged. A session with durability `ack` and no TTL must exist.
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
from fuzzing.expected_state import Contradiction, ExpectedSession
from fuzzing.report import Limit, Tally
from hadakv_service.testing import running_service
from support.contract import Answer, Caller, Json
from support.inputs.mutated_bodies import MUTATIONS
from support.inputs.session_files import OCTETS, as_version_1
from support.services.process_memory import resident_nbytes

CALLERS = 3
FLAGS = ("--memory-budget", "1MiB", "--disk-budget", "3MiB", "--max-body", "16MiB")
# Cases of each client between two restarts.
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
# Sessions that all clients use. Their content is not checked.
SHARED = ["all.0", "all.1", "all.2"]


class SessionClient:
    """Client with sessions of its own, which remembers every response.

    Attributes:
        expected: expected content of each session that may exist.
        kept: ids of sessions that must exist.
    """

    def __init__(self, name: str, rng: random.Random, tally: Tally) -> None:
        self._names = [f"{name}.{session}" for session in values.SESSIONS]
        self._rng = rng
        self._tally = tally
        self.expected: dict[str, ExpectedSession] = {}
        self.kept: set[str] = set()

    def act(self, caller: Caller) -> None:
        """Send one random request and check the response."""
        session = self._rng.choice(self._names)
        action = self._rng.choice(
            [self.append] * 6
            + [self.read] * 4
            + [self.create, self.fork, self.shared] * 2
            + [self.truncate, self.delete, self.show, self.corrupted, self.list, self.copy]
        )
        what = f"{action.__name__} {session}"
        try:
            answer = action(caller, session)
            self._tally.record(answer.status, f"{what}: {answer.content[:300]!r}")
            if answer.status == 410:
                raise Contradiction(f"no file was damaged, but {answer.content[:300]!r}")
        except httpx.TimeoutException:
            self._tally.record_timeout(what)
        except (Contradiction, httpx.HTTPError) as error:
            self._tally.failures.append(f"{what}: {error!r}")

    def record_missing(self, session: str) -> None:
        """Record that a session does not exist.

        Raises:
            Contradiction: the session must exist.
        """
        self.expected.pop(session, None)
        if session in self.kept:
            self.kept.discard(session)
            raise Contradiction("a session is missing that must exist")

    def create(self, caller: Caller, session: str) -> Answer:
        # Options can only be set on a new session.
        if self._rng.random() < 0.6:
            self.delete(caller, session)
        answer = caller.put(f"/sessions/{session}", self._rng.choice(OPTIONS))
        if answer.status == 201:
            self.record_missing(session)
        self._record_durability(session, answer)
        return answer

    def _record_durability(self, session: str, answer: Answer) -> None:
        """Record whether a session must be kept, by its description."""
        if answer.status in (200, 201):
            self.expected.setdefault(session, ExpectedSession())
            is_kept = answer.body["durability"] == "ack" and answer.body["ttl_seconds"] is None
            (self.kept.add if is_kept else self.kept.discard)(session)

    def append(self, caller: Caller, session: str) -> Answer:
        body = values.append(self._rng, session)
        layer = self._rng.choice([0, 0, 0, 0, 1, 3])
        length = self.expected.get(session, ExpectedSession()).length(layer)
        if self._rng.random() < 0.5:
            body["position"] = self._rng.choice([length, length, length, max(length - 1, 0), 0, length + 1])
        answer = caller.post(f"/sessions/{session}/kv", body | ({"layer": layer} if layer else {}))
        if answer.status == 201:
            self.record_missing(session)
        if answer.status in (200, 201):
            self.expected.setdefault(session, ExpectedSession()).append(layer, answer.body)
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
            self.record_missing(session)
        if answer.status == 200 and not params.keys() & {"form", "layout"}:
            self.expected.setdefault(session, ExpectedSession()).check(answer.body)
        return answer

    def truncate(self, caller: Caller, session: str) -> Answer:
        length = self._rng.choice([0, 1, 5, 100, 256, 290])
        answer = caller.post(f"/sessions/{session}/truncate", {"length": length})
        if answer.status == 404:
            self.record_missing(session)
        if answer.status == 200:
            self.expected[session] = self.expected.get(session, ExpectedSession()).truncated(length)
        return answer

    def fork(self, caller: Caller, session: str) -> Answer:
        target = self._rng.choice(self._names)
        length = self._rng.choice([None, None, 0, 3, 256])
        answer = caller.post(f"/sessions/{session}/fork", {"id": target, "length": length})
        if answer.status == 404:
            self.record_missing(session)
        if answer.status == 201:
            shared = self.expected.get(session, ExpectedSession()).truncated(length)
            self.record_missing(target)
            self.expected[target] = shared
            self._record_durability(target, answer)
        return answer

    def copy(self, caller: Caller, session: str) -> Answer:
        """Export a session, and import it as another one."""
        file = caller.get(f"/sessions/{session}/export")
        if file.status != 200:
            if file.status == 404:
                self.record_missing(session)
            return file
        target = self._rng.choice(self._names)
        if self._rng.random() < 0.3:
            return self._import_damaged(caller, target, file.content)
        content = as_version_1(file.content) if self._rng.random() < 0.2 else file.content
        answer = caller.send("POST", f"/sessions/{target}/import", content, OCTETS)
        if answer.status == 201:
            shared = self.expected.get(session, ExpectedSession()).truncated(None)
            self.record_missing(target)
            self.expected[target] = shared
            self._record_durability(target, answer)
        elif answer.status == 422:
            raise Contradiction(f"an exported file was rejected: {answer.content[:300]!r}")
        return answer

    def _import_damaged(self, caller: Caller, target: str, file: bytes) -> Answer:
        """Import a file with another bit, or without its end."""
        damaged = bytearray(file)
        if self._rng.random() < 0.3:
            del damaged[self._rng.randrange(len(damaged)) :]
        else:
            damaged[self._rng.randrange(len(damaged))] ^= 1 << self._rng.randrange(8)
        answer = caller.send("POST", f"/sessions/{target}/import", bytes(damaged), OCTETS)
        if answer.status == 201:
            raise Contradiction("a damaged file was imported")
        return answer

    def delete(self, caller: Caller, session: str) -> Answer:
        answer = caller.delete(f"/sessions/{session}")
        if answer.status == 404:
            self.record_missing(session)
        if answer.status == 204:
            self.kept.discard(session)
            self.expected.pop(session, None)
        return answer

    def show(self, caller: Caller, session: str) -> Answer:
        answer = caller.get(f"/sessions/{session}")
        if answer.status == 404:
            self.record_missing(session)
        for span in answer.body["layers"] if answer.status == 200 else ():
            if span["length"] != self.expected.get(session, ExpectedSession()).length(span["layer"]):
                raise Contradiction(f"reported length differs from earlier responses: {span}")
        return answer

    def list(self, caller: Caller, session: str) -> Answer:
        answer = caller.get("/sessions", prefix=session.partition(".")[0] + ".", limit=1000)
        found = {each["session"] for each in answer.body["sessions"]}
        for gone in (self.expected.keys() | self.kept) - found:
            self.record_missing(gone)
        return answer

    def corrupted(self, caller: Caller, session: str) -> Answer:
        """Send a mutated append. It may be valid, so it goes to a session that is not checked."""
        body = self._rng.choice(MUTATIONS)(self._rng, msgpack.packb(values.append(self._rng, session)))
        return caller.send("POST", f"/sessions/{session}.corrupted/kv", body)

    def shared(self, caller: Caller, session: str) -> Answer:
        """Use a session that other clients may be using at the moment."""
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
    """Run the target: several clients at once, through restarts."""
    tally = Tally("sessions on a disk")
    seeds = [limit.seed * 1000 + number for number in range(CALLERS)]
    clients = [SessionClient(f"c{number}", random.Random(seed), tally) for number, seed in enumerate(seeds)]
    cases = limit.numbers()
    with TemporaryDirectory() as folder:
        while _round(clients, cases, Path(folder), tally):
            pass
    return tally


def _round(clients: list[SessionClient], cases: Iterator[int], folder: Path, tally: Tally) -> bool:
    """Run one service process; return whether there are cases left."""
    with _callers(folder) as (callers, pid):
        before = None
        for number in range(ROUND):
            if next(cases, None) is None:
                return False
            threads = [
                threading.Thread(target=client.act, args=(caller,))
                for client, caller in zip(clients, callers, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if number == ROUND // 2:
                before = resident_nbytes(pid)
        if before is not None:
            tally.record_growth(max(resident_nbytes(pid) - before, tally.grown_nbytes or 0))
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

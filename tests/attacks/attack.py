"""What every attack is made of: a service to attack, an outcome, and the list it joins."""

import hashlib
import re
import socket
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgpack
import numpy as np

from hadakv_service.testing import RunningService, running_service
from support.contract import MSGPACK, Answer, Caller, append_body, connect

RNG = np.random.default_rng(4)
K, V = (RNG.standard_normal((2, 2, 40, 64)).astype(np.float16) for _ in "kv")
BODY: bytes = msgpack.packb(append_body(K, V))
# What Alice keeps, and nobody else may see or change.
SECRET = "secret"
TOKENS = {"alice": "token-of-alice", "mallory": "token-of-mallory"}
# Short times, so that an attack on them is soon over; few connections, so that 1,000 are too many.
FLAGS = ("--header-timeout", "1", "--stall-timeout", "1", "--max-connections", "300", "--memory-budget", "256MiB")
PATIENCE_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attack went.

    Attributes:
        sent: what, in words.
        came_back: likewise.
        held: whether the service withstood it.
    """

    sent: str
    came_back: str
    held: bool


class Target:
    """A service where Alice keeps a session and Mallory is another tenant. The attacks are Mallory's, or a stranger's.

    Args:
        service: in a process of its own.
        log: what it logs.
    """

    def __init__(self, service: RunningService, log: Path) -> None:
        self.service = service
        self._log = log
        with self.caller("alice") as alice:
            alice.append(SECRET, K, V)
            self._before = alice.snapshot(SECRET)

    def caller(self, tenant: str | None) -> Caller:
        """A client with a tenant's token, or without any."""
        return Caller(self.service.url, TOKENS[tenant] if tenant else None)

    def connect(self) -> socket.socket:
        """A bare connection, on which nothing is waited for longer than an attack may take."""
        connection = connect(self.service.url)
        connection.settimeout(PATIENCE_SECONDS)
        return connection

    def exchange(self, request: bytes, *, seconds: float = 1) -> bytes:
        """All that comes back until the service closes the connection, or says nothing for so long."""
        with self.connect() as connection:
            connection.settimeout(seconds)
            received = bytearray()
            try:
                connection.sendall(request)
                while chunk := connection.recv(1 << 16):
                    received += chunk
            except (TimeoutError, ConnectionError):
                pass
            return bytes(received)

    def works(self) -> bool:
        """Whether the service still does for Alice what it should, and her session is as it was."""
        with self.caller("alice") as alice:
            try:
                made = alice.append("work", K, V, position=0)
                return made.status in (200, 201) and alice.snapshot(SECRET) == self._before
            except (AssertionError, httpx.TransportError):
                return False

    def failed(self) -> bool:
        """Whether the service has logged an error that nobody foresaw."""
        return "Traceback" in self._log.read_text("utf-8", "replace")

    def nbytes(self) -> int:
        """Memory the service's process has asked for, used or not; 0 where the system does not tell."""
        status = Path(f"/proc/{self.service.process.pid}/status")
        lines = status.read_text("utf-8").splitlines() if status.exists() else []
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize:"))


@contextmanager
def target(*flags: str) -> Iterator[Target]:
    """A service to attack, which knows two tenants."""
    with TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        lines = [f"{tenant}:{hashlib.sha256(token.encode()).hexdigest()}\n" for tenant, token in TOKENS.items()]
        tokens.write_text("".join(lines), "utf-8")
        tokens.chmod(stat.S_IRUSR | stat.S_IWUSR)
        log = Path(folder) / "log"
        with log.open("w") as into, running_service("--token-file", str(tokens), *FLAGS, *flags, log=into) as service:
            yield Target(service, log)


Attack = Callable[[Target], Outcome]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    """Add a function to the attacks that are tried, as a row of the table."""

    def add(tried: Attack) -> Attack:
        assert name not in ATTACKS, name
        ATTACKS[name] = tried
        return tried

    return add


def head(
    method: str, path: str, *lines: str, tenant: str | None = "mallory", host: str = "localhost", end: str = "close"
) -> bytes:
    """A request's line and headers, by hand; `end` is what becomes of the connection."""
    token = [f"Authorization: Bearer {TOKENS[tenant]}"] if tenant else []
    lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", f"Connection: {end}", *token, *lines, "", "")
    return "\r\n".join(lines).encode("latin-1")


def append_head(session: str, nbytes: int, *lines: str, tenant: str | None = "mallory", end: str = "close") -> bytes:
    """The head of an append."""
    lines = (f"Content-Type: {MSGPACK}", f"Content-Length: {nbytes}", *lines)
    return head("POST", f"/sessions/{session}/kv", *lines, tenant=tenant, end=end)


def statuses(*received: bytes) -> list[int]:
    """The status of each answer, on one connection after the other."""
    return [int(code) for each in received for code in re.findall(rb"^HTTP/1\.1 (\d{3})", each, re.MULTILINE)]


def told(*received: bytes) -> str:
    """What came back on each connection, in words."""
    return _counted([_words(each) for each in received])


def _words(received: bytes) -> str:
    kinds = [kind.decode() for kind in re.findall(rb"urn:hadakv:problem:([a-z-]+)", received)]
    return " ".join([*map(str, statuses(received)), *kinds]) or "closed without an answer"


def summary(answers: Sequence[Answer]) -> str:
    """What several answers said."""
    return _counted(
        [f"{a.status} {a.body['type'].rpartition(':')[2]}" if a.status >= 400 else str(a.status) for a in answers]
    )


def _counted(words: Sequence[str]) -> str:
    return ", ".join(word if count == 1 else f"{count} x {word}" for word, count in Counter(words).items())


@cache
def large() -> bytes:
    """The body of an append of 16 MiB."""
    x = np.zeros((4, 4, 4096, 64), np.float16)
    return bytes(msgpack.packb(append_body(x, x)))

"""Parts of every attack: the service to attack, the outcome, and the table of attacks."""

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
# Id of Alice's session. Other tenants must not be able to see or change it.
SECRET = "secret"
TOKENS = {"alice": "token-of-alice", "mallory": "token-of-mallory"}
# Short timeouts, so that attacks on them end soon. Few connections, so that 1,000 are too many.
FLAGS = ("--header-timeout", "1", "--stall-timeout", "1", "--max-connections", "300", "--memory-budget", "256MiB")
PATIENCE_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of an attack.

    Attributes:
        sent: description of what was sent.
        came_back: description of the responses.
        held: whether the service withstood the attack.
    """

    sent: str
    came_back: str
    held: bool


class Target:
    """Service to attack. Alice has a session there. The attacker is Mallory, another tenant, or has no token.

    Args:
        service: service in a process of its own.
        log: log file of the service.
    """

    def __init__(self, service: RunningService, log: Path) -> None:
        self.service = service
        self._log = log
        with self.caller("alice") as alice:
            alice.append(SECRET, K, V)
            self._before = alice.snapshot(SECRET)

    def caller(self, tenant: str | None) -> Caller:
        """Return a client with the token of a tenant, or without a token."""
        return Caller(self.service.url, TOKENS[tenant] if tenant else None)

    def connect(self) -> socket.socket:
        """Open a TCP connection with the timeout of an attack."""
        connection = connect(self.service.url)
        connection.settimeout(PATIENCE_SECONDS)
        return connection

    def exchange(self, request: bytes, *, seconds: float = 1) -> bytes:
        """Send a request; return all bytes received until the connection closes or is silent for `seconds`."""
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
        """Return whether Alice can still append, and her session is unchanged."""
        with self.caller("alice") as alice:
            try:
                made = alice.append("work", K, V, position=0)
                return made.status in (200, 201) and alice.snapshot(SECRET) == self._before
            except (AssertionError, httpx.TransportError):
                return False

    def failed(self) -> bool:
        """Return whether the service has logged an unexpected error."""
        return "Traceback" in self._log.read_text("utf-8", "replace")

    def nbytes(self) -> int:
        """Return the virtual memory of the service, bytes; 0 if the system does not report it."""
        status = Path(f"/proc/{self.service.process.pid}/status")
        lines = status.read_text("utf-8").splitlines() if status.exists() else []
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize:"))


@contextmanager
def target(*flags: str) -> Iterator[Target]:
    """Start a service with two tenants."""
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
    """Register a function as an attack, with the name of its row in the table."""

    def add(tried: Attack) -> Attack:
        assert name not in ATTACKS, name
        ATTACKS[name] = tried
        return tried

    return add


def head(
    method: str, path: str, *lines: str, tenant: str | None = "mallory", host: str = "localhost", end: str = "close"
) -> bytes:
    """Return the request line and headers; `end` is the value of Connection."""
    token = [f"Authorization: Bearer {TOKENS[tenant]}"] if tenant else []
    lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", f"Connection: {end}", *token, *lines, "", "")
    return "\r\n".join(lines).encode("latin-1")


def append_head(session: str, nbytes: int, *lines: str, tenant: str | None = "mallory", end: str = "close") -> bytes:
    """Return the request line and headers of an append."""
    lines = (f"Content-Type: {MSGPACK}", f"Content-Length: {nbytes}", *lines)
    return head("POST", f"/sessions/{session}/kv", *lines, tenant=tenant, end=end)


def statuses(*received: bytes) -> list[int]:
    """Return the status of each response, in the order of the connections."""
    return [int(code) for each in received for code in re.findall(rb"^HTTP/1\.1 (\d{3})", each, re.MULTILINE)]


def described(*received: bytes) -> str:
    """Describe the responses received on each connection."""
    return _counted([_words(each) for each in received])


def _words(received: bytes) -> str:
    kinds = [kind.decode() for kind in re.findall(rb"urn:hadakv:problem:([a-z-]+)", received)]
    return " ".join([*map(str, statuses(received)), *kinds]) or "closed without a response"


def summary(answers: Sequence[Answer]) -> str:
    """Describe several responses."""
    return _counted(
        [f"{a.status} {a.body['type'].rpartition(':')[2]}" if a.status >= 400 else str(a.status) for a in answers]
    )


def _counted(words: Sequence[str]) -> str:
    return ", ".join(word if count == 1 else f"{count} x {word}" for word, count in Counter(words).items())


@cache
def large() -> bytes:
    """Return the body of an append of 16 MiB."""
    x = np.zeros((4, 4, 4096, 64), np.float16)
    return bytes(msgpack.packb(append_body(x, x)))

"""Streams of requests on connections to the service.

Of what is meant, in an unusual form, the answers are known. Of what is spoiled only this is asked: whatever is answered
is HTTP and no failure of ours, and the connection ends. Bodies that were refused have a request in them; nobody may
carry that out.
"""

import random
import socket
from contextlib import suppress

import numpy as np

from fuzzing import streams
from fuzzing.report import Limit, Tally
from fuzzing.watch import watched
from hadakv_service.testing import RunningService
from support.contract import Caller, connect

TIMEOUT_SECONDS = 20.0
# Who gets nothing for so long ends the connection; only how much is told of the answers depends on it.
QUIET_SECONDS = 0.03
ONE = np.ones((1, 1, 1, 64), np.float16)


def run(service: RunningService, limit: Limit) -> Tally:
    """Send streams."""
    tally, rng = Tally("connections"), random.Random(limit.seed)
    with Caller(service.url) as caller:
        caller.append(streams.CANARY, ONE, ONE)
        for _ in watched(service, limit, tally):
            sent, wanted = streams.meant(rng, f"h{rng.randrange(1000)}")
            if rng.random() < 0.4:
                _meant_case(tally, service.url, sent, wanted, rng)
                if caller.get(f"/sessions/{streams.CANARY}").status != 200:
                    tally.failures.append(f"a request was found in a body: {_short(sent)}")
            else:
                for _ in range(rng.randint(1, 3)):
                    sent = rng.choice(streams.SPOILS)(rng, sent)
                _spoiled_case(tally, service.url, sent, rng)
            # What is spoiled may end it with full right.
            caller.append(streams.CANARY, ONE, ONE)
    return tally


def _short(sent: bytes) -> str:
    return f"{len(sent)} bytes {sent[:400]!r}"


def _meant_case(tally: Tally, url: str, sent: bytes, wanted: list[set[int]], rng: random.Random) -> None:
    try:
        found = ask(url, sent, len(wanted), rng)
    except TimeoutError:
        tally.note_hang(f"meant: {_short(sent)}")
        return
    tally.note_all(found, _short(sent))
    if len(found) != len(wanted) or any(status not in each for status, each in zip(found, wanted, strict=True)):
        tally.failures.append(f"answered {found} in place of {wanted}: {_short(sent)}")


def _spoiled_case(tally: Tally, url: str, sent: bytes, rng: random.Random) -> None:
    try:
        tally.note_all(streams.statuses(exchange(url, sent, rng)), _short(sent))
    except TimeoutError:
        tally.note_hang(f"spoiled: {_short(sent)}")
    except streams.NoHttp as error:
        tally.failures.append(f"{error}: {_short(sent)}")


def ask(url: str, sent: bytes, answers: int, rng: random.Random) -> list[int]:
    """Send what is meant, and read so many answers before the connection is ended; fewer if the service ends it."""
    found: list[int] = []
    with connect(url) as connection, suppress(ConnectionError):
        _send(connection, sent, rng)
        with connection.makefile("rb") as stream:
            while len(found) < answers and (line := stream.readline()):
                found.append(int(line.split()[1]))
                length = 0
                while (header := stream.readline().strip().lower()) != b"":
                    if header.startswith(b"content-length:"):
                        length = int(header.partition(b":")[2])
                stream.read(length)
    return found


def exchange(url: str, sent: bytes, rng: random.Random) -> bytes:
    """Send a stream; everything that comes back until the service closes.

    Raises:
        TimeoutError: it does not, once it is told that no more will come.
    """
    received = bytearray()
    with connect(url) as connection:
        # What the service has refused it may not read to the end; what it said of that can still be read.
        with suppress(ConnectionError):
            _send(connection, sent, rng)
        with suppress(ConnectionError):
            connection.settimeout(QUIET_SECONDS)
            with suppress(TimeoutError):
                while part := connection.recv(1 << 20):
                    received += part
            connection.settimeout(TIMEOUT_SECONDS)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 20):
                received += part
    return bytes(received)


def _send(connection: socket.socket, sent: bytes, rng: random.Random) -> None:
    connection.settimeout(TIMEOUT_SECONDS)
    piece = rng.choice([1 << 30, 1 << 30, 50_000, 700])
    for start in range(0, len(sent), piece):
        connection.sendall(sent[start : start + piece])

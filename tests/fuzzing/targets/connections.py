"""Target "connections": streams of requests.

The responses to valid streams, in unusual forms, are known. For corrupted streams the service must answer valid HTTP
without a 5xx failure, and end the connection. Rejected bodies contain a request that must not be executed.
"""

import random
import socket
from contextlib import suppress

import numpy as np

from fuzzing import streams
from fuzzing.report import Limit, Tally
from fuzzing.watch import monitored
from hadakv_service.testing import RunningService
from support.contract import Caller, connect

TIMEOUT_SECONDS = 20.0
# The client ends the connection after this pause. Only the number of responses seen depends on it.
QUIET_SECONDS = 0.03
ONE = np.ones((1, 1, 1, 64), np.float16)


def run(service: RunningService, limit: Limit) -> Tally:
    """Run the target."""
    tally, rng = Tally("connections"), random.Random(limit.seed)
    with Caller(service.url) as caller:
        caller.append(streams.CANARY, ONE, ONE)
        for _ in monitored(service, limit, tally):
            sent, wanted = streams.valid_stream(rng, f"h{rng.randrange(1000)}")
            if rng.random() < 0.4:
                _valid_case(tally, service.url, sent, wanted, rng)
                if caller.get(f"/sessions/{streams.CANARY}").status != 200:
                    tally.failures.append(f"a request inside a body was executed: {_short(sent)}")
            else:
                for _ in range(rng.randint(1, 3)):
                    sent = rng.choice(streams.CORRUPTIONS)(rng, sent)
                _corrupted_case(tally, service.url, sent, rng)
            # A corrupted stream may delete it rightly.
            caller.append(streams.CANARY, ONE, ONE)
    return tally


def _short(sent: bytes) -> str:
    return f"{len(sent)} bytes {sent[:400]!r}"


def _valid_case(tally: Tally, url: str, sent: bytes, wanted: list[set[int]], rng: random.Random) -> None:
    try:
        found = ask(url, sent, len(wanted), rng)
    except TimeoutError:
        tally.record_timeout(f"valid: {_short(sent)}")
        return
    tally.record_all(found, _short(sent))
    if len(found) != len(wanted) or any(status not in each for status, each in zip(found, wanted, strict=True)):
        tally.failures.append(f"statuses {found}, expected {wanted}: {_short(sent)}")


def _corrupted_case(tally: Tally, url: str, sent: bytes, rng: random.Random) -> None:
    try:
        tally.record_all(streams.statuses(exchange(url, sent, rng)), _short(sent))
    except TimeoutError:
        tally.record_timeout(f"corrupted: {_short(sent)}")
    except streams.InvalidHttp as error:
        tally.failures.append(f"{error}: {_short(sent)}")


def ask(url: str, sent: bytes, answers: int, rng: random.Random) -> list[int]:
    """Send a valid stream and read its responses; fewer if the service ends the connection."""
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
    """Send a stream; return all bytes received until the service closes the connection.

    Raises:
        TimeoutError: the service did not close the connection after the end of the stream.
    """
    received = bytearray()
    with connect(url) as connection:
        # The service may stop reading a rejected stream. Its response can still be read.
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

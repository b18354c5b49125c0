"""Import and export of a file that is much larger than the memory budget: throughput, and memory of the service.

The file is generated while it is sent, and checked while it is received. It is never in memory as a whole.
"""

import argparse
import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import machine
from hadakv_kernels import Codec
from hadakv_service.operations.files import layout
from hadakv_service.sessions.layer_run import LayerRun
from hadakv_service.sessions.session import Session
from hadakv_service.testing import RunningService, running_service
from support.contract import Caller, connect
from support.services.process_memory import peak_nbytes, resident_nbytes

# An 8B model: a token takes 34 KiB, a page of 256 tokens 8.5 MiB.
LAYERS, HEADS, HEAD_DIM = 32, 8, 128
READ_NBYTES = 1 << 20


@dataclass(frozen=True)
class Transfer:
    """Measurement of one transfer.

    Attributes:
        nbytes: size of the file.
        seconds: duration.
        before: resident memory of the service before, bytes.
        peak: peak of the resident memory during the transfer, bytes.
    """

    nbytes: int
    seconds: float
    before: int
    peak: int

    def report(self, name: str) -> str:
        """Return a line for people."""
        rate = self.nbytes / self.seconds / (1 << 20)
        growth = (self.peak - self.before) / (1 << 20)
        return (
            f"{name:<7} {self.nbytes / (1 << 30):6.2f} GiB in {self.seconds:6.1f} s, {rate:5.0f} MiB/s; "
            f"resident memory {self.before >> 20} MiB before, {self.peak >> 20} MiB peak: {growth:+.0f} MiB"
        )


class GeneratedFile:
    """A file of version 2 whose full pages all have the same content.

    Args:
        nbytes: approximate size.
    """

    def __init__(self, nbytes: int) -> None:
        codec = Codec(bits=4)
        spec = codec.at(HEAD_DIM)
        tokens = nbytes // (LAYERS * HEADS * 2 * spec.nbytes)
        self._session = Session((codec, codec), kv_heads=HEADS, head_dim=HEAD_DIM, runs=(LayerRun(LAYERS, 0, tokens),))
        self._header = layout.header(self._session, "generated", datetime.now(UTC))
        self.nbytes = len(self._header) + self._session.nbytes + layout.DIGEST_NBYTES

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the file."""
        digest = hashlib.sha256(self._header)
        yield self._header
        rng, page = np.random.default_rng(1), b""
        for each in layout.file_pages(layout.paged_spans(self._session)):
            parts = [part for stream in each.stream_parts(self._session) for part in stream]
            if len(page) != sum(part.nbytes for part in parts):
                packed, norms = (part.nbytes for part in parts[:2])
                page = (rng.bytes(packed) + np.ones(norms // 4, np.float32).tobytes()) * 2
            digest.update(page)
            yield memoryview(page)
        yield digest.digest()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1, help="size of the file, default 1 GiB")
    parser.add_argument("--memory-budget", default="256MiB", help="memory budget of the service, default 256MiB")
    parser.add_argument("--data-dir", type=Path, help="folder for the data directory; default: that of the system")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args()
    on = machine.describe()
    print(*(f"{name}: {value}" for name, value in on.items()), "", sep="\n", flush=True)
    found: dict[str, object] = {"machine": on}
    with TemporaryDirectory(dir=options.data_dir) as directory:
        flags = ("--data-dir", directory, "--disk-budget", "40GiB", "--memory-budget", options.memory_budget)
        with running_service(*flags) as service:
            for name, transfer in measure(service, GeneratedFile(int(options.gib * (1 << 30)))).items():
                print(transfer.report(name), flush=True)
                found[name] = vars(transfer)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def measure(service: RunningService, file: GeneratedFile) -> dict[str, Transfer]:
    """Import a file, and export the session."""
    with Caller(service.url) as caller:
        # The first requests load code.
        caller.put("/sessions/first", {})
        caller.send(
            "POST", "/sessions/second/import", caller.get("/sessions/first/export").content, "application/octet-stream"
        )
    return {
        "import": _timed(service, lambda: send(service, file)),
        "export": _timed(service, lambda: receive(service)),
    }


def _timed(service: RunningService, transfer: Callable[[], int]) -> Transfer:
    pid = service.process.pid
    _reset_peak(pid)
    before = resident_nbytes(pid)
    start = time.perf_counter()
    nbytes = transfer()
    return Transfer(nbytes, time.perf_counter() - start, before, peak_nbytes(pid))


def _reset_peak(pid: int) -> None:
    """Reset the peak of a process to its present memory, where the system can (proc(5), clear_refs)."""
    path = Path(f"/proc/{pid}/clear_refs")
    if path.exists():
        path.write_text("5")


def send(service: RunningService, file: GeneratedFile) -> int:
    """Import a file. Return its size."""
    with connect(service.url) as connection:
        connection.settimeout(600)
        connection.sendall(
            b"POST /sessions/large/import HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % file.nbytes
        )
        for piece in file.pieces():
            connection.sendall(piece)
        response = b"".join(iter(lambda: connection.recv(READ_NBYTES), b""))
    assert response.startswith(b"HTTP/1.1 201 "), response[:1000]
    return file.nbytes


def receive(service: RunningService) -> int:
    """Export the session, and check the digest of the file. Return its size."""
    with _response(service, "/sessions/large/export") as (connection, rest):
        digest, tail, total = hashlib.sha256(), rest, len(rest)
        buffer = bytearray(READ_NBYTES)
        while nbytes := connection.recv_into(buffer):
            total += nbytes
            tail += buffer[:nbytes]
            digest.update(tail[: -layout.DIGEST_NBYTES])
            tail = tail[-layout.DIGEST_NBYTES :]
    assert digest.digest() == tail, "the digest of the exported file is wrong"
    return total


@contextmanager
def _response(service: RunningService, path: str) -> Iterator[tuple[socket.socket, bytes]]:
    """Send a GET request. Yield the connection, and the bytes of the body that came with the headers."""
    with connect(service.url) as connection:
        connection.settimeout(600)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(READ_NBYTES)
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        yield connection, rest

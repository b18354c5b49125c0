"""Manipulated files: in the data directory, and as imports."""

import json
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from attacks.attack import K, Outcome, Target, V, attack, described, head, statuses, summary
from hadakv_kernels import Codec
from hadakv_service.operations.files import layout
from hadakv_service.sessions.layer_run import LayerRun
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.sqlite_file import FILE
from hadakv_service.testing import running_service
from support.contract import Caller

OCTETS = "application/octet-stream"


@contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o700)
        yield Path(folder)


def _start(directory: Path) -> tuple[int, str]:
    """Start a service on a data directory that it must reject; return its exit code and stderr."""
    flags = ["--port", "0", "--data-dir", str(directory), "--disk-budget", "1GiB"]
    command = [sys.executable, "-m", "hadakv_service", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.strip()


@attack("symbolic link in the data directory")
def linked_file(_: Target) -> Outcome:
    results = []
    for name in (FILE, FILE + "-wal", FILE + "-journal"):
        with _folder() as folder:
            victim = folder / "victim"
            victim.write_bytes(b"mine")
            (folder / "data").mkdir(0o700)
            (folder / "data" / name).symlink_to(victim)
            code, said = _start(folder / "data")
            results.append((code == 1 and "symbolic link" in said and victim.read_bytes() == b"mine", said))

    held = all(held for held, _ in results)
    return Outcome("the file, its log or its journal a link", "does not start; the linked file is unchanged", held)


@attack("data directory open to others")
def open_directory(_: Target) -> Outcome:
    with _folder() as folder:
        folder.chmod(0o777)
        code, said = _start(folder)

    return Outcome("mode 0777", "does not start", code == 1 and "can be written by other users" in said)


@attack("pages changed on disk")
def changed_pages(_: Target) -> Outcome:
    with _folder() as folder:
        flags = ("--data-dir", str(folder), "--disk-budget", "1GiB")
        with running_service(*flags) as service, Caller(service.url) as caller:
            for name in ("a", "b"):
                caller.append(name, K, V)
            kept = [caller.snapshot(name)[1] for name in ("a", "b")]
        with sqlite3.connect(folder / FILE) as file:
            file.execute("UPDATE pages SET content = zeroblob(length(content)) WHERE id = (SELECT MIN(id) FROM pages)")
        file.close()
        with running_service(*flags) as service, Caller(service.url) as caller:
            answers = [caller.get(f"/sessions/{name}/kv") for name in ("a", "b")]
    statuses = sorted(answer.status for answer in answers)
    held = statuses == [200, 410] and all(
        answer.content == content for answer, content in zip(answers, kept, strict=True) if answer.status == 200
    )

    return Outcome("a page of zeros", summary(answers), held)


@attack("import of a file with lying shapes")
def lying_file(target: Target) -> Outcome:
    with target.caller("alice") as alice:
        original = alice.get("/sessions/secret/export").content
    (length,) = struct.unpack("<Q", original[:8])
    header, data = json.loads(original[8 : 8 + length]), original[8 + length :]
    with target.caller("mallory") as mallory:
        answers = [mallory.send("POST", "/sessions/liar/import", file, OCTETS) for file in _lies(header, data)]
        absent = mallory.get("/sessions/liar").status == 404
    held = absent and {answer.status for answer in answers} <= {400, 413, 422}

    return Outcome("wrong shapes, offsets, lengths; 2^60 tokens; a header of 2^63 bytes", summary(answers), held)


@attack("import of a damaged file")
def damaged_file(target: Target) -> Outcome:
    with target.caller("alice") as alice:
        file = alice.get("/sessions/secret/export").content
    with target.caller("mallory") as mallory:
        answers = []
        for at in range(0, len(file), len(file) // 40 + 1):
            damaged = bytearray(file)
            damaged[at] ^= 4
            answers.append(mallory.send("POST", "/sessions/damaged/import", bytes(damaged), OCTETS))
        absent = mallory.get("/sessions/damaged").status == 404
    held = absent and {answer.status for answer in answers} <= {400, 422}

    return Outcome("a flipped bit in each of 40 places", summary(answers), held)


@attack("imports that claim much and send little")
def stalled_imports(target: Target) -> Outcome:
    codec = Codec(bits=2)
    run = LayerRun(1, 0, 1 << 20)
    session = Session((codec, codec), kv_heads=1, head_dim=64, runs=(run,))
    header = layout.header(session, "stalled", datetime.now(UTC))
    nbytes = len(header) + session.nbytes + layout.DIGEST_NBYTES
    before = target.nbytes()
    with ExitStack() as stack:
        connections = [stack.enter_context(target.connect()) for _ in range(60)]
        for i, connection in enumerate(connections):
            lines = (f"Content-Type: {OCTETS}", f"Content-Length: {nbytes}")
            connection.sendall(head("POST", f"/sessions/stalled-{i}/import", *lines) + header)
        works, grown = target.works(), target.nbytes() - before
        received = [connection.recv(1 << 16) for connection in connections]
    with target.caller("mallory") as mallory:
        absent = mallory.get("/sessions", prefix="stalled").body["sessions"] == []
    held = works and absent and grown < 1 << 30 and all(statuses(each) == [408] for each in received)

    return Outcome(f"60 headers, each of a session of {session.nbytes >> 20} MiB", described(*received), held)


def _lies(header: dict[str, object], data: bytes) -> Iterator[bytes]:
    """Return files with wrong headers."""
    name = next(name for name in header if name != "__metadata__")
    tensor = header[name]
    assert isinstance(tensor, dict)
    shape, (start, stop) = tensor["shape"], tensor["data_offsets"]
    others = (
        *({"shape": [*shape[:-2], tokens, shape[-1]]} for tokens in (0, 1, shape[-2] + 1, 1 << 60, -1)),
        {"shape": []},
        {"shape": [1] * 1000},
        {"dtype": "F64"},
        *({"data_offsets": each} for each in ([start, stop + 1], [start, 1 << 60], [stop, start], [-8, stop], [start])),
    )
    for lie in others:
        yield _file(json.dumps({**header, name: {**tensor, **lie}}).encode(), data)
    described = json.dumps(header).encode()
    yield _file(described, data[:-1])
    yield _file(described, data + b"\0")
    for length in (len(described) + 1, len(described) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
        yield struct.pack("<Q", length) + described + data


def _file(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data

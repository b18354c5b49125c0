"""Speed of spilling pages to disk and loading them, compared with a plain file of the same bytes."""

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http.figures import median, table
from hadakv_kernels import Codec, Stream
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.device.jobs import run_to_completion
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore

MIB = 2**20
PAGES = {"large": ((32, 8, 256, 128), 32), "small": ((4, 2, 256, 64), 2000)}


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure MiB/s of each method by page size. The methods take turns."""
    backend = CpuBackend()
    return {
        label: _measure(backend, shape, count // 8 if quick else count, 1 if quick else 5)
        for label, (shape, count) in PAGES.items()
    }


def _measure(backend: CpuBackend, shape: tuple[int, int, int, int], count: int, rounds: int) -> dict[str, Any]:
    codec = Codec()
    spec = codec.at(shape[-1])
    x = np.random.default_rng(9).standard_normal(shape).astype(np.float16)
    page = Page(*backend.encode([Stream(x, spec), Stream(x, spec)]))
    total = count * page.nbytes / MIB
    found: dict[str, Any] = {"KiB a page": page.nbytes / 1024, "MiB": total}
    speeds: dict[str, list[float]] = {name: [] for name in ("file write, fsync", "spill", "file read", "restore")}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            write, read = _file(Path(folder) / "copy", page, count)
            spill, restore = _tier(
                Path(folder) / "data", page, count, Session((codec, codec), None, shape[1], shape[3]), backend
            )
        for name, seconds in zip(speeds, (write, spill, read, restore), strict=True):
            speeds[name].append(total / seconds)
    return found | speeds


def _file(path: Path, page: Page, count: int) -> tuple[float, float]:
    """Return the seconds to write and sync a plain file, and to read it from the page cache."""
    parts = [array.tobytes() for stream in page.load() for array in (stream.packed, stream.norms)]
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(count):
            file.write(b"".join(parts))
        file.flush()
        os.fsync(file.fileno())
    written = time.perf_counter()
    with path.open("rb") as file:
        for _ in range(count):
            file.read(page.nbytes)
    return written - start, time.perf_counter() - written


def _tier(directory: Path, page: Page, count: int, empty: Session, backend: CpuBackend) -> tuple[float, float]:
    """Return the seconds to spill all pages to disk, and to load them from the page cache."""
    tier = SqliteStore(directory, 1 << 40)
    store = SessionStore(1 << 40, disk=tier, backend=backend)
    session = empty
    for _ in range(count):
        copies = [type(s)(s.packed.copy(), s.norms.copy()) for s in page.load()]
        session = session.append(0, Page(*copies), backend)
    key = ("", "a")
    run_to_completion(store.commit(store.memory.reserve(key, 0), replace(session, durability="spill")))
    store.group_commit()
    start = time.perf_counter()
    store.memory.limit = 0
    run_to_completion(store._evictor.ensure(0, ()))
    spilled = time.perf_counter()
    store.memory.limit = 1 << 40
    again = time.perf_counter()
    for each in store.get(key).session.all_pages():
        assert each.load()
    restored = time.perf_counter()
    tier.close()
    return spilled - start, restored - again


def report(found: dict[str, Any]) -> str:
    """Return the table."""
    rows = []
    for measured in found.values():
        w, s, r, b = (measured[name] for name in ("file write, fsync", "spill", "file read", "restore"))
        ratio = [median([x / y for x, y in zip(mine, theirs, strict=True)]) for mine, theirs in ((s, w), (b, r))]
        rows.append(
            [
                f"{measured['KiB a page']:.0f} KiB, {measured['MiB']:.0f} MiB together",
                *(f"{median(each):.0f}" for each in (w, s)),
                f"{ratio[0]:.2f}",
                *(f"{median(each):.0f}" for each in (r, b)),
                f"{ratio[1]:.2f}",
            ]
        )
    head = ["pages of", "file write + fsync", "spill", "of file", "file read (cached)", "restore", "of file"]
    return table("To disk and back, MiB/s", head, rows)

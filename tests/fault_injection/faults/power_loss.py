"""Loss of power, computed from a journal: synced data is on disk, any part of the rest may be."""

import random
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from fault_injection.faults.interpose import Call, Change, journal_of

# Bytes that a disk writes atomically.
SECTOR = 4096


def lose_power(before: Path, journal: Path, directory: Path, rng: random.Random) -> int:
    """Change a directory to what may be left of it after a loss of power.

    Args:
        before: copy of the directory from before the process was started. All of it counts as synced.
        journal: writes and syncs of the process since then.
        directory: directory to change.
        rng: decides which unsynced data has reached the disk.

    Returns:
        Number of bytes lost.
    """
    files = {path.name: bytearray(path.read_bytes()) for path in before.iterdir()}
    pending: defaultdict[str, list[Change]] = defaultdict(list)
    for change in journal_of(journal):
        files.setdefault(change.name, bytearray())
        if change.call in (Call.WRITE, Call.TRUNCATE):
            pending[change.name].append(change)
        elif change.call is Call.SYNC:
            for each in pending.pop(change.name, []):
                _apply(files[each.name], each)
        else:
            # A removal may not be durable either, but a file that was removed is not needed any more.
            pending.pop(change.name, None)
            del files[change.name]
    share = rng.choice((0.0, 0.0, 0.5, 0.9))
    lost = sum(_apply_some(files[name], changes, share, rng) for name, changes in pending.items())
    for path in directory.iterdir():
        path.unlink()
    for name, content in files.items():
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    return lost


def _apply(content: bytearray, change: Change) -> None:
    if change.call is Call.TRUNCATE:
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.content)] = change.content


def _apply_some(content: bytearray, changes: list[Change], share: float, rng: random.Random) -> int:
    lost = 0
    for change in changes:
        if change.call is Call.TRUNCATE:
            if rng.random() < share:
                _apply(content, change)
            continue
        start, stop = change.offset, change.offset + len(change.content)
        edges = [start, *range(start - start % SECTOR + SECTOR, stop, SECTOR), stop]
        for a, b in pairwise(edges):
            if rng.random() < share:
                _apply(content, Change(Call.WRITE, change.name, a, change.content[a - start : b - start]))
            else:
                lost += b - a
    return lost

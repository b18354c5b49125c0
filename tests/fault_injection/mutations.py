"""Deliberate faults in the service: the file, the passage to replace, and the rounds that must detect the fault."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A deliberate fault: one replaced passage.

    Attributes:
        file: path of the module below `hadakv_service`.
        right: passage to replace. It occurs once in the file.
        wrong: the replacement.
        kinds: kinds of rounds that must detect the fault.
    """

    file: str
    right: str
    wrong: str
    kinds: tuple[str, ...]


_KILLS = ("kill", "write")

MUTATIONS = {
    "respond before the group commit": Mutation(
        "device/executor.py",
        "        self._group_commit(batch)\n        return timings",
        "        self._events.call_soon_threadsafe(self._resolve, list(batch))\n"
        "        self._group_commit(batch)\n        return timings",
        ("write",),
    ),
    "acknowledge without a sync": Mutation(
        "storage/disk/sqlite_store.py", "{'FULL' if sync else 'NORMAL'}", "NORMAL", ("power",)
    ),
    "ignore a failed sync": Mutation(
        "storage/disk/sqlite_store.py",
        "            raise DiskUnavailable(str(error)) from error\n        except BaseException",
        "            return\n        except BaseException",
        ("errors",),
    ),
    "keep a failed commit in the WAL": Mutation(
        "storage/disk/sqlite_store.py",
        "                self._wal_is_trusted = discard_failed_commit(self._sql)\n            #",
        "                pass\n            #",
        ("errors",),
    ),
    "turn the WAL off": Mutation("storage/disk/sqlite_file.py", '"journal_mode = WAL"', '"journal_mode = OFF"', _KILLS),
    "manifest with a page that is not written": Mutation(
        "storage/disk_writer.py",
        "page_ids[page] = transaction.add_page(content)",
        "page_ids[page] = 10**6 + len(page_ids)",
        _KILLS,
    ),
    "manifest without its last page": Mutation(
        "storage/disk/sqlite_transaction.py",
        "after.items() - before.items()",
        "sorted(after.items() - before.items())[:-1]",
        _KILLS,
    ),
    "take a truncated session for an unchanged prefix": Mutation(
        "storage/disk/manifest.py",
        "    return len(stored) <= len(lengths)",
        "    return True or len(stored) <= len(lengths)",
        _KILLS,
    ),
    "delete pages that sessions in memory need": Mutation(
        "storage/disk_writer.py",
        "            if page is None:\n",
        "            if True:\n",
        ("kill", "term"),
    ),
    "keep a rejected append in memory": Mutation(
        "storage/group_commit.py",
        "                    self._roll_back(key, old)",
        "                    pass",
        ("errors", "budget"),
    ),
    "keep a deleted session on disk": Mutation(
        "storage/session_table.py", "if record is None or record.manifest:", "if record is None:", _KILLS
    ),
    "delete without a sync": Mutation(
        "storage/session_table.py", "sync=reason in _SYNCED_REASONS)", "sync=False)", ("power",)
    ),
    "truncate without a sync": Mutation(
        "storage/group_commit.py", "sync=bool(writes or stale)", "sync=bool(writes)", ("power",)
    ),
    "write nothing at a clean shutdown": Mutation(
        "storage/lifetime/maintenance.py", "unwritten = self._write_back.checkpoint(until)", "unwritten = 0", ("term",)
    ),
    "end without a shutdown at SIGHUP": Mutation(
        "server/hangup.py", "        self._end()\n", "        os._exit(0)\n", ("hangup",)
    ),
    "skip partly written sessions at a clean shutdown": Mutation(
        "storage/write_back.py", "and not record.is_clean:", "and not record.manifest:", ("term",)
    ),
    "evict acknowledged sessions from disk": Mutation(
        "storage/disk/sqlite_store.py", "WHERE NOT permanent AND last_used", "WHERE last_used", ("budget",)
    ),
    "accept a repeated append without comparing it": Mutation(
        "operations/append.py", "            self._check_repetition(page)\n", "", _KILLS
    ),
    "load a different page": Mutation(
        "storage/disk/sqlite_store.py",
        '"SELECT header, checksum, content FROM pages WHERE id = ?", (page_id,)',
        '"SELECT header, checksum, content FROM pages WHERE id <= ? ORDER BY id DESC LIMIT 1 OFFSET 1", (page_id,)',
        _KILLS,
    ),
    "write no checkpoints": Mutation("maintenance.py", "while checkpoints.seconds:", "while False:", ("busy",)),
    "checkpoint idle sessions only": Mutation(
        "storage/checkpoints/dirty_sessions.py",
        "        yield from _until(self._since, now - seconds)\n"
        "        yield from _until(self._changed, now - seconds * IDLE_SHARE)\n"
        "        yield from _until(self._since, now - seconds * DUE_SHARE)\n",
        "        yield from _until(self._changed, now - seconds * IDLE_SHARE)\n",
        ("busy",),
    ),
    "checkpoint only some layers of a session": Mutation(
        "storage/checkpoints/checkpointer.py",
        "writes.append(record.to_write(key))",
        'torn = __import__("dataclasses").replace(record.session, runs=record.session.runs[:-1])\n'
        "                writes.append(record.to_write(key)._replace(session=torn))",
        _KILLS,
    ),
    "take a session that grew during its checkpoint for saved": Mutation(
        "storage/checkpoints/checkpointer.py", "clean=record.session is write.session", "clean=True", ("busy", "term")
    ),
    "checkpoint without a sync": Mutation(
        "storage/checkpoints/checkpointer.py",
        "sync=bool(writes) or self._dirty.needs_sync(self.seconds)",
        "sync=False",
        ("power",),
    ),
    "truncate without waiting for a checkpoint": Mutation(
        "storage/session_store.py", "            self._writer.settle(key)\n", "            pass\n", ("slow",)
    ),
    "delete without waiting for a checkpoint": Mutation(
        "storage/session_table.py", "        self._writer.settle(key)\n        record", "        record", ("slow",)
    ),
    "delete sessions for space without a log line": Mutation(
        "storage/session_store.py",
        "        finally:\n            self._table.evicted.report()",
        "        finally:\n            pass",
        ("kill", "budget"),
    ),
    "age sessions by the wall clock": Mutation(
        "storage/lifetime/clock.py", "return self._start + self._elapsed()", "return time.time()", ("clock",)
    ),
}

"""Deliberate faults in the service: in which file, what is replaced by what, and in which rounds it has to be seen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Attributes:
        file: of `hadakv_service`.
        right: a passage that is there once.
        wrong: what stands there instead.
        kinds: the rounds that are to show it.
    """

    file: str
    right: str
    wrong: str
    kinds: tuple[str, ...]


_KILLS = ("kill", "write")

MUTATIONS = {
    "answers go out before the disk has it": Mutation(
        "device/executor.py",
        "        self._group_commit(batch)\n        done = []",
        "        self._events.call_soon_threadsafe(self._resolve, list(batch))\n"
        "        self._group_commit(batch)\n        done = []",
        ("write",),
    ),
    "acknowledged without a sync": Mutation(
        "storage/disk/sqlite_store.py", "{'FULL' if sync else 'NORMAL'}", "NORMAL", ("power",)
    ),
    "a sync that fails is no failure": Mutation(
        "storage/disk/sqlite_store.py",
        "            raise DiskUnavailable(str(error)) from error\n        except BaseException",
        "            return\n        except BaseException",
        ("errors",),
    ),
    "what could not be synced stays in the log": Mutation(
        "storage/disk/sqlite_store.py",
        "                self._wal_is_trusted = discard_failed_commit(self._sql)\n            log",
        "                pass\n            log",
        ("errors",),
    ),
    "no log: pages are written in place": Mutation(
        "storage/disk/sqlite_file.py", '"journal_mode = WAL"', '"journal_mode = OFF"', _KILLS
    ),
    "a manifest names a page that is not written": Mutation(
        "storage/disk_writer.py",
        "page_ids[page] = transaction.add_page(content)",
        "page_ids[page] = 10**6 + len(page_ids)",
        _KILLS,
    ),
    "a manifest lacks its last page": Mutation(
        "storage/disk/sqlite_transaction.py",
        "after.items() - before.items()",
        "sorted(after.items() - before.items())[:-1]",
        _KILLS,
    ),
    "a session cut short counts as a beginning of what was there": Mutation(
        "storage/manifest.py",
        "    return len(stored) <= len(lengths)",
        "    return True or len(stored) <= len(lengths)",
        _KILLS,
    ),
    "rows go while sessions in memory need them": Mutation(
        "storage/disk_writer.py",
        "if (page := self._pool.page_by_id(page_id)) is not None\n        }",
        "if (page := None) is not None\n        }",
        ("kill", "term"),
    ),
    "what was refused stays in memory": Mutation(
        "storage/write_back.py",
        "                    self._roll_back(key, old)",
        "                    pass",
        ("errors", "budget"),
    ),
    "what is deleted stays on disk": Mutation(
        "storage/session_table.py", "if record is None or record.manifest:", "if record is None:", _KILLS
    ),
    "a deletion is not synced": Mutation(
        "storage/session_table.py", "sync=reason in _SYNCED_REASONS)", "sync=False)", ("power",)
    ),
    "what was cut stays until the next sync": Mutation(
        "storage/write_back.py", "sync=bool(writes or stale)", "sync=bool(writes)", ("power",)
    ),
    "nothing is written at an orderly end": Mutation(
        "storage/session_store.py", "unwritten = self._write_back.checkpoint(until)", "unwritten = 0", ("term",)
    ),
    "at an orderly end what is on disk in part counts as written": Mutation(
        "storage/write_back.py", "and not record.is_clean:", "and not record.manifest:", ("term",)
    ),
    "acknowledged sessions end like any other": Mutation(
        "storage/disk/sqlite_store.py", "WHERE NOT permanent AND last_used", "WHERE last_used", ("budget",)
    ),
    "a repetition is not compared": Mutation(
        "operations/append.py", "            self._check_repetition(page)\n", "", _KILLS
    ),
    "a page comes back as another": Mutation(
        "storage/disk/sqlite_store.py",
        '"SELECT header, checksum, content FROM pages WHERE id = ?", (page_id,)',
        '"SELECT header, checksum, content FROM pages WHERE id <= ? ORDER BY id DESC LIMIT 1 OFFSET 1", (page_id,)',
        _KILLS,
    ),
}

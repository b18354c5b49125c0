"""SqliteTransaction: changes within one transaction."""

import json
import sqlite3
from collections.abc import Collection

from hadakv_service.storage.disk.interface import Key, Manifest, PageContent
from hadakv_service.storage.disk.row_format import digest, fixed_columns, pack_page, page_places, run_to_numbers
from hadakv_service.storage.disk.sqlite_file import page_cost

# Approximate bytes of a manifest: columns, indices, unused part of a block.
SESSION_NBYTES = 512
COLUMNS = "owner, name, nbytes, created, last_used, expires, permanent, checksum, header"


class SqliteTransaction:
    """Changes to the file, and their effect on the counters.

    Args:
        sql: connection with an open transaction.

    Attributes:
        used: change of the bytes counted against the budget.
        sessions: change of the number of sessions.
        written_nbytes: bytes of the written pages and manifests.
    """

    def __init__(self, sql: sqlite3.Connection) -> None:
        self._sql = sql
        self.used = 0
        self.sessions = 0
        self.written_nbytes = 0

    def add_page(self, content: PageContent) -> int:
        """Write a page. Return its id."""
        header, blob = pack_page(content)
        layers, _, tokens, _ = content.k.packed.shape
        values = (layers, tokens, len(blob), digest(header, blob), header, blob)
        cursor = self._sql.execute(
            "INSERT INTO pages (layers, tokens, nbytes, checksum, header, content) VALUES (?, ?, ?, ?, ?, ?)", values
        )
        self.used += page_cost(len(blob))
        self.written_nbytes += len(header) + len(blob)
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def put(self, key: Key, manifest: Manifest, old: Manifest | None) -> list[int]:
        """Write the manifest of a session over the old one, if any. Return the ids of pages that it no longer has."""
        header = json.dumps({"options": dict(manifest.options), "runs": [run_to_numbers(run) for run in manifest.runs]})
        blob = header.encode()
        self.written_nbytes += len(blob)
        times = (manifest.created, manifest.last_used, manifest.expires)
        fixed = (manifest.nbytes, manifest.created, manifest.protected)
        values = (*key, manifest.nbytes, *times, manifest.protected, digest(blob, fixed_columns(*fixed)), blob)
        assignments = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS.split(", ")[2:])
        ((session,),) = self._sql.execute(
            f"INSERT INTO sessions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
            f"ON CONFLICT (owner, name) DO UPDATE SET {assignments} RETURNING id",
            values,
        ).fetchall()
        if old is None:
            self.sessions += 1
            self.used += SESSION_NBYTES
        old_runs = old.runs if old else ()
        unchanged = {i for i, (a, b) in enumerate(zip(old_runs, manifest.runs, strict=False)) if a == b}
        before, after = page_places(old, unchanged) if old else {}, page_places(manifest, unchanged)
        removed, added = before.items() - after.items(), after.items() - before.items()
        self._sql.executemany(
            "DELETE FROM holds WHERE session = ? AND run = ? AND place = ?", [(session, *place) for place, _ in removed]
        )
        self._sql.executemany(
            "INSERT INTO holds VALUES (?, ?, ?, ?)", [(session, *place, page) for place, page in added]
        )
        return [page for _, page in removed]

    def remove(self, key: Key) -> list[int]:
        """Delete the manifest of a session, if there is one. Return the ids of its pages."""
        found = self._sql.execute("DELETE FROM sessions WHERE owner = ? AND name = ? RETURNING id", key).fetchall()
        if not found:
            return []
        self.sessions -= 1
        self.used -= SESSION_NBYTES
        pages = self._sql.execute("DELETE FROM holds WHERE session = ? RETURNING page", found[0]).fetchall()
        return [page for (page,) in pages]

    def touch(self, key: Key, last_used: float, expires: float | None) -> None:
        """Set the time of last use of a session."""
        query = "UPDATE sessions SET last_used = ?, expires = ? WHERE owner = ? AND name = ?"
        self._sql.execute(query, (last_used, expires, *key))

    def remove_pages(self, page_ids: Collection[int]) -> None:
        """Delete those of the pages that no manifest has."""
        query = "DELETE FROM pages WHERE id = ? AND NOT EXISTS (SELECT 1 FROM holds WHERE page = id) RETURNING nbytes"
        for page_id in page_ids:
            for (nbytes,) in self._sql.execute(query, (page_id,)).fetchall():
                self.used -= counted_nbytes(nbytes)


def counted_nbytes(nbytes: object) -> int:
    """Return the bytes counted for a page whose size is in a column. The column of a corrupt file may be anything."""
    return page_cost(nbytes) if isinstance(nbytes, int) and nbytes > 0 else 0

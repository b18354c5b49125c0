"""Changes to the embedded tier's file, within one transaction."""

import json
import sqlite3
from collections.abc import Collection

from hadakv_service.storage.disk.interface import Key, Manifest, PageContent
from hadakv_service.storage.disk.row_format import digest, fixed_columns, numbers_of, packed, places_of
from hadakv_service.storage.disk.sqlite_file import page_cost

# What a manifest takes, about: columns, indices, what is left over of a block.
SESSION_NBYTES = 512
COLUMNS = "owner, name, nbytes, created, last_used, expires, permanent, checksum, header"


class SqliteTransaction:
    """Changes to the file, and what they come to.

    Args:
        sql: of the file; within a transaction.

    Attributes:
        used: bytes by which more, or fewer, are counted against the budget.
        sessions: by how many there are more, or fewer.
    """

    def __init__(self, sql: sqlite3.Connection) -> None:
        self._sql = sql
        self.used = 0
        self.sessions = 0

    def add_page(self, content: PageContent) -> int:
        """Write a page."""
        header, blob = packed(content)
        layers, _, tokens, _ = content.k.packed.shape
        values = (layers, tokens, len(blob), digest(header, blob), header, blob)
        done = self._sql.execute(
            "INSERT INTO pages (layers, tokens, nbytes, checksum, header, content) VALUES (?, ?, ?, ?, ?, ?)", values
        )
        self.used += page_cost(len(blob))
        assert done.lastrowid is not None
        return done.lastrowid

    def put(self, key: Key, manifest: Manifest, old: Manifest | None) -> list[int]:
        """Write a session's manifest."""
        header = json.dumps({"options": dict(manifest.options), "runs": [numbers_of(run) for run in manifest.runs]})
        blob = header.encode()
        times = (manifest.created, manifest.last_used, manifest.expires)
        fixed = (manifest.nbytes, manifest.created, manifest.protected)
        values = (*key, manifest.nbytes, *times, manifest.protected, digest(blob, fixed_columns(*fixed)), blob)
        places = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS.split(", ")[2:])
        ((session,),) = self._sql.execute(
            f"INSERT INTO sessions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
            f"ON CONFLICT (owner, name) DO UPDATE SET {places} RETURNING id",
            values,
        ).fetchall()
        if old is None:
            self.sessions += 1
            self.used += SESSION_NBYTES
        same = {i for i, (a, b) in enumerate(zip(old.runs, manifest.runs, strict=False)) if a == b} if old else set()
        before, after = places_of(old, same) if old else {}, places_of(manifest, same)
        gone, come = before.items() - after.items(), after.items() - before.items()
        self._sql.executemany(
            "DELETE FROM holds WHERE session = ? AND run = ? AND place = ?", [(session, *place) for place, _ in gone]
        )
        self._sql.executemany(
            "INSERT INTO holds VALUES (?, ?, ?, ?)", [(session, *place, page) for place, page in come]
        )
        return [page for _, page in gone]

    def remove(self, key: Key) -> list[int]:
        """Remove a session's manifest."""
        found = self._sql.execute("DELETE FROM sessions WHERE owner = ? AND name = ? RETURNING id", key).fetchall()
        if not found:
            return []
        self.sessions -= 1
        self.used -= SESSION_NBYTES
        pages = self._sql.execute("DELETE FROM holds WHERE session = ? RETURNING page", found[0]).fetchall()
        return [page for (page,) in pages]

    def touch(self, key: Key, last_used: float, expires: float | None) -> None:
        """Note when a session was used."""
        query = "UPDATE sessions SET last_used = ?, expires = ? WHERE owner = ? AND name = ?"
        self._sql.execute(query, (last_used, expires, *key))

    def remove_pages(self, rows: Collection[int]) -> None:
        """Remove those of the pages that no manifest holds."""
        query = "DELETE FROM pages WHERE id = ? AND NOT EXISTS (SELECT 1 FROM holds WHERE page = id) RETURNING nbytes"
        for row in rows:
            for (nbytes,) in self._sql.execute(query, (row,)).fetchall():
                self.used -= counted(nbytes)


def counted(nbytes: object) -> int:
    """What a page's column comes to, whatever a damaged file has there."""
    return page_cost(nbytes) if isinstance(nbytes, int) and nbytes > 0 else 0

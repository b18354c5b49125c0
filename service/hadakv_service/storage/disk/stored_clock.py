"""The last time that a process has stored in the file, so that sessions age although the clock was set back."""

import logging
import sqlite3

from hadakv_service.storage.disk.row_format import digest

log = logging.getLogger(__name__)

# Differences up to this many seconds are not logged. Clocks are adjusted by that much all the time.
_UNLOGGED_SECONDS = 1.0


def save(sql: sqlite3.Connection, now: float) -> None:
    """Store the present time, Unix seconds. With a checksum, because a wrong time would make every session expire."""
    text = f"{now!r} {digest(repr(now).encode()).hex()}"
    sql.execute("REPLACE INTO about VALUES ('clock', ?)", (text,))


def seconds_back(sql: sqlite3.Connection, now: float) -> float:
    """Return by how many seconds the clock was set back since `save`; 0 if it was not."""
    found = sql.execute("SELECT value FROM about WHERE name = 'clock'").fetchone()
    time, _, checksum = str(found and found[0]).partition(" ")
    return max(0.0, float(time) - now) if digest(time.encode()).hex() == checksum else 0.0


def is_late(sql: sqlite3.Connection, now: float) -> bool:
    """Whether a session was used later than now."""
    return bool(sql.execute("SELECT EXISTS (SELECT 1 FROM sessions WHERE last_used > ?)", (now,)).fetchone()[0])


def set_back(sql: sqlite3.Connection, now: float) -> None:
    """Change times of last use so that each session has the age that it had at `save`, and none is used later than now.

    The caller has opened a transaction.
    """
    back = seconds_back(sql, now)
    if back > _UNLOGGED_SECONDS:
        log.warning("the system's clock was set back by %.0f s since the last end; sessions keep their ages", back)
    sql.execute("UPDATE sessions SET last_used = last_used - ?, expires = expires - ?", (back, back))
    # The last process may have ended without `save`.
    sql.execute(
        "UPDATE sessions SET expires = expires - last_used + :now, last_used = :now WHERE last_used > :now",
        {"now": now},
    )
    save(sql, now)

"""Schema of the SQLite file: its tables, indexes and format version."""

# "hdkv"
APPLICATION_ID = 0x68646B76
# Version of the schema below and of the contents of its columns.
FORMAT = 1
SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, nbytes INTEGER NOT NULL, created REAL NOT NULL,
    last_used REAL NOT NULL, expires REAL, permanent INTEGER NOT NULL, checksum BLOB NOT NULL, header BLOB NOT NULL,
    UNIQUE (owner, name));
CREATE INDEX by_use ON sessions (last_used) WHERE NOT permanent;
CREATE INDEX by_end ON sessions (expires) WHERE expires IS NOT NULL;
CREATE TABLE pages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, layers INTEGER NOT NULL, tokens INTEGER NOT NULL, nbytes INTEGER NOT NULL,
    checksum BLOB NOT NULL, header BLOB NOT NULL, content BLOB NOT NULL);
CREATE TABLE holds (
    session INTEGER NOT NULL, run INTEGER NOT NULL, place INTEGER NOT NULL, page INTEGER NOT NULL,
    PRIMARY KEY (session, run, place)) WITHOUT ROWID;
CREATE INDEX by_page ON holds (page);
"""

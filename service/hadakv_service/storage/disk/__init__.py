"""The disk store: an interface, SQLite, and a null store."""

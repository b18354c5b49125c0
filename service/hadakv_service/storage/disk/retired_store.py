"""RetiredStore: no disk, but a file of earlier runs."""

from hadakv_service.storage.disk.interface import Key
from hadakv_service.storage.disk.null_store import NullStore
from hadakv_service.storage.disk.sqlite_store import SqliteStore


class RetiredStore(NullStore):
    """A disk store that stores nothing, and does not serve the sessions of its file.

    Sessions whose ids are used or deleted meanwhile are deleted from the file. Otherwise a later process would serve
    their old content.

    Args:
        file: store of the earlier runs.
    """

    def __init__(self, file: SqliteStore) -> None:
        self._file = file

    def forget_unserved(self, key: Key) -> bool:
        """Delete a session from the file. Return whether there was one."""
        return self._file.remove(key)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

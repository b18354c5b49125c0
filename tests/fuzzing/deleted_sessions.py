"""Record of deleted sessions. PUT, append, import and fork can create them again."""

from typing import Any

from fuzzing.expected_state import Contradiction

_MAKING = {
    ("PUT", "/sessions/{id}"),
    ("POST", "/sessions/{id}/kv"),
    ("POST", "/sessions/{id}/import"),
}
_FORK = ("POST", "/sessions/{id}/fork")


class DeletedSessions:
    """Sessions that one client has deleted and not created again. No other client may change them meanwhile."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def record(self, call: tuple[str, str], session: str, body: Any, status: int) -> None:
        """Record a request and its response.

        Args:
            call: method and path template.
            session: session id in the path.
            body: body of the request.
            status: status of the response.

        Raises:
            Contradiction: the service found a session that was deleted.
        """
        if not 200 <= status < 300:
            return
        if call in _MAKING:
            self._ids.discard(session)
        elif session in self._ids:
            raise Contradiction(f"{session!r} was deleted, but {' '.join(call)} found it")
        elif call == _FORK:
            self._ids.discard(body["id"])
        elif call[0] == "DELETE":
            self._ids.add(session)

"""Which sessions were deleted and not made anew: an append, a fork or an import makes one, too."""

from typing import Any

from fuzzing.expected_state import Contradiction

_MAKING = {
    ("PUT", "/sessions/{id}"),
    ("POST", "/sessions/{id}/kv"),
    ("POST", "/sessions/{id}/import"),
}
_FORK = ("POST", "/sessions/{id}/fork")


class Gone:
    """Follows the calls of one caller, whom nobody else's calls come between."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def note(self, call: tuple[str, str], session: str, body: Any, status: int) -> None:
        """Note what became of a call.

        Args:
            call: method and template of the path.
            session: the id in the path.
            body: as it was sent.
            status: of the answer.

        Raises:
            Contradiction: a session that was deleted is there.
        """
        if not 200 <= status < 300:
            return
        if call in _MAKING:
            self._ids.discard(session)
        elif session in self._ids:
            raise Contradiction(f"{session!r} was deleted, and {' '.join(call)} finds it")
        elif call == _FORK:
            self._ids.discard(body["id"])
        elif call[0] == "DELETE":
            self._ids.add(session)

"""The service's limit for request bodies, as far as a client knows it."""

import sys
from contextlib import suppress

from hadakv_client.errors import BodyTooLarge, Problem, ProtocolError
from hadakv_client.http import calls
from hadakv_client.retries import Flow, Retries, with_retries

# The client asks for the limit before it sends a larger body. To send a smaller one in vain costs little, and the
# rejection names the limit.
UNASKED_NBYTES = 128 << 20
# Size of a part where the limit allows it. Larger parts are not faster, but need more memory on both sides.
PART_NBYTES = 64 << 20


class BodyLimit:
    """Limit for request bodies. The sessions of a client share it.

    The service may be restarted with another limit, so a rejection always replaces it.

    Args:
        unasked_nbytes: size of the largest body to send while the limit is not known.
    """

    def __init__(self, unasked_nbytes: int = UNASKED_NBYTES) -> None:
        self._unasked_nbytes = unasked_nbytes
        self._nbytes: int | None = None

    def for_body(self, nbytes: int, retries: Retries) -> Flow[int]:
        """Return the limit in bytes. Ask the service if the limit is not known and the body is large."""
        if self._nbytes is None and nbytes > self._unasked_nbytes:
            # A proxy may hide the call. The append will then show what fits.
            with suppress(Problem, ProtocolError):
                self._nbytes = yield from with_retries(calls.max_body(), retries)
        return self.nbytes

    @property
    def nbytes(self) -> int:
        """Return the limit in bytes; a huge number if it is not known."""
        return sys.maxsize if self._nbytes is None else self._nbytes

    def learn(self, error: Problem, nbytes: int) -> None:
        """Take the limit from a rejection.

        Args:
            error: problem that an append raised.
            nbytes: size of its body.

        Raises:
            Problem: the error again, if it is not about the size of the body.
        """
        if error.status != BodyTooLarge.status:
            raise error
        # A proxy in front of the service rejects bodies without naming a limit.
        limit = error.limit if isinstance(error, BodyTooLarge) else nbytes // 2
        if limit >= nbytes:
            raise error
        self._nbytes = limit

"""BodyStream: a request body as a stream, which never has more than one message in memory."""

from asyncio import CancelledError

from starlette.requests import ClientDisconnect, Request

from hadakv_service.errors import MalformedBody
from hadakv_service.observability.request_record import note_body_incomplete, note_received


class BodyStream:
    """Body of a request. Its size is not limited here.

    Args:
        request: the request, whose body was not read yet.

    Attributes:
        nbytes: the declared size; None if there is no Content-Length.

    Raises:
        MalformedBody: Content-Length is not a number.
    """

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._rest = memoryview(b"")
        self._more = True
        declared = request.headers.get("content-length")
        if declared is not None and not declared.isdecimal():
            raise MalformedBody("Content-Length is not a number.")
        self.nbytes = None if declared is None else int(declared)

    async def read_into(self, buffer: memoryview) -> int:
        """Copy the next bytes to the start of a buffer. Return their number, 0 at the end of the body.

        Raises:
            ClientDisconnect: the connection was lost.
        """
        while not self._rest and self._more:
            await self._next_message()
        nbytes = min(len(self._rest), len(buffer))
        buffer[:nbytes] = self._rest[:nbytes]
        self._rest = self._rest[nbytes:]
        return nbytes

    async def _next_message(self) -> None:
        try:
            message = await self._receive()
        except CancelledError:
            note_body_incomplete()
            raise
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._rest, self._more = memoryview(message.get("body", b"")), message.get("more_body", False)
        note_received(len(self._rest))

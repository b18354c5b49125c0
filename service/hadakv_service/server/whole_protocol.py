"""The connection once more: an answer that is there as a whole goes out in one write.

uvicorn writes an answer's head and its body one after the other, which is two calls of the kernel and, on a connection
that sends at once, two packets. Under this protocol the scope's ASGI extension `hadakv.answer` takes both together.
"""

from collections.abc import Sequence
from functools import partial

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from hadakv_service.asgi_extensions import SEND_RESPONSE
from hadakv_service.server.direct_protocol import DirectProtocol


class WholeProtocol(DirectProtocol):
    """The connection, with both extensions."""

    def on_headers_complete(self) -> None:
        """Offer the extension to the app, whose task begins only after this."""
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.scope["extensions"][SEND_RESPONSE] = partial(self._answer, self.cycle)  # type: ignore[assignment]  # a call, not settings

    async def _answer(
        self, cycle: RequestResponseCycle, status_code: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> bool:
        """Answer a request that is none for the head alone, if its client is there; `headers` has the body's length."""
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        # A transport that could not write is closing before the cycle is told.
        if cycle.disconnected or self.transport.is_closing():
            # Or uvicorn would miss the answer.
            cycle.disconnected = True
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join([STATUS_LINE[status_code], *lines, b"\r\n", body]))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

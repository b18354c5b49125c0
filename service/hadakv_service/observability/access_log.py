"""The access log: one line per request."""

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import BinaryIO

import msgspec

from hadakv_service.observability.logging_config import (
    LogFormat,
    _console_time,
    _encode,
)
from hadakv_service.observability.request_record import RequestRecord

LOGGER_NAME = "hadakv_service.requests"


DELAY_SECONDS = 0.05


class AccessLogRecord(msgspec.Struct, omit_defaults=True):
    """What is logged of a request."""

    time: datetime
    level: str
    logger: str
    message: str
    request_id: str
    tenant: str | None
    method: str
    route: str
    status: int
    duration_seconds: float
    bytes_in: int
    bytes_out: int
    client: str | None
    trace_id: str = ""


class AccessLog:
    """One line a request, written past `logging`, whose records cost a multiple of it.

    Lines gather for a moment: whenever a thread writes it lets another have the interpreter, and then waits for it.

    Args:
        form: of the lines.
        level: from which on there are any: a failure, a status from 500 on, is a warning, anything else info.
        stream: where they go.
    """

    def __init__(self, form: LogFormat, level: str, stream: BinaryIO) -> None:
        self._text = _encode if form == "json" else _console
        self._min_level = logging.getLevelNamesMapping()[level.upper()]
        self._stream = stream
        self._lines: list[bytes] = []

    def write(self, exchange: RequestRecord, status: int, seconds: float) -> None:
        """Log a request that is over."""
        failed = status >= 500
        if (logging.WARNING if failed else logging.INFO) < self._min_level:
            return
        line = AccessLogRecord(
            datetime.now(UTC),
            "warning" if failed else "info",
            LOGGER_NAME,
            "request",
            exchange.id.decode(),
            exchange.tenant,
            exchange.scope["method"],
            exchange.route,
            status,
            # Whole microseconds; `round` takes ten times as long.
            int(seconds * 1e6) / 1e6,
            exchange.received,
            exchange.sent,
            exchange.client,
            exchange.trace_id,
        )
        self._lines.append(self._text(line))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(DELAY_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what there is."""
        lines, self._lines = self._lines, []
        # A log that takes nothing any more is no reason to fail requests.
        with suppress(OSError, ValueError):
            self._stream.write(b"".join(line + b"\n" for line in lines))
            self._stream.flush()


def _console(line: AccessLogRecord) -> bytes:
    moment = _console_time(line.time.timestamp())
    head = f"{moment} {line.level:7} {line.logger}: {line.method} {line.route} {line.status}"
    rest = ("request_id", "tenant", "duration_seconds", "bytes_in", "bytes_out", "client", "trace_id")
    told = (f" {name}={value}" for name in rest if (value := getattr(line, name)) not in (None, ""))
    return (head + "".join(told)).encode()

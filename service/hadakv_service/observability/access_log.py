"""The access log: one line per request."""

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import BinaryIO

import msgspec

from hadakv_service.observability.logging_config import LogFormat, console_time, encode_json
from hadakv_service.observability.request_record import RequestRecord

LOGGER_NAME = "hadakv_service.requests"
# Maximum time a line stays in the buffer.
FLUSH_DELAY_SECONDS = 0.05


class AccessLogRecord(msgspec.Struct, omit_defaults=True):
    """Fields of a line in the access log, in order."""

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
    """Log with one line per request. It does not use `logging`, whose records cost several times as much.

    Lines are buffered for FLUSH_DELAY_SECONDS. Every write releases the interpreter lock and then waits to get it back.

    Args:
        log_format: format of the lines.
        level: minimum level. Requests with a status of 500 or more are logged as warnings, others as info.
        stream: destination of the lines.
    """

    def __init__(self, log_format: LogFormat, level: str, stream: BinaryIO) -> None:
        self._encode = encode_json if log_format == "json" else _console_line
        self._min_level = logging.getLevelNamesMapping()[level.upper()]
        self._stream = stream
        self._lines: list[bytes] = []

    def write(self, record: RequestRecord, status: int, seconds: float) -> None:
        """Log a completed request.

        Args:
            record: record of the request.
            status: HTTP status to log.
            seconds: duration of the request.
        """
        failed = status >= 500
        if (logging.WARNING if failed else logging.INFO) < self._min_level:
            return
        line = AccessLogRecord(
            datetime.now(UTC),
            "warning" if failed else "info",
            LOGGER_NAME,
            "request",
            record.id.decode(),
            record.tenant,
            record.scope["method"],
            record.route,
            status,
            # Truncate to microseconds. `round` takes ten times as long.
            int(seconds * 1e6) / 1e6,
            record.received,
            record.sent,
            record.client,
            record.trace_id,
        )
        self._lines.append(self._encode(line))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(FLUSH_DELAY_SECONDS, self.flush)

    def flush(self) -> None:
        """Write the buffered lines."""
        lines, self._lines = self._lines, []
        # A closed or broken log stream must not fail requests.
        with suppress(OSError, ValueError):
            self._stream.write(b"".join(line + b"\n" for line in lines))
            self._stream.flush()


def _console_line(record: AccessLogRecord) -> bytes:
    time = console_time(record.time.timestamp())
    start = f"{time} {record.level:7} {record.logger}: {record.method} {record.route} {record.status}"
    names = ("request_id", "tenant", "duration_seconds", "bytes_in", "bytes_out", "client", "trace_id")
    values = (f" {name}={value}" for name in names if (value := getattr(record, name)) not in (None, ""))
    return (start + "".join(values)).encode()

"""How the service logs, to stderr: JSON for machines, or lines for people at a terminal.

Tokens, bodies, and what stands in paths and queries are never logged; a session's id only where the session is damaged
or could not be kept, as somebody has to know which it is.
"""

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import BinaryIO, Literal

import msgspec

from hadakv_service.exchange import Exchange, current_id

Form = Literal["json", "console"]
REQUESTS = "hadakv_service.requests"
DELAY_SECONDS = 0.05
_encode = msgspec.json.Encoder().encode


class JsonFormatter(logging.Formatter):
    """An event as an object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode an event; a traceback is a text in it."""
        event = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().strip(),
        }
        if request_id := _request_id(record):
            event["request_id"] = request_id
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return _encode(event).decode()


class ConsoleFormatter(logging.Formatter):
    """An event as people read it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the lines of a traceback."""
        moment = _console_time(record.created)
        line = f"{moment} {record.levelname.lower():7} {record.name}: {record.getMessage().strip()}"
        if request_id := _request_id(record):
            line += f" request_id={request_id}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _request_id(record: logging.LogRecord) -> str:
    """What the record says itself, or the request that is being worked on."""
    said: str = getattr(record, "request_id", "")
    return said or current_id()


def _console_time(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds).isoformat(" ", "milliseconds")


def configure(level: str, form: Form) -> None:
    """Log in that form, from that level on, whoever logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    # A logger with a level of its own, as uvicorn's, passes records on whatever the root's level is.
    handler.setLevel(level.upper())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)


class Line(msgspec.Struct, omit_defaults=True):
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


class RequestLog:
    """One line a request, written past `logging`, whose records cost a multiple of it.

    Lines gather for a moment: whenever a thread writes it lets another have the interpreter, and then waits for it.

    Args:
        form: of the lines.
        level: from which on there are any: a failure, a status from 500 on, is a warning, anything else info.
        stream: where they go.
    """

    def __init__(self, form: Form, level: str, stream: BinaryIO) -> None:
        self._text = _encode if form == "json" else _console
        self._least = logging.getLevelNamesMapping()[level.upper()]
        self._stream = stream
        self._lines: list[bytes] = []

    def write(self, exchange: Exchange, status: int, seconds: float) -> None:
        """Log a request that is over."""
        failed = status >= 500
        if (logging.WARNING if failed else logging.INFO) < self._least:
            return
        line = Line(
            datetime.now(UTC),
            "warning" if failed else "info",
            REQUESTS,
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


def _console(line: Line) -> bytes:
    moment = _console_time(line.time.timestamp())
    head = f"{moment} {line.level:7} {line.logger}: {line.method} {line.route} {line.status}"
    rest = ("request_id", "tenant", "duration_seconds", "bytes_in", "bytes_out", "client", "trace_id")
    told = (f" {name}={value}" for name in rest if (value := getattr(line, name)) not in (None, ""))
    return (head + "".join(told)).encode()

"""How the service logs, to stderr: JSON for machines, or lines for people at a terminal.

Tokens, bodies, and what stands in paths and queries are never logged; a session's id only where the session is damaged
or could not be kept, as somebody has to know which it is.
"""

import logging
from datetime import UTC, datetime
from typing import Literal

import msgspec

from hadakv_service.observability.request_record import current_id

LogFormat = Literal["json", "console"]
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


def configure(level: str, form: LogFormat) -> None:
    """Log in that form, from that level on, whoever logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    # A logger with a level of its own, as uvicorn's, passes records on whatever the root's level is.
    handler.setLevel(level.upper())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)

"""Logging to stderr, as JSON for machines or as lines for a console.

Tokens, bodies, paths and queries are never logged. A session id is logged only if the session is corrupt or could not
be stored, because the operator must know which session that is.
"""

import logging
from datetime import UTC, datetime
from typing import Literal

import msgspec

from hadakv_service.observability.request_record import current_id

LogFormat = Literal["json", "console"]
encode_json = msgspec.json.Encoder().encode


class JsonFormatter(logging.Formatter):
    """Formatter that writes each log record as a JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON. A traceback becomes the string `exception`."""
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
        return encode_json(event).decode()


class ConsoleFormatter(logging.Formatter):
    """Formatter that writes each log record as a line of text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, followed by the lines of a traceback."""
        time = console_time(record.created)
        line = f"{time} {record.levelname.lower():7} {record.name}: {record.getMessage().strip()}"
        if request_id := _request_id(record):
            line += f" request_id={request_id}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _request_id(record: logging.LogRecord) -> str:
    """Return the record's own request id, or that of the current request."""
    request_id: str = getattr(record, "request_id", "")
    return request_id or current_id()


def console_time(unix_seconds: float) -> str:
    """Return a time as local date and time with milliseconds."""
    return datetime.fromtimestamp(unix_seconds).isoformat(" ", "milliseconds")


def configure(level: str, log_format: LogFormat) -> None:
    """Configure the root logger and its handler on stderr, for this package and all libraries.

    Args:
        level: minimum level.
        log_format: format of the lines.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter())
    # Loggers with their own level, such as uvicorn's, ignore the level of the root logger. Filter in the handler, too.
    handler.setLevel(level.upper())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)

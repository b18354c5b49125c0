"""Output of `hadakv`: tables, descriptions, JSON, sizes and progress."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hadakv_client import Codec, Progress, ServiceStatus, SessionInfo

HEADING = ("SESSION", "TOKENS", "LAYERS", "SIZE", "WHERE", "DURABILITY", "LAST USED")
_RIGHT = {"TOKENS", "LAYERS", "SIZE"}
_CLEAR_TO_END_OF_LINE = "\x1b[K"


class OutputError(Exception):
    """A write to stdout that failed.

    Attributes:
        error: error of the operating system.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def emit(text: str) -> None:
    """Print one line on stdout.

    Raises:
        OutputError: stdout cannot be written.
    """
    try:
        print(text)
    except OSError as error:
        raise OutputError(error) from error


def emit_bytes(content: bytes) -> None:
    """Write bytes to stdout.

    Raises:
        OutputError: stdout cannot be written.
    """
    try:
        sys.stdout.buffer.write(content)
    except OSError as error:
        raise OutputError(error) from error


def flush() -> None:
    """Flush stdout.

    Raises:
        OutputError: stdout cannot be written.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OutputError(error) from error


def print_json(value: Any) -> None:
    """Print a dataclass or a mapping as one line of JSON."""
    emit(json.dumps(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value, default=str))


def print_sessions(sessions: Iterable["SessionInfo"]) -> None:
    """Print a table, with colours on a terminal. Without sessions say so on a terminal, and print nothing else."""
    rows = [columns(info) for info in sessions]
    if not rows and sys.stdout.isatty():
        emit("no sessions")
    if rows and sys.stdout.isatty():
        _print_rich_table(rows)
    else:
        for line in table_rows(rows):
            emit(line)


def _print_rich_table(rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in HEADING:
        table.add_column(name, justify="right" if name in _RIGHT else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def table_rows(cells: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a plain table, with a heading. Without rows there is no heading."""
    rows = list(cells)
    widths = [max(map(len, column)) for column in zip(HEADING, *rows, strict=True)]
    for row in (HEADING, *rows) if rows else ():
        aligned = (
            text.rjust(width) if name in _RIGHT else text.ljust(width)
            for name, text, width in zip(HEADING, row, widths, strict=True)
        )
        yield "  ".join(aligned).rstrip()


def columns(info: "SessionInfo") -> tuple[str, ...]:
    """Return the cells of a session's row in the table."""
    size = format_size(info.nbytes)
    numbers = str(info.length), str(len(info.layers)), size
    return info.session, *numbers, info.tier, info.durability, _local_time(info.last_used)


def print_fields(fields: Mapping[str, str]) -> None:
    """Print one name and value per line."""
    for name, value in fields.items():
        emit(f"{name:<10}  {value}")


def describe(info: "SessionInfo") -> dict[str, str]:
    """Return the fields of a description and their values. Undecided fields are left out."""
    fields = {
        "session": summarize(info),
        "shape": f"{info.kv_heads} kv heads, head_dim {info.head_dim}" if info.kv_heads and info.head_dim else None,
        "k": info.codec and _codec(info.codec.k),
        "v": info.codec and _codec(info.codec.v),
        "as float16": format_size(info.raw_nbytes),
        "window": info.window and f"{info.window} tokens",
        "where": info.tier,
        "durability": info.durability,
        "created": _local_time(info.created),
        "last used": _local_time(info.last_used),
        "expires": info.expires and _local_time(info.expires),
    }
    return {name: str(value) for name, value in fields.items() if value is not None}


def describe_status(status: "ServiceStatus") -> dict[str, str]:
    """Return the fields of the service's status."""
    disk = "disabled"
    if status.disk_budget_nbytes:
        disk = f"{format_size(status.disk_used_nbytes)} of {format_size(status.disk_budget_nbytes)}"
    return {
        "version": status.version,
        "backend": f"{status.backend} ({status.detail})",
        "uptime": str(timedelta(seconds=int(status.uptime_seconds))),
        "sessions": str(status.sessions),
        "memory": f"{format_size(status.used_nbytes)} of {format_size(status.budget_nbytes)}",
        "disk": disk,
    }


def session_document(info: "SessionInfo") -> dict[str, Any]:
    """Return a description for JSON: names as in `SessionInfo`, times in ISO 8601."""
    codec = info.codec and {"k": info.codec.k.to_mapping(), "v": info.codec.v.to_mapping()}
    times = {name: time and time.isoformat() for name, time in _times(info).items()}
    return {**asdict(info), "codec": codec, "layers": [layer._asdict() for layer in info.layers], **times}


def _times(info: "SessionInfo") -> dict[str, datetime | None]:
    return {"created": info.created, "last_used": info.last_used, "expires": info.expires}


def summarize(info: "SessionInfo") -> str:
    """Return one line about a session."""
    return f"{info.session}: {info.length} tokens, {len(info.layers)} layers, {format_size(info.nbytes)}"


def _codec(codec: "Codec") -> str:
    """Return the options that differ from the default codec, after the number of bits."""
    options = codec.to_mapping()
    default = type(codec)().to_mapping()
    if options["kind"] != default["kind"]:
        return str(options["kind"])
    others = [f"{name} {value}" for name, value in options.items() if name != "bits" and value != default[name]]
    return ", ".join([f"{options['bits']} bits", *others])


def _local_time(time: datetime) -> str:
    return time.astimezone().isoformat(" ", "seconds")


def format_size(nbytes: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"


@contextmanager
def show_progress() -> Iterator["Progress | None"]:
    """Show the progress of a transfer on stderr, and clear the line at the end. Yield None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return

    def show(done: int, total: int | None) -> None:
        share = f" of {format_size(total)}, {100 * done // total} %" if total else ""
        sys.stderr.write(f"\r{format_size(done)}{share}{_CLEAR_TO_END_OF_LINE}")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write(f"\r{_CLEAR_TO_END_OF_LINE}")
        sys.stderr.flush()

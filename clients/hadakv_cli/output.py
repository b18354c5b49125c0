"""Text that `hadakv` prints: sizes, tables, descriptions and progress."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime

from hadakv_client import Codec, Progress, SessionInfo

_HEADING = ("SESSION", "TOKENS", "LAYERS", "SIZE", "LAST USED")
_CLEAR_TO_END_OF_LINE = "\x1b[K"


def table_rows(sessions: Iterable[SessionInfo]) -> Iterator[str]:
    """Yield the lines of a table, with a heading. Without sessions there is no heading."""
    rows = [_columns(info) for info in sessions]
    widths = [max(map(len, column)) for column in zip(_HEADING, *rows, strict=True)]
    for first, *rest, last in (_HEADING, *rows) if rows else ():
        middle = (text.rjust(width) for text, width in zip(rest, widths[1:-1], strict=True))
        yield "  ".join((first.ljust(widths[0]), *middle, last))


def _columns(info: SessionInfo) -> tuple[str, ...]:
    size = format_size(info.nbytes)
    return info.session, str(info.length), str(len(info.layers)), size, _local_time(info.last_used)


def describe(info: SessionInfo) -> dict[str, str]:
    """Return the fields of a description and their values. Undecided fields are left out."""
    fields = {
        "session": summarize(info),
        "shape": f"{info.kv_heads} kv heads, head_dim {info.head_dim}" if info.kv_heads and info.head_dim else None,
        "k": info.codec and _codec(info.codec.k),
        "v": info.codec and _codec(info.codec.v),
        "as float16": format_size(info.raw_nbytes),
        "window": info.window and f"{info.window} tokens",
        "tier": info.tier,
        "created": _local_time(info.created),
        "last used": _local_time(info.last_used),
        "expires": info.expires and _local_time(info.expires),
    }
    return {name: str(value) for name, value in fields.items() if value is not None}


def summarize(info: SessionInfo) -> str:
    """Return one line about a session."""
    return f"{info.session}: {info.length} tokens, {len(info.layers)} layers, {format_size(info.nbytes)}"


def _codec(codec: Codec) -> str:
    return ", ".join(f"{name} {value}" for name, value in codec.to_mapping().items())


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
def show_progress() -> Iterator[Progress | None]:
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

"""Commands `put` and `get`: keys and values of a file to a session and back."""

import os
import sys
from errno import EEXIST
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from hadakv_cli import output
from hadakv_cli.options import Json, SessionId
from hadakv_cli.subcommands.files import PIPE, Force, refuse_terminal
from hadakv_cli.subcommands.sessions import checked_id

if TYPE_CHECKING:
    from hadakv_client import Client


def put(
    client: "Client",
    session_id: SessionId,
    file: Annotated[
        str,
        Argument(
            metavar="FILE",
            help=".npz or .safetensors file with arrays k and v, or a prompt cache of mlx-lm; - is stdin.",
        ),
    ],
    bits: Annotated[int | None, Option(metavar="NUMBER", help="Bits of a new session: 2, 3, 4, 6 or 8.")] = None,
    position: Annotated[
        int | None,
        Option(min=0, metavar="NUMBER", help="Position of the first token; a repeated put then stores nothing twice."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Append keys and values from a file to a session. Without --position they go to its end."""
    from hadakv_cli.tensor_files import read_kv

    session = client.session(checked_id(session_id), None if bits is None else {"bits": bits})
    if file == PIPE:
        k, v = read_kv(sys.stdin.buffer, "stdin")
    else:
        with Path(file).open("rb") as opened:
            k, v = read_kv(opened, file)
    stored = session.append(k, v, position="end" if position is None else position, minimal=True)
    if as_json:
        document = {"session": stored.session, "position": stored.position, "tokens": stored.tokens}
        output.print_json({**document, "length": stored.length})
    else:
        output.emit(f"{stored.session}: {stored.tokens} tokens at {stored.position}")


def get(  # noqa: PLR0913, PLR0917 - options of a command line, given by keyword
    client: "Client",
    session_id: SessionId,
    file: Annotated[str, Argument(metavar="FILE", help="File to write, .npz or .safetensors; - is stdout.")],
    start: Annotated[int | None, Option(min=0, metavar="NUMBER", help="Position of the first token.")] = None,
    stop: Annotated[int | None, Option(min=0, metavar="NUMBER", help="Position after the last token.")] = None,
    form: Annotated[
        Literal["float16", "bfloat16", "float32"], Option(help="Type of the values. NumPy's .npz has no bfloat16.")
    ] = "float16",
    format_: Annotated[
        Literal["npz", "safetensors"] | None,
        Option("--format", help="Format; default: that of FILE's suffix, npz for stdout."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write keys and values of a session to a file, as arrays k and v."""
    from hadakv_cli.tensor_files import write_kv

    kind = format_ or _format_of(file)
    if kind == "npz" and form == "bfloat16":
        raise BadParameter("--form bfloat16 needs --format safetensors")
    session = client.session(checked_id(session_id))
    if file == PIPE:
        refuse_terminal()
    elif Path(file).exists() and not force:
        raise FileExistsError(EEXIST, "already exists; use --force to replace it", file)
    found = session.read(start, stop, form=form)
    arrays = {"k": found.k, "v": found.v}
    if file == PIPE:
        write_kv(_Stdout(), arrays, kind)  # type: ignore[arg-type]  # only `write` is called
        return
    nbytes = _replace(Path(file), lambda opened: write_kv(opened, arrays, kind))
    document = {"session": session.id, "start": found.start, "stop": found.stop, "file": file, "nbytes": nbytes}
    if as_json:
        output.print_json(document)
    else:
        output.emit(f"{file}: tokens {found.start} to {found.stop}, {output.format_size(nbytes)}")


class _Stdout:
    """Stdout as a file. Its errors are those of `output`."""

    def write(self, content: Any) -> None:
        """Write bytes."""
        output.emit_bytes(content)


def _format_of(file: str) -> Literal["npz", "safetensors"]:
    if file == PIPE:
        return "npz"
    suffix = Path(file).suffix
    if suffix not in (".npz", ".safetensors"):
        raise BadParameter(f"{file}: the name must end in .npz or .safetensors, or give --format")
    return "npz" if suffix == ".npz" else "safetensors"


def _replace(path: Path, write: Any) -> int:
    """Write a file completely or not at all, and return its size in bytes."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name[:200]}.{token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size

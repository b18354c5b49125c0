"""Commands `export` and `import`: sessions to files and back, and through pipes."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from errno import EEXIST
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from hadakv_cli import output
from hadakv_cli.errors import for_each
from hadakv_cli.options import Json, Prefix
from hadakv_cli.subcommands.sessions import All, checked_id, chosen

if TYPE_CHECKING:
    from hadakv_client import Client

PIPE = "-"
SUFFIX = ".safetensors"
_CHUNK_NBYTES = 1 << 20
Force = Annotated[bool, Option("--force", help="Replace an existing file.")]


def export_sessions(
    client: "Client",
    targets: Annotated[
        list[str],
        Argument(metavar="[ID]... FILE", help="Session ids, and the file to write; a folder for several; - is stdout."),
    ],
    prefix: Prefix = None,
    all_: All = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write sessions to safetensors files, byte for byte, for 'hadakv import' here or on another machine."""
    *ids, target = targets
    if not (ids or all_ or prefix is not None):
        raise BadParameter("Missing argument 'FILE'")
    sessions = list(chosen(client, ids, prefix, all_))
    if target == PIPE:
        _export_to_stdout(client, sessions)
        return
    folder = Path(target)
    if all_ or prefix is not None:
        folder.mkdir(parents=True, exist_ok=True)
    elif len(sessions) > 1 and not folder.is_dir():
        raise BadParameter(f"{target}: several sessions need a folder that exists")
    written: list[Path] = []

    def export(session_id: str) -> None:
        path = folder / f"{session_id}{SUFFIX}" if folder.is_dir() else folder
        # Ids that differ in case only have the same file on some file systems.
        if path.exists() and (not force or any(path.samefile(each) for each in written)):
            raise FileExistsError(EEXIST, "already exists; use --force to replace it", str(path))
        with output.show_progress() as progress:
            client.session(session_id).export(path, progress)
        written.append(path)
        nbytes = path.stat().st_size
        if as_json:
            output.print_json({"session": session_id, "file": str(path), "nbytes": nbytes})
        else:
            output.emit(f"{path}: {output.format_size(nbytes)}")

    for_each(sessions, export)


def _export_to_stdout(client: "Client", sessions: Sequence[str]) -> None:
    if len(sessions) != 1:
        raise BadParameter("one session at a time can be written to stdout")
    refuse_terminal()
    with _temporary_file() as path:
        with output.show_progress() as progress:
            client.session(sessions[0]).export(path, progress)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_NBYTES):
                output.emit_bytes(chunk)


def refuse_terminal() -> None:
    """Check that stdout can take bytes.

    Raises:
        BadParameter: it is a terminal.
    """
    if sys.stdout.isatty():
        raise BadParameter("stdout is a terminal; redirect it to a file or a pipe")


def import_sessions(
    client: "Client",
    files: Annotated[list[str], Argument(metavar="FILE...", help="Files that 'hadakv export' wrote; - is stdin.")],
    session_id: Annotated[
        str | None, Option("--id", metavar="ID", help="Id of the new session; default: id of the exported session.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create sessions from files that 'hadakv export' wrote."""
    if session_id is not None:
        checked_id(session_id)
        if len(files) > 1:
            raise BadParameter("--id needs exactly one file")

    def import_(file: str) -> None:
        with _spooled(file) as path, output.show_progress() as progress:
            session = client.import_session(path, session_id, progress)
        info = session.info()
        if as_json:
            output.print_json(output.session_document(info))
        else:
            output.emit(output.summarize(info))

    for_each(files, import_)


@contextmanager
def _spooled(file: str) -> Iterator[Path]:
    """Yield the path of a file. Stdin and pipes are copied to a temporary file, so that they can be sent again."""
    if file != PIPE and not Path(file).is_fifo():
        yield Path(file)
        return
    with _temporary_file() as path:
        with nullcontext(sys.stdin.buffer) if file == PIPE else Path(file).open("rb") as pipe, path.open("wb") as copy:
            shutil.copyfileobj(pipe, copy, _CHUNK_NBYTES)
        yield path


@contextmanager
def _temporary_file() -> Iterator[Path]:
    with TemporaryDirectory(prefix="hadakv-") as folder:
        yield Path(folder) / "session"

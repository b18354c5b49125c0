"""The program `hadakv`: the sessions of a running service, from the command line.

Exits with 0 when done, 1 when the service refuses or something given cannot be used, 2 when the command line or
HADAKV_URL makes no sense, 3 when no service answers, and 130 when interrupted. Errors are one line on stderr, below the
usage if that is what was not kept to.
"""

import os
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EEXIST
from pathlib import Path

from hadakv_client.client import Client
from hadakv_client.errors import ConnectionLost, HadakvError, Timeout, Unauthorized
from hadakv_client.http.calls import checked_id
from hadakv_client.http.files import Progress
from hadakv_client.http.transport import DEFAULT_URL, Address
from hadakv_client.results import SessionInfo
from hadakv_kernels import Codec

DONE, FAILED, NO_ANSWER, INTERRUPTED = 0, 1, 3, 130
_STATUSES: dict[type[BaseException], int] = {
    ConnectionLost: NO_ANSWER,
    Timeout: NO_ANSWER,
    KeyboardInterrupt: INTERRUPTED,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and say how it went.

    Args:
        arguments: of the command line; None is this process's own.

    Returns:
        the exit status.
    """
    options = _options(arguments)
    try:
        with _client(options) as client:
            options.run(client, options)
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the list has seen enough; at exit Python would flush into the pipe once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (HadakvError, OSError, ValueError, KeyboardInterrupt) as error:
        print(f"hadakv: {' '.join(_reason(error).split())}", file=sys.stderr)
        return _STATUSES.get(type(error), FAILED)
    return DONE


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, Unauthorized):
        return f"{error}; --token-file and HADAKV_TOKEN say who calls"
    return str(error)


def _options(arguments: Sequence[str] | None) -> Namespace:
    """What the command line says, and the environment of where the service is."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if "url" not in options:
        try:
            options.url = _url(os.environ.get("HADAKV_URL") or DEFAULT_URL)
        except ArgumentTypeError as error:
            parser.error(f"HADAKV_URL: {error}")
    return options


def _sensible(check: Callable[[str], object]) -> Callable[[str], str]:
    """A type of argparse's: the word itself, or what the check has against it."""

    def word(given: str) -> str:
        try:
            check(given)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error
        return given

    return word


_id = _sensible(checked_id)
_url = _sensible(lambda url: Address(url, None, 0))


def _file(given: str) -> Path:
    if given == "-":
        raise ArgumentTypeError("a session cannot go through a pipe; a file of that name is ./-")
    return Path(given)


def _parser() -> ArgumentParser:
    everywhere = ArgumentParser(add_help=False, argument_default=SUPPRESS)
    url_help = f"of the service, or unix:PATH of its socket; default: HADAKV_URL or {DEFAULT_URL}"
    everywhere.add_argument("--url", type=_url, help=url_help)
    everywhere.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token; default: HADAKV_TOKEN")
    ca_help = "certificates in PEM that vouch for the service, in place of the usual ones; default: HADAKV_CA_FILE"
    everywhere.add_argument("--ca-file", type=Path, metavar="FILE", help=ca_help)
    parser = ArgumentParser("hadakv", description="Sessions of a running hadakv service.", parents=[everywhere])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Client, Namespace], None], told: str) -> ArgumentParser:
        added = commands.add_parser(name, help=told, description=told, parents=[everywhere])
        added.set_defaults(run=run)
        return added

    export = command("export", _export, "write a session to one safetensors file")
    export.add_argument("id", type=_id, metavar="ID")
    export.add_argument("file", type=_file, metavar="FILE")
    export.add_argument("--force", action="store_true", help="replace the file if there is one")
    import_ = command("import", _import, "make a session of a file that export wrote")
    import_.add_argument("file", type=_file, metavar="FILE")
    import_.add_argument(
        "--id", type=_id, metavar="ID", help="of the new session; default: of the one that was exported"
    )
    list_ = command("list", _list, "list sessions")
    list_.add_argument("prefix", nargs="?", metavar="PREFIX", help="only those whose id begins so")
    command("show", _show, "describe a session").add_argument("id", type=_id, metavar="ID")
    command("rm", _remove, "forget sessions").add_argument("ids", type=_id, nargs="+", metavar="ID")
    return parser


def _client(options: Namespace) -> Client:
    """A client of the service that options and environment name."""
    token = os.environ.get("HADAKV_TOKEN") or None
    if "token_file" in options:
        token = options.token_file.read_text("utf-8").strip()
    ca_file = options.ca_file if "ca_file" in options else os.environ.get("HADAKV_CA_FILE") or None
    return Client(options.url, token=token, ca_file=ca_file)


def _export(client: Client, options: Namespace) -> None:
    session, path = client.session(options.id), options.file
    if path.exists() and not options.force:
        raise FileExistsError(EEXIST, "is there already; --force replaces it", str(path))
    with _progress() as progress:
        session.export(path, progress)
    print(f"{path}: {_size(path.stat().st_size)}")


def _import(client: Client, options: Namespace) -> None:
    with _progress() as progress:
        session = client.import_session(options.file, options.id, progress)
    print(_summary(session.info()))


def _list(client: Client, options: Namespace) -> None:
    rows = [_columns(info) for info in client.sessions(options.prefix)]
    heading = ("SESSION", "TOKENS", "LAYERS", "SIZE", "LAST USED")
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    for first, *rest, last in (heading, *rows) if rows else ():
        middle = (text.rjust(width) for text, width in zip(rest, widths[1:-1], strict=True))
        print("  ".join((first.ljust(widths[0]), *middle, last)))


def _columns(info: SessionInfo) -> tuple[str, ...]:
    used = info.last_used.astimezone().isoformat(" ", "seconds")
    return info.session, str(info.length), str(len(info.layers)), _size(info.nbytes), used


def _show(client: Client, options: Namespace) -> None:
    info = client.session(options.id).info()
    told = {
        "session": _summary(info),
        "shape": f"{info.kv_heads} kv heads, head_dim {info.head_dim}" if info.kv_heads and info.head_dim else None,
        "k": info.codec and _codec(info.codec.k),
        "v": info.codec and _codec(info.codec.v),
        "as float16": _size(info.raw_nbytes),
        "window": info.window and f"{info.window} tokens",
        "tier": info.tier,
        "created": info.created.astimezone().isoformat(" ", "seconds"),
        "last used": info.last_used.astimezone().isoformat(" ", "seconds"),
        "expires": info.expires and info.expires.astimezone().isoformat(" ", "seconds"),
    }
    for name, value in told.items():
        if value is not None:
            print(f"{name:<10}  {value}")


def _remove(client: Client, options: Namespace) -> None:
    for session in [client.session(each) for each in options.ids]:
        session.delete()


def _summary(info: SessionInfo) -> str:
    return f"{info.session}: {info.length} tokens, {len(info.layers)} layers, {_size(info.nbytes)}"


def _codec(codec: Codec) -> str:
    return ", ".join(f"{name} {value}" for name, value in codec.to_mapping().items())


def _size(nbytes: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """How far a file is, on a terminal; nothing is left of it."""
    if not sys.stderr.isatty():
        yield None
        return

    def show(done: int, total: int | None) -> None:
        share = f" of {_size(total)}, {100 * done // total} %" if total else ""
        sys.stderr.write(f"\r{_size(done)}{share}\x1b[K")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

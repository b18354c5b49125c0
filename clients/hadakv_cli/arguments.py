"""Command-line arguments and environment variables of `hadakv`."""

import os
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from hadakv_cli import commands
from hadakv_client import DEFAULT_URL, Client, check_session_id, check_url

_DESCRIPTION = "Manage the sessions of a running hadakv service."


def parse_arguments(arguments: Sequence[str] | None) -> Namespace:
    """Parse the command line. Take a missing URL from HADAKV_URL.

    Args:
        arguments: command-line arguments; None takes them from `sys.argv`.

    Returns:
        `url`; `token_file` and `ca_file` if given; `run`, the function of the command; and the command's arguments.

    Raises:
        SystemExit: the command line or HADAKV_URL is invalid, or the user asked for help.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if "url" not in options:
        try:
            options.url = _url(os.environ.get("HADAKV_URL") or DEFAULT_URL)
        except ArgumentTypeError as error:
            parser.error(f"HADAKV_URL: {error}")
    return options


def open_client(options: Namespace) -> Client:
    """Return a client for the given options and environment variables.

    Raises:
        OSError: the token file or the CA file cannot be read.
        ValueError: the token or the CA file is invalid.
    """
    token = os.environ.get("HADAKV_TOKEN") or None
    if "token_file" in options:
        token = options.token_file.read_text("utf-8").strip()
    ca_file = options.ca_file if "ca_file" in options else os.environ.get("HADAKV_CA_FILE") or None
    return Client(options.url, token=token, ca_file=ca_file)


def _argument_type(check: Callable[[str], str]) -> Callable[[str], str]:
    """Return a type for argparse that reports the message of a ValueError. By itself, argparse drops the message."""

    def convert(text: str) -> str:
        try:
            return check(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error

    return convert


_id = _argument_type(check_session_id)
_url = _argument_type(check_url)


def _file(text: str) -> Path:
    if text == "-":
        raise ArgumentTypeError("pipes are not supported; write ./- for a file named -")
    return Path(text)


def _parser() -> ArgumentParser:
    common = _common_options()
    parser = ArgumentParser("hadakv", description=_DESCRIPTION, parents=[common])
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[Client, Namespace], None], summary: str) -> ArgumentParser:
        added = subparsers.add_parser(name, help=summary, description=f"{summary.capitalize()}.", parents=[common])
        added.set_defaults(run=run)
        return added

    export = add("export", commands.export_session, "write a session to one safetensors file")
    export.add_argument("id", type=_id, metavar="ID", help="session id")
    export.add_argument("file", type=_file, metavar="FILE", help="file to write")
    export.add_argument("--force", action="store_true", help="replace an existing file")
    import_ = add("import", commands.import_session, "create a session from an exported file")
    import_.add_argument("file", type=_file, metavar="FILE", help="file that export wrote")
    import_.add_argument(
        "--id", type=_id, metavar="ID", help="id of the new session; default: id of the exported session"
    )
    list_ = add("list", commands.list_sessions, "list sessions")
    list_.add_argument("prefix", nargs="?", metavar="PREFIX", help="list only sessions whose id starts with it")
    show = add("show", commands.show_session, "show one session")
    show.add_argument("id", type=_id, metavar="ID", help="session id")
    remove = add("rm", commands.delete_sessions, "delete sessions")
    remove.add_argument("ids", type=_id, nargs="+", metavar="ID", help="session id")
    return parser


def _common_options() -> ArgumentParser:
    """Return the options that are valid before and after the command."""
    # Suppress defaults. Otherwise the default of a subparser would replace an option that precedes the command.
    common = ArgumentParser(add_help=False, argument_default=SUPPRESS)
    url_help = f"service URL, or unix:PATH of its socket; default: HADAKV_URL or {DEFAULT_URL}"
    common.add_argument("--url", type=_url, help=url_help)
    token_help = "file that contains only the token; default: the token in HADAKV_TOKEN"
    common.add_argument("--token-file", type=Path, metavar="FILE", help=token_help)
    ca_help = "CA certificates in PEM to trust instead of the default ones, for a private CA; default: HADAKV_CA_FILE"
    common.add_argument("--ca-file", type=Path, metavar="FILE", help=ca_help)
    return common

"""Options that every command with a connection has, before and after the command's name, and the client they make."""

import inspect
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Context, Option

if TYPE_CHECKING:
    from hadakv_client import Client

CONNECTION = "Connection"
_HASH_LINE = re.compile(r"^[A-Za-z0-9_.-]{1,64}:[0-9a-fA-F]{64}(\s|$)", re.MULTILINE)

Url = Annotated[
    str | None,
    Option(
        metavar="URL",
        help="Service URL, or unix:PATH of its socket; default: HADAKV_URL or http://127.0.0.1:8765.",
        rich_help_panel=CONNECTION,
    ),
]
TokenFile = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="File that contains only your token; default: the token in HADAKV_TOKEN.",
        rich_help_panel=CONNECTION,
    ),
]
CaFile = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="CA certificates in PEM to trust instead of the default ones, for a private CA; default: HADAKV_CA_FILE.",
        rich_help_panel=CONNECTION,
    ),
]
Json = Annotated[bool, Option("--json", help="Print one JSON object per line.")]


def complete_session(incomplete: str) -> list[str]:
    """Return session ids that begin with what was typed, for completion in a shell."""
    with suppress(Exception):
        from itertools import islice

        from hadakv_client import Client

        url, token, ca_file = connection({})
        with Client(url, token=token, ca_file=ca_file, timeout=1, retries=0) as client:
            return [info.session for info in islice(client.sessions(incomplete), 100)]
    return []


SessionId = Annotated[str, Argument(metavar="ID", help="Session id.", autocompletion=complete_session)]
SessionIds = Annotated[
    list[str] | None,
    Argument(metavar="[ID]...", help="Session ids; - reads them from stdin.", autocompletion=complete_session),
]
Prefix = Annotated[str | None, Option(metavar="TEXT", help="Sessions whose id begins with this.")]

_COMMON: Mapping[str, Any] = {"url": Url, "token_file": TokenFile, "ca_file": CaFile}


def root_options(context: Context, url: Url = None, token_file: TokenFile = None, ca_file: CaFile = None) -> None:
    """Keep the options that precede the command."""
    context.obj = {**(context.obj or {}), "url": url, "token_file": token_file, "ca_file": ca_file}


def with_client(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command that has the connection options, and passes the client as first argument to the function."""
    own = [parameter for name, parameter in inspect.signature(function).parameters.items() if name != "client"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("context", keyword, annotation=Context)
    added = [inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in _COMMON.items()]

    def command(context: Context, **arguments: Any) -> None:
        after = {name: arguments.pop(name) for name in _COMMON}
        before = context.find_root().obj or {}
        with open_client({name: after[name] or before.get(name) for name in _COMMON}) as client:
            function(client, **arguments)

    parameters = [each.replace(kind=keyword) for each in own]
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature([context, *parameters, *added])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in (context, *parameters, *added)}
    return command


def open_client(options: Mapping[str, Any]) -> "Client":
    """Return a client for the given options and environment variables.

    Args:
        options: `url`, `token_file` and `ca_file`. None means: not given.

    Raises:
        BadParameter: the URL is invalid, or the token file holds hashes or no token.
        OSError: the token file or the CA file cannot be read.
        ValueError: the token or the CA file is invalid.
    """
    from hadakv_client import Client

    url, token, ca_file = connection(options)
    return Client(url, token=token, ca_file=ca_file)


def connection(options: Mapping[str, Any]) -> tuple[str, str | None, str | os.PathLike[str] | None]:
    """Return the URL, the token and the CA file, from options or environment variables."""
    from hadakv_client import DEFAULT_URL, check_url

    source = "--url" if options.get("url") else "HADAKV_URL"
    try:
        url = check_url(options.get("url") or os.environ.get("HADAKV_URL") or DEFAULT_URL)
    except ValueError as error:
        raise BadParameter(f"{source}: {error}", param_hint=None) from error
    token = os.environ.get("HADAKV_TOKEN") or None
    if file := options.get("token_file"):
        token = _read_token(file)
    _check_token(token or "", str(file) if file else "HADAKV_TOKEN")
    return url, token, options.get("ca_file") or os.environ.get("HADAKV_CA_FILE") or None


def _read_token(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text in UTF-8") from None


def _check_token(token: str, source: str) -> None:
    if _HASH_LINE.search(token):
        raise BadParameter(
            f"{source} holds hashes of tokens, as --token-file of the service does; here it must be the token itself, "
            "which 'hadakv token add NAME' printed"
        )
    if not (token.isascii() and token.isprintable()):
        raise BadParameter(
            f"{source} holds no token: it must be one line of ASCII, which 'hadakv token add NAME' printed"
        )

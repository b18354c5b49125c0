"""Tree of commands: names, arguments, options and help of `hadakv`."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

from typer import Context, Exit, Option, Typer

from hadakv_cli import output
from hadakv_cli.options import CaFile, TokenFile, Url, root_options, with_client
from hadakv_cli.serve import run_service
from hadakv_cli.subcommands import files, sessions, tensors, tokens
from hadakv_cli.subcommands.status import show_status

_SERVICE, _SESSIONS = "Service", "Sessions"
_SETTINGS = {"help_option_names": ["-h", "--help"]}


def _examples(*lines: str) -> str:
    """Return the epilog of a help text. Empty lines keep the lines apart."""
    return "\n\n".join(("Examples:", *lines))


app = Typer(
    help="Manage a hadakv service and its sessions.",
    epilog=_examples(
        "hadakv serve --memory-budget 4GiB",
        "hadakv sessions ls --prefix chat-",
        "hadakv export chat-1 chat-1.safetensors",
        "hadakv sessions ls --json | jq -r .session",
    ),
    context_settings=_SETTINGS,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
sessions_app = Typer(help="List, show, copy, cut, save and delete sessions.", no_args_is_help=True)
token_app = Typer(help="Make tokens for the service.", no_args_is_help=True)
app.add_typer(sessions_app, name="sessions", rich_help_panel=_SESSIONS)
app.add_typer(token_app, name="token", rich_help_panel=_SERVICE)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.emit(f"hadakv {version('hadakv')}")
        raise Exit


@app.callback()
def _root(
    context: Context,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    _version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    root_options(context, url, token_file, ca_file)


@app.command(
    rich_help_panel=_SERVICE,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def serve(context: Context) -> None:
    """Run the service. 'hadakv serve --help' shows its options."""
    run_service(context.args)


token_app.command(
    "add", epilog=_examples("hadakv token add alice --file tokens > alice.token", "hadakv serve --token-file tokens")
)(tokens.add_token)


def _add(place: Typer, name: str, function: Callable[..., None], *examples: str, panel: str | None = None) -> None:
    place.command(name, epilog=_examples(*examples), rich_help_panel=panel)(with_client(function))


_add(app, "status", show_status, "hadakv status", "hadakv status --json", panel=_SERVICE)
_add(sessions_app, "ls", sessions.list_sessions, "hadakv sessions ls --prefix chat-", "hadakv sessions ls -q | wc -l")
_add(sessions_app, "show", sessions.show_sessions, "hadakv sessions show chat-1", "hadakv sessions show chat-1 --json")
_add(
    sessions_app,
    "rm",
    sessions.delete_sessions,
    "hadakv sessions rm chat-1 chat-2",
    "hadakv sessions rm --prefix test-",
    "hadakv sessions ls -q --prefix test- | head -5 | hadakv sessions rm -",
)
_add(sessions_app, "fork", sessions.fork_session, "hadakv sessions fork chat-1 chat-2 --length 1000")
_add(sessions_app, "truncate", sessions.truncate_session, "hadakv sessions truncate chat-1 1000")
for _place in (sessions_app, app):
    _panel = _SESSIONS if _place is app else None
    _add(
        _place,
        "export",
        files.export_sessions,
        "hadakv export chat-1 chat-1.safetensors",
        "hadakv export --all backup/",
        "hadakv export chat-1 - | ssh other hadakv import -",
        panel=_panel,
    )
    _add(
        _place,
        "import",
        files.import_sessions,
        "hadakv import chat-1.safetensors --id chat-2",
        "hadakv import backup/*",
        panel=_panel,
    )
_add(
    app,
    "put",
    tensors.put,
    "hadakv put chat-1 prompt.safetensors --bits 4 --position 0",
    "python make.py | hadakv put chat-1 -",
    panel=_SESSIONS,
)
_add(
    app,
    "get",
    tensors.get,
    "hadakv get chat-1 chat-1.npz",
    "hadakv get chat-1 - --start 0 --stop 100 > part.npz",
    panel=_SESSIONS,
)

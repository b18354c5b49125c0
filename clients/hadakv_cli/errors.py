"""Errors of commands: their message, one line on stderr, and their exit status."""

import re
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from hadakv_cli.output import OutputError

SUCCESS, FAILURE, USAGE, NO_RESPONSE, INTERRUPTED = 0, 1, 2, 3, 130

# Names of other programs for commands, and commands of `hadakv sessions`.
_MEANT = {name: f"hadakv sessions {name}" for name in ("ls", "show", "rm", "fork", "truncate")} | {
    "list": "hadakv sessions ls",
    "delete": "hadakv sessions rm",
    "info": "hadakv status",
    "version": "hadakv --version",
    "help": "hadakv --help",
    "start": "hadakv serve",
    "append": "hadakv put",
    "read": "hadakv get",
}

T = TypeVar("T")


def report(error: BaseException) -> int:
    """Print an error on stderr.

    Returns:
        the exit status.

    Raises:
        BaseException: the error itself, if it is a bug and not an expected failure.
    """
    from typer import Abort, TyperException

    if isinstance(error, (KeyboardInterrupt, Abort)):
        message, status = "interrupted", INTERRUPTED
    elif isinstance(error, TyperException):
        message, status = _usage(error), error.exit_code
    else:
        message, status = _failure(error)
    print(f"hadakv: {' '.join(message.split())}", file=sys.stderr)
    return status


def for_each(items: Iterable[T], action: Callable[[T], None]) -> None:
    """Run an action for each item. Go on after one that fails, and print the error.

    Raises:
        Exit: with 1 if an item failed.
        HadakvError: the service did not respond. The action is not tried for further items.
    """
    from typer import Exit

    from hadakv_client import Problem

    failed = False
    for item in items:
        try:
            action(item)
        except (Problem, ValueError, OSError) as error:
            report(error)
            failed = True
    if failed:
        raise Exit(FAILURE)


def _usage(error: Exception) -> str:
    """Return the message of an invalid command line, and the command whose help tells more."""
    from typer import TyperException

    assert isinstance(error, TyperException)
    context = getattr(error, "ctx", None)
    message = error.format_message().removesuffix(".").removeprefix("Invalid value: ")
    if not message and context:
        # The help was printed already.
        message = "a command is missing"
    unknown = re.match(r"No such command '(\w+)'", message)
    if unknown and unknown[1] in _MEANT:
        message = f"{unknown[0]}. Did you mean '{_MEANT[unknown[1]]}'?"
    message = message.replace("is not a valid int range", "is not a whole number")
    return f"{message}; see {context.command_path} --help" if context else message


def _failure(error: BaseException) -> tuple[str, int]:
    if isinstance(error, OutputError):
        return f"standard output: {error.error.strerror}", FAILURE
    from hadakv_client import ConnectionLost, HadakvError, Timeout, Unauthorized

    if not isinstance(error, (HadakvError, OSError, ValueError)):
        raise error
    if isinstance(error, (ConnectionLost, Timeout)):
        return str(error), NO_RESPONSE
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", FAILURE
    if isinstance(error, Unauthorized):
        return f"{error}; set the token with --token-file or HADAKV_TOKEN", FAILURE
    return str(error), FAILURE

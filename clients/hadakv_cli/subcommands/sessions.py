"""Commands for sessions: `ls`, `show`, `rm`, `fork`, `truncate`, and the choice of sessions by id, prefix or all."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option, confirm

from hadakv_cli import output
from hadakv_cli.errors import for_each
from hadakv_cli.options import Json, Prefix, SessionId, SessionIds

if TYPE_CHECKING:
    from hadakv_client import Client, SessionInfo

STDIN = "-"
All = Annotated[bool, Option("--all", help="All sessions.")]
Length = Annotated[int | None, Option(min=0, metavar="NUMBER", help="Number of tokens to take; default: all.")]


def list_sessions(
    client: "Client",
    prefix: Prefix = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print ids only, one per line.")] = False,
    as_json: Json = False,
) -> None:
    """List sessions: tokens, size, where they are (memory, disk), durability and last use."""
    sessions = client.sessions(prefix)
    if not (as_json or quiet):
        output.print_sessions(sessions)
        return
    for info in sessions:
        if as_json:
            output.print_json(output.session_document(info))
        else:
            output.emit(info.session)


def show_sessions(client: "Client", ids: SessionIds = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """Show everything about sessions."""
    first = True

    def show(session_id: str) -> None:
        nonlocal first
        info = client.session(session_id).info()
        if as_json:
            output.print_json(output.session_document(info))
            return
        if not first:
            output.emit("")
        first = False
        output.print_fields(output.describe(info))

    for_each(chosen(client, ids, prefix), show)


def delete_sessions(
    client: "Client",
    ids: SessionIds = None,
    prefix: Prefix = None,
    all_: All = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask before --all.")] = False,
    as_json: Json = False,
) -> None:
    """Delete sessions. Goes on after one that does not exist."""
    sessions = list(chosen(client, ids, prefix, all_))
    if all_ and sessions and not yes:
        if not sys.stdin.isatty():
            raise BadParameter("--all deletes every session; add --yes")
        confirm(f"Delete {_counted(len(sessions))}?", abort=True, err=True)

    def delete(session_id: str) -> None:
        client.session(session_id).delete()
        if as_json:
            output.print_json({"session": session_id, "deleted": True})

    for_each(sessions, delete)
    if not (ids or as_json):
        output.emit(f"deleted {_counted(len(sessions))}")


def _counted(count: int) -> str:
    return f"{count} session" if count == 1 else f"{count} sessions"


def fork_session(
    client: "Client",
    session_id: SessionId,
    new: Annotated[str, Argument(metavar="NEW", help="Id of the new session.")],
    length: Length = None,
    as_json: Json = False,
) -> None:
    """Create a session with the tokens of another. Both share storage, but not later changes."""
    _print(client.session(checked_id(session_id)).fork(checked_id(new), length).info(), as_json)


def truncate_session(
    client: "Client",
    session_id: SessionId,
    length: Annotated[int, Argument(min=0, metavar="LENGTH", help="Number of tokens to keep.")],
    as_json: Json = False,
) -> None:
    """Delete the tokens of a session from a position on."""
    _print(client.session(checked_id(session_id)).truncate(length), as_json)


def _print(info: "SessionInfo", as_json: bool) -> None:
    if as_json:
        output.print_json(output.session_document(info))
    else:
        output.emit(output.summarize(info))


def chosen(client: "Client", ids: Sequence[str] | None, prefix: str | None = None, all_: bool = False) -> Iterator[str]:
    """Return the ids of the chosen sessions. All ids are checked first.

    Args:
        client: client that lists sessions.
        ids: ids; `-` stands for those on stdin, one per line.
        prefix: choose the sessions whose id begins with this instead.
        all_: choose every session instead.

    Raises:
        BadParameter: not exactly one of the three is given, or an id is not valid.
    """
    if (bool(ids), prefix is not None, all_).count(True) != 1:
        raise BadParameter("give session ids, --prefix or --all")
    if prefix == "":
        raise BadParameter("--prefix is empty; use --all for all sessions")
    if ids:
        return iter([checked_id(each) for given in ids for each in _from_stdin(given)])
    # List them first: the list changes while sessions are deleted or used.
    return iter([info.session for info in client.sessions(prefix)])


def _from_stdin(given: str) -> list[str]:
    return [given] if given != STDIN else [line.strip() for line in sys.stdin if line.strip()]


def checked_id(session_id: str) -> str:
    """Return a session id.

    Raises:
        BadParameter: it is not valid.
    """
    from hadakv_client import check_session_id

    try:
        return check_session_id(session_id)
    except ValueError as error:
        raise BadParameter(str(error)) from error

"""Commands of `hadakv`. Each takes the client and the parsed arguments."""

import sys
from argparse import Namespace
from errno import EEXIST

from hadakv_cli.output import describe, format_size, show_progress, summarize, table_rows
from hadakv_client import Client, SessionNotFound


def export_session(client: Client, options: Namespace) -> None:
    """Write a session to a file, and print the size of the file."""
    session, path = client.session(options.id), options.file
    if path.exists() and not options.force:
        raise FileExistsError(EEXIST, "already exists; use --force to replace it", str(path))
    with show_progress() as progress:
        session.export(path, progress)
    print(f"{path}: {format_size(path.stat().st_size)}")


def import_session(client: Client, options: Namespace) -> None:
    """Create a session from a file, and print a summary."""
    with show_progress() as progress:
        session = client.import_session(options.file, options.id, progress)
    print(summarize(session.info()))


def list_sessions(client: Client, options: Namespace) -> None:
    """Print a table of sessions."""
    for row in table_rows(client.sessions(options.prefix)):
        print(row)


def show_session(client: Client, options: Namespace) -> None:
    """Print the description of a session."""
    for name, value in describe(client.session(options.id).info()).items():
        print(f"{name:<10}  {value}")


def delete_sessions(client: Client, options: Namespace) -> None:
    """Delete sessions. Go on after one that does not exist.

    Raises:
        SessionNotFound: the last of the sessions that do not exist. Each one before it is printed on stderr.
    """
    missing: SessionNotFound | None = None
    for session in [client.session(each) for each in options.ids]:
        try:
            session.delete()
        except SessionNotFound as error:
            if missing:
                print(f"hadakv: {missing}", file=sys.stderr)
            missing = error
    if missing:
        raise missing

"""Entry point of `hadakv`: runs one command, and turns errors into messages and exit statuses.

Exit statuses:
    0: success.
    1: the service rejected the request, or a file or an argument cannot be used. With several sessions or files: at
        least one of them failed.
    2: the command line or an environment variable is invalid.
    3: the service did not respond.
    130: interrupted.
    129, 143: ended by SIGHUP, SIGTERM. As after an interrupt, no temporary file is left.

An error is one line on stderr.
"""

import errno
import os
import signal
import sys
from collections.abc import Sequence

from hadakv_cli import output
from hadakv_cli.errors import FAILURE, INTERRUPTED, SUCCESS, report
from hadakv_cli.serve import run_service


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: command-line arguments; None takes them from `sys.argv`.

    Returns:
        the exit status.
    """
    _open_closed_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["serve"]:
        # The service has its own parser. It starts without the modules of the other commands.
        run_service(given[1:])
    try:
        status = _run_command(given)
        output.flush()
    except output.OutputError as failed:
        # Python flushes stdout again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # Programs such as head close the pipe when they have seen enough.
        return FAILURE if failed.error.errno == errno.EPIPE else report(failed)
    except KeyboardInterrupt as error:
        return report(error)
    return status


def _open_closed_streams() -> None:
    """Open standard streams that are closed, in the order of their file descriptors, so that no other file gets theirs.

    Reads of stdin and writes to stdout then fail with an error. Messages on stderr are dropped.
    """
    for name, access, mode in (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, access), mode))


def _run_command(arguments: list[str]) -> int:
    # If rich is installed, httpx imports a command line of its own, which takes 0.04 s. Make that import fail.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    from hadakv_cli.app import app

    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        status = app(args=arguments, prog_name="hadakv", standalone_mode=False)
    except output.OutputError:
        raise
    except Exception as error:
        return report(error)
    return report(KeyboardInterrupt()) if status == INTERRUPTED else status or SUCCESS


def _end(number: int, _: object) -> None:
    """End the program as an error does, so that temporary files are removed."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

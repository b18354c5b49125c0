"""Entry point of `hadakv`: runs one command, and turns errors into messages and exit statuses.

Exit statuses:
    0: success.
    1: the service rejected the request, or a file or an argument cannot be used. With several sessions or files: at
        least one of them failed.
    2: the command line or an environment variable is invalid.
    3: the service did not respond.
    130: interrupted.

An error is one line on stderr.
"""

import errno
import os
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


def _run_command(arguments: list[str]) -> int:
    # If rich is installed, httpx imports a command line of its own, which takes 0.04 s. Make that import fail.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    from hadakv_cli.app import app

    try:
        status = app(args=arguments, prog_name="hadakv", standalone_mode=False)
    except output.OutputError:
        raise
    except Exception as error:
        return report(error)
    return report(KeyboardInterrupt()) if status == INTERRUPTED else status or SUCCESS


if __name__ == "__main__":
    sys.exit(main())

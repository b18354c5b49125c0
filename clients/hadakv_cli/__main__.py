"""Entry point of `hadakv`: runs one command, and turns errors into messages and exit statuses.

Exit statuses:
    0: success.
    1: the service rejected the request, or a file or an argument cannot be used.
    2: the command line or HADAKV_URL is invalid. The usage is printed before the error.
    3: the service did not respond.
    130: interrupted.

An error is one line on stderr.
"""

import os
import sys
from collections.abc import Sequence

from hadakv_cli.arguments import open_client, parse_arguments
from hadakv_client import ConnectionLost, HadakvError, Timeout, Unauthorized

SUCCESS, FAILURE, NO_RESPONSE, INTERRUPTED = 0, 1, 3, 130
_STATUSES: dict[type[BaseException], int] = {
    ConnectionLost: NO_RESPONSE,
    Timeout: NO_RESPONSE,
    KeyboardInterrupt: INTERRUPTED,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: command-line arguments; None takes them from `sys.argv`.

    Returns:
        the exit status.
    """
    options = parse_arguments(arguments)
    try:
        with open_client(options) as client:
            options.run(client, options)
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout has closed the pipe. Redirect stdout, because Python flushes it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (HadakvError, OSError, ValueError, KeyboardInterrupt) as error:
        print(f"hadakv: {' '.join(_message(error).split())}", file=sys.stderr)
        return _STATUSES.get(type(error), FAILURE)
    return SUCCESS


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, Unauthorized):
        return f"{error}; set the token with --token-file or HADAKV_TOKEN"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())

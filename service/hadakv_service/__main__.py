"""Run the service: `python -m hadakv_service --help`. `hadakv-service` and `hadakv serve` run this, too."""

import os
import sys

from hadakv_service.server.hangup import HangUp, end_at_once_on_signals

MISSING_EXTRA = "hadakv: the service needs its extra: pip install 'hadakv[server]'"


def main() -> None:
    """Read the settings, then import the service and run it until a signal arrives.

    Raises:
        SystemExit: with 2 if a setting is invalid, with 1 if the service cannot start or its extra is missing.
    """
    _open_closed_streams()
    end_at_once_on_signals()
    # A closed terminal counts from here on.
    hang_up = HangUp()
    try:
        # Settings come first. Their errors are then printed before anything heavy is imported.
        from hadakv_service.startup.arguments import settings_or_exit

        settings = settings_or_exit()
        from hadakv_service.startup.serve import serve
    except ModuleNotFoundError as error:
        if (error.name or "hadakv").startswith("hadakv"):
            raise
        sys.exit(MISSING_EXTRA)
    serve(settings, hang_up)


def _open_closed_streams() -> None:
    """Open standard streams that are closed, so that no file or socket gets their descriptors and their output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


if __name__ == "__main__":
    main()

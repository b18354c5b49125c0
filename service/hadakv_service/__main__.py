"""Run the service: `python -m hadakv_service --help`. `hadakv-service` and `hadakv serve` run this, too."""

import sys

from hadakv_service.server.hangup import HangUp, end_at_once_on_signals

MISSING_EXTRA = "hadakv: the service needs its extra: pip install 'hadakv[server]'"


def main() -> None:
    """Read the settings, then import the service and run it until a signal arrives.

    Raises:
        SystemExit: with 2 if a setting is invalid, with 1 if the service cannot start or its extra is missing.
    """
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


if __name__ == "__main__":
    main()

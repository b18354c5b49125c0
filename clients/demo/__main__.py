"""Entry point of `make demo`. It reads the arguments before it imports anything that takes time."""

import argparse
import signal
import sys


def main() -> int:
    """Run the demo, and return the exit status: 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="make demo",
        description="Start a service on a free port, send it the keys and values of a small trained model with each "
        "codec, read them back, and print size, error and time.",
        epilog="The exit status is 1 if any result differs from the reference codec in a single bit.",
    )
    parser.parse_args()
    try:
        import demo

        return demo.main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())

"""``cognate`` and ``python -m cognate``."""

import signal


def main() -> None:
    """Run the command line."""
    # Until it is imported, which takes a moment, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cognate import cli

    cli.main()


if __name__ == "__main__":
    main()

"""`producer`, and `python -m producer`."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    try:
        # Here, since it takes a while, and whoever presses Ctrl-C then wants no traceback either.
        from producer import cli  # noqa: PLC0415
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    cli.main()


if __name__ == "__main__":
    main()

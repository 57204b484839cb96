"""`sidestep`, and `python -m experiments`: the command line with every experiment."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Hand the experiments to the lab's command line, which must not import them itself."""
    try:
        # Here, since they take half a second, and whoever presses Ctrl-C then wants no traceback either.
        from experiments.catalogue import EXPERIMENTS, GROUPS, TOUR  # noqa: PLC0415
        from lab import cli  # noqa: PLC0415
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    cli.main(EXPERIMENTS, tour=TOUR, groups=GROUPS)


if __name__ == "__main__":
    main()

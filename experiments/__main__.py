"""`sidestep`, and `python -m experiments`: the command line with every experiment."""

from experiments import EXPERIMENTS, GROUPS, TOUR
from lab import cli


def main() -> None:
    """Hand the experiments to the lab's command line, which must not import them itself."""
    cli.main(EXPERIMENTS, tour=TOUR, groups=GROUPS)


if __name__ == "__main__":
    main()

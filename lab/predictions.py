"""What theory says that a setup does, to be drawn beside what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lab.axes import handovers, hogs, machines, outside_share, slots, switch_interval_ms
from lab.model import Setup


def convoy_s(setup: Setup) -> float:
    """After each of its waits the job gets the GIL back one switch interval later, for each thread that computes.

    Python's "new GIL" (CPython 3.2, ceval_gil.c): whoever waits asks for the lock after `sys.getswitchinterval()`, and
    the holder lets go at its next check. With one computing thread that is one interval, typically: a short wait for it
    may also be won at once. With more it is no bound either way: the GIL is no queue, and whoever wakes first takes it,
    so others may come first more often than once each.
    """
    ms = setup.args.get("ms")
    wait_ms = float(ms) if isinstance(ms, int | float) else 0.0
    return handovers(setup) * (wait_ms + hogs(setup) * switch_interval_ms(setup)) / 1e3


def amdahl(setup: Setup) -> float:
    """Speed-up of one job's work when the share outside the GIL is spread over the slots: 1 / ((1-p) + p/N)."""
    p = outside_share(setup)
    return 1 / ((1 - p) + p / slots(setup))


def gil_bound(setup: Setup) -> float:
    """Speed-up of many independent jobs: while one holds the GIL others compute outside. min(N, 1 / (1-p))."""
    inside = 1 - outside_share(setup)
    return min(slots(setup), 1 / inside) if inside > 0 else slots(setup)


def linear(setup: Setup) -> float:
    """Speed-up over one machine when nothing is shared: N."""
    return machines(setup)


PREDICTIONS: Mapping[str, Callable[[Setup], float]] = {
    prediction.__name__: prediction for prediction in (convoy_s, amdahl, gil_bound, linear)
}

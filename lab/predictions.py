"""What theory says that a setup does, to be drawn beside what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lab.axes import handovers, hogs, outside_share, slots, switch_interval_ms
from lab.model import Setup


def convoy_s(setup: Setup) -> float:
    """Each time the job wants the GIL back from a computing thread, it waits one switch interval.

    Python's "new GIL" (CPython 3.2, ceval_gil.c): whoever waits asks for the lock after `sys.getswitchinterval()`, and
    the holder lets go at its next check. With one other thread that wants it nobody else can come between.
    """
    return handovers(setup) * switch_interval_ms(setup) / 1e3 if hogs(setup) else 0.0


def amdahl(setup: Setup) -> float:
    """Speed-up of one job's work when the share outside the GIL is spread over the slots: 1 / ((1-p) + p/N)."""
    p = outside_share(setup)
    return 1 / ((1 - p) + p / slots(setup))


def gil_bound(setup: Setup) -> float:
    """Speed-up of many independent jobs: while one holds the GIL others compute outside. min(N, 1 / (1-p))."""
    inside = 1 - outside_share(setup)
    return min(slots(setup), 1 / inside) if inside > 0 else slots(setup)


PREDICTIONS: Mapping[str, Callable[[Setup], float]] = {
    prediction.__name__: prediction for prediction in (convoy_s, amdahl, gil_bound)
}

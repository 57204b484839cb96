"""What theory says that a setup does, to be drawn beside what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lab.axes import handovers, has_room, hogs, machines, number_of, outside_share, slots, switch_interval_ms
from lab.model import Setup
from lab.usl import LOADS, fit


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


def usl(measured: Sequence[tuple[Setup, float]], cores: int) -> Mapping[float, float]:
    """The Universal Scalability Law's best curve through these throughputs, by number, within the cores alone.

    Nothing where too few loads have room: beyond the cores the law would take a wait for a core for contention.
    """
    points = {number_of(setup): hz for setup, hz in measured if has_room(setup, cores=cores) and hz > 0}
    if len(points) < LOADS:
        return {}
    curve = fit(points)
    return {float(n): curve.throughput_hz(n) for n in sorted(points)}


FITTED: Mapping[str, Callable[[Sequence[tuple[Setup, float]], int], Mapping[float, float]]] = {"usl": usl}
"""What theory says once its coefficients are fitted to what was measured, in the cores that there are."""
PREDICTIONS: Mapping[str, Callable[[Setup], float]] = {
    prediction.__name__: prediction for prediction in (convoy_s, amdahl, gil_bound, linear)
}

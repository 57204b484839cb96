"""How much work is 10 ms here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tasks.registry import JOBS

TRY_S = 0.02  # long enough that the clock's own cost and a timer tick do not matter
TRIES = 9


def units_per_ms(name: str, *, clock: Callable[[], int] = time.thread_time_ns) -> float:
    """How many units of `name` (the argument it scales with) one thread does in a millisecond of CPU time.

    The fastest of several tries: interference only ever makes code slower. Raises KeyError for an unknown job and
    ValueError for one that does not scale.
    """
    job = JOBS[name]
    if job.scales_with is None:
        raise ValueError(f"job {name!r} has no argument that makes it longer")
    extra = {"io_ms": 0} if name == "mixed" else {}
    units, best = 1, 0.0
    while best == 0.0:
        begun = clock()
        job.run(**{job.scales_with: units}, **extra)
        if clock() - begun >= TRY_S * 1e9 / 4:
            for _ in range(TRIES):
                begun = clock()
                job.run(**{job.scales_with: units}, **extra)
                best = max(best, units / ((clock() - begun) / 1e6))
        else:
            units *= 2
    return best


if __name__ == "__main__":
    import tasks.jobs  # noqa: F401  registers every job

    print(units_per_ms(sys.argv[1]))

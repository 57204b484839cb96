"""Why n slots are not n times as fast: the speed-up taken apart, exactly.

A run's slots offer  slots * wall  seconds; jobs are under way for  sum(service) = busy * slots * wall  of them. With
jobs = sum(service) / mean(service), the rate  jobs / wall  is  slots * busy / mean(service). Divided by the same with
one slot:

    speed-up = slots ratio * (busy_c / busy_1) * (service_1 / service_c)

It holds in every repeat, and for geometric means over repeats, because logarithms add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab.model import Estimate, Run, Seconds
from lab.report.groups import Group, single
from lab.stats import mean_of_logs


@dataclass(frozen=True, slots=True)
class Speedup:
    """One setup against the same with one slot; every factor over the repeats that have both."""

    label: str
    against: str
    total: Estimate
    slots: float
    busy: Estimate
    service: Estimate


def own_wall_s(run: Run) -> float:
    """How long the setup's own jobs took together: the run's length, unless others ran beside them."""
    own = run.samples.own
    if run.trial.setup.beside is None or not len(own):
        return run.resources.wall_s
    return float(own.ended_ns.max() - own.due_ns.min()) / 1e9


def busy_share(run: Run) -> float:
    """The share of the slots' time during which one of the setup's own jobs was under way."""
    return float(np.sum(run.samples.own.service_s)) / (run.trial.setup.slots * own_wall_s(run))


def service_s(run: Run) -> float:
    """Mean time from started to ended of the setup's own jobs; not a number where nothing was seen."""
    return _mean(run.samples.own.service_s)


def stalled_s(run: Run) -> float:
    """Mean part of the service time that was not on the CPU."""
    return _mean(run.samples.own.stalled_s)


def _mean(values: Seconds) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def computing_s(run: Run) -> float:
    """The rest of the service time, so that the two add up to it."""
    return service_s(run) - stalled_s(run)


def seen_hz(run: Run) -> float:
    """The setup's own jobs with a sample, per second."""
    return len(run.samples.own) / own_wall_s(run)


def speedups(groups: Sequence[Group]) -> list[Speedup]:
    """Each setup of several slots for which one slot was measured too."""
    found = []
    for group in groups:
        base = single(group, groups)
        speedup = against(group, base) if base else None
        if speedup:
            found.append(speedup)
    return found


def against(group: Group, base: Group) -> Speedup | None:
    """The speed-up over `base` inside each repeat that has both; None where there is none."""
    ones = {run.trial.repeat: run for run in base.runs if service_s(run) > 0}
    pairs = [(run, ones[run.trial.repeat]) for run in group.runs if run.trial.repeat in ones and service_s(run) > 0]
    total = mean_of_logs([seen_hz(many) / seen_hz(one) for many, one in pairs])
    busy = mean_of_logs([busy_share(many) / busy_share(one) for many, one in pairs])
    service = mean_of_logs([service_s(one) / service_s(many) for many, one in pairs])
    if total is None or busy is None or service is None:
        return None
    return Speedup(group.label, base.label, total, group.setup.slots / base.setup.slots, busy, service)

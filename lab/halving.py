"""Finds a break-even by bisection: which job length comes next, from what is measured so far. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

from lab.axes import at_work_ms, work_ms
from lab.model import BreakEven, Experiment, Run, Setup, Trial
from lab.plan import expected_s
from lab.stats import bracket, selects

NARROW = 1.1
"""A gap whose ends differ by less is not halved again: repeats differ by more."""
DIGITS = 3
"""Of a length that is chosen: more would only be in the way."""


def halved(
    experiment: Experiment, trials: Sequence[Trial], runs: Sequence[Run], step: int, *, seed: int
) -> list[Trial]:
    """The trials of a step of the bisection (0 is the first): one more job length for each break-even, every repeat.

    `trials` are the planned ones, `runs` all runs of the experiment. The length is the middle, on a scale of
    logarithms, of the gap in which the break-even lies by the planned lengths and those of the steps before. None where
    there is no such gap, or where it is narrow.
    """
    setups = list(dict.fromkeys(trial.setup for trial in trials))
    known, new = set(setups), list[Setup]()
    for _ in range(step + 1):
        known.update(new)
        new = _next(experiment, setups, [run for run in runs if run.trial.setup in known], known)
    rng = random.Random(f"{seed} {experiment.name} {step}")
    found: list[Trial] = []
    for repeat in sorted({trial.repeat for trial in trials}):
        rng.shuffle(new)
        found += [Trial(experiment.name, setup, repeat) for setup in new]
    return found


def _next(experiment: Experiment, setups: Sequence[Setup], runs: Sequence[Run], known: set[Setup]) -> list[Setup]:
    found: dict[Setup, None] = {}
    for claim in experiment.claims:
        if not isinstance(claim.measure, BreakEven) or not (gap := bracket(claim.measure, runs)):
            continue
        if gap[1] / gap[0] > NARROW:
            for side in (claim.measure.of, claim.measure.to):
                like = nearest([setup for setup in setups if selects(side, setup)], gap[1])
                found[at_work_ms(like, middle(*gap))] = None
    return [setup for setup in found if setup not in known]


def nearest(setups: Sequence[Setup], ms: float) -> Setup:
    """The setup whose jobs are closest to this length: one of its size of load has about as many."""
    return min(setups, key=lambda setup: abs(math.log(work_ms(setup) / ms)))


def middle(low: float, high: float) -> float:
    """Half way between two lengths on a scale of logarithms."""
    return float(f"{math.sqrt(low * high):.{DIGITS}g}")


def expected_halving_s(experiment: Experiment, trials: Sequence[Trial], *, cores: int) -> float:
    """About how long a step takes: two trials of middling length for every break-even and repeat."""
    total_s = 0.0
    for claim in experiment.claims:
        if isinstance(claim.measure, BreakEven):
            for side in (claim.measure.of, claim.measure.to):
                some = sorted((t for t in trials if selects(side, t.setup)), key=lambda trial: work_ms(trial.setup))
                repeats = len({trial.repeat for trial in some})
                if some:
                    total_s += repeats * expected_s(some[len(some) // 2], cores=cores)
    return total_s


def is_halved(setup: Setup, declared: Collection[Setup]) -> bool:
    """Whether the setup is one of those declared but for the length of its jobs."""
    return any(_but_for_length(setup) == _but_for_length(other) for other in declared)


def _but_for_length(setup: Setup) -> Setup:
    return at_work_ms(setup, 1.0) if work_ms(setup) else setup

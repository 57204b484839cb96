"""What each knob of a worker was worth in a suite, as ratios inside its repeats. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab.model import Estimate, Ratio, Run, Selector, Suite
from lab.stats import estimate, uses
from tasks.knobs import KNOBS, PRESETS

EXPERIMENT = "presets"
"""The experiment that turns them."""
BASE_POOL = "prefork"
"""The pool with which every knob is tried."""
Knobs = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """How many times as many jobs a second a worker did as another, and how much CPU each of them took."""

    rate: Estimate | None
    """None where it was not measured."""
    cpu: Estimate | None
    doubtful: str = ""
    """Why one of the runs is not to be trusted."""

    @property
    def word(self) -> str:
        """What may be said of the rate: nothing is faster unless its whole interval is."""
        if self.rate is None:
            return "not measured"
        if self.rate.n < 2:
            return "one repeat: no interval"
        if self.doubtful:
            return "invalid"
        if self.rate.low > 1:
            return "faster"
        return "slower" if self.rate.high < 1 else "no difference seen"


def share(runs: Iterable[Run], knobs: Knobs, against: Knobs = (), *, pool: str = BASE_POOL) -> Share:
    """What these knobs are worth to a worker of the pool that has those others turned."""
    usual: Selector = {"pool": pool, "packages": ()}
    return _share(runs, {**usual, "knobs": knobs}, {**usual, "knobs": against})


def _share(runs: Iterable[Run], of: Selector, to: Selector) -> Share:
    rate, cpu = Ratio("throughput_hz", of=of, to=to), Ratio("worker_cpu_s_per_job", of=of, to=to)
    used = [run for run in runs if uses(rate, run)]
    doubts = [fault.says for run in used for fault in run.faults]
    return Share(estimate(rate, used), estimate(cpu, used), doubts[0] if doubts else "")


def chosen_elsewhere(runs: Sequence[Run]) -> dict[str, Share]:
    """What is chosen beside knobs, against the base pool as Celery starts it: another pool, another package."""
    stock: Selector = {"pool": BASE_POOL, "packages": (), "knobs": ()}
    setups = dict.fromkeys((run.trial.setup.pool, run.trial.setup.packages, run.trial.setup.label) for run in runs)
    return {
        ", ".join((label, *packages)): _share(runs, {"pool": pool, "packages": packages, "knobs": ()}, stock)
        for pool, packages, label in setups
        if (pool, packages) != (BASE_POOL, ())
    }


def alone(runs: Sequence[Run]) -> dict[str, Share]:
    """Each knob by itself, at a worker that is else as Celery starts it."""
    return {name: share(runs, (name,)) for name in KNOBS}


def of_presets(runs: Sequence[Run], *, pool: str = BASE_POOL) -> dict[str, Share]:
    """Each preset, but for the one that turns nothing."""
    return {preset.name: share(runs, preset.knobs, pool=pool) for preset in PRESETS.values() if preset.knobs}


def left_out(runs: Sequence[Run], preset: str) -> dict[str, Share]:
    """What each knob adds to the rest of its preset: the whole against the whole without it."""
    knobs = PRESETS[preset].knobs
    return {name: share(runs, knobs, tuple(one for one in knobs if one != name)) for name in knobs}


def measured(suite: Suite) -> tuple[Run, ...]:
    """The runs that turned knobs."""
    return suite.only(EXPERIMENT).runs

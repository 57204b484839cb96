"""The runs of one setup, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lab.axes import handovers, hogs, outside_share, size_bytes, work_ms, work_ms_of
from lab.model import Estimate, Load, Run, Samples, Seconds, Setup
from lab.report.loads import load, work
from lab.stats import drain_hz, mean_of_logs, throughput_hz

Measure = Callable[[Run], float]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One setup with all its repeats, under a name that no other setup of the experiment has."""

    label: str
    setup: Setup
    runs: tuple[Run, ...]
    """In order of their repeats, never empty."""

    @property
    def jobs(self) -> int:
        """How many samples of the setup's own jobs all repeats have together."""
        return sum(len(run.samples.own) for run in self.runs)

    def pooled(self, column: Callable[[Samples], Seconds]) -> Seconds:
        """One array of all repeats' own jobs: percentiles come from these, never from averaged percentiles."""
        return np.concatenate([column(run.samples.own) for run in self.runs])

    def values(self, measure: Measure) -> list[float]:
        """The measure in every repeat that has it."""
        return [value for run in self.runs if math.isfinite(value := measure(run))]

    def estimate(self, measure: Measure) -> Estimate | None:
        """Geometric mean over repeats with its interval; None where a repeat is 0 or less, which has no logarithm."""
        values = self.values(measure)
        return mean_of_logs(values) if all(value > 0 for value in values) else None


def rate_hz(run: Run) -> float:
    """Jobs per second, by the clock that this setup is timed with."""
    return drain_hz(run) if run.trial.setup.watch_broker else throughput_hz(run)


def groups(runs: Iterable[Run]) -> tuple[Group, ...]:
    """The runs by setup: through the queue first, then by pool and slots."""
    by_setup: dict[str, list[Run]] = {}
    for run in runs:
        # By what it says, not by hash: a setup may hold arguments that have none.
        by_setup.setdefault(repr(run.trial.setup), []).append(run)
    found = sorted(by_setup.items(), key=lambda item: (_rank(item[1][0].trial.setup), item[0]))
    ordered = [tuple(sorted(same, key=lambda run: run.trial.repeat)) for _, same in found]
    return tuple(Group(label, same[0].trial.setup, same) for label, same in zip(_labels(ordered), ordered, strict=True))


POOL_ORDER = ("solo", "prefork", "threads", "eventlet", "gevent", "serial", "processes", "interpreters")


def _rank(setup: Setup) -> tuple[object, ...]:
    pool = POOL_ORDER.index(setup.pool) if setup.pool in POOL_ORDER else len(POOL_ORDER)
    # Bare setups in the order serial, threads, processes: the plain loop is what the others are compared with.
    return (
        not setup.queued,
        setup.job,
        not setup.queued and setup.pool != "serial",
        pool,
        setup.pool,
        setup.slots,
        *(axis(setup) for axis in (work_ms, outside_share, size_bytes, handovers, hogs)),
    )


def _python(run: Run) -> str:
    # By version, never by path: a path may hold a user's name, and reports are shown around.
    return f"Python {run.resources.python}" if run.trial.setup.python else "this Python"


def _or_usual(name: str, value: object) -> str:
    return f"usual {name}" if value is None else f"{name} {value}"


def _switch_interval(seconds: float | None) -> str:
    return "usual switch interval" if seconds is None else f"switch interval {seconds * 1e3:g} ms"


def _beside(other: Load | None) -> str:
    # Shorter than in a sentence: a label stands in many places.
    if other is None:
        return "nothing beside"
    ms = work_ms_of(other.args)
    return f"beside {other.pacer.count} {other.job}" + (f" of {ms:g} ms" if ms else "")


EXTRAS: Mapping[str, Callable[[Run], str]] = {
    "job": lambda run: run.trial.setup.job,
    "marks": lambda run: "marks on" if run.trial.setup.marks else "marks off",
    "nodes": lambda run: f"{run.trial.setup.nodes} nodes",
    "preset": lambda run: f"preset {run.trial.setup.preset}",
    "prefetch": lambda run: _or_usual("prefetch", run.trial.setup.prefetch),
    "acks_late": lambda run: _or_usual("acks_late", run.trial.setup.acks_late),
    "disable_prefetch": lambda run: "no prefetch" if run.trial.setup.disable_prefetch else "may prefetch",
    "switch_interval_s": lambda run: _switch_interval(run.trial.setup.switch_interval_s),
    "python": _python,
    "pacer": lambda run: load(run.trial.setup.pacer),
    "args": lambda run: work(run.trial.setup.args),
    "packages": lambda run: ", ".join(run.trial.setup.packages) or "the usual packages",
    "beside": lambda run: _beside(run.trial.setup.beside),
    "watch_broker": lambda run: "broker watched" if run.trial.setup.watch_broker else "broker not watched",
}
"""What may be added to a label, in this order, until no two setups share one."""


def _labels(same: Sequence[tuple[Run, ...]]) -> list[str]:
    firsts = [runs[0] for runs in same]
    labels = [run.trial.setup.label for run in firsts]
    for words in EXTRAS.values():
        extra = [words(run) for run in firsts]
        told_apart = {label: {e for other, e in zip(labels, extra, strict=True) if other == label} for label in labels}
        if any(len(different) > 1 for different in told_apart.values()):
            labels = [f"{label} · {e}" for label, e in zip(labels, extra, strict=True)]
    return [label if labels.count(label) == 1 else f"{label} · {i + 1}" for i, label in enumerate(labels)]


def single(group: Group, among: Sequence[Group]) -> Group | None:
    """The same setup with one slot, or None: what its speed-up is counted from."""
    if group.setup.slots == 1:
        return None
    wanted = replace(group.setup, concurrency=1, nodes=1)
    return next((other for other in among if other.setup == wanted), None)

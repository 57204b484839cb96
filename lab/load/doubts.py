"""Reasons to distrust a run's numbers, each with its remedy; and what a reader should know besides. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lab.load.model import Outcome, Tick, Watch, WorkerOutcome
from lab.model import Fault

MAX_LAG_SHARE = 0.10
"""Of a kind's latency at the same percentile; beyond it the generator is part of the result. As `lab.checks` has it."""
FIGURES = (("p50", 0.5), ("p99", 0.99))
"""Where the lag is held against the latency."""
MIN_SENT_SHARE = 0.99
CLOCK_REMEDY = 'let NTP or chrony keep both clocks, or watch results, which need this clock alone (observe = "results")'
REMEDY = "lower the rate, add producers (producers = N), or give them cores of their own"


class _Lag(NamedTuple):
    """The generator's lag, and the latency of a kind of job, at the same percentile."""

    kind: str
    figure: str
    lag_s: float
    latency_s: float

    @property
    def is_small_part(self) -> bool:
        """Whether the lag is no large part of the latency; where no job ended, nothing excuses it."""
        return self.lag_s <= MAX_LAG_SHARE * self.latency_s


def _lags(outcome: Outcome) -> list[_Lag]:
    """Of jobs that no user waited to send. Like with like: what makes 1 % of the jobs late cannot move the median."""
    if all(stage.is_closed for stage in outcome.scenario.stages):
        return []
    lag = outcome.lag_open if outcome.scenario.is_closed else outcome.lag
    if not len(lag):
        return []
    # All kinds wait for one generator, but a slow kind excuses nothing that befalls a quick one.
    return [
        _Lag(name, figure, lag.quantile_s(q), kind.spans.latency.quantile_s(q))
        for name, kind in outcome.kinds.items()
        if kind.issued_measured
        for figure, q in FIGURES
    ]


def late_generator(outcome: Outcome) -> Iterator[str]:
    """The generator kept its schedule."""
    limit_s = outcome.scenario.max_lag_s
    late = [one for one in _lags(outcome) if one.lag_s > limit_s and not one.is_small_part]
    if late:
        # The kind that it is the largest part of; of two such, the first.
        worst = max(late, key=lambda one: one.lag_s / one.latency_s if one.latency_s > 0 else math.inf)
        took = "none of them ended" if math.isnan(worst.latency_s) else f"they took {worst.latency_s * 1e3:.4g} ms"
        yield (
            f"the generator was {worst.lag_s * 1e3:.1f} ms late at {worst.figure}, and of {worst.kind!r} {took} there "
            f"(at most {limit_s * 1e3:g} ms, or a tenth of it, is allowed): {REMEDY}"
        )


def short_generator(outcome: Outcome) -> Iterator[str]:
    """Within the measured window it sent what was due."""
    share = _sent_share(outcome)
    if share < MIN_SENT_SHARE:
        yield (
            f"the generator sent {share * outcome.offered_hz:.4g} jobs/s of the {outcome.offered_hz:.4g} that were due "
            f"within the measured window: {REMEDY}"
        )


def _sent_share(outcome: Outcome) -> float:
    """Of what was due in the measured window, how much was sent in it; 1 where users wait before they send."""
    stages = outcome.scenario.stages
    if not outcome.scenario.is_closed:
        return outcome.sent_hz / outcome.offered_hz if outcome.offered_hz else 1.0
    share, begin_s, (first, last) = 1.0, 0.0, outcome.window_s
    for stage in stages:
        window = (max(begin_s, first), min(begin_s + stage.for_s, last))
        if not stage.is_closed:
            share = min(share, sent_hz(outcome.ticks, window, 1.0))
        begin_s += stage.for_s
    return share


def nothing_seen(outcome: Outcome) -> Iterator[str]:
    """Whoever watches workers of somebody else saw anything."""
    ledger, watch = outcome.ledger, outcome.observation.watch
    if ledger.issued and not ledger.done + ledger.failed:
        if watch is Watch.EVENTS:
            yield (
                "not one job was seen to end: run the workers with -E, for with neither that nor gossip nor heartbeat "
                'they publish nothing, or watch their results (observe = "results")'
            )
        elif watch is Watch.RESULTS:
            yield "not one job was seen to end: do the tasks keep their results, in the backend that is watched?"


def clocks_disagree(outcome: Outcome) -> Iterator[str]:
    """The workers' clocks say what ours does."""
    if outcome.early:
        yield (
            f"{outcome.early} of {outcome.ledger.done} jobs ended before they were sent, as their workers' clocks say, "
            f"and would count as 0 ms: {CLOCK_REMEDY}"
        )
        return
    apart = max(((_apart_s(worker), name) for name, worker in outcome.workers.items()), default=(0.0, ""))
    median_s = outcome.spans.latency.quantile_s(0.5)
    # What a clock is wrong by is in every latency alike, so the median is what it is held against.
    if apart[0] > outcome.scenario.max_lag_s and not apart[0] <= MAX_LAG_SHARE * median_s:
        yield (
            f"the clock of the worker {apart[1]} and ours are some {apart[0] * 1e3:.1f} ms apart, and half of the jobs "
            f"took {median_s * 1e3:.1f} ms or less: {CLOCK_REMEDY}"
        )


def _apart_s(worker: WorkerOutcome) -> float:
    """How far a worker's clock is from ours, as far as its messages tell; 0 where its clock is ours.

    Nothing arrives before it was sent: so far it is ahead, or behind, at least. Where the way there seems shorter than
    the way back, half the difference is what it is behind, as NTP has it; a job's way may be longer by its wait.
    """
    if worker.heard_s is None:
        return 0.0
    begun_s = worker.heard_s if worker.begun_s is None else worker.begun_s
    return max(0.0, -worker.heard_s, -begun_s, (worker.heard_s - begun_s) / 2)


def users_wait(outcome: Outcome) -> Iterator[str]:
    """A closed load is said to be one."""
    if outcome.scenario.is_closed:
        yield "a closed load sends less when the queue is slow: its latency says nothing of users who do not wait"


def lag_within_latency(outcome: Outcome) -> Iterator[str]:
    """The generator's own lag is a small part of what was measured, or at least a small time."""
    limit_s = outcome.scenario.max_lag_s
    lags = [one for one in _lags(outcome) if one.lag_s > limit_s or not one.is_small_part]
    if any(True for _ in late_generator(outcome)) or not lags:
        return
    worst = max(lags, key=lambda one: one.lag_s / one.latency_s if one.latency_s > 0 else math.inf)
    share = "more" if not worst.is_small_part else "no more"
    yield (
        f"of the {worst.figure} latency of {worst.kind!r}, {worst.latency_s * 1e3:.4g} ms, the generator's own lag, "
        f"{worst.lag_s * 1e3:.4g} ms at {worst.figure}, is {share} than a tenth"
    )


def long_run(outcome: Outcome) -> Iterator[str]:
    """Ticks are seconds."""
    if outcome.ticks and outcome.ticks[0].length_s > 1:
        yield f"the run is long: its ticks are {outcome.ticks[0].length_s:g} s each"


Check = Callable[[Outcome], Iterator[str]]
FAULTS: Sequence[Check] = (late_generator, short_generator, nothing_seen, clocks_disagree)
"""Each makes a run INVALID."""
NOTES: Sequence[Check] = (users_wait, lag_within_latency, long_run)


def faults(outcome: Outcome) -> tuple[Fault, ...]:
    """What makes the run INVALID."""
    return tuple(Fault(check.__name__, says) for check in FAULTS for says in check(outcome))


def notes(outcome: Outcome) -> tuple[str, ...]:
    """What a reader should know besides."""
    return tuple(says for check in NOTES for says in check(outcome))


def sent_hz(ticks: Sequence[Tick], window_s: tuple[float, float], offered_hz: float) -> float:
    """Jobs sent in the window, a second: the offered rate times the share of what was due in it that was sent in it."""
    begin, end = window_s
    whole = [t for t in ticks if t.at_s >= begin - 1e-9 and t.at_s + t.length_s <= end + 1e-9]
    due = sum(t.whole.due for t in whole)
    if not due:
        return offered_hz  # too short to tell; its lag tells enough
    share = min(1.0, sum(t.whole.sent for t in whole) / due)
    return offered_hz * share if math.isfinite(share) else offered_hz

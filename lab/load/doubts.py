"""Reasons to distrust a run's numbers, each with its remedy; and what a reader should know besides. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from lab.load.model import Outcome, Tick, Watch, WorkerOutcome
from lab.model import Fault

MAX_LAG_SHARE = 0.10
"""Of the latency at the same percentile; beyond it the generator is part of the result. As `lab.checks` has it."""
MIN_SENT_SHARE = 0.99
CLOCK_REMEDY = 'let NTP or chrony keep both clocks, or watch results, which need this clock alone (observe = "results")'
REMEDY = "lower the rate, add producers (producers = N), or give them cores of their own"


def _p99_s(outcome: Outcome) -> tuple[float, float]:
    return outcome.lag.quantile_s(0.99), outcome.spans.latency.quantile_s(0.99)


def late_generator(outcome: Outcome) -> Iterator[str]:
    """The generator kept its schedule."""
    lag_s, latency_s = _p99_s(outcome)
    limit_s = outcome.scenario.max_lag_s
    # Like with like: what makes 1 % of the jobs late cannot move the median. Where no job ended, nothing excuses it.
    if lag_s > limit_s and not lag_s <= MAX_LAG_SHARE * latency_s and not outcome.scenario.is_closed:
        yield (
            f"the generator sent 1 % of its jobs {lag_s * 1e3:.1f} ms or more late (at most {limit_s * 1e3:g} ms, or a "
            f"tenth of the p99 latency, is allowed): {REMEDY}"
        )


def short_generator(outcome: Outcome) -> Iterator[str]:
    """Within the measured window it sent what was due."""
    if outcome.sent_hz < MIN_SENT_SHARE * outcome.offered_hz and not outcome.scenario.is_closed:
        yield (
            f"the generator sent {outcome.sent_hz:.4g} jobs/s of the {outcome.offered_hz:.4g} that were due within the "
            f"measured window: {REMEDY}"
        )


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
    """The generator's own lag is a small part of what was measured."""
    lag_s, latency_s = _p99_s(outcome)
    if MAX_LAG_SHARE * latency_s < lag_s <= outcome.scenario.max_lag_s and not outcome.scenario.is_closed:
        yield (
            f"of the p99 latency of {latency_s * 1e3:.2f} ms the generator's own lag, {lag_s * 1e3:.2f} ms at p99, is "
            "more than a tenth"
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

"""The scale demo's story: what is offered when, what was seen, and what each added worker brought."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHORT = 0.6
"""A step offers this share of one worker less than its workers can do: what had gathered then drains."""
ADD_AT = 0.25
"""When in a step its worker is asked for, as a share of the step: the queue must be seen to grow before."""
WINDOW_S = 5.0
"""Rates and percentiles are those of the last seconds: counts come in about once a second."""
LEAST_SEEN_S = 3.0
"""Less than this with work for all says nothing of their rate: at either end a second's count may be missing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is offered: with `steps` workers at the end, each step longer than a worker needs to start."""

    steps: int
    step_s: float
    one_hz: float
    """What one worker did alone."""

    @property
    def rates_hz(self) -> tuple[float, ...]:
        """The load of each step: more than the workers of the step before can do, less than its own can."""
        return tuple((step - SHORT) * self.one_hz for step in range(1, self.steps + 1))

    @property
    def producers(self) -> tuple[tuple[float, float, float], ...]:
        """What each step adds, as a load of its own: when it begins, its rate, and for how long it lasts."""
        before = (0.0, *self.rates_hz)
        return tuple(
            (step * self.step_s, rate - before[step], (self.steps - step) * self.step_s)
            for step, rate in enumerate(self.rates_hz)
        )

    @property
    def additions_s(self) -> tuple[float, ...]:
        """When each further worker is asked for; the first one is there already."""
        return tuple((step + ADD_AT) * self.step_s for step in range(1, self.steps))

    @property
    def duration_s(self) -> float:
        """Until nothing more is offered."""
        return self.steps * self.step_s


def burst(*, cpus: float, work_ms: float, seconds: float) -> int:
    """How many jobs keep one worker with this limit busy for about so long, if a job cost nothing but its work."""
    return max(1, math.ceil(cpus * 1e3 / work_ms * seconds))


@dataclass(frozen=True, slots=True)
class Look:
    """What the broker held and what had been counted at one moment. Counts are sums since the stack was made."""

    at_s: float
    """By the broker's clock."""
    issued: int
    done: int
    failed: int
    """Also those that were revoked."""
    depth: int
    """Jobs that wait in the broker."""
    unacked: int
    """Jobs that a worker has fetched."""
    workers: int
    """Those that gave a sign of life lately."""
    waits: tuple[int, ...] = ()
    """Jobs by their time in queue: how many in each bucket of the histogram; the last has no upper bound."""
    lags: tuple[int, ...] = ()
    """Jobs by how late they were sent, in the same buckets."""

    @property
    def ended(self) -> int:
        """Whatever became of them."""
        return self.done + self.failed

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits, nothing is worked on, and each job that was sent has ended."""
        return not self.depth and not self.unacked and self.issued == self.ended


def look_in(row: Mapping[str, Any]) -> Look:
    """A look from the parsed line of JSON that `deploy/watch.py` prints. Raises KeyError, TypeError, ValueError."""
    issued, done, failed, depth, unacked, workers = (
        int(row[name]) for name in ("issued", "done", "failed", "depth", "unacked", "workers")
    )
    waits, lags = (tuple(map(int, row[name])) for name in ("waits", "lags"))
    return Look(float(row["at_s"]), issued, done, failed, depth, unacked, workers, waits, lags)


def since(looks: Sequence[Look], seconds: float = WINDOW_S) -> Look | None:
    """The look from which the last window counts: the youngest that is at least so old, or the first there is."""
    if not looks:
        return None
    ripe = [look for look in looks if looks[-1].at_s - look.at_s >= seconds]
    return ripe[-1] if ripe else looks[0]


def offered_hz(before: Look, after: Look) -> float:
    """Jobs sent a second between the two; NaN where they are the same moment."""
    return _rate_hz(after.issued - before.issued, before, after)


def done_hz(before: Look, after: Look) -> float:
    """Jobs ended a second between the two; NaN where they are the same moment."""
    return _rate_hz(after.ended - before.ended, before, after)


def _rate_hz(jobs: int, before: Look, after: Look) -> float:
    span_s = after.at_s - before.at_s
    return jobs / span_s if span_s > 0 else math.nan


def at_most(before: Sequence[int], after: Sequence[int], q: float, bounds: Sequence[float]) -> float | None:
    """The upper bound of the bucket in which the quantile of the jobs between two counts lies; None without jobs.

    A histogram knows no more than that; infinite beyond its last bound.
    """
    new = [now - then for then, now in zip(before or [0] * len(after), after, strict=True)]
    if not (jobs := sum(new)):
        return None
    # The smallest bound that at least a share q of them does not exceed.
    for bound, so_far in zip((*bounds, math.inf), itertools.accumulate(new), strict=True):
        if so_far >= q * jobs:
            return bound
    return math.inf


@dataclass(frozen=True, slots=True)
class Brought:
    """What so many workers did while there was work for all of them."""

    workers: int
    rate_hz: float | None
    """Jobs ended a second; None where that was seen for too short a time."""
    seen_s: float


def brought(looks: Sequence[Look], most: int) -> list[Brought]:
    """For 1 to `most` workers what they did while at least one job for each of them waited, before and after."""
    jobs, seen_s = dict.fromkeys(range(1, most + 1), 0), dict.fromkeys(range(1, most + 1), 0.0)
    for before, after in itertools.pairwise(looks):
        n = after.workers
        if n in jobs and before.workers == n and min(before.depth, after.depth) >= n:
            jobs[n] += after.ended - before.ended
            seen_s[n] += after.at_s - before.at_s
    return [
        Brought(n, jobs[n] / seen_s[n] if seen_s[n] >= LEAST_SEEN_S else None, seen_s[n]) for n in range(1, most + 1)
    ]


@dataclass(frozen=True, slots=True)
class Event:
    """Something the story did."""

    at_s: float
    """By the broker's clock, about: when it was asked for."""
    text: str
    is_worker: bool = False
    """A worker was asked for; else the load was raised, or it ended."""


@dataclass(frozen=True, slots=True)
class Story:
    """All that was seen and done, from the first step's begin to the drained queue."""

    looks: tuple[Look, ...]
    events: tuple[Event, ...]
    workers: int
    """How many it was to be at the end."""
    work_ms: float
    cpus: float
    """Each worker's limit."""
    cores: int
    """The machine's."""
    bounds_s: tuple[float, ...]
    """Of the histograms' buckets."""
    one_hz: float
    """What one worker did before the story began."""
    busy: float | None = None
    """How much of all cores' time was spent meanwhile, by whatever program; None where nobody can tell."""

    @property
    def begun_s(self) -> float:
        """The broker's clock at its begin."""
        return self.looks[0].at_s

    @property
    def most_live(self) -> int:
        """How many workers were seen alive at once."""
        return max(look.workers for look in self.looks)

    @property
    def is_drained(self) -> bool:
        """Whether the queue was empty and every job accounted for at the end."""
        return self.looks[-1].is_drained

    @property
    def issued(self) -> int:
        """Jobs of the story itself."""
        return self.looks[-1].issued - self.looks[0].issued

    @property
    def ended(self) -> int:
        """Of them."""
        return self.looks[-1].ended - self.looks[0].ended

    @property
    def failed(self) -> int:
        """Of them."""
        return self.looks[-1].failed - self.looks[0].failed

    @property
    def deepest(self) -> int:
        """The longest the queue was."""
        return max(look.depth for look in self.looks)

    @property
    def wait_p99_s(self) -> float | None:
        """The bound that 99 % of all its jobs' times in queue do not exceed; None without jobs."""
        return at_most(self.looks[0].waits, self.looks[-1].waits, 0.99, self.bounds_s)

    @property
    def lag_p99_s(self) -> float | None:
        """The same of how late they were sent."""
        return at_most(self.looks[0].lags, self.looks[-1].lags, 0.99, self.bounds_s)

    @property
    def brought(self) -> list[Brought]:
        """What 1, 2, ... workers did."""
        return brought(self.looks, self.workers)


def seconds(bound_s: float | None, bounds_s: Sequence[float]) -> str:
    """A bucket's bound as people say it: `at most 2.5 s`."""
    if bound_s is None:
        return "nothing seen"
    if math.isinf(bound_s):
        return f"over {bounds_s[-1]:g} s"
    return f"at most {bound_s:g} s" if bound_s >= 1 else f"at most {bound_s * 1e3:g} ms"


def told(story: Story) -> Iterator[str]:
    """The summary, a line at a time."""
    yield f"Before the steps one worker alone did {story.one_hz:.1f} jobs/s; the loads follow from that."
    yield "What the workers did while there was work for all of them:"
    yield "  workers   jobs/s   seen for   the last one added"
    before: Brought | None = None
    first_hz = story.brought[0].rate_hz or story.one_hz
    for row in story.brought:
        rate = "-" if row.rate_hz is None else f"{row.rate_hz:.1f}"
        yield f"  {row.workers:>7}   {rate:>6}   {row.seen_s:>6.0f} s   {_added(before, row, first_hz)}".rstrip()
        before = row
    yield (
        "One run, so no interval. Counts come in about once a second: a rate that was seen for 10 s may be a tenth off "
        "for that alone."
    )
    lost = story.issued - story.ended
    ledger = f"{story.issued} jobs were sent, {story.ended - story.failed} done, {story.failed} failed"
    yield f"{ledger}; " + ("the queue is empty." if story.is_drained else f"{lost} had not ended when time was up.")
    waited, late = (seconds(bound, story.bounds_s) for bound in (story.wait_p99_s, story.lag_p99_s))
    yield (
        f"At its longest {story.deepest} jobs waited. Time in queue, p99 of the whole: {waited}; sent after they were "
        f"due, p99: {late}. Both as bounds of a histogram's buckets."
    )
    yield from _caveats(story)


def _added(before: Brought | None, row: Brought, first_hz: float) -> str:
    if row.rate_hz is None:
        return f"seen for less than {LEAST_SEEN_S:g} s: not enough to say"
    if before is None or before.rate_hz is None:
        return ""
    more = row.rate_hz - before.rate_hz
    return f"{more:+.1f}, which is {more / first_hz:.2f} of what one does"


def _caveats(story: Story) -> Iterator[str]:
    asked = story.workers * story.cpus
    yield (
        f"Each worker may use {story.cpus:g} of a core, a limit made for this demo: together {asked:.1f} of this "
        f"machine's {story.cores}. It is meant to be slowed by that and not by its neighbours, so adding one helps "
        f"here. Without limits {story.cores} busy workers could fill {story.cores} cores, and a further one would find "
        "none free."
    )
    if story.busy is not None and story.busy > FULL:
        yield (
            f"All cores together were {story.busy:.0%} busy meanwhile, with whatever ran here. Workers did not get all "
            "that their limit allows, and what they added is too low: try again when nothing else runs."
        )
    if asked + OTHERS_CORES > story.cores:
        yield (
            f"Workers ({asked:.1f} cores) and the rest of the stack (up to {OTHERS_CORES:g}) want more than the "
            f"{story.cores} cores there are: what the last workers added is too low. Try fewer --steps or --cpus."
        )
    if story.lag_p99_s is not None and story.lag_p99_s > LATE_S:
        yield (
            f"The producers sent 1 % of the jobs later than {LATE_S * 1e3:g} ms after they were due: what was offered "
            "is not what was planned, and waits do not hold that."
        )
    yield (
        "All of it ran on one machine: no network lies between the workers, and no other host can fail. It shows how it"
        " goes; `sidestep run machines` measures it, with repeats and intervals."
    )


OTHERS_CORES = 0.7
"""What Redis, Flower, the producers, the watcher and the engine take together while the demo runs, generously."""
LATE_S = 0.1
FULL = 0.9
"""From here on somebody waits for a core."""

"""The highest rate that can be kept up: which rate to try next, and what the tried ones add up to. Pure.

A rate *holds* when its thresholds hold and the backlog, beyond doubt, hardly grows. It *breaks* when a threshold breaks
or the backlog, beyond doubt, grows. Between the two nobody knows: such rates lie inside the answer's interval, as do
rates that held once and broke once. So the interval is wide where runs are short, and never narrow by luck.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lab.load.batches import correlation
from lab.load.model import Judged, Outcome, Search
from lab.model import BadInput, Estimate
from lab.report.units import number, sure
from lab.stats import t_quantile

BLOCKS = 10
"""Parts of a run whose growth is one value each. Fewer say little of how it scatters, more hang together."""
LEAST_BLOCKS = 5
LEAST_S = LEAST_BLOCKS + 1.0
"""Shorter runs have too few seconds to tell whether a backlog grows."""
MOST_CORRELATION = 0.6
"""Either way: ten values cannot tell more of it than this."""
LEAST_JOBS = 10
"""Fewer jobs than these, over a whole run, are no growth: the backlog of any queue goes up and down by some."""
GENERATOR_CHECKS = frozenset({"late_generator", "short_generator"})
"""Faults that say that the jobs were not offered as asked."""
FATAL_CHECKS = frozenset(
    {"interrupted", "broker_died", "worker_died", "watch_died", "nothing_seen", "jobs_left", "clocks_disagree"}
)
"""Faults after which it is of no use to go on."""


class Seen(StrEnum):
    """What one run says of its rate."""

    HOLDS = "holds"
    BREAKS = "breaks"
    UNCLEAR = "unclear"
    GENERATOR = "generator"
    """The jobs were not offered at that rate, so it says nothing of those who work on them."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One run at one rate, and what was seen."""

    rate_hz: float
    """As asked for."""
    seen: Seen
    because: str
    offered_hz: float = math.nan
    done_hz: float = math.nan
    growth_hz: Estimate | None = None
    """Of the backlog: jobs sent and not ended, so many more each second."""
    p99_s: float = math.nan
    """Of latency from due."""
    lag_p99_s: float = math.nan
    """Of the generator's own lag."""
    is_last: bool = False
    """Whether it was of no use to go on: broker or workers had died, or somebody stopped the search."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The answer, or why there is none."""

    held_hz: float | None
    """The highest rate that held every time, as did all below it; None where none did."""
    broke_hz: float | None
    """The lowest rate that broke every time, as did all above it; None where none did."""
    interval_hz: tuple[float, float] | None
    """Where the limit lies; None without an answer. The lower end is `held_hz` less the growth that was allowed."""
    refused: str
    """Why there is no answer; empty where there is one."""
    probes: tuple[Probe, ...]


def check(search: Search, where: str = "") -> Search:
    """The search itself. Raises BadInput, beginning with `where`, for numbers that cannot be searched with."""
    if not 0 < search.low_hz < search.high_hz < math.inf:
        raise BadInput(
            f"{where}the search goes from {search.low_hz:g} to {search.high_hz:g} jobs/s: the lowest rate must be "
            "above 0 and below the highest"
        )
    if not search.for_s >= LEAST_S:
        raise BadInput(f"{where}each rate must be tried for {LEAST_S:g} s at least, not {search.for_s:g} s")
    for name, value in (("precision", search.precision), ("slack", search.slack)):
        if not 0 < value < 1:
            raise BadInput(f"{where}the search's {name} must be a share between 0 and 1, not {value:g}")
    if search.repeats < 1 or search.most < 2 * search.repeats:
        raise BadInput(
            f"{where}{search.most} runs are not enough for {search.repeats} repeats at both ends: at least "
            f"{2 * max(search.repeats, 1)}"
        )
    return search


def start_hz(search: Search) -> float:
    """The first rate: in the middle, as rates go."""
    return math.sqrt(search.low_hz * search.high_hz)


def allowed_hz(search: Search, offered_hz: float) -> float:
    """A backlog that grows by fewer jobs a second than this does not count as growing."""
    return max(search.slack * offered_hz, LEAST_JOBS / search.for_s)


def growth(backlog: Sequence[float], tick_s: float = 1.0) -> Estimate | None:
    """Jobs by which the backlog grows each second, with a 95 % interval; `backlog` is read every `tick_s` seconds.

    The run is cut into blocks, and what each adds to the backlog is one value. In a queue that overflows these are the
    steps of a random walk, hardly related. In one that does not, they undo each other, which a straight interval would
    not know; so neighbours' correlation r scales the variance, as of a process of first order: (1 + r) / (1 - r). The
    backlog itself hangs together for the whole run: a straight line through it would be far too sure of its slope. None
    with too few ticks for LEAST_BLOCKS blocks.
    """
    steps = len(backlog) - 1
    count = min(BLOCKS, steps)
    if count < LEAST_BLOCKS:
        return None
    # Blocks of equal length; what is left over is cut from the beginning, where the queue fills.
    size = steps // count
    ends = [backlog[steps - size * (count - i)] for i in range(count + 1)]
    added = [(after - before) / (size * tick_s) for before, after in itertools.pairwise(ends)]
    centre = math.fsum(added) / count
    # Of unrelated values it is -1/n on average.
    r = min(max(correlation(added) + 1 / count, -MOST_CORRELATION), MOST_CORRELATION)
    variance = math.fsum((one - centre) ** 2 for one in added) / (count - 1) / count * (1 + r) / (1 - r)
    half = t_quantile(count - 1) * math.sqrt(variance)
    return Estimate(centre, centre - half, centre + half, count)


def probe(search: Search, rate_hz: float, outcome: Outcome) -> Probe:
    """What a run at this rate says of it."""
    # A last tick that was cut short would count as a leap.
    ticks = [tick for tick in outcome.measured if tick.length_s >= 0.99 * outcome.measured[0].length_s]
    grown = growth([tick.in_flight for tick in ticks], ticks[0].length_s) if ticks else None
    late = "; ".join(fault.says for fault in outcome.faults if fault.check in GENERATOR_CHECKS)
    doubts = "; ".join(fault.says for fault in outcome.faults if fault.check not in GENERATOR_CHECKS)
    broken = [f"{one.says} ({_was(one)})" for one in outcome.judged if not one.ok]
    if doubts:
        seen, because = Seen.UNCLEAR, doubts
    else:
        seen, because = classify(search, outcome.offered_hz, grown, broken, generator=late)
    return Probe(
        rate_hz,
        seen,
        because,
        offered_hz=outcome.offered_hz,
        done_hz=outcome.throughput_hz,
        growth_hz=grown,
        p99_s=outcome.spans.latency.quantile_s(0.99),
        lag_p99_s=outcome.lag.quantile_s(0.99),
        is_last=any(fault.check in FATAL_CHECKS for fault in outcome.faults),
    )


def _was(one: Judged) -> str:
    return "nothing to say it of" if one.value is None else f"it was {number(one.value)} {one.unit}".strip()


def classify(
    search: Search, offered_hz: float, grown: Estimate | None, broken: Iterable[str] = (), *, generator: str = ""
) -> tuple[Seen, str]:
    """What a run says of its rate, and why: `broken` names the thresholds that broke, `generator` how that failed."""
    allowed = allowed_hz(search, offered_hz)
    told = ""
    if grown is not None:
        told = f"the backlog grew by {sure(grown)} jobs/s, of {number(offered_hz)} offered"
    if grown is not None and grown.low > allowed:
        # Also where the generator fell behind: what it did offer was already too much.
        return Seen.BREAKS, told
    if generator:
        return Seen.GENERATOR, generator
    if found := "; ".join(broken):
        return Seen.BREAKS, f"broken: {found}"
    if grown is None:
        return Seen.UNCLEAR, f"too short to tell whether the backlog grows: it takes {LEAST_S:g} s"
    if grown.high < allowed:
        return Seen.HOLDS, told
    return Seen.UNCLEAR, f"{told}; to hold, the upper end must stay below {allowed:.3g}"


def next_rate(search: Search, probes: Sequence[Probe]) -> float | None:  # noqa: PLR0911  one a step of the search
    """The rate to try next; None when there is nothing left to learn, or to spend.

    It brackets by doubling and halving, then halves the way to either edge on a logarithmic scale until it is known to
    `precision`, then repeats both edges. A repeat that disagrees moves the edge, and the search goes on from there.
    """
    if not probes:
        return start_hz(search)
    if len(probes) >= search.most or probes[-1].is_last:
        return None
    rates, (low, high) = sorted({p.rate_hz for p in probes}), edges(probes)
    if low is None:
        return _within(search, rates[0] / 2, probes)
    spoilt = {p.rate_hz for p in probes if p.seen is Seen.GENERATOR}
    ceiling = min((rate for rate in spoilt if not _count(probes, rate)), default=math.inf)
    if high is None and rates[-1] < min(search.high_hz, ceiling):
        return _within(search, rates[-1] * 2, probes)
    above = min((rate for rate in rates if rate > low), default=None)
    if above is not None and above in _mishaps(search, probes):
        return above
    if above is not None and above / low > 1 + search.precision:
        return math.sqrt(low * above)
    if high is None:
        return None
    below = max(rate for rate in rates if rate < high)
    if high / below > 1 + search.precision:
        return math.sqrt(high * below)
    return next((edge for edge in (low, high) if _count(probes, edge) < search.repeats), None)


def _within(search: Search, rate_hz: float, probes: Sequence[Probe]) -> float | None:
    """The rate, kept within the search's ends; None where that end was tried often enough."""
    kept = min(max(rate_hz, search.low_hz), search.high_hz)
    # Only what the generator spoilt is worth another try, and that not for ever.
    is_worth_it = _count(probes, kept) == 0 and sum(p.rate_hz == kept for p in probes) < search.repeats
    return kept if is_worth_it else None


def _count(probes: Iterable[Probe], rate_hz: float) -> int:
    """How often the rate was tried; runs that the generator spoilt do not count."""
    return sum(p.rate_hz == rate_hz and p.seen is not Seen.GENERATOR for p in probes)


def _mishaps(search: Search, probes: Sequence[Probe]) -> set[float]:
    """Rates that the generator failed at, though it managed a higher one: worth another try, a few times."""
    managed = max((p.rate_hz for p in probes if p.seen is not Seen.GENERATOR), default=0.0)
    tries = Counter(p.rate_hz for p in probes if p.seen is Seen.GENERATOR)
    return {rate for rate, n in tries.items() if rate < managed and n < search.repeats and not _count(probes, rate)}


def edges(probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    """The highest rate that always held, as did all below it, and the lowest that always broke, as did all above."""
    seen: dict[float, set[Seen]] = {}
    for one in probes:
        seen.setdefault(one.rate_hz, set()).add(one.seen)
    for found in seen.values():
        # A run that the generator spoilt says nothing where another one speaks.
        if len(found) > 1:
            found.discard(Seen.GENERATOR)
    low: float | None = None
    for rate in sorted(seen):
        if seen[rate] != {Seen.HOLDS}:
            break
        low = rate
    high: float | None = None
    for rate in sorted(seen, reverse=True):
        # What the generator could not offer says nothing; what was tried below it may.
        if seen[rate] == {Seen.GENERATOR} and high is None:
            continue
        if seen[rate] != {Seen.BREAKS}:
            break
        high = rate
    return low, high


def answer(search: Search, probes: Sequence[Probe]) -> Limit:
    """What the probes add up to."""
    low, high = edges(probes)
    refused = _refusal(search, probes, low, high)
    interval = None
    if not refused and low is not None and high is not None:
        interval = (max(0.0, low - allowed_hz(search, low)), high)
    return Limit(low, high, interval, refused, tuple(probes))


def _refusal(search: Search, probes: Sequence[Probe], low: float | None, high: float | None) -> str:
    if not probes:
        return "nothing was tried"
    if probes[-1].is_last:
        return f"the search was broken off: {probes[-1].because}"
    if low is None or high is None:
        return _unbracketed(search, probes, low, high)
    for edge, word in ((low, "held"), (high, "broke")):
        if _count(probes, edge) < search.repeats:
            return (
                f"{len(probes)} runs were not enough: {number(edge)} jobs/s {word} in {_count(probes, edge)} of the "
                f"{search.repeats} runs asked for; the limit seems to lie between {number(low)} and {number(high)}"
            )
    return ""


def _unbracketed(search: Search, probes: Sequence[Probe], low: float | None, high: float | None) -> str:
    limited = [p for p in probes if p.seen is Seen.GENERATOR]
    at_least = "" if low is None else f"; the limit is {number(low)} jobs/s or more"
    if high is None and limited:
        first = min(limited, key=lambda p: (p.rate_hz <= (low or 0.0), p.rate_hz))
        return (
            f"the generator is the limit, not the workers{at_least}: at {number(first.rate_hz)} jobs/s, {first.because}"
        )
    if low is None:
        # Of several runs at the lowest rate, one that says something of the workers.
        lowest = min(probes, key=lambda p: (p.rate_hz, p.seen is Seen.GENERATOR))
        return (
            f"no rate held: at {number(lowest.rate_hz)} jobs/s, the lowest tried, {lowest.because}; "
            "search from a lower rate, loosen the thresholds, or try each rate for longer"
        )
    if max(p.rate_hz for p in probes) >= search.high_hz:
        return f"nothing up to {number(search.high_hz)} jobs/s broke beyond doubt{at_least}; search up to a higher rate"
    return f"no rate broke beyond doubt within {len(probes)} runs{at_least}; try each rate for longer"

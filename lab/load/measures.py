"""What can be said of a load test in one figure, and how sure that is from the run alone. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lab.load.batches import Side, from_batches
from lab.load.hdr import Histogram
from lab.load.model import Outcome, Tick
from lab.model import Estimate
from lab.stats import t_quantile

BEYOND = 5
"""Jobs that must lie beyond a percentile in each batch, or it is a word about single jobs."""
MS = 1e3
PER_CENT = 100.0

Over = Callable[[Sequence[Tick]], float]


class Better(StrEnum):
    """Which way is up."""

    MORE = "more"
    LESS = "less"


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a run."""

    name: str
    unit: str
    """In which it is shown."""
    times: float
    """From the unit in which it is kept to that one."""
    better: Better
    whole: Callable[[Outcome], float]
    """Not a number where the run does not tell."""
    ticks: Over | None = None
    """The same from some seconds of the run; None where these do not tell."""
    needs: Callable[[Sequence[Tick]], str] = lambda _: ""
    """What these seconds lack for it."""
    is_generators: bool = False
    """Says something of the load test, not of what is tested: shown, and no reason to fail."""
    is_share: bool = False
    """A share of the jobs: compared by difference, since it may be nothing at all."""


def _latency(q: float) -> Measure:
    return Measure(
        f"latency {spelt(q)}",
        "ms",
        MS,
        Better.LESS,
        lambda outcome: _figure(outcome.spans.latency, q),
        lambda ticks: merged(ticks, lambda tick: tick.latency).quantile_s(q),
        lambda ticks: _few(ticks, lambda tick: tick.latency, q),
    )


def _wait(q: float) -> Measure:
    return Measure(
        f"time in queue {spelt(q)}",
        "ms",
        MS,
        Better.LESS,
        lambda outcome: _figure(outcome.spans.wait, q),
        lambda ticks: merged(ticks, lambda tick: tick.wait).quantile_s(q),
        lambda ticks: _few(ticks, lambda tick: tick.wait, q),
    )


def _jobs(name: str, count: Callable[[Outcome], int], ticks: Over | None = None) -> Measure:
    return Measure(
        name,
        "% of the jobs",
        PER_CENT,
        Better.LESS,
        lambda outcome: _share(count(outcome), outcome),
        ticks,
        is_share=True,
    )


def spelt(q: float) -> str:
    """0.5 -> p50, 0.999 -> p99.9."""
    return f"p{q * 100:.10g}"


def merged(ticks: Sequence[Tick], of: Callable[[Tick], Histogram]) -> Histogram:
    """One histogram over all of them."""
    return Histogram().merged() if not ticks else of(ticks[0]).merged(*map(of, ticks[1:]))


def _figure(histogram: Histogram, q: float) -> float:
    """The quantile; not a number where not one job lies beyond it, for then it is but the longest."""
    return histogram.quantile_s(q) if len(histogram) * (1 - q) >= 1 - 1e-9 else math.nan


def _few(ticks: Sequence[Tick], of: Callable[[Tick], Histogram], q: float) -> str:
    least, held = math.ceil(BEYOND / (1 - q) - 1e-9), sum(len(of(tick)) for tick in ticks)
    return "" if held >= least else f"{spelt(q)} takes {least} jobs, and there are {held}"


def _rate(ticks: Sequence[Tick]) -> float:
    return sum(tick.whole.done for tick in ticks) / math.fsum(tick.length_s for tick in ticks)


def _failed(ticks: Sequence[Tick]) -> float:
    ended = sum(tick.whole.done + tick.whole.failed for tick in ticks)
    return sum(tick.whole.failed for tick in ticks) / ended if ended else math.nan


def _lag_p99(outcome: Outcome) -> float:
    return _figure(outcome.lag, 0.99)


def _per_job(total: float | None, outcome: Outcome) -> float:
    ended = outcome.ledger.done + outcome.ledger.failed
    return math.nan if total is None or not ended else total / ended


def _share(part: int, outcome: Outcome) -> float:
    return part / outcome.ledger.issued if outcome.ledger.issued else math.nan


MEASURES: tuple[Measure, ...] = (
    Measure("throughput", "jobs/s", 1.0, Better.MORE, lambda outcome: outcome.throughput_hz, _rate),
    *map(_latency, (0.5, 0.9, 0.99, 0.999)),
    *map(_wait, (0.5, 0.99)),
    Measure("service p50", "ms", MS, Better.LESS, lambda outcome: _figure(outcome.spans.service, 0.5)),
    Measure("service p99", "ms", MS, Better.LESS, lambda outcome: _figure(outcome.spans.service, 0.99)),
    Measure(
        "generator's lag p99",
        "ms",
        MS,
        Better.LESS,
        _lag_p99,
        lambda ticks: merged(ticks, lambda tick: tick.lag).quantile_s(0.99),
        lambda ticks: _few(ticks, lambda tick: tick.lag, 0.99),
        is_generators=True,
    ),
    Measure("workers' CPU time a job", "ms", MS, Better.LESS, lambda outcome: _per_job(outcome.worker_cpu_s, outcome)),
    _jobs("failed", lambda outcome: outcome.ledger.failed, _failed),
    _jobs("lost", lambda outcome: outcome.ledger.lost),
    _jobs("done twice or more", lambda outcome: outcome.ledger.duplicated),
)
BY_NAME: Mapping[str, Measure] = {measure.name: measure for measure in MEASURES}


def side(measure: Measure, outcome: Outcome) -> Side | str:
    """The figure of this one run and its spread over batches of seconds; or why that cannot be said."""
    value = measure.whole(outcome)
    if not math.isfinite(value):
        return "the run does not tell"
    if measure.ticks is None:
        return "one run is one draw, and it keeps this for the whole run only: compare several runs"
    # The last tick may have been cut short.
    ticks = [tick for tick in outcome.measured if tick.length_s >= 0.99 * outcome.measured[0].length_s]
    if not ticks:
        return "too short: not one whole second was measured"
    found = from_batches(ticks, measure.ticks, logs=not measure.is_share, tick_s=ticks[0].length_s, needs=measure.needs)
    # The histograms of single seconds are coarse; the figure itself is that of the whole run.
    return found if isinstance(found, str) else replace(found, value=value)


def estimate(measure: Measure, outcome: Outcome) -> tuple[Estimate | None, str]:
    """The figure with a 95 % interval from within the run, in shown units, and how that was found or why there is none.

    None where the run does not tell the figure at all.
    """
    value = measure.whole(outcome) * measure.times
    if not math.isfinite(value):
        return None, "the run does not tell"
    found = side(measure, outcome)
    if isinstance(found, str):
        return Estimate(value, -math.inf, math.inf, 1), found
    half = t_quantile(max(1, math.floor(found.freedom))) * math.sqrt(found.variance)
    if measure.is_share:
        low, high = value - half * measure.times, value + half * measure.times
    else:
        low, high = value * math.exp(-half), value * math.exp(half)
    return Estimate(value, low, high, found.n), found.how

"""What can be said of a load test in one figure, and how sure that is from the run alone. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lab.load.batches import Side, from_batches
from lab.load.hdr import Histogram
from lab.load.model import Outcome, Spans, Tally, Tick
from lab.load.thresholds import METRICS
from lab.model import Estimate
from lab.stats import t_quantile

BEYOND = 5
"""Jobs that must lie beyond a percentile in each batch, or it is a word about single jobs."""
MS = 1e3
PER_CENT = 100.0

Over = Callable[[Sequence[Tick]], float]


def _lack_nothing(_: Sequence[Tick]) -> str:
    return ""


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
    needs: Callable[[Sequence[Tick]], str] = _lack_nothing
    """What these seconds lack for it."""
    is_generators: bool = False
    """Says something of the load test, not of what is tested: shown, and no reason to fail."""
    is_share: bool = False
    """A share of the jobs: compared by difference, since it may be nothing at all."""
    of_kinds: bool = True
    """Whether it can be said of one kind of job."""
    jobs: Callable[[Outcome], int] = lambda outcome: outcome.ledger.issued
    """How many jobs it is a figure of."""
    counts: bool = False
    """Its ticks need counts of jobs only, which are kept for each kind too."""


def _spans(
    what: str, of: Callable[[Spans], Histogram], of_tick: Callable[[Tick], Histogram] | None, *quantiles: float
) -> Iterator[Measure]:
    """Percentiles, mean and longest of one distribution; without `of_tick` it is kept for the whole run only."""
    for q in quantiles:
        yield Measure(
            f"{what} {spelt(q)}",
            "ms",
            MS,
            Better.LESS,
            lambda outcome, q=q: _figure(of(outcome.spans), q),  # type: ignore[misc]
            of_tick and (lambda ticks, q=q: merged(ticks, of_tick).quantile_s(q)),
            (lambda ticks, q=q: _few(ticks, of_tick, q)) if of_tick else _lack_nothing,  # type: ignore[misc]
        )
    yield Measure(
        f"{what} mean",
        "ms",
        MS,
        Better.LESS,
        lambda outcome: of(outcome.spans).mean_s if len(of(outcome.spans)) else math.nan,
        of_tick and (lambda ticks: merged(ticks, of_tick).mean_s),
        (lambda ticks: _none(ticks, of_tick)) if of_tick else _lack_nothing,
    )
    # Of the longest, parts of a run say nothing.
    yield Measure(
        f"{what} max",
        "ms",
        MS,
        Better.LESS,
        lambda outcome: of(outcome.spans).max_s if len(of(outcome.spans)) else math.nan,
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
        counts=True,
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


def _none(ticks: Sequence[Tick], of: Callable[[Tick], Histogram]) -> str:
    return "" if any(len(of(tick)) for tick in ticks) else "a mean takes a job, and there is none"


def _rate(ticks: Sequence[Tick]) -> float:
    return sum(tick.whole.done for tick in ticks) / math.fsum(tick.length_s for tick in ticks)


def _failed(ticks: Sequence[Tick]) -> float:
    ended = sum(tick.whole.done + tick.whole.failed for tick in ticks)
    return sum(tick.whole.failed for tick in ticks) / ended if ended else math.nan


def _lag_p99(outcome: Outcome) -> float:
    return _figure(outcome.lag, 0.99)


def _threshold(name: str, outcome: Outcome) -> float:
    return METRICS[name].of(outcome, None)


def _per_job(total: float | None, outcome: Outcome) -> float:
    ended = outcome.ledger.done + outcome.ledger.failed
    return math.nan if total is None or not ended else total / ended


def _share(part: int, outcome: Outcome) -> float:
    return part / outcome.ledger.issued if outcome.ledger.issued else math.nan


MEASURES: tuple[Measure, ...] = (
    Measure("throughput", "jobs/s", 1.0, Better.MORE, lambda outcome: outcome.throughput_hz, _rate, counts=True),
    *_spans("latency", lambda spans: spans.latency, lambda tick: tick.latency, 0.5, 0.9, 0.99, 0.999),
    *_spans("time in queue", lambda spans: spans.wait, lambda tick: tick.wait, 0.5, 0.99),
    *_spans("service", lambda spans: spans.service, None, 0.5, 0.99),
    Measure(
        "generator's lag p99",
        "ms",
        MS,
        Better.LESS,
        _lag_p99,
        lambda ticks: merged(ticks, lambda tick: tick.lag).quantile_s(0.99),
        lambda ticks: _few(ticks, lambda tick: tick.lag, 0.99),
        is_generators=True,
        of_kinds=False,
    ),
    Measure(
        "workers' CPU time a job",
        "ms",
        MS,
        Better.LESS,
        lambda outcome: _per_job(outcome.worker_cpu_s, outcome),
        of_kinds=False,
    ),
    Measure("depth, deepest", "jobs", 1.0, Better.LESS, lambda outcome: _threshold("depth", outcome), of_kinds=False),
    _jobs("failed", lambda outcome: outcome.ledger.failed, _failed),
    _jobs("lost", lambda outcome: outcome.ledger.lost),
    _jobs("done twice or more", lambda outcome: outcome.ledger.duplicated),
    _jobs("wrong", lambda outcome: outcome.ledger.wrong),
    _jobs("retried", lambda outcome: outcome.retried),
)
BY_NAME: Mapping[str, Measure] = {measure.name: measure for measure in MEASURES}


def of_kinds(outcomes: Sequence[Outcome]) -> tuple[Measure, ...]:
    """The measures of each kind of job that the outcomes tell of; none where there is only one."""
    kinds = tuple(dict.fromkeys(kind for outcome in outcomes for kind in outcome.kinds))
    return tuple(_narrow(measure, kind) for kind in kinds if len(kinds) > 1 for measure in MEASURES if measure.of_kinds)


def _narrow(measure: Measure, kind: str) -> Measure:
    over = measure.ticks if measure.counts else None
    return replace(
        measure,
        name=f"{kind}: {measure.name}",
        whole=lambda outcome: measure.whole(_only(outcome, kind)) if kind in outcome.kinds else math.nan,
        # Of each kind ticks keep counts, and no histograms.
        ticks=over and (lambda ticks: over([replace(t, whole=t.kinds.get(kind, Tally())) for t in ticks])),
        needs=_lack_nothing,
        jobs=lambda outcome: outcome.kinds[kind].ledger.issued if kind in outcome.kinds else 0,
    )


def _only(outcome: Outcome, kind: str) -> Outcome:
    """The outcome as if there had been no other kind."""
    one, (begin, end) = outcome.kinds[kind], outcome.window_s
    return replace(
        outcome,
        ledger=one.ledger,
        spans=one.spans,
        throughput_hz=one.done_measured / (end - begin),
        retried=one.retried,
    )


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

"""How sure a figure of a single run is, from batches of its own seconds. Pure.

Neighbouring seconds of a queue hang together: a backlog of one second is there in the next. So seconds are put into
batches until neighbouring batches no longer do (batch means: Law & Carson, Operations Research 27, 1979), and what
correlation is left widens the interval. A percentile is that of the whole run; only its spread comes from the batches
(sectioning: Asmussen & Glynn, Stochastic Simulation, 2007, III.5a), since a mean of percentiles is no percentile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lab.model import Estimate
from lab.stats import t_probability, t_quantile

T = TypeVar("T")

COUNTS = (20, 16, 12, 10)
"""Numbers of batches, tried in this order. Below ten, the interval is of little use."""
LEAST_TICKS = 2
"""Of a batch."""
MOST_CORRELATION = 0.5
"""Between neighbours among ten batches; beyond it the run is too short to say how far it scatters."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: a figure, the variance of that figure's estimate, and how well that is known."""

    value: float
    variance: float
    """Of `value`, or of its logarithm where the comparison is of logarithms."""
    freedom: float
    n: int
    """Batches, or runs."""
    how: str
    """In words: where the variance comes from."""


def from_batches(
    ticks: Sequence[T],
    statistic: Callable[[Sequence[T]], float],
    *,
    logs: bool = True,
    tick_s: float = 1.0,
    needs: Callable[[Sequence[T]], str] = lambda _: "",
) -> Side | str:
    """`statistic` of the whole run, and its spread over batches of ticks; or why that cannot be said.

    `needs` says what a batch lacks for the statistic to mean anything, such as jobs for a percentile; empty where it
    lacks nothing. `logs` asks for the spread of logarithms, which takes positive values.
    """
    allowed = [count for count in COUNTS if len(ticks) // count >= LEAST_TICKS]
    if not allowed:
        return f"too short: {len(ticks)} s, and batches take {COUNTS[-1] * LEAST_TICKS} s at least"
    whole = statistic(ticks)
    if not math.isfinite(whole) or (logs and whole <= 0):
        return "there is nothing to compare"
    why = ""
    for count in allowed:
        cut = _cut(ticks, count)
        if lack := next(filter(None, map(needs, cut)), ""):
            why = f"too short: {lack} in one of {count} batches"
            continue
        values = [statistic(batch) for batch in cut]
        if not all(map(math.isfinite, values)) or (logs and min(values) <= 0):
            why = f"one of {count} batches has no figure"
            continue
        scale = [math.log(v) for v in values] if logs else values
        # Of unrelated values it is -1/n on average.
        r = max(0.0, correlation(scale) + 1 / count)
        # Unrelated values scatter by 1/sqrt(n): one in six comes out above, and only costs some batches.
        if r > 1 / math.sqrt(count) and count != allowed[-1]:
            continue
        if r > MOST_CORRELATION:
            why = f"too short: even batches of {len(cut[0]) * tick_s:g} s hang together (correlation {r:.2f})"
            continue
        centre = math.log(whole) if logs else whole
        spread = math.fsum((v - centre) ** 2 for v in scale) / (count - 1) / count
        # What is left of the correlation, as of a process of first order:  var * (1 + r) / (1 - r).
        widened = spread * (1 + r) / (1 - r)
        how = f"{count} batches of {len(cut[0]) * tick_s:g} s within one run"
        return Side(whole, widened, count - 1, count, how)
    return why


def _cut(ticks: Sequence[T], count: int) -> list[Sequence[T]]:
    """Batches of equal length; what is left over is cut from the beginning."""
    size = len(ticks) // count
    first = len(ticks) - size * count
    return [ticks[first + i * size : first + (i + 1) * size] for i in range(count)]


def correlation(values: Sequence[float]) -> float:
    """How much neighbours hang together, from -1 to 1; 0 where nothing varies."""
    centre = math.fsum(values) / len(values)
    away = [v - centre for v in values]
    total = math.fsum(a * a for a in away)
    return math.fsum(a * b for a, b in itertools.pairwise(away)) / total if total > 0 else 0.0


def from_runs(values: Sequence[float], *, logs: bool = True) -> Side | str:
    """The mean over several runs, geometric with `logs`, and its spread; or why that cannot be said."""
    if len(values) < 2:
        return "it takes two runs a side at least"
    if not all(map(math.isfinite, values)) or (logs and min(values) <= 0):
        return "a run has no figure"
    scale = [math.log(v) for v in values] if logs else list(values)
    centre = math.fsum(scale) / len(scale)
    variance = math.fsum((v - centre) ** 2 for v in scale) / (len(scale) - 1) / len(scale)
    return Side(math.exp(centre) if logs else centre, variance, len(scale) - 1, len(scale), f"{len(scale)} runs")


def ratio(before: Side, after: Side) -> Estimate:
    """`after` over `before` with a 95 % interval; both must hold the variance of a logarithm.

    Welch, Biometrika 34 (1947), degrees of freedom after Satterthwaite, rounded down.
    """
    middle, half = math.log(after.value) - math.log(before.value), _half(before, after)
    low, high = math.exp(middle - half), math.exp(middle + half)
    return Estimate(math.exp(middle), low, high, min(before.n, after.n))


def difference(before: Side, after: Side) -> Estimate:
    """`after` less `before` with a 95 % interval, as `ratio`."""
    middle, half = after.value - before.value, _half(before, after)
    return Estimate(middle, middle - half, middle + half, min(before.n, after.n))


def chance(before: Side, after: Side, *, margin: float, logs: bool = True) -> float:
    """How often chance alone would show so large a difference, if the truth were `margin` away from none; at most.

    1 where the difference lies within the margin. Both directions count, as in a 95 % interval: below 0.05 means that
    all of that interval lies beyond the margin.
    """
    scale = math.log if logs else float
    beyond = abs(scale(after.value) - scale(before.value)) - margin
    if beyond <= 0:
        return 1.0
    variance = before.variance + after.variance
    return 1 - t_probability(beyond / math.sqrt(variance), _freedom(before, after)) if variance else 0.0


def holm(chances: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of these differences are told by chances so small that, over all of them, one in 20 sets tells a false one.

    Holm, Scandinavian Journal of Statistics 6 (1979): the smallest is held against level/n, the next against
    level/(n-1), until one fails; however they depend on each other.
    """
    told = [False] * len(chances)
    for done, at in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        if chances[at] >= level / (len(chances) - done):
            break
        told[at] = True
    return told


def _freedom(before: Side, after: Side) -> int:
    variance = before.variance + after.variance
    return max(1, math.floor(variance**2 / math.fsum(side.variance**2 / side.freedom for side in (before, after))))


def _half(before: Side, after: Side) -> float:
    variance = before.variance + after.variance
    return t_quantile(_freedom(before, after)) * math.sqrt(variance) if variance else 0.0

"""Estimates with honest error bars. Pure functions over runs."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import numpy as np

from lab.model import Estimate, Ratio, Run, Seconds, Selector

CONFIDENCE = 0.95
MOST_REPEATS = 1000
"""Beyond this many repeats we say that more of them will not decide."""


def throughput_hz(run: Run) -> float:
    """Jobs finished per second, from the first job due to the last one ended."""
    return (run.ledger.done + run.ledger.failed) / run.resources.wall_s


def drain_hz(run: Run) -> float:
    """Jobs per second until the broker held none, queued or unacknowledged; not a number where it was not watched."""
    drained_s = run.resources.drained_s
    return math.nan if drained_s is None else run.ledger.issued / drained_s


def worker_cpu_s_per_job(run: Run) -> float:
    """CPU seconds of the workers' whole process tree for each job."""
    return run.resources.worker_cpu_s / max(run.ledger.issued, 1)


def pss_bytes(run: Run) -> float:
    """Memory of the workers' whole process tree; not a number where it cannot be read."""
    pss = run.resources.worker_pss_bytes
    return math.nan if pss is None else float(pss)


def pss_bytes_per_slot(run: Run) -> float:
    """Memory of the workers' whole process tree for each slot; not a number where it cannot be read."""
    pss = run.resources.worker_pss_bytes
    return math.nan if pss is None else pss / run.trial.setup.slots


def latency_p50_s(run: Run) -> float:
    """Median time from due to ended."""
    return quantile(run.samples.latency_s, 0.5)


def latency_p99_s(run: Run) -> float:
    """Time from due to ended that 99 % of the jobs stayed within."""
    return quantile(run.samples.latency_s, 0.99)


def cores_used(run: Run) -> float:
    """CPU seconds of jobs' threads per second of the run: how many cores the jobs themselves kept busy."""
    return float(np.sum(run.samples.cpu_s)) / run.resources.wall_s


MEASURES: Mapping[str, Callable[[Run], float]] = {
    measure.__name__: measure
    for measure in (
        throughput_hz,
        drain_hz,
        worker_cpu_s_per_job,
        pss_bytes,
        pss_bytes_per_slot,
        latency_p50_s,
        latency_p99_s,
        cores_used,
    )
}


def quantile(values: Seconds, q: float) -> float:
    """The smallest of `values` that a share `q` of them does not exceed; not a number where there are none."""
    return float(np.quantile(values, q, method="inverted_cdf")) if len(values) else math.nan


def matches(run: Run, where: Selector) -> bool:
    """Whether the run's setup has all these values."""
    return all(getattr(run.trial.setup, name) == value for name, value in where.items())


def blocks(ratio: Ratio, runs: Iterable[Run]) -> list[float]:
    """The ratio inside each repeat that has both sides. A side matched by several setups is their geometric mean."""
    measure = MEASURES[ratio.measure]
    sides: dict[int, tuple[list[float], list[float]]] = {}
    for run in runs:
        over, under = sides.setdefault(run.trial.repeat, ([], []))
        if matches(run, ratio.of):
            over.append(measure(run))
        if matches(run, ratio.to):
            under.append(measure(run))
    pairs = [(over, under) for _, (over, under) in sorted(sides.items()) if over and under]
    return [r for over, under in pairs if (r := _geometric(over) / _geometric(under)) > 0 and math.isfinite(r)]


def _geometric(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(v) if v > 0 else math.nan for v in values) / len(values))


def estimate_ratio(ratio: Ratio, runs: Iterable[Run]) -> Estimate | None:
    """The ratio and its 95 % interval over blocks; None without a block, an endless interval with only one."""
    return mean_of_logs(blocks(ratio, runs))


def mean_of_logs(values: Sequence[float]) -> Estimate | None:
    """Geometric mean of positive values with a Student t interval on their logarithms.

    The values are one per block, because jobs within a run are not independent (Kalibera & Jones, ISMM 2013).
    """
    n = len(values)
    if n == 0:
        return None
    logs = [math.log(v) for v in values]
    mean = math.fsum(logs) / n
    if n == 1:
        return Estimate(math.exp(mean), 0.0, math.inf, 1)
    half = t_quantile(n - 1) * _deviation(logs) / math.sqrt(n)
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half), n)


def mean(values: Sequence[float]) -> Estimate | None:
    """Arithmetic mean with a Student t interval; None for no values."""
    n = len(values)
    if n == 0:
        return None
    centre = math.fsum(values) / n
    if n == 1:
        return Estimate(centre, -math.inf, math.inf, 1)
    half = t_quantile(n - 1) * _deviation(values) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)


def _deviation(values: Sequence[float]) -> float:
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def repeats_to_decide(values: Sequence[float], bound: float) -> int | None:
    """How many blocks would bring the interval clear of `bound`, if they keep scattering like these.

    None when it would take more than MOST_REPEATS, or when fewer than two blocks say how much they scatter.
    """
    if len(values) < 2 or bound <= 0:
        return None
    logs = [math.log(v) for v in values]
    distance = abs(math.fsum(logs) / len(logs) - math.log(bound))
    spread = _deviation(logs)

    def decides(n: int) -> bool:
        return t_quantile(n - 1) * spread / math.sqrt(n) < distance

    if not decides(MOST_REPEATS):
        return None
    # The interval only shrinks as n grows, so the first n that decides can be halved upon.
    return bisect.bisect_left(range(MOST_REPEATS + 1), True, lo=len(values) + 1, key=decides)


def t_probability(t: float, df: int) -> float:
    """The chance that |T| stays below t, for Student's t with whole degrees of freedom.

    Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 (odd) and 26.7.4 (even).
    """
    theta = math.atan(t / math.sqrt(df))
    cos2 = math.cos(theta) ** 2
    term, total = (math.cos(theta), 0.0) if df % 2 else (1.0, 0.0)
    k = 1 if df % 2 else 0
    while k <= df - 2:
        total += term
        term *= cos2 * (k + 1) / (k + 2)
        k += 2
    if df % 2:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total


@cache
def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """The t that |T| stays below with the given confidence, by bisection on the exact probability."""
    low, high = 0.0, 1.0
    while t_probability(high, df) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, df) < confidence else (low, middle)
    return (low + high) / 2

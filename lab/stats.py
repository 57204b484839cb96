"""Estimates with honest error bars. Pure functions over runs."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np

from lab import bill, usl
from lab.axes import AXES
from lab.model import (
    BreakEven,
    Estimate,
    Level,
    Measure,
    Ratio,
    Run,
    Samples,
    ScalingLaw,
    Seconds,
    Selector,
    Setup,
)
from tasks.carriers import Outcome, unpack

CONFIDENCE = 0.95
MOST_REPEATS = 1000
"""Beyond this many repeats we say that more of them will not decide."""


def throughput_hz(run: Run) -> float:
    """Jobs finished per second, from the first job due to the last one ended; not those beside them."""
    if run.trial.setup.beside:
        return _rate_hz(run.samples.own)
    return (run.ledger.done + run.ledger.failed) / run.resources.wall_s


def beside_hz(run: Run) -> float:
    """Jobs beside the setup's own finished per second, from the first due to the last ended."""
    return _rate_hz(run.samples.others)


def beside_p99_s(run: Run) -> float:
    """Time from due to ended that 99 % of the jobs beside the setup's own stayed within."""
    return quantile(run.samples.others.latency_s, 0.99)


def _rate_hz(samples: Samples) -> float:
    if not len(samples):
        return math.nan
    return len(samples) / (float(samples.ended_ns.max() - samples.due_ns.min()) / 1e9)


def drain_hz(run: Run) -> float:
    """Jobs per second until the broker held none, queued or unacknowledged; not a number where it was not watched."""
    drained_s = run.resources.drained_s
    return math.nan if drained_s is None else run.ledger.issued / drained_s


def worker_cpu_s_per_job(run: Run) -> float:
    """CPU seconds of the workers' whole process tree for each job."""
    return run.resources.worker_cpu_s / max(run.ledger.issued, 1)


def watcher_cpu_s_per_job(run: Run) -> float:
    """CPU seconds of the Flower that listened, for each job; not a number without one."""
    spent = run.resources.watcher_cpu_s
    return math.nan if spent is None else spent / max(run.ledger.issued, 1)


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
    return quantile(run.samples.own.latency_s, 0.5)


def latency_p99_s(run: Run) -> float:
    """Time from due to ended that 99 % of the jobs stayed within."""
    return quantile(run.samples.own.latency_s, 0.99)


def wait_p99_s(run: Run) -> float:
    """Time from sent to started that 99 % of the jobs stayed within."""
    return quantile(run.samples.own.wait_s, 0.99)


def held_p50_s(run: Run) -> float:
    """Median time from received by the worker to started."""
    return quantile(run.samples.own.held_s, 0.5)


def fetch_p50_s(run: Run) -> float:
    """Median time from sent to received by the worker; not a number where no worker said when it received a job."""
    s = run.samples.own
    return quantile((s.received_ns - s.sent_ns)[s.received_ns != 0] / 1e9, 0.5)


def ack_gap_p50_s(run: Run) -> float:
    """Median time from a job's end until the broker has its acknowledgement.

    Not a number without steps, nor where the setup does not acknowledge late: an early one comes before the end.
    """
    if run.steps is None or not run.trial.setup.acks_late:
        return math.nan
    seen = (run.samples.beside == 0) & (run.steps.acked_ns != 0)
    return quantile((run.steps.acked_ns - run.samples.ended_ns)[seen] / 1e9, 0.5)


def heartbeat_late_s(run: Run) -> float:
    """By how much the latest heartbeat within the run came later after the one before than it should.

    Not a number where the setup marks none, or the run saw no two.
    """
    if (every_s := run.trial.setup.heartbeat_s) is None:
        return math.nan
    end_ns = float(np.max(run.samples.ended_ns, initial=0))
    # The last one before the run belongs to the gap in which it begins; so does the first one after it.
    gaps = [b - a for a, b in itertools.pairwise(run.beats_ns) if b > 0 and a < end_ns]
    return max(gaps) / 1e9 - every_s if gaps else math.nan


def service_p50_s(run: Run) -> float:
    """Median time from started to ended."""
    return quantile(run.samples.own.service_s, 0.5)


def service_mean_s(run: Run) -> float:
    """Mean time from started to ended; for times of two kinds, between which a median would jump."""
    service_s = run.samples.own.service_s
    return float(np.mean(service_s)) if len(service_s) else math.nan


def round_us(run: Run) -> float:
    """Median microseconds from started to ended, for each of the job's `rounds`; not a number without rounds."""
    rounds = run.trial.setup.args.get("rounds")
    return service_p50_s(run) * 1e6 / rounds if isinstance(rounds, int) else math.nan


def gap_p50_s(run: Run) -> float:
    """Median time in which a slot stood idle between two jobs, although the next one had been sent.

    A slot is a thread of a process; for pools whose slots are not threads it is not a number.
    """
    setup = run.trial.setup
    if setup.pool not in {"prefork", "threads", "solo"}:
        return math.nan
    # In one worker a slot is not idle while it does a job that only runs beside.
    s = run.samples.own if setup.apart else run.samples
    order = np.lexsort((s.started_ns, s.thread, s.worker))
    before, after = order[:-1], order[1:]
    same = (s.worker[before] == s.worker[after]) & (s.thread[before] == s.thread[after])
    waited = s.sent_ns[after] <= s.ended_ns[before]
    return quantile((s.started_ns[after] - s.ended_ns[before])[same & waited] / 1e9, 0.5)


def slots_busy(run: Run) -> float:
    """The share of all slots' time, from the first job due to the last ended, in which a job was under way."""
    s = run.samples.own
    if not len(s):
        return math.nan
    return float(np.sum(s.service_s)) / (run.trial.setup.slots * float(s.ended_ns.max() - s.due_ns.min()) / 1e9)


def boot_s(run: Run) -> float:
    """From starting the workers to ready."""
    return run.resources.boot_s


def commands_per_job(run: Run) -> float:
    """Commands that the broker did, for each job; not a number where the broker serves others too."""
    total = sum(run.resources.commands.values())
    return total / max(run.ledger.issued, 1) if total else math.nan


def additions(run: Run) -> int | None:
    """How often `tally` jobs added to their one counter, those before the clock began too; None without rounds."""
    setup, rounds = run.trial.setup, run.trial.setup.args.get("rounds")
    if not len(run.samples.own) or not isinstance(rounds, int):
        return None
    return rounds * (len(run.samples.own) + setup.slots)


def lost_updates(run: Run) -> float:
    """The share of the additions to the one counter of the `tally` jobs that are missing at the end.

    Each job adds `rounds`, and returns what the counter held afterwards; so did one job a slot before the clock began.
    In one process the last job to end saw the final count. Of several processes the last to end need not be the last
    to add, so there it is the highest that any saw: right for a counter that only grows.
    """
    s, added = run.samples.own, additions(run)
    if added is None:
        return math.nan
    final = s.value.max() if len(np.unique(s.worker)) > 1 else s.value[s.ended_ns == s.ended_ns.max()].max()
    return 1 - float(final) / added


def disorder(run: Run) -> float:
    """The share of all pairs of jobs that ended in another order than they were sent: Kendall's distance, 0 to 1."""
    ended = run.samples.own.ended_ns
    n = len(ended)
    if n < 2:
        return math.nan
    return float(np.sum(np.triu(ended[:, None] > ended[None, :], 1))) / (n * (n - 1) / 2)


def reordered(one: Run, other: Run) -> float:
    """The share of all pairs of jobs that ended in another order in one run than in the other; 0 is the same order.

    Not a number where the runs have not the same number of jobs, or too few.
    """
    first, second = (np.argsort(np.argsort(run.samples.own.ended_ns, kind="stable")) for run in (one, other))
    n = len(first)
    if n != len(second) or n < 2:
        return math.nan
    swapped = (first[:, None] > first[None, :]) != (second[:, None] > second[None, :])
    return float(np.sum(np.triu(swapped, 1))) / (n * (n - 1) / 2)


def gil_on(run: Run) -> float:
    """1 where the interpreter's lock was on inside the worker, after its imports, else 0."""
    return float(run.resources.gil_enabled)


def cores_used(run: Run) -> float:
    """CPU seconds of jobs' threads per second of the run: how many cores the jobs themselves kept busy."""
    return float(np.sum(run.samples.cpu_s)) / run.resources.wall_s


def refused_things(run: Run) -> float:
    """How many of the `deliver` jobs' things the sender or the receiver refused."""
    return _things(run, Outcome.REFUSED)


def changed_things(run: Run) -> float:
    """How many of the `deliver` jobs' things arrived as something else, without an error."""
    return _things(run, Outcome.CHANGED)


def not_intact(run: Run) -> float:
    """How many of the `deliver` jobs' things did not arrive as they were."""
    return refused_things(run) + changed_things(run)


def _things(run: Run, outcome: Outcome) -> float:
    values = run.samples.own.value
    if run.trial.setup.job != "deliver" or not len(values):
        return math.nan
    return sum(unpack(int(value)).count(outcome) for value in values) / len(values)


MEASURES: Mapping[str, Callable[[Run], float]] = {
    **{
        measure.__name__: measure
        for measure in (
            throughput_hz,
            drain_hz,
            worker_cpu_s_per_job,
            watcher_cpu_s_per_job,
            pss_bytes,
            pss_bytes_per_slot,
            latency_p50_s,
            latency_p99_s,
            cores_used,
            beside_hz,
            beside_p99_s,
            wait_p99_s,
            fetch_p50_s,
            held_p50_s,
            ack_gap_p50_s,
            heartbeat_late_s,
            service_p50_s,
            service_mean_s,
            round_us,
            gap_p50_s,
            slots_busy,
            boot_s,
            commands_per_job,
            lost_updates,
            disorder,
            gil_on,
            refused_things,
            changed_things,
            not_intact,
        )
    },
    **bill.MEASURES,
}


def quantile(values: Seconds, q: float) -> float:
    """The smallest of `values` that a share `q` of them does not exceed; not a number where there are none."""
    return float(np.quantile(values, q, method="inverted_cdf")) if len(values) else math.nan


def matches(run: Run, where: Selector) -> bool:
    """Whether the run's setup has all these values."""
    return selects(where, run.trial.setup)


def selects(where: Selector, setup: Setup) -> bool:
    """Whether the setup has all these values."""
    return all(getattr(setup, name) == value for name, value in where.items())


def uses(measure: Measure, run: Run) -> bool:
    """Whether the measure looks at this run."""
    return any(matches(run, side) for side in sides(measure))


def sides(measure: Measure) -> tuple[Selector, ...]:
    """What the measure selects: one side, or the two that it compares."""
    return (measure.of, measure.to) if isinstance(measure, Ratio | BreakEven) else (measure.of,)


def blocks(measure: Measure, runs: Iterable[Run]) -> list[float]:
    """The measure inside each repeat that has all it needs."""
    match measure:
        case Ratio():
            return _ratios(measure, runs)
        case Level():
            return _levels(measure, runs)
        case BreakEven():
            return _crossings(measure, runs)
        case ScalingLaw():
            return _residuals(measure, runs)


def _by_repeat(runs: Iterable[Run], where: Selector) -> dict[int, list[Run]]:
    repeats: dict[int, list[Run]] = {}
    for run in runs:
        if matches(run, where):
            repeats.setdefault(run.trial.repeat, []).append(run)
    return dict(sorted(repeats.items()))


def _levels(level: Level, runs: Iterable[Run]) -> list[float]:
    measure = MEASURES[level.measure]
    means = (math.fsum(map(measure, some)) / len(some) for some in _by_repeat(runs, level.of).values())
    return [value for value in means if math.isfinite(value)]


def _crossings(even: BreakEven, runs: Iterable[Run]) -> list[float]:
    found = []
    for one, other, alone in _both(even, runs):
        if even.axis == "work_ms":
            # A job that is to take 300 ms may take 250 or 360: what a plain loop needed for one in this very repeat.
            real = {x: 1e3 / other[x] if x in alone and other[x] > 0 else x for x in other}
            found.append(crossing({real.get(x, x): hz for x, hz in one.items()}, {real[x]: other[x] for x in other}))
        else:
            found.append(crossing(one, other))
    return [x for x in found if x is not None]


def _both(even: BreakEven, runs: Iterable[Run]) -> Iterator[tuple[dict[float, float], dict[float, float], set[float]]]:
    """Repeat by repeat, jobs a second of either side at each x, and the x at which the second is a plain loop."""
    runs, at = list(runs), AXES[even.axis]
    to = _by_repeat(runs, even.to)
    for repeat, some in _by_repeat(runs, even.of).items():
        others = to.get(repeat, [])
        one, other = ({at(run.trial.setup): throughput_hz(run) for run in side} for side in (some, others))
        yield one, other, {at(run.trial.setup) for run in others if _is_plain_loop(run.trial.setup)}


def _is_plain_loop(setup: Setup) -> bool:
    return not setup.queued and setup.slots == 1 and setup.beside is None


def crossing(of: Mapping[float, float], to: Mapping[float, float]) -> float | None:
    """The x from which on `of` exceeds `to`, read off on a straight line in log-log between two neighbours.

    Their ratio is taken to rise with x: where it seems to fall, by noise, neighbours are pooled until it does not.
    None with fewer than two x where both sides have a number above 0. Where `of` exceeds `to` everywhere it is the
    smallest x, which then is an upper bound; where it does not at the largest x, infinity.
    """
    xs = sorted(x for x in of.keys() & to.keys() if of[x] > 0 and to[x] > 0)
    if len(xs) < 2:
        return None
    gains = [math.log(of[x] / to[x]) for x in xs]
    # What the longest deny, nothing shorter makes up for.
    if gains[-1] <= 0:
        return math.inf
    above = rising(gains)
    last = bisect.bisect_right(above, 0.0) - 1
    if last < 0:
        return xs[0]
    share = -above[last] / (above[last + 1] - above[last])
    return math.exp(math.log(xs[last]) + share * (math.log(xs[last + 1]) - math.log(xs[last])))


def rising(values: Sequence[float]) -> list[float]:
    """The sequence that never falls and lies closest to `values` by least squares.

    Isotonic regression by pooling adjacent violators (Ayer et al., Annals of Mathematical Statistics 26, 1955).
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        level, count = value, 1
        while pools and pools[-1][0] > level:
            before, many = pools.pop()
            level, count = (before * many + level * count) / (many + count), many + count
        pools.append((level, count))
    return [level for level, count in pools for _ in range(count)]


def bracket(even: BreakEven, runs: Iterable[Run]) -> tuple[float, float] | None:
    """The two neighbouring x, as asked for, between which the two sides change places over all repeats together.

    None where they do not: then the break-even lies beyond the x that were tried.
    """
    gains: dict[float, list[float]] = {}
    for one, other, _ in _both(even, runs):
        for x in one.keys() & other.keys():
            if one[x] > 0 and other[x] > 0:
                gains.setdefault(x, []).append(math.log(one[x] / other[x]))
    xs = sorted(gains)
    above = rising([math.fsum(gains[x]) / len(gains[x]) for x in xs])
    last = bisect.bisect_right(above, 0.0) - 1
    return (xs[last], xs[last + 1]) if 0 <= last < len(xs) - 1 else None


def _residuals(law: ScalingLaw, runs: Iterable[Run]) -> list[float]:
    worst = []
    for some in _by_repeat(runs, law.of).values():
        points = {run.trial.setup.slots: hz for run in some if (hz := throughput_hz(run)) > 0}
        if len(points) >= usl.LOADS:
            curve = usl.fit(points)
            worst.append(max(abs(hz / curve.throughput_hz(n) - 1) for n, hz in points.items()))
    return worst


def _ratios(ratio: Ratio, runs: Iterable[Run]) -> list[float]:
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


def estimate(measure: Measure, runs: Iterable[Run]) -> Estimate | None:
    """The measure and its 95 % interval over blocks; None without a block, an endless interval with only one."""
    values = blocks(measure, runs)
    if isinstance(measure, BreakEven) and not all(map(math.isfinite, values)):
        # In some repeat it never paid: there is no finite upper end.
        return Estimate(math.inf, min(values) if len(values) > 1 else 0.0, math.inf, len(values))
    return mean(values) if isinstance(measure, Level | ScalingLaw) else mean_of_logs(values)


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


def repeats_to_decide(values: Sequence[float], bound: float, *, logs: bool = True) -> int | None:
    """How many blocks would bring the interval clear of `bound`, if they keep scattering like these.

    `logs` says that the interval is over logarithms, as a ratio's is. None when it would take more than MOST_REPEATS,
    or when fewer than two blocks say how much they scatter.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)) or (logs and bound <= 0):
        return None
    scale = [math.log(v) if logs else v for v in values]
    distance = abs(math.fsum(scale) / len(scale) - (math.log(bound) if logs else bound))
    spread = _deviation(scale)

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

"""Two load tests side by side: is the second better, worse, the same, or can nobody say? Pure.

Better and worse are told of differences that are both large and sure: the whole interval lies beyond the margin, and
that at a level which holds for all figures together, so that of twenty comparisons without a change one tells a false
one. The same is told where the whole interval lies within the margin.

One run is one draw. Where each side is a single run, intervals come from batches of its own seconds and hold for
these two runs; what differs from one start of the workers to the next is in no such interval. Several runs a side are
compared run by run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lab.load.batches import Side, chance, difference, from_runs, holm, ratio
from lab.load.measures import MEASURES, Better, Measure, of_kinds, side
from lab.load.model import Outcome
from lab.model import BadInput, Estimate

WITHIN = 0.05
"""Figures that differ by less than this share count as the same, unless told otherwise."""
SHARE_WITHIN = 0.001
"""The same for shares of jobs, as a difference."""
SAME_RATE = 0.02
"""Offered rates that differ by more than this are different loads, and latencies at different loads are no match."""
RULE_OF_THREE = 3.0
"""Nothing among n independent jobs leaves up to 3/n possible, at 95 % (Hanley & Lippman-Hand, JAMA 249, 1983)."""


class Change(StrEnum):
    """What became of a figure."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    CANNOT_SAY = "cannot say"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure on both sides."""

    measure: Measure
    before: float
    """In shown units; not a number where it is not known."""
    after: float
    change: Change
    because: str
    """Where the interval comes from, or why there is none."""
    ratio: Estimate | None = None
    """`after` over `before`; None for shares, and where nobody can say."""
    difference: Estimate | None = None
    """`after` less `before`, of shares, in shown units."""
    chance: float = math.nan
    """How often no change beyond the margin would show so much; not a number where nobody can say."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures, and what to know of them."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def compare(
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    *,
    within: float = WITHIN,
    any_load: bool = False,
    figures: Sequence[str] = (),
) -> Comparison:
    """Every measure that at least one side knows, of all jobs and of each kind; with `figures` only these.

    Raises BadInput for loads that differ, unless `any_load`; for one run on one side and several on the other; for a
    figure that there is not.
    """
    single = len(before) == len(after) == 1
    if not single and min(len(before), len(after)) < 2:
        raise BadInput(
            f"there are {len(before)} and {len(after)} runs: give one run a side, or two and more on both "
            "(A1 A2 A3 -- B1 B2 B3)"
        )
    notes = [f"the loads differ: {words}" for words in load_difference(before, after)]
    if notes and not any_load:
        raise BadInput(f"{notes[0]}; add --any-load to compare all the same")
    doubts = [
        f"{name} run {i} is INVALID: {one.faults[0].says}"
        for name, some in (("before,", before), ("after,", after))
        for i, one in enumerate(some, 1)
        if one.faults
    ]
    measures = (*MEASURES, *of_kinds([*before, *after]))
    if figures:
        known = [measure.name for measure in measures]
        if unknown := next((name for name in figures if name not in known), None):
            raise BadInput(f"there is no figure {unknown!r}; there are: {', '.join(known)}")
        measures = tuple(measure for measure in measures if measure.name in figures)
    doubt = doubts[0] if doubts else ""
    rows = _told([found for one in measures if (found := _row(one, before, after, within, doubt))])
    if single:
        notes.append(
            "one run a side: intervals come from batches of seconds within each run, and what differs from start to "
            "start is in none of them; for that, compare several runs a side (A1 A2 A3 -- B1 B2 B3)"
        )
    tested = sum(math.isfinite(row.chance) for row in rows)
    if tested > 1:
        notes.append(
            f"brackets hold for each figure alone; better and worse, for all {tested} together (Holm): the fewer "
            "figures are asked for with --figure, or the more runs there are, the smaller a change is seen"
        )
    return Comparison(rows, (*doubts, *notes))


def load_difference(before: Sequence[Outcome], after: Sequence[Outcome]) -> list[str]:
    """Where the loads differ, in words: nothing where all runs worked on the same."""
    every = [*before, *after]
    first = every[0].scenario
    found = []
    for one in every[1:]:
        if _asked(one) != _asked(every[0]):
            found.append(f"the jobs or the stages of {one.scenario.name!r} are not those of {first.name!r}")
            break
    rates = [one.offered_hz for one in every]
    if not first.is_closed and min(rates) > 0 and max(rates) / min(rates) > 1 + SAME_RATE:
        found.append(f"from {min(rates):.4g} to {max(rates):.4g} jobs/s were offered")
    return found


def _asked(outcome: Outcome) -> tuple[object, ...]:
    scenario = outcome.scenario
    kinds = tuple(repr(replace(kind, line=0)) for kind in scenario.kinds)
    return (kinds, tuple(repr(replace(stage, line=0)) for stage in scenario.stages), scenario.count)


def _row(
    measure: Measure, before: Sequence[Outcome], after: Sequence[Outcome], within: float, doubt: str
) -> Row | None:
    values = [[measure.whole(one) for one in some] for some in (before, after)]
    means = [_mean([v for v in some if math.isfinite(v)]) for some in values]
    if not any(map(math.isfinite, means)):
        return None
    shown = [mean * measure.times for mean in means]
    row = Row(measure, shown[0], shown[1], Change.CANNOT_SAY, doubt)
    if doubt:
        return row
    if means == [0.0, 0.0]:
        if measure.is_share:
            return _both_nothing(row, before, after)
        return replace(row, change=Change.SAME, because="nothing on either side")
    first, second = (_side(measure, some) for some in (before, after))
    if isinstance(first, str) or isinstance(second, str):
        return replace(row, because=first if isinstance(first, str) else str(second))
    if measure.is_share:
        first, second = _at_least_chance(measure, first, second, before, after)
    return _judged(row, first, second, within)


def _side(measure: Measure, some: Sequence[Outcome]) -> Side | str:
    if len(some) == 1:
        return side(measure, some[0])
    return from_runs([measure.whole(one) for one in some], logs=not measure.is_share)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _both_nothing(row: Row, before: Sequence[Outcome], after: Sequence[Outcome]) -> Row:
    jobs = min(sum(row.measure.jobs(one) for one in some) for some in (before, after))
    possible = RULE_OF_THREE / jobs if jobs else 1.0
    if possible > SHARE_WITHIN:
        return replace(row, because=f"none among {jobs} jobs leaves up to {possible:.2%} possible")
    return replace(row, change=Change.SAME, because=f"none among {jobs} jobs or more a side")


def _judged(row: Row, first: Side, second: Side, within: float) -> Row:
    """The row with its interval and its chance; better and worse wait until those of all rows are known."""
    measure = row.measure
    how = first.how if first.how == second.how else f"{first.how}; {second.how}"
    if measure.is_share:
        raw = difference(first, second)
        change = _same(raw, -SHARE_WITHIN, SHARE_WITHIN)
        times = measure.times
        scaled = Estimate(raw.value * times, raw.low * times, raw.high * times, raw.n)
        found = chance(first, second, margin=SHARE_WITHIN, logs=False)
        return replace(row, change=change, because=how, difference=scaled, chance=found)
    between = ratio(first, second)
    change = _same(between, 1 / (1 + within), 1 + within)
    found = chance(first, second, margin=math.log1p(within))
    return replace(row, change=change, because=how, ratio=between, chance=found)


def _same(found: Estimate, least: float, most: float) -> Change:
    return Change.SAME if least <= found.low and found.high <= most else Change.CANNOT_SAY


def _told(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with better and worse."""
    tested = [row for row in rows if math.isfinite(row.chance)]
    sure = dict(zip(map(id, tested), holm([row.chance for row in tested]), strict=True))
    return tuple(replace(row, change=_direction(row)) if sure.get(id(row)) else row for row in rows)


def _direction(row: Row) -> Change:
    more = row.after > row.before if row.ratio is None else row.ratio.value > 1
    return Change.BETTER if more == (row.measure.better is Better.MORE) else Change.WORSE


def _at_least_chance(
    measure: Measure, first: Side, second: Side, before: Sequence[Outcome], after: Sequence[Outcome]
) -> tuple[Side, Side]:
    """Shares scatter at least as jobs do that fail by chance, however alike three runs happen to be."""
    jobs = [sum(measure.jobs(one) for one in some) for some in (before, after)]
    if not all(jobs):
        return first, second
    share = min(1.0, (first.value * jobs[0] + second.value * jobs[1]) / sum(jobs))
    least = share * (1 - share)
    return (
        replace(first, variance=max(first.variance, least / jobs[0])),
        replace(second, variance=max(second.variance, least / jobs[1])),
    )

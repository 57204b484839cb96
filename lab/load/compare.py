"""Two load tests side by side: is the second better, worse, the same, or can nobody say? Pure.

One run is one draw. Where each side is a single run, intervals come from batches of its own seconds and hold for
these two runs; what differs from one start of the workers to the next is in no such interval. Several runs a side are
compared run by run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lab.load.batches import Side, difference, from_runs, ratio
from lab.load.measures import MEASURES, Better, Measure, side
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


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures, and what to know of them."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def compare(
    before: Sequence[Outcome], after: Sequence[Outcome], *, within: float = WITHIN, any_load: bool = False
) -> Comparison:
    """Every measure that at least one side knows.

    Raises BadInput for loads that differ, unless `any_load`; for one run on one side and several on the other.
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
    rows = tuple(
        found for measure in MEASURES if (found := _row(measure, before, after, within, doubts[0] if doubts else ""))
    )
    if single:
        notes.append(
            "one run a side: intervals come from batches of seconds within each run, and what differs from start to "
            "start is in none of them; for that, compare several runs a side (A1 A2 A3 -- B1 B2 B3)"
        )
    told = sum(row.change is not Change.CANNOT_SAY for row in rows)
    if told > 1:
        notes.append(f"no correction is made for looking at {told} figures: one in twenty differs by chance")
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
    if measure.is_share and means == [0.0, 0.0]:
        return _both_nothing(row, before, after)
    first, second = (_side(measure, some) for some in (before, after))
    if isinstance(first, str) or isinstance(second, str):
        return replace(row, because=first if isinstance(first, str) else str(second))
    return _judged(row, first, second, within)


def _side(measure: Measure, some: Sequence[Outcome]) -> Side | str:
    if len(some) == 1:
        return side(measure, some[0])
    return from_runs([measure.whole(one) for one in some], logs=not measure.is_share)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _both_nothing(row: Row, before: Sequence[Outcome], after: Sequence[Outcome]) -> Row:
    jobs = min(sum(one.ledger.issued for one in some) for some in (before, after))
    possible = RULE_OF_THREE / jobs if jobs else 1.0
    if possible > SHARE_WITHIN:
        return replace(row, because=f"none among {jobs} jobs leaves up to {possible:.2%} possible")
    return replace(row, change=Change.SAME, because=f"none among {jobs} jobs or more a side")


def _judged(row: Row, first: Side, second: Side, within: float) -> Row:
    measure = row.measure
    how = first.how if first.how == second.how else f"{first.how}; {second.how}"
    if measure.is_share:
        raw = difference(first, second)
        change = _change(measure, raw, 0.0, -SHARE_WITHIN, SHARE_WITHIN)
        times = measure.times
        scaled = Estimate(raw.value * times, raw.low * times, raw.high * times, raw.n)
        return replace(row, change=change, because=how, difference=scaled)
    found = ratio(first, second)
    change = _change(measure, found, 1.0, 1 / (1 + within), 1 + within)
    return replace(row, change=change, because=how, ratio=found)


def _change(measure: Measure, found: Estimate, nothing: float, least: float, most: float) -> Change:
    """The whole interval is judged: the same when all of it is near nothing, else better or worse when none is."""
    if least <= found.low and found.high <= most:
        return Change.SAME
    if found.low <= nothing <= found.high:
        return Change.CANNOT_SAY
    return Change.BETTER if (found.low > nothing) == (measure.better is Better.MORE) else Change.WORSE

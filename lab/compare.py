"""Two suites side by side: did a claim's figure change?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lab.model import Estimate, Experiment, Finding, Run, Suite
from lab.stats import blocks, t_quantile
from lab.verdict import judge_all


@dataclass(frozen=True, slots=True)
class Change:
    """One claim in two suites."""

    before: Finding
    after: Finding
    ratio: Estimate | None
    """The estimate in the second suite over that in the first; n is the smaller number of repeats."""


def compare(experiments: Iterable[Experiment], before: Suite, after: Suite) -> list[Change]:
    """Every claim that both suites hold."""
    known = list(experiments)
    first = {f.claim.id: f for f in judge_all(known, before)}
    second = {f.claim.id: f for f in judge_all(known, after)}
    changes = []
    for experiment in known:
        for claim in experiment.claims:
            if claim.id in first and claim.id in second:
                sides = [blocks(claim.measure, _runs(suite, experiment)) for suite in (before, after)]
                changes.append(Change(first[claim.id], second[claim.id], welch(*sides)))
    return changes


def _runs(suite: Suite, experiment: Experiment) -> list[Run]:
    return [run for run in suite.runs if run.trial.experiment == experiment.name]


def welch(before: list[float], after: list[float]) -> Estimate | None:
    """The ratio of two geometric means with a 95 % interval, for blocks that are not paired and scatter unequally.

    Welch, Biometrika 34 (1947); degrees of freedom after Satterthwaite, rounded down. None with fewer than two a side,
    and where a value has no logarithm: nothing is so many times as much as nothing.
    """
    if min(len(before), len(after)) < 2 or not all(0 < value < math.inf for value in (*before, *after)):
        return None
    logs = [[math.log(v) for v in side] for side in (before, after)]
    means = [math.fsum(side) / len(side) for side in logs]
    spreads = [
        math.fsum((v - m) ** 2 for v in side) / (len(side) - 1) / len(side) for side, m in zip(logs, means, strict=True)
    ]
    difference, variance = means[1] - means[0], sum(spreads)
    if variance == 0:
        half = 0.0
    else:
        freedom = variance**2 / sum(s**2 / (len(side) - 1) for s, side in zip(spreads, logs, strict=True))
        half = t_quantile(max(1, math.floor(freedom))) * math.sqrt(variance)
    low, high = math.exp(difference - half), math.exp(difference + half)
    return Estimate(math.exp(difference), low, high, min(len(before), len(after)))

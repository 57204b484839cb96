"""Bounds and estimates of claims as a reader sees them, with their units."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lab.model import BreakEven, Claim, Estimate, Finding, Verdict
from lab.report import words
from lab.report.units import TIMES, has_interval, interval, number, repeats

NEVER = "never within the lengths measured"


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate in words."""

    value: str
    interval: str
    """The 95 % interval in brackets, or why there is none."""
    n: str


def bound(claim: Claim) -> str:
    """The prediction in figures, such as `at most 10 ms`; a ratio is a bare number."""
    unit = words.unit(claim.measure)
    return claim.bound if unit is None else f"{_shown(claim).bound} {unit.after}".rstrip()


def figure(finding: Finding) -> Figure | None:
    """What was measured; None where nothing was."""
    estimate = finding.estimate
    if estimate is None:
        return None
    claim, unit = _shown(finding.claim), words.unit(finding.claim.measure)
    if unit is None:
        return Figure(number(estimate.value), interval(estimate, claim), repeats(estimate.n))
    if isinstance(claim.measure, BreakEven) and not (math.isfinite(estimate.value) and has_interval(estimate)):
        return _odd_length(estimate, unit)
    times = unit.times
    scaled = Estimate(estimate.value * times, estimate.low * times, estimate.high * times, estimate.n)
    value = f"{number(scaled.value)} {unit.after}".rstrip()
    if isinstance(claim.measure, BreakEven) and math.isclose(scaled.low, scaled.high, rel_tol=1e-9):
        # Read off at the same length in every repeat: it paid there, and nothing shorter was measured.
        value = f"{value} or less"
    return Figure(value, interval(scaled, claim), repeats(scaled.n))


def _odd_length(estimate: Estimate, unit: words.Unit) -> Figure:
    if math.isfinite(estimate.value):
        return Figure(f"{number(estimate.value * unit.times)} {unit.after}", interval(estimate), repeats(estimate.n))
    if math.isfinite(estimate.low):
        return Figure(
            NEVER,
            f"in some repeats; in others from {number(estimate.low * unit.times)} {unit.after} on",
            repeats(estimate.n),
        )
    return Figure(
        NEVER, f"in any of {repeats(estimate.n)}" if estimate.n > 1 else "one repeat: no interval", repeats(estimate.n)
    )


def spoken(finding: Finding) -> str:
    """The estimate with its interval and n, or that there is none."""
    found, estimate = figure(finding), finding.estimate
    if found is None or estimate is None:
        return "nothing"
    if not has_interval(estimate):
        return f"{found.value}, {found.interval}"
    return f"{found.value}, 95 % interval {found.interval}, n = {found.n}"


def brief(finding: Finding) -> str:
    """The estimate and its interval in a few letters, such as `0.82 of the slots' time [0.80-0.84]`."""
    found = figure(finding)
    if found is None:
        return "no estimate"
    return f"{factor(finding)}{found.value} {found.interval}"


def factor(finding: Finding) -> str:
    """The sign before a ratio."""
    return f"{TIMES} " if words.unit(finding.claim.measure) is None else ""


def because(finding: Finding) -> str:
    """The reason of the verdict, with the bound as it is shown everywhere else."""
    if finding.verdict is Verdict.INVALID:
        return finding.because  # it speaks of a fault, whose figures are others
    return finding.because.replace(finding.claim.bound, bound(finding.claim), 1)


def _shown(claim: Claim) -> Claim:
    unit = words.unit(claim.measure)
    times = 1.0 if unit is None else unit.times
    return replace(claim, at_least=claim.at_least * times, at_most=claim.at_most * times)

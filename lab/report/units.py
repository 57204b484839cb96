"""Numbers as a reader sees them: three significant digits, and no pretence of an interval where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lab.model import Claim, Estimate

DIGITS = 3
NONE = "\N{EN DASH}"
"""What stands where nothing was measured."""
TO = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
MIB = 1024**2
GIB = 1024**3


def number(value: float, digits: int = DIGITS, decimals: int = 12) -> str:
    """The value with so many significant digits, written out between 0.0001 and a million.

    `decimals` is where the instrument ends: no digit is shown beyond that place.
    """
    if not math.isfinite(value):
        return NONE
    if round(value, decimals) == 0:
        return "0"
    # Round first: 9.996 becomes 10.0, not 10.00.
    value = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(value)))
    if not -4 <= exponent < 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{min(decimals, max(0, digits - 1 - exponent))}f}"


def span(low: float, high: float, digits: int = DIGITS) -> str:
    """Two numbers as `low-high`."""
    return f"{number(low, digits)}{TO}{number(high, digits)}"


def has_interval(estimate: Estimate) -> bool:
    """Whether there were repeats enough to say how sure the number is."""
    return estimate.n > 1 and math.isfinite(estimate.low) and math.isfinite(estimate.high)


def interval(estimate: Estimate, claim: Claim | None = None) -> str:
    """The 95 % interval as `[low-high]`, or that there is none.

    Beside a claim it gets as many digits as it takes to show on which side of the bound its ends lie: a reader who
    sees 1.60 against `at least 1.6` must not be misled by rounding.
    """
    if not has_interval(estimate):
        return "one repeat: no interval" if estimate.n == 1 else "no interval"
    bounds = () if claim is None else tuple(b for b in (claim.at_least, claim.at_most) if math.isfinite(b))
    digits = next((d for d in range(DIGITS, 15) if _keeps_sides(estimate, bounds, d)), 15)
    return f"[{span(estimate.low, estimate.high, digits)}]"


def _keeps_sides(estimate: Estimate, bounds: Sequence[float], digits: int) -> bool:
    ends = (estimate.low, estimate.high)
    return all(
        (float(number(end, digits)) < bound, float(number(end, digits)) > bound) == (end < bound, end > bound)
        for end in ends
        for bound in bounds
    )


def sure(estimate: Estimate | None, scale: float = 1.0) -> str:
    """Value and interval in one cell: `79.7 [77.1-82.4]`. A single repeat shows the value alone; its n says why."""
    if estimate is None:
        return NONE
    if not has_interval(estimate):
        return number(estimate.value * scale)
    return f"{number(estimate.value * scale)} [{span(estimate.low * scale, estimate.high * scale)}]"


def spread(values: Sequence[float], scale: float = 1.0, *, decimals: int = 12) -> str:
    """Mean, lowest and highest in one cell: `25.3 (24.9-25.8)`."""
    finite = [value * scale for value in values if math.isfinite(value)]
    if not finite:
        return NONE
    middle = number(math.fsum(finite) / len(finite), decimals=decimals)
    low, high = number(min(finite), decimals=decimals), number(max(finite), decimals=decimals)
    return middle if low == high == middle else f"{middle} ({low}{TO}{high})"


def repeats(n: int) -> str:
    """`1 repeat`, `5 repeats`."""
    return plural(n, "repeat")


def plural(n: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def share(value: float) -> str:
    """A share of one, as per cent."""
    return f"{number(value * 100)} %" if math.isfinite(value) else NONE


def plain(text: object) -> str:
    """The text without characters that steer a terminal or break a file, which a stranger's suite may hold."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(text))

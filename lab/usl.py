"""The Universal Scalability Law: what contention and coherency leave of n workers.

X(n) = r n / (1 + s(n-1) + k n(n-1)), with r the rate of one, s the contention and k the coherency (Gunther, Guerrilla
Capacity Planning, 2007, where they are lambda, sigma and kappa).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOADS = 6
"""Fewer loads than this say little of three parameters (Gunther, the same)."""


@dataclass(frozen=True, slots=True)
class Usl:
    """One curve of the law."""

    rate_hz: float
    """Of one: the textbook's lambda."""
    contention: float
    """The textbook's sigma: the share of the work that only one does at a time."""
    coherency: float
    """The textbook's kappa: what each pair costs that must agree."""

    def throughput_hz(self, n: float) -> float:
        """X(n), in jobs per second."""
        return self.rate_hz * n / (1 + self.contention * (n - 1) + self.coherency * n * (n - 1))

    @property
    def best_n(self) -> float:
        """sqrt((1-s)/k), where more does no more; endless without coherency cost."""
        return math.sqrt(max(0.0, 1 - self.contention) / self.coherency) if self.coherency > 0 else math.inf


def fit(points: Mapping[int, float]) -> Usl:
    """The law's best curve through throughputs by number, by least squares of relative errors.

    n/X = 1/r + (s/r)(n-1) + (k/r)n(n-1) is linear in its three unknowns, none of which may be negative. Raises
    ValueError with fewer than 3 points.
    """
    if len(points) < 3:
        raise ValueError("three parameters need at least three points")
    n, x = np.array(list(points), dtype=float), np.array(list(points.values()), dtype=float)
    columns = np.stack([np.ones_like(n), n - 1, n * (n - 1)], axis=1)
    # Each equation divided by n/X: its error is then relative.
    weight = x / n
    best: tuple[float, NDArray[np.float64]] | None = None
    # Non-negative least squares over two signs: with three columns, try every choice of which are zero.
    for kept in ((0, 1, 2), (0, 1), (0, 2), (0,)):
        chosen = columns[:, kept] * weight[:, None]
        solved, *_ = np.linalg.lstsq(chosen, np.ones_like(n), rcond=None)
        if (solved < 0).any():
            continue
        error = float(np.sum((chosen @ solved - 1) ** 2))
        if best is None or error < best[0] - 1e-15:
            full = np.zeros(3)
            full[list(kept)] = solved
            best = (error, full)
    assert best is not None  # noqa: S101  the constant alone is never negative
    a, b, c = best[1]
    return Usl(1 / a, b / a, c / a)

"""When each job of a scenario is due. Pure: no clock, no sleep; a whole load can be listed before it is sent.

Every open shape is a rate over time. Its area, the number of jobs so far, is inverted: with even arrivals job i is due
when the area reaches i; with random ones when it reaches the i-th arrival of a Poisson process of rate 1, which makes a
Poisson process of the shape's rate (time rescaling; Cox & Lewis 1966). Times come in blocks, so a load of any length
takes no more memory than one block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.load.model import Arrivals, Piece, Stage

Seconds = NDArray[np.float64]

BLOCK = 4096
"""Jobs planned at once."""
BISECTIONS = 50
"""Of a sine's inverse: the first bracket is a third of a period wide, 2^-50 of it is below a nanosecond."""

Moments = Callable[[Stage], Iterable[Seconds]]
"""Reads a replay's moments, a block at a time."""


class Block(NamedTuple):
    """Some jobs that follow each other."""

    first: int
    """The number of the first."""
    due_s: Seconds
    """When each is due, from the first moment of the scenario; never falling."""


def no_trace(stage: Stage) -> Iterable[Seconds]:
    """For scenarios without a replay."""
    raise ValueError(f"nobody reads the trace {stage.trace!r}")


def blocks(
    stages: Sequence[Stage], *, seed: int = 0, count: int | None = None, first: int = 0, moments: Moments = no_trace
) -> Iterator[Block]:
    """All jobs of open stages that follow each other, in order; the first has the number `first`.

    Raises ValueError for a closed stage: nobody knows beforehand when its jobs are due.
    """
    begin_s, given = 0.0, first
    for number, stage in enumerate(stages):
        for due_s in stage_blocks(stage, seed=seed, number=number, moments=moments):
            if count is not None and given + len(due_s) >= count:
                if given < count:
                    yield Block(given, begin_s + due_s[: count - given])
                return
            yield Block(given, begin_s + due_s)
            given += len(due_s)
        begin_s += stage.for_s


def stage_blocks(
    stage: Stage, *, seed: int = 0, number: int = 0, moments: Moments = no_trace
) -> Iterator[NDArray[np.float64]]:
    """When each job of one open stage is due, from its beginning; arrays of up to BLOCK, none empty."""
    if stage.is_closed:
        raise ValueError("a closed stage waits for its own ends")
    if stage.shape == "replay":
        yield from _replayed(stage, moments)
        return
    total = stage.expected_jobs
    inverse = _sine(stage) if stage.shape == "sine" else _straight(stage.pieces)
    for area in _areas(stage, total, seed, number):
        if len(area):
            # Rounding must not push a job past the end of its stage, nor turn time back.
            yield np.minimum(np.maximum.accumulate(inverse(area)), stage.for_s)


def _areas(stage: Stage, total: float, seed: int, number: int) -> Iterator[Seconds]:
    if stage.arrivals is Arrivals.EVEN:
        # Multiply, never add up: the millionth job is as punctual as the first.
        jobs = max(1, math.ceil(round(total, 9)))
        for at in range(0, jobs, BLOCK):
            yield np.arange(at, min(at + BLOCK, jobs), dtype=np.float64)
        return
    chance, reached = np.random.default_rng([seed & 0xFFFF_FFFF, number]), 0.0
    while reached < total:
        area = reached + np.cumsum(chance.exponential(size=BLOCK))
        reached = float(area[-1])
        yield area[area < total]


def _straight(pieces: Sequence[Piece]) -> Callable[[Seconds], Seconds]:
    """The inverse of the area under straight lines."""
    lengths = np.array([piece.for_s for piece in pieces])
    low, high = np.array([p.from_hz for p in pieces]), np.array([p.to_hz for p in pieces])
    slope = (high - low) / lengths
    begins_s = np.concatenate(([0.0], np.cumsum(lengths)[:-1]))
    begins = np.concatenate(([0.0], np.cumsum((low + high) / 2 * lengths)[:-1]))

    def inverse(area: Seconds) -> Seconds:
        # The last piece that begins at or below it; one without any area never is, unless it is the last.
        at = np.searchsorted(begins, area, side="right") - 1
        within, rate, rise = area - begins[at], low[at], slope[at]
        # low*t + slope*t*t/2 = area; the root in the form that also holds for slope 0.
        root = np.sqrt(np.maximum(rate**2 + 2 * rise * within, 0.0))
        divisor = rate + root
        t = np.divide(2 * within, divisor, out=np.zeros_like(within), where=divisor > 0)
        return np.asarray(begins_s[at] + np.minimum(t, lengths[at]), dtype=np.float64)

    return inverse


def _sine(stage: Stage) -> Callable[[Seconds], Seconds]:
    """The inverse of  mean*t + swing*(1 - cos(omega*t))/omega."""
    omega = 2 * math.pi / stage.period_s

    def inverse(area: Seconds) -> Seconds:
        # The second term lies between 0 and 2*swing/omega.
        high = area / stage.mean_hz
        low = np.maximum(high - 2 * stage.swing_hz / omega / stage.mean_hz, 0.0)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = stage.mean_hz * middle + stage.swing_hz * (1 - np.cos(omega * middle)) / omega < area
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray(high, dtype=np.float64)

    return inverse


def _replayed(stage: Stage, moments: Moments) -> Iterator[Seconds]:
    """The first moment becomes 0."""
    begin: float | None = None
    for block in moments(stage):
        if len(block):
            begin = float(block[0]) if begin is None else begin
            yield (block - begin) / stage.speed

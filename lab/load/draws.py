"""Chance that belongs to a job: the same seed and number give the same draw, in any process and in any order. Pure.

SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) of the job's number: no state to carry from one job to the next, so that
each of several producers draws for its own jobs alone, and the observer can draw again what a job was sent with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.load.model import Drawn

_MASK = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mixed(word: int) -> int:
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK
    return word ^ (word >> 31)


def stream(seed: int, name: str) -> int:
    """A start of its own for each use of chance in a scenario."""
    word = seed & _MASK
    for byte in name.encode():
        word = _mixed((word + _GOLDEN * (byte + 1)) & _MASK)
    return word


def share(start: int, seq: int) -> float:
    """A number of [0, 1) for job number `seq` of this stream."""
    return (_mixed((start + _GOLDEN * (seq + 1)) & _MASK) >> 11) / (1 << 53)


def shares(start: int, seqs: NDArray[Any]) -> NDArray[np.float64]:
    """`share` of many jobs at once; shape (n,)."""
    word = np.uint64(start) + np.uint64(_GOLDEN) * (seqs.astype(np.uint64) + np.uint64(1))
    word = (word ^ (word >> np.uint64(30))) * np.uint64(_FIRST)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(_SECOND)
    word ^= word >> np.uint64(31)
    return np.asarray((word >> np.uint64(11)) / float(1 << 53), dtype=np.float64)


def chosen(start: int, seqs: NDArray[Any], weights: Sequence[float]) -> NDArray[np.int64]:
    """Which of several things with these weights each job is; shape (n,)."""
    if len(weights) == 1:
        return np.zeros(len(seqs), dtype=np.int64)
    edges = np.cumsum(weights) / math.fsum(weights)
    at = np.searchsorted(edges, shares(start, seqs), side="right")
    return np.minimum(at, len(weights) - 1).astype(np.int64)


def drawn(value: Drawn, start: int, seq: int) -> Any:
    """What job number `seq` of this stream gets."""
    chance = share(start, seq)
    match value.how:
        case "exponential":
            # The inverse of the distribution; 1 - chance is never 0.
            return -math.log(1.0 - chance) * value.values[0]
        case "uniform":
            low, high = value.values
            return low + (high - low) * chance
        case _:
            return value.values[int(chance * len(value.values))]

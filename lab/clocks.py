"""Compares the clocks of two machines: each asks the broker for its time, and knows how wrong the answer can be.

The broker read its clock somewhere between question and answer, so the middle of the two is off by no more than half
of the way there and back (F. Cristian, Probabilistic clock synchronization, Distributed Computing 3, 1989). Of several
questions the one that came back quickest says most. Moments are ns: of CLOCK_MONOTONIC on the asker's side, since 1970
on the broker's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

TRIES = 3
"""Questions in a row, of which the quickest counts."""
RESOLUTION_NS = 1_000
"""TIME answers in whole microseconds."""
RATE_ERROR = 1e-3
"""A clock that is being corrected runs up to 500 ppm wrong (adjtimex(2)), and there is one on each side."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to the broker for its time."""

    asked_ns: int
    answered_ns: int
    said_ns: int

    @property
    def offset_ns(self) -> int:
        """What must be added to the asker's clock to get the broker's."""
        return self.said_ns + RESOLUTION_NS // 2 - (self.asked_ns + self.answered_ns) // 2

    @property
    def bound_ns(self) -> int:
        """By how much the offset can be wrong, either way."""
        return (self.answered_ns - self.asked_ns + 1) // 2 + RESOLUTION_NS // 2 + 1


@dataclass(frozen=True, slots=True)
class Shift:
    """What must be added to another machine's clock to get ours, and by how much that can be wrong, either way."""

    ns: int
    bound_ns: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A machine's clock against ours over a whole run."""

    shift_ns: int
    bound_ns: int
    drift_ns: int
    """By how much the shift at the end is larger than the one at the beginning."""


def ask(
    said: Callable[[], tuple[int, int]], *, tries: int = TRIES, now_ns: Callable[[], int] = time.monotonic_ns
) -> Probe:
    """The quickest of several questions; `said` is the broker's TIME, in seconds and microseconds."""
    probes = []
    for _ in range(tries):
        asked_ns = now_ns()
        seconds, microseconds = said()
        probes.append(Probe(asked_ns, now_ns(), (int(seconds) * 1_000_000 + int(microseconds)) * 1000))
    return min(probes, key=lambda probe: probe.bound_ns)


def shift(theirs: Iterable[Probe], ours: Iterable[Probe]) -> Shift:
    """From the pair of probes that bounds it best; raises ValueError where one side has none.

    Between the two questions a clock may have been corrected, so a pair that lies far apart says less.
    """
    ours = tuple(ours)
    pairs = [_of(their, our) for their in theirs for our in ours]
    if not pairs:
        raise ValueError("a clock can be compared only where both sides have asked")
    return min(pairs, key=lambda one: one.bound_ns)


def _of(theirs: Probe, ours: Probe) -> Shift:
    apart_ns = abs(theirs.said_ns - ours.said_ns)
    bound_ns = theirs.bound_ns + ours.bound_ns + round(RATE_ERROR * apart_ns)
    return Shift(theirs.offset_ns - ours.offset_ns, bound_ns)


def compared(begin: Shift, end: Shift, *, same_boot: bool) -> Comparison:
    """One shift for everything between the two, in the middle; what they differ by is within the bound.

    Within one boot of one machine the clocks are one clock, and the bound is nothing: unless they differ by more than
    the bound allows, as they do in another time namespace.
    """
    if same_boot and abs(begin.ns) <= begin.bound_ns and abs(end.ns) <= end.bound_ns:
        return Comparison(0, 0, 0)
    drift_ns = end.ns - begin.ns
    bound_ns = max(begin.bound_ns, end.bound_ns) + (abs(drift_ns) + 1) // 2
    return Comparison((begin.ns + end.ns) // 2, bound_ns, drift_ns)

"""When each job is due.

A pacer yields seconds since the start, never decreasing. It holds no clock and never sleeps, so a whole load can be
printed, tested or replayed before it is sent.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class Pacer(Protocol):
    """A shape of load."""

    @property
    def count(self) -> int:
        """How many jobs it makes in all."""
        ...

    def due_s(self, ended_s: Iterable[float] = ()) -> Iterator[float]:
        """When each job is due. Only a closed load looks at `ended_s`, the moments at which jobs ended."""
        ...


def merged(pacers: Sequence[Pacer]) -> list[tuple[float, int, int]]:
    """All jobs of several open loads in order of time: when each is due, which load it belongs to, its number there.

    Jobs that are due at once keep the order of their loads. Raises PacerError for a closed load: it waits for its own
    ends, so nobody knows beforehand when its jobs are due.
    """
    if any(isinstance(pacer, Closed) for pacer in pacers):
        raise PacerError("a closed load cannot run beside another: use Constant, Poisson or Burst")
    rows = [(due, which, number) for which, pacer in enumerate(pacers) for number, due in enumerate(pacer.due_s())]
    return sorted(rows)


class PacerError(ValueError):
    """A load that cannot be made; the message says which number is wrong."""


def _positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            raise PacerError(f"{name} must be a number above 0, not {value}")


def _not_negative(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (value >= 0 and math.isfinite(value)):
            raise PacerError(f"{name} must be a number of 0 or more, not {value}")


def _whole(**numbers: int) -> None:
    _positive(**numbers)
    for name, value in numbers.items():
        if value != int(value):
            raise PacerError(f"{name} must be a whole number, not {value}")


@dataclass(frozen=True, slots=True)
class Constant:
    """`rate_hz` jobs a second, evenly spaced."""

    rate_hz: float
    duration_s: float

    def __post_init__(self) -> None:
        _positive(rate_hz=self.rate_hz, duration_s=self.duration_s)

    @property
    def count(self) -> int:
        """The first job is due at 0, and none at or after `duration_s`."""
        return max(1, math.ceil(round(self.rate_hz * self.duration_s, 9)))

    def due_s(self, ended_s: Iterable[float] = ()) -> Iterator[float]:  # noqa: ARG002  an open load
        """Job i is due at i / rate."""
        # Multiply, never add up: the millionth job is as punctual as the first.
        for i in range(self.count):
            yield i / self.rate_hz


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals, `rate_hz` a second on average: the same seed, the same load."""

    rate_hz: float
    duration_s: float
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(rate_hz=self.rate_hz, duration_s=self.duration_s)

    @property
    def count(self) -> int:
        """How many arrivals this seed draws."""
        return sum(1 for _ in self.due_s())

    def due_s(self, ended_s: Iterable[float] = ()) -> Iterator[float]:  # noqa: ARG002  an open load
        """Gaps are exponential, with mean 1 / rate."""
        rng, due = random.Random(self.seed), 0.0
        while (due := due + rng.expovariate(self.rate_hz)) < self.duration_s:
            yield due


@dataclass(frozen=True, slots=True)
class Burst:
    """`size` jobs, all due at once: how long until the queue is empty?"""

    size: int

    def __post_init__(self) -> None:
        _whole(size=self.size)

    @property
    def count(self) -> int:
        """All of them."""
        return self.size

    def due_s(self, ended_s: Iterable[float] = ()) -> Iterator[float]:  # noqa: ARG002  an open load
        """Every job is due at 0."""
        yield from itertools.repeat(0.0, self.size)


@dataclass(frozen=True, slots=True)
class Ramp:
    """From `low_hz` to `high_hz` in a straight line."""

    low_hz: float
    high_hz: float
    duration_s: float

    def __post_init__(self) -> None:
        _not_negative(low_rate=self.low_hz, high_rate=self.high_hz)
        _positive(duration_s=self.duration_s, highest_rate=max(self.low_hz, self.high_hz))

    @property
    def count(self) -> int:
        """The area under the rate."""
        return max(1, math.ceil(round((self.low_hz + self.high_hz) / 2 * self.duration_s, 9)))

    def due_s(self, ended_s: Iterable[float] = ()) -> Iterator[float]:  # noqa: ARG002  an open load
        """Job i is due when the area under the rate reaches i:  low*t + slope*t*t/2 = i."""
        slope = (self.high_hz - self.low_hz) / self.duration_s
        for i in range(self.count):
            # The root in the form that also holds for slope 0; rounding must not push the square below 0.
            root = math.sqrt(max(0.0, self.low_hz**2 + 2 * slope * i))
            yield min(2 * i / (self.low_hz + root), self.duration_s) if i else 0.0


@dataclass(frozen=True, slots=True)
class Steps:
    """One constant rate after another, each for `step_s` seconds; a rate of 0 is a pause."""

    rates_hz: tuple[float, ...]
    step_s: float

    def __post_init__(self) -> None:
        for rate in self.rates_hz:
            _not_negative(rate=rate)
        _positive(step_s=self.step_s, highest_rate=max(self.rates_hz, default=0))

    @property
    def count(self) -> int:
        """The sum over the steps."""
        return sum(Constant(rate, self.step_s).count for rate in self.rates_hz if rate > 0)

    def due_s(self, ended_s: Iterable[float] = ()) -> Iterator[float]:  # noqa: ARG002  an open load
        """Each step starts on time, whatever the one before it made."""
        for step, rate in enumerate(self.rates_hz):
            if rate > 0:
                yield from (step * self.step_s + due for due in Constant(rate, self.step_s).due_s())


@dataclass(frozen=True, slots=True)
class Replay:
    """A recorded load: the moments themselves, in seconds, optionally `speed` times as fast."""

    moments_s: tuple[float, ...]
    speed: float = 1.0

    def __post_init__(self) -> None:
        _positive(speed=self.speed, jobs=len(self.moments_s))
        if list(self.moments_s) != sorted(self.moments_s) or not math.isfinite(sum(self.moments_s)):
            raise PacerError("a recorded load must be finite moments in order of time")

    @property
    def count(self) -> int:
        """One job a moment."""
        return len(self.moments_s)

    def due_s(self, ended_s: Iterable[float] = ()) -> Iterator[float]:  # noqa: ARG002  an open load
        """The first moment becomes 0."""
        for moment in self.moments_s:
            yield (moment - self.moments_s[0]) / self.speed


@dataclass(frozen=True, slots=True)
class Closed:
    """`clients` who each wait for their job to end, think for `think_s` seconds and send the next: `size` jobs in all.

    Kept to show what such a load hides: when the queue is slow, these clients simply send less (Schroeder et al., NSDI
    2006, "Open versus closed").
    """

    clients: int
    size: int
    think_s: float = 0.0

    def __post_init__(self) -> None:
        _whole(clients=self.clients, size=self.size)
        _not_negative(think_s=self.think_s)

    @property
    def count(self) -> int:
        """All of them."""
        return self.size

    def due_s(self, ended_s: Iterable[float] = ()) -> Iterator[float]:
        """The first jobs are due at 0, each later one `think_s` after an earlier one ended."""
        yield from itertools.repeat(0.0, min(self.clients, self.size))
        latest = 0.0
        for ended in itertools.islice(ended_s, max(0, self.size - self.clients)):
            # Ends are told in the order they were seen; a late word must not turn time back.
            latest = max(latest, ended + self.think_s)
            yield latest

"""Several loads side by side, for a while or for ever: what `producer --mix FILE` sends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from producer.pacers import PacerError, Poisson, merged
from producer.payloads import EachJob, Value

ROUND_S = 60.0
"""Arrivals are drawn for so long at once: a load for ever must not be planned for ever."""
KEYS = {"job": str, "queue": str, "rate": (int, float), "ms": (int, float), "args": dict}


class MixError(PacerError):
    """A mix that cannot be sent; the message says which load and what is wrong."""


@dataclass(frozen=True, slots=True)
class MixedLoad:
    """One kind of job among others; its arrivals are independent of theirs and of each other."""

    job: str
    queue: str
    rate_hz: float
    ms: float = 10.0
    """CPU time of a job that scales."""
    args: Mapping[str, Value] = field(default_factory=dict)


class Arrival(NamedTuple):
    """A job that is to be sent."""

    due_s: float
    load: int
    """Which load it belongs to."""
    number: int
    """How many of that load came before it."""


def loads_in(table: Mapping[str, Any]) -> list[MixedLoad]:
    """The loads of a parsed TOML file: tables `[[load]]` with job, queue, rate (jobs a second), ms and args.

    In `args` the text "{seq}" stands for the job's number. Raises MixError.
    """
    rows = table.get("load")
    if not isinstance(rows, list) or not rows or set(table) != {"load"}:
        raise MixError("a mix is one or more tables [[load]] with job, queue and rate, and nothing beside")
    return [_load(number, row) for number, row in enumerate(rows, 1)]


def _load(number: int, row: Any) -> MixedLoad:
    where = f"load {number} of the mix"
    if not isinstance(row, dict):
        raise MixError(f"{where} is no table")
    if unknown := set(row) - set(KEYS):
        raise MixError(f"{where} has {', '.join(sorted(unknown))}; a load has {', '.join(KEYS)}")
    if missing := {"job", "queue", "rate"} - set(row):
        raise MixError(f"{where} has no {', '.join(sorted(missing))}")
    for name, value in row.items():
        if not isinstance(value, KEYS[name]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise MixError(f"{where}: {name} cannot be {value!r}")
    rate_hz, ms = float(row["rate"]), float(row.get("ms", 10.0))
    for name, value in (("rate", rate_hz), ("ms", ms)):
        if not (value > 0 and math.isfinite(value)):
            raise MixError(f"{where}: {name} must be a number above 0, not {value}")
    args = {name: EachJob() if value == "{seq}" else value for name, value in row.get("args", {}).items()}
    return MixedLoad(row["job"], row["queue"], rate_hz, ms, args)


def poisson(rates_hz: Sequence[float], duration_s: float, seed: int = 0) -> Iterator[Arrival]:
    """Independent arrivals of loads at these rates, in order of time; for ever if `duration_s` is infinite.

    The same seed makes the same arrivals.
    """
    sent = [0] * len(rates_hz)
    for round_ in itertools.count():
        begin_s = round_ * ROUND_S
        if (left_s := duration_s - begin_s) <= 0:
            return
        pacers = [
            # Every round of every load draws from a stream of its own.
            Poisson(rate_hz, min(ROUND_S, left_s), (seed * 1_000_003 + round_) * len(rates_hz) + load)
            for load, rate_hz in enumerate(rates_hz)
        ]
        for due_s, load, _ in merged(pacers):
            yield Arrival(begin_s + due_s, load, sent[load])
            sent[load] += 1


def constant(rate_hz: float) -> Iterator[Arrival]:
    """One load, evenly spaced, for ever."""
    # Multiply, never add up: the millionth job is as punctual as the first.
    return (Arrival(i / rate_hz, 0, i) for i in itertools.count())


class Feed:
    """Arrivals as a pacer, that also knows what each job is when its turn has come."""

    def __init__(self, arrivals: Iterator[Arrival], made: Callable[[int, int], Any]) -> None:
        """`made` makes what is sent of a load's number and the job's number in it."""
        self._arrivals, self._made = arrivals, made
        self._waiting: dict[int, Arrival] = {}

    @property
    def count(self) -> int:
        """Not known beforehand, and maybe without end: raises PacerError."""
        raise PacerError("nobody knows how many jobs this load makes")

    def due_s(self, ended_s: Iterable[float] = ()) -> Iterator[float]:  # noqa: ARG002  an open load
        """Each arrival when it is due."""
        for seq, arrival in enumerate(self._arrivals):
            self._waiting[seq] = arrival
            yield arrival.due_s

    def parcel(self, seq: int) -> Any:
        """Job number `seq`, once; before the first is due, a sample of the first load."""
        arrival = self._waiting.pop(seq, None) or Arrival(0.0, 0, 0)
        return self._made(arrival.load, arrival.number)

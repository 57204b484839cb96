"""Arguments of jobs: fixed, different for each job, or made of a given size."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EachJob:
    """Stands for the job's own number, counted from 0."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Stands for as much work as takes `ms` milliseconds of one core here: the lab finds out how much that is."""

    ms: float
    like: str | None = None
    """Counted in units of this job; None means those of the job that gets the argument."""


@dataclass(frozen=True, slots=True)
class Sometimes:
    """Stands for `rarely` in a `share` of the jobs, drawn with `seed`, and for `usually` in all others."""

    usually: Calibrated
    rarely: Calibrated
    share: float
    seed: int = 0

    def of(self, seq: int) -> Calibrated:
        """What job number `seq` gets."""
        return self.rarely if random.Random(f"{self.seed} {seq}").random() < self.share else self.usually


@dataclass(frozen=True, slots=True)
class Upstream:
    """Stands for the URL of the lab's HTTP server, which answers after `mean_ms` milliseconds on average."""

    mean_ms: float


@dataclass(frozen=True, slots=True)
class Text:
    """Stands for `size_bytes` letters drawn with `seed`."""

    size_bytes: int
    seed: int = 0


Value = int | float | str | bool | None | EachJob | Calibrated | Sometimes | Upstream | Text
Args = Mapping[str, Value]


def is_same_for_all(args: Args) -> bool:
    """Whether every job gets the same arguments."""
    return not any(isinstance(value, EachJob | Sometimes) for value in args.values())


def calibrated(args: Args) -> set[Calibrated]:
    """Every amount of work that jobs with these arguments may get."""
    found: set[Calibrated] = set()
    for value in args.values():
        match value:
            case Calibrated():
                found.add(value)
            case Sometimes(usually, rarely):
                found |= {usually, rarely}
    return found


def fill(args: Args, *, seq: int, units: Mapping[Calibrated, int], url: str) -> dict[str, object]:
    """The arguments of job number `seq`: plain JSON values.

    `units` says how much work each amount is here, `url` where the lab's HTTP server listens.
    """
    filled: dict[str, object] = {}
    for name, value in args.items():
        match value:
            case EachJob():
                filled[name] = seq
            case Calibrated():
                filled[name] = units[value]
            case Sometimes():
                filled[name] = units[value.of(seq)]
            case Upstream():
                filled[name] = url
            case Text(size_bytes, seed):
                filled[name] = "".join(random.Random(seed).choices(string.ascii_letters, k=size_bytes))
            case _:
                filled[name] = value
    return filled

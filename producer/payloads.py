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


@dataclass(frozen=True, slots=True)
class Upstream:
    """Stands for the URL of the lab's HTTP server, which answers after `mean_ms` milliseconds on average."""

    mean_ms: float


@dataclass(frozen=True, slots=True)
class Text:
    """Stands for `size_bytes` letters drawn with `seed`."""

    size_bytes: int
    seed: int = 0


Value = int | float | str | bool | None | EachJob | Calibrated | Upstream | Text
Args = Mapping[str, Value]


def is_same_for_all(args: Args) -> bool:
    """Whether every job gets the same arguments."""
    return not any(isinstance(value, EachJob) for value in args.values())


def fill(args: Args, *, seq: int, units: Mapping[float, int], url: str) -> dict[str, object]:
    """The arguments of job number `seq`: plain JSON values.

    `units` says how much work each number of milliseconds is here, `url` where the lab's HTTP server listens.
    """
    filled: dict[str, object] = {}
    for name, value in args.items():
        match value:
            case EachJob():
                filled[name] = seq
            case Calibrated(ms):
                filled[name] = units[ms]
            case Upstream():
                filled[name] = url
            case Text(size_bytes, seed):
                filled[name] = "".join(random.Random(seed).choices(string.ascii_letters, k=size_bytes))
            case _:
                filled[name] = value
    return filled

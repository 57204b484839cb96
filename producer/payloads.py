"""Arguments of jobs: fixed, different for each job, or made of a given size."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from tasks.shapes import make


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


@dataclass(frozen=True, slots=True)
class Payload:
    """Stands for a value of this shape and size, drawn with `seed`: see `tasks.shapes`."""

    shape: str
    size_bytes: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Referred:
    """Stands for a reference to a payload of bytes, which whoever sends the jobs has put there: `tasks.references`."""

    via: str
    size_bytes: int
    seed: int = 0
    each: bool = False
    """Every job has one of its own, put when it is sent and taken away by the job; else all read the same one."""

    @property
    def payload(self) -> bytes:
        """What is to be put there."""
        made: bytes = make("bytes", self.size_bytes, self.seed)
        return made


@dataclass(frozen=True, slots=True)
class Cycle:
    """Stands for these values in turn: job number `seq` gets number `seq` modulo their count."""

    values: tuple[str | int, ...]


Value = (
    int | float | str | bool | None | EachJob | Calibrated | Sometimes | Upstream | Text | Payload | Referred | Cycle
)
Args = Mapping[str, Value]


def is_same_for_all(args: Args) -> bool:
    """Whether every job gets the same arguments."""
    return not any(
        isinstance(value, EachJob | Sometimes | Cycle) or (isinstance(value, Referred) and value.each)
        for value in args.values()
    )


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


@lru_cache(maxsize=8)
def _letters(size_bytes: int, seed: int) -> str:
    """So much text; kept, since every trial of an experiment asks for the same."""
    return "".join(random.Random(seed).choices(string.ascii_letters, k=size_bytes))


def fill(
    args: Args,
    *,
    seq: int,
    units: Mapping[Calibrated, int],
    url: str,
    references: Mapping[Referred, Mapping[str, object]] = MappingProxyType({}),
) -> dict[str, object]:
    """The arguments of job number `seq`: plain JSON values, but for bytes in a Payload of bytes.

    `units` says how much work each amount is here, `url` where the lab's HTTP server listens, `references` what is to
    be found where.
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
                filled[name] = _letters(size_bytes, seed)
            case Payload(shape, size_bytes, seed):
                filled[name] = make(shape, size_bytes, seed)
            case Referred():
                filled[name] = dict(references[value])
            case Cycle(values):
                filled[name] = values[seq % len(values)]
            case _:
                filled[name] = value
    return filled

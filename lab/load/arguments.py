"""What each job of a kind is called with, the same in the producer that sends it and in the observer that checks it."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from typing import Any

from lab.load.draws import drawn, stream
from lab.load.model import Drawn, Kind, Made, Numbered
from tasks.jobs import JOBS
from tasks.registry import checksum
from tasks.shapes import make

MOST_KNOWN = 4096
"""Results remembered, so that a load whose arguments are all different takes no more memory than one whose are not."""


class Arguments:
    """The arguments of one kind of job, by the job's number."""

    def __init__(self, kind: Kind, *, seed: int, units_per_ms: float = 0.0) -> None:
        """`units_per_ms` is how much of the kind's work one millisecond of this machine is."""
        job = JOBS.get(kind.job) if kind.job else None
        self._job = job
        self._work = job.scales_with if job and kind.work_ms is not None else None
        self._work_ms, self._units_per_ms = kind.work_ms, units_per_ms
        self._draws = {
            name: (value, stream(seed, f"{kind.name} {name}"))
            for name, value in kind.args.items()
            if isinstance(value, Drawn)
        }
        self._numbered = [name for name, value in kind.args.items() if isinstance(value, Numbered)]
        self._plain = {
            name: _made(value) for name, value in kind.args.items() if not isinstance(value, Drawn | Numbered)
        }
        self._work_start = stream(seed, f"{kind.name} ms")
        self.are_the_same = not (self._draws or self._numbered or isinstance(kind.work_ms, Drawn))
        """Whether every job gets the same."""
        self._same = self._of(0) if self.are_the_same else {}
        self._known: dict[tuple[Any, ...], int] = {}

    def of(self, seq: int) -> dict[str, Any]:
        """Of job number `seq`. The same object each time where they are the same."""
        return self._same if self.are_the_same else self._of(seq)

    def _of(self, seq: int) -> dict[str, Any]:
        args = dict(self._plain)
        for name, (value, start) in self._draws.items():
            args[name] = drawn(value, start, seq)
        for name in self._numbered:
            args[name] = seq
        if self._work:
            work_ms = self._work_ms
            ms = drawn(work_ms, self._work_start, seq) if isinstance(work_ms, Drawn) else float(work_ms or 0.0)
            args[self._work] = max(1, round(ms * self._units_per_ms))
        return args

    @property
    def can_be_checked(self) -> bool:
        """Whether anybody can say cheaply what a job must return.

        Not of somebody else's task, nor of a measurement; nor where only doing the work again would tell, job by job.
        """
        job = self._job
        return bool(job and not job.measures and (self.are_the_same or job.expect is not job.run))

    def expected(self, seq: int) -> int:
        """The checksum that job number `seq` must return, where that `can_be_checked`."""
        assert self._job  # noqa: S101  can_be_checked says so
        args = self.of(seq)
        key = () if self.are_the_same else tuple(args.values())
        try:
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be a key
            return checksum(self._job.expect(**args))
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            known = self._known[key] = checksum(self._job.expect(**args))
        return known


def _made(value: Any) -> Any:
    if isinstance(value, Made):
        if value.shape == "text":
            return "".join(random.Random(0).choices(string.ascii_letters, k=value.size_bytes))
        return make(value.shape, value.size_bytes, 0)
    if isinstance(value, tuple):
        return [_made(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _made(one) for name, one in value.items()}
    return value

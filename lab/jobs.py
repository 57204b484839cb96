"""A trial's jobs by number: what each gets, what it must return, when it is due."""

from __future__ import annotations

from typing import Any

from lab.model import Load, Setup
from lab.session import Session
from producer.pacers import Pacer, Replay, merged
from producer.payloads import Referred, fill, is_same_for_all
from tasks.jobs import JOBS
from tasks.registry import checksum


class Jobs:
    """The jobs of a setup's own load and of what runs beside it, numbered in order of time."""

    def __init__(self, session: Session, setup: Setup, nonce: int) -> None:
        self.nonce = nonce
        self.loads = [_Load(session, setup, load) for load in setup.loads]
        # A closed load waits for its own ends and cannot be planned beforehand; nothing may run beside it.
        self._plan = merged([load.pacer for load in setup.loads]) if setup.beside else None
        self.pacer: Pacer = Replay(tuple(due for due, _, _ in self._plan)) if self._plan else setup.pacer

    def load_of(self, seq: int) -> tuple[int, int]:
        """Which load job `seq` belongs to, and its number there."""
        return self._plan[seq][1:] if self._plan else (0, seq)

    def beside(self, seq: int) -> bool:
        """Whether it only runs beside the setup's own jobs."""
        return self.load_of(seq)[0] > 0

    def args(self, seq: int) -> dict[str, Any]:
        """Its arguments."""
        which, number = self.load_of(seq)
        return self.loads[which].args(number)

    def name(self, seq: int) -> str:
        """Its kind."""
        return self.loads[self.load_of(seq)[0]].job.name

    def expected(self, seq: int) -> int | None:
        """The checksum that it must return; None where it measures something."""
        which, number = self.load_of(seq)
        return self.loads[which].expected(number)


class _Load:
    """The arguments and expected results of the jobs of one load."""

    def __init__(self, session: Session, setup: Setup, load: Load) -> None:
        self.job = JOBS[load.job]
        self._args_of = load.args
        self._units, self._url = session.units(setup, load), session.url(load)
        self._references = session.references(load)
        self._session = session
        self._own = {name: value for name, value in load.args.items() if isinstance(value, Referred) and value.each}
        self._same = is_same_for_all(load.args)
        self._expected: dict[object, int] = {}
        self._args = self._fill(0)

    def _fill(self, number: int) -> dict[str, Any]:
        return fill(self._args_of, seq=number, units=self._units, url=self._url, references=self._references)

    def args(self, number: int) -> dict[str, Any]:
        """The arguments of job number `number` of this load."""
        if self._same:
            return self._args
        return {**self._fill(number), **{name: self._session.one_more(value) for name, value in self._own.items()}}

    def expected(self, number: int) -> int | None:
        """The checksum that it must return; None where it measures something."""
        if self.job.measures:
            return None
        args = self._args if self._same else self._fill(number)
        plain = all(isinstance(value, str | int | float) for value in args.values())
        key: object = tuple(args.values()) if plain else None if self._same else number
        if key not in self._expected:
            self._expected[key] = checksum(self.job.expect(**args))
        return self._expected[key]

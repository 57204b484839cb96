"""What attached machines and the lab say to each other over the broker: who is there, and marks in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.clocks import Probe
from tasks.timeline import MARK

KEYS = "sidestep:crew:"
NAMES = KEYS + "names"
"""The set of all machines that ever said something; who is gone is taken out by whoever notices."""
WANTED = KEYS + "wanted"
"""Holds the list that marks are to go to, while a lab wants them: without one they stay where they are."""
ALIVE_S = 3.0
"""A machine that was silent for so long has left."""
WANTED_S = 5.0
BEAT_S, IDLE_BEAT_S = 0.1, 0.5
"""Between two signs of life: while a lab measures, and else."""
MOST_MARKS = 2000
"""In one batch: 128 kB, which a broker takes in well under a millisecond."""
KEPT_S = 60
"""Marks that no lab reads are gone after this."""


def member_key(name: str) -> str:
    """Where a machine says how it is."""
    return f"{KEYS}member:{name}"


@dataclass(frozen=True, slots=True)
class Member:
    """A machine that takes part: one `sidestep worker`."""

    name: str
    """Its worker's, such as `celery@host`."""
    pool: str
    slots: int
    """Jobs at once."""
    pid: int
    boot_id: str
    python: str
    gil_enabled: bool
    key_prefix: str
    """Before the keys of its queues."""
    probes: tuple[Probe, ...] = ()
    """How its clock compared to the broker's, latest last."""
    cpu_s: float = 0.0
    """Used by the worker and its children since they started."""
    agent_cpu_s: float = 0.0
    """Used by the process that says this."""
    shipped: int = 0
    """Marks that it has sent."""

    def to_json(self) -> str:
        """As it stands in the broker."""
        return json.dumps({**asdict(self), "probes": [[p.asked_ns, p.answered_ns, p.said_ns] for p in self.probes]})

    @classmethod
    def from_json(cls, text: str) -> Member:
        """What `to_json` wrote. Raises ValueError for anything else, as another version may write it."""
        try:
            raw = json.loads(text)
            probes = tuple(Probe(*map(int, probe)) for probe in raw.pop("probes"))
            return cls(**raw, probes=probes)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a machine of this version of Sidestep: {error}") from None


@dataclass(frozen=True, slots=True)
class Batch:
    """Marks of one tape of one machine, in the order of their ends."""

    member: str
    tape: str
    about: dict[str, Any]
    """The tape's own header."""
    first: int
    """How many marks of the tape came before these."""
    marks: bytes
    """Whole records of `tasks.timeline.MARK`."""

    def to_bytes(self) -> bytes:
        """One line of JSON, then the marks as they stand on the tape."""
        line = json.dumps({"member": self.member, "tape": self.tape, "about": self.about, "first": self.first})
        return line.encode() + b"\n" + self.marks

    @classmethod
    def from_bytes(cls, data: bytes) -> Batch:
        """What `to_bytes` wrote. Raises ValueError for anything else."""
        line, _, marks = data.partition(b"\n")
        raw = json.loads(line)
        if len(marks) % MARK.size or not isinstance(raw, dict) or set(raw) != {"member", "tape", "about", "first"}:
            raise ValueError("not a batch of marks")
        return cls(str(raw["member"]), str(raw["tape"]), dict(raw["about"]), int(raw["first"]), marks)


def batches(member: str, tape: str, about: dict[str, Any], first: int, marks: Sequence[bytes]) -> list[Batch]:
    """The marks, no more at once than a batch may hold."""
    return [
        Batch(member, tape, about, first + at, b"".join(marks[at : at + MOST_MARKS]))
        for at in range(0, len(marks), MOST_MARKS)
    ]

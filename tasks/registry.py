"""A job: a plain function with a name, a nature and a result that can be checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Nature(StrEnum):
    """What a job does to the interpreter it runs in."""

    HOLDS_GIL = "holds the GIL"
    RELEASES_GIL = "releases the GIL"
    WAITS = "waits"


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of work."""

    name: str
    run: Callable[..., Any]
    nature: Nature
    expect: Callable[..., Any]
    """What `run` must return for the same arguments, found without waiting and without a network."""
    scales_with: str | None
    """The argument that makes the job proportionally longer, if there is one: `tasks.calibrate` sets it."""
    needs: str | None = None
    """The module that it imports beside the standard library and what every worker has."""
    measures: bool = False
    """What it returns is a measurement, a whole number below 2^32: it travels with the mark and any is right."""

    def seal(self, result: object) -> int:
        """The 32 bits that travel with the mark: the measurement itself, or else the result's checksum."""
        return int(result) & 0xFFFF_FFFF if self.measures and isinstance(result, int) else checksum(result)

    @property
    def task_name(self) -> str:
        """The name on the message and in Flower, such as `sidestep.spin`."""
        return f"sidestep.{self.name}"


JOBS: dict[str, Job] = {}


def job(
    nature: Nature,
    *,
    expect: Callable[..., Any] | None = None,
    scales_with: str | None = None,
    needs: str | None = None,
    measures: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as a kind of job, under its own name.

    Without `expect` the function itself, run by the lab, says what the result must be.
    """

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        JOBS[run.__name__] = Job(run.__name__, run, nature, expect or run, scales_with, needs, measures)
        return run

    return register


def checksum(result: object) -> int:
    """32 bits of a job's result, small enough to travel with its mark. The same in every process and version."""
    if isinstance(result, bytes):
        return zlib.crc32(result)
    return zlib.crc32((result if isinstance(result, str) else repr(result)).encode("utf-8", "surrogatepass"))

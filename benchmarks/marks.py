"""Where the jobs of every library leave word: 32 bytes a job, in one file mapped into the memory of all workers.

A mark is a few memory writes: no command on the broker, no system call, no thread, and the same for every library. Each
job has its own cell, named by the job's number, so nothing is locked. The file is the kernel's, so the marks of a
killed worker are still there.

A cell holds four 64-bit numbers: the first start and the last end in ns of CLOCK_MONOTONIC, and how often the job
started and ended. `lab.peer_trials` reads them.
"""

import mmap
import os
import struct
import time

CELL = struct.Struct("<4q")
MARKS_VAR = "BENCH_MARKS"
"""Names the file."""

_cells: mmap.mmap | None = None


def _map() -> mmap.mmap:
    global _cells  # noqa: PLW0603  mapped once a process; a forked child shares its parent's map
    if _cells is None:
        with open(os.environ[MARKS_VAR], "r+b") as file:
            _cells = mmap.mmap(file.fileno(), 0)
    return _cells


def began(number: int) -> None:
    """Job `number` has started."""
    now, cells, at = time.monotonic_ns(), _map(), number * CELL.size
    started, ended, starts, ends = CELL.unpack_from(cells, at)
    CELL.pack_into(cells, at, started or now, ended, starts + 1, ends)


def ended(number: int) -> None:
    """Job `number` has ended."""
    now, cells, at = time.monotonic_ns(), _map(), number * CELL.size
    started, _, starts, ends = CELL.unpack_from(cells, at)
    CELL.pack_into(cells, at, started, now, starts, ends + 1)


def both(number: int) -> None:
    """Job `number` has started and ended: all that an empty job does."""
    now, cells, at = time.monotonic_ns(), _map(), number * CELL.size
    started, _, starts, ends = CELL.unpack_from(cells, at)
    CELL.pack_into(cells, at, started or now, now, starts + 1, ends + 1)


def starts(number: int) -> int:
    """How often job `number` has started."""
    return CELL.unpack_from(_map(), number * CELL.size)[2]

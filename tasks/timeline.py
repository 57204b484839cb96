"""What a worker remembers of each job: marks, in memory that outlives the process.

A tape is a file mapped into memory. A mark is 64 bytes written into it when the job starts and again when it ends: two
plain memory writes, no system call, no thread of its own, nothing on the network. The kernel carries the pages to the
file in its own time, so the marks are there even when the process is killed.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import sysconfig
import threading
import time
import uuid
from pathlib import Path
from typing import Any

SCHEMA = 1
HEADER_BYTES = 4096
CAPACITY = 1 << 16
"""Marks in one tape; a full tape is followed by the next. The file is sparse: only what is written takes room."""

MARK = struct.Struct("<16s4qQIHH")
"""Job id, received, started, ended (ns of CLOCK_MONOTONIC), CPU time (ns), thread, checksum of the result, flags, 0."""

TAPE_BYTES = HEADER_BYTES + CAPACITY * MARK.size

DONE, FAILED, GIL, STEPS, ACKED, BEAT = 1, 2, 4, 8, 16, 32
"""Flags: the job returned; the job raised; this interpreter had its GIL switched on when the job ended; the record is
no mark but the job's steps, see `tasks.steps`; beside STEPS, it says only when the job was acknowledged;
and beside STEPS, it is no job's, and says when the worker came to send a heartbeat."""


_ask_gil = getattr(sys, "_is_gil_enabled", None)  # Python 3.13 and later


def gil_enabled() -> bool:
    """Whether this interpreter runs one thread at a time, asked now: an import can switch the GIL back on."""
    return True if _ask_gil is None else bool(_ask_gil())


def python_version() -> str:
    """Such as `3.13.5`, or `3.13.5t` for a free-threaded build."""
    return sys.version.split()[0] + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "")


def boot_id() -> str:
    """Names this boot of this machine: times of CLOCK_MONOTONIC compare only within one. Empty where unknown.

    A test that stands for another machine names its own: SIDESTEP_BOOT_ID.
    """
    if claimed := os.environ.get("SIDESTEP_BOOT_ID"):
        return claimed
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Tape:
    """One process's marks. Threads may share it; a forked child opens its own."""

    def __init__(self, directory: str, about: dict[str, Any]) -> None:
        self._directory, self._about = directory, about
        self._lock = threading.Lock()
        self._pid = 0
        self._next = CAPACITY
        self._map: mmap.mmap | None = None

    def begin(self, job_id: bytes, received_ns: int, started_ns: int) -> tuple[mmap.mmap, int]:
        """Reserve a mark for a job that is about to start, and return where it is."""
        with self._lock:
            if self._next == CAPACITY or self._pid != os.getpid():
                self._open()
            index, self._next = self._next, self._next + 1
            where = self._map
            assert where is not None  # noqa: S101  _open has just set it; says so to the type checker
            offset = HEADER_BYTES + index * MARK.size
            # Under the lock too: a reader takes the first mark without a start for the end of the tape.
            MARK.pack_into(where, offset, job_id, received_ns, started_ns, 0, 0, threading.get_ident(), 0, 0, 0)
        return where, offset

    def _open(self) -> None:
        self._pid, self._next = os.getpid(), 0
        path = Path(self._directory) / f"{self._pid}-{uuid.uuid4().hex[:12]}.tape"
        with path.open("w+b") as file:
            file.truncate(TAPE_BYTES)
            self._map = mmap.mmap(file.fileno(), 0)
        header = json.dumps(
            {
                "schema": SCHEMA,
                "pid": self._pid,
                "host": os.uname().nodename,
                "boot_id": boot_id(),
                "python": python_version(),
                "gil_enabled": gil_enabled(),
                **self._about,
            }
        ).encode()
        self._map[: len(header)] = header


def end(
    place: tuple[mmap.mmap, int],
    job_id: bytes,
    received_ns: int,
    started_ns: int,
    ended_ns: int,
    cpu_ns: int,
    checksum: int,
    failed: bool,
) -> None:
    """Complete the mark at `place`."""
    flags = (FAILED if failed else DONE) | (GIL if gil_enabled() else 0)
    thread = threading.get_ident()
    MARK.pack_into(*place, job_id, received_ns, started_ns, ended_ns, cpu_ns, thread, checksum, flags, 0)


now_ns = time.monotonic_ns
cpu_ns = time.thread_time_ns

"""Keeps the cores from falling asleep: one endless loop a core, which runs only when nobody else wants to.

A virtual machine's sleeping core takes some 100 µs to wake, so a request and its reply over loopback take either one
time or another, and empty jobs come out at two rates from run to run. With the cores awake the rounds agree. Both sides
of a ratio must have it or neither: where two "cores" are threads of one, a spinning sibling slows the other.

Run as `python -m lab.awake CORE`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

SUPPORTED = hasattr(os, "SCHED_IDLE") and hasattr(os, "sched_setaffinity")


def main() -> None:
    """Spin on one core at idle priority until killed."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Linux shares cores between sessions before it looks at the processes in them (autogroup), and ours is a session of
    # its own: without this, an idle-class loop takes half of a core that somebody wants.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    print("spinning", flush=True)
    while True:
        pass


if __name__ == "__main__":
    main()

"""Outlives a killed lab by a moment, to end what the lab started.

Run as `python -m lab.guard TOKEN DIRECTORY` with the lab's pipe as standard input. The lab writes the pid of each
process it starts. When the pipe closes, for whatever reason, those processes are killed, and every other that carries
the token in its environment, and the directory is removed. The token finds grandchildren and what the lab had no time
to name; the pids find servers that write over their own environment, as Redis and Valkey do to show a title.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable

import psutil

TOKEN_VAR = "SIDESTEP_SESSION"  # noqa: S105  the name of a variable, not a secret
PATIENCE_S = 5.0


def carriers(token: str, named: Iterable[psutil.Process] = ()) -> list[psutil.Process]:
    """Processes started with this token, their descendants, and those named that still run and are still the same."""
    found = [process for process in named if process.is_running() and runs(process)]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(TOKEN_VAR) == token and runs(process):
                found.append(process)
    return found


def runs(process: psutil.Process) -> bool:
    """Whether the process still does anything: a zombie only waits to be collected, which can take seconds."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def sweep(token: str, named: Iterable[psutil.Process] = ()) -> None:
    """Kill every carrier of the token and all that are named, until none is left or five seconds have passed."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (found := carriers(token, named)):
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.01)


def main() -> None:
    """Wait for the lab's end, then clean up."""
    token, directory = sys.argv[1:]
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the lab decides when; we only follow it
        signal.signal(ignored, signal.SIG_IGN)
    named = []
    for line in sys.stdin.buffer:
        with contextlib.suppress(psutil.NoSuchProcess):
            named.append(
                psutil.Process(int(line))
            )  # notes the start time too, so that a reused pid is not taken for it
    sweep(token, named)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

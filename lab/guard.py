"""Outlives a killed lab by a moment, to end what the lab started.

Run as `python -m lab.guard TOKEN DIRECTORY` with the lab's pipe as standard input. When the pipe closes, for whatever
reason, every process that carries the token in its environment is killed and the directory removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

import psutil

TOKEN_VAR = "SIDESTEP_SESSION"  # noqa: S105  the name of a variable, not a secret
PATIENCE_S = 5.0


def carriers(token: str) -> list[psutil.Process]:
    """Processes started with this token, and their descendants: the environment is inherited."""
    found = []
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


def sweep(token: str) -> None:
    """Kill every carrier of the token, again and again until none is left or five seconds have passed."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (found := carriers(token)):
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.01)


def main() -> None:
    """Wait for the lab's end, then clean up."""
    token, directory = sys.argv[1:]
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the lab decides when; we only follow it
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(token)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

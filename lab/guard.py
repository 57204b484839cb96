"""Outlives a killed lab by a moment, to end what the lab started.

Run as `python -m lab.guard TOKEN DIRECTORY` with the lab's pipe as standard input. The lab writes the pid of each
process it starts, and one word before it starts containers. When the pipe closes, for whatever reason, those processes
are killed, and every other that carries the token in its environment, and the directory is removed. The token finds
grandchildren and what the lab had no time to name; the pids find servers that write over their own environment, as
Redis and Valkey do to show a title. Containers and their network carry the token as a label.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

import psutil

TOKEN_VAR = "SIDESTEP_SESSION"  # noqa: S105  the name of a variable, not a secret
PATIENCE_S = 5.0
LABEL = "sidestep.session"
"""On every container and network of a session; its value is the token."""
CONTAINERS = b"containers"
"""What the lab says before it starts the first of them."""
DOCKER, DOCKER_TIMEOUT_S = "docker", 60.0


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


def sweep_containers(token: str) -> None:
    """Remove every container that is labelled with the token, then every network; what is gone is no trouble."""
    for what, found in (("rm", ("ps", "--all")), ("network", ("network", "ls"))):
        # A container may be on its way while we look: look again until there is none.
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and (
            names := _docker(*found, "--quiet", "--filter", f"label={LABEL}={token}")
        ):
            _docker(*(("rm", "--force", "--volumes") if what == "rm" else ("network", "rm")), *names)


def _docker(*arguments: str) -> list[str]:
    """The words that the engine answers; none where it cannot be asked."""
    try:
        done = subprocess.run(
            [DOCKER, *arguments], capture_output=True, text=True, timeout=DOCKER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def main() -> None:
    """Wait for the lab's end, then clean up."""
    token, directory = sys.argv[1:]
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the lab decides when; we only follow it
        signal.signal(ignored, signal.SIG_IGN)
    named, has_containers = [], False
    for line in sys.stdin.buffer:
        if line.strip() == CONTAINERS:
            has_containers = True
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            named.append(
                psutil.Process(int(line))
            )  # notes the start time too, so that a reused pid is not taken for it
    sweep(token, named)
    if has_containers:
        sweep_containers(token)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

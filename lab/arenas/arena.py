"""What every arena offers the runner."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psutil

from lab.children import last_words
from lab.model import LabError

BOOT_TIMEOUT_S = 60.0
BOOT_SLOT_S = 0.2
"""More for each slot: a hundred prefork processes take 7 to 9 s to come up on two cores."""
"""A cold disk and a busy machine may need most of it; a worker that is up takes about one."""


class Arena(Protocol):
    """Processes that are ready for jobs."""

    boot_s: float
    """From start to ready."""
    about: dict[str, Any]
    """What a worker said of itself when it was ready: pid, python, gil_enabled."""

    def processes(self) -> list[psutil.Process]:
        """Everything that is measured, now."""
        ...

    def alive(self) -> bool:
        """Whether all of it still runs."""
        ...

    def close(self) -> None:
        """End it; safe to call twice."""
        ...


def await_ready(
    fd: int,
    process: subprocess.Popen[Any],
    log: Path,
    what: str,
    *,
    check: Callable[[], object] = bool,
    slots: int = 0,
) -> dict[str, Any]:
    """The line that a process writes to `fd` when it is ready. Raises LabError when it ends or takes too long.

    `check` is called every second meanwhile: what it raises ends the waiting. Many `slots` are given more time.
    """
    patience_s = BOOT_TIMEOUT_S + BOOT_SLOT_S * slots
    deadline, line = time.monotonic() + patience_s, b""
    while not line.endswith(b"\n"):
        if not select.select([fd], [], [], 1)[0]:
            check()
            if time.monotonic() < deadline:
                continue
            raise LabError(f"{what} was not ready within {patience_s:.0f} s; its last words: {last_words(log)}")
        piece = os.read(fd, 4096)
        if not piece:
            process.poll()
            raise LabError(f"{what} ended before it was ready; its last words: {last_words(log)}")
        line += piece
    about: dict[str, Any] = json.loads(line)
    return about

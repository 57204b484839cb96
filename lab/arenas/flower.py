"""A Flower that listens to a trial's workers, as a person's would: the same broker, its own process, a login."""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import re
import secrets
import socket
import subprocess
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from lab.children import Children, kill, last_words, tree
from lab.model import LabError
from tasks.settings import Settings

USER = "flower"
BOOT_TIMEOUT_S = 60.0
LOOK_S = 0.05
FIRST_TIMEOUT_S = 3.0
REST_S = 0.06
"""Without one tick of CPU, which is 10 ms, for so long Flower has worked through what it was told."""
REST_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0
ENDED = re.compile(r'^flower_events_total\{[^}]*type="task-(?:succeeded|failed)"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)


def missing() -> str | None:
    """What to install before a Flower can listen, or None."""
    if importlib.util.find_spec("flower"):
        return None
    return "Flower is not installed; try: pip install 'sidestep[flower]'"


class Flower:
    """On its way up when this returns."""

    def __init__(self, children: Children, *, python: str, settings: Settings, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        password = secrets.token_urlsafe(16)
        self._login = base64.b64encode(f"{USER}:{password}".encode()).decode()
        self._log = directory / "flower.log"
        # It runs no job: marks and the word that a worker is ready are not its own.
        told = replace(settings, tape_dir=None, steps=False, ready_fd=None)
        # In the environment, not in the arguments, which everybody can see.
        env = {**told.to_env(), "FLOWER_BASIC_AUTH": f"{USER}:{password}"}
        command = [python, "-m", "celery", "-A", "tasks", "flower", "--address=127.0.0.1", f"--port={port}"]
        with self._log.open("wb") as output:
            self._process: subprocess.Popen[Any] = children.start(
                command, env=env, stdout=output, stderr=output, cwd=str(directory)
            )

    def _ask(self, path: str) -> str | None:
        """The page; None while nobody answers."""
        request = urllib.request.Request(self._url + path, headers={"Authorization": f"Basic {self._login}"})  # noqa: S310  our own
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:  # noqa: S310
                return str(answer.read().decode())
        except (OSError, http.client.HTTPException):  # the first is urllib's own error too
            return None

    def await_up(self) -> None:
        """Until it answers; it listens a moment later. Raises LabError when it does not come up."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while self._ask("/healthcheck") is None:
            if self._process.poll() is not None:
                raise LabError(f"Flower ended; its last words: {last_words(self._log)}")
            if time.monotonic() > deadline:
                raise LabError(
                    f"Flower did not answer within {BOOT_TIMEOUT_S:.0f} s; its last words: {last_words(self._log)}"
                )
            time.sleep(LOOK_S)

    def ended(self) -> int:
        """How many ends of jobs it has heard of so far, by its own count; raises LabError where it does not say."""
        page = self._ask("/metrics")
        if page is None:
            raise LabError(f"Flower does not answer any more; its last words: {last_words(self._log)}")
        return round(sum(float(count) for count in ENDED.findall(page)))

    def hears(self) -> bool:
        """Whether it has heard of any, after waiting a little for the first."""
        deadline = time.monotonic() + FIRST_TIMEOUT_S
        while not (heard := self.ended()) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        return heard > 0

    def processes(self) -> list[psutil.Process]:
        """Flower itself."""
        return tree(self._process)

    def cpu_s(self) -> float:
        """CPU time so far, in ticks of 10 ms."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def rest(self) -> None:
        """Wait until it has worked through what it was told: what is left would disturb the next, and be no bill's."""
        deadline, before = time.monotonic() + REST_TIMEOUT_S, self.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(REST_S)
            now = self.cpu_s()
            if now == before:
                return
            before = now

    def close(self) -> None:
        """End it at once."""
        kill(self._process)

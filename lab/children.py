"""The processes that the lab starts, none of which outlives it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

import tasks
from lab.guard import CONTAINERS, PATIENCE_S, TOKEN_VAR, runs, sweep, sweep_containers
from lab.model import LabError

ROOT = Path(__file__).resolve().parent.parent
"""Where `tasks`, `producer` and `lab` lie: the checkout, or the site-packages of an installed Sidestep."""


class Children:
    """A set of processes and one private directory; closing it, or the lab's death, ends and removes them all."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sidestep-"))
        # Workers see `tasks` and nothing else of ours or of this environment: it is linked into a folder of its own.
        self.path = self.directory / "path"
        self.path.mkdir()
        (self.path / "tasks").symlink_to(Path(str(tasks.__file__)).resolve().parent, target_is_directory=True)
        self._temporary = self.directory / "tmp"
        self._temporary.mkdir()
        self.token = uuid.uuid4().hex
        """On everything that is started."""
        self._containers = False
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "lab.guard", self.token, str(self.directory)],
            stdin=subprocess.PIPE,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
            bufsize=0,
        )
        self._naming = threading.Lock()

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        python_path: Path | None = None,
        **popen: Any,
    ) -> subprocess.Popen[Any]:
        """Start a command in a session of its own, so that the terminal's Ctrl-C reaches only the lab."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SIDESTEP_", "CELERY_"))}
        environment = {
            **inherited,
            "PYTHONPATH": str(python_path or self.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self._temporary),  # what a killed child leaves there goes with our directory
            TOKEN_VAR: self.token,
            **(env or {}),
        }
        try:
            child = subprocess.Popen(
                list(command), env=environment, start_new_session=True, **{"cwd": str(self.path), **popen}
            )
        except OSError as error:
            raise LabError(f"cannot start {command[0]}: {error.strerror}; is it installed and executable?") from None
        try:
            self._tell(b"%d" % child.pid)
        except LabError:
            child.kill()
            raise
        return child

    def has_containers(self) -> None:
        """Say, before the first is started, that there are containers with our token on their label."""
        self._containers = True
        self._tell(CONTAINERS)

    def _tell(self, line: bytes) -> None:
        assert self._guard.stdin  # noqa: S101  it was asked for as a pipe
        with self._naming:  # a worker of each pool may be started at once
            try:
                self._guard.stdin.write(line + b"\n")
            except BrokenPipeError:
                raise LabError("the guard process has ended; what runs now would outlive a kill: run again") from None

    def close(self) -> None:
        """End everything; safe to call twice."""
        sweep(self.token)
        if self._containers:
            sweep_containers(self.token)
            self._containers = False
        if self._guard.stdin and not self._guard.stdin.closed:
            self._guard.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(timeout=10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tree(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """The process and all its descendants that are still there."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def kill(process: subprocess.Popen[Any]) -> None:
    """End the process and its descendants at once, and wait until they are gone.

    For workers with nothing under way: their marks lie in mapped files, which need no farewell.
    """
    members = tree(process)
    for member in members:
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait()
    deadline = time.monotonic() + PATIENCE_S
    while any(runs(member) for member in members[1:]) and time.monotonic() < deadline:
        time.sleep(0.002)
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def line_with(words: str, logs: Iterable[Path]) -> str:
    """The first line of the logs that holds these words; empty where none does."""
    lines = (line for log in logs if log.exists() for line in log.read_text("utf-8", "replace").splitlines())
    return next((line.strip() for line in lines if words in line), "")


def last_words(log: IO[bytes] | Path, lines: int = 3) -> str:
    """The end of a log, on one line, to show why something did not start."""
    path = log if isinstance(log, Path) else Path(str(log.name))
    text = path.read_text("utf-8", "replace").strip() if path.exists() else ""
    return " | ".join(text.splitlines()[-lines:]) or "it said nothing"

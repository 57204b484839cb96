"""The baseline without a queue: a fresh program that runs the jobs in an executor of its own."""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from lab.arenas.arena import await_ready
from lab.children import Children, kill, last_words, tree
from lab.model import LabError, Setup


class ExecutorProgram:
    """`python -m tasks.standalone`, its executor's slots warm. Raises LabError when it does not come up."""

    def __init__(
        self,
        children: Children,
        setup: Setup,
        *,
        python: str,
        directory: Path,
        tape_dir: Path,
        nonce: int,
        due_ns: Sequence[int],
        jobs: Sequence[tuple[str, dict[str, object], bool]],
        broker_url: str,
    ) -> None:
        self._log = directory / "executor.log"
        self._label = setup.label
        begun = time.monotonic()
        with self._log.open("wb") as errors:
            self._program = children.start(
                [python, "-m", "tasks.standalone"],
                env={"SIDESTEP_BROKER": broker_url},  # `ask` jobs ask it
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )
        order = {
            "executor": setup.pool,
            "workers": setup.slots,
            "apart": setup.apart,
            "apart_workers": setup.apart_concurrency,
            "tape_dir": str(tape_dir),
            "nonce": f"{nonce:016x}",
            "due_ns": list(due_ns),
            "jobs": jobs if len(set(map(repr, jobs))) > 1 else jobs[:1],  # all alike: said once
            "switch_interval_s": setup.switch_interval_s,
        }
        try:
            self._say(json.dumps(order))
            assert self._program.stdout  # noqa: S101  it was asked for as a pipe
            fd = self._program.stdout.fileno()
            self.about: dict[str, Any] = await_ready(fd, self._program, self._log, f"executor {setup.label!r}")
        except BaseException:
            self.close()
            raise
        self.boot_s = time.monotonic() - begun

    def go(self, *, timeout_s: float) -> tuple[int, list[int]]:
        """Let it do the jobs; return when it started and when it sent each, in ns of CLOCK_MONOTONIC."""
        self._say("go")
        out = self._program.stdout
        assert out  # noqa: S101  it was asked for as a pipe
        if not select.select([out], [], [], timeout_s)[0]:
            raise LabError(f"{self._label!r} did not finish its jobs within {timeout_s:.0f} s; give it less work")
        buffered = b""
        while not buffered.endswith(b"\n"):
            piece = out.read(1 << 16)
            if not piece:
                raise LabError(
                    f"{self._label!r} ended in the middle of its jobs; its last words: {last_words(self._log)}"
                )
            buffered += piece
        answer = json.loads(buffered)
        return int(answer["start_ns"]), [int(ns) for ns in answer["sent_ns"]]

    def _say(self, line: str) -> None:
        assert self._program.stdin  # noqa: S101  it was asked for as a pipe
        text = memoryview(line.encode() + b"\n")
        try:
            while text:  # unbuffered writes may be partial
                text = text[self._program.stdin.write(text) or 0 :]
        except BrokenPipeError:
            raise LabError(
                f"{self._label!r} ended before it was ready; its last words: {last_words(self._log)}"
            ) from None

    def processes(self) -> list[psutil.Process]:
        """The program and its children."""
        return tree(self._program)

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._program.poll() is None

    def close(self) -> None:
        """End it."""
        kill(self._program)

"""Producers as the lab sees them: processes that are told what to send, and that say what they did."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.children import ROOT, Children, last_words
from lab.load.generator import Order
from lab.model import LabError

READY_S = 60.0
LOOK_S = 0.02


@dataclass(slots=True)
class Sending:
    """One of the processes that send."""

    process: subprocess.Popen[Any]
    log: Path
    rest: bytes = b""
    path: str = ""
    """How it makes messages, see `producer.publish`."""
    ready: bool = False
    over: bool = False
    error: str = ""
    total: int = 0
    """Jobs sent so far."""
    rss_bytes: int = 0
    rss_first_bytes: int = 0
    cpu_s: float = 0.0
    told: int = -1
    """The last tick that it has told of."""

    def send(self, line: bytes) -> None:
        """Tell it something; of what it died of, if it has, it speaks itself."""
        stdin = self.process.stdin
        assert stdin  # noqa: S101  it was asked for as a pipe
        with contextlib.suppress(BrokenPipeError):
            stdin.write(line)
            stdin.flush()

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it has said since the last look."""
        out = self.process.stdout
        assert out  # noqa: S101  it was asked for as a pipe
        while True:
            try:
                piece = os.read(out.fileno(), 1 << 20)
            except BlockingIOError:
                break
            if not piece:
                break
            self.rest += piece
        *full, self.rest = self.rest.split(b"\n")
        for line in full:
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)

    def look(self) -> None:
        """Notice its death."""
        if not self.over and self.process.poll() is not None:
            self.over = True
            self.error = self.error or f"a producer ended: {last_words(self.log)}"


def start_producer(children: Children, order: Order, *, name: str) -> Sending:
    """A process that sends, and that has been told what."""
    log = children.directory / f"producer-{name}.log"
    with log.open("wb") as errors:
        process = children.start(
            [sys.executable, "-m", "lab.load.generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            python_path=ROOT,
            cwd=str(children.directory),
        )
    assert process.stdout  # noqa: S101  it was asked for as a pipe
    os.set_blocking(process.stdout.fileno(), False)
    producer = Sending(process, log)
    producer.send(order.to_line())
    return producer


def await_producers(producers: Sequence[Sending]) -> None:
    """Wait until all of them have connected. Raises LabError when one does not."""
    deadline = time.monotonic() + READY_S
    while not all(producer.ready for producer in producers):
        for producer in producers:
            for said in producer.lines():
                if "error" in said:
                    raise LabError(f"a producer cannot send: {said['error']}")
                if said.get("ready"):
                    producer.ready, producer.path = True, str(said["path"])
                    producer.rss_bytes = int(said["rss"])
            if not producer.ready and producer.process.poll() is not None:
                raise LabError(f"a producer ended before it was ready; its last words: {last_words(producer.log)}")
        if time.monotonic() > deadline:
            raise LabError(f"a producer was not ready within {READY_S:.0f} s; is the machine overloaded?")
        time.sleep(LOOK_S)

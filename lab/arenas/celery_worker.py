"""Fresh Celery workers on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import redis

from lab.arenas.arena import await_ready
from lab.arenas.flower import Flower
from lab.children import Children, kill, last_words, line_with, tree
from lab.model import Setup
from tasks.codecs import CODECS
from tasks.pools import EVENTLET_WARNING_FILTER
from tasks.settings import Settings

APART_QUEUE = "apart"
"""Where jobs beside a setup's own wait for the worker that serves only them."""
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")
"""Talk between workers that a trial of one does not need; mingle alone waits a second at start."""


class CeleryWorkers:
    """`nodes` workers of one setup, ready when this returns. Raises LabError when one does not come up.

    `extra` are their options beside those of the setup; None are the lab's usual ones. A Flower is up too, where
    the setup asks for one.
    """

    def __init__(
        self,
        children: Children,
        setup: Setup,
        *,
        python: str,
        settings: Settings,
        directory: Path,
        extra: tuple[str, ...] | None = None,
    ) -> None:
        self._workers: list[subprocess.Popen[Any]] = []
        self._logs: list[Path] = []
        self.about: dict[str, Any] = {}
        self.flower: Flower | None = None
        if extra is None:
            # A setup that names knobs is about the worker that Celery starts unasked.
            extra = QUIET if setup.knobs is None else ()
        if setup.heartbeat_s is not None:
            kept = (option for option in extra if option != "--without-heartbeat")
            extra = (*kept, "--heartbeat-interval", str(setup.heartbeat_s))
        extra = (*extra, *settings.worker_options)
        try:
            if setup.events == "flower":
                # It takes longer to come up than a worker.
                self.flower = Flower(children, python=sys.executable, settings=settings, directory=directory)
            begun = time.monotonic()
            fleet = [(setup.pool, setup.concurrency, settings.queue)] * setup.nodes
            if setup.apart:
                fleet.append((setup.apart, setup.apart_concurrency, APART_QUEUE))
            if setup.events != "off":
                extra = (*extra, "-E")
            if setup.disable_prefetch:
                extra = (*extra, "--disable-prefetch")
            pending = [
                self._start(children, python, settings, directory, extra, node, *worker)
                for node, worker in enumerate(fleet)
            ]
            with redis.Redis.from_url(settings.broker) as broker:
                for fd, worker, log in pending:
                    try:
                        # A worker without a broker tries again for minutes.
                        self.about = await_ready(
                            fd, worker, log, f"worker {setup.label!r}", check=broker.ping, slots=setup.slots
                        )
                    finally:
                        os.close(fd)
            self.boot_s = time.monotonic() - begun
            if self.flower:
                self.flower.await_up()
        except BaseException:
            self.close()
            raise

    def _start(
        self,
        children: Children,
        python: str,
        settings: Settings,
        directory: Path,
        extra: tuple[str, ...],
        node: int,
        pool: str,
        concurrency: int,
        queue: str,
    ) -> tuple[int, subprocess.Popen[Any], Path]:
        log = directory / f"worker-{node}.log"
        ready, told = os.pipe()
        env = {**settings.to_env(), "SIDESTEP_READY_FD": str(told)}
        if CODECS[settings.codec].trusted:
            # As root, Celery refuses to read pickles; this worker gets only what the lab sends.
            env["C_FORCE_ROOT"] = "1"
        if pool == "eventlet":
            env["PYTHONWARNINGS"] = EVENTLET_WARNING_FILTER
        command = [python, "-m", "celery", "-A", "tasks", "worker", "-P", pool, "-c", str(concurrency)]
        command += ["-Q", queue, "-n", f"{pool}{node}@sidestep", "-l", "WARNING", *extra]
        try:
            with log.open("wb") as output:
                worker = children.start(command, env=env, stdout=output, stderr=output, pass_fds=(told,))
        finally:
            os.close(told)
        self._workers.append(worker)
        self._logs.append(log)
        return ready, worker, log

    def processes(self) -> list[psutil.Process]:
        """The workers and their children."""
        return [process for worker in self._workers for process in tree(worker)]

    def alive(self) -> bool:
        """Whether every worker still runs."""
        return all(worker.poll() is None for worker in self._workers)

    def last_words(self) -> str:
        """The ends of the workers' logs, on one line."""
        return " | ".join(last_words(log) for log in self._logs)

    def line_with(self, words: str) -> str:
        """The first line of the workers' logs that holds these words; empty where none does."""
        return line_with(words, self._logs)

    def close(self) -> None:
        """End the workers at once: a drained worker holds nothing, and its marks are in mapped files."""
        for worker in self._workers:
            kill(worker)
        if self.flower:
            self.flower.close()

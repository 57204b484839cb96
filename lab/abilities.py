"""What each pool can do to a job that is under way, found by trying it on a live worker."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lab.arenas.celery_worker import QUIET, CeleryWorkers
from lab.broker import PREFIX, remove_keys
from lab.model import LabError, Setup
from lab.observe import Tapes, job_id
from lab.session import Session
from producer.pacers import Burst
from producer.publish import Parcel, Sender
from tasks.app import make_app
from tasks.jobs import JOBS
from tasks.pools import Pool
from tasks.settings import Settings
from tasks.timeline import DONE

JOB_S = 3.0
"""How long the job would take if nothing stopped it."""
LIMIT_S = 1
PATIENCE_S = 20.0
LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a live worker of one pool did."""

    pool: str
    time_limit: bool
    """A job that outlives its hard time limit is stopped."""
    revoke: bool
    """A job that is under way can be stopped from outside."""
    recycling: bool
    """`--max-tasks-per-child` gives later jobs a fresh process."""

    @property
    def lacks(self) -> tuple[str, ...]:
        """The abilities that are missing, in words."""
        named = (("time limits", self.time_limit), ("revoke", self.revoke), ("child recycling", self.recycling))
        return tuple(name for name, there in named if not there)


def probe(session: Session, pool: Pool) -> Abilities:
    """Try all three on fresh workers of the pool; takes seconds. Raises LabError when a worker does not start."""
    time_limit, revoke = _stopped(session, pool, "limit", LIMIT_S), _stopped(session, pool, "revoke", None)
    return Abilities(pool.name, time_limit, revoke, _recycled(session, pool))


def _stopped(session: Session, pool: Pool, how: str, time_limit: int | None) -> bool:
    """Whether a long job did not come to its end, by a limit on its message or by a revoke when it has started."""
    with _Bench(session, pool, how, ()) as bench:
        nonce = secrets.randbits(63)
        message = bench.app.amqp.as_task_v2(
            job_id(nonce, 0),
            JOBS["snooze"].task_name,
            kwargs={"ms": JOB_S * 1e3},
            time_limit=time_limit,
            ignore_result=True,
        )
        with bench.app.connection_for_write() as connection:
            producer = bench.app.amqp.Producer(connection)
            bench.app.amqp.send_task_message(producer, JOBS["snooze"].task_name, message, queue="jobs", retry=False)
        bench.wait(lambda: len(bench.tapes.marks(nonce)) > 0, "start the job")
        if time_limit is None:
            bench.app.control.revoke(job_id(nonce, 0), terminate=True, signal="KILL")
        # Twice the job's length: a worker that was late to start it has finished it by then, were it not stopped.
        deadline = time.monotonic() + 2 * JOB_S
        while time.monotonic() < deadline:
            if np.any(bench.tapes.marks(nonce)["flags"] & DONE):
                return False
            time.sleep(LOOK_S)
        return True


def _recycled(session: Session, pool: Pool) -> bool:
    """Whether three jobs, one after the other, met more than one process under `--max-tasks-per-child=1`."""
    with _Bench(session, pool, "recycle", ("--max-tasks-per-child", "1")) as bench:
        for number in range(3):
            nonce = secrets.randbits(63)
            noop = Parcel(job_id(nonce, 0), JOBS["noop"].task_name, "jobs", {})
            sender = Sender(bench.app, lambda _, noop=noop: noop)  # type: ignore[misc]
            sender([0])
            sender.close()
            bench.wait(partial(_any_ended, bench.tapes, nonce), f"do job {number + 1} of 3")
        return len({header["pid"] for header in bench.tapes.headers()}) > 1


def _any_ended(tapes: Tapes, nonce: int) -> bool:
    return bool(np.any(tapes.marks(nonce)["flags"]))


class _Bench:
    """One worker with one slot, its app and its tapes."""

    def __init__(self, session: Session, pool: Pool, name: str, extra: tuple[str, ...]) -> None:
        self._session = session
        self._directory: Path = session.children.directory / f"abilities-{pool.name}-{name}"
        self.tapes = Tapes(self._directory / "tapes")
        self.tapes.directory.mkdir(parents=True)
        self._settings = Settings(
            broker=session.broker.url,
            key_prefix=f"{PREFIX}{secrets.token_hex(8)}:",
            tape_dir=str(self.tapes.directory),
        )
        self.app: Any = make_app(self._settings)
        self._setup = Setup(job="snooze", args={}, pacer=Burst(1), pool=pool.name)
        self._extra = extra

    def __enter__(self) -> _Bench:
        self._workers = CeleryWorkers(
            self._session.children,
            self._setup,
            python=self._session.python(self._setup),
            settings=self._settings,
            directory=self._directory,
            extra=(*QUIET, *self._extra),
        )
        return self

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Until something is so, or LabError."""
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            if time.monotonic() > deadline or not self._workers.alive():
                raise LabError(f"the {self._setup.pool} worker did not {what} within {PATIENCE_S:.0f} s")
            time.sleep(LOOK_S)

    def __exit__(self, *_: object) -> None:
        self._workers.close()
        self.app.close()
        remove_keys(self._session.client, self._settings.key_prefix)

"""A worker's jobs become marks."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import signals

from tasks.codecs import register
from tasks.registry import Job
from tasks.settings import Settings
from tasks.steps import Steps
from tasks.timeline import BEAT, MARK, STEPS, Tape, cpu_ns, end, gil_enabled, now_ns, python_version

RECEIVED = "sidestep_received_ns"
NOBODY = bytes(16)
"""In the place of a job's id."""


Run = Callable[..., Any]
Mark = Callable[[Job], Run]


def connect(settings: Settings) -> Mark | None:
    """Connect what the settings ask for, once per process; without `tape_dir` a job costs nothing extra.

    What comes back puts marks around a job's function, see `Marker.around`.
    """
    if settings.switch_interval_s is not None:
        sys.setswitchinterval(settings.switch_interval_s)
    if (fd := settings.ready_fd) is not None:

        def ready(sender: Any = None, **_: Any) -> None:
            about = {"pid": os.getpid(), "gil_enabled": gil_enabled(), "python": python_version(), **_identity(sender)}
            os.write(fd, json.dumps(about).encode() + b"\n")

        signals.worker_ready.connect(ready, weak=False)
    if not settings.tape_dir:
        return None
    marker = Marker(settings.tape_dir)
    signals.task_received.connect(marker.received, weak=False)
    if settings.steps:
        register(settings.codec)  # its decoder must be there to be timed
        marker.steps().connect()
    if settings.beats:
        # Before the worker is made: it looks once whether anybody wants to know.
        signals.heartbeat_sent.connect(marker.beat, weak=False)
    return marker.around


def _identity(consumer: Any) -> dict[str, Any]:
    """The worker's name, its pool as `-P` spells it, and its slots; `consumer` is what Celery calls ready."""
    pool = getattr(consumer, "pool", None)
    module = type(pool).__module__.rpartition(".")[2]
    return {
        "name": str(getattr(consumer, "hostname", "")),
        "pool": {"thread": "threads"}.get(module, module),
        "slots": int(getattr(pool, "limit", None) or 1),
    }


class Marker:
    """Marks every job of this process and of the children it forks."""

    def __init__(self, tape_dir: str) -> None:
        self._tape = Tape(tape_dir, {})

    def steps(self) -> Steps:
        """The job's steps, on the same tape."""
        return Steps(self._tape, _id_bytes)

    def beat(self, **_: Any) -> None:
        """Remember that a heartbeat is about to be sent; a receiver of Celery's `heartbeat_sent`."""
        moment = now_ns()
        place = self._tape.begin(NOBODY, 0, moment)
        MARK.pack_into(*place, NOBODY, 0, moment, moment, 0, 0, 0, STEPS | BEAT, 0)

    def received(self, request: Any, **_: Any) -> None:
        """Remember when the worker got the message; a receiver of Celery's `task_received`."""
        # Celery hands this very dictionary to the task, through the pipe to a prefork child too.
        request.request_dict[RECEIVED] = now_ns()

    def around(self, job: Job) -> Run:
        """Return the job's function with marks before and after it, to be registered with `bind=True`.

        A function around the job costs less than half of Celery's signals `task_prerun` and `task_postrun`, and its
        times are the job's own, without the other receivers of those signals.
        """
        begin, run, seal = self._tape.begin, job.run, job.seal

        @wraps(run)
        def marked(task: Any, *args: Any, **kwargs: Any) -> Any:
            request = task.request_stack.top
            job_id = _id_bytes(request.id)
            received_ns: int = getattr(request, RECEIVED, None) or 0
            place = begin(job_id, received_ns, now_ns())
            result, failed, cpu = None, True, cpu_ns()
            # The clock is read last: what came before is the queue's time, not the job's.
            started_ns = now_ns()
            try:
                result = run(*args, **kwargs)
                failed = False
            finally:
                ended_ns, cpu = now_ns(), cpu_ns() - cpu
                check = 0 if failed else seal(result)
                end(place, job_id, received_ns, started_ns, ended_ns, cpu, check, failed)
            return result

        return marked


def _id_bytes(task_id: str) -> bytes:
    try:
        job_id = bytes.fromhex(task_id.replace("-", ""))  # a fifth of what uuid.UUID costs
    except ValueError:
        job_id = b""
    # Somebody else's id that is no UUID gets one that belongs to it alone.
    return job_id if len(job_id) == 16 else uuid.uuid5(uuid.NAMESPACE_OID, task_id).bytes

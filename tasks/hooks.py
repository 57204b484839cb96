"""Celery's signals become marks."""

from __future__ import annotations

import json
import os
import sys
import uuid
from typing import Any

from celery import signals

from tasks.registry import checksum
from tasks.settings import Settings
from tasks.timeline import Tape, cpu_ns, end, gil_enabled, now_ns, python_version

RECEIVED = "sidestep_received_ns"


def connect(settings: Settings) -> None:
    """Connect what the settings ask for, once per process; without `tape_dir` a job costs nothing extra."""
    if settings.tape_dir:
        _Marker(settings.tape_dir).connect()
    if settings.switch_interval_s is not None:
        sys.setswitchinterval(settings.switch_interval_s)
    if (fd := settings.ready_fd) is not None:

        def ready(**_: Any) -> None:
            about = {"pid": os.getpid(), "gil_enabled": gil_enabled(), "python": python_version()}
            os.write(fd, json.dumps(about).encode() + b"\n")

        signals.worker_ready.connect(ready, weak=False)


class _Marker:
    """Marks every job of this process and of the children it forks."""

    def __init__(self, tape_dir: str) -> None:
        self._tape = Tape(tape_dir, {})
        self._open: dict[str, tuple[Any, bytes, int, int, int]] = {}

    def connect(self) -> None:
        signals.task_received.connect(self.received, weak=False)
        signals.task_prerun.connect(self.started, weak=False)
        signals.task_postrun.connect(self.ended, weak=False)

    def received(self, request: Any, **_: Any) -> None:
        # Celery hands this very dictionary to the task, through the pipe to a prefork child too.
        request.request_dict[RECEIVED] = now_ns()

    def started(self, task_id: str, task: Any, **_: Any) -> None:
        received_ns: int = getattr(task.request, RECEIVED, None) or 0
        job_id = _id_bytes(task_id)
        place = self._tape.begin(job_id, received_ns, now_ns())
        cpu = cpu_ns()
        # The clock is read last: what came before is the queue's time, not the job's.
        self._open[task_id] = (place, job_id, received_ns, now_ns(), cpu)

    def ended(self, task_id: str, retval: Any, state: str, **_: Any) -> None:
        ended_ns, cpu = now_ns(), cpu_ns()
        place, job_id, received_ns, started_ns, cpu_before = self._open.pop(task_id)
        failed = state != "SUCCESS"
        end(
            place,
            job_id,
            received_ns=received_ns,
            started_ns=started_ns,
            ended_ns=ended_ns,
            cpu_ns=cpu - cpu_before,
            checksum=0 if failed else checksum(retval),
            failed=failed,
        )


def _id_bytes(task_id: str) -> bytes:
    try:
        job_id = bytes.fromhex(task_id.replace("-", ""))  # a fifth of what uuid.UUID costs
    except ValueError:
        job_id = b""
    # Somebody else's id that is no UUID gets one that belongs to it alone.
    return job_id if len(job_id) == 16 else uuid.uuid5(uuid.NAMESPACE_OID, task_id).bytes

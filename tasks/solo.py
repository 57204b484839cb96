"""Celery's solo pool, whose job can be ended: the pool of each process of `tasks.processes`."""

from __future__ import annotations

from typing import Any, NoReturn

from celery.concurrency import solo
from celery.exceptions import WorkerTerminate
from celery.utils.log import get_logger

logger = get_logger(__name__)

NEEDS_PREFORK = (
    "task_time_limit",
    "task_soft_time_limit",
    "worker_max_tasks_per_child",
    "worker_max_memory_per_child",
)
FAILURE = 1
"""Celery's own status after a cold shutdown."""


class TaskPool(solo.TaskPool):  # type: ignore[misc]  # Celery has no types
    """Runs a job in the worker's own thread, and lets go of it when a cold shutdown says so."""

    def on_start(self) -> None:
        """Say which settings of the app are for nothing here."""
        super().on_start()
        if ignored := [name for name in NEEDS_PREFORK if self.app is not None and self.app.conf[name]]:
            logger.warning("%s: nobody outside a single process keeps to it; prefork does", ", ".join(ignored))

    def terminate_job(self, _pid: int, _signal: Any = None) -> NoReturn:
        """End the worker in the middle of its job.

        A cold shutdown calls this from its signal's handler, on top of the running job. Celery's solo pool has none: an
        error out of its base class then becomes the job's own, so that a job that is acknowledged late counts as
        failed, and is gone. This exception is none of the job's: the tracer lets it through, and the worker gives back
        what it has not acknowledged.
        """
        raise WorkerTerminate(FAILURE)

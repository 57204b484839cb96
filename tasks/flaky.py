"""A job that fails at first: what retries do to a queue."""

from __future__ import annotations

import time

from tasks.registry import Nature, job


class NotYetError(Exception):
    """The job was asked to fail this time."""


@job(Nature.WAITS, expect=lambda failures, **_: failures)
def flaky(failures: int, tries: int = 3, after_ms: float = 1000.0, ms: float = 0.0) -> int:
    """Wait `ms` milliseconds; fail the first `failures` times, and be tried again `after_ms` later up to `tries` times.

    Celery counts its retries, so it takes a worker; called as a plain function it does not fail. Raises NotYetError
    when it has been tried again often enough.
    """
    from celery import current_task  # noqa: PLC0415  the jobs themselves need no Celery

    time.sleep(ms / 1000)
    request = current_task.request if current_task else None
    if request and not request.called_directly and request.retries < failures:
        raise current_task.retry(
            exc=NotYetError(f"failure {request.retries + 1}"), countdown=after_ms / 1000, max_retries=tries
        )
    return failures

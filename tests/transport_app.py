"""The app of the workers that test_transport_workers.py starts: jobs that say in a file that they were done."""

from __future__ import annotations

import json
import os
import time

from celery import Celery

SETTINGS = json.loads(os.environ["TRANSPORT_TEST"])

app = Celery("transport", broker=SETTINGS["broker"])
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_redirect_stdouts=False,
    **SETTINGS["conf"],
)


@app.task
def done(number: int, takes_s: float = 0.0) -> None:
    """Take some time, then write one line: the number and the process."""
    time.sleep(takes_s)
    # One write of few bytes to the end of a file is whole, or not there.
    with open(SETTINGS["log"], "ab", buffering=0) as log:
        log.write(b"%d %d\n" % (number, os.getpid()))


@app.task
def linger(number: int, takes_s: float) -> None:
    """Write the line first, then take the time."""
    done(number)
    time.sleep(takes_s)


@app.task(bind=True)
def requeue_once(self, number: int) -> None:  # type: ignore[no-untyped-def]  # Celery's own class
    """Ask for itself to be done again, and be done the second time."""
    from celery.exceptions import Reject

    if not self.request.delivery_info.get("redelivered"):
        raise Reject(requeue=True)
    done(number)


@app.task(acks_late=True, reject_on_worker_lost=True)
def deadly(number: int) -> None:
    """End the process that does it."""
    done(number)
    os.kill(os.getpid(), 9)

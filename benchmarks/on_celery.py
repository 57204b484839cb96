"""Celery: `celery -A on_celery worker`. What differs from its defaults is in BENCH_CELERY, as JSON."""

import json
import os

import marks
import naps
from celery import Celery, group
from celery.signals import worker_ready

BATCH = 1000

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(json.loads(os.environ.get("BENCH_CELERY", "{}")))
if naps.RECOVER_S:
    # Unasked, a message is given back after an hour, and looked for every 100 s.
    sooner = {"visibility_timeout": naps.RECOVER_S, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **sooner}


@worker_ready.connect
def tell(sender, **_):
    """Say to the supervisor of several processes that this one is up."""
    if told := os.environ.get("SIDESTEP_READY_FD"):
        os.write(int(told), json.dumps({"pid": os.getpid(), "name": sender.hostname}).encode() + b"\n")


@app.task(name="bench.noop")
def noop(number):
    """Nothing."""
    marks.both(number)


@app.task(name="bench.sleep")
def sleep(number, seconds):
    """Wait."""
    naps.sleep(number, seconds)


def one(numbers):
    """One `delay()` after another."""
    for number in numbers:
        noop.delay(number)


def nap(numbers, seconds):
    """Jobs that wait."""
    for number in numbers:
        sleep.delay(number, seconds)


def bulk(numbers):
    """`apply_async` inside kombu's `Producer.batch`."""
    with app.producer_pool.acquire(block=True) as producer, producer.batch(max_size=BATCH):
        for number in numbers:
            noop.apply_async((number,), producer=producer)


def many_naps(numbers, seconds):
    """The same for jobs that wait."""
    with app.producer_pool.acquire(block=True) as producer, producer.batch(max_size=BATCH):
        for number in numbers:
            sleep.apply_async((number, seconds), producer=producer)


def groups(numbers):
    """A `group` of a thousand, the canvas way."""
    for at in range(0, len(numbers), BATCH):
        group(noop.s(number) for number in numbers[at : at + BATCH]).apply_async()

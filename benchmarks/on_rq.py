"""RQ: `rq worker-pool`, which reads the broker's URL from RQ_REDIS_URL. Results are not kept: a no-op has none."""

import os

import marks
import naps
from redis import Redis
from rq import Queue

BATCH = 1000

queue = Queue("bench", connection=Redis.from_url(os.environ["BENCH_BROKER"]))


def noop(number):
    """Nothing."""
    marks.both(number)


def sleep(number, seconds):
    """Wait."""
    naps.sleep(number, seconds)


def one(numbers):
    """One `enqueue()` after another."""
    for number in numbers:
        queue.enqueue(noop, number, result_ttl=0)


def nap(numbers, seconds):
    """Jobs that wait."""
    for number in numbers:
        queue.enqueue(sleep, number, seconds, result_ttl=0)


def bulk(numbers):
    """`enqueue_many` of a thousand prepared jobs."""
    for at in range(0, len(numbers), BATCH):
        some = numbers[at : at + BATCH]
        queue.enqueue_many([Queue.prepare_data(noop, (number,), result_ttl=0) for number in some])

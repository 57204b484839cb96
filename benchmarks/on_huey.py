"""Huey: `huey_consumer on_huey.huey`. A no-op returns None, of which Huey keeps no result."""

import os

import marks
import naps
from huey import RedisHuey

huey = RedisHuey("bench", url=os.environ["BENCH_BROKER"])


@huey.task()
def noop(number):
    """Nothing."""
    marks.both(number)


@huey.task()
def sleep(number, seconds):
    """Wait."""
    naps.sleep(number, seconds)


def one(numbers):
    """One call after another."""
    for number in numbers:
        noop(number)


def nap(numbers, seconds):
    """Jobs that wait."""
    for number in numbers:
        sleep(number, seconds)

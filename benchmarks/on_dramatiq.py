"""Dramatiq: `dramatiq on_dramatiq`."""

import os

import dramatiq
import marks
import naps
from dramatiq.brokers.redis import RedisBroker

# A worker counts as dead when it has not spoken for a minute; one in a thousand commands looks for such workers.
SOONER = {"heartbeat_timeout": naps.RECOVER_S * 1000, "maintenance_chance": 200_000} if naps.RECOVER_S else {}

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_BROKER"], **SOONER))


@dramatiq.actor
def noop(number):
    """Nothing."""
    marks.both(number)


@dramatiq.actor
def sleep(number, seconds):
    """Wait."""
    naps.sleep(number, seconds)


def one(numbers):
    """One `send()` after another."""
    for number in numbers:
        noop.send(number)


def nap(numbers, seconds):
    """Jobs that wait."""
    for number in numbers:
        sleep.send(number, seconds)

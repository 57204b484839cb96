"""Taskiq: `taskiq worker on_taskiq:broker`. BENCH_TASKIQ says which of its Redis brokers: `list` or `stream`."""

import asyncio
import os

import marks
import naps
from taskiq_redis import ListQueueBroker, RedisStreamBroker

GATHER = 100
# Unacknowledged jobs are claimed by another worker after ten minutes.
SOONER = {"idle_timeout": naps.RECOVER_S * 1000} if naps.RECOVER_S else {}

if os.environ["BENCH_TASKIQ"] == "stream":
    broker = RedisStreamBroker(url=os.environ["BENCH_BROKER"], **SOONER)
else:
    broker = ListQueueBroker(url=os.environ["BENCH_BROKER"])


@broker.task
async def noop(number: int) -> None:
    """Nothing."""
    marks.both(number)


@broker.task
async def sleep(number: int, seconds: float) -> None:
    """Wait."""
    await naps.coroutine(number, seconds)


async def connect():
    """Open the pool, before anything is timed."""
    await broker.startup()


async def one(numbers):
    """One awaited `kiq()` after another."""
    for number in numbers:
        await noop.kiq(number)


async def nap(numbers, seconds):
    """Jobs that wait."""
    for number in numbers:
        await sleep.kiq(number, seconds)


async def bulk(numbers):
    """A hundred `kiq()` at a time."""
    for at in range(0, len(numbers), GATHER):
        await asyncio.gather(*(noop.kiq(number) for number in numbers[at : at + GATHER]))

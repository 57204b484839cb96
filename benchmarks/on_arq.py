"""arq: `arq on_arq.WorkerSettings`. Results are not kept: a no-op has none."""

import asyncio
import os

import marks
import naps
from arq import create_pool
from arq.connections import RedisSettings

GATHER = 100
SETTINGS = RedisSettings.from_dsn(os.environ["BENCH_BROKER"])

_pool = None


async def noop(context, number):  # noqa: ARG001  arq hands every job a context
    """Nothing."""
    marks.both(number)


async def sleep(context, number, seconds):  # noqa: ARG001
    """Wait."""
    await naps.coroutine(number, seconds)


class WorkerSettings:
    """What arq's command reads."""

    functions = (noop, sleep)
    redis_settings = SETTINGS
    keep_result = 0
    # A job under way is taken back ten seconds after this.
    job_timeout = 1 if naps.RECOVER_S else 300


async def connect():
    """Open the pool, before anything is timed."""
    global _pool  # noqa: PLW0603  one pool a producer
    _pool = await create_pool(SETTINGS)


async def one(numbers):
    """One awaited `enqueue_job()` after another."""
    for number in numbers:
        await _pool.enqueue_job("noop", number)


async def nap(numbers, seconds):
    """Jobs that wait."""
    for number in numbers:
        await _pool.enqueue_job("sleep", number, seconds)


async def bulk(numbers):
    """A hundred `enqueue_job()` at a time."""
    for at in range(0, len(numbers), GATHER):
        await asyncio.gather(*(_pool.enqueue_job("noop", number) for number in numbers[at : at + GATHER]))

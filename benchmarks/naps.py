"""Jobs that wait, for the trial in which workers are killed."""

import asyncio
import os
import time

import marks

RECOVER_S = int(os.environ.get("BENCH_RECOVER_S") or 0)
"""Where a library waits before it takes back a dead worker's jobs, it shall wait so long; 0 leaves its default."""


def sleep(number, seconds):
    """For threads and processes."""
    marks.began(number)
    time.sleep(seconds)
    marks.ended(number)


async def coroutine(number, seconds):
    """For event loops."""
    marks.began(number)
    await asyncio.sleep(seconds)
    marks.ended(number)

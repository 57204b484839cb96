"""Jobs that contend: for the GIL, for a lock, for one counter."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from tasks.io import redis_client
from tasks.registry import Nature, job
from tasks.settings import ENV_PREFIX

_mine = threading.local()


@job(Nature.WAITS, expect=lambda rounds, ms: rounds)  # noqa: ARG005
def naps(rounds: int, ms: float) -> int:
    """Sleep `ms` milliseconds, `rounds` times: after each the GIL must be got back, as after a read that waited."""
    for _ in range(rounds):
        time.sleep(ms / 1000)
    return rounds


@job(Nature.HOLDS_GIL, expect=lambda rounds: rounds)
def nudge(rounds: int) -> int:
    """Write a byte into a pipe and read it back, `rounds` times: both calls let go of the GIL and neither waits."""
    ends = getattr(_mine, "pipe", None)
    if ends is None:
        ends = _mine.pipe = os.pipe()
    for _ in range(rounds):
        os.write(ends[1], b".")
        os.read(ends[0], 1)
    return rounds


class _Counter:
    """One number that every thread of the process sees."""

    def __init__(self) -> None:
        self.total = 0
        self.lock = threading.Lock()


_counter = _Counter()


def _plus_one(number: int) -> int:
    return number + 1


def _unguarded() -> None:
    # Read, call, write: between the read and the write another thread may have its turn.
    _counter.total = _plus_one(_counter.total)


def _locked() -> None:
    with _counter.lock:
        _counter.total = _plus_one(_counter.total)


def _tally_key() -> str:
    return os.environ.get(ENV_PREFIX + "KEY_PREFIX", "sidestep:") + "tally"


@job(Nature.HOLDS_GIL, measures=True)
def tally(rounds: int, guard: str) -> int:
    """Add 1 to a counter `rounds` times and return what it holds then.

    `guard` is "none" (a plain read-modify-write of the process's memory), "lock" (the same under a threading.Lock) or
    "broker" (Redis' atomic INCR of one key that all processes share). Raises ValueError for any other.
    """
    if guard == "broker":
        client, key = redis_client(), _tally_key()
        total = 0
        for _ in range(rounds):
            total = client.incr(key)
        return int(total)
    if guard not in {"none", "lock"}:
        raise ValueError(f"guard must be none, lock or broker, not {guard!r}")
    add = _locked if guard == "lock" else _unguarded
    for _ in range(rounds):
        add()
    return _counter.total


_lock, _rlock = threading.Lock(), threading.RLock()
_queue: queue.Queue[None] = queue.Queue()


def _nothing(rounds: int) -> None:
    for _ in range(rounds):
        pass


def _with(lock: Any) -> Callable[[int], None]:
    def hold(rounds: int) -> None:
        for _ in range(rounds):
            with lock:
                pass

    return hold


def _through_queue(rounds: int) -> None:
    for _ in range(rounds):
        _queue.put(None)
        _queue.get()


def _redis_lock(rounds: int) -> None:
    lock = redis_client().lock(_tally_key() + "-lock", timeout=30)
    for _ in range(rounds):
        with lock:
            pass


HOLDS: dict[str, Callable[[int], None]] = {
    "nothing": _nothing,
    "Lock": _with(_lock),
    "RLock": _with(_rlock),
    "Queue": _through_queue,
    "Redis lock": _redis_lock,
}
"""What `hold` can take and give back; "nothing" is the loop around it."""


@job(Nature.HOLDS_GIL, expect=lambda kind, rounds: rounds)  # noqa: ARG005
def hold(kind: str, rounds: int) -> int:
    """Take a lock of this kind and give it back, `rounds` times; every thread of the process takes the same one.

    "Queue" puts one item and gets one. Raises ValueError for a kind that is none of HOLDS.
    """
    if kind not in HOLDS:
        raise ValueError(f"kind must be one of {', '.join(HOLDS)}, not {kind!r}")
    HOLDS[kind](rounds)
    return rounds

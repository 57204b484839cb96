"""Jobs that wait: for a timer, for an HTTP server, for Redis."""

from __future__ import annotations

import http.client
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any, cast
from urllib.parse import quote, urlsplit

from tasks.cpu import spin
from tasks.registry import Nature, job

FETCH_TIMEOUT_S = 30.0


@job(Nature.WAITS, expect=lambda ms: ms)
def snooze(ms: float) -> float:
    """Sleep `ms` milliseconds; under eventlet and gevent the sleep is cooperative, since they replace `time.sleep`."""
    time.sleep(ms / 1000)
    return ms


def _plain_sleep() -> Callable[[float], None]:
    """`time.sleep` as it was before eventlet or gevent replaced it."""
    if (gevent := sys.modules.get("gevent.monkey")) and gevent.is_module_patched("time"):
        return cast("Callable[[float], None]", gevent.get_original("time", "sleep"))
    if (eventlet := sys.modules.get("eventlet.patcher")) and eventlet.is_monkey_patched("time"):
        return cast("Callable[[float], None]", eventlet.original("time").sleep)
    return time.sleep


@job(Nature.WAITS, expect=lambda ms: ms)
def stall(ms: float) -> float:
    """Sleep `ms` milliseconds without giving way, as C code does that nobody has patched."""
    _plain_sleep()(ms / 1000)
    return ms


@job(Nature.WAITS, expect=lambda url, key: str(key))  # noqa: ARG005  the answer depends on the key alone
def fetch(url: str, key: int) -> str:
    """GET `url` for `key` over a new connection and return the body, which repeats the key.

    Raises OSError when the server cannot be reached and RuntimeError when it does not answer 200.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=FETCH_TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path or '/'}?key={quote(str(key))}")
        response = connection.getresponse()
        body = response.read().decode("utf-8", "replace")
        if response.status != http.client.OK:
            raise RuntimeError(f"{url} answered {response.status}")
        return body
    finally:
        connection.close()


@cache
def redis_client() -> Any:
    """A client of the broker, one for the process.

    It lends each thread or greenlet a connection and takes it back: one for each thread would be a new connection for
    each job of a green pool. After a fork it opens connections of its own.
    """
    import redis  # noqa: PLC0415  only these jobs need a client of their own

    return redis.Redis.from_url(os.environ["SIDESTEP_BROKER"])


@job(Nature.WAITS, expect=lambda key: str(key))  # noqa: PLW0108  the argument is passed by name
def ask(key: int) -> str:
    """Make one real round trip to Redis, which repeats the key."""
    return bytes(redis_client().echo(str(key))).decode()


@job(Nature.HOLDS_GIL, expect=lambda loops, io_ms: loops * (loops - 1) // 2, scales_with="loops")  # noqa: ARG005
def mixed(loops: int, io_ms: float) -> int:
    """Compute, wait `io_ms` milliseconds, compute again: half of the loops on each side of the wait."""
    first = loops // 2
    total: int = spin(first)
    time.sleep(io_ms / 1000)
    for i in range(first, loops):
        total += i
    return total

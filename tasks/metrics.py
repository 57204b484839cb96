"""What the workers and producers of an app count together: jobs, time in queue, lateness, signs of life.

Each process counts in memory. About once a second a thread of its own adds the counts to hashes in the broker, off the
jobs' path: many workers add up, and the sums outlive every process. `python -m lab.exporter` shows them to Prometheus.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial, wraps
from typing import Any

import redis
from celery import bootsteps, signals

from tasks.hooks import Mark, Run
from tasks.registry import Job
from tasks.settings import Settings

SENT = "sidestep_sent"
"""Header of a message: when it was sent, in seconds since 1970. Celery's own messages say nothing of it."""

COUNTS, COHORTS, SEEN, FLUSHED = "metrics", "metrics:cohorts", "metrics:seen", "metrics:flushed:"
"""Keys, after the app's prefix: all counts; jobs by when they were sent; who was seen when; a process's last flush."""

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histograms; what is longer has a bucket of its own. A percentile is as exact as its bucket."""

COHORT_S, KEPT_S = 10, 3600
"""Jobs sent in the same ten seconds are one cohort, and cohorts are kept for an hour. Since sender and worker count by
the same stamp, it is known of each cohort how many of its jobs have not ended, however many others have."""

FLUSH_S, PULSE_S = 1.0, 5.0
TIMEOUT_S = 2.0
"""For one answer of the broker. A worker's loop waits for it when it gives its sign of life."""

LONGEST_S = 30 * 86400.0
"""A stamp farther away is none: somebody else's header, or a clock that was never set."""
AHEAD_S = 60.0
"""A stamp that lies farther in the future makes no cohort."""
MOST_SERIES, OTHER, LONGEST_NAME = 500, "(other)", 200
"""Pairs of queue and task that one process tells apart: who may send messages may write any queue's name into them."""

Field = tuple[str | int, ...]

logger = logging.getLogger(__name__)

# A flush whose answer was lost is sent again with the same number, and then counts once.
# KEYS: counts, cohorts, the process's last number.  ARGV: number, oldest cohort, then key, field and amount of each.
ADD = """
if redis.call('GET', KEYS[3]) == ARGV[1] then return 0 end
redis.call('SET', KEYS[3], ARGV[1], 'EX', 600)
for at = 3, #ARGV, 3 do
    redis.call('HINCRBY', KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2])
end
if redis.call('HLEN', KEYS[2]) > 1000 then
    local all = redis.call('HGETALL', KEYS[2])
    for at = 1, #all, 2 do
        if tonumber(string.match(all[at], '%d+')) < tonumber(ARGV[2]) then redis.call('HDEL', KEYS[2], all[at]) end
    end
end
return 1
"""

# By the broker's clock, so that nobody else's matters. Who comes new makes room for himself.
# KEYS: seen.  ARGV: who, what he serves, how long others are remembered.
PULSE = """
local now = tonumber(redis.call('TIME')[1])
if redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %s', now, ARGV[2])) == 1 then
    local all = redis.call('HGETALL', KEYS[1])
    for at = 1, #all, 2 do
        if tonumber(string.match(all[at + 1], '^%d+')) < now - tonumber(ARGV[3]) then
            redis.call('HDEL', KEYS[1], all[at])
        end
    end
end
return now
"""


class Meter:
    """What one process counts, on its way to the broker. Threads may share it; a forked child begins anew."""

    def __init__(
        self,
        client: Callable[[], Any],
        prefix: str,
        *,
        every_s: float = FLUSH_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`client` opens a client of the broker; it is called once in each process."""
        self._open, self._prefix, self._every_s, self._now = client, prefix, every_s, now
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._name, self._number = uuid.uuid4().hex, 0
        self._lock, self._sending, self._stopped = threading.Lock(), threading.Lock(), threading.Event()
        self._counts: defaultdict[Field, int] = defaultdict(int)
        self._pending: Mapping[Field, int] | None = None
        """Sent, but perhaps not taken: nothing else is sent before it is known to be."""
        self._series: set[tuple[str, str]] = set()
        self._client: Any = None
        self._thread: threading.Thread | None = None
        self._told = ""

    def started(self, request: Any, task: str) -> tuple[str, int | None]:
        """Count how long this job was in the queue; to be called when it starts, with Celery's request.

        Returns its queue and its cohort, for `ended`.
        """
        now = self._now()
        queue = self._known((getattr(request, "delivery_info", None) or {}).get("routing_key"), task)
        sent = _stamp(request, now)
        if sent is None:
            self._add((("unstamped", queue, task), 1))
            return queue, None
        eta = getattr(request, "eta", None)
        wait = now - (max(sent, _seconds(eta)) if eta else sent)
        if wait < 0:
            # The two clocks differ by more than the job waited.
            self._add((("wait", queue, task, 0), 1), (("early", queue, task), 1))
        else:
            bucket = bisect_left(BUCKETS_S, wait)
            self._add((("wait", queue, task, bucket), 1), (("wait_us", queue, task), round(wait * 1e6)))
        return queue, cohort(sent, now)

    def ended(self, queue: str, task: str, outcome: str, sent_in: int | None) -> None:
        """Count a job that has ended, by what became of it: `done`, `failed` or `revoked`."""
        field: Field = ("ended", queue, task, outcome)
        if sent_in is None:
            self._add((field, 1))
        else:
            self._add((field, 1), (("cohort", sent_in, "ended"), 1))

    def issued(self, queue: str, task: str, sent_s: float, jobs: int = 1) -> None:
        """Count jobs that were sent with this stamp."""
        queue = self._known(queue, task)
        self._add((("issued", queue, task), jobs), (("cohort", int(sent_s // COHORT_S), "issued"), jobs))

    def late(self, queue: str, lag_s: float) -> None:
        """Count how long after it was due a job was sent."""
        lag_s = max(lag_s, 0.0)
        bucket = bisect_left(BUCKETS_S, lag_s)
        self._add((("lag", queue, bucket), 1), (("lag_us", queue), round(lag_s * 1e6)))

    def revoked(self, request: Any, **_: Any) -> None:
        """Count a job that was called back or has expired; a receiver of Celery's `task_revoked`."""
        now = self._now()
        sent = _stamp(request, now)
        task = str(getattr(request, "task", None) or "")
        queue = self._known((getattr(request, "delivery_info", None) or {}).get("routing_key"), task)
        self.ended(queue, task, "revoked", None if sent is None else cohort(sent, now))

    def around(self, job: Job, run: Run) -> Run:
        """Return `run`, the job's bound function, counted when it starts and when it ends."""
        task = job.task_name

        @wraps(run)
        def counted(bound: Any, *args: Any, **kwargs: Any) -> Any:
            queue, sent_in = self.started(bound.request_stack.top, task)
            outcome = "failed"
            try:
                result = run(bound, *args, **kwargs)
                outcome = "done"
                return result
            finally:
                self.ended(queue, task, outcome, sent_in)

        return counted

    def flush(self) -> bool:
        """Send what was counted, and say whether the broker has taken it; if not, it is kept and sent again."""
        with self._sending:
            if self._pending is None:
                with self._lock:
                    counts, self._counts = self._counts, defaultdict(int)
                if not counts:
                    return True
                self._pending, self._number = counts, self._number + 1
            try:
                self._client = self._client or self._open()
                self._client.eval(ADD, 3, *self._keys(), self._number, *_entries(self._pending, self._now()))
            except (redis.RedisError, OSError) as error:
                self._tell(" ".join(str(error).split())[:120] or type(error).__name__)
                return False
            self._pending = None
            self._tell("")
            return True

    def _keys(self) -> tuple[str, str, str]:
        return self._prefix + COUNTS, self._prefix + COHORTS, f"{self._prefix}{FLUSHED}{self._name}"

    def close(self, **_: Any) -> None:
        """Send the rest; a receiver of Celery's `worker_shutdown` and `worker_process_shutdown`."""
        if self._pid != os.getpid():
            return  # this child has counted nothing
        self._stopped.set()
        # Twice: what was in doubt goes first, and the rest after it.
        if self.flush():
            self.flush()

    def _add(self, *amounts: tuple[Field, int]) -> None:
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            counts = self._counts
            for field, amount in amounts:
                counts[field] += amount
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sidestep-metrics", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self.flush()

    def _known(self, queue: object, task: str) -> str:
        name = queue[:LONGEST_NAME] if isinstance(queue, str) else ""
        if (name, task) not in self._series:
            if len(self._series) >= MOST_SERIES:
                return OTHER
            self._series.add((name, task))
        return name

    def _tell(self, trouble: str) -> None:
        if trouble and not self._told:
            logger.warning("the broker takes no counts (%s); they are kept until it does", trouble)
        self._told = trouble


def _stamp(request: Any, now_s: float) -> float | None:
    sent: Any = getattr(request, SENT, None)
    # Not what a stranger wrote: no text, no NaN, no number of a thousand digits, no year 1970.
    return float(sent) if type(sent) in (float, int) and now_s - LONGEST_S < sent < now_s + LONGEST_S else None


def cohort(sent_s: float, now_s: float) -> int | None:
    """The number of the cohort of jobs sent then; None where nobody would look for it any more."""
    return int(sent_s // COHORT_S) if now_s - KEPT_S < sent_s < now_s + AHEAD_S else None


def _seconds(eta: object) -> float:
    moment = eta if isinstance(eta, datetime) else datetime.fromisoformat(str(eta))
    return moment.timestamp()


def _entries(counts: Mapping[Field, int], now_s: float) -> Iterable[str | int]:
    yield int(now_s - KEPT_S) // COHORT_S - 1
    for field, amount in counts.items():
        of_cohort = field[0] == "cohort"
        yield from (2 if of_cohort else 1, json.dumps(field[1:] if of_cohort else field), amount)


def pulse(client: Any, prefix: str, who: str, queues: Iterable[str]) -> None:
    """Say that this worker is there and serves these queues."""
    client.eval(PULSE, 1, prefix + SEEN, who, json.dumps(sorted(queues)), KEPT_S)


def farewell(client: Any, prefix: str, who: str) -> None:
    """Say that this worker has ended as it should."""
    client.hdel(prefix + SEEN, who)


def _pulse_step(client: Callable[[], Any], prefix: str) -> type[Any]:
    """A step of the worker's consumer: while that runs, it says so, from the very loop that takes the jobs."""

    class Pulse(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def __init__(self, consumer: Any, **options: Any) -> None:
            super().__init__(consumer, **options)
            self._client: Any = None
            self._timer: Any = None

        def start(self, consumer: Any) -> None:
            self._beat(consumer)
            self._timer = consumer.timer.call_repeatedly(PULSE_S, self._beat, (consumer,))

        def stop(self, consumer: Any) -> None:
            if self._timer is not None:
                consumer.timer.cancel(self._timer)
                self._timer = None

        def _beat(self, consumer: Any) -> None:
            try:
                self._client = self._client or client()
                pulse(self._client, prefix, consumer.hostname, [queue.name for queue in consumer.task_consumer.queues])
            except (redis.RedisError, OSError) as error:
                # The consumer finds out by itself that the broker is gone; a missing right must be told.
                logger.warning("no sign of life could be given: %s", " ".join(str(error).split())[:120])

    return Pulse


def open_client(settings: Settings, **options: Any) -> Any:
    """A client of the broker that waits for one answer only so long, and tries once."""
    return redis.Redis.from_url(settings.broker, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, **options)


def publisher(settings: Settings) -> Meter | None:
    """What a producer counts with, to be closed at its end; None where the broker keeps no counts, being no Redis."""
    return Meter(partial(open_client, settings), settings.key_prefix) if settings.on_redis else None


def stamp(meter: Meter) -> None:
    """Let all that this process publishes through Celery carry when it was sent, and count it.

    Once per process. Receivers of Celery's publishing signals keep `producer.publish` from its fast path.
    """

    def before(headers: Any = None, **_: Any) -> None:
        if isinstance(headers, dict):
            headers[SENT] = time.time()  # a retry's too, which comes with the stamp of its first time

    def after(sender: Any = None, headers: Any = None, routing_key: Any = None, **_: Any) -> None:
        if isinstance(headers, dict) and SENT in headers:
            meter.issued(str(routing_key), str(sender), headers[SENT])

    signals.before_task_publish.connect(before, weak=False)
    signals.after_task_publish.connect(after, weak=False)


def connect(settings: Settings, mark: Mark | None = None, *, every_s: float = FLUSH_S) -> Mark | None:
    """Count this worker's jobs, once per process and before the app is made; over anything but Redis nothing changes.

    What comes back puts the counting around a job's function, outside of `mark`, the marks of `hooks.connect`.
    """
    if not settings.on_redis:
        logger.warning("no metrics: the broker is no Redis, which would keep them")
        return mark
    client, prefix = partial(open_client, settings), settings.key_prefix
    meter = Meter(client, prefix, every_s=every_s)
    stamp(meter)  # what jobs send, and retries
    step = _pulse_step(client, prefix)

    def begin(instance: Any = None, **_: Any) -> None:
        instance.app.steps["consumer"].add(step)

    def end(sender: Any = None, **_: Any) -> None:
        meter.close()
        try:
            farewell(client(), prefix, sender.hostname)
        except (redis.RedisError, OSError):
            return  # then the worker counts as gone, which is what it looks like from there

    signals.celeryd_init.connect(begin, weak=False)
    signals.worker_process_shutdown.connect(meter.close, weak=False)
    signals.worker_shutdown.connect(end, weak=False)
    signals.task_revoked.connect(meter.revoked, weak=False)

    def around(job: Job) -> Run:
        return meter.around(job, mark(job) if mark else _bound(job))

    return around


def _bound(job: Job) -> Run:
    run = job.run

    @wraps(run)
    def bound(_: Any, *args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    return bound

"""How fast jobs can be handed to the broker: every way to publish, beside each other, in one run."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from celery import group

from lab.broker import remove_keys
from lab.model import Estimate, LabError
from lab.session import Session
from lab.stats import mean_of_logs
from producer.publish import Parcel, Sender
from producer.template import ids
from tasks.app import make_app
from tasks.jobs import JOBS
from tasks.settings import Settings

JOB = "spin"
"""What is sent, and never run: each message has an id and an argument of its own, as real ones have."""
BATCH = 1000
"""Most messages in one write, by every way that sends several at once."""
GROUP = 100
JOBS_DEFAULT, REPEATS_DEFAULT = 20_000, 10
"""Every way takes some tenths of a second a block, and all together 30 s on two cores."""

Send = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to publish."""

    name: str
    label: str
    share: int
    """It sends one message a block where the fastest send so many: about as long, since it is so much slower."""
    gives_up: str
    """What a message, or its sender, lacks that `delay()` has."""
    make: Callable[[Desk, int], Send]
    """Prepares the sending of so many messages; what it returns is timed."""

    def count(self, jobs: int) -> int:
        """Messages a block."""
        return max(1, jobs // self.share)


@dataclass(frozen=True, slots=True)
class Desk:
    """What the ways share: an app, a client of the same broker, and one empty list."""

    app: Any
    client: redis.Redis
    key: str
    fast: Sender
    """Fills templates."""
    batch: Sender
    """Goes by kombu's batch."""

    @property
    def task(self) -> Any:
        """What is sent."""
        return self.app.tasks[JOBS[JOB].task_name]

    def encoded(self, count: int) -> list[bytes]:
        """So many messages, ready to be pushed."""
        return self.fast.encode(range(count))[self.key.encode()]


def _delay(desk: Desk, count: int) -> Send:
    delay = desk.task.delay
    return lambda: [delay(loops=n) for n in range(count)]


def _shared(desk: Desk, count: int) -> Send:
    apply_async = desk.task.apply_async

    def send() -> None:
        with desk.app.producer_pool.acquire(block=True) as producer:
            for n in range(count):
                apply_async(kwargs={"loops": n}, producer=producer)

    return send


def _group(desk: Desk, count: int) -> Send:
    signature = desk.task.s

    def send() -> None:
        for numbers in _batches(range(count), GROUP):
            group([signature(loops=n) for n in numbers]).apply_async()

    return send


def _batch(desk: Desk, count: int) -> Send:
    apply_async = desk.task.apply_async

    def send() -> None:
        with desk.app.producer_pool.acquire(block=True) as producer, producer.batch(max_size=BATCH):
            for n in range(count):
                apply_async(kwargs={"loops": n}, producer=producer)

    return send


def _message(desk: Desk, count: int) -> Send:
    return lambda: [desk.batch(numbers) for numbers in _batches(range(count), BATCH)]


def _fast(desk: Desk, count: int) -> Send:
    return lambda: [desk.fast(numbers) for numbers in _batches(range(count), BATCH)]


def _limit(desk: Desk, count: int) -> Send:
    messages = desk.encoded(count)

    def send() -> None:
        for some in _batches(messages, BATCH):
            with desk.client.pipeline(transaction=False) as pipeline:
                for message in some:
                    pipeline.lpush(desk.key, message)
                pipeline.execute()

    return send


def _ceiling(desk: Desk, count: int) -> Send:
    messages = desk.encoded(count)
    return lambda: [desk.client.lpush(desk.key, *some) for some in _batches(messages, BATCH)]


def _batches(values: Sequence[Any], size: int) -> Iterator[Any]:
    return (values[at : at + size] for at in range(0, len(values), size))


WAYS: Mapping[str, Way] = {
    way.name: way
    for way in (
        Way("delay", "delay()", 40, "nothing", _delay),
        Way("shared", "apply_async, one producer", 40, "nothing", _shared),
        Way("group", f"group of {GROUP}", 40, "nothing", _group),
        Way("batch", "apply_async in a batch", 10, "retries; a signal says made, not sent", _batch),
        Way("message", "as_task_v2 in a batch", 4, "also the task's own options and routes, and events", _message),
        Way("fast", "Sidestep's template", 1, "also signals; Redis and direct queues only", _fast),
        Way("limit", "redis-py pipeline", 1, "everything: pushes bytes made before", _limit),
        Way("ceiling", f"one LPUSH of {BATCH}", 1, "everything: pushes bytes made before", _ceiling),
    )
}
RATIOS: Sequence[tuple[str, str]] = (
    *((name, "delay") for name in WAYS if name != "delay"),
    ("fast", "batch"),
    ("fast", "message"),
    ("fast", "limit"),
    ("fast", "ceiling"),
)


@dataclass(frozen=True, slots=True)
class Published:
    """What came out."""

    rates_hz: Mapping[str, Sequence[float]]
    """Messages a second by way, one figure a block."""
    counts: Mapping[str, int]
    """Messages a block."""

    def rate_hz(self, name: str) -> Estimate | None:
        """Messages a second."""
        return mean_of_logs(self.rates_hz[name])

    def ratio(self, one: str, other: str) -> Estimate | None:
        """How many times as many messages a second, block by block."""
        return mean_of_logs([a / b for a, b in zip(self.rates_hz[one], self.rates_hz[other], strict=True)])


def measure(session: Session, *, jobs: int = JOBS_DEFAULT, repeats: int = REPEATS_DEFAULT, seed: int = 0) -> Published:
    """Publish by every way in turn, in a shuffled order within each block, after a block that does not count.

    The queue is counted and emptied after each: raises LabError where it does not hold just what was sent. A way that
    is slower sends fewer messages a block; its rate is per message.
    """
    with _open_desk(session) as desk:
        rates: dict[str, list[float]] = {name: [] for name in WAYS}
        order, chance = list(WAYS.values()), random.Random(seed)
        for way in order:
            _rate_hz(desk, way, way.count(min(jobs, BATCH)))
        for _ in range(repeats):
            session.say_alive()
            chance.shuffle(order)
            for way in order:
                rates[way.name].append(_rate_hz(desk, way, way.count(jobs)))
        return Published(rates, {way.name: way.count(jobs) for way in WAYS.values()})


def _rate_hz(desk: Desk, way: Way, count: int) -> float:
    send = way.make(desk, count)
    begun = time.perf_counter()
    send()
    took_s = time.perf_counter() - begun
    held = desk.client.llen(desk.key)
    desk.client.unlink(desk.key)
    if held != count:
        raise LabError(f"{way.label}: {count} messages were sent, and the queue holds {held}; does a worker serve it?")
    return count / took_s


@contextlib.contextmanager
def _open_desk(session: Session) -> Iterator[Desk]:
    settings = Settings(broker=session.broker.url, key_prefix=f"{session.prefix}publishing:")
    task_name, queue = JOBS[JOB].task_name, settings.queue
    with contextlib.ExitStack() as stack:
        stack.callback(remove_keys, session.client, settings.key_prefix)
        app = stack.enter_context(make_app(settings))
        client = stack.enter_context(contextlib.closing(redis.Redis.from_url(settings.broker)))
        job_ids = ids()
        senders = []
        for template in (True, False):
            sender = Sender(app, lambda seq: Parcel(next(job_ids), task_name, queue, {"loops": seq}), template=template)
            stack.callback(sender.close)
            sender.prepare(queue)
            senders.append(sender)
        if senders[0].path != "template":
            raise LabError(f"no template can be used here: {senders[0].path.removeprefix('batch: ')}")
        yield Desk(app, client, settings.key_prefix + queue, senders[0], senders[1])

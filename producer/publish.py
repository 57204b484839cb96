"""Send each job when it is due, and wait for nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from producer.pacers import Closed, Pacer

BATCH = 100
"""Most jobs in one pipeline. Larger saves little more; smaller lets the first of a burst start sooner."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One job, as the producer saw it: ns of CLOCK_MONOTONIC."""

    seq: int
    due_ns: int
    sent_ns: int
    """When the producer began to hand it to the broker."""
    taken_ns: int = 0
    """When the broker had taken it and all others of its batch."""


def publish(
    pacer: Pacer,
    send: Callable[[Sequence[int]], None],
    *,
    ended_s: Iterable[float] = (),
    batch: int = BATCH,
    now_ns: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[Sent]:
    """Call `send` with the numbers of all jobs that are due, up to `batch` at once, and yield what was sent.

    A slow `send` makes jobs late but never moves their due time. Time 0 is when the first is asked for.
    `idle` is called before sleeps long enough for it; `ended_s` feeds a closed load, in seconds since the start,
    and may block.
    """
    # The first look at the plan may take long; it comes before time 0, or it would make the first jobs late.
    dues = pacer.due_s(ended_s)
    plan = itertools.chain(list(itertools.islice(dues, 1)), dues)
    start_ns = now_ns()
    waiting: list[tuple[int, int]] = []

    def flush() -> Iterator[Sent]:
        sent_ns = now_ns()
        send([seq for seq, _ in waiting])
        taken_ns = now_ns()
        yield from (Sent(seq, due_ns, sent_ns, taken_ns) for seq, due_ns in waiting)
        waiting.clear()

    # A closed load's next job waits for these to end: once its first jobs are out, hold nothing back.
    holds_until = pacer.clients if isinstance(pacer, Closed) else None
    for seq, due in enumerate(plan):
        due_ns = start_ns + round(due * 1e9)
        if waiting and (due_ns > now_ns() or len(waiting) >= batch):
            yield from flush()
        if due_ns - now_ns() > IDLE_NS:
            idle()
        if (early_ns := due_ns - now_ns()) > 0:
            sleep(early_ns / 1e9)
        waiting.append((seq, due_ns))
        if holds_until is not None and seq + 1 >= holds_until:
            yield from flush()
    if waiting:
        yield from flush()


IDLE_NS = 50_000_000
"""Only before a gap of 50 ms may the caller do other things, such as draw a progress bar."""


class Parcel(NamedTuple):
    """What one job is sent as."""

    id: str
    task_name: str
    queue: str
    args: dict[str, Any]


class Sender:
    """Sends jobs through kombu: a batch is one pipeline to the broker.

    The body and headers are Celery's own (`amqp.as_task_v2`), so any worker of the app takes them.
    """

    def __init__(self, app: Any, parcel_of: Callable[[int], Parcel]) -> None:
        self._app, self._parcel_of = app, parcel_of
        self._connection = app.connection_for_write()
        self._producer = app.amqp.Producer(self._connection)

    def prepare(self, *queues: str) -> None:
        """Connect, declare the queues and build one message, so that the first job is not late for it."""
        for queue in queues:
            self._producer.maybe_declare(self._app.amqp.queues[queue])
        self._message(self._parcel_of(0))

    def _message(self, parcel: Parcel) -> Any:
        return self._app.amqp.as_task_v2(parcel.id, parcel.task_name, kwargs=parcel.args, ignore_result=True)

    def __call__(self, seqs: Sequence[int]) -> None:
        """Send the jobs with these numbers; return when the broker has taken them all."""
        send = self._app.amqp.send_task_message
        with self._producer.batch(max_size=max(len(seqs), 1)):
            for parcel in map(self._parcel_of, seqs):
                send(self._producer, parcel.task_name, self._message(parcel), queue=parcel.queue, retry=False)

    def close(self) -> None:
        """Give the connection back."""
        self._connection.release()

"""Send each job when it is due, and wait for nothing."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis
from kombu.exceptions import BatchPublishError, OperationalError

from producer.pacers import Closed, Pacer
from producer.template import (
    Moment,
    NotPossible,
    Route,
    Style,
    Template,
    listeners,
    why_not,
    written_eta,
    written_expires,
)
from tasks.codecs import CODECS, register
from tasks.metrics import SENT, Meter

BATCH = 100
"""Most jobs in one write. Larger saves little more; smaller lets the first of a burst start sooner."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One job, as the producer saw it: ns of CLOCK_MONOTONIC."""

    seq: int
    due_ns: int
    sent_ns: int
    """When the producer began to hand it to the broker."""
    taken_ns: int = 0
    """When the broker had taken it and all others of its batch."""
    encoded_ns: int = 0
    """When it and all others of its batch had been encoded and were about to be written to the socket; 0 where nobody
    said. By a template that is all of the work but the writing; by kombu's batch, what is left is to frame each
    message for Redis and to join them. Messages that kombu sends one by one, as without Redis, have no such moment."""


def publish(
    pacer: Pacer,
    send: Callable[[Sequence[int]], int | None],
    *,
    ended_s: Iterable[float] = (),
    batch: int = BATCH,
    now_ns: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[Sent]:
    """Call `send` with the numbers of all jobs that are due, up to `batch` at once, and yield what was sent.

    `send` may return when they had been encoded, which `Sent` then holds. A slow `send` makes jobs late but never moves
    their due time. Time 0 is when the first is asked for.
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
        encoded_ns = send([seq for seq, _ in waiting]) or 0
        taken_ns = now_ns()
        yield from (Sent(seq, due_ns, sent_ns, taken_ns, encoded_ns) for seq, due_ns in waiting)
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
    eta: Moment = None
    """Not to be run before then; a number is seconds from now."""
    expires: Moment = None
    """Not to be run after then; a number is seconds from now."""
    priority: int = 0
    """0 to 9. On Redis kombu serves the lower first."""
    positional: Sequence[Any] = ()
    """Arguments without a name, before the others."""


class NotTaken(OperationalError):  # noqa: N818  it says what was not
    """The broker did not take all of a batch; the message says why, how many it took, and what to do."""

    def __init__(self, why: str, *, taken: int | None, count: int) -> None:
        if taken is None:
            told = f"it is not known how many of {count} messages the broker took"
        else:
            told = f"the broker took {taken} of {count} messages"
        super().__init__(f"{told}: {why}")
        self.taken, self.count = taken, count


MOST_IN_PUSH, MOST_PUSH_BYTES = 1000, 16 << 20
"""Of one LPUSH: while it runs nobody else is served, and Redis holds all of it in memory until it is there."""
LARGE_BYTES = 1 << 16
"""A message from which on a write of its own costs less than a copy."""
BULK_LIMIT_BYTES = 512 << 20
"""Of one message: Redis's own proto-max-bulk-len."""
LEAST_LIMIT_BYTES = 1 << 20
"""The least that it can be set to: no smaller message needs a look at it."""
CONFIRMED = {"confirm_publish": True}
"""A RabbitMQ says of a message that it has it only where it is asked to; of a Redis this asks nothing."""
ADVICE = {
    "OutOfMemoryError": "free memory there, raise its maxmemory, or send less at a time",
    "ReadOnlyError": "name the primary server, not a replica",
    "NoPermissionError": "give this user the command and the keys in the server's ACL",
    "MISCONF": "the server cannot save to its disk; see its log",
    "WRONGTYPE": "a key of the queue's name holds something else; choose another queue, or remove it",
}
"""What to do about redis-py's exception of this name, or an answer that begins so."""


class Sender:
    """Sends jobs to the broker, a batch in one go, as messages that any worker of the app takes.

    On Redis it fills a template of Celery's own message for each kind of job and pushes all messages of a list with
    one command. Where that cannot be done, `path` says why, and the messages go through kombu's batch: then each is
    made by `amqp.as_task_v2`, and a batch is one pipeline.
    """

    def __init__(
        self,
        app: Any,
        parcel_of: Callable[[int], Parcel],
        *,
        serializer: str | None = None,
        compression: str | None = None,
        argsrepr: bool = True,
        base64: bool = True,
        ignore_result: bool = True,
        template: bool = True,
        encode_once: bool = False,
        most_in_push: int = MOST_IN_PUSH,
        meter: Meter | None = None,
    ) -> None:
        """See `Style` for what they mean; None is the app's own setting.

        `base64` False leaves the body as it is, where it is text. `template` False takes kombu's batch in any case.
        `encode_once` is for parcels whose `args` are the same object, see `Template`. With `most_in_push` 1 the broker
        counts one LPUSH a job, as it does with Celery's own; a batch still is one write. With a `meter` messages say
        when they were sent, and what the broker has taken is counted.
        """
        self._app, self._parcel_of = app, parcel_of
        # All must be known by the time that the first message is made; for codecs of others it is up to the app.
        register(*({serializer or app.conf.task_serializer} & set(CODECS)))
        self._style = Style(
            serializer=serializer or app.conf.task_serializer,
            compression=compression or app.conf.task_compression,
            argsrepr=argsrepr,
            ignore_result=ignore_result,
            stamp=meter is not None,
        )
        self._meter = meter
        as_text = {} if base64 else {"body_encoding": None}
        self._connection = app.connection_for_write(transport_options={**CONFIRMED, **as_text})
        self._producer = app.amqp.Producer(self._connection)
        self._encode_once, self._most_in_push = encode_once, most_in_push
        self._why = why_not(app, self._connection) if template else "it was asked for"
        self._templates: dict[Route, Template] = {}
        self._limit_bytes: int | None = None

    @property
    def path(self) -> str:
        """`template`, or `batch: ` and why. A template that cannot be made is found out by `prepare`, or by sending."""
        return "template" if self._why is None else f"batch: {self._why}"

    def prepare(self, *queues: str) -> None:
        """Connect, declare the queues and build one message, so that the first job is not late for it."""
        for queue in queues:
            self._producer.maybe_declare(self._app.amqp.queues[queue])
        parcel = self._parcel_of(0)
        if self._why is None:
            try:
                for queue in {*queues, parcel.queue}:
                    self._template(Route(parcel.task_name, queue, parcel.priority))
            except NotPossible as why:
                self._why = str(why)
        if self._why is None:
            self._pushes([parcel], time.time())
        else:
            self._message(parcel)

    def __call__(self, seqs: Sequence[int]) -> int | None:
        """Send the jobs with these numbers; return when the broker has taken them all.

        Returns when they had been encoded, see `Sent`. Raises NotTaken for what the broker refuses, or when it goes
        away meanwhile. Nothing is sent if one of them cannot be encoded.
        """
        parcels = [self._parcel_of(seq) for seq in seqs]
        sent_s = time.time()
        encoded_ns = self._hand_over(parcels, sent_s)
        if self._meter:
            for (queue, task_name), jobs in Counter((p.queue, p.task_name) for p in parcels).items():
                self._meter.issued(queue, task_name, sent_s, jobs)
        return encoded_ns

    def _hand_over(self, parcels: Sequence[Parcel], sent_s: float) -> int | None:
        self._why = self._why or listeners()
        if self._why is None:
            try:
                pushes = self._pushes(parcels, sent_s)
            except NotPossible as why:
                self._why = str(why)
            else:
                return self._push(pushes)
        return self._by_batch(parcels, sent_s)

    def encode(self, seqs: Sequence[int]) -> dict[bytes, list[bytes]]:
        """The messages that would be pushed, by the list they belong to. Raises NotPossible without a template."""
        if self._why is not None:
            raise NotPossible(self._why)
        return self._messages([self._parcel_of(seq) for seq in seqs], time.time())

    def close(self) -> None:
        """Give the connection back."""
        self._connection.release()

    def _template(self, route: Route) -> Template:
        made = Template(self._app, self._producer, self._style, route, encode_once=self._encode_once)
        self._templates[route] = made
        return made

    def _messages(self, parcels: Sequence[Parcel], sent_s: float) -> dict[bytes, list[bytes]]:
        lists: dict[bytes, list[bytes]] = {}
        templates = self._templates
        for call_id, task_name, queue, args, eta, expires, priority, positional in parcels:
            # A Route is such a tuple, and costs more to make.
            template = templates.get((task_name, queue, priority)) or self._template(  # type: ignore[call-overload]
                Route(task_name, queue, priority)
            )
            message = template.fill(call_id, positional, args, eta, expires, sent_s)
            if template.key in lists:
                lists[template.key].append(message)
            else:
                lists[template.key] = [message]
        return lists

    def _pushes(self, parcels: Sequence[Parcel], sent_s: float) -> list[_Push]:
        lists = self._messages(parcels, sent_s)
        largest = max((len(message) for messages in lists.values() for message in messages), default=0)
        self._refuse_oversized(largest, len(parcels))
        return [_Push(key, part) for key, messages in lists.items() for part in _parts(messages, self._most_in_push)]

    def _refuse_oversized(self, largest_bytes: int, count: int) -> None:
        """Raises NotTaken for a message of which the broker would only cut the connection."""
        if largest_bytes >= LEAST_LIMIT_BYTES and largest_bytes > (limit := self._limit()):
            raise NotTaken(
                f"one of {largest_bytes / 1e6:.0f} MB is over its limit of {limit / 1e6:.0f} MB; send the payload by "
                "reference, or raise proto-max-bulk-len there",
                taken=0,
                count=count,
            )

    def _push(self, pushes: Sequence[_Push]) -> int:
        """Write them all, then read what the broker says of each."""
        count = sum(len(push.messages) for push in pushes)
        packed = [part for push in pushes for part in push.packed()]
        if sum(map(len, packed)) < count * LARGE_BYTES:
            packed = [b"".join(packed)]  # one write; large messages are not copied once more for that
        pool = self._producer.channel.pool
        encoded_ns = time.monotonic_ns()
        taken, refusal = 0, None
        connection = pool.get_connection()
        try:
            connection.send_packed_command(packed)
            for push in pushes:
                try:
                    connection.read_response()
                    taken += len(push.messages)
                except redis.ResponseError as error:
                    refusal = refusal or error
        except (redis.RedisError, OSError) as error:
            connection.disconnect()
            why = f"the connection was lost ({error}); is the broker up?"
            raise NotTaken(why, taken=None, count=count) from error
        except BaseException:
            connection.disconnect()  # the next to use it would read our answers
            raise
        finally:
            pool.release(connection)
        if refusal:
            raise NotTaken(_advice(refusal), taken=taken, count=count) from refusal
        return encoded_ns

    def _limit(self) -> int:
        """The largest message that the broker takes, in bytes."""
        if self._limit_bytes is None:
            with self._producer.channel.conn_or_acquire() as client:
                try:
                    self._limit_bytes = int(client.config_get("proto-max-bulk-len")["proto-max-bulk-len"])
                except (redis.ResponseError, KeyError):  # hosted servers do not say
                    self._limit_bytes = BULK_LIMIT_BYTES
        return self._limit_bytes

    def _message(self, parcel: Parcel) -> Any:
        silent = None if self._style.argsrepr else ""
        return self._app.amqp.as_task_v2(
            parcel.id,
            parcel.task_name,
            parcel.positional,
            parcel.args,
            eta=written_eta(self._app, parcel.eta),
            expires=written_expires(self._app, parcel.expires),
            ignore_result=self._style.ignore_result,
            argsrepr=silent,
            kwargsrepr=silent,
        )

    def _by_batch(self, parcels: Sequence[Parcel], sent_s: float) -> int | None:
        send, style = self._app.amqp.send_task_message, self._style
        try:
            # One more than there are, or the last would send them all before they are looked at.
            with self._producer.batch(max_size=len(parcels) + 1) as batch:
                for parcel in parcels:
                    send(
                        self._producer,
                        parcel.task_name,
                        self._message(parcel),
                        queue=parcel.queue,
                        priority=parcel.priority,
                        serializer=style.serializer,
                        compression=style.compression,
                        retry=False,
                        headers={SENT: sent_s} if style.stamp else None,
                    )
                self._refuse_oversized(_largest_bytes(batch), len(parcels))
                encoded_ns = time.monotonic_ns()
        except BatchPublishError as error:
            why = _advice(error.__cause__ or error)
            raise NotTaken(why, taken=None, count=len(parcels)) from error
        return encoded_ns if self._producer.supports_batch_publish else None


def _largest_bytes(batch: Any) -> int:
    """Of the messages that kombu's batch holds for Redis; 0 where it sends each by itself."""
    pipeline = getattr(getattr(batch.state, "session", None), "pipeline", None)
    commands = getattr(pipeline, "command_stack", ())
    return max((len(command[-1]) for command, _ in commands), default=0)  # JSON in ASCII


class _Push(NamedTuple):
    """One LPUSH."""

    key: bytes
    messages: Sequence[bytes]

    def packed(self) -> list[bytes]:
        """As Redis's protocol spells it."""
        parts = [b"*%d\r\n$5\r\nLPUSH\r\n$%d\r\n%b\r\n" % (len(self.messages) + 2, len(self.key), self.key)]
        for message in self.messages:
            parts += (b"$%d\r\n" % len(message), message, b"\r\n")
        return parts


def _parts(messages: list[bytes], most: int) -> Iterator[list[bytes]]:
    """The messages in order, no more at once than one push may hold."""
    first, size = 0, 0
    for at, message in enumerate(messages):
        if at > first and (at - first == most or size + len(message) > MOST_PUSH_BYTES):
            yield messages[first:at]
            first, size = at, 0
        size += len(message)
    yield messages[first:]


def _advice(error: BaseException) -> str:
    # A pipeline puts the whole command before what the broker said.
    said = " ".join(str(error).rpartition("of pipeline caused error: ")[2].split())
    known = ADVICE.get(type(error).__name__) or ADVICE.get(said.partition(" ")[0])
    return f"{said[:200]}; {known or 'see the log of the broker'}"

"""A channel that fetches in batches, and tells the broker in batches what is finished.

While it consumes, one connection carries *flights*: what is finished and, where there is room, a fetch. There is at
most one flight at a time, and nobody waits for it: what becomes due meanwhile takes the next.
"""

# kombu has no types, and what extends it cannot have all of its own.
# mypy: disable-error-code="no-untyped-call, misc, has-type, no-any-return"

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty
from ssl import CERT_NONE
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis
from kombu.log import get_logger
from kombu.transport import redis as stock
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from kombu.utils.scheduling import priority_cycle, round_robin_cycle

from sidestep_transport import handover, scripts
from sidestep_transport.qos import Acks, QoS

if TYPE_CHECKING:
    from sidestep_transport.poller import Poller

logger = get_logger(__name__)

MOST_FETCHED = 1000
"""In one fetch, whatever is asked for: Lua hands over at most about 8000 values at once."""
COUNTER_LIVES_S = 7 * 24 * 3600
RECORD_LIVES_S = 3600
"""After so long nobody reconnects any more; or after the visibility timeout, when the messages are back anyway."""
SWEEP_CHUNK = 200
SWEEPS_AT_ONCE = 10
"""While it sweeps, nothing else is done."""
PAUSE_S = 0.01
"""Between two flights of a busy consumer, unless it has room for many messages."""
STALE_S = 0.5
IDLE_CHECK_S = 10.0
"""An idle consumer asks so often whether the broker is still there; kombu's own asks every second."""
TYPED = "__type__"
"""In a message where kombu's JSON has written what JSON has not."""
FETCH = "FETCH"
"""What the poller calls the connection of flights; kombu's own is BRPOP."""


@dataclass(slots=True)
class Flight:
    """What is under way to the broker."""

    connection: Any
    acks: list[str]
    queues: list[str]
    """Of the fetch, in kombu's order of now; none when it only tells what is finished."""
    replies: int
    number: int
    """Which of its channel's it is."""
    sent_s: float = field(default_factory=time.monotonic)


class Channel(stock.Channel):
    """kombu's Redis channel with its own way of consuming; publishing and fanout are as they were."""

    QoS = QoS

    fetch_limit = 64
    """Messages in one fetch, at most; never more than the free prefetch."""
    delivery_limit = 20
    """A message that was lost so often with its worker becomes a dead letter; None for never."""
    requeue_limit: int | None = None
    """A message that was rejected so often to be requeued becomes a dead letter; None for never."""
    doorbell = True
    """Whether the server shall tell when a queue changes; else an idle consumer asks every `idle_poll_interval`."""
    idle_poll_interval = 0.1

    from_transport_options = (  # type: ignore[assignment]  # kombu says how many there are
        *stock.Channel.from_transport_options,
        "fetch_limit",
        "delivery_limit",
        "requeue_limit",
        "doorbell",
        "idle_poll_interval",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cached_client: Any = None
        self._buffer: deque[tuple[str, str, bytes]] = deque()  # queue, tag, message: fetched, not yet delivered
        self._noted: set[str] = set()
        self._no_ack_queues: set[str] = set()
        self._acks = Acks()
        self._counted: set[str] = set()
        self._flight: Flight | None = None
        self._flights = 0
        self._lost: set[str] = set()  # it waits here still, and is somebody else's
        self._missed: set[str] = set()  # of which it was said
        self._prepared: Any = None
        self._rings = False
        self._is_idle = False
        self._asked_s = self._sent_s = self._renewed_s = self._swept_s = 0.0
        self._bell = False
        self._sha = ""
        self._plain_client: Any = None
        super().__init__(*args, **kwargs)
        self.poller: Poller = self.connection.cycle
        self.handlers[FETCH] = self.on_readable
        self._record = self._new_record()
        parameters = self._connparams()
        self._address: handover.Address = (
            *(parameters.get(name) for name in ("path", "host", "port", "db")),
            *(self.global_keyprefix, self.unacked_key, self.unacked_index_key),
        )
        self._after_interruption()

    @property
    def fetches(self) -> bool:
        """Whether it consumes in this module's way: without acknowledgements there is nothing to do better."""
        return bool(self.ack_emulation)

    # --- keys and clients --------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"{self.global_keyprefix}{name}"

    def _new_record(self) -> str:
        return self._key(f"{self.unacked_key}_fetch:{uuid.uuid4().hex}")

    @property
    def dead_letters_key(self) -> str:
        """The list of dead letters: see `sidestep_transport.dead_letters`."""
        return self._key(f"{self.unacked_key}_dead_letters")

    def _counter(self, kind: str, tag: str) -> str:
        return self._key(f"{self.unacked_key}_{kind}:{tag}")

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        # kombu makes a client for every command. One serves any number of threads, and costs a tenth of a millisecond.
        if self._cached_client is None:
            self._cached_client = super()._create_client()
        return self._cached_client

    def _disconnect_pools(self) -> None:
        self._cached_client = self._plain_client = None
        super()._disconnect_pools()

    def _plain(self) -> redis.Redis:
        """A client that puts no prefix to keys: kombu's own prefixes only the first of a script's."""
        if self._plain_client is None:
            self._plain_client = redis.Redis(connection_pool=self.pool)
        return self._plain_client

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        connection = self.connection.client
        if not connection.ssl and _wants_tls(connection):
            # kombu does this by the transport's name, which is not `rediss` where broker_transport names a class.
            logger.warning(
                "the URL says rediss, with no ssl_cert_reqs: encrypted, but the server's certificate is not checked; "
                "set broker_use_ssl or add ?ssl_cert_reqs=required"
            )
            connection.ssl = {"ssl_cert_reqs": CERT_NONE}
        parameters: dict[str, Any] = super()._connparams(asynchronous=asynchronous)
        if asynchronous and self.doorbell and redis.VERSION[0] < 8:
            parameters.setdefault("protocol", 3)  # later versions speak it unasked
        return parameters

    # --- consuming ---------------------------------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue."""
        if no_ack:
            self._no_ack_queues.add(queue)
        else:
            self._no_ack_queues.discard(queue)
        self._is_idle = False
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        cancelled = super()._basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues:
            self._no_ack_queues.discard(queue)
            if self._flight is not None:
                self._is_idle = False
                if queue in self._flight.queues:
                    self._land_or_leave()
            self._put_back_or_leave([it for it in self._buffer if it[0] == queue])
            self._buffer = deque(it for it in self._buffer if it[0] != queue)
        return cancelled

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """One message at once, or None; it is noted as unacknowledged in the same step."""
        if no_ack or not self.fetches:
            return super().basic_get(queue, no_ack, **kwargs)
        reply = self._plain().eval(scripts.FETCH, *self._fetch_arguments([queue], 1, keeps_record=False))
        self._fill([queue], reply)
        client = self._create_client()
        self._maybe_update_queues_expire(client, queue)
        if not self._buffer or self._buffer[-1][0] != queue:
            return None
        _, tag, raw = self._buffer.pop()
        payload = self._decode(queue, tag, raw)
        if payload is None:
            return None
        try:
            message = self.Message(payload, channel=self)
        except Exception as error:
            self._bury(queue, tag, raw, _unreadable("message", error))
            return None
        self._noted.add(tag)
        self.qos.append(message, message.delivery_tag)
        return message

    def was_noted(self, tag: str) -> bool:
        """Whether the broker noted this delivery when it was fetched; said once of each."""
        if tag in self._noted:
            self._noted.discard(tag)
            return True
        return False

    def finish(self, tag: str, *, was_redelivered: bool = False) -> None:
        """Tell the broker with the next batch that this delivery is finished; from any thread."""
        if was_redelivered:
            self._counted.add(tag)
        if self.closed:
            # Its connection is gone. The next one of this process tells it.
            handover.release(self._address, tag)
            handover.leave(self._address, handover.Estate(acks={tag}))
            return
        self._acks.add(tag)
        self._missed.discard(tag)
        self.poller.wake_if_waiting()

    @property
    def room(self) -> int:
        """How many messages more it may fetch now."""
        qos = self.qos
        if not qos.can_consume():
            return 0
        most = max(1, min(int(self.fetch_limit), MOST_FETCHED))
        if "can_consume" in vars(qos) or not self._order_is_known:
            most = (
                1  # Celery's worker_disable_prefetch asks before each message; so might a strategy that we do not know
            )
        free = qos.can_consume_max_estimate()
        waiting = len(self._buffer)
        room = (most if free is None else min(most, free)) - waiting
        # As long as something waits here there is no hurry, and a larger batch is cheaper.
        return room if room >= waiting else 0

    @property
    def _order_is_known(self) -> bool:
        return isinstance(self._queue_cycle, round_robin_cycle)

    @property
    def has_news(self) -> bool:
        """Whether there is something finished that the broker has not heard of."""
        return bool(self._acks)

    @property
    def has_waiting(self) -> bool:
        """Whether messages wait here to be delivered."""
        return bool(self._buffer)

    def pump(self) -> None:
        """Send what is due. Raises kombu's connection errors."""
        if self._flight is not None:
            return
        if handover.is_due(self._address):
            self._settle(handover.claim(self._address))
        if self._is_idle and (self._bell or time.monotonic() - self._asked_s >= self._ask_again_s):
            self._is_idle = False
        queues = [] if self._is_idle or not self.active_queues else self._next_queues()
        room = self.room if queues else 0
        connected = self.poller.connect(self)
        if (not self._acks and room < 1) or self._may_wait(room):
            return
        if connected or self._prepared is not self.client.connection._sock:
            self._prepare()
        self._send(self._acks.take(), queues if room > 0 else [], room)

    def _may_wait(self, room: int) -> bool:
        # A consumer that has most of its share of messages loses nothing by a short wait, and the broker saves flights.
        share = self.qos.prefetch_count or self.fetch_limit
        enough = max(1, min(share // 4, self.fetch_limit // 2))
        return not self._bell and room < enough and time.monotonic() - self._sent_s < PAUSE_S

    def _next_queues(self) -> list[str]:
        return list(self._queue_cycle.consume(len(self.active_queues)))

    @property
    def _ask_again_s(self) -> float:
        return IDLE_CHECK_S if self._rings else self.idle_poll_interval

    @property
    def next_turn_s(self) -> float | None:
        """In how many seconds it has something to send, as far as it knows now."""
        now, turns = time.monotonic(), []
        if self._is_idle and not self._rings:
            turns.append(self._asked_s + self.idle_poll_interval)
        if self._flight is None and (self._acks or (not self._is_idle and self.active_queues and self.room > 0)):
            turns.append(self._sent_s + PAUSE_S)
        return max(0.0, min(turns) - now) if turns else None

    def _prepare(self) -> None:
        connection = self.client.connection
        commands: list[tuple[str, ...]] = [("SCRIPT", "LOAD", scripts.FETCH)]
        rings = bool(self.doorbell) and str(connection.get_protocol()) == "3"
        if rings:
            commands.append(("CLIENT", "TRACKING", "ON", "NOLOOP"))
        self._sha = str(self._round_trip(connection, commands[0]), "ascii")
        if rings:
            try:
                self._round_trip(connection, commands[1])
            except redis.ResponseError as error:
                rings = False
                logger.warning(
                    "the server does not tell when a queue changes (%s): an idle worker asks every %g s",
                    error,
                    self.idle_poll_interval,
                )
        if rings:
            connection._parser.set_invalidation_push_handler(self._ring)
        self._rings, self._is_idle, self._prepared = rings, False, connection._sock
        self._after_interruption()
        if handover.kept(self._address):
            self.poller.start_heart()

    def _after_interruption(self) -> None:
        # While a broker was away nobody could renew. All may do so before the first of them looks for what is lost.
        if handover.was_interrupted(self._address):
            self._swept_s, self._renewed_s = time.monotonic(), 0.0
            # Now, not with the next beat: a worker that starts at this moment looks at once.
            self.renew()

    def _ring(self, _: Any) -> None:
        self._bell = True

    @staticmethod
    def _round_trip(connection: Any, command: Sequence[str]) -> Any:
        connection.send_command(*command, check_health=False)
        return connection.read_response()

    def _fetch_arguments(self, queues: Sequence[str], limit: int, *, keeps_record: bool) -> list[Any]:
        keys = [self._key(self._q_for_pri(queue, step)) for step in self.priority_steps for queue in queues]
        rotates = isinstance(self._queue_cycle, round_robin_cycle) and not isinstance(self._queue_cycle, priority_cycle)
        ttl = max(1, min(RECORD_LIVES_S, round(self.visibility_timeout))) if keeps_record else 0
        return [
            4 + len(keys),
            *(self._key(self.unacked_key), self._key(self.unacked_index_key), self._record, self.dead_letters_key),
            *keys,
            *(limit, len(queues), int(rotates), ttl, self._flights, self._counter("expired", "")),
            *queues,
        ]

    def _ack_commands(self, tags: Sequence[str]) -> list[list[Any]]:
        # In this order: what is left when only the first is done is a tag without a message, which a sweep removes.
        commands = [
            ["HDEL", self._key(self.unacked_key), *tags],
            ["ZREM", self._key(self.unacked_index_key), *tags],
        ]
        counters = [
            self._counter(kind, tag) for tag in tags if tag in self._counted for kind in ("expired", "requeued")
        ]
        return [*commands, ["DEL", *counters]] if counters else commands

    def _send(self, acks: list[str], queues: list[str], room: int) -> None:
        commands = self._ack_commands(acks) if acks else []
        self._flights += 1
        if queues:
            commands.append(["EVALSHA", self._sha, *self._fetch_arguments(queues, room, keeps_record=True)])
            self._asked_s = time.monotonic()
        self._sent_s = time.monotonic()
        connection = self.client.connection
        self._flight = Flight(connection, acks, queues, len(commands), self._flights)
        # Without redis-py's own check: it would reconnect behind the poller's back, and an idle consumer asks anyway.
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    def on_readable(self) -> None:
        """Read the answer to a flight, or the doorbell; raises kombu's connection errors."""
        if self._flight is None:
            # Maybe nothing: what made it readable may have been read meanwhile.
            self._read_bells()
            if not self._bell:
                return
            # The answer comes within a round trip: to wait for it here saves a turn of the event loop.
            self.pump()
            if self._flight is None:
                return
        self._land()

    def _read_bells(self) -> None:
        connection = self.client.connection
        try:
            while connection.can_read(timeout=0):
                connection.read_response(push_request=True)
        except self.connection_errors:
            connection.disconnect()
            raise

    def _land(self) -> None:
        flight = self._flight
        assert flight is not None  # noqa: S101  whoever calls has looked
        replies: list[Any] = []
        for _ in range(flight.replies):
            try:
                replies.append(flight.connection.read_response())
            except redis.ResponseError as error:
                replies.append(error)
        self._flight = None
        answer = replies.pop() if flight.queues else None
        if any(isinstance(reply, redis.ResponseError) for reply in replies):
            self._acks.add(*flight.acks)
        else:
            self._counted.difference_update(flight.acks)
        if isinstance(answer, redis.exceptions.NoScriptError):
            answer, self._prepared = None, None  # the server has forgotten it
        for reply in (*replies, answer):
            if isinstance(reply, redis.ResponseError):
                raise reply
        if answer is not None:
            self._fill(flight.queues, answer)
            self._bell = False  # what rang before the answer is answered by it
        if self._rings and (answer is None or answer[0]):
            # What rings behind the answer may lie in the parser's buffer already, where no poll sees it; the server
            # rings only once, so that all messages would wait for the next look.
            self._read_bells()
        if answer is not None and answer[0]:
            self._is_idle = not self._bell

    def _fill(self, queues: Sequence[str], reply: Sequence[Any]) -> None:
        if reply[1]:
            logger.error(
                "%d messages are dead letters now, in the list %r: no delivery tag can be read from them",
                reply[1],
                self.dead_letters_key,
            )
        for at in range(2, len(reply), 3):
            number, tag, raw = reply[at : at + 3]
            self._buffer.append((queues[int(number) - 1], bytes_to_str(tag), raw))

    def _lose(self, flight: Flight) -> None:
        """The connection broke: what was under way may have happened or not."""
        self._acks.add(*flight.acks)
        if flight.queues:
            handover.leave(self._address, handover.Estate(records={(self._record, flight.number)}))
            self._record = self._new_record()

    def _on_connection_disconnect(self, connection: Any) -> None:
        flight = self._flight
        if flight is not None and flight.connection is connection:
            self._flight = None
            self._lose(flight)
        client = vars(self).get("client")
        if client is not None and client.connection is connection:
            self._prepared, self._is_idle = None, False
            if not self._closing:
                handover.interrupt(self._address)
        super()._on_connection_disconnect(connection)

    def _decode(self, queue: str, tag: str, raw: bytes) -> Any:
        try:
            text = bytes_to_str(raw)
            # kombu's own looks into every object for values of other types, and makes a decoder for each message.
            payload = loads(text) if TYPED in text else json.loads(text)
            payload["properties"]["delivery_tag"]
        except Exception as error:
            self._bury(queue, tag, raw, _unreadable("envelope", error))
            return None
        if str(payload["properties"]["delivery_tag"]) != tag:
            payload["properties"]["delivery_tag"] = tag
        return payload

    def deliver(self) -> bool:
        """Hand one message that waits here to its consumer; whether there was one. Raises what the consumer raises."""
        while self._buffer:
            queue, tag, raw = self._buffer.popleft()
            if tag in self._lost:
                self._lost.discard(tag)
                continue
            payload = self._decode(queue, tag, raw)
            if payload is None:
                continue
            self._noted.add(tag)
            self._queue_cycle.rotate(queue)
            try:
                self.connection._deliver(payload, queue)
            except Exception as error:
                if not self.was_noted(tag):
                    raise  # the consumer has it
                if queue in self._no_ack_queues:
                    self.finish(tag)
                    raise
                self._bury(queue, tag, raw, _unreadable("message", error))
                continue
            if self.was_noted(tag) and queue in self._no_ack_queues:
                self.finish(tag)
            return True
        return False

    # --- returning ---------------------------------------------------------------------------------------------------

    def restore(self, tags: Sequence[str], *, to_the_end: bool = False) -> None:
        """Put messages of this channel back on their queues, marked as redelivered; the last becomes the next.

        With `to_the_end` they come after all others, and count as requeued. Raises kombu's connection errors.
        """
        if not tags:
            return
        client = self._plain()
        handover.release(self._address, *tags)
        for at in range(0, len(tags), SWEEP_CHUNK):
            chunk = tags[at : at + SWEEP_CHUNK]
            found = client.hmget(self._key(self.unacked_key), list(chunk))
            entries = zip(chunk, found, strict=True)
            kind = "requeued" if to_the_end else None
            self._return(client, (self._ending(tag, "", entry, kind, to_the_end=to_the_end) for tag, entry in entries))

    @property
    def may_sweep(self) -> bool:
        """Whether all have had the time to renew since a connection broke."""
        return not handover.was_interrupted(self._address) or time.monotonic() - self._swept_s >= self.sweep_s

    def sweep(self) -> None:
        """Put back what nobody renewed for the visibility timeout. Raises kombu's connection errors."""
        self._swept_s = time.monotonic()
        client = self._plain()
        keys = [self._key(self.unacked_key), self._key(self.unacked_index_key)]
        limit = min(SWEEP_CHUNK, self.unacked_restore_limit or SWEEP_CHUNK)
        for _ in range(SWEEPS_AT_ONCE):
            found: Any = client.eval(scripts.EXPIRED, 2, *keys, self.visibility_timeout, limit)
            expired = [
                (bytes_to_str(found[i]), bytes_to_str(found[i + 1]), found[i + 2]) for i in range(0, len(found), 3)
            ]
            # The oldest last, so that it becomes the next.
            endings = [self._ending(tag, score, entry, "expired") for tag, score, entry in reversed(expired)]
            ended = self._return(client, endings)
            if len(expired) < limit or not ended:
                return
        self._swept_s = 0.0  # there are more: the next beat goes on

    def _ending(self, tag: str, score: str, entry: Any, kind: str | None, *, to_the_end: bool = False) -> list[Any]:
        """The arguments of `RETURN` for one delivery."""
        if entry is None:
            return [tag, score, "", 0, 0, "", 0]
        places, queue, reason = self._places(entry, to_the_end=to_the_end)
        limit = {"expired": self.delivery_limit, "requeued": self.requeue_limit}.get(kind or "")
        counter = self._counter(kind, tag) if kind and limit and reason is None else ""
        if reason is None:
            reason = {"expired": "its worker was lost too often", "requeued": "it was requeued too often"}.get(
                kind or "", ""
            )
        header = self._header(queue, reason, places[1] or None)
        return [tag, score, counter, limit or 0, COUNTER_LIVES_S, header, len(places) // 3, *places]

    def _places(self, entry: bytes, *, to_the_end: bool) -> tuple[list[Any], str, str | None]:
        """Where a delivery's message goes, for `RETURN`; its queue; and why it cannot go there."""
        try:
            payload, exchange, routing_key = loads(bytes_to_str(entry))
            properties = payload["properties"]
        except Exception:
            return ["BURY", "", entry], "", "its entry cannot be read"
        for part in (payload.get("headers"), properties.get("delivery_info")):
            if isinstance(part, dict):
                part["redelivered"] = True
        queues = self._lookup(exchange, routing_key)
        message = dumps(payload)
        if not queues:
            return ["BURY", "", message], str(routing_key), f"no queue is bound to exchange {exchange!r} for it"
        command = "LPUSH" if to_the_end else "RPUSH"
        step = self._get_message_priority(payload, reverse=False)
        places: list[Any] = []
        for queue in queues:
            places += [command, self._key(self._q_for_pri(queue, step)), message]
        return places, str(queues[0]), None

    def _return(self, client: redis.Redis, endings: Iterable[list[Any]]) -> int:
        arguments: list[Any] = []
        count = 0
        ended = buried = 0
        keys = (self._key(self.unacked_key), self._key(self.unacked_index_key), self.dead_letters_key)
        for ending in (*endings, None):
            if ending is not None:
                arguments += ending
                count += 1
            if arguments and (ending is None or len(arguments) > MOST_FETCHED):
                done: Any = client.eval(scripts.RETURN, 3, *keys, *arguments)
                ended, buried = ended + done[0], buried + done[1]
                arguments = []
        if buried:
            logger.error("%d messages are dead letters now, in the list %r", buried, self.dead_letters_key)
        return ended

    def _bury(self, queue: str, tag: str, raw: bytes, reason: str) -> None:
        logger.error(
            "a message from queue %r is a dead letter now, in the list %r: %s", queue, self.dead_letters_key, reason
        )
        header = self._header(queue, reason, self._list_of(queue, raw))
        self._return(self._plain(), [[tag, "", "", 0, 0, header, 1, "BURY", "", raw]])

    @staticmethod
    def _header(queue: str, reason: str, key: str | None) -> str:
        """What stands before a dead letter's message; `key` is of the list that it came from."""
        fields = {"at": f"{time.time():.6f}", "queue": queue, "reason": reason}
        return dumps({**fields, "list": key} if key else fields)

    def _list_of(self, queue: str, raw: bytes) -> str:
        """The key of the list where this message of a queue lies."""
        try:
            step = self._get_message_priority(json.loads(raw), reverse=False)
        except (ValueError, TypeError, AttributeError):  # it is no message
            step = self.default_priority
        return self._key(self._q_for_pri(queue, step))

    def _put_back(self, client: redis.Redis, unread: Iterable[tuple[str, str, bytes]]) -> None:
        """Return what nobody has seen, as it was; (tag, queue, message), the newest first."""
        self._return(
            client,
            [
                [tag, "", "", 0, 0, "", 1, "RPUSH", self._list_of(queue, raw), raw]
                for tag, queue, raw in unread
                if tag not in self._lost
            ],
        )

    def _put_back_or_leave(self, waiting: Sequence[tuple[str, str, bytes]]) -> None:
        unread = [(tag, queue, raw) for queue, tag, raw in reversed(waiting)]
        if not unread:
            return
        try:
            self._put_back(self._plain(), unread)
        except (*self.connection_errors, AttributeError):  # the latter where its connection is gone
            handover.leave(self._address, handover.Estate(unread=unread))

    def return_waiting(self) -> None:
        """Put back what was fetched and delivered to nobody."""
        waiting, self._buffer = list(self._buffer), deque()
        self._put_back_or_leave(waiting)

    def _land_or_leave(self) -> None:
        """Wait for what is under way; where that fails, it is left to the next connection."""
        try:
            self._land()
        except self.connection_errors:
            pass  # to disconnect has left it
        except self.ResponseError:
            logger.warning("the broker refused the last fetch", exc_info=True)

    # --- what is finished, what is left undone -----------------------------------------------------------------------

    def flush(self) -> None:
        """Tell the broker at once what is finished. Raises kombu's connection errors; then it is still due."""
        tags = self._acks.take()
        if not tags:
            return
        try:
            self._tell(self._plain(), tags)
        except BaseException:
            self._acks.add(*tags)
            raise

    def flush_stale(self) -> None:
        """Tell what was finished a while ago: the thread that consumes is busy, or gone for a walk."""
        if self._acks.age_s > STALE_S:
            self.flush()

    def flush_or_leave(self) -> None:
        """Tell the broker what is finished, or leave it to the next connection of this process."""
        tags = self._acks.take()
        if not tags:
            return
        try:
            self._tell(self._plain(), tags)
        except (*stock.get_redis_error_classes()[0], AttributeError):
            handover.leave(self._address, handover.Estate(acks=set(tags)))

    def _tell(self, client: redis.Redis, tags: Sequence[str]) -> None:
        for at in range(0, len(tags), MOST_FETCHED):
            with client.pipeline(transaction=False) as pipe:
                for command in self._ack_commands(tags[at : at + MOST_FETCHED]):
                    pipe.execute_command(*command)
                pipe.execute()
        self._counted.difference_update(tags)

    def _settle(self, estate: handover.Estate) -> None:
        """Do what broken connections left undone."""
        if not estate:
            return
        client = self._plain()
        try:
            if estate.acks:
                self._tell(client, sorted(estate.acks))
                estate.acks = set()
            if estate.unread:
                self._put_back(client, estate.unread)
                estate.unread = []
            for record, number in sorted(estate.records):
                self._recall(client, record, number)
                estate.records.discard((record, number))
        except BaseException:
            handover.leave(self._address, estate)
            raise

    def _recall(self, client: redis.Redis, record: str, number: int) -> None:
        """Put back what a fetch gave whose answer nobody read; a fetch that is still on its way gives nothing."""
        given: Any = client.eval(scripts.CLOSE, 1, record, RECORD_LIVES_S)
        if not given:
            return
        of, score, *tags = bytes_to_str(given).split("\n")
        if int(of) != number:
            return  # it gave nothing, and this is of one before, whose answer was read
        endings = []
        found: Any = client.hmget(self._key(self.unacked_key), tags)
        for tag, entry in reversed(list(zip(tags, found, strict=True))):
            if entry is None:
                continue
            # As FETCH wrote it: the message between the bracket and the last three strings.
            raw, _, tail = entry[1:-1].rpartition(b', "", ')
            queue = json.loads(tail)
            endings.append([tag, score, "", 0, 0, "", 1, "RPUSH", self._list_of(queue, raw), raw])
        self._return(client, endings)

    # --- leases ------------------------------------------------------------------------------------------------------

    @property
    def renewal_s(self) -> float:
        """How often what is held here is renewed."""
        return max(0.2, float(self.visibility_timeout) / 3)

    @property
    def sweep_s(self) -> float:
        """How often it looks for deliveries that nobody renews."""
        asked = float(self.unacked_restore_interval or 10) * float(self.unacked_restore_throttle or 1)
        return max(0.2, min(asked, float(self.visibility_timeout) / 4))

    def renew(self) -> None:
        """Renew the deliveries that are held here, if it is time. From any thread; raises kombu's connection errors."""
        now = time.monotonic()
        if now - self._renewed_s < self.renewal_s or self.closed:
            return
        held = self._held()
        if handover.kept(self._address):
            gc.collect()  # what nobody can finish any more may lie in a cycle, and its lease must end
            held += handover.kept(self._address)
        client = self._plain()
        gone: list[Any] = []
        for at in range(0, len(held), MOST_FETCHED):
            reply: Any = client.eval(scripts.RENEW, 1, self._key(self.unacked_index_key), *held[at : at + MOST_FETCHED])
            gone += reply
        self._renewed_s = now  # not before: what failed is tried again with the next beat
        self._lost.update({bytes_to_str(tag) for tag in gone}.intersection(self._waiting()))
        handover.release(self._address, *map(bytes_to_str, gone))
        still = set(self._held())
        lost = [tag for tag in map(bytes_to_str, gone) if tag in still and tag not in self._missed]
        if lost:
            self._missed.update(lost)
            logger.warning(
                "%d messages were given to another worker while this one held them: it did not renew them for %g s "
                "(visibility_timeout), and they are done twice",
                len(lost),
                self.visibility_timeout,
            )

    def _waiting(self) -> list[str]:
        while True:
            try:
                return [tag for _, tag, _ in list(self._buffer)]
            except RuntimeError:  # it changed while it was copied
                continue

    def _held(self) -> list[str]:
        return [*self._waiting(), *(self._qos.held() if self._qos is not None else ())]

    def beat(self) -> None:
        """Renew, sweep, notice a dead connection, each when it is time. Raises kombu's connection errors."""
        now = time.monotonic()
        flight = self._flight
        if flight is not None and self.health_check_interval and now - flight.sent_s > self.health_check_interval:
            sock = flight.connection._sock
            if sock is not None and not stock._socket_readable(sock):
                logger.warning("the broker has not answered for %.0f s; dropping the connection", now - flight.sent_s)
                flight.connection.disconnect()
        self.renew()
        if self.active_queues and now - self._swept_s >= self.sweep_s:
            self.sweep()

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Tell what is finished, return what nobody has seen, and close as kombu does."""
        qos = self._qos if self.fetches and not self.closed else None
        if not self.closed and self.fetches:
            if self._flight is not None:
                self._land_or_leave()
            self.return_waiting()
            self.flush_or_leave()
            if self._asked_s:
                self._forget_record()
            if self._asked_s and handover.is_due(self._address):
                with contextlib.suppress(*self.connection_errors):  # then it is left again
                    self._settle(handover.claim(self._address))
        try:
            super().close()
        finally:
            if qos is not None and (left := qos.leave()):
                # The broker could not take it back, and jobs run on.
                handover.keep(self._address, left)
                handover.interrupt(self._address)

    def _forget_record(self) -> None:
        try:
            self._plain().delete(self._record)
        except (*self.connection_errors, self.ResponseError):
            pass  # it expires

    def _after_fork(self) -> None:
        # What the parent holds is the parent's.
        self._buffer, self._flight, self._acks = deque(), None, Acks()
        self._prepared = None
        super()._after_fork()


def _unreadable(what: str, error: Exception) -> str:
    return f"its {what} cannot be read ({type(error).__name__})"


def _wants_tls(connection: Any) -> bool:
    # kombu forgets a URL's scheme where a transport is named beside it, and would send the password in clear text. With
    # kombu alone nobody remembers it; Celery does.
    if "celery" not in sys.modules:
        return False
    conf = sys.modules["celery"].current_app.conf
    urls = [conf.broker_url, conf.broker_read_url, conf.broker_write_url]
    parts = [urlsplit(url) for url in urls if isinstance(url, str) and url.startswith("rediss://")]
    return any((each.hostname, each.port) == (connection.hostname, connection.port) for each in parts)


__all__ = ["FETCH", "Channel", "Empty", "Flight"]

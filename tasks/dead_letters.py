"""Messages that a worker cannot read: counted, kept byte for byte in a list, told in one line, and out of the way.

A stock worker ends with a traceback on most of them. Some are then lost; others go back to the queue and end the next
worker too. Redis has no dead-letter queue, so even what a stock worker refuses in good order is gone.
"""

# Celery and kombu have no types, and what extends them cannot have all of its own.
# mypy: disable-error-code="no-untyped-call, misc, has-type"

from __future__ import annotations

import base64
import bz2
import contextlib
import importlib
import json
import lzma
import pickle
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import redis
from celery import Celery, signals
from celery.concurrency.prefork import TaskPool
from celery.exceptions import InvalidTaskError, NotRegistered
from celery.utils.log import get_logger
from celery.utils.nodenames import default_nodename
from celery.worker import consumer as celery_consumer
from kombu import compression
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as transport
from kombu.transport.virtual.base import Message as VirtualMessage
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from tasks.codecs import CODECS, COMPRESSIONS, ZSTD

LIST, COUNTS = "dead-letters", "dead-letters:counts"
"""Keys, after the app's `global_keyprefix`: the letters, oldest first; a hash of `all`, `dropped` and `bytes`."""
MOST_LETTERS = 1000
MOST_BYTES = 64 * 1024**2
"""Of all letters together. The oldest make room; the newest is kept whatever its size."""
MOST_UNPACKED_BYTES = 256 * 1024**2
"""A body may say of itself that it is compressed, and a thousandth of its size is then enough to fill the memory."""
MOST_ITEMS = 10_000_000
"""In one body, and in one envelope. `[],` takes three bytes there and 64 in memory, `{"a":0},` eight and 240."""
USUAL_LEVELS, DEEPER = 100, 40
"""No pickler minds so many levels; Celery wraps what it pickles into some more, and does so further down the stack."""
LONGEST_LIMIT_S = 1e9
REASON_LENGTH = 80

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that a worker could not read."""

    at_s: float
    """When the worker gave up on it, in seconds since 1970."""
    queue: str
    reason: str
    """One line without a word of the message itself."""
    worker: str
    message: bytes = field(repr=False)
    """What lay on the queue, byte for byte."""

    def to_record(self) -> str:
        """As it lies in the list: one JSON object, ASCII."""
        return json.dumps(
            {
                "at": self.at_s,
                "queue": self.queue,
                "reason": self.reason,
                "worker": self.worker,
                "message": base64.b64encode(self.message).decode("ascii"),
            }
        )

    @staticmethod
    def from_record(record: str | bytes) -> Letter:
        """Raises ValueError for what is no record."""
        try:
            fields = json.loads(record)
            message = base64.b64decode(fields["message"], validate=True)
            return Letter(float(fields["at"]), fields["queue"], fields["reason"], fields["worker"], message)
        except (KeyError, TypeError, ValueError, RecursionError):
            raise ValueError("it is no dead letter: at, queue, reason, worker, message") from None


class Unreadable(Exception):  # noqa: N818  it is about the message, nothing went wrong with us
    """A message that no worker of this kind can make a job of; its text says why, in words of ours alone."""


# --- keeping ---------------------------------------------------------------------------------------------------------

# One script, so that the counts are right whoever dies when.
# KEYS: list, counts.  ARGV: record, most letters, most bytes.
KEEP = """
redis.call('RPUSH', KEYS[1], ARGV[1])
local all = redis.call('HINCRBY', KEYS[2], 'all', 1)
local bytes = redis.call('HINCRBY', KEYS[2], 'bytes', #ARGV[1])
local length, dropped = redis.call('LLEN', KEYS[1]), 0
while length > 1 and (length > tonumber(ARGV[2]) or bytes > tonumber(ARGV[3])) do
    bytes = redis.call('HINCRBY', KEYS[2], 'bytes', -#redis.call('LPOP', KEYS[1]))
    length, dropped = length - 1, dropped + 1
end
if dropped > 0 then redis.call('HINCRBY', KEYS[2], 'dropped', dropped) end
return {all, dropped}
"""


def keep(
    client: Any, prefix: str, letter: Letter, *, most_letters: int = MOST_LETTERS, most_bytes: int = MOST_BYTES
) -> tuple[int, int]:
    """Add the letter to the list: how many there were so far, and how many old ones had to go. One command.

    Raises redis.RedisError when it is not kept.
    """
    keys = (prefix + LIST, prefix + COUNTS)
    number, dropped = client.eval(KEEP, 2, *keys, letter.to_record(), most_letters, most_bytes)
    return int(number), int(dropped)


class Desk:
    """Where the letters of one worker process are written, told, and held while the broker takes none."""

    def __init__(self, *, most_letters: int = MOST_LETTERS, most_bytes: int = MOST_BYTES) -> None:
        self.worker = default_nodename(None)
        self._most_letters, self._most_bytes = most_letters, most_bytes
        self._held: deque[Letter] = deque()
        # A failing broker must not fill our memory: what no longer fits is told, and gone.
        self._held_bytes = 0
        self._home: tuple[Any, str] | None = None
        # In green pools the remote control has a connection and a greenlet of its own.
        self._turn = threading.Lock()

    def write(self, channel: Channel, queue: str, reason: str, message: bytes, *, sole: bool) -> bool:
        """Keep the message and tell it in one line; whether it is kept.

        `sole`: we alone have it, and the broker would not bring it back.
        """
        letter = Letter(time.time(), queue, reason[:REASON_LENGTH], self.worker, message)
        prefix = channel.global_keyprefix
        # A plain client: the channel's own puts the prefix to some commands and not to others.
        client = redis.Redis(connection_pool=channel.pool)
        told = f"message from queue {queue!r} set aside: {letter.reason}"
        try:
            self._catch_up(client, prefix)
            number, dropped = keep(client, prefix, letter)
        except (redis.RedisError, OSError) as error:
            if sole:
                self._home = (client, prefix)
                self._hold(letter)
            logger.error(
                "%s; but it cannot be kept (%s): %s",
                told,
                type(error).__name__,
                "held in memory until it can"
                if sole
                else "left unacknowledged, it comes back after the visibility timeout",
            )
            return False
        logger.error(
            "%s; it is number %d in %r: mend its sender or this worker, then resend it%s",
            told,
            number,
            prefix + LIST,
            f" ({dropped} of the oldest had to make room)" if dropped else "",
        )
        return True

    def catch_up(self, channel: Channel) -> None:
        """Keep what is held, if there is something and the broker takes it."""
        if self._held:
            try:
                self._catch_up(redis.Redis(connection_pool=channel.pool), channel.global_keyprefix)
            except (redis.RedisError, OSError):
                return  # was told when it was held

    def _catch_up(self, client: Any, prefix: str) -> None:
        with self._turn:
            while self._held:
                keep(client, prefix, self._held[0])
                self._held_bytes -= len(self._held.popleft().message)

    def _hold(self, letter: Letter) -> None:
        with self._turn:
            self._held.append(letter)
            self._held_bytes += len(letter.message)
            while len(self._held) > self._most_letters or (self._held_bytes > self._most_bytes and len(self._held) > 1):
                self._held_bytes -= len(self._held.popleft().message)
                logger.critical("the broker keeps no dead letters and too many are held in memory: the oldest is lost")

    def close(self, **_: Any) -> None:
        """Try for the last time, and tell what is lost; a receiver of Celery's `worker_shutdown`."""
        if self._home:
            with contextlib.suppress(redis.RedisError, OSError):
                self._catch_up(*self._home)
        if self._held:
            logger.critical("%d dead letters were never kept: the broker took none; they are lost", len(self._held))


DESK = Desk()
"""Of this process: one worker."""


# --- before there is a message ---------------------------------------------------------------------------------------


class CheckedMessage(VirtualMessage):
    """kombu's message, that says in one way what is wrong with its envelope. Raises Unreadable."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        if type(payload) is not dict:
            raise Unreadable("its envelope is JSON, but no object")
        try:
            super().__init__(payload, channel=channel, **kwargs)
        except Exception as error:
            raise Unreadable(_envelope_fault(payload)) from error
        tag, place = self.delivery_tag, self.delivery_info
        if not (
            type(self.headers) is dict
            and type(tag) is str
            and _is_text(tag)
            and type(place) is dict
            and "exchange" in place
            and "routing_key" in place
        ):
            raise Unreadable(_envelope_fault(payload))


def _is_text(word: str) -> bool:
    # JSON can spell halves of characters, which no key of Redis can hold.
    return word.isascii() or word == word.encode("utf-8", "ignore").decode("utf-8")


def _envelope_fault(payload: dict[str, Any]) -> str:
    properties, headers = payload.get("properties"), payload.get("headers")
    if type(properties) is not dict:
        return "its envelope has no properties"
    if headers is not None and type(headers) is not dict:
        return "its headers are no object"
    encoding = properties.get("body_encoding")
    if encoding and (type(encoding) is not str or encoding.lower() not in ("utf-8", "base64")):
        return "its body is wrapped in an unknown encoding"
    tag, place = properties.get("delivery_tag"), properties.get("delivery_info")
    if type(tag) is not str or not _is_text(tag):
        return "its envelope has no delivery tag"
    if type(place) is not dict or "exchange" not in place or "routing_key" not in place:
        return "its envelope has no delivery info"
    return "its body is no base64"


BROADCAST = "a broadcast cannot be read and is dropped: %s"
"""Remote control and events go to whoever listens; they are nobody's to keep."""


class Channel(transport.Channel):
    """kombu's channel, that sets aside what cannot be made a message and goes on.

    For good messages it costs a reference to the raw bytes, held until the message is delivered.
    """

    Message = CheckedMessage
    popped: tuple[bytes, bytes] | None = None
    """Queue and bytes of the message that is being delivered."""

    def basic_consume(self, *args: Any, **kwargs: Any) -> Any:
        """Begin to take messages: as at the start, so after each lost connection."""
        DESK.catch_up(self)
        return super().basic_consume(*args, **kwargs)

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)
        if asynchronous:
            client.set_response_callback("BRPOP", self._popped)
        return client

    def _popped(self, reply: Any, **_: Any) -> Any:
        self.popped = tuple(reply) if reply else None
        if self.popped:
            _check_items(self.popped[1], "its envelope")
        return self.popped

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except Exception as error:
            if self.popped is None:
                raise
            # Parsed once more only here, where something went wrong: good messages pay nothing for it.
            reason = str(error) if isinstance(error, Unreadable) else _json_fault(self.popped[1])
            if reason is None:
                raise
            self.set_aside(reason, sole=True)
            return True
        finally:
            self.popped = None

    def set_aside(self, reason: str, *, sole: bool) -> bool:
        """Keep the message that is being delivered among the dead letters; whether that was possible."""
        key, message = self.popped or (b"", b"")
        queue = bytes_to_str(key.removeprefix(self.global_keyprefix.encode())).rsplit(self.sep, 1)[0]
        return DESK.write(self, queue, reason, message, sole=sole)

    def _receive(self) -> Any:
        try:
            return super()._receive()
        except Unreadable as error:
            logger.error(BROADCAST, error)
            return True


def _json_fault(message: bytes) -> str | None:
    try:
        loads(bytes_to_str(message))
    except RecursionError:
        return "its envelope is JSON that nests too deeply"
    except Exception:
        return "its envelope is no JSON that can be read"
    return None


class Transport(transport.Transport):
    """kombu's Redis transport with our channel."""

    Channel = Channel


# --- before there is a job -------------------------------------------------------------------------------------------


class Consumer(celery_consumer.Consumer):
    """Celery's consumer, that sets aside what cannot be made a request. Over other transports it is Celery's own."""

    _handed_over = False

    def start(self) -> None:
        """Run until the worker ends."""
        DESK.worker = self.hostname
        hand_over = self.on_task_request

        def handed_over(request: Any) -> None:
            self._handed_over = True
            hand_over(request)

        self.on_task_request = handed_over
        super().start()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """What is called with every message."""
        handle: Callable[[Any], Any] = super().create_task_handler(*args, **kwargs)
        strategies, pickles = self.strategies, isinstance(self.pool, TaskPool)

        def on_task_received(message: Any) -> Any:
            if not isinstance(message.channel, Channel):
                return handle(message)
            self._handed_over = False
            try:
                check(message, strategies, pickles=pickles)
                return handle(message)
            except (redis.RedisError, OSError):
                raise  # the broker's fault
            except Exception as error:
                # From the pool on, what goes wrong is not the message's fault.
                if self._handed_over or not self._set_aside(message, error):
                    raise
                signals.task_rejected.send(sender=self, message=message, exc=error)

        return on_task_received

    def _set_aside(self, message: Any, error: Exception) -> bool:
        """Whether the message was one for us; it is then among the dead letters, and acknowledged if it is kept."""
        channel = message.channel
        if not isinstance(channel, Channel) or channel.popped is None:
            return False
        if channel.set_aside(reason_for(message, error), sole=False):
            message.ack()
        else:
            # Takes no place among the prefetched any more, but stays among the broker's unacknowledged.
            virtual.QoS.ack(channel.qos, message.delivery_tag)
        return True

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Its body cannot be unpacked or decoded."""
        if self._set_aside(message, exc):
            return
        if isinstance(message.channel, Channel):
            logger.error(BROADCAST, reason_for(message, exc))
        else:
            super().on_decode_error(message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """It is refused, or something in its headers is wrong."""
        if not self._set_aside(message, exc):
            super().on_invalid_task(body, message, exc)
            return
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """It names a task that is not registered here: who waits for it is told, as Celery does."""
        if not self._set_aside(message, Unreadable("it names a task that this worker does not have")):
            super().on_unknown_task(body, message, exc)
            return
        name, job_id = message.headers.get("task"), message.headers.get("id")
        if isinstance(name, str) and isinstance(job_id, str):
            self.app.backend.mark_as_failure(job_id, NotRegistered(name))
            if self.event_dispatcher:
                self.event_dispatcher.send("task-failed", uuid=job_id, exception=f"NotRegistered({name!r})")
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=job_id)


def check(message: Any, strategies: Mapping[str, Any], *, pickles: bool = False) -> None:
    """Raises Unreadable for a message that would end a stock worker or vanish in its pool; cheap for good ones.

    The body is decoded here instead of a moment later; kombu keeps the result, so it is not decoded twice. Raises what
    decoding raises. `pickles` says that jobs are pickled to be handed to another process.
    """
    headers: dict[str, Any] = message.headers
    if message.content_encoding is not None and type(message.content_encoding) is not str:
        raise Unreadable("its content encoding is no text")
    _check_extent(message)
    if "task" not in headers:
        body = message.payload
        if not isinstance(body, dict) or "task" not in body:
            raise Unreadable("it is no task: it names none")
        headers = {**body, **headers}  # Celery's first protocol: the body is a dictionary and holds them all
    job_id = headers.get("id")
    if not (isinstance(headers["task"], str) and isinstance(job_id, str) and job_id and _is_text(job_id)):
        raise Unreadable("its headers lack the task's name or id")
    if headers["task"] not in strategies:
        return  # Celery finds out
    _check_headers(headers)
    _check_body(message.payload)
    if pickles:
        _check_depth(headers, message.payload, message.content_type)


def _check_extent(message: Any) -> None:
    """Before it is decoded: what is written in few bytes may take all memory that there is."""
    body, written_as, encoding = message.body, message.content_type, message.content_encoding
    if message.errors or not isinstance(body, str | bytes):
        return
    # kombu asks Python's codecs for the encoding, of which some, such as `zlib`, unpack.
    if encoding is not None and encoding.lower() not in ENCODINGS:
        raise Unreadable("its content encoding is none that a body is written in")
    if len(body) > MOST_UNPACKED_BYTES:
        raise Unreadable(f"its body is larger than {MOST_UNPACKED_BYTES // 1024**2} MiB")
    if written_as in MSGPACK and isinstance(body, bytes):
        if len(body) > MOST_ITEMS and not _is_within_items(body, MOST_ITEMS):
            raise _too_many("its body")
    elif written_as != PICKLE:  # a pickle does worse, and its sender is trusted
        _check_items(body, "its body")


ENCODINGS = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "binary", "ascii-8bit"})
MSGPACK = frozenset({CODECS["msgpack"].content_type, CODECS["msgspec-msgpack"].content_type})
PICKLE = CODECS["pickle"].content_type


def _check_items(text: str | bytes, what: str) -> None:
    """That JSON or YAML holds no more than MOST_ITEMS; none that is short enough is looked at."""
    if len(text) <= MOST_ITEMS:
        return
    if isinstance(text, str):
        items = text.count(",") + text.count("[") + text.count("{") + text.count("\n")
    else:
        items = text.count(b",") + text.count(b"[") + text.count(b"{") + text.count(b"\n")
    if items > MOST_ITEMS:
        raise _too_many(what)


def _too_many(what: str) -> Unreadable:
    return Unreadable(f"{what} holds more than {MOST_ITEMS // 10**6} million items")


def _is_within_items(body: bytes, most: int) -> bool:
    """Whether this MessagePack holds no more than so many values, those in others too."""
    at, items, end = 0, 0, len(body)
    while at < end and items <= most:
        kind = body[at]
        items += 1
        if kind in _LENGTHS:
            width, more = _LENGTHS[kind]
            at += 1 + width + more + int.from_bytes(body[at + 1 : at + 1 + width], "big")
        else:
            at += 1 + (kind & 31 if 0xA0 <= kind <= 0xBF else _FIXED.get(kind, 0))
    return items <= most


# The format's own table. What an array or map holds comes right after it, and so counts by itself.
_LENGTHS: Mapping[int, tuple[int, int]] = {
    **{0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)},
    **{0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)},
}
"""Bytes and texts: how many bytes say their length, and how many stand between that and them."""
_FIXED: Mapping[int, int] = {
    **{0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8},
    **{0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4},
}
"""All else: how many bytes follow the first."""


def _check_depth(headers: dict[str, Any], body: Any, content_type: object) -> None:
    """That it can be pickled: where that fails, the job has been handed over, and its message ends the next worker."""
    nested = [value for value in headers.values() if value and type(value) in CONTAINERS and value != NO_LIMITS]
    if content_type != PICKLE and not _nests_beyond([body, *nested], USUAL_LEVELS):
        return
    value: Any = (body, headers)
    for _ in range(DEEPER):
        value = (value,)
    try:
        pickle.dumps(value)
    except RecursionError:
        raise Unreadable("it nests too deeply to be handed to a child process") from None


CONTAINERS = frozenset({list, dict, tuple})


def _nests_beyond(values: list[Any], levels: int) -> bool:
    for _ in range(levels):
        values = [
            inner
            for value in values
            for inner in (value.values() if type(value) is dict else value)
            if type(inner) in CONTAINERS
        ]
        if not values:
            return False
    return True


def _check_headers(headers: dict[str, Any]) -> None:
    limits, stamps, shadow = headers.get("timelimit"), headers.get("stamped_headers"), headers.get("shadow")
    if limits and limits != NO_LIMITS and not _are_limits(limits):
        raise Unreadable("its time limits are no two numbers")
    if stamps and not (
        isinstance(stamps, list) and all(isinstance(s, str) for s in stamps) and isinstance(headers.get("stamps"), dict)
    ):
        raise Unreadable("its stamps are no list and object")
    if not (shadow is None or isinstance(shadow, str)):
        raise Unreadable("its shadow name is no text")


def _check_body(body: Any) -> None:
    if isinstance(body, dict) and ("args" in body or "task" in body):
        body = (body.get("args", ()), body.get("kwargs", {}), body)  # Celery's first protocol, or half of it
    if not (isinstance(body, list | tuple) and len(body) == 3):
        raise Unreadable(NO_CALL)
    arguments, named, options = body
    if not (isinstance(arguments, list | tuple) and isinstance(named, dict)):
        raise Unreadable(NO_CALL)
    if options:
        if not isinstance(options, dict):
            raise Unreadable(NO_CALL)
        chord = options.get("chord")
        if not (
            _are_jobs(options.get("callbacks"))
            and _are_jobs(options.get("errbacks"))
            and _are_jobs(options.get("chain"))
            and (chord is None or _is_job(chord))
        ):
            raise Unreadable("what is to follow its job are no jobs")


NO_LIMITS = [None, None]
NO_CALL = "its body is no list of arguments, named arguments and options"


def _are_limits(values: object) -> bool:
    # What no clock can reach ends the timer that is set to it.
    return (
        isinstance(values, list | tuple)
        and len(values) == 2
        and all(v is None or (isinstance(v, int | float) and 0 <= v <= LONGEST_LIMIT_S) for v in values)
    )


def _are_jobs(values: object) -> bool:
    return values is None or (isinstance(values, list | tuple) and all(map(_is_job, values)))


def _is_job(value: object) -> bool:
    # Celery's signature. What lacks a part of it fails only after the job, where a failure is hardest to tell.
    return (
        isinstance(value, dict)
        and isinstance(value.get("task"), str)
        and isinstance(value.get("args"), list | tuple)
        and isinstance(value.get("kwargs"), dict)
        and isinstance(value.get("options"), dict)
    )


_CODEC_OF = {codec.content_type: codec.name for codec in reversed(tuple(CODECS.values()))}
# The last of a type names it: zlib, which is what lies in a body of kombu's "gzip".
_COMPRESSION_OF = {row.content_type: row.name for row in COMPRESSIONS.values()}


def reason_for(message: Any, error: Exception) -> str:
    """Why it cannot be read, in one line that quotes nothing of it: it may hold secrets, or line ends."""
    if isinstance(error, Unreadable):
        return str(error)
    if message.errors:
        return _unpacking_fault(message.headers.get("compression"))
    if isinstance(error, DecodeError | ContentDisallowed):
        return _decoding_fault(message.content_type, error)
    if isinstance(error, InvalidTaskError):
        return "its headers or arguments are not those of a task"
    return f"no request can be made of it ({type(error).__name__})"


def _decoding_fault(content_type: object, error: Exception) -> str:
    # Names are quoted only where they are words of our own.
    codec = _own_word(_CODEC_OF, content_type)
    if isinstance(error, ContentDisallowed):
        return f"its body is written in {codec or 'something unknown'}, which this worker does not accept"
    cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, RecursionError):
        return f"its body nests too deeply for {codec or 'its codec'}"
    return f"its body cannot be read as {codec or 'what it says it is'} ({type(cause).__name__})"


def _own_word(words: Mapping[str, str], key: object) -> str | None:
    return words.get(key) if isinstance(key, str) else None


def _unpacking_fault(header: object) -> str:
    name = _own_word(_COMPRESSION_OF, header)
    if name is None:
        return "its body is compressed with something unknown"
    if header not in compression.encoders() or COMPRESSIONS[name].missing:
        return f"its body is compressed with {name}, which is not installed here"
    return f"its body is damaged: it is no {name}"


# --- what unpacks to more than there is ------------------------------------------------------------------------------


def unpack_bounded(begin: Callable[[], Any], body: bytes, *, most_bytes: int = MOST_UNPACKED_BYTES) -> bytes:
    """What `body` unpacks to, with a decompressor such as `bz2.BZ2Decompressor`.

    Raises Unreadable where that is more than `most_bytes`, and EOFError where the body ends too soon.
    """
    parts: list[bytes] = []
    left = most_bytes
    # As `bz2.decompress` and its like do it: a body may be several streams, and ends where no further one begins.
    while body:
        unpacker = begin()
        try:
            part = unpacker.decompress(body, left + 1)
        except Exception:
            if parts:
                break
            raise
        if len(part) > left:
            raise _too_large(most_bytes)
        if not unpacker.eof:
            raise EOFError("the compressed body ends too soon")
        parts.append(part)
        left -= len(part)
        body = unpacker.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _zlib(body: bytes) -> bytes:
    # Deflate makes at most 1032 bytes of one (zlib's own documentation), so most bodies need no look.
    if len(body) * 1032 <= MOST_UNPACKED_BYTES:
        return zlib.decompress(body)
    return unpack_bounded(zlib.decompressobj, body)


def _lz4(body: bytes) -> bytes:
    lz4 = importlib.import_module("lz4.frame")
    # A byte adds at most 255 to a length (LZ4's block format), and stopping early is slower.
    if len(body) * 255 <= MOST_UNPACKED_BYTES:
        return bytes(lz4.decompress(body))
    return unpack_bounded(lz4.LZ4FrameDecompressor, body)


def _zstd(body: bytes) -> bytes:
    return unpack_bounded(importlib.import_module(ZSTD).ZstdDecompressor, body)


def _brotli(body: bytes) -> bytes:
    brotli = importlib.import_module("brotli")
    unpacker = brotli.Decompressor()
    if not hasattr(unpacker, "can_accept_more_data"):  # before brotli 1.2 it could not stop early
        return bytes(brotli.decompress(body))
    unpacked = bytes(unpacker.process(body, output_buffer_limit=MOST_UNPACKED_BYTES + 1))
    if len(unpacked) > MOST_UNPACKED_BYTES:
        raise _too_large(MOST_UNPACKED_BYTES)
    if not unpacker.is_finished():
        raise EOFError("the compressed body ends too soon")
    return unpacked


def _too_large(most_bytes: int) -> Unreadable:
    return Unreadable(f"its body unpacks to more than {most_bytes // 1024**2} MiB")


_BOUNDED: Mapping[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": _zlib,
    "application/x-bz2": partial(unpack_bounded, bz2.BZ2Decompressor),
    "application/x-lzma": partial(unpack_bounded, lzma.LZMADecompressor),
    "application/zstd": _zstd,
    "application/x-lz4": _lz4,
    "application/x-brotli": _brotli,
}


def _bound_compressions() -> None:
    for content_type, unpack in _BOUNDED.items():
        if content_type in compression.encoders():
            compression.register(compression.get_encoder(content_type)[0], unpack, content_type)


def connect(app: Celery) -> None:
    """Let the workers of this app keep dead letters; once per process, before the worker starts.

    Over anything but Redis it changes nothing that matters: such messages are then handled by Celery alone.
    """
    app.conf.worker_consumer = f"{__name__}:Consumer"
    # Not `broker_transport`: kombu sees by the URL's own scheme that `rediss` wants TLS.
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))
    signals.worker_shutdown.connect(DESK.close, weak=False)
    _bound_compressions()

"""A template: the message that Celery and kombu make of a call, made once by themselves and filled for each job."""

from __future__ import annotations

import json
import re
import uuid
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, count, zip_longest
from json import encoder as json_encoder
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

from celery import signals
from celery.utils.saferepr import saferepr
from celery.utils.time import add_seconds_to_datetime, maybe_make_aware
from kombu import compression, serialization
from kombu.utils import json as kombus_json

from tasks.metrics import SENT

kombu_json: Any = kombus_json  # their functions have no types
get_encoder: Any = compression.get_encoder
serialize: Any = serialization.dumps
c_make_encoder: Any = getattr(json_encoder, "c_make_encoder", None)
"""The encoder behind the standard library's own, written in C where there is one."""

ORDER = ("body", "id", "eta", "expires", "id", "argsrepr", "kwargsrepr", "id", "tag")
"""The places in which messages of one kind differ. The last two ids are root_id and correlation_id."""
STAMPED = (*ORDER[:-2], "sent", *ORDER[-2:])
"""The same, where messages say when they were sent."""
NULL, NO_TEXT, NO_ARGS = b"null", b'""', b'"()"'
PLAIN = frozenset({int, float, bool, type(None)})

SIGNALS: Mapping[str, Any] = {
    "before_task_publish": signals.before_task_publish,
    "after_task_publish": signals.after_task_publish,
    "task_sent": signals.task_sent,
}

Moment = datetime | float | str | None
"""A time of day; seconds from now; or as Celery has already written it."""


class NotPossible(Exception):  # noqa: N818  it is no fault: it says why the other way is taken
    """Why no template can be used here, in one line."""


@dataclass(frozen=True, slots=True)
class Style:
    """How messages are written: what all jobs of one sender share."""

    serializer: str = "json"
    """A name that kombu knows."""
    compression: str | None = None
    argsrepr: bool = True
    """Whether the headers also hold the arguments as text for people to read, as Celery's own do."""
    ignore_result: bool = True
    stamp: bool = False
    """Whether a header says when it was sent, see `tasks.metrics`; Celery's own messages do not."""


class Call(NamedTuple):
    """One job, as Celery is asked for it."""

    id: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    eta: Moment = None
    expires: Moment = None


class Route(NamedTuple):
    """What all jobs of one template share besides their style."""

    task_name: str
    queue: str
    priority: int = 0


class Template:
    """Makes the messages that Celery would make of the calls of one route, at a small part of the price.

    Celery and kombu make it when it is built, and it is held against their own message before it is used: field by
    field. Raises NotPossible where the two differ, or where a message would not be one push to one list in Redis.
    Signals are not sent. Not for several threads at once.

    With `encode_once`, arguments that are the same object as the last job's are not encoded again. Then nobody may
    change what he has handed over, and what it costs to encode cannot be measured.
    """

    def __init__(self, app: Any, producer: Any, style: Style, route: Route, *, encode_once: bool = False) -> None:
        exchange = app.amqp.queues[route.queue].exchange
        if exchange.type != "direct":
            raise NotPossible(f"queue {route.queue!r} has a {exchange.type} exchange, not a direct one")
        first, second = (_marked(app, producer, style, route) for _ in range(2))
        if first.pieces != second.pieces:
            raise NotPossible("Celery makes two messages of the same kind in different ways")
        self._app, self._once, self._argsrepr = app, encode_once, style.argsrepr
        self._encode = _encoder(style.serializer, first.written.embed)
        self._compress: Callable[[Any], bytes] | None = get_encoder(style.compression)[0] if style.compression else None
        self._wrap = _wrapper(producer.channel.body_encoding)
        self._max_args, self._max_kwargs = app.amqp.argsrepr_maxsize, app.amqp.kwargsrepr_maxsize
        self._levels = app.conf.task_repr_maxlevels
        self._last: tuple[Any, Any, bytes, bytes, bytes] = (None, None, b"", b"", b"")
        # Each tag is this template's own half of a UUID, and a number.
        half, start = _half()
        self._numbers = count(start)
        self._stamp = style.stamp
        order = STAMPED if style.stamp else ORDER
        places = (*(b"%b" for _ in order[:-1]), b'"%b%%012x"' % half.encode())
        pieces = [piece.encode().replace(b"%", b"%%") for piece in first.pieces]
        self._format = b"".join(chain.from_iterable(zip_longest(pieces, places, fillvalue=b"")))
        self.key: bytes = (getattr(producer.channel, "global_keyprefix", "") + first.written.key).encode()
        """Of the list in Redis that these messages are pushed to."""
        self._check(producer, style, route)

    def fill(
        self,
        call_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        eta: Moment = None,
        expires: Moment = None,
        sent_s: float = 0.0,
    ) -> bytes:
        """The message for this call, as it would lie in Redis. Raises kombu's EncodeError as Celery would.

        `sent_s` is its stamp, if it has one.
        """
        last_args, last_kwargs, body, args_text, kwargs_text = self._last
        if not (self._once and kwargs is last_kwargs and args is last_args):
            encoded = self._encode(args or (), kwargs or {})
            body = self._wrap(self._compress(_bytes(encoded)) if self._compress else encoded)
            if self._argsrepr:
                args_text = self._text(args, self._max_args) if args else NO_ARGS
                kwargs_text = self._text(kwargs or {}, self._max_kwargs)
            else:
                args_text = kwargs_text = NO_TEXT
            if self._once:
                self._last = (args, kwargs, body, args_text, kwargs_text)
        name = encode_basestring_ascii(call_id).encode()
        return self._format % (
            body,
            name,
            NULL if eta is None else _json(written_eta(self._app, eta)),
            NULL if expires is None else _json(written_expires(self._app, expires)),
            name,
            args_text,
            kwargs_text,
            *((_json(sent_s),) if self._stamp else ()),
            name,
            next(self._numbers),
        )

    def _text(self, values: Any, limit: int) -> bytes:
        text = flat_repr(values, limit) if type(values) is dict else None
        return _quoted(saferepr(values, limit, maxlevels=self._levels) if text is None else text)

    def _check(self, producer: Any, style: Style, route: Route) -> None:
        """Hold two filled messages against Celery's own, field by field."""
        bare = Call(str(uuid.uuid4()))
        # What is escaped, what looks like a place to fill, and what is cut.
        full = Call(
            str(uuid.uuid4()),
            (1, "ä'\\"),
            {"text": 'ö\u2028"%b', "tree": {"a": [None, True, 1.5, []]}, "long": "x" * self._max_kwargs},
            "2100-01-01T00:00:00+00:00",
            "2100-01-02T00:00:00+00:00",
        )
        for call in (bare, full):
            own = json.loads(celerys_own(self._app, producer, style, route, call, sent=0.5).text)
            filled = json.loads(self.fill(*call, sent_s=0.5))
            del own["properties"]["delivery_tag"], filled["properties"]["delivery_tag"]
            if own != filled:
                where = ", ".join(differences(own, filled))
                raise NotPossible(f"a filled message differs from Celery's own in {where}")
        self._last = (None, None, b"", b"", b"")


class Written(NamedTuple):
    """A message that was made and not sent."""

    key: str
    """Of the list that it would be pushed to, without the app's prefix."""
    text: str
    body: Any
    """As it stands in the message."""
    embed: Any
    """Callbacks and the like: the third part of the body."""


def celerys_own(
    app: Any,
    producer: Any,
    style: Style,
    route: Route,
    call: Call,
    *,
    argsrepr: str | None = None,
    kwargsrepr: str | None = None,
    tag: str | None = None,
    sent: float | str = 0.0,
) -> Written:
    """What Celery's own path makes of the call, `as_task_v2` and then `send_task_message`, without sending it.

    It is what `apply_async` sends, but for what only that knows: the options of the task's class, the caller as
    parent, `reply_to`, and `expiration`, of which Redis takes no notice. The queue is declared. Raises NotPossible
    where the message is not one push to one list.
    """
    silent = None if style.argsrepr else ""
    message = app.amqp.as_task_v2(
        call.id,
        route.task_name,
        call.args,
        call.kwargs,
        eta=written_eta(app, call.eta),
        expires=written_expires(app, call.expires),
        ignore_result=style.ignore_result,
        argsrepr=silent if argsrepr is None else argsrepr,
        kwargsrepr=silent if kwargsrepr is None else kwargsrepr,
    )
    with _intercepted(producer.channel, tag) as taken:
        app.amqp.send_task_message(
            producer,
            route.task_name,
            message,
            queue=route.queue,
            priority=route.priority,
            serializer=style.serializer,
            compression=style.compression,
            retry=False,
            headers={SENT: sent} if style.stamp else None,
        )
    if [command for command, _, _ in taken] != ["lpush"]:
        what = " and ".join(dict.fromkeys(command for command, _, _ in taken)) or "nothing"
        raise NotPossible(f"a message for queue {route.queue!r} is not one push to one list but {what}")
    _, (key, text), body = taken[0]
    return Written(key, text, body, message.body[2])


def why_not(app: Any, connection: Any) -> str | None:
    """Why no template can be used for anything on this connection, or None. Connects to nothing."""
    if connection.transport.driver_type != "redis":
        return f"the broker is {connection.transport.driver_type}, not Redis"
    if not hasattr(connection.transport.Channel, "create_publish_batch"):
        return "this version of kombu has no batches"  # then nothing can be made without being sent, either
    if app.conf.task_protocol != 2:
        return f"the app speaks task protocol {app.conf.task_protocol}, not 2"
    return listeners()


def listeners() -> str | None:
    """That somebody receives a signal of publishing, which a template does not send; None if nobody does."""
    for name, signal in SIGNALS.items():
        if signal.receivers:
            return f"somebody receives the signal {name}"
    return None


def written_eta(app: Any, eta: Moment) -> str | None:
    """As Celery writes it in a message; seconds are its `countdown`, of which 0 is none."""
    return None if eta == 0 else written_expires(app, eta)


def written_expires(app: Any, moment: Moment) -> str | None:
    """As Celery writes it in a message."""
    if moment is None or isinstance(moment, str):
        return moment
    if isinstance(moment, datetime):
        return moment.isoformat()
    then: datetime = maybe_make_aware(add_seconds_to_datetime(app.now(), moment), tz=app.timezone)
    return then.isoformat()


def flat_repr(values: Mapping[Any, Any], limit: int) -> str | None:
    """What Celery's `saferepr` makes of a dict of plain values, ten times as fast; None where only that knows."""
    parts = []
    for name, value in values.items():
        kind = type(value)
        if kind is str and len(value) < limit:
            text = "'" + value.replace("'", "\\'") + "'"
        elif kind in PLAIN:
            text = str(value)
        else:
            return None
        if type(name) is not str:
            return None
        parts.append("'" + name.replace("'", "\\'") + "': " + text)
    whole = "{" + ", ".join(parts) + "}"
    return whole if len(whole) < limit else None  # longer ones are cut, in ways of their own


def ids() -> Iterator[str]:
    """Ids for jobs, of the form of a UUID, at a tenth of the price: no two are alike, here or elsewhere.

    The first part is random, drawn once for each iterator; the last 12 digits count on from a random number.
    """
    half, start = _half()
    return map(f"{half}%012x".__mod__, count(start))


def _half() -> tuple[str, int]:
    drawn = str(uuid.uuid4())
    # Below 2^47, so that no counting on will need a thirteenth digit.
    return drawn[:24], int(drawn[24:], 16) >> 1


def _quoted(text: str) -> bytes:
    """The text as JSON, as kombu spells it."""
    return encode_basestring_ascii(text).encode()


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _encoder(serializer: str, embed: Any) -> Callable[[Any, Any], Any]:
    """From args and kwargs to the body, as kombu's serializer of this name writes it."""
    known: Any = serialization.registry
    found = known._encoders.get(serializer)
    if found is None:
        raise NotPossible(f"kombu knows no serializer {serializer!r}")
    if found.encoder is kombu_json.dumps and c_make_encoder is not None:
        try:
            return _json_encoder(embed)
        except TypeError:
            pass  # a later Python may want other arguments there
    encode = found.encoder

    def encoded(args: Any, kwargs: Any) -> Any:
        try:
            return encode((args, kwargs, embed))
        except Exception:
            serialize((args, kwargs, embed), serializer=serializer)  # fails too, with kombu's own words
            raise

    return encoded


def _json_encoder(embed: Any) -> Callable[[Any, Any], str]:
    """As kombu's JSON, but without making an encoder anew for each message, nor what is the same in all."""
    open_containers: dict[int, Any] = {}
    write: Any = c_make_encoder(  # as `json.JSONEncoder.iterencode` calls it
        open_containers, kombu_json.JSONEncoder().default, encode_basestring_ascii, None, ": ", ", ", False, False, True
    )
    write({}, 0)
    tail = f", {kombu_json.dumps(embed)}]"

    def encoded(args: Any, kwargs: Any) -> str:
        try:
            if args:
                return f"[{''.join(write(args, 0))}, {''.join(write(kwargs, 0))}{tail}"
            return f"[[], {''.join(write(kwargs, 0))}{tail}"
        except Exception:
            open_containers.clear()
            serialize((args, kwargs, embed), serializer="json")  # fails too, with kombu's own words
            raise

    return encoded


def _wrapper(body_encoding: str | None) -> Callable[[Any], bytes]:
    """From the body as it was encoded to the JSON that stands for it in the message."""
    if body_encoding == "base64":
        return lambda body: b'"%b"' % b2a_base64(_bytes(body), newline=False)
    if body_encoding and body_encoding.lower() != "utf-8":
        raise NotPossible(f"bodies are to be in {body_encoding!r}")
    return lambda body: _quoted(body) if isinstance(body, str) else kombu_json.dumps(body).encode()


class _Marked(NamedTuple):
    written: Written
    pieces: Sequence[str]
    """What stands before, between and behind the places."""


def _marked(app: Any, producer: Any, style: Style, route: Route) -> _Marked:
    """A message with marks in its places. Raises NotPossible where they do not stand as in ORDER."""
    order = STAMPED if style.stamp else ORDER
    marks = {place: str(uuid.uuid4()) for place in order if place != "body"}
    call = Call(marks["id"], (), {"mark": str(uuid.uuid4())}, marks["eta"], marks["expires"])
    written = celerys_own(
        app,
        producer,
        style,
        route,
        call,
        argsrepr=marks["argsrepr"],
        kwargsrepr=marks["kwargsrepr"],
        tag=marks["tag"],
        sent=marks.get("sent", ""),
    )
    found = {json.dumps(mark): place for place, mark in marks.items()} | {kombu_json.dumps(written.body): "body"}
    pattern = re.compile("|".join(map(re.escape, found)))
    places = tuple(found[mark] for mark in pattern.findall(written.text))
    if places != order:
        raise NotPossible(f"Celery's message has {', '.join(places)} where {', '.join(order)} were looked for")
    return _Marked(written, pattern.split(written.text))


@contextmanager
def _intercepted(channel: Any, tag: str | None) -> Iterator[list[tuple[str, tuple[Any, ...], Any]]]:
    """Collect what the channel would tell Redis of messages: the command, its arguments, the message's body."""
    taken: list[tuple[str, tuple[Any, ...], Any]] = []
    kind = type(channel)

    class Kept:
        """Stands where kombu's own batch would."""

        def __init__(self, body: Any) -> None:
            self._body = body

        def add(self, command: str, *args: Any) -> None:
            """As kombu's `PublishBatch.add`."""
            taken.append((command, args, self._body))

    def put(queue: str, message: Any, **_: Any) -> None:
        kind._put(channel, queue, message, _publish_batch=Kept(message["body"]))

    def put_fanout(exchange: str, message: Any, routing_key: str, **_: Any) -> None:
        kind._put_fanout(channel, exchange, message, routing_key, _publish_batch=Kept(message["body"]))

    channel._put, channel._put_fanout = put, put_fanout
    if tag is not None:
        channel._next_delivery_tag = lambda: tag
    try:
        yield taken
    finally:
        del channel._put, channel._put_fanout
        if tag is not None:
            del channel._next_delivery_tag


def differences(own: Mapping[str, Any], filled: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """The names of the fields in which two messages differ."""
    for name in {**own, **filled}:
        ours, theirs = filled.get(name), own.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            yield from differences(theirs, ours, f"{within}{name}.")
        elif ours != theirs or (name in own) != (name in filled):
            yield f"{within}{name}"

"""What no worker can read stops no worker, and is kept byte for byte."""

import base64
import bz2
import json
import lzma
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import pytest
import redis
from celery.exceptions import InvalidTaskError, NotRegistered
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport.virtual import Channel as VirtualChannel

from lab.arenas.arena import await_ready
from lab.arenas.celery_worker import QUIET
from lab.broker import own_server
from lab.children import ROOT, Children, kill
from lab.dead_letters import Counts, counts, dead_letters, resend
from tasks.app import make_app
from tasks.dead_letters import (
    LIST,
    MOST_UNPACKED_BYTES,
    REASON_LENGTH,
    CheckedMessage,
    Desk,
    Letter,
    Unreadable,
    _is_within_items,
    check,
    keep,
    reason_for,
    unpack_bounded,
)
from tasks.pools import EVENTLET_WARNING_FILTER, POOLS
from tasks.settings import Settings
from tasks.shapes import SHAPES, make

SECRET = "hunter2-and-more"
"""In every bad message, and never in a log."""
GZIP = "application/x-gzip"


def envelope() -> dict[str, Any]:
    """A message for the job `echo` as Celery and kombu write it."""
    job_id = str(uuid.uuid4())
    return {
        "body": "",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": "sidestep.echo",
            "id": job_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": job_id,
            "parent_id": None,
            "argsrepr": SECRET,
            "kwargsrepr": "{}",
            "origin": "somebody",
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": job_id,
            "reply_to": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


GOOD_BODY = json.dumps([[SECRET], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()
GONE = object()
NOTHING: Mapping[str, object] = MappingProxyType({})


def message(body: bytes = GOOD_BODY, changes: Mapping[str, object] = NOTHING) -> bytes:
    """The good message with another body, and with other values at the dotted paths that `changes` names."""
    made = envelope()
    made["body"] = base64.b64encode(body).decode()
    for path, value in changes.items():
        *folders, name = path.split(".")
        place = made
        for folder in folders:
            place = place[folder]
        if value is GONE:
            del place[name]
        else:
            place[name] = value
    return json.dumps(made).encode()


def in_(value: object) -> bytes:
    return json.dumps(value).encode()


SHAPE = "its body is no list of arguments, named arguments and options"
NO_JSON = "its envelope is no JSON that can be read"
NO_OBJECT = "its envelope is JSON, but no object"
NO_TAG = "its envelope has no delivery tag"
NO_PLACE = "its envelope has no delivery info"
NO_ID = "its headers lack the task's name or id"
NO_TASK = "it is no task: it names none"
NO_BASE64 = "its body is no base64"
NO_LIMITS = "its time limits are no two numbers"
NO_STAMPS = "its stamps are no list and object"
ODD_HEADERS = "its headers or arguments are not those of a task"
SPACES = b"[" + b" " * 270_000_000 + b"]"

BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (SECRET.encode, NO_JSON),
    "nothing": (lambda: b"", NO_JSON),
    "half an envelope": (lambda: message()[:-40], NO_JSON),
    "bytes that are no text": (lambda: bytes(range(128, 256)), NO_JSON),
    "a number of a million digits": (lambda: b'{"a": ' + b"1" * 1_000_000 + b"}", NO_JSON),
    "a date that is none": (lambda: b'{"__type__": "datetime", "__value__": 5}', NO_JSON),
    "brackets without end": (lambda: b"[" * 100_000, "its envelope is JSON that nests too deeply"),
    "a list": (lambda: b"[1, 2]", NO_OBJECT),
    "a number": (lambda: b"5", NO_OBJECT),
    "null": (lambda: b"null", NO_OBJECT),
    "a string": (lambda: in_(SECRET), NO_OBJECT),
    "an empty object": (lambda: b"{}", "its envelope has no properties"),
    "no properties": (lambda: message(GOOD_BODY, {"properties": GONE}), "its envelope has no properties"),
    "properties in a list": (lambda: message(GOOD_BODY, {"properties": [1]}), "its envelope has no properties"),
    "headers in a list": (lambda: message(GOOD_BODY, {"headers": [SECRET]}), "its headers are no object"),
    "no headers": (lambda: message(GOOD_BODY, {"headers": GONE}), NO_TASK),
    "no delivery info": (lambda: message(GOOD_BODY, {"properties.delivery_info": GONE}), NO_PLACE),
    "delivery info in a list": (lambda: message(GOOD_BODY, {"properties.delivery_info": ["x"]}), NO_PLACE),
    "no delivery tag": (lambda: message(GOOD_BODY, {"properties.delivery_tag": GONE}), NO_TAG),
    "a null tag": (lambda: message(GOOD_BODY, {"properties.delivery_tag": None}), NO_TAG),
    "a tag of half a character": (lambda: message(GOOD_BODY, {"properties.delivery_tag": "\ud800"}), NO_TAG),
    "a cut base64": (lambda: message(GOOD_BODY, {"body": "abcde"}), NO_BASE64),
    "a number for a body": (lambda: message(GOOD_BODY, {"body": 5}), NO_BASE64),
    "a wrapping that nobody knows": (
        lambda: message(GOOD_BODY, {"properties.body_encoding": SECRET}),
        "its body is wrapped in an unknown encoding",
    ),
    "no body": (lambda: message(GOOD_BODY, {"body": GONE}), SHAPE),
    "an empty body": (lambda: message(GOOD_BODY, {"body": ""}), SHAPE),
    "half a body": (lambda: message(GOOD_BODY[:-9]), "its body cannot be read as json (JSONDecodeError)"),
    "a body that is no text": (lambda: message(b'["\xff"]'), "its body cannot be read as json (UnicodeDecodeError)"),
    "a body of brackets": (lambda: message(b"[" * 100_000 + b"]" * 100_000), "its body nests too deeply for json"),
    "an endless number": (
        lambda: message(b"[[" + b"1" * 1_000_000 + b"], {}, {}]"),
        "its body cannot be read as json (ValueError)",
    ),
    "an unknown type": (
        lambda: message(GOOD_BODY, {"content-type": f"application/x-{SECRET}"}),
        "its body is written in something unknown, which this worker does not accept",
    ),
    "a type in a list": (
        lambda: message(GOOD_BODY, {"content-type": [SECRET]}),
        "no request can be made of it (TypeError)",
    ),
    "no type": (lambda: message(GOOD_BODY, {"content-type": None}), SHAPE),
    "a pickle": (
        lambda: message(
            pickle.dumps([[SECRET], {}, {}]),
            {"content-type": "application/x-python-serialize", "content-encoding": "binary"},
        ),
        "its body is written in pickle, which this worker does not accept",
    ),
    "a codec that the worker lacks": (
        lambda: message(
            b"\x93\x91\x05\x80\x80", {"content-type": "application/x-msgpack", "content-encoding": "binary"}
        ),
        "its body is written in msgpack, which this worker does not accept",
    ),
    "an unknown compression": (
        lambda: message(GOOD_BODY, {"headers.compression": SECRET}),
        "its body is compressed with something unknown",
    ),
    "a compression in a list": (
        lambda: message(GOOD_BODY, {"headers.compression": [SECRET]}),
        "its body is compressed with something unknown",
    ),
    "a damaged gzip": (lambda: message(GOOD_BODY, {"headers.compression": GZIP}), "its body is damaged: it is no zlib"),
    "a cut gzip": (
        lambda: message(zlib.compress(GOOD_BODY)[:-6], {"headers.compression": GZIP}),
        "its body is damaged: it is no zlib",
    ),
    "a damaged lzma": (
        lambda: message(lzma.compress(GOOD_BODY)[:-6], {"headers.compression": "application/x-lzma"}),
        "its body is damaged: it is no lzma",
    ),
    "a zip bomb": (
        lambda: message(zlib.compress(SPACES, 9), {"headers.compression": GZIP}),
        "its body unpacks to more than 256 MiB",
    ),
    "an unknown task": (
        lambda: message(GOOD_BODY, {"headers.task": SECRET}),
        "it names a task that this worker does not have",
    ),
    "a task in a list": (lambda: message(GOOD_BODY, {"headers.task": [SECRET]}), NO_ID),
    "no task": (lambda: message(GOOD_BODY, {"headers.task": GONE}), NO_TASK),
    "no id": (lambda: message(GOOD_BODY, {"headers.id": GONE}), NO_ID),
    "a number for an id": (lambda: message(GOOD_BODY, {"headers.id": 5}), NO_ID),
    "an empty id": (lambda: message(GOOD_BODY, {"headers.id": ""}), NO_ID),
    "an id of half a character": (lambda: message(GOOD_BODY, {"headers.id": "\ud800"}), NO_ID),
    "an object for a body": (lambda: message(in_({SECRET: 1})), SHAPE),
    "a body of two": (lambda: message(in_([[SECRET], {}])), SHAPE),
    "a body of none": (lambda: message(in_([])), SHAPE),
    "a number in the body": (lambda: message(in_(5)), SHAPE),
    "three letters": (lambda: message(in_("abc")), SHAPE),
    "no arguments": (lambda: message(in_([None, {}, {}])), SHAPE),
    "named arguments in a list": (lambda: message(in_([[SECRET], [1], {}])), SHAPE),
    "a number for options": (lambda: message(in_([[SECRET], {}, 5])), SHAPE),
    "a word for what follows": (
        lambda: message(in_([[SECRET], {}, {"chain": "x"}])),
        "what is to follow its job are no jobs",
    ),
    "a number for a chord": (
        lambda: message(in_([[SECRET], {}, {"chord": 5}])),
        "what is to follow its job are no jobs",
    ),
    "half of each protocol": (lambda: message(in_({"args": 5, "kwargs": 5})), SHAPE),
    "the first protocol without an id": (
        lambda: message(in_({"task": "sidestep.echo", "args": [SECRET]}), {"headers.task": GONE, "headers.id": GONE}),
        NO_ID,
    ),
    "the first protocol without arguments": (
        lambda: message(in_({"task": "sidestep.echo", "id": "x", "kwargs": [SECRET]}), {"headers.task": GONE}),
        SHAPE,
    ),
    "one time limit": (lambda: message(GOOD_BODY, {"headers.timelimit": 5}), NO_LIMITS),
    "time limits in words": (lambda: message(GOOD_BODY, {"headers.timelimit": ["a", "b"]}), NO_LIMITS),
    "a time in words": (lambda: message(GOOD_BODY, {"headers.eta": SECRET}), ODD_HEADERS),
    "an end in words": (lambda: message(GOOD_BODY, {"headers.expires": SECRET}), ODD_HEADERS),
    "a number of stamps": (lambda: message(GOOD_BODY, {"headers.stamped_headers": 5}), NO_STAMPS),
    "a stamp in a list": (lambda: message(GOOD_BODY, {"headers.stamped_headers": [["x"]]}), NO_STAMPS),
    "a time limit beyond all clocks": (lambda: message(GOOD_BODY, {"headers.timelimit": [10**400, None]}), NO_LIMITS),
    "a shadow in a list": (lambda: message(GOOD_BODY, {"headers.shadow": [SECRET]}), "its shadow name is no text"),
}
"""What lies on the queue, and the reason in its letter."""


@pytest.fixture(scope="module")
def bad() -> dict[str, bytes]:
    return {name: make() for name, (make, _) in BAD.items()}


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as kept:
        yield kept


@dataclass
class Lane:
    """A worker with a queue of its own, and what its jobs' sender needs."""

    children: Children
    url: str
    client: Any
    pool: str
    acks_late: bool
    prefix: str

    def __post_init__(self) -> None:
        self.settings = Settings(
            broker=self.url, key_prefix=self.prefix, results=True, acks_late=self.acks_late, queue="jobs"
        )
        self.app = make_app(self.settings)
        self.log = self.children.directory / f"{self.prefix.replace(':', '-')}.log"

    def start(self) -> None:
        ready, told = os.pipe()
        environment = {**self.settings.to_env(), "SIDESTEP_READY_FD": str(told)}
        if self.pool == "eventlet":
            environment["PYTHONWARNINGS"] = EVENTLET_WARNING_FILTER
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", self.pool, "-Q", "jobs"]
        command += ["-c", "1" if self.pool == "solo" else "2", "-n", "reader@test", "-l", "WARNING", *QUIET]
        with self.log.open("wb") as output:
            self.worker = self.children.start(command, env=environment, stdout=output, stderr=output, pass_fds=(told,))
        os.close(told)
        await_ready(ready, self.worker, self.log, self.pool)
        os.close(ready)

    def good(self, payload: object) -> Any:
        """Send a job that returns its payload."""
        return self.app.tasks["sidestep.echo"].delay(payload)

    def put(self, raw: bytes) -> None:
        """Put bytes on the queue as they are."""
        self.client.lpush(self.prefix + "jobs", raw)

    def settled(self) -> None:
        """Wait until the broker holds nothing that is under way."""
        deadline = time.monotonic() + 30
        while self.client.exists(self.prefix + "jobs", self.prefix + "unacked"):
            assert time.monotonic() < deadline, "the queue was not emptied"
            time.sleep(0.01)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")


Open = Callable[..., Lane]


@pytest.fixture
def lane(children: Children, server: Any) -> Iterator[Open]:
    opened: list[Lane] = []

    def open_lane(pool: str, *, acks_late: bool = False) -> Lane:
        if POOLS[pool].missing:
            pytest.skip(POOLS[pool].missing or "")
        made = Lane(children, server.url, server.client(), pool, acks_late, f"sidestep:{uuid.uuid4().hex[:8]}:")
        opened.append(made)
        made.start()
        return made

    yield open_lane
    for made in opened:
        kill(made.worker)
        made.client.close()


@pytest.fixture(scope="module")
def server(children: Children) -> Iterator[Any]:
    with own_server(children) as broker:
        yield broker


@pytest.mark.real
@pytest.mark.parametrize("acks_late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_sets_aside_what_it_cannot_read_and_does_all_else(lane, bad, pool, acks_late):
    # Given one worker, and bad messages of every kind with good jobs between them
    worker = lane(pool, acks_late=acks_late)
    worker.good("first").get(timeout=60)
    results = []
    for raw in bad.values():
        worker.put(raw)
        results.append(worker.good(len(results)))
    # And a job that fails by itself, in the middle of nothing wrong with its message
    failing = worker.app.send_task("sidestep.echo", ("one", "too many"))
    # Then every good job is done right, and the failing one fails as ever
    assert [result.get(timeout=60) for result in results] == list(range(len(bad)))
    with pytest.raises(TypeError):
        failing.get(timeout=60)
    worker.settled()
    assert worker.worker.poll() is None
    # And the bad ones are in the list, in order, byte for byte, each with its reason
    letters = dead_letters(worker.client, worker.prefix)
    assert {name: letter.reason for name, letter in zip(bad, letters, strict=True)} == {
        name: reason for name, (_, reason) in BAD.items()
    }
    assert all(letter.message == raw for letter, raw in zip(letters, bad.values(), strict=True))
    assert {(letter.queue, letter.worker) for letter in letters} == {("jobs", "reader@test")}
    tally = counts(worker.client, worker.prefix)
    assert (tally.kept, tally.all, tally.dropped) == (len(bad), len(bad), 0)
    # And the log has one line about each that quotes nothing, and one traceback: that of the job that failed
    lines = re.findall(
        r"(?:ERROR|CRITICAL|WARNING)/MainProcess\] (message from queue 'jobs' set aside: .*)", worker.said
    )
    assert len(lines) == len(bad)
    assert all(f"set aside: {reason};" in line for line, (_, reason) in zip(lines, BAD.values(), strict=True))
    assert len(re.findall(r": (?:ERROR|CRITICAL|WARNING)/", worker.said)) == len(bad) + 1
    assert worker.said.count("Traceback") == 1
    assert SECRET not in worker.said


def deep(levels: int, codec: str = "json") -> bytes:
    """Arguments of so many lists in each other, as this codec writes them."""
    if codec == "json":
        return b"[[" + b"[" * levels + b"]" * levels + b"], {}, {}]"
    return b"\x93\x91" + b"\x91" * (levels - 1) + b"\x90" + b"\x80\x80"


TOO_DEEP = "it nests too deeply to be handed to a child process"


@pytest.mark.real
def test_what_nests_too_deeply_for_a_child_is_set_aside_and_the_worker_goes_on(lane):
    # Given a message that can be decoded and not pickled, and one of which that is true of its headers
    worker = lane("prefork")
    stamps = json.loads("[" * 700 + "]" * 700)
    for raw in (message(deep(700)), message(GOOD_BODY, {"headers.stamps": {"a": stamps}})):
        worker.put(raw)
    # Then the next job is done by the same worker, and both are counted
    assert worker.good("next").get(timeout=60) == "next"
    worker.settled()
    assert worker.worker.poll() is None
    assert [letter.reason for letter in dead_letters(worker.client, worker.prefix)] == [TOO_DEEP] * 2
    assert counts(worker.client, worker.prefix).all == 2


def checked(raw: bytes, *, pickles: bool = False) -> None:
    """Raises what a worker's check of such a message raises."""
    made = CheckedMessage(json.loads(raw), channel=Decoder())
    made.accept = {"application/json", "application/x-msgpack"}
    check(made, {"sidestep.echo": None}, pickles=pickles)


BINARY = {"content-type": "application/x-msgpack", "content-encoding": "binary"}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_only_what_is_pickled_may_not_nest_too_deeply(codec):
    pytest.importorskip("msgpack")
    kind = BINARY if codec == "msgpack" else NOTHING
    raw = message(deep(800, codec), kind)
    checked(raw)
    with pytest.raises(Unreadable, match=TOO_DEEP):
        checked(raw, pickles=True)
    # And what no pickler minds passes
    checked(message(deep(200, codec), kind), pickles=True)


MILLIONS = "its body holds more than 10 million items"


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        pytest.param(b"[[" + b"[]," * 7_000_000 + b"0], {}, {}]", NOTHING, id="lists"),
        pytest.param(b"[[" + b"1," * 11_000_000 + b"0], {}, {}]", NOTHING, id="numbers"),
        pytest.param(
            b"\x93\xdd" + (12_000_000).to_bytes(4, "big") + b"\x90" * 12_000_000 + b"\x80\x80",
            BINARY,
            id="lists in msgpack",
        ),
    ],
)
def test_a_body_that_would_fill_the_memory_is_refused_before_it_is_decoded(body, changes):
    for raw in (message(body, changes), message(zlib.compress(body), {**changes, "headers.compression": GZIP})):
        made = CheckedMessage(json.loads(raw), channel=Decoder())
        made.accept = {"application/json", "application/x-msgpack"}
        with pytest.raises(Unreadable, match=MILLIONS):
            check(made, {"sidestep.echo": None})
        assert made._decoded_cache is None


def test_a_large_body_of_few_items_is_read():
    pytest.importorskip("msgpack")
    import msgpack

    text = "x" * 12_000_000
    checked(message(json.dumps([[text], {}, {}]).encode()))
    everything = [text.encode(), text, -1, 200, 70_000, 2**40, -(2**40), 1.5, None, True, {"a": [1] * 70_000}, "é" * 20]
    checked(message(msgpack.packb([everything, {}, {}]), BINARY))


@pytest.mark.parametrize("seed", range(3))
def test_the_items_of_msgpack_are_counted_one_by_one(seed):
    msgpack = pytest.importorskip("msgpack")
    value = [make(shape, 3000, seed) for shape in SHAPES] + [-40, 2**40, -(2**20), None, "x" * 70_000, [0] * 70_000]
    packed = msgpack.packb(value)
    items = number_of(value)
    assert _is_within_items(packed, items)
    assert not _is_within_items(packed, items - 1)


def number_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + number_of(inner) for inner in value.values())
    return 1 + sum(map(number_of, value)) if isinstance(value, list) else 1


def test_a_body_that_is_not_packed_may_be_no_larger_than_one_that_is():
    made = CheckedMessage(json.loads(message()), channel=Decoder())
    made.body = b" " * (MOST_UNPACKED_BYTES + 1)
    with pytest.raises(Unreadable, match="larger than 256 MiB"):
        check(made, {"sidestep.echo": None})


def test_an_encoding_that_unpacks_is_refused():
    # Given a body that Python's codecs would unpack without a bound
    with pytest.raises(Unreadable, match="none that a body is written in"):
        checked(message(zlib.compress(GOOD_BODY), {"content-encoding": "zlib"}))


@pytest.mark.real
def test_an_envelope_that_would_fill_the_memory_is_set_aside(lane):
    worker = lane("threads")
    worker.put(b'{"body": [' + b"[]," * 6_000_000 + b"0]}")
    assert worker.good("next").get(timeout=60) == "next"
    (letter,) = dead_letters(worker.client, worker.prefix)
    assert letter.reason == "its envelope holds more than 10 million items"


@pytest.mark.real
def test_who_waits_for_an_unknown_task_is_told(lane):
    worker = lane("threads")
    result = worker.app.send_task("sidestep.nobody")
    with pytest.raises(NotRegistered):
        result.get(timeout=60)
    assert [letter.reason for letter in dead_letters(worker.client, worker.prefix)] == [BAD["an unknown task"][1]]


@pytest.mark.real
@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_while_the_broker_keeps_no_letters_nothing_is_lost(lane, bad, pool):
    # Given a broker on which the list cannot be written
    worker = lane(pool)
    worker.client.set(worker.prefix + LIST, "not a list")
    worker.put(bad["text"])
    worker.put(bad["half a body"])
    # Then the worker goes on, says so, and acknowledges nothing
    assert worker.good("next").get(timeout=60) == "next"
    assert "held in memory" in worker.said
    assert "comes back after the visibility timeout" in worker.said
    waiting = [json.loads(entry)[0] for entry in worker.client.hvals(worker.prefix + "unacked")]
    assert json.loads(bad["half a body"]) in waiting
    # When the list can be written again, what was held is kept with the next letter
    worker.client.delete(worker.prefix + LIST)
    worker.put(bad["null"])
    assert worker.good("last").get(timeout=60) == "last"
    assert [letter.message for letter in dead_letters(worker.client, worker.prefix)] == [bad["text"], bad["null"]]
    assert "Traceback" not in worker.said


@pytest.mark.real
def test_a_broadcast_that_cannot_be_read_is_told_and_dropped(lane):
    # Given a worker that listens: it does so before it takes its first job
    worker = lane("threads")
    worker.good("first").get(timeout=60)
    for raw in (b"{}", b"5", message(b"damaged"), message(in_(5), {"content-type": SECRET})):
        assert worker.client.publish(worker.prefix + "/0.celery.pidbox", raw) == 1
    # Then the worker answers the next one
    assert worker.app.control.broadcast("ping", reply=True, limit=1, timeout=30) == [{"reader@test": {"ok": "pong"}}]
    assert worker.said.count("a broadcast cannot be read and is dropped") == 4
    assert "Traceback" not in worker.said
    assert SECRET not in worker.said
    assert counts(worker.client, worker.prefix).all == 0


@pytest.mark.real
def test_what_is_held_is_kept_when_the_worker_stops(lane, bad):
    worker = lane("threads")
    worker.client.set(worker.prefix + LIST, "not a list")
    worker.put(bad["text"])
    assert worker.good("next").get(timeout=60) == "next"
    worker.client.delete(worker.prefix + LIST)
    worker.worker.send_signal(signal.SIGTERM)
    worker.worker.wait(30)
    assert [letter.message for letter in dead_letters(worker.client, worker.prefix)] == [bad["text"]]


@pytest.mark.real
@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_what_is_held_is_kept_when_the_worker_connects_again(lane, bad, pool):
    worker = lane(pool)
    worker.client.set(worker.prefix + LIST, "not a list")
    worker.put(bad["text"])
    assert worker.good("next").get(timeout=60) == "next"
    worker.client.delete(worker.prefix + LIST)
    # When the connection that it waits on for jobs is cut
    for connection in worker.client.client_list():
        if connection["cmd"].startswith("brpop"):
            worker.client.client_kill_filter(_id=connection["id"])
    assert worker.good("last").get(timeout=60) == "last"
    assert [letter.message for letter in dead_letters(worker.client, worker.prefix)] == [bad["text"]]


@pytest.mark.real
def test_a_letter_is_sent_once_more_and_its_job_done(lane):
    # Given a job whose message was damaged on its way, and set aside
    worker = lane("threads")
    whole = message()
    worker.put(message(b"damaged"))
    worker.good("next").get(timeout=60)
    (letter,) = dead_letters(worker.client, worker.prefix)
    # When it is mended and sent once more
    assert resend(worker.client, worker.prefix, letter)
    # Then it comes back as it was, and a second time there is nothing to send
    worker.good("next").get(timeout=60)
    (again,) = dead_letters(worker.client, worker.prefix)
    assert again.message == letter.message
    assert not resend(worker.client, worker.prefix, letter)
    assert counts(worker.client, worker.prefix).all == 2
    # And a good message in a letter becomes a job
    keep(worker.client, worker.prefix, replace(again, message=whole))
    good = dead_letters(worker.client, worker.prefix)[-1]
    assert resend(worker.client, worker.prefix, good)
    done = worker.app.AsyncResult(json.loads(whole)["headers"]["id"])
    assert done.get(timeout=60) == SECRET


def letter_of(raw: bytes, reason: str = "why") -> Letter:
    return Letter(1.5, "jobs", reason, "reader@test", raw)


@pytest.mark.real
def test_the_list_is_bounded_the_oldest_make_room_and_all_are_counted(server):
    client, prefix = server.client(), f"sidestep:{uuid.uuid4().hex[:8]}:"
    # Given room for three letters
    told = [keep(client, prefix, letter_of(b"%d" % n), most_letters=3) for n in range(5)]
    assert told == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]
    assert [letter.message for letter in dead_letters(client, prefix)] == [b"2", b"3", b"4"]
    sizes = sum(len(letter.to_record()) for letter in dead_letters(client, prefix))
    assert counts(client, prefix) == Counts(3, 5, 2, sizes)
    # And a letter that is larger than all the room: it is kept, alone
    assert keep(client, prefix, letter_of(b"x" * 4000), most_letters=3, most_bytes=1000) == (6, 3)
    assert [len(letter.message) for letter in dead_letters(client, prefix)] == [4000]
    # And the next one takes its place
    assert keep(client, prefix, letter_of(b"small"), most_letters=3, most_bytes=1000) == (7, 1)
    (small,) = dead_letters(client, prefix)
    assert resend(client, prefix, small)
    assert counts(client, prefix) == Counts(0, 7, 6, 0)
    assert client.lrange(prefix + "jobs", 0, -1) == ["small"]


@dataclass
class Link:
    """A channel, as far as a desk needs one."""

    pool: redis.ConnectionPool
    global_keyprefix: str


@pytest.mark.real
def test_what_no_broker_took_is_held_within_bounds_and_kept_when_one_answers(server, caplog):
    # Given a desk with room for two letters, and a broker that is gone
    desk, prefix = Desk(most_letters=2), f"sidestep:{uuid.uuid4().hex[:8]}:"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gone = Link(redis.ConnectionPool(port=probe.getsockname()[1]), prefix)
        for raw in (b"1", b"2", b"3"):
            assert not desk.write(gone, "jobs", "why", raw, sole=True)
        # And one that the broker still has
        assert not desk.write(gone, "jobs", "why", b"4", sole=False)
        desk.catch_up(gone)
    # Then the oldest is given up, and that is told
    assert [record.levelname for record in caplog.records].count("CRITICAL") == 1
    # When the broker is back, what was held is kept, once
    client = server.client()
    back = Link(client.connection_pool, prefix)
    desk.catch_up(back)
    desk.catch_up(back)
    assert [letter.message for letter in dead_letters(client, prefix)] == [b"2", b"3"]


@given(st.binary(), st.text())
def test_a_letter_survives_its_record_byte_for_byte(raw, reason):
    letter = letter_of(raw, reason)
    record = letter.to_record()
    assert record.isascii()
    assert "\n" not in record
    assert Letter.from_record(record) == letter


@pytest.mark.parametrize(
    "record", ["", "5", "{}", "[" * 100_000, '{"at": 1, "queue": "q", "reason": "r", "worker": "w"}']
)
def test_what_is_no_record_is_refused(record):
    with pytest.raises(ValueError, match="no dead letter"):
        Letter.from_record(record)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    *("body", "content-type", "content-encoding", "headers", "properties"),
    *(f"headers.{name}" for name in (*envelope()["headers"], "compression")),
    *(f"properties.{name}" for name in envelope()["properties"]),
    *("properties.delivery_info.exchange", "properties.delivery_info.routing_key"),
]


class Decoder:
    """A channel, as far as a message needs one."""

    codecs = VirtualChannel.codecs
    decode_body = VirtualChannel.decode_body


@given(st.sampled_from(PLACES), JSON | st.just(GONE), JSON)
@example("content-encoding", True, None)
def test_whatever_stands_in_a_message_is_fit_or_refused_in_words_of_our_own(place, value, body):
    present = place not in ("headers.compression",) or value is not GONE
    changes = {place: value} if present else {}
    raw = message(json.dumps(body).encode() if place == "body" and value is GONE else GOOD_BODY, changes)
    refused: str | None = None
    try:
        made = CheckedMessage(json.loads(raw), channel=Decoder())
        made.accept = {"application/json"}
        check(made, {"sidestep.echo": None})
    except Unreadable as error:
        refused = str(error)
    except (ContentDisallowed, DecodeError, TypeError) as error:  # what Celery itself meets
        refused = reason_for(made, error)
    if refused is not None:
        assert 0 < len(refused) <= REASON_LENGTH
    elif not made.errors and made.headers.get("task") == "sidestep.echo":
        arguments, named, options = made.payload
        assert isinstance(made.headers["id"], str)
        assert (type(arguments), type(named), type(options)) == (list, dict, dict)


def test_no_reason_is_too_long_for_its_line():
    assert max(len(reason) for _, reason in BAD.values()) <= REASON_LENGTH


PACKERS = {
    "bz2": (bz2.compress, bz2.decompress, bz2.BZ2Decompressor),
    "lzma": (lzma.compress, lzma.decompress, lzma.LZMADecompressor),
    "zlib": (zlib.compress, zlib.decompress, zlib.decompressobj),
}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("tail", [b"", b"rubbish"])
def test_unpacking_with_a_bound_gives_what_unpacking_without_gives(name, tail):
    pack, unpack, begin = PACKERS[name]
    body = pack(b"some text " * 1000) + tail
    assert unpack_bounded(begin, body) == unpack(body)


@pytest.mark.parametrize("name", ["bz2", "lzma"])
def test_several_streams_in_one_body_share_one_bound(name):
    pack, unpack, begin = PACKERS[name]
    body = pack(b"a" * 600) + pack(b"b" * 600)
    assert unpack_bounded(begin, body, most_bytes=1200) == unpack(body)
    with pytest.raises(Unreadable, match="unpacks to more than"):
        unpack_bounded(begin, body, most_bytes=1199)


@pytest.mark.parametrize("name", PACKERS)
def test_a_bomb_is_refused_and_a_cut_body_too(name):
    pack, _, begin = PACKERS[name]
    with pytest.raises(Unreadable, match="unpacks to more than"):
        unpack_bounded(begin, pack(b" " * 5000), most_bytes=4999)
    with pytest.raises(EOFError):
        unpack_bounded(begin, pack(bytes(range(256)))[:-4])


def test_a_reason_quotes_nothing_of_the_message():
    made = CheckedMessage(json.loads(message(GOOD_BODY, {"content-type": SECRET})), channel=Decoder())
    for error in (ContentDisallowed(SECRET), DecodeError(SECRET), InvalidTaskError(SECRET), KeyError(SECRET)):
        assert SECRET not in reason_for(made, error)


@pytest.mark.real
def test_the_command_line_shows_letters_and_sends_them_again(lane: Open):
    made = lane("threads")
    made.put(b"not json")
    made.settled()
    command = [sys.executable, "-m", "experiments", "letters", "--broker", made.url, "--prefix", made.prefix]

    def seen(*options: str) -> dict[str, Any]:
        done = subprocess.run([*command, "--json", *options], capture_output=True, text=True, check=True, cwd=ROOT)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    deadline = time.monotonic() + 30
    while not (one := seen())["letters"]:
        assert time.monotonic() < deadline, "no letter came"
    assert [letter["reason"] for letter in one["letters"]] == ["its envelope is no JSON that can be read"]
    assert (one["all"], one["resent"]) == (1, 0)
    # And sent again it is still none, and is counted once more
    assert seen("--resend")["resent"] == 1
    made.settled()
    while (again := seen())["all"] < 2:
        assert time.monotonic() < deadline, "the message was not set aside again"
    assert len(again["letters"]) == 1

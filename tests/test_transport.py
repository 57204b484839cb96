"""The Redis transport of its own: it loses nothing, and shares its queues with kombu's in both directions."""

import importlib
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import kombu
import pytest
import redis
import sidestep_transport
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kombu import Connection, Consumer, Exchange, Producer, Queue
from sidestep_transport import dead_letters, handover
from sidestep_transport.channel import IDLE_CHECK_S

from lab.broker import Broker, own_server
from lab.children import Children
from tests.cutter import DOWN, UP, Cutter, cutter

OURS, STOCK = "sidestep_transport:Transport", "redis"
STEPS = (0, 3, 6, 9)
LONGEST_S = 30  # for what takes long only if it is wrong


def test_another_kombu_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    # Given a kombu whose private parts may be others
    monkeypatch.setattr(kombu, "VERSION", (5, 8, 0))
    # Then the import says which was tested, and how to go on without
    with pytest.raises(ImportError, match=r"tested with kombu 5\.7 .*removing the setting broker_transport"):
        importlib.reload(sidestep_transport)
    monkeypatch.undo()
    importlib.reload(sidestep_transport)


def test_installed_it_serves_the_schemes_of_redis():
    before = dict(kombu.transport.TRANSPORT_ALIASES)
    try:
        sidestep_transport.install()
        assert Connection("redis://").transport_cls == "redis"
        assert Connection("redis://").get_transport_cls() is sidestep_transport.Transport
        # And kombu still sees by the scheme that this one wants TLS
        assert Connection("rediss://").get_transport_cls() is sidestep_transport.Transport
        assert Connection("rediss://").ssl
    finally:
        kombu.transport.TRANSPORT_ALIASES.clear()
        kombu.transport.TRANSPORT_ALIASES.update(before)
        kombu.transport._transport_cache.clear()


# --- against a real server -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker():
    with Children() as children, own_server(children) as started:
        yield started


@pytest.fixture
def client(broker):
    with redis.Redis.from_url(broker.url) as opened:
        opened.flushall()
        handover._forget()
        yield opened


def connect(broker, transport: str = OURS, **options: object) -> Connection:
    return Connection(broker.url, transport=transport, transport_options=dict(options))


def publish(broker, queue: str, *numbers: int, transport: str = STOCK, priority: int = 0, **options: object) -> None:
    with connect(broker, transport, **options) as connection:
        producer = Producer(connection.channel())
        for number in numbers:
            producer.publish({"number": number}, routing_key=queue, priority=priority)


class Worker:
    """Consumes on a connection of its own, and remembers what came."""

    def __init__(self, broker, queues=("a",), transport: str = OURS, prefetch: int = 10, acks: bool = True, **options):
        self.connection = connect(broker, transport, **options)
        self.channel = self.connection.channel()
        self.got: list[int] = []
        self.held: dict[int, object] = {}
        self.acks = acks
        self.consumer = Consumer(
            self.channel,
            [q if isinstance(q, Queue) else Queue(q, exchange=Exchange(""), routing_key=q) for q in queues],
            on_message=self._take,
            auto_declare=any(isinstance(q, Queue) for q in queues),
        )
        self.consumer.qos(prefetch_count=prefetch)
        self.consumer.consume()

    def _take(self, message) -> None:
        number = message.payload["number"]
        self.got.append(number)
        if self.acks:
            message.ack()
        else:
            self.held[number] = message

    def drain(self, count: int, within_s: float = LONGEST_S) -> list[int]:
        """What came until there were `count`, or for so long."""
        before, until_s = len(self.got), time.monotonic() + within_s
        while len(self.got) < before + count and time.monotonic() < until_s:
            with suppress(socket.timeout):
                self.connection.drain_events(timeout=min(0.2, within_s))
        return self.got[before:]

    def die(self) -> None:
        """As kill -9 would: not one byte more is sent."""
        cycle = self.connection.transport.cycle
        if hasattr(cycle, "_stopped"):
            cycle._stopped.set()
        for channel in self.connection.transport.channels:
            if channel._qos is not None:
                channel._qos._on_collect.cancel()
            channel.closed = True
            for pool in (channel._pool, channel._async_pool):
                if pool is not None:
                    for each in (*pool._available_connections, *pool._in_use_connections):
                        if each._sock is not None:
                            each._sock.close()
        handover._forget()

    def close(self) -> None:
        self.connection.close()


@contextmanager
def working(*args, **kwargs) -> Iterator[Worker]:
    worker = Worker(*args, **kwargs)
    try:
        yield worker
    finally:
        worker.close()


def unacked(client) -> tuple[int, int]:
    return client.hlen("unacked"), client.zcard("unacked_index")


def expire(client, key: str = "unacked_index") -> None:
    """Let all deliveries be as if nobody had renewed them for years."""
    for tag in client.zrange(key, 0, -1):
        client.zadd(key, {tag: 1})


pytest_real = pytest.mark.real


@pytest_real
@pytest.mark.parametrize(("sender", "receiver"), [(STOCK, OURS), (OURS, STOCK), (OURS, OURS)])
def test_what_one_sends_the_other_receives_in_the_order_of_priorities(broker, client, sender, receiver):
    for priority in (9, 3, 0):
        publish(broker, "a", priority * 10, priority * 10 + 1, transport=sender, priority=priority)
    with working(broker, transport=receiver) as worker:
        assert worker.drain(6) == [0, 1, 30, 31, 90, 91]
    assert unacked(client) == (0, 0)
    assert client.keys("unacked*") == []


@pytest_real
@pytest.mark.parametrize("strategy", ["round_robin", "sorted", "priority"])
@given(data=st.data())
@settings(max_examples=15)
def test_a_batch_has_the_order_in_which_kombu_fetches_one_by_one(broker, strategy, data):
    # Given queues and priorities with any number of messages
    queues = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
    sent = data.draw(st.lists(st.tuples(st.sampled_from(queues), st.sampled_from(STEPS)), max_size=12))
    orders = []
    for transport in (OURS, STOCK):
        with redis.Redis.from_url(broker.url) as client:
            client.flushall()
        with connect(broker, STOCK) as connection:
            producer = Producer(connection.channel())
            for number, (queue, priority) in enumerate(sent):
                producer.publish({"number": number}, routing_key=queue, priority=priority)
        # When each transport fetches them all
        with working(broker, queues, transport, prefetch=100, queue_order_strategy=strategy) as worker:
            orders.append(worker.drain(len(sent)))
    # Then they come in the same order
    assert orders[0] == orders[1]


@pytest_real
def test_a_fetch_takes_no_more_than_the_free_prefetch(broker, client):
    publish(broker, "a", *range(20))
    with working(broker, prefetch=3, acks=False) as worker:
        assert worker.drain(3) == [0, 1, 2]
        assert worker.drain(1, 0.3) == []
        assert (client.llen("a"), *unacked(client)) == (17, 3, 3)
        # Until one is finished
        worker.held.pop(1).ack()
        assert worker.drain(1) == [3]
    # And what was not finished goes back where it was, in its order
    with working(broker, prefetch=50) as other:
        assert other.drain(19) == [0, 2, 3, *range(4, 20)]


@pytest_real
@pytest.mark.parametrize(("dies", "restores"), [(OURS, STOCK), (STOCK, OURS), (OURS, OURS)])
def test_what_a_dead_worker_held_is_restored_by_the_other_kind(broker, client, dies, restores):
    publish(broker, "a", 1, 2, priority=3)
    worker = Worker(broker, transport=dies, acks=False)
    assert worker.drain(2) == [1, 2]
    worker.die()
    assert unacked(client) == (2, 2)
    # When the visibility timeout is over
    expire(client)
    with working(broker, transport=restores, visibility_timeout=5, unacked_restore_throttle=1) as other:
        assert sorted(other.drain(2)) == [1, 2]
    assert unacked(client) == (0, 0)


@pytest_real
def test_the_server_notes_a_message_in_the_step_in_which_it_gives_it_away(broker, client):
    # Given a worker that died with everything that one fetch gave, and delivered none of it
    publish(broker, "a", *range(5))
    worker = Worker(broker, acks=False)
    worker.consumer.on_message = None
    worker.channel.pump()
    # Then they are in one place or the other
    deadline = time.monotonic() + LONGEST_S
    while client.llen("a") and time.monotonic() < deadline:
        time.sleep(0.001)
    worker.die()
    assert unacked(client) == (5, 5)
    entries = [json.loads(entry) for entry in client.hvals("unacked")]
    assert sorted(json.loads(_body(entry[0]))["number"] for entry in entries) == [0, 1, 2, 3, 4]
    assert {tuple(entry[1:]) for entry in entries} == {("", "a")}


def _body(envelope: dict) -> bytes:
    return kombu.transport.virtual.Base64().decode(envelope["body"])


@pytest_real
def test_one_message_in_two_queues_is_two_messages(broker, client):
    # Given an exchange that routes to two queues, and kombu, which gives both copies one tag
    exchange = Exchange("news", "topic")
    queues = [Queue(name, exchange, routing_key="#") for name in "ab"]
    with working(broker, queues, acks=False) as worker:
        Producer(worker.connection.channel(), exchange).publish({"number": 7}, routing_key="x")
        assert worker.drain(2) == [7, 7]
        # Then each has a place of its own until it is finished
        assert unacked(client) == (2, 2)
        worker.held[7].ack()
        worker.channel.flush()
        assert unacked(client) == (1, 1)
        worker.die()
    expire(client)
    with working(broker, queues) as other:
        assert other.drain(1) == [7]


@pytest_real
def test_finished_and_dropped_messages_are_gone_and_requeued_ones_come_last(broker, client):
    publish(broker, "a", 1, 2, 3, 4)
    with working(broker, prefetch=3, acks=False) as worker:
        worker.drain(3)
        worker.held[1].ack()
        worker.held[2].reject()
        worker.held[3].requeue()
        assert worker.drain(2) == [4, 3]
        assert worker.held[3].headers["redelivered"] is True
        worker.held[4].ack()
        worker.held[3].ack()
    assert client.keys("unacked*") + client.keys("a*") == []


@pytest_real
def test_without_acknowledgements_a_message_is_gone_when_it_is_delivered(broker, client):
    publish(broker, "a", 1, 2)
    with connect(broker) as connection:
        channel = connection.channel()
        got = []
        with Consumer(channel, [Queue("a", Exchange(""), "a")], no_ack=True, on_message=got.append, auto_declare=False):
            connection.drain_events(timeout=5)
            assert len(got) == 1
        # What was fetched beyond it, and delivered to nobody, is back
        assert client.llen("a") == 1
    assert unacked(client) == (0, 0)


@pytest_real
def test_a_single_message_is_got_safely_too(broker, client):
    publish(broker, "a", 1)
    with connect(broker) as connection:
        channel = connection.channel()
        message = channel.basic_get("a")
        assert unacked(client) == (1, 1)
        message.ack()
        assert channel.basic_get("a") is None
    assert unacked(client) == (0, 0)


@pytest_real
def test_without_ack_emulation_everything_is_kombus(broker, client):
    publish(broker, "a", 1, 2)
    with working(broker, ack_emulation=False) as worker:
        assert worker.drain(2) == [1, 2]
    assert client.keys("unacked*") == []


@pytest_real
def test_all_keys_have_the_global_prefix(broker, client):
    publish(broker, "a", 1, 2, 3, global_keyprefix="app:")
    with working(broker, acks=False, prefetch=2, global_keyprefix="app:") as worker:
        assert worker.drain(2) == [1, 2]
        assert all(key.startswith(b"app:") for key in client.scan_iter())
        assert client.hlen("app:unacked") == 2
        worker.held[1].ack()
        worker.held[2].requeue()
        assert worker.drain(2) == [3, 2]
        worker.die()
    expire(client, "app:unacked_index")
    with working(broker, global_keyprefix="app:") as other:
        assert sorted(other.drain(2)) == [2, 3]
    with working(broker, transport=STOCK, global_keyprefix="app:") as stock:
        publish(broker, "a", 9, transport=OURS, global_keyprefix="app:")
        assert stock.drain(1) == [9]
    assert all(key.startswith(b"app:") for key in client.scan_iter())


# --- idle ------------------------------------------------------------------------------------------------------------


@pytest_real
def test_an_idle_worker_asks_for_nothing_and_hears_every_queue_and_priority_at_once(broker, client):
    with working(broker, "abc") as worker:
        worker.drain(1, 0.2)
        for number, (queue, priority) in enumerate(itertools.product("abc", STEPS)):
            before = fetches(client)
            # Given nothing to do: not one fetch
            worker.drain(1, 0.15)
            assert fetches(client) == before
            # When anybody sends something
            publish(broker, queue, number, priority=priority)
            # Then it comes long before the worker would have asked by itself
            start_s = time.monotonic()
            assert worker.drain(1) == [number]
            assert time.monotonic() - start_s < 5


@pytest_real
@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("queues", ["a", "ab", "abc"])
def test_it_hears_a_queue_that_it_has_emptied_itself(broker, queues):
    # Given a worker that has taken the only message of its queues, and found no more
    with working(broker, queues) as worker:
        for number in range(3):
            worker.drain(1, 0.2)
            publish(broker, queues[-1], number)
            # When the next comes to the same queue
            start_s = time.monotonic()
            assert worker.drain(1) == [number]
            # Then it is told, and need not look by itself
            assert time.monotonic() - start_s < IDLE_CHECK_S / 2


@pytest_real
@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("queues", ["a", "ab"])
def test_a_server_that_refuses_to_give_is_not_taken_for_an_empty_one(broker, client, queues):
    # Given a server that takes no writes until it has enough replicas
    publish(broker, "a", 1)
    try:
        with working(broker, queues) as worker:
            client.config_set("min-replicas-to-write", 1)
            # Then the worker says so
            with pytest.raises(redis.ResponseError, match=r"NOREPLICAS|good replicas"):
                worker.drain(1, 5)
            client.config_set("min-replicas-to-write", 0)
            # And takes the message when it may
            assert worker.drain(1) == [1]
    finally:
        client.config_set("min-replicas-to-write", 0)


@pytest_real
def test_a_key_of_another_type_is_no_queue_and_hinders_none(broker, client):
    client.set("a", "no list")
    for queues in ("ab", "b"):
        publish(broker, "b", 1)
        with working(broker, queues) as worker:
            assert worker.drain(1) == [1]


def fetches(client) -> int:
    return client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]


@pytest_real
def test_the_doorbell_is_heard_while_something_else_is_under_way(broker, client):
    # Given a worker that has just finished a message, and tells so while the next one comes
    with working(broker) as worker:
        for number in range(200):
            publish_raw(client, number)
            assert worker.drain(1, 5) == [number]


def publish_raw(client, number: int) -> None:
    """As fast as can be, by any other client."""
    body = kombu.transport.virtual.Base64().encode(json.dumps({"number": number}))
    properties = {"delivery_tag": f"t{number}", "delivery_info": {"exchange": "", "routing_key": "a"}, "priority": 0}
    properties["body_encoding"] = "base64"
    envelope = {"body": body, "content-type": "application/json", "content-encoding": "utf-8", "headers": {}}
    client.lpush("a", json.dumps({**envelope, "properties": properties}))


@pytest_real
def test_the_doorbell_is_heard_right_behind_the_answer_to_an_acknowledgement(broker, client):
    # Given an idle worker that has finished a job and tells so
    with working(broker) as worker:
        publish(broker, "a", 1)
        assert worker.drain(1) == [1]
        until_s = time.monotonic() + LONGEST_S
        while worker.channel._flight is None and time.monotonic() < until_s:
            worker.channel.pump()
        assert worker.channel._flight
        assert worker.channel._flight.acks
        assert worker.channel._flight.queues == []
        while unacked(client) != (0, 0) and time.monotonic() < until_s:
            pass
        # When it reads the answer only after the bell has rung, so that both come in one piece
        publish(broker, "a", 2)
        # Then it gets the next at once, and not with its next look
        begun_s = time.monotonic()
        assert worker.drain(1) == [2]
        assert time.monotonic() - begun_s < IDLE_CHECK_S / 2


@pytest_real
@pytest.mark.usefixtures("client")
def test_without_a_doorbell_it_asks_now_and_then(broker):
    with working(broker, doorbell=False, idle_poll_interval=0.02) as worker:
        worker.drain(1, 0.2)
        publish(broker, "a", 1)
        assert worker.drain(1, 5) == [1]


# --- what cannot be read, what is lost too often ---------------------------------------------------------------------


@pytest_real
def test_what_cannot_be_read_is_put_aside_byte_for_byte(broker, client):
    rubbish = [b"\xff\x00 no json", b"[1, 2]", b'{"properties": {}}', b'{"delivery_tag": "x" no json']
    client.lpush("a", *rubbish)
    publish(broker, "a", 1)
    with working(broker) as worker:
        assert worker.drain(1) == [1]
    letters = list(dead_letters.read(client))
    assert [letter.message for letter in letters] == rubbish
    assert {letter.queue for letter in letters} == {"a"}
    assert unacked(client) == (0, 0)


@pytest_real
def test_a_message_that_ends_its_workers_becomes_a_dead_letter_that_can_be_resent(broker, client):
    publish(broker, "a", 1)
    for _ in range(3):
        worker = Worker(broker, acks=False, delivery_limit=3)
        assert worker.drain(1) == [1]
        worker.die()
        expire(client)
    with working(broker, delivery_limit=3) as worker:
        assert worker.drain(1, 0.3) == []
        (letter,) = dead_letters.read(client)
        assert letter.reason == "its worker was lost too often"
        assert dead_letters.resend(client, letter)
        assert not dead_letters.resend(client, letter)
        assert worker.drain(1) == [1]
    # What remains is what its dead workers last fetched, and expires
    assert {key.partition(b":")[0] for key in client.keys("unacked*")} == {b"unacked_fetch"}
    assert all(client.ttl(key) > 0 for key in client.keys("unacked*"))


@pytest_real
@pytest.mark.parametrize("queues", ["a", "ab"])
def test_what_came_back_from_a_lost_worker_is_fetched_alone(broker, client, queues):
    # Given messages that were lost with their worker, and more that never were
    publish(broker, "a", 1, 2)
    worker = Worker(broker, acks=False, prefetch=2)
    worker.drain(2)
    worker.die()
    publish(broker, "a", 3, 4)
    expire(client)
    with connect(broker) as connection:
        connection.channel().sweep()
    assert client.llen("a") == 4
    with working(broker, queues) as worker:
        fetched = []
        # When another worker takes them
        while sum(map(len, fetched)) < 4:
            worker.channel.pump()
            worker.channel._land()
            fetched.append([json.loads(_body(json.loads(raw)))["number"] for _, _, raw in worker.channel._buffer])
            worker.channel._buffer.clear()
            worker.channel._sent_s = 0.0
    # Then each of the two comes alone, and the others together
    assert sorted(fetched[:2]) == [[1], [2]]
    assert fetched[2:] == [[3, 4]]


@pytest_real
@pytest.mark.parametrize("way", ["consumed", "got"])
def test_a_message_whose_body_cannot_be_read_is_put_aside_and_ends_nobody(broker, client, way):
    publish_raw(client, 1)
    envelope = json.loads(client.rpop("a"))
    broken = json.dumps({**envelope, "body": "abcde"}).encode()
    client.lpush("a", broken)
    publish(broker, "a", 2)
    with working(broker, "a" if way == "consumed" else "b") as worker:
        if way == "consumed":
            assert worker.drain(1) == [2]
        else:
            assert worker.channel.basic_get("a") is None
    assert [letter.message for letter in dead_letters.read(client)] == [broken]
    assert unacked(client) == (0, 0)


@pytest_real
@pytest.mark.parametrize("prefix", ["", "app:"])
def test_a_dead_letter_goes_back_to_its_own_list(broker, client, prefix):
    # Given a message with a priority, and perhaps a prefix before all keys
    publish(broker, "a", 1, priority=6, global_keyprefix=prefix)
    (queue,) = (key for key in client.keys(f"{prefix}a*"))
    worker = Worker(broker, acks=False, global_keyprefix=prefix)
    worker.drain(1)
    worker.die()
    expire(client, f"{prefix}unacked_index")
    with working(broker, delivery_limit=1, global_keyprefix=prefix) as other:
        other.channel.sweep()
    key = f"{prefix}{dead_letters.LIST}"
    (letter,) = dead_letters.read(client, key)
    # When it is resent
    assert dead_letters.resend(client, letter, key=key)
    # Then it lies where it was
    assert client.llen(queue) == 1


@pytest_real
def test_requeueing_ends_where_a_limit_is_set_and_nowhere_else(broker, client):
    publish(broker, "a", 1)
    with working(broker, acks=False, requeue_limit=2) as worker:
        for _ in range(2):
            worker.drain(1)
            worker.held[1].requeue()
        assert worker.drain(1, 0.3) == []
        assert [letter.reason for letter in dead_letters.read(client)] == ["it was requeued too often"]


@pytest_real
def test_a_message_nobody_can_route_is_kept(broker, client):
    publish(broker, "a", 1)
    worker = Worker(broker, transport=STOCK, acks=False)
    worker.drain(1)
    worker.die()
    (tag, entry) = next(iter(client.hgetall("unacked").items()))
    client.hset("unacked", tag, json.dumps([json.loads(entry)[0], "gone", "x"]))
    expire(client)
    with working(broker) as other:
        assert other.drain(1, 0.3) == []
    assert [letter.queue for letter in dead_letters.read(client)] == ["x"]


# --- leases ----------------------------------------------------------------------------------------------------------


@pytest_real
@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("busy", [True, False])
def test_a_delivery_is_renewed_as_long_as_its_worker_lives_and_restored_soon_after(broker, busy):
    # Given a visibility timeout that is much shorter than the job
    publish(broker, "a", 1)
    worker = Worker(broker, acks=False, visibility_timeout=1)
    assert worker.drain(1) == [1]
    with working(broker, visibility_timeout=1) as other:
        # When it works for longer than that, in the thread that consumes or beside it
        if busy:
            assert other.drain(1, 2.5) == []
        else:
            beside = threading.Thread(target=worker.drain, args=(1, 2.5))
            beside.start()
            assert other.drain(1, 2.5) == []
            beside.join()
        # Then nobody else gets the message, until its worker is dead
        worker.die()
        assert other.drain(1) == [1]


@pytest_real
def test_a_job_that_outlives_its_connection_keeps_its_message(broker, client):
    # Given jobs that go on while their channel is gone, and a broker that was away when it closed
    publish(broker, "a", 1, 2)
    worker = Worker(broker, acks=False, visibility_timeout=1)
    assert worker.drain(2) == [1, 2]

    def away() -> None:
        raise redis.ConnectionError

    worker.channel.flush = away
    with suppress(redis.ConnectionError):
        worker.close()
    assert unacked(client) == (2, 2)
    # When the process has another connection
    with working(broker, visibility_timeout=1) as other:
        # Then nobody gets them as long as somebody works on them
        assert other.drain(1, 2.5) == []
        worker.held.pop(1).ack()
        assert other.drain(1, 0.1) == []
        assert unacked(client) == (1, 1)
        # And with the last who could finish it, the lease ends
        worker.held.clear()
        assert other.drain(1) == [2]
    assert unacked(client) == (0, 0)


@pytest_real
def test_after_an_interruption_all_may_renew_before_anybody_looks_for_what_is_lost(broker, client):
    # Given a worker whose connection has broken, and deliveries that nobody could renew meanwhile
    publish(broker, "a", 1)
    dead = Worker(broker, acks=False)
    dead.drain(1)
    dead.die()
    with working(broker, visibility_timeout=8) as worker:
        worker.drain(1, 0.2)
        worker.channel.client.connection.disconnect()
        worker.channel._swept_s = -1000.0  # as after a long time
        expire(client)
        worker.drain(1, 0.2)
        # Then it leaves their holders time
        assert worker.drain(1, 0.3) == []
        # And takes them when nobody came
        assert worker.drain(1) == [1]


@pytest_real
def test_what_another_worker_has_by_now_is_not_begun(broker, client):
    # Given a worker with messages that wait in it, for longer than they may
    publish(broker, "a", 1, 2, 3)
    with working(broker) as worker:
        worker.channel.pump()
        worker.channel._land()
        for tag in client.zrange("unacked_index", 0, -1):
            client.zrem("unacked_index", tag)
        # When it hears that they are somebody else's
        worker.channel._renewed_s = 0.0
        worker.channel.renew()
        # Then it does none of them
        assert worker.drain(1, 0.3) == []


# --- broken connections ----------------------------------------------------------------------------------------------


def run_behind(relay: Cutter, broker, count: int, got: list[int], *, dies: bool, transport: str = OURS) -> None:
    """Consume as Celery does: after an error everything is closed, and begins anew; or, with `dies`, nothing does."""
    url = broker.url.replace(f":{port_of(broker)}/", f":{relay.port}/")
    until_s = time.monotonic() + LONGEST_S
    while len(set(got)) < count and time.monotonic() < until_s:
        connection = Connection(url, transport=transport, transport_options={"max_retries": 1})
        try:
            channel = connection.channel()
            consumer = Consumer(
                channel,
                [Queue(name, Exchange(""), name) for name in "ab"],
                on_message=lambda message: (got.append(message.payload["number"]), message.ack()),
                auto_declare=False,
            )
            consumer.qos(prefetch_count=4)
            consumer.consume()
            while len(set(got)) < count and time.monotonic() < until_s:
                with suppress(socket.timeout):
                    connection.drain_events(timeout=0.2)
            connection.close()
        except connection.connection_errors:
            if dies:
                os._exit(0)
            with suppress(Exception):
                connection.close()


def port_of(broker) -> int:
    return int(broker.shown.rpartition(":")[2].partition("/")[0])


def cut_points(broker, count: int, transport: str = OURS) -> list[tuple[str, int]]:
    """Before, inside and after everything that goes either way while `count` messages are done."""
    with cutter(port_of(broker)) as relay:
        relay.arm(None)
        got: list[int] = []
        run_behind(relay, broker, count, got, dies=False, transport=transport)
        assert sorted(got) == list(range(count))
        points = []
        for direction in (UP, DOWN):
            last = 0
            for end in relay.ends[direction]:
                points += [(direction, last + 1), (direction, (last + end) // 2), (direction, end)]
                last = end
        # Of the handshakes, a few: redis-py tries them again after a pause, and nothing is under way yet.
        first = b"SCRIPT" if transport == OURS else b"BRPOP"
        begins = {UP: relay.seen[UP].index(first), DOWN: relay.seen[DOWN].index(b"delivery_tag") - 100}
    points = sorted({point for point in points if point[1] > 0})
    early = [point for point in points if point[1] < begins[point[0]]]
    return early[::12] + [point for point in points if point[1] >= begins[point[0]]]


def send_some(broker, count: int) -> None:
    for number in range(count):
        publish(broker, "ab"[number % 2], number, priority=STEPS[number % 3])


COUNT = 6


@pytest_real
def test_whatever_byte_the_connection_breaks_at_every_message_is_done_exactly_once(broker, client):
    send_some(broker, COUNT)
    points = cut_points(broker, COUNT)
    assert len(points) > 20
    for point in points:
        client.flushall()
        send_some(broker, COUNT)
        with cutter(port_of(broker)) as relay:
            relay.arm(point)
            got: list[int] = []
            run_behind(relay, broker, COUNT, got, dies=False)
            assert Counter(got) == Counter(range(COUNT)), point
        # And what was finished is told, by this connection or the next
        with working(broker, "ab") as last:
            assert last.drain(1, 0.05) == [], point
        assert unacked(client) == (0, 0), point


@pytest_real
def test_whatever_byte_a_worker_dies_at_no_message_is_lost(broker, client, tmp_path):
    send_some(broker, COUNT)
    points = cut_points(broker, COUNT)
    twice = 0
    for number, point in enumerate(points):
        client.flushall()
        send_some(broker, COUNT)
        log = tmp_path / str(number)
        with cutter(port_of(broker)) as relay:
            relay.arm(point)
            child = os.fork()
            if not child:
                run_behind(relay, broker, COUNT, Written(log), dies=True)
                os._exit(0)
            os.waitpid(child, 0)
        done = Counter(Written.read(log))
        # When the visibility timeout is over
        told = COUNT - client.hlen("unacked") - sum(client.llen(key) for key in client.keys("[ab]*"))
        expire(client)
        with working(broker, "ab") as last:
            again = Counter(last.drain(COUNT - told, 5))
            last.channel.sweep()  # of a tag whose message was finished, too
        # Then each was done; twice only what the first had done and could not tell
        assert set(done) | set(again) == set(range(COUNT)), point
        assert sum(again.values()) == COUNT - told, point
        assert max((done + again).values()) <= 2, point
        twice += sum((done & again).values())
        assert unacked(client) == (0, 0), point
    assert twice > 0  # else nothing was put to the test


@pytest_real
def test_the_same_tour_finds_what_kombus_own_transport_loses(broker, client, tmp_path):
    # Given the points at which an answer is under way to a worker that dies
    send_some(broker, COUNT)
    points = [point for point in cut_points(broker, COUNT, STOCK) if point[0] == DOWN][-12:]
    lost = 0
    for number, point in enumerate(points):
        client.flushall()
        send_some(broker, COUNT)
        log = tmp_path / str(number)
        with cutter(port_of(broker)) as relay:
            relay.arm(point)
            child = os.fork()
            if not child:
                run_behind(relay, broker, COUNT, Written(log), dies=True, transport=STOCK)
                os._exit(0)
            os.waitpid(child, 0)
        left = client.hlen("unacked") + sum(client.llen(key) for key in client.keys("[ab]*"))
        lost += COUNT - len(set(Written.read(log))) - left
    # Then some messages were neither done nor anywhere
    assert lost > 0


class Written(list):
    """A list that outlives its process."""

    def __init__(self, path) -> None:
        super().__init__()
        self._path = path

    def append(self, number: int) -> None:
        super().append(number)
        with self._path.open("a") as file:
            file.write(f"{number}\n")

    @staticmethod
    def read(path) -> list[int]:
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest_real
def test_a_fetch_that_was_given_up_takes_nothing_any_more(broker, client):
    # Given a worker whose fetch is still on its way when it has connected anew
    publish(broker, "a", 1)
    with working(broker, acks=False) as worker:
        worker.channel._recall(worker.channel._plain(), worker.channel._record, 1)
        # Then it comes too late
        assert worker.drain(1, 0.3) == []
        assert client.llen("a") == 1


@pytest_real
def test_what_is_being_worked_on_does_not_go_back_with_a_fetch_that_gave_nothing(broker, client):
    # Given a worker that holds what one fetch gave
    publish(broker, "a", 1, 2)
    with working(broker, acks=False) as worker:
        assert worker.drain(2) == [1, 2]
        worker.drain(1, 0.2)
        # When the answer to the next fetch, which found nothing, gets lost
        worker.channel._is_idle = False
        worker.channel.pump()
        assert worker.channel._flight is not None
        worker.channel.client.connection.disconnect()
        # Then it keeps them
        assert worker.drain(1, 0.5) == []
        assert unacked(client) == (2, 2)


# --- TLS -------------------------------------------------------------------------------------------------------------


@contextmanager
def tls_front(broker, folder: Path) -> Iterator[tuple[int, Path]]:
    """A port that speaks TLS and stands in front of the broker, and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so no certificate can be made")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError):
                near = context.wrap_socket(plain, server_side=True)
                far = socket.create_connection(("127.0.0.1", port_of(broker)))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1], certificate
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest_real
def test_rediss_is_encrypted_and_checked_as_with_kombus_own(broker, client, tmp_path, caplog):
    with tls_front(broker, tmp_path) as (port, certificate):
        url = broker.url.replace("redis://", "rediss://").replace(f":{port_of(broker)}/", f":{port}/")
        # With a certificate to check: a doorbell behind TLS, too
        checked = Broker(f"{url}?ssl_cert_reqs=required&ssl_ca_certs={certificate}", None)
        with working(checked) as worker:
            worker.drain(1, 0.2)
            for number in range(3):
                publish(broker, "a", number)
                assert worker.drain(1, 5) == [number]
        # With another's certificate: refused
        other = Broker(f"{url}?ssl_cert_reqs=required", None)
        with pytest.raises((redis.ConnectionError, OSError)):
            Worker(other)
        # With none: encrypted all the same, and said
        app = Celery(broker=url, set_as_current=True)
        app.conf.broker_transport = OURS
        with app.connection_for_write() as connection:
            Producer(connection.channel()).publish({"number": 7}, routing_key="a")
        assert "the server's certificate is not checked" in caplog.text
        assert client.llen("a") == 1


# --- access ----------------------------------------------------------------------------------------------------------


@pytest_real
def test_the_commands_that_the_docs_allow_are_enough(broker, client):
    text = (Path(__file__).parent.parent / "docs" / "transport.md").read_text("utf-8")
    rules = text.partition("<!-- acl: begin -->")[2].partition("<!-- acl: end -->")[0].split()
    assert len(rules) > 40
    is_old = tuple(map(int, client.info("server")["redis_version"].split("."))) < (7, 2)
    if is_old:
        rules.remove("+client|setinfo")  # unknown there
    # Given a user that may do that and no more
    client.execute_command("ACL", "SETUSER", "job", "reset", "on", ">pw", *rules)
    limited = Broker(f"redis://job:pw@127.0.0.1:{port_of(broker)}/0", None)
    queue = Queue("celery", Exchange("celery"), "celery")
    try:
        with connect(limited) as connection:
            for number in range(4):
                Producer(connection.channel()).publish(
                    {"number": number}, exchange=queue.exchange, routing_key="celery", declare=[queue]
                )
        dead = Worker(limited, [queue], acks=False, delivery_limit=1)
        dead.drain(4)
        dead.held[0].ack()
        dead.held[1].reject()
        dead.channel.flush()
        dead.die()
        for tag in client.zrange("unacked_index", 0, 0):
            client.zadd("unacked_index", {tag: 1})
        # When it does all that the transport can do
        with working(limited, [queue], acks=False, requeue_limit=3, visibility_timeout=1, delivery_limit=5) as worker:
            worker.channel._recall(worker.channel._plain(), dead.channel._record, 1)
            worker.drain(2)
            worker.held[2].requeue()
            worker.drain(1, 1.5)
            assert worker.channel._rings
            worker.held[2].ack()
            worker.held[3].ack()
            assert worker.channel.basic_get("celery") is None
        # Then nothing was refused, but for what an old server does not know, which redis-py asks in vain
        refused = [entry for entry in client.acl_log() if entry["username"] == "job"]
        refused = [entry for entry in refused if not (is_old and entry["object"] == "client")]
        assert refused == []
        assert unacked(client) == (0, 0)
    finally:
        client.acl_deluser("job")


@pytest_real
@pytest.mark.usefixtures("client")
def test_a_channel_that_loses_its_connection_goes_on_with_another(broker):
    # Given a worker that drops its connection by itself, as from a broker that does not answer
    with working(broker) as worker:
        for number in range(5):
            publish(broker, "a", number)
            assert worker.drain(1) == [number]
            worker.channel.client.connection.disconnect()
        # Then it hears the next message as before
        worker.drain(1, 0.3)
        publish(broker, "a", 5)
        assert worker.drain(1, 5) == [5]


@pytest_real
def test_a_server_that_has_forgotten_the_script_learns_it_again(broker, client):
    with working(broker) as worker:
        worker.drain(1, 0.1)
        client.script_flush()
        publish(broker, "a", 1)
        assert worker.drain(1, 5) == [1]


# --- any order of events ---------------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Workers of both kinds on three queues; every message that nobody finished is in exactly one place."""

    broker = None

    def __init__(self) -> None:
        super().__init__()
        self.client = redis.Redis.from_url(self.broker.url)
        self.client.flushall()
        self.workers: list[Worker] = []
        self.open: set[int] = set()
        self.count = 0

    @rule(queue=st.sampled_from("abc"), priority=st.integers(0, 9), transport=st.sampled_from([OURS, STOCK]))
    def publish(self, queue, priority, transport):
        publish(self.broker, queue, self.count, transport=transport, priority=priority)
        self.open.add(self.count)
        self.count += 1

    @precondition(lambda self: len(self.workers) < 3)
    @rule(
        transport=st.sampled_from([OURS, OURS, STOCK]),
        queues=st.sampled_from(["a", "ab", "abc"]),
        prefetch=st.integers(1, 4),
    )
    def start(self, transport, queues, prefetch):
        self.workers.append(
            Worker(self.broker, queues, transport, prefetch, acks=False, visibility_timeout=600, delivery_limit=None)
        )

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 2), count=st.integers(1, 3))
    def fetch(self, which, count):
        self.workers[which % len(self.workers)].drain(count, 0.03)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(which=st.integers(0, 2), how=st.sampled_from(["ack", "ack", "reject", "requeue"]))
    def finish(self, which, how):
        holders = [worker for worker in self.workers if worker.held]
        worker = holders[which % len(holders)]
        number, message = worker.held.popitem()
        getattr(message, how)()
        if how != "requeue":
            self.open.discard(number)

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 2))
    def die(self, which):
        worker = self.workers.pop(which % len(self.workers))
        for channel in worker.connection.transport.channels:
            if hasattr(channel, "flush"):
                channel.flush()  # what it finished and did not tell would be done again: allowed, and hard to follow
        held = {str(m.delivery_tag) for w in self.workers for m in w.held.values()}
        waiting = {tag for w in self.workers for tag in getattr(w.channel, "_held", list)()}
        worker.die()
        for tag in self.client.zrange("unacked_index", 0, -1):
            if tag.decode() not in held | waiting:
                self.client.zadd("unacked_index", {tag: 1})

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 2))
    def stop(self, which):
        self.workers.pop(which % len(self.workers)).close()

    @precondition(lambda self: self.workers)
    @rule(which=st.integers(0, 2))
    def restore(self, which):
        worker = self.workers[which % len(self.workers)]
        worker.channel.qos.restore_visible(num=None, interval=1)

    @invariant()
    def every_open_message_is_in_one_place(self):
        for worker in self.workers:
            if hasattr(worker.channel, "flush"):
                if worker.channel._flight is not None:
                    worker.channel._land()
                worker.channel.flush()
        lists = [m for key in self.client.keys("[abc]*") for m in self.client.lrange(key, 0, -1)]
        envelopes = [json.loads(m) for m in lists] + [json.loads(m)[0] for m in self.client.hvals("unacked")]
        found = sorted(json.loads(_body(envelope))["number"] for envelope in envelopes)
        assert found == sorted(self.open)
        # And all that is unacknowledged can be restored
        assert set(self.client.hkeys("unacked")) == set(self.client.zrange("unacked_index", 0, -1))

    def teardown(self):
        for worker in self.workers:
            worker.die()
        expire(self.client)
        with working(self.broker, "abc", prefetch=0, delivery_limit=None) as last:
            got = last.drain(len(self.open))
        assert sorted(got) == sorted(self.open)
        assert self.client.keys("unacked*") == []
        self.client.close()


@pytest_real
def test_in_any_order_of_events_every_message_is_in_exactly_one_place(broker):
    AnyOrder.broker = broker
    run = AnyOrder.TestCase()
    run.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
    run.runTest()

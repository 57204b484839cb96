"""The producer keeps its plan, and says how late it was where it could not."""

import base64
import contextlib
import itertools
import json
import queue
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import redis
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from lab.broker import Broker, own_server
from lab.checks import late_tail
from lab.children import Children
from lab.model import Trial
from lab.stats import quantile
from producer.pacers import Burst, Closed, Constant, Pacer, Poisson, Steps
from producer.publish import BATCH, MOST_IN_PUSH, NotTaken, Parcel, Sender, Sent, publish
from tasks.codecs import CODECS
from tests.fakes import SETUP, FakeBroker, FakeClock, FakeWorkers
from tests.simulator import simulate


def send_all(pacer: Pacer, broker: FakeBroker, *, batch: int = BATCH) -> list[Sent]:
    clock = broker.clock
    return list(publish(pacer, broker.send, batch=batch, now_ns=clock.now_ns, sleep=clock.sleep))


def lags_ms(sent: Sequence[Sent]) -> list[float]:
    return [(s.sent_ns - s.due_ns) / 1e6 for s in sent]


def test_a_fast_broker_gets_every_job_when_it_is_due():
    broker = FakeBroker(FakeClock())
    sent = send_all(Constant(50, 1), broker)
    assert lags_ms(sent) == [0] * 50
    assert broker.batches == [(s.due_ns, [s.seq]) for s in sent]


def test_a_slow_send_makes_jobs_late_but_never_moves_their_due_time():
    # Given a broker that takes 30 ms to accept each job, at 50 jobs a second
    broker = FakeBroker(FakeClock(), cost_s=lambda seqs: 0.03 * len(seqs))
    start_ns = broker.clock.now_ns()
    # When six jobs are published one by one
    sent = send_all(Constant(50, 0.12), broker, batch=1)
    # Then each is due 20 ms after the last, and the producer falls 10 ms further behind each time
    assert [(s.due_ns - start_ns) / 1e6 for s in sent] == [0, 20, 40, 60, 80, 100]
    assert lags_ms(sent) == [0, 10, 20, 30, 40, 50]


def test_jobs_that_fell_due_meanwhile_share_the_next_batch():
    # Given the same slow broker, where a batch costs no more than a job
    broker = FakeBroker(FakeClock(), cost_s=lambda _: 0.03)
    # When jobs may travel together
    sent = send_all(Constant(50, 0.12), broker)
    # Then the producer catches up
    assert [seqs for _, seqs in broker.batches] == [[0], [1], [2, 3], [4], [5]]
    assert lags_ms(sent) == [0, 10, 20, 0, 10, 20]


def test_a_burst_leaves_in_full_batches():
    broker = FakeBroker(FakeClock())
    send_all(Burst(250), broker, batch=100)
    assert [len(seqs) for _, seqs in broker.batches] == [100, 100, 50]


loads = st.one_of(
    st.builds(Constant, st.floats(1, 500), st.floats(0.1, 1)),
    st.builds(Poisson, st.floats(1, 500), st.floats(0.1, 1), st.integers(0, 9)),
    st.builds(Burst, st.integers(1, 300)),
    st.builds(Steps, st.tuples(st.floats(1, 300), st.just(0.0), st.floats(1, 300)), st.floats(0.1, 0.5)),
)
costs = st.lists(st.floats(0, 0.3), min_size=1, max_size=20)


@given(loads, costs, st.integers(1, 50))
def test_whatever_the_broker_does_each_job_leaves_once_in_order_and_not_before_it_is_due(pacer, costs, batch):
    # Given a broker that is now quick and now slow
    waits = itertools.cycle(costs)
    broker = FakeBroker(FakeClock(), cost_s=lambda _: next(waits))
    start_ns = broker.clock.now_ns()
    # When a load is published
    sent = send_all(pacer, broker, batch=batch)
    # Then due times are the plan's alone
    due_ns = [start_ns + round(due * 1e9) for due in pacer.due_s()]
    assert [s.due_ns for s in sent] == due_ns
    # And every job leaves once and in order, in a batch of just what was due, as much of it as there is room for
    assert [s.seq for s in sent] == list(range(pacer.count)) == [seq for _, seqs in broker.batches for seq in seqs]
    for at_ns, seqs in broker.batches:
        assert len(seqs) <= batch
        assert due_ns[seqs[-1]] <= at_ns
        assert len(seqs) == batch or due_ns[seqs[-1] + 1 :][:1] > [at_ns] or seqs[-1] + 1 == pacer.count
        # And what is recorded is the moment at which it was handed over
        assert {sent[seq].sent_ns for seq in seqs} == {at_ns}


STALL_S, RATE_HZ = 1.4, 100


def stalled() -> list[Sent]:
    """What a producer sends in ten seconds when it is stopped once for 1.4 s, as by ^Z, after four."""
    clock = FakeClock()
    broker = FakeBroker(clock, cost_s=lambda seqs: STALL_S if 4 * RATE_HZ in seqs else 0.0)
    return send_all(Constant(RATE_HZ, 10), broker)


def test_a_stall_of_the_producer_is_seen_in_the_lag_of_every_job_it_held_up():
    # Given a producer that stalls; then about stall x rate jobs are late, the first by all of it
    late = [lag for lag in lags_ms(stalled()) if lag > 1]
    assert len(late) == pytest.approx(STALL_S * RATE_HZ, abs=2)
    assert max(late) == pytest.approx(STALL_S * 1e3, abs=11)
    assert sorted(late, reverse=True) == late


def test_latency_from_due_shows_a_stall_that_latency_from_sent_hides():
    """Coordinated omission, as in wrk2's own demonstration: the self test of the whole instrument."""
    # Given workers with room to spare, each job taking 5 ms
    setup = replace(SETUP, job="snooze", args={"ms": 5}, pool="threads", concurrency=200, pacer=Constant(RATE_HZ, 10))
    # When the producer stalls for 1.4 s
    samples = simulate(Trial("stall", setup, 0), sent=stalled()).samples
    from_due, from_sent = samples.latency_s, samples.latency_s - samples.lag_s
    # Then the latency we report has about stall x rate slow jobs
    assert sum(from_due > 0.1) == pytest.approx((STALL_S - 0.1) * RATE_HZ, abs=10)
    assert quantile(from_due, 0.99) > 1.2
    # And the latency that others report has none
    assert quantile(from_sent, 0.99) < 0.1
    assert max(from_sent) < 0.1


def test_a_run_with_a_stalled_producer_is_not_trusted():
    setup = replace(SETUP, job="snooze", args={"ms": 5}, pool="threads", concurrency=200, pacer=Constant(RATE_HZ, 10))
    assert list(late_tail(simulate(Trial("stall", setup, 0), sent=stalled())))
    assert not list(late_tail(simulate(Trial("stall", setup, 0))))


@given(
    clients=st.integers(1, 20),
    size=st.integers(1, 60),
    think_s=st.floats(0, 1),
    service_s=st.lists(st.floats(0.001, 1), min_size=60, max_size=60),
    batch=st.integers(1, 25),
)
def test_a_closed_load_holds_nothing_back_that_it_waits_for(clients, size, think_s, service_s, batch):
    # Given workers that would be waited for in vain when nothing is under way
    clock = FakeClock()
    workers = FakeWorkers(clock, service_s=lambda seq: service_s[seq])
    # When clients send until the load is made
    sent = list(
        publish(
            Closed(clients, size, think_s),
            workers.send,
            ended_s=workers.ends_s(),
            batch=batch,
            now_ns=clock.now_ns,
            sleep=clock.sleep,
        )
    )
    # Then it is made, and there was never more under way than clients
    assert [s.seq for s in sent] == list(range(size))
    assert workers.most_under_way <= clients
    # And no job left before its client had ended its thinking
    assert all(s.sent_ns >= s.due_ns for s in sent)


def test_closed_clients_keep_their_pace_with_the_workers():
    # Given two clients without a thought and jobs of 100 ms
    clock = FakeClock()
    workers = FakeWorkers(clock, service_s=lambda _: 0.1)
    pacer = Closed(clients=2, size=6)
    sent = list(publish(pacer, workers.send, ended_s=workers.ends_s(), now_ns=clock.now_ns, sleep=clock.sleep))
    # Then two leave every 100 ms
    assert [(s.sent_ns - workers.start_ns) / 1e6 for s in sent] == [0, 0, 100, 100, 200, 200]


@pytest.mark.parametrize(("rate_hz", "calls"), [(10, 4), (19, 4), (21, 0), (1000, 0)])
def test_the_caller_may_idle_only_before_long_gaps(rate_hz: float, calls: int):
    # Given gaps of 100, 53, 48 and 1 ms between five jobs
    clock, idled = FakeClock(), []
    pacer = Constant(rate_hz, 5 / rate_hz)
    # When the caller asks for idle moments
    list(
        publish(
            pacer, lambda _: None, now_ns=clock.now_ns, sleep=clock.sleep, idle=lambda: idled.append(clock.now_ns())
        )
    )
    # Then it gets one before each gap that is long enough
    assert len(idled) == calls


def test_time_spent_idling_is_not_slept_again():
    clock = FakeClock()
    broker = FakeBroker(clock)
    sent = publish(Constant(10, 1), broker.send, now_ns=clock.now_ns, sleep=clock.sleep, idle=lambda: clock.sleep(0.04))
    assert lags_ms(list(sent)) == [0] * 10


def test_looking_ahead_at_the_plan_does_not_make_the_first_jobs_late():
    # Given a plan whose first look takes a second, as that of a million jobs does
    clock = FakeClock()

    class Elaborate:
        count, looks = 3, 0

        def due_s(self, ended_s=()):  # noqa: ARG002  an open load
            self.looks += 1
            clock.sleep(1.0 if self.looks == 1 else 0.0)
            yield from (0.0, 0.01, 0.02)

    # When it is published; then the look is over before the first job is due
    sent = publish(Elaborate(), lambda _: None, now_ns=clock.now_ns, sleep=clock.sleep)
    assert lags_ms(list(sent)) == [0, 0, 0]


def test_when_a_batch_had_been_encoded_goes_with_each_job_of_it():
    # Given a sender that encodes for 2 ms, then waits for its broker for 3 ms
    clock = FakeClock()

    def send(_: Sequence[int]) -> int:
        clock.sleep(0.002)
        encoded_ns = clock.now_ns()
        clock.sleep(0.003)
        return encoded_ns

    sent = list(publish(Burst(5), send, batch=3, now_ns=clock.now_ns, sleep=clock.sleep))
    # Then both are seen apart
    assert [(s.encoded_ns - s.sent_ns, s.taken_ns - s.encoded_ns) for s in sent] == [(2_000_000, 3_000_000)] * 5
    # And nothing is made up where nobody says so
    silent = publish(Burst(2), lambda _: None, now_ns=clock.now_ns, sleep=clock.sleep)
    assert [s.encoded_ns for s in silent] == [0, 0]


@pytest.fixture
def app() -> Iterator[Celery]:
    """A Celery whose broker is a dictionary of this process."""
    with Celery("sidestep-test", broker="memory://", set_as_current=False) as app:
        yield app


def taken(app: Celery, name: str) -> list[Any]:
    """The messages that lie in the queue, in order."""
    found = []
    with app.connection_for_read() as connection, connection.SimpleQueue(name) as simple:
        while True:
            try:
                found.append(simple.get(block=False))
            except queue.Empty:
                return found
            found[-1].ack()


def test_each_parcel_reaches_its_own_queue_as_a_job_that_any_worker_of_the_app_takes(app: Celery):
    # Given jobs of two kinds for two queues
    parcels = [
        Parcel("id-0", "sidestep.spin", "test-own", {"loops": 5}),
        Parcel("id-1", "sidestep.echo", "test-apart", {"payload": "ä"}),
        Parcel("id-2", "sidestep.spin", "test-own", {"loops": 6}),
    ]
    sender = Sender(app, parcels.__getitem__)
    sender.prepare("test-own", "test-apart")
    assert taken(app, "test-own") == []
    # When they are sent, the last two in one batch
    sender([0])
    sender([1, 2])
    sender.close()
    # Then each lies where it belongs, in order, with its id, its name and its arguments
    own, apart = taken(app, "test-own"), taken(app, "test-apart")
    assert [(m.headers["id"], m.headers["task"], m.payload[1]) for m in own] == [
        ("id-0", "sidestep.spin", {"loops": 5}),
        ("id-2", "sidestep.spin", {"loops": 6}),
    ]
    assert [(m.headers["id"], m.headers["task"], m.payload[1]) for m in apart] == [
        ("id-1", "sidestep.echo", {"payload": "ä"})
    ]
    # And nobody stores its result
    assert all(m.headers["ignore_result"] for m in (*own, *apart))


def test_a_job_is_made_when_it_is_sent_and_not_before(app: Celery):
    # Given jobs that are made by number; then preparing makes one to warm up, and sending makes just what is sent
    made: list[int] = []

    def parcel(seq: int) -> Parcel:
        made.append(seq)
        return Parcel(f"id-{seq}", "sidestep.noop", "test-lazy", {})

    sender = Sender(app, parcel)
    sender.prepare("test-lazy")
    assert made == [0]
    sender([7, 9])
    sender([])
    sender.close()
    assert made == [0, 7, 9]
    assert [m.headers["id"] for m in taken(app, "test-lazy")] == ["id-7", "id-9"]


def test_without_redis_the_messages_go_one_by_one_and_have_no_moment_of_having_been_encoded(app: Celery):
    sender = Sender(app, lambda seq: Parcel(f"id-{seq}", "sidestep.noop", "test-slow", {}, priority=3))
    assert sender.path == "batch: the broker is memory, not Redis"
    assert sender([0]) is None
    (message,) = taken(app, "test-slow")
    assert message.properties["priority"] == 3
    sender.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """A server that tests may set as they like; each sets it back."""
    with Children() as children, own_server(children) as server:
        yield server


@pytest.fixture
def client(broker: Broker) -> Iterator[redis.Redis]:
    with contextlib.closing(redis.Redis.from_url(broker.url)) as one:
        yield one
        one.flushdb()


@contextlib.contextmanager
def redis_sender(broker: Broker, *, size: int = 0, queues: Sequence[str] = ("q",), **options: Any) -> Iterator[Sender]:
    """Sends jobs with a text of this size, to these queues in turn."""
    with Celery("test", broker=broker.url, set_as_current=False) as app:
        sender = Sender(
            app,
            lambda seq: Parcel(f"id-{seq}", "test", queues[seq % len(queues)], {"text": "x" * size}),
            **options,
        )
        with contextlib.closing(sender):
            yield sender


def held_ids(client: redis.Redis, name: str) -> list[str]:
    """The ids in the queue, the next to be served first."""
    return [json.loads(one)["headers"]["id"] for one in reversed(client.lrange(name, 0, -1))]


@pytest.mark.real
@pytest.mark.parametrize("template", [True, False])
def test_each_way_puts_every_job_once_and_in_order_into_its_own_list(broker, client, template):
    # Given more jobs at once than one push may hold, for two queues
    count = 2 * MOST_IN_PUSH + 501
    with redis_sender(broker, queues=("odd %b", "even"), template=template) as sender:
        sender.prepare("odd %b", "even")
        assert sender.path == ("template" if template else "batch: it was asked for")
        begun_ns = time.monotonic_ns()
        encoded_ns = sender(range(count))
        assert begun_ns < encoded_ns < time.monotonic_ns()
    assert held_ids(client, "odd %b") == [f"id-{seq}" for seq in range(0, count, 2)]
    assert held_ids(client, "even") == [f"id-{seq}" for seq in range(1, count, 2)]


@pytest.mark.real
def test_what_a_template_sends_takes_one_command_for_each_list(broker, client):
    def pushes() -> int:
        return int(client.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"])

    with redis_sender(broker, queues=("a", "b")) as sender:
        sender.prepare("a", "b")
        before = pushes()
        sender(range(50))
        assert pushes() - before == 2


@pytest.mark.real
@pytest.mark.parametrize("size", [10, 3 << 20])
def test_large_messages_arrive_whole(broker, client, size):
    with redis_sender(broker, size=size) as sender:
        sender(range(9))
    assert held_ids(client, "q") == [f"id-{seq}" for seq in range(9)]
    sizes = {client.strlen("copy") for one in client.lrange("q", 0, -1) if client.set("copy", one)}
    assert len(sizes) == 1
    assert sizes.pop() > size


@contextlib.contextmanager
def setting(client: redis.Redis, name: str, value: object) -> Iterator[None]:
    before = client.config_get(name)[name]
    client.config_set(name, value)
    try:
        yield
    finally:
        client.config_set(name, before)


@pytest.mark.real
@pytest.mark.parametrize("template", [True, False])
def test_a_broker_without_memory_is_named_with_what_to_do(broker, client, template):
    with redis_sender(broker, template=template) as sender:
        sender.prepare("q")
        with (
            setting(client, "maxmemory", 1),
            pytest.raises(NotTaken, match=r"'maxmemory'.*raise its maxmemory") as refused,
        ):
            sender(range(7))
        assert refused.value.count == 7
        assert refused.value.taken == (0 if template else None)
        assert "\n" not in str(refused.value)
        # And when it has some again, so do we
        sender([7])
    assert held_ids(client, "q") == ["id-7"]


@pytest.mark.real
def test_it_is_said_how_many_were_taken_when_one_list_refuses(broker, client):
    with redis_sender(broker, queues=("free", "taken", "free")) as sender:
        sender.prepare("free", "taken")
        # Given a queue whose key somebody else has used since
        client.set("taken", "by something else")
        with pytest.raises(NotTaken, match=r"the broker took 6 of 9 messages: .*choose another queue") as refused:
            sender(range(9))
        assert (refused.value.taken, refused.value.count) == (6, 9)
    assert client.llen("free") == 6


@pytest.mark.real
def test_a_replica_is_named_with_what_to_do(broker, client):
    with redis_sender(broker) as sender:
        sender.prepare("q")
        client.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(NotTaken, match="name the primary") as refused:
                sender([0])
        finally:
            client.replicaof("NO", "ONE")
        assert refused.value.taken == 0


@pytest.mark.real
@pytest.mark.parametrize("template", [True, False])
def test_positional_arguments_go_through(broker, client, template):
    with Celery("t", broker=broker.url, set_as_current=False) as app:
        parcel = Parcel("id", "test", "q", {"named": 2}, positional=(1, "one"))
        sender = Sender(app, lambda _: parcel, template=template)
        with contextlib.closing(sender):
            sender([0])
            assert sender.path.startswith("template" if template else "batch")
    message = json.loads(client.lrange("q", 0, -1)[0])
    assert json.loads(base64.b64decode(message["body"]))[:2] == [[1, "one"], {"named": 2}]
    assert message["headers"]["argsrepr"] == "(1, 'one')"


@pytest.mark.real
@pytest.mark.parametrize("template", [True, False])
def test_a_message_over_the_brokers_limit_is_not_sent_and_neither_are_its_neighbours(broker, client, template):
    # Given a broker that takes no more than 1 MiB
    with setting(client, "proto-max-bulk-len", 1 << 20), Celery("t", broker=broker.url, set_as_current=False) as app:
        sizes = [10, 2 << 20, 10]
        sender = Sender(
            app, lambda seq: Parcel(f"id-{seq}", "test", "q", {"text": "x" * sizes[seq]}), template=template
        )
        with contextlib.closing(sender):
            with pytest.raises(NotTaken, match=r"the broker took 0 of 3.*3 MB is over.*by reference") as refused:
                sender(range(3))
            assert refused.value.taken == 0
            assert client.llen("q") == 0
            sender([0, 2])
    assert client.llen("q") == 2


@pytest.mark.real
def test_nothing_is_sent_of_a_batch_in_which_one_cannot_be_encoded(broker, client):
    with Celery("t", broker=broker.url, set_as_current=False) as app:
        sender = Sender(app, lambda seq: Parcel("id", "test", "q", {"x": object() if seq == 2 else seq}))
        with contextlib.closing(sender):
            with pytest.raises(Exception, match="not JSON serializable"):
                sender(range(4))
            assert client.llen("q") == 0


@pytest.mark.real
@pytest.mark.parametrize("template", [True, False])
def test_a_broker_that_goes_away_is_said_and_one_that_cut_the_connection_is_used(template):
    with Children() as children, own_server(children) as other, redis_sender(other, template=template) as sender:
        sender.prepare("q")
        # Given a connection that the server cut
        with contextlib.closing(redis.Redis.from_url(other.url)) as admin:
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            sender([0])  # found dead before it was used, and made anew
            assert admin.llen("q") == 1
            admin.shutdown(nosave=True)
        with pytest.raises((NotTaken, redis.ConnectionError)):
            sender([1])


@pytest.mark.real
def test_the_moment_of_encoding_lies_between_handing_over_and_being_taken(broker, client):
    with redis_sender(broker, size=100_000) as sender:
        sender.prepare("q")
        sent = list(publish(Burst(12), sender, batch=4))
    for s in sent:
        assert s.due_ns <= s.sent_ns < s.encoded_ns < s.taken_ns
    assert all(a.taken_ns <= b.sent_ns for a, b in pairwise(sent[::4]))
    assert client.llen("q") == 12


@pytest.mark.real
def test_the_producer_says_in_one_line_which_codec_cannot_carry_a_payload_and_sends_nothing(broker, client):
    client.flushdb()
    command = [sys.executable, "-m", "producer.cli", "--job", "echo", "--rate", "20", "--for", "0.5s"]
    command += ["--payload", "bytes:1kB", "--broker", broker.url]
    done = {}
    for codec in ("msgspec-json", "orjson", "json"):
        if not CODECS[codec].missing:
            done[codec] = subprocess.run([*command, "--codec", codec], capture_output=True, text=True, check=False)
    refused = done.get("orjson")
    if refused:
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
        assert "codec 'orjson' cannot carry these arguments" in refused.stderr
    assert done["json"].returncode == 0
    assert client.llen("sidestep:jobs") == 10 * sum(one.returncode == 0 for one in done.values())

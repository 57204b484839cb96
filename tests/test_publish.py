"""The producer keeps its plan, and says how late it was where it could not."""

import itertools
import queue
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from lab.checks import late_producer
from lab.model import Trial
from lab.stats import quantile
from producer.pacers import Burst, Closed, Constant, Pacer, Poisson, Steps
from producer.publish import BATCH, Parcel, Sender, Sent, publish
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
    assert list(late_producer(simulate(Trial("stall", setup, 0), sent=stalled())))
    assert not list(late_producer(simulate(Trial("stall", setup, 0))))


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

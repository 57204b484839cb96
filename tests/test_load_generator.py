"""The generator and the books: on time, in constant memory, and no job unaccounted for."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.load import idents
from lab.load.apps import Address
from lab.load.arguments import Arguments
from lab.load.books import DETAILED_TICKS, Bits, Books, Ends
from lab.load.generator import BATCH, Log, Order, Producer, feed_of, issued
from lab.load.hdr import HIGHEST_NS, Histogram, Layout, Recorder, decoded, of
from lab.load.model import Arrivals, Drawn, Kind, Made, Numbered, Piece, Scenario, Stage
from lab.load.run import planned_end_s, producers_for
from lab.load.watch import SILENT_S, Events, Folder, Marks
from tasks.jobs import JOBS
from tasks.registry import checksum
from tasks.timeline import CAPACITY, Tape, end
from tests.fakes import FakeClock

# ---------------------------------------------------------------- histograms


def exact_quantile(values: Sequence[int], q: float) -> int:
    return sorted(values)[max(1, math.ceil(round(q * len(values), 6))) - 1]


durations = st.lists(st.integers(0, 10**13), min_size=1, max_size=300)


@given(durations, st.floats(0, 1))
def test_a_percentile_agrees_with_an_exact_sort_to_three_digits(values: list[int], q: float):
    exact, told = exact_quantile(values, q), of(values).quantile_s(q) * 1e9
    # Never below the exact one, and above it by at most one part in a thousand
    assert exact - 1e-6 <= told <= exact * 1.001 + 1


def test_percentiles_of_many_real_looking_latencies_agree_with_an_exact_sort():
    values = np.random.default_rng(1).lognormal(16, 1.5, 200_000).astype(np.int64)
    histogram = of(values)
    for q in (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0):
        exact = exact_quantile(values.tolist(), q)
        assert exact <= round(histogram.quantile_s(q) * 1e9) <= exact * 1.001
    assert histogram.mean_s == pytest.approx(values.mean() / 1e9, rel=1e-12)
    assert histogram.moment_s2() == pytest.approx((values.astype(float) ** 2).mean() / 1e18, rel=1e-3)
    assert (histogram.count, histogram.min_ns, histogram.max_ns) == (200_000, values.min(), values.max())


@given(durations, durations, st.lists(st.integers(0, 10**13), max_size=50))
def test_two_merged_histograms_equal_one_over_both(a: list[int], b: list[int], c: list[int]):
    assert of(a).merged(of(b), of(c)) == of(a + b + c) == of(c).merged(of(b).merged(of(a)))
    recorder = Recorder()
    recorder.record(a)
    recorder.add(of(b))
    recorder.record(np.array(c, dtype=np.int64))
    assert recorder.value == of(a + b + c)
    assert of(a).coarse() == of(a, 2)


@given(st.integers(1, 5), st.integers(0, HIGHEST_NS))
def test_a_bucket_is_never_wider_than_its_digits_allow(digits: int, value: int):
    spread = Layout(digits)
    bucket = spread.buckets(np.array([value]))
    low, high = int(spread.lows_ns(bucket)[0]), int(spread.highs_ns(bucket)[0])
    assert low <= value <= high
    assert high - low <= value / 10**digits


def test_what_is_longer_than_the_longest_bucket_keeps_its_exact_maximum():
    histogram = of([1, 3 * HIGHEST_NS])
    assert histogram.quantile_s(1) == histogram.max_s == 3 * HIGHEST_NS / 1e9
    assert of([-5]).max_ns == 0


def test_nothing_has_no_percentile():
    empty = Histogram()
    assert math.isnan(empty.quantile_s(0.5))
    assert math.isnan(empty.mean_s)
    assert empty.merged(of([5])) == of([5])
    assert decoded(empty.encoded()) == empty


@given(durations)
def test_an_encoded_histogram_comes_back_as_it_was(values: list[int]):
    held = of(values)
    again = decoded(held.encoded(), min_ns=held.min_ns, max_ns=held.max_ns, sum_ns=held.sum_ns)
    assert again == held


def test_another_reader_reads_the_same_from_what_we_encode():
    # Given the histogram library of others, and latencies
    theirs = pytest.importorskip("hdrh.histogram", reason="pip install hdrhistogram").HdrHistogram
    values = np.random.default_rng(2).lognormal(16, 2, 5000).astype(np.int64)
    # When it reads ours, and we read its own
    read = theirs.decode(of(values).encoded())
    own = theirs(1, HIGHEST_NS, 3)
    for value in values.tolist():
        own.record_value(value)
    # Then both say the same of every percentile
    assert read.get_total_count() == own.get_total_count() == len(values)
    ours = decoded(own.encode().decode())
    for q in (0.1, 0.5, 0.9, 0.99, 0.999):
        told = of(values).quantile_s(q) * 1e9
        assert own.get_value_at_percentile(q * 100) == read.get_value_at_percentile(q * 100)
        assert read.get_value_at_percentile(q * 100) == pytest.approx(told, rel=1e-3)
        assert ours.quantile_s(q) * 1e9 == pytest.approx(told, rel=1e-9)


@pytest.mark.parametrize("text", ["", "abc", "AAAA", of([1, 2, 3]).encoded()[:-8], of([5]).encoded()[::-1]])
def test_what_is_no_histogram_is_refused(text: str):
    with pytest.raises(ValueError, match=r"\w"):
        decoded(text)


# ---------------------------------------------------------------- ids


@given(
    st.integers(0, 2**idents.TAG_BITS - 1),
    st.integers(0, idents.MOST_KINDS - 1),
    st.integers(0, idents.MOST_JOBS - 1),
    st.integers(0, 2**idents.DUE_BITS - 1),
    st.integers(0, 10**9),
)
def test_an_id_says_all_that_was_put_into_it(tag: int, kind: int, seq: int, due_us: int, lag_us: int):
    name = idents.job_id(tag, kind, seq, due_us, lag_us)
    assert [len(part) for part in name.split("-")] == [8, 4, 4, 4, 12]
    high, low = idents.halves(name) or (0, 0)
    said = idents.read(np.array([high], dtype=np.uint64), np.array([low], dtype=np.uint64))
    lag_us = min(lag_us, idents.MOST_LAG_US)
    assert [int(column[0]) for column in said] == [tag, kind, seq, due_us * 1000, (due_us + lag_us) * 1000]


@pytest.mark.parametrize("text", ["", "hello", "x" * 32, "0" * 31])
def test_what_is_no_id_is_nobodys(text: str):
    assert idents.halves(text) is None


# ---------------------------------------------------------------- producers


def scenario(*planned: Stage, kinds: Sequence[Kind] = (), count: int | None = None, seed: int = 1) -> Scenario:
    return Scenario(
        "made-up",
        tuple(kinds) or (Kind("a", "sidestep.noop", "noop", 3.0), Kind("b", "sidestep.noop", "noop", 1.0)),
        planned,
        count=count,
        seed=seed,
    )


def order(asked: Scenario, *, index: int = 0, producers: int = 1) -> Order:
    return Order(asked, Address("redis://127.0.0.1:1/0"), 5, {}, (0.5, 60.0), 1.0, index, producers)


class Sink:
    """Takes batches, each in so many seconds, and remembers what the jobs' ids say."""

    def __init__(self, clock: FakeClock, cost_s: Callable[[float], float] = lambda _: 0.0) -> None:
        self.clock, self.cost_s, self.start_ns = clock, cost_s, clock.now_ns()
        self.high: list[int] = []
        self.low: list[int] = []
        self.batches: list[int] = []
        self.said: list[dict] = []

    def run(self, told: Order) -> idents.Idents:
        feed = feed_of(told)

        def send(places: range) -> None:
            for place in places:
                high, low = idents.halves(feed.parcel(place).id) or (0, 0)
                self.high.append(high)
                self.low.append(low)
            self.batches.append(len(places))
            self.clock.sleep(self.cost_s((self.clock.now_ns() - self.start_ns) / 1e9))

        Producer(told, feed, send, self.said.append, now_ns=self.clock.now_ns, sleep=self.clock.sleep).run(
            self.start_ns
        )
        return idents.read(np.array(self.high, dtype=np.uint64), np.array(self.low, dtype=np.uint64))


STEADY = Stage("constant", 3, (Piece(3, 100, 100),))


def test_every_job_is_sent_when_it_is_due():
    # Given a broker that takes no time
    sink = Sink(FakeClock())
    # When three seconds are sent
    sent = sink.run(order(scenario(STEADY)))
    # Then each job was sent at its moment, alone, and is of some kind
    assert sent.seq.tolist() == list(range(300))
    assert sent.due_ns.tolist() == [10_000_000 * seq for seq in range(300)]
    assert (sent.sent_ns == sent.due_ns).all()
    assert set(sink.batches) == {1}
    assert set(sent.kind.tolist()) == {0, 1}
    assert set(sent.tag.tolist()) == {5}


def test_a_broker_that_stalls_makes_jobs_late_and_moves_no_due_time():
    # Given a broker that stands still for a second from the first second on
    sink = Sink(FakeClock(), lambda at_s: 1.0 if 1.0 <= at_s < 1.01 else 0.0)
    # When three seconds are sent
    sent = sink.run(order(scenario(STEADY)))
    # Then no job has another due time, and those due in that second were sent at its end
    assert sent.due_ns.tolist() == [10_000_000 * seq for seq in range(300)]
    lag_ms = (sent.sent_ns - sent.due_ns) / 1e6
    assert lag_ms[:101].tolist() == [0] * 101
    assert lag_ms[101:201].tolist() == [1000 - 10 * n for n in range(1, 101)]
    assert lag_ms[201:].tolist() == [0] * 99
    # And what the producer says of itself is the same, but that the job it stood still with was not taken before
    lag = of([])
    for line in sink.said:
        said = issued(json.loads(json.dumps(line)))
        lag = lag.merged(said.lag, said.lag_measured)
    late_ns = sent.sent_ns - sent.due_ns
    late_ns[100] += 10**9
    assert lag == of(late_ns)


def test_jobs_are_late_until_the_broker_has_taken_their_batch_and_those_of_users_are_told_apart():
    # Given a broker that takes 3 ms for each write
    sink = Sink(FakeClock(), lambda _: 0.003)
    asked = scenario(Stage("constant", 2, (Piece(2, 100, 100),)))
    sink.run(order(asked))
    # Then each job is 3 ms late although it was begun when it was due
    heard = [issued(json.loads(json.dumps(line))) for line in sink.said]
    lag = of([]).merged(*(one.lag_measured for one in heard))
    assert lag.min_s == lag.max_s == 0.003
    assert not any(len(one.lag_closed) for one in heard)
    # And jobs of a closed stage are in a histogram of their own
    log = Log(1, 10**9, (0, 10**10), is_closed=True)
    log.batch([0], [0], 0, 5_000_000)
    said = issued(json.loads(json.dumps(log.line())))
    assert (len(said.lag_closed), len(said.lag_measured)) == (1, 0)
    books = Books(["k"], start_ns=0, window_s=(0.0, 10.0))
    books.issued(said)
    assert (len(books.lag.value), len(books.lag_open.value)) == (1, 0)


def test_what_a_producer_says_of_its_ticks_adds_up():
    sink = Sink(FakeClock(), lambda at_s: 0.4 if 0.9 <= at_s < 0.91 else 0.0)
    sent = sink.run(order(scenario(STEADY)))
    heard = [issued(json.loads(json.dumps(line))) for line in sink.said]
    # Each tick says how many were sent in it, by kind; and for how many of each earlier tick they were due
    due: dict[int, int] = {}
    for one in heard:
        for tick, counts in one.due.items():
            due[tick] = due.get(tick, 0) + int(counts.sum())
    assert due == {0: 100, 1: 100, 2: 100}
    by_tick = {one.tick: int(one.sent.sum()) for one in heard}
    assert by_tick == {tick: int((sent.sent_ns // 10**9 == tick).sum()) for tick in range(3)}
    # What was due before half a second is not measured
    assert sum(int(one.measured.sum()) for one in heard) == 250
    assert sum(len(one.lag_measured) for one in heard) == 250
    assert sink.said[-1]["end"]


@pytest.mark.parametrize("producers", [2, 3])
def test_several_producers_share_one_schedule(producers: int):
    # Given arrivals at random of two kinds
    asked = scenario(Stage("poisson", 3, (Piece(3, 200, 200),), Arrivals.RANDOM), STEADY, count=800)
    whole = Sink(FakeClock()).run(order(asked))
    # When several producers send them
    parts = [Sink(FakeClock()).run(order(asked, index=i, producers=producers)) for i in range(producers)]
    # Then together they send each job once, when one alone would have, of the same kind
    rows = sorted(
        zip(*(np.concatenate([getattr(p, n) for p in parts]).tolist() for n in ("seq", "kind", "due_ns")), strict=True)
    )
    assert rows == list(zip(whole.seq.tolist(), whole.kind.tolist(), whole.due_ns.tolist(), strict=True))
    assert max(len(p.seq) for p in parts) - min(len(p.seq) for p in parts) <= 1


def test_a_late_producer_catches_up_in_batches():
    sink = Sink(FakeClock(), lambda at_s: 2.0 if at_s < 0.01 else 0.0)
    sink.run(order(scenario(Stage("constant", 3, (Piece(3, 1000, 1000),)))))
    assert max(sink.batches) == BATCH
    assert sum(sink.batches) == 3000


def test_the_plan_ends_with_its_last_stage_or_its_count():
    assert planned_end_s(scenario(STEADY, STEADY)) == 6
    assert planned_end_s(scenario(STEADY, STEADY, count=50)) == pytest.approx(0.5)
    assert planned_end_s(scenario(STEADY, count=5000)) == 3
    assert producers_for(replace(scenario(STEADY), producers=3)) == 3
    assert producers_for(scenario(Stage("closed", 3, users=2))) == 1


def test_arguments_are_drawn_alike_by_whoever_asks():
    kind = Kind(
        "k",
        "sidestep.mixed",
        "mixed",
        args={
            "io_ms": Drawn("uniform", (1.0, 9.0)),
            "n": Numbered(),
            "p": Made("records", 500),
            "plain": (1, {"a": 2}),
        },
        work_ms=Drawn("exponential", (2.0,)),
    )
    one, other = (Arguments(kind, seed=3, units_per_ms=1000.0) for _ in range(2))
    assert [one.of(seq) for seq in range(50)] == [other.of(seq) for seq in range(50)]
    assert one.of(7)["n"] == 7
    assert one.of(7)["plain"] == [1, {"a": 2}]
    assert not one.are_the_same
    json.dumps(one.of(3))
    other_seed = Arguments(kind, seed=4, units_per_ms=1000.0)
    assert [one.of(seq)["io_ms"] for seq in range(5)] != [other_seed.of(seq)["io_ms"] for seq in range(5)]


def test_what_a_job_must_return_is_known_where_it_is_cheap_to_know():
    work = Arguments(
        Kind("k", "sidestep.spin", "spin", work_ms=Drawn("exponential", (2.0,))), seed=3, units_per_ms=100.0
    )
    assert work.can_be_checked
    assert work.expected(4) == checksum(JOBS["spin"].run(**work.of(4)))
    # Hashing once more what each worker hashed would cost as much as the load itself
    hashed = Kind("k", "sidestep.digest", "digest", work_ms=Drawn("exponential", (2.0,)))
    assert not Arguments(hashed, seed=3, units_per_ms=1.0).can_be_checked
    assert Arguments(replace(hashed, work_ms=2.0), seed=3, units_per_ms=1.0).can_be_checked
    assert not Arguments(Kind("k", "shop.resize"), seed=3).can_be_checked


# ---------------------------------------------------------------- books


def test_bits_remember_any_number():
    bits = Bits()
    bits.set(np.array([0, 9, 9, 8_500_000]))
    assert bits.of(np.array([0, 1, 9, 10, 8_500_000, 99_000_000])).tolist() == [True, False, True, False, True, False]


def ends(rows: Sequence[tuple[int, int, bool]], *, kind: int = 0, sums: int = -1) -> Ends:
    """Attempts: job number, end in ms, whether it went well; each began a millisecond before, and was due at 0."""
    seq = np.array([row[0] for row in rows], dtype=np.int64)
    ended = np.array([row[1] for row in rows], dtype=np.int64) * 1_000_000
    zeros = np.zeros(len(rows), dtype=np.int64)
    ids = idents.Idents(zeros, zeros + kind, seq, zeros, zeros + 500_000)
    good = np.array([row[2] for row in rows], dtype=np.bool_)
    return Ends(ids, ended - 1_000_000, ended, good, zeros + sums, ["w 1"], zeros)


class Naive:
    """The same account, kept job by job."""

    def __init__(self) -> None:
        self.done: dict[int, int] = {}
        self.failed: set[int] = set()
        self.again: set[int] = set()
        self.failing: set[int] = set()
        self.retried = 0

    def end(self, seq: int, at_ms: int, good: bool) -> None:
        if seq in self.done:
            self.again.add(seq)
            return
        if seq in self.failing:
            self.retried += 1
        if good:
            self.done[seq] = at_ms
            self.failing.discard(seq)
        else:
            self.failing.add(seq)


@given(st.lists(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=12), max_size=6))
def test_the_account_in_arrays_is_the_account_job_by_job(batches: list[list[tuple[int, bool]]]):
    # Given attempts that end one after the other, in batches, some again and again
    books, naive, at_ms = Books(["k"], start_ns=0, window_s=(0.0, 100.0)), Naive(), 10
    for batch in batches:
        rows = []
        for seq, good in batch:
            at_ms += 1
            rows.append((seq, at_ms, good))
            naive.end(seq, at_ms, good)
        # The order within a batch is no matter: their ends say it
        books.ended(ends(random.Random(1).sample(rows, len(rows))))
    # Then both accounts agree
    kind = books.kinds[0]
    assert kind.done == len(naive.done)
    assert kind.failed == len(naive.failing)
    assert kind.duplicated == len(naive.again)
    assert kind.retried == naive.retried
    assert kind.latency.value == of([ms * 1_000_000 for ms in naive.done.values()])
    assert kind.uncorrected.value == of([max(0, ms * 1_000_000 - 500_000) for ms in naive.done.values()])
    assert kind.service.value == of([1_000_000] * len(naive.done))
    assert sum(tick.whole.done for tick in books.ticks()) == len(naive.done)


def test_a_wrong_result_is_a_failure_and_says_so():
    books = Books(["k"], start_ns=0, window_s=(0.0, 1.0), expected={0: lambda seq: 10 + seq})
    books.ended(ends([(1, 5, True)], sums=11))
    books.ended(ends([(2, 5, True)], sums=11))
    assert (books.kinds[0].done, books.kinds[0].failed, books.kinds[0].wrong) == (1, 1, 1)


def test_latency_by_kind_and_worker_is_known_of_the_last_ticks_and_kept_of_none():
    books = Books(["a", "b"], start_ns=0, window_s=(0.0, 100.0))
    # Given jobs of two kinds that end in the first second, and one of each second for ten more
    books.ended(ends([(0, 100, True), (1, 200, True)]))
    books.ended(ends([(2, 400, True)], kind=1))
    first = books.tick(0, in_flight=0)
    assert {name: len(one) for name, one in first.kind_latency.items()} == {"a": 2, "b": 1}
    assert first.worker_latency["w 1"].merged() == first.latency
    for second in range(1, 11):
        books.ended(ends([(10 + second, 1000 * second + 500, True)]))
    # Then the first is forgotten, the newest is not, and a day of them would fill no memory
    assert books.tick(0, in_flight=0).kind_latency == {}
    assert len(books.tick(10, in_flight=0).kind_latency["a"]) == 1
    assert sum(bool(tick.worker_latency) for tick in books.ticks()) <= DETAILED_TICKS
    assert len(books.tick(0, in_flight=0).latency) == 3


def test_warm_up_counts_in_the_ledger_and_in_no_figure():
    # Given jobs due at 0, in the warm-up of a second
    books = Books(["k"], start_ns=0, window_s=(1.0, 2.0))
    books.ended(ends([(1, 500, True), (2, 1500, True)]))
    # Then they are done, and their latency is in no histogram; what ended in the window is throughput
    assert books.done == 2
    assert len(books.spans.latency) == 0
    assert books.kinds[0].done_measured == 1
    assert [tick.phase for tick in books.ticks()] == ["warm-up", "measured"]


def test_latency_of_a_postponed_job_counts_from_when_it_may_run():
    books = Books(["k"], start_ns=0, window_s=(0.0, 9.0), countdowns_s=[2.0])
    books.ended(ends([(1, 2300, True)]))
    assert books.spans.latency == of([300_000_000])


def test_a_job_with_an_eta_is_due_at_its_eta_or_later():
    # Given a job due at 0, of a kind that may not run before the second second, or before a moment long past
    for eta_ns, latency_ms in ((2_000_000_000, 300), (-5, 2300)):
        books = Books(["k"], start_ns=0, window_s=(0.0, 9.0), etas_ns=[eta_ns])
        books.ended(ends([(1, 2300, True)]))
        # Then its latency counts from whichever is later
        assert books.spans.latency == of([latency_ms * 1_000_000])


def test_ends_before_their_jobs_were_sent_are_counted_and_so_is_how_early_a_worker_begins():
    # Given jobs that were sent 0.5 ms late: one whose worker's clock is a little behind, and two where it is far behind
    books = Books(["k"], start_ns=10**9, window_s=(0.0, 9.0))
    late = ends([(1, 1000, True), (2, 700, True), (3, 400, True)])
    # When the books take them in
    books.ended(late)
    # Then their latency can only be 0, and that is said of what no clock's error explains
    assert books.spans.latency.max_s == 0
    assert books.early == 2
    assert books.workers["w 1"].begun_ns == -601_500_000


class NoBroker:
    """An app that connects to nobody."""

    def connection_for_read(self) -> None:
        raise OSError("there is nobody")


def test_events_say_how_far_a_workers_clock_may_be(monkeypatch: pytest.MonkeyPatch):
    # Given a watch of events, without a broker
    watch = Events(NoBroker())
    watch.begin(5, ["k"])
    told = {"type": "task-succeeded", "uuid": idents.job_id(5, 0, 1, 0, 0), "runtime": 1}
    # When workers say when a job ended, one of them with a clock that is ten seconds behind
    for host, behind_s in (("near", 0.0), ("far", 10.0), ("far", 20.0)):
        watch._event({**told, "hostname": host, "timestamp": time.time() - behind_s})
    # Then the least of what each took to arrive is known, and the moments are on our clock
    assert watch.heard_s()["far"] == pytest.approx(10, abs=5)
    assert watch.heard_s()["near"] < 5
    ended = np.concatenate([seen.ended_ns for seen in watch.ended()]) / 1e9
    assert np.allclose(time.monotonic() - ended, [0, 10, 20], atol=5)
    # And the time of day of this machine may be set in between: its difference to the other clock is read each time
    set_back_s = 1000
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - set_back_s * 10**9)
    watch._event({**told, "hostname": "near", "timestamp": time.time_ns() / 1e9})
    ended = np.concatenate([seen.ended_ns for seen in watch.ended()]) / 1e9
    assert np.allclose(time.monotonic() - ended, [0], atol=5)


def test_a_worker_of_somebody_else_that_falls_silent_or_is_the_last_to_leave_is_missed(monkeypatch: pytest.MonkeyPatch):
    # Given two workers that serve our queues, one that does not, and one that never sends a heartbeat
    watch = Events(NoBroker(), {"a@far", "b@far", "mute@far"})

    def said(kind: str, worker: str) -> None:
        watch._event({"type": kind, "hostname": worker, "timestamp": time.time()})

    for worker in ("a@far", "b@far", "other@far"):
        said("worker-heartbeat", worker)
    assert watch.gone() == ""
    # When one says good-bye, it is no longer expected to be heard of; whoever is not ours never was
    said("worker-offline", "a@far")
    assert watch.left() == ["a@far"]
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + SILENT_S + 1)
    # Then the other is missed, unless it gives any sign, if only of a job
    assert watch.gone().startswith("b@far has sent no heartbeat for 31 s")
    said("task-received", "b@far")
    assert watch.gone() == ""
    # And so is the last that leaves; one that comes back is there
    for worker in ("b@far", "mute@far"):
        said("worker-offline", worker)
    assert "the last worker" in watch.gone()
    said("worker-online", "a@far")
    assert watch.gone() == ""


def test_a_worker_that_sends_no_heartbeat_in_the_midst_of_a_job_is_not_missed_then(monkeypatch: pytest.MonkeyPatch):
    # Given a worker that does its jobs in the thread that sends its heartbeats, and one that does not
    watch = Events(NoBroker(), {"solo@far", "threads@far"})

    def said(kind: str, worker: str, job: str = "") -> None:
        watch._event({"type": kind, "hostname": worker, "uuid": job, "timestamp": time.time()})

    for worker in ("solo@far", "threads@far"):
        said("worker-heartbeat", worker)
        said("task-started", worker, f"a job of {worker}")
    said("worker-heartbeat", "threads@far")
    # When both fall silent
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + SILENT_S + 1)
    # Then only the one that was heard of while it had a job is missed
    assert watch.gone().startswith("threads@far has sent no heartbeat")
    said("task-succeeded", "threads@far", "a job of threads@far")
    assert watch.gone() == ""
    # And the other too, once it has none
    said("task-succeeded", "solo@far", "a job of solo@far")
    monkeypatch.setattr(time, "monotonic", lambda: real() + 2 * SILENT_S + 2)
    said("worker-heartbeat", "threads@far")
    assert watch.gone().startswith("solo@far has sent no heartbeat")


def test_jobs_of_the_run_that_have_begun_and_not_ended_are_counted_by_their_events():
    watch = Events(NoBroker())
    watch.begin(7, ["k"])
    own, other = idents.job_id(7, 0, 1, 0, 0), idents.job_id(6, 0, 1, 0, 0)
    for job in (own, other, "no-uuid"):
        watch._event({"type": "task-started", "hostname": "w", "uuid": job, "timestamp": time.time()})
    assert watch.under_way() == 1
    watch._event({"type": "task-retried", "hostname": "w", "uuid": own, "timestamp": time.time()})
    assert watch.under_way() == 0


def test_the_books_take_no_more_memory_for_more_jobs():
    # Given books with a hundred thousand jobs
    books = Books(["k"], start_ns=0, window_s=(0.0, 100.0))

    def fill(first: int, count: int) -> None:
        for at in range(first, first + count, 1000):
            books.ended(ends([(seq, 1 + seq % 50, True) for seq in range(at, at + 1000)]))

    import tracemalloc

    fill(0, 100_000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    # When there are three times as many
    fill(100_000, 200_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    # Then they take not even a byte a job more
    assert books.done == 300_000
    assert grown < 200_000


def test_a_full_tape_is_read_to_its_end_and_removed(tmp_path: Path):
    # Given a worker's tape that is full but for some jobs under way, and the run that reads it
    tape, watch = Tape(str(tmp_path), {}), Marks([Folder("solo", tmp_path, tmp_path)])
    watch.begin(5, ("k",))

    def begin(seq: int) -> tuple[Any, ...]:
        name = bytes.fromhex(idents.job_id(5 if seq % 7 else 6, 0, seq, seq, 3).replace("-", ""))
        return tape.begin(name, 1, 100 + seq), name, 1, 100 + seq

    def finish(under_way: tuple[Any, ...]) -> None:
        end(*under_way, under_way[3] + 50, 1, 7, False)

    slow = [begin(seq) for seq in (1, 2, 3)]
    for seq in range(4, CAPACITY):
        finish(begin(seq))
    first = list(watch.ended())
    # When the slow ones end too, and the next tape begins
    finish(begin(CAPACITY))
    for one in slow:
        finish(one)
    finish(begin(CAPACITY + 1))
    rest = list(watch.ended())
    # Then every job of the run was seen once, those of others never, and the full tape is gone
    seqs = [seq for ends in (*first, *rest) for seq in ends.idents.seq.tolist()]
    assert sorted(seqs) == [seq for seq in range(1, CAPACITY + 2) if seq % 7]
    assert {1, 2, 3} <= {seq for ends in rest for seq in ends.idents.seq.tolist()}
    assert all((ends.ended_ns == ends.started_ns + 50).all() and (ends.sums == 7).all() for ends in (*first, *rest))
    assert len(list(tmp_path.glob("*.tape"))) == 1


# ---------------------------------------------------------------- for real


@pytest.mark.real
def test_the_generator_alone_is_calibrated_and_takes_no_more_memory_for_more_jobs():
    # When the command line lets one producer make half a million messages, and then pace some
    env = {**os.environ, "SIDESTEP_LOAD_NULL": "500000", "SIDESTEP_LOAD_RATE": "500", "SIDESTEP_LOAD_JSON": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "load"],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode in {0, 3}, done.stderr
    found = json.loads(done.stdout)
    # Then from the first tick to the last it holds less than a tenth more
    first, last = found["memory"][0], found["memory"][-1]
    assert found["jobs"] == last["jobs"] == 500_000
    assert last["rss_bytes"] < 1.1 * first["rss_bytes"]
    assert found["ceiling_hz"] > 0
    # All that was paced was sent, and the exit code says whether it kept below its own goal
    assert found["null"]["jobs"] == found["queue"]["jobs"] == 2500
    assert found["queue"]["lag_s"]["p99"] >= found["queue"]["lag_s"]["p50"] >= 0
    assert (done.returncode == 0) == (found["queue"]["lag_s"]["p99"] < 0.005)

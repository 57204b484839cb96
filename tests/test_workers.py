"""Real workers of every pool do every job, and every job is accounted for."""

import contextlib
import gc
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from lab import bill
from lab.abilities import probe
from lab.arenas.attached import Watch
from lab.checks import steps_do_not_add_up
from lab.environment import cores
from lab.model import RESULTS, FrozenArgs, LabError, Load, Setup, Trial
from lab.runner import Runner
from lab.session import open_session
from lab.stats import ack_gap_p50_s, heartbeat_late_s, held_p50_s, lost_updates
from producer.pacers import Burst, Closed, Constant
from producer.payloads import Calibrated, Cycle, EachJob, Payload, Referred, Text, Upstream
from tasks.codecs import CODECS
from tasks.jobs import JOBS
from tasks.pools import POOLS
from tasks.standalone import EXECUTORS
from tasks.timeline import boot_id
from tests.fakes import make_resources, make_run

pytestmark = pytest.mark.real

ARGS = {
    "noop": {},
    "spin": {"loops": Calibrated(ms=1)},
    "primes": {"limit": 2000},
    "wordcount": {"words": 200, "seed": EachJob()},
    "digest": {"chunks": 1},
    "squeeze": {"chunks": 1},
    "snooze": {"ms": 1},
    "stall": {"ms": 1},
    "fetch": {"url": Upstream(mean_ms=5), "key": EachJob()},
    "ask": {"key": EachJob()},
    "mixed": {"loops": Calibrated(ms=1), "io_ms": 1},
    "flaky": {"failures": 0},
    "echo": {"payload": Text(300)},
    "blend": {"loops": Calibrated(ms=1, like="spin"), "chunks": Calibrated(ms=1, like="digest")},
    "sine": {"rounds": 1},
    "naps": {"rounds": 2, "ms": 1},
    "nudge": {"rounds": 2},
    "tally": {"rounds": 10, "guard": "lock"},
    "hold": {"kind": "Redis lock", "rounds": 1},
    "deliver": {"through": "json"},
    "carry": {"payload": Payload("records", 1000), "loops": Calibrated(ms=1, like="spin")},
    "weigh": {"load": Referred("redis", 5000)},
    "transcode": {
        "codec": "json",
        "compression": None,
        "shape": "records",
        "size_bytes": 1000,
        "step": Cycle(("encode", "decode", "size")),
    },
}


@pytest.fixture(scope="module")
def session():
    with open_session() as opened:
        yield opened


@pytest.fixture(scope="module")
def runner(session):
    # What a busy machine does to a figure is not what is tested here.
    return Runner(session, cores(), retakes=0)


def test_there_are_arguments_for_every_job():
    assert set(ARGS) == set(JOBS)


def skip_if_missing(pool):
    if POOLS[pool].missing:
        pytest.skip(POOLS[pool].missing)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("job", ARGS)
def test_every_pool_does_every_job_once_and_right(runner, pool, job):
    skip_if_missing(pool)
    setup = Setup(job=job, args=ARGS[job], pacer=Burst(12), pool=pool, concurrency=1 if pool == "solo" else 3)
    run = runner.run(Trial("test", setup, 0))
    # Then each job is done, once, with the right result
    assert (run.ledger.issued, run.ledger.done, run.ledger.duplicated) == (12, 12, 0)
    # And each was due, sent, received, started and ended in this order
    s = run.samples
    assert len(s) == 12
    for earlier, later in ((s.due_ns, s.sent_ns), (s.sent_ns, s.received_ns), (s.received_ns, s.started_ns)):
        assert np.all(earlier <= later)
    assert np.all(s.started_ns <= s.ended_ns)
    assert run.resources.commands["lpush"] == 12
    assert run.resources.worker_cpu_s >= 0


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("job", ARGS)
def test_every_executor_does_every_job_once_and_right(runner, executor, job):
    concurrency = 1 if executor == "serial" else 3
    setup = Setup(job=job, args=ARGS[job], pacer=Burst(12), queued=False, pool=executor, concurrency=concurrency)
    run = runner.run(Trial("test", setup, 0))
    assert (run.ledger.issued, run.ledger.done, run.ledger.duplicated) == (12, 12, 0)


def test_prefork_marks_come_from_as_many_children_as_there_are_slots(runner):
    setup = Setup(job="snooze", args={"ms": 30}, pacer=Burst(12), pool="prefork", concurrency=3)
    run = runner.run(Trial("test", setup, 0))
    assert len(set(run.samples.worker.tolist())) == 3


def test_two_nodes_share_the_work(runner):
    setup = Setup(job="snooze", args={"ms": 30}, pacer=Burst(16), pool="solo", nodes=2)
    run = runner.run(Trial("test", setup, 0))
    assert run.ledger.done == 16
    assert len(set(run.samples.worker.tolist())) == 2


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_closed_load_keeps_no_more_jobs_under_way_than_it_has_clients(runner, pool):
    setup = Setup(job="snooze", args={"ms": 10}, pacer=Closed(clients=2, size=20), pool=pool, concurrency=8)
    run = runner.run(Trial("test", setup, 0))
    assert run.ledger.done == 20
    # A job is out from its sending to its end; at each sending at most two are.
    out = [int(np.sum((run.samples.sent_ns <= t) & (run.samples.ended_ns > t))) for t in run.samples.sent_ns]
    assert max(out) <= 2


def test_a_failing_job_is_counted_as_failed_and_makes_the_run_invalid(runner):
    # Given jobs that fetch from a server that is not there
    setup = Setup(job="fetch", args={"url": "http://127.0.0.1:1/", "key": EachJob()}, pacer=Burst(5), pool="threads")
    run = runner.run(Trial("test", setup, 0))
    assert (run.ledger.done, run.ledger.failed, run.ledger.lost) == (0, 5, 0)
    assert "incomplete_ledger" in {fault.check for fault in run.faults}


def test_without_marks_only_the_brokers_word_is_left(runner):
    setup = Setup(job="noop", args={}, pacer=Burst(30), pool="solo", acks_late=True, marks=False, watch_broker=True)
    run = runner.run(Trial("test", setup, 0))
    assert len(run.samples) == 0
    assert run.ledger.done == 30
    assert run.resources.drained_s is not None


def test_a_trial_leaves_no_key_behind(runner, session):
    runner.run(Trial("test", Setup(job="noop", args={}, pacer=Burst(3), pool="solo"), 0))
    # But for payloads that later trials may refer to: those stay until the session ends
    assert not [key for key in session.client.scan_iter() if not key.startswith(f"{session.prefix}payload:")]


def test_what_trials_referred_to_is_gone_when_the_session_ends():
    with open_session() as opened:
        args = FrozenArgs({"load": Referred("file", 500)})
        setup = Setup(job="weigh", args=args, pacer=Burst(3), pool="solo")
        assert Runner(opened, cores(), retakes=0).run(Trial("test", setup, 0)).ledger.done == 3
        (path,) = (Path(reference["at"]) for reference in opened.references(setup.loads[0]).values())
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize("via", ["redis", "file"])
def test_a_payload_for_each_job_is_put_when_it_is_sent_and_taken_away_by_the_job(via):
    with open_session() as opened:
        args = FrozenArgs({"load": Referred(via, 500, each=True)})
        setup = Setup(job="weigh", args=args, pacer=Burst(20), pool="solo")
        run = Runner(opened, cores(), retakes=0).run(Trial("test", setup, 0))
        assert (run.ledger.done, run.ledger.wrong) == (20, 0)
        left = list(opened.client.scan_iter(f"{opened.prefix}payload:*"))
        left += list(opened.children.directory.glob("sidestep-*"))
        # But for the few that senders were tried out with before the clock started, which go with the session
        assert len(left) <= 4
        if via == "redis":
            assert run.resources.commands["set"] >= 20 <= run.resources.commands["del"]


def test_a_worker_that_cannot_start_says_why(runner):
    setup = Setup(job="noop", args={}, pacer=Burst(1), pool="solo", preset="default", python="/bin/false")
    with pytest.raises(LabError, match="/bin/false is not a Python interpreter"):
        runner.run(Trial("test", setup, 0))


@pytest.mark.parametrize(
    ("pool", "lacks"),
    [
        ("prefork", ()),
        ("threads", ("time limits", "revoke", "child recycling")),
        ("solo", ("time limits", "revoke", "child recycling")),
    ],
)
def test_what_a_pool_lacks_is_found_on_a_live_worker(session, pool, lacks):
    assert probe(session, POOLS[pool]).lacks == lacks


class Scripted(Runner):
    """A runner whose trials come out as told, without running anything."""

    def __init__(self, *outcomes, retakes):
        super().__init__(SimpleNamespace(watch=Watch()), 2, retakes=retakes)
        object.__setattr__(self, "outcomes", list(outcomes))

    def _once(self, trials):  # noqa: ARG002  whatever is asked
        return [self.outcomes.pop(0)]


@pytest.mark.parametrize(
    ("noisy_s", "retakes", "taken"),
    [((0, 0, 0), 2, 0), ((5, 0, 0), 2, 1), ((5, 5, 0), 2, 2), ((5, 5, 5), 2, 2), ((5, 5, 5), 1, 1), ((5, 0, 0), 0, 0)],
)
def test_a_noisy_run_is_taken_again_as_often_as_allowed_and_that_is_told(noisy_s, retakes, taken):
    runs = [make_run(resources=make_resources(others_cpu_s=s)) for s in noisy_s]
    run = Scripted(*runs, retakes=retakes).run(Trial("test", runs[0].trial.setup, 0))
    assert run.retakes == taken
    assert bool(run.faults) == (noisy_s[taken] > 0)


def test_a_worker_that_is_killed_in_the_middle_leaves_a_ledger_with_what_was_lost(session):
    # Given a worker that will be killed as soon as its first jobs are done
    killed = []

    def kill_it():
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "celery" in words and process.environ().get("SIDESTEP_TAPE_DIR", "").startswith(
                    str(session.children.directory)
                ):
                    killed.append(process.pid)
                    process.kill()

    calls = iter(range(10**9))
    runner = Runner(session, cores(), retakes=0, idle=lambda: kill_it() if next(calls) == 20 else None)
    setup = Setup(job="snooze", args={"ms": 20}, pacer=Burst(100), pool="threads", concurrency=2)
    run = runner.run(Trial("test", setup, 0))
    # Then some jobs were done and the rest are lost, and the run says so
    assert killed
    assert run.ledger.done > 0
    assert run.ledger.lost > 0
    assert "incomplete_ledger" in {fault.check for fault in run.faults}


def test_marks_remember_the_process_they_come_from(runner):
    setup = Setup(job="snooze", args={"ms": 30}, pacer=Burst(8), pool="prefork", concurrency=2)
    run = runner.run(Trial("test", setup, 0))
    pids = {run.processes[number]["pid"] for number in run.samples.worker.tolist()}
    assert len(pids) == 2
    assert all(run.processes[number]["boot_id"] == boot_id() for number in run.samples.worker.tolist())


def test_warming_up_ends_before_the_clock_starts(runner):
    # Given jobs long enough that an early acknowledgement comes long before their end
    setup = Setup(job="snooze", args={"ms": 150}, pacer=Burst(2), pool="threads", concurrency=2)
    run = runner.run(Trial("test", setup, 0))
    # Then no job of the trial waits for one of the warm-up
    assert float(run.samples.wait_s.max()) < 0.15


def test_the_brokers_bill_is_whole_commands_a_job(runner):
    setup = Setup(job="noop", args={}, pacer=Burst(50), pool="solo")
    bill = runner.run(Trial("test", setup, 0)).resources
    for once_a_job in ("lpush", "brpop", "hset", "hdel", "zrem"):
        assert bill.commands[once_a_job] == 50, bill.commands
    assert bill.commands.get("hlen", 0) == 0
    # An empty job's envelope is some 900 bytes in; what the lab reads for itself, kilobytes, is not in it
    assert 50 * 900 < bill.bytes_in < 50 * 4000
    assert 50 * 500 < bill.bytes_out < 50 * 2500


def test_trials_that_take_turns_do_all_their_jobs_and_lose_no_time_between_the_parts(runner):
    # Given two setups that differ in their marks alone, and one of them by itself
    setups = [
        Setup(
            job="snooze",
            args={"ms": 2},
            pacer=Burst(45),
            pool="threads",
            watch_broker=True,
            marks=marks,
            acks_late=True,
        )
        for marks in (True, False)
    ]
    on, off = runner.together([Trial("test", setup, 0) for setup in setups])
    alone = runner.run(Trial("test", setups[0], 0))
    # Then both did every job, and each was charged for its own commands alone
    assert (on.ledger.done, off.ledger.done) == (45, 45)
    assert on.resources.commands["lpush"] == off.resources.commands["lpush"] == 45
    assert on.resources.commands["hset"] == alone.resources.commands["hset"] == 45
    # And the parts follow each other: no job starts before the one that was sent before it was due
    assert np.all(np.diff(on.samples.due_ns) >= 0)
    assert len(set(on.samples.due_ns.tolist())) == 10
    assert np.all(on.samples.sent_ns <= on.samples.started_ns)
    # And feeding the queue is what it took in all parts, not the time until the last part
    assert max(on.resources.fed_s, off.resources.fed_s) < 0.5 * on.resources.drained_s
    # And the last end lies within the time that the parts took together
    assert on.samples.ended_ns.max() / 1e9 <= on.resources.drained_s


def test_only_bursts_take_turns(runner):
    closed = Setup(job="noop", args={}, pacer=Closed(clients=1, size=4), pool="solo")
    with pytest.raises(LabError, match="only a burst"):
        runner.together([Trial("test", closed, 0), Trial("test", replace(closed, acks_late=True), 0)])


@pytest.mark.parametrize("queued", [True, False])
def test_jobs_beside_share_the_process_and_jobs_apart_have_one_of_their_own(runner, queued):
    base = Setup(
        job="snooze",
        args={"ms": 1},
        pacer=Constant(20, 0.5),
        queued=queued,
        pool="threads",
        concurrency=4,
        beside=Load("spin", FrozenArgs({"loops": Calibrated(ms=5)}), Burst(6)),
    )
    pool = "prefork" if queued else "processes"
    together = runner.run(Trial("test", base, 0))
    apart = runner.run(Trial("test", replace(base, apart=pool, apart_concurrency=2), 0))
    for run in (together, apart):
        assert (run.ledger.issued, run.ledger.done) == (16, 16)
        assert (len(run.samples.own), len(run.samples.others)) == (10, 6)
    assert set(together.samples.own.worker.tolist()) == set(together.samples.others.worker.tolist())
    assert not set(apart.samples.own.worker.tolist()) & set(apart.samples.others.worker.tolist())


@pytest.mark.parametrize(("pool", "guard"), [("prefork", "broker"), ("threads", "lock")])
def test_a_guarded_counter_loses_nothing(runner, pool, guard):
    setup = Setup(job="tally", args={"rounds": 40, "guard": guard}, pacer=Burst(12), pool=pool, concurrency=2)
    run = runner.run(Trial("test", setup, 0))
    assert lost_updates(run) == 0
    assert run.samples.value.max() == 40 * (12 + 2)


def test_a_worker_without_prefetch_holds_no_job_back(runner):
    # Given one slot, and jobs of which several would be held by a worker that fetches ahead
    setup = Setup(job="snooze", args={"ms": 20}, pacer=Burst(6), pool="prefork", disable_prefetch=True)
    without, usual = (runner.run(Trial("test", replace(setup, disable_prefetch=off), 0)) for off in (True, False))
    assert held_p50_s(without) < 0.02 < held_p50_s(usual)


@pytest.mark.parametrize("rtt_ms", [None, 3.0])
@pytest.mark.parametrize("pool", POOLS)
def test_the_parts_of_a_jobs_way_are_its_whole_way(runner, pool, rtt_ms):
    skip_if_missing(pool)
    slots = 1 if pool == "solo" else 2
    args = FrozenArgs({"payload": Payload("records", 20_000)})
    setup = Setup(job="echo", args=args, pacer=Constant(20, 1), pool=pool, concurrency=slots, steps=True, rtt_ms=rtt_ms)
    run = runner.run(Trial("test", setup, 0))
    assert (run.ledger.done, len(run.samples)) == (20, 20)
    assert list(steps_do_not_add_up(run)) == []
    parts = bill.parts_s(run)
    # Encoding, registering and both decodings are work that nobody is spared
    for name in ("encode", "register", "peek", "decode", "call"):
        assert parts[name].min() > 0, name
    # And with the broker farther away each message crosses the distance at least twice more, once to be registered
    if rtt_ms:
        assert parts["register"].min() >= rtt_ms / 1e3
        assert bill.whole_s(run).min() >= 2 * rtt_ms / 1e3


@pytest.mark.parametrize(("pool", "in_turn"), [("gevent", True), ("eventlet", True), ("threads", False)])
def test_a_stalling_job_lets_no_other_greenlet_run(runner, pool, in_turn):
    skip_if_missing(pool)
    # Given two jobs of 300 ms for two slots; when they sleep as the pool wants it, they do so at once
    setup = Setup(job="snooze", args={"ms": 300}, pacer=Burst(2), pool=pool, concurrency=2)
    snoozed, stalled = (runner.run(Trial("test", replace(setup, job=job), 0)).samples for job in ("snooze", "stall"))
    assert snoozed.started_ns.max() < snoozed.ended_ns.min()
    # And when they stall, greenlets take turns, and threads do not care
    assert bool(stalled.started_ns.max() >= stalled.ended_ns.min()) is in_turn


@pytest.mark.parametrize("pool", POOLS)
def test_it_is_seen_when_each_job_was_acknowledged(runner, pool):
    skip_if_missing(pool)
    # Given jobs of 50 ms in a worker that marks steps
    setup = Setup(job="snooze", args={"ms": 50}, pacer=Burst(6), pool=pool, concurrency=2, steps=True)
    late, early = (runner.run(Trial("test", replace(setup, acks_late=on), 0)) for on in (True, False))
    for run in (late, early):
        assert list(steps_do_not_add_up(run)) == []
        assert run.steps.acked_ns.min() > 0
    # Then a late acknowledgement comes after the job; and an early one before its end, but where the one thread is busy
    assert (late.steps.acked_ns > late.samples.ended_ns).all()
    assert ack_gap_p50_s(late) > 0
    assert pool == "solo" or (early.steps.acked_ns < early.samples.ended_ns).mean() > 0.5


def test_a_trial_leaves_no_file_open_however_seldom_python_looks_for_garbage(runner):
    setup = Setup(job="noop", args={}, pacer=Burst(5), pool="solo")

    def open_files() -> int:
        runner.run(Trial("test", setup, 0))
        return len(os.listdir("/proc/self/fd"))

    # Given a process that holds so much that Python looks for garbage once in a long while
    gc.disable()
    try:
        first = open_files()
        assert [open_files() for _ in range(3)] == [first] * 3
    finally:
        gc.enable()


def test_heartbeats_are_seen_and_a_solo_worker_sends_none_while_it_does_a_job(runner):
    # Given a heartbeat a second, and a job of 2.5 s
    setup = Setup(job="snooze", args={"ms": 2500}, pacer=Burst(2), pool="solo", heartbeat_s=1)
    solo, threads = (runner.run(Trial("test", replace(setup, pool=pool), 0)) for pool in ("solo", "threads"))
    # Then the one's comes after the job, and the other's in between
    assert heartbeat_late_s(solo) > 1
    assert heartbeat_late_s(threads) < heartbeat_late_s(solo) / 2
    for run in (solo, threads):
        assert run.ledger.done == len(run.samples) == 2, "a heartbeat is no job"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_jobs_arrive_whole_in_every_codec(runner, pool, codec):
    if why := CODECS[codec].missing:
        pytest.skip(why)
    for compression in (None, "zlib"):
        args = FrozenArgs({"payload": Payload("tree", 2000)})
        setup = Setup(job="echo", args=args, pacer=Burst(8), pool=pool, codec=codec, compression=compression)
        assert runner.run(Trial("test", setup, 0)).ledger.done == 8


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("results", RESULTS)
def test_results_are_kept_and_read_as_the_setup_says(runner, pool, results):
    skip_if_missing(pool)
    args = FrozenArgs({"payload": Payload("records", 200)})
    setup = Setup(job="echo", args=args, pacer=Burst(8), pool=pool, concurrency=1 if pool == "solo" else 2)
    run = runner.run(Trial("test", replace(setup, results=results), 0))
    assert run.ledger.done == 8
    assert (run.resources.collect_s is not None) == (results in {"get", "bulk"})
    assert ("setex" in run.resources.commands or "set" in run.resources.commands) == (results != "ignored")


def test_a_message_without_its_text_and_without_base64_is_smaller_and_arrives(runner):
    sizes = {}
    for changes in ({}, {"argsrepr": False}, {"base64": False}, {"compression": "zlib"}):
        args = FrozenArgs({"payload": Payload("records", 5000)})
        setup = Setup(job="echo", args=args, pacer=Burst(4), pool="threads", **changes)
        run = runner.run(Trial("test", setup, 0))
        assert run.ledger.done == 4
        sizes[next(iter(changes), "plain")] = run.resources.message_bytes
        # LPUSH, BRPOP, and HSET into the messages that are not acknowledged
        assert bill.times_through_broker(run) > 3
    plain = sizes["plain"]
    assert sizes["argsrepr"]["argument text"] < plain["argument text"] / 5
    assert sizes["base64"]["base64"] == 0 < plain["base64"]
    assert sizes["compression"]["body"] < plain["body"] / 2

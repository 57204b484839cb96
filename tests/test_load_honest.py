"""The load test tells the truth: what stands still shows, and queueing theory agrees."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from lab.broker import own_server
from lab.children import Children
from lab.load import stages
from lab.load.arguments import Arguments
from lab.load.books import Books, Ends
from lab.load.draws import drawn, stream
from lab.load.hdr import of
from lab.load.idents import Idents
from lab.load.model import Arrivals, Crew, Drawn, Kind, Outcome, Piece, Scenario, Stage, Watch
from lab.load.run import run, run_on
from lab.load.scenario import parsed
from lab.load.stand import Stand
from lab.model import BadInput, LabError
from lab.stats import t_quantile

ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------- pure: a queue with a known truth


def one_server(due_s: np.ndarray, sent_s: np.ndarray, service_s: np.ndarray) -> Ends:
    """First come, first served, one at a time (Lindley's recursion), as marks would show it."""
    started, free = np.empty(len(due_s)), 0.0
    for at, (sent, service) in enumerate(zip(sent_s, service_s, strict=True)):
        started[at] = max(sent, free)
        free = started[at] + service

    def ns(seconds: np.ndarray) -> np.ndarray:
        return np.round(seconds * 1e9).astype(np.int64)

    zeros = np.zeros(len(due_s), dtype=np.int64)
    # Nobody starts at moment 0, which stands for a start that was not seen.
    begin = 10**9
    ids = Idents(zeros, zeros, np.arange(len(due_s)), ns(due_s), ns(sent_s))
    ended = ns(started + service_s) + begin
    return Ends(ids, ns(started) + begin, ended, zeros == 0, zeros - 1, ["w 1"], zeros)


def account(ends: Ends, upto_s: float) -> Books:
    books = Books(["k"], start_ns=10**9, window_s=(0.0, upto_s))
    books.ended(ends)
    return books


def poisson(rate_hz: float, for_s: float, seed: int) -> np.ndarray:
    stage = Stage("poisson", for_s, (Piece(for_s, rate_hz, rate_hz),), Arrivals.RANDOM)
    return np.concatenate(list(stages.stage_blocks(stage, seed=seed)))


def pollaczek_khinchine_s(rate_hz: float, mean_s: float, moment_s2: float) -> float:
    """Mean time in queue of M/G/1:  lambda E[S^2] / (2 (1 - rho))."""
    return rate_hz * moment_s2 / (2 * (1 - rate_hz * mean_s))


def mean_of_batches(values: np.ndarray, batches: int = 20) -> tuple[float, float]:
    """The mean, and half of its 99.9 % interval from batch means: neighbours in a queue are not independent."""
    means = [float(part.mean()) for part in np.array_split(values, batches)]
    return float(values.mean()), t_quantile(batches - 1, 0.999) * float(np.std(means, ddof=1)) / math.sqrt(batches)


@pytest.mark.parametrize("how", ["always the same", "exponential"])
@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_simulated_queue_waits_as_theory_says(how: str, load: float):
    # Given Poisson arrivals from the generator's own schedule, at one server: M/D/1 and M/M/1
    mean_s, for_s = 0.010, 2000.0
    due = poisson(load / mean_s, for_s, seed=11)
    start = stream(5, "work")
    draw = Drawn("exponential", (mean_s,))
    service = np.array([drawn(draw, start, seq) if how == "exponential" else mean_s for seq in range(len(due))])
    # When the books take it in
    books = account(one_server(due, due, service), for_s)
    # Then the mean time in queue is what Pollaczek and Khinchine say of the service times in the same books
    spans = books.spans
    expected = pollaczek_khinchine_s(len(due) / for_s, spans.service.mean_s, spans.service.moment_s2())
    ends = one_server(due, due, service)
    wait, half = mean_of_batches((ends.started_ns - 10**9 - ends.idents.sent_ns) / 1e9)
    assert spans.wait.mean_s == pytest.approx(wait, rel=1e-9)
    assert abs(wait - expected) <= half
    # And that is no idle word: the other distribution's answer lies outside
    other = expected * (0.5 if how == "exponential" else 2.0)
    assert abs(wait - other) > half


def test_a_server_that_stands_still_shows_in_the_percentiles_as_theory_says():
    # Given 50 jobs a second for 20 s, each done at once, but for the one at second 5, in which the server stops for 2 s
    due = np.arange(1000) / 50
    books = account(one_server(due, due, np.where(due == 5.0, 2.0, 1e-6)), 20.0)
    # Then of all jobs a tenth waits, evenly from 0 to 2 s, so that one in a hundred waits 1.8 s or more
    for q in (0.99, 0.95):
        assert books.spans.latency.quantile_s(q) == pytest.approx(2 - (1 - q) * 20, rel=0.02)
    assert books.spans.latency.quantile_s(0.89) < 0.001


def test_a_generator_that_stands_still_cannot_hide_it():
    # Given the same, where it is the generator that stood still: what was due meanwhile is sent at its end
    due = np.arange(1000) / 50
    sent = np.where((due >= 5) & (due < 7), 7.0, due)
    books = account(one_server(due, sent, np.full(1000, 1e-6)), 20.0)
    lag = of(np.round((sent - due) * 1e9).astype(np.int64))
    # Then it is in the lag and in the latency from due, and not in that from sent
    assert lag.quantile_s(0.99) == pytest.approx(1.8, rel=0.02)
    assert books.spans.latency.quantile_s(0.99) == pytest.approx(1.8, rel=0.02)
    assert books.spans.uncorrected.quantile_s(0.99) < 0.01


# ---------------------------------------------------------------- real: our own workers


def steady(rate_hz: float, for_s: float, *kinds: Kind, arrivals: Arrivals = Arrivals.EVEN, **more: object) -> Scenario:
    stage = Stage("constant", for_s, (Piece(for_s, rate_hz, rate_hz),), arrivals)
    made = Scenario("honest", kinds or (Kind("noop", "sidestep.noop", "noop"),), (stage,), crews=(Crew("threads", 2),))
    return replace(made, drain_s=20.0, **more)  # type: ignore[arg-type]


@dataclass
class Stopped:
    """Stops processes for a while in the middle of a run, from a thread of its own."""

    pids: Callable[[], list[int]]
    after_s: float
    for_s: float
    signals: tuple[signal.Signals, ...] = (signal.SIGSTOP, signal.SIGCONT)
    lasted_s: float = 0.0
    _thread: threading.Thread | None = None

    def begin(self, *_: object) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._stop)
            self._thread.start()

    def _stop(self) -> None:
        time.sleep(self.after_s)
        pids = self.pids()
        begun = time.monotonic()
        try:
            for pid in pids:
                os.kill(pid, self.signals[0])
            time.sleep(self.for_s)
        finally:
            for one in self.signals[1:]:
                for pid in pids:
                    os.kill(pid, one)
            self.lasted_s = time.monotonic() - begun

    def join(self) -> None:
        assert self._thread
        self._thread.join()


def generators() -> list[int]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "lab.load.generator" in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.real
def test_a_worker_that_stands_still_for_two_seconds_shows_in_p99_as_theory_says():
    # Given ten seconds of quick jobs at an even rate
    for_s = 10.0
    asked = steady(30, for_s)
    with Stand(asked) as stand:
        stop = Stopped(lambda: [process.pid for process in stand.processes()], 3.0, 2.0)
        # When the worker is stopped for two of them
        outcome = run_on(stand, asked, idle=stop.begin)
        stop.join()
    # Then of all jobs the share d/T is late by up to d: p99 is d - T/100, later by what catching up takes
    stopped = stop.lasted_s
    assert outcome.ledger.done == outcome.ledger.issued == 300
    for q in (0.99, 0.95):
        least = stopped - (1 - q) * for_s - 1 / 30
        assert least <= outcome.spans.latency.quantile_s(q) <= stopped + 1.0, q
    # And the generator had no part in it
    assert outcome.lag.quantile_s(0.99) < stopped / 2
    assert outcome.spans.uncorrected.quantile_s(0.99) >= stopped - 0.01 * for_s - 1 / 30 - outcome.lag.quantile_s(0.99)


@pytest.mark.real
def test_a_generator_that_stands_still_is_late_and_makes_the_run_invalid():
    # Given the same load
    for_s = 8.0
    asked = steady(30, for_s)
    stop = Stopped(generators, 3.0, 2.0)
    with Stand(asked) as stand:
        # When it is the generator that is stopped
        outcome = run_on(stand, asked, idle=stop.begin)
        stop.join()
    # Then it is in its lag, and in the latency from due; the latency from sent knows nothing of it
    least = stop.lasted_s - 0.01 * for_s - 1 / 30
    assert outcome.lag.quantile_s(0.99) >= least
    assert outcome.spans.latency.quantile_s(0.99) >= least
    assert outcome.spans.uncorrected.quantile_s(0.99) < least / 2
    # And the run says that its numbers are not to be used
    assert outcome.ledger.issued == 240
    assert not outcome.valid
    assert "late_generator" in {fault.check for fault in outcome.faults}
    assert outcome.exit_code == 3


SLEEP_MS, LAW_HZ, LAW_S, LAW_SEED = 12.0, 40.0, 20.0, 5
LAWS = ("M/D/1", "M/M/1")
SPARE = 0.1
"""Of a mean wait, either way: what a busy machine adds comes in bursts, and so more unevenly than it is drawn."""


@pytest.mark.real
def test_one_solo_worker_waits_as_the_law_of_its_jobs_says_and_not_as_another():
    # Given jobs that sleep 12 ms each, or that long on average, due at the same random moments, for a worker that does
    # one at a time: at this load theory has the second kind wait about twice as long
    value = {"M/D/1": SLEEP_MS, "M/M/1": Drawn("exponential", (SLEEP_MS,))}
    means: dict[str, float] = {}
    for law in LAWS:
        kind = Kind("sleep", "sidestep.snooze", "snooze", args={"ms": value[law]})
        crews = (Crew("solo"),)
        asked = steady(LAW_HZ, LAW_S, kind, arrivals=Arrivals.RANDOM, crews=crews, seed=LAW_SEED)
        seen: list[Ends] = []
        # When they are run, and every single job is kept for once
        outcome = run(asked, on_ends=seen.append)
        assert outcome.ledger.done == outcome.ledger.issued
        rows = np.concatenate([np.stack((e.idents.seq, e.idents.sent_ns, e.started_ns, e.ended_ns)).T for e in seen])
        rows = rows[np.argsort(rows[:, 2])]
        begin_ns = first_moment_ns(outcome, rows[:, 1:])
        sent, started, ended = rows[:, 1] / 1e9, (rows[:, 2] - begin_ns) / 1e9, (rows[:, 3] - begin_ns) / 1e9
        wait, measured = started - sent, float((started - sent).mean())
        # Then what a job takes beyond its sleep, which the scenario's seed says, is all that is taken from the run
        draws = Arguments(kind, seed=LAW_SEED)
        extra = ended - started - np.array([draws.of(int(seq))["ms"] for seq in rows[:, 0]]) / 1e3
        busy = sent[1:] < ended[:-1]
        between, setup = (started[1:] - ended[:-1])[busy], wait[1:][~busy]
        load = LAW_HZ * (SLEEP_MS / 1e3 + extra.mean() + between.mean())
        # And the mean wait is what that law makes of these arrivals, and none that the other makes of them
        bands = {one: band_of_means(one, sent, extra, between, setup) for one in LAWS}
        other = next(one for one in LAWS if one != law)
        tells = load < 0.85 and bands["M/D/1"][1] < bands["M/M/1"][0]
        if not tells and not os.environ.get("CI"):
            pytest.skip(f"this machine is too busy to tell the laws apart: {load=:.2f}, {bands}")
        assert tells, f"this machine is too busy to tell the laws apart: {load=:.2f}, {bands}"
        assert bands[law][0] * (1 - SPARE) <= measured <= bands[law][1] * (1 + SPARE), (law, measured, bands)
        assert not bands[other][0] <= measured <= bands[other][1], (law, measured, bands)
        means[law] = measured
        # And the histograms of the run say the same as the single jobs
        assert outcome.spans.wait.mean_s == pytest.approx(measured, rel=1e-3)
        assert outcome.spans.service.mean_s == pytest.approx((ended - started).mean(), rel=1e-3)
    # And between the two it is nearer to twice as long than to as long
    assert means["M/M/1"] / means["M/D/1"] > math.sqrt(2) * (1 - SPARE), means


def band_of_means(
    law: str, come: np.ndarray, extra: np.ndarray, between: np.ndarray, setup: np.ndarray, runs: int = 1000
) -> tuple[float, float]:
    """Between what 99.8 % of the mean waits lie at one server, first come, first served, that begins empty, when jobs
    come then: each sleeps as the law says, and takes besides what is drawn from these."""
    rng = np.random.default_rng(7)
    free, total = np.zeros(runs), np.zeros(runs)
    for moment in come:
        idle = moment >= free
        begin = np.where(idle, moment + rng.choice(setup, runs), free + rng.choice(between, runs))
        total += begin - moment
        slept = SLEEP_MS / 1e3 * (rng.exponential(size=runs) if law == "M/M/1" else 1.0)
        free = begin + slept + rng.choice(extra, runs)
    low, high = np.quantile(total / len(come), (0.001, 0.999))
    return float(low), float(high)


def first_moment_ns(outcome: Outcome, rows: np.ndarray) -> float:
    """Of the run, on CLOCK_MONOTONIC: what makes the exact mean wait of the outcome that of the single jobs."""
    return float((rows[:, 1] - rows[:, 0]).mean()) - outcome.spans.wait.mean_s * 1e9


@pytest.mark.real
def test_a_broker_that_dies_ends_the_run_invalid_with_what_was_measured():
    # Given a load of some seconds
    asked = steady(50, 20.0)
    with Stand(asked) as stand:
        killed = Stopped(lambda: [int(stand.broker_pid or 0)], 3.0, 0.0, signals=(signal.SIGKILL,))
        begun = time.monotonic()
        # When the broker is killed after three of them
        outcome = run_on(stand, asked, idle=killed.begin)
        took_s = time.monotonic() - begun
        killed.join()
    # Then the run ends long before its plan, is INVALID, and holds what was measured until then
    assert took_s < 18
    assert not outcome.valid
    assert outcome.exit_code == 3
    assert {fault.check for fault in outcome.faults} & {"broker_died", "worker_died"}
    assert outcome.ledger.done > 50
    assert len(outcome.spans.latency) == outcome.ledger.done


@pytest.mark.real
def test_a_load_that_the_generator_cannot_make_is_invalid():
    # Given a rate that no process can send
    asked = replace(steady(400_000, 0.5), producers=1, crews=(Crew("solo"),), drain_s=0.5)
    # When it is run, nobody waiting for the jobs to end
    outcome = run(asked)
    # Then it says so
    assert outcome.exit_code == 3
    assert {"late_generator", "short_generator"} & {fault.check for fault in outcome.faults}


@pytest.mark.real
def test_closed_users_wait_for_their_jobs_and_retries_come_back():
    # Given three users, then jobs of which some fail at first
    text = """
[[job]]
task = "flaky"
args = { failures = { choice = [0, 0, 1] }, after_ms = 200, ms = 10 }
[[stage]]
shape = "closed"
users = 3
think = "20ms"
for = "3s"
[workers]
pool = "threads"
concurrency = 4
"""
    outcome = run(parsed(text, Path("closed.toml"), environ={}))
    # Then never more than three were under way, and yet each user sent many
    assert outcome.ledger.issued == outcome.ledger.done > 10
    assert outcome.retried > 0
    assert outcome.ledger.duplicated == outcome.ledger.failed == 0
    assert max(tick.whole.sent for tick in outcome.ticks) <= 3 / 0.030 + 3
    assert any("closed" in note for note in outcome.notes)
    # And both the memory of those who send and of whoever watches is known
    assert all(tick.generator_rss_bytes > 0 and tick.watch_rss_bytes > 0 for tick in outcome.measured)


# ---------------------------------------------------------------- real: workers of somebody else

SHOP = """
import os
from celery import Celery
app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_BROKER"])
app.conf.task_default_queue = "shop"

@app.task(name="shop.tasks.resize")
def resize(image, width=320):
    if image % 10 == 3:
        raise ValueError(f"image {width} wide cannot be read")
    return width
"""


@contextmanager
def shop(tmp_path: Path, *options: str) -> Iterator[str]:
    """A worker that knows nothing of Sidestep; the broker's URL."""
    (tmp_path / "shop.py").write_text(SHOP)
    with Children() as children, own_server(children) as broker:
        log = tmp_path / "shop.log"
        with log.open("wb") as out:
            worker = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "celery",
                    "-A",
                    "shop",
                    "worker",
                    "-P",
                    "threads",
                    "-c",
                    "2",
                    "-l",
                    "INFO",
                    *options,
                ],
                cwd=tmp_path,
                env={**os.environ, "SHOP_BROKER": broker.url, "PYTHONPATH": str(tmp_path)},
                stdout=out,
                stderr=out,
            )
        try:
            deadline = time.monotonic() + 60
            while b"ready." not in log.read_bytes():
                assert worker.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield broker.url
        finally:
            worker.terminate()
            try:
                worker.wait(15)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


SHOP_SCENARIO = """
thresholds = ["lost == 0"]
drain = "10s"
[[job]]
task = "shop.tasks.resize"
queue = "shop"
args = { image = "{seq}", width = { choice = [320, 640] } }
[[stage]]
shape = "constant"
rate = 20
for = "3s"
[broker]
url = "${SHOP_BROKER}"
[workers]
attach = true
observe = "${OBSERVE:-events}"
"""


def shop_scenario(url: str, text: str = SHOP_SCENARIO, observe: str = "events") -> Scenario:
    return parsed(text, Path("shop.toml"), environ={"SHOP_BROKER": url, "OBSERVE": observe})


@pytest.mark.real
def test_a_task_of_somebody_else_is_watched_through_events_and_through_results(tmp_path: Path):
    # Given a worker that was never told of Sidestep, and publishes no events by itself
    with shop(tmp_path) as url:
        by = {observe: run(shop_scenario(url, observe=observe)) for observe in ("events", "results")}
        asked_in_vain = {}
        for name, (there, instead) in {
            "task": ('task = "shop.tasks.resize"', 'task = "shop.tasks.crop"'),
            "queue": ('queue = "shop"', 'queue = "shopping"'),
        }.items():
            with pytest.raises(BadInput) as caught:
                run(shop_scenario(url, SHOP_SCENARIO.replace(there, instead)))
            asked_in_vain[name] = str(caught.value)
        import redis

        with redis.Redis.from_url(url) as client:
            assert client.llen("shop") == client.llen("shopping") == 0
    # Then both see every job end, and those that fail with what they say
    for observe, outcome in by.items():
        assert (outcome.ledger.issued, outcome.ledger.done, outcome.ledger.failed) == (60, 54, 6), observe
        assert outcome.ledger.lost == 0
        assert {"320", "640"} & set(" ".join(group.says for group in outcome.errors).split())
        assert all(group.kind == "resize" for group in outcome.errors)
        assert outcome.observation.watch is Watch(observe)
        assert outcome.observation.misses
        assert len(outcome.spans.latency) == 54
    # Only events say when a job started
    assert len(by["events"].spans.service) == 54
    assert len(by["results"].spans.service) == 0
    # And a task or a queue that nobody knows is named with its line, before anything is sent
    assert asked_in_vain["task"].startswith("shop.toml:4: ")
    assert "does not know the task 'shop.tasks.crop'" in asked_in_vain["task"].replace("  ", " ")
    assert "no worker listens on the queue 'shopping'; workers listen on: shop" in asked_in_vain["queue"]


@pytest.mark.real
def test_jobs_that_are_left_in_somebody_elses_queue_are_counted_and_no_other_run_begins(tmp_path: Path):
    # Given a stand on somebody else's worker, which has made a run
    import redis

    with shop(tmp_path) as url, redis.Redis.from_url(url) as client:
        asked = shop_scenario(url, SHOP_SCENARIO.replace('"10s"', '"500ms"'))
        with Stand(asked) as stand:
            stand.ready()
            assert stand.clear() == 0
            # When the worker stands still with jobs in its queue
            worker = psutil.Process(shop_workers()[0])
            worker.suspend()
            try:
                client.rpush("shop", "{}", "{}", "{}")
                # Then they are counted, are still there, and are no other run's
                assert stand.clear() >= 2
                assert client.llen("shop") >= 2
                with pytest.raises(LabError, match="of the run before"):
                    stand.ready()
            finally:
                client.delete("shop")
                worker.resume()


@pytest.mark.real
def test_a_run_ends_invalid_when_the_last_worker_of_somebody_else_leaves(tmp_path: Path):
    # Given a minute of jobs for somebody else's worker
    with shop(tmp_path) as url:
        asked = shop_scenario(url, SHOP_SCENARIO.replace('"3s"', '"60s"'))
        with Stand(asked) as stand:
            leaves = Stopped(lambda: shop_workers()[:1], 3.0, 0.0, signals=(signal.SIGTERM,))
            # When it is told to go after three seconds
            outcome = run_on(stand, asked, idle=leaves.begin)
            leaves.join()
    # Then nobody waits for the end of the plan, and the run says why
    assert outcome.ledger.issued < 20 * 60
    assert outcome.faults[0].check == "worker_died"
    assert "said good-bye" in outcome.faults[0].says
    assert any("said good-bye" in note for note in outcome.notes)


def shop_workers() -> list[int]:
    return [process.pid for process in psutil.Process().children() if "shop" in process.cmdline()]


@pytest.mark.real
def test_a_broker_that_refuses_or_has_no_worker_is_one_line_and_exit_code_2(tmp_path: Path):
    # Given nobody on a port, a wrong password, and a broker without workers
    with Children() as children, own_server(children) as broker:
        wrong = broker.url.replace("redis://:", "redis://:x")
        (tmp_path / "shop.toml").write_text(SHOP_SCENARIO)
        own = tmp_path / "own.toml"
        own.write_text('[[job]]\ntask = "noop"\n[[stage]]\nshape = "constant"\nrate = 5\nfor = 1\n')
        cases = [
            ("shop.toml", "redis://127.0.0.1:1/0", "no broker answers"),
            ("shop.toml", wrong, "refuses the user or password"),
            ("shop.toml", broker.url, "no worker answers"),
            ("own.toml", "redis://127.0.0.1:1/0", "no broker answers"),
        ]
        for name, url, said in cases:
            done = subprocess.run(
                [sys.executable, "-m", "experiments", "load", str(tmp_path / name), "--broker", url],
                capture_output=True,
                text=True,
                timeout=120,
                cwd=ROOT,
                env={**os.environ, "SHOP_BROKER": url},
                check=False,
            )
            # Then each is one line, and exit code 2
            assert done.returncode == 2, done.stderr
            assert said in done.stderr.strip().splitlines()[-1]
            assert "Traceback" not in done.stderr
            assert url.rpartition("@")[0].rpartition(":")[2] not in done.stderr or "@" not in url


@pytest.mark.real
@pytest.mark.parametrize("workers", ['pool = "solo"', "attach = true"])
def test_a_broker_that_a_scenario_names_and_that_is_not_there_is_named_with_its_line(workers: str):
    text = (
        '[[job]]\ntask = "noop"\n[[stage]]\nshape = "constant"\nrate = 5\nfor = 1\n'
        f'[broker]\nurl = "redis://127.0.0.1:1/0"\n[workers]\n{workers}\n'
    )
    with pytest.raises(BadInput, match=r"^shop\.toml:8: no broker answers"):
        run(parsed(text, Path("shop.toml"), environ={}))


@pytest.mark.real
def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_behind(tmp_path: Path):
    # Given a run of a minute from the command line
    (tmp_path / "long.toml").write_text(
        '[[job]]\ntask = "noop"\n[[stage]]\nshape = "constant"\nrate = 20\nfor = "60s"\n[workers]\npool = "solo"\n'
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments", "load", str(tmp_path / "long.toml"), "--out", str(out), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    children: list[psutil.Process] = []
    try:
        # When it is interrupted once it has told of the first seconds
        deadline = time.monotonic() + 60
        assert process.stderr
        for line in process.stderr:
            if "offered" in line:
                break
            assert time.monotonic() < deadline
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    # Then what was measured is there, marked INVALID, and no process of it runs
    assert process.returncode == 130
    said = json.loads(stdout)
    assert said["ledger"]["done"] > 0
    assert said["valid"] is False
    assert (out / "load.json").exists()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], gone

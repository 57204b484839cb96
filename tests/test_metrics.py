"""What workers and producers count adds up over all of them, and reaches Prometheus as it is."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.catalogue import EXPERIMENTS
from lab.arenas.arena import await_ready
from lab.broker import own_server
from lab.children import ROOT, Children, kill
from lab.model import Verdict
from lab.store import FILE, PACKED, SuiteFile
from tasks import dead_letters
from tasks.app import make_app
from tasks.metrics import (
    BUCKETS_S,
    COHORT_S,
    COHORTS,
    KEPT_S,
    LONGEST_NAME,
    LONGEST_S,
    MOST_SERIES,
    OTHER,
    SEEN,
    SENT,
    Meter,
    farewell,
    open_client,
    publisher,
    pulse,
)
from tasks.pools import EVENTLET_WARNING_FILTER, POOLS
from tasks.settings import Settings
from tests.plausible import plausible_suite

if not os.environ.get("CI"):
    pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lab import exporter
from lab.exporter import Everything, Newest, Snapshot, families, newest, read, verdicts

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
BOARD = DEPLOY / "grafana" / "sidestep.json"
NOW_S = 2.0**31
"""A moment at which times in 1024ths of a second are exact."""
EXACT = [round(bound * 1024) for bound in BUCKETS_S if (bound * 1024).is_integer()]
"""Bounds of buckets among them: a wait of just so long belongs below."""
TASK = "sidestep.echo"

Scraped = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass
class Request:
    """Celery's request, as far as a meter looks at it."""

    sidestep_sent: Any = None
    delivery_info: Any = field(default_factory=lambda: {"routing_key": "jobs"})
    eta: Any = None
    task: str = TASK


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


@pytest.fixture(scope="module")
def server(children: Children) -> Iterator[Any]:
    with own_server(children) as broker:
        yield broker


@dataclass
class Place:
    """Keys of one test's own in the broker."""

    url: str
    client: redis.Redis
    prefix: str

    def meter(self, *, now: Callable[[], float] = time.time, client: Callable[[], Any] | None = None) -> Meter:
        """One that is flushed by the test alone."""
        return Meter(client or (lambda: redis.Redis.from_url(self.url)), self.prefix, every_s=3600, now=now)

    def scrape(self, **options: Any) -> Scraped:
        return flat(families(read(self.client, self.prefix), **options))

    @property
    def settings(self) -> Settings:
        return Settings(broker=self.url, key_prefix=self.prefix)


@pytest.fixture(scope="module")
def place_of(server: Any) -> Callable[[], Place]:
    client = server.client()
    return lambda: Place(server.url, client, f"sidestep:{uuid.uuid4().hex[:8]}:")


@pytest.fixture
def place(place_of: Callable[[], Place]) -> Place:
    return place_of()


def flat(metrics: Any) -> Scraped:
    """Every sample by its name and labels."""
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for metric in metrics for s in metric.samples}


def parsed(text: str) -> Scraped:
    return flat(text_string_to_metric_families(text))


def total(scraped: Scraped, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    return sum(v for (n, found), v in scraped.items() if n == name and labels.items() <= dict(found).items())


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.real
@settings(max_examples=50)
@given(waits=st.lists(st.one_of(st.integers(0, 400 * 1024), st.sampled_from(EXACT)), max_size=20))
def test_each_wait_is_in_every_bucket_that_reaches_it_and_in_the_sum(place_of, waits):
    place = place_of()
    meter = place.meter(now=lambda: NOW_S)
    for wait in waits:
        meter.started(Request(NOW_S - wait / 1024), TASK)
    assert meter.flush()
    scraped = place.scrape()
    for bound in (*BUCKETS_S, math.inf):
        le = "+Inf" if bound == math.inf else repr(bound)
        found = total(scraped, "sidestep_time_in_queue_seconds_bucket", le=le, queue="jobs", task=TASK)
        assert found == sum(wait / 1024 <= bound for wait in waits)
    assert total(scraped, "sidestep_time_in_queue_seconds_count") == len(waits)
    # To the microsecond in which sums are kept
    sum_s = total(scraped, "sidestep_time_in_queue_seconds_sum")
    assert abs(sum_s - sum(waits) / 1024) <= 1e-6 * len(waits)


@pytest.mark.real
def test_a_job_waits_from_its_eta_if_that_is_later(place):
    meter = place.meter(now=lambda: NOW_S)
    from datetime import datetime, timedelta, timezone

    # Given jobs that were sent a minute ago, not to start before two seconds ago: one says so in UTC, one elsewhere
    eta = datetime.fromtimestamp(NOW_S - 2, timezone(timedelta(hours=5)))
    meter.started(Request(NOW_S - 60, eta=eta.isoformat()), TASK)
    meter.started(Request(NOW_S - 60, eta=eta), TASK)
    # And one whose ETA had passed when it was sent
    meter.started(Request(NOW_S - 60, eta=(eta - timedelta(hours=1)).isoformat()), TASK)
    meter.flush()
    assert total(place.scrape(), "sidestep_time_in_queue_seconds_sum") == 2 + 2 + 60


@pytest.mark.real
@pytest.mark.parametrize(
    "stamp", [None, "noon", True, math.nan, math.inf, -math.inf, 0, 1e300, NOW_S - LONGEST_S, {}, 10**40, -(10**400)]
)
def test_a_stamp_that_is_none_is_counted_as_none_and_harms_no_job(place, stamp):
    meter = place.meter(now=lambda: NOW_S)
    queue, sent_in = meter.started(Request(stamp), TASK)
    meter.ended(queue, TASK, "done", sent_in)
    meter.flush()
    scraped = place.scrape()
    assert total(scraped, "sidestep_jobs_unstamped_total", queue="jobs", task=TASK) == 1
    assert total(scraped, "sidestep_time_in_queue_seconds_count") == 0
    assert total(scraped, "sidestep_jobs_ended_total", outcome="done") == 1
    assert place.client.hlen(place.prefix + COHORTS) == 0


@pytest.mark.real
def test_a_job_that_starts_before_it_was_sent_shows_that_the_clocks_differ(place):
    meter = place.meter(now=lambda: NOW_S)
    meter.started(Request(NOW_S + 3), TASK)
    meter.flush()
    scraped = place.scrape()
    assert total(scraped, "sidestep_jobs_early_total") == 1
    assert total(scraped, "sidestep_time_in_queue_seconds_bucket", le="0.001") == 1
    assert total(scraped, "sidestep_time_in_queue_seconds_sum") == 0


@pytest.mark.real
def test_whoever_names_queues_at_will_makes_no_more_series_than_there_is_room_for(place):
    meter = place.meter(now=lambda: NOW_S)
    names: list[Any] = [f"queue {n}" for n in range(2 * MOST_SERIES)]
    for name in [*names, "x" * 10_000, 'a "quoted"\nname \\ {and} \ud800', None, 5, ["list"]]:
        meter.started(Request(NOW_S, {"routing_key": name}), TASK)
    meter.started(Request(NOW_S, None), TASK)
    meter.flush()
    snapshot = read(place.client, place.prefix)
    series = {str(key[1]) for key in snapshot.counts if key[0] == "wait"}
    assert len(series) == MOST_SERIES + 1
    assert OTHER in series
    assert max(map(len, series)) <= LONGEST_NAME
    scraped = parsed(text_of(snapshot))
    assert total(scraped, "sidestep_time_in_queue_seconds_count") == 2 * MOST_SERIES + 6


def text_of(snapshot: Snapshot) -> str:
    class Once:
        def collect(self) -> Iterator[Any]:
            return families(snapshot)

    registry = CollectorRegistry()
    registry.register(Once())  # type: ignore[arg-type]
    return generate_latest(registry).decode()


# --- on the way to the broker ----------------------------------------------------------------------------------------


@dataclass
class Unreliable:
    """A client whose connection fails: before the broker gets a command, or after it has carried it out."""

    client: Any
    fails: list[str]

    def eval(self, *args: Any) -> Any:
        how = self.fails.pop(0) if self.fails else ""
        if how == "before":
            raise redis.ConnectionError("refused")
        done = self.client.eval(*args)
        if how == "after":
            raise redis.TimeoutError("no answer")
        return done


@pytest.mark.real
@given(fails=st.lists(st.sampled_from(["before", "after", ""]), max_size=8))
def test_whatever_fails_on_the_way_every_job_counts_once(place_of, fails):
    place = place_of()
    told = list(fails)
    meter = place.meter(client=lambda: Unreliable(place.client, fails))
    for _ in told:
        meter.issued("jobs", TASK, time.time())
        meter.flush()
    meter.issued("jobs", TASK, time.time())
    meter.close()
    assert total(place.scrape(), "sidestep_jobs_issued_total") == len(told) + 1


@pytest.mark.real
def test_trouble_is_told_once_and_names_no_secret(place, caplog):
    meter = place.meter(client=lambda: Unreliable(place.client, ["before", "after", "before"]))
    meter.late("jobs", 0.2)
    assert [meter.flush() for _ in range(4)] == [False, False, False, True]
    (record,) = caplog.records
    assert record.getMessage() == "the broker takes no counts (refused); they are kept until it does"


@pytest.mark.real
def test_meters_of_many_threads_and_processes_add_up(place):
    # Given three processes' meters, each used by four threads, that send while they count
    meters = [place.meter() for _ in range(3)]

    def work(meter: Meter) -> None:
        for n in range(200):
            queue, sent_in = meter.started(Request(time.time()), TASK)
            meter.ended(queue, TASK, "done" if n % 4 else "failed", sent_in)
            if n % 50 == 0:
                meter.flush()

    threads = [threading.Thread(target=work, args=(meter,)) for meter in meters for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for meter in meters:
        meter.close()
    scraped = place.scrape()
    assert total(scraped, "sidestep_jobs_ended_total", outcome="done") == 3 * 4 * 150
    assert total(scraped, "sidestep_jobs_ended_total", outcome="failed") == 3 * 4 * 50
    assert total(scraped, "sidestep_time_in_queue_seconds_count") == 3 * 4 * 200


@pytest.mark.real
def test_a_meter_sends_by_itself(place):
    meter = Meter(lambda: redis.Redis.from_url(place.url), place.prefix, every_s=0.01)
    meter.issued("jobs", TASK, time.time(), 7)
    until(lambda: total(place.scrape(), "sidestep_jobs_issued_total") == 7, "nothing was sent")
    meter.close()


@pytest.mark.real
def test_a_forked_child_counts_its_own_jobs_alone(place):
    meter = place.meter()
    meter.issued("jobs", TASK, time.time(), 5)
    # Given a child that is forked while the parent holds counts
    program = (
        "import os, sys, time, redis\n"
        "from tasks.metrics import Meter\n"
        "meter = Meter(lambda: redis.Redis.from_url(os.environ['URL']), os.environ['PLACE'], every_s=3600)\n"
        "meter.issued('jobs', 'parent', time.time(), 5)\n"
        "if os.fork() == 0:\n"
        "    meter.close()\n"  # of a child that counts nothing
        "    meter.issued('jobs', 'child', time.time(), 2)\n"
        "    meter.close()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "meter.close()\n"
    )
    env = {**os.environ, "URL": place.url, "PLACE": place.prefix, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=env, check=True, timeout=60)
    scraped = place.scrape()
    assert total(scraped, "sidestep_jobs_issued_total", task="parent") == 5
    assert total(scraped, "sidestep_jobs_issued_total", task="child") == 2
    meter.close()


def until(holds: Callable[[], bool], otherwise: str, *, seconds: float = 60) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


# --- what is lost ----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_lost_is_what_is_overdue_and_held_nowhere_however_much_ended_since(place):
    meter = place.meter()
    # Given five jobs of long ago, of which two have ended, and many that came and ended since
    old = time.time() - 400
    meter.issued("jobs", TASK, old, 5)
    for _ in range(2):
        meter.ended("jobs", TASK, "done", int(old // COHORT_S))
    meter.issued("jobs", TASK, time.time(), 100)
    # And some of so long ago that nobody could say any more that they have ended
    meter.issued("jobs", TASK, time.time() - KEPT_S - 2 * COHORT_S, 7)
    for _ in range(100):
        meter.ended(*("jobs", TASK, "done"), int(time.time() // COHORT_S))
    meter.flush()
    lost = lambda: place.scrape(lost_after_s=300)[("sidestep_jobs_lost", ())]  # noqa: E731
    assert place.scrape(lost_after_s=300)[("sidestep_jobs_overdue", ())] == 3
    assert place.scrape(lost_after_s=500)[("sidestep_jobs_overdue", ())] == 0
    assert lost() == 3
    # When the broker turns out to hold one in a queue's second list, one unacknowledged, and one as a dead letter
    place.client.lpush(place.prefix + "jobs\x06\x163", "a message")
    assert lost() == 2
    place.client.hset(place.prefix + "unacked", "tag", "a message")
    assert lost() == 1
    dead_letters.keep(place.client, place.prefix, dead_letters.Letter(1.0, "jobs", "why", "who", b"a message"))
    assert lost() == 0
    # Then they are still overdue
    assert place.scrape(lost_after_s=300)[("sidestep_jobs_overdue", ())] == 3
    assert place.scrape()[("sidestep_queue_depth_jobs", (("queue", "jobs"),))] == 1
    assert place.scrape()[("sidestep_unacked_jobs", ())] == 1
    assert place.scrape()[("sidestep_dead_letters_total", ())] == 1


@pytest.mark.real
def test_cohorts_of_more_than_an_hour_ago_make_room(place):
    meter = place.meter()
    now = time.time()
    for back in range(1500):
        meter.issued("jobs", TASK, now - back * COHORT_S)
    meter.flush()
    left = [json.loads(name)[0] for name in place.client.hkeys(place.prefix + COHORTS)]
    assert len(left) <= KEPT_S // COHORT_S + 3
    assert max(left) == int(now // COHORT_S)
    assert total(place.scrape(), "sidestep_jobs_issued_total") == 1500


# --- signs of life ---------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_workers_sign_of_life_names_its_queues_until_it_says_farewell(place):
    pulse(place.client, place.prefix, "threads@a", ["jobs", "more"])
    pulse(place.client, place.prefix, "threads@b", ["jobs"])
    scraped = place.scrape()
    assert scraped[("sidestep_queue_workers", (("queue", "jobs"),))] == 2
    assert scraped[("sidestep_queue_workers", (("queue", "more"),))] == 1
    assert ("sidestep_worker_silent_seconds", (("worker", "threads@a"),)) in scraped
    farewell(place.client, place.prefix, "threads@a")
    scraped = place.scrape()
    assert ("sidestep_worker_silent_seconds", (("worker", "threads@a"),)) not in scraped
    assert scraped[("sidestep_queue_workers", (("queue", "jobs"),))] == 1


@pytest.mark.real
def test_a_silent_worker_serves_no_queue_and_is_forgotten_after_an_hour(place):
    now = int(place.client.time()[0])  # type: ignore[index]
    for who, ago in {"long": 100, "hour": KEPT_S + 5}.items():
        place.client.hset(place.prefix + SEEN, who, f'{now - ago} ["jobs"]')
    scraped = place.scrape()
    assert scraped[("sidestep_worker_silent_seconds", (("worker", "long"),))] >= 100
    assert ("sidestep_worker_silent_seconds", (("worker", "hour"),)) not in scraped
    assert total(scraped, "sidestep_queue_workers") == 0
    # And whoever comes new makes room for himself
    pulse(place.client, place.prefix, "new", ["jobs"])
    assert set(place.client.hkeys(place.prefix + SEEN)) == {"long", "new"}


# --- workers ---------------------------------------------------------------------------------------------------------

WIRED = """
import os

from tasks import hooks, metrics
from tasks.app import make_app
from tasks.settings import from_env

settings = from_env()
every_s = float(os.environ["EVERY_S"])
app = make_app(settings, mark=metrics.connect(settings, hooks.connect(settings), every_s=every_s))
"""


def start_worker(
    children: Children,
    place: Place,
    pool: str,
    *options: str,
    name: str | None = None,
    queue: str = "jobs",
    every_s: float = 1.0,
) -> subprocess.Popen[Any]:
    """A worker that counts, ready."""
    if POOLS[pool].missing:
        pytest.skip(POOLS[pool].missing or "")
    module = children.path / "wired.py"
    if not module.exists():
        module.write_text(WIRED)
    log = children.directory / f"{uuid.uuid4().hex[:8]}.log"
    ready, told = os.pipe()
    env = {**place.settings.to_env(), "SIDESTEP_READY_FD": str(told), "EVERY_S": str(every_s)}
    if pool == "eventlet":
        env["PYTHONWARNINGS"] = EVENTLET_WARNING_FILTER
    command = [sys.executable, "-m", "celery", "-A", "wired", "worker", "-P", pool, "-c", "2", "-Q", queue]
    command += ["-n", name or f"{pool}@test", "-l", "WARNING", "--without-gossip", "--without-mingle", *options]
    with log.open("wb") as output:
        worker = children.start(command, env=env, stdout=output, stderr=output, pass_fds=(told,))
    os.close(told)
    try:
        await_ready(ready, worker, log, f"worker {pool}")
    finally:
        os.close(ready)
    return worker


def send(place: Place, *jobs: tuple[Any, ...], task: str = TASK, queue: str = "jobs", **options: Any) -> float:
    """Send jobs with these arguments as a producer would, and return when the last one was sent."""
    app, meter = make_app(place.settings), publisher(place.settings)
    assert meter
    sent = 0.0
    for args in jobs:
        sent = time.time()
        app.send_task(task, args, queue=queue, headers={SENT: sent}, **options)
        meter.issued(queue, task, sent)
    meter.close()
    app.close()
    return sent


@pytest.mark.real
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_of_every_pool_counts_each_job_once_and_all_of_its_wait(children, place, pool):
    # Given jobs that wait for their worker: some fail, one has expired, one says not when it was sent
    last_sent_s = send(place, *[("good",)] * 12, *[("one", "too many")] * 3)
    send(place, ("late",), expires=-1)
    app = make_app(place.settings)
    app.send_task(TASK, ("unstamped",))
    app.close()
    begun_s = time.time()
    worker = start_worker(children, place, pool)
    until(lambda: total(place.scrape(), "sidestep_jobs_ended_total") == 17, "the jobs did not end")
    assert total(place.scrape(), "sidestep_queue_workers", queue="jobs") == 1
    # When it ends as it should
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    # Then all its counts are there, once
    scraped = place.scrape(lost_after_s=-2 * COHORT_S)
    where = {"queue": "jobs", "task": TASK}
    outcomes = {o: total(scraped, "sidestep_jobs_ended_total", outcome=o, **where) for o in ("done", "failed")}
    assert outcomes == {"done": 13, "failed": 3}
    assert total(scraped, "sidestep_jobs_ended_total", outcome="revoked", **where) == 1
    assert total(scraped, "sidestep_jobs_issued_total", **where) == 16
    assert total(scraped, "sidestep_jobs_unstamped_total", **where) == 1
    assert total(scraped, "sidestep_time_in_queue_seconds_count", **where) == 15
    # And each waited at least until the worker was started
    assert total(scraped, "sidestep_time_in_queue_seconds_sum") >= 15 * (begun_s - last_sent_s)
    # And of all cohorts nothing is left, nor of the worker
    assert scraped[("sidestep_jobs_overdue", ())] == 0
    assert place.client.hgetall(place.prefix + SEEN) == {}


@pytest.mark.real
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_that_ends_as_it_should_leaves_no_count_behind(children, place, pool):
    # Given one that would not send its counts before tomorrow
    worker = start_worker(children, place, pool, every_s=86400)
    send(place, *[(100,)] * 3, task="sidestep.snooze")
    keys = [place.prefix + key for key in ("jobs", "unacked")]
    until(lambda: not place.client.exists(*keys), "the jobs were not taken")
    assert total(place.scrape(), "sidestep_jobs_ended_total") == 0
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    assert total(place.scrape(), "sidestep_jobs_ended_total", outcome="done") == 3


@pytest.mark.real
def test_jobs_of_killed_and_replaced_workers_add_up(children, place):
    # Given two workers on two queues, one of which renews its processes all the time
    workers = [
        start_worker(children, place, "prefork", "--max-tasks-per-child=3", queue="a"),
        start_worker(children, place, "threads", queue="b"),
    ]
    send(place, *[("x",)] * 10, queue="a")
    send(place, *[("x",)] * 10, queue="b")
    until(lambda: total(place.scrape(), "sidestep_jobs_ended_total") == 20, "the jobs did not end")
    # When they are killed, and another takes up the work
    for worker in workers:
        kill(worker)
    workers = [start_worker(children, place, "solo", queue="a,b", name="third@test")]
    send(place, *[("x",)] * 5, queue="a")
    until(lambda: total(place.scrape(), "sidestep_jobs_ended_total") == 25, "the jobs did not end")
    scraped = place.scrape()
    assert total(scraped, "sidestep_jobs_ended_total", queue="a", outcome="done") == 15
    assert total(scraped, "sidestep_jobs_ended_total", queue="b", outcome="done") == 10
    # And the killed ones have said no farewell
    assert {dict(labels)["worker"] for (name, labels) in scraped if name == "sidestep_worker_silent_seconds"} == {
        "prefork@test",
        "threads@test",
        "third@test",
    }
    kill(workers[0])


@pytest.mark.real
def test_what_celery_itself_publishes_is_stamped_and_counted(children, place):
    worker = start_worker(children, place, "threads")
    program = (
        "from tasks import metrics\n"
        "from tasks.app import make_app\n"
        "from tasks.settings import from_env\n"
        "settings = from_env()\n"
        "meter = metrics.publisher(settings)\n"
        "metrics.stamp(meter)\n"
        "app = make_app(settings)\n"
        "for n in range(4):\n"
        "    app.tasks['sidestep.echo'].delay(n)\n"
        # As a retry does, which copies the headers of its first time
        "app.tasks['sidestep.echo'].apply_async((5,), headers={metrics.SENT: 1.0})\n"
        "meter.close()\n"
    )
    env = {**os.environ, **place.settings.to_env(), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=env, check=True, timeout=60)
    until(lambda: total(place.scrape(), "sidestep_jobs_ended_total", outcome="done") == 5, "the jobs did not end")
    scraped = place.scrape()
    assert total(scraped, "sidestep_jobs_issued_total", queue="jobs", task=TASK) == 5
    assert total(scraped, "sidestep_time_in_queue_seconds_count") == 5
    kill(worker)


# Besides what every client does when it connects: hello, auth, select, client|setinfo.
COUNTING = "+eval +get +set +hincrby +hlen +hgetall +hdel +hset +time"
"""What workers and producers need for their counts and signs of life, on the keys `metrics*` under the app's prefix."""
READING = "+time +hgetall +hlen +llen +hget"
"""What the exporter needs, to read only, on all keys under the app's prefix."""


@pytest.mark.real
def test_counting_and_reading_need_no_more_rights_than_documented(place):
    said = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert COUNTING in said
    assert READING in said
    both = "+hello +auth +select +client|setinfo"
    password, host = "made-up", urllib.parse.urlsplit(place.url).netloc.rpartition("@")[2]
    clients = {}
    for user, keys, rights in (
        ("counts", f"~{place.prefix}metrics*", COUNTING),
        ("reads", f"%R~{place.prefix}*", READING),
    ):
        args = ["reset", "on", f">{password}", keys, *both.split(), *rights.split()]
        place.client.execute_command("ACL", "SETUSER", user, *args)
        url = f"redis://{user}:{password}@{host}/0"
        clients[user] = redis.Redis.from_url(url, decode_responses=True)
    meter = place.meter(client=lambda: clients["counts"])
    # Given enough cohorts that old ones must make room
    for back in range(1500):
        meter.issued("jobs", TASK, time.time() - back * COHORT_S)
    assert meter.flush()
    pulse(clients["counts"], place.prefix, "new", ["jobs"])
    place.client.hset(place.prefix + SEEN, "old", '1 ["jobs"]')
    pulse(clients["counts"], place.prefix, "newer", ["jobs"])
    farewell(clients["counts"], place.prefix, "new")
    snapshot = read(clients["reads"], place.prefix)
    assert set(snapshot.workers) == {"newer"}
    assert snapshot.counts[("issued", "jobs", TASK)] == 1500
    # And what was not allowed is refused, and told
    meter = Meter(lambda: clients["reads"], place.prefix, every_s=3600)
    meter.issued("jobs", TASK, time.time())
    assert not meter.flush()
    for client in clients.values():
        with pytest.raises(redis.ResponseError, match="permission"):
            client.flushall()


# --- the exporter ----------------------------------------------------------------------------------------------------

EXAMPLE = Snapshot(
    now_s=NOW_S,
    counts={
        ("issued", "cpu", TASK): 9,
        ("ended", "cpu", TASK, "done"): 8,
        ("wait", "cpu", TASK, 2): 5,
        ("wait", "cpu", TASK, len(BUCKETS_S)): 1,
        ("wait_us", "cpu", TASK): 400_500_000,
        ("lag", "cpu", 0): 9,
        ("lag_us", "cpu"): 1500,
        ("unstamped", "cpu", TASK): 1,
        ("early", "cpu", TASK): 1,
    },
    cohorts={int(NOW_S // COHORT_S) - 100: (9, 8)},
    workers={"threads@a": exporter.Seen(3.0, ("cpu",))},
    depths={"cpu": 0},
)


def test_every_metric_says_what_it_is():
    text = text_of(EXAMPLE)
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert names == {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert all(len(line.split(maxsplit=3)[3]) > 20 for line in text.splitlines() if line.startswith("# HELP"))
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert set(kinds.values()) == {"counter", "gauge", "histogram"}
    assert {name for name in names if name.endswith("_total")} == {
        f"{name}_total" for name, kind in kinds.items() if kind == "counter"
    }
    assert all(name.startswith("sidestep_") for name in names)
    scraped = parsed(text)
    assert total(scraped, "sidestep_time_in_queue_seconds_bucket", le="0.005") == 5
    assert total(scraped, "sidestep_time_in_queue_seconds_bucket", le="300.0") == 5
    assert total(scraped, "sidestep_time_in_queue_seconds_bucket", le="+Inf") == 6
    assert total(scraped, "sidestep_time_in_queue_seconds_sum") == 400.5
    assert total(scraped, "sidestep_producer_lag_seconds_sum", queue="cpu") == 0.0015
    assert scraped[("sidestep_jobs_lost", ())] == 1


FINDINGS = [
    {"claim": "a/b", "verdict": "supported", "because": "", "estimate": {"value": 1.5, "low": 1, "high": None, "n": 5}},
    {"claim": "a/c", "verdict": "invalid", "because": "", "estimate": None},
]


def test_the_exporter_needs_nothing_that_measures_but_knows_its_words():
    assert set(exporter.VERDICTS) == set(Verdict)
    assert set(exporter.SUITES) == {where + name for where in ("", "*/") for name in (FILE, PACKED)}
    program = "import sys, lab.exporter; print(*sorted({'numpy', 'psutil', 'matplotlib', 'rich'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""


def test_verdicts_are_states_with_their_estimates():
    scraped = flat(verdicts(exporter.Judged(12.5, tuple(FINDINGS))))
    assert total(scraped, "sidestep_claim_verdict", claim="a/b", verdict="supported") == 1
    assert total(scraped, "sidestep_claim_verdict", claim="a/b") == 1
    assert total(scraped, "sidestep_claim_verdict", verdict="invalid") == 1
    assert {dict(labels)["bound"] for name, labels in scraped if name == "sidestep_claim_estimate"} == {"value", "low"}
    assert flat(verdicts(None)) == {}


def test_the_newest_suite_is_judged_and_a_damaged_one_is_one_line(tmp_path, capsys):
    assert newest(tmp_path) is None
    latest = Newest(tmp_path)
    assert latest() is None
    SuiteFile(tmp_path / "first").save(plausible_suite(EXPERIMENTS["gil-cpu"]))
    latest.wait()
    latest()
    latest.wait()
    judged = latest()
    assert judged
    assert {finding["claim"] for finding in judged.findings} == {claim.id for claim in EXPERIMENTS["gil-cpu"].claims}
    # When a newer one cannot be read, that is told, and the last verdicts stay
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "suite.json").write_text("{")
    os.utime(tmp_path / "damaged" / "suite.json", (judged.written_s + 10,) * 2)
    latest()
    latest.wait()
    assert latest() == judged
    (line,) = capsys.readouterr().err.splitlines()
    assert "no verdicts" in line
    assert "cannot be judged" in line


def test_findings_that_lie_there_are_shown_without_anything_that_could_judge(tmp_path, monkeypatch, capsys):
    # Given what `sidestep report --json` wrote, newer than a suite, and nothing that could be run
    monkeypatch.setattr(exporter.sys, "executable", "/nowhere")
    SuiteFile(tmp_path / "run").save(plausible_suite(EXPERIMENTS["gil-cpu"]))
    file = tmp_path / exporter.FINDINGS
    file.write_text(json.dumps({"suite": "runs/x/suite.json", "findings": FINDINGS}))
    os.utime(file, (newest(tmp_path)[0].stat().st_mtime + 10,) * 2)  # type: ignore[index]
    latest = Newest(tmp_path)
    latest()
    latest.wait()
    judged = latest()
    assert judged
    assert judged.findings == tuple(FINDINGS)
    assert judged.written_s == file.stat().st_mtime
    # When it is being written again, or is something else, one line tells it and the last verdicts stay
    for at, content in enumerate(("", '{"findings": [{"claim": "a/b"}]}', '{"findings": 7}')):
        file.write_text(content)
        os.utime(file, (judged.written_s + 10 + at,) * 2)
        latest()
        latest.wait()
        assert latest() == judged
        (line,) = capsys.readouterr().err.splitlines()
        assert "holds nothing that `sidestep report --json` wrote" in line


@pytest.mark.real
def test_what_report_writes_as_json_is_what_the_exporter_reads(tmp_path):
    suite = tmp_path / "run"
    SuiteFile(suite).save(plausible_suite(EXPERIMENTS["gil-cpu"]))
    command = [sys.executable, "-m", "experiments", "report", str(suite), "--json"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False, cwd=ROOT)
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / exporter.FINDINGS).write_bytes(done.stdout)
    latest = Newest(tmp_path / "findings")
    latest()
    latest.wait()
    judged = latest()
    assert judged
    assert {finding["claim"] for finding in judged.findings} == {claim.id for claim in EXPERIMENTS["gil-cpu"].claims}
    assert total(flat(verdicts(judged)), "sidestep_claim_verdict") == len(judged.findings)


@pytest.mark.real
def test_while_the_broker_is_away_the_exporter_says_so_once_and_goes_on(place, capsys):
    absent = Settings(broker="redis://:hunter2@127.0.0.1:1/0")
    away = Everything(open_client(absent, decode_responses=True), absent, (), 300, None)
    for _ in range(3):
        assert flat(away.collect()) == {("sidestep_up", ()): 0}
    (line,) = capsys.readouterr().err.splitlines()
    assert "the broker at 127.0.0.1:1 cannot be read" in line
    assert "hunter2" not in line
    # And with an answer all is there, with queues that nobody has named yet
    here = Everything(place.client, place.settings, ("named",), 300, None)
    scraped = flat(here.collect())
    assert scraped[("sidestep_up", ())] == 1
    assert scraped[("sidestep_queue_depth_jobs", (("queue", "named"),))] == 0


def test_who_counts_tries_a_broker_that_hangs_up_once_and_not_again():
    # Given a server that ends every connection: a worker's loop waits for its answer
    attempts = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    attempts.append(1)
                    connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        client = open_client(Settings(broker=f"redis://127.0.0.1:{listener.getsockname()[1]}/0"))
        with pytest.raises(redis.ConnectionError):
            pulse(client, "sidestep:", "somebody", ["jobs"])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(attempts) == 1


@pytest.mark.real
def test_strange_keys_do_not_end_the_exporter(place, capsys):
    # Given a queue by the name of another key, and counts that somebody has written over
    pulse(place.client, place.prefix, "threads@a", ["metrics:seen"])
    assert flat(Everything(place.client, place.settings, (), 300, None).collect())[("sidestep_up", ())] == 1
    place.client.set(place.prefix + COHORTS, "no hash")
    assert flat(Everything(place.client, place.settings, (), 300, None).collect()) == {("sidestep_up", ()): 0}
    assert len(capsys.readouterr().err.splitlines()) == 1


BAD_INPUT = {
    "no url": (["--broker", "nonsense"], "broker URL"),
    "rabbitmq": (["--broker", "amqp://localhost"], "the counts are kept by a Redis"),
    "no port": (["--listen", "localhost"], "host:port"),
    "a port that is none": (["--listen", "localhost:99999"], "host:port"),
    "no bound": (["--lost-after", "2h"], "between 0 and 60m"),
    "no folder": (["--runs", "/nowhere"], "no folder"),
    "no such option": (["--nonsense"], "nonsense"),
}


@pytest.mark.parametrize("args", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(args, capsys, monkeypatch):
    options, said = BAD_INPUT[args]
    monkeypatch.setattr(sys, "argv", ["exporter", *options])
    with pytest.raises(SystemExit) as ended:
        exporter.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sidestep: ")
    assert said in line


def start_exporter(children: Children, place: Place, *options: str) -> tuple[subprocess.Popen[Any], str]:
    process = children.start(
        [sys.executable, "-m", "lab.exporter", "--listen", "127.0.0.1:0", *options],
        env=place.settings.to_env(),
        python_path=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), "the exporter did not start"
    return process, url


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  our own, on loopback
        return str(answer.read().decode())


@pytest.mark.real
def test_the_exporter_serves_keeps_its_size_and_ends_when_asked(children, place):
    meter = place.meter()
    meter.issued("jobs", TASK, time.time(), 3)
    meter.close()
    process, url = start_exporter(children, place)
    assert total(parsed(fetch(url)), "sidestep_jobs_issued_total") == 3
    # An earlier taken port is one line
    second = subprocess.run(
        [sys.executable, "-m", "lab.exporter", "--listen", urllib.parse.urlsplit(url).netloc],
        env={**os.environ, **place.settings.to_env()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (second.returncode, second.stdout) == (2, "")
    assert re.fullmatch(
        r"sidestep: cannot listen on 127\.0\.0\.1:\d+ \(.*\); choose another with --listen\n", second.stderr
    )
    # Its size after many scrapes is what it was after the first few
    for _ in range(50):
        fetch(url)
    size = psutil.Process(process.pid).memory_info().rss
    for _ in range(400):
        fetch(url)
    assert psutil.Process(process.pid).memory_info().rss - size < 4_000_000
    process.terminate()
    assert process.wait(30) == 0


# --- Prometheus ------------------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """The path of a program that a laptop may lack."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {name}: apt-get install prometheus")
        pytest.skip(f"{name} is not installed; Debian's package `prometheus` has it")
    return path


def board_queries() -> list[str]:
    board = json.loads(BOARD.read_text("utf-8"))
    panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [*panels, *(note["expr"] for note in board["annotations"]["list"])]


def console_queries() -> list[str]:
    """Those of our own page in Prometheus."""
    page = (DEPLOY / "prometheus" / "consoles" / "sidestep.html").read_text("utf-8")
    return re.findall(r'^  \[".*", ".*", "(.*)"\],$', page, re.MULTILINE)


def filled(query: str) -> str:
    """A query of the dashboard as Grafana would ask it."""
    return query.replace("$__rate_interval", "1m").replace("$queue", ".*")


def test_the_dashboard_and_the_rules_ask_only_for_metrics_that_there_are():
    offered = {name for name, _ in parsed(text_of(EXAMPLE))} | {"sidestep_up"}
    offered |= {metric.name for metric in verdicts(None)}
    rules = RULES.read_text("utf-8")
    assert len(console_queries()) >= 10
    asked = set(re.findall(r"\bsidestep_\w+", "\n".join([rules, *board_queries(), *console_queries()])))
    assert asked <= offered, asked - offered
    # And somebody looks at each but the ends of histograms
    unseen = {name for name in offered - asked if not name.endswith(("_sum", "_count", "_created"))}
    assert unseen <= {"sidestep_claim_estimate"}
    assert len(board_queries()) > 20


def test_the_dashboard_is_one_that_can_be_imported():
    board = json.loads(BOARD.read_text("utf-8"))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {"${datasource}"}
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "queue"}
    # No panel lies on another
    cells: list[tuple[int, int]] = []
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells += [(x, y) for x in columns for y in rows]
    assert len(cells) == len(set(cells))


@pytest.mark.stack
def test_the_rules_are_valid_and_each_alert_fires_when_it_should_and_not_before():
    promtool = tool("promtool")
    checks = [
        ["check", "rules", str(RULES)],
        ["check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")],
        ["test", "rules", str(RULES.with_name("rules_test.yml"))],
    ]
    for check in checks:
        done = subprocess.run([promtool, *check], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text("utf-8")))
    tested = set(re.findall(r"alertname: (\w+)", RULES.with_name("rules_test.yml").read_text("utf-8")))
    assert alerts == tested


@dataclass
class Prometheus:
    """A real one, that has loaded our rules."""

    url: str

    def ask(self, path: str, **query: str) -> Any:
        try:
            answer = json.loads(fetch(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"))
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
        assert answer["status"] == "success", (query, answer)
        return answer["data"]

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            return "Ready" in fetch(f"{self.url}/-/ready")
        return False

    def firing(self) -> set[tuple[str, str]]:
        alerts = self.ask("alerts")["alerts"]
        return {(a["labels"]["alertname"], a["labels"].get("worker", "")) for a in alerts if a["state"] == "firing"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_prometheus(children: Children, targets: dict[str, str]) -> Prometheus:
    home = children.directory / f"prometheus-{uuid.uuid4().hex[:8]}"
    home.mkdir()
    shutil.copy(RULES, home)
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8")
    # The committed file, with this test's addresses and a shorter interval
    for service, address in targets.items():
        assert service in config
        config = config.replace(f'"{service}"', f'"{address}"')
    (home / "prometheus.yml").write_text(config.replace(": 5s", ": 1s"))
    port = free_port()
    command = [tool("prometheus"), f"--config.file={home / 'prometheus.yml'}", f"--storage.tsdb.path={home / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (home / "log").open("wb") as log:
        children.start(command, stdout=log, stderr=log, cwd=str(home))
    made = Prometheus(f"http://127.0.0.1:{port}")
    until(made.ready, "Prometheus did not start")
    return made


@pytest.mark.real
@pytest.mark.stack
def test_a_real_prometheus_answers_every_query_of_the_dashboard_and_tells_when_a_worker_goes(children, place, tmp_path):
    tool("prometheus")
    from tests.test_flower import start_flower

    # Given workers of two pools, Flower, the exporter with a suite's verdicts, and Prometheus
    workers = {pool: start_worker(children, place, pool, "-E") for pool in ("prefork", "threads")}
    flower = start_flower(children, place.settings)
    SuiteFile(tmp_path / "runs").save(plausible_suite(EXPERIMENTS["gil-cpu"]))
    _, url = start_exporter(children, place, "--runs", str(tmp_path / "runs"))
    targets = {
        "exporter:9808": urllib.parse.urlsplit(url).netloc,
        "flower:5555": urllib.parse.urlsplit(flower.url).netloc,
    }
    prometheus = start_prometheus(children, targets)
    meter = publisher(place.settings)
    assert meter
    # When jobs come and go
    empty = {*board_queries(), *console_queries()}

    def all_answered() -> bool:
        send(place, *[("x",)] * 5)
        meter.late("jobs", 0.002)
        meter.flush()
        time.sleep(0.2)  # so many jobs a second are enough
        for query in sorted(empty):
            if prometheus.ask("query", query=filled(query))["result"]:
                empty.discard(query)
        return not empty - MAY_BE_EMPTY

    try:
        until(all_answered, "some queries found nothing", seconds=90)
    except AssertionError:
        pytest.fail(f"found nothing: {sorted(empty - MAY_BE_EMPTY)}")
    meter.close()
    assert {target["health"] for target in prometheus.ask("targets")["activeTargets"]} == {"up"}
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert prometheus.firing() == set()
    # And one worker is killed, and the other asked to end
    kill(workers["threads"])
    workers["prefork"].terminate()
    gone = {("WorkerGone", "threads@test"), ("WorkerStopped", "prefork@test")}
    until(lambda: gone <= prometheus.firing(), "no alert fired", seconds=120)
    assert prometheus.ask("query", query='ALERTS{alertstate="firing"}')["result"]


MAY_BE_EMPTY = {
    # While nothing is wrong
    query
    for query in board_queries()
    if query.startswith("ALERTS") or "_early_" in query or "_unstamped_" in query
}

"""Celery's workers of every pool on the transport: nothing is lost, whoever is killed when.

SIDESTEP_TEST_KILLS and SIDESTEP_TEST_JOBS make the tour of deaths longer than the four and the 1200 jobs of every day.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
from celery import Celery

from lab.broker import own_server
from lab.children import Children, kill, last_words, tree
from tasks.pools import POOLS

pytestmark = pytest.mark.real

KILLS = int(os.environ.get("SIDESTEP_TEST_KILLS", "4"))
JOBS = int(os.environ.get("SIDESTEP_TEST_JOBS", "1200"))
LONGEST_S = 120 + 10 * KILLS  # for what takes long only if it is wrong
OURS = "sidestep_transport:Transport"
CONCURRENCY = {"solo": 1, "prefork": 2, "threads": 4, "eventlet": 20, "gevent": 20, "processes": 2}


class Stage:
    """A broker, an app to publish with, and workers."""

    def __init__(self, children: Children, broker, folder: Path) -> None:
        self.children, self.broker, self.folder = children, broker, folder
        self.client = redis.Redis.from_url(broker.url)
        self.client.flushall()
        self.log = folder / "done"
        self.app = Celery("publisher", broker=broker.url)
        self.workers = 0

    def publish(self, task: str, *calls: tuple, **options) -> None:
        with self.app.producer_pool.acquire(block=True) as producer, producer.batch(500):
            for args in calls:
                self.app.send_task(f"tests.transport_app.{task}", args, producer=producer, retry=False, **options)

    def worker(
        self, pool: str, *, transport: str = OURS, concurrency: int | None = None, options=None, queues="celery", **conf
    ):
        if pool in POOLS and POOLS[pool].missing:
            pytest.skip(POOLS[pool].missing)
        self.workers += 1
        settings = {
            "broker": self.broker.url,
            "log": str(self.log),
            "conf": {
                "broker_transport": transport,
                "broker_transport_options": {
                    **{"visibility_timeout": 3, "unacked_restore_interval": 1, "unacked_restore_throttle": 1},
                    **(options or {}),
                },
                **conf,
            },
        }
        log = (self.folder / f"worker-{self.workers}").open("wb")
        count, name = str(concurrency or CONCURRENCY[pool]), f"w{self.workers}@test"
        if pool == "processes":
            command = [sys.executable, "-m", "tasks.processes", count, name, "tests.transport_app"]
        else:
            command = [sys.executable, "-m", "celery", "-A", "tests.transport_app", "worker"]
            command += ["-P", pool, "-c", count, "-n", name]
        command += ["-Q", queues, "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return self.children.start(
            command,
            env={"TRANSPORT_TEST": json.dumps(settings), "EVENTLET_NO_GREENDNS": "yes"},
            python_path=Path(__file__).parent.parent,
            cwd=str(self.folder),
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def done(self) -> Counter:
        if not self.log.exists():
            return Counter()
        return Counter(int(line.split()[0]) for line in self.log.read_text().splitlines())

    def doers(self) -> dict[int, list[int]]:
        """Of each job that was done, the processes that did it."""
        found: dict[int, list[int]] = {}
        for line in self.log.read_text().splitlines():
            number, pid = map(int, line.split())
            found.setdefault(number, []).append(pid)
        return found

    def restart_broker(self, *, when: Callable[[], bool] = lambda: True) -> None:
        """Kill the server and start it again on its files, as soon as that is so."""
        server = psutil.Process(self.client.info("server")["process_id"])
        binary, folder = server.exe(), server.cwd()
        server.kill()
        server.wait()
        assert self.wait(when), self.words()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.children.start([binary, f"{folder}/server.conf"], cwd=folder, **quiet)
        assert self.wait(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False

    def wait(self, what: Callable[[], bool], within_s: float = LONGEST_S) -> bool:
        until_s = time.monotonic() + within_s
        while not what():
            if time.monotonic() > until_s:
                return False
            time.sleep(0.02)
        return True

    def unacked(self) -> tuple[int, int]:
        return self.client.hlen("unacked"), self.client.zcard("unacked_index")

    def words(self) -> str:
        return " || ".join(last_words(self.folder / f"worker-{i + 1}", 4) for i in range(self.workers))


@pytest.fixture(scope="module")
def server():
    with Children() as children, own_server(children, persist=True) as broker:
        yield children, broker


@pytest.fixture
def stage(server, tmp_path):
    made = Stage(*server, tmp_path)
    running: list = []
    start = made.worker

    def worker(*args, **kwargs):
        running.append(start(*args, **kwargs))
        return running[-1]

    made.worker = worker  # type: ignore[method-assign]
    yield made
    for each in running:
        kill(each)


def stop(process) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


DEATHS = ("SIGKILL", "broker restart", "SIGTERM")
"""Of a worker, of the server under it, and an orderly one."""
SLOW_STOP_S = 20
"""A prefork worker that stops now and then misses its children's last results, waits half a minute and gives their jobs
back; with kombu's own transport as well: docs/upstream.md."""


@pytest.mark.parametrize("pool", CONCURRENCY)
def test_nothing_is_lost_when_workers_are_killed_or_stopped_or_the_broker_restarts(stage, pool):
    # Given jobs that are acknowledged when they are done
    rng = random.Random(pool)
    stage.publish("done", *((number, 0.002) for number in range(JOBS)))
    conf = {"task_acks_late": True, "worker_prefetch_multiplier": 4}
    held = CONCURRENCY[pool] * 4
    ways = [DEATHS[number % len(DEATHS)] for number in range(KILLS)]
    rng.shuffle(ways)
    # When something dies under them again and again
    deaths: list[tuple[str, set[int]]] = []
    process = stage.worker(pool, **conf)
    for way in ways:
        target = min(len(stage.done()) + rng.randint(1, max(1, JOBS // (KILLS + 1))), JOBS - 1)
        assert stage.wait(lambda target=target: len(stage.done()) >= target), (deaths, stage.words())
        deaths.append((way, {member.pid for member in tree(process)}))
        if way == "broker restart":
            stage.restart_broker()
            continue
        if way == "SIGKILL":
            kill(process)
        else:
            begun_s = time.monotonic()
            assert stop(process) == 0, stage.words()
            if pool == "prefork" and time.monotonic() - begun_s > SLOW_STOP_S:
                deaths[-1] = ("slow stop", deaths[-1][1])
        process = stage.worker(pool, **conf)
    # Then all are done
    assert stage.wait(lambda: len(stage.done()) == JOBS), (JOBS - len(stage.done()), stage.unacked(), stage.words())
    assert stage.wait(lambda: stage.unacked() == (0, 0)), stage.unacked()
    assert stop(process) == 0
    # And twice only what a worker held that was killed, or that lost its broker; an orderly end costs nothing
    twice = [
        (number, doers, [way for way, pids in deaths if pids & set(doers) and way != "SIGTERM"])
        for number, doers in stage.doers().items()
        if len(doers) > 1
    ]
    assert [(number, doers, deaths) for number, doers, causes in twice if not causes] == []
    assert sum(len(doers) - 1 for _, doers, _ in twice) <= held * sum(way != "SIGTERM" for way, _ in deaths), twice


@pytest.mark.parametrize("pool", CONCURRENCY)
def test_a_worker_that_stops_has_told_everything_and_returns_the_rest(stage, pool):
    stage.publish("done", *((number, 0.01) for number in range(400)))
    process = stage.worker(pool, task_acks_late=True)
    assert stage.wait(lambda: len(stage.done()) >= 20), stage.words()
    assert stop(process) == 0
    # Then nothing is left unacknowledged, and nothing was done twice
    assert stage.unacked() == (0, 0)
    assert len(stage.done()) + stage.client.llen("celery") == 400
    assert set(stage.done().values()) == {1}


@pytest.mark.parametrize("pool", CONCURRENCY)
def test_a_job_may_be_longer_than_the_visibility_timeout(stage, pool):
    # Given a job of three visibility timeouts, and another worker that would like to have it
    stage.publish("done", (1, 3.0))
    stage.worker(pool, task_acks_late=True, options={"visibility_timeout": 1})
    assert stage.wait(lambda: stage.unacked() == (1, 1)), stage.words()
    stage.worker("threads", task_acks_late=True, options={"visibility_timeout": 1})
    assert stage.wait(lambda: stage.unacked() == (0, 0)), stage.words()
    assert stage.done() == {1: 1}


@pytest.mark.parametrize("pool", ["prefork", "threads", "eventlet", "gevent"])
def test_an_eta_beyond_the_visibility_timeout_is_kept_and_kept_once(stage, pool):
    stage.publish("done", (1,), countdown=3)
    stage.worker(pool, options={"visibility_timeout": 1})
    stage.worker("threads", options={"visibility_timeout": 1})
    assert stage.wait(lambda: stage.done()[1] > 0), stage.words()
    assert stage.wait(lambda: stage.unacked() == (0, 0))
    assert stage.done() == {1: 1}


def test_stock_workers_share_the_queue(stage):
    stage.publish("done", *((number, 0.002) for number in range(600)))
    for transport in (OURS, "redis"):
        stage.worker("threads", transport=transport)
    assert stage.wait(lambda: len(stage.done()) == 600), stage.words()
    assert stage.wait(lambda: stage.unacked() == (0, 0))
    assert set(stage.done().values()) == {1}
    # And both had some of them
    assert len({line.split()[1] for line in stage.log.read_text().splitlines()}) == 2


def test_without_prefetching_a_worker_holds_no_more_than_it_works_on(stage):
    stage.publish("done", *((number, 0.05) for number in range(60)))
    stage.worker("threads", concurrency=3, worker_disable_prefetch=True, task_acks_late=True)
    most = 0

    def finished() -> bool:
        nonlocal most
        most = max(most, stage.unacked()[0])
        return len(stage.done()) == 60

    assert stage.wait(finished), stage.words()
    # It may have finished some and not yet told
    assert 1 <= most <= 6


def test_a_worker_that_shuts_down_tells_what_is_finished_while_another_job_runs_on(stage):
    # Given two jobs in a worker that shall end, one of them much longer than the visibility timeout
    stage.publish("linger", (1, 1.5), (2, 10.0))
    process = stage.worker("prefork", task_acks_late=True, options={"visibility_timeout": 1})
    assert stage.wait(lambda: stage.done() == {1: 1, 2: 1}), stage.words()
    process.send_signal(signal.SIGTERM)
    # When the short one is finished
    assert stage.wait(lambda: stage.unacked() == (1, 1) or process.poll() is not None), stage.words()
    # Then the broker knows it before the long one is
    assert process.poll() is None
    stage.worker("threads", task_acks_late=True, options={"visibility_timeout": 1})
    assert stage.wait(lambda: stage.unacked() == (0, 0)), stage.words()
    assert process.wait(60) == 0
    assert stage.done() == {1: 1, 2: 1}


def test_a_soft_shutdown_waits_for_short_jobs_and_returns_the_long_ones(stage):
    stage.publish("done", (1, 1.0))
    stage.publish("linger", (2, 60.0))
    process = stage.worker("prefork", task_acks_late=True, worker_soft_shutdown_timeout=4.0)
    assert stage.wait(lambda: stage.done()[2] == 1), stage.words()
    process.send_signal(signal.SIGQUIT)
    assert stage.wait(lambda: stage.client.llen("celery") == 1, 40), (stage.unacked(), stage.words())
    assert stage.done() == {1: 1, 2: 1}
    assert stage.unacked() == (0, 0)


def test_a_worker_that_is_quit_returns_what_it_works_on_and_what_it_has_not_begun(stage):
    stage.publish("linger", *((number, 60.0) for number in range(6)))
    process = stage.worker("prefork", concurrency=1, task_acks_late=True)
    assert stage.wait(lambda: stage.done() == {0: 1} and stage.unacked() == (4, 4)), stage.words()
    process.send_signal(signal.SIGQUIT)
    assert stage.wait(lambda: stage.client.llen("celery") == 6, 40), (stage.unacked(), stage.words())
    assert stage.unacked() == (0, 0)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_reject_and_requeue_work_in_a_worker(stage, pool):
    stage.publish("requeue_once", (1,), (2,))
    stage.worker(pool, task_acks_late=True)
    assert stage.wait(lambda: stage.done() == {1: 1, 2: 1}), stage.words()
    assert stage.wait(lambda: stage.unacked() == (0, 0))


def test_a_job_that_kills_its_process_ends_as_a_dead_letter(stage):
    # Given Celery's setting that sends it back for ever
    stage.publish("deadly", (1,))
    stage.publish("done", (2, 0.0))
    stage.worker("prefork", options={"requeue_limit": 3})
    assert stage.wait(lambda: stage.client.llen("unacked_dead_letters") == 1), stage.words()
    assert stage.wait(lambda: stage.done() == {1: 3, 2: 1}), stage.done()


@pytest.mark.parametrize("pool", CONCURRENCY)
def test_a_broken_connection_loses_nothing(stage, pool):
    stage.publish("done", *((number, 0.005) for number in range(500)))
    process = stage.worker(pool)
    for share in (50, 150, 250):
        assert stage.wait(lambda share=share: len(stage.done()) >= share), stage.words()
        for each in stage.client.client_list():
            if each["id"] != str(stage.client.client_id()):
                with contextlib.suppress(redis.ResponseError):
                    stage.client.client_kill_filter(_id=each["id"])
    assert stage.wait(lambda: len(stage.done()) == 500), (len(stage.done()), stage.unacked(), stage.words())
    assert stage.wait(lambda: stage.unacked() == (0, 0)), stage.unacked()
    assert psutil.pid_exists(process.pid)
    assert stop(process) == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_job_that_runs_while_the_broker_is_away_is_done_once_and_what_waited_is_done_too(stage, pool):
    # Given a job much longer than the visibility timeout, and others that wait behind it
    stage.publish("linger", (1, 12.0))
    stage.publish("done", *((number, 0.0) for number in range(2, 6)))
    options = {"visibility_timeout": 2}
    stage.worker(pool, concurrency=1, task_acks_late=True, worker_prefetch_multiplier=4, options=options)
    assert stage.wait(lambda: stage.done()[1] == 1 and stage.unacked() == (4, 4)), stage.words()
    # When the broker goes, and comes back after the worker has noticed
    log = stage.folder / "worker-1"
    stage.restart_broker(when=lambda: b"Cannot connect" in log.read_bytes())
    assert stage.wait(lambda: log.read_bytes().count(b"Connected to") == 2), stage.words()
    # Then another worker gets what waited, and not what is being done
    stage.worker("solo", task_acks_late=True, options=options)
    assert stage.wait(lambda: len(stage.done()) == 5), (stage.done(), stage.unacked(), stage.words())
    assert stage.wait(lambda: stage.unacked() == (0, 0)), (stage.unacked(), stage.words())
    assert stage.done()[1] == 1


def test_remote_control_reaches_a_worker_that_is_busy_with_many_short_jobs(stage):
    stage.publish("done", *((number, 0.02) for number in range(300)))
    stage.worker("solo", worker_prefetch_multiplier=64)
    assert stage.wait(lambda: len(stage.done()) >= 5), stage.words()
    app = Celery("control", broker=stage.broker.url)
    app.conf.broker_transport = OURS
    assert app.control.ping(timeout=5) == [{"w1@test": {"ok": "pong"}}]
    assert len(stage.done()) < 300

"""The transport of our own beside kombu's, in turns within one run, as ratios: draining, idle latency, idle traffic.

Run as `.venv/bin/python -m scripts.transport [--jobs 3000] [--rounds 3] [POOL ...]` from the checkout. Each round
starts a worker of each transport, in turns of changing order, on a queue that is full: the time from the first tenth of
the jobs to the last counts. Then single jobs are sent to it while it has nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from celery import Celery

from lab.broker import own_server
from lab.children import Children, kill, tree

ROOT = Path(__file__).resolve().parent.parent
TRANSPORTS = {"ours": "sidestep_transport:Transport", "stock": "redis"}
CONCURRENCY = {"solo": 1, "prefork": 2, "threads": 2, "eventlet": 100, "gevent": 100}
SINGLES = 60
PAUSE_S = 0.05
IDLE_S = 5.0
PATIENCE_S = 120.0


@contextlib.contextmanager
def worker(children: Children, url: str, log: Path, pool: str, transport: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker until the block ends."""
    conf = {"broker_transport": TRANSPORTS[transport], "worker_prefetch_multiplier": 64}
    settings = {"broker": url, "log": str(log), "conf": conf}
    command = [sys.executable, "-m", "celery", "-A", "tests.transport_app", "worker", "-P", pool, "-l", "ERROR"]
    command += ["-c", str(CONCURRENCY[pool]), "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (log.parent / "worker").open("ab") as words:
        process = children.start(
            command,
            env={"TRANSPORT_TEST": json.dumps(settings), "EVENTLET_NO_GREENDNS": "yes"},
            python_path=ROOT,
            cwd=str(log.parent),
            stdout=words,
            stderr=words,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        kill(process)


def lines(log: Path) -> int:
    """How many jobs are done."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for(log: Path, count: int) -> float:
    """When so many were done, as seen every millisecond."""
    until_s = time.monotonic() + PATIENCE_S
    while lines(log) < count:
        if time.monotonic() > until_s:
            raise SystemExit(f"only {lines(log)} of {count} jobs were done within {PATIENCE_S:g} s")
        time.sleep(0.001)
    return time.monotonic()


def calls(client: redis.Redis) -> int:
    """Commands that the server has run, without those that look."""
    stats = client.info("commandstats")
    return sum(int(v["calls"]) for k, v in stats.items() if not k.startswith(("cmdstat_info", "cmdstat_config")))


def turn(children: Children, url: str, folder: Path, pool: str, transport: str, jobs: int) -> dict[str, float]:
    """One worker: what a job costs while it drains, latencies of single jobs, commands a second while it is idle."""
    client = redis.Redis.from_url(url)
    client.flushall()
    log = folder / "done"
    log.unlink(missing_ok=True)
    app = Celery("compare", broker=url)
    task = "tests.transport_app.done"
    with app.producer_pool.acquire(block=True) as producer, producer.batch(500):
        for number in range(jobs):
            app.send_task(task, (number,), producer=producer, retry=False)
    with worker(children, url, log, pool, transport) as process:
        first = max(1, jobs // 10)
        begun_s, cpu_s, commands = wait_for(log, first), cpu(process), calls(client)
        counted = lines(log)
        ended_s = wait_for(log, jobs)
        left = jobs - counted
        row = {
            "drain": (ended_s - begun_s) / left,
            "cpu": (cpu(process) - cpu_s) / left,
            "commands": (calls(client) - commands) / left,
        }
        time.sleep(1)
        latencies = []
        for number in range(jobs, jobs + SINGLES):
            sent_s = time.monotonic()
            app.send_task(task, (number,), retry=False)
            latencies.append(wait_for(log, number + 1) - sent_s)
            time.sleep(PAUSE_S)
        time.sleep(1)
        before = calls(client)
        time.sleep(IDLE_S)
        row |= {"idle commands": (calls(client) - before) / IDLE_S}
    latencies.sort()
    return row | {"p50": statistics.median(latencies), "p99": latencies[math.ceil(0.99 * SINGLES) - 1]}


def cpu(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds of a worker and its children until now."""
    return sum(sum(member.cpu_times()[:2]) for member in tree(process))


def main() -> None:
    """Print one line a pool: median of the ratios within rounds, and their range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", default=["solo", "threads", "prefork"], metavar="POOL")
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not set(options.pools) <= set(CONCURRENCY) or options.jobs < 10 or options.rounds < 1:
        parser.error(f"pools are {', '.join(CONCURRENCY)}; at least 10 jobs and one round")
    os.chdir(ROOT)
    with Children() as children, own_server(children) as broker:
        for pool in options.pools:
            rounds = []
            for number in range(options.rounds):
                order = ("ours", "stock") if number % 2 else ("stock", "ours")
                rounds.append(
                    {name: turn(children, broker.url, children.directory, pool, name, options.jobs) for name in order}
                )
            print(f"{pool} -c {CONCURRENCY[pool]}, {options.rounds} rounds of {options.jobs} jobs, ours against stock:")
            for name, says in SAYS.items():
                told = [f"{ratio(each, name):.2f}" for each in sorted(rounds, key=lambda each: ratio(each, name))]
                middle = statistics.median(ratio(each, name) for each in rounds)
                print(f"  {says:44} x {middle:.2f}  [{told[0]} to {told[-1]}]")
            for name in ("commands", "idle commands"):
                ours, stock = (statistics.median(each[who][name] for each in rounds) for who in ("ours", "stock"))
                print(f"  {name + (' a second' if 'idle' in name else ' per job'):44} {ours:.2f} and {stock:.2f}")


SAYS = {
    "drain": "jobs a second while draining",
    "cpu": "jobs per CPU second of the worker",
    "p50": "how many times as fast a single job, p50",
    "p99": "how many times as fast a single job, p99",
}


def ratio(both: dict[str, dict[str, float]], name: str) -> float:
    """How many times less of it ours takes."""
    return both["stock"][name] / both["ours"][name]


if __name__ == "__main__":
    main()

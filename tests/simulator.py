"""A queue with a known truth: the lab's answers can be checked against it, without a broker and without waiting.

First come, first served. A job first takes a slot, then computes on a processor, then waits, then gives its slot back.
Pools differ in their processors alone: all slots under one GIL share one, others have as many as there are cores.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lab.checks import faults
from lab.model import Experiment, Ledger, Resources, Run, Samples, Setup, Suite, Trial
from lab.plan import plan
from producer.payloads import Calibrated, Upstream
from producer.publish import Sent
from tasks.jobs import JOBS, Nature
from tasks.pools import POOLS

NETWORK_S = 0.0001
"""From sent to received."""
COMPUTE_S = 0.0005
"""What the shortest job costs, and what the queue adds to each: mostly Celery itself."""
BASE_PSS_BYTES, PROCESS_PSS_BYTES, THREAD_PSS_BYTES = 60_000_000, 20_000_000, 100_000


def simulate(
    trial: Trial,
    *,
    sent: Sequence[Sent] | None = None,
    cores: int = 8,
    gil: bool = True,
    job_noise: float = 0.02,
    run_noise: float = 0.002,
    block_noise: float = 0.05,
    mark_s: float = 0.000_005,
    seed: int = 0,
) -> Run:
    """What would have happened.

    A job's cost varies by `job_noise`, a run's by `run_noise`, and a whole repeat's, alike for all its setups, by
    `block_noise`: standard deviations of a log-normal factor whose median is 1. `mark_s` is what marks add to a job.
    `gil=False` is an interpreter without one. `sent` replaces the simulated producer, which is never late.
    """
    setup = trial.setup
    rng = random.Random(f"{seed} {trial!r}")  # the text, for hash() differs from process to process
    block = random.Random(f"{seed} {trial.experiment} {trial.repeat}").lognormvariate(0, block_noise)
    pace = block * rng.lognormvariate(0, run_noise)
    cost_s = pace * (_compute_s(setup) + (mark_s if setup.marks else 0.0))

    slots = [(0.0, slot) for slot in range(_slots(setup))]
    processors = [0.0] * _processors(setup, cores=cores, gil=gil)
    ends: list[float] = []
    rows = []
    for due, sent_s in _load(setup, sent, ends):
        received = sent_s + (NETWORK_S if setup.queued else 0.0)
        free, slot = heapq.heappop(slots)
        started = max(received, free)
        computes = cost_s * rng.lognormvariate(0, job_noise)
        computed = max(started, heapq.heappop(processors)) + computes
        heapq.heappush(processors, computed)
        ended = computed + _wait_s(setup) * rng.lognormvariate(0, job_noise)
        heapq.heappush(slots, (ended, slot))
        heapq.heappush(ends, ended)
        worker = slot if _is_parallel(setup) else slot // setup.concurrency
        rows.append((due, sent_s, received, started, ended, computes, worker, slot, int(gil)))
    return _run(trial, rows, gil=gil)


def run_experiment(
    experiment: Experiment, *, cores: int = 8, quick: bool = False, gil: bool = True, mark_s: float = 0.000_005
) -> Suite:
    """Plan the experiment and simulate every trial, checks included: what the lab would have saved."""
    trials = plan(experiment, cores=cores, quick=quick)
    runs = [simulate(trial, cores=cores, gil=gil, mark_s=mark_s) for trial in trials]
    return Suite(
        environment={"cores": cores, "cpu": "simulated", "python": runs[0].resources.python},
        experiments=(experiment.name,),
        runs=tuple(runs),
        seed=0,
        repeats={experiment.name: 1 + max(trial.repeat for trial in trials)},
        quick=quick,
    )


def _load(setup: Setup, sent: Sequence[Sent] | None, ends: list[float]) -> Iterator[tuple[float, float]]:
    """When each job is due and when it was sent, in seconds from the first due."""
    if sent is not None:
        yield from (((s.due_ns - sent[0].due_ns) / 1e9, (s.sent_ns - sent[0].due_ns) / 1e9) for s in sent)
        return

    def told() -> Iterator[float]:
        while ends:
            yield heapq.heappop(ends)

    yield from ((due, due) for due in setup.pacer.due_s(told()))


def _compute_s(setup: Setup) -> float:
    return COMPUTE_S + sum(value.ms for value in setup.args.values() if isinstance(value, Calibrated)) / 1e3


def _wait_s(setup: Setup) -> float:
    upstream_ms = sum(value.mean_ms for value in setup.args.values() if isinstance(value, Upstream))
    literal_ms = sum(v for name, v in setup.args.items() if name in {"ms", "io_ms"} and isinstance(v, int | float))
    return (upstream_ms + literal_ms) / 1e3


def _slots(setup: Setup) -> int:
    single = setup.pool == "serial" or (setup.queued and POOLS[setup.pool].single_slot)
    return setup.nodes if single else setup.slots


def _is_parallel(setup: Setup) -> bool:
    """Whether each slot has an interpreter, and so a GIL, of its own."""
    return not POOLS[setup.pool].shares_gil if setup.queued else setup.pool in {"processes", "interpreters"}


def _processors(setup: Setup, *, cores: int, gil: bool) -> int:
    """How many jobs can compute at once."""
    holds = gil and JOBS[setup.job].nature is not Nature.RELEASES_GIL
    green = setup.queued and POOLS[setup.pool].green  # greenlets are one thread: the GIL is not all that they share
    alone = green or (holds and not _is_parallel(setup))
    return min(setup.nodes if alone else _slots(setup), cores)


def _run(trial: Trial, rows: list[tuple[float, ...]], *, gil: bool) -> Run:
    setup = trial.setup
    columns = np.array(rows)
    due, sent, received, started, ended, computed = (
        np.round(column * 1e9).astype(np.int64) for column in columns.T[:6]
    )
    worker, thread, on = (column.astype(np.int64) for column in columns.T[6:])
    # Without marks nobody sees the single jobs, only that they are gone.
    seen = slice(None) if setup.marks else slice(0)
    samples = Samples(*(c[seen] for c in (due, sent, received, started, ended, computed, worker, thread, on)))
    last_s, n = float(ended.max()) / 1e9, len(rows)
    drained_s = last_s + NETWORK_S if setup.watch_broker and setup.queued else None
    slot_bytes = PROCESS_PSS_BYTES if _is_parallel(setup) else THREAD_PSS_BYTES
    run = Run(
        trial,
        samples,
        Ledger(issued=n, done=n, failed=0, lost=0),
        Resources(
            wall_s=last_s if setup.marks or drained_s is None else drained_s,
            boot_s=1.5 if setup.queued else 0.3,
            worker_cpu_s=float(computed.sum()) / 1e9,
            worker_pss_bytes=setup.nodes * BASE_PSS_BYTES + setup.slots * slot_bytes,
            context_switches=2 * n,
            broker_cpu_s=n * 50e-6 if setup.queued else None,
            producer_cpu_s=n * 100e-6,
            others_cpu_s=0.0,
            steal_s=0.0,
            commands=dict.fromkeys(("brpop", "hdel", "hset", "lpush", "zadd", "zrem"), n) if setup.queued else {},
            bytes_in=n * 1500 if setup.queued else None,
            bytes_out=n * 1000 if setup.queued else None,
            drained_s=drained_s,
            gil_enabled=gil,
            python="3.13.5" if gil else "3.13.5t",
        ),
    )
    return replace(run, faults=faults(run))

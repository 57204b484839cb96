"""A queue with a known truth: the lab's answers can be checked against it, without a broker and without waiting.

First come, first served. A worker fetches a job, the job takes a slot, computes on a processor, waits, and gives its
slot back. Pools differ in their processors alone: all slots under one GIL share one, others have as many as there are
cores. Nobody takes a processor away from a job, fetching is free, and a worker apart has cores of its own.
"""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lab.checks import faults
from lab.model import (
    FREE_THREADED,
    Experiment,
    Ledger,
    Load,
    Nanoseconds,
    Resources,
    Run,
    Samples,
    Setup,
    Steps,
    Suite,
    Trial,
)
from lab.plan import plan
from producer.pacers import merged
from producer.payloads import Calibrated, Sometimes, Upstream
from producer.publish import Sent
from tasks.jobs import JOBS, Nature
from tasks.pools import POOLS

NETWORK_S = 0.0001
"""From sent to received."""
QUEUE_S, BARE_S = 0.0005, 0.00005
"""What a job costs beside its work, with a queue (mostly Celery itself) and without."""
BOOT_S, FORK_S = 0.6, 0.02
"""To start a worker, and each of its processes."""
BASE_PSS_BYTES, PROCESS_PSS_BYTES, THREAD_PSS_BYTES = 60_000_000, 20_000_000, 100_000
BYTE_S = 1e-8
"""To encode or decode one byte of a payload, to put it into base64 or out again, to copy it through a pipe."""
FAST_BYTE_S = 1e-9
"""The same for every codec but kombu's JSON."""
STEP_S = 0.0001
"""What each part of a job's way takes beside that."""
PIPE_S = 0.0003
"""Into a process of its own."""
TELLING_S, TELLING_ALONE_S, LISTENING_S = 0.00005, 0.0003, 0.0004
"""To send a job's events together with those of others, or each by itself as green workers do, and to hear them."""
AHEAD = 4
"""Jobs that a worker fetches ahead, per slot, unless told otherwise: Celery's own multiplier."""


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
    gil = gil and (setup.python != FREE_THREADED or bool(setup.packages))  # other packages bring it back
    rng = random.Random(f"{seed} {trial!r}")  # the text, for hash() differs from process to process
    block = random.Random(f"{seed} {trial.experiment} {trial.repeat}").lognormvariate(0, block_noise)
    pace = block * rng.lognormvariate(0, run_noise)
    own_s = (QUEUE_S if setup.queued else BARE_S) + (mark_s if setup.marks else 0.0) + _telling_s(setup)
    way_s = {name: seconds * pace for name, seconds in _way_s(setup).items()}
    if setup.queued and not setup.steps:
        own_s += 6 * setup.payload_bytes * BYTE_S

    worker = _Station(setup, cores=cores, gil=gil)
    apart = _Station(_apart(setup), cores=cores, gil=gil, first_worker=1000) if setup.apart else worker
    ends: list[float] = []
    rows = []
    for due, sent_s, which, number in _load(setup, sent, ends):
        load = setup.loads[which]
        factor = pace * rng.lognormvariate(0, job_noise)
        inside_s, outside_s = (seconds * factor for seconds in _computes_s(load, number, own_s))
        waits_s = _wait_s(load) * rng.lognormvariate(0, job_noise)
        station = apart if which else worker
        life = station.does(
            sent_s,
            inside_s,
            outside_s,
            waits_s,
            comes_s=sum(way_s[name] for name in COMES) if way_s else NETWORK_S,
            enters_s=sum(way_s[name] for name in ENTERS) if way_s else 0.0,
        )
        heapq.heappush(ends, life[2])
        rows.append((due, sent_s, *life, which))
    return _run(trial, rows, gil=gil, way_s=way_s)


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


COMES = ("encode", "broker", "fetch", "register", "peek")
ENTERS = ("hop", "decode", "call")


def _way_s(setup: Setup) -> dict[str, float]:
    """How long each part of a job's way takes, from sent to started; nothing where steps are not asked for."""
    if not setup.steps:
        return {}
    coding_s = setup.payload_bytes * (BYTE_S if setup.codec == "json" else FAST_BYTE_S)
    copying_s, rtt_s = setup.payload_bytes * BYTE_S, (setup.rtt_ms or 0.0) / 1e3
    pipe_s = PIPE_S + copying_s if _is_parallel(setup) else 0.0
    return {
        "encode": STEP_S + coding_s + copying_s,
        "broker": STEP_S + rtt_s,
        "fetch": STEP_S,
        "register": STEP_S + copying_s + rtt_s,
        "peek": coding_s,
        "hop": STEP_S + pipe_s,
        "decode": coding_s,
        "call": STEP_S,
    }


def _steps(setup: Setup, sent: Nanoseconds, started: Nanoseconds, ended: Nanoseconds, way_s: dict[str, float]) -> Steps:
    ns = {name: round(seconds * 1e9) for name, seconds in way_s.items()}
    # Back from the start, for a job may have waited for its slot; forward from the producer.
    encoded = sent + ns["encode"]
    taken = encoded + ns["broker"]
    decoded = started - ns["call"]
    return Steps(
        encoded_ns=encoded,
        taken_ns=taken,
        readable_ns=taken,
        fetched_ns=taken + ns["fetch"],
        peeking_ns=taken + ns["fetch"] + ns["register"],
        peeked_ns=taken + ns["fetch"] + ns["register"] + ns["peek"],
        decoding_ns=decoded - ns["decode"],
        decoded_ns=decoded,
        finished_ns=ended + (round(STEP_S * 1e9) if setup.results == "stored" else 0),
        acked_ns=(ended if setup.acks_late else started) + round(NETWORK_S * 1e9),
    )


def _telling_s(setup: Setup) -> float:
    """What a job's events cost its worker."""
    if setup.events == "off":
        return 0.0
    return TELLING_ALONE_S if POOLS[setup.pool].green else TELLING_S


def _apart(setup: Setup) -> Setup:
    """The worker that serves what runs beside the setup's own jobs, as a setup of its own."""
    assert setup.apart
    return replace(setup, pool=setup.apart, concurrency=setup.apart_concurrency, nodes=1, apart=None)


def _load(setup: Setup, sent: Sequence[Sent] | None, ends: list[float]) -> Iterator[tuple[float, float, int, int]]:
    """When each job is due and was sent, in seconds from the first due, which load it is of, and its number there."""
    if sent is not None:
        for s in sent:
            yield (s.due_ns - sent[0].due_ns) / 1e9, (s.sent_ns - sent[0].due_ns) / 1e9, 0, s.seq
        return
    if setup.beside:
        for due, which, number in merged([load.pacer for load in setup.loads]):
            yield due, due, which, number
        return

    def told() -> Iterator[float]:
        while ends:
            yield heapq.heappop(ends)

    for number, due in enumerate(setup.pacer.due_s(told())):
        yield due, due, 0, number


def _computes_s(load: Load, number: int, own_s: float) -> tuple[float, float]:
    """Work of one job: under the GIL where its interpreter has one, and outside. `own_s` is what every job costs."""
    amounts = {name: value.of(number) if isinstance(value, Sometimes) else value for name, value in load.args.items()}
    work_s = {name: value.ms / 1e3 for name, value in amounts.items() if isinstance(value, Calibrated)}
    if JOBS[load.job].nature is not Nature.RELEASES_GIL:
        return own_s + sum(work_s.values()), 0.0
    inside_s = work_s.pop("loops", 0.0)  # of `blend`
    return (inside_s + own_s, sum(work_s.values())) if inside_s else (0.0, own_s + sum(work_s.values()))


def _wait_s(load: Load) -> float:
    upstream_ms = sum(value.mean_ms for value in load.args.values() if isinstance(value, Upstream))
    literal_ms = sum(v for name, v in load.args.items() if name in {"ms", "io_ms"} and isinstance(v, int | float))
    rounds = load.args.get("rounds") if load.job == "naps" else 1
    return (upstream_ms + literal_ms * (rounds if isinstance(rounds, int) else 1)) / 1e3


def _slots(setup: Setup) -> int:
    single = setup.pool == "serial" or (setup.queued and POOLS[setup.pool].single_slot)
    return 1 if single else setup.concurrency


def _is_parallel(setup: Setup) -> bool:
    """Whether each slot has an interpreter, and so a GIL, of its own."""
    return not POOLS[setup.pool].shares_gil if setup.queued else setup.pool in {"processes", "interpreters"}


@dataclass
class _Node:
    """One worker: its slots, its line of fetched jobs, its GIL."""

    number: int
    slots: list[tuple[float, int]]
    """When each is free."""
    left_s: list[float] = field(default_factory=list)
    """When each job gave up its place among those that count as fetched, in order."""
    gil_s: float = 0.0
    """When the GIL is free."""

    def room_s(self, ahead: int | None) -> float:
        """When the worker can take one more job: at once, or when the one `ahead` places before it has left."""
        if ahead == 0:
            return self.slots[0][0]
        return self.left_s[-ahead] if ahead is not None and len(self.left_s) >= ahead else 0.0


class _Station:
    """The workers of one setup, or its executor."""

    def __init__(self, setup: Setup, *, cores: int, gil: bool, first_worker: int = 0) -> None:
        slots = _slots(setup)
        self._parallel, self._queued, self._late = _is_parallel(setup), setup.queued, bool(setup.acks_late)
        self._first_worker = first_worker
        # Greenlets are one thread: the GIL is not all that they share.
        self._green = setup.queued and POOLS[setup.pool].green
        self._alone = self._green or (gil and not self._parallel)
        # Empty where every slot has a processor: nobody waits for one.
        self._processors = [0.0] * cores if setup.nodes * slots > cores and setup.cpus is None else []
        # A machine with a share of a core has it to itself, and takes so much longer.
        self._stretch = 1 / (setup.cpus or 1)
        self._nodes = [_Node(number, [(0.0, slot) for slot in range(slots)]) for number in range(setup.nodes)]
        self._ahead: int | None = None
        if setup.queued and setup.disable_prefetch:
            self._ahead = 0
        elif setup.queued and setup.prefetch != 0:  # Celery takes 0 for no limit
            self._ahead = slots * (setup.prefetch or AHEAD)

    def does(
        self, sent_s: float, inside_s: float, outside_s: float, waits_s: float, *, comes_s: float, enters_s: float
    ) -> tuple[float, ...]:
        """When the job is received, started and ended, what it computes, and which worker and thread it runs in.

        `comes_s` is from sent to received, `enters_s` from received to started where a slot is free.
        """
        node = min(self._nodes, key=lambda node: (max(sent_s, node.room_s(self._ahead)), len(node.left_s)))
        received = max(sent_s, node.room_s(self._ahead)) + (comes_s if self._queued else 0.0)
        free, slot = heapq.heappop(node.slots)
        started = at = max(received, free) + enters_s
        alone_s = inside_s + outside_s if self._green else inside_s if self._alone else 0.0
        beside_s = inside_s + outside_s - alone_s
        if alone_s:
            at = node.gil_s = max(at, node.gil_s) + alone_s * self._stretch
        if beside_s and self._processors:
            at = max(at, heapq.heappop(self._processors)) + beside_s
            heapq.heappush(self._processors, at)
        else:
            at += beside_s * self._stretch
        ended = at + waits_s
        heapq.heappush(node.slots, (ended, slot))
        bisect.insort(node.left_s, ended if self._late else started)
        thread = node.number * len(node.slots) + slot
        worker = thread if self._parallel else node.number
        return received, started, ended, alone_s + beside_s, self._first_worker + worker, self._first_worker + thread


def _run(trial: Trial, rows: list[tuple[float, ...]], *, gil: bool, way_s: dict[str, float]) -> Run:
    setup = trial.setup
    columns = np.array(rows)
    due, sent, received, started, ended, computed = (
        np.round(column * 1e9).astype(np.int64) for column in columns.T[:6]
    )
    worker, thread, beside = (column.astype(np.int64) for column in columns.T[6:])
    on, value = np.full(len(rows), int(gil)), _values(setup, ended)
    # Without marks nobody sees the single jobs, only that they are gone.
    seen = slice(None) if setup.marks else slice(0)
    life = (due, sent, received, started, ended, computed, worker, thread, on, beside, value)
    samples = Samples(*(column[seen] for column in life))
    last_s, n = float(ended.max()) / 1e9, len(rows)
    drained_s = last_s + NETWORK_S if setup.watch_broker and setup.queued else None
    stations = (setup, _apart(setup)) if setup.apart else (setup,)
    run = Run(
        trial,
        samples,
        Ledger(issued=n, done=n, failed=0, lost=0),
        Resources(
            wall_s=last_s if setup.marks or drained_s is None else drained_s,
            boot_s=BOOT_S + FORK_S * sum(one.slots for one in stations if _is_parallel(one)),
            worker_cpu_s=float(computed.sum()) / 1e9,
            worker_pss_bytes=sum(_pss_bytes(one) for one in stations),
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
            watcher_cpu_s=n * LISTENING_S if setup.events == "flower" else None,
            watcher_ends=n if setup.events == "flower" else None,
        ),
        steps=_steps(setup, sent, started, ended, way_s) if way_s else None,
    )
    return replace(run, faults=faults(run))


def _values(setup: Setup, ended: Nanoseconds) -> Nanoseconds:
    """What jobs that measure something return: `tally` counts on, after one job a slot before the clock began."""
    rounds = setup.args.get("rounds")
    if not (JOBS[setup.job].measures and isinstance(rounds, int)):
        return np.zeros(len(ended), dtype=np.int64)
    place = np.argsort(np.argsort(ended, kind="stable"))
    return rounds * (setup.slots + 1 + place).astype(np.int64)


def _pss_bytes(setup: Setup) -> int:
    slot_bytes = PROCESS_PSS_BYTES if _is_parallel(setup) else THREAD_PSS_BYTES
    return setup.nodes * BASE_PSS_BYTES + setup.slots * slot_bytes

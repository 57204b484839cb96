"""Celery beside its peers: which rows there are, and what their trials come to. Pure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from lab.model import Estimate
from lab.stats import mean_of_logs
from tasks.knobs import PRESETS, configuration, options, turned

SCHEMA = 1
BASE = "celery"
"""What every ratio is to."""


class Promise(StrEnum):
    """What becomes of a job whose worker is killed while it runs. Rates compare only within one."""

    AT_LEAST_ONCE = "at least once"
    """It runs again."""
    AT_MOST_ONCE = "at most once"
    """It does not."""


EQUALS: Mapping[Promise, str] = {Promise.AT_LEAST_ONCE: "celery-lossless", Promise.AT_MOST_ONCE: BASE}
"""The Celery that makes the same promise: what a peer is compared with where promises must be equal."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One row: a library, as its documentation says to run it, with two jobs at a time or as near as it goes."""

    name: str
    label: str
    module: str
    """The file in `benchmarks` that holds its jobs and how they are sent."""
    packages: tuple[str, ...]
    """Whose versions are shown."""
    promise: Promise
    slots: str
    """How many jobs at a time, in words."""
    sends: str
    """The documented way to send one job, which is timed."""
    commands: tuple[tuple[str, ...], ...]
    """Its worker processes: the first word is a program in its environment."""
    jobs: int
    """Sent one by one, and drained, in a block: some seconds' worth."""
    bulk: str | None = None
    """The way to send many at once, if it has one."""
    bulk_jobs: int = 0
    requirements: str = "requirements.txt"
    """Pins of its environment, in `benchmarks`."""
    env: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    """Folders of this checkout that its Python sees besides."""
    python: tuple[int, int] = (3, 11)
    """The oldest Python that it runs on."""
    recovering: tuple[str, ...] = ()
    """What its command is told where it shall take back a dead worker's jobs soon, if it is told that way."""
    says_up: str = ""
    """What its workers say when all of them are up; where it is empty, done jobs show it."""
    nap_s: float = 0.0
    """Each job that is drained waits so long; 0 are jobs that do nothing."""
    at_once: int = 0
    """The drain is timed from the start of the job with this number: all before it find a free slot."""
    killed: str = ""
    """What becomes of the jobs of a killed worker, in words."""
    unfair: str = ""
    """What makes its figures better or worse than they should be beside the others."""

    def sized(self, share: float) -> Peer:
        """The same with a share of the jobs, never fewer than a handful."""
        bulk = max(LEAST_JOBS, round(self.bulk_jobs * share)) if self.bulk else 0
        return replace(self, jobs=max(LEAST_JOBS, round(self.jobs * share)), bulk_jobs=bulk)


LEAST_JOBS = 20


_CELERY = ("celery", "-A", "on_celery", "worker", "-c", "2", "-l", "WARNING")


def _celery(name: str, label: str, promise: Promise, preset: str, jobs: int, unfair: str = "") -> Peer:
    """Celery with one of Sidestep's presets; `default` is Celery as it comes."""
    knobs = turned(preset)
    return Peer(
        name,
        label,
        "on_celery",
        ("celery", "kombu", "redis"),
        promise,
        "prefork, 2 processes",
        "delay()",
        ((*_CELERY, *options(knobs)),),
        jobs,
        bulk="kombu's Producer.batch of 1000",
        bulk_jobs=8000,
        env={"BENCH_CELERY": json.dumps(configuration(knobs))},
        killed=PRESETS[preset].promises,
        unfair=unfair,
    )


_ONE_FORK = "rq.worker.SimpleWorker"
_RQ_KILLED = "the job that ran is kept as failed, and nobody runs it again unless told to"
_COROUTINES = (
    "its coroutines per process are its own default, since with one it would wait for its poll after every job"
)

PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        _celery(BASE, "Celery, defaults", Promise.AT_MOST_ONCE, "default", 1500),
        _celery("celery-lossless", "Celery, preset lossless", Promise.AT_LEAST_ONCE, "lossless", 1500),
        _celery("celery-fast", "Celery, preset fast", Promise.AT_MOST_ONCE, "fast", 2000),
        _celery("celery-at-most-once", "Celery, preset at-most-once", Promise.AT_MOST_ONCE, "at-most-once", 3000),
        Peer(
            "dramatiq",
            "Dramatiq",
            "on_dramatiq",
            ("dramatiq", "redis"),
            Promise.AT_LEAST_ONCE,
            "2 processes, 1 thread each",
            "send()",
            (("dramatiq", "on_dramatiq", "-p", "2", "-t", "1"),),
            4000,
            killed="all comes back once another worker sees that this one has not spoken for a minute",
            unfair="eight threads per process is its default; an idle worker asks ever more seldom, so its idle "
            "latency grows with the time since the last job",
        ),
        Peer(
            "rq",
            "RQ, a fork per job",
            "on_rq",
            ("rq", "redis"),
            Promise.AT_MOST_ONCE,
            "worker-pool of 2",
            "enqueue()",
            (("rq", "worker-pool", "-n", "2", "-q", "bench"),),
            120,
            bulk="enqueue_many of 1000",
            bulk_jobs=4000,
            killed=_RQ_KILLED,
            unfair="it forks a process for every job, which is what it is for: nothing of a job remains",
        ),
        Peer(
            "rq-simple",
            "RQ, SimpleWorker",
            "on_rq",
            ("rq", "redis"),
            Promise.AT_MOST_ONCE,
            "worker-pool of 2",
            "enqueue()",
            (("rq", "worker-pool", "-n", "2", "-q", "-w", _ONE_FORK, "bench"),),
            500,
            bulk="enqueue_many of 1000",
            bulk_jobs=4000,
            killed=_RQ_KILLED,
            unfair="not its default",
        ),
        Peer(
            "huey",
            "Huey",
            "on_huey",
            ("huey", "redis"),
            Promise.AT_MOST_ONCE,
            "2 processes",
            "calling the task",
            (("huey_consumer", "on_huey.huey", "-k", "process", "-w", "2", "-q"),),
            5000,
            killed="taken off the list before it runs: gone",
        ),
        Peer(
            "arq",
            "arq",
            "on_arq",
            ("arq", "redis"),
            Promise.AT_LEAST_ONCE,
            "2 processes, 10 coroutines each",
            "enqueue_job()",
            (("arq", "on_arq.WorkerSettings"), ("arq", "on_arq.WorkerSettings")),
            600,
            bulk="gather of 100",
            bulk_jobs=2000,
            requirements="requirements-arq.txt",
            killed="all comes back when its claim runs out: the job's timeout and ten seconds, 310 s by default",
            unfair=f"it polls every half second by design; {_COROUTINES}; its requirements bring hiredis",
        ),
        Peer(
            "taskiq-list",
            "Taskiq, ListQueueBroker",
            "on_taskiq",
            ("taskiq", "taskiq-redis", "redis"),
            Promise.AT_MOST_ONCE,
            "2 processes, 100 coroutines each",
            "kiq()",
            (("taskiq", "worker", "on_taskiq:broker", "-w", "2", "--log-level", "WARNING"),),
            3000,
            bulk="gather of 100",
            bulk_jobs=3000,
            env={"BENCH_TASKIQ": "list"},
            killed="taken off the list before it runs: gone",
            unfair="its coroutines per process are its own default",
        ),
        Peer(
            "taskiq-stream",
            "Taskiq, RedisStreamBroker",
            "on_taskiq",
            ("taskiq", "taskiq-redis", "redis"),
            Promise.AT_LEAST_ONCE,
            "2 processes, 100 coroutines each",
            "kiq()",
            (("taskiq", "worker", "on_taskiq:broker", "-w", "2", "--log-level", "WARNING"),),
            3000,
            bulk="gather of 100",
            bulk_jobs=3000,
            env={"BENCH_TASKIQ": "stream"},
            killed="all comes back when another worker, at its next new job, claims what nobody acknowledged for ten "
            "minutes",
            unfair="its coroutines per process are its own default",
        ),
        Peer(
            "mayu",
            "mayu",
            "on_mayu",
            ("mayu",),
            Promise.AT_LEAST_ONCE,
            "2 processes",
            "delay()",
            (("mayu", "worker", "on_mayu:app", "--mode", "process", "--processes", "2", "--log-level", "WARNING"),),
            10_000,
            requirements="requirements-mayu.txt",
            python=(3, 13),
            recovering=("--visibility-timeout", "{recover_s}", "--heartbeat-interval", "1"),
            killed="all comes back once another worker claims what a silent one held for half a minute",
            unfair="young (alpha), compiled, and on a newer Python than the others where ours is older than 3.13",
        ),
        Peer(
            "limit-keep",
            "no library: BLMOVE + LREM",
            "on_limit",
            ("redis",),
            Promise.AT_LEAST_ONCE,
            "1 process",
            "LPUSH",
            (("python", "{folder}/on_limit.py", "keep"),),
            10_000,
            bulk="LPUSH of 1000 values",
            bulk_jobs=100_000,
            killed="all comes back with the next start",
            unfair="no library at all: a number for a message; one process, and a round trip or two for each",
        ),
        Peer(
            "limit-batch",
            "no library: 100 at a time",
            "on_limit",
            ("redis",),
            Promise.AT_LEAST_ONCE,
            "2 processes, one job each",
            "LPUSH",
            tuple(("python", "{folder}/on_limit.py", "batch", str(slot)) for slot in range(2)),
            20_000,
            bulk="LPUSH of 1000 values",
            bulk_jobs=100_000,
            killed="all of its batch comes back with the next start, also what had ended",
            unfair="no library at all: a number for a message; one round trip takes up to a hundred and acknowledges "
            "the hundred before",
        ),
        Peer(
            "limit-drop",
            "no library: BRPOP",
            "on_limit",
            ("redis",),
            Promise.AT_MOST_ONCE,
            "1 process",
            "LPUSH",
            (("python", "{folder}/on_limit.py", "drop"),),
            10_000,
            bulk="LPUSH of 1000 values",
            bulk_jobs=100_000,
            killed="gone",
            unfair="no library at all: a number for a message; one process, and a round trip or two for each",
        ),
    )
}
OURS: tuple[str, ...] = ("celery", "celery-lossless", "celery-fast", "celery-at-most-once")
"""Whose losses and wins are spelled out."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One trial: one row in one block."""

    enqueue_hz: float
    drain_hz: float
    idle_s: tuple[float, ...]
    """Each job of an idle worker: from the call that sends it to its first line."""
    commands: Mapping[str, float]
    """Of the broker, for each job: sending and draining together, as the server counts them."""
    drain_commands: Mapping[str, float] = field(default_factory=dict)
    """Those of draining alone."""
    bulk_hz: float | None = None
    missing: int = 0
    """Jobs that never ran."""
    doubled: int = 0
    """Jobs that ran twice or more."""
    others_cores: float = 0.0
    """Used by programs that are not ours, while it was timed."""
    steal_cores: float = 0.0
    """Taken by the hypervisor meanwhile."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a trial."""

    name: str
    label: str
    short: str
    """For the head of a column."""
    more_is_better: bool
    of: Callable[[Taken], float | None]
    scale: float = 1.0
    """From the figure to what a table shows."""


def _total(taken: Taken) -> float:
    return math.fsum(taken.commands.values())


def _median(taken: Taken) -> float | None:
    return statistics.median(taken.idle_s) if taken.idle_s else None


MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("enqueue", "sent one by one, a second", "sent a second", True, lambda taken: taken.enqueue_hz),
        Measure("bulk", "sent in bulk, a second", "in bulk a second", True, lambda taken: taken.bulk_hz),
        Measure("drain", "done, a second", "done a second", True, lambda taken: taken.drain_hz),
        Measure("idle", "idle latency, from send to start", "idle latency, ms", False, _median, 1e3),
        Measure("commands", "Redis commands a job", "commands a job", False, _total),
    )
}


@dataclass(frozen=True, slots=True)
class Killed:
    """What came of jobs whose workers were all killed (SIGKILL) and started anew."""

    kills: int
    sent: int
    running: int
    """Under way when the workers died."""
    ran_again: int
    """Of these, how many another worker ran to their end."""
    lost: int
    """Of all sent, how many never ran to their end while we waited."""
    doubled: int
    """Of all sent, how many ran to their end twice or more."""

    def __add__(self, other: Killed) -> Killed:
        return Killed(
            self.kills + other.kills,
            self.sent + other.sent,
            self.running + other.running,
            self.ran_again + other.ran_again,
            self.lost + other.lost,
            self.doubled + other.doubled,
        )


class Standing(StrEnum):
    """How one row stands to another, by the whole interval."""

    AHEAD = "ahead of"
    BEHIND = "behind"
    UNDECIDED = "not told apart from"


@dataclass(frozen=True, slots=True)
class Judged:
    """One of ours against one peer of the same promise, in one measure."""

    measure: str
    ours: str
    peer: str
    standing: Standing
    ratio: Estimate
    """Ours to theirs."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What one run came to."""

    blocks: Sequence[Mapping[str, Taken]]
    """By row: one mapping for each repeat."""
    versions: Mapping[str, Mapping[str, str]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Rows that could not be run here, and why."""
    kills: Mapping[str, Killed] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    """Reasons to distrust it."""
    rows: Mapping[str, Peer] = field(default_factory=lambda: PEERS)
    """What the names stand for."""
    retakes: int = 0
    """Trials that were taken again because others used the machine."""

    @property
    def names(self) -> tuple[str, ...]:
        """The rows that were measured, in their own order."""
        return tuple(name for name in self.rows if any(name in block for block in self.blocks))

    def level(self, measure: str, name: str) -> Estimate | None:
        """The figure itself: geometric mean and interval over blocks. None where it was not measured."""
        return mean_of_logs(self._values(measure, name))

    def ratio(self, measure: str, one: str, other: str = BASE) -> Estimate | None:
        """One row's figure over another's, taken inside each block. None where one of them was not measured."""
        of = MEASURES[measure].of
        pairs = ((of(block[one]), of(block[other])) for block in self.blocks if one in block and other in block)
        return mean_of_logs([a / b for a, b in pairs if a and b and math.isfinite(a) and math.isfinite(b)])

    def _values(self, measure: str, name: str) -> list[float]:
        found = (MEASURES[measure].of(block[name]) for block in self.blocks if name in block)
        return [value for value in found if value and math.isfinite(value)]

    def commands(self, name: str) -> dict[str, float]:
        """The broker's commands for each job by name, mean over blocks, the most frequent first."""
        taken = [block[name].commands for block in self.blocks if name in block]
        total: dict[str, float] = {}
        for some in taken:
            for command, count in some.items():
                total[command] = total.get(command, 0.0) + count / len(taken)
        return dict(sorted(total.items(), key=lambda item: -item[1]))


def standings(compared: Compared) -> list[Judged]:
    """Each of ours against each peer of the same promise, in every measure both have."""
    found = []
    for measure in MEASURES.values():
        for ours in OURS:
            for peer in compared.names:
                if peer in OURS or PEERS[peer].promise is not PEERS[ours].promise:
                    continue
                ratio = compared.ratio(measure.name, ours, peer)
                if ratio:
                    found.append(Judged(measure.name, ours, peer, _standing(ratio, measure), ratio))
    return found


def _standing(ratio: Estimate, measure: Measure) -> Standing:
    if ratio.low <= 1 <= ratio.high:
        return Standing.UNDECIDED
    return Standing.AHEAD if (ratio.low > 1) == measure.more_is_better else Standing.BEHIND


def as_json(compared: Compared) -> dict[str, Any]:
    """What --json prints; an endless bound is null, since JSON has no infinity. See docs/peers.md."""
    ratios: dict[str, Estimate] = {}
    levels: dict[str, Estimate] = {}
    for measure in MEASURES:
        for name in compared.names:
            if level := compared.level(measure, name):
                levels[f"{measure}/{name}"] = level
            equal = EQUALS[PEERS[name].promise]
            for other in dict.fromkeys((BASE, equal)):
                if name != other and (ratio := compared.ratio(measure, name, other)):
                    ratios[f"{measure}/{name}" + ("" if other == BASE else f"/{other}")] = ratio
    return {
        "schema": SCHEMA,
        "valid": not compared.faults,
        "versions": {name: dict(versions) for name, versions in compared.versions.items()},
        "promises": {name: str(PEERS[name].promise) for name in compared.names},
        "ratios": {name: e.value for name, e in ratios.items()},
        "intervals": {name: interval(e) for name, e in ratios.items()},
        "levels": {name: e.value for name, e in levels.items()},
        "level_intervals": {name: interval(e) for name, e in levels.items()},
        "commands": {name: {c: round(n, 4) for c, n in compared.commands(name).items()} for name in compared.names},
        "standings": [
            {"measure": j.measure, "ours": j.ours, "is": str(j.standing), "peer": j.peer} for j in standings(compared)
        ],
        "kills": {
            name: {
                "kills": k.kills,
                "sent": k.sent,
                "running": k.running,
                "ran_again": k.ran_again,
                "lost": k.lost,
                "doubled": k.doubled,
            }
            for name, k in compared.kills.items()
        },
        "blocks": len(compared.blocks),
        "retakes": compared.retakes,
        "left_out": dict(compared.left_out),
        "faults": list(compared.faults),
    }


def interval(estimate: Estimate) -> list[float | None]:
    """Its two ends."""
    return [bound if math.isfinite(bound) else None for bound in (estimate.low, estimate.high)]


MAX_OTHERS_CORES, MAX_STEAL_CORES = 0.25, 0.10
"""As for every run of Sidestep, see `lab.checks`."""


class Overlooked(Protocol):
    """A trial that says what others took of the machine meanwhile, in cores."""

    @property
    def others_cores(self) -> float:
        """Other programs."""

    @property
    def steal_cores(self) -> float:
        """The hypervisor."""


def is_noisy(taken: Overlooked) -> bool:
    """Whether others used the machine meanwhile, so that the trial is better taken again."""
    return taken.others_cores > MAX_OTHERS_CORES or taken.steal_cores > MAX_STEAL_CORES


def faults(blocks: Sequence[Mapping[str, Taken]], rows: Mapping[str, Peer] = PEERS) -> tuple[str, ...]:
    """Reasons to distrust the run, each with its remedy."""
    found = []
    for name, row in rows.items():
        trials = [block[name] for block in blocks if name in block]
        label = row.label
        if missing := sum(taken.missing for taken in trials):
            found.append(f"{label}: {missing} jobs never ran, with no worker killed: look for an error in its log")
        if doubled := sum(taken.doubled for taken in trials):
            found.append(f"{label}: {doubled} jobs ran twice or more, with no worker killed")
        for what, values, limit, remedy in (
            ("other programs used", [t.others_cores for t in trials], MAX_OTHERS_CORES, "close them"),
            ("the hypervisor took", [t.steal_cores for t in trials], MAX_STEAL_CORES, "measure on a quieter host"),
        ):
            noisy = [value for value in values if value > limit]
            if noisy:
                found.append(
                    f"{label}: in {len(noisy)} of {len(trials)} trials {what} up to {max(noisy):.2f} cores "
                    f"(at most {limit:g} is allowed): {remedy} and run again"
                )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run measures."""

    repeats: int
    share: float = 1.0
    """Of each row's own number of jobs."""
    idle_jobs: int = 16
    retakes: int = 2
    kills: int = 1

    def expected_s(self, peers: Sequence[Peer]) -> float:
        """About how long it takes on two cores."""
        trial_s = START_S + self.idle_jobs * (GAP_S / 2 + 0.02) + WORK_S * self.share
        kill_s = sum(KILL_BACK_S if peer.promise is Promise.AT_LEAST_ONCE else KILL_GONE_S for peer in peers)
        return len(peers) * self.repeats * trial_s + self.kills * kill_s


START_S, WORK_S = 3.0, 8.0
"""A trial's processes up and down; its jobs sent and drained. From runs on two cores."""
KILL_BACK_S, KILL_GONE_S = 15.0, 30.0
GAP_S = 0.5
"""Longest pause before a job for an idle worker; as long as the longest poll among the libraries, arq's."""
FULL, QUICK = Size(repeats=5), Size(repeats=2, share=0.25, idle_jobs=6, retakes=0, kills=0)

"""Sidestep's transport beside kombu's own, and beside Celery's peers: the rows, and what they come to. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from lab.model import Estimate
from lab.peers import MAX_OTHERS_CORES, MAX_STEAL_CORES, PEERS, SCHEMA, Compared, Peer, Promise, interval
from lab.stats import mean, mean_of_logs, quantile

TRANSPORT = "sidestep_transport:Transport"
PATH = "transport/src"
"""Where it lies in a checkout."""
SAME: Mapping[str, Any] = {
    # At least once on both sides, as equal rates need equal promises.
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # Room for a batch. Stock fetches one message at a time whatever this is.
    "worker_prefetch_multiplier": 64,
}
"""What differs from Celery's defaults, on both sides alike."""
STOCK, OURS = "stock", "sidestep"
POOLS: Mapping[str, tuple[str, ...]] = {
    "solo": ("-P", "solo"),
    "threads": ("-P", "threads", "-c", "2"),
    "prefork": ("-P", "prefork", "-c", "2"),
}
GREEN = ("gevent", "eventlet")
GREEN_SLOTS, NAP_S = 500, 0.05
"""What such a pool is for: many jobs that wait. Its slots allow 10,000 of them a second."""
GREEN_SAME: Mapping[str, Any] = {
    **SAME,
    # kombu's ten are too few for greenlets that acknowledge at once: who finds none gives up, and the job runs again.
    "broker_transport_options": {"max_connections": 2 * GREEN_SLOTS},
}
GREEN_STOCK_JOBS, GREEN_OURS_JOBS = 3000, 12_000
PROCESSES = "processes"
SUPERVISED = ("python", "-m", "tasks.processes", "2", "processes@bench", "on_celery", "-l", "WARNING")
"""What `sidestep worker --pool processes -c 2` runs: two processes that fetch for themselves, under a supervisor."""
WORKER = ("celery", "-A", "on_celery", "worker", "-l", "WARNING")
STOCK_JOBS, OURS_JOBS = 2000, 12_000


def _row(side: str, pool: str, command: tuple[str, ...], slots: str, same: Mapping[str, Any] = SAME) -> Peer:
    ours = side == OURS
    conf = {**same, "broker_transport": TRANSPORT} if ours else dict(same)
    return Peer(
        f"{side}-{pool}",
        f"{'Sidestep transport' if ours else 'stock'}, {pool}",
        "on_celery",
        ("celery", "kombu", "redis"),
        Promise.AT_LEAST_ONCE,
        slots,
        "delay()",
        (command,),
        OURS_JOBS if ours else STOCK_JOBS,
        bulk="kombu's Producer.batch of 1000",
        bulk_jobs=1,
        env={"BENCH_CELERY": json.dumps(conf)},
        paths=(PATH,) if ours else (),
        says_up="2 of 2 processes are up" if pool == PROCESSES else "",
    )


def _green(side: str, pool: str) -> Peer:
    options = ("-P", pool, "-c", str(GREEN_SLOTS), "-n", f"{pool}@bench")
    words = f"{pool} {GREEN_SLOTS}, jobs of {NAP_S * 1e3:g} ms"
    row = _row(side, words, (*WORKER, *options), f"{GREEN_SLOTS} {pool}", GREEN_SAME)
    return replace(
        row,
        name=f"{side}-{pool}",
        packages=(*row.packages, "gevent", "eventlet"),
        requirements="requirements-green.txt",
        jobs=GREEN_OURS_JOBS if side == OURS else GREEN_STOCK_JOBS,
        nap_s=NAP_S,
        at_once=GREEN_SLOTS,
    )


def _rows() -> dict[str, Peer]:
    rows = [
        _row(
            side,
            pool,
            (*WORKER, *options, "-n", f"{pool}@bench"),
            "one job at a time" if pool == "solo" else f"2 {pool}",
        )
        for pool, options in POOLS.items()
        for side in (STOCK, OURS)
    ]
    rows += [_row(side, PROCESSES, SUPERVISED, "2 processes") for side in (STOCK, OURS)]
    rows += [_green(side, pool) for pool in GREEN for side in (STOCK, OURS)]
    rivals = (peer for peer in PEERS.values() if peer.module not in {"on_celery", "on_limit"} and peer.name != "rq")
    return {row.name: row for row in (*rows, *(replace(peer, bulk=None, bulk_jobs=0) for peer in rivals))}


ROWS: Mapping[str, Peer] = _rows()
RIVALS: tuple[str, ...] = tuple(name for name in ROWS if name in PEERS)
RATIOS: Mapping[str, tuple[str, str]] = {
    **{f"{pool}/stock": (f"{OURS}-{pool}", f"{STOCK}-{pool}") for pool in ("threads", "solo", "prefork")},
    "processes/stock-prefork": (f"{OURS}-{PROCESSES}", f"{STOCK}-prefork"),
    "processes/stock-processes": (f"{OURS}-{PROCESSES}", f"{STOCK}-{PROCESSES}"),
    **{f"{pool}-waits/stock": (f"{OURS}-{pool}", f"{STOCK}-{pool}") for pool in GREEN},
}
FASTEST = f"{OURS}-{PROCESSES}"
"""What is set beside the peers."""


def ratios(compared: Compared) -> dict[str, Estimate]:
    """The named ratios of drain rates, and the broker's commands for each job.

    `best-peer` is `processes` over whichever peer was quickest over all blocks; `commands-per-job` is no ratio but what
    a drain with `processes` costs the broker, an arithmetic mean.
    """
    found = {name: compared.ratio("drain", *pair) for name, pair in RATIOS.items()}
    if best := best_peer(compared):
        found["best-peer"] = compared.ratio("drain", FASTEST, best)
    found["commands-per-job"] = mean(
        [sum(block[FASTEST].drain_commands.values()) for block in compared.blocks if FASTEST in block]
    )
    return {name: estimate for name, estimate in found.items() if estimate}


STILL_S = 3.0
"""A worker is left alone so long: what it says to the broker then, it says to find out that there is nothing."""
LONGEST_GAP_S = 0.2
"""Before a job for an idle worker. Neither transport polls, so longer ones would only take longer."""


@dataclass(frozen=True, slots=True)
class AnswerSize:
    """How much a run measures."""

    blocks: int
    idle_jobs: int
    paced_s: float
    retakes: int = 2

    def expected_s(self, rows: int) -> float:
        """About how long it takes on two cores."""
        return rows * self.blocks * (START_S + STILL_S + self.idle_jobs * (LONGEST_GAP_S / 2 + 0.01) + self.paced_s)


START_S = 4.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One trial: one row in one block. Times in seconds."""

    idle_s: tuple[float, ...]
    """Of each job of an idle worker: from the call that sends it to its first line."""
    half_s: tuple[float, ...]
    """Of each job at half load: from when it was due to its first line."""
    still_hz: float
    """The broker's commands a second while there was nothing to do at all."""
    lag_s: tuple[float, ...] = ()
    """By how much the call that sends it came after it was due, of each job at half load: it had one before to send."""
    missing: int = 0
    others_cores: float = 0.0
    steal_cores: float = 0.0

    @property
    def is_noisy(self) -> bool:
        """Whether others used the machine meanwhile, so that the trial is better taken again."""
        return self.others_cores > MAX_OTHERS_CORES or self.steal_cores > MAX_STEAL_CORES


def arrivals_s(rate_hz: float, length_s: float, chance: Random) -> list[float]:
    """Moments of a Poisson process, in order, in seconds from its beginning; at least one."""
    found = [chance.expovariate(rate_hz)]
    while found[-1] < length_s:
        found.append(found[-1] + chance.expovariate(rate_hz))
    return found[:-1] or found


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of how soon a worker answers; less is better."""

    label: str
    of: Callable[[Answer], float]
    scale: float = 1.0
    """From the figure to what a table shows."""


FIGURES: Mapping[str, Figure] = {
    "idle-p50": Figure("idle, median ms", lambda one: quantile(np.array(one.idle_s), 0.5), 1e3),
    "idle-p99": Figure("idle, p99 ms", lambda one: quantile(np.array(one.idle_s), 0.99), 1e3),
    "half-p50": Figure("half load, median ms", lambda one: quantile(np.array(one.half_s), 0.5), 1e3),
    "half-p99": Figure("half load, p99 ms", lambda one: quantile(np.array(one.half_s), 0.99), 1e3),
    "lag-p99": Figure("of which the producer, p99 ms", lambda one: quantile(np.array(one.lag_s), 0.99), 1e3),
    "still": Figure("commands a second with nothing to do", lambda one: one.still_hz),
}

Answers = Sequence[Mapping[str, Answer]]
"""By row: one mapping for each block."""


def half_rates_hz(compared: Compared) -> dict[str, float]:
    """For each row that answers, half of what stock with the same pool was seen to drain; both sides get the same."""
    found: dict[str, float] = {}
    for pool in POOLS:
        if level := compared.level("drain", f"{STOCK}-{pool}"):
            found |= {f"{side}-{pool}": level.value / 2 for side in (STOCK, OURS)}
    return found


def figure(answers: Answers, name: str, row: str) -> Estimate | None:
    """A row's figure over blocks; None where it was not measured."""
    of = FIGURES[name].of
    values = [of(block[row]) for block in answers if row in block]
    return mean(values) if name == "still" else mean_of_logs([value for value in values if value > 0])


def answer_ratios(answers: Answers) -> dict[str, Estimate]:
    """Ours over stock with the same pool, inside each block, `idle-p50/threads` and so on; below 1 ours is the better.

    `still` is left out where one of them says nothing at all; the producer's lag is neither's.
    """
    found = {}
    for name, row in FIGURES.items():
        for pool in POOLS if name != "lag-p99" else ():
            ours, stock = f"{OURS}-{pool}", f"{STOCK}-{pool}"
            pairs = [(row.of(b[ours]), row.of(b[stock])) for b in answers if ours in b and stock in b]
            ratios = [one / other for one, other in pairs if one > 0 and other > 0]
            if ratios and (estimate := mean_of_logs(ratios)):
                found[f"{name}/{pool}"] = estimate
    return found


def answer_faults(answers: Answers) -> tuple[str, ...]:
    """Reasons to distrust the figures, each with its remedy."""
    found = []
    for name in dict.fromkeys(name for block in answers for name in block):
        label, trials = ROWS[name].label, [block[name] for block in answers if name in block]
        if missing := sum(one.missing for one in trials):
            found.append(f"{label}: {missing} jobs never ran, with no worker killed: look for an error in its log")
        if noisy := sum(one.is_noisy for one in trials):
            found.append(f"{label}: others used the machine in {noisy} of {len(trials)} trials: run again")
    return tuple(found)


def best_peer(compared: Compared) -> str | None:
    """The peer with the highest drain rate, whatever it promises; None where none was measured."""
    rates = {name: rate.value for name in RIVALS if (rate := compared.level("drain", name))}
    return max(rates, key=lambda name: rates[name]) if rates else None


def commands(compared: Compared, name: str) -> Estimate | None:
    """Commands of a drain for each job; geometric, as its neighbours in the table."""
    return mean_of_logs([sum(b[name].drain_commands.values()) for b in compared.blocks if name in b])


def as_json(compared: Compared, answers: Answers = ()) -> dict[str, Any]:
    """What --json prints; an endless bound is null. See docs/peers.md."""
    found = ratios(compared) | answer_ratios(answers)
    figures = {
        f"{name}/{row}": estimate
        for name in FIGURES
        for row in dict.fromkeys(row for block in answers for row in block)
        if (estimate := figure(answers, name, row))
    }
    levels = {name: level for name in compared.names if (level := compared.level("drain", name))}
    return {
        "schema": SCHEMA,
        "valid": not compared.faults,
        "ratios": {name: e.value for name, e in found.items()},
        "intervals": {name: interval(e) for name, e in found.items()},
        "best_peer": best_peer(compared),
        "rates_hz": {name: e.value for name, e in levels.items()},
        "rate_intervals_hz": {name: interval(e) for name, e in levels.items()},
        "answers": {name: e.value for name, e in figures.items()},
        "answer_intervals": {name: interval(e) for name, e in figures.items()},
        "commands": {name: e.value for name in compared.names if (e := commands(compared, name))},
        "promises": {name: str(compared.rows[name].promise) for name in compared.names},
        "versions": {name: dict(versions) for name, versions in compared.versions.items()},
        "blocks": len(compared.blocks),
        "retakes": compared.retakes,
        "left_out": dict(compared.left_out),
        "faults": list(compared.faults),
    }

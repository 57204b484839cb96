"""Sidestep's transport beside kombu's own, and beside Celery's peers: the rows, and what they come to. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lab.model import Estimate
from lab.peers import PEERS, SCHEMA, Compared, Peer, Promise, interval
from lab.stats import mean, mean_of_logs

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
    # Else Celery makes a result backend for every greenlet, though there is none: a fifth of the time of a job.
    "result_backend_thread_safe": True,
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


def best_peer(compared: Compared) -> str | None:
    """The peer with the highest drain rate, whatever it promises; None where none was measured."""
    rates = {name: rate.value for name in RIVALS if (rate := compared.level("drain", name))}
    return max(rates, key=lambda name: rates[name]) if rates else None


def commands(compared: Compared, name: str) -> Estimate | None:
    """Commands of a drain for each job; geometric, as its neighbours in the table."""
    return mean_of_logs([sum(b[name].drain_commands.values()) for b in compared.blocks if name in b])


def as_json(compared: Compared) -> dict[str, Any]:
    """What --json prints of the drains; an endless bound is null. See docs/peers.md."""
    found = ratios(compared)
    levels = {name: level for name in compared.names if (level := compared.level("drain", name))}
    return {
        "schema": SCHEMA,
        "valid": not compared.faults,
        "ratios": {name: e.value for name, e in found.items()},
        "intervals": {name: interval(e) for name, e in found.items()},
        "best_peer": best_peer(compared),
        "rates_hz": {name: e.value for name, e in levels.items()},
        "rate_intervals_hz": {name: interval(e) for name, e in levels.items()},
        "commands": {name: e.value for name in compared.names if (e := commands(compared, name))},
        "promises": {name: str(compared.rows[name].promise) for name in compared.names},
        "versions": {name: dict(versions) for name, versions in compared.versions.items()},
        "blocks": len(compared.blocks),
        "retakes": compared.retakes,
        "left_out": dict(compared.left_out),
        "faults": list(compared.faults),
    }

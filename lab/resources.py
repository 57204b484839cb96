"""What a run costs the machine: CPU time and memory of process trees, and the broker's own counters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import redis

from lab import broker as brokers

OUR_COMMANDS = frozenset({"info", "scan", "dbsize", "unlink", "client", "hello", "select", "auth", "ping"})
"""Run by the lab while it looks, or once per connection: not part of a job's price."""


LOOK_COMMANDS = ("multi", "llen", "hlen", "exec")
"""What one look at the queue runs."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters at one moment. The difference of two is a run's."""

    worker_cpu_s: float
    context_switches: int | None
    broker_cpu_s: float | None
    producer_cpu_s: float
    helper_cpu_s: float
    busy_s: float
    steal_s: float | None
    commands: dict[str, int]
    bytes_in: int
    bytes_out: int


def snapshot(
    workers: Iterable[psutil.Process],
    helpers: Iterable[psutil.Process],
    client: redis.Redis | None,
) -> Snapshot:
    """Read every counter once. Helpers are ours but not measured, such as the HTTP server."""
    machine = psutil.cpu_times()
    busy = sum(getattr(machine, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))
    worker_cpu, switches = 0.0, 0
    for process in workers:
        with contextlib.suppress(psutil.Error):
            worker_cpu += _cpu_s(process)
            count = process.num_ctx_switches()
            switches += count.voluntary + count.involuntary
    helper_cpu = 0.0
    for process in helpers:
        with contextlib.suppress(psutil.Error):
            helper_cpu += _cpu_s(process)
    bytes_in, bytes_out, broker_cpu = brokers.traffic(client) if client else (0, 0, None)
    return Snapshot(
        worker_cpu_s=worker_cpu,
        context_switches=switches,
        broker_cpu_s=broker_cpu,
        producer_cpu_s=_cpu_s(psutil.Process()),
        helper_cpu_s=helper_cpu,
        busy_s=busy,
        steal_s=getattr(machine, "steal", None),
        commands=brokers.commands(client) if client else {},
        bytes_in=bytes_in,
        bytes_out=bytes_out,
    )


def others_cpu_s(before: Snapshot, after: Snapshot) -> float:
    """CPU seconds between two snapshots that none of our processes used; never below 0."""

    def ours(s: Snapshot) -> float:
        return s.worker_cpu_s + (s.broker_cpu_s or 0.0) + s.producer_cpu_s + s.helper_cpu_s

    return max(0.0, (after.busy_s - before.busy_s) - (ours(after) - ours(before)))


def commands_between(before: Snapshot, after: Snapshot, *, looks: int) -> dict[str, int]:
    """Broker commands that ran between two snapshots, without the lab's own and without its looks at the queue."""
    counts = {name: calls - before.commands.get(name, 0) for name, calls in after.commands.items()}
    for name in LOOK_COMMANDS:
        counts[name] = counts.get(name, 0) - looks
    return {name: n for name, n in sorted(counts.items()) if n > 0 and name.split("|")[0] not in OUR_COMMANDS}


def pss_bytes(processes: Iterable[psutil.Process]) -> int | None:
    """Proportional set size of all processes together; None where the system does not tell."""
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):
            return None
    return total or None


def _cpu_s(process: psutil.Process) -> float:
    # A recycled child's time passes to its parent's children_ figures when it is reaped.
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)

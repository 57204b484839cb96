"""What a run costs the machine: CPU time and memory of process trees, and the broker's own counters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from lab import broker as brokers
from lab.arenas.arena import Arena
from lab.model import Resources, Samples
from producer.publish import Sent

OUR_COMMANDS = frozenset({"info", "scan", "dbsize", "unlink", "client", "hello", "select", "auth", "ping"})
"""Run by the lab while it looks, or once per connection: not part of a job's price."""


def look_commands(queues: int) -> dict[str, int]:
    """What one look at so many queues runs."""
    return {"multi": 1, "llen": queues, "hlen": 1, "exec": 1}


@dataclass(frozen=True, slots=True)
class BrokerCounters:
    """A server's own counters at one moment. Asking changes them, so who asks subtracts what asking costs."""

    cpu_s: float | None = None
    """None for a server on another machine: its CPU time is not ours."""
    commands: dict[str, int] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0


def counters_before(
    client: redis.Redis, look: Callable[[], object], *, queues: int, local: bool
) -> tuple[BrokerCounters, Snoop]:
    """The counters right before a run, and what the lab's own questions will add to the bytes."""
    commands = brokers.commands(client)
    first = brokers.traffic(client)
    look()
    second = brokers.traffic(client)
    third = brokers.traffic(client)
    asking = (third[0] - second[0], third[1] - second[1])
    looking = (second[0] - first[0] - asking[0], second[1] - first[1] - asking[1])
    for name, count in look_commands(queues).items():
        commands[name] = commands.get(name, 0) + count  # the look above came after the commands were read
    return BrokerCounters(third[2] if local else None, commands, third[0], third[1]), Snoop(asking, looking)


def counters_after(client: redis.Redis, *, local: bool) -> BrokerCounters:
    """The counters right after a run: bytes first, since reading the commands adds to them."""
    bytes_in, bytes_out, cpu_s = brokers.traffic(client)
    return BrokerCounters(cpu_s if local else None, brokers.commands(client), bytes_in, bytes_out)


@dataclass(frozen=True, slots=True)
class Snoop:
    """Bytes into and out of the broker that the lab itself causes."""

    asking: tuple[int, int] = (0, 0)
    """One reading of the traffic."""
    looking: tuple[int, int] = (0, 0)
    """One look at the queue."""

    def share(self, looks: int, readings: int = 1) -> tuple[int, int]:
        """Of so many readings and looks."""
        into, out = (readings * asked + looks * looked for asked, looked in zip(self.asking, self.looking, strict=True))
        return into, out


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters at one moment. The difference of two is a run's."""

    at_ns: int
    """Of CLOCK_MONOTONIC."""
    worker_cpu_s: float
    context_switches: int
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
    broker: BrokerCounters | None = None,
) -> Snapshot:
    """Read every counter once. Helpers are ours but not measured, such as the HTTP server."""
    broker = broker or BrokerCounters()
    machine = psutil.cpu_times()
    busy = sum(getattr(machine, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))
    worker_cpu, switches = 0.0, 0
    for process in workers:
        with contextlib.suppress(psutil.Error):
            worker_cpu += _cpu_s(process)
            switches += _context_switches(process.pid)
    helper_cpu = 0.0
    for process in helpers:
        with contextlib.suppress(psutil.Error):
            helper_cpu += _cpu_s(process)
    return Snapshot(
        at_ns=time.monotonic_ns(),
        worker_cpu_s=worker_cpu,
        context_switches=switches,
        broker_cpu_s=broker.cpu_s,
        producer_cpu_s=_cpu_s(psutil.Process()),
        helper_cpu_s=helper_cpu,
        busy_s=busy,
        steal_s=getattr(machine, "steal", None),
        commands=broker.commands,
        bytes_in=broker.bytes_in,
        bytes_out=broker.bytes_out,
    )


Spell = tuple[Snapshot, Snapshot]
"""The snapshots before and after a part of a run."""


def others_cpu_s(spells: Iterable[Spell]) -> float:
    """CPU seconds in these parts of a run that none of our processes used; never below 0."""

    def ours(s: Snapshot) -> float:
        return s.worker_cpu_s + (s.broker_cpu_s or 0.0) + s.producer_cpu_s + s.helper_cpu_s

    return max(0.0, sum((after.busy_s - before.busy_s) - (ours(after) - ours(before)) for before, after in spells))


def bill(arena: Arena, spells: Sequence[Spell], sent: Sequence[Sent], samples: Samples) -> Resources:
    """What the run cost, but for the broker's commands and bytes."""
    start_ns = sent[0].due_ns
    # Without a single end, all the time that was waited for one.
    waited_ns = sum(after.at_ns - before.at_ns for before, after in spells)
    last_ns = int(samples.ended_ns.max()) if len(samples) else waited_ns
    broker = [(b.broker_cpu_s, a.broker_cpu_s) for b, a in spells]
    steal = [(b.steal_s, a.steal_s) for b, a in spells]
    return Resources(
        wall_s=last_ns / 1e9,
        boot_s=arena.boot_s,
        worker_cpu_s=sum(after.worker_cpu_s - before.worker_cpu_s for before, after in spells),
        worker_pss_bytes=pss_bytes(arena.processes()),
        context_switches=sum(after.context_switches - before.context_switches for before, after in spells),
        broker_cpu_s=_sum_of_differences(broker),
        producer_cpu_s=sum(after.producer_cpu_s - before.producer_cpu_s for before, after in spells),
        others_cpu_s=others_cpu_s(spells),
        steal_s=_sum_of_differences(steal),
        fed_s=(max(s.taken_ns for s in sent) - start_ns) / 1e9,
        gil_enabled=bool(arena.about["gil_enabled"]),
        python=str(arena.about["python"]),
    )


def _sum_of_differences(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    """None where one side is not known."""
    differences = [None if a is None or b is None else b - a for a, b in pairs]
    known = [d for d in differences if d is not None]
    return sum(known) if len(known) == len(differences) else None


def commands_between(spells: Iterable[Spell], *, looks: int, queues: int = 1) -> dict[str, int]:
    """Broker commands in these parts of a run, without the lab's own and without its looks at the queue."""
    counts: dict[str, int] = {}
    for before, after in spells:
        for name, calls in after.commands.items():
            counts[name] = counts.get(name, 0) + calls - before.commands.get(name, 0)
    for name, count in look_commands(queues).items():
        counts[name] = counts.get(name, 0) - looks * count
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


def _context_switches(pid: int) -> int:
    """Of all threads of a process; psutil asks only the first one. 0 where there is no /proc."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            words = status.read_text("utf-8", "replace").split()
            for kind in ("voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"):
                total += int(words[words.index(kind) + 1])
    return total


def _cpu_s(process: psutil.Process) -> float:
    # A recycled child's time passes to its parent's children_ figures when it is reaped.
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)

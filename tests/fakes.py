"""Small stand-ins that are passed in: a clock, a broker, a run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lab.model import SAMPLE_COLUMNS, Fault, FrozenArgs, Ledger, Resources, Run, Samples, Setup, Trial
from producer.pacers import Burst


@dataclass
class FakeClock:
    """Time that passes only when somebody sleeps."""

    at_ns: int = 100_000_000_000

    def now_ns(self) -> int:
        return self.at_ns

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0, "nobody sleeps backwards"
        self.at_ns += round(seconds * 1e9)


@dataclass
class FakeBroker:
    """Takes jobs, each batch in the seconds that `cost_s` says, and remembers what came when."""

    clock: FakeClock
    cost_s: Callable[[Sequence[int]], float] = lambda _: 0.0
    batches: list[tuple[int, list[int]]] = field(default_factory=list)
    """When each batch came, in ns, and the numbers of its jobs."""

    def send(self, seqs: Sequence[int]) -> None:
        self.batches.append((self.clock.now_ns(), list(seqs)))
        self.clock.sleep(self.cost_s(seqs))


@dataclass
class FakeWorkers:
    """Finish every job `service_s` after it was sent, and tell so: what a closed load waits for."""

    clock: FakeClock
    service_s: Callable[[int], float]
    start_ns: int = 0
    under_way: list[int] = field(default_factory=list)
    """When each job that is under way will end, in ns."""
    most_under_way: int = 0

    def __post_init__(self) -> None:
        self.start_ns = self.clock.now_ns()

    def send(self, seqs: Sequence[int]) -> None:
        for seq in seqs:
            heapq.heappush(self.under_way, self.clock.now_ns() + round(self.service_s(seq) * 1e9))
        self.most_under_way = max(self.most_under_way, len(self.under_way))

    def ends_s(self) -> Iterator[float]:
        while True:
            assert self.under_way, "the producer waits for jobs to end, but none is under way: it would wait for ever"
            ended_ns = heapq.heappop(self.under_way)
            self.clock.at_ns = max(self.clock.at_ns, ended_ns)
            yield (ended_ns - self.start_ns) / 1e9


SETUP = Setup(job="spin", args=FrozenArgs(loops=1), pacer=Burst(4), pool="prefork", concurrency=2)
"""A setup like any other, for tests that vary one thing."""


def make_samples(**columns: Sequence[int]) -> Samples:
    """Samples with these columns, the others all zero."""
    (n,) = {len(values) for values in columns.values()} or {0}
    return Samples(**{name: np.array(columns.get(name, [0] * n), dtype=np.int64) for name in SAMPLE_COLUMNS})


def make_run(
    *,
    setup: Setup = SETUP,
    repeat: int = 0,
    samples: Samples | None = None,
    ledger: Ledger | None = None,
    resources: Resources | None = None,
    wall_s: float = 1.0,
    faults: tuple[Fault, ...] = (),
) -> Run:
    """A run in which nothing is remarkable, but for what the test says."""
    return Run(
        Trial("made-up", setup, repeat),
        make_samples() if samples is None else samples,
        ledger or Ledger(issued=4, done=4, failed=0, lost=0),
        resources or make_resources(wall_s=wall_s),
        faults,
    )


def make_resources(
    *,
    wall_s: float = 1.0,
    drained_s: float | None = None,
    worker_pss_bytes: int | None = 50_000_000,
    others_cpu_s: float | None = 0.0,
    steal_s: float | None = 0.0,
    fed_s: float = 0.0,
    commands: Mapping[str, int] | None = None,
    python: str = "3.13.5",
    gil_enabled: bool = True,
) -> Resources:
    """The bill of a run in which nothing is remarkable, but for what the test says."""
    return Resources(
        wall_s=wall_s,
        boot_s=1.0,
        worker_cpu_s=0.8,
        worker_pss_bytes=worker_pss_bytes,
        context_switches=10,
        others_cpu_s=others_cpu_s,
        steal_s=steal_s,
        drained_s=drained_s,
        fed_s=fed_s,
        commands=commands or {},
        python=python,
        gil_enabled=gil_enabled,
    )

"""Runs such as an experiment's setups might give, made up in an instant: for a report's looks, not for what is true."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import islice

import numpy as np

from lab.axes import work_ms_of
from lab.model import STEP_COLUMNS, Experiment, Ledger, Load, Resources, Run, Samples, Setup, Steps, Suite, Trial
from lab.wire import PARTS
from producer.payloads import Cycle, Upstream
from tests.fakes import make_samples

MOST_JOBS = 250
APART = frozenset({"prefork", "processes", "interpreters"})


def plausible_suite(*experiments: Experiment, cores: int = 2, repeats: int = 3, quick: bool = False) -> Suite:
    """Every setup of the experiments, so many times."""
    return Suite(
        environment={"cores": cores, "cpu": "made up", "python": "3.13.5"},
        experiments=tuple(e.name for e in experiments),
        runs=tuple(
            plausible_run(Trial(e.name, setup, repeat), cores=cores)
            for e in experiments
            for repeat in range(repeats)
            for setup in e.setups(cores=cores, quick=quick)
        ),
        seed=0,
        repeats={e.name: repeats for e in experiments},
        quick=quick,
    )


def plausible_run(trial: Trial, *, cores: int = 2) -> Run:
    """Jobs in line for slots; slots that share a GIL, or too few cores, make the computing part longer."""
    setup = trial.setup
    drift = 1 + 0.02 * trial.repeat + 0.001 * (len(repr(setup)) % 7)
    rows = _rows(setup, setup.loads[0], slots=setup.slots, cores=cores, drift=drift)
    if setup.beside:
        rows += [
            (due, start, end, 100 + slot, 1)
            for due, start, end, slot, _ in _rows(setup, setup.beside, slots=2, cores=cores, drift=drift)
        ]
    samples = _samples(rows, setup) if setup.marks else make_samples()
    last_s, n = max(end for _, _, end, _, _ in rows), len(rows)
    resources = Resources(
        wall_s=last_s,
        boot_s=0.8 + 0.05 * setup.slots * (setup.pool in APART),
        worker_cpu_s=n * (work_ms_of(setup.args) + 0.7) / 1e3,
        worker_pss_bytes=60_000_000 + setup.slots * (20_000_000 if setup.pool in APART else 200_000),
        context_switches=n,
        commands={"brpop": 6 * n} if setup.queued else {},
        bytes_in=1500 * n if setup.queued else None,
        bytes_out=900 * n if setup.queued else None,
        drained_s=last_s + 0.001 if setup.watch_broker else None,
        gil_enabled=setup.python is None,
        python="3.13.5" if setup.python is None else "3.14.0t",
        message_bytes=dict.fromkeys(PARTS, 200) | {"body": 100 + setup.payload_bytes} if setup.queued else {},
        collect_s=n * {"get": 0.002, "bulk": 0.0002}[setup.results] if setup.results in {"get", "bulk"} else None,
    )
    return Run(trial, samples, Ledger(n, n, 0, 0), resources, steps=_steps(samples) if setup.steps else None)


def _steps(samples: Samples) -> Steps:
    """Evenly from sent to started, and a moment after the end."""
    between = STEP_COLUMNS[:-2]
    way = samples.started_ns - samples.sent_ns
    moments = {name: samples.sent_ns + way * i // (len(between) + 1) for i, name in enumerate(between, start=1)}
    return Steps(**moments, finished_ns=samples.ended_ns + 50_000, acked_ns=samples.ended_ns + 60_000)


def _rows(
    setup: Setup, load: Load, *, slots: int, cores: int, drift: float
) -> list[tuple[float, float, float, int, int]]:
    rounds = load.args.get("rounds")
    computes_s = (work_ms_of(load.args) + (0.9 if setup.queued else 0.05)) / 1e3
    computes_s += rounds * 1e-6 if isinstance(rounds, int) else 0.0
    waits_s = sum(v.mean_ms if isinstance(v, Upstream) else 0.0 for v in load.args.values()) / 1e3
    waits_s += sum(float(v) / 1e3 for name, v in load.args.items() if name == "ms" and isinstance(v, int | float))
    crowded = max(1.0, slots / (cores if setup.pool in APART or "chunks" in load.args else 1))
    delay_s = 0.005 if setup.beside and not setup.apart else 0.0
    service_s = (computes_s * min(crowded, 20) + waits_s + delay_s) * drift
    free = [(0.0, slot) for slot in range(slots)]
    rows = []
    for due in islice(load.pacer.due_s(), MOST_JOBS):
        at, slot = heapq.heappop(free)
        start = max(due, at) + 0.0002
        heapq.heappush(free, (start + service_s, slot))
        rows.append((due, start, start + service_s, slot, 0))
    return rows


def _samples(rows: Sequence[tuple[float, float, float, int, int]], setup: Setup) -> Samples:
    due, start, end, slot, beside = (np.array(column) for column in zip(*rows, strict=True))
    rounds = setup.args.get("rounds")
    counted = np.arange(1, len(rows) + 1) * (rounds if isinstance(rounds, int) else 0)
    step, size = setup.args.get("step"), setup.args.get("size_bytes")
    if isinstance(step, Cycle) and isinstance(size, int):
        counted = np.array([{"encode": 3, "decode": 5, "size": 1}[str(name)] * size for name in step.values])
        counted = np.resize(counted, len(rows)) + len(repr(setup)) % 7
    parallel = setup.pool in APART
    return make_samples(
        due_ns=_ns(due),
        sent_ns=_ns(due),
        received_ns=_ns(start - 0.0001),
        started_ns=_ns(start),
        ended_ns=_ns(end),
        cpu_ns=_ns((end - start) * 0.6),
        worker=(slot if parallel else slot // 100).tolist(),
        thread=(slot * 0 if parallel else slot).tolist(),
        gil=[1] * len(rows),
        beside=beside.tolist(),
        value=counted.tolist(),
    )


def _ns(seconds: np.ndarray) -> list[int]:
    return [round(s * 1e9) for s in seconds.tolist()]

"""Outcomes of load tests whose truth is known: from the simulator, at a rate and of a job that the test chooses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lab.load import hdr
from lab.load.model import (
    Arrivals,
    Crew,
    Generator,
    Kind,
    KindOutcome,
    Observation,
    Outcome,
    Piece,
    Scenario,
    Spans,
    Stage,
    Tally,
    Threshold,
    Tick,
    Watch,
    WorkerOutcome,
)
from lab.load.thresholds import judge_all
from lab.model import Ledger, Run, Setup, Trial
from producer.pacers import Constant, Poisson
from producer.payloads import Calibrated
from tests.simulator import simulate

NS = 1e9
WORK_MS = 10.0


def scenario(
    rate_hz: float, for_s: float, *, warmup_s: float = 1.0, thresholds: tuple[Threshold, ...] = ()
) -> Scenario:
    stage = Stage("poisson", for_s, (Piece(for_s, rate_hz, rate_hz),), Arrivals.RANDOM)
    kind = Kind("spin", "sidestep.spin", job="spin", work_ms=WORK_MS)
    return Scenario(
        "steady",
        (kind,),
        (stage,),
        about="A steady load.",
        warmup_s=warmup_s,
        crews=(Crew("solo"),),
        thresholds=thresholds,
    )


def run_at(
    rate_hz: float,
    for_s: float,
    *,
    seed: int = 0,
    random: bool = True,
    work_ms: float = WORK_MS,
    run_noise: float = 0.0,
) -> Run:
    """A solo worker's run; the same seed, the same run."""
    pacer = Poisson(rate_hz, for_s, seed) if random else Constant(rate_hz, for_s)
    setup = Setup("spin", {"loops": Calibrated(work_ms)}, pacer, pool="solo")
    return simulate(Trial("load", setup, seed), block_noise=0.0, run_noise=run_noise, seed=seed)


def outcome(
    rate_hz: float,
    for_s: float,
    *,
    seed: int = 0,
    random: bool = True,
    work_ms: float = WORK_MS,
    run_noise: float = 0.0,
    warmup_s: float = 1.0,
    thresholds: tuple[Threshold, ...] = (),
) -> Outcome:
    """What a load test of that run would have kept."""
    run = run_at(rate_hz, for_s, seed=seed, random=random, work_ms=work_ms, run_noise=run_noise)
    planned = scenario(rate_hz, for_s, warmup_s=warmup_s, thresholds=thresholds)
    return outcome_of(run, planned)


def outcome_of(run: Run, planned: Scenario) -> Outcome:
    """Fold the run's samples into ticks and histograms, as a load test does while it runs."""
    s = run.samples
    due, sent, started, ended = s.due_ns, s.sent_ns, s.started_ns, s.ended_ns
    wall_s = float(ended.max()) / NS
    ticks = tuple(_tick(run, planned, at) for at in range(int(np.ceil(max(wall_s, planned.planned_s)))))
    own = due >= planned.warmup_s * NS
    window = (planned.warmup_s, planned.planned_s)
    seconds = window[1] - window[0]
    within = (ended >= window[0] * NS) & (ended < window[1] * NS)
    spans = Spans(*(hdr.of(one[own]) for one in (ended - due, ended - sent, started - sent, ended - started)))
    n = len(s)
    found = Outcome(
        planned,
        Ledger(n, n, 0, 0),
        spans,
        hdr.of((sent - due)[own]),
        {"spin": KindOutcome(Ledger(n, n, 0, 0), spans, int(own.sum()), int(within.sum()))},
        {"w0 1": WorkerOutcome("solo", n, 0, spans.service, spans.wait)},
        ticks,
        window,
        offered_hz=float(own.sum()) / seconds,
        sent_hz=float(own.sum()) / seconds,
        throughput_hz=float(within.sum()) / seconds,
        wall_s=wall_s,
        generator=Generator(1, "template", cpu_s=0.1, rss_bytes=40_000_000, rss_first_bytes=39_000_000),
        observation=Observation(Watch.MARKS, "two memory writes a job", "nothing on this machine"),
        environment={"cpu": "Simulated", "cores": 8, "memory_bytes": 1, "kernel": "none", "architecture": "none"},
        started_at="2026-01-02T03:04:05+00:00",
        worker_cpu_s=run.resources.worker_cpu_s,
    )
    return replace(found, judged=judge_all(found))


def _tick(run: Run, planned: Scenario, at: int) -> Tick:
    s = run.samples
    begin, end = at * NS, (at + 1) * NS

    def inside(moments: np.ndarray) -> np.ndarray:
        return (moments >= begin) & (moments < end)

    ends = inside(s.ended_ns)
    flying = int(((s.sent_ns < end) & (s.ended_ns >= end)).sum())
    tally = Tally(int(inside(s.due_ns).sum()), int(inside(s.sent_ns).sum()), int(ends.sum()))
    phase = "warm-up" if at < planned.warmup_s else "measured" if at < planned.planned_s else "drain"
    return Tick(
        float(at),
        1.0,
        tally,
        {"spin": tally},
        {"w0 1": tally.done},
        {},
        {"jobs": max(0, flying - 1)},
        min(flying, 1),
        flying,
        hdr.of((s.ended_ns - s.due_ns)[ends], hdr.COARSE_DIGITS),
        hdr.of((s.sent_ns - s.due_ns)[inside(s.sent_ns)], hdr.COARSE_DIGITS),
        hdr.of((s.started_ns - s.sent_ns)[ends], hdr.COARSE_DIGITS),
        phase,
        40_000_000,
    )

"""The nouns of a load test. Frozen values of a size that does not grow with the number of jobs; no I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from lab.load.hdr import Histogram
from lab.model import Fault, Ledger

SCHEMA = 1
"""Of a stored outcome, and of what `sidestep load --json` prints."""
KIND = "load"
"""Stands as `kind` in a stored outcome; suites have none."""

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
"""The figures of each distribution that `--json` prints."""


# ---------------------------------------------------------------- what is asked for


class Arrivals(StrEnum):
    """How the jobs of a stage lie around its rate."""

    EVEN = "even"
    """Evenly spaced: job i is due when the area under the rate reaches i."""
    RANDOM = "random"
    """A Poisson process of that rate: gaps in the area under the rate are exponential with mean 1."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Stands for a number or a word drawn anew for each job, from the scenario's seed and the job's number."""

    how: str
    """`exponential` (values: the mean), `uniform` (low, high) or `choice` (as many as one likes, equally likely)."""
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Numbered:
    """Stands for the job's own number, counted from 0."""


@dataclass(frozen=True, slots=True)
class Made:
    """Stands for a value of this shape and size, the same for all jobs: see `tasks.shapes`; `text` is letters."""

    shape: str
    size_bytes: int


Value = int | float | str | bool | None | tuple[Any, ...] | Mapping[str, Any] | Drawn | Numbered | Made
"""What an argument can be: plain JSON, or what stands for it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the job mix."""

    name: str
    """What thresholds and tables call it; no two kinds share one."""
    task: str
    """The name on the message, such as `sidestep.spin` or `shop.tasks.resize`."""
    job: str | None = None
    """Of Sidestep's own jobs, which; None for a task of somebody else's."""
    weight: float = 1.0
    """Its share of the jobs is this over the sum of all weights."""
    args: Mapping[str, Value] = field(default_factory=dict)
    """Keyword arguments."""
    work_ms: float | Drawn | None = None
    """CPU time of a job that scales; calibrated on this machine."""
    queue: str = "jobs"
    priority: int = 0
    countdown_s: float | None = None
    """A worker must not run it before so long after it was due; its latency counts from then."""
    eta: str | None = None
    """A worker must not run it before this time of day, ISO 8601 with a zone; it is not due earlier."""
    expires_s: float | None = None
    """A worker must not run it later than so long after it was sent."""
    line: int = 0
    """Where the file says so; 0 where no file does."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a stage during which the rate goes from one value to another in a straight line."""

    for_s: float
    from_hz: float
    to_hz: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One shape of arrivals, for a while."""

    shape: str
    """constant, poisson, ramp, steps, spike, on-off, sine, closed or replay."""
    for_s: float
    pieces: tuple[Piece, ...] = ()
    """Of every shape whose rate is made of straight lines: all but sine, closed and replay."""
    arrivals: Arrivals = Arrivals.EVEN
    mean_hz: float = 0.0
    """Of a sine: the rate is mean + swing * sin(2 pi t / period)."""
    swing_hz: float = 0.0
    period_s: float = 0.0
    users: int = 0
    """Of a closed stage: each waits for its job to end, thinks, and sends the next."""
    think_s: float = 0.0
    trace: str = ""
    """Of a replay: the file of moments, in seconds, one a line."""
    trace_jobs: int = 0
    """Of a replay: how many moments the file holds."""
    speed: float = 1.0
    """Of a replay: so many times as fast as it was recorded."""
    line: int = 0

    @property
    def is_closed(self) -> bool:
        """Whether the next job waits for an earlier one to end."""
        return self.shape == "closed"

    @property
    def peak_hz(self) -> float:
        """The highest rate that it asks for; 0 for a closed stage, which asks for none, and for a replay its mean."""
        if self.shape == "sine":
            return self.mean_hz + self.swing_hz
        if self.shape == "replay":
            return self.trace_jobs / self.for_s if self.for_s else 0.0
        return max((max(piece.from_hz, piece.to_hz) for piece in self.pieces), default=0.0)

    @property
    def expected_jobs(self) -> float:
        """The area under the rate; for a closed stage not a number."""
        if self.is_closed:
            return math.nan
        if self.shape == "replay":
            return float(self.trace_jobs)
        if self.shape == "sine":
            omega = 2 * math.pi / self.period_s
            return self.mean_hz * self.for_s + self.swing_hz * (1 - math.cos(omega * self.for_s)) / omega
        return sum((piece.from_hz + piece.to_hz) / 2 * piece.for_s for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Crew:
    """Workers that the run starts: `nodes` of them, each with `concurrency` slots, for these queues."""

    pool: str = "prefork"
    concurrency: int = 1
    nodes: int = 1
    queues: tuple[str, ...] = ()
    """None named: all queues of the scenario."""
    preset: str = "default"
    prefetch: int | None = None
    acks_late: bool | None = None
    line: int = 0


class Watch(StrEnum):
    """How the end of a job is seen."""

    MARKS = "marks"
    """Marks of our own workers on this machine: exact, costs the broker nothing."""
    EVENTS = "events"
    """Celery's events: more messages for the broker, best effort, wall clocks of the workers' machines."""
    RESULTS = "results"
    """The result backend's own announcements, on Redis: only the end is seen, when its announcement comes."""


@dataclass(frozen=True, slots=True)
class Attached:
    """Workers that somebody else runs."""

    watch: Watch = Watch.EVENTS
    results_url: str = field(default="", repr=False)
    """Of the result backend, where that is watched; empty is the broker. May hold a password."""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Threshold:
    """A condition on the outcome: `[kind:] metric op bound`, where the bound may be a factor times another metric."""

    says: str
    """As it was written."""
    metric: str
    """See `lab.load.thresholds.METRICS`."""
    op: str
    """One of < <= > >= == !=."""
    bound: float
    """In seconds, jobs a second, shares or jobs, as the metric is; or a factor of `times`."""
    times: str | None = None
    """The metric that the bound is a factor of."""
    kind: str | None = None
    """Only jobs of this kind."""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Search:
    """Where the highest sustainable rate is looked for, and how long each rate is tried."""

    low_hz: float
    high_hz: float
    for_s: float = 10.0
    arrivals: Arrivals = Arrivals.RANDOM
    repeats: int = 3
    """How often the rates at the edge are tried."""
    precision: float = 0.05
    """Neighbouring rates on either side of the edge lie at most this share apart."""
    slack: float = 0.02
    """A backlog that grows by less than this share of the offered rate does not count as growing."""
    most: int = 30
    """Runs in all."""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a scenario file says."""

    name: str
    kinds: tuple[Kind, ...]
    stages: tuple[Stage, ...]
    about: str = ""
    seed: int = 0
    count: int | None = None
    """Stop after so many jobs, if the stages make more."""
    warmup_s: float = 0.0
    """Jobs due in the first seconds are sent and accounted for, and count in no figure."""
    drain_s: float = 30.0
    """How long the last jobs may take once the last was sent; what has not ended then is lost."""
    crews: tuple[Crew, ...] = ()
    """Workers to start; none where `attached` says who else runs them."""
    attached: Attached | None = None
    broker: str = field(default="", repr=False)
    """URL; empty is an embedded server. May hold a password."""
    key_prefix: str = ""
    """Before every key of somebody else's app, where it has one."""
    thresholds: tuple[Threshold, ...] = ()
    search: Search | None = None
    producers: int | None = None
    """Processes that send; None leaves it to the rate."""
    max_lag_s: float = 0.005
    """A generator that is later than this, and later than a tenth of a kind's latency, makes the run INVALID."""
    path: str = ""
    """The file it was read from, as the user named it."""
    text: str = ""
    """The file itself, before variables were filled in."""
    lines: Mapping[str, int] = field(default_factory=dict)
    """Where the file says `count` and its `broker`."""

    @property
    def planned_s(self) -> float:
        """From the first job due to the end of the last stage."""
        return sum(stage.for_s for stage in self.stages)

    @property
    def queues(self) -> tuple[str, ...]:
        """Every queue that a job goes to, in order of mention."""
        return tuple(dict.fromkeys(kind.queue for kind in self.kinds))

    @property
    def is_closed(self) -> bool:
        """Whether any stage waits for its own ends."""
        return any(stage.is_closed for stage in self.stages)

    @property
    def peak_hz(self) -> float:
        """The highest rate that any stage asks for."""
        return max((stage.peak_hz for stage in self.stages), default=0.0)

    @property
    def expected_jobs(self) -> float:
        """How many jobs the stages make, on average; not a number with a closed stage and no count."""
        made = math.fsum(stage.expected_jobs for stage in self.stages)
        if self.count is None:
            return made
        return float(self.count) if math.isnan(made) else min(float(self.count), made)

    def at(self, rate_hz: float, *, for_s: float, arrivals: Arrivals = Arrivals.RANDOM, seed: int = 0) -> Scenario:
        """The same mix and workers at one steady rate: what a search probes. The warm-up comes before `for_s`."""
        whole_s = self.warmup_s + for_s
        shape = "poisson" if arrivals is Arrivals.RANDOM else "constant"
        stage = Stage(shape, whole_s, (Piece(whole_s, rate_hz, rate_hz),), arrivals)
        return replace(self, stages=(stage,), count=None, seed=seed)


# ---------------------------------------------------------------- what happened


@dataclass(frozen=True, slots=True)
class Tally:
    """How many jobs, in a stretch of time or of a kind."""

    due: int = 0
    """Were due then."""
    sent: int = 0
    """Were handed to the broker then."""
    done: int = 0
    """Ended well then."""
    failed: int = 0
    """Attempts that raised, or returned something wrong, then. A job that is tried again may count more than once."""


@dataclass(frozen=True, slots=True)
class Holds:
    """What workers and broker hold at one moment; None where nobody can say."""

    worker_pss_bytes: int | None = None
    """Memory of our own workers, with what they share counted once; of somebody else's nobody tells."""
    broker_used_bytes: int | None = None
    """Memory that the broker has handed out, for all that it serves."""
    broker_clients: int | None = None
    """Connections to the broker, with ours."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A stretch of a run, a second unless the run is long."""

    at_s: float
    """When it begins, in seconds from the first due."""
    length_s: float
    whole: Tally
    kinds: Mapping[str, Tally] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)
    """Attempts that ended, by worker."""
    worker_failed: Mapping[str, int] = field(default_factory=dict)
    """Those of them that failed."""
    depth: Mapping[str, int] = field(default_factory=dict)
    """Messages that waited in each queue at its end; empty where nobody looked or the broker did not answer."""
    unacked: int | None = None
    """Messages that workers had fetched and not acknowledged at its end; None where the broker does not tell."""
    in_flight: int = 0
    """Jobs sent and not ended at its end."""
    latency: Histogram = field(default_factory=Histogram)
    """From due to ended, of jobs that ended in it; coarse."""
    lag: Histogram = field(default_factory=Histogram)
    """From due until the broker had taken it, of jobs that were sent in it; coarse."""
    wait: Histogram = field(default_factory=Histogram)
    """From sent to started, of jobs that ended in it; coarse; empty where nobody sees the start."""
    phase: str = "measured"
    """warm-up, measured or drain, by its beginning."""
    generator_rss_bytes: int = 0
    """Resident memory of the producers together at its end."""
    holds: Holds = field(default_factory=Holds)
    """What workers and broker held at its end."""
    watch_rss_bytes: int = 0
    """That of the process that watches: the account of every job, the view and all else but producers and workers."""
    kind_latency: Mapping[str, Histogram] = field(default_factory=dict, repr=False, compare=False)
    """`latency` by kind; known shortly after its end only, and not kept: a run of a day would hold many of them."""
    worker_latency: Mapping[str, Histogram] = field(default_factory=dict, repr=False, compare=False)
    """By worker, likewise."""

    @property
    def depth_all(self) -> int:
        """Messages waiting in all queues."""
        return sum(self.depth.values())

    @property
    def done_hz(self) -> float:
        """Jobs that ended well, a second."""
        return self.whole.done / self.length_s

    @property
    def due_hz(self) -> float:
        """Jobs that were due, a second: what was offered."""
        return self.whole.due / self.length_s

    @property
    def sent_hz(self) -> float:
        """Jobs that were handed over, a second."""
        return self.whole.sent / self.length_s


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the time of jobs went. Jobs that ended well and were due after the warm-up; full precision."""

    latency: Histogram = field(default_factory=Histogram)
    """Corrected: from the moment the job was due, so that a late producer or a slow queue hides nothing."""
    uncorrected: Histogram = field(default_factory=Histogram)
    """From the moment it was really sent: what a generator would say that forgets its own lateness."""
    wait: Histogram = field(default_factory=Histogram)
    """From sent to started: in the broker and in the worker's own line. Empty where nobody sees the start."""
    service: Histogram = field(default_factory=Histogram)
    """From started to ended. Empty where nobody sees the start."""


@dataclass(frozen=True, slots=True)
class KindOutcome:
    """What happened to one kind of job."""

    ledger: Ledger
    spans: Spans
    issued_measured: int = 0
    """Jobs due in the measured window."""
    done_measured: int = 0
    """Jobs that ended well in the measured window."""
    retried: int = 0


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """What one worker process did, whole run."""

    pool: str
    done: int
    failed: int
    service: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)
    heard_s: float | None = None
    """The least from a moment by its clock until it was heard of, by ours: the way here, less what it is ahead. None
    where its clock is ours."""
    begun_s: float | None = None
    """The least from sent, by our clock, to started, by its own: the way there, plus what it is ahead."""


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failures that say the same."""

    kind: str
    """Name of the kind of job, or empty where it is not known."""
    says: str
    """Such as `ValueError('too large')`."""
    count: int
    """How many of those that were looked at."""
    samples: tuple[str, ...] = ()
    """Ids of some of the jobs."""


@dataclass(frozen=True, slots=True)
class Generator:
    """How the load was made."""

    producers: int
    path: str
    """How messages were made: `template`, or `batch: ` and why. See `producer.publish`."""
    cpu_s: float = 0.0
    rss_bytes: int = 0
    """The most that the producers together held in memory."""
    rss_first_bytes: int = 0
    """What they held when the first job was sent."""
    taken: Histogram = field(default_factory=Histogram)
    """How long the broker took to take each batch."""


@dataclass(frozen=True, slots=True)
class Observation:
    """How ends were seen, and what that costs and misses."""

    watch: Watch
    costs: str
    misses: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A threshold and what came of it."""

    says: str
    value: float | None
    """None where there is nothing to say it of: then it does not hold."""
    bound: float
    """What it was held against, after factors."""
    ok: bool
    unit: str = ""
    """s, jobs/s, jobs, or empty for a share."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that remains of a run."""

    scenario: Scenario
    ledger: Ledger
    spans: Spans
    lag: Histogram
    """From due until the broker had taken it, of all jobs due after the warm-up, whether they ended or not."""
    kinds: Mapping[str, KindOutcome]
    workers: Mapping[str, WorkerOutcome]
    ticks: tuple[Tick, ...]
    window_s: tuple[float, float]
    """The measured window, in seconds from the first due: from the end of the warm-up to the end of the plan."""
    offered_hz: float
    """Jobs due in the window, a second of it."""
    sent_hz: float
    """Jobs really sent in the window, a second of it."""
    throughput_hz: float
    """Jobs that ended well in the window, a second of it."""
    wall_s: float
    """From the first due to the last end that was seen."""
    generator: Generator
    observation: Observation
    judged: tuple[Judged, ...] = ()
    faults: tuple[Fault, ...] = ()
    """Reasons to distrust the run: any makes it INVALID."""
    notes: tuple[str, ...] = ()
    """What a reader should know and what does not make it INVALID."""
    errors: tuple[ErrorGroup, ...] = ()
    retried: int = 0
    """Attempts beyond a job's first that came after one that failed."""
    lag_open: Histogram = field(default_factory=Histogram)
    """The lag of jobs of open stages alone, where there are closed ones too; else empty or the same."""
    early: int = 0
    """Jobs that ended before they were sent, as their workers' clocks say it."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Machine, versions and broker, as `lab.environment.fingerprint` says it, and `broker`."""
    started_at: str = ""
    """Time of day at the first due, ISO 8601."""
    others_cpu_s: float | None = None
    """CPU seconds used by programs that are not ours."""
    worker_cpu_s: float | None = None
    worker_pss_bytes: int | None = None
    broker_cpu_s: float | None = None
    last_words: str = ""
    """The end of the workers' logs, where jobs are missing."""

    @property
    def valid(self) -> bool:
        """Whether its numbers may be used."""
        return not self.faults

    @property
    def ok(self) -> bool:
        """Whether every threshold holds."""
        return all(judged.ok for judged in self.judged)

    @property
    def exit_code(self) -> int:
        """3 for a run that is INVALID, else 1 for a broken threshold, else 0."""
        return 3 if not self.valid else 0 if self.ok else 1

    @property
    def measured(self) -> tuple[Tick, ...]:
        """The ticks of the measured window."""
        return tuple(tick for tick in self.ticks if tick.phase == "measured")

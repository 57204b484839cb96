"""The nouns of the lab. Frozen values, no I/O, no clock; units are in the names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from producer.pacers import Pacer
from producer.payloads import Args, Payload, Referred, Text

Nanoseconds = NDArray[np.int64]
Seconds = NDArray[np.float64]


class LabError(Exception):
    """Something that ends the work; the message says what happened and what to do next."""


class BadInput(LabError):  # noqa: N818  it names what was wrong, as the user sees it
    """What the user asked for cannot be done as asked."""


@dataclass(frozen=True, slots=True)
class Load:
    """Other jobs that run at the same time as a setup's own; only what they do to those is measured, and their rate."""

    job: str
    args: Args
    pacer: Pacer


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything an experiment may vary."""

    job: str
    args: Args
    pacer: Pacer
    pool: str = "prefork"
    """A Celery pool; or, where `queued` is False, an executor: serial, threads, processes, interpreters."""
    concurrency: int = 1
    """Slots of one worker."""
    queued: bool = True
    """Through the broker to Celery workers; else straight into an executor, the baseline."""
    nodes: int = 1
    """Workers, each with `concurrency` slots."""
    prefetch: int | None = None
    acks_late: bool | None = None
    preset: str = "default"
    switch_interval_s: float | None = None
    marks: bool = True
    """Whether workers mark jobs. Without marks only the drain of the queue is seen."""
    watch_broker: bool = False
    """Time the drain at the broker: the only way to see it without marks, and used on both sides of such a ratio."""
    keep_awake: bool = False
    """Keep idle cores from sleeping, see `lab.awake`: for ratios of very short jobs."""
    python: str | None = None
    """Another interpreter for the workers: a path, or FREE_THREADED for the one found here."""
    packages: tuple[str, ...] = ()
    """Packages that the workers' environment has in other versions, or besides, such as `kombu==5.6.2`."""
    beside: Load | None = None
    """What else runs meanwhile, in the same worker or executor."""
    apart: str | None = None
    """Pool of a second worker, or executor, with `apart_concurrency` slots that serves `beside` instead."""
    apart_concurrency: int = 1
    disable_prefetch: bool = False
    """Workers fetch a job only when a slot is free: Celery's `--disable-prefetch`."""
    codec: str = "json"
    """How arguments and results are written: a name in `tasks.codecs.CODECS`."""
    compression: str | None = None
    """What the body is compressed with: a name in `tasks.codecs.COMPRESSIONS`, or nothing."""
    argsrepr: bool = True
    """Whether a message also holds its arguments as text for people to read, as Celery's own do."""
    base64: bool = True
    """Whether the body travels in base64, as kombu does by default; else as it is, if it is text."""
    results: str | None = None
    """What becomes of results: one of RESULTS; None is an app without a result backend."""
    rtt_ms: float | None = None
    """Put the broker this much farther away, there and back, by a relay; None connects directly."""
    steps: bool = False
    """Mark every step of a job's way, from encoding to its stored result, see `Steps`."""
    heartbeat_s: int | None = None
    """Workers send a heartbeat this often, in whole seconds, and it is marked when; None are workers that send none,
    or, with `knobs`, Celery's own every two seconds, unmarked."""
    events: str = "off"
    """Whether workers tell of every job, as with `-E`, and whether a Flower listens: one of EVENTS."""
    knobs: tuple[str, ...] | None = None
    """What is turned at workers that Celery starts as it does unasked: names in `tasks.knobs.KNOBS`. None are the lab's
    usual workers, without gossip, mingle and heartbeat."""
    arena: str = "local"
    """Where the workers run: one of ARENAS."""
    cpus: float | None = None
    """Share of a core that each simulated machine gets."""

    @property
    def loads(self) -> tuple[Load, ...]:
        """The setup's own load, then what runs beside it."""
        own = Load(self.job, self.args, self.pacer)
        return (own, self.beside) if self.beside else (own,)

    @property
    def payload_bytes(self) -> int:
        """Size of what its own jobs carry."""
        return sum(value.size_bytes for value in self.args.values() if isinstance(value, Payload | Text | Referred))

    @property
    def via(self) -> str | None:
        """How its own jobs get what they refer to; None where they refer to nothing."""
        referred = (value for value in self.args.values() if isinstance(value, Referred))
        return next((f"{value.via}-each" if value.each else value.via for value in referred), None)

    @property
    def slots(self) -> int:
        """Jobs that can be under way at once."""
        return self.nodes * self.concurrency

    @property
    def label(self) -> str:
        """How a table names it, such as `prefork 2` or `bare threads 2`."""
        parts = [] if self.queued else ["bare"]
        parts += [self.pool] if self.pool in SINGLE and self.nodes == 1 else [self.pool, str(self.slots)]
        if self.nodes > 1:
            parts[-1] = f"{self.nodes}x{self.concurrency}"
        if self.apart:
            parts.append(f"+ {self.apart}" + ("" if self.apart in SINGLE else f" {self.apart_concurrency}"))
        return " ".join(parts)


RESULTS = ("ignored", "stored", "get", "bulk")
"""A backend that a job does not use; one that keeps each result; and results read one by one, or all at once."""
EVENTS = ("off", "on", "flower")
"""No events; events that nobody hears; and events with a Flower on the same broker."""
ARENAS = ("local", "compose", "attached")
"""Processes of this machine; simulated machines, which are containers; and whatever machines listen on the broker."""
SINGLE = frozenset({"solo", "serial"})
FREE_THREADED = "free-threaded"
"""As `Setup.python`: the interpreter without a GIL that is found on PATH; left out where there is none."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setup, run once."""

    experiment: str
    setup: Setup
    repeat: int


SAMPLE_COLUMNS = (
    "due_ns",
    "sent_ns",
    "received_ns",
    "started_ns",
    "ended_ns",
    "cpu_ns",
    "worker",
    "thread",
    "gil",
    "beside",
    "value",
)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The lives of a run's jobs, one row a job that ended, in order of their numbers; times in ns from the first due.

    Columns are int64 arrays of shape (n,). `worker` counts the run's processes and `thread` its threads or
    greenlets; `gil` is 1 where the interpreter's lock was on when the job ended; `beside` is 1 for jobs of the setup's
    `beside`; `value` is what a job that measures something returned, else 0.
    """

    due_ns: Nanoseconds
    sent_ns: Nanoseconds
    received_ns: Nanoseconds
    started_ns: Nanoseconds
    ended_ns: Nanoseconds
    cpu_ns: Nanoseconds
    worker: Nanoseconds
    thread: Nanoseconds
    gil: Nanoseconds
    beside: Nanoseconds
    value: Nanoseconds

    def __len__(self) -> int:
        return len(self.due_ns)

    @property
    def own(self) -> Samples:
        """The jobs that the setup is about, without those beside them."""
        return self._where(self.beside == 0) if self.beside.any() else self

    @property
    def others(self) -> Samples:
        """The jobs beside the setup's own."""
        return self._where(self.beside != 0)

    def _where(self, chosen: NDArray[np.bool_]) -> Samples:
        return Samples(*(getattr(self, name)[chosen] for name in SAMPLE_COLUMNS))

    @property
    def latency_s(self) -> Seconds:
        """From the moment the job was due, so that a late producer cannot hide a slow queue."""
        return (self.ended_ns - self.due_ns) / 1e9

    @property
    def lag_s(self) -> Seconds:
        """How late the producer itself was."""
        return (self.sent_ns - self.due_ns) / 1e9

    @property
    def wait_s(self) -> Seconds:
        """From sent to started: in the broker and in the worker's own line."""
        return (self.started_ns - self.sent_ns) / 1e9

    @property
    def held_s(self) -> Seconds:
        """From received to started: in the worker's own line, where no other worker can take the job."""
        return (self.started_ns - self.received_ns) / 1e9

    @property
    def service_s(self) -> Seconds:
        """From started to ended."""
        return (self.ended_ns - self.started_ns) / 1e9

    @property
    def cpu_s(self) -> Seconds:
        """CPU time of the job's thread while the job ran. Greenlets share a thread: there it is an upper bound."""
        return self.cpu_ns / 1e9

    @property
    def stalled_s(self) -> Seconds:
        """Under way but not computing: waiting for the GIL, a core, or whatever the job waits for. Never below 0."""
        return np.maximum(self.service_s - self.cpu_s, 0.0)


STEP_COLUMNS = (
    "encoded_ns",
    "taken_ns",
    "readable_ns",
    "fetched_ns",
    "peeking_ns",
    "peeked_ns",
    "decoding_ns",
    "decoded_ns",
    "finished_ns",
    "acked_ns",
)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The steps between a run's samples' own moments, one row a sample, in the same order; ns from the first due.

    Columns are int64 arrays of shape (n,): when the producer had encoded the message, and when the broker had taken it;
    when the worker saw an answer of the broker, and had read it; when the worker's main process began to decode the
    body, and had done so; when the job's own slot began and had done so; when the job's result was stored, which
    without a backend is its end; and when the broker had taken its acknowledgement, 0 where that was not seen. A row
    without steps has zeros.
    """

    encoded_ns: Nanoseconds
    taken_ns: Nanoseconds
    readable_ns: Nanoseconds
    fetched_ns: Nanoseconds
    peeking_ns: Nanoseconds
    peeked_ns: Nanoseconds
    decoding_ns: Nanoseconds
    decoded_ns: Nanoseconds
    finished_ns: Nanoseconds
    acked_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class Ledger:
    """Every job, accounted for: issued = done + failed + lost. Raises LabError when it does not add up."""

    issued: int
    done: int
    """Ended once or more, with the right result each time."""
    failed: int
    """Raised, or returned a wrong result."""
    lost: int
    """Never ended."""
    duplicated: int = 0
    """Ran more often than once; counted beside the others."""
    wrong: int = 0
    """Returned something else than expected; counted in `failed` too."""

    def __post_init__(self) -> None:
        if self.issued != self.done + self.failed + self.lost or min(self.done, self.failed, self.lost) < 0:
            raise LabError(f"the ledger does not add up: {self}")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run cost. Times in seconds, sizes in bytes; None where this machine cannot tell."""

    wall_s: float
    """From the first job due to the last one ended, or to the empty queue where there are no marks."""
    boot_s: float
    """From starting the workers to ready; never part of a result."""
    worker_cpu_s: float
    worker_pss_bytes: int | None
    """Proportional set size of the whole process tree at the end, pages shared between processes counted once."""
    context_switches: int | None
    broker_cpu_s: float | None = None
    producer_cpu_s: float = 0.0
    others_cpu_s: float | None = None
    """CPU seconds that neither we nor the kernel's idle loop can account for."""
    steal_s: float | None = None
    """CPU seconds the hypervisor gave to somebody else."""
    commands: Mapping[str, int] = field(default_factory=dict)
    """Broker commands by name, for all jobs together; none where the broker is not our own, and serves others too."""
    bytes_in: int | None = None
    bytes_out: int | None = None
    fed_s: float = 0.0
    """From the first job due until the broker had taken the last one."""
    drained_s: float | None = None
    """From the first job due to nothing queued and nothing unacknowledged, where the broker was watched."""
    gil_enabled: bool = True
    """Inside the worker, after its imports."""
    python: str = ""
    message_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size of the first job's message by part, as the broker held it, see `lab.wire`; none without a broker."""
    sent_by: str = ""
    """How messages were made: `template`, or `batch: ` and why; empty without a broker. See `producer.publish`."""
    collect_s: float | None = None
    """To read all results, where the setup asks for that; not in `wall_s`."""
    watcher_cpu_s: float | None = None
    """CPU of the Flower that listened, until it had worked through what it heard; None without one."""
    watcher_ends: int | None = None
    """How many ends of jobs that Flower counted; None without one."""


@dataclass(frozen=True, slots=True)
class Change:
    """A machine that came or left while a trial ran."""

    at_s: float
    """From the first job due."""
    machine: str
    joined: bool
    """Else it left."""
    worked: bool
    """Whether the trial was to run on it; who joins later takes part from the next trial on."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A reason to distrust a run."""

    check: str
    says: str
    """What was seen, why it matters, what to try."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What happened in one trial."""

    trial: Trial
    samples: Samples
    ledger: Ledger
    resources: Resources
    faults: tuple[Fault, ...] = ()
    """What the checks say of it; found again whenever a suite is read."""
    processes: tuple[Mapping[str, Any], ...] = ()
    """What each process that left marks said of itself (pid, host, boot id, python); `Samples.worker` counts them."""
    retakes: int = 0
    """How often the trial was run before, because others used the machine."""
    last_words: str = ""
    """The end of the workers' logs, where jobs are missing; where the GIL came back, the interpreter's word of it."""
    steps: Steps | None = None
    """Where the setup asks for them."""
    changes: tuple[Change, ...] = ()
    """Machines that came and left, in order."""
    beats_ns: tuple[int, ...] = ()
    """When the worker came to send its heartbeats, from the first job due, in order; those before are negative."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number that knows how sure it is: the 95 % interval over n independent repeats."""

    value: float
    low: float
    high: float
    n: int


class Verdict(StrEnum):
    """What the data say of a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"


Selector = Mapping[str, object]
"""Fields of a Setup and the values they must have."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times larger `measure` is where `of` holds than where `to` holds, block by block."""

    measure: str
    """A name in `lab.stats.MEASURES`."""
    of: Selector
    to: Selector


@dataclass(frozen=True, slots=True)
class Level:
    """`measure` itself where `of` holds, repeat by repeat."""

    measure: str
    """A name in `lab.stats.MEASURES`."""
    of: Selector


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The job length, or whatever else `axis` says, from which on `of` finishes more jobs a second than `to`.

    Both hold for setups of several lengths, the same on both sides, to which `Experiment.halvings` adds more. In each
    repeat the length is read off between the two neighbours where the ratio of the throughputs crosses 1. Against a
    plain loop a job's length is what the loop took for one in that repeat, which may differ from what was asked for.
    """

    of: Selector
    to: Selector
    axis: str = "work_ms"
    """A name in `lab.axes.AXES`; in its unit."""


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """How far the throughput of `of` at several concurrencies lies from the Universal Scalability Law's best curve.

    The worst of the points, as a share of the curve, repeat by repeat.
    """

    of: Selector


Measure = Ratio | Level | BreakEven | ScalingLaw
"""What a claim is about."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence the numbers can contradict."""

    id: str
    says: str
    measure: Measure
    why: str
    """Why it might be so."""
    advice: str
    """What to do about it in real Celery work."""
    at_least: float = float("-inf")
    at_most: float = float("inf")
    needs_cores: int = 1
    """With fewer free cores the claim cannot be tested."""
    otherwise: str = ""
    """What to do where it is refuted; empty where the advice holds then too."""

    @property
    def bound(self) -> str:
        """The prediction in figures."""
        if self.at_least == float("-inf"):
            return f"at most {self.at_most:g}"
        return f"at least {self.at_least:g}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim, judged."""

    claim: Claim
    estimate: Estimate | None
    """None where not even one block could be measured."""
    verdict: Verdict
    because: str

    @property
    def advice(self) -> str:
        """What to do about it, as the verdict has it."""
        return self.claim.otherwise if self.verdict is Verdict.REFUTED and self.claim.otherwise else self.claim.advice


@dataclass(frozen=True, slots=True)
class Arms:
    """Setups spelled as axes: every combination of `vary` on top of the experiment's base."""

    vary: Mapping[str, Sequence[object]]
    in_quick: bool = True
    """Whether `--quick` keeps them: not those that no claim needs."""
    quick: Mapping[str, Any] = field(default_factory=dict)
    """What `--quick` changes in them, whatever they vary."""

    def setups(self, base: Setup, cores: int, *, quick: bool = False) -> list[Setup]:
        """All combinations; an axis that holds UP_TO_CORES becomes `up_to(cores)`."""
        setups = [base]
        for name, values in self.vary.items():
            spread = [v for value in values for v in (up_to(cores) if value is UP_TO_CORES else (value,))]
            setups = [replace(s, **cast("dict[str, Any]", {name: value})) for s in setups for value in spread]
        return [replace(s, **self.quick) for s in setups] if quick else setups


class _UpToCores:
    def __repr__(self) -> str:
        return "UP_TO_CORES"


UP_TO_CORES = _UpToCores()


def up_to(cores: int) -> tuple[int, ...]:
    """1, 2, the number of cores, and one point between; at most four, or a large machine is measured all day."""
    return tuple(sorted({1, 2, max(2, round(math.sqrt(2 * cores))), max(2, cores)}))


@dataclass(frozen=True, slots=True)
class Curve:
    """A chart: `y` of every chosen setup against what `x` says of it, one line for each combination of the rest."""

    title: str
    y: str
    """A name in `lab.stats.MEASURES`."""
    x: str
    """A name in `lab.axes.AXES`."""
    where: Selector = field(default_factory=dict)
    """Which setups: those with these values."""
    to: Selector | None = None
    """Divide by the setup with these values at the same x, repeat by repeat; None shows `y` itself."""
    predicted: tuple[str, ...] = ()
    """Names in `lab.predictions.PREDICTIONS`, or in its FITTED, each drawn as a line of its own."""
    log: bool = True
    """Both axes logarithmic."""
    to_one: bool = False
    """Divide every point by the one setup that `to` selects, whatever its x."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A chart: one bar for every chosen setup, made of `parts` that add up."""

    title: str
    parts: tuple[str, ...]
    """Names in `lab.stats.MEASURES`, of one unit, in the order in which they follow each other."""
    where: Selector = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heat:
    """A chart: `y` at every pair of two kinds of setups, as a multiple of the lowest in its column."""

    title: str
    y: str
    """A name in `lab.stats.MEASURES`; infinite where it could not be done, not a number where it cannot be used."""
    rows: str
    """A name in `lab.axes.NAMES`, as are the columns."""
    columns: str
    where: Selector = field(default_factory=dict)


Chart = Curve | Stack | Heat
USUAL_REPEATS = 5
"""Of an experiment that names no other number: fewer leave intervals wide (t is 2.8 at five, 4.3 at three)."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A question, the trials that could answer it, and what we expect to see."""

    name: str
    question: str
    base: Setup
    arms: tuple[Arms, ...]
    claims: tuple[Claim, ...]
    repeats: int = USUAL_REPEATS
    side_by_side: str | None = None
    """A field of Setup: setups that differ in it alone run one after the other, so that drift cannot come between."""
    quick: Mapping[str, Any] = field(default_factory=dict)
    """What `--quick` changes in every setup."""
    quick_repeats: int = 3
    halvings: int = 0
    """How often the gap between the job lengths in which a BreakEven lies is halved, when all repeats of the declared
    ones are in. Not with `--quick`."""
    not_in_a_look: str = ""
    """Why `--all --quick` leaves it out; empty where it does not."""
    charts: tuple[Chart, ...] = ()
    """Charts beside those that every experiment gets."""
    laws: tuple[Selector, ...] = ()
    """Setups of several numbers of slots, whose throughput is held against the Universal Scalability Law."""

    def setups(self, *, cores: int, quick: bool = False) -> list[Setup]:
        """Every setup once, in the order they were declared."""
        base = replace(self.base, **self.quick) if quick else self.base
        chosen = [arms for arms in self.arms if arms.in_quick or not quick]
        return list(dict.fromkeys(_hashable(s) for arms in chosen for s in arms.setups(base, cores, quick=quick)))


def _hashable(setup: Setup) -> Setup:
    if setup.beside and not isinstance(setup.beside.args, FrozenArgs):
        setup = replace(setup, beside=replace(setup.beside, args=FrozenArgs(setup.beside.args)))
    return setup if isinstance(setup.args, FrozenArgs) else replace(setup, args=FrozenArgs(setup.args))


class FrozenArgs(dict[str, Any]):
    """Arguments that can stand in a set."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


@dataclass(frozen=True, slots=True, eq=False)
class Suite:
    """Everything a report needs: the machine and the runs. Verdicts are not in it: they follow from it."""

    environment: Mapping[str, Any]
    experiments: tuple[str, ...]
    """The names of the experiments that were asked for, in order."""
    runs: tuple[Run, ...]
    seed: int
    repeats: Mapping[str, int]
    """How many repeats each experiment was to have."""
    quick: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Setups that could not run here, and why: "experiment · label" -> reason."""

    def only(self, name: str) -> Suite:
        """The part of the suite that belongs to one experiment."""
        return replace(
            self,
            experiments=(name,),
            runs=tuple(run for run in self.runs if run.trial.experiment == name),
            repeats={n: count for n, count in self.repeats.items() if n == name},
            left_out={label: why for label, why in self.left_out.items() if label.startswith(f"{name} ·")},
        )

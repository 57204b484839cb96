"""The runs of one setup, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lab.axes import (
    codec,
    compression,
    handovers,
    hogs,
    outside_share,
    rtt_ms,
    shape,
    size_bytes,
    work_ms,
    work_ms_of,
)
from lab.model import EVENTS, Estimate, FrozenArgs, Load, Run, Samples, Seconds, Setup
from lab.report.loads import BARE_ARGUMENTS, MESSAGES, VIA, load, size, work
from lab.stats import drain_hz, mean_of_logs, throughput_hz
from producer.payloads import Args, Payload, Referred, Text

Measure = Callable[[Run], float]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One setup with all its repeats, under a name that no other setup of the experiment has."""

    label: str
    setup: Setup
    runs: tuple[Run, ...]
    """In order of their repeats, never empty."""

    @property
    def jobs(self) -> int:
        """How many samples of the setup's own jobs all repeats have together."""
        return sum(len(run.samples.own) for run in self.runs)

    def pooled(self, column: Callable[[Samples], Seconds]) -> Seconds:
        """One array of all repeats' own jobs: percentiles come from these, never from averaged percentiles."""
        return np.concatenate([column(run.samples.own) for run in self.runs])

    def values(self, measure: Measure) -> list[float]:
        """The measure in every repeat that has it."""
        return [value for run in self.runs if math.isfinite(value := measure(run))]

    def estimate(self, measure: Measure) -> Estimate | None:
        """Geometric mean over repeats with its interval; None where a repeat is 0 or less, which has no logarithm."""
        values = self.values(measure)
        return mean_of_logs(values) if all(value > 0 for value in values) else None


def rate_hz(run: Run) -> float:
    """Jobs per second, by the clock that this setup is timed with."""
    return drain_hz(run) if run.trial.setup.watch_broker else throughput_hz(run)


def groups(runs: Iterable[Run]) -> tuple[Group, ...]:
    """The runs by setup: through the queue first, then by pool and slots."""
    by_setup: dict[str, list[Run]] = {}
    for run in runs:
        # By what it says, not by hash: a setup may hold arguments that have none.
        by_setup.setdefault(repr(run.trial.setup), []).append(run)
    found = sorted(by_setup.items(), key=lambda item: (_rank(item[1][0].trial.setup), item[0]))
    ordered = [tuple(sorted(same, key=lambda run: run.trial.repeat)) for _, same in found]
    return tuple(Group(label, same[0].trial.setup, same) for label, same in zip(_labels(ordered), ordered, strict=True))


POOL_ORDER = ("solo", "prefork", "threads", "eventlet", "gevent", "serial", "processes", "interpreters")


def _rank(setup: Setup) -> tuple[object, ...]:
    pool = POOL_ORDER.index(setup.pool) if setup.pool in POOL_ORDER else len(POOL_ORDER)
    # Bare setups in the order serial, threads, processes: the plain loop is what the others are compared with.
    return (
        not setup.queued,
        setup.job,
        not setup.queued and setup.pool != "serial",
        pool,
        setup.pool,
        setup.slots,
        *(axis(setup) for axis in (work_ms, outside_share, size_bytes, handovers, hogs, rtt_ms)),
        EVENTS.index(setup.events) if setup.events in EVENTS else len(EVENTS),
    )


def _python(run: Run) -> str:
    # By version, never by path: a path may hold a user's name, and reports are shown around.
    return f"Python {run.resources.python}" if run.trial.setup.python else "this Python"


def _or_usual(name: str, value: object) -> str:
    return f"usual {name}" if value is None else f"{name} {value}"


def _switch_interval(seconds: float | None) -> str:
    return "usual switch interval" if seconds is None else f"switch interval {seconds * 1e3:g} ms"


def _beside(other: Load | None) -> str:
    # Shorter than in a sentence: a label stands in many places.
    if other is None:
        return "nothing beside"
    ms = work_ms_of(other.args)
    return f"beside {other.pacer.count} {other.job}" + (f" of {ms:g} ms" if ms else "")


def other_args(setup: Setup) -> Args:
    """The arguments that no other trait says."""
    said = BARE_ARGUMENTS | {"size_bytes"}
    return FrozenArgs(
        {n: v for n, v in setup.args.items() if n not in said and not isinstance(v, Payload | Text | Referred)}
    )


def _codec(setup: Setup) -> str:
    # Nothing is encoded without a queue, unless that is the job.
    return codec(setup) if setup.queued or "codec" in setup.args else ""


TRAITS: Mapping[str, Callable[[Setup], object]] = {
    "codec": _codec,
    "compression": compression,
    "shape": shape,
    "size": size_bytes,
    "args": other_args,
}
"""What tells setups apart and is not, or not always, a field of theirs."""


def trait(name: str, setup: Setup) -> object:
    """What the setup has under a name of EXTRAS."""
    if name in TRAITS:
        return TRAITS[name](setup)
    return getattr(setup, name)


def _compression(run: Run) -> str:
    name = compression(run.trial.setup)
    return "uncompressed" if name == "none" else name


def _size(run: Run) -> str:
    texts = {n: v for n, v in run.trial.setup.args.items() if isinstance(v, Text)}
    return work(texts) if texts else size(size_bytes(run.trial.setup))


def _message(name: str) -> Callable[[Run], str]:
    return lambda run: MESSAGES[name](getattr(run.trial.setup, name))


def _events(how: str) -> str:
    return "events on, Flower listens" if how == "flower" else f"events {how}"


def _knobs(names: tuple[str, ...] | None) -> str:
    if names is None:
        return "the lab's worker"
    return ", ".join(names) or "nothing turned"


def _heartbeat(every_s: int | None) -> str:
    return "no heartbeats marked" if every_s is None else f"a heartbeat every {every_s} s"


EXTRAS: Mapping[str, Callable[[Run], str]] = {
    "job": lambda run: run.trial.setup.job,
    "codec": lambda run: _codec(run.trial.setup),
    "compression": _compression,
    "shape": lambda run: shape(run.trial.setup) or "no payload",
    "size": _size,
    "via": lambda run: VIA.get(str(run.trial.setup.via), str(run.trial.setup.via)),
    **{name: _message(name) for name in ("results", "rtt_ms", "argsrepr", "base64")},
    "marks": lambda run: "marks on" if run.trial.setup.marks else "marks off",
    "events": lambda run: _events(run.trial.setup.events),
    "knobs": lambda run: _knobs(run.trial.setup.knobs),
    "nodes": lambda run: f"{run.trial.setup.nodes} nodes",
    "preset": lambda run: f"preset {run.trial.setup.preset}",
    "prefetch": lambda run: _or_usual("prefetch", run.trial.setup.prefetch),
    "acks_late": lambda run: _or_usual("acks_late", run.trial.setup.acks_late),
    "disable_prefetch": lambda run: "no prefetch" if run.trial.setup.disable_prefetch else "may prefetch",
    "switch_interval_s": lambda run: _switch_interval(run.trial.setup.switch_interval_s),
    "python": _python,
    "pacer": lambda run: load(run.trial.setup.pacer),
    "args": lambda run: work(other_args(run.trial.setup)) or "no other arguments",
    "packages": lambda run: ", ".join(run.trial.setup.packages) or "the usual packages",
    "beside": lambda run: _beside(run.trial.setup.beside),
    "steps": lambda run: "steps marked" if run.trial.setup.steps else "steps not marked",
    "heartbeat_s": lambda run: _heartbeat(run.trial.setup.heartbeat_s),
    "watch_broker": lambda run: "broker watched" if run.trial.setup.watch_broker else "broker not watched",
}
"""What may be added to a label, in this order, until no two setups share one."""


TRAVEL: Mapping[str, object] = {
    "codec": "",
    "compression": "none",
    "shape": "",
    "size": 0,
    "via": None,
    "results": None,
    "rtt_ms": None,
    "argsrepr": True,
    "base64": True,
}
"""What a label says of every message as soon as two setups differ in it, and the value that it does not say.

Those are what Celery does unasked, and what is not there: else labels would be twice as long.
"""


def _said(name: str, words: Callable[[Run], str], run: Run) -> str:
    return "" if name in TRAVEL and trait(name, run.trial.setup) == TRAVEL[name] else words(run)


def _labels(same: Sequence[tuple[Run, ...]]) -> list[str]:
    firsts = [runs[0] for runs in same]
    labels = [run.trial.setup.label for run in firsts]
    for name, words in EXTRAS.items():
        extra = [_said(name, words, run) for run in firsts]
        told_apart: dict[str, set[str]] = {}
        for label, e in zip(labels, extra, strict=True):
            # Of what travels every difference is told; of the rest no more than it takes to tell two setups apart.
            told_apart.setdefault("" if name in TRAVEL else label, set()).add(e)
        if name == "codec":
            told_apart.get("", set()).discard("")  # without a queue there is none, which is no difference
        if any(len(different) > 1 for different in told_apart.values()):
            labels = [f"{label} · {e}" if e else label for label, e in zip(labels, extra, strict=True)]
    return [label if labels.count(label) == 1 else f"{label} · {i + 1}" for i, label in enumerate(labels)]


def single(group: Group, among: Sequence[Group]) -> Group | None:
    """The same setup with one slot, or None: what its speed-up is counted from."""
    if group.setup.slots == 1:
        return None
    wanted = replace(group.setup, concurrency=1, nodes=1)
    return next((other for other in among if other.setup == wanted), None)

"""What a value of the lab is called in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lab.model import BreakEven, Claim, Level, Load, Measure, Ratio, Run, ScalingLaw, Selector, Setup
from lab.report.groups import Group
from lab.report.loads import beside, load, work
from lab.stats import matches

MEASURES = {
    "throughput_hz": "jobs per second",
    "drain_hz": "jobs per second, timed at the broker",
    "worker_cpu_s_per_job": "CPU time per job",
    "pss_bytes": "memory of the whole worker",
    "pss_bytes_per_slot": "memory per slot",
    "latency_p50_s": "median latency",
    "latency_p99_s": "p99 latency",
    "cores_used": "cores kept busy by jobs",
    "beside_hz": "other jobs per second",
    "wait_p99_s": "p99 time from sent to started",
    "held_p50_s": "median time from received to started",
    "service_p50_s": "median time from started to ended",
    "round_us": "microseconds a round",
    "gap_p50_s": "median idle time between two jobs of a slot",
    "slots_busy": "share of slots busy",
    "boot_s": "time to start",
    "commands_per_job": "broker commands per job",
    "lost_updates": "share of additions lost",
    "disorder": "share of pairs that end out of order",
    "gil_on": "GIL on (1) or off (0)",
}
"""`lab.stats.MEASURES` in words."""


def measure(what: Measure, groups: Sequence[Group]) -> str:
    """What is measured: of what, or what divided by what."""
    match what:
        case Ratio(name, of, to):
            return f"{MEASURES.get(name, name)}: {side(of, groups)} ÷ {side(to, groups)}"
        case Level(name, of):
            return f"{MEASURES.get(name, name)}: {side(of, groups)}"
        case BreakEven(of, to):
            return f"job length in ms from which on {_short(of)} finishes more jobs a second than {_short(to)}"
        case ScalingLaw(of):
            return f"largest distance from the Universal Scalability Law's best curve, as a share: {_short(of)}"


def _short(where: Selector) -> str:
    """One side in words, such as `bare threads 2` or `prefork 2, marks off`."""
    rest = dict(where)
    first = [] if rest.pop("queued", True) else ["bare"]
    first += [str(rest.pop(name)) for name in ("pool", "concurrency") if name in rest]
    return ", ".join([*([" ".join(first)] if first else []), *(_field(n, v) for n, v in rest.items())]) or "every setup"


def side(where: Selector, groups: Sequence[Group]) -> str:
    """The setup that is selected, by its label; several by what they share."""
    chosen = [group.label for group in groups if any(matches(run, where) for run in group.runs)]
    if len(chosen) == 1:
        return chosen[0]
    spelled = _short(where)
    return f"{spelled} (geometric mean of {len(chosen)} setups)" if chosen else spelled


def _field(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"{name} {'on' if value else 'off'}"
    match value:
        case Load():
            return beside(value)
        case None:
            return "nothing beside" if name == "beside" else f"{name} as usual"
        case Mapping():
            return work(value)
    return f"{name} {value}"


def conditions(groups: Sequence[Group]) -> list[str]:
    """Each different work and load of these setups, in words."""
    return list(dict.fromkeys(_condition(group.setup) for group in groups))


def _condition(setup: Setup) -> str:
    args = work(setup.args)
    more = f"; {beside(setup.beside)}" if setup.beside else ""
    return f"Job {setup.job}{f' ({args})' if args else ''}; load: {load(setup.pacer)}{more}."


def short_id(claim: Claim) -> str:
    """The claim's id without its experiment."""
    return claim.id.rpartition("/")[2]


def of_runs(runs: Sequence[Run]) -> str:
    """Which repeats these are, counted from 1 as people do."""
    return ", ".join(str(n + 1) for n in sorted({run.trial.repeat for run in runs}))

"""What a value of the lab is called in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from lab.model import Claim, Ratio, Run, Selector, Setup
from lab.report.groups import Group
from lab.report.loads import load, work
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
}
"""`lab.stats.MEASURES` in words."""


def ratio(measure: Ratio, groups: Sequence[Group]) -> str:
    """What is divided by what."""
    what = MEASURES.get(measure.measure, measure.measure)
    return f"{what}: {side(measure.of, groups)} ÷ {side(measure.to, groups)}"


def side(where: Selector, groups: Sequence[Group]) -> str:
    """The setup that is selected, by its label; several by what they share."""
    chosen = [group.label for group in groups if any(matches(run, where) for run in group.runs)]
    if len(chosen) == 1:
        return chosen[0]
    spelled = ", ".join(_field(name, value) for name, value in where.items()) or "every setup"
    return f"{spelled} (geometric mean of {len(chosen)} setups)" if chosen else spelled


def _field(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return f"{name} {value}"


def conditions(groups: Sequence[Group]) -> list[str]:
    """Each different work and load of these setups, in words."""
    return list(dict.fromkeys(_condition(group.setup) for group in groups))


def _condition(setup: Setup) -> str:
    args = work(setup.args)
    return f"Job {setup.job}{f' ({args})' if args else ''}; load: {load(setup.pacer)}."


def short_id(claim: Claim) -> str:
    """The claim's id without its experiment."""
    return claim.id.rpartition("/")[2]


def of_runs(runs: Sequence[Run]) -> str:
    """Which repeats these are, counted from 1 as people do."""
    return ", ".join(str(n + 1) for n in sorted({run.trial.repeat for run in runs}))

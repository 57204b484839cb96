"""What a reader must know before believing a suite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lab.axes import work_ms
from lab.checks import clock_bound_s
from lab.model import Experiment, Finding, Run, Setup, Suite, Verdict
from lab.report.groups import groups
from lab.report.units import number, plural, repeats


def runs_of(suite: Suite, experiment: str) -> list[Run]:
    """The runs of one experiment."""
    return [run for run in suite.runs if run.trial.experiment == experiment]


def findings_of(findings: Iterable[Finding], experiment: Experiment | None) -> list[Finding]:
    """The findings of one experiment's claims."""
    own = {claim.id for claim in experiment.claims} if experiment else set()
    return [finding for finding in findings if finding.claim.id in own]


def shown(suite: Suite, experiments: Iterable[Experiment]) -> list[tuple[str, Experiment | None]]:
    """Every experiment the suite was run for, in its order; None for one that this Sidestep does not know."""
    known = {experiment.name: experiment for experiment in experiments}
    names = dict.fromkeys([*suite.experiments, *(run.trial.experiment for run in suite.runs)])
    return [(name, known.get(name)) for name in names]


def summary(findings: Sequence[Finding]) -> str:
    """How many claims have which verdict."""
    counts = [f"{sum(f.verdict is verdict for f in findings)} {verdict.value}" for verdict in Verdict]
    return f"{plural(len(findings), 'claim')}: {', '.join(counts)}." if findings else "No claim was tested."


def caveats(suite: Suite, experiments: Iterable[Experiment]) -> Iterator[str]:
    """One sentence for each."""
    if suite.quick:
        yield "quick: few repeats, wide intervals. Good for a look, not for a decision."
    if not suite.runs:
        yield "no runs: nothing was measured in this suite."
        return
    for name, experiment in shown(suite, experiments):
        yield from _interrupted(suite, name, experiment)
    yield from _machines(suite)
    if suite.left_out:
        yield f"{plural(len(suite.left_out), 'setup')} could not run here: see “Left out”."
    retaken = sum(run.retakes for run in suite.runs)
    if retaken:
        again = "was taken again" if retaken == 1 else "were taken again"
        yield (
            f"{plural(retaken, 'run')} {again} since others used the machine or the producer was held up; only the "
            "last attempt is shown."
        )
    faulty = sum(bool(run.faults) for run in suite.runs)
    if faulty:
        yield f"{faulty} of {plural(len(suite.runs), 'run')} had faults; claims that use them are invalid."


def simulated(setup: Setup) -> str:
    """What stands for machines where they are simulated, and what is not simulated."""
    return (
        f"simulated machines: each is a container with {setup.cpus or 1:g} of a core of one machine. Not simulated: "
        "the network between machines, their disks, clocks, caches and memory of their own; all of them share the "
        "one machine's cores with broker and producer."
    )


def _machines(suite: Suite) -> Iterator[str]:
    """That machines were simulated, how well clocks were known, and who came and left."""
    yield from dict.fromkeys(simulated(r.trial.setup) for r in suite.runs if r.trial.setup.arena == "compose")
    bounds = [clock_bound_s(run) for run in suite.runs if run.trial.setup.arena == "attached"]
    if bounds:
        known = f"are known to {number(max(bounds) * 1e3)} ms or better" if max(bounds) else "are this machine's own"
        yield (
            f"attached machines: their clocks {known}. Their workers were not started afresh for each run, and nothing "
            "is known of what else the machines did."
        )
    for run in suite.runs:
        for change in run.changes:
            what = "joined" if change.joined else "left"
            when = f"{number(abs(change.at_s))} s {'before' if change.at_s < 0 else 'after'} the first job was due"
            later = "" if change.worked or not change.joined else "; it takes part from the next run on"
            yield (
                f"{run.trial.experiment}, repeat {run.trial.repeat + 1}, {run.trial.setup.label}: machine "
                f"{change.machine} {what} {when}{later}."
            )


def _interrupted(suite: Suite, name: str, experiment: Experiment | None) -> Iterator[str]:
    promised = suite.repeats.get(name, 0)
    measured = groups(runs_of(suite, name))
    if not measured:
        yield f"interrupted: {name} has no runs; {repeats(promised)} were planned."
        return
    counts = [len(group.runs) for group in measured]
    short = sum(count < promised for count in counts)
    if short:
        has = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        yield (
            f"interrupted: {name} has {has} of {repeats(promised)} "
            f"({short} of {plural(len(counts), 'setup')} fell short); intervals are wider than planned."
        )
    if experiment is None:
        yield f"{name} is not an experiment of this Sidestep: its runs are shown, but no claim is judged."
        return
    declared = experiment.setups(cores=int(suite.environment.get("cores", 1)), quick=suite.quick)
    # Several setups that could not run may share a label, beside which a codec may stand.
    labels = ((f"{name} · {setup.label}", f"{name} · {setup.label} {setup.codec}") for setup in declared)
    unable = sum(any(label in suite.left_out for label in both) for both in labels)
    lengths = {work_ms(setup) for setup in declared}
    found_by_halving = sum(bool(experiment.halvings) and work_ms(group.setup) not in lengths for group in measured)
    missing = len(declared) - (len(measured) - found_by_halving) - unable
    if missing > 0:
        have = "has" if missing == 1 else "have"
        yield f"{name}: {plural(missing, 'declared setup')} of {len(declared)} {have} no run in this suite."


def faults(suite: Suite) -> dict[str, list[Run]]:
    """Every fault in words, with the runs that have it."""
    found: dict[str, list[Run]] = {}
    for run in suite.runs:
        for fault in run.faults:
            found.setdefault(fault.says, []).append(run)
    return found

"""A claim in plain words, before anything is measured."""

from __future__ import annotations

from lab.model import BreakEven, Claim, Experiment, Level, Ratio, ScalingLaw, Setup, Verdict
from lab.report import figures, words
from lab.report.units import plural
from lab.stats import selects, sides


def explanation(experiment: Experiment, claim: Claim, verdict: Verdict | None = None) -> dict[str, str]:
    """The claim by heading: what it says, why, how it is tested, what would refute it, what to do about it.

    `verdict` is the one that the advice shall fit; without it both are told, where a refuted claim has its own.
    """
    opposite = figures.bound(claim).replace("at least", "below").replace("at most", "above")
    return {
        "claim": claim.says,
        "why it might be so": claim.why,
        "prediction": f"{words.measure(claim.measure, ())}: {figures.bound(claim)}",
        "method": (
            f"Each repeat runs every setup once, in shuffled order{_turns(experiment)}, each in fresh processes; "
            f"those of this claim run {words.jobs(_looked_at(experiment, claim))}; {_taken(claim)} inside each repeat, "
            f"{_halved(experiment, claim)}and its 95 % interval over {experiment.repeats} repeats "
            f"({experiment.quick_repeats} with --quick). "
            f"`sidestep plan {experiment.name}` shows the trials."
        ),
        "what would refute it": f"the whole interval {opposite}",
        "needs": (f"{claim.needs_cores} cores" if claim.needs_cores > 1 else "one core")
        + (" and a Docker engine, or machines of yours that listen" if experiment.base.arena == "compose" else ""),
        **_advice(claim, verdict),
    }


def _advice(claim: Claim, verdict: Verdict | None) -> dict[str, str]:
    heading, refuted = "what to do about it", "what to do where it is refuted"
    if not claim.otherwise or verdict is Verdict.SUPPORTED:
        return {heading: claim.advice}
    if verdict is Verdict.REFUTED:
        return {heading: claim.otherwise}
    return {heading: claim.advice, refuted: claim.otherwise}


def _turns(experiment: Experiment) -> str:
    """Which setups keep together while they are shuffled."""
    if experiment.side_by_side is None:
        return ""
    return f", those that differ in {experiment.side_by_side} alone side by side, a part of the load each in turns"


def _looked_at(experiment: Experiment, claim: Claim) -> list[Setup]:
    """The setups that the claim compares."""
    setups = experiment.setups(cores=max(2, claim.needs_cores))
    return [setup for setup in setups if any(selects(side, setup) for side in sides(claim.measure))]


def _halved(experiment: Experiment, claim: Claim) -> str:
    """What comes after the repeats of the lengths that are declared."""
    if not experiment.halvings or not isinstance(claim.measure, BreakEven):
        return ""
    return (
        f"then the gap between the two lengths around it is halved {plural(experiment.halvings, 'time')}, on a scale "
        "of logarithms, each time with as many repeats (not with --quick); "
    )


def _taken(claim: Claim) -> str:
    match claim.measure:
        case Ratio():
            return "the ratio is taken"
        case Level():
            return "the figure is taken"
        case BreakEven():
            return "the point where the two meet is read off"
        case ScalingLaw():
            return "the curve is fitted, and its worst miss taken,"

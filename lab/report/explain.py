"""A claim in plain words, before anything is measured."""

from __future__ import annotations

from lab.model import BreakEven, Claim, Experiment, Level, Ratio, ScalingLaw
from lab.report import figures, words


def explanation(experiment: Experiment, claim: Claim) -> dict[str, str]:
    """The claim by heading: what it says, why, how it is tested, what would refute it, what to do about it."""
    opposite = figures.bound(claim).replace("at least", "below").replace("at most", "above")
    return {
        "claim": claim.says,
        "why it might be so": claim.why,
        "prediction": f"{words.measure(claim.measure, ())}: {figures.bound(claim)}",
        "method": (
            f"Each repeat runs every setup once, in shuffled order, each in fresh processes, with "
            f"{experiment.base.job!r} jobs; {_taken(claim)} inside each repeat, and its 95 % interval over "
            f"{experiment.repeats} repeats ({experiment.quick_repeats} with --quick). "
            f"`sidestep plan {experiment.name}` shows the trials."
        ),
        "what would refute it": f"the whole interval {opposite}",
        "needs": (f"{claim.needs_cores} cores" if claim.needs_cores > 1 else "one core")
        + (" and a Docker engine, or machines of yours that listen" if experiment.base.arena == "compose" else ""),
        "what to do about it": claim.advice,
    }


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

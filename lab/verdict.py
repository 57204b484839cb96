"""From claims and runs to findings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lab.checks import SPOILS
from lab.model import (
    USUAL_REPEATS,
    BreakEven,
    Claim,
    Estimate,
    Experiment,
    Fault,
    Finding,
    Level,
    Ratio,
    Run,
    Suite,
    Verdict,
)
from lab.stats import MOST_REPEATS, blocks, estimate, repeats_to_decide, uses


def judge(claim: Claim, runs: Sequence[Run], *, cores: int, left_out: Sequence[str] = ()) -> Finding:
    """Compare the whole interval, not the point, with what the claim allows.

    `cores` is how many this machine really offers. A fault on a run that the claim looks at makes it INVALID.
    `left_out` says why some setups of its experiment could not run here.
    """
    used = [run for run in runs if uses(claim.measure, run)]
    measured = estimate(claim.measure, used)
    if cores < claim.needs_cores:
        needs = f"it needs {claim.needs_cores} free cores and this machine offers {cores}; run it on a larger one"
        return Finding(claim, measured, Verdict.INVALID, needs)
    if measured is None:
        why = f"it cannot be tested here: {left_out[0]}" if left_out else _nothing(claim)
        return Finding(claim, None, Verdict.INVALID, why)
    if faults := _distinct(fault.says for run in used for fault in run.faults if _concerns(fault, claim)):
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        return Finding(claim, measured, Verdict.INVALID, faults[0] + more)
    return Finding(claim, measured, *_compare(claim, measured, used))


def _nothing(claim: Claim) -> str:
    name = claim.id.partition("/")[0]
    return (
        "not measured: no repeat has all that it compares: go on with this suite (the same command with its --out), or "
        f"run `sidestep run {name}` without --quick"
    )


def _concerns(fault: Fault, claim: Claim) -> bool:
    """Whether the fault bears on what the claim measures."""
    spoiled = SPOILS.get(fault.check)
    return spoiled is None or (isinstance(claim.measure, Ratio | Level) and claim.measure.measure in spoiled)


def _compare(claim: Claim, estimate: Estimate, runs: Sequence[Run]) -> tuple[Verdict, str]:
    if claim.at_least <= estimate.low and estimate.high <= claim.at_most:
        return Verdict.SUPPORTED, f"the whole interval is {claim.bound}"
    if estimate.high < claim.at_least or estimate.low > claim.at_most:
        return Verdict.REFUTED, f"the whole interval misses: {claim.bound} was predicted"
    return Verdict.INCONCLUSIVE, _undecided(claim, estimate, blocks(claim.measure, runs))


def _undecided(claim: Claim, estimate: Estimate, values: Sequence[float]) -> str:
    """Why there is no verdict, and how many more repeats would bring one."""
    n = estimate.n
    if n < 2:
        return (
            f"one repeat has no interval: 1 more is the least, {USUAL_REPEATS - 1} more are usual: --repeats "
            f"{USUAL_REPEATS} in a new suite"
        )
    held = f"the interval holds the bound ({claim.bound})"
    if never := sum(map(math.isinf, values)):
        return (
            f"{held} and has no end, for in {never} of {n} repeats it never paid: no number of more repeats is sure to "
            "decide; measure without --quick, or on a quieter machine, in a new suite"
        )
    bound = claim.at_most if math.isinf(claim.at_least) else claim.at_least
    needed = repeats_to_decide(values, bound, logs=isinstance(claim.measure, Ratio | BreakEven))
    if needed is None:
        return f"{held}, and more repeats are unlikely to decide: fewer than {MOST_REPEATS - n} more do not"
    more = f"{needed - n} more repeat{'s' * (needed - n > 1)}"
    return (
        f"{held}; if mean and scatter stay like this, about {more} than these {n} would decide, with even odds: "
        f"--repeats {needed} in a new suite"
    )


def judge_all(experiments: Iterable[Experiment], suite: Suite) -> list[Finding]:
    """Every claim of the experiments that the suite was run for."""
    cores = int(suite.environment.get("cores", 1))
    findings = []
    for experiment in experiments:
        if experiment.name in suite.experiments:
            runs = [run for run in suite.runs if run.trial.experiment == experiment.name]
            left_out = _distinct(suite.only(experiment.name).left_out.values())
            findings += [judge(claim, runs, cores=cores, left_out=left_out) for claim in experiment.claims]
    return findings


def _distinct(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))

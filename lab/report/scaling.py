"""The Universal Scalability Law's coefficients of an experiment, or why nothing is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lab.axes import has_room, number_of
from lab.model import Claim, Run, ScalingLaw, Selector
from lab.report import words
from lab.report.tables import Column, Table
from lab.report.units import TO, number, plural, sure
from lab.stats import matches, mean, mean_of_logs, throughput_hz
from lab.usl import LOADS, Usl, fit

TITLE = "Universal Scalability Law"


def laws(
    claims: Sequence[Claim], runs: Sequence[Run], *, cores: int, others: Sequence[Selector] = ()
) -> Iterator[Table | str]:
    """For each claim about the law its table, or one sentence where too few loads lie within the cores.

    `others` are setups that are held against the law without any claim.
    """
    for claim in claims:
        if isinstance(claim.measure, ScalingLaw):
            yield law(claim.measure, runs, cores=cores)
    for where in others:
        yield law(ScalingLaw(where), runs, cores=cores)


def law(measure: ScalingLaw, runs: Sequence[Run], *, cores: int) -> Table | str:
    """The coefficients, fitted inside each repeat through the loads that the machine has cores for."""
    repeats: dict[int, dict[int, float]] = {}
    for run in runs:
        setup = run.trial.setup
        if matches(run, measure.of) and has_room(setup, cores=cores) and throughput_hz(run) > 0:
            repeats.setdefault(run.trial.repeat, {})[number_of(setup)] = throughput_hz(run)
    fits = [fit(points) for _, points in sorted(repeats.items()) if len(points) >= LOADS]
    if not fits:
        loads = len({slots for points in repeats.values() for slots in points})
        if any(run.trial.setup.arena != "local" for run in runs):
            measured = f"{plural(loads, 'number')} of machines {'was' if loads == 1 else 'were'} measured"
            return f"{TITLE}, {words.selected(measure.of)}: {measured}, and {LOADS} are needed."
        within = f"{plural(loads, 'load')} {'lies' if loads == 1 else 'lie'} within this machine's"
        return f"{TITLE}: {within} {plural(cores, 'core')}; {LOADS} are needed; nothing is said beyond the cores."
    most = max(n for points in repeats.values() for n in points)
    return Table(f"{TITLE}: {words.selected(measure.of)}", COLUMNS, _rows(fits, most), NOTES)


SIGMA, KAPPA, BEST = "\N{GREEK SMALL LETTER SIGMA}", "\N{GREEK SMALL LETTER KAPPA}", "N*"
COLUMNS = (Column("coefficient"), Column("value", "[95 %]"), Column("n", "repeats"))
NOTES = (
    f"X(n) = rate \N{MULTIPLICATION SIGN} n / (1 + {SIGMA} (n \N{MINUS SIGN} 1) + {KAPPA} n (n \N{MINUS SIGN} 1)), "
    "fitted inside each repeat by least squares of relative errors, through loads up to this machine's cores alone. "
    "Neither coefficient may be negative, so an interval ends at 0. Intervals are Student's t over repeats; that of N* "
    "is over logarithms.",
    f"{SIGMA}, contention, is the share that only one does at a time; {KAPPA}, coherency, is what each pair costs that "
    f"must agree; {BEST} = \N{SQUARE ROOT}((1 \N{MINUS SIGN} {SIGMA}) / {KAPPA}) is where more does no more. Nothing "
    f"is said beyond the largest load that was fitted: an {BEST} out there would be a guess, and is not shown.",
)


def _rows(fits: Sequence[Usl], most: int) -> tuple[tuple[str, ...], ...]:
    n = str(len(fits))
    return (
        ("rate of one, jobs/s", sure(mean_of_logs([one.rate_hz for one in fits])), n),
        (f"{SIGMA}, contention", _share([one.contention for one in fits]), n),
        (f"{KAPPA}, coherency", _share([one.coherency for one in fits]), n),
        (f"{BEST}, best n", _best([one.best_n for one in fits], most), n),
    )


def _share(values: Sequence[float]) -> str:
    estimate = mean(values)
    if estimate is None or len(values) < 2:
        return sure(estimate)
    return f"{number(estimate.value)} [{number(max(0.0, estimate.low))}{TO}{number(estimate.high)}]"


def _best(values: Sequence[float], most: int) -> str:
    """N* with its interval, up to the largest load that was fitted and no further."""
    if endless := sum(map(math.isinf, values)):
        of = "" if endless == len(values) else f" in {endless} of {plural(len(values), 'repeat')}"
        return f"no end seen{of}"
    estimate = mean_of_logs(values)
    if estimate is None or estimate.value > most:
        return f"beyond {most}, the largest load fitted: not extrapolated"
    if len(values) > 1 and estimate.high > most:
        return f"{number(estimate.value)} [{number(estimate.low)}{TO}beyond {most}]"
    return sure(estimate)

"""The Universal Scalability Law's coefficients of an experiment, or why nothing is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lab.model import Claim, Run, ScalingLaw, Selector, Setup
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


def number_of(setup: Setup) -> int:
    """The law's n: machines where there are several, else slots."""
    return setup.slots if setup.arena == "local" else setup.nodes


def has_room(setup: Setup, *, cores: int) -> bool:
    """Whether nobody waits for a core: beyond them the law would take that for contention."""
    match setup.arena:
        case "local":
            return setup.slots <= cores
        case "compose":
            return setup.nodes * (setup.cpus or 1) <= cores
    return True  # attached machines bring their own cores


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
    return Table(f"{TITLE}: {words.selected(measure.of)}", COLUMNS, _rows(fits), NOTES)


COLUMNS = (Column("coefficient"), Column("value", "[95 %]"), Column("n", "repeats"))
NOTES = (
    "X(n) = rate \N{MULTIPLICATION SIGN} n / (1 + contention \N{MULTIPLICATION SIGN} (n \N{MINUS SIGN} 1) + coherency "
    "\N{MULTIPLICATION SIGN} n (n \N{MINUS SIGN} 1)), fitted inside each repeat by least squares of relative errors, "
    "through loads up to this machine's cores alone. Neither coefficient may be negative, so an interval ends at 0.",
    "Contention is the share that only one does at a time; coherency is what each pair costs that must agree; the best "
    "n, with the lowest and the highest repeat, is where more does no more.",
)


def _rows(fits: Sequence[Usl]) -> tuple[tuple[str, ...], ...]:
    n = str(len(fits))
    return (
        ("rate of one, jobs/s", sure(mean_of_logs([one.rate_hz for one in fits])), n),
        ("contention", _share([one.contention for one in fits]), n),
        ("coherency", _share([one.coherency for one in fits]), n),
        ("best n", _best([one.best_n for one in fits]), n),
    )


def _share(values: Sequence[float]) -> str:
    estimate = mean(values)
    if estimate is None or len(values) < 2:
        return sure(estimate)
    return f"{number(estimate.value)} [{number(max(0.0, estimate.low))}{TO}{number(estimate.high)}]"


def _best(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    if math.isinf(low):
        return "no end seen"
    top = "no end" if math.isinf(high) else number(high)
    return number(low) if number(low) == top else f"{number(low)} to {top}"

"""The negative control: the same claims on an interpreter without a GIL, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lab.model import Claim, Experiment, Finding, Suite, Verdict
from lab.report.catalogue import WRITTEN, answer, code, in_cell, link, prose
from lab.report.caveats import runs_of

NAME = "without-the-gil.md"
DECIDED = {Verdict.SUPPORTED.value, Verdict.REFUTED.value}
TURNED_OVER = "**turned over**"


def is_control(suite: Suite) -> bool:
    """Whether its workers ran on an interpreter that was asked for, and that one without a GIL."""
    asked = bool(suite.environment.get("workers_python"))
    return asked and any(not run.resources.gil_enabled for run in suite.runs)


def control_page(
    experiments: Iterable[Experiment],
    reference: tuple[Suite, Sequence[Finding]],
    control: tuple[Suite, Sequence[Finding]],
) -> str:
    """Every claim of the control suite, with its verdict in both suites, and whether these are opposite.

    Experiments that compare interpreters themselves are left out: for them `--python` changes nothing.
    """
    tested = [e for e in experiments if e.name in control[0].experiments and not _compares(e, control[0])]
    rows = [_row(experiment, claim, reference, control) for experiment in tested for claim in experiment.claims]
    over = sum(row.endswith(f"{TURNED_OVER} |") for row in rows)
    with_it, without = reference[0].environment.get("python"), control[0].environment.get("workers_python")
    return "\n".join(
        [
            WRITTEN,
            "",
            "# The same claims without a GIL",
            "",
            "A claim about the GIL that holds without one as well is about something else. These experiments were run",
            "a second time on the reference machine, their workers and programs on Python",
            f"{prose(str(without))} without a GIL instead of {prose(str(with_it))} with it:",
            "",
            f"    sidestep run {' '.join(e.name for e in tested)} --python /path/to/python3.13t",
            "",
            f"{over} of {len(rows)} verdicts are turned over: what was supported is refuted, or the other way round.",
            "",
            "| Claim | With a GIL | Without | |",
            "|---|---|---|---|",
            *rows,
            "",
            "The two interpreters differ in version and build too, so the figures of one column are not to be divided",
            f"by those of the other; {link('no-gil', 'no-gil.md')} compares both within one run, which takes",
            "away the drift of the machine, not the difference of version.",
            "",
            "[All experiments, and the reference machine](README.md)",
            "",
        ]
    )


def _compares(experiment: Experiment, suite: Suite) -> bool:
    return len({run.trial.setup.python for run in runs_of(suite, experiment.name)}) > 1


def _row(
    experiment: Experiment,
    claim: Claim,
    reference: tuple[Suite, Sequence[Finding]],
    control: tuple[Suite, Sequence[Finding]],
) -> str:
    before, after = (answer(experiment, claim, suite, findings) for suite, findings in (reference, control))
    change = "undecided"
    if {before[0], after[0]} <= DECIDED:
        change = "the same" if before[0] == after[0] else TURNED_OVER
    return f"| {prose(claim.says)}<br>{code(claim.id)} | {in_cell(*before)} | {in_cell(*after)} | {change} |"

"""The charts that an experiment asks for, of whatever kind: drawn, as tables, and in words for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lab.model import Chart as Wanted
from lab.model import Curve, Finding, Heat, Run, Stack
from lab.report import curves, heats, stacks
from lab.report.charts import Chart
from lab.report.tables import Table


def draw(
    key: str, wanted: Wanted, runs: Sequence[Run], *, findings: Sequence[Finding] = (), cores: int = 1
) -> Chart | None:
    """The chart; None where there is nothing to be drawn. Break-evens among `findings` are marked on their curves.

    `cores` is how many the machine offers.
    """
    match wanted:
        case Curve():
            return curves.draw(key, wanted, runs, findings=findings, cores=cores)
        case Stack():
            return stacks.draw(key, wanted, runs)
        case Heat():
            return heats.draw(wanted, runs)


def tables(wanted: Sequence[Wanted], runs: Sequence[Run]) -> Iterator[Table]:
    """The figures behind the charts that do not say them themselves."""
    for one in wanted:
        if isinstance(one, Stack) and (table := stacks.table(one, runs)):
            yield table


def spoken(wanted: Sequence[Wanted], runs: Sequence[Run]) -> Iterator[Table | tuple[str, list[str]]]:
    """For a terminal: a table, or a title with its lines."""
    for one in wanted:
        if isinstance(one, Heat) and (table := heats.table(one, runs)):
            yield table
        if isinstance(one, Stack) and (lines := list(stacks.spoken(one, runs))):
            yield one.title, lines

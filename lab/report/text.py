"""What the terminal shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from lab.model import Chart, Experiment, Finding, Run, Suite, Verdict
from lab.report import answers as advice
from lab.report import caveats as doubts
from lab.report import figures, words
from lab.report.groups import Group, groups
from lab.report.scaling import laws
from lab.report.tables import TABLES, Table, coding, ledger
from lab.report.units import plain, plural

Section = Callable[[Suite, Sequence[Finding], Sequence[Experiment]], Iterator[RenderableType]]

# The word says it; the style only helps the eye.
STYLES = {
    Verdict.SUPPORTED: "bold green",
    Verdict.REFUTED: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.INVALID: "bold magenta",
}


def render(suite: Suite, findings: Sequence[Finding], experiments: Iterable[Experiment]) -> Iterator[RenderableType]:
    """Every section, one after the other."""
    chosen = tuple(experiments)
    for section in SECTIONS:
        yield from section(suite, findings, chosen)


def in_short(suite: Suite, findings: Sequence[Finding], _: Sequence[Experiment]) -> Iterator[RenderableType]:
    """What to do, by kind of work; nothing where the suite has no claim that bears on it."""
    said = advice.answers(findings)
    if not said:
        return
    yield Text("IN SHORT", style="bold underline")
    for answer in said:
        yield _line(f"{answer.work} \N{RIGHTWARDS ARROW}", style="bold")
        for part in answer.parts:
            rests = "; ".join(f"{name} {figures.brief(f)}" for f, name in advice.grouped(part.findings))
            yield _line(f"{part.says} ({rests})" if rests else part.says, indent=2)
    yield _line(f"{advice.NOTE} {advice.QUICK}" if suite.quick else advice.NOTE, style="dim")
    yield Text()


def verdicts(suite: Suite, findings: Sequence[Finding], experiments: Sequence[Experiment]) -> Iterator[RenderableType]:
    """The answers: every claim with its verdict, its number and the reason."""
    yield Text(doubts.summary(findings), style="bold")
    for doubt in doubts.caveats(suite, experiments):
        yield _line(f"! {doubt}", style="bold")
    for name, experiment in doubts.shown(suite, experiments):
        arms = groups(doubts.runs_of(suite, name))
        for finding in doubts.findings_of(findings, experiment):
            yield Text()
            yield from _verdict(finding, arms)


def _verdict(finding: Finding, arms: Sequence[Group]) -> Iterator[RenderableType]:
    claim = finding.claim
    yield Text.assemble((finding.verdict.value.upper(), STYLES[finding.verdict]), "  ", plain(claim.id))
    yield _line(claim.says, style="bold", indent=2)
    yield _line(f"measured {figures.spoken(finding)}", indent=2)
    yield _line(f"predicted {figures.bound(claim)} for {words.measure(claim.measure, arms)}", indent=2)
    yield _line(f"because: {figures.because(finding)}", indent=2)


def evidence(suite: Suite, _: Sequence[Finding], experiments: Sequence[Experiment]) -> Iterator[RenderableType]:
    """The tables behind the answers, experiment by experiment; what a table means is said once."""
    told: set[str] = set()
    for name, experiment in doubts.shown(suite, experiments):
        arms = groups(doubts.runs_of(suite, name))
        yield Text()
        yield Text(plain(name).upper(), style="bold underline")
        if experiment:
            yield _line(experiment.question)
        for condition in words.conditions(arms):
            yield _line(condition)
        if not arms:
            yield _line("nothing was measured")
            continue
        yield from _own_charts(experiment.charts if experiment else (), doubts.runs_of(suite, name))
        for make in TABLES:
            table = make(arms)
            if make is ledger and _is_clean(arms):
                yield Text()
                yield _line(_clean_ledger(arms))
            elif table is not None and make is coding and len(table.rows) > MOST_LINES:
                yield Text()
                yield _line(f"{table.title}: {len(table.rows)} setups, each in a row of the page.")
            elif table is not None:
                yield Text()
                yield from _rich(table)
                yield from (_line(note, style="dim") for note in table.notes if note not in told)
                told.update(table.notes)
        cores = int(suite.environment.get("cores", 1))
        claims, others = (experiment.claims, experiment.laws) if experiment else ((), ())
        for law in laws(claims, doubts.runs_of(suite, name), cores=cores, others=others):
            yield Text()
            if isinstance(law, str):
                yield _line(law)
            else:
                yield from _rich(law)
                yield from (_line(note, style="dim") for note in law.notes)


def _own_charts(wanted: Sequence[Chart], runs: Sequence[Run]) -> Iterator[RenderableType]:
    if not wanted:
        return
    from lab.report import gallery  # noqa: PLC0415  brings a plotting library that most verbs do without

    for said in gallery.spoken(wanted, runs):
        yield Text()
        if isinstance(said, Table):
            yield from _rich(said)
            yield from (_line(note, style="dim") for note in said.notes)
        else:
            title, lines = said
            yield Text(plain(title), style="bold")
            yield from (_line(line, indent=2) for line in lines)


def _is_clean(arms: Sequence[Group]) -> bool:
    ledgers = [run.ledger for group in arms for run in group.runs]
    return all(one.issued == one.done and not one.duplicated for one in ledgers)


def _clean_ledger(arms: Sequence[Group]) -> str:
    ledgers = [run.ledger for group in arms for run in group.runs]
    issued = sum(one.issued for one in ledgers)
    return (
        f"Ledger of {plural(len(ledgers), 'run')}: {issued} jobs issued, {issued} done, 0 failed, 0 lost, 0 duplicated."
    )


def _rich(table: Table) -> Iterator[RenderableType]:
    kept = [i for i, column in enumerate(table.columns) if not column.only_wide]
    headings = [f"{table.columns[i].name}\n{table.columns[i].unit}".rstrip() for i in kept]
    rows = [[plain(row[i]) for i in kept] for row in table.rows]
    if _width([headings, *rows]) > NARROW:
        # Too wide side by side: each interval goes under its value, and headings break between words.
        headings = [_stacked(heading) for heading in headings]
        rows = [[row[0], *map(_stacked, row[1:])] for row in rows]
    rich = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        # A long label may wrap, a number must not: half a number is a wrong one.
        rich.add_column(Text(heading), justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for row in rows:
        # Text, not str: a label may hold brackets, which rich would take for markup.
        rich.add_row(*map(Text, row))
    yield Text(table.title, style="bold")
    yield rich


def warnings(suite: Suite, _: Sequence[Finding], __: Sequence[Experiment]) -> Iterator[RenderableType]:
    """What could not run, and what was wrong with what did."""
    if suite.left_out:
        yield Text()
        yield Text("LEFT OUT", style="bold underline")
        for setup, why in suite.left_out.items():
            yield _line(f"{setup}: {why}")
    found = doubts.faults(suite)
    if found:
        yield Text()
        yield Text("FAULTS", style="bold underline")
        for says, runs in found.items():
            yield _line(f"{runs[0].trial.experiment}, repeat {words.of_runs(runs)}: {says}")


MOST_LINES = 30
"""A longer table of what charts have shown already is left to the page."""
NARROW = 80
"""Columns of the terminal or the pipe that every table fits into."""
GAP = 2
"""Columns between two columns."""


def _width(rows: Sequence[Sequence[str]]) -> int:
    return sum(
        max(len(line) for cell in column for line in cell.split("\n")) + GAP for column in zip(*rows, strict=True)
    )


def _stacked(cell: str) -> str:
    return cell.replace(" [", "\n[").replace(" (", "\n(")


def _line(text: str, *, style: str = "", indent: int = 0) -> RenderableType:
    line = Text(plain(text), style=style)
    return Padding(line, (0, 0, 0, indent), expand=False) if indent else line


SECTIONS: tuple[Section, ...] = (in_short, verdicts, evidence, warnings)

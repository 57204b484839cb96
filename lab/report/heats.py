"""A grid of figures: one measure at every pair of two kinds of setups, shaded by how far it is from the lowest."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from lab.axes import NAMES
from lab.model import Estimate, Heat, Run, Setup
from lab.report import words
from lab.report.charts import Chart
from lab.report.groups import EXTRAS, Group, groups, trait
from lab.report.html import escape
from lab.report.tables import Column, Table
from lab.report.units import NONE, TIMES, has_interval, number, repeats, span, sure
from lab.stats import MEASURES, matches, mean_of_logs
from tasks.transcode import CHANGED

SHADES = (1.5, 3.0, 10.0, 30.0, 100.0)
"""A shade ends at each of these multiples of the lowest; the same in every chart, so that charts can be compared."""
FEW = 2
"""So many columns fit a phone; more scroll in a box of their own."""
REFUSED_WORD, CHANGED_WORD = "refused", "changed"


@dataclass(frozen=True, slots=True)
class Cell:
    """What was measured of one pair."""

    value: Estimate | None = None
    """In the units in which it is shown."""
    ratio: Estimate | None = None
    """To the lowest of its column, taken inside each repeat."""
    word: str = NONE
    """What stands there where there is no figure."""


@dataclass(frozen=True, slots=True)
class Grid:
    """All pairs; rows from the lowest up, by the one in the middle of their columns."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    """By row and column, also for pairs that were not measured."""
    lowest: Mapping[str, str]
    """Column -> the row that all others are multiples of."""
    shares: bool
    """Whether several setups share a cell."""
    fixed: tuple[str, ...]
    """What its setups have and others of the experiment have not, in words."""


def grid(heat: Heat, runs: Sequence[Run]) -> Grid | None:
    """The figures; None where there are not two of them to be compared."""
    chosen = _chosen(heat, runs)
    pairs = _pairs(heat, chosen)
    found = {pair: _by_repeat(heat, some) for pair, some in pairs.items()}
    columns = tuple(dict.fromkeys(column for _, column in found))
    names = tuple(dict.fromkeys(row for row, _ in found))
    cells = {(row, column): Cell() for row in names for column in columns}
    lowest = {}
    for column in columns:
        measured = {row: values for row in names if (values := found.get((row, column))) and _has_figure(values)}
        means = {row: e.value for row, values in measured.items() if (e := mean_of_logs(_finite(values)))}
        if means:
            lowest[column] = min(means, key=lambda row: means[row])
        for row in names:
            values = found.get((row, column))
            if row in measured and values:
                base = measured[lowest[column]]
                shared = [repeat for repeat in values if _is_figure(values[repeat]) and _is_figure(base.get(repeat))]
                cells[row, column] = Cell(
                    mean_of_logs(_finite(values)), mean_of_logs([values[repeat] / base[repeat] for repeat in shared])
                )
            elif values:
                cells[row, column] = Cell(word=_word(pairs[row, column], values))
    if sum(cell.ratio is not None for cell in cells.values()) < 2:
        return None
    ranked = sorted(names, key=lambda row: _middle(cells, row, columns))
    shares = any(len({repr(run.trial.setup) for run in some}) > 1 for some in pairs.values())
    return Grid(tuple(ranked), columns, cells, lowest, shares, _fixed(heat, chosen, runs))


def _chosen(heat: Heat, runs: Sequence[Run]) -> list[Group]:
    """The setups that differ in nothing but the rows and the columns: of several such families the largest."""
    families: dict[tuple[str, ...], list[Group]] = {}
    # In the order of the tables, whatever order the trials were shuffled into.
    for group in groups(run for run in runs if matches(run, heat.where)):
        families.setdefault(_family(heat, group.setup), []).append(group)
    return max(families.values(), key=len, default=[])


def _family(heat: Heat, setup: Setup) -> tuple[str, ...]:
    shown = FIELDS[heat.rows] | FIELDS[heat.columns]
    names = {*EXTRAS, *(field.name for field in fields(setup))} - shown
    return tuple(repr(trait(name, setup)) for name in sorted(names))


FIELDS: Mapping[str, frozenset[str]] = {
    "codec": frozenset({"codec"}),
    "compression": frozenset({"compression"}),
    "shape": frozenset({"shape"}),
    "pool": frozenset({"pool", "concurrency"}),
    "size_name": frozenset({"size"}),
}
"""What each of `lab.axes.NAMES` reads of a setup: cells may differ in it."""


def _pairs(heat: Heat, chosen: Sequence[Group]) -> dict[tuple[str, str], list[Run]]:
    row, column = NAMES[heat.rows], NAMES[heat.columns]
    pairs: dict[tuple[str, str], list[Run]] = {}
    for group in chosen:
        pairs.setdefault((row(group.setup), column(group.setup)), []).extend(group.runs)
    return pairs


def _fixed(heat: Heat, chosen: Sequence[Group], runs: Sequence[Run]) -> tuple[str, ...]:
    """What all cells share and other setups of the experiment do not, in words."""
    shown = FIELDS[heat.rows] | FIELDS[heat.columns]
    one = chosen[0]
    names = [
        name
        for name in EXTRAS
        if name not in shown and {repr(trait(name, run.trial.setup)) for run in runs} != {repr(trait(name, one.setup))}
    ]
    return tuple(EXTRAS[name](one.runs[0]) for name in names)


def _by_repeat(heat: Heat, runs: Sequence[Run]) -> dict[int, float]:
    """The measure in each repeat, in shown units; several setups are their geometric mean."""
    measure, times = MEASURES[heat.y], words.UNITS[heat.y].times
    repeated: dict[int, list[float]] = {}
    for run in runs:
        repeated.setdefault(run.trial.repeat, []).append(measure(run) * times)
    return {repeat: _geometric(values) for repeat, values in sorted(repeated.items())}


def _geometric(values: Sequence[float]) -> float:
    if len(values) == 1:
        return values[0]
    return math.exp(math.fsum(math.log(v) if v > 0 else math.nan for v in values) / len(values))


def _is_figure(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _has_figure(values: Mapping[int, float]) -> bool:
    # What was refused once is refused: a figure of the other repeats would hide it.
    return any(map(_is_figure, values.values())) and not any(map(math.isinf, values.values()))


def _finite(values: Mapping[int, float]) -> list[float]:
    return [value for value in values.values() if _is_figure(value)]


def _word(runs: Sequence[Run], values: Mapping[int, float]) -> str:
    if any(map(math.isinf, values.values())):
        return REFUSED_WORD
    return CHANGED_WORD if any(CHANGED in run.samples.own.value for run in runs) else NONE


def _middle(cells: Mapping[tuple[str, str], Cell], row: str, columns: Sequence[str]) -> float:
    """The row's median multiple; what has no figure counts as dearer than all."""
    ratios = (cells[row, column].ratio for column in columns)
    return statistics.median(math.inf if ratio is None else ratio.value for ratio in ratios)


def draw(heat: Heat, runs: Sequence[Run]) -> Chart | None:
    """A table whose cells are shaded: it can be read aloud, selected and printed; None where nothing was measured."""
    found = grid(heat, runs)
    if found is None:
        return None
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in found.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row)}</th>{"".join(_td(found, row, column) for column in found.columns)}</tr>'
        for row in found.rows
    )
    foot = "".join(f"<td>{_two_lines(_lowest(found, column))}</td>" for column in found.columns)
    drawn = (
        f'<table class="heat">\n<thead><tr><th scope="col">{escape(_corner(heat))}</th>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n"
        f'<tfoot><tr><th scope="row">{escape(_foot(heat))}</th>{foot}</tr></tfoot>\n</table>'
    )
    return Chart(heat.title, drawn, " ".join((*_says(heat, found), _shades(found))), wide=len(found.columns) > FEW)


def _corner(heat: Heat) -> str:
    return f"{words.NAMES[heat.rows]} \N{DOWNWARDS ARROW}  {words.NAMES[heat.columns]} \N{RIGHTWARDS ARROW}"


def _foot(heat: Heat) -> str:
    unit = words.UNITS[heat.y]
    return f"{TIMES}1 is, {unit.on_axis or unit.after}"


def _td(found: Grid, row: str, column: str) -> str:
    cell = found.cells[row, column]
    if cell.ratio is None:
        return f'<td class="word">{escape(cell.word)}</td>'
    if found.lowest[column] == row:
        return f'<td class="h0"><strong>{TIMES}1</strong></td>'
    return f'<td class="h{bisect.bisect_left(SHADES, cell.ratio.value)}">{_two_lines(_multiple(cell.ratio))}</td>'


def _two_lines(figure: str) -> str:
    """A value, and below it its interval."""
    value, _, interval = escape(figure).partition(" [")
    return f"{value}<small>[{interval}</small>" if interval else value


def _multiple(ratio: Estimate) -> str:
    return f"{TIMES}{sure(ratio)}"


def _lowest(found: Grid, column: str) -> str:
    return sure(found.cells[found.lowest[column], column].value) if column in found.lowest else NONE


def table(heat: Heat, runs: Sequence[Run]) -> Table | None:
    """The same for a terminal, without the intervals of single cells; None where nothing was measured."""
    found = grid(heat, runs)
    if found is None:
        return None
    rows = [
        (
            row,
            *(
                cell.word
                if cell.ratio is None
                else f"{TIMES}{_short(cell.ratio, is_lowest=found.lowest[column] == row)}"
                for column in found.columns
                for cell in (found.cells[row, column],)
            ),
        )
        for row in found.rows
    ]
    lowest = (found.cells[found.lowest[c], c].value if c in found.lowest else None for c in found.columns)
    rows.append((_foot(heat), *(number(e.value) if e else NONE for e in lowest)))
    columns = (Column(words.NAMES[heat.rows]), *(Column(column) for column in found.columns))
    return Table(heat.title, columns, tuple(rows), (" ".join((*_says(heat, found), *_widest(found))),))


def _short(ratio: Estimate, *, is_lowest: bool) -> str:
    return "1" if is_lowest else number(ratio.value)


def _says(heat: Heat, found: Grid) -> list[str]:
    """What the figures are."""
    n = sorted({cell.ratio.n for cell in found.cells.values() if cell.ratio})
    over = repeats(n[-1]) if n[0] == n[-1] else f"{n[0]} to {repeats(n[-1])}"
    said = [
        f"{words.MEASURES[heat.y][:1].upper()}{words.MEASURES[heat.y][1:]} as a multiple of the lowest of its column, "
        f"which is {TIMES}1; ratios inside each of {over}" + (", no intervals." if n[-1] == 1 else ".")
    ]
    seen = {cell.word for cell in found.cells.values() if cell.ratio is None}
    if REFUSED_WORD in seen:
        said.append("Refused: it raised.")
    if CHANGED_WORD in seen:
        said.append("Changed: something else came back, so that a figure would be of another thing.")
    if found.fixed:
        said.append(f"The same for all: {', '.join(found.fixed)}.")
    if found.shares:
        said.append("A cell of several setups is their geometric mean.")
    return said


def _shades(found: Grid) -> str:
    steps = ", ".join(f"{step:g}" for step in SHADES)
    intervals = " In brackets the 95 % interval." if any(map(_has_interval, found.cells.values())) else ""
    return f"The stronger the shade the more: it changes at {TIMES}{steps}.{intervals}"


def _widest(found: Grid) -> Iterator[str]:
    cells = [cell.ratio for cell in found.cells.values() if _has_interval(cell) and cell.ratio]
    if cells:
        widest = max(cells, key=lambda ratio: ratio.high / ratio.low)
        yield f"The widest interval is that of {TIMES}{number(widest.value)}: {span(widest.low, widest.high)}."


def _has_interval(cell: Cell) -> bool:
    # The lowest is exactly 1 in every repeat: that is no interval worth a word.
    return cell.ratio is not None and has_interval(cell.ratio) and cell.ratio.low < cell.ratio.high

"""Where the time or the bytes of each setup go, part by part: a bar for each, and the same in figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lab.model import Estimate, Run, Stack
from lab.report import words
from lab.report.charts import LETTER_PX, MARGIN_PX, WIDTH_PX, Chart, axes_in, rows_for
from lab.report.groups import groups
from lab.report.svg import INK, PAPER, SERIES, SMALL, svg
from lab.report.tables import Column, Table
from lab.report.units import has_interval, number, plural, repeats, spread, sure
from lab.stats import MEASURES, matches, mean

DECIMALS = 3
"""A microsecond, or a byte: no part is known better."""
FAR = 12.0
"""Where the longest bar is so many times the shortest, the short ones would show nothing: each fills the chart."""
MOST_COLUMNS = 6
"""With more setups than this they are the rows of the table, and the parts its columns."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One setup, in the units in which it is shown."""

    label: str
    parts: tuple[tuple[float, ...], ...]
    """Each part in every repeat that has them all."""
    total: Estimate
    """Their sum."""

    @property
    def means(self) -> tuple[float, ...]:
        """Each part's mean over the repeats; they add up to the total."""
        return tuple(math.fsum(values) / len(values) for values in self.parts)


def bars(stack: Stack, runs: Sequence[Run]) -> list[Bar]:
    """A bar for every chosen setup that has all the parts in some repeat."""
    # Chosen before they are named: what other setups carry need not stand in a name.
    whole = [run for run in runs if matches(run, stack.where) and all(map(math.isfinite, _parts(stack, run)))]
    found = []
    for group in groups(whole):
        each = [_parts(stack, run) for run in group.runs]
        total = mean([math.fsum(parts) for parts in each])
        if total and total.value > 0:
            found.append(Bar(group.label, tuple(zip(*each, strict=True)), total))
    return found


def _parts(stack: Stack, run: Run) -> list[float]:
    return [MEASURES[part](run) * _times(stack) for part in stack.parts]


def _times(stack: Stack) -> float:
    return words.UNITS[stack.parts[0]].times


def _unit(stack: Stack) -> str:
    return words.UNITS[stack.parts[0]].after


def draw(key: str, stack: Stack, runs: Sequence[Run]) -> Chart | None:
    """The chart; None where nothing was measured."""
    found = bars(stack, runs)
    if not found:
        return None
    rows = rows_for([bar.label for bar in found], 26)
    key_box = _Key(stack.parts)
    top_px = 6 + key_box.height_px
    height = top_px + rows.row_px * len(found) + 44
    longest = max(bar.total.value for bar in found)
    alike = longest <= FAR * min(bar.total.value for bar in found)
    right_px = max(len(number(bar.total.value)) for bar in found) * LETTER_PX + 18

    def paint(figure: Figure) -> None:
        axes = axes_in(figure, height, left_px=rows.left_px, right_px=right_px, top_px=top_px, bottom_px=44)
        key_box.draw(figure, height)
        unit_px = (WIDTH_PX - rows.left_px - right_px) / 1.03
        for at, bar in enumerate(found):
            scale = 1 / (longest if alike else bar.total.value)
            left = 0.0
            for i, value in enumerate(bar.means):
                axes.barh(at, value * scale, left=left, height=16 / rows.row_px, **_style(i, len(stack.parts)))
                _numbered(axes, i, left + value * scale / 2, at, value * scale * unit_px)
                left += value * scale
            _end(axes, at, bar.total, scale, under=10.5 / rows.row_px)
        axes.set_xlim(0, 1.03)
        rows.place(axes)
        if alike:
            _ticks(axes, longest)
            axes.set_xlabel(f"{_unit(stack)}, mean", loc="right")
        else:
            axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
            axes.set_xlabel(f"share of each bar's own total, which stands behind it in {_unit(stack)}", loc="right")

    said = "; ".join(f"{bar.label}: {sure(bar.total)} {_unit(stack)}" for bar in found)
    drawn = svg(paint, width_px=WIDTH_PX, height_px=height, key=key, title=stack.title, description=f"{said}.")
    return Chart(stack.title, drawn, _caption(found, alike=alike))


def _style(i: int, count: int) -> dict[str, Any]:
    """Full and pale by turns, so that neighbours differ without colour too."""
    hue = SERIES[(i // 2 if count > len(SERIES) else i) % len(SERIES)]
    return {"facecolor": hue, "alpha": 0.32 if i % 2 else 1, "edgecolor": PAPER, "linewidth": 0.7}


def _numbered(axes: Axes, i: int, x: float, y: float, width_px: float) -> None:
    """The part's number within it, where there is room."""
    if width_px >= LETTER_PX * len(str(i + 1)) + 5:
        # Paper on full colour, ink on pale: both can be read by day and by night.
        colour = INK if i % 2 else PAPER
        axes.text(x, y, str(i + 1), ha="center", va="center_baseline", fontsize=SMALL, color=colour)


def _end(axes: Axes, at: int, total: Estimate, scale: float, *, under: float) -> None:
    """The sum behind its bar, and its interval just under the bar's end."""
    if has_interval(total):
        ends = [max(0.0, total.low * scale), min(1.03, total.high * scale)]
        axes.plot(ends, [at + under] * 2, color=INK, linewidth=1.2, clip_on=False)
        axes.plot(ends, [at + under] * 2, color=INK, linestyle="", marker="|", markersize=5, clip_on=False)
    axes.text(total.value * scale + 0.02, at, number(total.value), va="center_baseline", fontsize=SMALL, clip_on=False)


def _ticks(axes: Axes, longest: float) -> None:
    step = 10.0 ** math.floor(math.log10(longest))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if longest / s <= 5 or s == step * 2)
    count = int(longest / step * 1.0001)
    axes.set_xticks([k * step / longest for k in range(count + 1)], [f"{k * step:g}" for k in range(count + 1)])


@dataclass(frozen=True, slots=True)
class _Key:
    """The parts' numbers and names above the chart, in two columns."""

    parts: tuple[str, ...]

    @property
    def lines(self) -> int:
        return math.ceil(len(self.parts) / 2)

    @property
    def height_px(self) -> float:
        return KEY_PX * self.lines + 8

    def draw(self, figure: Figure, height: float) -> None:
        for i, part in enumerate(self.parts):
            column, line = divmod(i, self.lines)
            left, middle = MARGIN_PX + column * (WIDTH_PX / 2 - 6), height - 4 - KEY_PX * (line + 0.5)
            box = Rectangle(
                (left / WIDTH_PX, (middle - 6) / height),
                20 / WIDTH_PX,
                12 / height,
                transform=figure.transFigure,
                **_style(i, len(self.parts)),
            )
            figure.add_artist(box)
            place: dict[str, Any] = {"va": "center_baseline", "fontsize": SMALL}
            colour = INK if i % 2 else PAPER
            figure.text((left + 10) / WIDTH_PX, middle / height, str(i + 1), ha="center", color=colour, **place)
            figure.text((left + 26) / WIDTH_PX, middle / height, words.part(part), **place)


KEY_PX = 16


def _caption(found: Sequence[Bar], *, alike: bool) -> str:
    filled = "" if alike else "Every bar is 100 % of its own total. "
    several = max(bar.total.n for bar in found) > 1
    line = "the line under a bar's end is the 95 % interval of the sum." if several else "no intervals."
    return (
        "Parts in the order in which they follow each other, numbered as above; one too thin for its number is in the "
        f"table. {filled}Means over {_over(found)}; {line}"
    )


def _over(found: Sequence[Bar]) -> str:
    n = sorted({bar.total.n for bar in found})
    return repeats(n[-1]) if n[0] == n[-1] else f"{n[0]} to {repeats(n[-1])}"


def table(stack: Stack, runs: Sequence[Run]) -> Table | None:
    """The same in figures; None where nothing was measured."""
    found = bars(stack, runs)
    if not found:
        return None
    unit = _unit(stack)
    if len(found) <= MOST_COLUMNS:
        rows = [
            (f"{i + 1} {words.part(part)}", *(spread(bar.parts[i], decimals=DECIMALS) for bar in found))
            for i, part in enumerate(stack.parts)
        ]
        rows.append(("all", *(sure(bar.total) for bar in found)))
        rows.append(("n, repeats", *(str(bar.total.n) for bar in found)))
        columns = (Column("part"), *(Column(bar.label) for bar in found))
        notes = ("Each part: mean over repeats, with the lowest and the highest repeat. All: mean and 95 % interval.",)
        return Table(f"{stack.title}, {unit}", columns, tuple(rows), notes)
    columns = (
        Column("setup"),
        *(Column(f"{i + 1}", words.part(part)) for i, part in enumerate(stack.parts)),
        Column("all", "[95 %]"),
    )
    cells = tuple((b.label, *(number(value, decimals=DECIMALS) for value in b.means), sure(b.total)) for b in found)
    return Table(f"{stack.title}, {unit}", columns, cells, (f"Means over {_over(found)}; all with its 95 % interval.",))


def spoken(stack: Stack, runs: Sequence[Run]) -> Iterator[str]:
    """One sentence a setup, for a terminal that has no room for so many columns."""
    for bar in bars(stack, runs):
        named = list(zip(map(words.part, stack.parts), bar.means, strict=True))
        large = [(name, value) for name, value in named if value >= SMALL_SHARE * bar.total.value]
        rest = math.fsum(value for _, value in named) - math.fsum(value for _, value in large)
        parts = [f"{name} {number(value, decimals=DECIMALS)}" for name, value in large]
        if len(large) < len(named):
            parts.append(f"{plural(len(named) - len(large), 'other part')} {number(max(rest, 0.0), decimals=DECIMALS)}")
        n = "one repeat: no interval" if bar.total.n == 1 else f"n = {repeats(bar.total.n)}"
        yield f"{bar.label}: {sure(bar.total)} {_unit(stack)}, {n}: {', '.join(parts)}"


SMALL_SHARE = 0.02
"""Smaller parts are said together."""

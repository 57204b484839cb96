"""What a load test looks like: each chart a function from counts or histograms to an SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from lab.load.hdr import Histogram
from lab.load.limit import Seen
from lab.load.measures import spelt
from lab.report.charts import LETTER_PX, MARGIN_PX, WIDTH_PX, Chart, Legend, axes_in, line_style, steps
from lab.report.curves import plain
from lab.report.svg import INK, MUTED, SERIES, SMALL, svg
from lab.report.units import number
from lab.report.units import plain as printable

PLOT_PX, BOTTOM_PX = 200, 44
MOST_POINTS = 200
"""Along the time axis; a longer run has several seconds to a point, or nobody could tell its lines apart."""
MOST_COLUMNS, ROWS = 60, 24
"""Of a heat map."""
SHADES = (0.05, 0.15, 0.35, 0.65, 1.0)
"""A shade ends at each of these shares of the fullest cell's root; roots, so that a few slow jobs can be seen."""
OPACITIES = (0.14, 0.3, 0.5, 0.72, 1.0)
COUNTED = {"jobs", "connections"}
"""Units of which there are no halves."""
MS = 1e3


@dataclass(frozen=True, slots=True)
class Series:
    """Something over time: one value a tick."""

    name: str
    values: tuple[float, ...]


def over_time(
    key: str,
    title: str,
    series: Sequence[Series],
    *,
    says: str,
    unit: str,
    tick_s: float = 1.0,
    marks_s: Sequence[float] = (),
    highest: bool = False,
) -> Chart | None:
    """One line for each series; dashed uprights at `marks_s`. None with fewer than two ticks.

    Where several ticks share a point it is their mean, or with `highest` the highest of them.
    """
    length = max((len(one.values) for one in series), default=0)
    if length < 2:
        return None
    fold = math.ceil(length / MOST_POINTS)
    folded = [_folded(one.values, fold, highest=highest) for one in series]
    xs = [min((i + 0.5) * fold, length) * tick_s for i in range(len(folded[0]))]
    legend = Legend(tuple(printable(one.name) for one in series))
    top_px = 24 + legend.height_px
    height = top_px + PLOT_PX + BOTTOM_PX
    top = max((v for values in folded for v in values if math.isfinite(v)), default=0.0) * 1.06 or 1.0
    ticks = [float(tick) for tick in MaxNLocator(5, integer=unit in COUNTED).tick_values(0, top) if 0 <= tick <= top]

    def paint(figure: Figure) -> None:
        axes = _axes(figure, height, [plain(tick) for tick in ticks], top_px=top_px)
        for mark in marks_s:
            axes.axvline(mark, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        for i, values in enumerate(folded):
            style = {**line_style(i), "linewidth": 1.4, "markersize": 5}
            axes.plot(xs, values, markevery=_every(len(xs), i, len(folded)), zorder=3 + 0.1 * i, **style)
        axes.set(xlim=(0, length * tick_s), ylim=(0, top))
        axes.set_yticks(ticks, [plain(tick) for tick in ticks])
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _frame(axes, figure, unit, top_px, height)
        axes.set_xlabel("seconds since the first job was due")
        legend.draw(axes, len(folded), height)

    each = f" A point is {'the highest' if highest else 'the mean'} of {fold} ticks." if fold > 1 else ""
    told = "; ".join(f"{one.name}: {_about(one.values)} {unit}" for one in series)
    drawn = svg(paint, width_px=WIDTH_PX, height_px=height, key=key, title=title, description=f"{told}.")
    return Chart(title, drawn, f"{says}{each}")


def _folded(values: Sequence[float], fold: int, *, highest: bool) -> list[float]:
    parts = [[v for v in values[i : i + fold] if math.isfinite(v)] for i in range(0, len(values), fold)]
    return [(max(some) if highest else math.fsum(some) / len(some)) if some else math.nan for some in parts]


def _about(values: Sequence[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return "nothing"
    return f"mean {number(math.fsum(finite) / len(finite))}, from {number(min(finite))} to {number(max(finite))}"


def _every(points: int, line: int, lines: int) -> tuple[int, int]:
    """Some eight markers a line, not at the same places as the other lines'."""
    apart = max(1, points // 8)
    return (apart * line // max(lines, 1), apart)


def percentiles(key: str, title: str, lines: Sequence[tuple[str, Histogram]], *, says: str) -> Chart | None:
    """Durations against the share of jobs that stayed within them, on an axis that gives each further nine as much
    room as the one before. None where nothing was counted.
    """
    held = [(name, histogram) for name, histogram in lines if len(histogram)]
    if not held:
        return None
    nines = max(math.log10(max(len(histogram), 10)) for _, histogram in held)
    curves = [(name, *_curve(histogram)) for name, histogram in held]
    seen = [y for _, _, ys in curves for y in ys if y > 0]
    if not seen:
        return None
    low, high = _widened(min(seen), max(seen))
    legend = Legend(tuple(printable(name) for name, _, _ in curves))
    top_px = 24 + legend.height_px
    height = top_px + PLOT_PX + BOTTOM_PX
    ticks = steps(low, high, room_px=PLOT_PX)

    def paint(figure: Figure) -> None:
        axes = _axes(figure, height, [plain(tick) for tick in ticks], top_px=top_px)
        axes.set_yscale("log")
        for i, (_, xs, ys) in enumerate(curves):
            style = {**line_style(i), "linewidth": 1.6, "markersize": 5}
            shown = [max(y, low) for y in ys]
            axes.plot(xs, shown, markevery=_every(len(xs), i, len(curves)), zorder=3 + 0.1 * i, **style)
        axes.set(xlim=(0, nines * 1.02), ylim=(low, high))
        axes.set_yticks(ticks, [plain(tick) for tick in ticks])
        places = [0.0, *(float(x) for x in range(1, math.floor(nines) + 1))]
        axes.set_xticks(places, [_percent(x) for x in places])
        axes.minorticks_off()
        _frame(axes, figure, "ms, log scale", top_px, height)
        axes.set_xlabel("share of the jobs within that time, %")
        legend.draw(axes, len(curves), height)

    told = "; ".join(
        f"{name}: " + ", ".join(f"{spelt(q)} {number(histogram.quantile_s(q) * MS)} ms" for q in (0.5, 0.9, 0.99))
        + f", longest {number(histogram.max_s * MS)} ms of {len(histogram)} jobs"
        for name, histogram in held
    )  # fmt: skip
    drawn = svg(paint, width_px=WIDTH_PX, height_px=height, key=key, title=title, description=f"{told}.")
    return Chart(title, drawn, says)


def _curve(histogram: Histogram) -> tuple[list[float], list[float]]:
    """Nines and milliseconds, up to the share that the single longest job stands for."""
    last = math.log10(max(len(histogram), 2))
    xs = [last * i / 120 for i in range(120)] + [last]
    ys = histogram.quantiles_s([1 - 10**-x for x in xs[:-1]] + [1.0])
    return xs, [float(y) * MS for y in ys]


def _percent(nines: float) -> str:
    """0 -> 0, 1 -> 90, 2 -> 99, 3 -> 99.9."""
    return f"{100 * (1 - 10.0**-nines):.{max(0, math.ceil(nines) - 2)}f}"


def heat(
    key: str, title: str, ticks: Sequence[Histogram], *, says: str, tick_s: float = 1.0, marks_s: Sequence[float] = ()
) -> Chart | None:
    """How many jobs ended in each second with each latency. None with fewer than two ticks, or no job."""
    if len(ticks) < 2 or not any(map(len, ticks)):
        return None
    fold = math.ceil(len(ticks) / MOST_COLUMNS)
    columns = [ticks[i].merged(*ticks[i + 1 : i + fold]) for i in range(0, len(ticks), fold)]
    held = [one for one in columns if len(one)]
    low, high = _widened(max(min(one.quantile_s(0.0) for one in held) * MS, 1e-6), max(one.max_s for one in held) * MS)
    edges = [low * (high / low) ** (i / ROWS) for i in range(ROWS + 1)]
    counts = np.array([_binned(one, edges) for one in columns], dtype=np.float64)
    roots = np.sqrt(counts / counts.max())
    shade = np.searchsorted(SHADES, roots - 1e-12, side="left")
    p50s = [one.quantile_s(0.5) * MS if len(one) else math.nan for one in columns]
    top_px = 24
    height = top_px + PLOT_PX + BOTTOM_PX
    y_ticks = steps(low, high, room_px=PLOT_PX)
    width_s = fold * tick_s

    def paint(figure: Figure) -> None:
        axes = _axes(figure, height, [plain(tick) for tick in y_ticks], top_px=top_px)
        axes.set_yscale("log")
        axes.set(xlim=(0, len(ticks) * tick_s), ylim=(low, high))
        for level, opacity in enumerate(OPACITIES):
            cells = np.argwhere((shade == level) & (counts > 0))
            if len(cells):
                # One path for all cells of a shade: a long run must not make a page of megabytes.
                path = _boxes([(c * width_s, (c + 1) * width_s, edges[r], edges[r + 1]) for c, r in cells.tolist()])
                _fill(axes, path, opacity)
        middle = [(i + 0.5) * width_s for i in range(len(columns))]
        axes.plot(middle, p50s, color=INK, linewidth=1.2, zorder=3)
        for mark in marks_s:
            axes.axvline(mark, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=4)
        axes.set_yticks(y_ticks, [plain(tick) for tick in y_ticks])
        axes.minorticks_off()
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _frame(axes, figure, "latency, ms, log scale", top_px, height, grid=False)
        axes.set_xlabel("seconds since the first job was due")

    most = int(counts.max())
    told = f"{sum(map(len, ticks))} jobs over {len(ticks) * tick_s:g} s; the fullest cell holds {most} of them"
    drawn = svg(paint, width_px=WIDTH_PX, height_px=height, key=key, title=title, description=f"{told}.")
    steps_at = ", ".join(str(n) for n in sorted({math.ceil(most * share**2) for share in SHADES[:-1]}))
    return Chart(
        title, drawn,
        f"{says} A column is {width_s:g} s; the fullest cell holds {most} jobs, and the shade changes at {steps_at}. "
        "The line is the median.",
    )  # fmt: skip


def _binned(histogram: Histogram, edges_ms: Sequence[float]) -> list[int]:
    """How many lie between each two edges; what is beyond an end goes to that end."""
    bins = np.zeros(len(edges_ms) - 1, dtype=np.int64)
    if len(histogram):
        middles = (histogram.layout.lows_ns(histogram.buckets) + histogram.layout.highs_ns(histogram.buckets)) / 2e6
        at = np.clip(np.searchsorted(edges_ms, middles, side="right") - 1, 0, len(bins) - 1)
        np.add.at(bins, at, histogram.counts)
    return [int(n) for n in bins]


def _boxes(boxes: Sequence[tuple[float, float, float, float]]) -> Path:
    vertices = [
        corner for x0, x1, y0, y1 in boxes for corner in ((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0))
    ]  # fmt: skip
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(boxes)
    return Path(vertices, codes)


def _fill(axes: Axes, path: Path, opacity: float) -> None:
    cells = PathCollection([path], facecolor=SERIES[0], edgecolor="none", alpha=opacity, zorder=2)
    cells.set_transform(axes.transData)
    axes.add_collection(cells, autolim=False)


def rates_tried(
    key: str, title: str, rows: Sequence[tuple[float, float, str]], span: tuple[float, float] | None, *, says: str
) -> Chart | None:
    """Latency at each rate that a search tried: (rate, p99 in seconds, what was seen). None with fewer than two.

    The band is the answer's interval.
    """
    shown = [(rate, p99 * MS, seen) for rate, p99, seen in rows if math.isfinite(p99) and p99 > 0]
    if len({rate for rate, _, _ in shown}) < 2:
        return None
    kinds = tuple(kind for kind in Seen if any(seen == kind for _, _, seen in shown))
    legend = Legend(kinds)
    top_px = 24 + legend.height_px
    height = top_px + PLOT_PX + BOTTOM_PX
    low, high = _widened(min(y for _, y, _ in shown), max(y for _, y, _ in shown))
    left, right = _widened(min(x for x, _, _ in shown), max(x for x, _, _ in shown), least=1.2)
    ticks = steps(low, high, room_px=PLOT_PX)
    x_ticks = steps(left, right, room_px=300)

    def paint(figure: Figure) -> None:
        axes = _axes(figure, height, [plain(tick) for tick in ticks], top_px=top_px)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(xlim=(left, right), ylim=(low, high))
        if span:
            axes.axvspan(*span, facecolor=MUTED, alpha=0.25, zorder=0)
        for i, kind in enumerate(kinds):
            points = [(x, y) for x, y, seen in shown if seen == kind]
            style = {**line_style(i), "linestyle": "", "markersize": 8}
            axes.plot([x for x, _ in points], [y for _, y in points], zorder=3, **style)
        axes.set_yticks(ticks, [plain(tick) for tick in ticks])
        axes.set_xticks(x_ticks, [plain(tick) for tick in x_ticks])
        axes.minorticks_off()
        _frame(axes, figure, "p99 of latency, ms, log scale", top_px, height)
        axes.set_xlabel("offered rate, jobs/s, log scale")
        legend.draw(axes, len(kinds), height)

    told = "; ".join(f"{number(x)} jobs/s: p99 {number(y)} ms, {seen}" for x, y, seen in shown)
    drawn = svg(paint, width_px=WIDTH_PX, height_px=height, key=key, title=title, description=f"{told}.")
    return Chart(title, drawn, says)


def _axes(figure: Figure, height: float, labels: Sequence[str], *, top_px: float) -> Axes:
    left = max(map(len, labels), default=1) * LETTER_PX + 12
    return axes_in(figure, height, left_px=left, right_px=16, top_px=top_px, bottom_px=BOTTOM_PX)


def _frame(axes: Axes, figure: Figure, unit: str, top_px: float, height: float, *, grid: bool = True) -> None:
    if grid:
        axes.grid(visible=True, axis="y", zorder=0)
    axes.set_axisbelow(True)
    # Above the axis, not along it: a reader need not turn the head.
    figure.text(MARGIN_PX / WIDTH_PX, 1 - (top_px - 15) / height, unit, va="center", fontsize=SMALL)


def _widened(low: float, high: float, *, least: float = 2.0) -> tuple[float, float]:
    """A margin at both ends, and at least so many times as much at the top, or noise looks like a law."""
    wider = max(1.0, math.sqrt(least * low / high))
    low, high = low / wider, high * wider
    margin = max((high / low) ** 0.05, 1.05)
    return low / margin, high * margin

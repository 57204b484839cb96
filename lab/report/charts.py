"""What is easier seen than read: each chart a function from an experiment's setups and findings to an SVG."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from lab.model import Estimate, Finding, Ratio, Run, Verdict
from lab.report import words
from lab.report.groups import Group, rate_hz, single
from lab.report.svg import GRID, INK, MUTED, PAPER, SERIES, SMALL, svg
from lab.report.tables import MS, QUANTILES, permits
from lab.report.units import MIB, has_interval, interval, number, sure
from lab.stats import blocks, pss_bytes_per_slot, quantile

WIDTH_PX = 420
"""Small enough to be read on a phone, large enough for two side by side on a desk."""
LETTER_PX = 6.3
"""About the width of a letter: room for labels at the left of a chart."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing, and what is said below it."""

    title: str
    drawing: str
    """An SVG, or a table whose cells are shaded."""
    caption: str
    wide: bool = False


def forest(key: str, findings: Sequence[Finding], runs: Sequence[Run]) -> Chart | None:
    """Each ratio's estimate and interval against what was predicted; None where no ratio was estimated."""
    # A claim about anything but a ratio has a unit of its own, and so no place on this axis.
    rows = [finding for finding in findings if finding.estimate and isinstance(finding.claim.measure, Ratio)]
    if not rows:
        return None
    low, high = _ratio_range(rows, runs)
    row_px = 42
    height = 52 + row_px * len(rows)

    def paint(figure: Figure) -> None:
        axes = axes_in(figure, height, left_px=12, right_px=12, top_px=6, bottom_px=46)
        axes.set_xscale("log")
        axes.set(xlim=(low, high), ylim=(len(rows) - 0.3, -0.62))
        axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        for at, finding in enumerate(rows):
            _forest_row(axes, at, finding, runs, (low, high))
        _log_ticks(axes, low, high)
        axes.set_xlabel("ratio, log scale; the dashed line at 1 is no difference")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)

    said = "; ".join(
        f"{words.short_id(f.claim)}: {number(f.estimate.value)} {interval(f.estimate, f.claim)}, predicted "
        f"{f.claim.bound}, {f.verdict.value}"
        for f in rows
        if f.estimate
    )
    drawn = svg(paint, width_px=WIDTH_PX, height_px=height, key=key, title="Claims", description=f"{said}.")
    caption = (
        "Estimate (dot; hollow where invalid) with its 95 % interval (line; an arrow where it goes on beyond the "
        "chart); small ticks are the single repeats. The hatched band is what the claim predicts: supported when the "
        "whole line lies in it, refuted when all of it lies outside."
    )
    return Chart("Claims", drawn, caption)


def _forest_row(axes: Axes, at: int, finding: Finding, runs: Sequence[Run], limits: tuple[float, float]) -> None:
    claim, estimate = finding.claim, finding.estimate
    assert estimate is not None  # noqa: S101  only such rows are drawn
    low, high = limits
    begin, end = max(claim.at_least, low), min(claim.at_most, high)
    if begin < end:
        axes.fill_betweenx(
            [at - 0.14, at + 0.36], begin, end, facecolor="none", edgecolor=MUTED, hatch="////", linewidth=0, alpha=0.35
        )
    for bound in (claim.at_least, claim.at_most):
        if low < bound < high:
            axes.plot([bound, bound], [at - 0.14, at + 0.36], color=MUTED, linewidth=1.2)
    middle = at + 0.11
    if has_interval(estimate):
        axes.plot([max(estimate.low, low), min(estimate.high, high)], [middle, middle], color=INK, linewidth=2)
        for beyond, edge, marker in ((estimate.low < low, low, "<"), (estimate.high > high, high, ">")):
            if beyond:
                axes.plot([edge], [middle], marker=marker, color=INK, markersize=6, clip_on=False)
    ticks = [value for value in blocks(claim.measure, runs) if low <= value <= high]
    axes.plot(ticks, [at + 0.3] * len(ticks), linestyle="", marker="|", markersize=5, color=MUTED)
    if finding.verdict is Verdict.INVALID:
        axes.plot([estimate.value], [middle], marker="o", markersize=6, color=PAPER, markeredgecolor=INK)
    else:
        axes.plot([estimate.value], [middle], marker="o", markersize=7, color=INK, markeredgecolor=PAPER)
    line = axes.get_yaxis_transform()
    axes.text(0, at - 0.36, f"{words.short_id(claim)}: {claim.bound}", transform=line, va="center", fontsize=SMALL)
    axes.text(1, at - 0.36, finding.verdict.value, transform=line, ha="right", va="center", fontsize=SMALL)


def _ratio_range(rows: Sequence[Finding], runs: Sequence[Run]) -> tuple[float, float]:
    """Wide enough for every estimate, repeat and bound; an interval much wider than they are ends in an arrow."""
    anchors = [1.0]
    for finding in rows:
        claim, estimate = finding.claim, finding.estimate
        assert estimate is not None  # noqa: S101  only such rows are drawn
        anchors += [estimate.value, *blocks(claim.measure, runs)]
        anchors += [bound for bound in (claim.at_least, claim.at_most) if math.isfinite(bound) and bound > 0]
    low, high = min(anchors), max(anchors)
    ends = [end for f in rows if f.estimate and has_interval(f.estimate) for end in (f.estimate.low, f.estimate.high)]
    near = [end for end in ends if low / 3 <= end <= high * 3]
    low, high = min([low, *near]), max([high, *near])
    margin = max((high / low) ** 0.08, 1.06)
    return low / margin, high * margin


def _log_ticks(axes: Axes, low: float, high: float) -> None:
    ticks = steps(low, high, room_px=axes.get_position().width * WIDTH_PX)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.grid(visible=True, axis="x", zorder=0)
    axes.set_axisbelow(True)


def steps(low: float, high: float, *, room_px: float) -> list[float]:
    """Round numbers between the two: as many as have room for their figures."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    coarse: tuple[tuple[float, ...], ...] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
    fine = (tuple(m / parts for m in range(parts, 10 * parts)) for parts in (5, 10, 20, 50))
    found: list[float] = []
    # Over many decades not even each of them has room.
    every = (*((3, (1.0,)), (2, (1.0,))), *((1, choice) for choice in (*coarse, *fine)))
    for apart, choice in every:
        whole = [d for d in decades if d % apart == 0]
        steps = [step for d in whole for m in choice if low <= (step := round(m * 10.0**d, 12)) <= high]
        gaps = [math.log(after / before) / math.log(high / low) for before, after in itertools.pairwise(steps)]
        if gaps and min(gaps) * room_px < LEAST_GAP_PX:
            break
        found = steps
    return found


LEAST_GAP_PX = 30
MOST_ROWS = 20
"""Higher than this no chart is read, and the table says the same."""

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[object, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (8, 3)))


def throughput(key: str, groups: Sequence[Group]) -> Chart | None:
    """Throughput against slots, where several were measured; None where they were not."""
    series = _series(groups)
    if not series:
        return None
    top = _top(series)
    # Long names do not fit beside the last points: they go above the chart.
    legend = Legend(tuple(series)) if max(map(len, series)) > 14 else Legend(())
    height = 300 + legend.height_px

    def paint(figure: Figure) -> None:
        right_px = 14 if legend.names else 112
        axes = axes_in(figure, height, left_px=50, right_px=right_px, top_px=10 + legend.height_px, bottom_px=44)
        legend.draw(axes, len(series), height)
        slots = sorted({g.setup.slots for arms in series.values() for g in arms})
        labels: list[tuple[float, str, str, str]] = []
        for i, (name, arms) in enumerate(series.items()):
            colour = SERIES[i % len(SERIES)]
            points = [(g.setup.slots, e) for g in arms if (e := g.estimate(rate_hz))]
            # Beside each other, so that one interval does not hide another.
            shift = (i - (len(series) - 1) / 2) * 0.012 * (slots[-1] - slots[0] + 1)
            xs, ys = [x + shift for x, _ in points], [e.value for _, e in points]
            ideal = [ys[0] * x / points[0][0] for x, _ in points]
            axes.plot(xs, ideal, color=colour, linewidth=1, linestyle=(0, (1, 2)))
            axes.plot(xs, ys, **line_style(i))
            for x, (_, e) in zip(xs, points, strict=True):
                _whisker(axes, x, e, top, colour)
            labels.append((ys[-1], name, colour, line_style(i)["marker"]))
        axes.set(ylim=(0, top), xlim=(slots[0] - 0.15, slots[-1] + 0.1 * (slots[-1] - slots[0])))
        axes.set_xticks(slots)
        axes.set_xlabel("slots (concurrency)")
        axes.set_ylabel("jobs/s")
        axes.grid(visible=True, axis="y", zorder=0)
        if legend.names:
            return
        places = _apart([y for y, _, _, _ in labels], top * 14 / 246)
        for (_, name, colour, marker), place in zip(labels, places, strict=True):
            # Marker and name at the edge: who cannot see the colour follows the shape.
            edge = axes.get_yaxis_transform()
            axes.plot([1.05], [place], marker=marker, color=colour, markersize=5, transform=edge, clip_on=False)
            axes.text(1.09, place, name, transform=edge, va="center", fontsize=SMALL, color=colour)

    said = "; ".join(f"{g.label}: {sure(g.estimate(rate_hz))} jobs/s" for arms in series.values() for g in arms)
    drawn = svg(
        paint, width_px=WIDTH_PX, height_px=height, key=key, title="Throughput by concurrency", description=f"{said}."
    )
    caption = (
        "Throughput by concurrency with 95 % intervals over repeats. Each thin dotted line is the ideal: its own "
        "pool's single slot times the number of slots. An interval that ends in an arrow goes on beyond the chart."
    )
    return Chart("Throughput by concurrency", drawn, caption)


def _series(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Setups that differ in nothing but their slots, from one slot up."""
    found: dict[str, list[Group]] = {}
    for one in groups:
        if one.setup.slots == 1 and one.estimate(rate_hz):
            more = [g for g in groups if g.estimate(rate_hz) and single(g, groups) is one]
            if more:
                name = one.label.replace(f"{one.setup.pool} 1", one.setup.pool, 1)
                found[name] = [one, *sorted(more, key=lambda g: g.setup.slots)]
    return found


def _top(series: dict[str, list[Group]]) -> float:
    """High enough for every point, its ideal and its interval, unless that is out of all proportion."""
    points = [(g, e) for arms in series.values() for g in arms if (e := g.estimate(rate_hz))]
    ideals = [e.value * arms[-1].setup.slots for arms in series.values() if (e := arms[0].estimate(rate_hz))]
    highest = max([e.value for _, e in points] + ideals)
    ends = [e.high for _, e in points if has_interval(e) and e.high < 1.6 * highest]
    return 1.06 * max([highest, *ends])


@dataclass(frozen=True, slots=True)
class Legend:
    """Names above a chart, one below the other, each with its marker and its dashes; then those of other lines."""

    names: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def wrapped(self) -> tuple[str, ...]:
        """The names, broken into lines."""
        return tuple("\n".join(textwrap.wrap(name, LETTERS - 8)) for name in (*self.names, *self.others))

    @property
    def height_px(self) -> float:
        """The room it needs."""
        lines = sum(1 + name.count("\n") for name in self.wrapped)
        return LINE_PX * lines + 4 * len(self.wrapped) + 4 if self.wrapped else 0

    def draw(self, axes: Axes, count: int, height: float) -> None:
        """Above the axes of a chart so high; the first `count` names are those of measured lines."""
        figure = axes.figure
        y = height - 2.0
        for i, name in enumerate(self.wrapped):
            tall = LINE_PX * (1 + name.count("\n")) + 4
            middle = (y - LINE_PX / 2 - 2) / height
            style = line_style(i) if i < count else prediction_style(i - count)
            xs = [x / WIDTH_PX for x in (12, 27, 42)]
            # The marker stands in the middle alone.
            figure.add_artist(Line2D(xs, [middle] * 3, transform=figure.transFigure, markevery=[1], **style))
            figure.text(50 / WIDTH_PX, (y - 2) / height, name, va="top", fontsize=SMALL, linespacing=1)
            y -= tall


def line_style(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of a chart's line number i: who cannot see the colour follows the others."""
    return {
        "color": SERIES[i % len(SERIES)],
        "linewidth": 1.6,
        "linestyle": DASHES[i % len(DASHES)],
        # From the seventh line on the markers are others, so that no two lines look alike.
        "marker": MARKERS[(i + i // len(DASHES)) % len(MARKERS)],
        "markersize": 6,
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.8,
    }


def prediction_style(i: int) -> dict[str, Any]:
    """Lines that are not measured have no markers, and no colour."""
    return {"color": INK if i % 2 else MUTED, "linewidth": 1.2, "linestyle": PREDICTED[i % len(PREDICTED)]}


PREDICTED: tuple[object, ...] = ((0, (4, 2.5)), (0, (1.2, 1.8)), (0, (9, 3, 1.5, 3)))


def _whisker(axes: Axes, x: float, estimate: Estimate, top: float, colour: str) -> None:
    if not has_interval(estimate):
        return
    high = min(estimate.high, top)
    axes.plot([x, x], [estimate.low, high], color=colour, linewidth=1.2)
    ends = [estimate.low] if estimate.high > top else [estimate.low, estimate.high]
    axes.plot([x] * len(ends), ends, color=colour, linestyle="", marker="_", markersize=7)
    if estimate.high > top:
        axes.plot([x], [top], color=colour, marker="^", markersize=5, clip_on=False)


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved as little as it takes to be `gap` apart, in the order given."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for _ in range(100):
        for i in range(1, len(moved)):
            overlap = gap - (moved[i] - moved[i - 1])
            if overlap > 1e-9:
                moved[i - 1] -= overlap / 2
                moved[i] += overlap / 2
    result = [0.0] * len(places)
    for place, i in zip(moved, order, strict=True):
        result[i] = place
    return result


POINTS = (*((q, name, marker) for (q, name, _), marker in zip(QUANTILES, "oD^s", strict=True)), (1.0, "max", "x"))


def latency(key: str, groups: Sequence[Group]) -> Chart | None:
    """Percentiles of the time from due to ended, one row a setup; None where no job was seen, or rows are too many."""
    seen = [g for g in groups if g.jobs]
    if not seen or len(seen) > MOST_ROWS:
        return None
    rows = rows_for([g.label for g in seen], 24)
    height = 74 + rows.row_px * len(seen)

    def paint(figure: Figure) -> None:
        axes = axes_in(figure, height, left_px=rows.left_px, right_px=12, top_px=24, bottom_px=44)
        axes.set_xscale("log")
        lowest, highest = math.inf, 0.0
        for at, group in enumerate(seen):
            values = group.pooled(lambda s: s.latency_s) * MS
            low, high = quantile(values, 0.5), float(values.max())
            axes.plot([low, high], [at, at], color=GRID, linewidth=1.2, zorder=1)
            for q, name, marker in POINTS:
                if q < 1 and not permits(len(values), q):
                    continue
                each = [quantile(own.latency_s, q) * MS for run in group.runs if len(own := run.samples.own)]
                if q == 0.5:
                    axes.plot([min(each), max(each)], [at, at], color=MUTED, linewidth=7, alpha=0.45, zorder=2)
                    lowest = min(lowest, *each)
                axes.plot(
                    [quantile(values, q)], [at], linestyle="", marker=marker, markersize=7 if marker == "x" else 6,
                    color=INK if q == 0.5 else SERIES[0], markeredgecolor=SERIES[0] if marker == "x" else PAPER,
                    markeredgewidth=1.6 if marker == "x" else 0.8, label=name if at == 0 else None, zorder=3,
                )  # fmt: skip
            lowest, highest = min(lowest, low), max(highest, high)
        margin = max((highest / lowest) ** 0.05, 1.1) if lowest > 0 else 2
        axes.set_xlim(max(lowest, 1e-6) / margin, max(highest, 1e-6) * margin)
        rows.place(axes)
        _log_ticks(axes, *axes.get_xlim())
        axes.set_xlabel("latency from due to ended, ms, log scale", loc="right")
        handles, names = axes.get_legend_handles_labels()
        spaces = {"columnspacing": 0.9, "handletextpad": 0.1, "borderpad": 0.1}
        figure.legend(handles, names, loc="upper right", ncols=len(names), **spaces)

    said = "; ".join(
        f"{g.label}: median {number(quantile(values, 0.5) * MS)} ms, longest {number(float(values.max()) * MS)} ms of "
        f"{len(values)} jobs"
        for g in seen
        for values in (g.pooled(lambda s: s.latency_s),)
    )
    drawn = svg(paint, width_px=WIDTH_PX, height_px=height, key=key, title="Latency by setup", description=f"{said}.")
    caption = (
        "Latency counted from the moment a job was due, all repeats' jobs together; a percentile is drawn where "
        "there are jobs enough for it. The grey bar is the range of the single repeats' medians."
    )
    return Chart("Latency by setup", drawn, caption)


def memory(key: str, groups: Sequence[Group]) -> Chart | None:
    """What a slot weighs, one bar a setup; None where this machine cannot tell, or rows are too many."""
    weighed = [(g, [v / MIB for v in values]) for g in groups if (values := g.values(pss_bytes_per_slot))]
    if not weighed or len(weighed) > MOST_ROWS:
        return None
    rows = rows_for([g.label for g, _ in weighed], 22)
    height = 52 + rows.row_px * len(weighed)
    top = max(max(values) for _, values in weighed)

    def paint(figure: Figure) -> None:
        axes = axes_in(figure, height, left_px=rows.left_px, right_px=52, top_px=6, bottom_px=44)
        for at, (_, values) in enumerate(weighed):
            middle = math.fsum(values) / len(values)
            axes.barh(at, middle, height=12.4 / rows.row_px, facecolor=GRID, edgecolor=MUTED, linewidth=0.8)
            axes.plot(values, [at] * len(values), linestyle="", marker="|", markersize=9, color=INK)
            axes.text(max(values) + top * 0.02, at, f"{number(middle)}", va="center", fontsize=SMALL)
        axes.set_xlim(0, top * 1.03)
        rows.place(axes)
        axes.set_xlabel("memory per slot (PSS), MiB", loc="right")

    said = "; ".join(f"{g.label}: {number(math.fsum(values) / len(values))} MiB" for g, values in weighed)
    drawn = svg(paint, width_px=WIDTH_PX, height_px=height, key=key, title="Memory per slot", description=f"{said}.")
    caption = (
        "Proportional set size of the workers' process tree at the end, divided by its slots: mean over repeats "
        "(bar and figure), and each repeat (ticks)."
    )
    return Chart("Memory per slot", drawn, caption)


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the names of a chart's rows stand: beside them, or above where they are long."""

    names: tuple[str, ...]
    left_px: float
    row_px: float
    below_px: float
    """From a row's middle to its lower edge."""

    def place(self, axes: Axes) -> None:
        """Set the y axis, one row from the next one unit, and write the names."""
        last, below = len(self.names) - 1, self.below_px / self.row_px
        axes.set_ylim(last + below, below - 1)
        axes.tick_params(axis="y", length=0)
        if self.left_px > MARGIN_PX:
            axes.set_yticks(range(len(self.names)), self.names)
            return
        axes.set_yticks([])
        for at, name in enumerate(self.names):
            above = at - 0.8 * self.below_px / self.row_px
            axes.text(0, above, name, transform=axes.get_yaxis_transform(), va="bottom", fontsize=SMALL, linespacing=1)


def rows_for(names: Sequence[str], row_px: float) -> Rows:
    """Places for rows so high with these names."""
    left_px = max(map(len, names)) * LETTER_PX + MARGIN_PX
    if left_px <= MOST_LEFT_PX:
        return Rows(tuple(names), left_px, row_px, row_px / 2)
    wrapped = ["\n".join(textwrap.wrap(name, LETTERS)) for name in names]
    lines = 1 + max(name.count("\n") for name in wrapped)
    return Rows(tuple(wrapped), MARGIN_PX, row_px + LINE_PX * lines - 6, row_px / 2)


MARGIN_PX = 12
MOST_LEFT_PX = 170
"""Longer names would leave the chart itself too narrow."""
LINE_PX = 12.5
LETTERS = int((WIDTH_PX - 2 * MARGIN_PX) / LETTER_PX)


def axes_in(figure: Figure, height: float, *, left_px: float, right_px: float, top_px: float, bottom_px: float) -> Axes:
    """The one drawing area of a chart, so far from the chart's edges."""
    width, tall = WIDTH_PX - left_px - right_px, height - top_px - bottom_px
    return figure.add_axes((left_px / WIDTH_PX, bottom_px / height, width / WIDTH_PX, tall / height))

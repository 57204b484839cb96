"""An experiment's own charts: one figure of its setups against another, with what theory says beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes as Area
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab.axes import AXES
from lab.model import BreakEven, Curve, Estimate, Finding, Run, Setup, Verdict
from lab.predictions import FITTED, PREDICTIONS
from lab.report import words
from lab.report.charts import (
    LEAST_GAP_PX,
    LETTER_PX,
    MARGIN_PX,
    WIDTH_PX,
    Chart,
    Legend,
    axes_in,
    line_style,
    prediction_style,
)
from lab.report.charts import steps as round_steps
from lab.report.groups import EXTRAS, groups, trait
from lab.report.svg import INK, MUTED, PAPER, SMALL, svg
from lab.report.units import TO, has_interval, number, sure
from lab.stats import MEASURES, matches, mean, mean_of_logs

PLOT_PX, PLOT_WIDE_PX, BOTTOM_PX = 210, 330, 44

FIELDS: Mapping[str, frozenset[str]] = {
    "slots": frozenset({"concurrency", "nodes"}),
    "machines": frozenset({"concurrency", "nodes", "pacer"}),
    "work_ms": frozenset({"args"}),
    "outside_share": frozenset({"args"}),
    "switch_interval_ms": frozenset({"switch_interval_s"}),
    "hogs": frozenset({"beside"}),
    "computing": frozenset({"beside", "apart_concurrency"}),
    "handovers": frozenset({"args"}),
    "size_bytes": frozenset({"size"}),
    "prefetch": frozenset({"prefetch"}),
    "rtt_ms": frozenset({"rtt_ms"}),
}
"""What each of `lab.axes.AXES` reads of a setup: points that differ in it lie on one line."""
SHARES = frozenset({"slots_busy", "lost_updates", "disorder", "gil_on"})
"""Measures that may be 0: their points are arithmetic means, as their claims' estimates are."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setup."""

    x: float
    y: Estimate
    setup: Setup


@dataclass(frozen=True, slots=True)
class Line:
    """Setups that differ only in what the x axis says of them."""

    name: str
    points: tuple[Point, ...]
    """From the smallest x up."""


@dataclass(frozen=True, slots=True)
class Theory:
    """What a prediction says at each x."""

    name: str
    says: Mapping[float, float]


def lines(curve: Curve, runs: Sequence[Run]) -> list[Line]:
    """The curve's points, in the units in which they are shown."""
    chosen = _on_lines(curve, [run for run in runs if matches(run, curve.where) and math.isfinite(_x(curve, run))])
    measure, scale = MEASURES[curve.y], 1.0 if curve.to else words.UNITS[curve.y].times
    divisors = _by_place(curve, [run for run in runs if curve.to and matches(run, curve.to)], measure)
    names = _names(curve, chosen)
    found: dict[str, dict[float, list[tuple[Run, float]]]] = {}
    # In the order of the tables, whatever order the trials were shuffled into.
    for run in (run for group in groups(chosen) for run in group.runs):
        x = _x(curve, run)
        value = measure(run) * scale
        if curve.to:
            below = divisors.get((run.trial.repeat, 0.0 if curve.to_one else x), [])
            value /= math.fsum(below) / len(below) if below and all(v > 0 for v in below) else math.nan
        if math.isfinite(value):
            found.setdefault(names[repr(run.trial.setup)], {}).setdefault(x, []).append((run, value))
    return [
        Line(
            name,
            tuple(
                Point(x, estimate, pairs[0][0].trial.setup)
                for x, pairs in sorted(places.items())
                if (estimate := _estimate(curve, [value for _, value in pairs]))
            ),
        )
        for name, places in found.items()
    ]


def _on_lines(curve: Curve, runs: Sequence[Run]) -> list[Run]:
    """The runs without those at a lone x, where there are many: they are no line, and would hide those that are."""
    names, places = _names(curve, runs), dict[str, set[float]]()
    for run in runs:
        places.setdefault(names[repr(run.trial.setup)], set()).add(_x(curve, run))
    alone = {name for name, xs in places.items() if len(xs) == 1}
    if len(places) <= MOST_LINES or len(alone) == len(places):
        return list(runs)
    return [run for run in runs if names[repr(run.trial.setup)] not in alone]


MOST_LINES = 8
"""More than this must be lines, not points."""


def _x(curve: Curve, run: Run) -> float:
    setup = run.trial.setup
    if curve.x == "rtt_ms" and setup.rtt_ms is None:
        # The relay alone costs something: without it is another way, not a distance of 0.
        return math.nan
    # Shares such as 0.1 + 0.2 must meet again on both sides of a ratio.
    return round(AXES[curve.x](setup) * words.AXES[curve.x].times, 9)


def _by_place(
    curve: Curve, runs: Sequence[Run], measure: Callable[[Run], float]
) -> dict[tuple[int, float], list[float]]:
    found: dict[tuple[int, float], list[float]] = {}
    for run in runs:
        found.setdefault((run.trial.repeat, 0.0 if curve.to_one else _x(curve, run)), []).append(measure(run))
    return found


def _estimate(curve: Curve, values: Sequence[float]) -> Estimate | None:
    if (curve.y in SHARES and curve.to is None) or any(value <= 0 for value in values):
        return mean(values)
    return mean_of_logs(values)


WORDS: Mapping[str, Callable[[Run], str]] = {
    "pool": lambda run: _pool(run.trial.setup),
    "queued": lambda run: "through the queue" if run.trial.setup.queued else "without a queue",
    "nodes": lambda run: f"{run.trial.setup.nodes} nodes",
    "concurrency": lambda run: f"{run.trial.setup.slots} slots",
    "apart": lambda run: f"the others in {run.trial.setup.apart}" if run.trial.setup.apart else "all in one",
    **{name: say for name, say in EXTRAS.items() if name != "nodes"},
}
"""What tells lines apart, in this order; the pool's words hold the queue and what stands apart too."""


def _pool(setup: Setup) -> str:
    # Slots may differ along a line, those of the worker apart too.
    own = replace(setup, apart=None).label.removesuffix(f" {setup.slots}")
    return f"{own} + {setup.apart}" if setup.apart else own


CARRIED = frozenset({"codec", "compression", "shape"})


def _names(curve: Curve, runs: Sequence[Run]) -> dict[str, str]:
    """Setup, as text -> name of its line: only what differs at the same x, and no more than tells lines apart."""
    setups = {repr(run.trial.setup): run for run in runs}
    by_x: dict[float, list[Run]] = {}
    for run in setups.values():
        by_x.setdefault(_x(curve, run), []).append(run)

    def differs(name: str) -> bool:
        # What is carried must be one thing along a line; other fields, such as the load, may follow x.
        groups = [list(setups.values())] if name in CARRIED else by_x.values()
        values = [{repr(trait(name, run.trial.setup)) for run in same} for same in groups]
        return name not in FIELDS[curve.x] and any(len(some) > 1 for some in values)

    names: dict[str, tuple[str, ...]] = dict.fromkeys(setups, ())
    split = [name for name in WORDS if (name == "pool" and _pools(runs) > 1) or differs(name)]
    for field in split:
        longer = {key: (*parts, WORDS[field](setups[key])) for key, parts in names.items()}
        # Where it splits no line that others have not split already, it would only make names longer.
        if len(set(longer.values())) > len(set(names.values())):
            names = longer
    return {key: " · ".join(parts) or "measured" for key, parts in names.items()}


def _pools(runs: Sequence[Run]) -> int:
    return len({(run.trial.setup.pool, run.trial.setup.queued, run.trial.setup.apart) for run in runs})


def theories(curve: Curve, measured: Sequence[Line], *, cores: int = 1) -> list[Theory]:
    """Each prediction at the measured x; once where it says the same of every line.

    What is fitted to the points is fitted, and drawn, within the `cores` alone.
    """
    scale = 1.0 if curve.to else words.UNITS[curve.y].times
    found = []
    for name in curve.predicted:
        if name in FITTED:
            for line in measured:
                says = FITTED[name]([(p.setup, p.y.value / scale) for p in line.points], cores)
                of = f" for {line.name}" if len(measured) > 1 else ""
                if says:
                    scaled = {n: y * scale for n, y in says.items()}
                    found.append(Theory(f"predicted{of}: {words.PREDICTIONS[name]}", scaled))
            continue
        each = {line.name: {p.x: PREDICTIONS[name](p.setup) * scale for p in line.points} for line in measured}
        said = [item for says in each.values() for item in says.items()]
        if len(set(said)) == len(dict(said)):
            found.append(Theory(f"predicted: {words.PREDICTIONS[name]}", dict(sorted(said))))
        else:
            found += [Theory(f"predicted for {line}: {words.PREDICTIONS[name]}", says) for line, says in each.items()]
    return found


@dataclass(frozen=True, slots=True)
class Meeting:
    """A claim's break-even, where two of the lines meet."""

    name: str
    at: Estimate
    """In the unit of the x axis."""
    sure: bool
    """Whether no check distrusts it."""


def meetings(curve: Curve, findings: Sequence[Finding], runs: Sequence[Run]) -> list[Meeting]:
    """The break-evens along the curve's x axis of which both sides are on it, and which were reached."""
    found = []
    shown = [run for run in runs if matches(run, curve.where)]
    for finding in findings:
        measure, at = finding.claim.measure, finding.estimate
        if not isinstance(measure, BreakEven) or at is None or not math.isfinite(at.value):
            continue
        both = all(any(matches(run, side) for run in shown) for side in (measure.of, measure.to))
        if both and measure.axis == curve.x and curve.to is None and curve.y == "throughput_hz":
            times = words.AXES[curve.x].times
            scaled = Estimate(at.value * times, at.low * times, at.high * times, at.n)
            found.append(Meeting(words.short_id(finding.claim), scaled, finding.verdict is not Verdict.INVALID))
    return found


def draw(
    key: str, curve: Curve, runs: Sequence[Run], *, findings: Sequence[Finding] = (), cores: int = 1
) -> Chart | None:
    """The chart; None where fewer than two x were measured. `cores` is how many the machine offers.

    A break-even among the findings is marked at its x, with its interval.
    """
    measured = [line for line in lines(curve, runs) if line.points]
    xs = sorted({point.x for line in measured for point in line.points})
    if len(xs) < 2:
        return None
    theory = theories(curve, measured, cores=cores)
    legend = Legend(tuple(line.name for line in measured), tuple(one.name for one in theory))
    top_px = 24 + legend.height_px
    height = top_px + PLOT_PX + BOTTOM_PX
    log_x = curve.log and xs[0] > 0
    met = meetings(curve, findings, runs)
    heights = [p.y.value for line in measured for p in line.points] + [y for one in theory for y in one.says.values()]
    log_y = curve.log and min(heights) > 0
    low, high = _range(measured, heights, log=log_y)
    y_ticks = _ticks(low, high, log=log_y, room_px=PLOT_PX)

    def paint(figure: Figure) -> None:
        left = max(len(plain(tick)) for tick in y_ticks) * LETTER_PX + 12
        axes = axes_in(figure, height, left_px=left, right_px=16, top_px=top_px, bottom_px=BOTTOM_PX)
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        axes.set(xlim=_margins(xs[0], xs[-1], log=log_x), ylim=(low, high))
        for i, one in enumerate(theory):
            axes.plot(list(one.says), list(one.says.values()), zorder=1.5, **prediction_style(i))
        for i, line in enumerate(measured):
            style = line_style(i)
            # Beside each other, so that one line does not hide another.
            px = min(4, 16 / len(measured)) * (i - (len(measured) - 1) / 2)
            places = _aside([p.x for p in line.points], xs, px=px, log=log_x)
            axes.plot(places, [p.y.value for p in line.points], zorder=3, **style)
            for x, point in zip(places, line.points, strict=True):
                _bar(axes, x, point.y, (low, high), style["color"])
        for i, meeting in enumerate(met):
            _meeting(axes, meeting, i)
        x_ticks = _measured_ticks(xs, log=log_x, room_px=WIDTH_PX - left - 16)
        axes.set_xticks(x_ticks, [plain(tick) for tick in x_ticks])
        axes.set_yticks(y_ticks, [plain(tick) for tick in y_ticks])
        axes.minorticks_off()
        axes.grid(visible=True, axis="y", zorder=0)
        axes.set_axisbelow(True)
        axes.set_xlabel(words.AXES[curve.x].name + (", log scale" if log_x else ""))
        # Above the axis, not along it: a reader need not turn the head, and long words have room.
        above = _y_words(curve) + (", log scale" if log_y else "")
        figure.text(MARGIN_PX / WIDTH_PX, 1 - (top_px - 15) / height, above, va="center", fontsize=SMALL)
        legend.draw(axes, len(measured), height)

    said = "; ".join(
        f"{line.name}: {', '.join(f'{sure(p.y)} at {plain(p.x)}' for p in line.points)}" for line in measured
    )
    if met:
        said += "; " + "; ".join(f"break-even, {one.name}: {sure(one.at)}" for one in met)
    drawn = svg(paint, width_px=WIDTH_PX, height_px=height, key=key, title=curve.title, description=f"{said}.")
    return Chart(curve.title, drawn, _caption(curve, measured, theory, met))


def _meeting(axes: Area, one: Meeting, i: int) -> None:
    """A diamond near the foot of the chart with its interval across, and a thin line up through the curves."""
    foot, place = axes.get_xaxis_transform(), 0.05 + 0.07 * i
    left, right = axes.get_xlim()
    if not left <= one.at.value <= right:
        return
    axes.axvline(one.at.value, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if has_interval(one.at):
        ends = [max(one.at.low, left), min(one.at.high, right)]
        axes.plot(ends, [place, place], color=INK, linewidth=1.2, marker="|", transform=foot, zorder=4)
    inside = INK if one.sure else PAPER
    # Words go where there is more room.
    stands_left = one.at.value < (math.sqrt(left * right) if axes.get_xscale() == "log" else (left + right) / 2)
    axes.plot(
        [one.at.value],
        [place],
        marker="D",
        markersize=5,
        linestyle="",
        color=inside,
        markeredgecolor=INK,
        transform=foot,
        zorder=5,
    )
    axes.annotate(
        one.name,
        (one.at.value, place),
        xycoords=foot,
        xytext=(5 if stands_left else -5, 3),
        textcoords="offset points",
        ha="left" if stands_left else "right",
        fontsize=SMALL,
        color=INK,
    )


def _y_words(curve: Curve) -> str:
    if curve.to is None:
        return words.axis(curve.y)
    return (
        f"{words.MEASURES[curve.y]}, times as many" if curve.y.endswith("_hz") else f"{words.MEASURES[curve.y]}, ratio"
    )


def _aside(places: Sequence[float], xs: Sequence[float], *, px: float, log: bool) -> list[float]:
    """The places, moved to the right by about so many pixels."""
    if log:
        return [x * (xs[-1] / xs[0]) ** (px / PLOT_WIDE_PX) for x in places]
    return [x + (xs[-1] - xs[0]) * px / PLOT_WIDE_PX for x in places]


def _bar(axes: Area, x: float, y: Estimate, limits: tuple[float, float], colour: str) -> None:
    """The point's interval; an arrow where it goes on beyond the chart."""
    if not has_interval(y):
        return
    low, high = limits
    begin, end = max(y.low, low), min(y.high, high)
    axes.plot([x, x], [begin, end], color=colour, linewidth=1.2, zorder=2)
    for at, is_end, arrow in ((begin, y.low >= low, "v"), (end, y.high <= high, "^")):
        axes.plot([x], [at], color=colour, marker="_" if is_end else arrow, markersize=6, clip_on=False, zorder=2)


def _range(measured: Sequence[Line], heights: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Wide enough for every point and prediction, and for intervals that are not out of all proportion."""
    low, high = min(heights), max(heights)
    ends = [e for line in measured for p in line.points if has_interval(p.y) for e in (p.y.low, p.y.high)]
    if log:
        near = [end for end in ends if low / 2 <= end <= high * 2]
        low, high = min([low, *near]), max([high, *near])
        # At least a factor of two from bottom to top, or noise looks like a law.
        wider = max(1.0, math.sqrt(2 * low / high))
        return _margins(low / wider, high * wider, log=True)
    reach = high - min(low, 0)
    near = [end for end in ends if min(low, 0) - 0.3 * reach <= end <= high + 0.5 * reach]
    # From 0, so that heights can be compared; below it only where a value lies there.
    return (min([0.0, low * 1.05]), max([high, *near]) * 1.06 or 1.0)


def _margins(low: float, high: float, *, log: bool) -> tuple[float, float]:
    if log:
        margin = max((high / low) ** 0.06, 1.05)
        return low / margin, high * margin
    margin = (high - low) * 0.06 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, *, log: bool, room_px: float) -> list[float]:
    if log:
        steps = round_steps(low, high, room_px=room_px)
        if len(steps) > 1:
            return steps
    return [float(tick) for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high]


def _measured_ticks(xs: Sequence[float], *, log: bool, room_px: float) -> list[float]:
    """The measured x, without those whose figures would overlap."""
    scale: Callable[[float], float] = math.log if log else float
    px = room_px * 0.89 / (scale(xs[-1]) - scale(xs[0]))
    kept: list[float] = []
    for x in xs:
        if not kept or (scale(x) - scale(kept[-1])) * px >= LEAST_GAP_PX * 0.8:
            kept.append(x)
    return kept


def plain(value: float) -> str:
    """The number written out: 1000000, not 1e+06."""
    return f"{value:.10f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else f"{value:g}"


def _caption(curve: Curve, measured: Sequence[Line], theory: Sequence[Theory], met: Sequence[Meeting]) -> str:
    """What is seen, in figures."""
    parts = [f"{line.name[:1].upper()}{line.name[1:]}: {_from_to(curve, line)}." for line in measured]
    parts += [_against(one, measured) for one in theory]
    if any(name in FITTED for name in curve.predicted):
        parts.append("What is fitted ends at the machine's cores: beyond them nothing is predicted.")
    unit = words.AXES[curve.x].after
    parts += [f"Break-even, {one.name} (diamond): {sure(one.at)} {unit}." for one in met]
    n = sorted({p.y.n for line in measured for p in line.points})
    if n[-1] > 1:
        over = f"{n[0]}" if n[0] == n[-1] else f"{n[0]} to {n[-1]}"
        parts.append(f"Points are means over {over} repeats, bars their 95 % intervals.")
    else:
        parts.append("One repeat: no intervals.")
    return " ".join(parts)


def _from_to(curve: Curve, line: Line) -> str:
    unit = "times" if curve.to else words.UNITS[curve.y].after
    ends = line.points if len(line.points) == 1 else (line.points[0], line.points[-1])
    return ", ".join(f"{sure(p.y)} {unit} at {plain(p.x)} {words.AXES[curve.x].after}" for p in ends)


def _against(one: Theory, measured: Sequence[Line]) -> str:
    """How far the measured points lie from the prediction."""
    of = [line for line in measured if f"predicted for {line.name}:" in one.name] or measured
    ratios = [p.y.value / one.says[p.x] for line in of for p in line.points if one.says.get(p.x, 0) > 0]
    says = f"{one.name[:1].upper()}{one.name[1:]}"
    if not ratios:
        return f"{says}: 0 at every point."
    span = number(min(ratios)) if len(ratios) == 1 else f"{number(min(ratios))}{TO}{number(max(ratios))}"
    return f"{says}; measured over predicted is {span}."

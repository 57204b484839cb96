"""Which slot of a worker ran which job, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from lab.model import Finding, Run, Seconds
from lab.report.charts import Chart
from lab.report.groups import Group
from lab.report.svg import INK, MUTED, SERIES, SMALL, svg
from lab.report.tables import is_green
from lab.report.units import number, plural
from lab.stats import uses

Reals = NDArray[np.floating[Any]]

WIDTH_PX = 860
MOST_PANELS = 8
MOST_LANES = 40
"""In the whole chart, shared out among its panels."""
MOST_LANES_OF_ONE = 16
MOST_BARS = 200
"""In one panel: the window ends where some panel would have more."""


@dataclass(frozen=True, slots=True, eq=False)
class Lanes:
    """The jobs of one run, each on a lane where no two overlap."""

    group: Group
    run: Run
    lane: NDArray[np.int64]
    """The lane of each sample, numbered from 0 in order of first use within its process."""
    count: int
    packed: bool
    """Lanes are places found for jobs, not threads: each job had a greenlet of its own."""


def lanes(group: Group) -> Lanes | None:
    """The lanes of the setup's first repeat; None where no job was seen."""
    run = group.runs[0]
    samples = run.samples
    if not len(samples):
        return None
    pairs = sorted(set(zip(samples.worker.tolist(), samples.thread.tolist(), strict=True)))
    apart = group.setup.apart_concurrency if group.setup.apart else 0
    packed = is_green(group) or len(pairs) > group.setup.slots + apart
    if packed:
        lane = pack(samples.worker, samples.started_ns, samples.ended_ns)
        return Lanes(group, run, lane, int(lane.max()) + 1, packed=True)
    number_of = {pair: i for i, pair in enumerate(pairs)}
    keys = zip(samples.worker.tolist(), samples.thread.tolist(), strict=True)
    return Lanes(group, run, np.array([number_of[key] for key in keys], dtype=np.int64), len(pairs), packed=False)


def pack(worker: NDArray[np.int64], started_ns: NDArray[np.int64], ended_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lowest free lane for each job, in order of their starts; a lane belongs to one process."""
    lane = np.zeros(len(worker), dtype=np.int64)
    owners: list[tuple[int, int]] = []  # of each lane: its process, and when its last job ends
    for i in np.argsort(started_ns, kind="stable").tolist():
        process, start, end = int(worker[i]), int(started_ns[i]), int(ended_ns[i])
        free = next(
            (at for at, (own, busy_ns) in enumerate(owners) if own == process and busy_ns <= start), len(owners)
        )
        owners[free : free + 1] = [(process, end)]
        lane[i] = free
    return lane


def stalled_share(run: Run) -> Seconds:
    """The part of each job's time that was not on the CPU, from 0 to 1."""
    service = run.samples.service_s
    return np.divide(run.samples.stalled_s, service, out=np.zeros_like(service), where=service > 0)


def chosen(groups: Sequence[Group], findings: Sequence[Finding]) -> list[Group]:
    """The setups that the claims compare; where there are none, all."""
    compared = [group for group in groups if any(uses(f.claim.measure, run) for f in findings for run in group.runs)]
    return [group for group in compared or list(groups) if group.jobs]


def swimlane(key: str, groups: Sequence[Group], findings: Sequence[Finding]) -> Chart | None:
    """The first repeat of the setups that claims compare, on one clock; None where no job was seen."""
    candidates = chosen(groups, findings)
    panels = [drawn for group in candidates[:MOST_PANELS] if (drawn := lanes(group))]
    if not panels:
        return None
    kept = _share_out([min(panel.count, MOST_LANES_OF_ONE) for panel in panels], MOST_LANES)
    window_s = _window_s(panels, kept)
    heights = [TITLE_PX + LANE_PX * most for most in kept]
    height = LEGEND_PX + sum(heights) + AXIS_PX

    def paint(figure: Figure) -> None:
        top = LEGEND_PX
        for i, (panel, most, tall) in enumerate(zip(panels, kept, heights, strict=True)):
            bottom = height - top - tall
            box = (LEFT_PX / WIDTH_PX, bottom / height, 1 - (LEFT_PX + RIGHT_PX) / WIDTH_PX, (tall - TITLE_PX) / height)
            axes = figure.add_axes(box)
            axes.set(xlim=(0, window_s), ylim=(most, 0))
            axes.set_yticks([])
            axes.set_title(_title(panel, most, window_s), loc="left", fontsize=SMALL, pad=4, color=INK)
            for others in (False, True):
                pale, solid = _bars(panel, most, window_s, others=others)
                axes.add_patch(PathPatch(pale, facecolor="none", edgecolor=MUTED, linewidth=0.5, hatch="//////"))
                axes.add_patch(PathPatch(solid, **(OTHERS if others else OWN)))
            axes.grid(visible=True, axis="x", zorder=0)
            axes.set_axisbelow(True)
            if i < len(panels) - 1:
                axes.tick_params(axis="x", labelbottom=False, length=0)
            else:
                axes.set_xlabel("seconds since the first job was due")
            top += tall
        handles = [Patch(**OWN, label="on the CPU")]
        if any(len(panel.run.samples.others) for panel in panels):
            handles.append(Patch(**OTHERS, label="on the CPU, jobs beside"))
        handles.append(
            Patch(
                facecolor="none",
                edgecolor=MUTED,
                linewidth=0.5,
                hatch="//////",
                label="stalled: under way, not computing",
            )
        )
        figure.legend(handles=handles, loc="upper left", ncols=3, borderpad=0.2, borderaxespad=0.2)

    said = "; ".join(_title(panel, most, window_s) for panel, most in zip(panels, kept, strict=True))
    image = svg(
        paint,
        width_px=WIDTH_PX,
        height_px=height,
        key=key,
        title="Which slot ran what, and when",
        description=f"{said}.",
    )
    return Chart("Which slot ran what, and when", image, _caption(panels, of=len(candidates)), wide=True)


OWN: dict[str, Any] = {"facecolor": SERIES[0], "edgecolor": "none"}
OTHERS: dict[str, Any] = {"facecolor": SERIES[1], "edgecolor": INK, "linewidth": 0.9}
"""Jobs beside the setup's own have an outline too: who cannot see the colour sees that."""
LEFT_PX, RIGHT_PX = 14, 14
TITLE_PX, LANE_PX, LEGEND_PX, AXIS_PX = 24, 12, 20, 40


def _share_out(wanted: Sequence[int], most: int) -> list[int]:
    """How many lanes each panel gets: all it wants while there is room, the small ones first."""
    given = [0] * len(wanted)
    left = most
    for done, i in enumerate(sorted(range(len(wanted)), key=lambda i: wanted[i])):
        given[i] = min(wanted[i], max(1, left // (len(wanted) - done)))
        left -= given[i]
    return given


def _window_s(panels: Sequence[Lanes], kept: Sequence[int]) -> float:
    """Up to the last end, or to where a panel has bars enough."""
    ends = []
    for panel, lanes in zip(panels, kept, strict=True):
        shown = panel.lane < lanes
        starts = np.sort(panel.run.samples.started_ns[shown])
        ends.append(float(starts[MOST_BARS]) if len(starts) > MOST_BARS else np.inf)
    last = max(float(panel.run.samples.ended_ns.max()) for panel in panels)
    return min(last * 1.005, *ends) / 1e9


def _bars(panel: Lanes, lanes: int, window_s: float, *, others: bool) -> tuple[Path, Path]:
    """All bars of one kind of jobs as one shape, the computing part of each as another: a small file with many jobs.

    The computing part fills the bar from below, over its whole length: how much is known, but not when.
    """
    samples = panel.run.samples
    shown = (panel.lane < lanes) & (samples.started_ns / 1e9 < window_s) & ((samples.beside != 0) == others)
    begin, end = samples.started_ns[shown] / 1e9, np.minimum(samples.ended_ns[shown] / 1e9, window_s)
    floor, roof = panel.lane[shown] + 0.92, panel.lane[shown] + 0.12
    computing = floor - (floor - roof) * (1 - stalled_share(panel.run)[shown])
    return _rectangles(begin, end, floor, roof), _rectangles(begin, end, floor, computing)


def _rectangles(left: Reals, right: Reals, bottom: Reals, top: Reals) -> Path:
    corners = np.stack([left, bottom, right, bottom, right, top, left, top, left, bottom], axis=1).reshape(-1, 2)
    codes = np.tile(np.array([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], np.uint8), len(left))
    return Path(corners, codes)


def _title(panel: Lanes, lanes: int, window_s: float) -> str:
    processes = len(set(panel.run.samples.worker.tolist()))
    kind = "lane" if panel.packed else "thread"
    parts = [f"{panel.group.label}: 1 process" if processes == 1 else f"{panel.group.label}: {processes} processes"]
    parts.append(f"{lanes} of {plural(panel.count, kind)}" if lanes < panel.count else plural(panel.count, kind))
    starts_s = panel.run.samples.started_ns / 1e9
    shown = int(np.sum((panel.lane < lanes) & (starts_s < window_s)))
    total = len(starts_s)
    parts.append(f"{shown} of {total} jobs" if shown < total else f"{total} jobs")
    own = panel.run.samples.beside == 0
    if own.any():
        parts.append(f"{_per_cent(float(np.mean(stalled_share(panel.run)[own])))} stalled")
    return ", ".join(parts)


def _per_cent(share: float) -> str:
    return "under 0.1 %" if 0 < share < 0.0005 else f"{number(share * 100, decimals=1)} %"


def _caption(panels: Sequence[Lanes], *, of: int) -> str:
    says = (
        f"The first repeat (repeat {panels[0].run.trial.repeat + 1}), on one clock; one lane a thread, one bar a "
        "job. The filled part of a bar's height is the share of its time on the CPU: how much is measured, when is "
        "not. Per cents are means over all jobs of the run; where jobs or lanes are cut, the title says so."
    )
    if any(len(panel.run.samples.others) for panel in panels):
        says += " Bars with an outline are the jobs that run beside the setup's own; the per cents leave them out."
    if len(panels) < of:
        says += f" Shown are {len(panels)} of {of} setups."
    if any(panel.packed for panel in panels):
        says += (
            " Where each job has a greenlet of its own, lanes are places found for the jobs; greenlets share one "
            "thread and its CPU clock, so there the filled part is an upper bound."
        )
    return says

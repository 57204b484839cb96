"""The scale demo's picture: rates, queue, time in queue and workers, one below the other on one line of time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from lab.report.charts import line_style
from lab.report.svg import INK, MUTED, SERIES, SMALL, svg
from lab.story import Story, at_most, done_hz, offered_hz, since

WIDTH_PX, LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX, GAP_PX = 840.0, 56.0, 150.0, 64.0, 44.0, 18.0
HEIGHTS_PX = (150.0, 110.0, 110.0, 80.0)
HEIGHT_PX = TOP_PX + sum(HEIGHTS_PX) + GAP_PX * (len(HEIGHTS_PX) - 1) + BOTTOM_PX
KEY = "scale-demo"


def picture(story: Story) -> str:
    """An SVG that stands alone in a file. Pure: the same story, the same bytes."""
    times = [look.at_s - story.begun_s for look in story.looks]
    offered, done, waits = _windows(story)

    def paint(figure: Figure) -> None:
        areas = list(_areas(figure))
        rates, depth, wait, workers = areas
        _line(rates, times, offered, 0, "offered")
        _line(rates, times, done, 1, "done")
        rates.set_ylim(0, 1.08 * max([1.0, *(v for v in (*offered, *done) if math.isfinite(v))]))
        _beside(rates, [("offered", 0, offered), ("done", 1, done)])
        _line(depth, times, [look.depth for look in story.looks], 2, "waiting")
        depth.set_ylim(0, 1.08 * max(1, story.deepest))
        _waits(wait, times, waits, story)
        workers.plot(
            times, [look.workers for look in story.looks], color=SERIES[4], drawstyle="steps-post", linewidth=1.6
        )
        workers.set_ylim(0, story.workers + 0.6)
        workers.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for area, says in zip(areas, ("jobs/s", "jobs that wait", "time in queue, p99", "workers alive"), strict=True):
            area.set_xlim(0, max(times[-1], 1.0))
            area.grid(visible=True, axis="y", zorder=0)
            area.set_axisbelow(True)
            area.text(1 + 8 / _width(), 0.98, says, transform=area.transAxes, va="top", fontsize=SMALL, color=INK)
            for event in story.events:
                at = event.at_s - story.begun_s
                dashes: object = (0, (1, 2)) if event.is_worker else (0, (5, 3))
                area.axvline(at, color=MUTED, linewidth=0.9, linestyle=dashes, zorder=1)
        workers.set_xlabel("seconds since the first step began")
        _events(figure, rates, story)

    last = story.looks[-1]
    said = (
        f"{story.issued} jobs sent and {story.ended} ended in {last.at_s - story.begun_s:.0f} s; "
        f"at most {story.deepest} waited; up to {story.most_live} workers were alive; {last.depth} jobs wait at the end"
    )
    drawn = svg(
        paint, width_px=WIDTH_PX, height_px=HEIGHT_PX, key=KEY, title="Load rises, workers are added, the queue drains",
        description=f"{said}.",
    )  # fmt: skip
    return alone(drawn)


def alone(drawn: str) -> str:
    """The same drawing as a file of its own: viewers that know no CSS variables get the plain colours."""
    plain = re.sub(r"var\(--[\w-]+,(#[0-9a-f]{6})\)", r"\1", drawn)
    size = f'xmlns="http://www.w3.org/2000/svg" width="{WIDTH_PX:g}" height="{HEIGHT_PX:g}"'
    head, _, rest = plain.partition(">")
    ground = f'<rect width="{WIDTH_PX:g}" height="{HEIGHT_PX:g}" fill="#ffffff"/>'
    return f"{head} {size}>\n{ground}{rest}\n".replace("<svg ", "<svg ", 1)


def _windows(story: Story) -> tuple[list[float], list[float], list[float | None]]:
    """At each look the offered and the done rate, and the bound on the time in queue, of the last seconds."""
    offered, done = [math.nan], [math.nan]
    waits: list[float | None] = [None]
    for at in range(1, len(story.looks)):
        before, now = since(story.looks[: at + 1]), story.looks[at]
        assert before is not None  # noqa: S101  there are two at least
        offered.append(offered_hz(before, now))
        done.append(done_hz(before, now))
        waits.append(at_most(before.waits, now.waits, 0.99, story.bounds_s))
    return offered, done, waits


def _areas(figure: Figure) -> Sequence[Axes]:
    found: list[Axes] = []
    top = TOP_PX
    for height in HEIGHTS_PX:
        bottom = HEIGHT_PX - top - height
        area = figure.add_axes(
            (LEFT_PX / WIDTH_PX, bottom / HEIGHT_PX, _width() / WIDTH_PX, height / HEIGHT_PX),
            sharex=found[0] if found else None,
        )
        area.tick_params(axis="x", labelbottom=height is HEIGHTS_PX[-1])
        found.append(area)
        top += height + GAP_PX
    return found


def _width() -> float:
    return WIDTH_PX - LEFT_PX - RIGHT_PX


def _line(area: Axes, times: Sequence[float], values: Sequence[float], number: int, name: str) -> None:
    style = line_style(number)
    area.plot(times, values, color=style["color"], linestyle=style["linestyle"], linewidth=1.6, label=name, zorder=3)


def _beside(area: Axes, lines: Sequence[tuple[str, int, Sequence[float]]]) -> None:
    """The lines' names at the right, with their dashes: who cannot see the colour follows them."""
    for row, (name, number, _) in enumerate(lines):
        style = line_style(number)
        y = 0.78 - 0.12 * row
        left = 1 + 8 / _width()
        area.plot(
            [left, left + 26 / _width()], [y, y], color=style["color"], linestyle=style["linestyle"], linewidth=1.6,
            transform=area.transAxes, clip_on=False,
        )  # fmt: skip
        area.text(
            left + 34 / _width(), y, name, transform=area.transAxes, va="center", fontsize=SMALL, color=style["color"]
        )


def _waits(area: Axes, times: Sequence[float], waits: Sequence[float | None], story: Story) -> None:
    """Bounds of buckets, on a log scale; a gap where no job started."""
    highest = story.bounds_s[-1] * 2
    values = [math.nan if w is None else min(w, highest) for w in waits]
    area.set_yscale("log")
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.01, 1.0)
    area.plot(times, values, color=SERIES[3], drawstyle="steps-post", zorder=3, linewidth=1.6)
    area.set_ylim(low / 2.2, high * 2.2)
    ticks = [bound for bound in story.bounds_s if low / 2.2 <= bound <= high * 2.2 and _is_round(bound)]
    area.yaxis.set_major_locator(FixedLocator(ticks))
    area.yaxis.set_minor_locator(NullLocator())
    area.yaxis.set_minor_formatter(NullFormatter())
    area.set_yticklabels([f"{tick:g} s" for tick in ticks])
    note = "the bucket's upper\nbound, log scale;\nof the last 5 s"
    area.text(
        1 + 8 / _width(), 0.80, note, transform=area.transAxes, va="top", fontsize=SMALL, color=MUTED, linespacing=1.2
    )


def _is_round(bound: float) -> bool:
    return f"{bound:e}"[0] == "1" and f"{bound:e}".startswith("1.000")


def _events(figure: Figure, area: Axes, story: Story) -> None:
    """What was done, above the first area, where its line stands."""
    figure.text(
        LEFT_PX / WIDTH_PX, 1 - 14 / HEIGHT_PX, "Load rises in steps, workers are added, the queue drains",
        fontsize=13, color=INK, va="center",
    )  # fmt: skip
    for event in story.events:
        area.text(
            event.at_s - story.begun_s, 1 + (6 if event.is_worker else 19) / HEIGHTS_PX[0], event.text,
            transform=area.get_xaxis_transform(), fontsize=SMALL, color=MUTED, va="bottom", ha="left",
        )  # fmt: skip


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The last values as a line of blocks, from 0 to the highest of all."""
    shown = [v if math.isfinite(v) else 0.0 for v in values]
    top = max(shown, default=0.0)
    blocks = " ▁▂▃▄▅▆▇█"
    return "".join(blocks[round(v / top * 8) if top > 0 else 0] for v in shown[-width:])

"""Drawings of matplotlib as SVG that stands inside a page: themed by CSS variables, the same bytes every time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, cast

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lab.report.html import escape

# Drawn in colours that nobody would choose, then replaced: the page decides what they are, by day and by night.
# The second value is for an SVG that stands alone.
INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116")
THEME = {
    INK: ("ink", "#1b1f24"),
    MUTED: ("muted", "#59616b"),
    GRID: ("grid", "#d5d9de"),
    PAPER: ("paper", "#ffffff"),
    SERIES[0]: ("s1", "#1f5fa8"),
    SERIES[1]: ("s2", "#b4500b"),
    SERIES[2]: ("s3", "#2c7a4b"),
    SERIES[3]: ("s4", "#7a4a9e"),
    SERIES[4]: ("s5", "#8a6d00"),
    SERIES[5]: ("s6", "#a3324a"),
}
SMALL, TEXT_PX = 10, 11
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    # Shipped with matplotlib and wider than most: where it fits, the reader's own font fits too.
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": TEXT_PX,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.labelsize": TEXT_PX,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "lines.markeredgecolor": "auto",
    "hatch.linewidth": 0.8,
    "figure.facecolor": "none",
    "figure.dpi": 72,
    "savefig.facecolor": "none",
    "savefig.dpi": 72,
}


def svg(
    paint: Callable[[Figure], None], *, width_px: float, height_px: float, key: str, title: str, description: str
) -> str:
    """What `paint` draws, as one <svg>. `key` must differ between the drawings of a page: every id begins with it."""
    # A reader's own matplotlibrc must not change a report.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast("Any", {**STYLE, "svg.hashsalt": key}))
        figure = Figure(figsize=(width_px / 72, height_px / 72))
        FigureCanvasSVG(figure)
        paint(figure)
        drawn = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(drawn, format="svg", metadata=nothing)
    return _embed(drawn.getvalue(), key=key, title=title, description=description)


def _embed(drawn: str, *, key: str, title: str, description: str) -> str:
    box = re.search(r'viewBox="([^"]+)"', drawn)
    body = re.search(r"<svg[^>]*>(.*)</svg>", drawn, re.DOTALL)
    if not box or not body:
        raise ValueError("matplotlib wrote something that is not an SVG")
    inside = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", "", body[1], flags=re.DOTALL
    )
    inside = _own_ids(inside.replace("xlink:href", "href"), key)
    inside = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1sans-serif", inside)
    inside = re.sub(r' d="[^"]*"', lambda d: re.sub(r"-?\d+\.\d+", _short, d[0]), inside)
    inside = re.sub(r"\s*\n\s*", "\n", inside).strip()
    for sentinel, (name, fallback) in THEME.items():
        inside = inside.replace(sentinel, f"var(--{name},{fallback})")
    return (
        f'<svg viewBox="{box[1]}" role="img" aria-labelledby="{key}-title {key}-desc" '
        'stroke-linejoin="round" stroke-linecap="butt">\n'
        f'<title id="{key}-title">{escape(title)}</title>\n<desc id="{key}-desc">{escape(description)}</desc>\n'
        f"{inside}\n</svg>"
    )


def _own_ids(inside: str, key: str) -> str:
    """Keep the ids that something points to, and begin them with the drawing's own key."""
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', inside))
    names = {name for pair in used for name in pair if name}
    inside = re.sub(r' id="([^"]*)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in names else "", inside)
    inside = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", inside)
    return re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', inside)


def _short(digits: re.Match[str]) -> str:
    # A hundredth of a pixel is finer than any screen, and half the bytes.
    return f"{float(digits[0]):.2f}".rstrip("0").rstrip(".")

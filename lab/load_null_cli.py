"""`sidestep load --null`: the generator alone, against nobody."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from lab.load.calibration import Calibration, Memory, Pace, calibrate
from lab.load.hdr import Histogram
from lab.load.model import QUANTILES
from lab.report.units import number

MB = 1e6
GOAL_LAG_S = 0.005
MOST_ROWS = 20


def null(jobs: int, *, rate_hz: float, producers: int, seed: int, human: Console, want_json: bool) -> int:
    """Calibrate the generator and say what came out. The exit code: 3 where it could not keep its own schedule."""
    with human.status("the generator alone"):  # on a terminal only
        found = calibrate(
            jobs,
            rate_hz=rate_hz,
            producers=producers,
            seed=seed,
            say=lambda words: human.print(words, style="dim"),
        )
    if want_json:
        print(json.dumps(as_json(found), allow_nan=False))
    human.print(_memory(found.memory))
    first, last = found.memory[0], found.memory[-1]
    human.print(
        f"one producer made {found.jobs:,} messages of an empty job, whose arguments are encoded once, "
        f"{number(found.ceiling_hz)} a second, and held "
        f"{(last.rss_bytes - first.rss_bytes) / MB:+.1f} MB more at the end than after the first {first.jobs:,}",
        soft_wrap=True,
    )
    human.print(_paces(found))
    kept = kept_up(found.queue)
    human.print(
        f"at {number(rate_hz)} jobs/s into a queue its own lag "
        + ("stayed below" if kept else "did NOT stay below")
        + f" {GOAL_LAG_S * 1e3:g} ms at p99: {found.queue.lag.quantile_s(0.99) * 1e3:.3g} ms",
        soft_wrap=True,
    )
    return 0 if kept else 3


def kept_up(pace: Pace) -> bool:
    """Whether a generator was on time."""
    return pace.lag.quantile_s(0.99) < GOAL_LAG_S


def as_json(found: Calibration) -> dict[str, Any]:
    """What --json prints."""
    return {
        "schema": 1,
        "producers": found.producers,
        "jobs": found.jobs,
        "ceiling_hz": found.ceiling_hz,
        "memory": [{"jobs": m.jobs, "rss_bytes": m.rss_bytes, "at_s": m.at_s} for m in found.memory],
        "null": _pace_json(found.null),
        "queue": _pace_json(found.queue),
    }


def _pace_json(pace: Pace) -> dict[str, Any]:
    return {
        "rate_hz": pace.rate_hz,
        "sent_hz": pace.sent_hz,
        "jobs": pace.jobs,
        "cpu_cores": pace.cpu_share,
        "lag_s": _quantiles(pace.lag),
        "handed_over_s": _quantiles(pace.taken),
    }


def _quantiles(histogram: Histogram) -> dict[str, float | None]:
    values = {name: histogram.quantile_s(q) for name, q in QUANTILES.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _memory(memory: tuple[Memory, ...]) -> Table:
    table = Table(Column("messages", justify="right"), Column("memory", justify="right"), box=None, pad_edge=False)
    step = max(1, math.ceil(len(memory) / MOST_ROWS))
    for row in (*memory[:-1:step], memory[-1]):
        table.add_row(f"{row.jobs:,}", f"{row.rss_bytes / MB:.1f} MB")
    return table


def _paces(found: Calibration) -> Table:
    names = list(QUANTILES)
    table = Table(
        Column("paced"),
        Column("sent/s", justify="right"),
        *(Column(f"lag {name}", justify="right") for name in names),
        Column("cores", justify="right"),
        box=None,
        pad_edge=False,
    )
    for label, pace in (("to nobody", found.null), ("to a queue", found.queue)):
        lags = [f"{pace.lag.quantile_s(QUANTILES[name]) * 1e3:.3g} ms" for name in names]
        table.add_row(label, number(pace.sent_hz), *lags, f"{pace.cpu_share:.2f}")
    return table
